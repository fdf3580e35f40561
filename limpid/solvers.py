"""Solvers of the probability flow: the row "ODE solver" of Table 1, and two of higher order.

    x = solver(flow, x, times, perturb)

A solver advances x from times[0] to times[-1]. The times may fall or rise, and are never 0: the
last step, to t = 0, belongs to the sampler (limpid/samplers.py), since the flow is singular there.
At the start of each step i the solver takes (x̂_i, t̂_i) from `perturb(i, x_i)`, which adds fresh
noise; without noise they are x_i and times[i].
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from limpid.checks import positive
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


@dataclass(frozen=True)
class Euler:
    """x_{i+1} = x̂ + h d: first order, one evaluation per step (Algorithm 1 without lines 6-8)."""

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            x = x + (t_next - t) * flow.velocity(x, t)
        return x


@dataclass(frozen=True)
class SecondOrder:
    """x_{i+1} = x̂ + h [(1 − 1/(2α)) d + 1/(2α) d′],  d′ at x̂ + α h d        (Algorithm 3)

    α = 1 is Heun's method (Algorithm 1), ½ the midpoint rule, ⅔ Ralston's method. Two evaluations
    per step. A step whose second point would fall at or below t = 0 is an Euler step.
    """
    alpha: float = 1.0

    def __post_init__(self) -> None:
        positive('alpha', self.alpha)

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        late = 1 / (2 * self.alpha)
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            h = t_next - t
            d = flow.velocity(x, t)
            # For alpha = 1 this is exactly t_next, however t + h is rounded.
            t_prime = t_next if self.alpha == 1 else t + self.alpha * h
            # The second point must be above t = 0, and where a VP schedule with β_min < 0 has a σ.
            if t_prime > 0 and flow.schedule.sigma(t_prime) > 0:
                d_prime = flow.velocity(x + self.alpha * h * d, t_prime)
                x = x + h * ((1 - late) * d + late * d_prime)
            else:
                x = x + h * d
        return x


@dataclass(frozen=True)
class Multistep2M:
    """x_{i+1} = s′ (D̄ + (σ′/σ)(x_i/s − D̄)),  D̄ = D_i + (D_i − D_{i−1})/(2r): DPM-Solver++(2M)

    This solves the flow exactly if D equals D̄ throughout the step. D̄ is D extrapolated, linearly
    in ln σ, to the middle of the step, and r is the ratio of the step before to this one in ln σ.
    It is of second order with one evaluation per step. The first step uses D̄ = D_i. (Lu et al.
    2022, Algorithm 2; the schedule has no effect, since only σ enters.)
    """

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        previous: tuple[Tensor, Tensor] | None = None   # (D, ln σ) of the step before
        for i, (sigma, sigma_next) in enumerate(pairwise(flow.schedule.sigma(times))):
            x, _ = perturb(i, x)
            if sigma_next == sigma:
                continue
            s, s_next = flow.scaling.s(sigma), flow.scaling.s(sigma_next)
            D = target = flow.denoise(x / s, sigma)
            if previous is not None:
                D_previous, log_previous = previous
                r = (log_previous - sigma.log()) / (sigma.log() - sigma_next.log())
                target = D + (D - D_previous) / (2 * r)
            x = s_next * (target + sigma_next / sigma * (x / s - target))
            previous = D, sigma.log()
        return x


@dataclass(frozen=True)
class Adams:
    """x_{i+1} = x_i + h Σ_j w_j d_{i−j}: Adams–Bashforth of `order` 1, 2 or 3 on uneven steps

    The weights integrate the polynomial through the last `order` velocities over the step. The
    first `order` − 1 steps are Heun's, so that no accuracy is lost at the start. It takes one
    evaluation per step, and one more for each of Heun's steps.
    """
    order: int = 3

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f'order must be 1, 2 or 3, not {self.order}')

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        history: list[tuple[Tensor, Tensor]] = []   # (t, d), newest first
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            h = t_next - t
            if h == 0:
                continue
            d = flow.velocity(x, t)
            history = [(t, d), *history[:self.order - 1]]
            if len(history) < self.order:
                x = x + h * (d + flow.velocity(x + h * d, t_next)) / 2
            else:
                weights = self.weights([float((earlier - t) / h) for earlier, _ in history])
                x = x + h * sum(w * velocity
                                for w, (_, velocity) in zip(weights, history, strict=True))
        return x

    @staticmethod
    def weights(nodes: list[float]) -> list[float]:
        """Return w with Σ_j w_j p(nodes_j) = ∫_0^1 p for all polynomials p of degree below `order`.

        `order` is the number of nodes.
        """
        powers = torch.arange(len(nodes), dtype=torch.float64)
        vandermonde = torch.tensor(nodes, dtype=torch.float64) ** powers.reshape(-1, 1)
        return torch.linalg.solve(vandermonde, 1 / (powers + 1)).tolist()


MULTISTEP = (Multistep2M, Adams)   # they use earlier steps, which fresh noise would invalidate
EXPONENTIAL = (Multistep2M,)       # they are exact while D stays the same, so they end at D

SOLVERS: dict[str, Callable[[], Solver]] = {
    'euler': Euler, 'heun': SecondOrder, 'dpmpp-2m': Multistep2M, 'adams': Adams}
