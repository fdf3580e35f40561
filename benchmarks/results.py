"""What a benchmark of speed leaves: NAME.json, a table NAME.md, and a picture of it, NAME.png."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.files import atomic_write
from dnnlib.plots import pyplot

COLOURS = ('#3b6ea5', '#d98324', '#4d9a57', '#b5302c', '#7a5195', '#8c6d4f')
ROW = 0.22   # inches that a bar takes


@dataclass(frozen=True)
class Bars:
    """Horizontal bars of `what`, for each row one for each series: values[row][series]."""
    what: str
    values: Mapping[str, Mapping[str, float]]

    @property
    def height(self) -> float:
        """The height in inches."""
        return 0.9 + ROW * sum(1 + len(row) for row in self.values.values())

    def draw(self, axes: Any) -> None:  # noqa: ANN401 (matplotlib has no types)
        """Draw the rows from top to bottom, with the numbers beside the bars."""
        series = list(dict.fromkeys(name for row in self.values.values() for name in row))
        place, ticks = 0.0, []
        for row in self.values.values():
            ticks.append(place + (len(row) - 1) / 2)
            for name, value in row.items():
                colour = COLOURS[series.index(name) % len(COLOURS)]
                label = name if name not in axes.get_legend_handles_labels()[1] else None
                axes.barh(place, value, color=colour, label=label)
                axes.text(value, place, f' {value:.3g}', va='center', fontsize=8)
                place += 1
            place += 1
        axes.set_yticks(ticks, list(self.values))
        axes.invert_yaxis()
        axes.set_xlabel(self.what)
        axes.margins(x=0.12)
        if len(series) > 1:
            axes.legend(fontsize=8)


@dataclass(frozen=True)
class Lines:
    """Lines of `what` over `across`, one for each series, with a scale of powers of two below."""
    across: str
    what: str
    values: Mapping[str, Mapping[float, float]]
    height: float = 3.2

    def draw(self, axes: Any) -> None:  # noqa: ANN401 (matplotlib has no types)
        """Draw the lines from 0 upward."""
        for (name, line), colour in zip(self.values.items(), COLOURS * 9, strict=False):
            axes.plot(list(line), list(line.values()), 'o-', color=colour, label=name)
        places = sorted({x for line in self.values.values() for x in line})
        axes.set_xscale('log', base=2)
        axes.set_xticks(places, [f'{x:g}' for x in places])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(self.across)
        axes.set_ylabel(self.what)
        if len(self.values) > 1:
            axes.legend(fontsize=8)


def written(dest: Path, name: str, found: Mapping[str, Any], text: str,
            charts: Sequence[Bars | Lines]) -> None:
    """Write all that was found as JSON, a text in Markdown under the machine's name, and charts.

    `found` may have a `machine` (benchmarks.speed.machine). Charts without values are left out, and
    where matplotlib is missing the text says so.
    """
    with atomic_write(dest / f'{name}.json') as file:
        file.write(json.dumps(found, indent=1).encode())
    parts = [', '.join(found['machine'].values())] if 'machine' in found else []
    try:
        drawn(dest / f'{name}.png', [chart for chart in charts if chart.values])
        notes = []
    except ValueError as missing:
        notes = [f'No picture: {missing}']
    with atomic_write(dest / f'{name}.md') as file:
        file.write(('\n\n'.join([*parts, text, *notes]) + '\n').encode())


def drawn(path: Path, charts: Sequence[Bars | Lines]) -> None:
    """Write charts below each other as a PNG file; raises ValueError where matplotlib is missing.

    Nothing is written where there is no chart.
    """
    plt = pyplot()
    if not charts:
        return
    heights = [chart.height for chart in charts]
    figure, axes = plt.subplots(len(charts), figsize=(8, sum(heights)), layout='constrained',
                                height_ratios=heights, squeeze=False)
    for chart, place in zip(charts, axes[:, 0], strict=True):
        chart.draw(place)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=110, metadata={'Software': None})
    plt.close(figure)
