"""Sweeps and searches: the rule of the paper, the table after a kill, the path through the grid,
and both commands."""

import csv
import dataclasses
import itertools
import json
import math
import types

import click
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import fid
from dnnlib.plots import pyplot as plots
from evaluation import sweep
from evaluation.generated import GeneratedImages
from evaluation.picture import draw
from evaluation.report import axis_of, curves, report
from evaluation.search import Grids, effect_of, numbers_of, search_settings
from evaluation.settings import FLAGS, combinations, spelled, swept_options, text
from evaluation.sweep import networks
from evaluation.table import Network, Point, Protocol, RefusedError, Table, measure_points
from limpid.samplers import Churn
from metrics.one_pass import measure
from tests.commands.test_fid import error, lines, on_ranks, smooth_images, write

# The reporting rule

def row(nfe, value, metric='fid', **settings):
    return {'network': 'net.pkl', 'nfe': str(nfe), metric: str(value), **settings}


@pytest.mark.parametrize(('points', 'best', 'cheapest'), [
    # 2.93/35: the first NFE of a falling curve that is within 3 % of 2.93 = 3.0179
    ([(11, 14.1), (19, 4.5), (27, 3.02), (35, 3.0179), (79, 2.93), (255, 2.95)], (79, 2.93),
     (35, 3.0179)),
    ([(35, 3.0), (79, 2.93), (27, 3.0178)], (79, 2.93), (27, 3.0178)),
    ([(511, 1.36)], (511, 1.36), (511, 1.36)),
    # of equal NFE the better, of equals the first
    ([(35, 2.0), (35, 1.97), (71, 1.97)], (35, 1.97), (35, 1.97)),
    # KID may be negative: −0.97 is the limit
    ([(9, -0.97), (19, -1.0), (5, -0.96)], (19, -1.0), (9, -0.97)),
    ([(9, math.nan), (19, 2.0), (5, math.inf)], (19, 2.0), (19, 2.0)),
])
def test_lowest_value_and_fewest_evaluations_within_three_percent(points, best, cheapest):
    found = report([row(*point) for point in points], 'fid')
    assert [(int(r['nfe']), float(r['fid'])) for r in found] == [best, cheapest]


def test_of_some_numbers_more_is_better():
    rows = [row(9, 0.786, 'demo_precision'), row(19, 0.81, 'demo_precision'),
            row(5, 0.785, 'demo_precision')]
    # 0.97 · 0.81 = 0.7857
    assert [r['nfe'] for r in report(rows, 'demo_precision')] == ['19', '9']


def test_nothing_to_report():
    with pytest.raises(ValueError, match='^no point has a fid: there is nothing to report$'):
        report([{'nfe': '5', 'error': 'x'}], 'fid')


# Values with commas between

def test_every_sampler_option_takes_values_of_its_own_type():
    def parse(*options):
        return click.command(swept_options(lambda: None)).make_context('x', list(options)).params

    parsed = parse('--steps=8,16', '--solver=euler,heun', '--rho=7,inf', '--sigmas=80,1,0.1',
                   '--clip=true,0', '--S_churn=0')
    assert {k: v for k, v in parsed.items() if v is not None} == {
        'num_steps': [8, 16], 'solver': ['euler', 'heun'], 'rho': [7.0, math.inf],
        'sigmas': [[80.0, 1.0, 0.1]], 'clip': [True, False], 'S_churn': [0.0]}
    assert set(parsed) == set(FLAGS)
    for bad in ('--steps=8,0', '--solver=euler,foo', '--rho=3,', '--S_churn=x'):
        with pytest.raises(click.BadParameter):
            parse(bad)


def test_the_product_is_in_the_order_of_the_options():
    found = combinations({'num_steps': [8, 16], 'solver': None, 'rho': [3.0, 7.0]})
    assert found == [{'num_steps': 8, 'rho': 3.0}, {'num_steps': 8, 'rho': 7.0},
                     {'num_steps': 16, 'rho': 3.0}, {'num_steps': 16, 'rho': 7.0}]
    assert combinations({'num_steps': None}) == [{}]


