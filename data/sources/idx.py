"""IDX files, the format of MNIST, Fashion-MNIST, EMNIST, ..., with the labels beside the images."""

import math
import os
import re
import struct
import zlib
from typing import IO

import numpy as np

from data.limits import SET_PIXELS
from data.source import NumberedArrays, Source
from dnnlib.files import open_regular, unfolded

NAME = re.compile(r'.*idx3-ubyte(\.gz)?', re.IGNORECASE)
MOST_BYTES = 2**32   # of pixels


def is_idx(path: str) -> bool:
    """Return whether the name is that of images in an IDX file, perhaps compressed."""
    return os.path.isfile(path) and NAME.fullmatch(os.path.basename(path)) is not None


def read_idx(path: str) -> Source:
    """Read an IDX file of greyscale images, and the labels from the file of that name beside it.

    Scans of 28x28 are laid on a black 32x32, unless a --resolution asks for another size.
    """
    pixels = read(path, 3)
    if not len(pixels) or not 0 < pixels.shape[1] * pixels.shape[2] <= SET_PIXELS:
        raise ValueError(f'{path} holds no images of a sensible size')
    load = NumberedArrays(pixels)
    canvas = (32, 32) if pixels.shape[1:] == (28, 28) else None
    return Source(load.names(), load, labels_beside(path, load.names()), canvas=canvas, path=path)


def labels_beside(path: str, names: list[str]) -> dict[str, int]:
    """Return the labels in train-labels-idx1-ubyte for train-images-idx3-ubyte; {} if it is absent.

    Raises ValueError where their number is not that of the images.
    """
    folder, name = os.path.split(path)
    plain = re.sub('idx3', 'idx1', name.replace('images', 'labels')).removesuffix('.gz')
    for other in (f'{plain}.gz', plain):
        if os.path.isfile(file := os.path.join(folder, other)):
            labels = read(file, 1).tolist()
            if len(labels) != len(names):
                raise ValueError(f'{file} has {len(labels)} labels, but {path} has {len(names)} '
                                 'images')
            return dict(zip(names, labels, strict=True))
    return {}


def read(path: str, dimensions: int) -> np.ndarray:
    """Return the bytes in an IDX file, uint8 with so many dimensions.

    Raises ValueError for another type, another number of dimensions and another size than claimed.
    """
    try:
        with open_regular(path) as raw:
            file, most = unfolded(raw, MOST_BYTES)
            return _array(file, dimensions, most)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f'{path} is no IDX file of {dimensions} dimensions, or a damaged one: '
                         f'{error}') from error


def _array(file: IO[bytes], dimensions: int, most: int) -> np.ndarray:
    if (magic := file.read(4)) != bytes([0, 0, 8, dimensions]):
        raise ValueError(f'it begins with {magic.hex() or "nothing"}')
    shape = struct.unpack(f'>{dimensions}I', file.read(4 * dimensions))
    size = math.prod(shape)
    if size > most:
        raise ValueError(f'it claims {size:,} bytes, more than {most:,}')
    data = bytearray()   # it grows with what is there, whatever is claimed
    while len(data) <= size and (block := file.read(2**22)):
        data += block
    if len(data) != size:
        raise ValueError(f'it claims {size:,} bytes of pixels, and has '
                         f'{"more" if len(data) > size else format(len(data), ",")}')
    return np.frombuffer(data, np.uint8).reshape(shape)
