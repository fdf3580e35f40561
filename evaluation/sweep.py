"""Sweeps and searches over sampler settings: every point is measured once, kept in a table, and
reported as papers do.

    points = evaluator.plan(networks('runs/mine'), combinations({'num_steps': [8, 16], 'rho': [3.0,
    7.0]}), protocol) with Table('out/sweep', 'sweep.csv') as table:
        measure_points(points, table, evaluator)
        best, cheapest = report(table.rows.values(), 'fid')

A point is a network, sampler options and seeds. Its key is a digest of all that its numbers depend
on, so that a point that is in the table is not measured again. What decides (`measure_points`,
`report`, `search_settings`) knows neither networks nor images: it asks a function.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from checkpoints.diffusers import is_diffusers
from checkpoints.reconstruct import reconstructed
from dnnlib.cli import FloatList, with_flags
from dnnlib.files import atomic_write, held
from dnnlib.plots import pyplot
from evaluation.judge import PARAMETERS, GeneratedImages, Judge, digest_of
from limpid.adaptive import ADAPTIVE
from limpid.samplers import Churn
from limpid.seeds import generate
from limpid.solvers import MULTISTEP
from metrics.definitions import higher_is_better, names_of
from metrics.one_pass import Measured
from options.guidance import guidance_options
from options.network import Opened, open_to_draw, planned
from options.sampler import sampler_options
from torch_utils import checkpoint, distributed
from training.state import SNAPSHOT, files_of

Row = dict[str, str]   # a line of the table: text by column, as the file has it

TOLERANCE = 0.03       # of the reporting rule
PROBED = 64            # images whose mean is the NFE of samplers that choose their steps
CURVES = 12            # at most so many have a colour and a name in the picture
STEPS = ('steps', 'rtol', 'eps_rel')   # settings that move a point along its curve


# Options

class Several(click.ParamType):
    """Values of one type with commas between -> a list of them; a type that is a list itself has
    one value."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, kind.name

    def get_metavar(self, *args: Any, **kwargs: Any) -> str | None:  # noqa: ANN401 (click's own)
        return self.kind.get_metavar(*args, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:  # noqa: ANN401
        if not isinstance(value, str):
            return value
        parts = [value] if isinstance(self.kind, FloatList) else value.split(',')
        return [self.kind.convert(part.strip(), param, ctx) for part in parts]


def _with_options(command: Callable[..., Any]) -> list[Any]:
    """Give a command the options of sampler and guidance: those, the last one first."""
    before = len(getattr(command, '__click_params__', []))
    return getattr(sampler_options(guidance_options(command)),
                   '__click_params__')[before:]  # noqa: B009 (click's own)


def swept_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of sampler and guidance, each a list of values; of --sigmas, a list itself, there
    is one."""
    for option in _with_options(command):
        option.type = Several(option.type)
    return command


def searched_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of sampler and guidance but for those that are searched for."""
    parameters: list[Any] = getattr(command, '__click_params__', [])
    for option in _with_options(command):
        if option.name in NUMBERS:
            parameters.remove(option)
    return command


# S_churn, S_min, S_max, S_noise
NUMBERS = tuple(field.name for field in dataclasses.fields(Churn))
FLAGS = {option.name: option.opts[0].removeprefix('--')              # num_steps: steps
         for option in reversed(_with_options(lambda: None))}


def text(value: Any) -> str:  # noqa: ANN401 (any option's value)
    """A value as one writes it on the command line; numbers with as many digits as they need."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f'{value:g}' if float(f'{value:g}') == value else repr(value)
    if isinstance(value, (list, tuple)):
        return ','.join(map(text, value))
    return str(value)


def spelled(options: Mapping[str, Any]) -> str:
    """Options of sampler and guidance as a command line has them."""
    return ' '.join(f'--{FLAGS[name]}={text(options[name])}' for name in FLAGS
                    if options.get(name) is not None)


def combinations(options: Mapping[str, Sequence[Any] | None]) -> list[dict[str, Any]]:
    """The Cartesian product of the values given, in the order of the options; the last one changes
    fastest."""
    given = {name: values for name, values in options.items() if values is not None}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


# Points

@dataclass(frozen=True)
class Network:
    """What open_network opens."""
    path: str
    weights: str | None = None

    @property
    def settings(self) -> Row:
        kimg = re.fullmatch(r'network-snapshot-(\d+)\.pkl', Path(self.path).name)
        return {'network': self.path, 'weights': self.weights or '', 'kimg': str(int(kimg[1]))
                if kimg else ''}


def networks(specs: str, weights: str | None = None) -> list[Network]:
    """Names with commas between -> networks; the folder of a run stands for all its snapshots, the
    oldest first.

    `weights`: names with commas between, tried with each. ValueError for a folder without
    snapshots.
    """
    paths: list[str] = []
    for spec in specs.split(','):
        if not os.path.isdir(spec) or is_diffusers(spec):
            paths.append(spec)
            continue
        snapshots = files_of(Path(spec), SNAPSHOT)
        if not snapshots:
            raise ValueError(f'--network={spec} is a folder without network-snapshot-*.pkl: '
                             'name the folder of a run, or a file')
        paths += map(str, snapshots)
    return [Network(path, name) for path in paths
            for name in (weights.split(',') if weights else [None])]


def averages(run_dir: str, widths: Sequence[float], folder: Path) -> list[Network]:
    """Power-function averages of a run at its last snapshot, put together and written to `folder`;
    on all ranks."""
    made = []
    for width in widths:
        path = folder / f'power-{width:g}.pkl'

        def write(path: Path = path, width: float = width) -> None:
            checkpoint.save(reconstructed(run_dir, width)[0], path)

        distributed.on_rank_0(write)
        made.append(Network(str(path)))
    return made


@dataclass(frozen=True)
class Protocol:
    """How many images are judged: `blocks` times `num`, of seeds one after the other."""
    num: int
    seed: int = 0
    blocks: int = 1

    def seeds(self, block: int) -> range:
        return range(self.seed + block * self.num, self.seed + (block + 1) * self.num)

    @property
    def settings(self) -> Row:
        return {field.name: str(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class Point:
    """A network, sampler options and seeds; equal keys: equal numbers."""
    network: Network
    options: Mapping[str, Any]
    protocol: Protocol
    key: str

    @property
    def row(self) -> Row:
        """What is known before it is measured."""
        options = {FLAGS[name]: text(value) for name, value in self.options.items()}
        cells = {'point': self.key, **self.network.settings, **options, **self.protocol.settings}
        return {name: cell for name, cell in cells.items() if cell}


class RefusedError(ValueError):
    """A combination of settings that a sampler or network cannot work with."""


# The table

CIRCUMSTANCES = 'nfe', 'num', 'blocks', 'seed'
LAST = 'seconds', 'error'
SETTINGS = ('network', 'weights', 'kimg', *FLAGS.values())


class Table:
    """Points by their keys, in a CSV file that is complete at any time, in a folder that one
    command uses at once.

    Every addition writes the file anew and removes what the point had saved on its way: there is
    never the state of more than one point. Collective: rank 0 reads and writes, all ranks know the
    lines.
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
        """Where a point may save its progress."""
        return self.folder / 'state' / key

    def add(self, row: Row) -> None:
        """A new line, or another one for the same point."""
        self.rows[row['point']] = {name: row[name] for name in columns_of([row]) if name in row}
        distributed.on_rank_0(lambda: self._write(row['point']))

    def _open(self) -> dict[str, Row]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            lock.enter_context(held(self.folder / '.lock'))
            rows = self._read() if self.path.exists() else {}
            for key in rows:   # of a point whose command was killed when it was all but done
                shutil.rmtree(self.state(key), ignore_errors=True)
            self._lock = lock.pop_all()
        return rows

    def _read(self) -> dict[str, Row]:
        try:
            lines = list(csv.DictReader(io.StringIO(self.path.read_text(encoding='utf-8'),
                                                    newline=''), strict=True))
            rows = {line['point']: {name: cell for name, cell in line.items() if cell}
                    for line in lines}
            if any(None in row or not {'nfe', 'error'} & row.keys() for row in rows.values()):
                raise KeyError('columns')
        except (KeyError, UnicodeDecodeError, csv.Error):
            raise ValueError(f'{self.path} is not a table of fid.py, or a damaged one: '
                             'move it away, or name another --dest') from None
        return rows

    def _write(self, key: str) -> None:
        rows = self.rows.values()
        lines = io.StringIO()
        writer = csv.DictWriter(lines, columns_of(rows), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(self.path) as file:
            file.write(lines.getvalue().encode())
        shutil.rmtree(self.state(key), ignore_errors=True)


def measure_points(points: Sequence[Point], table: Table,
                   evaluate: Callable[[Point, Path], Row]) -> list[Row]:
    """Measure the points that are not in the table; the lines of all of them.

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
    """A point's settings as a command line has them."""
    names = (*(('network', 'weights') if with_network else ()), *FLAGS.values())
    return ' '.join(f'--{name}={row[name]}' for name in names if name in row) or 'default options'


def _outcome(row: Row) -> str:
    if 'error' in row:
        return f'refused: {row["error"]}'
    numbers = ', '.join(f'{name} {float(row[name]):g}' for name in scores_in([row]))
    return f'{numbers}, NFE {row["nfe"]}, {row["seconds"]} s'


def scores_in(rows: Iterable[Row]) -> list[str]:
    """The columns that are neither settings nor circumstances."""
    others = {'point', *SETTINGS, *CIRCUMSTANCES, *LAST}
    return list(dict.fromkeys(name for row in rows for name in row if name not in others))


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of a table of these lines, in their order."""
    settings = [name for name in SETTINGS if any(name in row for row in rows)]
    return ['point', *settings, *CIRCUMSTANCES, *scores_in(rows), *LAST]


# Reports

AXES = {'nfe': 'NFE, evaluations of the network for an image', 'kimg': 'Training images, thousands'}


def report(rows: Iterable[Row], metric: str) -> tuple[Row, Row]:
    """The reporting rule of Tables 3 and 4: the lowest value, and the lowest NFE whose value is
    within 3 % of it.

    Of numbers of which more is better, the highest takes the place of the lowest. Of equals the
    first line counts. ValueError where there is no line with that number.
    """
    measured = usable(rows, metric)
    if not measured:
        raise ValueError(f'no point has a {metric}: there is nothing to report')
    best = min(measured, key=lambda row: loss(row, metric))
    near = [row for row in measured if loss(row, metric) <= _limit(best, metric)]
    return best, min(near, key=lambda row: (float(row['nfe']), loss(row, metric)))


def loss(row: Row, metric: str) -> float:
    """A point's number, with its sign turned where more is better; infinite where it has none."""
    value = _sign(metric) * float(row.get(metric, 'nan'))
    return value if math.isfinite(value) else math.inf


def usable(rows: Iterable[Row], metric: str) -> list[Row]:
    """The lines that have a number."""
    return [row for row in rows if math.isfinite(loss(row, metric))]


def _limit(best: Row, metric: str) -> float:
    return loss(best, metric) + TOLERANCE * abs(loss(best, metric))


def _sign(metric: str) -> int:
    return -1 if higher_is_better(metric) else 1


def curves(rows: Sequence[Row], x: str = 'nfe') -> dict[str, list[Row]]:
    """Points by all of their settings that vary, but for those that move a point along the axis
    `x`."""
    rows = [{**row, 'network': os.path.dirname(row['network'])}
            for row in rows] if x == 'kimg' else list(rows)
    along = {*STEPS, 'kimg'} if x == 'nfe' else {x, 'kimg'}
    varied = [name for name in SETTINGS if name not in along
              and len({row.get(name) for row in rows}) > 1]
    shared = os.path.commonprefix([row['network'] for row in rows]).rfind('/') + 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        cells = {**row, 'network': row['network'][shared:]}
        found.setdefault(' '.join(f'{name}={cells[name]}' for name in varied if name in cells),
                         []).append(row)
    return {label: sorted(part, key=lambda row: float(row[x])) for label, part in found.items()}


def axis_of(rows: Sequence[Row]) -> str:
    """What a picture is drawn against: NFE where the steps vary, else the first of training and
    settings that does."""
    for name in (*STEPS, 'kimg', *FLAGS.values()):
        values = {row.get(name, '') for row in rows}
        if len(values) > 1 and all(map(_is_number, values)):
            return 'nfe' if name in STEPS else name
    return 'nfe'


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def draw(rows: Iterable[Row], metric: str, path: str | os.PathLike[str], label: str) -> None:
    """A picture of the numbers against the evaluations: a curve for each combination of the other
    settings.

    The best point is filled, the cheapest within 3 % of it ringed; the line is 3 % above the best.
    """
    rows = usable(rows, metric)
    best, cheapest = report(rows, metric)
    x = axis_of(rows)
    by_label = curves(rows, x)
    shown = sorted(by_label, key=lambda name: min(loss(row, metric)
                                                  for row in by_label[name]))[:CURVES]
    plt = pyplot()
    beside = len(by_label) > 4
    figure, axes = plt.subplots(figsize=(10.5 if beside else 7.5, 4.8), layout='constrained')
    for name, part in by_label.items():
        at, values = [float(row[x]) for row in part], [float(row[metric]) for row in part]
        if name not in shown:
            axes.plot(at, values, color='#cccccc', linewidth=0.8, zorder=1)
            continue
        order = list(filter(shown.__contains__, by_label)).index(name)
        axes.plot(at, values, color=plt.cm.tab10(order % 10), linestyle='-' if order < 10 else '--',
                  marker='.', linewidth=1.2, label=name or None, zorder=2)
    axes.axhline(_sign(metric) * _limit(best, metric), color='#888888', linewidth=0.8,
                 linestyle=':', zorder=0)
    for row, size, face, what in ((best, 6, 'black', 'best'), (cheapest, 11, 'none', 'fewest '
                                                                                     'evaluations '
                                                                                     'within 3 %')):
        axes.plot(float(row[x]), float(row[metric]), 'o', markersize=size, markerfacecolor=face,
                  markeredgecolor='black', linestyle='none', zorder=3,
                  label=f'{what}: {float(row[metric]):.4g} at NFE {row["nfe"]}')
    _scale(axes.set_xscale, axes.xaxis, sorted({float(row[x]) for row in rows}), plt)
    _scale(axes.set_yscale, axes.yaxis, sorted(float(row[metric]) for row in rows), plt)
    axes.set_xlabel(AXES.get(x, x))
    axes.set_ylabel(label)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8, **({'loc': 'center left', 'bbox_to_anchor': (1.01, 0.5)} if beside
                               else {}))
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=150, metadata={'Software': None})
    plt.close(figure)


