"""Training: the rows "Noise distribution" and "Loss weighting" of Table 1, and the loss in v.

    E_{σ, y, n} [ λ(σ) ‖D(y + n; σ) − y‖² ],   n ~ N(0, σ² I)        (Eq. 2, Section 5)

A noise distribution is given by its quantile function u -> σ, so that uniform, stratified or
antithetic u can be used with any of them. A weighting is any function of σ. Both can be combined
with any preconditioner. A loss takes one of each; all randomness comes in from outside.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limpid.denoiser import Network, traits
from limpid.levels import DiscreteSchedule, IDDPMLevels, ScaledLinearBetas, posterior_variances
from limpid.preconditioning import EDM, IDDPM, Preconditioner, V
from limpid.schedules import VESchedule, VPSchedule
from limpid.unit import Level


class NoiseDistribution(Protocol):
    """The distribution p_train(σ) of the noise levels that a network is trained with."""

    def quantile(self, u: Tensor) -> Tensor:
        """Turn u ~ U(0, 1), float64, into σ ~ p_train of the same shape.

        The values at u = 0 and u = 1 bound the noise levels that the network is trained for.
        """
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
        low, high = self.schedule.sigma_min, self.schedule.sigma_max
        return low * torch.pow(high / low, u)


@dataclass(frozen=True)
class UniformLevel:
    """σ = u_j,  j ~ U{0, M−1}"""
    levels: IDDPMLevels = IDDPMLevels()

    def quantile(self, u: Tensor) -> Tensor:
        j = ((1 - u) * self.levels.M).long().clamp(0, self.levels.M - 1)   # u_j falls as j grows
        return self.levels.u.to(u.device)[j]


@dataclass(frozen=True)
class UniformTimestep:
    """σ = σ_t,  t ~ U{1, T}

    The last timestep has σ = ∞ where the schedule has zero terminal SNR (Lin et al. 2023).
    """
    schedule: DiscreteSchedule = ScaledLinearBetas()

    def quantile(self, u: Tensor) -> Tensor:
        sigma = self.schedule.sigma.to(u.device)
        index = (u * len(sigma)).long().clamp(0, len(sigma) - 1)
        return sigma[index]


@dataclass(frozen=True)
class LogNormal:
    """ln σ ~ N(P_mean, P_std²)"""
    P_mean: float = -1.2
    P_std: float = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        return (self.P_mean + self.P_std * torch.special.ndtri(u)).exp()


def sigma_range(distribution: NoiseDistribution) -> tuple[float, float]:
    """Return the lowest and the highest noise level that `distribution` can draw."""
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


NOISE_DISTRIBUTIONS: dict[str, type[NoiseDistribution]] = {
    'vp': UniformTime,
    've': LogUniform,
    'iddpm': UniformLevel,
    'edm': LogNormal,
    'timestep': UniformTimestep,
}

# Each entry makes the weighting for a preconditioner, even if it does not depend on it.
WEIGHTINGS: dict[str, Callable[[Preconditioner], Weighting]] = {
    'inverse-variance': lambda precond: InverseVariance(),
    'inverse-c-out': InverseCOut,
}


class Loss(Protocol):
    """An elementwise loss of a denoiser, made of a noise distribution and a weighting."""

    def __init__(self, noise_distribution: NoiseDistribution, *, weighting: Weighting) -> None: ...

    @property
    def noise_distribution(self) -> NoiseDistribution: ...

    @property
    def weighting(self) -> Weighting: ...

    def __call__(self, net: Network, y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Tensor) -> Tensor:
        """Return the loss [B, C, H, W], to be summed over C, H, W and averaged over B.

        y      [B, C, H, W], clean images in [-1, 1]
        u      [B] in (0, 1), float64 on the CPU: the quantiles of the noise levels
        noise  [B, C, H, W], standard normal
        """
        ...


def _beside(y: Tensor, values: Tensor) -> Tensor:
    """Copy float64 values [B] from the CPU to [B, 1, 1, 1] in the dtype and on the device of y."""
    values = values.to(y.dtype).to(y.device, non_blocking=y.device.type == 'cuda')
    return values.reshape(-1, 1, 1, 1)


def _weighted_error(weighting: Weighting, sigma: Tensor, denoised: Tensor, y: Tensor) -> Tensor:
    """λ(σ) (D − y)², elementwise."""
    return weighting(sigma) * (denoised - y) ** 2


@dataclass(frozen=True)
class DenoisingLoss:
    """λ(σ) (D(y + σ ε; σ) − y)²        (Eq. 2)"""
    noise_distribution: NoiseDistribution
    weighting: Weighting

    def __call__(self, net: Network, y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Tensor) -> Tensor:
        sigma = _beside(y, self.noise_distribution.quantile(u))
        denoised = net(y + sigma * noise, sigma, class_labels, **conditions)
        return _weighted_error(self.weighting, sigma, denoised, y)


@dataclass(frozen=True)
class VelocityLoss:
    """λ_t (v̂ − v)²,  v = a ε − b y/d,  v̂ = (a z − D/d)/b        (Lin et al. 2023, Eq. 11 and 12)

    The network receives the unit variable z = a y/d + b ε (limpid/unit.py) with its own d, so that
    σ = ∞ can be trained too. As everywhere, `weighting` is the weight λ(σ) of (D − y)², and the
    loss is computed in that form: D − y = −d b (v̂ − v), hence λ_t = λ(σ) d² b². InverseCOut of V
    gives λ_t = 1, the loss of the paper (that of EDM is the same, but not for σ = ∞);
    InverseVariance gives λ_t = a², the loss in ε. Raises ValueError for a network that does not
    take the unit variable, or whose d is not that of the weighting, and at σ = ∞ for a weighting
    that is not a number there.
    """
    noise_distribution: NoiseDistribution
    weighting: Weighting = InverseCOut(V())

    def __call__(self, net: Network, y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Tensor) -> Tensor:
        d, quantiles = self._scale_of(net), self.noise_distribution.quantile(u)
        self._check_weighting(quantiles)
        sigma = _beside(y, quantiles)
        level = Level.of_sigma(sigma, d)
        z = level.a / d * y + level.b * noise
        denoised = net(z, sigma, class_labels, unit=True, **conditions)
        return _weighted_error(self.weighting, sigma, denoised, y)

    def _check_weighting(self, sigma: Tensor) -> None:
        infinite = sigma[sigma.isinf()][:1]   # on the CPU, as sigma [B] is
        if len(infinite) and not bool(self.weighting(infinite).isfinite()):
            raise ValueError(f'the weighting {self.weighting} is not a number at sigma = inf: use '
                             f'InverseCOut(V()), or noise levels that are finite')

    def _scale_of(self, net: Network) -> float:
        """Return d of the unit variable that `net` takes."""
        scale = traits(net).unit_scale
        wanted = getattr(getattr(self.weighting, 'precond', None), 'sigma_data', scale)
        if scale is None or scale != wanted:
            needed = 'that takes the unit variable'
            if wanted is not None:
                needed = f'with sigma_data={wanted:g}'
            offered = 'no unit variable'
            if scale is not None:
                offered = f'the unit variable of sigma_data={scale:g}'
            raise ValueError(f'the loss in v is for a network {needed}; this one takes {offered}')
        return float(scale)


@dataclass(frozen=True)
class HybridLoss:
    """L_simple + weight · L_vlb        (iDDPM's loss with learned variance; Table 1, "+ L_vlb")

    L_simple is the denoising loss with λ = 1/σ², that is (ε − F)². L_vlb is the term of the level
    in the variational bound, in bits per element. It trains the variance channels only, since the
    mean in it is detached. The default `weight` is λ_vlb = 0.001 of iDDPM times its T = 1000 steps.
    The loss needs a network that can return its variance channels (preconditioned as IDDPM), and
    levels u_j. (Nichol & Dhariwal 2021.)
    """
    noise_distribution: UniformLevel = UniformLevel()
    weight: float = 1.0
    weighting: Weighting = InverseVariance()

    def __call__(self, net: Network, y: Tensor, u: Tensor, noise: Tensor,
                 class_labels: Tensor | None = None, **conditions: Tensor) -> Tensor:
        levels = self.noise_distribution.levels
        level_sigma = self.noise_distribution.quantile(u)
        j = IDDPM(levels).index(level_sigma)
        sigma = _beside(y, level_sigma)
        denoised, F_var = net(y + sigma * noise, sigma, class_labels, return_variance=True,
                              **conditions)
        vlb = variational_bound(levels, j, y, denoised.detach(), F_var)
        return _weighted_error(self.weighting, sigma, denoised, y) + self.weight * vlb


LOSSES: dict[str, type[Loss]] = {
    'denoising': DenoisingLoss,
    'velocity': VelocityLoss,
    'hybrid': HybridLoss,
}


def variational_bound(levels: IDDPMLevels, j: Tensor, y: Tensor, denoised: Tensor,
                      F_var: Tensor) -> Tensor:
    """Return the term of level u_j in the variational bound, in bits, elementwise [B, C, H, W].

    j [B], on the CPU, is the index of the level of each image; y, denoised and F_var are
    [B, C, H, W]. For j < M − 1 the term is KL(q(x_{j+1} | x_j, y) ‖ p(x_{j+1} | x_j)), with the
    mean through `denoised` and the log-variance ν ln w_hi² + (1 − ν) ln w_lo², ν = (F_var + 1)/2.
    For the last level it is −log₂ of the probability of the 8-bit value y.
    """
    u, last = levels.u, levels.M - 1
    error = (y - denoised).to(torch.float32)
    nu = (F_var.to(torch.float32) + 1) / 2

    k = j.clamp(max=last - 1)   # the last level has no successor; its KL is replaced below
    q, log_lo, log_hi = (_beside(error, values) for values in posterior_variances(u[k], u[k + 1]))
    log_w = nu * log_hi + (1 - nu) * log_lo
    spread = -1 + log_w - log_lo + (log_lo - log_w).exp()
    mismatch = (1 - q) ** 2 * error**2 * (-log_w).exp()   # after it: gradients add up in this order
    kl = 0.5 * (spread + mismatch) / math.log(2)

    # The last level, where y itself is the variable: ln β_0 and ln β̃_1, in the frame x/√(1 + σ²).
    log_beta_0 = float(2 * u[last].log() - (u[last] ** 2).log1p())
    log_beta_1 = float(posterior_variances(u[last - 1], u[last])[1] - (u[last] ** 2).log1p())
    inverse_std = (-0.5 * (nu * log_beta_0 + (1 - nu) * log_beta_1)).exp()
    upper = torch.special.ndtr((error + 1 / 255) * inverse_std).where(y <= 0.999, 1.0)
    lower = torch.special.ndtr((error - 1 / 255) * inverse_std).where(y >= -0.999, 0.0)
    nll = -(upper - lower).clamp(min=1e-12).log2()

    is_last = (j == last).reshape(-1, 1, 1, 1).to(y.device)
    return torch.where(is_last, nll, kl)
