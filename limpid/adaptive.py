"""Samplers that choose their own steps.

Of the noise levels given, only the highest and the lowest count. Each image has its own time, step
and error, so that it comes out the same in any batch. The network is no longer evaluated for images
that have arrived at the lowest noise level. The host waits for the device once per step, to learn
which images these are.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from limpid.checks import one_of, positive
from limpid.denoiser import Conditioned
from limpid.flow import ProbabilityFlow
from limpid.per_image import sum_squares
from limpid.samplers import RandnLike
from limpid.schedules import (
    LinearSchedule,
    NoScaling,
    Scaling,
    Schedule,
    VPScaling,
    first_sample,
    vp_through,
)
from limpid.sde import GeneralSDE


class PerImage(Conditioned):
    """A conditioned network at a noise level for each image, for the images `rows` of its batch.

    The levels are [B, 1, 1, 1], or [1, 1, 1, 1] for all images at once.
    """

    def __init__(self, denoise: Conditioned, rows: Tensor | None = None) -> None:
        labels = denoise.class_labels
        self.part = denoise
        if rows is not None and isinstance(labels, Tensor) and len(labels) > 1:
            self.part = copy.copy(denoise)
            self.part.class_labels = labels[rows.to(labels.device)]
        super().__init__(denoise.net, self.part.class_labels)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.part(x, sigma.flatten().expand(len(x)))


class Journey:
    """The images of a batch that are still on their way, the results of the others, and their
    cost."""

    def __init__(self, batch_size: int) -> None:
        self.travelling = list(range(batch_size))   # rows of the batch
        self.evaluations = [0] * batch_size
        self.results: tuple[Tensor, ...] = ()

    def count(self, evaluations: int) -> None:
        """Add this number of evaluations to each image that is still on its way."""
        for row in self.travelling:
            self.evaluations[row] += evaluations

    def arrive(self, there: list[bool], results: tuple[Tensor, ...]) -> Tensor:
        """Keep the `results` of the images that are `there`.

        Returns the indices of the other images among those that were on their way.
        """
        device, batch_size = results[0].device, len(self.evaluations)
        if not self.results:
            self.results = tuple(v.new_empty([batch_size, *v.shape[1:]]) for v in results)
        gone = [k for k, done in enumerate(there) if done]
        left = [k for k, done in enumerate(there) if not done]
        rows = torch.tensor([self.travelling[k] for k in gone], device=device)
        for kept, values in zip(self.results, results, strict=True):
            kept[rows] = values[torch.tensor(gone, device=device)]
        self.travelling = [self.travelling[k] for k in left]
        return torch.tensor(left, dtype=torch.int64, device=device)


def reached(end: float, t: Tensor, stuck: Tensor, solver: str) -> list[bool]:
    """Return for each image whether it has reached `end`. This waits for the device.

    Raises ValueError when a step is smaller than the rounding of the time.
    """
    status = torch.where(t > end, 1 + stuck.to(torch.int8), 0).flatten().tolist()
    if 2 in status:
        raise ValueError(f'{solver}: an image needs steps below the rounding of its time; the '
                         f'denoiser is not finite there, or the tolerance is too small')
    return [state == 0 for state in status]


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for x >= 0, with the same bits at every place in a batch

    `torch.pow` may round the last few elements of a tensor differently from the others.
    """
    return (exponent * x.log()).exp()


# Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", Table 2.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    # fifth order: where the next step starts
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# the weights of the fifth order minus those of the fourth
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """Σ_j w_j k_j"""
    total = weights[0] * stages[0]
    for w, k in zip(weights[1:], stages[1:], strict=True):
        if w != 0:
            total = total + w * k
    return total


