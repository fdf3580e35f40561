"""Whether a run starts as it should: the loss of an untrained network, the spread of its data."""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limpid.loss import DenoisingLoss, Loss, VelocityLoss
from limpid.preconditioning import EDM, Preconditioner
from limpid.values import to_network
from torch_utils.random import random_subset
from training.config import TrainConfig
from training.dataset import ImageFolderDataset
from training.stats_file import SIGMA_RANGES, place_of

SAMPLE, NUMBERS = 256, 2**24   # images whose spread is measured, or fewer: so many values in all
FAR = 1.25            # the factor between that and sigma_data from which on a note is worth it
STANDARD_ERRORS = 6   # of a loss that is as far from its expectation as it may be ...
SHARE = 0.02          # ... besides a share of it


def untrained_loss(loss: Loss, precond: Preconditioner, sigma: Tensor, second_moment: Tensor,
                   size: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the loss per value where the network still gives F = 0.

    Then D = c_skip x, and over the noise, for an image of `size` values whose mean square is m:

        E = λ(σ) ((1 − c_skip)² m + c_skip² σ²)
        V = λ(σ)² (2 c_skip⁴ σ⁴ + 4 c_skip² σ² (1 − c_skip)² m) / size

    With EDM's preconditioning and weighting E = (σ_data² + σ² m/σ_data²)/(σ² + σ_data²), which is 1
    at every level if m = σ_data². sigma and second_moment are float64 [B], σ = ∞ included.
    """
    c_skip, weight = precond.c_skip(sigma), loss.weighting(sigma)
    noise = torch.where(sigma.isinf(), 0.0, c_skip * sigma) ** 2
    image = (1 - c_skip) ** 2 * second_moment
    return weight * (image + noise), weight**2 * (2 * noise**2 + 4 * noise * image) / size


@dataclass
class FirstStep:
    """The loss of the first step of a run, and what it should be; steps of rank 0 are noted."""
    loss: Loss
    precond: Preconditioner
    parts: list[Tensor] = field(default_factory=list)   # σ, loss, expectation, variance: [4, B]

    def note(self, u: Tensor, y: Tensor, loss: Tensor) -> None:
        """Note a micro-batch: quantiles [B], images and losses [B, C, H, W]."""
        sigma = self.loss.noise_distribution.quantile(u).double().cpu()
        second_moment, measured = (x.double().mean(dim=[1, 2, 3]).cpu() for x in (y.square(), loss))
        self.parts.append(torch.stack([sigma, measured, *untrained_loss(
            self.loss, self.precond, sigma, second_moment, y[0].numel())]))

    def verdict(self) -> str:
        """Return a line that compares the loss with its closed form, a warning if it is far off."""
        sigma, *others = torch.cat(self.parts, dim=1)
        ranges = place_of(sigma)
        off = []
        for i, (low, high) in enumerate(SIGMA_RANGES.values()):
            measured, expected, error = _means(*(x[ranges == i] for x in others))
            if abs(measured - expected) > STANDARD_ERRORS * error + SHARE * expected:
                off.append(f'{measured:.3g} instead of {expected:.3g} at sigma {low:g} to {high:g}')
        measured, expected, error = _means(*others)
        if off or not math.isfinite(measured):
            return (f'Warning: the untrained network has the loss {measured:.4g} instead of '
                    f'{expected:.4g}, which is that of an output of 0: {"; ".join(off)}')
        return (f'Course: the untrained network has the loss {measured:.4g}, by its closed form '
                f'{expected:.4g} ± {error:.2g}')


def _means(measured: Tensor, expected: Tensor, variance: Tensor) -> tuple[float, float, float]:
    """Return the means over images, and the standard error of the first; 0 where there are none."""
    count = max(len(measured), 1)
    return (float(measured.sum()) / count, float(expected.sum()) / count,
            math.sqrt(float(variance.sum())) / count)


def first_step(config: TrainConfig) -> FirstStep | None:
    """Return a watcher of the first step, or None for a loss that has no such closed form."""
    if isinstance(config.loss, DenoisingLoss | VelocityLoss):
        return FirstStep(config.loss, config.network.precond)
    return None


def spread(dataset: ImageFolderDataset) -> tuple[float, int] | None:
    """Return the standard deviation of images as a network sees them, and of how many it is.

    None stands for a data set of which an image cannot be read.
    """
    count = min(len(dataset), SAMPLE, max(NUMBERS // math.prod(dataset.image_shape), 1))
    sample = copy.copy(dataset)
    sample.cache = 'off'   # the file of all images is not made for these, least of all by a dry run
    try:
        images, _ = sample.batch(random_subset(len(dataset), count, 0))
    except ValueError:
        return None   # training will say which one
    seen = to_network(torch.from_numpy(images), dataset.standardization, torch.float64)
    return float(seen.std(correction=0)), count


def note_on_sigma_data(config: TrainConfig, dataset: ImageFolderDataset) -> str:
    """Return a note where sigma_data of EDM's preconditioning is not that of the data, else ''."""
    precond = config.network.precond
    found = spread(dataset) if isinstance(precond, EDM) else None
    if not isinstance(precond, EDM) or found is None:
        return ''
    std, count = found
    if std > 0 and max(std / precond.sigma_data, precond.sigma_data / std) > FAR:
        return (f'the standard deviation of the data is {std:.2f} ({count} images), and '
                f'sigma_data={precond.sigma_data:g}: --sigma_data={std:.2f} fits the network to '
                f'them (the EDM paper has 0.5 for all of its data sets)')
    return ''
