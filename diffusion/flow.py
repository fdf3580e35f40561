"""The probability flow run backwards: images to latents, paths between latents, and likelihoods.

    denoise = Denoise(net, class_labels)
    sigmas = denoise.levels(EDMSteps(), num_steps=128)
    latents = encode(denoise, images, sigmas)
    images_again = decode(denoise, latents, sigmas)
    log_p = log_likelihood(denoise, images, sigmas, rademacher(images, generator))

An image is taken for x at the lowest noise level σ_min: the flow has no beginning at σ = 0, where its velocity
is 0/0. Nothing here draws random numbers by itself, communicates, or lets an image depend on its batch. A network
must come as it is, without a DistributedDataParallel around it.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffusion.ideal import Gaussian, per_image_sum
from diffusion.samplers import Denoise, ProbabilityFlow, RowsOfTable1, SecondOrder, Solver, run, working_precision
from diffusion.schedules import LinearSchedule, NoScaling, Scaling, Schedule
from torch_utils.random import StackedGenerator


@torch.no_grad()
def encode(denoise: Denoise, images: Tensor, sigmas: Tensor, solver: Solver = SecondOrder(),
           schedule: Schedule = LinearSchedule(), scaling: Scaling = NoScaling()) -> Tensor:
    """The latents from which the flow comes to `images`: x(σ_max)/(σ_max s(σ_max)), about unit variance.

    images  [B, C, H, W] in [-1, 1], taken for x/s at σ_min.
    sigmas  noise levels as for `decode`, falling; a 0 at the end is left out. Evaluations: 2N − 2 with Heun.

    Of the solver's order p: decode(encode(images)) is off by O(N^−p), if it stops at σ_min as well. float64 on
    the device of the images.
    """
    rising = sigmas[sigmas > 0].flip(0)
    x = working_precision(images) * scaling.s(rising[0])
    x = _advance(denoise, x, rising, solver, schedule, scaling)
    return x / (rising[-1] * scaling.s(rising[-1]))


@torch.no_grad()
def decode(denoise: Denoise, latents: Tensor, sigmas: Tensor, solver: Solver = SecondOrder(),
           schedule: Schedule = LinearSchedule(), scaling: Scaling = NoScaling(), to_zero: bool = True) -> Tensor:
    """The deterministic sampler (Algorithm 1), from `latents` of unit variance to images.

    Without `to_zero` it stops at σ_min, one step before, where `encode` starts: the last step, to σ = 0, takes the
    image on to D(x; σ_min), and is what a round trip differs by however small its steps are.
    """
    if to_zero:
        return run(RowsOfTable1(solver, schedule, scaling), denoise, latents, sigmas)
    falling = sigmas[sigmas > 0]
    x = working_precision(latents) * (falling[0] * scaling.s(falling[0]))
    return _advance(denoise, x, falling, solver, schedule, scaling) / scaling.s(falling[-1])


def _advance(denoise: Denoise, x: Tensor, sigmas: Tensor, solver: Solver, schedule: Schedule,
             scaling: Scaling) -> Tensor:
    """Follow the flow from x at sigmas[0] to sigmas[-1], upwards or downwards, and no further.

    A solver ends with a plain step to t = 0. It is given one, from which it starts where we want to
    arrive, and the network is spared its evaluation.
    """
    arrived: list[Tensor] = []
    times = torch.nn.functional.pad(schedule.sigma_inv(sigmas), (0, 1))

    def look(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        if i == len(sigmas) - 1:
            arrived.append(x)
        return x, times[i]

    def until_then(x: Tensor, sigma: Tensor) -> Tensor:
        return x if arrived else denoise(x, sigma)

    solver(ProbabilityFlow(until_then, schedule, scaling), x, times, look)   # type: ignore[arg-type]
    return arrived[0]


def interpolate(z1: Tensor, z2: Tensor, frames: int) -> Tensor:
    """(sin((1−λ)θ) z1 + sin(λθ) z2)/sin θ,  θ = ∠(z1, z2),  λ = 0 … 1: spherical interpolation of latents

    z1, z2 [B, C, H, W] -> [frames, B, C, H, W], each pair along an arc of its own; the ends are z1 and z2. Latents
    in the same or in opposite directions have no arc (sin θ < 1e-6): these are joined by a straight line.
    """
    if frames < 2:
        raise ValueError(f'an interpolation has at least 2 frames, its ends, not {frames}')
    z1, z2 = working_precision(z1), working_precision(z2)
    cos = per_image_sum(z1 * z2) / (per_image_sum(z1**2) * per_image_sum(z2**2)).sqrt()
    theta = cos.clamp(-1, 1).acos()
    arc = theta.sin() >= 1e-6   # not so for a latent of zeros either, whose cos is nan
    lambdas = torch.arange(frames, dtype=z1.dtype, device=z1.device)[:, None] / (frames - 1)
    first = torch.where(arc, ((1 - lambdas) * theta).sin() / theta.sin(), 1 - lambdas)
    second = torch.where(arc, (lambdas * theta).sin() / theta.sin(), lambdas)
    shape = [frames, len(z1), *[1] * (z1.ndim - 1)]
    return first.reshape(shape) * z1 + second.reshape(shape) * z2


class Prior(Protocol):
    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln p(x; σ_max) in nats, [B], of x on the CPU"""
        ...


