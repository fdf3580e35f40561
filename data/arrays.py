"""Data that are no 8-bit images: a .npy file [C, H, W] for each, with a mean and std for all."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dnnlib.console import shown
from limpid.values import Standardization
from torch_utils.arrays import read_array

NPY = '.npy'
ROWS = 256   # of an array at a time


def is_array(name: str) -> bool:
    """Return whether a file of this name holds an array."""
    return name.lower().endswith(NPY)


def decode_array(where: str, data: bytes) -> np.ndarray:
    """Return the array [C, H, W] in the bytes of a .npy file; [H, W] becomes one channel.

    Raises ValueError, which begins with `where`, for another shape, for anything but numbers, and
    for numbers that are not finite.
    """
    try:
        array = read_array(io.BytesIO(data), len(data))
    except (ValueError, EOFError) as error:
        raise ValueError(f'{where} is not an array, or a damaged one: '
                         f'{shown(str(error), 200)}') from error
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.ndim != 3 or array.dtype.kind not in 'uif' or 0 in array.shape:
        raise ValueError(f'{where} is an array {list(array.shape)} of {array.dtype}, not numbers '
                         '[C, H, W]')
    if array.dtype.kind == 'f' and not bool(np.isfinite(array).all()):
        raise ValueError(f'{where} has numbers that are not finite')
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder('='))


def is_pixels(array: np.ndarray) -> bool:
    """Return whether an array [C, H, W] is one of 8-bit greyscale or RGB, like an image file."""
    return array.dtype == np.uint8 and len(array) in (1, 3)


def stored_as(array: np.ndarray) -> np.ndarray:
    """Return the array in the type in which a data set gives it: uint8, float16 or float32."""
    if is_pixels(array) or array.dtype == np.float16:
        return array
    return array.astype(np.float32)


def sums(array: np.ndarray) -> tuple[float, ...]:
    """Return the means over the pixels of v and of v², for each channel: 2 C numbers."""
    totals = np.zeros([2, len(array)])
    for start in range(0, array.shape[1], ROWS):   # so that a large array takes little more
        v = array[:, start:start + ROWS].astype(np.float64)
        totals += [v.sum(axis=(1, 2)), np.square(v).sum(axis=(1, 2))]
    return tuple((totals / array[0].size).ravel().tolist())


def standardization_of(rows: Iterable[Sequence[float]]) -> Standardization:
    """Return mean and std of each channel from the `sums` of all arrays.

    A channel that has one value everywhere gets the std 1.
    """
    first, second = np.mean(list(rows), axis=0).reshape(2, -1)
    std = np.sqrt(np.maximum(second - first**2, 0))
    return Standardization(tuple(first.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def told(content: object) -> dict[str, Any] | None:
    """Return mean and std as a dataset.json tells them, None where it does not."""
    if not isinstance(content, dict) or not {'mean', 'std'} & content.keys():
        return None
    return {name: content.get(name) for name in ('mean', 'std')}
