"""The rows "Schedule" and "Scaling" of Table 1: the noise level σ(t), and the signal's scale s.

A scaling is a function of σ rather than of t, so that it fits any schedule: s(t) means
s(σ(t)), and ṡ/s = dlog_s(σ) σ̇. All functions work elementwise on tensors of any shape; times and
noise levels are float64.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A noise schedule: the noise level as a function of time, its inverse and its derivative."""
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t)"""
        ...

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """Return the time t at which σ(t) = sigma."""
        ...

    def sigma_dot(self, t: Tensor) -> Tensor:
        """dσ/dt"""
        ...


@dataclass(frozen=True)
class VPSchedule:
    """σ(t) = √(exp(½ β_d t² + β_min t) − 1),  t in [0, 1]        (Table 1; β(t) = β_min + β_d t)"""
    beta_d: float = 19.9
    beta_min: float = 0.1

    @classmethod
    def through(cls, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> 'VPSchedule':
        """Return the schedule with σ(ε_s) = sigma_min and σ(1) = sigma_max.

        These are two equations for the two constants. For the range of the defaults,
        [0.010486, 152.167], the constants are 19.9 and 0.1. For low sigma_min, β_min may be
        negative: then there is no σ(t) for 0 < t < −2 β_min/β_d, which is below ε_s, and t = 0
        stands for σ = 0. For high sigma_min, β_d may be negative: then σ(t) rises only
        while β(t) > 0, which must include t = 1. Raises ValueError if it does not.
        """
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        # β(1) = β_min + β_d > 0 means that ln(1 + σ_min²) is below this share of ln(1 + σ_max²).
        share = epsilon_s * (2 - epsilon_s)
        if low >= share * high:
            limit = math.sqrt(math.expm1(share * high))
            raise ValueError(f'no VP schedule goes from sigma({epsilon_s:g}) = {sigma_min:g} to '
                             f'sigma(1) = {sigma_max:g}: with this sigma_max, sigma_min must be '
                             f'below {limit:.4g}')
        beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
        return cls(beta_d=beta_d, beta_min=high - beta_d / 2)

    def beta(self, t: Tensor) -> Tensor:
        """β(t) = β_min + β_d t, the rate of the VP SDE dx = −½ β x dt + √β dω."""
        return self.beta_min + self.beta_d * t

    def sigma(self, t: Tensor) -> Tensor:
        return (0.5 * self.beta_d * t**2 + self.beta_min * t).expm1().sqrt()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        log = (sigma**2).log1p()   # = ½ β_d t² + β_min t, a quadratic in t
        root = (self.beta_min**2 + 2 * self.beta_d * log).sqrt()
        if self.beta_min < 0:
            return (root - self.beta_min) / self.beta_d
        return 2 * log / (self.beta_min + root)   # the same root without cancellation

    def sigma_dot(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)   # from σ² + 1 = exp(B(t)):  2 σ σ̇ = β(t) (σ² + 1)
        return self.beta(t) * (sigma + 1 / sigma) / 2


@dataclass(frozen=True)
class VESchedule:
    """σ(t) = √t,  t in [σ_min², σ_max²]        (Table 1)

    The range is not part of the formula. It is stored here because the rows of the VE column share
    it.
    """
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return sigma**2

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * t.rsqrt()


@dataclass(frozen=True)
class LinearSchedule:
    """σ(t) = t        (Table 1, iDDPM and EDM)"""

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return sigma

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Scaling(Protocol):
    """A scaling of the signal, as a function of the noise level."""
    def s(self, sigma: Tensor) -> Tensor:
        """s as a function of σ; s(t) is s(σ(t))."""
        ...

    def dlog_s(self, sigma: Tensor) -> Tensor:
        """s′(σ) / s(σ), hence ṡ/s = dlog_s(σ) σ̇."""
        ...


@dataclass(frozen=True)
class VPScaling:
    """s = 1/√(1 + σ²)        (Table 1)

    This is 1/√exp(½ β_d t² + β_min t), whatever the constants of the schedule are.
    """

    def s(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def dlog_s(self, sigma: Tensor) -> Tensor:
        return -sigma / (1 + sigma**2)


@dataclass(frozen=True)
class NoScaling:
    """s = 1        (Table 1)"""

    def s(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def dlog_s(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)


def first_sample(noise: Tensor, sigma: Tensor, scaling: Scaling) -> Tensor:
    """x_0 ~ N(0, σ² s² I), from noise of unit variance        (Algorithm 1, line 2)"""
    return noise * (sigma * scaling.s(sigma))


def times_of(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """t_i = σ⁻¹(σ_i) of the noise levels [N + 1], and t_N = 0

    The last time is 0 by definition, even if σ⁻¹(0) is not 0 (a VP schedule with β_min < 0).
    """
    return torch.nn.functional.pad(schedule.sigma_inv(sigmas[:-1]), (0, 1))


def vp_through(sigmas: Tensor) -> VPSchedule:
    """Return the VP schedule with σ(1) = σ_0 and σ(0.001) = σ_{N−1}, or Song's if there is none.

    Every VP schedule gives the same SDE in another time variable: it only must reach the levels.
    """
    try:
        return VPSchedule.through(float(sigmas[-2]), float(sigmas[0]))
    except ValueError:
        return VPSchedule()


SCHEDULES = {'vp': VPSchedule, 've': VESchedule, 'linear': LinearSchedule}
SCALINGS = {'vp': VPScaling, 'none': NoScaling}
