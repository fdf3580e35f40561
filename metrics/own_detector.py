"""Detectors of one's own: `--detector=module:function`, or `--detector=file.py:function`.

    # mine.py, for --detector=mine.py:resnet; its distance is called fd_resnet
    def resnet() -> torch.nn.Module:
        return torch.nn.Sequential(Resize(224), Normalise(), backbone)

The function takes nothing and returns a torch module, or anything else that can be called: uint8
[B, 3, H, W] on some device -> floating [B, d], one row for each image whatever its size. A module
is moved to the device and put into evaluation mode; what is no module follows its input.

To load such a detector is to run the user's own program, as `import` does. So the name comes from
the command line or from a caller, and never from a file that was read.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from metrics.features import as_rgb, register
from torch_utils.digest import digest_of_tensors

NAME = re.compile(r'(.+):([A-Za-z][A-Za-z0-9_]*)')
ENDINGS = ('_inf', '_std')   # of names of numbers, which would be ambiguous


@dataclass(frozen=True)
class Own:
    """A detector of one's own: the tap, what computes features, how many, and its digest.

    The digest is of the text of the file in which the function is, and of all tensors in the
    module's state dict. Other files that it imports are not part of it, and neither are the weights
    of what is no torch module.
    """
    tap: str
    network: Callable[[Tensor], Tensor]
    dim: int
    digest: str


def is_own(detector: str) -> bool:
    """Return whether this names a function in a module, rather than a detector or a file."""
    return NAME.fullmatch(detector) is not None and not os.path.isfile(detector)


@functools.cache
def load(detector: str) -> Own:
    """Import the module, call the function, and look at the features of an image of 224 x 224.

    Its tap becomes a key of TAPS. Raises ValueError, in one line, for anything that goes wrong in
    the module, too; LIMPID_TRACEBACK=1 shows where.
    """
    found = NAME.fullmatch(detector)
    assert found is not None, 'is_own tells'
    place, function = found.groups()
    if function.endswith(ENDINGS):
        raise ValueError(f'detector={detector}: a name that ends in {" or ".join(ENDINGS)} means '
                         f'something else in names of numbers; call the function otherwise')
    try:
        module = _imported(place)
        network = getattr(module, function)()
        if isinstance(network, torch.nn.Module):
            network = network.eval().requires_grad_(False)
        image = torch.arange(3 * 224 * 224).remainder(251).to(torch.uint8).reshape(1, 3, 224, 224)
        with torch.no_grad():
            features = network(image)
    except Exception as error:   # it is a stranger's program, and may raise anything
        said = ' '.join(str(error).split()) or 'no message'
        if isinstance(error, ModuleNotFoundError) and error.name == place.partition('.')[0]:
            said += f': name its file, as {place.replace(".", "/")}.py:{function}, or its folder '
            said += 'in PYTHONPATH'
        raise ValueError(f'detector={detector} fails with {type(error).__name__}: {said}'
                         ) from error
    _check(features, detector, 1)
    source = hashlib.sha256(Path(str(module.__file__)).read_bytes())
    if isinstance(network, torch.nn.Module):
        tensors = {name: value for name, value in network.state_dict().items()
                   if isinstance(value, Tensor)}
        source.update(digest_of_tensors(tensors).encode())
    try:
        register(function, features.shape[1], detector)
    except ValueError as error:
        raise ValueError(f'detector={detector}: {error}') from None
    return Own(function, network, features.shape[1], source.hexdigest())


class OwnDetector:
    """A detector of one's own on a device. It computes in a precision of its own."""

    def __init__(self, own: Own, detector: str, device: torch.device,
                 dtype: torch.dtype = torch.float32) -> None:
        if dtype != torch.float32:
            raise ValueError(f'precision=float64: detector={detector} computes in a precision of '
                             f'its own; leave --precision out')
        self.own, self.detector = own, detector
        self.taps, self.digest = (own.tap,), own.digest
        if isinstance(own.network, torch.nn.Module):
            own.network.to(device)

    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        found = self.own.network(as_rgb(images))
        _check(found, self.detector, len(images), self.own.dim)
        return {self.own.tap: found.float() if found.itemsize < 4 else found}


def _check(features: object, detector: str, count: int, dim: int | None = None) -> None:
    """Raise ValueError for anything but floating [count, dim]; None: any dimension."""
    if not (isinstance(features, Tensor) and features.is_floating_point() and features.ndim == 2
            and len(features) == count and features.shape[1] == (dim or max(features.shape[1], 1))):
        what = (f'{features.dtype} {list(features.shape)}' if isinstance(features, Tensor)
                else type(features).__name__)
        raise ValueError(f'detector={detector} gives {what} for {count} images, not floating '
                         f'[{count}, {dim or "d"}]')


def _imported(place: str) -> ModuleType:
    """Import a module by its name, or the file of one; a file is imported once."""
    if not place.endswith('.py'):
        return importlib.import_module(place)
    if not os.path.isfile(place):
        raise FileNotFoundError(f'there is no file {place}')
    name = f'detector_of_{hashlib.sha256(os.path.abspath(place).encode()).hexdigest()[:16]}'
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None and spec.loader is not None, 'it ends in .py'
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module   # where dataclasses and pickle look for it
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
