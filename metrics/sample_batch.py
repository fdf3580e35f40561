"""Batches of images as one array, as ADM's evaluator takes them, read and written in pieces.

    batch = SampleBatch('samples_50000x64x64x3.npz')
    batch.images(range(1000, 1064))   # uint8 [64, C, H, W]; the rest of the file is not loaded

An npz holds `arr_0`, uint8 [N, H, W, C], and perhaps `arr_1`, classes [N]. 50,000 images of 256 x
256 pixels take 10 GB, which np.load would read into memory at once. A .npy file of such an array is
read too.
"""

import hashlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import shown
from dnnlib.download import SAMPLES, as_fetched, fetch, is_url
from dnnlib.files import atomic_write, open_regular
from torch_utils import torch_files
from torch_utils.arrays import NPY_START, check_ratio, read_header, read_npz

IMAGES, LABELS = 'arr_0', 'arr_1'   # the names that np.savez gives to unnamed arrays
WHAT = 'batch of images'


class _Array(NamedTuple):
    """The place of an array's numbers in a file."""
    member: zipfile.ZipInfo | None   # the member of a zip; None: the file is the array
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    header: int                      # bytes before the numbers
    fortran_order: bool


class SampleBatch:
    """Images in an npz (`arr_0`) or npy file, which may be larger than the memory.

    They are uint8 [N, H, W, 1 or 3] or [N, H, W]. `path` may be an http(s) address, whose file is
    then kept in the cache.

    `len()` is N, `image_shape` is [C, H, W]. Opening reads a few hundred bytes. If the array is not
    compressed, any image is found at once. If it is compressed, the file is decompressed from the
    place where the last call ended, or from the start for an earlier place: read in increasing
    order. The file is opened anew in every process and after pickling. Use it from one thread at a
    time.

    Raises ValueError, in one line that names the file, if it is damaged or holds anything else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        self.path = fetch(name, most=SAMPLES) if is_url(name) else Path(path)
        self._stream: IO[bytes] | None = None
        self._process = 0
        if self.path.is_dir():
            raise ValueError(f'{self.path} is a folder, not a {WHAT} (.npz or .npy)')
        if not self.path.exists():
            raise ValueError(f'{self.path}: no such {WHAT}')
        with as_fetched(os.fspath(path), self.path):
            self._array = self._find(IMAGES)
            self._check()
        count, height, width, *channels = self._array.shape
        self._count = count
        self.image_shape = [*(channels or [1]), height, width]

    def __len__(self) -> int:
        return self._count

    def images(self, positions: Sequence[int]) -> Tensor:
        """Read images as a new tensor, uint8 [len(positions), C, H, W].

        Positions are a range or any other sequence, best in increasing order.
        """
        channels, height, width = self.image_shape
        pixels = np.empty([len(positions), height, width, channels], dtype=np.uint8)
        for start, run in _runs(positions):
            if not 0 <= positions[start] <= positions[start] + run <= len(self):
                raise IndexError(f'images {positions[start]} to {positions[start] + run - 1} of '
                                 f'{self.path}, which has {len(self)}')
            self._read(positions[start], pixels[start:start + run])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def labels(self) -> np.ndarray | None:
        """Read the classes, int64 [N]; return None if there are none."""
        if self._array.member is None:
            return None
        with torch_files.damage_named(self.path, WHAT), zipfile.ZipFile(self.path) as archive:
            if f'{LABELS}.npy' not in archive.NameToInfo:
                return None
            found = self._find(LABELS)
            if found.shape != (len(self),) or found.dtype.kind not in 'iu':
                raise ValueError(f'its {LABELS} is {_described(found)}, not classes [{len(self)}]')
        return read_npz(self.path, LABELS)[LABELS].astype(np.int64)

    def fingerprint(self) -> str:
        """Return the sha256 of name, shape, and the CRC-32 of the images.

        A zip stores the CRC-32; for a .npy file it is computed.
        """
        member, shape = self._array.member, list(self._array.shape)
        crc = 0 if member is None else member.CRC
        if member is None:
            with open(self.path, 'rb') as file:
                while block := file.read(1 << 22):
                    crc = zlib.crc32(block, crc)
        return hashlib.sha256(f'{IMAGES} {shape} {crc:08x}'.encode()).hexdigest()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._stream is not None and self._process == os.getpid():
            self._stream.close()
        self._stream = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_stream': None}

    def __enter__(self) -> 'SampleBatch':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _find(self, name: str) -> _Array:
        """Find the array of that name in the npz, or the one of the npy."""
        with torch_files.damage_named(self.path, WHAT), open_regular(self.path) as file:
            start = file.read(len(NPY_START))
            if start == NPY_START:
                file.seek(0)
                return _array(file, None, file.seek(0, 2))
            if not start.startswith(torch_files.ZIP_START):
                raise ValueError('it is empty' if not start else f'it starts with {start!r}')
            with zipfile.ZipFile(file) as archive:
                if f'{name}.npy' not in archive.NameToInfo:
                    names = ', '.join(info.removesuffix('.npy')
                                      for info in archive.NameToInfo) or 'nothing'
                    raise ValueError(f'it has no {name}, only {shown(names)}')
                member = archive.getinfo(f'{name}.npy')
                check_ratio(member)
                with archive.open(member) as array:
                    return _array(array, member, member.file_size)

    def _check(self) -> None:
        """Raise ValueError unless the array is one of images."""
        found, shape = _described(self._array), list(self._array.shape)
        if self._array.dtype.hasobject:
            raise ValueError(f'{self.path}: {IMAGES} holds pickled objects, not uint8 [N, H, W, 3]')
        if self._array.dtype != np.uint8:
            raise ValueError(f'{self.path}: {IMAGES} is {found}, not uint8 [N, H, W, 3]: '
                             'save (x * 127.5 + 128).clip(0, 255) as uint8, for x in -1 ... 1')
        if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
            raise ValueError(f'{self.path}: {IMAGES} is {found}, channels first; '
                             'channels last are right: save x.transpose(0, 2, 3, 1)')
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape:
            raise ValueError(f'{self.path}: {IMAGES} is {found}, not [N, H, W, 3], [N, H, W, 1] or '
                             f'[N, H, W]')
        if self._array.fortran_order:
            raise ValueError(f"{self.path}: {IMAGES} is in Fortran's order: save "
                             f"np.ascontiguousarray(x)")

    def _read(self, position: int, pixels: np.ndarray) -> None:
        """Read consecutive images from `position` on into `pixels`."""
        with torch_files.damage_named(self.path, WHAT):
            stream = self._opened()
            stream.seek(self._array.header + position * pixels[0].nbytes)
            target, done = pixels.reshape(-1).data, 0
            while done < len(target):
                count = stream.readinto(target[done:])  # type: ignore[attr-defined]
                if not count:
                    raise ValueError(f'it ends {len(target) - done} bytes before image '
                                     f'{position + len(pixels)} does')
                done += count

    def _opened(self) -> IO[bytes]:
        """Return a file whose position 0 is the start of the array's header."""
        if self._stream is None or self._process != os.getpid():
            member = self._array.member
            if member is None:
                # close() is for that
                self._stream = open(self.path, 'rb', buffering=0)   # noqa: SIM115
            elif member.compress_type == zipfile.ZIP_STORED:
                self._stream = _Stored(self.path, member)
            else:   # it seeks by decompressing
                with zipfile.ZipFile(self.path) as archive:
                    # and keeps the file open when the archive is closed
                    self._stream = archive.open(member)
            self._process = os.getpid()
        return self._stream


