"""Exponential moving averages of the weights."""

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class EMAConfig:
    """The half-life of the average in images, and its ramp-up: at n images at most rampup_ratio · n."""
    halflife_nimg: float = 500_000
    rampup_ratio: float | None = 0.05


def ema_halflife(nimg: int, config: EMAConfig) -> float:
    """The half-life in images at the image counter `nimg`."""
    if config.rampup_ratio is None:
        return config.halflife_nimg
    return min(config.halflife_nimg, nimg * config.rampup_ratio)


def ema_beta(nimg: int, batch_size: int, config: EMAConfig) -> float:
    """β = 0.5^(batch/half-life): the weight that the average keeps in the step at `nimg`."""
    return 0.5 ** (batch_size / max(ema_halflife(nimg, config), 1e-8))


class EMA:
    """The averaged copy of a network, always in evaluation mode."""

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, beta: float) -> None:
        """average ← β average + (1 − β) weights; buffers are copied, never averaged."""
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - beta)
        for average, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)
