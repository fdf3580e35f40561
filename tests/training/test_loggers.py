"""Loggers: what they get, that they cannot stop a run, and what is missing."""

import importlib.util
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

import train
from tests.training.test_training_loop import digits, small_pictures  # noqa: F401
from training import loggers
from training.loggers import Loggers
from training.stats_file import read_statistics


class Noting:
    package = 'json'   # is installed everywhere

    def __init__(self, run_dir, config):
        self.told = [('begin', run_dir.name, config['seed'])]
        Noting.last = self

    def goes_on_from(self, nimg):
        self.told.append(('from', nimg))

    def numbers(self, nimg, numbers):
        self.told.append((nimg, dict(numbers)))

    def picture(self, nimg, path):
        self.told.append(('picture', nimg, path.name, path.exists()))

    def close(self):
        self.told.append('end')


class Failing(Noting):
    def __init__(self, run_dir, config):
        pass

    def goes_on_from(self, nimg):
        pass

    def numbers(self, nimg, numbers):
        if nimg:
            raise ConnectionError('no\nnetwork')


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(loggers.LOGGERS, 'tensorboard', Noting)
    monkeypatch.setitem(loggers.LOGGERS, 'wandb', Failing)


def arguments(data, run_dir, *more):
    return [f'--run-dir={run_dir}', f'--data={data}', '--cbase=16', '--cres=1', '--blocks=1',
            '--batch=16', '--augment=0', '--duration=0.000064', '--tick=0.032', '--snap=2',
            '--pictures=4', '--picture-steps=2', '--workers=0', '--device=cpu', '--seed=4', *more]


def test_loggers_get_what_the_folder_gets_and_cannot_stop_the_run(known, digits, tmp_path):  # noqa: F811
    result = CliRunner().invoke(train.main, arguments(digits, tmp_path / 'a',
                                                      '--log=tensorboard,wandb'))
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.output.splitlines() if '--log' in line]
    assert warnings == ['Warning: --log=wandb has failed and is left out from here on: no network']
    assert len(read_statistics(tmp_path / 'a' / 'stats.jsonl')) == 3
    first, second, *_, end = Noting.last.told   # the other one got everything
    assert (first, second, end) == (('begin', 'a', 4), ('from', 0), 'end')


def test_what_is_told(known, digits, tmp_path):  # noqa: F811
    for duration in (0.000064, 0.000096):
        result = CliRunner().invoke(train.main, [
            *arguments(digits, tmp_path / 'a', '--log=tensorboard'), f'--duration={duration}'])
        assert result.exit_code == 0, result.output
        first, second, *told, end = Noting.last.told
        assert first == ('begin', 'a', 4) and end == 'end'
        start = 0 if duration < 0.00009 else 64
        assert second == ('from', start)
        numbers = [(nimg, values) for nimg, values in (x for x in told if x[0] != 'picture')]
        lines = {round(line['Progress/kimg']['mean'] * 1000): line
                 for line in read_statistics(tmp_path / 'a' / 'stats.jsonl')}
        assert [nimg for nimg, _ in numbers] == ([0, 32, 64] if start == 0 else [96])
        for nimg, values in numbers:
            assert values == {name: entry['mean'] for name, entry in lines[nimg].items()
                              if isinstance(entry, dict) and entry['mean'] is not None}
        assert [x for x in told if x[0] == 'picture'] == [
            ('picture', 64 if start == 0 else 96, 'fakes000000.png', True)]


def test_one_that_cannot_begin_is_left_out(capsys):
    class Broken:
        def __init__(self, run_dir, config):
            raise SystemExit('not logged in')

    said = []
    loggers.LOGGERS['broken'] = Broken
    try:
        with Loggers(['broken'], Path(), {}, said.append) as several:
            several.numbers(0, {'a': 1.0})
    finally:
        del loggers.LOGGERS['broken']
    assert said == ['Warning: --log=broken has failed and is left out from here on: not logged in']


def test_numbers_that_are_not_finite_are_left_out(known):
    with Loggers(['tensorboard'], Path('x'), {'seed': 1}) as several:
        several.numbers(5, {'a': math.nan, 'b': 2.0, 'c': math.inf})
    assert Noting.last.told[1:] == [(5, {'b': 2.0}), 'end']


@pytest.mark.parametrize('name', ['tensorboard', 'wandb'])
def test_a_missing_one_ends_before_the_run_begins(monkeypatch, digits, tmp_path, name):  # noqa: F811
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec',
                        lambda wanted: None if wanted == name else real(wanted))
    result = CliRunner().invoke(train.main, arguments(digits, tmp_path / 'a', f'--log={name}'))
    assert (result.exit_code, result.output) == (2, (
        f'Error: --log={name} needs the package {name}, of the extra {name}: pip install '
        f'".[{name}]", or pip install {name}\n'))
    assert not (tmp_path / 'a').exists()


def test_a_folder_of_that_name_is_not_the_package(monkeypatch, tmp_path):
    """Weights & Biases itself makes folders called wandb."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'limpid_no_such_package').mkdir()
    monkeypatch.setattr(Noting, 'package', 'limpid_no_such_package')
    monkeypatch.setitem(loggers.LOGGERS, 'wandb', Noting)
    with pytest.raises(ValueError, match='needs the package limpid_no_such_package'):
        loggers.check_loggers(['wandb'])


def test_an_unknown_one(digits, tmp_path):  # noqa: F811
    result = CliRunner().invoke(train.main, arguments(digits, tmp_path / 'a', '--log=x'))
    assert "'x' is none of tensorboard, wandb" in result.output


def test_tensorboard_itself(digits, tmp_path):  # noqa: F811
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for duration in (0.000064, 0.000096):
        result = CliRunner().invoke(train.main, [
            *arguments(digits, tmp_path / 'a', '--log=tensorboard'), f'--duration={duration}'])
        assert result.exit_code == 0 and 'Warning' not in result.output, result.output
    found = EventAccumulator(str(tmp_path / 'a' / 'tensorboard')).Reload()
    lines = read_statistics(tmp_path / 'a' / 'stats.jsonl')
    told = found.Scalars('Loss/loss')
    assert [event.step for event in told] == [32, 64, 96]
    assert [event.value for event in told] == pytest.approx(
        [line['Loss/loss']['mean'] for line in lines[1:]])
    assert [event.step for event in found.Images('images')] == [64, 96]


def test_weights_and_biases_itself(digits, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    result = CliRunner().invoke(train.main, arguments(digits, tmp_path / 'a', '--log=wandb'))
    assert result.exit_code == 0 and 'Warning' not in result.output, result.output
    assert len((tmp_path / 'a' / 'wandb-id').read_text()) == 16
    assert list((tmp_path / 'a' / 'wandb').glob('offline-run-*/*.wandb'))
