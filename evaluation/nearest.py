"""The search for memorised images: images in files beside the nearest training images."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dnnlib.files import atomic_write
from evaluation.images import FolderImages
from metrics.features import FeatureExtractor
from metrics.images import ArrayImages
from metrics.neighbours import CSV, Neighbours, csv_lines, distance_ratio, draw, nearest
from torch_utils.grids import save_png
from torch_utils.random import random_subset

FileImages = FolderImages | ArrayImages


@dataclass(frozen=True)
class Part:
    """Some images of a set, and the training images nearest to each of them."""
    images: FileImages
    positions: np.ndarray             # int64 [N], rising: which images of the set these are
    pixels: np.ndarray                # uint8 [N, C, H, W]
    nearest: Mapping[str, Neighbours]   # by space: pixels, and the tap of the detector


def find_nearest(sets: Mapping[str, FileImages], training: FileImages,
                 extractor: FeatureExtractor, *, num: int | None, seed: int, count: int,
                 xflip: bool, device: torch.device, batch: int) -> dict[str, Part] | None:
    """Find the training images nearest to each image of the sets; return a Part for each name.

    At most `num` images of each set are used, a random subset that `seed` chooses; None: all. The
    `count` nearest are found, in pixels and in features, and with `xflip` among mirrored training
    images too. Collective; the result is on rank 0, None on the others.
    """
    positions = {name: random_subset(len(images), num or len(images), seed)
                 for name, images in sets.items()}
    pixels = {name: pixels_at(images, positions[name]) for name, images in sets.items()}
    found = nearest(torch.cat(list(pixels.values())), training, extractor, count=count,
                    xflip=xflip, device=device, batch=batch)
    if found is None:
        return None
    parts, start = {}, 0
    for name, images in sets.items():
        rows = slice(start, start + len(positions[name]))
        parts[name] = Part(images, positions[name], pixels[name].numpy(),
                           {space: of_all[rows] for space, of_all in found.items()})
        start = rows.stop
    return parts


def pixels_at(images: FileImages, positions: np.ndarray) -> Tensor:
    """Read the images at these positions, uint8 [len(positions), C, H, W], on the CPU."""
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    parts = [range(start, min(start + 64, int(run[-1]) + 1)) for run in runs
             for start in range(int(run[0]), int(run[-1]) + 1, 64)]
    return torch.cat(list(images.batches(parts, torch.device('cpu'))))


def write_csv(path: str, parts: Mapping[str, Part], training: FileImages, k: int,
              among: int) -> None:
    """Write the `k` nearest of every image of every set, and its ratios."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator='\n')
    lines.writerow(CSV)
    for name, part in parts.items():
        names = [part.images.name(position) for position in part.positions.tolist()]
        lines.writerows(csv_lines(name, names, part.nearest, training.name, k, among))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode('utf-8', 'surrogateescape'))


def save_picture(path: str, part: Part, training: FileImages, *, k: int, show: int, among: int,
                 threshold: float) -> None:
    """Draw the `show` images that look most like copies in any space, beside their `k` nearest."""
    ratios = np.stack([distance_ratio(found.distances, among) for found in part.nearest.values()])
    rows = np.argsort(ratios.min(axis=0), kind='stable')[:show]
    shown = [found.positions[rows, :k].ravel() for found in part.nearest.values()]
    wanted = np.unique(np.concatenate(shown))
    pixels = pixels_at(training, wanted).numpy()
    groups, copied = {}, {}
    for (space, found), ratio in zip(part.nearest.items(), ratios, strict=True):
        near = pixels[np.searchsorted(wanted, found.positions[rows, :k])]
        mirrored = found.mirrored[rows, :k, None, None, None]
        groups[f'nearest in {space}'] = np.where(mirrored, near[..., ::-1], near)
        copied[f'nearest in {space}'] = ratio[rows] < threshold
    save_png(draw(part.pixels[rows], groups, copied), path)
