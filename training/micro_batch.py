"""--batch-gpu=auto: as many images at a time as fit, found before the first step."""

from collections.abc import Callable
from typing import Any

import torch

from limpid.resolution import height_and_width
from torch_utils import distributed
from torch_utils.memory import fits
from training.compiled import checkpoint_blocks
from training.config import TrainConfig
from training.state import TrainState

SPARE = 0.05   # of the memory of a GPU that has to stay free, for fragments and for pictures


def largest_micro_batch(config: TrainConfig, state: TrainState, device: torch.device) -> int:
    """Return the largest number of images that fits on every rank: its share, halved repeatedly.

    The search begins with config.batch_gpu, if that is given. Forward and backward pass are tried
    on images of zeros; weights, moments, averages and generators stay as they are. One image is
    not tried. Collective.
    """
    share = config.batch_size // distributed.get_world_size()
    size = min(config.batch_gpu or share, share)
    while size > 1 and not all(distributed.gather_objects(
            fits(attempt(config, state, device, size)))):
        size = (size + 1) // 2
    return size


def attempt(config: TrainConfig, state: TrainState, device: torch.device,
            size: int) -> Callable[[], None]:
    """Return a function that takes the memory of a step on `size` images, and gives it back."""
    net = state.net

    def step() -> None:
        held: list[Any] = []   # what is there later, or has to stay free
        if not state.optimizer.state:
            held = [torch.empty_like(p) for p in net.parameters() for _ in range(2)]
        if device.type == 'cuda':
            total = torch.cuda.get_device_properties(device).total_memory
            held.append(torch.empty(int(SPARE * total), dtype=torch.uint8, device=device))
        y = torch.zeros([size, net.img_channels, *height_and_width(net.img_resolution)],
                        device=device)
        labels = torch.zeros([size, net.label_dim], device=device) if net.label_dim else None
        conditions = {}
        if config.augment is not None:
            conditions['augment_labels'] = torch.zeros(
                [size, config.network.model['augment_dim']], device=device)
        u = torch.full([size], 0.5, dtype=torch.float64)
        loss = config.loss(net, y, u, torch.zeros_like(y), labels, **conditions)
        torch.autograd.backward(loss.sum())
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        del held

    def in_peace() -> None:
        if config.checkpointing:
            checkpoint_blocks(net)
        try:
            with torch.random.fork_rng([device] if device.type == 'cuda' else []):
                step()
        finally:
            state.optimizer.zero_grad(set_to_none=True)

    return in_peace
