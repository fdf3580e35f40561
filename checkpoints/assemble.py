"""Networks as files describe them, and their construction, which the readers of all files share.

A network is first built without memory, on the device 'meta', and gets memory only after all
tensors of the file were found to have the right shapes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnnlib.console import shown
from limpid.denoiser import Denoiser
from limpid.levels import DiscreteSchedule
from limpid.preconditioning import IDDPM
from limpid.resolution import height_and_width
from torch_utils import checkpoint
from training.networks import Conv2d, NetworkConfig, build_network, complete_arguments

LARGEST = 2**20   # the largest whole number that may describe a network


class Found(NamedTuple):
    """A network as a file describes it.

    config   its configuration
    tensors  its tensors, by our names
    info     all else that the file says, see checkpoints.read.read_network
    """
    config: NetworkConfig
    tensors: dict[str, Tensor]
    info: dict[str, Any]


class Source:
    """A state dict of any origin, from which each tensor is taken once. Errors name the file."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        self.tensors, self.path = dict(tensors), path

    def take(self, name: str) -> Tensor:
        """Return the tensor of this name, and forget it."""
        tensor = self.tensors.pop(name, None)
        if not isinstance(tensor, Tensor):
            raise ValueError(f'{self.path}: the tensor {shown(name)} is missing')
        return tensor

    def shape(self, name: str, ndim: int) -> list[int]:
        """Return the shape of a tensor, which must have `ndim` dimensions, none of them 0."""
        tensor = self.tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f'{self.path}: the tensor {shown(name)} is missing')
        if tensor.ndim != ndim or 0 in tensor.shape:
            raise ValueError(f'{self.path}: the tensor {shown(name)} has shape '
                             f'{list(tensor.shape)}, not {ndim} dimensions')
        return list(tensor.shape)

    def check_empty(self) -> None:
        """Raise ValueError if a tensor was never taken."""
        for name in self.tensors:
            raise ValueError(f'{self.path}: the tensor {shown(str(name))} is unknown to this '
                             f'network')


def choose(weights: str | None, there: list[str], path: Path) -> str:
    """Return the chosen one of the weights in a file, or the first for None.

    Raises ValueError if the file does not have it.
    """
    if weights is None:
        return there[0]
    if weights not in there:
        raise ValueError(f'weights={weights}: {path} has {", ".join(there)}')
    return weights


def assemble(found: Found, path: Path) -> Denoiser:
    """Return the network with its tensors, in evaluation mode on the CPU.

    Raises ValueError like `check_fit`.
    """
    net = check_fit(found.config, found.tensors, path)
    net.to_empty(device='cpu')
    checkpoint.load_into(net, found.tensors, str(path))
    if isinstance(found.config.precond, IDDPM):
        _take_range_of_levels(net)
    return net.eval().requires_grad_(False)


def check_fit(config: NetworkConfig, tensors: Mapping[str, Tensor], path: Path) -> Denoiser:
    """Return the network on the device 'meta'.

    Raises ValueError unless the tensors are all of its tensors, in name and shape.
    """
    if isinstance(config.precond, IDDPM):
        count, levels = config.precond.levels.M + 1, tensors.get('u')
        if not isinstance(levels, Tensor) or levels.numel() != count:
            raise ValueError(f'{path}: the tensor u with {count} noise levels is missing or of '
                             f'another length')
    net = without_memory(config, len(tensors), path)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f'{path}: {shown(str(name))} holds no floating-point numbers')
    checkpoint.load_into(net, {name: tensor.to('meta') for name, tensor in tensors.items()},
                         str(path))
    return net


def without_memory(config: NetworkConfig, count: int, path: Path) -> Denoiser:
    """Return the network on the device 'meta', so that it takes no memory.

    Raises ValueError where it cannot be built, or cannot have as few as `count` tensors.
    """
    try:
        _check_arguments(config, count)
        with torch.device('meta'):
            return build_network(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError,
            AttributeError) as error:
        raise ValueError(
            f'{path}: its arguments do not make a network: {shown(str(error), 300)}') from None


def constant_tensors(config: NetworkConfig, net: Denoiser) -> dict[str, Tensor]:
    """Return the tensors of `net` that follow from its configuration.

    The state dicts of other programs leave them out.
    """
    filters = config.model.get('resample_filter', [1, 1])
    conv = Conv2d(1, 1, kernel=0, down=True, resample_filter=filters)
    resample_filter = conv.state_dict()['resample_filter']
    constants = {name: resample_filter for name in net.state_dict()
                 if name.endswith('.resample_filter')}
    if isinstance(config.precond, IDDPM):
        constants['u'] = config.precond.levels.u.to(torch.float32)
    return constants


def _check_arguments(config: NetworkConfig, count: int) -> None:
    """Raise ValueError for arguments of the wrong kind, and for unreasonably large ones."""
    height, width = height_and_width(config.img_resolution)
    for name, value in (('img_resolution', height), ('img_resolution', width),
                        ('img_channels', config.img_channels), ('label_dim', config.label_dim)):
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise ValueError(f'{name} is {shown(repr(value))}')
    defaults = complete_arguments(config.model_type, {})
    arguments = complete_arguments(config.model_type, config.model)
    for name, value in arguments.items():
        if not _is_like(value, defaults[name]):
            raise ValueError(f'{name} is {shown(repr(value))}, where {defaults[name]!r} is usual')
    blocks = arguments['num_blocks'] * len(arguments['channel_mult'])
    if blocks > count:
        raise ValueError(f'it has {blocks} blocks, but only {count} tensors')
    if not 0 <= config.sigma_min < config.sigma_max:
        raise ValueError(f'its noise levels go from {config.sigma_min} to {config.sigma_max}')
    schedule = getattr(config.precond, 'schedule', None)
    if isinstance(schedule, DiscreteSchedule) and not len(schedule.log_alpha_bar):   # or it raises
        raise ValueError('it has no noise levels')


def _is_like(value: object, default: object) -> bool:
    """Return whether `value` is of the kind of `default`: a text, a short list or a number."""
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, list):
        return isinstance(value, list | tuple) and len(value) <= 32 and all(map(_is_small, value))
    return _is_small(value)


def _is_small(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _take_range_of_levels(net: Denoiser) -> None:
    """Take the range of noise levels from the table of the file if it differs from the formula.

    Published tables were computed in float32 and differ from the formula by up to 5e-4.
    """
    u = net.state_dict()['u']
    low, high = u[-2].item(), u[0].item()
    if not (math.isclose(low, net.sigma_min, rel_tol=1e-6)
            and math.isclose(high, net.sigma_max, rel_tol=1e-6)):
        net.sigma_min, net.sigma_max = low, high
