"""The Python archives of CIFAR-10 and CIFAR-100, whose pickles are read as data."""

import io
import os
import re
import tarfile
import zlib
from typing import Any

import numpy as np

from data.source import NumberedArrays, Source
from dnnlib.files import open_regular, unfolded
from torch_utils.safe_pickle import Allowed, Record, read_pickle, record

NAME = re.compile(r'cifar-100?-python\.tar(\.gz)?')
TEST = 'test:'
MOST = 170_000_000   # bytes of a member; a batch of CIFAR-100 has 155 million
MOST_IN_ALL = 2**29


def is_cifar(path: str) -> bool:
    """Return whether the name is that of an archive of CIFAR-10 or CIFAR-100."""
    path = path.removeprefix(TEST)
    return os.path.isfile(path) and NAME.fullmatch(os.path.basename(path)) is not None


def read_cifar(path: str) -> Source:
    """Read the 50,000 training images, in the order of the archive's batches, with their classes.

    Of CIFAR-100 these are the 100 fine classes. A path that begins with test: stands for the 10,000
    test images.
    """
    wanted = TESTING if path.startswith(TEST) else TRAINING
    path = path.removeprefix(TEST)
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    classes: tuple[str, ...] = ()
    for name, batch in _members(path, wanted).items():
        if 'fine_label_names' in batch or 'label_names' in batch:
            classes = _names(batch.get('fine_label_names', batch.get('label_names')))
            continue
        data, batch_labels = batch.get('data'), batch.get('fine_labels', batch.get('labels'))
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
                and data.shape[1] == 3072 and isinstance(batch_labels, list)
                and all(type(label) is int for label in batch_labels)
                and len(data) == len(batch_labels)):
            raise ValueError(f'{path}: {name} is no batch of CIFAR: data of 3072 bytes an image '
                             'and as many labels')
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += batch_labels
    load = NumberedArrays(np.concatenate(pixels))
    return Source(load.names(), load, dict(zip(load.names(), labels, strict=True)),
                  classes=classes, path=path)


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


TRAINING = re.compile(r'data_batch_\d+|train|batches\.meta|meta')
TESTING = re.compile(r'test_batch|test|batches\.meta|meta')


def _members(path: str, wanted: re.Pattern[str]) -> dict[str, dict[str, Any]]:
    """Return the dictionaries in the archive with wanted names, sorted by name."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with (open_regular(path) as raw,
              tarfile.open(fileobj=unfolded(raw, MOST_IN_ALL)[0], mode='r|') as archive):
            for member in archive:
                name = os.path.basename(member.name)
                if member.size < 0:
                    raise ValueError(f'it has a member of {member.size} bytes')
                if not member.isfile() or wanted.fullmatch(name) is None:
                    continue
                if member.size > MOST:
                    raise ValueError(f'{name} has more than {MOST:,} bytes')
                file = archive.extractfile(member)
                assert file is not None   # it is a regular file
                found[name] = _dictionary(file.read(), name)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if all('meta' in name for name in found):
        missing = 'test_batch and no test' if wanted is TESTING else 'data_batch_1 and no train'
        raise ValueError(f'{path} holds no {missing}')
    return dict(sorted(found.items()))


def _dictionary(data: bytes, name: str) -> dict[str, Any]:
    value = read_pickle(io.BytesIO(data), ARRAYS)
    if not isinstance(value, dict):
        raise ValueError(f'{name} holds no dictionary')
    return {_text(key): _text_or(item) for key, item in value.items()}


def _text(value: object) -> str:
    return value.decode('latin-1') if isinstance(value, bytes) else str(value)


def _text_or(value: object) -> object:
    if isinstance(value, list):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return _array(value) if isinstance(value, Record) else value


def _array(value: Record) -> np.ndarray:
    """Return an array of bytes that numpy's oldest pickles describe by a state that follows it."""
    match value.state:
        case [_, [int() as rows, int() as columns], Record('numpy.dtype', ['u1', *_]), bool() |
              int() as in_columns, bytes() as data] if len(data) == rows * columns:
            flat = np.frombuffer(data, np.uint8)
            return flat.reshape(columns, rows).T if in_columns else flat.reshape(rows, columns)
    raise ValueError('an array is not uint8 with two dimensions and as many bytes')


def _dtype(code: object, *_: object) -> Record:
    return Record('numpy.dtype', (_text(code),))


def _only_named(*_: object) -> object:
    raise ValueError('it makes an array in a way that no archive of CIFAR does')


ARRAYS: Allowed = {
    ('numpy', 'dtype'): _dtype, ('numpy', 'ndarray'): _only_named,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): record('numpy.ndarray')
       for core in ('core', '_core')},
    ('_codecs', 'encode'): lambda text, coding: _text(text).encode('latin-1'),
}
