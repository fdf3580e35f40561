"""Solvers of the probability flow."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limpid.denoiser import Conditioned
from limpid.schedules import Scaling, Schedule


@dataclass(frozen=True)
class ProbabilityFlow:
    """The ODE that carries noise to images (Eq. 4), with the score written through D (Eq. 3)."""
    denoise: Conditioned
    schedule: Schedule
    scaling: Scaling

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ)        (Algorithm 1, line 4)

        With ṡ/s = (ln s)′(σ) σ̇ the time enters through the factor σ̇ alone.
        """
        sigma = self.schedule.sigma(t)
        s, dlog_s = self.scaling.s(sigma), self.scaling.dlog_s(sigma)
        denoised = self.denoise(x / s, sigma)
        return self.schedule.sigma_dot(t) * ((x - s * denoised) / sigma + dlog_s * x)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """x_0 ~ N(0, σ² s² I)        (Algorithm 1, line 2)"""
        return noise * (sigma * self.scaling.s(sigma))

    def add_noise(self, x: Tensor, sigma: Tensor, sigma_hat: Tensor, noise: Tensor) -> Tensor:
        """Move x up from noise level σ to the noisier σ̂        (Algorithm 2, line 6)"""
        s, s_hat = self.scaling.s(sigma), self.scaling.s(sigma_hat)
        return s_hat / s * x + s_hat * (sigma_hat**2 - sigma**2).clamp(min=0).sqrt() * noise


Perturb = Callable[[int, Tensor], tuple[Tensor, Tensor]]   # (step i, x_i) -> (x̂_i, t̂_i)


# (flow, x, times [N+1], perturb) -> image
Solver = Callable[[ProbabilityFlow, Tensor, Tensor, Perturb], Tensor]


@dataclass(frozen=True)
class Euler:
    """x_{i+1} = x̂ + h d: first order, one evaluation per step (Algorithm 1 without lines 6 to
    8)."""

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor, perturb: Perturb) -> Tensor:
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            x = x + (t_next - t) * flow.velocity(x, t)
        return x


@dataclass(frozen=True)
class SecondOrder:
    """x_{i+1} = x̂ + h [(1 − 1/(2α)) d + 1/(2α) d′],  d′ at x̂ + α h d        (Algorithm 3)

    α = 1 is Heun's method (Algorithm 1), ½ the midpoint rule, ⅔ Ralston's method. The last step,
    and any whose second point would fall at or below t = 0, is an Euler step: the ODE is singular
    there.
    """
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f'alpha must be positive, not {self.alpha:g}')

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor, perturb: Perturb) -> Tensor:
        num_steps = len(times) - 1
        late = 1 / (2 * self.alpha)
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            h = t_next - t
            d = flow.velocity(x, t)
            # For alpha = 1 exactly t_next, whatever the rounding of t + h.
            t_prime = t_next if self.alpha == 1 else t + self.alpha * h
            # Not below t = 0, nor where a VP schedule with β_min < 0 has no σ.
            if i == num_steps - 1 or not (t_prime > 0 and flow.schedule.sigma(t_prime) > 0):
                x = x + h * d
            else:
                d_prime = flow.velocity(x + self.alpha * h * d, t_prime)
                x = x + h * ((1 - late) * d + late * d_prime)
        return x


@dataclass(frozen=True)
class Multistep2M:
    """x_{i+1} = s′ (D̄ + (σ′/σ)(x_i/s − D̄)),  D̄ = D_i + (D_i − D_{i−1})/(2r): DPM-Solver++(2M)

    The flow solved exactly for a D̄ that is extrapolated linearly in ln σ from the step before; r
    is the ratio of that step to this one in ln σ. Second order, one evaluation per step. The first
    step and the one to σ = 0 take D̄ = D_i. (Lu et al. 2022, Algorithm 2; the schedule drops out,
    since only σ enters.)
    """

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor, perturb: Perturb) -> Tensor:
        sigmas = flow.schedule.sigma(times[:-1])
        previous: tuple[Tensor, Tensor] | None = None   # (D, ln σ) of the step before
        for i, sigma in enumerate(sigmas):
            x, _ = perturb(i, x)
            sigma_next = sigmas[i + 1] if i + 1 < len(sigmas) else torch.zeros_like(sigma)
            if sigma_next == sigma:
                continue
            s, s_next = flow.scaling.s(sigma), flow.scaling.s(sigma_next)
            D = target = flow.denoise(x / s, sigma)
            if previous is not None and sigma_next > 0:
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
    first `order` − 1 steps are Heun's, so that nothing is lost at the start; the last is Euler's.
    One evaluation per step and one more for each Heun step: N + order − 1.
    """
    order: int = 3

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f'order must be 1, 2 or 3, not {self.order}')

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor, perturb: Perturb) -> Tensor:
        history: list[tuple[Tensor, Tensor]] = []   # (t, d), newest first
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            h = t_next - t
            if h == 0:
                continue
            d = flow.velocity(x, t)
            history = [(t, d), *history[:self.order - 1]]
            if i == len(times) - 2:
                x = x + h * d
            elif len(history) < self.order:
                x = x + h * (d + flow.velocity(x + h * d, t_next)) / 2
            else:
                weights = self.weights([float((earlier - t) / h) for earlier, _ in history])
                x = x + h * sum(w * velocity
                                for w, (_, velocity) in zip(weights, history, strict=True))
        return x

    @staticmethod
    def weights(nodes: list[float]) -> list[float]:
        """w with Σ_j w_j p(nodes_j) = ∫_0^1 p for every polynomial p of degree below len(nodes)."""
        powers = torch.arange(len(nodes), dtype=torch.float64)
        vandermonde = torch.tensor(nodes, dtype=torch.float64) ** powers.reshape(-1, 1)
        return torch.linalg.solve(vandermonde, 1 / (powers + 1)).tolist()


# they remember earlier steps, which fresh noise would make untrue
MULTISTEP = (Multistep2M, Adams)


SOLVERS: dict[str, Any] = {'euler': Euler, 'heun': SecondOrder, 'dpmpp-2m': Multistep2M,
                           'adams': Adams}
