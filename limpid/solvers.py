"""Solvers of the probability flow: the row "ODE solver" of Table 1, and the list of all solvers.

Those that were made for few steps are in limpid/multistep.py and limpid/exponential.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from limpid.checks import positive
from limpid.exponential import DPMSolver2, Multistep3M, Singlestep2S, UniPC
from limpid.flow import Perturb, ProbabilityFlow, Solver
from limpid.multistep import DEIS, IPNDM, LMS, IPNDMv, adams_weights, order_left


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

    lower_order_final  whether the last step uses D̄ = D_i, too
    """
    lower_order_final: bool = False

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        sigmas = flow.schedule.sigma(times)
        previous: tuple[Tensor, Tensor] | None = None   # (D, ln σ) of the step before
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            x, _ = perturb(i, x)
            if sigma_next == sigma:
                continue
            s, s_next = flow.scaling.s(sigma), flow.scaling.s(sigma_next)
            D = target = flow.denoise(x / s, sigma)
            if previous is not None and order_left(2, sigmas[i:], self.lower_order_final) == 2:
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
                weights = adams_weights([float((earlier - t) / h) for earlier, _ in history])
                x = x + h * sum(w * velocity
                                for w, (_, velocity) in zip(weights, history, strict=True))
        return x


# They use earlier steps, which fresh noise would invalidate.
MULTISTEP = (Multistep2M, Adams, IPNDM, IPNDMv, DEIS, LMS, Multistep3M, UniPC)
# They work in σ whatever the time is, so that their last step, to σ = 0, ends at D.
EXPONENTIAL = (Multistep2M, Multistep3M, Singlestep2S, DPMSolver2, UniPC, DEIS, LMS)

SOLVERS: dict[str, Callable[[], Solver]] = {
    'euler': Euler, 'heun': SecondOrder, 'dpmpp-2m': Multistep2M, 'adams': Adams,
    'ipndm': IPNDM, 'ipndm-v': IPNDMv, 'deis': DEIS, 'lms': LMS, 'dpm-2': DPMSolver2,
    'dpmpp-2s': Singlestep2S, 'dpmpp-3m': Multistep3M, 'unipc': UniPC}
