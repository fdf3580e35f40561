"""Runs that are killed, stopped, torn, starved and poisoned: none of them may be lost, or go on as
if nothing were."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from tests.commands.test_generate import run
from tests.training.test_training_loop import (  # noqa: F401
    CPU,
    ROOT,
    assert_same,
    digits,
    run_steps,
    small_config,
    small_pictures,
    torchrun,
)
from torch_utils import checkpoint
from torch_utils.checkpoint import DamagedError
from training import config as configs
from training.ema import (
    HalfLife,
    PowerFunction,
    inner_product,
    power_of,
    reconstruction_error,
    reconstruction_weights,
    width_of,
)
from training.run_folder import SNAPSHOT, STATE, files_of, thin_snapshots
from training.state import (
    LossScale,
    differences,
    latest_state,
    load_snapshot,
    load_state,
    save_snapshot,
    save_state,
)
from training.training_loop import Interrupted, NonFiniteError, build, prepare, training_loop


def arguments(digits, run_dir, *more):  # noqa: F811
    return [f'--run-dir={run_dir}', f'--data={digits}', '--cond=1', '--cbase=16', '--cres=1',
            '--blocks=1', '--batch=16', '--duration=0.000384', '--lr-rampup=0.000032',
            '--dropout=0.1', '--augment=0', '--tick=0.032', '--snap=100', '--dump=2', '--workers=0',
            '--label-dropout=0.1', '--device=cpu', '--ema=0.0001,0.001', '--ema-power=0.1', *more]


def start(args):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([sys.executable, 'tests/training/train_worker.py', *args], cwd=ROOT,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def wait_for(condition, process):
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)


def num_lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def assert_same_run(a, b):
    """Weights, all averages, optimiser, and the statistics of every tick, bitwise."""
    x, y = (load_state(files_of(folder, STATE)[-1]) for folder in (a, b))
    assert x['nimg'] == y['nimg'] == 384
    assert_same(x['net'], y['net'])
    for name in x['averages']:
        assert_same(x['averages'][name], y['averages'][name])
    assert checkpoint.checksum(x['optimizer']) == checkpoint.checksum(y['optimizer'])
    lines = [[json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]
             for folder in (a, b)]
    assert [(tick['Progress/kimg'], tick.get('Loss/loss')) for tick in lines[0]] == \
           [(tick['Progress/kimg'], tick.get('Loss/loss')) for tick in lines[1]]


@pytest.fixture(scope='module')
def undisturbed(digits, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp('undisturbed')
    process = start(arguments(digits, folder / 'run'))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return folder / 'run'


def test_killed_runs_continue_bitwise(digits, undisturbed, tmp_path):  # noqa: F811
    """SIGKILL after a few ticks, twice; at most one save interval (64 images) is lost."""
    lost = []
    for ticks in [4, 8]:
        process = start(arguments(digits, tmp_path / 'run'))
        wait_for(lambda ticks=ticks: num_lines(tmp_path / 'run' / 'stats.jsonl') >= ticks, process)
        reached = json.loads((tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()[-1])[
            'Progress/kimg']['mean'] * 1000
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = latest_state(tmp_path / 'run', pytest.fail)
        lost.append(reached - found[1]['nimg'])
    assert max(lost) <= 64
    process = start(arguments(digits, tmp_path / 'run'))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and 'continuing from' in output, output
    assert_same_run(undisturbed, tmp_path / 'run')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_save_and_leave_with_75(digits, undisturbed, tmp_path, number):  # noqa: F811
    process = start(arguments(digits, tmp_path / 'run'))
    wait_for(lambda: num_lines(tmp_path / 'run' / 'stats.jsonl') >= 4, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 75, output
    assert f'{number.name} received: finishing this step and saving' in output
    assert 'the same command continues from there' in output
    process = start(arguments(digits, tmp_path / 'run'))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert_same_run(undisturbed, tmp_path / 'run')


def test_a_signal_during_the_start_leaves_with_75(tmp_path):
    """The modules of the program take seconds to import: a batch system may stop it amid that."""
    (tmp_path / 'click.py').write_text("""
