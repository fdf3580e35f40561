"""Training: what a step does, what it depends on, and that it can be stopped and continued."""

import itertools
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import train
from checkpoints.open import open_network
from limpid.denoiser import Denoiser
from limpid.loss import (
    NOISE_DISTRIBUTIONS,
    WEIGHTINGS,
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    LogNormal,
    sigma_range,
)
from limpid.preconditioning import EDM, PRECONDITIONERS
from training import config as configs
from training.augment import AugmentConfig, AugmentPipe
from training.config import OptimizerConfig, TrainConfig, due
from training.dataset import DataConfig
from training.ema import HalfLife
from training.networks import NetworkConfig, build_network, complete_arguments
from training.pictures import generate_grid, grid_labels
from training.reporter import duration
from training.state import (
    TrainState,
    load_snapshot,
    load_state,
    restore_state,
    save_state,
    transfer_weights,
)
from training.step import StepFunction, draw
from training.training_loop import build, prepare, training_loop

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')
SMALL = {'model_channels': 16, 'channel_mult': [1, 2], 'num_blocks': 1, 'attn_resolutions': [4],
         'augment_dim': 9}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr('training.pictures.GRID', 2)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'digits-8x8.zip'
    result = CliRunner().invoke(dataset_tool.main, [
        '--source=digits', f'--dest={path}', '--resolution=8x8', '--max-images=100'])
    assert result.exit_code == 0, result.output
    return str(path)


def small_config(digits, precond=EDM(), noise=LogNormal(), weighting=None, dropout=0.1, **changes):
    network = NetworkConfig('SongUNet', precond, *sigma_range(noise), 8, 1, 10,
                            model=complete_arguments('SongUNet', {**SMALL, 'dropout': dropout}))
    config = TrainConfig(
        data=DataConfig(digits, use_labels=True, workers=0), network=network,
        loss=DenoisingLoss(noise, weighting or InverseCOut(precond)),
        optimizer=OptimizerConfig(lr=1e-3, lr_rampup_nimg=64), augment=AugmentConfig(p=0.3),
        averages=(HalfLife(200, 0.5),), label_dropout=0.2, seed=3, batch_size=16, total_nimg=96,
        tick_nimg=32, snapshot_nimg=64, state_nimg=48)
    return replace(config, **changes)


def images_of(config, nimg=0):
    from training.dataset import batches
    return next(batches(config.data.open(), config.seed, nimg, config.batch_size))


def run_steps(config, count, state=None):
    state = state or build(config, CPU)
    step = StepFunction(config, state, CPU)
    for _ in range(count):
        step(*images_of(config, state.nimg))
    return state


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_continued_run_is_bitwise_the_uninterrupted_one(digits, tmp_path):
    """Weights, average, optimiser and statistics, with dropout, label dropout and augmentation
    on."""
    config = small_config(digits)
    whole = run_steps(config, 6)
    first = run_steps(config, 3)
    path = save_state(first, config, tmp_path)
    second = build(replace(config, seed=99), CPU)   # whatever it starts from
    restore_state(second, load_state(path), str(path))
    assert second.nimg == 48
    second = run_steps(config, 3, second)
    assert_same(whole.net.state_dict(), second.net.state_dict())
    assert_same(whole.ema.net.state_dict(), second.ema.net.state_dict())
    for a, b in zip(whole.optimizer.state_dict()['state'].values(),
                    second.optimizer.state_dict()['state'].values(), strict=True):
        assert_same(a, b)
    assert_same(whole.stats.state_dict(), second.stats.state_dict())


def test_the_loop_writes_its_files_and_continues_from_them(digits, tmp_path):
    config = small_config(digits)
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    whole.mkdir()
    parts.mkdir()
    training_loop(config, build(config, CPU), whole, CPU)
    training_loop(replace(config, total_nimg=48), build(config, CPU), parts, CPU)
    state, line = prepare(config, CPU,
                          resume=('it', load_state(parts / 'training-state-000000.pt')))
    assert line == 'continuing from it at 0.0 kimg'
    training_loop(config, state, parts, CPU)
    a, contents = load_snapshot(whole / 'network-snapshot-000000.pkl')
    b, _ = load_snapshot(parts / 'network-snapshot-000000.pkl')
    assert_same(a.state_dict(), b.state_dict())
    assert contents['nimg'] == 96 and contents['format'] == 1
    ticks = [json.loads(line) for line in (whole / 'stats.jsonl').read_text().splitlines()]
    assert [tick['Progress/kimg']['mean'] for tick in ticks] == [0, 0.032, 0.064, 0.096]
    assert ticks[1]['Loss/loss']['num'] == 32 * 64
    expected = {'Progress/tick', 'Progress/kimg', 'Timing/total_sec', 'Timing/sec_per_tick',
                'Timing/sec_per_kimg', 'Timing/maintenance_sec', 'Resources/cpu_mem_gb',
                'Resources/peak_gpu_mem_gb', 'Resources/peak_gpu_mem_reserved_gb', 'timestamp'}
    assert expected <= set(ticks[1]) and set(ticks[1]['Loss/loss']) == {'num', 'mean', 'std'}
    assert (whole / 'reals.png').exists() and (whole / 'fakes000000.png').exists()
    assert not [path for path in whole.iterdir() if path.suffix == '.tmp']


