"""Averages of the weights over training, and the reconstruction of averages that were never kept.

There are two families: exponential averages with a half-life (Karras et al. 2022), and
power-function averages (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", EDM2). From stored snapshots of the latter an average of any other length can be
computed afterwards.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from torch_utils.tensors import local

N = TypeVar('N', bound=nn.Module)


@dataclass(frozen=True)
class HalfLife:
    """β = 0.5^(batch/H): the weights of H images ago count half.

    H is halflife_nimg, but at most rampup_ratio · nimg.
    """
    halflife_nimg: float = 500_000
    rampup_ratio: float | None = 0.05

    @property
    def name(self) -> str:
        return f'{self.halflife_nimg / 1e6:g}'

    def halflife(self, nimg: int) -> float:
        """Return the half-life in images at the image counter `nimg`."""
        if self.rampup_ratio is None:
            return self.halflife_nimg
        return min(self.halflife_nimg, nimg * self.rampup_ratio)

    def beta(self, nimg: int, batch_size: int) -> float:
        """Return the weight that the average keeps in the step at `nimg`."""
        return 0.5 ** (batch_size / max(self.halflife(nimg), 1e-8))


@dataclass(frozen=True)
class PowerFunction:
    """β = (1 − batch/t)^(γ+1),  t = nimg + batch        (EDM2)

    The weights at time τ count as τ^γ; sigma_rel is the standard deviation of that profile relative
    to its length, so the average covers the same share of a run however long the run is.
    """
    sigma_rel: float = 0.10

    @property
    def name(self) -> str:
        return f'power-{self.sigma_rel:g}'

    def beta(self, nimg: int, batch_size: int) -> float:
        """Return the weight that the average keeps in the step at `nimg`."""
        return (1 - batch_size / (nimg + batch_size)) ** (power_of(self.sigma_rel) + 1)


Average = HalfLife | PowerFunction


class EMA(Generic[N]):
    """The averaged copy of a network, always in evaluation mode."""

    def __init__(self, net: N) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: N, beta: float) -> None:
        """Set average ← β average + (1 − β) weights; buffers are copied, never averaged."""
        torch._foreach_lerp_([local(p) for p in self.net.parameters()],
                             [local(p) for p in net.parameters()], 1 - beta)
        for average, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)


def width_of(power: float) -> float:
    """Return sigma_rel = √(γ + 1) / ((γ + 2) √(γ + 3)), the relative width of the profile τ^γ."""
    return math.sqrt(power + 1) / ((power + 2) * math.sqrt(power + 3))


def power_of(sigma_rel: float) -> float:
    """Return the γ ≥ 0 of a relative width in (0, 1/√12], the real root of a cubic.

    Raises ValueError for other widths.
    """
    if not 0 < sigma_rel <= 1 / math.sqrt(12) + 1e-12:
        raise ValueError(f'a relative width of {sigma_rel:g} is out of range: '
                         f'it lies between 0 and {1 / math.sqrt(12):.4f}')
    t = sigma_rel**-2   # (γ + 2)² (γ + 3) = t (γ + 1)
    roots = np.roots([1, 7, 16 - t, 12 - t])
    return float(max(roots[np.abs(roots.imag) < 1e-6].real.max(), 0.0))


def inner_product(t_a: float, power_a: float, t_b: float, power_b: float) -> float:
    """Return ∫ p_a(τ) p_b(τ) dτ of the profiles p(τ) = (γ + 1) τ^γ / t^(γ+1) on [0, t]."""
    t = min(t_a, t_b)
    ratio = (t / t_a) ** (power_a + 1) * (t / t_b) ** (power_b + 1)
    return (power_a + 1) * (power_b + 1) * ratio / ((power_a + power_b + 1) * t)


def reconstruction_weights(stored: Sequence[tuple[float, float]], nimg: float,
                           sigma_rel: float) -> np.ndarray:
    """Return the weights of stored averages in the average of width `sigma_rel` at `nimg`.

    `stored` holds (nimg, sigma_rel) of each. The weights minimise the L2 distance between the
    profiles and are scaled to sum to 1, as the weights of every average do. (EDM2, Section 3.)
    """
    profiles = [(t, power_of(width)) for t, width in stored]
    target = nimg, power_of(sigma_rel)
    A = np.array([[inner_product(*a, *b) for b in profiles] for a in profiles])
    b = np.array([inner_product(*a, *target) for a in profiles])
    weights = np.linalg.lstsq(A, b, rcond=1e-12)[0]
    return weights / weights.sum()


def reconstruction_error(stored: Sequence[tuple[float, float]], weights: np.ndarray, nimg: float,
                         sigma_rel: float) -> float:
    """Return ‖Σ w_i p_i − p‖ / ‖p‖ of the profiles, the error of a reconstruction."""
    profiles = [*((t, power_of(width)) for t, width in stored), (nimg, power_of(sigma_rel))]
    A = np.array([[inner_product(*a, *b) for b in profiles] for a in profiles])
    w = np.append(weights, -1.0)
    return math.sqrt(max(float(w @ A @ w), 0.0) / A[-1, -1])
