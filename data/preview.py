"""dataset_tool.py preview: a grid of images with the names of their classes."""

import click
import numpy as np
import PIL.Image

from data.prepare import Job, on_canvas, prepared
from data.source import Image, Source
from data.sources import open_source
from data.transforms import size_of
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from torch_utils.grids import save_grid

SIDE = 512   # pixels of the larger side of an image in the grid


def chosen(source: Source, rows: int, columns: int) -> list[str]:
    """Return the names of images: a row for each of the first classes, or evenly spaced ones."""
    by_class: dict[int, list[str]] = {}
    for name in source.names:
        if isinstance(label := source.labels.get(name), int):
            by_class.setdefault(label, []).append(name)
    if not by_class:
        count = min(rows * columns, len(source.names))
        return [source.names[i * len(source.names) // count] for i in range(count)]
    short = [names[:columns] for _, names in sorted(by_class.items())[:rows]]
    return [name for names in short for name in [*names, *[''] * (columns - len(names))]]


def grid(source: Source, names: list[str]) -> np.ndarray:
    """Return uint8 [N, 3, H, W] in the size of the first image; others are laid on black.

    Where the first is larger than SIDE, all are made smaller. Raises ValueError for arrays, which
    are no pictures.
    """
    images: list[Image | np.ndarray | None] = []
    scale = 0.0
    for name in names:
        if not name:
            images.append(None)
            continue
        image = source.load(name)
        w, h = size_of(image)
        scale = scale or min(1, SIDE / max(w, h))
        images.append(prepared(Job(source, color='rgb', resolution=(
            max(1, round(w * scale)), max(1, round(h * scale)))), image))
    first = next(image for image in images if isinstance(image, PIL.Image.Image))
    laid = [on_canvas(image, first.size) if isinstance(image, PIL.Image.Image)
            else PIL.Image.new('RGB', first.size) for image in images]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in laid])


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@click.argument('source', metavar='PATH')
@heading('Output')('--dest', metavar='PNG', required=True, help='Picture to write.')
@heading('Output')('--rows', type=Whole(1, 100), default=10, show_default=True, metavar='INT',
                   help='Rows of the grid: one for each class, if there are classes.')
@heading('Output')('--columns', type=Whole(1, 100), default=10, show_default=True, metavar='INT',
                   help='Images in a row.')
@one_line_errors
def main(source: str, dest: str, rows: int, columns: int) -> None:
    """Draw a grid of images of a source or a data set, with the names of their classes.

    Examples:
    python dataset_tool.py preview datasets/digits-16x16.zip --dest=out/digits.png
    """
    opened = open_source(source)
    names = chosen(opened, rows, columns)
    titles = []
    for name in names:
        label = opened.labels.get(name)
        named = isinstance(label, int) and label < len(opened.classes) and opened.classes[label]
        titles.append(named or str(label) if isinstance(label, int) else '')
    save_grid(grid(opened, names), dest, min(columns, len(names)), titles)
    click.echo(f'{dest}: {sum(map(bool, names))} of {len(opened.names)} images')
