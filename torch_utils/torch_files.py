"""Files of tensors from any source, read without running anything that is in them.

    contents = read_file('network-snapshot-000000.pkl', CHECKPOINTS, 'checkpoint')

There are three kinds of files, told apart by their first bytes: a pickle whose tensors carry their
numbers with them; the zip of torch.save; the stream that torch.save wrote before version 1.6. The
result has plain values, tensors on the CPU, and a Record for each object of a class.

Every size in a file is compared with the bytes that are there before memory is taken: a tensor lies
within its storage and has no more elements, the storages together are no larger than the file, and
nothing is decompressed (torch.save never compresses).
"""

import contextlib
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import shown
from dnnlib.files import open_regular
from torch_utils.safe_pickle import (
    Allowed,
    ForbiddenError,
    Global,
    Record,
    ordered_dict,
    plain_set,
    read_pickle,
    record,
)

STREAM_MAGIC, STREAM_PROTOCOL = 0x1950a86a20f9469cfc6c, 1001
STREAM_START = b'\x80\x02\x8a\x0a' + STREAM_MAGIC.to_bytes(10, 'little') + b'.'
ZIP_START = b'PK\x03\x04'
MAX_DIMENSIONS = 8
SHARING = 4   # number of tensors that may share the same numbers, on average
STORAGES = {
    'FloatStorage': torch.float32, 'DoubleStorage': torch.float64, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8,
}


class Storage(NamedTuple):
    """Numbers in a row, of which tensors are views."""
    values: Tensor


@contextlib.contextmanager
def damage_named(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn all errors that a damaged file causes in libraries into a ValueError in one line.

    The message names the file.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, OSError,
            NotImplementedError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile,
            tarfile.TarError) as error:
        message = shown(' '.join(str(error).split()), 200)
        raise ValueError(f'{os.fspath(path)} is damaged or not a {what}: {message}') from None


def read_file(path: str | os.PathLike[str], allowed: Allowed, what: str = 'checkpoint',
              data: bool = True) -> Any:   # noqa: ANN401 (plain values, tensors and records)
    """Return the contents of a file; `allowed` are the names that its pickle may refer to.

    With data=False the tensors are on the device 'meta': shapes and types without numbers. Messages
    call a proper file a `what`. Raises FileNotFoundError, or ValueError in one line that names the
    file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder, not a {what}')
    if not path.exists():
        raise FileNotFoundError(2, f'there is no such {what}', str(path))
    with open_regular(path) as file:
        try:
            value = _read(file, allowed, data)
            if sum(tensor.nbytes for tensor in tensors_in(value)) > SHARING * file.seek(0, 2):
                raise ValueError('its tensors share their numbers and claim to be far larger than '
                                 'the file')
            return value
        except ForbiddenError as error:
            raise ValueError(f'{path} is not a {what} of ours or of a kind known here: {error}; '
                             'nothing in it was executed') from None
        except (ValueError, LookupError, TypeError, ArithmeticError, EOFError, OSError,
                RuntimeError, struct.error, zipfile.BadZipFile) as error:
            raise ValueError(
                f'{path} is damaged or not a {what}: {shown(str(error), 200)}') from None


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield all tensors within a value that `read_file` has returned."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Record):
        yield from tensors_in((value.args, value.state))


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file starts like the zip of torch.save."""
    try:
        with open_regular(path) as file:
            return file.read(4) == ZIP_START
    except (OSError, ValueError):
        return False


def _read(file: IO[bytes], allowed: Allowed, data: bool) -> object:
    start = file.read(64)
    file.seek(0)
    if start.startswith(ZIP_START):
        return _read_zip(file, allowed, data)
    if start.startswith(STREAM_START):
        return _read_stream(file, allowed, data)
    if start.startswith(b'\x80'):
        def load_from_bytes(stream: bytes) -> Storage:
            return _storage_in(stream, data)
        return read_pickle(file,
                           {**allowed, ('torch.storage', '_load_from_bytes'): load_from_bytes})
    for beginning, meaning in NO_CHECKPOINTS.items():
        if start.lstrip().lower().startswith(beginning):
            raise ValueError(f'it is {meaning}')
    raise ValueError('it is empty' if not start else f'it starts with {start[:8]!r}')


