"""The curves of a report, as pictures in SVG that hold no text of the runs."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dnnlib.plots import pyplot
from reports.run import Run, thinned
from training.stats_file import SIGMA_RANGES, number_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 500     # of a curve; each is the mean of its neighbours where there are more
COLOURS = ('#1f77b4', '#ff7f0e', '#2ca02c', '#d62728', '#9467bd', '#8c564b', '#e377c2', '#7f7f7f',
           '#bcbd22', '#17becf')   # of the runs, in their order
WIDEST = 1e-4, 1e3   # what a curve over noise levels shows of the first and of the last range
Levels = dict[str, tuple[float, float]]   # by range: the mean of the loss, the share of the images


def svg_of(draw: Callable[['Axes'], object], size: tuple[float, float] = (6.4, 3.6)) -> str:
    """Return the picture that `draw` draws into axes, as SVG, the same bytes each time."""
    plt = pyplot()
    with plt.rc_context({'svg.hashsalt': 'limpid', 'svg.fonttype': 'path'}):
        figure, axes = plt.subplots(figsize=size, layout='constrained')
        draw(axes)
        axes.grid(linewidth=0.3)
        file = io.StringIO()
        figure.savefig(file, format='svg', metadata=dict.fromkeys(
            ('Creator', 'Date', 'Format', 'Type')))
        plt.close(figure)
    text = file.getvalue()
    text = text[text.index('<svg'):]   # without a type of document, which names another place
    return re.sub(r'\n\s*', '\n', text)


def over_training(runs: Sequence[Run], name: str, title: str, dots: bool = False) -> str | None:
    """Draw a number of stats.jsonl against the images shown; None where no run has it."""
    # There is no pace before the first step.
    curves = [thinned([(kimg, value) for kimg, value in run.curve(name)
                       if value or not name.startswith('Timing/')], POINTS) for run in runs]
    values = [value for curve in curves for _, value in curve]
    if not any(values):
        return None

    def draw(axes: 'Axes') -> None:
        for i, curve in enumerate(curves):
            if curve:
                axes.plot(*zip(*curve, strict=True), **style_of(i), marker='o' if dots else None,
                          markersize=3)
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale('log')
        axes.set(xlabel='training images, thousands', ylabel=title)

    return svg_of(draw)


def style_of(i: int) -> dict[str, Any]:
    """Return colour and line of run i."""
    return {'color': COLOURS[i % len(COLOURS)], 'linewidth': 1.2,
            'linestyle': ('-', '--', ':')[i // len(COLOURS) % 3]}


def levels(lines: Sequence[dict[str, Any]]) -> Levels:
    """Return the mean of the loss in each range of σ, and the share of the images, over lines."""
    sums: dict[str, tuple[float, float]] = {}
    for line in lines:
        for name in SIGMA_RANGES:
            mean, entry = number_in(line, name), line.get(name)
            count = entry.get('num') if isinstance(entry, dict) else None
            if mean is not None and isinstance(count, int) and 0 < count < 2**53:
                total, number = sums.get(name, (0.0, 0.0))
                sums[name] = total + mean * count, number + count
    everything = sum(number for _, number in sums.values())
    return {name: (sums[name][0] / sums[name][1], sums[name][1] / everything)
            for name in SIGMA_RANGES if name in sums}


def phases(run: Run) -> dict[str, Levels]:
    """Return the loss by noise level of the first tick with a loss, and of the last tenth."""
    lines = [line for line in run.lines if any(name in line for name in SIGMA_RANGES)]
    if not lines:
        return {}
    last = levels(lines[-math.ceil(len(lines) / 10):])
    return {'first': levels(lines[:1]), 'last': last} if len(lines) > 1 else {'last': last}


def by_noise_level(runs: Sequence[Run]) -> str | None:
    """Draw the loss against the noise level: at the end, dashed at the start, and over the counts.

    The bars are the share of the images of the first run that has any in each range.
    """
    found = [phases(run) for run in runs]
    if not any(found):
        return None

    def draw(axes: 'Axes') -> None:
        beside = axes.twinx()
        for name, (_, share) in levels(next(run for run, told in zip(runs, found, strict=True)
                                            if told).lines).items():
            low, high = _within(name)
            beside.bar(low, share, high - low, align='edge', color='#dddddd', edgecolor='white')
        beside.set_ylabel('share of the images (bars)')
        axes.set_zorder(beside.get_zorder() + 1)
        axes.patch.set_visible(False)
        for i, told in enumerate(found):
            for phase, at in told.items():
                middle = [math.sqrt(math.prod(_within(name))) for name in at]
                line = {'linestyle': ':', 'linewidth': 0.9} if phase == 'first' else {}
                axes.plot(middle, [loss for loss, _ in at.values()], marker='o', markersize=3,
                          **{**style_of(i), **line})
        axes.set_xscale('log')
        axes.set(xlabel='noise level σ', ylabel='loss')
        axes.set_ylim(bottom=0)

    return svg_of(draw)


def _within(name: str) -> tuple[float, float]:
    """Return the ends of a range of σ as far as they are drawn."""
    low, high = SIGMA_RANGES[name]
    return max(low, WIDEST[0]), min(high, WIDEST[1])


def levels_over_training(run: Run) -> str | None:
    """Draw the loss of each range of σ against the images shown, from low (dark) to high levels."""
    curves = {name: thinned(run.curve(name), POINTS // 2) for name in SIGMA_RANGES}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None

    plt = pyplot()   # not within `draw`, whose settings it would undo

    def draw(axes: 'Axes') -> None:
        ends = [_within(name) for name in curves]
        norm = plt.matplotlib.colors.LogNorm(ends[0][0], ends[-1][1])
        for name, curve in curves.items():
            middle = math.sqrt(math.prod(_within(name)))
            axes.plot(*zip(*curve, strict=True), linewidth=1, color=plt.cm.viridis(norm(middle)))
        axes.set(xlabel='training images, thousands', ylabel='loss', yscale='log')
        axes.figure.colorbar(plt.cm.ScalarMappable(norm, 'viridis'), ax=axes,
                             label='noise level σ')

    return svg_of(draw)
