"""The paper's samplers: Algorithms 1 and 2 for any schedule and scaling, and one in the angle φ.

A sampler takes noise through falling noise levels that end in 0. The levels are float64 on the CPU
and images are float64 on their device, so that no comparison of two times ever waits for a GPU.
(Apple's MPS has no float64: images are float32 there.) The levels may start at ∞ for samplers that
work in the unit variable (limpid/unit.py): those with `from_infinity`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from limpid.checks import one_of
from limpid.denoiser import Conditioned
from limpid.flow import Perturb, ProbabilityFlow, Solver
from limpid.schedules import LinearSchedule, NoScaling, Scaling, Schedule, first_sample
from limpid.solvers import EXPONENTIAL, MULTISTEP, SecondOrder
from limpid.unit import Level

RandnLike = Callable[[Tensor], Tensor]


class Sampler(Protocol):
    """A sampler: any function with these arguments.

    One that works in the unit variable, and so can start at σ = ∞, has the attribute
    `from_infinity` = True; for all others the noise levels must be finite.
    """

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        """Take noise [B, C, H, W] of unit variance through the noise levels `sigmas` [N + 1].

        Returns images in the precision of `noise`; fresh noise comes from `randn_like`.
        """
        ...


@dataclass(frozen=True)
class Churn:
    """The amount of fresh noise that is added before each step (Algorithm 2, lines 4 to 6).

    S_churn       the amount; 0 is deterministic
    S_min, S_max  the lowest and the highest noise level at which it is added, both included: the
                  paper's S_tmin and S_tmax
    S_noise       its standard deviation, relative to the one that the noise levels require
    """
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (('S_churn', self.S_churn), ('S_noise', self.S_noise)):
            if not math.isfinite(value):
                raise ValueError(f'{name} must be a finite number, not {value:g}')
        for name, value in (('S_min', self.S_min), ('S_max', self.S_max)):
            if math.isnan(value):
                raise ValueError(f'{name} must be a number, not {value:g}')

    def gamma(self, sigma: float, num_steps: int) -> float:
        """γ_i = min(S_churn/N, √2 − 1) for S_min ≤ σ_i ≤ S_max, else 0"""
        inside = self.S_min <= sigma <= self.S_max
        return min(self.S_churn / num_steps, math.sqrt(2) - 1) if inside else 0.0

    def raised(self, denoise: Conditioned, sigmas: Tensor) -> Tensor:
        """σ̂_i = (1 + γ_i) σ_i for the noise levels [N + 1]        (Algorithm 2, line 5)

        For a network with discrete levels they are rounded to the nearest ones.
        """
        if self.S_churn == 0:
            return sigmas
        gammas = torch.tensor([self.gamma(sigma, len(sigmas) - 1) for sigma in sigmas.tolist()],
                              dtype=sigmas.dtype)
        # All levels are rounded at once, since those of a network are on its device.
        return denoise.nearest(sigmas * (1 + gammas))


FINALS = ('denoise', 'sigma-min')


class FirstIsMean:
    """D whose first answer is the mean of the data, without an evaluation of the network."""

    def __init__(self, denoise: Conditioned, mean: float) -> None:
        self.denoise, self.mean, self.first = denoise, mean, True

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.first:
            self.first = False
            return torch.full_like(x, self.mean)
        return self.denoise(x, sigma)


@dataclass(frozen=True)
class FlowSampler:
    """The paper's sampler: a solver of the probability flow, with fresh noise before each step.

    This is Algorithm 2, for any schedule and any scaling. Without churn it is Algorithm 1, or
    Algorithm 3 with another alpha of SecondOrder. The solver takes all steps except the last one,
    to t = 0. That is an Euler step, or D itself after an exponential integrator. Evaluations of the
    network: N with Euler, 2N − 1 with Heun. Raises ValueError for churn with a multistep solver.

    final  'denoise' takes the last step; 'sigma-min' stops at σ_{N−1} and returns x/s with the
           noise that is there. That is N − 1 steps and an evaluation less
    afs    the mean of the data, which then stands for the first D, at σ_0, and saves its evaluation
           (the analytical first step of Dockhorn et al. 2022, "GENIE"); None: the network is asked
    """
    solver: Solver = SecondOrder()
    schedule: Schedule = LinearSchedule()
    scaling: Scaling = NoScaling()
    churn: Churn = Churn()
    final: str = 'denoise'
    afs: float | None = None

    def __post_init__(self) -> None:
        one_of('final', self.final, FINALS)
        if self.afs is not None and not math.isfinite(self.afs):
            raise ValueError(f'afs is the mean of the data and must be finite, not {self.afs:g}')

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        if self.afs is not None and len(sigmas) < 3:
            raise ValueError('afs replaces the first evaluation of two steps or more')
        if self.churn.S_churn > 0 and isinstance(self.solver, MULTISTEP):
            raise ValueError(f'S_churn={self.churn.S_churn:g}: a multistep solver cannot take '
                             f'fresh noise between its steps; use euler or heun')
        asked = denoise if self.afs is None else FirstIsMean(denoise, self.afs)
        flow = ProbabilityFlow(asked, self.schedule, self.scaling)
        times = self.schedule.sigma_inv(sigmas[:-1])
        sigma_hats = self.churn.raised(denoise, sigmas)
        perturb = self._perturbation(flow, times, sigmas, sigma_hats, randn_like)
        x = self.solver(flow, first_sample(noise, sigmas[0], self.scaling), times, perturb)
        if self.final == 'sigma-min':
            return x / self.scaling.s(sigmas[-2])
        x, t = perturb(len(times) - 1, x)
        if isinstance(self.solver, EXPONENTIAL):
            return flow.denoised(x, t)
        return x - t * flow.velocity(x, t)

    def _perturbation(self, flow: ProbabilityFlow, times: Tensor, sigmas: Tensor,
                      sigma_hats: Tensor, randn_like: RandnLike) -> Perturb:
        """Return Algorithm 2, lines 4 to 6, as a function of the step."""
        if self.churn.S_churn == 0:
            return lambda i, x: (x, times[i])

        def perturb(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
            # Noise is drawn at every step, so that later draws do not depend on S_min and S_max.
            xi = randn_like(x)
            sigma, sigma_hat = sigmas[i], sigma_hats[i]
            if sigma_hat <= sigma:
                return x, times[i]
            t_hat = self.schedule.sigma_inv(sigma_hat)
            if not t_hat.isfinite():
                raise ValueError(f'S_churn={self.churn.S_churn:g} raises the noise level '
                                 f'{float(sigma):g} beyond what the schedule reaches; lower S_max '
                                 f'or use another schedule')
            x_hat = flow.add_noise(x, sigma, sigma_hat, self.churn.S_noise * xi)
            return x_hat, t_hat

        return perturb


RULES = ('heun', 'rotation')


@dataclass(frozen=True)
class Angle:
    """dz/dφ = v = (a z − D/d)/b: the probability flow of the unit variable z over φ = atan(σ/d)

    It is finite even at φ = π/2, σ = ∞, where no second-order method in σ can start. It is
    Algorithm 1 for σ = d tan t and s = cos(t)/d, with the network's d. Both rules are of second
    order, with h = φ_{i+1} − φ_i and v′ at z′:
      heun       z′ = z + h v,                z_{i+1} = z + h (v + v′)/2
      rotation   z′ = cos(h) z + sin(h) v,    z_{i+1} = z + tan(h/2) (v + v′)
    The second rule is exact where D and the noise stay the same, and its predictor is DDIM. The
    last step is only a rotation, to D. x_0 ~ N(0, σ_0² I). Evaluations of the network: 2N − 1.
    Noise is added before each step as in Algorithm 2, except at σ = ∞.
    """
    from_infinity: ClassVar[bool] = True
    rule: str = 'heun'
    churn: Churn = Churn()

    def __post_init__(self) -> None:
        one_of('rule', self.rule, RULES)

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        d = denoise.unit_scale
        z = noise * Level.of_sigma(sigmas[0], d).b
        for sigma, sigma_hat, sigma_next in zip(sigmas, self.churn.raised(denoise, sigmas),
                                                sigmas[1:], strict=False):
            if self.churn.S_churn > 0:
                xi = randn_like(z)   # drawn at every step, as FlowSampler does
                if sigma_hat > sigma:
                    z, sigma = self.add_noise(z, sigma, sigma_hat, d, xi), sigma_hat
            if sigma_next == sigma:
                continue
            D = denoise.unit(z, sigma)
            if sigma_next == 0:
                return D
            level, following = Level.of_sigma(sigma, d), Level.of_sigma(sigma_next, d)
            h, v = following.phi - level.phi, level.velocity(z, D)
            predicted = z + h * v if self.rule == 'heun' else h.cos() * z + h.sin() * v
            v_next = following.velocity(predicted, denoise.unit(predicted, sigma_next))
            z = z + (h / 2 if self.rule == 'heun' else (h / 2).tan()) * (v + v_next)
        return d * z

    def add_noise(self, z: Tensor, sigma: Tensor, sigma_hat: Tensor, d: float,
                  noise: Tensor) -> Tensor:
        """ẑ = (â/a) z + √(b̂² − (b â/a)²) S_noise ξ

        This moves z up from a finite σ to the higher level σ̂.
        """
        level, raised = Level.of_sigma(sigma, d), Level.of_sigma(sigma_hat, d)
        share = raised.a / level.a
        return share * z + (raised.b**2 - (share * level.b) ** 2).clamp(min=0).sqrt() * (
            self.churn.S_noise * noise
        )


ANGLE: dict[str, Callable[[], Sampler]] = {'angle': Angle}
