"""All experiments by name."""

import difflib
from collections.abc import Callable

from options.presets import PRESETS
from reproduction import edm, small, table1, zero_snr
from reproduction.experiment import Experiment


def edm_table_1() -> Experiment:
    """Return Table 1 of the EDM paper: each formula at one point."""
    values = [(row, column, paper) for row, cells in table1.cells().items()
              for column, paper in cells.items()]
    return edm.formulas('edm-table1', 'Each formula of Table 1 at one point', values,
                        'the formula as printed, evaluated at t = 0.5, i = 9 of N = 18, σ = 3, '
                        'and the first quartile of p_train')


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    'edm-table1': edm_table_1, 'edm-table2': edm.table_2, 'edm-table3': edm.table_3,
    'edm-table4': edm.table_4, 'edm-table5': edm.table_5,
    'edm-figure1': edm.figure_1, 'edm-figure2': edm.table_3, 'edm-figure3': edm.figure_3,
    'edm-figure4': edm.table_4, 'edm-figure5': edm.figure_5,
    'zero-snr-table1': zero_snr.table_1, 'zero-snr-table2': zero_snr.table_2,
    'zero-snr-figure1': zero_snr.figure_1, 'zero-snr-figure2': zero_snr.figure_2,
    'small-table2': small.table_2, 'small-table3': small.table_3, 'small-table4': small.table_4,
    'small-figure2': small.figure_2, 'small-figure4': small.figure_4,
    'small-figure5': small.figure_5,
}
NEEDS = {need.path: need.source for need in (*edm.NEEDS, *small.NEEDS)}


def experiment(name: str, out: str) -> Experiment:
    """Return an experiment with its files in the folder `out`.

    edm-table2/cifar10-cond-vp-F is Table 2 with that run alone. Raises ValueError for a name that
    there is not.
    """
    whole, _, part = name.partition('/')
    if whole not in EXPERIMENTS or part and (whole != 'edm-table2' or part not in PRESETS):
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f'did you mean {near[0]}? ' if near else ''
        raise ValueError(f'{name!r} is no table or figure: {hint}reproduce.py list names them')
    return (edm.table_2(part) if part else EXPERIMENTS[whole]()).at(out)
