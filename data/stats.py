"""dataset_tool.py stats: the numbers of a data set that sigma_data and sigma_max follow from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from data import arrays
from data.parallel import in_order, processors
from data.prepare import Job, prepared
from data.source import Source
from data.sources import open_source
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from dnnlib.progress import Progress
from limpid.values import SPREAD
from torch_utils.random import random_subset

BINS = 32           # of the histogram of brightness
SAMPLE = 1000       # images whose distances are computed ...
NUMBERS = 2**24     # ... or fewer, with so many numbers in all
AT_ONCE = 2**22     # of these, in products


@dataclass(frozen=True)
class Stats:
    """Numbers of a data set; images of uint8 are taken as 0..1 for `mean` and `std`.

    `sigma_data` is the standard deviation of all numbers as a network sees them: -1..1 for uint8,
    and 0.5 for arrays, whose mean and std are evened out channel by channel. `sigma_max` is the
    largest distance between two of `sampled` images in that range (Song and Ermon 2020,
    Technique 1). `brightness` counts the images by their mean, in bins between `brightness_range`.
    """
    images: int
    mean: list[float]
    std: list[float]
    sigma_data: float
    sigma_max: float
    sampled: int
    brightness: list[int]
    brightness_range: tuple[float, float]


@dataclass(frozen=True)
class _Sums:
    """Work for each image: [2, C] mean over the pixels of x and x²; x in 0..1 for uint8."""
    source: Source

    def __call__(self, index: int, name: str) -> np.ndarray:
        pixels = _pixels(self.source, name)
        unit = 255 if pixels.dtype == np.uint8 else 1
        return np.reshape(arrays.sums(pixels), [2, -1]) / [[unit], [unit**2]]


def _pixels(source: Source, name: str) -> np.ndarray:
    """Return an image [C, H, W]."""
    image = source.load(name)
    pixels = np.asarray(prepared(Job(source, canvas=source.canvas), image))
    if not isinstance(image, np.ndarray):
        pixels = np.atleast_3d(pixels).transpose(2, 0, 1)
    return pixels


def stats_of(source: Source, workers: int = 1) -> Stats:
    """Compute the numbers; all images must have one size and kind, or ValueError is raised."""
    rows: list[np.ndarray] = []
    with Progress(len(source.names), 'adding up') as progress:
        for chunk in in_order(_Sums(source), source.names, 0, workers):
            for name, row in zip(source.names[len(rows):], chunk, strict=False):
                if row.shape != chunk[0].shape or (rows and row.shape != rows[0].shape):
                    raise ValueError(f'{name} has {row.shape[1]} channels, other images have '
                                     'another number: convert them first')
                rows.append(row)
            progress.advance(len(chunk))
    first, second = np.mean(rows, axis=0)
    light = np.stack(rows)[:, 0].mean(axis=1)
    eight_bit = not isinstance(source.load(source.names[0]), np.ndarray)
    span = (0.0, 1.0) if eight_bit else (float(light.min()), float(light.max()))
    spread = 2 * float(np.sqrt(max(second.mean() - first.mean()**2, 0)))
    std = np.sqrt(np.maximum(second - first**2, 0))
    units = np.full(len(std), 0.5)   # from 0..1 to -1..1
    if not eight_bit:
        spread, units = SPREAD, np.where(std > 0, std, 1) / SPREAD
    furthest, sampled = largest_distance(source, units)
    return Stats(len(rows), first.tolist(), std.tolist(), spread, furthest, sampled,
                 np.histogram(light, BINS, span)[0].tolist(), span)


def largest_distance(source: Source, units: np.ndarray) -> tuple[float, int]:
    """Return the largest Euclidean distance between two images of a sample, and its size.

    `units` [C] is by how much each channel is divided.
    """
    first = _pixels(source, source.names[0])
    chosen = random_subset(len(source.names), min(SAMPLE, max(NUMBERS // first.size, 2),
                                                  len(source.names)), 0)
    images = [_pixels(source, source.names[i]) if i else first for i in chosen]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f'{source.path} has images of several sizes: convert it first')
    products = np.zeros([len(images), len(images)])
    rows = max(AT_ONCE // (len(images) * images[0].shape[2]), 1)
    for c, unit in enumerate(units * (255 if images[0].dtype == np.uint8 else 1)):
        for start in range(0, images[0].shape[1], rows):
            x = np.stack([image[c, start:start + rows].ravel() for image in images]) / unit
            x -= x.mean(axis=0)
            products += x @ x.T
    norms = np.diag(products)
    squares = norms[:, np.newaxis] + norms - 2 * products
    return float(np.sqrt(max(squares.max(), 0))), len(images)


def draw(found: Stats, path: str) -> None:
    """Draw the histogram of brightness as a PNG file."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.5), layout='constrained')
    edges = np.linspace(*found.brightness_range, BINS + 1)
    axes.stairs(found.brightness, edges, fill=True)
    axes.set(xlabel='mean of an image', ylabel='images')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=120, metadata={'Software': None})
    plt.close(figure)


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@click.argument('source', metavar='PATH')
@heading('Output')('--json', 'to', metavar='FILE', help='Write the numbers to this file too.')
@heading('Output')('--png', metavar='PNG', help='Draw the histogram of brightness.')
@heading('Work')('--workers', type=Whole(1), metavar='INT',
                 help='Number of processes.  [default: one for each processor]')
@one_line_errors
def main(source: str, to: str | None, png: str | None, workers: int | None) -> None:
    """Compute mean and standard deviation of a data set, and what follows for the noise.

    Mean and standard deviation are given for each channel, with 8-bit values as 0..1. sigma_data is
    the standard deviation of all values as a network sees them (-1..1), for train.py --sigma_data.
    sigma_max is the largest distance between two images of a sample of at most 1,000: a
    noise level above it hides every image (Song and Ermon 2020). Mean and std of latents and other
    arrays are those of the values as they are; a network sees them with a std of 0.5.

    Examples:
    python dataset_tool.py stats datasets/digits-16x16.zip --json=out/digits.json
    """
    found = stats_of(open_source(source), workers or processors())
    click.echo(f'{found.images} images')
    for title, values in (('mean', found.mean), ('std', found.std)):
        click.echo(f'{title} of each channel: {" ".join(f"{value:.4f}" for value in values)}')
    click.echo(f'suggested sigma_data: {found.sigma_data:.4f}')
    click.echo(f'largest distance between two of {found.sampled} images, a sigma_max for them: '
               f'{found.sigma_max:.1f}')
    if to is not None:
        with atomic_write(to) as file:
            file.write(json.dumps(asdict(found), indent=1).encode())
    if png is not None:
        draw(found, png)
