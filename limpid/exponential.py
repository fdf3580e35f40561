"""Exponential integrators for few steps: DPM-Solver-2, DPM-Solver++ 2S and 3M, and UniPC.

All of them work on the unscaled x and on λ = −ln σ, so that the schedule has no effect. With
h = λ_{i+1} − λ_i a step is exact as long as D (or, for DPM-Solver-2, the noise) stays the same:

    x′ = D + (σ′/σ)(x − D),   σ′/σ = exp(−h)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limpid.checks import one_of
from limpid.flow import Perturb, ProbabilityFlow
from limpid.multistep import check_order, order_left

Past = list[tuple[Tensor, Tensor]]   # (λ, D) of earlier steps, newest first


def towards(x: Tensor, D: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x + (σ′ − σ)(x − D)/σ: Euler's step in σ, which is D + (σ′/σ)(x − D)"""
    return x + (sigma_next - sigma) * ((x - D) / sigma)


@dataclass(frozen=True)
class DPMSolver2:
    """x′ = x + (σ′ − σ) ε(u; σ_m),  u = x + (σ_m − σ) ε(x; σ),  σ_m = √(σ σ′),  ε = (x − D)/σ

    The midpoint method, whose midpoint is that in ln σ. (Lu et al. 2022, "DPM-Solver", Algorithm 1
    with r_1 = ½; the sampler dpm_2 of k-diffusion.) Second order, two evaluations per step.
    """

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            sigma, sigma_next = flow.schedule.sigma(t), flow.schedule.sigma(t_next)
            if sigma_next == sigma:
                continue
            x = x / flow.scaling.s(sigma)
            middle = (sigma * sigma_next).sqrt()
            u = towards(x, flow.denoise(x, sigma), sigma, middle)
            noise = (u - flow.denoise(u, middle)) / middle
            x = flow.scaling.s(sigma_next) * (x + (sigma_next - sigma) * noise)
        return x


@dataclass(frozen=True)
class Singlestep2S:
    """x′ = D_m + (σ′/σ)(x − D_m),  D_m = D(u; √(σ σ′)),  u = D + √(σ′/σ) (x − D): DPM-Solver++(2S)

    (Lu et al. 2022, "DPM-Solver++", Algorithm 1 with r = ½.) Second order, two evaluations per
    step.
    """

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            sigma, sigma_next = flow.schedule.sigma(t), flow.schedule.sigma(t_next)
            if sigma_next == sigma:
                continue
            x = x / flow.scaling.s(sigma)
            middle = (sigma * sigma_next).sqrt()
            u = towards(x, flow.denoise(x, sigma), sigma, middle)
            D = flow.denoise(u, middle)
            x = flow.scaling.s(sigma_next) * towards(x, D, sigma, sigma_next)
        return x


