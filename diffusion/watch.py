"""Looking on while a sampler works: how often the network is evaluated, where, and what it sees."""

from typing import Any

import torch
from torch import Tensor

from diffusion.samplers import to_uint8


class Watched:
    """A network that keeps count: evaluations of each image, the noise levels, and optionally its answers.

    calls    evaluations of a batch, or of those of its images that are not ready yet
    images   evaluations of single images
    sigmas   the noise level of each call; for levels per image, their mean
             (`keep_sigmas`)
    frames   {σ: uint8 images [B, C, H, W]}: the last denoised batch at each noise level (`keep_frames`)
    """

    def __init__(self, net: Any, keep_sigmas: bool = True, keep_frames: bool = False) -> None:  # noqa: ANN401 (any denoiser)
        self.net = net
        self.keep_sigmas, self.keep_frames = keep_sigmas, keep_frames
        self.calls = self.images = 0
        self.sigmas: list[Tensor] = []
        self.frames: dict[float, Tensor] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.net, name)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **conditions: Any) -> Any:  # noqa: ANN401
        self.calls += 1
        self.images += len(x)
        if self.keep_sigmas:
            self.sigmas.append(sigma.detach().mean())   # a number on the device: nobody waits for it now
        D = self.net(x, sigma, class_labels, **conditions)
        if self.keep_frames:
            if sigma.numel() > 1:
                raise ValueError('a trajectory needs one noise level for all images; this sampler has one for each')
            self.frames[float(sigma)] = to_uint8(D[0] if isinstance(D, tuple) else D).cpu()
        return D

    def noise_levels(self) -> list[float]:
        """The noise levels of all calls, in order."""
        return torch.stack(self.sigmas).tolist() if self.sigmas else []