def _read_zip(file: IO[bytes], allowed: Allowed, data: bool) -> object:
    """Read the zip of torch.save: the pickle data.pkl, and a file for each storage."""
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        top = _top_folder(archive, size)
        storages: dict[str, Storage] = {}

        def load(identity: object) -> Storage:
            dtype, key, count = _storage_identity(identity, 5)
            if key not in storages:
                info = entries.get(f'{top}/data/{key}')
                if info is None or info.file_size != count * dtype.itemsize:
                    raise ValueError(f'its storage {shown(key)} of {count} {dtype} is missing or '
                                     f'of another size')
                storages[key] = _empty(count, dtype, data)
                if data:
                    with archive.open(info) as entry:
                        _fill(storages[key], entry)
            return _same(storages[key], dtype, count, key)

        return read_pickle(io.BytesIO(archive.read(entries[f'{top}/data.pkl'])), allowed, load)


def _top_folder(archive: zipfile.ZipFile, size: int) -> str:
    """Return the folder of data.pkl. Raises ValueError unless torch.save can have written it."""
    entries = {info.filename: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise ValueError('it is a compressed zip, which torch.save does not write')
    if sum(info.file_size for info in archive.infolist()) > size:
        raise ValueError('the entries of its zip claim to be larger than the file')
    tops = [name.removesuffix('/data.pkl') for name in entries if name.endswith('/data.pkl')]
    if len(tops) != 1:
        raise ValueError(f'it is a zip with {len(tops)} entries called data.pkl instead of one')
    top = tops[0]
    # Another reader may take another one of two entries of a name, or of names equal but for case.
    names = [info.filename.lower() for info in archive.infolist()]
    if len(set(names)) < len(names):
        raise ValueError('its zip has entries of equal names')
    strange = next((name for name in entries if not name.startswith(f'{top}/')), None)
    if strange is not None:
        raise ValueError(f'its zip has the entry {shown(strange)}, which torch.save does not write')
    if f'{top}/constants.pkl' in entries:
        raise ValueError('it is a TorchScript program')
    if f'{top}/byteorder' in entries and archive.read(f'{top}/byteorder') != b'little':
        raise ValueError('it was written on a big-endian machine')
    return top


def _read_stream(file: IO[bytes], allowed: Allowed, data: bool) -> object:
    """Read the old format: four pickles (magic number, version, system, value), keys, numbers."""
    start = file.tell()
    left = file.seek(0, 2) - start
    file.seek(start)
    _check_head(*(read_pickle(file, {}) for _ in range(3)))
    storages: dict[str, Storage] = {}

    def load(identity: object) -> Storage:
        nonlocal left
        dtype, key, count = _storage_identity(identity, 6)
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise ValueError('its storages claim to be larger than the file')
            storages[key] = _empty(count, dtype, data)
        return _same(storages[key], dtype, count, key)

    value = read_pickle(file, allowed, load)
    _read_numbers(file, storages, data)
    return value


def _check_head(magic: object, protocol: object, system: object) -> None:
    if magic != STREAM_MAGIC or protocol != STREAM_PROTOCOL or not isinstance(system, dict):
        raise ValueError(f'it is no stream of torch.save: {shown(repr(magic))}, version '
                         f'{shown(repr(protocol))}')
    if system.get('little_endian') is not True:
        raise ValueError('it was written on a big-endian machine')


def _read_numbers(file: IO[bytes], storages: dict[str, Storage], data: bool) -> None:
    """Read the keys of all storages and their numbers, in the order of the keys."""
    keys = read_pickle(file, {})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError('the keys of its storages are not those of its tensors')
    for key in keys:
        values = storages[key].values
        count = int.from_bytes(file.read(8), 'little', signed=True)
        if count != values.numel():
            raise ValueError(f'its storage {shown(key)} has {count} elements, not '
                             f'{values.numel()}')
        if data:
            _fill(storages[key], file)
        else:
            file.seek(values.nbytes, 1)


def _storage_in(stream: bytes, data: bool) -> Storage:
    """Read a storage that is saved as a stream of its own within a pickle."""
    if not isinstance(stream, bytes):
        raise ValueError('one of its storages is no bytes')
    storage = _read_stream(io.BytesIO(stream), STORAGE_TYPES, data)
    if not isinstance(storage, Storage):
        raise ValueError('one of its storages is none')
    return storage


def _storage_identity(identity: object, length: int) -> tuple[torch.dtype, str, int]:
    """Return type, key and number of elements of a storage.

    `identity` is ('storage', type, key, location, number of elements[, None]).
    """
    match identity if isinstance(identity, tuple) and len(identity) == length else None:
        case ('storage', Global('torch', name, _), str(key), str(_), int(count), *rest) if (
                name in STORAGES and count >= 0 and rest in ([], [None])):
            return STORAGES[name], key, count
    raise ForbiddenError('it refers to something outside of itself that is no storage')


def _empty(count: int, dtype: torch.dtype, data: bool) -> Storage:
    return Storage(torch.empty(count, dtype=dtype, device='cpu' if data else 'meta'))


def _fill(storage: Storage, file: IO[bytes]) -> None:
    """Read the numbers from the file, straight into their place."""
    if not storage.values.numel():
        return
    target, done = storage.values.view(torch.uint8).numpy().data, 0
    while done < len(target):
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f'it ends {len(target) - done} bytes before a storage does')
        done += count


