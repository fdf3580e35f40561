"""The stochastic differential equations behind the probability flow, for any schedule and any
scaling (Eq. 6).

One family of equations has the marginals p_t for every rate β(t) at which noise is replaced: β = 0
is the probability flow, and β = σ̇/σ is the SDE of Song et al. 2021, whose forward drift does not
contain the score.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from limpid.denoiser import Conditioned
from limpid.samplers import RandnLike
from limpid.schedules import LinearSchedule, NoScaling, Scaling, Schedule, first_sample, times_of


@dataclass(frozen=True)
class GeneralSDE:
    """dx_± = [(ṡ/s) x + s (σ̇/σ ∓ β)(x/s − D(x/s; σ))] dt + s σ √(2β) dω,   + forward, − in reverse

    This is Eq. 6 with a scaling and with the score through D (Eq. 3), solved by Euler–Maruyama at
    any steps: weak order 1. The last step adds no noise. Evaluations of the network: N.

    beta          the rate, as a multiple of σ̇/σ, so that 0 is Euler's method for the flow and 1 is
                  Song's SDE
    constant      whether beta is instead the rate itself, per unit of t
    S_min, S_max  the noise levels with fresh noise; outside of them β = 0
    """
    schedule: Schedule = LinearSchedule()
    scaling: Scaling = NoScaling()
    beta: float = 1.0
    constant: bool = False
    S_min: float = 0.0
    S_max: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ValueError(f'beta is the rate of fresh noise and must be 0 or more, not '
                             f'{self.beta:g}')

    def rate(self, t: Tensor) -> Tensor:
        """β(t)"""
        sigma = self.schedule.sigma(t)
        if self.constant:
            rate = torch.full_like(t, self.beta)
        else:
            rate = self.beta * (self.schedule.sigma_dot(t) / sigma)
        # A level at a limit counts as inside, although converting sigma to t and back may have
        # changed its last digits.
        inside = (self.S_min * (1 - 1e-9) <= sigma) & (sigma <= self.S_max * (1 + 1e-9))
        return torch.where(inside, rate, 0.0)

    def drift(self, denoise: Conditioned, x: Tensor, t: Tensor, forward: bool = False) -> Tensor:
        """Return the factor of dt: that of dx_−, in reverse, or of dx_+, forward."""
        sigma, sigma_dot = self.schedule.sigma(t), self.schedule.sigma_dot(t)
        s, dlog_s = self.scaling.s(sigma), self.scaling.dlog_s(sigma)
        beta = -self.rate(t) if forward else self.rate(t)
        return sigma_dot * dlog_s * x + (sigma_dot / sigma + beta) * (x - s * denoise(x / s, sigma))

    def diffusion(self, t: Tensor) -> Tensor:
        """s σ √(2β), the factor of dω."""
        sigma = self.schedule.sigma(t)
        return self.scaling.s(sigma) * sigma * (2 * self.rate(t)).sqrt()

    def step(self, denoise: Conditioned, x: Tensor, t: Tensor, t_next: Tensor,
             noise: Tensor | None) -> Tensor:
        """Take one Euler–Maruyama step from t to a later (forward) or earlier t_next.

        noise=None adds no noise.
        """
        dt = t_next - t
        x_mean = x + dt * self.drift(denoise, x, t, forward=bool(dt > 0))
        return x_mean if noise is None else x_mean + self.diffusion(t) * dt.abs().sqrt() * noise

    def forward(self, denoise: Conditioned, x: Tensor, times: Tensor,
                randn_like: RandnLike) -> Tensor:
        """Turn images into noise: take x from times[0] > 0 to times[-1], through rising times."""
        for t, t_next in pairwise(times):
            x = self.step(denoise, x, t, t_next, randn_like(x))
        return x

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        times = times_of(self.schedule, sigmas)
        x = first_sample(noise, sigmas[0], self.scaling)
        for i, (t, t_next) in enumerate(pairwise(times)):
            stochastic = self.beta > 0 and i < len(times) - 2
            x = self.step(denoise, x, t, t_next, randn_like(x) if stochastic else None)
        return x


SDES = {'sde': GeneralSDE}
