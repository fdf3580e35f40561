"""Judge images: a folder or zip of them + reference statistics -> Fréchet distance."""

import os
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import torch
import tqdm
from torch import Tensor

from dnnlib.cli import GroupedCommand, heading, is_terminal, one_line_errors
from metrics.distances import frechet_distance
from metrics.features import FeatureExtractor, load_detector
from metrics.statistics import (
    Moments,
    Statistics,
    chunks,
    library_versions,
    load_statistics,
    moments_of_chunks,
    raise_on_all,
)
from torch_utils import distributed
from training.dataset import ImageFolderDataset

LOSSY = ('.jpg', '.jpeg', '.webp')

files = heading('Images and files')
method = heading('Measurement')
speed = heading('Performance')

DETECTOR_HELP = ('What turns images into features. inception: the network of the published FID, with weights found on this machine; '
                 'a file of its weights in any published format; demo: small and random, a demo distance, NOT FID')


@click.group(context_settings={'max_content_width': 110})
def main() -> None:
    """Judge generated images by their Fréchet distance to real ones.

    First `fid.py ref` turns the real images into a file of statistics, then `fid.py calc` measures
    generated images against it. Each has a --help of its own.

    \b
    Examples:
      python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
      python fid.py calc --images=out/images --ref=out/digits.npz --num=64 --detector=demo
    """


@main.command(cls=GroupedCommand, context_settings={'max_content_width': 110})
@files('--images', 'path', help='Folder or zip of the images to judge', metavar='PATH|ZIP', required=True)
@files('--ref', help='Statistics of the real images, from fid.py ref', metavar='NPZ|URL', required=True)
@method('--num', help='How many images to use; of more a random choice, fewer are an error', type=click.IntRange(min=2),
        metavar='INT', default=50000, show_default=True)
@method('--seed', help='Random seed of that choice', type=int, metavar='INT', default=0, show_default=True)
@method('--detector', help=DETECTOR_HELP, metavar='inception|demo|PATH', default='inception', show_default=True)
@speed('--batch', help='Largest batch per device', type=click.IntRange(min=1), metavar='INT', default=64, show_default=True)
@speed('--workers', help='Processes that read images ahead, per device; 0: none', type=click.IntRange(min=0), metavar='INT', default=1, show_default=True)
@speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu', metavar='NAME', default='auto', show_default=True)
@one_line_errors
def calc(path: str, ref: str, num: int, seed: int, detector: str, batch: int, workers: int,
         device: str) -> None:
    """Print the Fréchet distance of images to reference statistics; the last line is the number alone.

    The number depends on how many images there are: compare distances of equal --num only. It is
    the same, bit for bit, on any number of devices of a kind.

    Examples:
    # Statistics of the training set, then the distance of 1000 generated images to it
    python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
    python fid.py calc --images=out/images --ref=out/digits.npz --num=64 --detector=demo

    # On 8 GPUs; without the two dashes torchrun would take --num for an option of its own
    torchrun --standalone --nproc_per_node=8 -- fid.py calc --images=out/images --ref=out/digits.npz --num=64 \\
        --detector=demo
    """
    chosen_device = _start(device)
    extractor = load_detector(detector, chosen_device)
    with ImageFolderDataset(path, max_size=num, random_seed=seed) as dataset:
        if len(dataset) < num:
            raise ValueError(f'--images={path} has {len(dataset)} images, fewer than --num={num}: generate more, '
                             'or lower --num and compare with distances of that --num only')
        reference, notes = _reference(ref, extractor, detector, dataset)
        for note in notes:
            distributed.print0(f'Note: {note}')
        moments = _measure(dataset, extractor, batch, workers, chosen_device)
    if moments is not None and reference is not None:
        distance = frechet_distance(reference.mu, reference.sigma, moments.mean(), moments.cov())
        beside = '' if reference.count is None else f' against {reference.count}'
        print(f'{extractor.number} of {moments.count} images{beside}:')
        print(f'{distance:g}', flush=True)
    distributed.shutdown()


@main.command(cls=GroupedCommand, context_settings={'max_content_width': 110})
@files('--data', 'path', help='Folder or zip of the real images', metavar='PATH|ZIP', required=True)
@files('--dest', help='File of statistics to write', metavar='NPZ', required=True)
@method('--detector', help=DETECTOR_HELP, metavar='inception|demo|PATH', default='inception', show_default=True)
@speed('--batch', help='Largest batch per device', type=click.IntRange(min=1), metavar='INT', default=64, show_default=True)
@speed('--workers', help='Processes that read images ahead, per device; 0: none', type=click.IntRange(min=0), metavar='INT', default=1, show_default=True)
@speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu', metavar='NAME', default='auto', show_default=True)
@one_line_errors
def ref(path: str, dest: str, detector: str, batch: int, workers: int, device: str) -> None:
    """Compute the statistics of all images of a data set, for fid.py calc.

    The file holds mu and sigma in float64, and what they are of.

    Examples:
    python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
    """
    if not dest.endswith('.npz') or os.path.isdir(dest):
        raise ValueError(f'--dest={dest} should be the name of a file that ends in .npz')
    chosen_device = _start(device)
    extractor = load_detector(detector, chosen_device)
    with ImageFolderDataset(path) as dataset:
        if len(dataset) < 2:
            raise ValueError(f'--data={path} has 1 image, which has no covariance: 2 are the least')
        moments = _measure(dataset, extractor, batch, workers, chosen_device)
        if moments is not None:
            Statistics(
                moments.mean(), moments.cov(), moments.count, dataset.image_shape, extractor.detector_id,
                extractor.digest, dataset.fingerprint(), library_versions()).save(dest)
            print(f'Wrote the statistics of {moments.count} images to {dest}', flush=True)
    distributed.shutdown()