class _Stored(io.FileIO):
    """A member of a zip that is not compressed, as a file of its own."""

    def __init__(self, path: Path, member: zipfile.ZipInfo) -> None:
        super().__init__(path, 'rb')
        super().seek(member.header_offset)
        # its header; the last two numbers are the lengths of what follows it
        local = self.read(30)
        if not local.startswith(torch_files.ZIP_START):
            raise ValueError(f'the zip has no member at byte {member.header_offset}')
        self.start = member.header_offset + 30 + sum(struct.unpack('<HH', local[26:30]))

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0:
            return super().seek(offset, whence)
        return super().seek(self.start + offset) - self.start


def _array(file: IO[bytes], member: zipfile.ZipInfo | None, size: int) -> _Array:
    """Read the header of an npy file of `size` bytes.

    Raises ValueError if the numbers do not fit behind it.
    """
    file.seek(0)
    shape, fortran_order, dtype = read_header(file)
    found = _Array(member, shape, dtype, file.tell(), fortran_order)
    wanted, held = math.prod(shape) * dtype.itemsize, size - found.header
    if not dtype.hasobject and held != wanted:
        raise ValueError(f'its array, {_described(found)}, should have {wanted} bytes, but has '
                         f'{held}')
    return found


def _described(array: _Array) -> str:
    return f'{array.dtype} {list(array.shape)}'


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the parts of `positions` that count up by one."""
    start = 0
    for end in range(1, len(positions) + 1):
        if end == len(positions) or positions[end] != positions[end - 1] + 1:
            yield start, end - start
            start = end


def write_sample_batch(path: str | os.PathLike[str], images: Iterable[Tensor], shape: Sequence[int],
                       labels: np.ndarray | None = None) -> None:
    """Write images as an npz that ADM's evaluator reads, all of it or nothing.

    `images` yields uint8 [B, C, H, W], in total `shape` = [N, C, H, W], which is written before
    them; only one batch at a time is in memory. `labels` are classes [N]. Equal images give equal
    bytes. Raises ValueError for images or labels that do not fit `shape`.
    """
    count, channels, height, width = shape
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in 'iu'):
        raise ValueError(f'{path}: {count} images cannot have the labels {labels.dtype} '
                         f'{list(labels.shape)}')
    with atomic_write(path) as file, zipfile.ZipFile(file, 'w') as archive:
        with archive.open(f'{IMAGES}.npy', 'w', force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {'descr': '|u1', 'fortran_order': False,
                         'shape': (count, height, width, channels)})
            done = 0
            for part in images:
                if part.dtype != torch.uint8 or list(part.shape[1:]) != [channels, height, width]:
                    raise ValueError(f'{path}: images are {part.dtype} {list(part.shape)}, not '
                                     f'torch.uint8 [B, {channels}, {height}, {width}]')
                member.write(part.permute(0, 2, 3, 1).contiguous().cpu().numpy().data)
                done += len(part)
            if done != count:
                raise ValueError(f'{path}: {done} images came, not {count}')
        if labels is not None:
            with archive.open(f'{LABELS}.npy', 'w') as member:
                np.lib.format.write_array(member, labels.astype(np.int64), allow_pickle=False)