def log_likelihood(denoise: Denoise, images: Tensor, sigmas: Tensor, probes: Tensor, prior: Prior = Gaussian(0.0, 0.0),
                   sigma_data: float = 0.5, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """ln p(images; σ_min) under the probability flow of a network, in nats: [B] float64

        ln p(x(σ_min); σ_min) = ln p(x(σ_max); σ_max) + ∫ (n − tr ∂D/∂x) dln σ        from dx/dln σ = x − D

    (the instantaneous change of variables; n = C H W). It is the density of images with noise of σ_min, the
    lowest of `sigmas`, about them; in the frame of a scaling s subtract n ln s.

    images      [B, C, H, W] in [-1, 1]; 8-bit images should go through `dequantize` first.
    sigmas      noise levels, falling; a 0 at the end is left out. Between two levels lies one Runge–Kutta step of
                fourth order: 4 (N − 1) evaluations, each with one backward pass per probe. The error is
                O(N^−4); to know it, double N. (N(μ, 0.5²) on EDM's steps with N = 33: 1e-6 and less.)
    probes      [P, B, C, H, W] of independent ±1 (`rademacher`), kept along the path: the trace is estimated by
                the mean of vᵀ(∂D/∂x)v (Hutchinson), without bias, and exactly where ∂D/∂x is diagonal.
    prior       whose `log_prob(x, sigma)` is ln p(x; σ_max): N(0, σ_max²) unless given.
    sigma_data  enters only in the frame where the equation is solved, z = x/√(σ² + σ_data²) over
                φ = atan(σ/σ_data), in which neither end of the noise range is stiff.
    progress    called as progress(steps done, steps).

    The network runs in evaluation mode with gradients in x; its parameters get none.
    """
    d = sigma_data
    levels = sigmas[sigmas > 0].flip(0)
    phis = (levels / d).atan()
    probes = working_precision(probes)
    z = working_precision(images) / math.hypot(float(levels[0]), d)
    area = torch.zeros(len(z), dtype=z.dtype, device=z.device)   # ∫ div dφ

    def slope(z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        return _velocity_and_divergence(denoise, z, phi, d, probes)

    for i in range(len(phis) - 1):
        z, gained = _runge_kutta(slope, z, phis[i], phis[i + 1])
        area = area + gained
        if progress is not None:
            progress(i + 1, len(phis) - 1)
    n = images[0].numel()
    radius_min, radius_max = (math.hypot(float(level), d) for level in (levels[0], levels[-1]))
    at_the_top = prior.log_prob((z * radius_max).cpu(), levels[-1]).to(area)   # float64 on any device
    return at_the_top + n * math.log(radius_max / radius_min) + area


def _velocity_and_divergence(denoise: Denoise, z: Tensor, phi: Tensor, d: float,
                             probes: Tensor) -> tuple[Tensor, Tensor]:
    """dz/dφ = (a z − D/d)/b  and its divergence  (a n − tr(∂D/∂x)/a)/b,  a = cos φ, b = sin φ, x = z d/a"""
    a, b = phi.cos(), phi.sin()
    with torch.enable_grad():
        x = (z * (d / a)).detach().requires_grad_()
        D = denoise(x, d * phi.tan())
        trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for k, v in enumerate(probes):
            jacobian_v, = torch.autograd.grad(D, x, v, retain_graph=k + 1 < len(probes))
            trace = trace + per_image_sum(v * jacobian_v) / len(probes)
    return (a * z - D.detach() / d) / b, (a * z[0].numel() - trace / a) / b


def _runge_kutta(slope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], z: Tensor, start: Tensor,
                 end: Tensor) -> tuple[Tensor, Tensor]:
    """One classical step of fourth order in (z, area): the new z and the area gained."""
    h, middle = end - start, (start + end) / 2
    k1, l1 = slope(z, start)
    k2, l2 = slope(z + h / 2 * k1, middle)
    k3, l3 = slope(z + h / 2 * k2, middle)
    k4, l4 = slope(z + h * k3, end)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)


def rademacher(images: Tensor, generator: StackedGenerator, count: int = 1) -> Tensor:
    """`count` probes of independent ±1 for each image, from its own generator: [count, B, C, H, W] float32"""
    draws = [generator.randint(2, list(images.shape)) for _ in range(count)]
    return torch.stack(draws).to(torch.float32) * 2 - 1


def dequantize(images: Tensor, generator: StackedGenerator) -> Tensor:
    """uint8 k [B, C, H, W] -> (k + u)/127.5 − 1 in float64, u ~ U(−½, ½): a density where there were 256 levels"""
    if images.dtype != torch.uint8:
        raise ValueError(f'the images to dequantize must be uint8, not {images.dtype}')
    return (working_precision(images) + working_precision(generator.rand(list(images.shape))) - 0.5) / 127.5 - 1


def bits_per_dim(log_p: Tensor, num_elements: int) -> Tensor:
    """−log_2 p / n + log_2 127.5: nats of dequantised images in [-1, 1] -> bits per 8-bit value

    `num_elements` is n = C H W; there are 127.5 levels to a unit. A mean over draws of the dequantisation
    is an upper bound on the code length of the 8-bit image.
    """
    return -log_p / (num_elements * math.log(2)) + math.log2(127.5)
