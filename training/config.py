"""What a training run is: typed, frozen, complete, and stored with every checkpoint.

Each part is configured by a class beside the thing it configures; this module composes them and
knows the tags under which choices are stored. Classes may be renamed, tags may not.
"""

from dataclasses import dataclass
from typing import Any

from dnnlib import config as plain
from limpid import levels, loss, preconditioning, schedules
from training.augment import AugmentConfig
from training.dataset import DataConfig
from training.ema import HalfLife, PowerFunction
from training.networks import NetworkConfig

FORMAT = 1   # of checkpoints; a change that old files do not survive raises it and adds an upgrade

TAGS: dict[str, type] = {
    'precond/vp': preconditioning.VP,
    'precond/ve': preconditioning.VE,
    'precond/iddpm': preconditioning.IDDPM,
    'precond/edm': preconditioning.EDM,
    'precond/v': preconditioning.V,
    'noise/vp': loss.UniformTime,
    'noise/ve': loss.LogUniform,
    'noise/iddpm': loss.UniformLevel,
    'noise/edm': loss.LogNormal,
    'noise/timestep': loss.UniformTimestep,
    'weighting/inverse-variance': loss.InverseVariance,
    'weighting/inverse-c-out': loss.InverseCOut,
    'loss/denoising': loss.DenoisingLoss,
    'loss/velocity': loss.VelocityLoss,
    'loss/hybrid': loss.HybridLoss,
    'schedule/vp': schedules.VPSchedule,
    'schedule/ve': schedules.VESchedule,
    'levels/iddpm': levels.IDDPMLevels,
    'discrete/ddpm-linear': levels.LinearBetas,
    'discrete/scaled-linear': levels.ScaledLinearBetas,
    'discrete/cosine': levels.CosineBetas,
    'discrete/given': levels.GivenBetas,
    'average/half-life': HalfLife,
    'average/power': PowerFunction,
}


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, with the learning rate ramped up linearly over the first images."""
    lr: float = 1e-3
    lr_rampup_nimg: float = 10_000_000
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    # the largest norm of the gradient of the mean over the batch; None: any
    clip: float | None = None


@dataclass(frozen=True)
class NanConfig:
    """What happens to steps with non-finite gradients, and after `limit` of them in a row.

    policy  'skip' leaves weights and averages as they are; 'zero' replaces nan by 0 and ±inf by
            ±1e5 in the gradients and goes on, as the reference does
    then    'stop' ends the run; 'rollback' goes back to the last training state with half the
            learning rate
    """
    policy: str = 'skip'
    limit: int = 20
    then: str = 'stop'


def due(nimg: int, batch_size: int, interval: int) -> bool:
    """Whether the last step has reached or passed a multiple of `interval`, in images; true at the
    very start."""
    return nimg // interval > (nimg - batch_size) // interval


def learning_rate(nimg: int, config: OptimizerConfig) -> float:
    """lr · min(nimg / ramp-up, 1) at the image counter before the step, hence 0 in the first
    step."""
    return config.lr * min(nimg / max(config.lr_rampup_nimg, 1e-8), 1)


@dataclass(frozen=True)
class TrainConfig:
    """Counts ending in _nimg are numbers of images, on the one clock of a run."""
    data: DataConfig
    network: NetworkConfig
    loss: loss.DenoisingLoss | loss.VelocityLoss | loss.HybridLoss
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
    keep_states: int | None = None      # None: all
    keep_snapshots: int | None = None
    cudnn_benchmark: bool = True


def encode(config: Any) -> Any:  # noqa: ANN401 (TrainConfig or NetworkConfig)
    """Plain values for JSON and for checkpoints."""
    return plain.encode(config, TAGS)


def decode(data: Any, cls: type, where: str = 'config') -> Any:  # noqa: ANN401
    """The inverse of `encode`; ValueError in one line for anything that does not fit."""
    return plain.decode(data, cls, TAGS, where)
