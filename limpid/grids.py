"""Time steps beyond Table 1: those made for few steps, and those of other programs."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limpid.checks import one_of, positive
from limpid.noise_range import geometric, noise_range, ramp
from limpid.schedules import VPSchedule


@dataclass(frozen=True)
class ExponentialSteps:
    """σ_i = σ_max (σ_min/σ_max)^(i/(N−1)) on EDM's range: even steps in ln σ

    (The schedule "exponential" of the program k-diffusion. It is EDMSteps with ρ = ∞.)
    """
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        return geometric(num_steps, *noise_range(self, lowest, highest))


def on_vp_time(share: Tensor, low: float, high: float, epsilon_s: float) -> Tensor:
    """σ(t) at t = ε_s + (1 − ε_s) share, of the VP schedule from σ(ε_s) = low to σ(1) = high"""
    return VPSchedule.through(low, high, epsilon_s).sigma(epsilon_s + (1 - epsilon_s) * share)


@dataclass(frozen=True)
class VPPolynomialSteps:
    """σ_i = σ(t_i),  t_i = (1 + i/(N−1) (ε_s^(1/rho) − 1))^rho: polynomial steps on VP's time

    σ(t) is the VP schedule through the noise range, σ(ε_s) = sigma_min and σ(1) = sigma_max. rho =
    1 is VPSteps on EDM's range; rho = 2, "time quadratic", is that of Song, Meng & Ermon 2021,
    Appendix D.2. (As in the steps "time_uniform" of Zhou et al. 2024.)
    """
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 2.0
    epsilon_s: float = 1e-3

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        low, high = noise_range(self, lowest, highest)
        positive('rho', self.rho)
        end = self.epsilon_s ** (1 / self.rho)
        t = (1 + ramp(num_steps) * (end - 1)) ** self.rho
        return on_vp_time((t - self.epsilon_s) / (1 - self.epsilon_s), low, high, self.epsilon_s)


@dataclass(frozen=True)
class BetaSteps:
    """σ_i = σ(t_i),  t_i = ε_s + (1 − ε_s) F⁻¹(1 − i/(N−1)): VP's time at quantiles of Beta(a, b)

    F is the distribution function of the beta distribution, which for a, b < 1 has more steps at
    both ends. σ(t) is the VP schedule through the noise range. (Lee et al. 2024, "Beta Sampling is
    All You Need", with its a = b = 0.6.)
    """
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    beta_a: float = 0.6
    beta_b: float = 0.6
    epsilon_s: float = 1e-3

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        low, high = noise_range(self, lowest, highest)
        for name in ('beta_a', 'beta_b'):
            if not 0.05 <= getattr(self, name) <= 20:
                raise ValueError(f'{name} must be from 0.05 to 20, not {getattr(self, name):g}')
        share = beta_quantile(1 - ramp(num_steps), self.beta_a, self.beta_b)
        return on_vp_time(share, low, high, self.epsilon_s)


def beta_quantile(p: Tensor, a: float, b: float) -> Tensor:
    """F⁻¹(p) of the beta distribution, by bisection; exact to about 1e-14"""
    low, high = torch.zeros_like(p), torch.ones_like(p)
    for _ in range(60):
        middle = (low + high) / 2
        below = beta_distribution(middle, a, b) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(p <= 0, 0, torch.where(p >= 1, 1, (low + high) / 2))


def beta_distribution(x: Tensor, a: float, b: float) -> Tensor:
    """F(x) = I_x(a, b) = x^a Σ_n (1 − b)_n x^n / (n! (a + n)) / B(a, b), from the nearer end"""
    def part(x: Tensor, a: float, b: float) -> Tensor:
        total, term = torch.zeros_like(x), torch.ones_like(x)
        for n in range(80):
            total, term = total + term / (a + n), term * x * ((n + 1 - b) / (n + 1))
        return x**a * total

    whole = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    near = x <= 0.5
    lower, upper = torch.where(near, x, 0), torch.where(near, 0, 1 - x)
    return torch.where(near, part(lower, a, b) / whole, 1 - part(upper, b, a) / whole)


# The noise levels that the authors published, from high to low.
ALIGNED = {
    'sd15': (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    'sdxl': (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    'deepfloyd': (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    'svd': (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@dataclass(frozen=True)
class AlignedSteps:
    """ln σ_i: the table at i (K − 1)/(N − 1), linear between its K entries: Align Your Steps

    (Sabour et al. 2024: the noise levels that they optimised for Stable Diffusion 1.5, SDXL,
    DeepFloyd IF and Stable Video Diffusion.) For another noise range the table is stretched or
    squeezed in ln σ.

    table  a name in ALIGNED; `aligned` makes the steps with its range
    """
    table: str
    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        one_of('table', self.table, tuple(ALIGNED))

    def sigmas(self, num_steps: int, lowest: float = 0.0, highest: float = math.inf) -> Tensor:
        low, high = noise_range(self, lowest, highest)
        return interpolated(ALIGNED[self.table], num_steps, low, high)


def aligned(table: str) -> AlignedSteps:
    """Return the steps of a table with the noise range that it has."""
    return AlignedSteps(table, ALIGNED[table][-1], ALIGNED[table][0])


def interpolated(table: tuple[float, ...], num_steps: int, low: float, high: float) -> Tensor:
    """Return N levels from `high` to `low`, log-linear between the falling levels of a table."""
    logs = np.log(table)
    at = np.interp(ramp(num_steps).numpy(), np.linspace(0, 1, len(table)), logs)
    share = torch.from_numpy((at - logs[-1]) / (logs[0] - logs[-1]))
    return low * torch.pow(torch.tensor(high / low, dtype=torch.float64), share)