def _scale(set_scale: Callable[..., None], axis: Any, values: Sequence[float],
           plt: Any) -> None:  # noqa: ANN401 (matplotlib's)
    """Logarithmic where values are positive and far apart, with plain numbers beside it."""
    if values[0] <= 0 or values[-1] < 4 * values[0]:
        return
    set_scale('log')
    subs = (1, 2, 5) if values[-1] < 200 * values[0] else (1,)
    axis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(plt.matplotlib.ticker.FuncFormatter(lambda value, _: f'{value:g}'))
    axis.set_minor_formatter(plt.matplotlib.ticker.NullFormatter())


def write_report(folder: Path, rows: Sequence[Row], metric: str, label: str) -> list[str]:
    """sweep.png and report.json in a folder, of points judged alike; the report in lines."""
    draw(rows, metric, folder / 'sweep.png', label)
    reports = {name: report(part, metric) for name, part in curves(usable(rows, metric)).items()}
    best, cheapest = report(rows, metric)
    write_json(folder / 'report.json', {
        'metric': metric, 'best': best, 'fewest evaluations within 3 %': cheapest,
        'curves': [{'curve': name, 'best': a, 'fewest evaluations within 3 %': b}
                   for name, (a, b) in reports.items()],
        'refused': [row for row in rows if 'error' in row]})
    lines = [f'{float(a[metric]):8.4g} {b["nfe"]:>6}  {name}' for name, (a, b) in reports.items()
             if len(reports) > 1]
    if lines:
        lines.insert(0,
                     f'{metric:>8} {"NFE":>6}  (best value; fewest evaluations within 3 % of it)')
    for what, row in (('Best', best), ('Fewest evaluations within 3 % of it', cheapest)):
        lines.append(f'{what}: {float(row[metric]):g} at NFE {row["nfe"]}, {described(row)}')
    return lines


