"""Measure the loss per noise level before and after training, as in Figure 5a of Karras et al.

    python -m reproduction.losses --initial=network-snapshot-000000.pkl \\
        --final=network-snapshot-200000.pkl --data=datasets/cifar10-32x32.zip --dest=losses.json

At each of 41 noise levels σ, the loss of an image y is λ(σ) |D(y + n; σ) − y|² over the number of
its elements, with EDM's λ(σ), so that networks of other preconditioning can be compared. The file
holds the mean and the standard deviation over the images, and p_train, scaled to a height of one.
"""

import json
import math
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from checkpoints.open import open_network
from dnnlib.cli import GroupedCommand, Whole, check_writable, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.progress import Progress
from limpid.denoiser import Network, traits
from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.pixels import from_uint8
from limpid.preconditioning import EDM
from options.common import BATCH, DEVICE
from torch_utils import distributed
from torch_utils.random import generator_at, random_subset
from training.course import untrained_loss
from training.dataset import ImageFolderDataset
from training.step import Given

SIGMAS = torch.logspace(math.log10(0.005), math.log10(50), 41, dtype=torch.float64)


LOSS = DenoisingLoss(Given(), weighting=InverseCOut(EDM()))   # u is the noise level itself


@torch.no_grad()
def losses(net: Network, images: Tensor, labels: Tensor | None, sigma: float, batch: int,
           device: torch.device) -> Tensor:
    """Return the loss of each image, [N] float64, with noise that depends on its number alone."""
    found = []
    for start in range(0, len(images), batch):
        y = images[start:start + batch].to(device)
        noise = torch.stack([torch.randn(y.shape[1:], generator=generator_at(start + k))
                             for k in range(len(y))]).to(device)
        given = None if labels is None else labels[start:start + batch].to(device)
        u = torch.full([len(y)], sigma, dtype=torch.float64)
        found.append(LOSS(net, y, u, noise, given).flatten(1).double().mean(dim=1).cpu())
    return torch.cat(found)


def expected_at_first(sigma: float, second_moment: float) -> float:
    """Return the loss of EDM's preconditioner where F = 0: training.course.untrained_loss."""
    level, moment = torch.tensor([[sigma], [second_moment]], dtype=torch.float64)
    return float(untrained_loss(LOSS, EDM(), level, moment, 1)[0])


def p_train(sigma: float, distribution: LogNormal = LogNormal()) -> float:
    """Return the density of ln σ in training, over its maximum."""
    return math.exp(-((math.log(sigma) - distribution.P_mean) / distribution.P_std) ** 2 / 2)


@click.command(cls=GroupedCommand)
@click.option('--initial', metavar='PATH', required=True, help='The network before training')
@click.option('--final', metavar='PATH', required=True, help='The network after it')
@click.option('--data', metavar='ZIP|DIR', required=True, help='The images')
@click.option('--num', type=Whole(2), metavar='INT', default=10_000, show_default=True,
              help='The number of images, a random subset; the paper has 10,000')
@click.option('--dest', metavar='FILE', required=True, help='The JSON file to write')
@BATCH
@DEVICE
@one_line_errors
def main(initial: str, final: str, data: str, num: int, dest: str, batch: int,
         device: str) -> None:
    """Measure the loss per noise level of a network before and after training."""
    check_writable('--dest', dest)
    chosen = distributed.init(device)
    nets = {'Initial': open_network(initial, chosen), 'Final': open_network(final, chosen)}
    conditional = bool(traits(nets['Final']).label_dim)
    with ImageFolderDataset(data, use_labels=conditional) as dataset:
        pixels, labels = dataset.batch(random_subset(len(dataset), num))
    images = from_uint8(torch.from_numpy(pixels))
    onehot = torch.from_numpy(labels).float() if conditional else None
    panel: dict[str, Any] = {}
    for name, net in nets.items():
        found = []
        with Progress(len(SIGMAS), name, unit='levels') as progress:
            for sigma in SIGMAS.tolist():
                found.append(losses(net, images, onehot, sigma, batch, chosen))
                progress.advance(1)
        panel[name] = {'x': SIGMAS.tolist(), 'y': [float(part.mean()) for part in found],
                       'spread': [float(part.std()) for part in found]}
    moment = float(images.square().mean())
    panel['Initial, F = 0'] = {'x': SIGMAS.tolist(), 'y': [
        expected_at_first(sigma, moment) for sigma in SIGMAS.tolist()]}
    panel['p_train'] = {'x': SIGMAS.tolist(), 'y': [p_train(sigma) for sigma in SIGMAS.tolist()]}
    with atomic_write(Path(dest)) as file:
        told = {'num': len(images), 'panels': {'sigma': panel}}
        file.write((json.dumps(told, indent=1) + '\n').encode())


if __name__ == '__main__':
    main()
