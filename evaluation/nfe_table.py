"""A sweep as papers on few steps print it: samplers down, evaluations of the network across.

    points, wanted, gaps = sweep.plan_nfe(networks, combinations(options), range(3, 11), protocol)
    rows = measure_points(points, table, sweep)
    write_layout('out/sweep', laid_out([*rows, *gaps], 'fid'), 'FID of 50000 images')

A point that was refused, or an NFE that a sampler cannot have, is a dash with a reason below.
"""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.files import atomic_write
from dnnlib.markdown import table
from evaluation.report import curves, rank_key
from evaluation.settings import FLAGS, text
from evaluation.table import Network, Row
from limpid.adaptive import ADAPTIVE
from limpid.denoiser import Network as Denoising
from limpid.denoiser import traits
from options.network import planned

DASH = '–'
FILES = ('nfe.md', 'nfe.tex', 'nfe.csv')


@dataclass(frozen=True)
class Layout:
    """The cells of a table: rows of a sweep by the label of a sampler and by NFE.

    reasons  why a cell is a dash: each reason once, in the order of the cells
    """
    metric: str
    columns: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Row]]

    @property
    def reasons(self) -> list[str]:
        return list(dict.fromkeys(cell['error'] for line in self.cells.values()
                                  for cell in line.values() if 'error' in cell))

    def best(self, column: str) -> Row | None:
        """Return the best cell of a column, if any has a number."""
        there = [line[column] for line in self.cells.values() if column in line]
        best = min(there, key=lambda row: rank_key(row, self.metric), default=None)
        return best if best is not None and self.metric in best else None

    def lines(self, number: Callable[[float, bool], str],
              dash: Callable[[int], str]) -> list[list[str]]:
        """Return the lines as text: `number(value, is_best)`, or `dash(number of its reason)`."""
        reasons, best = self.reasons, {column: self.best(column) for column in self.columns}

        def cell(row: Row | None, column: str) -> str:
            if row is None:
                return ''
            if 'error' in row:
                return dash(reasons.index(row['error']) + 1)
            return number(float(row[self.metric]), row is best[column])

        return [[label, *(cell(line.get(column), column) for column in self.columns)]
                for label, line in self.cells.items()]


def laid_out(rows: Sequence[Row], metric: str) -> Layout:
    """Arrange rows that have an NFE, measured or wanted; of equal cells the best is shown."""
    cells: dict[str, dict[str, Row]] = {}
    for label, part in curves(rows).items():
        line = cells.setdefault(label or 'all points', {})
        for row in part:
            nfe = f'{float(row["nfe"]):g}'
            if nfe not in line or rank_key(row, metric) < rank_key(line[nfe], metric):
                line[nfe] = row
    columns = sorted({nfe for line in cells.values() for nfe in line}, key=float)
    return Layout(metric, tuple(columns), cells)


def written(value: float) -> str:
    """Write a number as papers do: two decimals, and three digits of small ones."""
    return f'{value:.2f}' if abs(value) >= 1 else f'{value:.3g}'


def markdown(layout: Layout, title: str) -> str:
    """Write a table in Markdown, the best number of each column in bold."""
    lines = layout.lines(lambda value, best: f'**{written(value)}**' if best else written(value),
                         lambda reason: f'{DASH} ({reason})')
    lines = [[line[0].replace('|', '\\|'), *line[1:]] for line in lines]
    notes = [f'({i}) {reason}' for i, reason in enumerate(layout.reasons, 1)]
    body = table([f'{title}; NFE', *layout.columns], lines)
    return '\n\n'.join([body, *notes]) + '\n'


def latex(layout: Layout, title: str) -> str:
    """Write a tabular in LaTeX, which needs no package, with the reasons below."""
    lines = layout.lines(
        lambda value, best: rf'\textbf{{{written(value)}}}' if best else written(value),
        lambda reason: f'--$^{{{reason}}}$')
    rows = [[escaped(line[0]), *line[1:]] for line in lines]
    head = [f'{escaped(title)}; NFE', *layout.columns]
    body = [' & '.join(line) + r' \\' for line in (head, *rows)]
    notes = [rf'\noindent $^{{{i}}}$ {escaped(reason)}\par'
             for i, reason in enumerate(layout.reasons, 1)]
    return '\n'.join([rf'\begin{{tabular}}{{l{"r" * len(layout.columns)}}}', r'\hline', body[0],
                      r'\hline', *body[1:], r'\hline', r'\end{tabular}', *notes]) + '\n'