def write_json(path: str | os.PathLike[str], told: Mapping[str, Any]) -> None:
    """A report, with numbers as numbers."""
    def plain(value: Any) -> Any:  # noqa: ANN401 (rows, and lists and dicts of them)
        if isinstance(value, Mapping):
            return {k: plain(v) if k not in ('point', 'network') else v for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, str) and _is_number(value):
            return int(value) if re.fullmatch(r'-?\d+', value) else float(value)
        return value

    with atomic_write(path) as file:
        file.write((json.dumps(plain(told), indent=2) + '\n').encode())


# The search

@dataclass(frozen=True)
class Grids:
    """The values tried for each number of Algorithm 2, rising: those of Table 5, its ellipses read
    as 1, 2, 5, 10."""
    S_churn: tuple[float, ...] = tuple(10.0 * i for i in range(11))
    S_min: tuple[float, ...] = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    S_max: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 80.0)
    S_noise: tuple[float, ...] = tuple(round(1 + i / 1000, 3) for i in range(11))

    def __post_init__(self) -> None:
        for name in NUMBERS:
            values = getattr(self, name)
            if not values or any(b <= a for a, b in itertools.pairwise(values)) or values[0] < 0:
                raise ValueError(f'--grid-{name}={text(values)} should be numbers from 0 that rise')

    def all(self) -> list[Churn]:
        """Every combination; those with S_min > S_max are none."""
        product = itertools.product(*(getattr(self, name) for name in NUMBERS))
        return [churn for churn in itertools.starmap(Churn, product) if churn.S_min <= churn.S_max]


