"""Pixels: the 8-bit values of image files, and the range [-1, 1] in which networks work."""

import torch
from torch import Tensor


def from_uint8(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """k/127.5 − 1: uint8 -> [-1, 1]"""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """clip(127.5 x + 128, 0, 255), truncated: [-1, 1] -> uint8"""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


def working_precision(noise: Tensor) -> Tensor:
    """Return `noise` in the precision in which samplers work on its device."""
    return noise.to(torch.float32 if noise.device.type == 'mps' else torch.float64)
