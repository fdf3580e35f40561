"""Whether a run goes on as earlier ones did: the curves, and when a run leaves one."""

import json
import math
import shlex
import statistics
from dataclasses import replace

import pytest
from click.testing import CliRunner

import dataset_tool
import demo
import train
from reproduction import curves as maker
from reproduction import small
from tests.training.test_training_loop import CPU, digits, small_config  # noqa: F401
from training.config import TrainConfig, decode
from training.curves import FILE, Curve, curve_of, images_of, settings_of
from training.stats_file import read_statistics
from training.training_loop import build, training_loop

CURVE = Curve('x/y', (0, 1, 2), (100, 200, 400), (0.8, 0.4, 0.3), (0.008, 0.04, 0.003), least=0.02)
ROOT = math.sqrt(4 / 3)   # √(1 + 1/3)


def ticks(losses):
    """Lines of stats.jsonl: the loss of the images since the line before, by images shown."""
    lines, before = [], 0
    for nimg, loss in losses.items():
        entry = {} if loss is None else {'Loss/loss': {'num': nimg - before, 'mean': loss}}
        lines.append({'Progress/kimg': {'num': 1, 'mean': nimg / 1000}, **entry})
        before = nimg
    return lines


def test_what_is_expected_between_two_marks():
    """Few seeds that agree by chance are not believed: 0.008 becomes 2 % of 0.8."""
    assert CURVE.expected(0, 1) == pytest.approx((0.8, 0.016 * ROOT), rel=1e-12)
    assert CURVE.expected(1, 2) == pytest.approx((0.4, 0.04 * ROOT), rel=1e-12)
    assert CURVE.expected(0, 3) == pytest.approx(
        (0.25 * 0.8 + 0.25 * 0.4 + 0.5 * 0.3, (0.25 * (0.016 + 0.04) + 0.5 * 0.006) * ROOT),
        rel=1e-12)


def test_ticks_are_put_together_between_marks():
    found = CURVE.intervals(ticks({0: None, 50: 0.9, 100: 0.7, 150: 0.5, 400: 0.3, 500: 9}))
    assert found == [(0, 1, pytest.approx(0.8)),
                     (1, 3, pytest.approx((50 * 0.5 + 250 * 0.3) / 300))]


def test_a_run_leaves_its_course_once_and_comes_back_once():
    """At 100 images, 4 deviations are 4 x 0.016 x √(4/3) = 0.0739."""
    told = []
    losses = {0: None, 100: 0.88, 150: 0.1, 200: 0.1, 400: 0.3}
    for k in range(1, len(losses) + 1):
        told.append(CURVE.verdict(ticks(dict(list(losses.items())[:k]))))
    assert told == [
        '', 'Warning: the run has left its course: the loss from 0 to 0.1 kimg is 0.88, more than '
        '4 deviations from the 0.8 ± 0.018 of x/y (3 runs with these options)', '', '',
        'Course: the run is back: the loss from 0.2 to 0.4 kimg is 0.3, beside the 0.3 ± 0.0069 of '
        'x/y (3 runs with these options)']
    assert CURVE.verdict(ticks({100: 0.87})) == '' == CURVE.verdict([])
    assert CURVE.verdict(ticks({100: 0.8 - 0.075})).startswith('Warning: ')


def curves_json(path, config, **changes):
    """Write a file of one curve, of the settings and images of `config`."""
    with config.data.open() as dataset:
        images = images_of(dataset)
    one = {'name': 'x/y', 'settings': settings_of(config), 'images': images, 'seeds': [0, 1],
           'nimg': [32, 64, 96], 'mean': [1.0, 0.01, 0.9], 'std': [0.9, 0.001, 0.9], **changes}
    path.write_text(maker.written({'relative_std': 0.02, 'curves': [one]}))


def test_which_runs_have_a_curve(digits, tmp_path):   # noqa: F811
    """Seed, averages, duration and intervals are free; settings and images are not."""
    config, path = small_config(digits), tmp_path / 'curves.json'
    with config.data.open() as dataset:
        def found(one, folder=tmp_path):
            return curve_of(one, dataset, folder, path)

        curves_json(path, config)
        assert found(config) == Curve('x/y', (0, 1), (32, 64, 96), (1.0, 0.01, 0.9),
                                      (0.9, 0.001, 0.9), 0.02)
        assert found(replace(config, seed=9, averages=(), total_nimg=4, tick_nimg=8, batch_gpu=2))
        assert found(replace(config, batch_size=8)) is None
        assert found(replace(config, optimizer=replace(config.optimizer, lr=2e-3))) is None
        (tmp_path / 'transfer.json').touch()
        assert found(config) is None
        (tmp_path / 'transfer.json').unlink()
        curves_json(path, config, images={'count': 100, 'shape': [1, 8, 8], 'std': 0.5})
        assert found(config) is None


def test_a_run_says_it_and_so_does_one_that_goes_on(digits, tmp_path, monkeypatch, capsys):   # noqa: F811
    config = small_config(digits)
    curves_json(tmp_path / 'curves.json', config)
    monkeypatch.setattr('training.training_loop.curve_of', lambda *given: curve_of(
        *given, tmp_path / 'curves.json'))
    run = tmp_path / 'run'
    run.mkdir()
    training_loop(config, build(config, CPU), run, CPU)
    told = [line for line in capsys.readouterr().out.splitlines()
            if line.startswith(('Course: the loss', 'Course: the run', 'Warning'))]
    assert told[0] == ('Course: the loss is compared with that of x/y (2 runs with these options) '
                       'up to 0.096 kimg')
    assert told[1].startswith('Warning: the run has left its course: the loss from 0.032 to 0.064 ')
    assert told[2].startswith('Course: the run is back: the loss from 0.064 to 0.096 kimg is ')
    assert len(told) == 3
    lines = read_statistics(run / 'stats.jsonl')   # a run that goes on has these of the first part
    curve = Curve('x/y', (0, 1), (32, 64, 96), (1.0, 0.01, 0.9), (0.9, 0.001, 0.9), 0.02)
    assert curve.verdict(lines) == told[2] and curve.verdict(lines[:3]) == told[1]