def search_settings(grids: Grids, evaluate: Callable[[Churn], float],
                    same: Callable[[Churn], Hashable], rounds: int = 2) -> list[Churn]:
    """The settings tried, the best first: in rounds through the four numbers, or, with rounds = 0,
    all combinations.

    The paper searched its grid (Appendix E.2), which has 11,253 combinations, without saying in
    which order. A round takes one number after the other, as the paper lists them, tries all its
    values with the best of the others, and keeps the best. It begins where Table 4 does: noise at
    all levels, and S_noise at its lowest. The last round is the one that changes nothing. The
    deterministic sampler is tried like the others, but the search goes on from the best stochastic
    one: with S_churn = 0 the other numbers mean nothing.

    `evaluate` gives what should be low; inf: it cannot be had. Settings for which `same` gives
    equal things draw the same images, and are evaluated once. Of equally good ones the first tried
    comes first.
    """
    tried: dict[Hashable, tuple[Churn, float]] = {}

    def value(churn: Churn) -> float:
        key = same(churn)
        if key not in tried:
            tried[key] = churn, evaluate(churn)
        return tried[key][1]

    if rounds == 0:
        for churn in grids.all():
            value(churn)
    S_churn = next((number for number in grids.S_churn if number > 0), 0.0)
    best = Churn(S_churn, grids.S_min[0], grids.S_max[-1], grids.S_noise[0])
    for _ in range(rounds):
        before = best
        for name in NUMBERS:
            line = [dataclasses.replace(best, **{name: number}) for number in getattr(grids, name)]
            line = [churn for churn in line if churn.S_min <= churn.S_max]
            for churn in line:
                value(churn)
            best = min([best, *(churn for churn in line if churn.S_churn > 0)], key=value)
        if best == before:
            break
    return [churn for churn, _ in sorted(tried.values(), key=lambda pair: pair[1])]


