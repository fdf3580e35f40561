"""Drawing an experiment: points of sweep.csv files, or curves of JSON files, as one picture."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnlib.files import atomic_write, read_bounded
from dnnlib.plots import pyplot
from evaluation.table import LARGEST
from reproduction.experiment import Experiment, Line, Panel, is_missing

if TYPE_CHECKING:   # matplotlib is an extra
    from matplotlib.axes import Axes

SWEPT = {'nfe': 'NFE', 'S_churn': 'S_churn'}   # columns of sweep.csv that are axes
CURVES = {'sigma': 'σ', 'log SNR': 't', '√ᾱ': 't'}   # panels of JSON files: the name of x

LARGEST_LOSS = 3.0   # that is drawn; VP's and VE's grow with σ² before training

Curve = tuple[list[float], list[float]]


def points(line: Line, x: str, metric: str) -> Curve:
    """Return the points of a line by rising x; none where nothing was measured.

    Raises ValueError for a file that is damaged.
    """
    found = []
    for path in line.files:
        if is_missing(path):
            continue
        try:
            text = read_bounded(path, LARGEST).decode()
            found += [(float(row[x]), float(row[metric]))
                      for row in csv.DictReader(io.StringIO(text)) if row.get(metric)]
        except (KeyError, TypeError, ValueError, csv.Error):
            raise ValueError(f'{path} is damaged: delete its folder, and run again') from None
    found.sort()
    return [point[0] for point in found], [point[1] for point in found]


def curves(path: str, panel: str) -> dict[str, dict[str, Any]]:
    """Return the curves of a panel in a JSON file, by their labels."""
    if is_missing(path):
        return {}
    try:
        return dict(json.loads(read_bounded(path, LARGEST))['panels'][panel])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f'{path} is damaged: delete it, and run again') from None


def draw(experiment: Experiment, title: str, metric: str, dest: Path) -> bool:
    """Draw the panels, or copy the picture that a command made; return whether there is one.

    A panel of which nothing was measured is left out.
    """
    if experiment.images:
        path = experiment.images[0]
        if is_missing(path):
            return False
        with atomic_write(dest) as file:
            file.write(Path(path).read_bytes())
        return True
    panels = [panel for panel in experiment.panels
              if not all(is_missing(path) for line in panel.lines for path in line.files)]
    if not panels:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(max(5.2 * len(panels), 7.5), 4.2),
                                squeeze=False, layout='constrained')
    for ax, panel in zip(axes[0], panels, strict=True):
        _draw_panel(ax, panel, metric)
    figure.suptitle(title)
    with atomic_write(dest) as file:
        figure.savefig(file, format='png', dpi=110, metadata={'Software': None})
    plt.close(figure)
    return True


def _draw_panel(ax: 'Axes', panel: Panel, metric: str) -> None:
    """Draw the lines of a panel."""
    ax.set_title(panel.title)
    ax.grid(color='0.9', linewidth=0.6)
    if panel.x in CURVES:
        for line in panel.lines:
            _draw_curves(ax, line, panel.x)
        ax.set(xlabel=CURVES[panel.x], ylabel='loss' if panel.x == 'sigma' else panel.x)
        if panel.x == 'sigma':
            ax.set(xscale='log', ylim=(0, LARGEST_LOSS))
    else:
        for line in panel.lines:
            x, y = points(line, panel.x, metric)
            if x:
                ax.plot(x, y, color=line.colour, marker=line.marker, linestyle=line.style,
                        markersize=4, linewidth=1.2, label=line.label)
        ax.set(xlabel=SWEPT[panel.x], ylabel=metric, yscale='log')
        for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis('{x:g}')
        if panel.x == 'nfe':
            ax.set_xscale('log', base=2)
            ax.xaxis.set_major_formatter('{x:g}')
    ax.legend(frameon=False, fontsize=8)


# Curves of reproduction.losses that are drawn once, whatever the network.
SHARED = {'p_train': ('#b5302c', '--', 'p_train'),
          'Initial, F = 0': ('#4d9a57', ':', 'initial, expected')}


def _draw_curves(ax: 'Axes', line: Line, panel: str) -> None:
    """Draw the curves of a file: all of a loss, or the one with the label of the line."""
    found: dict[str, dict[str, Any]] = {}
    for path in line.files:
        found |= curves(path, panel)
    there = ax.get_legend_handles_labels()[1]
    for name, curve in found.items():
        if panel != 'sigma':
            if name == line.label:
                ax.plot(curve['x'], curve['y'], color=line.colour, label=line.label)
            continue
        if name in SHARED:
            colour, style, label = SHARED[name]
            if label not in there:
                ax.plot(curve['x'], curve['y'], color=colour, linestyle=style, label=label)
            continue
        style = '--' if name == 'Initial' else '-'
        ax.plot(curve['x'], curve['y'], color=line.colour, linestyle=style, linewidth=1.4,
                label=f'{line.label}, {name.lower()}')
        if name == 'Final':
            _shade(ax, curve, line.colour)


def _shade(ax: 'Axes', curve: dict[str, Any], colour: str) -> None:
    """Shade one standard deviation around a curve."""
    pairs: Sequence[tuple[float, float]] = list(zip(curve['y'], curve['spread'], strict=True))
    ax.fill_between(curve['x'], [y - s for y, s in pairs], [y + s for y, s in pairs], color=colour,
                    alpha=0.15, linewidth=0)
