"""The unit variable, in which every noise level is finite, σ = ∞ included.

    z = x/√(σ² + d²) = a y/d + b ε,   a = d/√(σ² + d²),   b = σ/√(σ² + d²),   a² + b² = 1

for an image y, noise ε ~ N(0, I) and a scale d, the standard deviation of the data. At σ = ∞, the
zero signal-to-noise ratio of Lin et al. 2023 ("Common Diffusion Noise Schedules and Sample Steps
are Flawed"), z = ε. Everything works elementwise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """A noise level as the pair (a, b), a point on the quarter circle; d is the scale of the data.

    `of_sigma` makes it from σ, and `of_snr`, `of_alpha_bar` and `of_phi` from other quantities.
    """
    a: Tensor
    b: Tensor
    d: float = 1.0

    @classmethod
    def of_sigma(cls, sigma: Tensor, d: float = 1.0) -> 'Level':
        """Take σ in [0, ∞]; a = 0 and b = 1 exactly at ∞, a = 1 and b = 0 at 0."""
        high = sigma > d
        r = torch.where(high, d / sigma, sigma / d)   # at most 1: no square overflows
        large = (1 + r**2).rsqrt()
        small = r * large
        return cls(torch.where(high, small, large), torch.where(high, large, small), d)

    @classmethod
    def of_snr(cls, snr: Tensor, d: float = 1.0) -> 'Level':
        """Take the signal-to-noise ratio (a/b)² of y/d, in [0, ∞], so that σ = d/√SNR."""
        return cls.of_sigma(d * snr.rsqrt(), d)

    @classmethod
    def of_alpha_bar(cls, alpha_bar: Tensor, d: float = 1.0) -> 'Level':
        """Take ᾱ = a² in [0, 1]: z = √ᾱ y/d + √(1 − ᾱ) ε        (Lin et al. 2023, Eq. 4)"""
        return cls(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), d)

    @classmethod
    def of_phi(cls, phi: Tensor, d: float = 1.0) -> 'Level':
        """Take φ in [0, π/2]: a = cos φ and b = sin φ, where a is exactly 0 if φ is π/2 rounded."""
        quarter = torch.full_like(phi, math.pi / 2)
        return cls(torch.where(phi > quarter / 2, (quarter - phi).sin(), phi.cos()), phi.sin(), d)

    @property
    def sigma(self) -> Tensor:
        """σ = d b/a"""
        return self.d * self.b / self.a

    @property
    def snr(self) -> Tensor:
        """(a/b)²"""
        return (self.a / self.b) ** 2

    @property
    def alpha_bar(self) -> Tensor:
        """a²"""
        return self.a**2

    @property
    def phi(self) -> Tensor:
        """φ = atan2(b, a), from 0 at σ = 0 to π/2 at σ = ∞"""
        return torch.atan2(self.b, self.a)

    def velocity(self, z: Tensor, D: Tensor) -> Tensor:
        """v = a ε − b y/d = (a z − D/d)/b  for the image D; b > 0      (Lin et al. 2023, Eq. 11)"""
        return (self.a * z - D / self.d) / self.b

    def denoised(self, z: Tensor, v: Tensor) -> Tensor:
        """D = d (a z − b v)        (Lin et al. 2023, Eq. 19)"""
        return self.d * (self.a * z - self.b * v)

    def noise(self, z: Tensor, v: Tensor) -> Tensor:
        """ε = b z + a v        (Lin et al. 2023, Eq. 17)"""
        return self.b * z + self.a * v


def change_of_scale(sigma: Tensor, d: float, d_new: float) -> Tensor:
    """√(σ² + d²)/√(σ² + d_new²)

    This factor converts the unit variable of scale d to that of d_new; it is 1 at σ = ∞.
    """
    high = sigma > 1
    # Neither exceeds 1, so no square overflows.
    share, inverse = torch.where(high, 1.0, sigma), torch.where(high, 1 / sigma, 1.0)
    return torch.hypot(share, d * inverse) / torch.hypot(share, d_new * inverse)
