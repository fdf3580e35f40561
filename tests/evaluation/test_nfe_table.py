"""Tables of samplers and NFE: numbers of steps, cells, and fid.py sweep --layout=nfe."""

import csv
import itertools

import pytest
import torch

from evaluation import sweep
from evaluation.nfe_table import IMPOSSIBLE, comma_separated, laid_out, latex, markdown, steps_for
from limpid.denoiser import Traits
from limpid.solvers import SOLVERS
from options.network import planned
from tests.evaluation.test_sweep import data, no_clock, run  # noqa: F401 (fixtures)
from tests.oracles import Gaussian

TOLD = Traits(image_shape=(1, 2, 2), label_dim=0)


def counted(options):
    """The evaluations of a network itself, by its own count."""
    net = Gaussian(traits=TOLD)
    opened = planned([net], options)
    opened.plan(opened.net, torch.ones(1, 1, 2, 2), None, torch.zeros_like)
    return len(net.sigmas)


@pytest.mark.parametrize('options', [
    *({'solver': solver, 'final': final, **afs} for solver, final, afs in itertools.product(
        SOLVERS, ('denoise', 'sigma-min'), ({}, {'afs': 0.0}))),
    *({'sampler': name} for name in ('ddim', 'em', 'ancestral', 'angle', 'sde', 'sde-dpmpp')),
    {'sampler': 'pc', 'corrector_steps': 2}, {'disc': 'iddpm'}, {'solver': 'heun', 'S_churn': 9.0}],
    ids=str)
def test_numbers_of_steps_have_the_nfe(options):
    found = {nfe: steps_for([Gaussian(traits=TOLD)], options, nfe) for nfe in range(1, 12)}
    for nfe, num_steps in found.items():
        if num_steps is not None:
            assert counted({**options, 'num_steps': num_steps}) == nfe
    # Those that none has are between those of two numbers of steps.
    first = 2 if 'afs' in options else 1
    had = {counted({**options, 'num_steps': n}) for n in range(first, 14)}
    assert {nfe for nfe in found if found[nfe] is None} == set(found) - had


def test_numbers_of_steps_of_guided_and_limited_samplers():
    told = Traits(image_shape=(1, 2, 2), label_dim=3, label_dropout=0.1)
    nets = [Gaussian(traits=told)]
    assert [steps_for(nets, {'guidance': 2.0, 'solver': 'euler'}, nfe) for nfe in (3, 4)] == [
        None, 2]
    few = {'sampler': 'ddim', 'disc': 'ddpm-linear', 'sigma_min': 0.01, 'sigma_max': 0.04}
    assert [steps_for(nets, few, nfe) for nfe in (1, 8)] == [1, 8]
    with pytest.raises(ValueError, match='9 steps are more than the 8 timesteps there are'):
        steps_for(nets, few, 9)
    with pytest.raises(ValueError, match='^its evaluations follow from a tolerance, and --nfe'):
        steps_for(nets, {'sampler': 'rk45'}, 8)


def row(solver, nfe, **cells):
    return {'network': 'net.pkl', 'solver': solver, 'nfe': str(nfe), **cells}


ROWS = [row('euler', 3, fid='93.356'), row('euler', 4, fid='0.12345'), row('heun', 4, fid='319.87'),
        row('heun', 3, error=IMPOSSIBLE), row('dpm_2', 3, error='no & never'),
        row('dpm_2', 4, error=IMPOSSIBLE)]


