"""Our values beside those of a paper: difference, spread and number, as Markdown and CSV."""

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib.files import read_bounded
from dnnlib.markdown import table as markdown
from reproduction.experiment import Experiment, Number, Source, Value, is_missing

LARGEST = 2**28   # bytes of a JSON file


@dataclass(frozen=True)
class Found:
    """Our numbers for a value of the paper.

    ours    None where nothing was measured
    spread  the standard deviation over the numbers, None for one number
    count   how many numbers there are
    """
    value: Value
    ours: Number | None
    spread: float | None
    count: int

    @property
    def difference(self) -> float | None:
        """Ours less the paper's; of lists, the largest of the differences without their sign."""
        paper = self.value.paper
        if self.ours is None or paper is None:
            return None
        if isinstance(self.ours, tuple) or isinstance(paper, tuple):
            assert isinstance(self.ours, tuple) and isinstance(paper, tuple)
            if len(self.ours) != len(paper):
                return math.inf
            return max(abs(a - b) for a, b in zip(self.ours, paper, strict=True))
        return self.ours - paper


def members(told: Any, keys: Sequence[str]) -> list[Any]:   # noqa: ANN401 (JSON)
    """Return what the keys lead to: nothing, one member, or those of all members of a list."""
    if not keys:
        return [told]
    if keys[0] == '*' and isinstance(told, list):
        return [found for member in told for found in members(member, keys[1:])]
    if isinstance(told, str) and keys[0].startswith('--'):
        told = dict(option.split('=', 1) for option in told.split() if '=' in option)
    if isinstance(told, dict) and keys[0] in told:
        return members(told[keys[0]], keys[1:])
    return []


def numbers(source: Source) -> list[Number]:
    """Return the numbers of a source; none where its file is not there yet.

    Raises ValueError for a file that is damaged.
    """
    if is_missing(source.file):
        return []
    try:
        told = json.loads(read_bounded(source.file, LARGEST))
        return [tuple(map(float, found)) if isinstance(found, list) else float(found)
                for found in members(told, source.key.split('/'))]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'{source.file} is damaged, or not of this program '
                         f'({" ".join(str(error).split())}): delete it, and run again') from None


def find(value: Value) -> Found:
    """Return our numbers for a value."""
    found = [number for source in value.sources for number in numbers(source)]
    if not found:
        return Found(value, None, None, 0)
    if isinstance(found[0], tuple):
        return Found(value, found[0], None, len(found))
    plain = [number for number in found if isinstance(number, float)]
    ours = min(plain) if value.rule == 'lowest' else statistics.fmean(plain)
    return Found(value, ours, statistics.stdev(plain) if len(plain) > 1 else None, len(plain))


def written(number: Number | None, digits: int) -> str:
    """Write a number for a table: with so many decimals, or significant digits beyond three."""
    if number is None:
        return '–'
    if isinstance(number, tuple):
        return ' '.join(f'{part:g}' for part in number)
    return f'{number:.{digits}g}' if digits > 3 else f'{number:.{digits}f}'


HEAD = ('row', 'column', 'paper', 'ours', 'difference', 'spread', 'N')


def rows(found: Sequence[Found]) -> list[list[str]]:
    """Return a line for each value, as HEAD says."""
    return [[part.value.row, part.value.column, written(part.value.paper, part.value.digits),
             written(part.ours, part.value.digits),
             '–' if part.difference is None else f'{part.difference:+.3g}',
             '–' if part.spread is None else f'{part.spread:.2g}', str(part.count)]
            for part in found]


def grid(found: Sequence[Found]) -> str:
    """Return the values as the paper arranges them: ours ± spread, and the paper's in brackets."""
    columns = list(dict.fromkeys(part.value.column for part in found))
    cells: dict[str, dict[str, str]] = {}
    for part in found:
        value = part.value
        ours, paper = written(part.ours, value.digits), written(value.paper, value.digits)
        spread = '' if part.spread is None else f' ± {part.spread:.2g}'
        cells.setdefault(value.row, {})[value.column] = (
            f'{ours}{spread}' + ('' if value.paper is None else f' ({paper})'))
    return markdown(['', *columns], [[row, *(of_row.get(column, '') for column in columns)]
                                     for row, of_row in cells.items()])