def test_snapshots_hold_plain_values_and_bare_names(digits, tmp_path):
    config = small_config(digits, total_nimg=16)
    training_loop(config, build(config, CPU), tmp_path, CPU)
    contents = torch.load(tmp_path / 'network-snapshot-000000.pkl', weights_only=True)
    assert configs.decode(contents['config'], TrainConfig) == config
    assert all(name.startswith('model.') for name in contents['ema'])
    assert not any('module.' in name or '_orig_mod.' in name for name in contents['ema'])


def test_micro_batches_add_up_to_the_same_gradient(digits):
    whole = run_steps(small_config(digits, dropout=0.0), 2)
    for batch_gpu in [4, 6]:   # 6 does not divide 16: the last micro-batch is smaller
        parts = run_steps(small_config(digits, dropout=0.0, batch_gpu=batch_gpu), 2)
        for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_randomness_is_a_function_of_seed_and_counter(digits):
    config = small_config(digits)
    pipe = AugmentPipe.from_config(config.augment)
    a, b = (draw(config, pipe, 160, [1, 8, 8], CPU) for _ in range(2))
    torch.manual_seed(5)
    c = draw(config, pipe, 176, [1, 8, 8], CPU)
    d = draw(replace(config, seed=4), pipe, 160, [1, 8, 8], CPU)
    for name in ['u', 'noise', 'keep_labels']:
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert not torch.equal(getattr(a, name), getattr(c, name))
        assert not torch.equal(getattr(a, name), getattr(d, name))
    assert torch.equal(a.augmentation.labels, b.augmentation.labels)
    many = draw(replace(config, batch_size=10_000), None, 0, [1, 1, 1], CPU).keep_labels
    # four standard errors
    assert float((many == 0).float().mean()) == pytest.approx(0.2, abs=0.016)


