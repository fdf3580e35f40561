"""What a run writes about itself: its statistics by noise level, and its card."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from tests.training.test_training_loop import (  # noqa: F401
    CPU,
    digits,
    images_of,
    run_steps,
    small_config,
    small_pictures,
)
from torch_utils.stats import Collector
from training import config as configs
from training.config import OptimizerConfig
from training.networks import NetworkConfig
from training.run_card import revision
from training.stats_file import SIGMA_EDGES, SIGMA_RANGES, read_statistics
from training.step import StepFunction, draw, range_of
from training.training_loop import build
from training.work import operations


def test_groups_are_the_values_of_their_members():
    values = torch.from_numpy(np.random.RandomState(0).randn(7, 3, 2))
    groups = torch.tensor([0, 2, 2, 0, 1, 2, 0])
    names = ['a', 'b', 'c', 'none']
    by_group, one_by_one = Collector(CPU), Collector(CPU)
    for part in (slice(0, 4), slice(4, 7)):
        by_group.add_by_group(names, values[part], groups[part])
    for i, group in enumerate(groups.tolist()):
        one_by_one.add(names[group], values[i])
    found, expected = by_group.take(), one_by_one.take()
    assert found.pop('none')['num'] == 0
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        assert found[name] == pytest.approx(entry, rel=1e-12)


def test_ranges_of_noise_levels():
    """Each has its lower end and lacks its upper one; the last has σ = ∞."""
    assert list(SIGMA_RANGES.values()) == list(zip((0.0, *SIGMA_EDGES), (*SIGMA_EDGES, math.inf),
                                                   strict=True))

    class Levels:
        class noise_distribution:   # noqa: N801
            quantile = staticmethod(lambda u: u)

    sigma = torch.tensor([1e-9, 0.002, 0.003, 0.5, 0.999, 1, 99, 100, math.inf]).double()
    found = [list(SIGMA_RANGES)[i] for i in range_of(Levels, sigma)]
    assert found == ['Loss/sigma_below_0.002', 'Loss/sigma_0.002_to_0.005',
                     'Loss/sigma_0.002_to_0.005', 'Loss/sigma_0.5_to_1', 'Loss/sigma_0.5_to_1',
                     'Loss/sigma_1_to_2', 'Loss/sigma_50_to_100', 'Loss/sigma_above_100',
                     'Loss/sigma_above_100']


@pytest.mark.parametrize('batch_gpu', [None, 6])
def test_the_loss_of_a_step_by_noise_level(digits, batch_gpu):  # noqa: F811
    config = small_config(digits, dropout=0.0, batch_gpu=batch_gpu)
    stats = run_steps(config, 3).stats.take()
    parts = [stats[name] for name in SIGMA_RANGES]
    assert sum(part['num'] for part in parts) == stats['Loss/loss']['num'] == 3 * 16 * 64
    total = sum(part['num'] * part['mean'] for part in parts if part['num'])
    assert total == pytest.approx(3 * 16 * 64 * stats['Loss/loss']['mean'], rel=1e-12)
    drawn = torch.cat([draw(config, None, nimg, [1, 8, 8], CPU).u for nimg in (0, 16, 32)])
    sigma = config.loss.noise_distribution.quantile(drawn)
    for name, (low, high) in SIGMA_RANGES.items():
        assert stats[name]['num'] == 64 * int(((low <= sigma) & (sigma < high)).sum())


@pytest.mark.parametrize(('loss_scaling', 'clip'), [(1.0, None), (8.0, None), (None, None),
                                                    (8.0, 0.5)])
def test_the_norm_of_the_gradient_is_that_of_the_mean_over_the_batch(digits, loss_scaling,  # noqa: F811
                                                                      clip):
    """It is told without the loss scale, and before it is clipped."""
    config = small_config(digits, dropout=0.0, loss_scaling=loss_scaling,
                          optimizer=OptimizerConfig(clip=clip))
    state = build(config, CPU)
    scale = state.loss_scale.scale
    step = StepFunction(config, state, CPU)
    images, labels = images_of(config)
    step._accumulate(images, labels, draw(config, step.pipe, 0, [1, 8, 8], CPU), slice(0, 16), 0)
    squares = sum(float(p.grad.double().square().sum()) for p in state.net.parameters()
                  if p.grad is not None)
    told = run_steps(config, 1).stats.take()['Training/gradient_norm']
    assert told['num'] == 1 and told['mean'] == pytest.approx(math.sqrt(squares) / scale, rel=1e-4)


def test_steps_that_are_not_finite_have_no_norm(digits):  # noqa: F811
    config = small_config(digits)
    state = build(config, CPU)
    state.net.model.map_layer0.weight.register_hook(lambda grad: grad * math.nan)
    stats = run_steps(config, 1, state).stats.take()
    assert 'Training/gradient_norm' not in stats and 'Loss/sigma_0.5_to_1' not in stats


@pytest.fixture(scope='module')
def a_run(digits, tmp_path_factory):  # noqa: F811
    """The folder of a run that was started twice, and the commands."""
    folder = tmp_path_factory.mktemp('told') / 'run'
    common = [f'--run-dir={folder}', f'--data={digits}', '--cbase=16', '--cres=1', '--blocks=1',
              '--batch=16', '--lr=0.004', '--lr-rampup=0.000064', '--augment=0', '--tick=0.032',
              '--snap=100', '--pictures=0', '--workers=0', '--device=cpu', '--seed=5']
    commands = [[*common, '--duration=0.000064'], [*common, '--duration=0.000096', '--keep=1']]
    for command in commands:
        result = CliRunner().invoke(train.main, command)
        assert result.exit_code == 0, result.output
    return folder, commands


def test_each_line_tells_of_the_learning_rate_and_the_pace(a_run):
    lines = read_statistics(a_run[0] / 'stats.jsonl')
    options = json.loads((a_run[0] / 'training_options.json').read_text())
    network = configs.decode(options['network'], NetworkConfig)
    assert [line['Training/learning_rate']['mean'] for line in lines] == [0, 0.002, 0.004, 0.004]
    first, *others = lines
    assert first['Timing/images_per_sec']['mean'] == 0
    for line in others:
        assert line['Timing/images_per_sec']['mean'] == pytest.approx(
            1000 / line['Timing/sec_per_kimg']['mean'])
        assert line['Timing/utilisation']['mean'] > 0
        assert line['Timing/tflops']['mean'] == pytest.approx(
            3 * operations(network) / 1e12 * line['Timing/images_per_sec']['mean'])
        told = [name for name in line if name.startswith('Loss/sigma_')]
        assert told and all(line[name]['num'] > 0 for name in told)
        assert line['Training/gradient_norm']['num'] == 2


def test_the_card_has_a_line_for_each_start(a_run):
    folder, commands = a_run
    cards = [json.loads(line) for line in (folder / 'run_card.jsonl').read_text().splitlines()]
    assert [card['arguments'] for card in cards] == commands
    assert [card['kimg'] for card in cards] == [0, 0.064]
    assert [card['options']['--keep'] for card in cards] == [3, 1]
    assert cards[0]['options'].keys() == {option.opts[0] for option in train.main.params}
    for card in cards:
        assert card['seed'] == 5 and card['versions']['torch'] == torch.__version__
        assert card['hardware']['device'] == 'cpu' and card['hardware']['processes'] == 1
        assert card['hardware']['memory_gb'] > 0 and card['hardware']['processor']
        assert card['data']['images'] == 100 and card['data']['shape'] == [1, 8, 8]
        assert len(card['data']['fingerprint']) == 64
    assert cards[0]['data'] == cards[1]['data']


def test_the_revision_of_a_checkout(tmp_path):
    assert revision(tmp_path) is None   # it has none

    def git(*arguments):
        return subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c',
                               'user.email=a@b', *arguments], check=True, capture_output=True,
                              text=True).stdout.strip()

    git('init')
    (tmp_path / 'a').write_text('a')
    git('add', 'a')
    git('commit', '-m', 'a')
    commit = git('rev-parse', 'HEAD')
    assert revision(tmp_path) == {'commit': commit, 'modified': False}
    (tmp_path / 'a').write_text('b')
    assert revision(tmp_path) == {'commit': commit, 'modified': True}
    (tmp_path / 'inside').mkdir()
    assert revision(tmp_path / 'inside') is None   # the repository is that of something else