def escaped(plain: str) -> str:
    """Write text so that LaTeX shows it as it is."""
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
               '–': '--', '∞': r'$\infty$', 'σ': r'$\sigma$', 'ρ': r'$\rho$'}
    return re.sub(r'[\\~^&%$#_{}–∞σρ]', lambda at: special.get(at[0], '\\' + at[0]), plain)


def comma_separated(layout: Layout) -> str:
    """Write the table as CSV with all digits; the last column says why cells are dashes."""
    written_to = io.StringIO()
    lines = csv.writer(written_to, lineterminator='\n')
    lines.writerow(['sampler', *layout.columns, 'reasons'])
    for line, cells in zip(layout.lines(lambda value, _: repr(value), lambda _: DASH),
                           layout.cells.values(), strict=True):
        reasons = dict.fromkeys(f'NFE {nfe}: {row["error"]}' for nfe, row in sorted(
            cells.items(), key=lambda item: float(item[0])) if 'error' in row)
        lines.writerow([*line, '; '.join(reasons)])
    return written_to.getvalue()


def write_layout(folder: str | os.PathLike[str], layout: Layout, title: str) -> str:
    """Write nfe.md, nfe.tex and nfe.csv into a folder, and return the first."""
    texts = markdown(layout, title), latex(layout, title), comma_separated(layout)
    for name, content in zip(FILES, texts, strict=True):
        with atomic_write(Path(folder) / name) as file:
            file.write(content.encode('utf-8', 'surrogateescape'))
    return texts[0]


class Blank:
    """A network of one pixel that answers 0, with the traits of another: to count evaluations."""

    def __init__(self, of: Denoising) -> None:
        self.traits = dataclasses.replace(traits(of), image_shape=(1, 1, 1), known_labels=None)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 return_variance: bool = False, **conditions: Any) -> Any:   # noqa: ANN401
        D = torch.zeros_like(x)
        return (D, D) if return_variance else D


def steps_for(networks: Sequence[Denoising], options: Mapping[str, Any], nfe: int) -> int | None:
    """Return the number of steps N with which a sampler evaluates a network `nfe` times, if any.

    It is counted, on a blank image. `networks` are the network and its guide, if it has one. Raises
    ValueError for options that do not fit, and for samplers that choose their steps.
    """
    blanks = [Blank(net) for net in networks]
    label_dim = traits(networks[0]).label_dim or 0

    def count(num_steps: int) -> int:
        opened = planned(blanks, {**options, 'num_steps': num_steps})
        if isinstance(opened.plan.sampler, tuple(ADAPTIVE.values())):
            raise ValueError('its evaluations follow from a tolerance, and --nfe needs a sampler '
                             'that takes a number of steps')
        opened.plan(opened.net, torch.ones(1, 1, 1, 1), torch.zeros(1, label_dim),
                    torch.zeros_like)
        return opened.evaluations

    def reaches(num_steps: int) -> bool:
        try:
            return count(num_steps) >= nfe
        except ValueError:   # more steps than there are levels
            return True

    if count(2) > nfe:
        return 1 if 'afs' not in options and count(1) == nfe else None
    low, high = 1, nfe + 2   # with --afs and --final=sigma-min; no sampler takes more
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high if count(high) == nfe else None


IMPOSSIBLE = 'no number of steps has this NFE'


def gap(network: Network, options: Mapping[str, Any], nfe: int, reason: str) -> Row:
    """Return the row of a cell that cannot be measured."""
    given = {FLAGS[name]: text(value) for name, value in options.items()}
    cells = {**network.settings, **given, 'nfe': str(nfe), 'error': reason}
    return {name: cell for name, cell in cells.items() if cell}