def _same(storage: Storage, dtype: torch.dtype, count: int, key: str) -> Storage:
    if storage.values.dtype != dtype or storage.values.numel() != count:
        raise ValueError(f'its storage {shown(key)} is referred to in two ways')
    return storage


def rebuild_tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...],
                   *_: object) -> Tensor:
    """Return the view of a storage. Further arguments, on gradients and hooks, are ignored."""
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise ValueError(f'one of its tensors has no storage, or {len(size)} sizes and '
                         f'{len(stride)} strides')
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError('one of its tensors has sizes that are no numbers, or too large')
    count, elements = storage.values.numel(), 1
    for n in size:
        elements *= n
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if elements > count or (elements and last >= count) or offset > count:
        raise ValueError(f'one of its tensors, {list(size)}, exceeds its storage of {count} '
                         f'elements')
    return storage.values.as_strided(size, stride, offset)


def rebuild_parameter(tensor: Tensor, *_: object) -> Tensor:
    """Return the tensor of a parameter."""
    if not isinstance(tensor, Tensor):
        raise ValueError('one of its parameters is no tensor')
    return tensor


def rebuild_persistent(meta: dict[str, Any]) -> Record:
    """Return an object that was stored with the source text of its class.

    Only the name of the class is taken.
    """
    is_class = isinstance(meta, dict) and meta.get('type') == 'class'
    if not is_class or not isinstance(meta.get('class_name'), str):
        raise ValueError('one of its persistent objects has no class')
    return Record(meta['class_name'], state=meta.get('state'))


NUMPY_KINDS = ('f8', 'f4', 'f2', 'i8', 'i4', 'i2', 'i1', 'u8', 'u4', 'u2', 'u1', 'b1')


def numpy_scalar(dtype: Record, data: bytes) -> float | int | bool:
    """Return a number of numpy's, whose dtype has the byte order in its state."""
    kind = dtype.args[0] if isinstance(dtype, Record) and dtype.cls == 'numpy.dtype' else None
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else '|'
    if kind not in NUMPY_KINDS or order not in ('<', '|'):
        raise ValueError('one of its numpy numbers is of an unknown type')
    if not isinstance(data, bytes) or len(data) != int(kind[1]):
        raise ValueError('one of its numpy numbers has too many bytes, or too few')
    return np.frombuffer(data, dtype=kind)[0].item()


def encode(text: str, encoding: str) -> bytes:
    """Return bytes, as Python 3 writes them in pickles that Python 2 could read."""
    if encoding != 'latin1':
        raise ValueError(f'it has bytes encoded in {shown(str(encoding))}')
    return text.encode('latin1')


def _only_named(*_: object) -> NoReturn:
    raise ForbiddenError('it calls a type of storage')


STORAGE_TYPES: dict[tuple[str, str], Callable[..., Any]] = {
    ('torch', name): _only_named for name in STORAGES
}
# The globals of a file of plain values and tensors.
TENSORS: dict[tuple[str, str], Callable[..., Any]] = {
    **STORAGE_TYPES,
    ('torch._utils', '_rebuild_tensor_v2'): rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): rebuild_parameter,
    ('collections', 'OrderedDict'): ordered_dict,
    ('builtins', 'set'): plain_set,
    ('__builtin__', 'set'): plain_set,
    ('builtins', 'dict'): ordered_dict,
    ('_codecs', 'encode'): encode,
    ('numpy', 'dtype'): record('numpy.dtype'),
    ('numpy.core.multiarray', 'scalar'): numpy_scalar,
    ('numpy._core.multiarray', 'scalar'): numpy_scalar,
}
# The globals of a file that holds modules.
CHECKPOINTS: dict[tuple[str, str], Callable[..., Any]] = {
    **TENSORS,
    ('torch_utils.persistence', '_reconstruct_persistent_obj'): rebuild_persistent,
    ('dnnlib.util', 'EasyDict'): ordered_dict,
    ('torch.nn.modules.container', 'ModuleDict'): record('ModuleDict'),
}
NO_CHECKPOINTS = {
    b'<!doctype': 'a web page', b'<html': 'a web page',
    b'version https://git-lfs': 'a pointer of git-lfs',
    b'\x1f\x8b': 'compressed by gzip', b'{': 'JSON', b'\x89png': 'an image',
}
