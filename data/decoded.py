"""Decoded images in a file that all processes of a machine map into memory.

It is made once, under a name that is a hash of what is in it, and has the images of a set one
after the other, uncompressed. The system takes back the memory of pages where others need it. A
process that finds the file being made waits for it; one that is killed leaves nothing that counts.

    4096 bytes   what follows, as a line of JSON: shape [N, C, H, W] and type
    the images
    the rest     why images cannot be used, by number, as JSON
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from data.parallel import in_order
from dnnlib.files import atomic_write, held, home, open_regular
from dnnlib.progress import Progress

HEADER = 4096
POLL = 0.1   # seconds between two looks at a file that another process makes
MOST_PROBLEMS = 2**26   # bytes

# (number, name) -> the image [C, H, W], or why it cannot be used
Decode = Callable[[int, str], np.ndarray | str]


def decoded_dir() -> Path:
    """Return $LIMPID_CACHE_DIR/decoded, else ~/.cache/limpid/decoded."""
    chosen = os.environ.get('LIMPID_CACHE_DIR')
    root = Path(chosen).expanduser() if chosen else home() / '.cache' / 'limpid'
    return root / 'decoded'


class Decoded:
    """The images of a set that was decoded: `item` gives one, and indexing several.

    Each process maps the file on its own; a copy made by fork or pickle does so too. `problems` are
    {number: why the image cannot be used}.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), dtype
        self._pixels: np.ndarray | None = None
        with open_regular(path) as file:
            file.seek(HEADER + math.prod(shape) * dtype.itemsize)
            found = json.loads(file.read(MOST_PROBLEMS))
        self.problems = {int(number): str(problem) for number, problem in found.items()}

    def item(self, number: int) -> np.ndarray:
        """Return an image [C, H, W]; raise ValueError for one that cannot be used."""
        if number in self.problems:
            raise ValueError(self.problems[number])
        image: np.ndarray = self[np.array([number])][0]
        return image

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Return a copy of images, [B, C, H, W]."""
        if self._pixels is None:
            self._pixels = np.asarray(np.memmap(self.path, self.dtype, 'r', HEADER, self.shape))
        return self._pixels[numbers]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_pixels': None}


def key_of(contents: str, shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Return the name for the images of files with these `contents`, decoded by this Pillow."""
    told = f'{contents} {list(shape)} {dtype} {PIL.__version__}'
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def shared(key: str, names: Sequence[str], decode: Decode, shape: Sequence[int],
           dtype: np.dtype[Any], workers: int) -> Decoded:
    """Return the decoded images of these names, from the file that is there or a new one.

    `shape` is that of an image. Raises what `decode` raises, ValueError where the disk has too
    little room, and leaves no part of a file behind.
    """
    path, whole = decoded_dir() / f'{key}.raw', (len(names), *shape)
    lock = path.with_suffix('.lock')
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _is_whole(path, whole, dtype):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(lock))
            except ValueError:
                if lock.is_symlink() or not lock.is_file():
                    raise
                time.sleep(POLL)   # another process makes it
                continue
            if not _is_whole(path, whole, dtype):
                _write(path, names, decode, whole, dtype, workers)
    return Decoded(path, whole, dtype)


def _header(shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    told = json.dumps({'shape': list(shape), 'dtype': str(dtype)})
    return told.encode().ljust(HEADER - 1) + b'\n'


def _is_whole(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    """Return whether the file is there and has the size and the type that it is to have."""
    try:
        with open_regular(path) as file:
            return (file.read(HEADER) == _header(shape, dtype) and file.seek(0, os.SEEK_END)
                    > HEADER + math.prod(shape) * dtype.itemsize)
    except OSError:
        return False


def _write(path: Path, names: Sequence[str], decode: Decode, shape: Sequence[int],
           dtype: np.dtype[Any], workers: int) -> None:
    size = HEADER + math.prod(shape) * dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueError(f'the decoded images take {size / 1e9:.1f} GB, and {path.parent} has '
                         f'{free / 1e9:.1f} GB left: set LIMPID_CACHE_DIR to a folder on another '
                         f'disk, or use --cache=ram or --cache=off')
    print(f'Decoding {len(names)} images to {path} ({size / 1e9:.2f} GB)', flush=True)
    problems: dict[int, str] = {}
    nothing = np.zeros(shape[1:], dtype).tobytes()
    with atomic_write(path) as file, Progress(len(names), 'decoding') as progress:
        file.write(_header(shape, dtype))
        for chunk in in_order(decode, names, 0, workers):
            for image in chunk:
                if isinstance(image, str):
                    problems[progress.done] = image
                file.write(nothing if isinstance(image, str) else image.tobytes())
                progress.advance(1)
        file.write(json.dumps(problems).encode())
