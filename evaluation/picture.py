"""The picture of a sweep: a number against evaluations or settings, in curves."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from evaluation.report import axis_of, curves, rank_key, rank_limit, report, sign_of, usable
from evaluation.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

CURVES = 12            # the largest number of curves with a colour and a name
AXES = {'nfe': 'NFE, evaluations of the network for an image', 'kimg': 'Training images, thousands'}


def draw(rows: Iterable[Row], metric: str, path: str | os.PathLike[str], label: str) -> None:
    """Draw the numbers as curves against the axis of `axis_of`, one for each other combination.

    The best point is filled, the cheapest point within 3 % of it has a ring, and the dotted line is
    3 % above the best. `label` is the title of the numbers' axis.
    """
    rows = usable(rows, metric)
    x, plt = axis_of(rows), pyplot()
    by_label = curves(rows, x)
    beside = len(by_label) > 4   # the legend, which would hide the curves
    figure, axes = plt.subplots(figsize=(10.5 if beside else 7.5, 4.8), layout='constrained')
    _draw_curves(axes, by_label, metric, x)
    _mark(axes, rows, metric, x)
    _scale(axes.set_xscale, axes.xaxis, sorted({float(row[x]) for row in rows}))
    _scale(axes.set_yscale, axes.yaxis, sorted(float(row[metric]) for row in rows))
    axes.set_xlabel(AXES.get(x, x))
    axes.set_ylabel(label)
    axes.grid(linewidth=0.3)
    place = {'loc': 'center left', 'bbox_to_anchor': (1.01, 0.5)} if beside else {}
    axes.legend(fontsize=8, **place)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=150, metadata={'Software': None})
    plt.close(figure)


def _draw_curves(axes: 'Axes', by_label: dict[str, list[Row]], metric: str, x: str) -> None:
    """Draw all curves; those that are not among the best CURVES are grey and have no name."""
    best_first = sorted(by_label, key=lambda name: min(rank_key(row, metric)
                                                       for row in by_label[name]))
    shown = [name for name in by_label if name in best_first[:CURVES]]
    colours = pyplot().cm.tab10
    for name, part in by_label.items():
        at, values = [float(row[x]) for row in part], [float(row[metric]) for row in part]
        if name not in shown:
            axes.plot(at, values, color='#cccccc', linewidth=0.8, zorder=1)
            continue
        order = shown.index(name)
        axes.plot(at, values, color=colours(order % 10), linestyle='-' if order < 10 else '--',
                  marker='.', linewidth=1.2, label=name or None, zorder=2)


def _mark(axes: 'Axes', rows: Sequence[Row], metric: str, x: str) -> None:
    """Mark the best point, the cheapest near it, and how near that is."""
    best, cheapest = report(rows, metric)
    axes.axhline(sign_of(metric) * rank_limit(best, metric), color='#888888', linewidth=0.8,
                 linestyle=':', zorder=0)
    for row, size, face, what in ((best, 6, 'black', 'best'),
                                  (cheapest, 11, 'none', 'fewest evaluations within 3 %')):
        axes.plot(float(row[x]), float(row[metric]), 'o', markersize=size, markerfacecolor=face,
                  markeredgecolor='black', linestyle='none', zorder=3,
                  label=f'{what}: {float(row[metric]):.4g} at NFE {row["nfe"]}')


def _scale(set_scale: Callable[[str], None], axis: 'Axis', values: Sequence[float]) -> None:
    """Make an axis logarithmic, labelled with plain numbers, if values are far apart."""
    if values[0] <= 0 or values[-1] < 4 * values[0]:
        return
    ticker = pyplot().matplotlib.ticker
    set_scale('log')
    subs = (1, 2, 5) if values[-1] < 200 * values[0] else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
    axis.set_minor_formatter(ticker.NullFormatter())
