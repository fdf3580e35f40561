"""Folders and zips of image files, with dataset.json or a folder for each class."""

import functools
import os
import re
import zipfile
from collections.abc import Sequence

import numpy as np

from data.arrays import is_pixels
from data.image_files import ImageFiles
from data.labels import common_folders, label_array, normal
from data.source import Image, Source, image_of

WRITTEN = re.compile(r'\d{5}/img\d{8}\.(png|npy)')   # names that dataset_tool.py gives


def is_folder(path: str) -> bool:
    """Return whether the source is a folder."""
    return os.path.isdir(path)


def read_folder(path: str) -> Source:
    """Read a folder and its subfolders, sorted part by part: a/z.png comes before a.b/c.png."""
    files = ImageFiles(path)
    return source_of(files, sorted(files.names, key=lambda name: name.split('/')))


def is_zip(path: str) -> bool:
    """Return whether the source is a zip, or a file that claims to be one by its name."""
    return os.path.isfile(path) and (path.lower().endswith('.zip') or zipfile.is_zipfile(path))


def read_zip(path: str) -> Source:
    """Read a zip, in the order of the sorted names."""
    files = ImageFiles(path)
    return source_of(files, files.names)


def source_of(files: ImageFiles, names: list[str]) -> Source:
    """Return the images of a folder or a zip, in the order of `names`, with their labels.

    The labels are those of dataset.json, else the folders of the images; {} if neither has any.
    """
    found, classes = files.labels(), files.class_names()   # in this order the file is read once
    if found is None:
        found, classes = folder_labels(names)
    else:   # labels that train.py would refuse are refused here, before the work
        label_array(found, names, f'{files.path}: dataset.json')
    return Source(names, functools.partial(_load, files), found, classes=classes,
                  note=files.note(), path=files.path, several=files.several.__contains__)


def _load(files: ImageFiles, name: str) -> Image | np.ndarray:
    """Return an image, or an array [C, H, W]; one of 8-bit greyscale or RGB becomes an image."""
    loaded = files.load(name)
    if isinstance(loaded, np.ndarray) and is_pixels(loaded):
        return image_of(loaded.transpose(1, 2, 0))
    return loaded


def folder_labels(names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return {name: class} and the names of the classes: the sorted top-level folders.

    Where all images lie in folders of one folder, these are the classes. Folders whose names are
    all numbers are sorted as numbers. Images outside of folders are a class of their own, called
    ''. A single class is none, and so are the folders that this tool makes: ({}, ()).
    """
    paths = {name: normal(name) for name in names}
    if all(WRITTEN.fullmatch(path) for path in paths.values()):
        return {}, ()
    above = common_folders(paths.values())[:1]
    inside = {name: path.split('/')[len(above):-1] for name, path in paths.items()}
    if not all(inside.values()):   # images beside folders in one folder are no classes
        inside = {name: path.split('/')[:-1] for name, path in paths.items()}
    tops = {name: (folders or [''])[0] for name, folders in inside.items()}
    classes = {top: i for i, top in enumerate(in_order(set(tops.values())))}
    if len(classes) == 1:
        return {}, ()
    return {name: classes[top] for name, top in tops.items()}, tuple(classes)


def in_order(folders: set[str]) -> list[str]:
    """Return the names of folders sorted as numbers, if they all are whole numbers, or as text."""
    if all(re.fullmatch('[0-9]+', folder) for folder in folders - {''}):
        return sorted(folders, key=lambda folder: (int(folder or -1), folder))
    return sorted(folders)
