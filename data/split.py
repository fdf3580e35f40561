"""dataset_tool.py split: a data set in two parts, one of which is held out of training."""

import dataclasses

import click
import numpy as np

from data.convert import convert
from data.parallel import processors
from data.source import Source
from data.sources import open_source
from data.writing import check_dest
from dnnlib.cli import GroupedCommand, Whole, check_apart, heading, one_line_errors
from torch_utils.random import random_subset


def held_out(source: Source, count: int, seed: int) -> list[str]:
    """Return `count` names, in the order of the source: of each class the same share, to one image.

    Raises ValueError if fewer than one image would remain.
    """
    if count >= len(source.names):
        raise ValueError(f'--count={count} leaves nothing: there are {len(source.names)} images')
    groups: dict[object, list[int]] = {}
    for i, name in enumerate(source.names):
        label = source.labels.get(name)
        groups.setdefault(label if isinstance(label, int) else None, []).append(i)
    shares = np.array([len(group) for group in groups.values()]) * count / len(source.names)
    counts = np.floor(shares).astype(int)
    for i in np.argsort(counts - shares, kind='stable')[:count - counts.sum()]:
        counts[i] += 1   # the largest remainders
    chosen = [group[i] for group, number in zip(groups.values(), counts, strict=True)
              for i in random_subset(len(group), int(number), seed)]
    return [source.names[i] for i in sorted(chosen)]


files = heading('From and to')


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@click.argument('source', metavar='PATH')
@files('--dest', metavar='PATH', required=True, help='Data set to train on: a zip or a folder.')
@files('--val', metavar='PATH', required=True, help='Data set that is held out.')
@files('--overwrite', is_flag=True, help='Replace data sets that have these names.')
@heading('Choice')('--count', type=Whole(1), required=True, metavar='INT',
                   help='Number of images to hold out. Of each class the same share is taken.')
@heading('Choice')('--seed', type=Whole(), default=0, show_default=True, metavar='INT',
                   help='Seed of the choice.')
@heading('Work')('--workers', type=Whole(1), metavar='INT',
                 help='Number of processes.  [default: one for each processor]')
@one_line_errors
def main(source: str, dest: str, val: str, overwrite: bool, count: int, seed: int,
         workers: int | None) -> None:
    """Divide a source or a data set into one to train on and one to judge by.

    Pixels, labels and names of classes stay as they are; images are numbered anew.

    Examples:
    python dataset_tool.py split datasets/digits-16x16.zip --dest=datasets/digits-train.zip \\
        --val=datasets/digits-val.zip --count=180
    """
    check_apart({'--dest': dest, '--val': val}, {'PATH': source})
    opened = open_source(source)
    out = held_out(opened, count, seed)
    left = set(out)
    for path in (dest, val):
        check_dest(path, overwrite)
    for path, names in ((dest, [name for name in opened.names if name not in left]), (val, out)):
        part = dataclasses.replace(opened, names=names)
        click.echo(convert(part, path, overwrite=overwrite, color='keep',
                           workers=workers or processors()).splitlines()[-1])
