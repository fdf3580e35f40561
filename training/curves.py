"""Whether a run goes on as earlier runs with its settings did: their losses are in curves.json.

`python -m reproduction.curves` makes that file of finished runs.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dnnlib.files import read_bounded
from training.config import TrainConfig, encode
from training.course import spread
from training.dataset import ImageFolderDataset
from training.stats_file import nimg_of, number_in

FILE, LARGEST = Path(__file__).with_name('curves.json'), 2**26
DEVIATIONS = 4   # standard ones, by which a loss may differ from that of the earlier runs
LOSS = 'Loss/loss'

# The parts of a configuration that the loss follows from, besides the seed.
PARTS = ('network', 'loss', 'optimizer', 'augment', 'label_dropout', 'batch_size')
PARTS_OF_DATA = ('use_labels', 'xflip', 'max_size')


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return what the loss of a run follows from, besides its images and its seed; for JSON."""
    encoded = encode(config)
    return {**{name: encoded[name] for name in PARTS},
            'data': {name: encoded['data'][name] for name in PARTS_OF_DATA}}


def images_of(dataset: ImageFolderDataset) -> dict[str, Any] | None:
    """Return what a data set is known by, however its files are packed and compressed; for JSON.

    It is the number and shape of the images and the deviation of a random sample of them. None
    stands for a data set of which an image cannot be read.
    """
    found = spread(dataset)
    if found is None:
        return None
    return {'count': len(dataset), 'shape': list(dataset.image_shape), 'std': round(found[0], 6)}


class Interval(NamedTuple):
    """The loss of the images between two marks of a curve; the start is mark 0."""
    first: int
    last: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """The loss of runs that differ in their seeds alone.

    name      what they are called
    seeds     their seeds
    nimg      the marks: numbers of images shown
    mean      the loss of the images from the mark before to each, over the runs
    std       its standard deviation over the runs
    least     the least standard deviation that is believed, as a share of the mean: few seeds may
              agree by chance
    """
    name: str
    seeds: tuple[int, ...]
    nimg: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    least: float

    def expected(self, first: int, last: int) -> tuple[float, float]:
        """Return the loss of a run between two marks, and its standard deviation.

        The deviation is that of a run from the mean of n others, √(1 + 1/n) times theirs; over
        several marks, that of the images weighted by their numbers, as if all were in step.
        """
        ends, mean, std = (0, *self.nimg), 0.0, 0.0
        for i in range(first, last):
            share = (ends[i + 1] - ends[i]) / (ends[last] - ends[first])
            mean += share * self.mean[i]
            std += share * max(self.std[i], self.least * self.mean[i])
        return mean, std * math.sqrt(1 + 1 / len(self.seeds))

    def intervals(self, lines: Sequence[dict[str, Any]]) -> list[Interval]:
        """Return the losses of a run between the marks that its ticks meet.

        Ticks between two marks are put together, and an interval has several marks where ticks
        are rarer.
        """
        found: list[Interval] = []
        first, total, count = 0, 0.0, 0
        for line in lines:
            loss = number_in(line, LOSS)
            if loss is not None:
                total, count = total + loss * line[LOSS]['num'], count + line[LOSS]['num']
            if nimg_of(line) in self.nimg:
                last = self.nimg.index(nimg_of(line)) + 1
                if count:
                    found.append(Interval(first, last, total / count))
                first, total, count = last, 0.0, 0
        return found

    def is_off(self, interval: Interval) -> bool:
        """Return whether the loss of an interval is not that of these runs."""
        mean, std = self.expected(interval.first, interval.last)
        return abs(interval.loss - mean) > DEVIATIONS * std

    def verdict(self, lines: Sequence[dict[str, Any]]) -> str:
        """Return a line where the last of these ticks leaves the course or comes back to it.

        Nothing, '', is said of any other tick. It follows from the lines alone, so that a run that
        was stopped goes on where it was.
        """
        if not lines or nimg_of(lines[-1]) not in self.nimg:
            return ''
        found = self.intervals(lines)
        off = [False, *map(self.is_off, found)]
        if not found or off[-1] == off[-2]:
            return ''
        last, ends = found[-1], (0, *self.nimg)
        mean, std = self.expected(last.first, last.last)
        where = f'from {ends[last.first] / 1000:g} to {ends[last.last] / 1000:g} kimg'
        theirs = f'{mean:.4g} ± {std:.2g} of {self.told()}'
        if off[-1]:
            return (f'Warning: the run has left its course: the loss {where} is {last.loss:.4g}, '
                    f'more than {DEVIATIONS} deviations from the {theirs}')
        return f'Course: the run is back: the loss {where} is {last.loss:.4g}, beside the {theirs}'

    def told(self) -> str:
        """Return what it is the course of."""
        return f'{self.name} ({len(self.seeds)} runs with these options)'

    def announcement(self) -> str:
        """Return a line that says that a run is compared."""
        return (f'Course: the loss is compared with that of {self.told()} up to '
                f'{self.nimg[-1] / 1000:g} kimg')


def curve_of(config: TrainConfig, dataset: ImageFolderDataset, run_dir: Path,
             file: Path = FILE) -> Curve | None:
    """Return the curve of runs with the settings and the images of this one, if there is one.

    There is none for a run that began with other weights or other settings.
    """
    if any((run_dir / name).exists() for name in ('transfer.json', 'changes.jsonl')):
        return None
    told, settings = json.loads(read_bounded(file, LARGEST)), settings_of(config)
    alike = [curve for curve in told['curves'] if curve['settings'] == settings]
    images = images_of(dataset) if alike else None
    for curve in alike:
        if curve['images'] == images:
            lists = {name: tuple(curve[name]) for name in ('seeds', 'nimg', 'mean', 'std')}
            return Curve(curve['name'], **lists, least=told['relative_std'])
    return None