def differences(past: Past, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return h D′ and h² D″ / 2 at the newest of three steps, by divided differences in λ."""
    (l0, D0), (l1, D1), (l2, D2) = past
    r0, r1 = (l0 - l1) / h, (l1 - l2) / h
    newer, older = (D0 - D1) / r0, (D1 - D2) / r1
    return newer + r0 / (r0 + r1) * (newer - older), (newer - older) / (r0 + r1)


@dataclass(frozen=True)
class Multistep3M:
    """x′ = D + (σ′/σ)(x − D) + φ_2 d_1 − φ_3 d_2,  φ_2 = (e^−h − 1)/h + 1,  φ_3 = φ_2/h − ½

    DPM-Solver++(3M): d_1 and d_2 are h D′ and h² D″/2 by divided differences of the last three D in
    λ. (Lu et al. 2022, "DPM-Solver++", Appendix A, and its programs.) The first step is Euler's and
    the second that of Multistep2M. As published d_2 is half of the h² D″ that the expansion asks
    for, so that the measured order is 2, with smaller errors than Multistep2M; with twice d_2 it is
    3. One evaluation per step.

    lower_order_final  whether the last two steps have the orders 2 and 1
    """
    lower_order_final: bool = False

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        sigmas, past = flow.schedule.sigma(times), Past()
        for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            x, _ = perturb(i, x)
            if sigma_next == sigma:
                continue
            x = x / flow.scaling.s(sigma)
            D, h = flow.denoise(x, sigma), (sigma / sigma_next).log()
            past = [(-sigma.log(), D), *past[:2]]
            past = past[:order_left(3, sigmas[i:], self.lower_order_final)]
            x = towards(x, D, sigma, sigma_next)
            if len(past) == 3:
                d_1, d_2 = differences(past, h)
                phi_2 = torch.expm1(-h) / h + 1
                x = x + phi_2 * d_1 - (phi_2 / h - 0.5) * d_2
            elif len(past) == 2:
                r = (past[0][0] - past[1][0]) / h
                x = x - torch.expm1(-h) * (D - past[1][1]) / (2 * r)
            x = flow.scaling.s(sigma_next) * x
        return x


VARIANTS = ('bh1', 'bh2')


@dataclass(frozen=True)
class UniPC:
    """x′ = D + (σ′/σ)(x − D) − B(h) Σ_k ρ_k (D_k − D)/r_k,  r_k = (λ_k − λ_i)/h,
    Σ_k ρ_k r_k^(n−1) = n! φ_{n+1}(−h)/B(h),  φ_1(z) = (e^z − 1)/z,  φ_{n+1}(z) = (φ_n(z) − 1/n!)/z

    The D_k are those of the last `order` − 1 steps in the predictor UniP. The corrector UniC
    repeats the step with the D of its end, which the next step needs in any case, as one more D_k,
    so that it costs nothing. φ are times −h here: B(h) = −h (bh1) or e^−h − 1 (bh2). (Zhao et al.
    2023, "UniPC", Eq. 8 to 11 and Algorithms 5 and 6, data prediction.) As there, ρ = ½ in the
    predictor of order 2 and in the corrector of order 1. The order is `order` without the corrector
    and, but for the start, one more with it. One evaluation per step.

    order    from 1 to 3; of fewer steps, as many as there are
    bh       B(h)
    correct  whether the corrector is used
    lower_order_final  whether a step has at most as high an order as there are steps left, itself
                       included
    """
    order: int = 3
    bh: str = 'bh2'
    correct: bool = True
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        one_of('bh', self.bh, VARIANTS)

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        sigmas, past = flow.schedule.sigma(times), Past()
        before: tuple[Tensor, Tensor] | None = None   # x and σ at the start of the last step
        for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            x, _ = perturb(i, x)
            if sigma_next == sigma:
                continue
            x = x / flow.scaling.s(sigma)
            here = -sigma.log(), flow.denoise(x, sigma)
            if before is not None and self.correct:
                x = self.step(*before, sigma, past, here)
            order = order_left(self.order, sigmas[i:], self.lower_order_final)
            past, before = [here, *past[:order - 1]], (x, sigma)
            x = flow.scaling.s(sigma_next) * self.step(x, sigma, sigma_next, past)
        return x

    def step(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, past: Past,
             end: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Take x from σ to σ′: UniP, or UniC with (λ, D) of the end of the step."""
        (start, D), h = past[0], (sigma / sigma_next).log()
        x = towards(x, D, sigma, sigma_next)
        others = past[1:] if end is None else [*past[1:], end]
        if not others:
            return x
        B = -h if self.bh == 'bh1' else torch.expm1(-h)
        r = torch.stack([(level - start) / h for level, _ in others])
        rho = self.weights(r, -h, B)
        for weight, ratio, (_, D_k) in zip(rho, r, others, strict=True):
            x = x - B * weight / ratio * (D_k - D)
        return x

    @staticmethod
    def weights(r: Tensor, z: Tensor, B: Tensor) -> Tensor:
        """ρ, so that the step is exact for polynomials D(λ) of the degree len(r)"""
        if len(r) == 1:
            return torch.full_like(r, 0.5)
        phi, right = torch.expm1(z) / z - 1, []
        for n in range(1, len(r) + 1):   # phi is z φ_{n+1}(z) n!, up to the factorial
            right.append(phi * math.factorial(n) / B)
            phi = phi / z - 1 / math.factorial(n + 1)
        powers = torch.arange(len(r), dtype=r.dtype)
        return torch.linalg.solve(r ** powers.reshape(-1, 1), torch.stack(right))
