"""The same networks as anybody would write them first: NCHW, a filter for every channel, einsum.

`made_plain` gives a network these layers; weights, names and function stay. It is what
benchmarks/speed.py compares with.
"""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks import Conv2d, GroupNorm, UNetBlock


class PlainConv2d(Conv2d):
    """Conv2d that resamples by a convolution, with its filter repeated for every channel."""

    def _upsample(self, x: Tensor, padding: int) -> Tensor:
        taps = (4 * self.resample_filter).to(x.dtype).repeat(x.shape[1], 1, 1, 1)
        return functional.conv_transpose2d(x, taps, groups=x.shape[1], stride=2, padding=padding)

    def _downsample(self, x: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
        taps = self.resample_filter.to(x.dtype).repeat(x.shape[1], 1, 1, 1)
        return functional.conv2d(x, taps, bias, groups=x.shape[1], stride=2, padding=padding)


class PlainGroupNorm(GroupNorm):
    """GroupNorm as torch has it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, self.num_groups, self.weight.to(x.dtype),
                                     self.bias.to(x.dtype), self.eps)


class PlainUNetBlock(UNetBlock):
    """UNetBlock whose attention stores the weight of every pair of pixels."""

    def attend(self, qkv: Tensor) -> Tensor:
        B, _, H, W = qkv.shape
        q, k, v = qkv.reshape(B * self.num_heads, -1, 3, H * W).unbind(2)
        scores = torch.einsum('bci,bcj->bij', q, k / math.sqrt(k.shape[1]))
        weights = scores.softmax(dim=2, dtype=torch.float32).to(v.dtype)
        return torch.einsum('bij,bcj->bci', weights, v).reshape(B, -1, H, W)


M = TypeVar('M', bound=nn.Module)
PLAIN: dict[type, type] = {
    Conv2d: PlainConv2d, GroupNorm: PlainGroupNorm, UNetBlock: PlainUNetBlock}


def made_plain(net: M) -> M:
    """Return a copy of `net` with plain layers."""
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
    return plain
