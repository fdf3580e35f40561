"""The loss of held-out images by noise level, beside that of training images: is it overfitting?

Both are of the averaged network, without augmentation and dropout, with the same noise at every
tick. So their difference, and its growth, come from the network alone.
"""

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from limpid.denoiser import traits
from limpid.values import to_network
from torch_utils import distributed
from torch_utils.random import generator_at, random_subset
from training.config import TrainConfig
from training.dataset import DataConfig, ImageFolderDataset
from training.state import TrainState
from training.stats_file import SIGMA_RANGES
from training.step import VALIDATION, range_of

LEVELS = 8        # noise levels for each image, evenly spaced in the quantiles
BATCH = 64        # images and levels at a time, unless --batch-gpu is smaller
HELD_OUT, TRAINING = 'Validation/', 'Validation/train_'   # names in stats.jsonl begin so

Statistics = dict[str, dict[str, float]]


class Validation:
    """Held-out images, and as many training images, whose losses are compared; collective.

    path     a zip or folder like that of the run, without its images
    num      the number of images, a random subset
    dataset  the images of the run

    Opening reads the images, which stay in memory. Raises ValueError, which names the option, for
    images or labels of another kind than those of the run.
    """

    def __init__(self, path: str, num: int, config: TrainConfig, dataset: ImageFolderDataset,
                 device: torch.device) -> None:
        self.path, self.config, self.device = path, config, device
        data = DataConfig(path, config.data.use_labels, max_size=num, cache='off')
        with distributed.errors_on_all(), data.open() as held_out:
            check_alike(held_out, dataset)
            self.count = len(held_out)
            self.held_out = _read(held_out, np.arange(self.count), config.network.label_dim)
            chosen = random_subset(len(dataset.files.names), self.count, 1)
            with DataConfig(config.data.path, config.data.use_labels, cache='off',
                            on_bad_image=config.data.on_bad_image).open() as training:
                self.training = _read(training, chosen, config.network.label_dim)

    @torch.no_grad()
    def measure(self, state: TrainState) -> Statistics:
        """Return the losses of now, on all ranks, as they go into stats.jsonl; collective.

        The names are those of training, Validation/ in place of Loss/, for held-out images, and the
        same with Validation/train_ for images of the training set.
        """
        found: Statistics = {}
        for start, (images, labels) in ((HELD_OUT, self.held_out), (TRAINING, self.training)):
            losses, ranges = self._losses(state, images, labels)
            found[f'{start}loss'] = _entry(losses)
            for place, name in enumerate(SIGMA_RANGES):
                if bool((ranges == place).any()):
                    found[name.replace('Loss/', start)] = _entry(losses[ranges == place])
        return found

    def _losses(self, state: TrainState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each image at each level, float64, and the place in SIGMA_RANGES."""
        net, loss, config = state.ema.net, self.config.loss, self.config
        # all levels of an image; over the images they cover each eighth of the quantiles evenly
        fine = (torch.arange(len(images), dtype=torch.float64) + 0.5) / len(images)
        u = ((torch.arange(LEVELS) + fine[:, None]) / LEVELS).flatten()
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
        mine = torch.arange(len(u))[rank::world_size]
        parts = []
        for part in mine.split(min(config.batch_gpu or BATCH, BATCH)):
            rows = part // LEVELS
            y = to_network(images[rows].to(self.device), traits(net).standardization)
            noise = torch.stack([torch.randn(y.shape[1:], generator=generator_at(
                0, int(number), VALIDATION)) for number in part]).to(self.device)
            conditions = labels[rows].to(self.device) if config.network.label_dim else None
            parts.append(loss(net, y, u[part], noise, conditions).flatten(1)
                         .to('cpu', torch.float64).mean(dim=1))
        losses = torch.empty_like(u)
        own = torch.cat(parts) if parts else u[:0]
        for other, theirs in enumerate(distributed.gather_objects(own)):
            losses[other::world_size] = theirs
        return losses, range_of(loss, u)


def check_alike(held_out: ImageFolderDataset, dataset: ImageFolderDataset) -> None:
    """Raise ValueError for held-out images that a network of these images does not take."""
    where = f'--val={held_out.path}'
    if os.path.realpath(held_out.path) == os.path.realpath(dataset.path):
        raise ValueError(f'{where} is the data set that is trained on: hold images out with '
                         f'python dataset_tool.py split')
    if held_out.image_shape != dataset.image_shape:
        raise ValueError(f'{where} has images of {held_out.image_shape} (channels, height, width), '
                         f'but those of --data are {dataset.image_shape}')
    if (held_out.dtype == np.uint8) != (dataset.dtype == np.uint8):
        raise ValueError(f'{where} is of {held_out.dtype}, but --data of {dataset.dtype}')
    fits = (held_out.label_dim <= dataset.label_dim if dataset.has_onehot_labels
            else held_out.label_dim == dataset.label_dim)
    if held_out.has_onehot_labels != dataset.has_onehot_labels or not fits:
        raise ValueError(f'{where} has labels of {held_out.label_dim} numbers, but --data of '
                         f'{dataset.label_dim}')


def _read(dataset: ImageFolderDataset, chosen: np.ndarray, label_dim: int) -> tuple[Tensor, Tensor]:
    """Return images, and labels with as many numbers as those of the run."""
    images, labels = (torch.from_numpy(part) for part in dataset.batch(chosen))
    return images, torch.nn.functional.pad(labels, (0, label_dim - labels.shape[1]))


def _entry(losses: Tensor) -> dict[str, float]:
    return {'num': len(losses), 'mean': float(losses.mean()),
            'std': float(losses.std(correction=0))}


def line_of(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the line for the log: held-out loss / that of training images, by noise level."""
    def both(name: str) -> str:
        return f'{found[HELD_OUT + name]["mean"]:.4g}/{found[TRAINING + name]["mean"]:.4g}'

    levels = [f'{name.removeprefix("Loss/sigma_").replace("_to_", "-").replace("_", " ")} '
              f'{both(name.removeprefix("Loss/"))}' for name in SIGMA_RANGES
              if name.replace('Loss/', HELD_OUT) in found]
    return f'held-out/training loss {both("loss")}; by sigma: {", ".join(levels)}'
