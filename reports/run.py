"""What the folder of a run tells, read as if a stranger had filled it."""

import contextlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnlib.files import read_bounded
from training.stats_file import LARGEST as LARGEST_STATISTICS
from training.stats_file import number_in, read_statistics

LARGEST = 2**24       # bytes of a file other than stats.jsonl
FILES = 'stats.jsonl', 'training_options.json', 'run_card.jsonl', 'changes.jsonl', 'best.json'
MOST_SETTINGS = 1000
SMALLEST, LARGEST_NUMBER = 1e-30, 1e30   # that a run has any use for


@dataclass(frozen=True)
class Run:
    """A run: its statistics, its settings, what it says of itself, and where its pictures are.

    lines      those of stats.jsonl that are whole, by rising numbers of images
    settings   training_options.json, with one name for each value: network.precond.type
    cards      run_card.jsonl, one for each start
    changes    changes.jsonl
    best       best.json
    pictures   (thousands of images, path), by rising numbers
    reals      the picture of training images
    troubles   what could not be read
    """
    name: str
    folder: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    cards: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    pictures: list[tuple[int, Path]] = field(default_factory=list)
    reals: Path | None = None
    troubles: list[str] = field(default_factory=list)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return (thousands of images, mean) where stats.jsonl has a number that can be drawn."""
        points = ((number_in(line, 'Progress/kimg'), number_in(line, name)) for line in self.lines)
        return [(float(kimg), float(value)) for kimg, value in points
                if kimg is not None and value is not None
                and all(x == 0 or SMALLEST < abs(x) < LARGEST_NUMBER for x in (kimg, value))]

    def last(self, name: str) -> float | None:
        """Return the last number of this name."""
        points = self.curve(name)
        return points[-1][1] if points else None


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Return the runs in these folders, each with a name of its own.

    Raises ValueError for a folder that is none or that no run has written to.
    """
    last_parts = [Path(folder).resolve().name for folder in folders]
    unique = len(set(last_parts)) == len(folders)
    return [read_run(Path(folder), last if unique else folder)
            for folder, last in zip(folders, last_parts, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Return the run in a folder. Links in it are not followed; what is damaged is left out."""
    if not folder.is_dir():
        found = 'is a file' if folder.exists() else 'does not exist'
        raise ValueError(f'{folder} {found}: name the folder of a run, as train.py --run does')
    there = [file for file in FILES if (folder / file).is_file()]
    if not {'stats.jsonl', 'training_options.json'} & set(there):
        raise ValueError(f'{folder} is no folder of a run: it has neither stats.jsonl nor '
                         f'training_options.json')
    troubles = [f'{file} is a link, and was not read' for file in there
                if (folder / file).is_symlink()]
    own = [file for file in there if not (folder / file).is_symlink()]
    options = _json_in(folder, 'training_options.json', own, troubles)
    pictures, reals = _pictures(folder)
    return Run(name, folder, _statistics(folder, own, troubles), _settings(options, troubles),
               _lines_in(folder, 'run_card.jsonl', own, troubles),
               _lines_in(folder, 'changes.jsonl', own, troubles),
               _json_in(folder, 'best.json', own, troubles), pictures, reals, troubles)


def _statistics(folder: Path, own: list[str], troubles: list[str]) -> list[dict[str, Any]]:
    if 'stats.jsonl' not in own:
        return []
    lines = read_statistics(folder / 'stats.jsonl')
    whole = [line for line in lines if number_in(line, 'Progress/kimg') is not None]
    count = sum(1 for text in read_bounded(folder / 'stats.jsonl', LARGEST_STATISTICS).splitlines()
                if text.strip())
    if count > len(whole):
        damaged = count - len(whole)
        troubles.append(f'{damaged} line{"s" if damaged > 1 else ""} of stats.jsonl could not be '
                        f'read')
    return sorted(whole, key=lambda line: number_in(line, 'Progress/kimg') or 0.0)


def _json_in(folder: Path, file: str, own: list[str], troubles: list[str]) -> dict[str, Any]:
    if file not in own:
        return {}
    with contextlib.suppress(ValueError, OSError, RecursionError):
        found = json.loads(read_bounded(folder / file, LARGEST))
        if isinstance(found, dict):
            return found
    troubles.append(f'{file} could not be read')
    return {}


def _lines_in(folder: Path, file: str, own: list[str], troubles: list[str]) -> list[dict[str, Any]]:
    if file not in own:
        return []
    found: list[dict[str, Any]] = []
    try:
        for text in read_bounded(folder / file, LARGEST).splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    found.append(line)
    except (OSError, ValueError):
        troubles.append(f'{file} could not be read')
    return found


def _settings(options: dict[str, Any], troubles: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        _flatten(options, '', found)
    except RecursionError:
        troubles.append('training_options.json could not be read')
    return found


def _flatten(value: object, place: str, found: dict[str, str]) -> None:
    """Enter each value within `value` into `found` under its place."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for name, item in value.items():
            _flatten(item, f'{place}.{name}' if place else str(name), found)
    elif len(found) < MOST_SETTINGS:
        found[place] = written(value)


def written(value: object) -> str:
    """Return a value of JSON as text: numbers in few digits, lists with commas, – for nothing."""
    try:
        return _written(value)
    except RecursionError:
        return '...'


def _written(value: object) -> str:
    if value is None or value == {}:
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, float):
        return f'{value:.10g}'
    if isinstance(value, list):
        return ', '.join(map(_written, value[:100]))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _pictures(folder: Path) -> tuple[list[tuple[int, Path]], Path | None]:
    found = []
    for path in folder.iterdir():
        match = re.fullmatch(r'fakes(\d{6,12})\.png', path.name)
        if match and path.is_file() and not path.is_symlink():
            found.append((int(match[1]), path))
    reals = folder / 'reals.png'
    return sorted(found), reals if reals.is_file() and not reals.is_symlink() else None


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` points, each the mean of as many neighbours as that takes."""
    size = math.ceil(len(points) / most)
    parts = [points[i:i + size] for i in range(0, len(points), size)] if size > 1 else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
            for part in parts] or list(points)
