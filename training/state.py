"""Everything that changes during training, and the two kinds of files it is kept in.

network-snapshot-<kimg>.pkl   the averaged network, to generate images with
training-state-<kimg>.pt      everything, to continue with

Both hold plain values and tensors only and are read with weights_only=True. No generator state is
ever saved: all randomness is a function of (seed, nimg).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_utils import checkpoint
from torch_utils.stats import Collector
from training import config as configs
from training.config import TrainConfig
from training.ema import EMA
from training.networks import Denoiser, NetworkConfig, build_network

SNAPSHOT, STATE = 'network snapshot', 'training state'


@dataclass
class TrainState:
    net: Denoiser
    ema: EMA
    optimizer: torch.optim.Optimizer
    stats: Collector
    nimg: int = 0
    seconds: float = 0.0   # of training, over all the processes that took part one after another
    ema_rampup: bool = True   # not where training starts from another network's weights


def save_snapshot(state: TrainState, config: TrainConfig, run_dir: Path) -> Path:
    """Write network-snapshot-<kimg>.pkl: the averaged weights and what is needed to use them."""
    path = run_dir / f'network-snapshot-{state.nimg // 1000:06d}.pkl'
    checkpoint.save({
        'kind': SNAPSHOT,
        'format': configs.FORMAT,
        'config': configs.encode(config),
        'nimg': state.nimg,
        'ema': checkpoint.state_dict_of(state.ema.net),
    }, path)
    return path


def load_snapshot(path: str | os.PathLike[str], device: torch.device | str = 'cpu') -> tuple[Denoiser, dict[str, Any]]:
    """The averaged network of a snapshot, in evaluation mode, and the rest of what the file holds.

    Raises FileNotFoundError or ValueError, in one line that names the file.
    """
    contents = checkpoint.load(path, SNAPSHOT)
    _check_format(contents, path)
    net = build_network(configs.decode(contents['config']['network'], NetworkConfig, f'{path}: network'))
    checkpoint.load_into(net, contents.pop('ema'), str(path))
    return net.eval().requires_grad_(False).to(device), contents


def save_state(state: TrainState, config: TrainConfig, run_dir: Path) -> Path:
    """Write training-state-<kimg>.pt."""
    path = run_dir / f'training-state-{state.nimg // 1000:06d}.pt'
    checkpoint.save({
        'kind': STATE,
        'format': configs.FORMAT,
        'config': configs.encode(config),
        'nimg': state.nimg,
        'seconds': state.seconds,
        'ema_rampup': state.ema_rampup,
        'net': checkpoint.state_dict_of(state.net),
        'ema': checkpoint.state_dict_of(state.ema.net),
        'optimizer': state.optimizer.state_dict(),
        'stats': state.stats.state_dict(),
    }, path)
    return path


def restore_state(state: TrainState, path: str | os.PathLike[str]) -> None:
    """Continue from a training state; ValueError in one line for one that does not fit."""
    contents = checkpoint.load(path, STATE)
    _check_format(contents, path)
    checkpoint.load_into(state.net, contents['net'], str(path))
    checkpoint.load_into(state.ema.net, contents['ema'], str(path))
    state.optimizer.load_state_dict(contents['optimizer'])
    state.stats.load_state_dict(contents['stats'])
    state.nimg, state.seconds, state.ema_rampup = contents['nimg'], contents['seconds'], contents['ema_rampup']


def transfer_weights(state: TrainState, path: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Start from the averaged weights of a snapshot: every tensor of the same name and shape.

    Returns the names that were copied and those that start fresh. The average starts from the same
    weights, without ramp-up. Raises ValueError when nothing fits.
    """
    contents = checkpoint.load(path, SNAPSHOT)
    _check_format(contents, path)
    source, own = contents['ema'], state.net.state_dict()
    copied = [name for name in own if name in source and source[name].shape == own[name].shape]
    if not copied:
        raise ValueError(f'--transfer={path}: no tensor of the snapshot fits this network')
    for net in (state.net, state.ema.net):
        net.load_state_dict({name: source[name] for name in copied}, strict=False)
    state.ema_rampup = False
    return copied, [name for name in own if name not in copied]


def _check_format(contents: dict[str, Any], path: str | os.PathLike[str]) -> None:
    if contents.get('format') != configs.FORMAT:
        raise ValueError(f"{path} has format {contents.get('format')}; this version reads format {configs.FORMAT}")
