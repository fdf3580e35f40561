"""The row "Time steps" of Table 1, and timesteps of discrete schedules.

Steps are given as the noise levels that a sampler visits rather than as times, so that they fit any
schedule. The sampler maps them to t_i = σ⁻¹(σ_i), and adds the last step, to t_N = 0.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from limpid.checks import one_of
from limpid.grids import ALIGNED, BetaSteps, ExponentialSteps, VPPolynomialSteps, aligned
from limpid.levels import (
    DISCRETE_SCHEDULES,
    SPACINGS,
    DiscreteSchedule,
    IDDPMLevels,
    ScaledLinearBetas,
    timesteps,
)
from limpid.noise_range import Steps, geometric, noise_range, ramp, within
from limpid.schedules import VPSchedule

# 0.010486, 152.167
_VP_RANGE = VPSchedule().sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()


@dataclass(frozen=True)
class VPSteps:
    """σ_i = σ(t_i),  t_i = 1 + i/(N−1) (ε_s − 1)

    σ(t) is the VP schedule through the noise range: its constants are re-derived from
    σ(ε_s) = sigma_min and σ(1) = sigma_max, so that any range can be covered; the default range
    gives β_d = 19.9 and β_min = 0.1.
    """
    sigma_min: float = _VP_RANGE[0]
    sigma_max: float = _VP_RANGE[1]
    epsilon_s: float = 1e-3

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        low, high = noise_range(self, lowest, highest)
        schedule = VPSchedule.through(low, high, self.epsilon_s)
        return schedule.sigma(1 + ramp(num_steps) * (self.epsilon_s - 1))


@dataclass(frozen=True)
class VESteps:
    """σ_i = σ_max (σ_min/σ_max)^(i/(N−1))"""
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        return geometric(num_steps, *noise_range(self, lowest, highest))


@dataclass(frozen=True)
class IDDPMSteps:
    """σ_i = u_{⌊j_0 + (M−1−j_0)/(N−1) i + ½⌋}, where j_0 is the first level with u_j ≤ sigma_max

    These are N of the levels within the noise range, evenly spaced in j. With more steps than
    levels some repeat.
    """
    sigma_min: float = 0.002
    sigma_max: float = 81.0
    levels: IDDPMLevels = IDDPMLevels()

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        low, high = noise_range(self, lowest, highest)
        u = self.levels.u[:-1]
        u = within(u, low, high)
        if len(u) == 0:
            raise ValueError(f'no iDDPM noise level lies between sigma_min={low:g} and '
                             f'sigma_max={high:g}')
        return u[((len(u) - 1) * ramp(num_steps) + 0.5).floor().long()]


@dataclass(frozen=True)
class EDMSteps:
    """σ_i = (σ_max^(1/ρ) + i/(N−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ        (Eq. 5)

    ρ = 1 is uniform; ρ = ∞ is the geometric sequence of VE (footnote 18).
    """
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        low, high = noise_range(self, lowest, highest)
        if not self.rho > 0:
            raise ValueError(f'rho must be positive, not {self.rho:g}')
        if math.isinf(self.rho):
            return geometric(num_steps, low, high)
        if 1 / self.rho * math.log(max(high, 1 / low, 2)) > 700:   # e^709 is the largest float64
            raise ValueError(self._lost())
        start, end = high ** (1 / self.rho), low ** (1 / self.rho)
        levels = (start + ramp(num_steps) * (end - start)) ** self.rho
        ends = torch.tensor([high, low][:num_steps], dtype=torch.float64)
        if not torch.allclose(levels[[0, -1]][:num_steps], ends, rtol=1e-3, atol=0):
            raise ValueError(self._lost())
        return levels

    def _lost(self) -> str:
        return (f'rho={self.rho:g} is beyond what float64 can tell: take a number nearer to 7, or '
                f'inf')


@dataclass(frozen=True)
class ExplicitSteps:
    """σ_i = levels[i]

    The levels must fall, and be positive and within the range of the network; the first may be ∞.
    The number of steps is the number of levels, whatever num_steps says.
    """
    levels: tuple[float, ...]

    @property
    def sigma_min(self) -> float:
        return min(self.levels)

    @property
    def sigma_max(self) -> float:
        return max(self.levels)

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        if not self.levels:
            raise ValueError('explicit steps need at least one noise level')
        if any(b >= a for a, b in pairwise(self.levels)):
            raise ValueError(f'noise levels must fall: '
                             f'{", ".join(f"{level:g}" for level in self.levels)} do not')
        for level in self.levels:
            if not (level > 0 and lowest <= level <= highest):
                raise ValueError(f'the noise level {level:g} must be positive and within the range '
                                 f'of the network, [{lowest:g}, {highest:g}]')
        return torch.tensor(self.levels, dtype=torch.float64)


@dataclass(frozen=True)
class DiscreteSteps:
    """σ_i = σ_t for N of the timesteps t of a discrete schedule        (Lin et al. 2023, Table 2)

    schedule         the table of noise levels
    spacing          the rule by which timesteps are chosen: see `timesteps`
    lowest, highest  the range of noise levels to choose from; levels that the network does not
                     support are left out

    With zero terminal SNR the first level is ∞, if the spacing includes the last timestep. Raises
    ValueError for more steps than there are levels.
    """
    schedule: DiscreteSchedule = ScaledLinearBetas()
    spacing: str = 'trailing'
    lowest: float = 0.0
    highest: float = math.inf

    def __post_init__(self) -> None:
        one_of('spacing', self.spacing, SPACINGS)

    @property
    def sigma_min(self) -> float:
        return float(self.levels()[0])

    @property
    def sigma_max(self) -> float:
        return float(self.levels()[-1])

    def levels(self, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        """Return the levels to choose from, rising; raise ValueError if there are none."""
        low, high = max(lowest, self.lowest), min(highest, self.highest)
        sigma = within(self.schedule.sigma, low, high)
        if len(sigma) == 0:
            raise ValueError(f'no timestep has a noise level within [{low:g}, {high:g}], the range '
                             f'of the network and of the steps')
        return sigma

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        sigma = self.levels(lowest, highest)
        return sigma[[t - 1 for t in timesteps(num_steps, len(sigma), self.spacing)]].flip(0)


STEPS: dict[str, Callable[..., Steps]] = {
    'vp': VPSteps, 've': VESteps, 'iddpm': IDDPMSteps, 'edm': EDMSteps,
    'exponential': ExponentialSteps, 'vp-poly': VPPolynomialSteps, 'beta': BetaSteps,
    **{f'ays-{name}': functools.partial(aligned, name) for name in ALIGNED},
    **{name: functools.partial(DiscreteSteps, schedule())
       for name, schedule in DISCRETE_SCHEDULES.items()},
}
