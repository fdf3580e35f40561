"""LSUN: folders *_lmdb, a database whose values are image files."""

import functools
import os

from data.image_files import decode
from data.limits import IMAGE_BYTES
from data.source import Image, Source
from data.sources.lmdb_file import Database


def is_lmdb(path: str) -> bool:
    """Return whether the name ends in _lmdb, as those of LSUN do, or the folder is a database."""
    return (os.path.abspath(path).endswith('_lmdb')
            or os.path.isfile(os.path.join(path, 'data.mdb')))


def read_lmdb(path: str) -> Source:
    """Read the images of a database in the order of their keys; they have no labels."""
    if not os.path.isfile(os.path.join(path, 'data.mdb')):
        raise ValueError(f'--source={path} holds no data.mdb: give the folder that does')
    try:
        names = [key.hex() for key in Database(os.path.join(path, 'data.mdb'))]
    except ValueError as error:
        raise ValueError(f'{path} is no database of LMDB, or a damaged one: {error}') from error
    if not names:
        raise ValueError(f'{path} is an empty database')
    return Source(names, functools.partial(_load, path), path=path)


def _load(path: str, name: str) -> Image:
    try:
        data = _in_process(path, os.getpid()).value(bytes.fromhex(name), IMAGE_BYTES)
    except ValueError as error:
        raise ValueError(f'{path}: {name} is damaged: {error}') from error
    if data is None:
        raise ValueError(f'{path}: {name} is missing, or larger than {IMAGE_BYTES:,} bytes')
    return decode(path, name, data)[0]


@functools.lru_cache(maxsize=1)   # an open file must not go from one process into another
def _in_process(path: str, process: int) -> Database:
    return Database(os.path.join(path, 'data.mdb'))
