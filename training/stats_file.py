"""stats.jsonl: a line of statistics for each tick of a run, and the numbers of its evaluations."""

import contextlib
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.files import atomic_write, read_bounded

LARGEST = 2**28   # bytes: some hundred thousand ticks

# The loss is also told by noise level: in ranges of σ that are the same for every run. A range has
# its lower end and lacks its upper one; the last one has σ = ∞.
SIGMA_EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0,
               100.0)
SIGMA_RANGES = {
    f'Loss/sigma_below_{SIGMA_EDGES[0]:g}': (0.0, SIGMA_EDGES[0]),
    **{f'Loss/sigma_{low:g}_to_{high:g}': (low, high) for low, high in pairwise(SIGMA_EDGES)},
    f'Loss/sigma_above_{SIGMA_EDGES[-1]:g}': (SIGMA_EDGES[-1], math.inf),
}


def place_of(sigma: Tensor) -> Tensor:
    """Return the place in SIGMA_RANGES of each noise level: int64, of the shape of `sigma`."""
    return torch.bucketize(sigma, torch.tensor(SIGMA_EDGES, dtype=sigma.dtype), right=True)


def forget_statistics(path: Path, nimg: int) -> None:
    """Remove from stats.jsonl all lines after `nimg`.

    They are those of ticks that a killed run reported but did not save. If a run starts anew in a
    folder (nimg = 0), the statistics of the previous run are kept as stats.old.jsonl.
    """
    if not path.exists():
        return
    if nimg == 0:
        path.replace(path.with_name('stats.old.jsonl'))
        return
    _write_statistics(path, [line for line in read_statistics(path) if nimg_of(line) <= nimg])


def read_statistics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of stats.jsonl, except those that a killed process did not finish.

    Whatever else is no line of statistics is left out, too.
    """
    lines = []
    for text in read_bounded(path, LARGEST).splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
            line = json.loads(text)
            nimg_of(line)
            lines.append(line)
    return lines


def number_in(line: dict[str, Any], name: str) -> float | None:
    """Return the mean under a name in a line of stats.jsonl; None where it has no finite one."""
    entry = line.get(name)
    mean = entry.get('mean') if isinstance(entry, dict) else None
    with contextlib.suppress(OverflowError):   # a whole number of a thousand digits
        return mean if isinstance(mean, int | float) and math.isfinite(mean) else None
    return None


def strict(value: object) -> object:
    """Return what JSON can hold: None in place of numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nimg_of(line: dict[str, Any]) -> int:
    """Return the image counter of a line of stats.jsonl."""
    return round(line['Progress/kimg']['mean'] * 1000)


def _write_statistics(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.write(''.join(json.dumps(strict(line)) + '\n' for line in lines).encode())


def add_numbers(path: Path, nimg: int, numbers: dict[str, float], protocol: dict[str, Any],
                trouble: str = '') -> None:
    """Put the numbers of an evaluation into the line of `nimg` in stats.jsonl.

    A number that is not finite is stored without a value; `trouble`, the reason why there are none,
    stands beside them.
    """
    entries = {f'Metrics/{name}': {'num': 1, 'mean': value, 'std': 0} if math.isfinite(value) else
               {'num': 0, 'mean': None, 'std': None} for name, value in numbers.items()}
    added = {**entries, 'evaluation': protocol, **({'trouble': trouble} if trouble else {})}
    _write_statistics(path, [{**line, **added} if nimg_of(line) == nimg else line
                             for line in read_statistics(path)])
