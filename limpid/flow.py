"""The probability flow of Eq. 4, and what a solver of it is.

    x = solver(flow, x, times, perturb)

A solver advances x from times[0] to times[-1]. The times may fall or rise, and are never 0: the
last step, to t = 0, belongs to the sampler (limpid/samplers.py), since the flow is singular there.
At the start of each step i the solver takes (x̂_i, t̂_i) from `perturb(i, x_i)`, which adds fresh
noise; without noise they are x_i and times[i].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from limpid.schedules import Scaling, Schedule

Perturb = Callable[[int, Tensor], tuple[Tensor, Tensor]]   # (step i, x_i) -> (x̂_i, t̂_i)


@dataclass(frozen=True)
class ProbabilityFlow:
    """The ODE that carries noise to images (Eq. 4), with the score written through D (Eq. 3).

    denoise   D(x; σ) as a function of x [B, C, H, W] and σ []
    schedule  σ(t)
    scaling   s as a function of σ
    """
    denoise: Callable[[Tensor, Tensor], Tensor]
    schedule: Schedule
    scaling: Scaling

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ)        (Algorithm 1, line 4; Eq. 81)

        Since ṡ/s = (ln s)′(σ) σ̇, time enters only through the factor σ̇.
        """
        sigma = self.schedule.sigma(t)
        s, dlog_s = self.scaling.s(sigma), self.scaling.dlog_s(sigma)
        denoised = self.denoise(x / s, sigma)
        return self.schedule.sigma_dot(t) * ((x - s * denoised) / sigma + dlog_s * x)

    def add_noise(self, x: Tensor, sigma: Tensor, sigma_hat: Tensor, noise: Tensor) -> Tensor:
        """Move x up from noise level σ to the noisier σ̂        (Algorithm 2, line 6)"""
        s, s_hat = self.scaling.s(sigma), self.scaling.s(sigma_hat)
        return s_hat / s * x + s_hat * (sigma_hat**2 - sigma**2).clamp(min=0).sqrt() * noise

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """D(x/s; σ): the image that a step to σ = 0 reaches if D stays the same on the way."""
        sigma = self.schedule.sigma(t)
        return self.denoise(x / self.scaling.s(sigma), sigma)


class Solver(Protocol):
    """A solver of the probability flow: any function with this signature."""

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        """Advance x [B, C, H, W] from times[0] to times[-1]."""
        ...