def test_options_are_written_as_they_are_read():
    assert [text(v) for v in (40.0, 1.003, 0.1 + 0.2, 1e-5, math.inf, True, 18, 'heun',
                              [80.0, 0.1])] == [
        '40', '1.003', '0.30000000000000004', '1e-05', 'inf', 'true', '18', 'heun', '80,0.1']
    assert spelled({'S_noise': 1.003, 'num_steps': 256, 'solver': None,
                    'S_churn': 40.0}) == '--steps=256 --S_churn=40 --S_noise=1.003'


def test_a_folder_stands_for_its_snapshots(tmp_path):
    for name in ('network-snapshot-010000.pkl', 'network-snapshot-002500.pkl',
                 'training-state-010000.pt'):
        (tmp_path / name).touch()
    found = networks(f'{tmp_path},ideal:x.zip', 'ema:0.5,ema:0.05')
    paths = [f'{tmp_path}/network-snapshot-002500.pkl', f'{tmp_path}/network-snapshot-010000.pkl',
             'ideal:x.zip']
    assert found == [Network(path, name) for path in paths for name in ('ema:0.5', 'ema:0.05')]
    assert [n.settings['kimg'] for n in found[::2]] == ['2500', '10000', '']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='is a folder without network-snapshot'):
        networks(str(tmp_path / 'empty'))


# The table

def points_of(steps):
    return [Point(Network('net.pkl'), {'num_steps': n}, Protocol(100), f'{n:016x}') for n in steps]


def score(point, state):
    """Numbers that are a function of the point; its progress is saved on the way."""
    state.mkdir(parents=True)
    (state / 'progress').touch()
    n = point.options['num_steps']
    if n == 3:
        raise RefusedError('not\n with 3, or "commas"')
    return {'nfe': str(2 * n - 1), 'fid': repr(1 / n), 'seconds': '1.5'}


def test_a_killed_sweep_continues_to_the_same_bytes(tmp_path):
    with Table(tmp_path / 'a', 'sweep.csv') as table:
        rows = measure_points(points_of([2, 3, 4, 5]), table, score)
    assert [r.get('fid') for r in rows] == ['0.5', None, '0.25',
                                            '0.2'] and rows[1]['error'] == 'not with 3, or "commas"'
    assert (tmp_path / 'a' / 'sweep.csv').read_text().splitlines()[:3] == [
        'point,network,steps,nfe,num,blocks,seed,fid,seconds,error',
        f'{2:016x},net.pkl,2,3,100,1,0,0.5,1.5,',
        f'{3:016x},net.pkl,3,,100,1,0,,,"not with 3, or ""commas"""']
    assert not any((tmp_path / 'a' / 'state').iterdir())

    measured = []

    def killed_at(n):
        def evaluate(point, state):
            measured.append(point.options['num_steps'])
            found = score(point, state)
            if point.options['num_steps'] == n:
                raise KeyboardInterrupt
            return found
        return evaluate

    for n in (4, 5):
        with pytest.raises(KeyboardInterrupt), Table(tmp_path / 'b', 'sweep.csv') as table:
            measure_points(points_of([2, 3, 4, 5]), table, killed_at(n))
        assert [p.name for p in (tmp_path / 'b' / 'state').iterdir()] == [f'{n:016x}']
        (tmp_path / 'b' / 'state' / f'{n:016x}' / 'progress').unlink()
        (tmp_path / 'b' / 'state' / f'{n:016x}').rmdir()
    with Table(tmp_path / 'b', 'sweep.csv') as table:
        again = measure_points(points_of([2, 3, 4, 5]), table, killed_at(None))
    assert measured == [2, 3, 4, 3, 4, 5, 3, 5]   # what was refused is tried again
    assert again == rows
    assert (tmp_path / 'b' / 'sweep.csv').read_bytes() == (
        tmp_path / 'a' / 'sweep.csv'
    ).read_bytes()


def test_what_a_finished_point_left_is_removed(tmp_path):
    """Killed between the table and the removal."""
    with Table(tmp_path, 'sweep.csv') as table:
        measure_points(points_of([2]), table, score)
        table.state(f'{2:016x}').mkdir()
    with Table(tmp_path, 'sweep.csv') as table:
        assert not table.state(f'{2:016x}').exists() and f'{2:016x}' in table


@pytest.mark.parametrize('key', ['/victim', '../victim', '.', '..', '', '0123456789ABCDEF',
                                 '0123456789abcdef/../../../victim', '0123456789abcdef '])
