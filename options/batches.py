"""--batch of commands that draw images: a number, or the largest that fits."""

import functools
import math

import torch

from dnnlib.cli import NumberOr
from limpid.denoiser import Network, traits
from options.common import speed
from torch_utils import distributed
from torch_utils.memory import BatchLimit, fits, release

AUTO = 'auto'
FIXED = 64          # where nothing is found out
MOST = 4096         # images at a time
SHARE = 0.8         # of the free memory of a GPU that is used
ON_CPU = 2**18      # numbers of all images of a batch: 85 images of 3 x 32 x 32

BATCH = speed(
    '--batch', type=NumberOr(AUTO, integer=True), metavar='INT|auto', default=FIXED,
    show_default=True,
    help='The largest number of images in a batch, on each device. With auto a GPU takes as many '
         'as fit, fewer when memory runs out all the same; a CPU takes few large images or up to '
         '64 small ones')


def for_detector(batch: int | str) -> int:
    """Return the number of images that a detector takes at a time."""
    return FIXED if batch == AUTO else int(batch)


def limit_of(batch: int | str, net: Network, device: torch.device, count: int) -> BatchLimit:
    """Return the limit that --batch asks for, the same on all ranks, for `count` images in all.

    On a GPU, `auto` evaluates the network for 1, 2, 4, ... images and takes the largest number
    whose memory stays below SHARE of what is free. Collective for `auto`.
    """
    if batch != AUTO:
        return BatchLimit(int(batch))
    most = min(MOST, max(-(-count // distributed.get_world_size()), 1))
    shape = traits(net).image_shape
    if shape is None:
        return BatchLimit(min(FIXED, most), adaptive=True)
    found = (_largest_on_gpu(net, shape, device, most) if device.type == 'cuda'
             else _for_other_devices(shape, most))
    return BatchLimit(min(distributed.gather_objects(found)), adaptive=True)


def _for_other_devices(shape: tuple[int, ...], most: int) -> int:
    """Return the power of two whose images have ON_CPU numbers together, from 1 to FIXED."""
    wanted = max(ON_CPU // math.prod(shape), 1)
    return min(2 ** int(math.log2(wanted)), FIXED, most)


@torch.no_grad()
def _largest_on_gpu(net: Network, shape: tuple[int, ...], device: torch.device, most: int) -> int:
    told = traits(net)
    release()
    free = torch.cuda.mem_get_info(device)[0]
    before, size = torch.cuda.memory_allocated(device), 1

    def evaluate(images: int) -> None:
        labels = torch.zeros([images, told.label_dim], device=device) if told.label_dim else None
        net(torch.zeros([images, *shape], device=device), torch.tensor(1.0, device=device), labels)

    while size < most:
        torch.cuda.reset_peak_memory_stats(device)
        if not fits(functools.partial(evaluate, 2 * size)):
            break
        if torch.cuda.max_memory_allocated(device) - before > SHARE * free:
            break
        size *= 2
    release()
    return min(size, most)
