"""What a table or a figure is made of: commands, files that they need and leave, values.

An Experiment is data. `running` runs its tasks, `tables` sets its values beside the paper's, and
`pictures` draws it.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from options.presets import PER_IMAGE

OUT = '{out}'   # in paths and commands: the folder in which everything is kept

# 10^9 floating-point operations for one image, counted by torch.utils.flop_counter.
INCEPTION_GFLOP = 11.4
LITE0_GFLOP = 0.8

# Text for a table, or numbers that are compared one by one.
Number = float | tuple[float, ...]


@dataclass(frozen=True)
class Hardware:
    """A machine, for estimates.

    rate   operations a second that such work reaches on it, about a third of what its makers name
    price  of an hour, in US dollars: an assumption, as of 2026
    """
    title: str
    rate: float
    price: float


HARDWARE = {
    'v100': Hardware('one NVIDIA V100', 3e13, 0.8),
    'a100': Hardware('one NVIDIA A100', 1e14, 1.5),
    'h100': Hardware('one NVIDIA H100', 2.5e14, 2.5),
    'core': Hardware('one CPU core', 3e10, 0.03),
}


@dataclass(frozen=True)
class Need:
    """A file or folder that no command makes, and where it comes from."""
    path: str
    source: str


@dataclass(frozen=True)
class Task:
    """A command, and the file that is there when it is done.

    command  what comes after `python`
    makes    the file; two experiments that name the same file share it
    reads    the files that it needs: others make them, or they are a Need
    flop     the estimated number of floating-point operations
    """
    command: str
    makes: str
    reads: tuple[str, ...] = ()
    flop: float = 0.0

    def at(self, out: str) -> 'Task':
        """Return the task with its paths in the folder `out`."""
        return dataclasses.replace(
            self, command=self.command.replace(OUT, out), makes=self.makes.replace(OUT, out),
            reads=tuple(path.replace(OUT, out) for path in self.reads))


@dataclass(frozen=True)
class Source:
    """Numbers in a JSON file: keys with slashes between them, where * stands for all of a list.

    A key that begins with -- is looked up in a text of options, such as '--steps=18 --rho=7'.
    """
    file: str
    key: str


@dataclass(frozen=True)
class Value:
    """A number of the paper, and where ours come from.

    rule   'lowest' of our numbers, as papers report FID, or their 'mean'
    paper  None: the paper has none
    """
    row: str
    column: str
    paper: Number | None
    sources: tuple[Source, ...]
    rule: str = 'mean'
    digits: int = 2


@dataclass(frozen=True)
class Line:
    """A line of a panel: the points of the sweep.csv files of fid.py sweep, or of one JSON file."""
    label: str
    files: tuple[str, ...]
    colour: str
    marker: str = 'o'
    style: str = '-'


@dataclass(frozen=True)
class Panel:
    """Lines over `x`: nfe or S_churn, columns of sweep.csv; or sigma, of reproduction.losses."""
    title: str
    x: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Experiment:
    """A table or figure: `title` says what of, `remarks` what is not as in the paper.

    comparable  whether our numbers should be the paper's; if not, only the changes from row to
                row are set side by side
    unit        what the values are
    images      pictures that tasks make, which are the figure
    """
    title: str
    tasks: tuple[Task, ...]
    values: tuple[Value, ...] = ()
    panels: tuple[Panel, ...] = ()
    images: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    comparable: bool = True
    unit: str = 'FID'

    def at(self, out: str) -> 'Experiment':
        """Return the experiment with all paths in the folder `out`."""
        return dataclasses.replace(
            self, tasks=tuple(task.at(out) for task in self.tasks),
            values=tuple(dataclasses.replace(value, sources=tuple(
                Source(source.file.replace(OUT, out), source.key) for source in value.sources))
                for value in self.values),
            panels=tuple(dataclasses.replace(panel, lines=tuple(
                dataclasses.replace(line, files=tuple(path.replace(OUT, out)
                                                      for path in line.files))
                for line in panel.lines)) for panel in self.panels),
            images=tuple(path.replace(OUT, out) for path in self.images))

    def needs(self) -> list[str]:
        """Return the files that its tasks read and none of them makes."""
        made = {task.makes for task in self.tasks}
        return list(dict.fromkeys(path for task in self.tasks for path in task.reads
                                  if path not in made))


def is_missing(path: str) -> bool:
    """Return whether a file is not there; an address never is missing."""
    return '://' not in path and not Path(path).exists()


def unique(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Return the tasks in their order, each file made once.

    Raises ValueError for two different commands that make the same file.
    """
    found: dict[str, Task] = {}
    for task in tasks:
        if found.setdefault(task.makes, task) != task:
            raise ValueError(f'two commands make {task.makes}: {found[task.makes].command} and '
                             f'{task.command}')
    return tuple(found.values())


def training_flop(gflop: float, images: float) -> float:
    """Estimate the operations of training: three evaluations of the network for each image."""
    return PER_IMAGE * gflop * 1e9 * images


def judging_flop(gflop: float, evaluations: float, images: float,
                 detector: float = INCEPTION_GFLOP) -> float:
    """Estimate the operations of drawing images and of their features."""
    return (gflop * evaluations + detector) * 1e9 * images


def duration(seconds: float) -> str:
    """Write a time with two digits: '40 s', '2.5 h', '12 days'."""
    for limit, size, unit in ((90, 1, 's'), (5400, 60, 'min'), (172800, 3600, 'h')):
        if seconds < limit:
            return f'{seconds / size:.2g} {unit}'
    return f'{float(f"{seconds / 86400:.2g}"):g} days'