def test_no_text_of_a_table_becomes_a_path(tmp_path, key):
    victim = tmp_path / 'victim'
    victim.mkdir()
    (victim / 'precious').touch()
    folder = tmp_path / 'sweep'
    (folder / 'state').mkdir(parents=True)
    key = str(victim) if key == '/victim' else key
    (folder / 'sweep.csv').write_text(f'point,nfe\n"{key}",3\n')
    with pytest.raises(ValueError, match='sweep.csv is not a table of fid.py'):
        Table(folder, 'sweep.csv').__enter__()
    assert (victim / 'precious').exists() and (folder / 'state').exists()


def test_nothing_behind_a_link_is_deleted(tmp_path):
    (tmp_path / 'victim' / f'{1:016x}').mkdir(parents=True)
    (tmp_path / 'victim' / f'{1:016x}' / 'precious').touch()
    for name, link, target in (('a', 'state', 'victim'),
                               ('b', f'state/{1:016x}', f'victim/{1:016x}')):
        (tmp_path / name / link).parent.mkdir(parents=True)
        (tmp_path / name / link).symlink_to(tmp_path / target)
        (tmp_path / name / 'sweep.csv').write_text(f'point,nfe\n{1:016x},3\n')
        with Table(tmp_path / name, 'sweep.csv') as table:
            assert f'{1:016x}' in table
    assert (tmp_path / 'victim' / f'{1:016x}' / 'precious').exists()


def test_tables_that_cannot_be_used(tmp_path):
    key = f'{1:016x}'
    for table in ('\udcff\udcfe', 'a,b\n1,2\n', f'point,nfe,fid\n{key},3,low\n',
                  f'point,nfe\n{key},3,7\n', f'point,nfe\n{key},\n', f'point,nfe\n"{key}\n'):
        content = table.encode('utf-8', 'surrogateescape')
        (tmp_path / 'sweep.csv').write_bytes(content)
        with pytest.raises(ValueError, match='sweep.csv is not a table of fid.py, or a damaged '
                                             'one: move it away, or name another --dest$'):
            Table(tmp_path, 'sweep.csv').__enter__()
    (tmp_path / 'sweep.csv').unlink()
    with (
        Table(tmp_path, 'sweep.csv'),
        pytest.raises(ValueError, match='is in use by another process'),
    ):
        Table(tmp_path, 'sweep.csv').__enter__()


# Pictures

def test_curves_are_named_by_what_varies():
    rows = [row(n, 1, steps=str(n), solver=solver, rho='7') for n in (16, 8)
            for solver in ('euler', 'heun')]
    found = curves(rows)
    assert list(found) == ['solver=euler',
                           'solver=heun'] and [r['nfe'] for r in found['solver=heun']] == ['8',
                                                                                           '16']
    assert list(curves(rows[:1])) == ['']
    assert axis_of(rows) == 'nfe'
    assert axis_of([row(35, 1, S_churn=c) for c in ('0', '10')]) == 'S_churn'
    runs = [row(35, 1, **{'network': f'runs/{run}/network-snapshot-{k:06d}.pkl', 'kimg': str(k)})
            for run in ('mine', 'mine2') for k in (10, 20)]
    assert axis_of(runs) == 'kimg' and list(curves(runs, 'kimg')) == ['network=mine',
                                                                      'network=mine2']
    assert list(curves(runs)) == [f'network={run}/network-snapshot-{k:06d}.pkl'
                                  for run in ('mine', 'mine2') for k in (10, 20)]


def test_a_picture_shows_the_curves_and_the_rule(tmp_path, monkeypatch):
    """Twelve of fourteen curves are named, the best; the limit is 3 % above the lowest value."""
    pyplot = plots()
    figures = []
    monkeypatch.setattr(pyplot, 'close', figures.append)
    rows = [row(n, 2 + k / n, steps=str(n), rho=str(k)) for k in range(1, 15) for n in (8, 16, 32)]
    draw(rows, 'fid', tmp_path / 'a.png', 'FID')
    [axes] = figures[0].axes
    names = [t.get_text() for t in axes.get_legend().get_texts()]
    assert names == [
        *(f'rho={k}' for k in range(1, 13)),
        'best: 2.031 at NFE 32',
        'fewest evaluations within 3 %: 2.062 at NFE 16',
    ]
    assert len(
        axes.lines) == 14 + 3 and axes.get_xscale() == 'log' and axes.get_yscale() == 'linear'
    assert axes.lines[14].get_ydata()[0] == pytest.approx(1.03 * 2.03125)
    draw(rows, 'fid', tmp_path / 'b.png', 'FID')
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
    assert PIL.Image.open(tmp_path / 'a.png').size == (1575, 720)