def numbers_of(churn: Churn) -> dict[str, float]:
    """As sampler options: without fresh noise S_churn = 0 says it all."""
    return dataclasses.asdict(churn) if churn.S_churn > 0 else {'S_churn': 0.0}


def effect_of(churn: Churn, sigmas: Sequence[float]) -> Hashable:
    """γ_i at the noise levels σ_0 … σ_N, and S_noise if any is not 0: where these are equal, so are
    the images."""
    gammas = tuple(churn.gamma(sigma, len(sigmas) - 1) for sigma in sigmas[:-1])
    return gammas, churn.S_noise if any(gammas) else None


# Networks and images

class Evaluator:
    """Draws the images of points and judges them; networks are opened one after the other.
    Collective."""

    def __init__(self, judge: Judge, *, device: torch.device, classes: Sequence[int] | None = None,
                 rng: str | None = None, batch: int = 64,
                 opening: Mapping[str, Any] | None = None) -> None:
        """`opening`: further arguments of open_network, for all networks."""
        self.judge, self.device, self.batch = judge, device, batch
        self.classes, self.rng, self.opening = classes, rng, dict(opening or {})
        self.metric = names_of(judge.metrics[0], judge.main)[0]
        self._opened: dict[tuple[str, str | None], Any] = {}
        self._told: set[str] = set()

    def opened(self, network: Network, options: Mapping[str, Any]) -> list[Any]:
        """A network and, where there is one, its guide. ValueError for what cannot be opened."""
        guide = options.get('guide_network')
        if options.get('guidance') in (None, 1):
            guide = None   # not asked
        wanted = [(network.path, network.weights), *([(guide, None)] if guide is not None else [])]
        # no more than needed
        self._opened = {key: net for key, net in self._opened.items() if key in wanted}
        for key in wanted:
            if key not in self._opened:
                opening = self.opening if key == wanted[0] or is_diffusers(key[0]) else {}
                self._opened[key] = open_to_draw(key[0], self.device, key[1], **opening)
        return [self._opened[key] for key in wanted]

    def drawing(self, network: Network, options: Mapping[str, Any]) -> Opened:
        """RefusedError for options that do not go together, or not with this network."""
        networks = self.opened(network, options)
        try:
            drawing = planned(networks, options)
        except ValueError as error:
            raise RefusedError(str(error)) from None
        self._say(drawing.notes)
        return drawing

    def images(self, drawing: Opened, network: Network, seeds: range) -> GeneratedImages:
        return GeneratedImages(drawing.net, drawing.plan, seeds, device=self.device,
                               classes=self.classes, rng=self.rng, batch=self.batch,
                               source=network.path)

    def plan(self, networks: Iterable[Network], options: Sequence[Mapping[str, Any]],
             protocol: Protocol) -> list[Point]:
        """All options with each network; of points that draw the same images the first."""
        points: dict[str, Point] = {}
        for network in networks:
            for given in options:
                point = self.point(network, given, protocol)
                points.setdefault(point.key, point)
        return list(points.values())

    def point(self, network: Network, options: Mapping[str, Any], protocol: Protocol) -> Point:
        """ValueError for a network that cannot be read, and for classes that it does not have."""
        given = {name: options[name] for name in FLAGS if options.get(name) is not None}
        try:
            drawn = self.images(self.drawing(network, given), network,
                                protocol.seeds(0)).fingerprint()
        except RefusedError:
            drawn = f'{digest_of(self.opened(network, given)[0])} {spelled(given)}'
        told = repr((drawn, protocol, self.classes, self.judge.origin()))
        return Point(network, given, protocol, hashlib.sha256(told.encode()).hexdigest()[:16])

    def __call__(self, point: Point, state: Path) -> Row:
        """NFE, numbers and seconds; of several blocks the best numbers, as papers report them, mean
        and deviation."""
        started = time.monotonic()
        drawing = self.drawing(point.network, point.options)
        nfe = self._evaluations(point, drawing)
        scores = [self._scores(self.images(drawing, point.network, seeds),
                               state / f'seeds-{seeds[0]}-{seeds[-1]}')
                  for seeds in map(point.protocol.seeds, range(point.protocol.blocks))]
        return {'nfe': text(nfe), **summary(scores), 'seconds': f'{time.monotonic() - started:.1f}'}

    def _scores(self, images: GeneratedImages, state: Path) -> dict[str, float]:
        judge, reference = self.judge, self.judge.reference()   # the reference is on rank 0 only
        self._say(distributed.on_rank_0(lambda: [] if reference is None else judge.notes(images, reference)))
        try:
            measured = judge.measure(images, state, title=state.name)
        except ValueError as error:
            raise RefusedError(str(error)) from None

        def judged() -> dict[str, float]:
            assert isinstance(measured, Measured) and reference is not None
            return judge.judged(measured, reference, []).scores

        return distributed.on_rank_0(judged)

    def effect(self, network: Network, options: Mapping[str, Any]) -> Callable[[Churn], Hashable]:
        """`effect_of` at the noise levels of these options. ValueError for a sampler without
        S_churn."""
        drawing = self.drawing(network, options)
        sampler = drawing.plan.sampler
        if not hasattr(sampler, 'churn'):
            raise ValueError(f'{spelled(options) or "the sampler of this network"} has no S_churn '
                             f'to search for: use --sampler=table1 or angle')
        if isinstance(getattr(sampler, 'solver', None), MULTISTEP):
            raise ValueError(f'{spelled(options)}: a multistep solver cannot take fresh noise '
                             f'between its steps, so there is no S_churn to search for; use euler '
                             f'or heun')
        sigmas = drawing.plan.sigmas.tolist()
        return lambda churn: effect_of(churn, sigmas)

    def _evaluations(self, point: Point, drawing: Opened) -> float:
        """NFE of an image: of the first, or, where it depends on the image, of the first ones on
        average."""
        sampler = drawing.plan.sampler
        count = min(PROBED, point.protocol.num) if isinstance(sampler,
                                                              tuple(ADAPTIVE.values())) else 1
        seeds = point.protocol.seeds(0)[:count]
        classes = self.classes and [self.classes[i % len(self.classes)] for i in range(count)]
        try:
            with distributed.errors_on_all(ValueError, FloatingPointError):
                generate(drawing.net, drawing.plan, seeds, classes, self.device, self.rng)
        except ValueError as refusal:
            raise RefusedError(str(refusal)) from None
        return drawing.evaluations / count

    def _say(self, notes: Iterable[str]) -> None:
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                distributed.print0(f'Note: {with_flags(note, PARAMETERS)}')


def summary(scores: Sequence[Mapping[str, float]]) -> Row:
    """All numbers of the block that is best by the first; of several blocks also the means and
    standard deviations."""
    first = next(iter(scores[0]))
    best = min(scores, key=lambda score: _sign(first) * score[first])
    found: Row = {}
    for name in best:
        values = np.array([score[name] for score in scores])
        found[name] = repr(float(best[name]))
        if len(values) > 1:
            found |= {f'{name}_mean': repr(float(values.mean())),
                      f'{name}_deviation': repr(float(values.std(ddof=1)))}
    return found
