"""Conversion: a source becomes a data set, whose bytes no number of processes changes."""

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data import arrays
from data.parallel import in_order, processors
from data.prepare import Job, Outcome
from data.source import Size, Source
from data.transforms import check_transform
from data.writing import check_apart, check_dest, written
from dnnlib.files import atomic_write
from dnnlib.progress import Progress

FORMAT = 2    # of partial data sets; another number begins them anew
SHOWN = 3     # names of images that a line of the summary shows
ON_MISMATCH = ('convert', 'skip', 'error')


def convert(source: Source, dest: str, max_images: int | None = None,
            transform: str | None = None, resolution: Size | None = None,
            color: str | None = None, overwrite: bool = False, on_mismatch: str | None = None,
            workers: int | None = None, report: str | None = None) -> str:
    """Write the data set `dest`, and return a summary, after the classes if they are folders.

    A data set that is there is replaced only with `overwrite`, and the source never.

    Images are called `00000/img00000000.png` by their number in the source, so skipped ones leave
    gaps. dataset.json holds {"labels": [[name, label], ...]}, or null where there are none.
    `report` is a CSV that names every image that was converted or left out, and why.
    """
    check_transform(transform, resolution)
    canvas = source.canvas if resolution in (None, source.canvas) else None
    job = Job(source, transform, resolution or source.resolution, color, on_mismatch, canvas)
    if source.path:
        check_apart(source.path, dest)
    check_dest(dest, overwrite)
    names = source.names[:max_images]
    workers = workers or processors()
    key = _key(job, names)
    tally = Tally(job)
    with written(dest, key) as partial:
        if on_mismatch in ('convert', 'skip'):
            job = dataclasses.replace(job, wanted=survey(job, names, workers))
        with Progress(len(names), 'converting') as progress:
            for chunk in partial.before():
                tally.add(chunk)
                progress.reach(chunk[-1].index + 1)
            continued = progress.done
            for chunk in in_order(job, names, progress.done, workers):
                tally.add(chunk)
                partial.add(chunk)
                progress.reach(chunk[-1].index + 1)
        tally.check_some()
        partial.finish(tally.dataset_json())
    if report is not None:
        tally.write_report(report)
    begun = f'continued after {continued} images\n' if continued else ''
    return f'{begun}{tally.summary(dest, names)}'


def survey(job: Job, names: Sequence[str], workers: int) -> tuple[Size, str]:
    """Return the most frequent size and the most frequent kind of the results."""
    sizes: Counter[Size] = Counter()
    kinds: Counter[str] = Counter()
    dry = dataclasses.replace(job, encode=False, on_mismatch=None)
    with Progress(len(names), 'looking at sizes') as progress:
        for chunk in in_order(dry, names, 0, workers):
            sizes.update(told.size for told in chunk if told.ending)
            kinds.update(told.kind for told in chunk if told.ending)
            progress.advance(len(chunk))
    if not sizes:
        raise ValueError('none of the images can be used')
    return (max(sizes, key=lambda size: (sizes[size], size)),
            max(kinds, key=lambda kind: (kinds[kind], kind)))