# The search

def bowl(churn):
    """Lowest at the paper's setting for ImageNet-64; 2 without noise."""
    if churn.S_churn == 0:
        return 2.0
    at = (
        churn.S_churn / 40,
        math.log(churn.S_min + 0.01) - math.log(0.06),
        math.log(churn.S_max / 50),
        (churn.S_noise - 1.003) * 100,
    )
    return 1.36 + sum((a - b) ** 2 for a, b in zip(at, (1, 0, 0, 0), strict=True)) / 10


PAPER = Churn(40.0, 0.05, 50.0, 1.003)


def itself(churn):
    """Without fresh noise the other numbers mean nothing."""
    return churn if churn.S_churn > 0 else None


def test_the_grids_are_those_of_table_5():
    grids = Grids()
    assert grids.S_churn == tuple(range(0, 101, 10)) and (
        len(grids.S_min),
        grids.S_min[4],
        grids.S_min[-1],
    ) == (12, 0.05, 10)
    assert (grids.S_max[0], grids.S_max[-1],
            len(grids.S_max)) == (0.2, 80, 9) and grids.S_noise[7] == 1.007
    # Table 5 itself
    for setting in (Churn(30, 0.01, 1, 1.007), Churn(80, 0.05, 1, 1.007),
                    Churn(80, 0.05, 50, 1.003), PAPER):
        assert setting in grids.all()
    pairs = sum(low <= high for low in grids.S_min for high in grids.S_max)
    assert pairs == 93 and len(grids.all()) == 93 * 11 * 11
    for bad in ((), (1.0, 1.0), (2.0, 1.0), (-1.0, 0.0)):
        with pytest.raises(ValueError,
                           match='^--grid-S_min=.* should be numbers from 0 that rise$'):
            Grids(S_min=bad)


def test_rounds_find_the_bottom_of_a_bowl():
    tried = []

    def evaluate(churn):
        tried.append(churn)
        return bowl(churn)

    found = search_settings(Grids(), evaluate, itself, rounds=5)
    assert found[0] == PAPER and len(found) == len(tried) == len(set(tried))
    # The first round: S_churn with the rest as far open as it goes, then the others in turn.
    assert tried[:11] == [Churn(c, 0.0, 80.0, 1.0) for c in Grids().S_churn]
    assert tried[11:22] == [Churn(40.0, low, 80.0, 1.0) for low in Grids().S_min[1:]]
    assert tried[22:30] == [Churn(40.0, 0.05, high, 1.0) for high in Grids().S_max[:8]]
    assert tried[30:40] == [Churn(40.0, 0.05, 50.0, noise) for noise in Grids().S_noise[1:]]
    # The second confirms, with one new S_noise: all but the best are new; the third is not needed.
    assert len(tried) == 40 + 9 + 11 + 8 and {churn.S_noise for churn in tried[40:]} == {1.003}
    assert [bowl(churn) for churn in found] == sorted(map(bowl, tried))


def test_all_combinations():
    grids = Grids((0.0, 20.0, 40.0), (0.0, 0.05), (0.02, 50.0), (1.0, 1.003))
    found = search_settings(grids, bowl, itself, rounds=0)
    assert found[0] == PAPER and len(found) == 1 + 2 * 3 * 2
    assert set(found) == {Churn(0.0, 0.0, 0.02, 1.0)} | {
        Churn(*values)
        for values in itertools.product((20.0, 40.0), *dataclasses.astuple(grids)[1:])
        if values[1] <= values[2]
    }


def test_the_deterministic_sampler_may_win_but_does_not_end_the_search():
    def evaluate(churn):
        return 1.0 if churn.S_churn == 0 else bowl(churn)

    found = search_settings(Grids(), evaluate, itself, rounds=5)
    assert found[0] == Churn(0.0, 0.0, 80.0, 1.0) and found[1] == PAPER
    assert numbers_of(found[0]) == {'S_churn': 0.0}
    assert numbers_of(found[1]) == {'S_churn': 40.0, 'S_min': 0.05, 'S_max': 50.0, 'S_noise': 1.003}