def test_a_table_in_three_formats():
    layout = laid_out(ROWS, 'fid')
    assert markdown(layout, 'FID') == (
        '| FID; NFE | 3 | 4 |\n| --- | ---: | ---: |\n'
        '| solver=euler | **93.36** | **0.123** |\n'
        '| solver=heun | – (1) | 319.87 |\n'
        '| solver=dpm_2 | – (2) | – (1) |\n\n'
        '(1) no number of steps has this NFE\n\n(2) no & never\n')
    assert latex(layout, 'FID').splitlines() == [
        r'\begin{tabular}{lrr}', r'\hline', r'FID; NFE & 3 & 4 \\', r'\hline',
        r'solver=euler & \textbf{93.36} & \textbf{0.123} \\', r'solver=heun & --$^{1}$ & 319.87 \\',
        r'solver=dpm\_2 & --$^{2}$ & --$^{1}$ \\', r'\hline', r'\end{tabular}',
        r'\noindent $^{1}$ no number of steps has this NFE\par',
        r'\noindent $^{2}$ no \& never\par']
    assert list(csv.reader(comma_separated(layout).splitlines())) == [
        ['sampler', '3', '4', 'reasons'], ['solver=euler', '93.356', '0.12345', ''],
        ['solver=heun', '–', '319.87', f'NFE 3: {IMPOSSIBLE}'],
        ['solver=dpm_2', '–', '–', f'NFE 3: no & never; NFE 4: {IMPOSSIBLE}']]


def test_of_equal_cells_the_best_counts_and_more_may_be_better():
    rows = [row('euler', 3, prec='0.5', steps='3'), row('euler', 3, prec='0.7', steps='4'),
            row('heun', 3, prec='0.6')]
    assert '| solver=euler | 0.5 |' not in markdown(laid_out(rows, 'prec'), '')
    fid = [row('euler', 3, fid='5', steps='3'), row('euler', 3, fid='7', steps='4')]
    assert '| all points | **5.00** |' in markdown(laid_out(fid, 'fid'), 'FID')


def test_a_sweep_by_nfe_from_end_to_end(data, tmp_path, no_clock, monkeypatch):  # noqa: F811
    """Points that a sampler cannot have are dashes; those refused too, and the exit code says so;
    a killed sweep goes on where it was."""
    options = [*data, f'--dest={tmp_path}', '--nfe=2,3', '--final=sigma-min', '--layout=nfe']
    assert run('sweep', *options, '--solver=euler').exit_code == 0
    drawn = []
    real = sweep.Sweep.__call__
    monkeypatch.setattr(sweep.Sweep, '__call__', lambda self, point, state: (
        drawn.append(point.options), real(self, point, state))[1])
    result = run('sweep', *options, '--solver=euler,heun', '--S_churn=0,1')
    assert result.exit_code == 0, result.output   # S_churn=0 draws as none given
    table = (tmp_path / 'nfe.md').read_text()
    assert table in result.output and f'(1) {IMPOSSIBLE}' in table
    lines = [line.split(' | ') for line in table.splitlines() if 'solver=' in line]
    assert [line[0] for line in lines] == [
        '| solver=euler S_churn=0', '| solver=euler S_churn=1', '| solver=heun S_churn=0',
        '| solver=heun S_churn=1']
    assert [line[2].startswith('– (1)') for line in lines] == [False, False, True, True]
    assert len(drawn) == 4   # euler without churn was there
    assert run('sweep', *options, '--solver=euler,heun', '--S_churn=0,1').exit_code == 0
    assert len(drawn) == 4
    refused = run('sweep', *options, '--solver=euler,ipndm', '--S_churn=1')
    assert refused.exit_code == 1
    assert '| solver=ipndm | – (1) | – (1) |' in (tmp_path / 'nfe.md').read_text()
    assert '(1) S_churn=1: a multistep solver cannot' in (tmp_path / 'nfe.md').read_text()
    assert {path.name for path in tmp_path.iterdir()} >= {'nfe.md', 'nfe.tex', 'nfe.csv',
                                                          'sweep.csv', 'sweep.png'}


@pytest.mark.parametrize(('more', 'expected'), [
    (['--nfe=4', '--steps=8'], '--nfe=4 chooses the number of steps: leave out --steps'),
    (['--nfe=4', '--sigmas=8,1'], '--nfe=4 chooses the number of steps: leave out --sigmas'),
    (['--nfe=0-3'], '--nfe=0: a sampler evaluates the network at least once')])
def test_what_nfe_goes_with(data, tmp_path, more, expected):  # noqa: F811
    result = run('sweep', *data, f'--dest={tmp_path}', *more)
    assert result.exit_code == 2 and result.output == f'Error: {expected}\n'
