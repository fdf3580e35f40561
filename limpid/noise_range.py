"""A rule that chooses noise levels, and what such rules share."""

import math
from typing import Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    """A rule that chooses N noise levels between sigma_min and sigma_max."""

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        """Return σ_0 ≥ … ≥ σ_{N−1} > 0, [N] float64, within [lowest, highest].

        `lowest` and `highest` bound the range that the network supports. σ_0 may be ∞ for
        ExplicitSteps and DiscreteSteps. Raises ValueError if num_steps < 1 or if no noise levels
        are left.
        """
        ...


def noise_range(steps: Steps, lowest: float, highest: float) -> tuple[float, float]:
    """Return the range of the steps within [lowest, highest], the range of the network.

    Raises ValueError if nothing is left.
    """
    low, high = max(steps.sigma_min, lowest), min(steps.sigma_max, highest)
    if not 0 < low < math.inf or not low <= high < math.inf:
        raise ValueError(
            f'no noise levels are left: sigma_min={steps.sigma_min:g} and '
            f'sigma_max={steps.sigma_max:g} must satisfy 0 < sigma_min <= sigma_max < inf '
            f'within the range of the network, [{lowest:g}, {highest:g}]')
    return low, high


def within(levels: Tensor, low: float, high: float) -> Tensor:
    """Return those of the levels that are in [low, high]."""
    # Networks report their range in float32. This rounding must not exclude the outermost levels.
    return levels[(levels >= low * (1 - 1e-3)) & (levels <= high * (1 + 1e-6))]


def ramp(num_steps: int) -> Tensor:
    """Return i / (N − 1) for i < N, float64; for a single step, 0: the highest noise level."""
    if num_steps < 1:
        raise ValueError(f'the number of steps must be at least 1, not {num_steps}')
    return torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)


def geometric(num_steps: int, low: float, high: float) -> Tensor:
    """high (low/high)^(i/(N−1))"""
    return high * torch.pow(low / high, ramp(num_steps))
