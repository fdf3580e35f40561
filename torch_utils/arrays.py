"""Arrays of numpy in .npy and .npz files, read no further than the files reach.

Nothing is allocated before the size that an array claims has been compared with the bytes that are
there, and a compressed array may not unfold to far more than any real one does.
"""

import contextlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from dnnlib.console import shown
from dnnlib.files import MOST_RATIO, SMALL_UNFOLDED, open_regular

NPY_START = b'\x93NUMPY'
MOST_HEADER = 10_000   # bytes of the description of an array


def check_ratio(entry: zipfile.ZipInfo) -> None:
    """Raise ValueError for an entry of a zip that unfolds to far more than it takes."""
    if entry.file_size > max(SMALL_UNFOLDED, MOST_RATIO * entry.compress_size):
        raise ValueError(f'its {entry.filename} claims {entry.file_size:,} bytes and takes '
                         f'{entry.compress_size:,}')


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether columns come first, and the type of an array in numpy's format.

    The position is left behind the description. Raises ValueError for a damaged one.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f'an array is in version {version} of the format')
    read = {1: np.lib.format.read_array_header_1_0,
            2: np.lib.format.read_array_header_2_0}[version[0]]
    try:
        return read(file, max_header_size=MOST_HEADER)
    except ValueError:
        raise
    except Exception as error:   # numpy raises a dozen unrelated kinds
        raise ValueError('the description of an array is damaged') from error


def read_array(file: IO[bytes], size: int) -> np.ndarray:
    """Return the array of a stream of `size` bytes in numpy's format.

    Raises ValueError for one of another size than it claims, and for pickled objects.
    """
    shape, in_columns, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError('an array holds pickled objects')
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f'an array {list(shape)} of {dtype} does not have the size that it claims')
    if math.prod(max(n, 1) for n in shape) >= 2**60 or dtype.itemsize == 0 < math.prod(shape):
        raise ValueError(f'an array {list(shape)} of {dtype} is none')
    data = bytearray(size - file.tell())
    if _fill(file, data) < len(data):
        raise ValueError('it became shorter while it was read')
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if in_columns else array.reshape(shape)


def _fill(file: IO[bytes], data: bytearray) -> int:
    view, done = memoryview(data), 0
    while done < len(data):
        count = file.readinto(view[done:done + 2**24])   # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array of a .npy file; raise ValueError where it is none."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return read_array(file, size)


def read_npz(path: str | os.PathLike[str], *names: str) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name: those of `names`, or all if none are given.

    Raises ValueError for a name that it does not have, and for a damaged file.
    """
    with _opened(path) as archive:
        arrays, total = {}, 0
        size = sum(info.compress_size for info in archive.filelist)
        for name in names or _names(archive):
            if f'{name}.npy' not in archive.NameToInfo:
                raise ValueError(f'it has no array {name}')
            entry = archive.getinfo(f'{name}.npy')
            check_ratio(entry)
            total += entry.file_size
            if total > max(SMALL_UNFOLDED, MOST_RATIO * size):
                raise ValueError(f'its arrays claim {total:,} bytes and take {size:,}')
            with archive.open(entry) as stream:
                arrays[name] = read_array(stream, entry.file_size)
    return arrays


def floats(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of floating-point numbers as float32; ValueError for one of another kind."""
    if array.dtype.kind != 'f':
        raise ValueError(f'its {name} are {array.dtype}, not floating-point numbers')
    with np.errstate(over='ignore'):   # what is too large becomes infinite
        return array.astype(np.float32)


def names_in(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the arrays of an .npz file."""
    with _opened(path) as archive:
        return _names(archive)


def is_npy(path: str | os.PathLike[str]) -> bool:
    """Return whether a file starts like a .npy file."""
    with open_regular(path) as file:
        return file.read(len(NPY_START)) == NPY_START


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Open a zip; all that zipfile raises for a damaged one becomes a ValueError."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            if sum(info.compress_size for info in archive.filelist) > file.seek(0, 2):
                raise ValueError('its arrays overlap')
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, struct.error,
            RuntimeError, LookupError) as error:
        raise ValueError(f'its zip is damaged: {shown(str(error), 200)}') from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [info.removesuffix('.npy') for info in archive.NameToInfo if info.endswith('.npy')]