def _start(device: str) -> torch.device:
    chosen = distributed.init(device)
    torch.backends.cudnn.deterministic = True
    return chosen


def _reference(source: str, extractor: FeatureExtractor, detector: str,
               dataset: ImageFolderDataset) -> tuple[Statistics | None, list[str]]:
    """The statistics and what is to be said of them, on rank 0 (elsewhere nothing).

    ValueError, on every rank, where they are damaged or of another detector.
    """
    reference, notes, error = None, [], None
    if distributed.get_rank() == 0:
        try:
            reference = load_statistics(source)
            notes = notes_on(reference, source, extractor, detector, dataset)
        except ValueError as failure:
            error = str(failure)
    raise_on_all(error)
    return reference, notes


def notes_on(reference: Statistics, source: str, extractor: FeatureExtractor, detector: str,
             dataset: ImageFolderDataset) -> list[str]:
    """What makes the distance to `reference` doubtful; ValueError for what makes it meaningless."""
    remedy = f'make it anew with fid.py ref --detector={detector}'
    if reference.detector_id not in (None, extractor.detector_id):
        raise ValueError(f'--ref={source} was made with detector {reference.detector_id}, '
                         f'but --detector={detector} is {extractor.detector_id}: {remedy}')
    if len(reference.mu) != extractor.dim:
        raise ValueError(f'--ref={source} has {len(reference.mu)} features, '
                         f'but --detector={detector} has {extractor.dim}: {remedy}')
    if reference.detector_digest not in (None, extractor.digest):
        raise ValueError(f'--ref={source} was made with other weights of detector '
                         f'{extractor.detector_id}: {remedy}')
    notes = []
    if reference.detector_id is None:
        notes.append(f'{source} does not say which detector it was made with; only its size fits')
    if reference.image_shape not in (None, dataset.image_shape):
        notes.append(f'{source} is of images of shape {reference.image_shape}, '
                     f'but these have shape {dataset.image_shape}')
    if any(name.lower().endswith(LOSSY) for name in dataset.files.names):
        notes.append('some images are JPEG or WebP, and compression adds to the distance: use PNG')
    if len(dataset) <= extractor.dim:
        notes.append(f'{len(dataset)} images say little about {extractor.dim} features: '
                     'the distance is far too high')
    return notes


def _measure(dataset: ImageFolderDataset, extractor: FeatureExtractor, batch: int, workers: int,
             device: torch.device) -> Moments | None:
    """The moments of all images of the set over all ranks: on rank 0; None on the others."""
    mine = chunks(len(dataset), distributed.get_rank(), distributed.get_world_size())
    features = _features(dataset, mine, extractor, batch, workers, device)
    return moments_of_chunks(features, len(dataset), extractor.dim, device)


@torch.no_grad()
def _features(dataset: ImageFolderDataset, mine: list[range], extractor: FeatureExtractor,
              batch: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    """[len(chunk), dim] for each chunk of positions in turn."""
    parts = [chunk[start:start + batch] for chunk in mine for start in range(0, len(chunk), batch)]
    loader = torch.utils.data.DataLoader(
        _Reader(dataset), batch_size=None, sampler=parts, num_workers=workers if parts else 0,
        pin_memory=device.type == 'cuda')
    shown = tqdm.tqdm(loader, unit='batch', disable=distributed.get_rank() > 0 or not is_terminal())
    images = iter(shown)
    for chunk in mine:
        features = []
        for _ in range(0, len(chunk), batch):
            item = next(images)
            if isinstance(item, str):
                raise ValueError(item)
            features.append(extractor(item.to(device, non_blocking=True)))
        yield torch.cat(features)
    shown.close()


class _Reader(torch.utils.data.Dataset[Any]):
    """A data set whose index is a range of positions."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, positions: range) -> Tensor | str:
        try:
            return torch.from_numpy(self.dataset.batch(np.array(positions))[0])
        except ValueError as error:
            return str(error)   # raised in a worker, it would arrive as that worker's stack trace


if __name__ == '__main__':
    main()
