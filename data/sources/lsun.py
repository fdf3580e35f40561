"""LSUN: folders *_lmdb, a database whose values are image files."""

import functools
import importlib
import os
from typing import Any

from data.image_files import decode
from data.limits import IMAGE_BYTES
from data.source import Image, Source, needs


def is_lmdb(path: str) -> bool:
    """Return whether the name ends in _lmdb, as those of LSUN do, or the folder is a database."""
    return (os.path.abspath(path).endswith('_lmdb')
            or os.path.isfile(os.path.join(path, 'data.mdb')))


def read_lmdb(path: str) -> Source:
    """Read the images of a database in the order of their keys; they have no labels."""
    if not os.path.isfile(os.path.join(path, 'data.mdb')):
        raise ValueError(f'--source={path} holds no data.mdb: give the folder that does')
    with _opened(path).begin() as transaction:
        names = [bytes(key).hex() for key in transaction.cursor().iternext(values=False)]
    if not names:
        raise ValueError(f'{path} is an empty database')
    return Source(names, functools.partial(_load, path), path=path)


def _load(path: str, name: str) -> Image:
    with _in_process(path, os.getpid()).begin() as transaction:
        data = transaction.get(bytes.fromhex(name))
    if data is None or len(data) > IMAGE_BYTES:
        raise ValueError(f'{path}: {name} is missing, or larger than {IMAGE_BYTES:,} bytes')
    return decode(path, name, data)[0]


@functools.lru_cache(maxsize=1)   # a database must not go from one process into another
def _in_process(path: str, process: int) -> Any:   # noqa: ANN401 (lmdb has no types)
    return _opened(path)


def _opened(path: str) -> Any:   # noqa: ANN401
    try:
        lmdb = importlib.import_module('lmdb')
    except ImportError as error:
        raise ValueError(needs('lmdb', 'lmdb', f'--source={path}')) from error
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise ValueError(f'{path} is no database of LMDB, or a damaged one: {error}') from error
