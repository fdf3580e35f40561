"""Samplers: Algorithms 1 and 2 of the paper, for any schedule and any scaling.

    images = sample(D, torch.randn(4, 3, 32, 32))

Times are 0-d float64 tensors on the CPU and images are float64 on their device, so that no
comparison of two times ever waits for a GPU. (Apple's MPS has no float64: images are float32 there.)
Noise levels fall and end in 0. They may start at ∞ for samplers that work in the unit variable (diffusion/unit.py):
those with `from_infinity`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from diffusion.discretization import Discretization, EDMSteps
from diffusion.preconditioning import check_finite
from diffusion.schedules import LinearSchedule, NoScaling, Scaling, Schedule
from diffusion.unit import Level

RandnLike = Callable[[Tensor], Tensor]


class Denoise:
    """D(x; σ) with the labels bound, and what a sampler may ask of a network.

    `net(x, sigma, class_labels)` returns D for x [B, C, H, W] and sigma [] or [B]. Its attributes
    `sigma_min`, `sigma_max` and `round_sigma` are optional: absent, they mean 0, ∞ and the identity.
    A network with the attribute `unit_scale`, d, also takes `net(z, sigma, class_labels, unit=True)` with the unit
    variable z = x/√(σ² + d²) for σ up to ∞, which `finite_because` may forbid: a reason, or ''.
    With `sigma_from_cpu` it takes a single sigma on the CPU.
    """

    def __init__(self, net: Callable[..., Tensor], class_labels: Tensor | None = None) -> None:
        self.net = net
        self.class_labels = class_labels
        self.sigma_min = float(getattr(net, 'sigma_min', 0.0))
        self.sigma_max = float(getattr(net, 'sigma_max', math.inf))
        self.takes_unit = hasattr(net, 'unit_scale')
        self.unit_scale = float(getattr(net, 'unit_scale', 1.0))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x and the result in the sampler's precision; sigma [] on the CPU, or [B] beside x."""
        return self.net(x, self.beside(sigma, x), self.class_labels).to(x.dtype)

    def unit(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D(x; σ) of x = z √(σ² + d²), d = `unit_scale`, for σ up to ∞; sigma [] on the CPU.

        ValueError at σ = ∞ for networks that do not offer it.
        """
        self.check(sigma)
        if self.takes_unit:
            return self.net(z, self.beside(sigma, z), self.class_labels, unit=True).to(z.dtype)
        return self(z * torch.hypot(sigma, torch.full_like(sigma, self.unit_scale)), sigma)

    def check(self, sigma: Tensor) -> None:
        """ValueError at σ = ∞ for networks that cannot work there."""
        unknown = '' if self.takes_unit else 'it does not take the unit variable'
        check_finite(sigma, getattr(self.net, 'finite_because', '') or unknown)

    def beside(self, sigma: Tensor, x: Tensor) -> Tensor:
        """sigma where the network takes it: on the device of x, unless it says otherwise."""
        if sigma.device == x.device or getattr(self.net, 'sigma_from_cpu', False):
            return sigma
        # Filled in by a kernel: a copy would wait for the device.
        return torch.full([], float(sigma), dtype=x.dtype, device=x.device)

    def nearest(self, sigma: Tensor) -> Tensor:
        """The noise levels the network takes sigma for, on the CPU."""
        round_sigma = getattr(self.net, 'round_sigma', None)
        return sigma if round_sigma is None else round_sigma(sigma).to(sigma)

    def levels(self, discretization: Discretization, num_steps: int) -> Tensor:
        """σ_0 ≥ … ≥ σ_{N−1} of the discretization that this network supports, then σ_N = 0: [N + 1]."""
        sigmas = self.nearest(discretization.sigmas(num_steps, self.sigma_min, self.sigma_max))
        return torch.nn.functional.pad(sigmas, (0, 1))


class Sampler(Protocol):
    """Its attribute `from_infinity` is optional: absent, the noise levels must be finite."""

    def __call__(self, denoise: Denoise, noise: Tensor, sigmas: Tensor, randn_like: RandnLike) -> Tensor:
        """noise [B, C, H, W] of unit variance -> images, through the noise levels `sigmas` [N + 1]."""
        ...


@dataclass(frozen=True)
class ProbabilityFlow:
    """The ODE that carries noise to images (Eq. 4), with the score written through D (Eq. 3)."""
    denoise: Denoise
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
Solver = Callable[[ProbabilityFlow, Tensor, Tensor, Perturb], Tensor]   # (flow, x, times [N+1], perturb) -> image


@dataclass(frozen=True)
class Euler:
    """x_{i+1} = x̂ + h d: first order, one evaluation per step (Algorithm 1 without lines 6 to 8)."""

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor, perturb: Perturb) -> Tensor:
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            x = x + (t_next - t) * flow.velocity(x, t)
        return x


@dataclass(frozen=True)
class SecondOrder:
    """x_{i+1} = x̂ + h [(1 − 1/(2α)) d + 1/(2α) d′],  d′ at x̂ + α h d        (Algorithm 3)

    α = 1 is Heun's method (Algorithm 1), ½ the midpoint rule, ⅔ Ralston's method. The last step, and
    any whose second point would fall at or below t = 0, is an Euler step: the ODE is singular there.
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

    The flow solved exactly for a D̄ that is extrapolated linearly in ln σ from the step before; r is the
    ratio of that step to this one in ln σ. Second order, one evaluation per step. The first step and the
    one to σ = 0 take D̄ = D_i. (Lu et al. 2022, Algorithm 2; the schedule drops out, since only σ enters.)
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

    The weights integrate the polynomial through the last `order` velocities over the step. The first
    `order` − 1 steps are Heun's, so that nothing is lost at the start; the last is Euler's. One
    evaluation per step and one more for each Heun step: N + order − 1.
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
                x = x + h * sum(w * velocity for w, (_, velocity) in zip(weights, history, strict=True))
        return x

    @staticmethod
    def weights(nodes: list[float]) -> list[float]:
        """w with Σ_j w_j p(nodes_j) = ∫_0^1 p for every polynomial p of degree below len(nodes)."""
        powers = torch.arange(len(nodes), dtype=torch.float64)
        vandermonde = torch.tensor(nodes, dtype=torch.float64) ** powers.reshape(-1, 1)
        return torch.linalg.solve(vandermonde, 1 / (powers + 1)).tolist()


MULTISTEP = (Multistep2M, Adams)   # they remember earlier steps, which fresh noise would make untrue


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

    def raised(self, denoise: Denoise, sigmas: Tensor) -> Tensor:
        """σ̂_i = (1 + γ_i) σ_i for the noise levels [N + 1], as the network takes them        (Algorithm 2, line 5)"""
        if self.S_churn == 0:
            return sigmas
        gammas = torch.tensor([self.gamma(sigma, len(sigmas) - 1) for sigma in sigmas.tolist()], dtype=sigmas.dtype)
        return denoise.nearest(sigmas * (1 + gammas))   # all at once: a network's levels are on its device


def times_of(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """t_i = σ⁻¹(σ_i) of the noise levels [N + 1], and t_N = 0

    The last time is 0 by definition, even where σ⁻¹(0) is not (a VP schedule with β_min < 0).
    """
    return torch.nn.functional.pad(schedule.sigma_inv(sigmas[:-1]), (0, 1))


@dataclass(frozen=True)
class RowsOfTable1:
    """The paper's sampler: a solver for the probability flow, with noise added before each step.

    Algorithm 2, generalised to any schedule and scaling (Algorithm 3 with churn). Without churn it
    is Algorithm 1. Evaluations of the network: N with Euler, 2N − 1 with Heun.
    """
    solver: Solver = SecondOrder()
    schedule: Schedule = LinearSchedule()
    scaling: Scaling = NoScaling()
    churn: Churn = Churn()

    def __call__(self, denoise: Denoise, noise: Tensor, sigmas: Tensor, randn_like: RandnLike) -> Tensor:
        if self.churn.S_churn > 0 and isinstance(self.solver, MULTISTEP):
            raise ValueError(f'S_churn={self.churn.S_churn:g}: a multistep solver cannot take fresh noise between '
                             'its steps; use euler or heun')
        flow = ProbabilityFlow(denoise, self.schedule, self.scaling)
        times = times_of(self.schedule, sigmas)
        sigma_hats = self.churn.raised(denoise, sigmas)

        def perturb(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
            if self.churn.S_churn == 0:
                return x, times[i]
            xi = randn_like(x)   # drawn at every step, so that later steps do not depend on S_min and S_max
            sigma, sigma_hat = sigmas[i], sigma_hats[i]
            if sigma_hat <= sigma:
                return x, times[i]
            return flow.add_noise(x, sigma, sigma_hat, self.churn.S_noise * xi), self.schedule.sigma_inv(sigma_hat)

        return self.solver(flow, flow.start(noise, sigmas[0]), times, perturb)


RULES = ('heun', 'rotation')


@dataclass(frozen=True)
class Angle:
    """dz/dφ = v = (a z − D/d)/b: the probability flow of the unit variable z over the angle φ = atan(σ/d)

    Finite from φ = π/2, σ = ∞, where no second-order method in σ can start. It is Algorithm 1 for σ = d tan t and
    s = cos(t)/d, with the network's d. Both rules are of second order, with h = φ_{i+1} − φ_i and v′ at z′:
      heun       z′ = z + h v,                z_{i+1} = z + h (v + v′)/2
      rotation   z′ = cos(h) z + sin(h) v,    z_{i+1} = z + tan(h/2) (v + v′)
    The second is exact where D and the noise stay the same, and its predictor is DDIM. The last step is a rotation
    alone, to D. x_0 ~ N(0, σ_0² I). NFE: 2N − 1. Noise is added before each step as in Algorithm 2, not at σ = ∞.
    """
    from_infinity: ClassVar[bool] = True
    rule: str = 'heun'
    churn: Churn = Churn()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f'rule must be one of {", ".join(RULES)}, not {self.rule!r}')

    def __call__(self, denoise: Denoise, noise: Tensor, sigmas: Tensor, randn_like: RandnLike) -> Tensor:
        d = denoise.unit_scale
        z = noise * Level.of_sigma(sigmas[0], d).b
        for sigma, sigma_hat, sigma_next in zip(sigmas, self.churn.raised(denoise, sigmas), sigmas[1:], strict=False):
            if self.churn.S_churn > 0:
                xi = randn_like(z)   # drawn at every step, as RowsOfTable1 does
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

    def add_noise(self, z: Tensor, sigma: Tensor, sigma_hat: Tensor, d: float, noise: Tensor) -> Tensor:
        """ẑ = (â/a) z + √(b̂² − (b â/a)²) S_noise ξ: up from a finite σ to the noisier σ̂."""
        level, raised = Level.of_sigma(sigma, d), Level.of_sigma(sigma_hat, d)
        share = raised.a / level.a
        return share * z + (raised.b**2 - (share * level.b) ** 2).clamp(min=0).sqrt() * (self.churn.S_noise * noise)


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
    denoise = Denoise(net, class_labels)
    sampler = RowsOfTable1(solver, schedule, scaling, churn)
    return run(sampler, denoise, noise, denoise.levels(discretization, num_steps), randn_like)


def check_start(sampler: Sampler, sigma_max: float) -> None:
    """ValueError where a sampler cannot start at the noise level sigma_max."""
    if math.isinf(sigma_max) and not getattr(sampler, 'from_infinity', False):
        kind = type(getattr(sampler, 'solver', sampler))
        name = next((name for name, solver in SOLVERS.items() if solver is kind), kind.__name__)
        raise ValueError(f'{name} cannot start at sigma = inf, where x is infinite: use time steps that start at a '
                         'finite noise level, such as with --sigma_max=80, or, in generate.py and fid.py, '
                         '--sampler=ddim, ancestral or angle')


@torch.no_grad()
def run(sampler: Sampler, denoise: Denoise, noise: Tensor, sigmas: Tensor,
        randn_like: RandnLike = torch.randn_like) -> Tensor:
    """Apply any sampler to `noise` [B, C, H, W] through the noise levels `sigmas` [N + 1].

    Raises ValueError for levels that start at ∞ where the sampler cannot.
    """
    check_start(sampler, float(sigmas[0]))
    return sampler(denoise, working_precision(noise), sigmas, randn_like)


def from_uint8(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """k/127.5 − 1: uint8 -> [-1, 1]"""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """clip(127.5 x + 128, 0, 255), truncated: [-1, 1] -> uint8"""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


SOLVERS: dict[str, Any] = {'euler': Euler, 'heun': SecondOrder, 'dpmpp-2m': Multistep2M, 'adams': Adams}
ANGLE = {'angle': Angle}
