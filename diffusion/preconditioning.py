"""Preconditioners: the rows c_skip, c_out, c_in and c_noise of Table 1.

    D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))        (Eq. 7)

The network wrapper (training/networks.py) and the loss weighting (training/loss.py) read the same
object, so a coefficient cannot be changed in one and forgotten in the other. All functions work
elementwise; none of them moves data between devices.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from diffusion.schedules import IDDPMLevels, VPSchedule


class Preconditioner(Protocol):
    def c_skip(self, sigma: Tensor) -> Tensor: ...
    def c_out(self, sigma: Tensor) -> Tensor: ...
    def c_in(self, sigma: Tensor) -> Tensor: ...
    def c_noise(self, sigma: Tensor) -> Tensor: ...

    def nearest(self, sigma: Tensor) -> Tensor:
        """The noise level that the network will take sigma for: the identity unless levels are discrete."""
        ...


class NoisePrediction:
    """1,  −σ,  1/√(σ² + 1): F predicts the noise that was added, from x/√(σ² + 1)"""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + 1).rsqrt()


@dataclass(frozen=True)
class VP(NoisePrediction):
    """1,  −σ,  1/√(σ² + 1),  (M − 1) σ⁻¹(σ)"""
    schedule: VPSchedule = VPSchedule()
    M: int = 1000

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (self.M - 1) * self.schedule.sigma_inv(sigma)

    def nearest(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class VE:
    """1,  σ,  1,  ln(σ/2)"""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (0.5 * sigma).log()

    def nearest(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class IDDPM(NoisePrediction):
    """1,  −σ,  1/√(σ² + 1),  M − 1 − argmin_j |u_j − σ|

    `table` holds u_0 … u_M where the network brings its own (on its device, or from a published
    checkpoint); otherwise the levels are computed. The level u_M = 0 is no noise level: the argmin
    runs over j ≤ M − 1, and σ = 0 stays 0.
    """
    levels: IDDPMLevels = IDDPMLevels()
    table: Tensor | None = field(default=None, compare=False, repr=False)

    def u(self, like: Tensor) -> Tensor:
        return (self.levels.u if self.table is None else self.table).to(like.device)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.levels.M - 1 - self.index(sigma).to(sigma.dtype)

    def index(self, sigma: Tensor) -> Tensor:
        """argmin_j |u_j − σ| over 0 ≤ j < M, int64, in the shape of sigma."""
        u = self.u(sigma)[:self.levels.M]
        dtype = torch.promote_types(u.dtype, sigma.dtype)   # float32 levels meet float64 times in float64
        return (sigma.to(dtype).reshape(-1, 1) - u.to(dtype)).abs().argmin(dim=1).reshape(sigma.shape)

    def nearest(self, sigma: Tensor) -> Tensor:
        rounded = self.u(sigma)[self.index(sigma)].to(sigma.dtype)
        return torch.where(sigma == 0, sigma, rounded)


@dataclass(frozen=True)
class EDM:
    """σ_data²/(σ² + σ_data²),  σ σ_data/√(σ_data² + σ²),  1/√(σ² + σ_data²),  ¼ ln σ"""
    sigma_data: float = 0.5

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * (self.sigma_data**2 + sigma**2).rsqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def nearest(self, sigma: Tensor) -> Tensor:
        return sigma


PRECONDITIONERS = {'vp': VP, 've': VE, 'iddpm': IDDPM, 'edm': EDM}