def _key(job: Job, names: Sequence[str]) -> str:
    """Return what a partial data set must have been made from for it to be continued."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b'\0')
    digest.update(json.dumps([sorted(job.source.labels.items()), job.source.classes]).encode())
    path = os.path.realpath(job.source.path) if job.source.path else ''
    stat = os.stat(path) if path else None
    return json.dumps([FORMAT, digest.hexdigest(), path,
                       stat and [stat.st_size, stat.st_mtime_ns], job.transform, job.resolution,
                       job.color, job.on_mismatch, job.canvas])


@dataclass
class Tally:
    """What is known of the images so far."""
    job: Job
    first: Outcome | None = None
    labels: list[tuple[str, Any]] = field(default_factory=list)
    odd: list[Outcome] = field(default_factory=list)     # converted or left out
    enlarged: list[str] = field(default_factory=list)
    sums: list[tuple[float, ...]] = field(default_factory=list)   # of arrays

    def add(self, chunk: Sequence[Outcome]) -> None:
        """Count images; raise ValueError, naming it, for one that cannot be used."""
        for told in chunk:
            mode = self.job.on_mismatch
            if told.problem and mode in (None, 'error'):
                raise ValueError(told.problem)
            if told.found and mode == 'error' and told.found != ('too small',):
                raise ValueError(f'{told.name} is not plain ({", ".join(told.found)}): '
                                 '--on-mismatch=convert converts such images, and '
                                 '--on-mismatch=skip leaves them out')
            if told.found:
                self.odd.append(told)
            if told.ending:
                self._count(told)

    def _count(self, told: Outcome) -> None:
        self.first = self.first or told
        check_alike(told, self.first)
        self.labels.append((told.file, self.job.source.labels.get(told.name)))
        if told.enlarged:
            self.enlarged.append(told.name)
        if told.sums:
            self.sums.append(told.sums)

    def check_some(self) -> None:
        """Raise ValueError if no image is left."""
        if self.labels:
            return
        if all(told.found == ('too small',) for told in self.odd):
            raise ValueError(f'--transform={self.job.transform} skips images smaller than '
                             '--resolution: all of them are')
        raise ValueError(f'--on-mismatch={self.job.on_mismatch} leaves no image: for example '
                         f'{self.odd[0].problem or ", ".join(self.odd[0].found)}')

    def dataset_json(self) -> bytes:
        """Return the contents of dataset.json."""
        source = self.job.source
        told = {'labels': self.labels if source.labels else None}
        named = {'classes': source.classes} if any(source.classes) else {}
        values = arrays.standardization_of(self.sums).plain() if self.sums else {}
        return json.dumps({**told, **named, **values}).encode()

    def summary(self, dest: str, names: Sequence[str]) -> str:
        """Return lines on classes and on what was done, and a last one on the data set."""
        assert self.first is not None
        source, first = self.job.source, self.first
        present = {label for _, label in self.labels if not isinstance(label, list)}
        lines = [f'class {number}: {name or "(no folder)"}'
                 for number, name in enumerate(source.classes) if number in present]
        lines += [source.note] if source.note else []
        lines += self._groups()
        if self.enlarged:
            lines.append(f'enlarged {len(self.enlarged)}: {some(self.enlarged)}')
        skipped = len(names) - len(self.labels)
        left = f', {skipped} skipped' if skipped else ''
        labelled = 'with labels' if source.labels else 'without labels'
        W, H = first.size
        return '\n'.join([*lines, f'{dest}: {len(self.labels)} images, {W}x{H} {first.kind}, '
                                  f'{labelled}{left}'])

    def _groups(self) -> list[str]:
        groups: dict[tuple[str, str], list[str]] = {}
        for told in self.odd:
            groups.setdefault((', '.join(told.found), ', '.join(told.done)), []).append(told.name)
        return [f'{found}: {done}: {len(names)} ({some(names)})'
                for (found, done), names in sorted(groups.items())]

    def write_report(self, path: str) -> None:
        """Write a line for every image that was not plain: its name, why, what was done."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator='\n')
        table.writerow(['image', 'found', 'done', 'error'])
        table.writerows([told.name, '; '.join(told.found), '; '.join(told.done), told.problem]
                        for told in self.odd)
        with atomic_write(path) as file:
            file.write(text.getvalue().encode('utf-8', 'backslashreplace'))


def some(names: Sequence[str]) -> str:
    """Return the first few names."""
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def check_alike(told: Outcome, first: Outcome) -> None:
    """Raise ValueError unless an image has the size and the colours of the first."""
    (w, h), (W, H) = told.size, first.size
    if (w, h) != (W, H):
        raise ValueError(f'{told.name} is {w}x{h}, but {first.name} is {W}x{H}: give all images '
                         f'one size, for example with --transform=center-crop '
                         f'--resolution={min(w, W)}x{min(h, H)}, or leave out those that differ '
                         'from most with --on-mismatch=skip')
    if told.kind != first.kind:
        raise ValueError(f'{told.name} is {told.kind}, but {first.name} is {first.kind}: '
                         'convert all images with --color=rgb or --color=grey')