CHANGES = ('row', 'column', 'ours', 'spread', 'N', 'change', "paper's FID or NFE",
           "paper's change", 'verdict')


def changes(found: Sequence[Found]) -> list[list[str]]:
    """Return a line for each value with its change from the row above, beside the paper's.

    The verdict says whether both changes have one sign. A change of ours that is smaller than the
    spread of the two numbers says nothing, and where the spread is unknown, N = 1 is noted.
    """
    last: dict[str, Found] = {}
    lines = []
    for part in found:
        value, above = part.value, last.get(part.value.column)
        ours = None if above is None else ratio(above.ours, part.ours)
        paper = None if above is None else ratio(above.value.paper, value.paper)
        lines.append([
            value.row, value.column, written(part.ours, value.digits),
            '–' if part.spread is None else f'{part.spread:.2g}', str(part.count), percent(ours),
            written(value.paper, value.digits), percent(paper), verdict(above, part, ours, paper)])
        last[value.column] = part
    return lines


def ratio(before: Number | None, after: Number | None) -> float | None:
    """Return the relative change of a number."""
    if not isinstance(before, float | int) or not isinstance(after, float | int) or before == 0:
        return None
    return after / before - 1


def percent(change: float | None) -> str:
    """Write a relative change."""
    return '–' if change is None else f'{100 * change:+.0f} %'


def verdict(above: Found | None, part: Found, ours: float | None, paper: float | None) -> str:
    """Say whether our change from the row above is that of the paper."""
    if above is None or ours is None or paper is None:
        return ''
    assert isinstance(part.ours, float) and isinstance(above.ours, float)
    if part.ours == above.ours:
        return 'no change'
    spread = math.hypot(part.spread or 0, above.spread or 0)
    if abs(part.ours - above.ours) <= spread:
        return 'within the spread'
    told = 'as in the paper' if ours * paper > 0 else 'other than the paper'
    return told if min(part.count, above.count) > 1 else f'{told} (N = 1)'


def page(name: str, experiment: Experiment, found: Sequence[Found], drawn: bool) -> str:
    """Return the page of an experiment in Markdown."""
    lines = [f'# {name}: {experiment.title}', '']
    lines += [f'Written by `python reproduce.py table {name}`, on {machine()}.', '']
    if found:
        head, body = ((HEAD, rows(found)) if experiment.comparable else (CHANGES, changes(found)))
        lines += [f'Each cell: ours ± spread (the paper\'s). Ours: {experiment.unit}.', '',
                  grid(found), '']
        if not experiment.comparable:
            lines += ['The two are not the same distance. What can be compared is the change from '
                      'one row to the next in the same column; lower is better.', '']
        lines += [markdown(head, body), '']
    if drawn:
        lines += [f'![{experiment.title}]({name.replace("/", "-")}.png)', '']
    lines += [f'* {remark}' for remark in experiment.remarks]
    commands = '\n'.join(f'python {task.command}' for task in experiment.tasks)
    lines += ['', f'The commands, which `python reproduce.py run {name}` runs:', '', '```',
              commands, '```', '']
    return '\n'.join(lines)


def machine() -> str:
    """Return what the values were computed on, as far as this process can tell."""
    found = f'{os.cpu_count()} CPU cores'
    if torch.cuda.is_available():
        found = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    return f'{found}, torch {torch.__version__}'


def as_csv(found: Sequence[Found]) -> str:
    """Return a line for each value, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(HEAD)
    for part in found:
        writer.writerow([part.value.row, part.value.column, *('' if cell is None else
                         ' '.join(f'{number:g}' for number in cell) if isinstance(cell, tuple)
                         else repr(cell) for cell in (part.value.paper, part.ours, part.difference,
                                                      part.spread)), part.count])
    return text.getvalue()