def stored():
    return json.loads(FILE.read_text())


def settings_by(arguments, data):
    """What a command of train.py resolves to, on other images of one channel and ten classes."""
    words = [word for word in shlex.split(arguments) if not word.startswith('--data=')]
    result = CliRunner().invoke(train.main, [*words[1:], f'--data={data}', '--dry-run'])
    assert result.exit_code == 0, result.output
    return settings_of(decode(json.loads(result.stdout), TrainConfig))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """A data set of 16x16 images in ten classes."""
    folder = tmp_path_factory.mktemp('images')
    result = CliRunner().invoke(dataset_tool.main, ['--source=digits', f'--dest={folder / "d.zip"}',
                                                  '--max-images=40'])
    assert result.exit_code == 0, result.output
    return folder / 'd.zip'


@pytest.mark.parametrize('letter', small.CONFIGS)
@pytest.mark.parametrize('column', small.ARCHITECTURE)
def test_the_small_presets_have_one(pictures, column, letter):
    [curve] = [one for one in stored()['curves'] if one['name'] == f'small/{column}-{letter}']
    assert settings_by(small.run(column, letter, 7).command, pictures) == curve['settings']
    assert curve['nimg'] == [4000, 8000, 12000, 16000] and len(set(curve['seeds'])) >= 2
    assert curve['images'] == {'count': 60000, 'shape': [1, 16, 16], 'std': 0.675129}


def test_the_demo_has_one(pictures, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(demo, 'command', lambda line, capture=False: told.append(line))
    monkeypatch.setattr(demo, 'RUN', tmp_path / 'run')
    monkeypatch.setattr(demo, 'DATA', pictures)
    demo.train_model(64, 'cpu')
    [curve] = [one for one in stored()['curves'] if one['name'] == 'demo/digits']
    assert settings_by(told[0], pictures) == curve['settings']
    assert curve['nimg'] == [3200 * k for k in range(1, 21)]
    assert curve['images']['count'] == 1797


def test_the_curves_tell_right_from_wrong():
    """Each is on its own course; with the loss of another configuration a run is off it."""
    told = stored()
    shares = [std / mean for one in told['curves'] for mean, std in zip(one['mean'], one['std'],
                                                                        strict=True)]
    assert told['relative_std'] == pytest.approx(
        math.sqrt(statistics.fmean(x**2 for x in shares)), rel=5e-3)
    curves = {one['name']: Curve(one['name'], *(tuple(one[name]) for name in (
        'seeds', 'nimg', 'mean', 'std')), least=told['relative_std']) for one in told['curves']}
    for curve in curves.values():
        lines = ticks(dict(zip(curve.nimg, curve.mean, strict=True)))
        assert [curve.verdict(lines[:k + 1]) for k in range(len(lines))] == [''] * len(lines)
    other = ticks(dict(zip(curves['small/vp-F'].nimg, curves['small/vp-F'].mean, strict=True)))
    assert curves['small/vp-E'].verdict(other[:2]).startswith('Warning: the run has left its ')


def test_the_maker(digits, tmp_path):   # noqa: F811
    """Two seeds of a short run, by its own losses; one that has not ended is refused."""
    config = replace(small_config(digits), state_nimg=96)
    for seed in (3, 4):
        folder = tmp_path / 'runs' / f'short-{seed}'
        folder.mkdir(parents=True)
        one = replace(config, seed=seed)
        state = build(one, CPU)
        with config.data.open() as dataset:
            state.fingerprint = dataset.contents()
        training_loop(one, state, folder, CPU)
    dest, runs = tmp_path / 'curves.json', [str(tmp_path / 'runs' / f'short-{k}') for k in (3, 4)]

    def make(*given):
        return CliRunner().invoke(maker.main, [*given, f'--data={digits}', f'--dest={dest}'])

    for _ in range(2):   # the second time it takes the place of the first
        assert make(*runs).exit_code == 0
        [curve] = json.loads(dest.read_text())['curves']
    losses = [[line['Loss/loss']['mean'] for line in read_statistics(
        tmp_path / 'runs' / f'short-{k}' / 'stats.jsonl') if 'Loss/loss' in line] for k in (3, 4)]
    assert curve['name'] == 'runs/short' and curve['seeds'] == [3, 4]
    assert curve['nimg'] == [32, 64, 96]
    pairs = list(zip(*losses, strict=True))
    assert curve['mean'] == pytest.approx([sum(pair) / 2 for pair in pairs], rel=1e-5)
    assert curve['std'] == pytest.approx([statistics.stdev(pair) for pair in pairs], rel=1e-2)
    assert make(runs[0]).stderr == (
        'Error: runs/short has the seeds [3]: two different ones are the least\n')
    stats = tmp_path / 'runs' / 'short-3' / 'stats.jsonl'
    stats.write_text(''.join(stats.read_text().splitlines(keepends=True)[:-1]))
    assert make(*runs).stderr == (f'Error: {runs[0]} has not ended: stats.jsonl has nothing of '
                                  f'0.096 kimg\n')
