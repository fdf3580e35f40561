"""Make the losses that train.py compares a run with, of finished runs that differ in their seeds.

    python -m reproduction.curves out/reproduction/small/v?-?-? \\
        --data=out/reproduction/small/train.zip

The runs of a preset are those of equal settings. They are called by their folders, without the seed
at the end: small/vp-E. Curves of the same settings and images in the file are replaced, others
stay.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from dnnlib.cli import GroupedCommand, one_line_errors
from dnnlib.files import atomic_write, read_bounded
from training.config import TrainConfig, decode
from training.curves import FILE, LARGEST, LOSS, images_of, settings_of
from training.dataset import ImageFolderDataset
from training.state import latest_state
from training.stats_file import nimg_of, number_in, read_statistics

Losses = list[tuple[int, float]]   # images shown, and the mean loss since the point before


def read_run(folder: Path, dataset: ImageFolderDataset) -> tuple[TrainConfig, Losses]:
    """Return the settings of a finished run on these images, and its losses.

    Raises ValueError, in one line, for a folder that has none, a run that has not ended, and one on
    other images.
    """
    found = latest_state(folder, click.echo)
    if found is None:
        raise ValueError(f'{folder} has no training state: it is no run of train.py that has ended')
    config = decode(found[1]['config'], TrainConfig)
    if found[1]['fingerprint'] != dataset.contents():
        raise ValueError(f'{folder} is of other images than {dataset.path}')
    lines = read_statistics(folder / 'stats.jsonl')
    losses = [(nimg_of(line), loss) for line in lines
              if (loss := number_in(line, LOSS)) is not None]
    if not losses or losses[-1][0] < config.total_nimg:
        raise ValueError(f'{folder} has not ended: stats.jsonl has nothing of '
                         f'{config.total_nimg / 1000:g} kimg')
    return config, losses


def curve(name: str, runs: Sequence[tuple[TrainConfig, Losses]],
          images: dict[str, Any] | None) -> dict[str, Any]:
    """Return what curves.json has of the runs of a preset.

    Raises ValueError for a single run, and for runs whose ticks differ.
    """
    seeds = [config.seed for config, _ in runs]
    if len(set(seeds)) < 2:
        raise ValueError(f'{name} has the seeds {seeds}: two different ones are the least')
    marks = [[nimg for nimg, _ in losses] for _, losses in runs]
    if any(other != marks[0] for other in marks):
        raise ValueError(f'the runs of {name} differ in --tick or --duration')
    columns = list(zip(*([loss for _, loss in losses] for _, losses in runs), strict=True))
    return {'name': name, 'settings': settings_of(runs[0][0]), 'images': images, 'seeds': seeds,
            'nimg': marks[0], 'mean': [float(f'{statistics.fmean(c):.6g}') for c in columns],
            'std': [float(f'{statistics.stdev(c):.3g}') for c in columns]}


def merged(old: Iterable[dict[str, Any]], new: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of curves.json: `new` in place of old curves of the same runs.

    relative_std is the root mean square of all deviations, as shares of their means.
    """
    known = [(one['settings'], one['images']) for one in new]
    curves = sorted([*(one for one in old if (one['settings'], one['images']) not in known), *new],
                    key=lambda one: str(one['name']))
    shares = [(std / mean) ** 2 for one in curves
              for mean, std in zip(one['mean'], one['std'], strict=True)]
    return {'relative_std': float(f'{math.sqrt(statistics.fmean(shares)):.3g}'), 'curves': curves}


def name_of(run: Path) -> str:
    """Return the name of a run without its seed: small/vp-E for out/small/vp-E-0."""
    return f'{run.absolute().parent.name}/{run.name.rpartition("-")[0]}'


def written(told: dict[str, Any]) -> str:
    """Return the text of curves.json, with a line for each curve."""
    lines = ',\n'.join(json.dumps(one) for one in told['curves'])
    return f'{{"relative_std": {told["relative_std"]}, "curves": [\n{lines}\n]}}\n'


@click.command(cls=GroupedCommand)
@click.argument('runs', nargs=-1, required=True, metavar='RUN...')
@click.option('--data', metavar='ZIP|DIR', required=True, help='The images of all of them')
@click.option('--dest', metavar='FILE', default=str(FILE), help='The JSON file to write  [default: '
              'training/curves.json]')
@one_line_errors
def main(runs: tuple[str, ...], data: str, dest: str) -> None:
    """Make the curves that train.py compares the loss of a run with."""
    groups: dict[str, list[tuple[str, tuple[TrainConfig, Losses]]]] = defaultdict(list)
    with ImageFolderDataset(data, use_labels=True) as dataset:
        images = images_of(dataset)
        for path in runs:
            run = read_run(Path(path), dataset)
            key = json.dumps(settings_of(run[0]), sort_keys=True)
            groups[key].append((name_of(Path(path)), run))
    new = [curve(found[0][0], [run for _, run in found], images) for found in groups.values()]
    dest_path = Path(dest)
    old = json.loads(read_bounded(dest_path, LARGEST))['curves'] if dest_path.exists() else []
    with atomic_write(dest_path) as file:
        file.write(written(merged(old, new)).encode())
    for one in new:
        click.echo(f'{one["name"]}: {len(one["seeds"])} runs, loss {one["mean"][-1]:.4g} ± '
                   f'{one["std"][-1]:.2g} at {one["nimg"][-1] / 1000:g} kimg')


if __name__ == '__main__':
    main()
