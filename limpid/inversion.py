"""The probability flow in both directions: images to latents, and paths between latents.

    denoise = Conditioned(net, class_labels)
    sigmas = denoise.levels(EDMSteps(), num_steps=128)
    latents = encode(denoise, images, sigmas)
    images_again = decode(denoise, latents, sigmas)

An image is taken to be x at the lowest noise level σ_min: the flow cannot start at σ = 0, where its
velocity is 0/0. Nothing here draws random numbers or communicates, and no image depends on its
batch.
"""

import torch
from torch import Tensor

from limpid.denoiser import Conditioned
from limpid.flow import ProbabilityFlow, Solver
from limpid.per_image import row_sums
from limpid.pixels import working_precision
from limpid.samplers import FlowSampler
from limpid.sampling import run
from limpid.schedules import LinearSchedule, NoScaling, Scaling, Schedule, first_sample
from limpid.solvers import SecondOrder


@torch.no_grad()
def encode(denoise: Conditioned, images: Tensor, sigmas: Tensor, solver: Solver = SecondOrder(),
           schedule: Schedule = LinearSchedule(), scaling: Scaling = NoScaling()) -> Tensor:
    """Return the latents from which the flow comes to `images`: x(σ_max)/(σ_max s(σ_max)).

    images  [B, C, H, W] in [-1, 1], taken to be x/s at σ_min
    sigmas  noise levels as for `decode`, falling; a 0 at the end is left out. Evaluations of the
            network: 2N − 2 with Heun

    The latents have about unit variance, and are float64 on the device of the images. With a solver
    of order p, decode(encode(images)) is off by O(N^−p), if it stops at σ_min as well.
    """
    rising = sigmas[sigmas > 0].flip(0)
    x = working_precision(images) * scaling.s(rising[0])
    x = _advance(denoise, x, rising, solver, schedule, scaling)
    return x / (rising[-1] * scaling.s(rising[-1]))


@torch.no_grad()
def decode(denoise: Conditioned, latents: Tensor, sigmas: Tensor, solver: Solver = SecondOrder(),
           schedule: Schedule = LinearSchedule(), scaling: Scaling = NoScaling(),
           to_zero: bool = True) -> Tensor:
    """Run the deterministic sampler (Algorithm 1) from `latents` of unit variance to images.

    Without `to_zero` it stops one step earlier, at σ_min, where `encode` starts. The last step, to
    σ = 0, moves the image to D(x; σ_min). Encoding does not undo this, however small its steps are.
    """
    if to_zero:
        return run(FlowSampler(solver, schedule, scaling), denoise, latents, sigmas)
    falling = sigmas[sigmas > 0]
    x = first_sample(working_precision(latents), falling[0], scaling)
    return _advance(denoise, x, falling, solver, schedule, scaling) / scaling.s(falling[-1])


def _advance(denoise: Conditioned, x: Tensor, sigmas: Tensor, solver: Solver, schedule: Schedule,
             scaling: Scaling) -> Tensor:
    """Follow the flow from x at sigmas[0] to sigmas[-1], upwards or downwards."""
    times = schedule.sigma_inv(sigmas)
    return solver(ProbabilityFlow(denoise, schedule, scaling), x, times, lambda i, x: (x, times[i]))


def interpolate(z1: Tensor, z2: Tensor, frames: int) -> Tensor:
    """(sin((1−λ)θ) z1 + sin(λθ) z2)/sin θ,  θ = ∠(z1, z2),  λ = 0 … 1

    This is the spherical interpolation of latents z1, z2 [B, C, H, W] -> [frames, B, C, H, W], each
    pair along an arc of its own; the ends are z1 and z2. Latents in the same or in opposite
    directions have no arc (sin θ < 1e-6) and are joined by a straight line. Raises ValueError for
    fewer than 2 frames.
    """
    if frames < 2:
        raise ValueError(f'an interpolation has at least 2 frames, its ends, not {frames}')
    z1, z2 = working_precision(z1), working_precision(z2)
    cos = row_sums(z1 * z2) / (row_sums(z1**2) * row_sums(z2**2)).sqrt()
    theta = cos.clamp(-1, 1).acos()
    arc = theta.sin() >= 1e-6   # False for a latent of zeros too, whose cos is nan
    lambdas = torch.arange(frames, dtype=z1.dtype, device=z1.device)[:, None] / (frames - 1)
    first = torch.where(arc, ((1 - lambdas) * theta).sin() / theta.sin(), 1 - lambdas)
    second = torch.where(arc, (lambdas * theta).sin() / theta.sin(), lambdas)
    shape = [frames, len(z1), *[1] * (z1.ndim - 1)]
    return first.reshape(shape) * z1 + second.reshape(shape) * z2