@dataclass(frozen=True)
class RK45:
    """The probability flow (Eq. 4) by the Runge–Kutta pair 5(4) of Dormand & Prince

    An Euler step to σ = 0 follows at the end. A step is accepted if
    RMS(error / (atol + rtol max(|x_i|, |x_{i+1}|))) < 1. The sizes of the first step and of each
    next one follow Hairer, Nørsett & Wanner 1993, Section II.4, with the constants of SciPy's
    solve_ivp, so that one image takes the steps that solve_ivp would take. (The dashed curves of
    Figure 2.) Evaluations of the network: 2, and 6 per step, rejected ones included; the Euler step
    reuses the last velocity. Any time steps may be given, since only the highest and the lowest
    noise level count.

    original  whether the whole batch is one system with one step and one error, as in previous
              work; an image then depends on the other images of its batch
    """
    rtol: float = 1e-5
    atol: float = 1e-5
    original: bool = False
    schedule: Schedule = LinearSchedule()
    scaling: Scaling = NoScaling()

    def __post_init__(self) -> None:
        positive('rtol', self.rtol)
        positive('atol', self.atol)

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor, randn_like: RandnLike,
                 nfe: list[int] | None = None) -> Tensor:
        """Draw images as any sampler does; `nfe` receives the evaluations of each image."""
        start, end = self.schedule.sigma_inv(sigmas[[0, -2]]).tolist()
        x = first_sample(noise, sigmas[0], self.scaling)
        x, velocity, evaluations = self.integrate(denoise, x, start, end)
        if nfe is not None:
            nfe[:] = evaluations
        return x - end * velocity

    def integrate(self, denoise: Conditioned, x: Tensor, start: float,
                  end: float) -> tuple[Tensor, Tensor, list[int]]:
        """Follow the flow from x at time `start` to the earlier time `end` > 0.

        Returns x, dx/dt and the evaluations of each image.
        """
        flow, journey = self.flow(denoise), Journey(len(x))
        t = x.new_full([1 if self.original else len(x), 1, 1, 1], start)
        f = flow.velocity(x, t)
        if start == end:
            return x, f, [1] * len(x)
        h = self.first_step(flow, x, f, t, end)
        journey.count(2)
        rejected = torch.zeros_like(t, dtype=torch.bool)
        while journey.travelling:
            t_next = torch.where(t - h <= end, end, t - h)
            x_next, f_next, error = self.step(flow, x, f, t, t_next)
            journey.count(6)
            accepted = error < 1
            # A step changes by these factors at most; an error of nan counts as a large one.
            factor = (0.9 * power(error, -0.2)).nan_to_num(nan=0.2).clamp(0.2, 10)
            h = (t - t_next) * torch.where(rejected, factor.clamp(max=1), factor)
            smallest = 10 * torch.finfo(t.dtype).eps * t
            stuck = ~accepted & ~(h >= smallest)
            h = torch.where(accepted, h.maximum(smallest), h)
            x, f, t = (torch.where(accepted, new, old)
                       for new, old in ((x_next, x), (f_next, f), (t_next, t)))
            rejected = ~accepted
            there = reached(end, t, stuck, f'RK45 with rtol={self.rtol:g}, atol={self.atol:g}')
            if self.original:
                there = there * len(x)
            if any(there):
                left = journey.arrive(there, (x, f))
                if len(left):
                    x, f, t, h, rejected = (v[left] for v in (x, f, t, h, rejected))
                    flow = self.flow(denoise, torch.tensor(journey.travelling))
        return *journey.results, journey.evaluations  # type: ignore[return-value]

    def flow(self, denoise: Conditioned, rows: Tensor | None = None) -> ProbabilityFlow:
        return ProbabilityFlow(PerImage(denoise, rows), self.schedule, self.scaling)

    def norm(self, v: Tensor) -> Tensor:
        """Return the root mean square of each image [B, 1, 1, 1] or of the batch [1, 1, 1, 1]."""
        mean_square = sum_squares(v) / v[0].numel()
        return (mean_square.mean(dim=0, keepdim=True) if self.original else mean_square).sqrt()

    def step(self, flow: ProbabilityFlow, x: Tensor, f: Tensor, t: Tensor,
             t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (x, f) at t to (x, f) at t_next; return also the error in units of the tolerance."""
        h = t_next - t
        stages, x_stage = [f], x
        for node, weights in zip(NODES, STAGES, strict=True):
            x_stage = x + h * combine(weights, stages)
            stages.append(flow.velocity(x_stage, t_next if node == 1 else t + node * h))
        scale = self.atol + self.rtol * x.abs().maximum(x_stage.abs())
        return x_stage, stages[-1], self.norm(h * combine(ERROR, stages) / scale)

    def first_step(self, flow: ProbabilityFlow, x: Tensor, f: Tensor, t: Tensor,
                   end: float) -> Tensor:
        """Return h > 0 at which Euler's error is about a hundredth of the tolerance."""
        whole = t - end
        scale = self.atol + self.rtol * x.abs()
        d0, d1 = self.norm(x / scale), self.norm(f / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum(whole)
        d2 = self.norm((flow.velocity(x - h0 * f, t - h0) - f) / scale) / h0
        steepest = d1.maximum(d2)
        h1 = torch.where(steepest <= 1e-15, 1e-6, power(0.01 / steepest, 0.2))
        return (100 * h0).minimum(h1).minimum(whole)


class _LogSchedule:
    """σ(t) = exp t

    This is Song's VE schedule σ_min (σ_max/σ_min)^t except for the unit and the origin of time.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return t.exp()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return sigma.log()

    def sigma_dot(self, t: Tensor) -> Tensor:
        return t.exp()


@dataclass(frozen=True)
class AdaptiveSDE:
    """The reverse SDE of VP or VE by pairs of Euler–Maruyama steps, each image with its own steps

        x̃ = x + K_1,  K_1 = −h a(x, t) + √h g(t) z,  K_2 = −h a(x̃, t − h) + √h g(t − h) z
        x <- x + (K_1 + K_2)/2  if  Q = RMS((K_2 − K_1)/2 / tolerance) <= 1
        tolerance = max(eps_abs, eps_rel max(|x̃|, |x̃ of the step before|))
        h <- min(t − t_end, theta h Q^−exponent)

    (Jolicoeur-Martineau et al. 2021, Algorithm 1; a and g are drift and diffusion of GeneralSDE
    with β = σ̇/σ.) At the lowest noise level x is denoised. Evaluations of the network: 2 per step
    that was tried, and 1 at the end. Any time steps may be given, since only the highest and the
    lowest noise level count.

    sde      'vp', in the scaled frame from N(0, I), or 've', in which σ falls geometrically with
             time
    eps_abs  the absolute tolerance; 2/256 is one level of 8 bits
    h_init   the first step, as a fraction of the whole time
    """
    eps_rel: float = 0.02
    eps_abs: float = 2 / 256
    theta: float = 0.9
    exponent: float = 0.9
    h_init: float = 0.01
    sde: str = 'vp'

    def __post_init__(self) -> None:
        one_of('sde', self.sde, ('vp', 've'))
        for name in ('eps_rel', 'eps_abs', 'theta', 'exponent', 'h_init'):
            positive(name, getattr(self, name))

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor, randn_like: RandnLike,
                 nfe: list[int] | None = None) -> Tensor:
        """Draw images as any sampler does; `nfe` receives the evaluations of each image."""
        sde = GeneralSDE(vp_through(sigmas),
                         VPScaling()) if self.sde == 'vp' else GeneralSDE(_LogSchedule())
        journey = Journey(len(noise))
        x = noise if self.sde == 'vp' else noise * sigmas[0]
        if sigmas[0] > sigmas[-2]:
            start, end = sde.schedule.sigma_inv(sigmas[[0, -2]]).tolist()
            x = self.integrate(sde, denoise, x, start, end, randn_like, journey)
        s = sde.scaling.s(sigmas[-2])
        if nfe is not None:
            nfe[:] = [evaluations + 1 for evaluations in journey.evaluations]
        return denoise(x / s, sigmas[-2])

    def integrate(self, sde: GeneralSDE, denoise: Conditioned, x: Tensor, start: float, end: float,
                  randn_like: RandnLike, journey: Journey) -> Tensor:
        """Follow the reverse SDE from x at time `start` to the earlier time `end`."""
        batch, part = x, PerImage(denoise)
        t = x.new_full([len(x), 1, 1, 1], start)
        h, x_tilde = self.h_init * (t - end), x
        smallest = 10 * torch.finfo(t.dtype).eps * max(abs(start), abs(end))
        rows = torch.arange(len(x), device=x.device)   # rows of the images on their way
        while journey.travelling:
            z = randn_like(batch)[rows]
            t_next = torch.where(t - h <= end, end, t - h)
            h = t - t_next
            k1 = h.sqrt() * sde.diffusion(t) * z - h * sde.drift(part, x, t)
            k2 = h.sqrt() * sde.diffusion(t_next) * z - h * sde.drift(part, x + k1, t_next)
            journey.count(2)
            tolerance = (self.eps_rel
                         * (x + k1).abs().maximum(x_tilde.abs())).clamp(min=self.eps_abs)
            Q = (sum_squares((k2 - k1) / 2 / tolerance) / x[0].numel()).sqrt()
            accepted = Q <= 1
            x_tilde = torch.where(accepted, x + k1, x_tilde)
            x, t = torch.where(accepted, x + (k1 + k2) / 2, x), torch.where(accepted, t_next, t)
            # A step that would go beyond the end is shortened above.
            h = self.theta * h * power(Q, -self.exponent)
            there = reached(end, t, ~(h >= smallest), f'AdaptiveSDE with eps_rel={self.eps_rel:g}')
            if any(there):
                left = journey.arrive(there, (x,))
                x, x_tilde, t, h, rows = (v[left] for v in (x, x_tilde, t, h, rows))
                part = PerImage(denoise, rows)
        return journey.results[0]


ADAPTIVE = {'rk45': RK45, 'adaptive': AdaptiveSDE}
