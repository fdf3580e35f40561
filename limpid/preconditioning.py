"""Preconditioners: the rows c_skip, c_out, c_in and c_noise of Table 1, and v-prediction.

    D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))        (Eq. 7)

The network wrapper (limpid/denoiser.py) and the loss weighting (limpid/loss.py) read the same
object, so a coefficient cannot be changed in one and forgotten in the other. All functions work
elementwise; none of them moves data between devices in the hot path.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from limpid.levels import DiscreteSchedule, IDDPMLevels
from limpid.schedules import VPSchedule
from limpid.unit import Level


class Preconditioner(Protocol):
    """The four functions c_skip, c_out, c_in, c_noise of σ, each elementwise."""
    no_infinity: ClassVar[str]   # why such a network cannot work at σ = ∞; '' where it can

    def c_skip(self, sigma: Tensor) -> Tensor: ...
    def c_out(self, sigma: Tensor) -> Tensor: ...
    def c_in(self, sigma: Tensor) -> Tensor: ...
    def c_noise(self, sigma: Tensor) -> Tensor: ...

    def nearest(self, sigma: Tensor) -> Tensor:
        """Return the noise level that the network uses for sigma.

        It is sigma itself, unless the network has discrete levels only.
        """
        ...


def check_finite(sigma: Tensor | float, no_infinity: str) -> None:
    """Raise ValueError for σ = ∞ if `no_infinity` says why the network cannot work there.

    An empty `no_infinity` means that it can. Only noise levels on the CPU are checked.
    """
    if not no_infinity:
        return
    sigma = torch.as_tensor(sigma)
    # Checking others would mean waiting for their device.
    if sigma.device.type == 'cpu' and bool(sigma.isinf().any()):
        raise ValueError(f'this network cannot work at sigma = inf: {no_infinity}')


class NoisePrediction:
    """1,  −σ,  1/√(σ² + 1): F predicts the noise that was added, from x/√(σ² + 1)"""
    no_infinity: ClassVar[str] = (
        'it predicts the noise, which tells nothing of the image where there is only noise')

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

    def sigma_range(self, epsilon_t: float = 1e-5) -> tuple[float, float]:
        """Return σ(ε_t) and σ(1) in float64: the noise levels of the published networks."""
        ends = torch.tensor([epsilon_t, 1], dtype=torch.float64, device='cpu')
        low, high = self.schedule.sigma(ends).tolist()
        return low, high


@dataclass(frozen=True)
class VE:
    """1,  σ,  1,  ln(σ/2)"""
    no_infinity: ClassVar[str] = 'its input is the unscaled image, which is infinite there'

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

    `table` holds u_0 … u_M if the network brings its own (on its device, or from a published
    checkpoint); otherwise the levels are computed. The level u_M = 0 does not count as a noise
    level: the argmin runs over j ≤ M − 1, and σ = 0 stays 0.
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
        # float32 levels and float64 times are compared in float64.
        dtype = torch.promote_types(u.dtype, sigma.dtype)
        distance = (sigma.to(dtype).reshape(-1, 1) - u.to(dtype)).abs()
        return distance.argmin(dim=1).reshape(sigma.shape)

    def nearest(self, sigma: Tensor) -> Tensor:
        rounded = self.u(sigma)[self.index(sigma)].to(sigma.dtype)
        return torch.where(sigma == 0, sigma, rounded)

    def sigma_range(self) -> tuple[float, float]:
        """Return u_{M−1} and u_0 in float64, the lowest and the highest level of the network."""
        u = self.levels.u
        return u[self.levels.M - 1].item(), u[0].item()


@dataclass(frozen=True)
class EDM:
    """σ_data²/(σ² + σ_data²),  σ σ_data/√(σ_data² + σ²),  1/√(σ² + σ_data²),  ¼ ln σ

    In float32 they hold up to σ = 1.8e19, beyond which σ² overflows; V has no such limit.
    """
    no_infinity: ClassVar[str] = (
        'its c_noise, ln(sigma)/4, is infinite there; the v preconditioning with the same '
        'sigma_data is the same network with a finite c_noise')
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


NOISE_LABELS = ('timestep', 'angle', 'log')


@dataclass(frozen=True)
class V:
    """a²,  −b σ_data,  a/σ_data,  noise_label

    D = σ_data (a z − b F), where F predicts v = a ε − b y/σ_data, and a, b and z are those of the
    unit variable (limpid/unit.py) with d = σ_data. With σ_data = 1 this is Lin et al. 2023, Eq. 11
    and 19. With EDM's σ_data it is EDM's preconditioning with the sign of F reversed, but all of it
    stays finite at σ = ∞.

    noise_label  c_noise: 'timestep', the index t − 1 of the nearest level of `schedule` (nearest in
                 atan σ); 'angle', (2/π) φ in [0, 1]; or 'log', ¼ ln min(σ, cap)
    schedule     the timesteps for which the network was trained, if these were discrete
    cap          the σ at which 'log' stops rising. None stands for twice the highest finite level
                 of `schedule`, or without a schedule for 4096, which is ᾱ = 2⁻²⁴
    """
    no_infinity: ClassVar[str] = ''
    sigma_data: float = 1.0
    noise_label: str = 'angle'
    schedule: DiscreteSchedule | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.noise_label not in NOISE_LABELS:
            raise ValueError(f'noise_label must be one of {", ".join(NOISE_LABELS)}, not '
                             f'{self.noise_label!r}')
        if self.noise_label == 'timestep' and self.schedule is None:
            raise ValueError("noise_label='timestep' needs a schedule of discrete timesteps")
        if self.cap is None:   # replaced by the number that it stands for
            object.__setattr__(self, 'cap', self._default_cap())

    def _default_cap(self) -> float:
        if self.noise_label != 'log' or self.schedule is None:
            return 4096.0
        sigma = self.schedule.sigma
        return 2 * float(sigma[sigma.isfinite()][-1])

    def level(self, sigma: Tensor) -> Level:
        return Level.of_sigma(sigma, self.sigma_data)

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.level(sigma).a ** 2

    def c_out(self, sigma: Tensor) -> Tensor:
        return -self.sigma_data * self.level(sigma).b

    def c_in(self, sigma: Tensor) -> Tensor:
        return self.level(sigma).a / self.sigma_data

    def c_noise(self, sigma: Tensor) -> Tensor:
        if self.noise_label == 'timestep':
            return self.index(sigma).to(sigma.dtype)
        if self.noise_label == 'angle':
            return self.level(sigma).phi * (2 / math.pi)
        return sigma.clamp(max=self.cap).log() / 4

    def index(self, sigma: Tensor) -> Tensor:
        """Return the index t − 1 of the nearest timestep, int64, in the shape of sigma.

        A timestep with σ_t = ∞ is the nearest one for σ = ∞ only.
        """
        assert self.schedule is not None
        borders = _borders(self.schedule, sigma.device, sigma.dtype)
        return torch.bucketize(sigma.contiguous(), borders)

    def nearest(self, sigma: Tensor) -> Tensor:
        if self.noise_label != 'timestep' or self.schedule is None:
            return sigma
        rounded = self.schedule.sigma.to(sigma)[self.index(sigma)]
        return torch.where(sigma == 0, sigma, rounded)


@functools.lru_cache(maxsize=16)
def _borders(schedule: DiscreteSchedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the σ at which the nearest timestep changes, halfway in φ = atan σ: [T − 1]."""
    phi = Level.of_sigma(schedule.sigma).phi
    borders = ((phi[1:] + phi[:-1]) / 2).tan().to(dtype)
    if math.isinf(schedule.sigma[-1]):   # at every finite σ there is some signal left
        borders[-1:] = torch.finfo(dtype).max
    return borders.to(device)


def unit_scale(c: Preconditioner) -> float:
    """Return d of the unit variable that a preconditioned network takes: its σ_data, or else 1."""
    return float(getattr(c, 'sigma_data', 1.0))


def unit_coefficients(c: Preconditioner, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return c_skip h, c_out and c_in h,  h = √(σ² + d²), for networks that receive z = x/h.

    D = (c_skip h) z + c_out F((c_in h) z; c_noise), which is Eq. 7 with x = h z.
    """
    d = unit_scale(c)
    if hasattr(c, 'sigma_data'):
        return d * Level.of_sigma(sigma, d).a, c.c_out(sigma), torch.ones_like(sigma)
    h = torch.hypot(sigma, torch.full_like(sigma, d))
    return c.c_skip(sigma) * h, c.c_out(sigma), c.c_in(sigma) * h


PRECONDITIONERS: dict[str, type[Preconditioner]] = {
    'vp': VP,
    've': VE,
    'iddpm': IDDPM,
    'edm': EDM,
    'v': V,
}
