"""dataset_tool.py check: decode every image, and tell what is wrong or odd."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

from data.convert import some
from data.parallel import in_order, processors
from data.prepare import Outcome
from data.source import Image, Source
from data.sources import open_source
from data.transforms import bands, kept, kind_of, oddities, size_of
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.progress import Progress

CLASSES = 20   # lines of classes that are printed; the JSON has all


@dataclass
class Findings:
    """What is known of a source: numbers of images by size, kind and label, and names of odd ones.

    `duplicates` are groups of names of images with the same pixels.
    """
    count: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return what keeps train.py from using this source as it is."""
        told = [f'{len(self.unreadable)} unreadable'] if self.unreadable else []
        told += [f'{len(self.sizes)} sizes'] if len(self.sizes) > 1 else []
        return told + ([f'{len(self.kinds)} kinds of images'] if len(self.kinds) > 1 else [])


def checked(source: Source, workers: int) -> Findings:
    """Decode all images of a source."""
    found = Findings()
    alike: dict[tuple[Any, ...], list[str]] = {}
    with Progress(len(source.names), 'checking') as progress:
        for chunk in in_order(Look(source), source.names, 0, workers):
            for told in chunk:
                _count(found, told, source)
                if told.ending:
                    alike.setdefault((told.crc, told.kind, told.size), []).append(told.name)
            progress.advance(len(chunk))
    for names in alike.values():
        if len(names) > 1:
            found.duplicates += _same(source, names)
    return found


def _count(found: Findings, told: Outcome, source: Source) -> None:
    found.count += 1
    if told.problem:
        found.unreadable.append(told.problem)
        return
    found.sizes['{}x{}'.format(*told.size)] += 1
    found.kinds[told.kind] += 1
    for what in told.found:
        found.odd.setdefault(what, []).append(told.name)
    label = source.labels.get(told.name)
    if isinstance(label, int):
        found.labels[label] += 1


@dataclass(frozen=True)
class Look:
    """Work for each image: what is known of it, with a checksum of its pixels, and no data."""
    source: Source

    def __call__(self, index: int, name: str) -> Outcome:
        """Load and describe one image."""
        try:
            image = self.source.load(name)
        except ValueError as error:
            return Outcome(index, name, found=('unreadable',), problem=str(error))
        found = [*oddities(image), *(['several images'] if self.source.several(name) else [])]
        crc = 0
        for part in _pixels(image):
            crc = zlib.crc32(part.data, crc)
        return Outcome(index, name, 'pixels', size_of(image), _kind(image), tuple(found), crc=crc)


def _pixels(image: Image | np.ndarray) -> Iterator[np.ndarray]:
    """Yield all numbers of an image, some at a time."""
    if isinstance(image, np.ndarray):
        yield np.ascontiguousarray(image)
        return
    for band in bands(image):
        # a palette is a way of writing colours
        plain = kept(band) if band.mode in ('P', '1') else band
        yield np.ascontiguousarray(plain)


def _kind(image: Image | np.ndarray) -> str:
    if not isinstance(image, np.ndarray):
        first = image.crop((0, 0, 1, 1))
        first.format = image.format
        image = kept(first)
    return kind_of(image)


def _same(source: Source, names: Sequence[str]) -> list[list[str]]:
    """Return groups of images whose pixels are the same, among those with the same checksum."""
    groups: dict[bytes, list[str]] = {}
    for name in names:
        sha256 = hashlib.sha256()
        for part in _pixels(source.load(name)):
            sha256.update(part.data)
        groups.setdefault(sha256.digest(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def lines(found: Findings, source: Source) -> Iterator[str]:
    """Yield the report, line by line."""
    yield f'{found.count} images'
    for title, counter in (('sizes', found.sizes), ('kinds', found.kinds)):
        common = ', '.join(f'{what} ({number})' for what, number in counter.most_common(5))
        yield f'{title}: {common}{", ..." if len(counter) > 5 else ""}'
    if source.note:
        yield source.note
    for what, names in sorted(found.odd.items()):
        yield f'{what}: {len(names)} ({some(names)})'
    if found.duplicates:
        yield (f'the same pixels: {len(found.duplicates)} groups '
               f'({some([" = ".join(group[:3]) for group in found.duplicates])})')
    yield from (f'unreadable: {problem}' for problem in found.unreadable[:CLASSES])
    if len(found.unreadable) > CLASSES:
        yield f'unreadable: {len(found.unreadable) - CLASSES} more'
    for label, number in sorted(found.labels.items())[:CLASSES]:
        name = source.classes[label] if label < len(source.classes) else ''
        yield f'class {label}{f" ({name})" if name else ""}: {number}'
    if len(found.labels) > CLASSES:
        yield (f'{len(found.labels)} classes, of {min(found.labels.values())} to '
               f'{max(found.labels.values())} images')


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@click.argument('source', metavar='PATH')
@heading('Output')('--json', 'to', metavar='FILE', help='Write all findings to this file too.')
@heading('Work')('--workers', type=Whole(1), metavar='INT',
                 help='Number of processes.  [default: one for each processor]')
@one_line_errors
def main(source: str, to: str | None, workers: int | None) -> None:
    """Decode every image of a source or a data set, and tell what is wrong.

    Told are sizes, kinds (palette, alpha, 16-bit, ...), unreadable files, images with the same
    pixels, and the number of images of each class. The exit code is 1 if images are unreadable or
    of several sizes or kinds, so that train.py could not use them as they are.

    Examples:
    python dataset_tool.py check datasets/photos-64x64.zip
    """
    opened = open_source(source)
    found = checked(opened, workers or processors())
    for line in lines(found, opened):
        click.echo(line)
    if to is not None:
        with atomic_write(to) as file:
            file.write(json.dumps(vars(found), indent=1).encode())
    if found.problems():
        click.echo(f'problems: {", ".join(found.problems())}')
        raise click.exceptions.Exit(1)
    click.echo('no problems')
