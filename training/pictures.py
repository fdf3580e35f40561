"""The pictures of a run: grids of training images and of images of the averaged network."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limpid.denoiser import Denoiser
from limpid.resolution import height_and_width
from limpid.sampling import plan
from limpid.seeds import StackedGenerator
from limpid.values import picture_of, to_picture
from torch_utils import distributed
from training.dataset import ImageFolderDataset

GRID = 10   # columns of the pictures, and at most as many rows


def grid_labels(dataset: ImageFolderDataset, most: int = GRID**2) -> tuple[Tensor, int]:
    """Return the labels [N, label_dim] of a grid, and its number of columns.

    If there are classes, each row has one class. If labels are vectors, they are those of the first
    images. N is at most `most`, which is positive, and smaller for large images.
    """
    columns = max(2, min(GRID, 1280 // max(dataset.image_shape[1:])))
    columns = min(columns, math.isqrt(most))
    if dataset.label_dim == 0:
        return torch.zeros([columns**2, 0]), columns
    if dataset.has_onehot_labels:
        known = dataset.known_labels
        there = [] if known is None else known.occurring[:columns]
        classes = torch.tensor(there).repeat_interleave(columns)
        return torch.nn.functional.one_hot(classes, dataset.label_dim).to(torch.float32), columns
    rows = [dataset.get_label(i % len(dataset)) for i in range(columns**2)]
    return torch.as_tensor(np.stack(rows)), columns


def names_in(dataset: ImageFolderDataset, labels: Tensor) -> list[str]:
    """Return the names of the classes of labels [N, label_dim], where the data set has names."""
    known = dataset.known_labels
    return known.names_of(labels) if known is not None and dataset.has_onehot_labels else []


def real_images(dataset: ImageFolderDataset, labels: Tensor) -> np.ndarray:
    """Return pictures of the first training images with these labels, uint8 [N, 1 or 3, H, W].

    If there are too few images with a label, the other places are black.
    """
    shape = shown_shape(dataset.image_shape)
    images = np.zeros([len(labels), *shape], dtype=np.uint8)
    wanted: dict[bytes, list[int]] = {}
    for place, label in enumerate(labels.numpy()):
        wanted.setdefault(label.tobytes(), []).append(place)
    for index in range(len(dataset)):
        places = wanted.get(dataset.get_label(index).astype(np.float32).tobytes())
        if places:
            data = torch.from_numpy(dataset[index][0][np.newaxis])
            images[places.pop(0)] = picture_of(data, dataset.standardization)[0].numpy()
        if not any(wanted.values()):
            break
    return images


def shown_shape(image_shape: Sequence[int]) -> list[int]:
    """Return the shape of a picture of data of this shape (limpid.values.to_picture)."""
    channels, *size = image_shape
    return [3 if channels >= 3 else 1, *size]


def generate_grid(net: Denoiser, labels: Tensor, device: torch.device, num_steps: int = 18,
                  batch: int = 64) -> np.ndarray | None:
    """Return pictures of seeds 0, 1, … with these labels, uint8 [N, 1 or 3, H, W].

    None stands for images that are not finite. They are drawn by the default deterministic sampler
    in `num_steps` steps. Each rank draws its share; collective.
    """
    drawing = plan(net, num_steps=num_steps)
    shape = [net.img_channels, *height_and_width(net.img_resolution)]
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    mine = torch.arange(len(labels))[rank::world_size]
    parts, finite = [], True
    for seeds in torch.split(mine, batch):
        noise = StackedGenerator(seeds.tolist(), device).randn([len(seeds), *shape])
        chosen = labels[seeds].to(device) if net.label_dim else None
        drawn = drawing(net, noise, chosen)
        finite = finite and bool(drawn.isfinite().all())
        parts.append(to_picture(drawn).cpu().numpy())
    if not all(distributed.gather_objects(finite)):
        return None
    gathered = distributed.gather_objects(np.concatenate(parts) if parts else None)
    images = np.zeros([len(labels), *shown_shape(shape)], dtype=np.uint8)
    for other, theirs in enumerate(gathered):
        if theirs is not None:
            images[other::world_size] = theirs
    return images
