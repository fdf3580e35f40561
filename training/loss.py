"""The four losses of Table 1 under the names that published programs use.

    loss = EDMLoss()(net, images, labels, augment_pipe)    # elementwise, [B, C, H, W]

They draw noise levels and noise themselves. The formulas are in limpid/loss.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limpid.levels import IDDPMLevels
from limpid.loss import (
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    InverseVariance,
    LogNormal,
    LogUniform,
    UniformLevel,
    UniformTime,
)
from limpid.preconditioning import EDM
from limpid.schedules import VESchedule, VPSchedule

AugmentPipe = Callable[[Tensor], tuple[Tensor, Tensor]]   # images -> (images, augment_labels)


@dataclass(frozen=True)
class VPLoss:
    """The VP column: t ~ U(ε_t, 1), λ = 1/σ²."""
    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def __call__(self, net: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None,
                 augment_pipe: AugmentPipe | None = None) -> Tensor:
        loss = DenoisingLoss(UniformTime(VPSchedule(self.beta_d, self.beta_min), self.epsilon_t),
                             InverseVariance())
        u = 1 - torch.rand([len(images)], device=images.device)   # t = 1 + rand (ε_t − 1)
        return _on_fresh_noise(loss, u, net, images, labels, augment_pipe)


@dataclass(frozen=True)
class VELoss:
    """The VE column: ln σ ~ U(ln σ_min, ln σ_max), λ = 1/σ²."""
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __call__(self, net: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None,
                 augment_pipe: AugmentPipe | None = None) -> Tensor:
        loss = DenoisingLoss(LogUniform(VESchedule(self.sigma_min, self.sigma_max)),
                             InverseVariance())
        u = torch.rand([len(images)], device=images.device)
        return _on_fresh_noise(loss, u, net, images, labels, augment_pipe)


@dataclass(frozen=True)
class iDDPMLoss:  # noqa: N801 (the name that belongs to iDDPMPrecond)
    """The iDDPM column: σ = u_j with uniform j, λ = 1/σ², and L_vlb for the learned variance.

    hybrid=False leaves L_vlb out; then any network can be trained.
    """
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    hybrid: bool = True

    def __call__(self, net: Callable[..., Any], images: Tensor, labels: Tensor | None = None,
                 augment_pipe: AugmentPipe | None = None) -> Tensor:
        levels = UniformLevel(IDDPMLevels(self.M, self.C_1, self.C_2))
        loss = HybridLoss(levels) if self.hybrid else DenoisingLoss(levels, InverseVariance())
        u = torch.rand([len(images)], device=images.device)
        return _on_fresh_noise(loss, u, net, images, labels, augment_pipe)


@dataclass(frozen=True)
class EDMLoss:
    """The EDM column: ln σ ~ N(P_mean, P_std²), λ = (σ² + σ_data²)/(σ σ_data)²."""
    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def __call__(self, net: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None,
                 augment_pipe: AugmentPipe | None = None) -> Tensor:
        loss = DenoisingLoss(LogNormal(self.P_mean, self.P_std), InverseCOut(EDM(self.sigma_data)))
        normal = torch.randn([len(images)], device=images.device)
        u = torch.special.ndtr(normal.to('cpu', torch.float64))
        return _on_fresh_noise(loss, u, net, images, labels, augment_pipe)


def _on_fresh_noise(loss: DenoisingLoss | HybridLoss, u: Tensor, net: Callable[..., Any],
                    images: Tensor, labels: Tensor | None,
                    augment_pipe: AugmentPipe | None) -> Tensor:
    """Return the loss of images [B, C, H, W] in [-1, 1], elementwise, with torch's own noise."""
    y, conditions = images, {}
    if augment_pipe is not None:
        y, conditions['augment_labels'] = augment_pipe(images)
    return loss(net, y, u.to('cpu', torch.float64), torch.randn_like(y), labels, **conditions)
