"""Reports of sweeps: the paper's rule of reporting, and report.json."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dnnlib.files import atomic_write
from evaluation.settings import FLAGS
from evaluation.table import SETTINGS, Row, described
from metrics.definitions import higher_is_better

TOLERANCE = 0.03       # the tolerance of the reporting rule
STEPS = ('steps', 'rtol', 'eps_rel')   # settings that move a point along its curve

def report(rows: Iterable[Row], metric: str) -> tuple[Row, Row]:
    """Apply the reporting rule of Tables 3 and 4 of Karras et al. 2022.

    Returns the line with the lowest value, and the line with the lowest NFE whose value is within
    3 % of it. For numbers of which more is better, the highest replaces the lowest. Of equal lines
    the first counts. Raises ValueError if no line has that number.
    """
    measured = usable(rows, metric)
    if not measured:
        raise ValueError(f'no point has a {metric}: there is nothing to report')
    best = min(measured, key=lambda row: rank_key(row, metric))
    near = [row for row in measured if rank_key(row, metric) <= rank_limit(best, metric)]
    return best, min(near, key=lambda row: (float(row['nfe']), rank_key(row, metric)))


def rank_key(row: Row, metric: str) -> float:
    """Return a point's number, signed so that lower is better, or infinity if it has none."""
    value = sign_of(metric) * float(row.get(metric, 'nan'))
    return value if math.isfinite(value) else math.inf


def usable(rows: Iterable[Row], metric: str) -> list[Row]:
    """Return the lines that have that number."""
    return [row for row in rows if math.isfinite(rank_key(row, metric))]


def rank_limit(best: Row, metric: str) -> float:
    """Return the largest rank_key that is within 3 % of the best."""
    return rank_key(best, metric) + TOLERANCE * abs(rank_key(best, metric))


def sign_of(metric: str) -> int:
    """Return 1 for a number of which less is better, else -1."""
    return -1 if higher_is_better(metric) else 1


def curves(rows: Sequence[Row], x: str = 'nfe') -> dict[str, list[Row]]:
    """Group points into curves: those that differ only in settings that change the axis `x`.

    Returns {label: points by rising x}. The label names the settings that vary between curves.
    """
    if x == 'kimg':   # the snapshots of a run are one network
        rows = [{**row, 'network': os.path.dirname(row['network'])} for row in rows]
    along = {*STEPS, 'kimg'} if x == 'nfe' else {x, 'kimg'}
    varied = [name for name in SETTINGS if name not in along
              and len({row.get(name) for row in rows}) > 1]
    shared = os.path.commonprefix([row['network'] for row in rows]).rfind('/') + 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        cells = {**row, 'network': row['network'][shared:]}
        label = ' '.join(f'{name}={cells[name]}' for name in varied if name in cells)
        found.setdefault(label, []).append(row)
    return {label: sorted(part, key=lambda row: float(row[x])) for label, part in found.items()}


def axis_of(rows: Sequence[Row]) -> str:
    """Choose the horizontal axis of a picture.

    It is NFE if the steps vary, else the first of training and settings that varies, else NFE.
    """
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


def write_report(folder: Path, rows: Sequence[Row], metric: str) -> list[str]:
    """Write report.json in a folder, of points judged alike; return the report in lines."""
    reports = {name: report(part, metric) for name, part in curves(usable(rows, metric)).items()}
    best, cheapest = report(rows, metric)
    write_json(folder / 'report.json', {
        'metric': metric, 'best': best, 'fewest evaluations within 3 %': cheapest,
        'curves': [{'curve': name, 'best': of_curve, 'fewest evaluations within 3 %': fewest}
                   for name, (of_curve, fewest) in reports.items()],
        'refused': [row for row in rows if 'error' in row]})
    lines = []
    if len(reports) > 1:
        lines.append(f'{metric:>8} {"NFE":>6}  (best value; fewest evaluations within 3 % of it)')
        for name, (of_curve, fewest) in reports.items():
            lines.append(f'{float(of_curve[metric]):8.4g} {fewest["nfe"]:>6}  {name}')
    for what, row in (('Best', best), ('Fewest evaluations within 3 % of it', cheapest)):
        lines.append(f'{what}: {float(row[metric]):g} at NFE {row["nfe"]}, {described(row)}')
    return lines


def write_json(path: str | os.PathLike[str], told: Mapping[str, object]) -> None:
    """Write a report of rows, and of lists and dictionaries of them, with numbers as numbers."""
    with atomic_write(path) as file:
        file.write((json.dumps(_with_numbers(told), indent=2) + '\n').encode())


def _with_numbers(value: object) -> object:
    """Turn text that is a number into a number, except a point's key and a network's name."""
    if isinstance(value, Mapping):
        return {key: member if key in ('point', 'network') else _with_numbers(member)
                for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_numbers(member) for member in value]
    if isinstance(value, str) and _is_number(value):
        return int(value) if re.fullmatch(r'-?\d+', value) else float(value)
    return value
