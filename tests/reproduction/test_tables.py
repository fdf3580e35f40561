"""The arithmetic of tables, and the points of pictures."""

import json
import math

import numpy as np
import pytest
import torch

from reproduction import formulas, losses, pictures, table1
from reproduction.experiment import Experiment, Line, Panel, Source, Value
from reproduction.tables import as_csv, changes, find, grid, members, rows


def stored(path, told):
    path.write_text(json.dumps(told))
    return str(path)


def test_keys_lead_into_json():
    told = {'a': [{'b': 1}, {'b': 2}, {}], 'c': '--steps=18 --rho=7'}
    assert members(told, ['a', '*', 'b']) == [1, 2]
    assert members(told, ['c', '--rho']) == ['7']
    assert members(told, ['c', '--S_churn']) == [] == members(told, ['d'])


def test_the_lowest_of_three_blocks(tmp_path):
    told = {'blocks': [{'scores': {'fid': fid}} for fid in (1.85, 1.81, 1.86)]}
    source = Source(stored(tmp_path / 'a.json', told), 'blocks/*/scores/fid')
    found = find(Value('F', 'VP', 1.79, (source,), 'lowest'))
    assert (found.ours, found.count) == (1.81, 3)
    assert math.isclose(found.difference, 0.02) and math.isclose(found.spread, 0.0264575131)
    assert rows([found]) == [['F', 'VP', '1.79', '1.81', '+0.02', '0.026', '3']]
    assert as_csv([found]).splitlines()[1].startswith('F,VP,1.79,1.81,0.02')


def test_the_mean_over_seeds_of_which_one_is_missing(tmp_path):
    sources = tuple(Source(stored(tmp_path / f'{k}.json', {'fid': value}), 'fid')
                    for k, value in enumerate((2.0, 4.0)))
    found = find(Value('A', 'VP', None, (*sources, Source(str(tmp_path / 'no.json'), 'fid'))))
    assert (found.ours, found.count, found.difference) == (3.0, 2, None)
    assert math.isclose(found.spread, math.sqrt(2))
    assert find(Value('A', 'VP', 1.0, ())).ours is None


def test_lists_are_compared_one_by_one(tmp_path):
    source = Source(stored(tmp_path / 'a.json', {'t': [1, 112, 223]}), 't')
    assert find(Value('r', 'c', (1.0, 112.0, 223.0), (source,))).difference == 0
    assert find(Value('r', 'c', (1.0, 111.0, 220.0), (source,))).difference == 3
    assert find(Value('r', 'c', (1.0, 112.0), (source,))).difference == math.inf


def test_changes_from_row_to_row(tmp_path):
    def value(row, paper, *ours):
        sources = tuple(Source(stored(tmp_path / f'{row}{k}.json', {'x': number}), 'x')
                        for k, number in enumerate(ours))
        return find(Value(row, 'VP', paper, sources))

    lines = changes([value('A', 2.0, 10.0, 10.2), value('B', 1.5, 5.0, 5.1), value('C', 1.0, 8.0),
                     value('D', 2.0, 8.0, 8.2), value('E', 1.0)])
    assert [line[5] for line in lines] == ['–', '-50 %', '+58 %', '+1 %', '–']
    assert [line[7] for line in lines] == ['–', '-25 %', '-33 %', '+100 %', '-50 %']
    assert [line[8] for line in lines] == [
        '', 'as in the paper', 'other than the paper (N = 1)', 'within the spread', '']


def test_the_grid_of_the_paper(tmp_path):
    source = Source(stored(tmp_path / 'a.json', {'x': [2.0, 4.0]}), 'x/*')
    none = Source(str(tmp_path / 'no.json'), 'x')
    found = [find(Value('A', 'VP', 2.48, (source,))), find(Value('A', 'VE', 3.11, (none,))),
             find(Value('real', 'VP', None, (source,), 'lowest'))]
    assert grid(found).splitlines()[2:] == ['| A | 3.00 ± 1.4 (2.48) | – (3.11) |',
                                            '| real | 2.00 ± 1.4 |  |']


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"fid": "x"}')
    with pytest.raises(ValueError, match=f'^{path} is damaged, or not of this program'):
        find(Value('A', 'VP', 1.0, (Source(str(path), 'fid'),)))


def test_table_1_agrees_with_the_formulas_as_printed():
    ours = formulas.edm_table1()
    for row, cells in table1.cells().items():
        for column, paper in cells.items():
            assert math.isclose(ours[row][column], paper, rel_tol=1e-12), (row, column)


def test_the_rescaled_schedule_of_figure_2():
    panels = formulas.zero_snr_figure2()['panels']
    original, ours = panels['√ᾱ']['Original']['y'], panels['√ᾱ']['Ours']['y']
    assert math.isclose(original[-1], 0.06826491, rel_tol=1e-6) and ours[-1] == 0
    assert original[0] == ours[0] and math.isclose(ours[-2], 4.436088e-04, rel_tol=1e-6)
    assert len(panels['log SNR']['Ours']['y']) == 999   # without −∞


def test_the_points_of_a_sweep(tmp_path):
    table = tmp_path / 'sweep.csv'
    table.write_text('point,steps,nfe,fid,error\na,8,15,3.5,\nb,4,7,9.0,\nc,2,,,refused\n')
    line = Line('Heun', (str(table), str(tmp_path / 'no.csv')), 'red')
    assert pictures.points(line, 'nfe', 'fid') == ([7.0, 15.0], [9.0, 3.5])
    found = Experiment('t', (), panels=(Panel('p', 'nfe', (line,)),))
    assert pictures.draw(found, 't', 'fid', tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
    empty = Experiment('t', (), panels=(Panel('p', 'nfe', ()),))
    assert not pictures.draw(empty, 't', 'fid', tmp_path / 'b.png')
    assert not (tmp_path / 'b.png').exists()


def test_the_loss_of_denoisers_that_are_known():
    """λ(σ) |D − y|² of D = 0 is λ y², and that of D = x is λ σ² n²."""
    images = torch.linspace(-1, 1, 5 * 12).reshape(5, 3, 2, 2)
    sigma, cpu = 2.0, torch.device('cpu')
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    found = losses.losses(lambda x, s, labels: torch.zeros_like(x), images, None, sigma, 2, cpu)
    assert torch.allclose(found, weight * images.flatten(1).square().mean(1).double(), rtol=1e-6)
    noisy = [losses.losses(lambda x, s, labels: x, images, None, sigma, batch, cpu)
             for batch in (2, 5)]
    assert torch.allclose(*noisy, rtol=1e-6) and 0.2 < float(noisy[0].mean() / weight / 4) < 3


def test_the_loss_at_first_and_p_train():
    for sigma in (0.002, 0.5, 80.0):
        assert math.isclose(losses.expected_at_first(sigma, 0.25), 1)
    assert math.isclose(losses.expected_at_first(1e9, 0.5), 2)
    assert losses.p_train(math.exp(-1.2)) == 1
    assert math.isclose(losses.p_train(1.0), np.exp(-0.5))
