"""--shard: the run of DistributedDataParallel, and the same files."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import train
from limpid.values import Standardization
from tests.training.test_training_loop import digits, small_config, torchrun, train_arguments  # noqa: F401
from torch_utils import distributed
from training.config import NanConfig
from training.networks import build_network
from training.sharding import check_sharding, whole_network
from training.state import load_state


@pytest.fixture(scope='module')
def states(digits, tmp_path_factory):  # noqa: F811
    """The last states of two processes: with whole and with divided models."""
    if torch.__version__.startswith('2.6.') and not torch.cuda.is_available():
        pytest.skip('fully_shard of torch 2.6 does not run on CPUs')
    folder = tmp_path_factory.mktemp('shard')
    result = torchrun(2, 'tests/training/shard_worker.py', digits, str(folder))
    assert result.returncode == 0, result.stderr
    assert (folder / 'shard/fakes000000.png').exists()
    return [load_state(folder / name / 'training-state-000000.pt') for name in ('ddp', 'shard')]


def error(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-12))


def test_a_divided_run_is_that_of_whole_models(states):
    """Gradients are summed in another order: 1e-7 of rounding, which Adam makes 1e-4 of a step of
    where a gradient is next to nothing, as that of a key's bias is. The divided run was stopped and
    continued, from a file that holds whole tensors."""
    whole, divided = states
    assert list(divided['net']) == list(whole['net'])
    for name, tensor in whole['net'].items():
        if not name.endswith('qkv.bias'):
            assert error(divided['net'][name], tensor) < 1e-4, name
            for average, tensors in whole['averages'].items():
                assert error(divided['averages'][average][name], tensors[name]) < 1e-4, name
    assert divided['config'] == {**whole['config'], 'shard': True}
    assert divided['nimg'] == whole['nimg'] == 96


def test_moments_and_statistics_are_whole_too(states):
    whole, divided = states
    assert list(divided['optimizer']['state']) == list(whole['optimizer']['state'])
    names = [name for name in whole['net'] if not name.endswith(('resample_filter', 'freqs'))]
    for name, place in zip(names, whole['optimizer']['state'], strict=True):
        a, b = (state['optimizer']['state'][place] for state in (divided, whole))
        assert float(a['step']) == float(b['step']) == 3
        if not name.endswith('qkv.bias'):
            for moment in ('exp_avg', 'exp_avg_sq'):
                assert a[moment].shape == b[moment].shape
                assert error(a[moment], b[moment]) < 1e-3, (name, moment)


def test_a_whole_network_knows_what_the_divided_one_knows(digits):  # noqa: F811
    config = small_config(digits)
    net = build_network(config.network)
    net.standardization = Standardization((0.5,), (2.0,))
    assert whole_network(net, config, 'cpu').standardization == Standardization((0.5,), (2.0,))


@pytest.mark.parametrize('changes, others, option', [
    ({'compile': True}, {}, '--compile=1'), ({}, {'--val': False, '--x': True}, '--x'),
    ({'nan': NanConfig(then='rollback')}, {}, '--nan-then=rollback')])
def test_what_does_not_go_together_is_told(digits, monkeypatch, changes, others, option):  # noqa: F811
    monkeypatch.setattr(distributed, 'get_world_size', lambda: 2)
    config = replace(small_config(digits), shard=True)
    check_sharding(config, {})
    with pytest.raises(ValueError, match=f'^{option} does not go with --shard=1: leave one of'):
        check_sharding(replace(config, **changes), others)
    check_sharding(replace(config, **changes, shard=False), others)


def test_one_process_has_nobody_to_share_with(digits, tmp_path):  # noqa: F811
    result = CliRunner().invoke(train.main, [*train_arguments(digits, tmp_path / 'run'),
                                             '--shard=1'])
    assert result.exit_code == 2 and not (tmp_path / 'run').exists()
    assert result.output.splitlines()[-1] == (
        'Error: --shard=1 divides a model among several processes, and there is one: start it with '
        'torchrun, or leave --shard out')
