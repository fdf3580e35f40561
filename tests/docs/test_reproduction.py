"""The pages of docs/reproduction: they are of the tables that the code has, and agree with it."""

import csv
import math
from pathlib import Path

import pytest

from reproduction import formulas
from reproduction.catalogue import EXPERIMENTS, experiment

PAGES = Path(__file__).parents[2] / 'docs' / 'reproduction'
VALUES = sorted(path.stem for path in PAGES.glob('*.csv'))


@pytest.mark.parametrize('name', VALUES)
def test_the_rows_are_those_of_the_code(name):
    with open(PAGES / f'{name}.csv', newline='') as file:
        written = [(row['row'], row['column'], row['paper']) for row in csv.DictReader(file)]
    expected = [(value.row, value.column, '' if value.paper is None else ' '.join(
        f'{part:g}' for part in value.paper) if isinstance(value.paper, tuple)
        else repr(value.paper)) for value in experiment(name, 'out/reproduction').values]
    assert written == expected


@pytest.mark.parametrize('name', ['edm-table1', 'zero-snr-table1'])
def test_what_needs_no_data_is_still_found(name):
    found = formulas.FORMULAS[name]()
    with open(PAGES / f'{name}.csv', newline='') as file:
        for row in csv.DictReader(file):
            assert math.isclose(float(row['ours']), found[row['row']][row['column']],
                                rel_tol=1e-9)


def test_every_page_has_an_experiment_and_its_picture():
    # benchmarks.detector_scale and benchmarks.peer_training write the other two
    pages = {path.stem for path in PAGES.glob('*.md')} - {'README', 'detector-scale', 'peer'}
    assert pages <= set(EXPERIMENTS) and set(VALUES) <= pages
    for name in pages:
        drawn = f']({name}.png)' in (PAGES / f'{name}.md').read_text()
        assert drawn == (PAGES / f'{name}.png').exists()