def test_gradient_is_that_of_the_mean_over_the_batch(digits):
    """(1/batch) Σ over images of the loss summed over C, H, W, times the loss scale."""
    config = small_config(digits, dropout=0.0, augment=None, label_dropout=0.0, loss_scaling=3.0)
    state = build(config, CPU)
    step = StepFunction(config, state, CPU)
    images, labels = images_of(config)
    randomness = draw(config, None, 0, [1, 8, 8], CPU)
    step._accumulate(images, labels, randomness, slice(0, 16), 0)
    # all but the mapping of augment labels
    parameters = [p for p in state.net.parameters() if p.grad is not None]
    ours = [p.grad.clone() for p in parameters]
    state.net.zero_grad()
    y = images.float() / 127.5 - 1
    sigma = config.loss.noise_distribution.quantile(randomness.u).float().reshape(-1, 1, 1, 1)
    denoised = state.net(y + sigma * randomness.noise, sigma, labels)
    (3 * config.loss.weighting(sigma) * (denoised - y) ** 2).sum(dim=[1, 2, 3]).mean().backward()
    for a, b in zip(ours, [p.grad for p in parameters], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_first_step_has_learning_rate_zero_and_average_equals_weights(digits):
    config = small_config(digits)
    before = build(config, CPU)
    after = run_steps(config, 1)
    assert_same(before.net.state_dict(), after.net.state_dict())
    assert_same(after.net.state_dict(), after.ema.net.state_dict())


def test_non_finite_gradients_are_counted(digits):
    config = small_config(digits)
    state = build(config, CPU)
    StepFunction(config, state, CPU)
    state.net.model.map_layer0.weight.register_hook(lambda grad: grad * math.nan)
    state = run_steps(config, 2, state)
    assert state.stats.take()['Loss/nonfinite_gradients']['mean'] == 1
    assert all(bool(p.isfinite().all()) for p in state.net.parameters())


COMBINATIONS = list(itertools.product(PRECONDITIONERS, NOISE_DISTRIBUTIONS, WEIGHTINGS))


@pytest.mark.parametrize(('precond', 'noise', 'weighting'), COMBINATIONS)
def test_every_combination_trains_a_step(digits, precond, noise, weighting):
    c = PRECONDITIONERS[precond]()
    config = small_config(digits, c, NOISE_DISTRIBUTIONS[noise](), WEIGHTINGS[weighting](c),
                          batch_size=4)
    state = run_steps(config, 2)
    assert math.isfinite(state.stats.take()['Loss/loss']['mean'])
    assert all(bool(p.isfinite().all()) for p in state.net.parameters())
    moved = [
        not torch.equal(a, b)
        for a, b in zip(state.net.parameters(), build(config, CPU).net.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)


def test_the_hybrid_loss_trains_the_variance_channels(digits):
    c = PRECONDITIONERS['iddpm']()
    config = small_config(digits, c, NOISE_DISTRIBUTIONS['iddpm'](), batch_size=4,
                          loss=HybridLoss())
    state = run_steps(config, 2)
    fresh = build(config, CPU)
    name = 'model.dec.8x8_aux_conv.weight'
    change = state.net.state_dict()[name] - fresh.net.state_dict()[name]
    mean, variance = change.abs().sum([1, 2, 3])
    assert float(mean) > 0 and float(variance) > 0


def test_training_learns(digits):
    """300 images' worth of steps on one image bring the loss well below that of the untrained
    network."""
    config = small_config(digits, dropout=0.0, augment=None, label_dropout=0.0,
                          data=DataConfig(digits, use_labels=True, max_size=1),
                          optimizer=OptimizerConfig(2e-3, 0))
    state = run_steps(config, 10)
    early = state.stats.take()['Loss/loss']['mean']
    state = run_steps(config, 90, state)
    state.stats.take()
    state = run_steps(config, 10, state)
    assert state.stats.take()['Loss/loss']['mean'] < 0.5 * early


def test_transfer_copies_what_fits_and_says_so(digits, tmp_path):
    config = small_config(digits, total_nimg=32)
    training_loop(config, build(config, CPU), tmp_path, CPU)
    path = tmp_path / 'network-snapshot-000000.pkl'
    source, _ = load_snapshot(path)
    state = build(replace(config, seed=8, network=replace(config.network, label_dim=5)), CPU)
    copied, fresh = transfer_weights(state, source, str(path))
    assert fresh == ['model.map_label.weight'] and len(copied) == len(source.state_dict()) - 1
    assert torch.equal(state.net.model.map_layer0.weight, source.model.map_layer0.weight)
    assert torch.equal(state.ema.net.model.map_layer0.weight, source.model.map_layer0.weight)
    assert not state.ema_rampup


def test_transfer_to_another_resolution_goes_by_level(digits, tmp_path):
    """16x16 and 8x8 of the one are 8x8 and 4x4 of the other; what is of another shape starts
    fresh."""
    config = small_config(digits)
    large = replace(config.network, img_resolution=16, label_dim=3, img_channels=3,
                    model={**config.network.model, 'attn_resolutions': [8]})
    torch.manual_seed(1)
    source, state = build_network(large), build(config, CPU)
    copied, fresh = transfer_weights(state, source, 'it')
    assert fresh == ['model.map_label.weight', 'model.enc.8x8_conv.weight',
                     'model.dec.8x8_aux_conv.weight', 'model.dec.8x8_aux_conv.bias']
    assert torch.equal(state.net.state_dict()['model.enc.4x4_down.conv0.weight'],
                       source.state_dict()['model.enc.8x8_down.conv0.weight'])
    published = ROOT / 'tests' / 'golden' / 'published-ddpmpp-edm.pkl'
    _, line = prepare(config, CPU, transfer=(str(published), open_network(str(published))))
    assert int(line.split()[0]) > 40 and f' tensors from {published}; fresh: ' in line


def test_due_marks_multiples_and_the_start(digits):
    config = small_config(digits, batch_size=10)
    state = TrainState(None, {}, None, None)
    marked = []
    for state.nimg in range(0, 100, 10):
        if due(state.nimg, config.batch_size, 25):
            marked.append(state.nimg)
    assert marked == [0, 30, 50, 80]


@pytest.mark.parametrize(('seconds', 'text'), [(7.4, '7s'), (306, '5m 06s'), (11040, '3h 04m'),
                                               (93600, '1d 02h')])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_strides_stay_those_of_fresh_parameters(digits):
    config = small_config(digits)
    state = run_steps(config, 2)
    generate_grid(state.ema.net, torch.eye(10)[:2], CPU)
    fresh = build(config, CPU)
    assert ([p.stride() for p in state.net.parameters()]
            == [p.stride() for p in fresh.net.parameters()])
    assert all(p.is_contiguous() for p in state.net.parameters())


def test_a_range_of_noise_levels_comes_from_the_noise_distribution(digits):
    for name in ['vp', 've', 'edm', 'iddpm']:
        noise = NOISE_DISTRIBUTIONS[name]()
        net = build(small_config(digits, EDM(), noise), CPU).net
        assert isinstance(net, Denoiser)
        assert (net.sigma_min, net.sigma_max) == pytest.approx(sigma_range(noise))


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def torchrun(processes, script, *arguments, cwd=ROOT):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={processes}',
         f'--master_port={free_port()}', str(script), *arguments], cwd=cwd, env=environment,
        capture_output=True, text=True, timeout=300, check=False)


