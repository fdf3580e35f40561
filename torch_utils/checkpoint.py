"""Checkpoints: plain values and tensors, written atomically and read without executing anything."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnlib.console import shown
from dnnlib.files import atomic_write
from torch_utils.torch_files import TENSORS, read_file


class DamagedError(ValueError):
    """An error for a file of this project that is incomplete or altered."""


def save(contents: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `contents`, all of it or nothing, so that torch.load(path, weights_only=True) reads it.

    A checksum is stored with it, since neither zip nor torch would notice every altered byte. A
    warning is printed where tensors are not finite.
    """
    warn_of_nonfinite(contents, path)
    with atomic_write(path) as file:
        torch.save({**contents, 'checksum': checksum(contents)}, file)


def warn_of_nonfinite(contents: object, path: str | os.PathLike[str]) -> None:
    """Print a line where tensors that are about to be written, nested, are not all finite."""
    found = list(_nonfinite(contents, ''))
    if found:
        more = f' and {len(found) - 1} more' if len(found) > 1 else ''
        print(f'Warning: {os.fspath(path)} is written with tensors that are not finite: {found[0]}'
              f'{more}', flush=True)


def _nonfinite(value: object, name: str) -> Iterator[str]:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        if not bool(value.isfinite().all()):
            yield name
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _nonfinite(item, f'{name}.{key}' if name else str(key))


def load(path: str | os.PathLike[str], *kinds: str) -> dict[str, Any]:
    """Return the contents of a file written by `save`, on the CPU.

    `kinds` are the kinds of files that the caller can use ('network snapshot', …); the file must
    say that it is one of them. Raises FileNotFoundError; DamagedError or ValueError in one line for
    a file that is damaged or something else.
    """
    path, wanted = Path(path), ' or '.join(kinds)
    if path.is_dir():
        raise ValueError(f'{path} is a folder, not a {wanted}')
    if not path.exists():
        raise FileNotFoundError(2, f'there is no such {wanted}', str(path))
    try:
        contents = read_file(path, TENSORS, wanted)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    kind = contents.get('kind') if isinstance(contents, dict) else None
    told = kind in kinds or (isinstance(contents, dict) and 'checksum' in contents)
    if told and contents.pop('checksum', None) != checksum(contents):
        raise DamagedError(f'{path} is damaged: its contents do not have the checksum that was '
                           f'written with them')
    if not isinstance(kind, str):
        raise ValueError(f'{path} is not a {wanted}: it does not say what it is')
    if kind not in kinds:
        raise ValueError(f'{path} is a {shown(kind)}, not a {wanted}')
    return contents


def checksum(value: object) -> str:
    """Return the SHA-256 over types, shapes and bytes of plain values and tensors, nested."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: 'hashlib._Hash', value: object) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f'T{tensor.dtype}{list(tensor.shape)}'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        digest.update(f'D{len(value)}'.encode())
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f'L{len(value)}'.encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(f'V{type(value).__name__}{value!r}'.encode())


def state_dict_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's tensors, detached, contiguous and on the CPU."""
    return {name: tensor.detach().cpu().contiguous()
            for name, tensor in module.state_dict().items()}


def load_into(module: nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors` into the module.

    Raises ValueError, which names the tensor, for a missing, unknown or misshapen one.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise ValueError(f'{origin}: the tensor {name} is missing')
        if tensors[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f'{origin}: the tensor {name} is of {tensors[name].dtype}, not '
                             f'{tensor.dtype}')
        if tensors[name].shape != tensor.shape:
            found, right = list(tensors[name].shape), list(tensor.shape)
            raise ValueError(f'{origin}: the tensor {name} has shape {found}, not {right}')
    for name in tensors:
        if name not in own:
            raise ValueError(f'{origin}: the tensor {name} is unknown to this network')
    module.load_state_dict(tensors)
