"""Training: the rows "Noise distribution" and "Loss weighting" of Table 1, and the loss in v.

    E_{σ, y, n} [ λ(σ) ‖D(y + n; σ) − y‖² ],   n ~ N(0, σ² I)        (Eq. 2, Section 5)

A noise distribution is its quantile function u -> σ, so that uniform, stratified or antithetic u
can be used with any of them. A weighting is any function of σ. Either goes with any preconditioner.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from limpid.earlier import posterior_variances
from limpid.levels import DiscreteSchedule, IDDPMLevels, ScaledLinearBetas
from limpid.preconditioning import EDM, Preconditioner, V
from limpid.schedules import VESchedule, VPSchedule
from limpid.unit import Level


class NoiseDistribution(Protocol):
    def quantile(self, u: Tensor) -> Tensor:
        """u ~ U(0, 1), float64 -> σ ~ p_train. Its two ends are the range the network is trained
        for."""
        ...


@dataclass(frozen=True)
class UniformTime:
    """σ⁻¹(σ) ~ U(ε_t, 1)"""
    schedule: VPSchedule = VPSchedule()
    epsilon_t: float = 1e-5

    def quantile(self, u: Tensor) -> Tensor:
        return self.schedule.sigma(self.epsilon_t + u * (1 - self.epsilon_t))


@dataclass(frozen=True)
class LogUniform:
    """ln σ ~ U(ln σ_min, ln σ_max)"""
    schedule: VESchedule = VESchedule()

    def quantile(self, u: Tensor) -> Tensor:
        return self.schedule.sigma_min * torch.pow(self.schedule.sigma_max
                                                   / self.schedule.sigma_min, u)


@dataclass(frozen=True)
class UniformLevel:
    """σ = u_j,  j ~ U{0, M−1}"""
    levels: IDDPMLevels = IDDPMLevels()

    def quantile(self, u: Tensor) -> Tensor:
        j = ((1 - u) * self.levels.M).long().clamp(0, self.levels.M - 1)   # u_j falls as j grows
        return self.levels.u.to(u.device)[j]


@dataclass(frozen=True)
class UniformTimestep:
    """σ = σ_t,  t ~ U{1, T}, the last with σ = ∞ where the schedule has zero terminal SNR  (Lin et
    al. 2023)"""
    schedule: DiscreteSchedule = ScaledLinearBetas()

    def quantile(self, u: Tensor) -> Tensor:
        sigma = self.schedule.sigma.to(u.device)
        return sigma[(u * len(sigma)).long().clamp(0, len(sigma) - 1)]


@dataclass(frozen=True)
class LogNormal:
    """ln σ ~ N(P_mean, P_std²)"""
    P_mean: float = -1.2
    P_std: float = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        return (self.P_mean + self.P_std * torch.special.ndtri(u)).exp()


def sigma_range(distribution: NoiseDistribution) -> tuple[float, float]:
    """The lowest and the highest noise level that a network trained with `distribution` sees."""
    low, high = distribution.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return low, high


Weighting = Callable[[Tensor], Tensor]   # λ(σ)


@dataclass(frozen=True)
class InverseVariance:
    """λ(σ) = 1/σ²"""

    def __call__(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


@dataclass(frozen=True)
class InverseCOut:
    """λ(σ) = 1/c_out(σ)², which makes the effective weight of Eq. 8 equal to one.

    For EDM's preconditioner this is (σ² + σ_data²)/(σ σ_data)², the last cell of Table 1's row.
    """
    precond: Preconditioner = EDM()

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.precond.c_out(sigma).square().reciprocal()


# The noise distribution and the weighting of each column; a weighting is made for a preconditioner.
NOISE_DISTRIBUTIONS: dict[str, Any] = {'vp': UniformTime, 've': LogUniform, 'iddpm': UniformLevel,
                                       'edm': LogNormal,
                                        'timestep': UniformTimestep}
WEIGHTINGS: dict[str, Callable[[Preconditioner], Weighting]] = {
    'inverse-variance': lambda precond: InverseVariance(),
    'inverse-c-out': InverseCOut,
}


def _beside(y: Tensor, values: Tensor) -> Tensor:
    """float64 values from the CPU in the precision and on the device of y."""
    return values.to(y.dtype).to(y.device, non_blocking=y.device.type == 'cuda')


@dataclass(frozen=True)
class DenoisingLoss:
    """λ(σ) (D(y + σ ε; σ) − y)², elementwise; randomness comes from outside."""
    noise_distribution: NoiseDistribution
    weighting: Weighting

    def __call__(self, net: Callable[..., Tensor], y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Any) -> Tensor:  # noqa: ANN401
        """y, noise [B, C, H, W]; u [B] in (0, 1), float64 on the CPU -> [B, C, H, W], to be summed
        over C, H, W."""
        sigma = _beside(y, self.noise_distribution.quantile(u)).reshape(-1, 1, 1, 1)
        denoised = net(y + sigma * noise, sigma, class_labels, **conditions)
        return self.weighting(sigma) * (denoised - y) ** 2


@dataclass(frozen=True)
class VelocityLoss:
    """λ_t (v̂ − v)², elementwise,  v = a ε − b y/d,  v̂ = (a z − D/d)/b
    (Lin et al. 2023, Eq. 11 and 12)

    with the unit variable z = a y/d + b ε (diffusion/unit.py), d = sigma_data, in which σ = ∞ can
    be trained too. As everywhere, `weighting` is λ(σ), of (D − y)², in which form it is computed: D
    − y = −d b (v̂ − v), hence λ_t = λ(σ) d² b². InverseCOut of V is λ_t = 1, the loss of the paper;
    InverseVariance is λ_t = a², the loss in ε. Needs a network that takes the unit variable of this
    d; ValueError for another.
    """
    noise_distribution: NoiseDistribution
    weighting: Weighting = InverseCOut(V())
    sigma_data: float = 1.0

    def __call__(self, net: Callable[..., Tensor], y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Any) -> Tensor:  # noqa: ANN401
        """y, noise [B, C, H, W]; u [B] in (0, 1), float64 on the CPU -> [B, C, H, W], to be summed
        over C, H, W."""
        d, scale = self.sigma_data, getattr(getattr(net, 'module', net), 'unit_scale', None)
        if scale != d:
            offered = ('no unit variable' if scale is None else f'the unit variable of '
                                                                f'sigma_data={scale:g}')
            raise ValueError(f'the loss in v is for a network with sigma_data={d:g}; this one '
                             f'takes {offered}')
        sigma = _beside(y, self.noise_distribution.quantile(u)).reshape(-1, 1, 1, 1)
        level = Level.of_sigma(sigma, d)
        denoised = net(level.a / d * y + level.b * noise, sigma, class_labels, unit=True,
                       **conditions)
        return self.weighting(sigma) * (denoised - y) ** 2


@dataclass(frozen=True)
class HybridLoss:
    """L_simple + weight · L_vlb: iDDPM's loss with learned variance        (Table 1, "+ L_vlb")

    L_simple is the denoising loss with λ = 1/σ², that is (ε − F)². L_vlb is the variational bound's
    term of the level, in bits per element: it trains the variance channels only, since the mean in
    it is detached. `weight` is 1 when λ_vlb = 0.001 of iDDPM is multiplied by its T = 1000 steps.
    Needs a network that can return its variance channels (iDDPMPrecond), and levels u_j.
    """
    noise_distribution: UniformLevel = UniformLevel()
    weight: float = 1.0
    weighting: Weighting = InverseVariance()

    def __call__(self, net: Callable[..., Any], y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Any) -> Tensor:  # noqa: ANN401
        """y, noise [B, C, H, W]; u [B] in (0, 1), float64 on the CPU -> [B, C, H, W]."""
        levels = self.noise_distribution.levels
        sigma = self.noise_distribution.quantile(u)
        j = (levels.u[:-1] - sigma.reshape(-1, 1)).abs().argmin(dim=1)
        sigma = _beside(y, sigma).reshape(-1, 1, 1, 1)
        denoised, F_var = net(y + sigma * noise, sigma, class_labels, return_variance=True,
                              **conditions)
        vlb = variational_bound(levels, j, y, denoised.detach(), F_var)
        return self.weighting(sigma) * (denoised - y) ** 2 + self.weight * vlb


def variational_bound(levels: IDDPMLevels, j: Tensor, y: Tensor, denoised: Tensor,
                      F_var: Tensor) -> Tensor:
    """The term of level u_j in the variational bound, in bits, elementwise [B, C, H, W]; j [B] on
    the CPU.

    For j < M − 1, KL(q(x_{j+1} | x_j, y) ‖ p(x_{j+1} | x_j)) with the mean through `denoised` and
    the log-variance ν ln w_hi² + (1 − ν) ln w_lo², ν = (F_var + 1)/2. For the last level, −log₂ of
    the probability of the 8-bit value y.
    """
    u, last = levels.u, levels.M - 1

    def column(values: Tensor) -> Tensor:
        return _beside(error, values).reshape(-1, 1, 1, 1)

    error = (y - denoised).to(torch.float32)
    nu = (F_var.to(torch.float32) + 1) / 2
    k = j.clamp(max=last - 1)   # the last level has no successor; its KL is replaced below
    q, log_lo, log_hi = map(column, posterior_variances(u[k], u[k + 1]))
    log_w = nu * log_hi + (1 - nu) * log_lo
    kl = 0.5 * (-1 + log_w - log_lo + (log_lo - log_w).exp() + (1 - q) ** 2 * error**2
                * (-log_w).exp()) / math.log(2)

    # The last level, where y itself is the variable: ln β_0 and ln β̃_1, whose frame is x/√(1 +
    # σ²).
    log_beta_0 = float(2 * u[last].log() - (u[last] ** 2).log1p())
    log_beta_1 = float(posterior_variances(u[last - 1], u[last])[1] - (u[last] ** 2).log1p())
    inverse_std = (-0.5 * (nu * log_beta_0 + (1 - nu) * log_beta_1)).exp()
    upper = torch.special.ndtr((error + 1 / 255) * inverse_std).where(y <= 0.999, 1.0)
    lower = torch.special.ndtr((error - 1 / 255) * inverse_std).where(y >= -0.999, 0.0)
    nll = -(upper - lower).clamp(min=1e-12).log2()
    return torch.where((j == last).reshape(-1, 1, 1, 1).to(y.device), nll, kl)


