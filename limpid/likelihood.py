"""The likelihood of images under the probability flow of a network.

    log_p = log_likelihood(denoise, images, sigmas, rademacher(images, generator))

The network must not be inside a DistributedDataParallel.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from limpid.denoiser import Conditioned
from limpid.ideal import Gaussian
from limpid.per_image import row_sums
from limpid.pixels import working_precision
from limpid.seeds import StackedGenerator


class Prior(Protocol):
    """A density of images at the highest noise level."""
    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln p(x; σ_max) in nats, [B], for x on the CPU"""
        ...


def log_likelihood(denoise: Conditioned, images: Tensor, sigmas: Tensor, probes: Tensor,
                   prior: Prior = Gaussian(0.0, 0.0), sigma_data: float = 0.5,
                   progress: Callable[[int, int], None] | None = None) -> Tensor:
    """ln p(images; σ_min) under the probability flow of a network, in nats: [B] float64

        ln p(x(σ_min); σ_min) = ln p(x(σ_max); σ_max) + ∫ (n − tr ∂D/∂x) dln σ

    by the instantaneous change of variables, from dx/dln σ = x − D, with n = C H W. It is the
    density of images with noise of level σ_min, the lowest of `sigmas`. In the frame of a scaling
    s, subtract n ln s.

    images      [B, C, H, W] in [-1, 1]; 8-bit images should go through `dequantize` first
    sigmas      noise levels, falling; a 0 at the end is left out. Between two levels lies one
                Runge–Kutta step of fourth order: 4 (N − 1) evaluations, each with one backward pass
                per probe. The error is O(N^−4); doubling N shows its size. (For N(μ, 0.5²) on EDM's
                steps it is at most 1e-6 with N = 33.)
    probes      [P, B, C, H, W] of independent ±1 (`rademacher`), kept along the path. The mean of
                vᵀ(∂D/∂x)v estimates the trace (Hutchinson), without bias, and exactly where ∂D/∂x
                is diagonal
    prior       an object whose `log_prob(x, sigma)` is ln p(x; σ_max); the default is N(0, σ_max²)
    sigma_data  the scale of the frame where the equation is solved, z = x/√(σ² + σ_data²) over
                φ = atan(σ/σ_data), in which neither end of the noise range is stiff
    progress    called as progress(steps done, steps)

    The network should be in evaluation mode. Gradients are computed in x only; its parameters
    receive none.
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
    # float64 on any device
    at_the_top = prior.log_prob((z * radius_max).cpu(), levels[-1]).to(area)
    return at_the_top + n * math.log(radius_max / radius_min) + area


def _velocity_and_divergence(denoise: Conditioned, z: Tensor, phi: Tensor, d: float,
                             probes: Tensor) -> tuple[Tensor, Tensor]:
    """dz/dφ = (a z − D/d)/b  and its divergence  (a n − tr(∂D/∂x)/a)/b

    with a = cos φ, b = sin φ and x = z d/a
    """
    a, b = phi.cos(), phi.sin()
    with torch.enable_grad():
        x = (z * (d / a)).detach().requires_grad_()
        D = denoise(x, d * phi.tan())
        trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for k, v in enumerate(probes):
            jacobian_v, = torch.autograd.grad(D, x, v, retain_graph=k + 1 < len(probes))
            trace = trace + row_sums(v * jacobian_v) / len(probes)
    return (a * z - D.detach() / d) / b, (a * z[0].numel() - trace / a) / b


def _runge_kutta(slope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], z: Tensor, start: Tensor,
                 end: Tensor) -> tuple[Tensor, Tensor]:
    """Take one classical fourth-order step in (z, area); return the new z and the area gained."""
    h, middle = end - start, (start + end) / 2
    k1, l1 = slope(z, start)
    k2, l2 = slope(z + h / 2 * k1, middle)
    k3, l3 = slope(z + h / 2 * k2, middle)
    k4, l4 = slope(z + h * k3, end)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)


def rademacher(images: Tensor, generator: StackedGenerator, count: int = 1) -> Tensor:
    """Draw `count` probes of independent ±1 for each image: [count, B, C, H, W] float32.

    Each image has its own generator.
    """
    draws = [generator.randint(2, list(images.shape)) for _ in range(count)]
    return torch.stack(draws).to(torch.float32) * 2 - 1


def dequantize(images: Tensor, generator: StackedGenerator) -> Tensor:
    """(k + u)/127.5 − 1,  u ~ U(−½, ½): uint8 k [B, C, H, W] -> float64

    This turns the 256 levels into a density. Raises ValueError for images that are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f'the images to dequantize must be uint8, not {images.dtype}')
    return (working_precision(images) + working_precision(generator.rand(list(images.shape)))
            - 0.5) / 127.5 - 1


def bits_per_dim(log_p: Tensor, num_elements: int) -> Tensor:
    """−log_2 p / n + log_2 127.5: nats of dequantised images in [-1, 1] -> bits per 8-bit value

    `num_elements` is n = C H W, and one unit holds 127.5 levels. A mean over draws of the
    dequantisation noise is an upper bound on the code length of the 8-bit image.
    """
    return -log_p / (num_elements * math.log(2)) + math.log2(127.5)
