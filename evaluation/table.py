"""The table of a sweep: points by their keys, each measured once, in a file that is always whole.

    with Table('out/sweep', 'sweep.csv') as table:
        rows = measure_points(points, table, evaluate)

A point is a network, sampler options and seeds. Its key is a digest of all that its numbers depend
on, so that a point that is in the table is not measured again. Nothing here knows networks or
images: `evaluate` is a function.
"""

import contextlib
import csv
import dataclasses
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.files import atomic_write, held, read_bounded
from evaluation.settings import FLAGS, text
from torch_utils import distributed

Row = dict[str, str]   # a line of the table: text by column, as the file has it

KEY = re.compile(r'[0-9a-f]{16}')   # of a point
LARGEST = 2**26                     # bytes of a table: some hundred thousand points

CIRCUMSTANCES = 'nfe', 'num', 'blocks', 'seed'
LAST = 'seconds', 'error'
SETTINGS = ('network', 'weights', 'kimg', *FLAGS.values())


@dataclass(frozen=True)
class Network:
    """A network by its name, as checkpoints.open.open_network takes it."""
    path: str
    weights: str | None = None

    @property
    def settings(self) -> Row:
        """The cells of the table that identify the network."""
        kimg = re.fullmatch(r'network-snapshot-(\d+)\.pkl', Path(self.path).name)
        return {'network': self.path, 'weights': self.weights or '',
                'kimg': str(int(kimg[1])) if kimg else ''}


@dataclass(frozen=True)
class Protocol:
    """The number of images that are judged: `blocks` times `num`, from consecutive seeds."""
    num: int
    seed: int = 0
    blocks: int = 1

    def seeds(self, block: int) -> range:
        """Return the seeds of block 0, 1, ..."""
        return range(self.seed + block * self.num, self.seed + (block + 1) * self.num)

    @property
    def settings(self) -> Row:
        """The cells of the table that identify the images."""
        return {field.name: str(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class Point:
    """A network, sampler options and seeds; equal keys mean equal numbers."""
    network: Network
    options: Mapping[str, Any]
    protocol: Protocol
    key: str

    @property
    def row(self) -> Row:
        """The cells that are known before the point is measured."""
        options = {FLAGS[name]: text(value) for name, value in self.options.items()}
        cells = {'point': self.key, **self.network.settings, **options, **self.protocol.settings}
        return {name: cell for name, cell in cells.items() if cell}


class RefusedError(ValueError):
    """A combination of settings that a sampler or network cannot work with."""


class Table:
    """Points by their keys, in a CSV file that is complete at any time.

    One command at a time uses its folder. Every addition writes the file anew and removes what the
    point had saved on its way: there is never the state of more than one point. Collective: rank 0
    reads and writes, and all ranks know the lines.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        self.folder, self.path = Path(folder), Path(folder) / name
        self.rows: dict[str, Row] = {}
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> 'Table':
        self.rows = distributed.on_rank_0(self._open)
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def __contains__(self, key: str) -> bool:
        return key in self.rows and 'error' not in self.rows[key]

    def state(self, key: str) -> Path:
        """Return the folder in which a point may save its progress."""
        return self.folder / 'state' / key

    def add(self, row: Row) -> None:
        """Add a line, or replace the line of the same point."""
        self.rows[row['point']] = {name: row[name] for name in columns_of([row]) if name in row}
        distributed.on_rank_0(lambda: self._write(row['point']))

    def _open(self) -> dict[str, Row]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            lock.enter_context(held(self.folder / '.lock'))
            rows = self._read() if self.path.exists() else {}
            for key in rows:   # of a point whose command was killed when it was all but done
                self._forget(key)
            self._lock = lock.pop_all()
        return rows

    def _read(self) -> dict[str, Row]:
        try:
            text = read_bounded(self.path, LARGEST).decode('utf-8', 'surrogateescape')
            lines = csv.DictReader(io.StringIO(text, newline=''), strict=True)
            if 'point' not in (lines.fieldnames or ()):
                raise KeyError('point')
            rows = {line['point']: {name: cell for name, cell in line.items() if cell}
                    for line in lines}
            for key, row in rows.items():
                if None in row or not KEY.fullmatch(key) or not {'nfe', 'error'} & row.keys():
                    raise KeyError('columns')
                for name in {'nfe', *scores_in([row])} & row.keys():
                    float(row[name])
        except (KeyError, TypeError, ValueError, csv.Error):
            raise ValueError(f'{self.path} is not a table of fid.py, or a damaged one: '
                             'move it away, or name another --dest') from None
        return rows

    def _forget(self, key: str) -> None:
        """Delete the progress of a point: a folder of this table that has its key for a name.

        What a table says never becomes a path: only what is listed there is deleted, and nothing
        behind a link.
        """
        folder = self.folder / 'state'
        if folder.is_symlink() or not folder.is_dir():
            return
        for found in os.scandir(folder):
            if found.name == key and found.is_dir(follow_symlinks=False):
                shutil.rmtree(found.path, ignore_errors=True)

    def _write(self, key: str) -> None:
        rows = self.rows.values()
        lines = io.StringIO()
        writer = csv.DictWriter(lines, columns_of(rows), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(self.path) as file:
            file.write(lines.getvalue().encode('utf-8', 'surrogateescape'))
        self._forget(key)


def measure_points(points: Sequence[Point], table: Table,
                   evaluate: Callable[[Point, Path], Row]) -> list[Row]:
    """Measure the points that are not in the table, and return the lines of all of them.

    `evaluate(point, state)` gives the further columns of a point's line, and may save progress in
    the folder `state`. A point that it refuses gets a line that says why, and is tried again by the
    next command.
    """
    several = len({point.network for point in points}) > 1
    for i, point in enumerate(points):
        if point.key in table:
            continue
        try:
            row = point.row | evaluate(point, table.state(point.key))
        except RefusedError as refusal:
            row = point.row | {'error': ' '.join(str(refusal).split())}
        table.add(row)
        count = f'[{i + 1}/{len(points)}] ' if len(points) > 1 else ''
        distributed.print0(f'{count}{described(row, several)}: {_outcome(row)}')
    return [table.rows[point.key] for point in points]


def described(row: Row, with_network: bool = True) -> str:
    """Write a point's settings as on the command line."""
    names = (*(('network', 'weights') if with_network else ()), *FLAGS.values())
    return ' '.join(f'--{name}={row[name]}' for name in names if name in row) or 'default options'


def _outcome(row: Row) -> str:
    if 'error' in row:
        return f'refused: {row["error"]}'
    numbers = ', '.join(f'{name} {float(row[name]):g}' for name in scores_in([row]))
    return f'{numbers}, NFE {row["nfe"]}, {row["seconds"]} s'


def scores_in(rows: Iterable[Row]) -> list[str]:
    """Return the columns that hold numbers of metrics, not settings or circumstances."""
    others = {'point', *SETTINGS, *CIRCUMSTANCES, *LAST}
    return list(dict.fromkeys(name for row in rows for name in row if name not in others))


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the columns of a table of these lines, in their order."""
    settings = [name for name in SETTINGS if any(name in row for row in rows)]
    return ['point', *settings, *CIRCUMSTANCES, *scores_in(rows), *LAST]
