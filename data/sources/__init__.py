"""The sources of images that dataset_tool.py reads: a small reader for each."""

import os
from collections.abc import Callable

from data.source import Source
from data.sources import arrays, cifar, digits, files, idx, lsun, parquet, tar

# The first entry that accepts --source reads it. A reader raises ValueError if it cannot.
SOURCES: dict[str, tuple[Callable[[str], bool], Callable[[str], Source]]] = {
    'digits': (digits.is_digits, digits.read_digits),
    'lsun': (lsun.is_lmdb, lsun.read_lmdb),
    'cifar': (cifar.is_cifar, cifar.read_cifar),
    'idx': (idx.is_idx, idx.read_idx),
    'arrays': (arrays.is_arrays, arrays.read_arrays),
    'parquet': (parquet.is_parquet, parquet.read_parquet),
    'tar': (tar.is_tar, tar.read_tar),
    'folder': (files.is_folder, files.read_folder),
    'zip': (files.is_zip, files.read_zip),
}
KNOWN = ('give a folder, a zip or a tar of images, an .npy, .npz, IDX, .parquet or CIFAR archive, '
         'a folder *_lmdb, or the word digits')


def open_source(path: str) -> Source:
    """Read the names and labels of --source; its images are loaded one by one later."""
    there = os.path.exists(path.removeprefix(cifar.TEST)) or digits.is_digits(path)
    if not there:
        raise ValueError(f'--source={path} does not exist: {KNOWN}')
    for accepts, read in SOURCES.values():
        if accepts(path):
            return read(path)
    raise ValueError(f'--source={path} cannot be used: {KNOWN}')