def test_what_cannot_be_had_is_passed_by():
    found = search_settings(Grids(), lambda churn: math.inf if churn.S_noise > 1.001
                            else bowl(churn), itself, rounds=5)
    assert found[0] == dataclasses.replace(PAPER, S_noise=1.001)


def test_settings_that_draw_the_same_images_are_evaluated_once():
    """With 8 steps γ is at its limit from S_churn = 3.3 on, and S_min between two noise levels
    changes nothing."""
    sigmas = [80.0, 40.0, 10.0, 2.0, 0.5, 0.1, 0.02, 0.002, 0.0]
    tried = []

    def evaluate(churn):
        tried.append(churn)
        return bowl(churn)

    def same(churn):
        return effect_of(churn, sigmas)

    search_settings(Grids(), evaluate, same, rounds=1)
    assert tried[:2] == [Churn(0.0, 0.0, 80.0, 1.0), Churn(10.0, 0.0, 80.0, 1.0)]
    assert len({same(churn) for churn in tried}) == len(tried) == 2 + 5 + 5 + 10
    assert same(Churn(10, 0.005)) == same(Churn(90, 0.02)) != same(Churn(10, 0.0)) and same(
        Churn(10, 3, 5, 1.003)
    ) == same(Churn(0))


# Both commands, with an ideal denoiser, the demo detector and few images

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Options: an ideal denoiser of 40 images of 8x8, and 300 others to compare with."""
    folder = tmp_path_factory.mktemp('data')
    network, ref = (
        write(folder / 'data.zip', smooth_images(40, size=8)),
        write(folder / 'ref.zip', smooth_images(300, size=8, seed=1)),
    )
    assert run('ref', f'--data={ref}', f'--dest={folder / "ref.npz"}', '--metrics=fid,kid,pr',
               '--detector=demo', '--device=cpu').exit_code == 0
    return [f'--network=ideal:{network}', f'--ref={folder / "ref.npz"}', '--detector=demo',
            '--device=cpu', '--num=70']


@pytest.fixture
def no_clock(monkeypatch):
    monkeypatch.setattr(sweep, 'time', types.SimpleNamespace(monotonic=lambda: 0.0))


def run(command, *options):
    return CliRunner().invoke(fid.main, [command, *map(str, options)])


def table_of(path):
    return list(csv.DictReader(path.open(newline='')))


def test_a_sweep_from_end_to_end(data, tmp_path, no_clock):
    output = lines(run('sweep', *data, f'--dest={tmp_path}', '--steps=3,6', '--solver=euler,heun',
                       '--metrics=fid,pr'))
    rows = table_of(tmp_path / 'sweep.csv')
    assert [(r['steps'], r['solver'], r['nfe'])
            for r in rows] == [('3', 'euler', '3'), ('3', 'heun', '5'), ('6', 'euler', '6'),
                               ('6', 'heun', '11')]
    single = lines(run('gen', *data, '--steps=6', '--solver=euler', '--metrics=fid,pr'))
    assert [
        f'{float(rows[2][name]):g}' for name in ('demo_fd', 'demo_precision', 'demo_recall')
    ] == [line.split()[-1] for line in single[-4:-1]]
    told = json.loads((tmp_path / 'report.json').read_text())
    assert (
        told['metric'] == 'demo_fd'
        and told['best']['demo_fd'] == min(float(r['demo_fd']) for r in rows)
        and told['refused'] == []
    )
    assert [curve['curve'] for curve in told['curves']] == ['solver=euler', 'solver=heun']
    best = told['best']
    assert (f'Best: {best["demo_fd"]:g} at NFE {best["nfe"]}, {data[0]} --steps={best["steps"]} '
            f'--solver={best["solver"]}' in output)
    assert PIL.Image.open(tmp_path / 'sweep.png').size == (1125, 720)
    assert list((tmp_path / 'state').iterdir()) == []


def test_a_sweep_goes_on_and_adds_nothing_twice(data, tmp_path, no_clock, monkeypatch):
    options = [*data, '--steps=3,6', '--rho=3,7', '--blocks=2']
    lines(run('sweep', *options, f'--dest={tmp_path / "a"}'))
    drawn = []
    monkeypatch.setattr(GeneratedImages, '_generate',
                        lambda self, positions, plain=GeneratedImages._generate: drawn.append(
                            len(positions)) or plain(self, positions))

    def killed(*arguments, **settings):
        """After the first pass of the third point: its images are seen, but not judged."""
        found = measure(*arguments, **settings)
        if len(drawn) > 2 * 2 * 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr('metrics.judge.measure', killed)
    # click's, for an interrupt
    assert run('sweep', *options, f'--dest={tmp_path / "b"}').exit_code == 1
    assert len(table_of(tmp_path / 'b' / 'sweep.csv')) == 2 and len(drawn) == 2 * 2 * 2 + 2
    [state] = (tmp_path / 'b' / 'state').iterdir()
    assert [p.name for p in state.iterdir()] == ['seeds-0-69']
    monkeypatch.setattr('metrics.judge.measure', measure)
    drawn.clear()
    output = lines(run('sweep', *options, f'--dest={tmp_path / "b"}'))
    assert output[0] == 'Points: 4 of 2 x 70 images, measured before: 2'
    assert drawn == [64, 6] * 3   # of four passes one was there
    for name in ('sweep.csv', 'report.json', 'sweep.png'):
        assert (tmp_path / 'b' / name).read_bytes() == (tmp_path / 'a' / name).read_bytes()
    assert lines(run('sweep', *options,
                     f'--dest={tmp_path / "b"}'))[
                         0] == 'Points: 4 of 2 x 70 images, measured before: 4' and len(drawn) == 6
    # Other seeds are other points; a longer list adds to a shorter one.
    assert lines(run('sweep', *options, '--seed=1',
                     f'--dest={tmp_path / "b"}'))[
                         0] == 'Points: 4 of 2 x 70 images, measured before: 0'
    assert lines(run('sweep', *data, '--steps=3,4', '--rho=7', '--blocks=2',
                     f'--dest={tmp_path / "b"}'))[
                         0] == 'Points: 2 of 2 x 70 images, measured before: 1'


def test_a_sweep_of_one_point_says_so_before_it_measures(data, tmp_path):
    output = lines(run('sweep', *data, '--steps=3', f'--dest={tmp_path}'))
    assert output[:2] == [
        'Points: 1 of 70 images, measured before: 0',
        'Note: there is nothing to compare with this one point: give an option several values, '
        'such as --steps=8,16,32, or name several networks']
    several = lines(run('sweep', *data, '--steps=3,4', f'--dest={tmp_path}'))
    assert not any('nothing to compare' in line for line in several)


def test_two_ranks_measure_the_same_bits(data, tmp_path):
    options = [*data, '--steps=3,6', '--metrics=fid,pr']
    lines(run('sweep', *options, f'--dest={tmp_path / "one"}'))
    on_ranks(2, 'sweep', *[o for o in options if not o.startswith(('--detector', '--device'))],
             f'--dest={tmp_path / "two"}')
    one, two = ([{k: v for k, v in r.items() if k != 'seconds'}
                 for r in table_of(tmp_path / name / 'sweep.csv')] for name in ('one', 'two'))
    assert one == two and len(one) == 2


def test_blocks_give_the_lowest_the_mean_and_the_deviation(data, tmp_path):
    lines(run('sweep', *data, '--steps=5', '--blocks=2', f'--dest={tmp_path}'))
    [found] = table_of(tmp_path / 'sweep.csv')
    values = [float(lines(run('gen', *data, '--steps=5', f'--seed={seed}'))[-1])
              for seed in (0, 70)]
    for name, value in (('', min(values)), ('_mean', np.mean(values)),
                        ('_deviation', np.std(values, ddof=1))):
        assert float(found[f'demo_fd{name}']) == pytest.approx(value, abs=2e-5)


def test_refused_combinations_are_told_and_the_rest_is_measured(data, tmp_path):
    result = run('sweep', *data, '--steps=4', '--solver=euler,dpmpp-2m', '--S_churn=1',
                 f'--dest={tmp_path}')
    message = (
        'S_churn=1: a multistep solver cannot take fresh noise between its steps; use euler or heun'
    )
    assert (result.exit_code == 1 and f'[2/2] --steps=4 --solver=dpmpp-2m --S_churn=1: refused: '
                                      f'{message}' in result.output.splitlines())
    assert [r['error'] for r in table_of(tmp_path / 'sweep.csv')] == ['', message]
    # refused before anything is drawn
    result = run('sweep', *data, '--sampler=rk45,ddim', '--rtol=0.1', f'--dest={tmp_path}')
    rows = table_of(tmp_path / 'sweep.csv')[2:]
    assert result.exit_code == 1 and rows[1][
        'error'] == '--rtol would have no effect with --sampler=ddim'
    assert (
        float(rows[0]['nfe']) > 8
        and len(json.loads((tmp_path / 'report.json').read_text())['refused']) == 1
    )


def test_guidance_is_swept_and_counts_twice(data, tmp_path):
    """A guide that is the network itself changes nothing but the number of evaluations."""
    options = [*data, '--steps=4', '--guidance=1,2',
               f'--guide-network={data[0].removeprefix("--network=")}']
    lines(run('sweep', *options, f'--dest={tmp_path}'))
    rows = table_of(tmp_path / 'sweep.csv')
    assert [(row['guidance'], row['nfe']) for row in rows] == [('1', '7'), ('2', '14')]
    assert float(rows[0]['demo_fd']) == pytest.approx(float(rows[1]['demo_fd']), rel=1e-6)


def test_what_is_wrong_with_all_points_ends_a_sweep_in_one_line(data, tmp_path):
    def refused(*options):
        return error(run('sweep', *data, '--steps=3', f'--dest={tmp_path}', *options))

    assert refused('--class=3').startswith('--class=3: this network is unconditional')
    result = run('sweep', *data, '--steps=3', f'--dest={tmp_path}', '--metrics=kid')
    assert result.exit_code == 2 and result.output.splitlines()[
        -1] == 'Error: --metrics=kid takes 1000 images or more, not 70'
    assert 'no.pkl' in refused('--network=no.pkl')


def test_a_search_from_end_to_end(data, tmp_path, no_clock, monkeypatch):
    options = [*data, '--steps=6', '--solver=heun', '--grid-S_churn=0,1,3', '--grid-S_min=0,1',
               '--grid-S_max=20,80', '--grid-S_noise=1,1.01', '--confirm=2', '--confirm-num=80',
               '--confirm-blocks=2', '--rounds=1']
    output = lines(run('search', *options, f'--dest={tmp_path}'))
    rows = table_of(tmp_path / 'search.csv')
    coarse, confirmed = [r for r in rows if r['num'] == '70'], [r for r in rows if r['num'] == '80']
    assert (
        len(coarse) == 3 + 1 + 1 + 1
        and len(confirmed) == 2
        and {r['blocks'] for r in confirmed} == {'2'}
    )
    best_few = sorted(coarse, key=lambda r: float(r['demo_fd']))[:2]
    assert [[r[name] for name in ('S_churn', 'S_min', 'S_max', 'S_noise')] for r in best_few] == [
        [r[name] for name in ('S_churn', 'S_min', 'S_max', 'S_noise')] for r in confirmed]
    best = min(confirmed, key=lambda r: float(r['demo_fd']))
    named = [name for name in ('steps', 'solver', 'S_churn', 'S_min', 'S_max', 'S_noise')
             if best[name]]
    assert output[-2:] == [f'demo_fd = {float(best["demo_fd"]):g}',
                           ' '.join(f'--{name}={best[name]}' for name in named)]
    assert json.loads((tmp_path / 'search.json').read_text())['best'] == output[-1]
    again = lines(run('gen', *data, *output[-1].split(), '--num=80', '--blocks=2'))[-1]
    assert again == f'{float(best["demo_fd"]):g}'
    # Once more: nothing is drawn, and the same is said.
    before = (tmp_path / 'search.csv').read_bytes()
    monkeypatch.setattr(GeneratedImages, '_generate', None)
    assert (
        lines(run('search', *options, f'--dest={tmp_path}'))[-2:] == output[-2:]
        and (tmp_path / 'search.csv').read_bytes() == before
    )


def test_searches_that_cannot_be(data, tmp_path):
    def refused(*options):
        return error(run('search', *data, f'--dest={tmp_path}', *options))

    assert (
        refused('--sampler=ddim')
        == '--sampler=ddim has no S_churn to search for: use --sampler=table1 or angle'
    )
    assert refused('--grid-S_max=5,1') == '--grid-S_max=5,1 should be numbers from 0 that rise'
    assert run('search', *data, f'--dest={tmp_path}', '--S_churn=3').exit_code == 2