def train_arguments(digits, outdir):
    return [f'--outdir={outdir}', '--nosubdir', f'--data={digits}', '--cond=1', '--cbase=16',
            '--cres=1,2', '--blocks=1', '--attn=4', '--batch=16', '--duration=0.000096',
            '--lr-rampup=0.000032', '--dropout=0', '--tick=0.032', '--snap=100', '--dump=100',
            '--workers=0', '--label-dropout=0.1', '--device=cpu']


def test_two_processes_train_like_one(digits, tmp_path, monkeypatch):
    """The same images, noise and noise levels: the same run up to the order of floating-point
    sums. Both processes read one file of decoded images, and share the held-out ones."""
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path / 'cache'))
    outcome = CliRunner().invoke(dataset_tool.main, [
        'split', digits, f'--dest={tmp_path}/train.zip', f'--val={tmp_path}/val.zip',
        '--count=20'])
    assert outcome.exit_code == 0, outcome.output
    held_out = f'--val={tmp_path}/val.zip', '--val-num=7'
    result = torchrun(2, 'tests/training/train_worker.py', '--cache=mmap', *held_out,
                      *train_arguments(digits, tmp_path / 'two'), '--batch-gpu=3')
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count('Decoding 100 images to ') == 1
    assert 'Grad strides do not match' not in result.stderr   # of 1x1 convolutions
    outcome = CliRunner().invoke(train.main, [*train_arguments(digits, tmp_path / 'one'),
                                              *held_out])
    assert outcome.exit_code == 0, outcome.output
    one, _ = load_snapshot(tmp_path / 'one' / 'network-snapshot-000000.pkl')
    two, _ = load_snapshot(tmp_path / 'two' / 'network-snapshot-000000.pkl')
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        # a key's bias has no gradient but rounding, which Adam makes steps of
        if not name.endswith('qkv.bias'):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    losses = [[json.loads(line)[entry]
               for entry, first in (('Loss/loss', 1), ('Validation/loss', 0),
                                    ('Validation/train_loss', 0))
               for line in (tmp_path / name / 'stats.jsonl').read_text().splitlines()[first:]]
              for name in ['one', 'two']]
    for a, b in zip(*losses, strict=True):
        assert a['num'] == b['num']
        np.testing.assert_allclose(a['mean'], b['mean'], rtol=1e-4)
        np.testing.assert_allclose(a['std'], b['std'], rtol=1e-4)


def test_pictures_are_as_many_and_as_fine_as_wanted(digits, tmp_path, monkeypatch):
    monkeypatch.setattr('training.pictures.GRID', 10)
    config = small_config(digits, total_nimg=16)
    net = build(config, CPU).net
    with DataConfig(digits, use_labels=True).open() as dataset:
        assert [(len(labels), columns) for labels, columns in (
            grid_labels(dataset, most) for most in (1, 10, 100))] == [(1, 1), (9, 3), (100, 10)]
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    generate_grid(net, torch.eye(10)[:2], CPU, num_steps=3)
    assert len(calls) == 5
    training_loop(replace(config, pictures=0), build(config, CPU), tmp_path, CPU)
    assert not list(tmp_path.glob('fakes*.png')) and (tmp_path / 'reals.png').exists()
