"""--shard: weights, gradients, moments and averages divided among the ranks (FSDP2).

Each rank keeps its part of every tensor, and has the whole of one residual block while it computes
with it. Files hold whole tensors, and are those of a run without --shard.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limpid.denoiser import Denoiser
from torch_utils import distributed
from torch_utils.tensors import whole
from training.config import TrainConfig
from training.networks import UNetBlock, build_network
from training.state import TrainState


def check_sharding(config: TrainConfig, others: Mapping[str, bool]) -> None:
    """Raise ValueError for settings that --shard does not go with.

    `others` says which options were given that are no part of the configuration.
    """
    if not config.shard:
        return
    if distributed.get_world_size() == 1:
        raise ValueError('--shard=1 divides a model among several processes, and there is one: '
                         'start it with torchrun, or leave --shard out')
    if torch.__version__.startswith('2.6.') and not torch.cuda.is_available():
        raise ValueError(f'--shard=1 needs a GPU, or a newer torch than {torch.__version__}, whose '
                         f'fully_shard does not run on CPUs')
    refused = {'--compile=1': config.compile,
               '--nan-then=rollback': config.nan.then == 'rollback', **others}
    for option, given in refused.items():
        if given:
            raise ValueError(f'{option} does not go with --shard=1: leave one of them out')


def shard(state: TrainState, device: torch.device) -> None:
    """Divide a state, the same on all ranks, among them, in place; the parts move to `device`.

    Collective.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))

    def divide(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, UNetBlock):
                fully_shard(module, mesh=mesh)
        fully_shard(net, mesh=mesh)

    before = [parameter for group in state.optimizer.param_groups for parameter in group['params']]
    for net in (state.net, *(average.net for average in state.averages.values())):
        divide(net)
    moments = [state.optimizer.state.pop(parameter, None) for parameter in before]
    group, = state.optimizer.param_groups
    group['params'] = list(state.net.parameters())
    for parameter, entry in zip(group['params'], moments, strict=True):
        if entry is not None:
            state.optimizer.state[parameter] = {
                name: _divided_like(value, parameter) if value.ndim
                else value.to(parameter.device if group['fused'] else value.device)
                for name, value in entry.items()}


def _divided_like(value: Tensor, parameter: Any) -> Tensor:   # noqa: ANN401 (a DTensor)
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh,
                             parameter.placements)


def whole_network(net: Denoiser, config: TrainConfig, device: torch.device | str) -> Denoiser:
    """Return a divided network as a plain one, in evaluation mode, on every rank; collective."""
    with torch.random.fork_rng([]):
        plain = build_network(config.network).to(device)
    plain.load_state_dict({name: whole(tensor) for name, tensor in net.state_dict().items()})
    plain.known_labels, plain.standardization = net.known_labels, net.standardization
    return plain.eval().requires_grad_(False)


def whole_state(state: TrainState, config: TrainConfig) -> TrainState:
    """Return a divided state with all tensors whole and on the CPU, to be saved; collective."""
    net = whole_network(state.net, config, 'cpu').train().requires_grad_(True)
    averages = {}
    for name, average in state.averages.items():
        averages[name] = copy.copy(average)
        averages[name].net = whole_network(average.net, config, 'cpu')
    optimizer = type(state.optimizer)(net.parameters())   # type: ignore[call-arg]
    group, = state.optimizer.param_groups
    optimizer.param_groups[0].update({name: value for name, value in group.items()
                                      if name != 'params'})
    for divided, parameter in zip(group['params'], net.parameters(), strict=True):
        entry = state.optimizer.state.get(divided)
        if entry:
            optimizer.state[parameter] = {name: whole(value).cpu()
                                          for name, value in entry.items()}
    return replace(state, net=net, averages=averages, optimizer=optimizer)
