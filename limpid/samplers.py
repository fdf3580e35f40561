"""Samplers: Algorithms 1 and 2 of the paper, for any schedule and any scaling.

    images = sample(D, torch.randn(4, 3, 32, 32))

Times are 0-d float64 tensors on the CPU and images are float64 on their device, so that no
comparison of two times ever waits for a GPU. (Apple's MPS has no float64: images are float32
there.) Noise levels fall and end in 0. They may start at ∞ for samplers that work in the unit
variable (diffusion/unit.py): those with `from_infinity`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from limpid.denoiser import Conditioned
from limpid.schedules import LinearSchedule, NoScaling, Scaling, Schedule
from limpid.solvers import MULTISTEP, SOLVERS, ProbabilityFlow, SecondOrder, Solver
from limpid.steps import Discretization, EDMSteps
from limpid.unit import Level

RandnLike = Callable[[Tensor], Tensor]


class Sampler(Protocol):
    """Its attribute `from_infinity` is optional: absent, the noise levels must be finite."""

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        """noise [B, C, H, W] of unit variance -> images, through the noise levels `sigmas` [N +
        1]."""
        ...


@dataclass(frozen=True)
class Churn:
    """How much fresh noise is added before each step (Algorithm 2, lines 4 to 6)."""
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (('S_churn', self.S_churn), ('S_noise', self.S_noise)):
            if not math.isfinite(value):
                raise ValueError(f'{name} must be a finite number, not {value:g}')

    def gamma(self, sigma: float, num_steps: int) -> float:
        """γ_i = min(S_churn/N, √2 − 1) for S_min ≤ σ_i ≤ S_max, else 0"""
        inside = self.S_min <= sigma <= self.S_max
        return min(self.S_churn / num_steps, math.sqrt(2) - 1) if inside else 0.0

    def raised(self, denoise: Conditioned, sigmas: Tensor) -> Tensor:
        """σ̂_i = (1 + γ_i) σ_i for the noise levels [N + 1], as the network takes them
        (Algorithm 2, line 5)"""
        if self.S_churn == 0:
            return sigmas
        gammas = torch.tensor([self.gamma(sigma, len(sigmas) - 1) for sigma in sigmas.tolist()],
                              dtype=sigmas.dtype)
        # all at once: a network's levels are on its device
        return denoise.nearest(sigmas * (1 + gammas))


def times_of(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """t_i = σ⁻¹(σ_i) of the noise levels [N + 1], and t_N = 0

    The last time is 0 by definition, even where σ⁻¹(0) is not (a VP schedule with β_min < 0).
    """
    return torch.nn.functional.pad(schedule.sigma_inv(sigmas[:-1]), (0, 1))


@dataclass(frozen=True)
class FlowSampler:
    """The paper's sampler: a solver for the probability flow, with noise added before each step.

    Algorithm 2, generalised to any schedule and scaling (Algorithm 3 with churn). Without churn it
    is Algorithm 1. Evaluations of the network: N with Euler, 2N − 1 with Heun.
    """
    solver: Solver = SecondOrder()
    schedule: Schedule = LinearSchedule()
    scaling: Scaling = NoScaling()
    churn: Churn = Churn()

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        if self.churn.S_churn > 0 and isinstance(self.solver, MULTISTEP):
            raise ValueError(f'S_churn={self.churn.S_churn:g}: a multistep solver cannot take '
                             f'fresh noise between its steps; use euler or heun')
        flow = ProbabilityFlow(denoise, self.schedule, self.scaling)
        times = times_of(self.schedule, sigmas)
        sigma_hats = self.churn.raised(denoise, sigmas)

        def perturb(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
            if self.churn.S_churn == 0:
                return x, times[i]
            # drawn at every step, so that later steps do not depend on S_min and S_max
            xi = randn_like(x)
            sigma, sigma_hat = sigmas[i], sigma_hats[i]
            if sigma_hat <= sigma:
                return x, times[i]
            return flow.add_noise(x, sigma, sigma_hat,
                                  self.churn.S_noise * xi), self.schedule.sigma_inv(sigma_hat)

        return self.solver(flow, flow.start(noise, sigmas[0]), times, perturb)


RULES = ('heun', 'rotation')


@dataclass(frozen=True)
class Angle:
    """dz/dφ = v = (a z − D/d)/b: the probability flow of the unit variable z over the angle φ =
    atan(σ/d)

    Finite from φ = π/2, σ = ∞, where no second-order method in σ can start. It is Algorithm 1 for σ
    = d tan t and s = cos(t)/d, with the network's d. Both rules are of second order, with h =
    φ_{i+1} − φ_i and v′ at z′:
      heun       z′ = z + h v,                z_{i+1} = z + h (v + v′)/2
      rotation   z′ = cos(h) z + sin(h) v,    z_{i+1} = z + tan(h/2) (v + v′)
    The second is exact where D and the noise stay the same, and its predictor is DDIM. The last
    step is a rotation alone, to D. x_0 ~ N(0, σ_0² I). NFE: 2N − 1. Noise is added before each step
    as in Algorithm 2, not at σ = ∞.
    """
    from_infinity: ClassVar[bool] = True
    rule: str = 'heun'
    churn: Churn = Churn()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f'rule must be one of {", ".join(RULES)}, not {self.rule!r}')

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
        """ẑ = (â/a) z + √(b̂² − (b â/a)²) S_noise ξ: up from a finite σ to the noisier σ̂."""
        level, raised = Level.of_sigma(sigma, d), Level.of_sigma(sigma_hat, d)
        share = raised.a / level.a
        return share * z + (raised.b**2
                            - (share * level.b) ** 2).clamp(min=0).sqrt() * (self.churn.S_noise
                                                                             * noise)


def working_precision(noise: Tensor) -> Tensor:
    """`noise` in the precision in which samplers work on its device."""
    return noise.to(torch.float32 if noise.device.type == 'mps' else torch.float64)


@torch.no_grad()
def sample(
    net: Callable[..., Tensor],
    noise: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    solver: Solver = SecondOrder(),
    discretization: Discretization = EDMSteps(),
    schedule: Schedule = LinearSchedule(),
    scaling: Scaling = NoScaling(),
    churn: Churn = Churn(),
    randn_like: RandnLike = torch.randn_like,
) -> Tensor:
    """Draw one image per row of `noise`. Every keyword is one row of Table 1.

    net           D(x, sigma, class_labels) -> denoised x, and optionally sigma_min, sigma_max and
                  round_sigma (absent: 0, infinity, the identity).
    noise         [B, C, H, W], standard normal.
    class_labels  [B, label_dim], or whatever the network takes.
    randn_like    where the noise of stochastic steps comes from.

    Returns images [B, C, H, W] in [-1, 1] (up to the network's errors), float64 on the device of
    `noise`. Raises ValueError for fewer than one step and for an empty range of noise levels.
    """
    denoise = Conditioned(net, class_labels)
    sampler = FlowSampler(solver, schedule, scaling, churn)
    return run(sampler, denoise, noise, denoise.levels(discretization, num_steps), randn_like)


def check_start(sampler: Sampler, sigma_max: float) -> None:
    """ValueError where a sampler cannot start at the noise level sigma_max."""
    if math.isinf(sigma_max) and not getattr(sampler, 'from_infinity', False):
        kind = type(getattr(sampler, 'solver', sampler))
        name = next((name for name, solver in SOLVERS.items() if solver is kind), kind.__name__)
        raise ValueError(f'{name} cannot start at sigma = inf, where x is infinite: use time steps '
                         f'that start at a finite noise level, such as with --sigma_max=80, or, in '
                         f'generate.py and fid.py, --sampler=ddim, ancestral or angle')


@torch.no_grad()
def run(sampler: Sampler, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
        randn_like: RandnLike = torch.randn_like) -> Tensor:
    """Apply any sampler to `noise` [B, C, H, W] through the noise levels `sigmas` [N + 1].

    Raises ValueError for levels that start at ∞ where the sampler cannot.
    """
    check_start(sampler, float(sigmas[0]))
    return sampler(denoise, working_precision(noise), sigmas, randn_like)


ANGLE = {'angle': Angle}
