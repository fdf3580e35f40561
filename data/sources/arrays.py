"""Arrays of images in .npy and .npz files, such as the batches of samples that ADM writes."""

import os

import numpy as np

from data.source import NumberedArrays, Source
from torch_utils.arrays import names_in, read_npy, read_npz

IMAGES = ('arr_0', 'images', 'x')   # names of arrays in an .npz, the first of which is taken
LABELS = ('arr_1', 'labels', 'y')


def is_arrays(path: str) -> bool:
    """Return whether the name is that of a .npy or .npz file."""
    return os.path.isfile(path) and path.lower().endswith(('.npy', '.npz'))


def read_arrays(path: str) -> Source:
    """Read images [N, H, W], [N, H, W, C] or [N, C, H, W], and labels [N] or [N, L] beside them.

    Arrays of uint8 with 1 or 3 channels are images; all others stay arrays of their type.
    """
    try:
        pixels, labels = _npz(path) if path.lower().endswith('.npz') else (read_npy(path), None)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if pixels.ndim not in (3, 4) or pixels.dtype.kind not in 'uif' or 0 in pixels.shape:
        raise ValueError(f'{path} holds an array {list(pixels.shape)} of {pixels.dtype}, not '
                         'images [N, H, W], [N, H, W, C] or [N, C, H, W] of numbers')
    load = NumberedArrays(pixels)
    named = {} if labels is None else dict(zip(load.names(), labels.tolist(), strict=True))
    return Source(load.names(), load, named, path=path)


def _npz(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    there = names_in(path)
    images = [name for name in IMAGES if name in there] or there[:1]
    labels = [name for name in LABELS if name in there][:1]
    if not images:
        raise ValueError('it has no array')
    found = read_npz(path, images[0], *labels)
    values = found[labels[0]] if labels else None
    if values is not None and (values.ndim not in (1, 2) or len(values) != len(found[images[0]])):
        raise ValueError(f'its {labels[0]} {list(values.shape)} is no label for each of '
                         f'{len(found[images[0]])} images')
    return found[images[0]], values
