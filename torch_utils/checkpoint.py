"""Checkpoints: plain values and tensors, written atomically, read without executing anything."""

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnlib.files import atomic_write


def save(contents: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `contents` so that torch.load(path, weights_only=True) reads it, all of it or nothing."""
    with atomic_write(path) as file:
        torch.save(contents, file)


def load(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The contents of a file written by `save`, on the CPU.

    `kind` is what the caller expects ('network snapshot', …); the file must carry the same word.
    Raises FileNotFoundError, or ValueError in one line for a file that is damaged or something else.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder, not a {kind}')
    if not path.exists():
        raise FileNotFoundError(2, f'there is no such {kind}', str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')   # what torch thinks of other people's pickles is said below, in one line
            contents = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path} is not a {kind} of ours: {_first_sentence(error)}; '
                         'nothing in it was executed') from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            UnicodeDecodeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is damaged or not a {kind}: {_first_sentence(error)}') from None
    if not isinstance(contents, dict) or 'kind' not in contents:
        raise ValueError(f'{path} is not a {kind}: it does not say what it is')
    if contents['kind'] != kind:
        raise ValueError(f"{path} is a {contents['kind']}, not a {kind}")
    return contents


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split('. ')[0][:200] if lines else type(error).__name__


def state_dict_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's tensors, detached, contiguous and on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def load_into(module: nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors` into the module; a missing, unknown or misshapen one is an error that names it."""
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise ValueError(f'{origin}: the tensor {name} is missing')
        if tensors[name].shape != tensor.shape:
            found, right = list(tensors[name].shape), list(tensor.shape)
            raise ValueError(f'{origin}: the tensor {name} has shape {found}, not {right}')
    for name in tensors:
        if name not in own:
            raise ValueError(f'{origin}: the tensor {name} is unknown to this network')
    module.load_state_dict(tensors)
