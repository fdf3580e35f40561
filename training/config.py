"""The configuration of a training run: typed, frozen, complete, and stored with every checkpoint.

Each part is configured by a class beside the thing it configures; this module composes them and
knows the tags under which choices are stored. Classes may be renamed, tags may not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dnnlib import config as plain
from limpid import levels, loss, preconditioning, schedules
from training.augment import AugmentConfig
from training.dataset import DataConfig
from training.ema import HalfLife, PowerFunction
from training.networks import NetworkConfig

FORMAT = 1   # of checkpoints; an incompatible change raises it and adds an upgrade

T = TypeVar('T')


def tags() -> dict[str, type]:
    """Return the class of each tag. Choices of the command line have tags made of their names."""
    some_precond = preconditioning.EDM()
    weightings = {name: type(make(some_precond)) for name, make in loss.WEIGHTINGS.items()}
    return {
        **_tagged('precond', preconditioning.PRECONDITIONERS),
        **_tagged('noise', loss.NOISE_DISTRIBUTIONS),
        **_tagged('weighting', weightings),
        **_tagged('loss', loss.LOSSES),
        **_tagged('discrete', levels.DISCRETE_SCHEDULES),
        'discrete/given': levels.GivenBetas,
        'schedule/vp': schedules.VPSchedule,
        'schedule/ve': schedules.VESchedule,
        'levels/iddpm': levels.IDDPMLevels,
        'average/half-life': HalfLife,
        'average/power': PowerFunction,
    }


def _tagged(kind: str, classes: Mapping[str, type]) -> dict[str, type]:
    return {f'{kind}/{name}': cls for name, cls in classes.items()}


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, with the learning rate ramped up linearly over the first images."""
    lr: float = 1e-3
    lr_rampup_nimg: float = 10_000_000
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    # the largest norm of the gradient of the mean over the batch; None: any
    clip: float | None = None
    # that of AdamW, which takes lr · weight_decay of each weight at a step; 0: Adam itself
    weight_decay: float = 0.0
    # images after which the learning rate falls with the root of their number; None: never
    lr_decay_nimg: float | None = None


@dataclass(frozen=True)
class NanConfig:
    """The treatment of steps with non-finite gradients, and of `limit` such steps in a row.

    policy  'skip' leaves weights and averages as they are; 'zero' replaces nan by 0 and ±inf by
            ±1e5 in the gradients and goes on, as the reference does
    then    'stop' ends the run; 'rollback' goes back to the last training state with half the
            learning rate
    """
    policy: str = 'skip'
    limit: int = 20
    then: str = 'stop'


def due(nimg: int, batch_size: int, interval: int) -> bool:
    """Return whether the last step reached or passed a multiple of `interval`, all in images.

    At the very start, where nimg is 0, everything is due.
    """
    return nimg // interval > (nimg - batch_size) // interval


def learning_rate(nimg: int, config: OptimizerConfig) -> float:
    """Return lr · min(nimg / ramp-up, 1), where nimg counts the images before the step.

    The first step therefore has the learning rate 0. Beyond lr_decay_nimg images, if there is such
    a number, it is also divided by √(nimg / lr_decay_nimg) (EDM2).
    """
    rate = config.lr * min(nimg / max(config.lr_rampup_nimg, 1e-8), 1)
    if config.lr_decay_nimg is not None and nimg > config.lr_decay_nimg:
        rate /= math.sqrt(nimg / config.lr_decay_nimg)
    return rate


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. Those ending in _nimg are numbers of images, the clock of a run."""
    data: DataConfig
    network: NetworkConfig
    loss: loss.Loss
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig | None = None
    # the first is the one that is sampled from
    averages: tuple[HalfLife | PowerFunction, ...] = (HalfLife(),)
    label_dropout: float = 0.0
    seed: int = 0
    batch_size: int = 512
    batch_gpu: int | None = None
    loss_scaling: float | None = 1.0   # None: dynamic
    nan: NanConfig = NanConfig()
    total_nimg: int = 200_000_000
    tick_nimg: int = 50_000
    snapshot_nimg: int = 2_500_000
    state_nimg: int = 25_000_000
    state_seconds: float | None = 900   # a state is also written this long after the last one
    keep_states: int | None = None      # None: all
    keep_snapshots: int | None = None
    pictures: int = 100        # images in that of a snapshot; none before the first step
    picture_steps: int = 18    # of the sampler that draws them
    cudnn_benchmark: bool = True
    compile: bool = False   # the residual blocks, by torch.compile
    checkpointing: bool = False   # of activations, in the residual blocks
    shard: bool = False   # divide weights, moments and averages among the ranks


def encode(config: object) -> Any:  # noqa: ANN401 (dictionaries of plain values)
    """Turn a TrainConfig, or a part of one, into plain values for JSON and for checkpoints."""
    return plain.encode(config, tags())


def decode(data: object, cls: type[T], where: str = 'config') -> T:
    """Turn the result of `encode` into a `cls` again.

    Raises ValueError, in one line that names the place within `where`, for values that do not fit.
    """
    decoded: T = plain.decode(upgraded(data), cls, tags(), where)
    return decoded


def upgraded(config: Any) -> Any:  # noqa: ANN401 (plain values, as they were stored)
    """Return a stored configuration as it would be stored today.

    Earlier versions had no decay of weights or of the learning rate, and a cache or none. Their
    loss in v had its own sigma_data, in addition to that of the network and the weighting.
    """
    if not isinstance(config, dict):
        return config
    if isinstance(config.get('optimizer'), dict):
        config = {**config, 'optimizer': {'weight_decay': 0.0, 'lr_decay_nimg': None,
                                          **config['optimizer']}}
    data = config.get('data')
    if isinstance(data, dict) and isinstance(data.get('cache'), bool):
        config = {**config, 'data': {**data, 'cache': 'ram' if data['cache'] else 'off'}}
    stored = config.get('loss')
    if not isinstance(stored, dict) or stored.get('type') != 'loss/velocity':
        return config
    kept = {name: value for name, value in stored.items() if name != 'sigma_data'}
    return {**config, 'loss': kept}