import os, signal
os.kill(os.getpid(), signal.SIGTERM)
""")
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    result = subprocess.run([sys.executable, str(ROOT / 'train.py'), '--help'], env=environment,
                            capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        75, 'Interrupted: stopped before the training began; the same command starts it\n')


def test_two_processes_are_stopped_and_continue(digits, tmp_path):  # noqa: F811
    """torchrun hands SIGTERM to its workers; the run then equals an uninterrupted one of two
    processes, bitwise."""
    whole = torchrun(2, 'tests/training/train_worker.py', *arguments(digits, tmp_path / 'whole'))
    assert whole.returncode == 0, whole.stderr
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         'tests/training/train_worker.py', *arguments(digits, tmp_path / 'run')],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: num_lines(tmp_path / 'run' / 'stats.jsonl') >= 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0 and 'Interrupted: stopped at' in output, output
    again = torchrun(2, 'tests/training/train_worker.py', *arguments(digits, tmp_path / 'run'))
    assert again.returncode == 0 and 'continuing from' in again.stdout, again.stderr
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


NAN_WORKER = '''
import os, sys
sys.argv = ['train.py', *sys.argv[1:]]
import train
import training.training_loop
from training.training_loop import StepFunction
from torch_utils import distributed
accumulate = StepFunction._accumulate
def poisoned(self, images, labels, *rest):
    if self.state.nimg in {steps} and distributed.get_rank() == 1:
        weight = self.state.net.model.map_layer0.weight
        weight.data.view(-1)[0] *= 1   # the weights stay; only the gradient is poisoned
        hook = weight.register_hook(lambda grad: grad * float('nan'))
        accumulate(self, images, labels, *rest)
        hook.remove()
    else:
        accumulate(self, images, labels, *rest)
StepFunction._accumulate = poisoned
training.pictures.GRID = 2
train.main()
'''


def test_a_nan_on_one_rank_of_two_is_skipped_by_both(digits, tmp_path):  # noqa: F811
    script = tmp_path / 'worker.py'
    script.write_text(NAN_WORKER.replace('{steps}', '{64, 80}'))
    result = torchrun(2, script, *arguments(digits, tmp_path / 'run'))
    assert result.returncode == 0, result.stderr
    ticks = [json.loads(line)
             for line in (tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()]
    counted = {round(tick['Progress/kimg']['mean'] * 1000): tick['Loss/nonfinite_gradients']
               for tick in ticks[1:]}
    assert counted[96] == {'num': 4, 'mean': 1.0,
                           'std': 0.0} and counted[64]['mean'] == counted[128]['mean'] == 0
    assert 'NON-FINITE gradients in 100% of the steps' in result.stdout
    state = load_state(files_of(tmp_path / 'run', STATE)[-1])
    assert all(bool(tensor.isfinite().all()) for tensor in state['net'].values())


FAILING_WORKER = '''
import sys
sys.argv = ['train.py', *sys.argv[1:]]
import train
import training.pictures
from training.training_loop import StepFunction
from torch_utils import distributed
accumulate = StepFunction._accumulate
def failing(self, *rest):
    if self.state.nimg == 64 and distributed.get_rank() == 1:
        raise RuntimeError('something that only one process has met')
    accumulate(self, *rest)
StepFunction._accumulate = failing
training.pictures.GRID = 2
train.main()
'''


def test_an_error_on_one_rank_of_two_costs_nothing(digits, tmp_path):  # noqa: F811
    script = tmp_path / 'worker.py'
    script.write_text(FAILING_WORKER)
    result = torchrun(2, script, *arguments(digits, tmp_path / 'run', '--dump=100'))
    assert result.returncode != 0
    assert 'Stopped by an error: everything up to 0.1 kimg is saved' in result.stdout
    assert 'something that only one process has met' in result.stderr
    assert 'Connection closed' not in result.stderr   # what the other one meets is no news
    state = load_state(files_of(tmp_path / 'run', STATE)[-1])
    assert state['nimg'] == 64 and len(state['stats']) == 1


def test_a_run_that_stays_nan_stops(digits, tmp_path):  # noqa: F811
    script = tmp_path / 'worker.py'
    script.write_text(NAN_WORKER.replace('{steps}', 'range(160, 10**6)'))
    result = torchrun(2, script, *arguments(digits, tmp_path / 'run', '--nan-limit=3'))
    assert result.returncode != 0
    assert ('3 steps in a row up to 0.2 kimg had gradients that are not finite; the last training '
            'state is untouched' in result.stdout)
    assert load_state(files_of(tmp_path / 'run', STATE)[-1])['nimg'] == 128


def poison(state, steps):
    """Make the gradients of the steps at these counters non-finite; each only once."""
    steps = set(steps)

    def hook(grad):
        if state.nimg in steps:
            steps.discard(state.nimg)
            return grad * math.inf
        return grad

    state.net.model.map_layer0.weight.register_hook(hook)


def test_rollback_goes_back_with_half_the_learning_rate(digits, tmp_path, capsys):  # noqa: F811
    config = small_config(digits)
    config = replace(config, nan=replace(config.nan, limit=2, then='rollback'), total_nimg=160)
    state = build(config, CPU)
    poison(state, [112, 128])
    training_loop(config, state, tmp_path, CPU)
    out = capsys.readouterr().out
    assert '2 steps in a row up to 0.1 kimg had gradients that are not finite: back to' in out
    assert '0.5 of the learning rate' in out
    assert state.nimg == 160 and state.lr_factor == 0.5
    kimgs = [round(1000 * json.loads(line)['Progress/kimg']['mean'])
             for line in (tmp_path / 'stats.jsonl').read_text().splitlines()]
    assert kimgs == sorted(set(kimgs)) == [0, 32, 64, 96, 128, 160]


def test_without_a_state_a_rollback_stops(digits, tmp_path):  # noqa: F811
    config = small_config(digits)
    config = replace(config, nan=replace(config.nan, limit=1, then='rollback'))
    state = build(config, CPU)
    poison(state, [16])
    with pytest.raises(NonFiniteError, match='and there is no training state to go back to'):
        training_loop(config, state, tmp_path, CPU)


def test_a_skipped_step_changes_nothing_and_zero_goes_on(digits):  # noqa: F811
    for policy in ['skip', 'zero']:
        config = small_config(digits)
        config = replace(config, nan=replace(config.nan, policy=policy))
        state = run_steps(config, 2)
        before = {name: tensor.clone() for name, tensor in state.net.state_dict().items()}
        poison(state, [32])
        run_steps(config, 1, state)
        changed = [name for name, tensor in state.net.state_dict().items()
                   if not torch.equal(tensor, before[name])]
        assert (not changed) == (policy == 'skip') and state.nimg == 48 and state.bad_steps == 1
        assert all(bool(tensor.isfinite().all()) for tensor in state.net.state_dict().values())


def test_dynamic_loss_scale_halves_doubles_and_cancels(digits):  # noqa: F811
    scale = LossScale(1024.0, dynamic=True, growth_interval=3)
    history = []
    for finite in [True, False, True, True, True, True, False]:
        scale.update(finite)
        history.append(scale.scale)
    assert history == [1024, 512, 512, 512, 1024, 1024, 512]
    plain, scaled = (run_steps(small_config(digits, loss_scaling=value), 3)
                     for value in (1.0, None))
    for a, b in zip(plain.net.parameters(), scaled.net.parameters(), strict=True):
        # 2^16 and back is exact but for the order of sums
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_clipping_comes_after_the_repair_of_gradients(digits, bad):  # noqa: F811
    config = small_config(digits)
    config = replace(config, nan=replace(config.nan, policy='zero'),
                     optimizer=replace(config.optimizer, clip=0.5))
    state = build(config, CPU)
    bad_row = torch.tensor([0])
    state.net.model.map_layer0.weight.register_hook(
        lambda grad: grad + torch.zeros_like(grad).index_fill(0, bad_row, bad))
    run_steps(config, 1, state)
    norm = torch.linalg.vector_norm(
        torch.stack([p.grad.norm() for p in state.net.parameters() if p.grad is not None])
    )
    assert float(norm) == pytest.approx(0.5, rel=1e-5) and state.bad_steps == 1


MID_TICK_WORKER = '''
import sys
import train
import training.training_loop as loop
inner = loop.training_loop
def stopping(config, state, run_dir, device, should_stop, *rest):
    return inner(config, state, run_dir, device, lambda: state.nimg == 48, *rest)
train.training_loop = stopping
train.main()
'''


def test_two_processes_stopped_amid_a_tick_keep_their_statistics(digits, tmp_path):  # noqa: F811
    script = tmp_path / 'worker.py'
    script.write_text(MID_TICK_WORKER)
    args = arguments(digits, tmp_path / 'run', '--tick=0.064', '--duration=0.000128')
    assert 'Interrupted: stopped at 0.0 kimg' in torchrun(2, script, *args).stdout
    assert torchrun(2, 'tests/training/train_worker.py', *args).returncode == 0
    whole = torchrun(2, 'tests/training/train_worker.py',
                     *arguments(digits, tmp_path / 'whole', '--tick=0.064', '--duration=0.000128'))
    assert whole.returncode == 0, whole.stderr
    losses = [[json.loads(line).get('Loss/loss')
               for line in (tmp_path / name / 'stats.jsonl').read_text().splitlines()]
              for name in ['run', 'whole']]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_clipping_bounds_the_norm(digits):  # noqa: F811
    for loss_scaling in [1.0, 8.0, None]:
        config = small_config(digits, loss_scaling=loss_scaling)
        config = replace(config, optimizer=replace(config.optimizer, clip=0.5))
        state = run_steps(config, 1)
        norm = torch.linalg.vector_norm(
            torch.stack([p.grad.norm() for p in state.net.parameters() if p.grad is not None])
        )
        assert float(norm) == pytest.approx(0.5 * (loss_scaling or 1.0), rel=1e-5)
    config = replace(config, optimizer=replace(config.optimizer, clip=1e9))
    untouched = run_steps(small_config(digits, loss_scaling=None), 3)
    assert_same(untouched.net.state_dict(), run_steps(config, 3).net.state_dict())


def torn(path, how):
    data = bytearray(path.read_bytes())
    if how == 'half':
        data = data[:len(data) // 2]
    elif how == 'empty':
        data = bytearray()
    else:
        data[len(data) // 3] ^= 1   # one bit
    path.write_bytes(data)


@pytest.mark.parametrize('how', ['half', 'empty', 'bit'])
def test_a_damaged_state_is_recognised_and_the_one_before_it_used(
        digits, tmp_path, how):  # noqa: F811
    config = small_config(digits)
    state = run_steps(config, 1)
    paths = []
    for nimg in [1000, 2000]:
        state.nimg = nimg
        paths.append(save_state(state, config, tmp_path))
    torn(paths[1], how)
    with pytest.raises(DamagedError, match='training-state-000002.pt is damaged'):
        load_state(paths[1])
    said = []
    path, contents = latest_state(tmp_path, said.append)
    assert path == paths[0] and contents['nimg'] == 1000
    assert len(said) == 1 and said[0].endswith('; trying the one before it')
    torn(paths[0], how)
    result = run(train.main, *arguments(digits, tmp_path))
    assert (result.exit_code == 2 and 'has training states, but none of them is whole; '
                                      '--resume=never starts anew' in result.output)


def test_every_byte_counts(digits, tmp_path):  # noqa: F811
    """A file cut short anywhere, or with a bit turned over anywhere, is never taken for whole."""
    config = small_config(digits)
    path = save_snapshot(run_steps(config, 1), config, tmp_path)
    data, good = path.read_bytes(), checkpoint.load(path, SNAPSHOT)
    rng = np.random.default_rng(0)
    for cut in np.linspace(0, len(data) - 1, 40).astype(int):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match='network-snapshot-000000.pkl'):
            checkpoint.load(path, SNAPSHOT)
    for place in rng.integers(len(data), size=60):
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            contents = checkpoint.load(path, SNAPSHOT)
        except ValueError:
            continue
        # the bit was one that nobody reads
        assert checkpoint.checksum(contents) == checkpoint.checksum(good)


def test_a_full_disk_leaves_the_last_state_untouched(digits, tmp_path):  # noqa: F811
    config = small_config(digits)
    state = run_steps(config, 1)
    path = save_state(state, config, tmp_path)
    worker = '''
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import train
import training.training_loop
training.pictures.GRID = 2
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
train.main()
'''
    before = path.read_bytes()
    result = subprocess.run([sys.executable, '-c', worker,
                             *arguments(digits, tmp_path, '--resume=never')], cwd=ROOT,
                            capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith(
        'Error: ') and 'Traceback' not in result.stderr
    assert (tmp_path / 'old-00000' / path.name).read_bytes() == before
    assert not [other for other in tmp_path.rglob('*') if other.name.endswith('.tmp')]


def test_max_time_stops_before_the_deadline(digits, tmp_path, monkeypatch):  # noqa: F811
    config = small_config(digits, total_nimg=10**6)
    state = build(config, CPU)
    looks = itertools.count()
    monkeypatch.setattr('training.clock.time',   # a tenth of a second passes at every look at it
                        SimpleNamespace(monotonic=lambda: next(looks) / 10))
    with pytest.raises(Interrupted, match=r'stopped at .* kimg; the same command continues from '
                                          r'there'):
        training_loop(config, state, tmp_path, CPU, deadline=20)
    assert state.nimg > 0 and 18 < next(looks) / 10 < 20
    assert latest_state(tmp_path, pytest.fail)[1]['nimg'] == state.nimg
    result = run(train.main, *arguments(digits, tmp_path, '--max-time=5'))
    assert (result.exit_code == 2
            and "'5' is not a duration such as 30s, 90m, 47h or 2d" in result.output)


def test_old_files_are_pruned_and_thinned(digits, tmp_path):  # noqa: F811
    config = small_config(digits, total_nimg=96, tick_nimg=16, snapshot_nimg=16, state_nimg=16,
                          keep_states=2)
    training_loop(config, build(config, CPU), tmp_path, CPU)
    assert len(files_of(tmp_path, STATE)) == 1   # all within one kimg share a name
    for kimg in range(0, 110, 10):
        (tmp_path / f'network-snapshot-{kimg:06d}.pkl').touch()
        thin_snapshots(tmp_path, 4)
    left = [int(path.stem[-6:]) for path in files_of(tmp_path, SNAPSHOT)]
    assert len(left) == 4 and left[0] == 0 and left[-1] == 100
    assert max(np.diff(left)) <= 60


def test_other_settings_are_refused_and_listed(digits, tmp_path):  # noqa: F811
    config = small_config(digits)
    contents = load_state(save_state(run_steps(config, 1), config, tmp_path, 'abc'))
    longer = replace(config, total_nimg=10**6, tick_nimg=1, snapshot_nimg=1, state_nimg=1,
                     batch_gpu=2, keep_states=1, data=replace(config.data, workers=3, cache=False))
    assert differences(contents['config'], longer) == []
    state, _ = prepare(longer, CPU, ('it', contents), fingerprint='abc')
    assert state.nimg == 16
    other = replace(config, batch_size=8, seed=4, averages=(HalfLife(200, 0.5), PowerFunction(0.1)))
    expected = [
        'averages.1.sigma_rel: absent, now 0.1',
        'averages.1.type: absent, now average/power',
        'batch_size: 16, now 8',
        'seed: 3, now 4',
    ]
    assert differences(contents['config'], other) == expected
    with pytest.raises(ValueError, match=r'it belongs to a run with other settings.*batch_size: '
                                         r'16, now 8; seed: 3, now 4$'):
        prepare(other, CPU, ('it', contents))
    with pytest.raises(ValueError, match='the images of the data set are others$'):
        prepare(config, CPU, ('it', contents), fingerprint='xyz')


def test_another_number_of_ranks_sees_the_same_images_and_noise(digits, tmp_path):  # noqa: F811
    """One process, then two: up to the order of sums the run of one."""
    args = [argument for argument in arguments(digits, tmp_path / 'run')
            if not argument.startswith('--dropout')] + ['--dropout=0']
    half = [argument.replace('0.000384', '0.000192') for argument in args]
    assert run(train.main, *half).exit_code == 0
    two = torchrun(2, 'tests/training/train_worker.py', *args)
    assert two.returncode == 0 and 'continuing from' in two.stdout, two.stderr
    whole = [argument.replace(f'{tmp_path}/run', f'{tmp_path}/whole') for argument in args]
    assert run(train.main, *whole).exit_code == 0
    x, y = (load_state(files_of(tmp_path / name, STATE)[-1]) for name in ['run', 'whole'])
    assert x['nimg'] == y['nimg'] == 384
    # Not weight by weight: the bias of k has no gradient but rounding, which Adam makes steps of.
    nets = [load_snapshot(files_of(tmp_path / name, SNAPSHOT)[-1])[0] for name in ['run', 'whole']]
    noisy = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.linspace(0.1, 3, 8)
    torch.testing.assert_close(*(net(noisy, sigma, torch.eye(10)[:8]) for net in nets), rtol=0,
                               atol=2e-4)
    losses = [[json.loads(line)['Loss/loss']
               for line in (tmp_path / name / 'stats.jsonl').read_text().splitlines()[1:]]
              for name in ['run', 'whole']]
    assert [tick['num'] for tick in losses[0]] == [tick['num'] for tick in losses[1]]
    np.testing.assert_allclose([tick['mean'] for tick in losses[0]],
                               [tick['mean'] for tick in losses[1]], rtol=2e-4)


def test_a_finished_run_says_so_and_a_busy_one_is_left_alone(digits, undisturbed):  # noqa: F811
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()
              if path.suffix == '.pt'}
    result = run(train.main, *arguments(digits, undisturbed))
    assert (result.exit_code == 0
            and 'is at 0.4 kimg: there is nothing left to train' in result.output)
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()
            if path.suffix == '.pt'} == before
    from dnnlib.files import held
    with held(undisturbed / '.lock'):
        result = run(train.main, *arguments(digits, undisturbed, '--duration=0.001'))
    assert result.exit_code == 2 and f'{undisturbed} is in use by another process' in result.output


def test_weights_by_name(undisturbed):
    snapshot, state = files_of(undisturbed, SNAPSHOT)[-1], files_of(undisturbed, STATE)[-1]
    contents = load_state(state)
    for spec, expected in [('ema', contents['averages']['0.0001']),
                           ('ema:0.0001', contents['averages']['0.0001']),
                           ('ema:0.001', contents['averages']['0.001']),
                           ('ema:power-0.1', contents['averages']['power-0.1'])]:
        for path in [snapshot, state]:
            assert_same(load_snapshot(path, weights=spec)[0].state_dict(), expected)
    assert_same(load_snapshot(state, weights='raw')[0].state_dict(), contents['net'])
    with pytest.raises(ValueError, match=r'^weights=raw: .* has ema, ema:0.0001, ema:0.001, '
                                         r'ema:power-0.1; raw weights are in training-state'):
        load_snapshot(snapshot, weights='raw')
    import checkpoint as command
    result = run(command.main, 'inspect', str(snapshot), '--weights=raw')
    assert result.exit_code == 2
    assert (f'--weights=raw: {snapshot} has ema, ema:0.0001, ema:0.001, ema:power-0.1; raw weights '
            f'are in training-state') in result.output


def test_power_function_average_has_the_profile_of_its_name():
    """Averaging the counter itself: the weights of time follow τ^γ, so mean and width are known."""
    power = power_of(0.1)
    # as in EDM2
    assert power == pytest.approx(6.94, abs=0.01) and power_of(0.05) == pytest.approx(
        16.97, abs=0.01
    )
    for gamma in [0.0, 1.0, 7.0, 30.0]:
        assert power_of(width_of(gamma)) == pytest.approx(gamma, abs=1e-9)
    average = PowerFunction(0.1)
    mean = square = 0.0
    batch, steps = 10, 5000
    for step in range(steps):
        beta, t = average.beta(step * batch, batch), (step + 0.5) / steps
        mean, square = beta * mean + (1 - beta) * t, beta * square + (1 - beta) * t * t
    assert mean == pytest.approx((power + 1) / (power + 2), rel=1e-3)
    assert math.sqrt(square - mean**2) == pytest.approx(0.1, rel=1e-3)
    assert PowerFunction(0.1).beta(0, 10) == 0


def test_reconstruction_from_stored_averages():
    """Two widths stored a few times give any width in between: checked on the profiles, by
    quadrature."""
    tau = (np.arange(200_000) + 0.5) / 200_000 * 8000

    def profile(t, width):
        power = power_of(width)
        return np.where(tau <= t, (power + 1) * tau**power / t ** (power + 1), 0)

    errors = []
    for count in [32, 8]:
        stored = [(t, width) for t in np.arange(1, count + 1) * 8000 / count
                  for width in (0.05, 0.10)]
        weights = reconstruction_weights(stored, 8000.0, 0.07)
        assert weights.sum() == pytest.approx(1)
        made, target = sum(w * profile(*item)
                           for w, item in zip(weights, stored, strict=True)), profile(8000.0, 0.07)
        errors.append(np.sqrt(((made - target) ** 2).mean() / (target**2).mean()))
        assert reconstruction_error(stored, weights, 8000.0,
                                    0.07) == pytest.approx(errors[-1], rel=0.02)
    assert errors[0] < 0.005 and errors[1] < 0.02, errors
    exact = reconstruction_weights(stored, 8000.0, 0.10)
    assert exact[-1] == pytest.approx(1, abs=1e-6) and np.abs(exact[:-1]).max() < 1e-6
    quadrature = (profile(5000.0, 0.05) * profile(8000.0, 0.1)).mean() * 8000
    assert inner_product(5000.0, power_of(0.05), 8000.0, power_of(0.1)) == pytest.approx(
        quadrature, rel=1e-4
    )


def test_files_of_the_first_format_stay_readable():
    """One tiny file of each kind, written once and never again: what it must still produce is
    written here."""
    folder = Path(__file__).parents[1] / 'data'
    expected = json.loads((folder / 'format-1.json').read_text())
    net, contents = load_snapshot(folder / 'network-snapshot-format-1.pkl')
    x = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    D = net(x, torch.tensor([0.5, 3.0]), torch.eye(3)[:2])
    np.testing.assert_allclose(D.detach().flatten()[:8].numpy(), expected['D'], rtol=1e-5,
                               atol=1e-6)
    state = load_state(folder / 'training-state-format-1.pt')
    assert (contents['nimg'], state['nimg'],
            sorted(state['averages'])) == (expected['nimg'], expected['nimg'], expected['averages'])
    assert configs.decode(state['config'], configs.TrainConfig).batch_size == expected['batch_size']


def test_reconstruct_puts_an_average_together(digits, tmp_path):  # noqa: F811
    """A stored width comes back as it was; another lies between; a run without them says what to
    do."""
    import checkpoint as command

    config = small_config(
        digits, averages=(HalfLife(200, 0.5), PowerFunction(0.05), PowerFunction(0.1))
    )
    state = build(config, CPU)
    for kimg in [1, 2, 3, 4]:
        run_steps(config, 1, state)
        state.nimg = 1000 * kimg
        save_snapshot(state, config, tmp_path)
    for width, name in [(0.1, 'exact.pkl'), (0.07, 'between.pkl')]:
        result = run(command.main, 'reconstruct', f'--run={tmp_path}', f'--width={width}',
                     f'--dest={tmp_path}/{name}')
        assert result.exit_code == 0 and 'made of 8 stored ones' in result.output, result.output
    exact, _ = load_snapshot(tmp_path / 'exact.pkl')
    for a, b in zip(exact.parameters(), state.averages['power-0.1'].net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    _, contents = load_snapshot(tmp_path / 'between.pkl')
    assert contents['ema_name'] == 'power-0.07' and contents['nimg'] == 4000
    result = run(command.main, 'reconstruct', f'--run={tmp_path}/nowhere', '--width=0.1',
                 f'--dest={tmp_path}/x.pkl')
    assert result.exit_code == 2 and 'train with --ema-power=0.05,0.1' in result.output


def test_older_formats_are_upgraded_and_later_ones_refused(monkeypatch):
    path = Path(__file__).parents[1] / 'data' / 'training-state-format-1.pt'
    monkeypatch.setattr('training.config.FORMAT', 3)
    monkeypatch.setattr('training.state.UPGRADES', {
        1: lambda contents: {**contents, 'nimg': contents['nimg']
                             + 1}, 2: lambda contents: {**contents, 'nimg': contents['nimg'] * 2}})
    assert (load_state(path)['nimg'], load_state(path)['format']) == (8194, 3)
    monkeypatch.undo()
    monkeypatch.setattr('training.config.FORMAT', 0)
    with pytest.raises(ValueError, match='has format 1; this version reads formats 1 to 0'):
        load_state(path)


@pytest.mark.parametrize('precision', ['fp32', 'fp16', 'bf16'])
def test_snapshots_of_every_precision_load_with_bare_names(
        digits, tmp_path, precision):  # noqa: F811
    """Also from a network that was compiled: its parameters keep their names and stay float32."""
    config = small_config(digits)
    config = replace(config, network=replace(config.network, precision=precision))
    state = run_steps(config, 2)
    compiled = torch.compile(state.net, backend='eager')
    compiled(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.eye(10)[:1])
    path = save_snapshot(state, config, tmp_path)
    net, contents = load_snapshot(path)
    assert_same(net.state_dict(), state.ema.net.state_dict())
    assert contents['nimg'] == 32 and {tensor.dtype
                                       for tensor in net.state_dict().values()} == {torch.float32}
    assert not any(part in name for name in net.state_dict() for part in ('module.', '_orig_mod.'))
    assert net.dtype == {'fp32': torch.float32, 'fp16': torch.float16,
                         'bf16': torch.bfloat16}[precision]
