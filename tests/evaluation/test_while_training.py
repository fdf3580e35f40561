"""Judging while training: the numbers of fid.py gen, the best snapshot kept, and training untouched
by it."""

import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import fid
import train
from evaluation.while_training import EvalConfig, WhileTraining, without_a_trace
from metrics.definitions import METRICS
from metrics.judge import Judge
from metrics.one_pass import measure
from tests.commands.test_generate import run
from tests.training.test_resume import start, wait_for
from tests.training.test_training_loop import (  # noqa: F401, F811
    CPU,
    assert_same,
    digits,
    small_config,
    small_pictures,
    torchrun,
)
from torch_utils import checkpoint
from training.ema import HalfLife
from training.run_folder import (
    BEST,
    SNAPSHOT,
    STATE,
    choose_best,
    files_of,
    read_best,
    thin_snapshots,
    write_best,
)
from training.state import latest_state, load_snapshot, load_state
from training.stats_file import add_numbers, read_statistics
from training.training_loop import Interrupted, build, prepare, training_loop

NUM = 32
NAMES = ['demo_fd', 'demo_precision', 'demo_recall']


def judge(*args):
    """fid.py in this process, which it would leave without gradients."""
    with without_a_trace(CPU):
        return run(fid.main, *args)


@pytest.fixture(scope='module')
def ref(digits, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp('ref') / 'digits.npz'
    result = judge('ref', f'--data={digits}', f'--dest={path}', '--metrics=fid,pr',
                   '--detector=demo', '--workers=0', '--device=cpu')
    assert result.exit_code == 0, result.output
    return str(path)


def tiny(digits, **changes):  # noqa: F811
    """A run of 4 kimg in steps of 500 images, with a snapshot at the ends and a state at 2 and 4
    kimg."""
    config = small_config(digits, dropout=0.0, augment=None, averages=(HalfLife(500, None),))
    network = replace(config.network, model={**config.network.model, 'channel_mult': [1],
                                             'attn_resolutions': [], 'augment_dim': 0})
    return replace(config, network=network, **{
        'batch_size': 500, 'total_nimg': 4000, 'tick_nimg': 1000, 'snapshot_nimg': 4000,
        'state_nimg': 2000, **changes})


def evaluation_of(ref, config, **changes):
    settings = {'interval_nimg': 1000, 'ref': ref, 'metrics': ('fid', 'pr'), 'num': NUM,
                'detector': 'demo', 'num_steps': 3, **changes}
    return WhileTraining(EvalConfig(**settings), build(config, CPU).ema.net, CPU)


def trained(config, folder, evaluation, **options):
    folder.mkdir(exist_ok=True)
    found = latest_state(folder, pytest.fail)
    state, _ = prepare(config, CPU, None if found is None else (str(found[0]), found[1]))
    training_loop(config, state, folder, CPU, evaluation=evaluation, **options)
    return folder


def numbers_of(folder):
    """{kimg: numbers} of the lines that have any."""
    lines = read_statistics(folder / 'stats.jsonl')
    return {line['Progress/kimg']['mean']: {name.removeprefix('Metrics/'): line[name]['mean']
                                            for name in line if name.startswith('Metrics/')}
            for line in lines if 'evaluation' in line}


def files_in(folder):
    """Names and contents of what is a function of the run alone; times are not."""
    stats = [{key: line[key] for key in line
              if not key.startswith(('Timing', 'Resources', 'timestamp'))}
             for line in read_statistics(folder / 'stats.jsonl')]
    snapshots = {path.name: checkpoint.checksum(load_snapshot(path)[1])
                 for path in files_of(folder, SNAPSHOT)}
    link = folder / BEST
    return stats, snapshots, sorted(path.name
                                    for path in folder.iterdir()), read_best(folder), os.readlink(
                                        link) if link.is_symlink() else None


@pytest.fixture(scope='module')
def whole(digits, ref, tmp_path_factory):  # noqa: F811
    """A run that was judged after each thousand images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('training.pictures.GRID', 2)
        config = tiny(digits)
        return trained(config, tmp_path_factory.mktemp('whole') / 'run', evaluation_of(ref, config))


def test_the_numbers_are_those_of_fid_gen_on_the_same_snapshot(whole, ref, tmp_path):
    found = numbers_of(whole)
    assert list(found) == [1, 2, 3, 4] and all(list(numbers) == NAMES for numbers in found.values())
    for kimg in (1, 4):
        result = judge('gen', f'--network={whole}/network-snapshot-{kimg:06d}.pkl', f'--ref={ref}',
                       f'--num={NUM}', '--steps=3',
                     '--metrics=fid,pr', '--detector=demo', '--device=cpu',
                       f'--json={tmp_path / "numbers.json"}')
        assert result.exit_code == 0, result.output
        # bitwise
        assert json.loads((tmp_path / 'numbers.json').read_text())['blocks'][0]['scores'] == found[
            kimg]


def test_they_stand_in_the_line_of_their_tick_beside_how_they_came_about(whole, ref):
    lines = read_statistics(whole / 'stats.jsonl')
    assert [line['Progress/kimg']['mean'] for line in lines] == [0, 1, 2, 3, 4]
    # an untrained network is not judged
    assert 'evaluation' not in lines[0] and 'Metrics/demo_fd' not in lines[0]
    origin = Judge(ref, ('fid', 'pr'), device=CPU, detector='demo').origin()
    assert lines[2]['evaluation'] == {'ref': ref, 'num_images': NUM, 'detector': 'demo',
                                      'num_steps': 3, 'origin': origin}
    assert set(lines[2]['Metrics/demo_fd']) == set(lines[2]['Progress/kimg']) and lines[2][
        'Metrics/demo_fd']['std'] == 0
    assert not list(whole.glob('.evaluation-*'))


def test_training_does_not_notice(digits, ref, whole, tmp_path):  # noqa: F811
    """Weights, averages, optimiser and the statistics of the loss are bitwise those of a run that
    is never judged."""
    plain = trained(tiny(digits), tmp_path / 'plain', None)
    a, b = (load_state(files_of(folder, STATE)[-1]) for folder in (whole, plain))
    assert_same(a['net'], b['net'])
    assert_same(a['averages']['0.0005'], b['averages']['0.0005'])
    assert checkpoint.checksum(a['optimizer']) == checkpoint.checksum(b['optimizer']) and a[
        'config'] == b['config']
    assert [line.get('Loss/loss') for line in read_statistics(whole / 'stats.jsonl')] == \
           [line.get('Loss/loss') for line in read_statistics(plain / 'stats.jsonl')]
    assert [path.name[-10:-4] for path in files_of(plain, SNAPSHOT)] == ['000000', '000004']
    assert [path.name[-10:-4] for path in files_of(whole, SNAPSHOT)] == ['000000', '000001',
                                                                         '000002', '000003',
                                                                         '000004']
    assert not (plain / BEST).exists() and not (plain / 'best.json').exists()


def test_what_an_evaluation_draws_and_sets_is_put_back():
    before = (torch.get_rng_state(), torch.backends.cudnn.benchmark,
              torch.backends.cudnn.deterministic)
    with pytest.raises(ZeroDivisionError), without_a_trace(CPU):
        torch.rand(3)
        assert (not torch.is_grad_enabled() and torch.backends.cudnn.deterministic
                and not torch.backends.cudnn.benchmark)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.is_grad_enabled()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before[1:]


def test_the_best_snapshot_has_a_link_and_a_report(whole, ref):
    found = numbers_of(whole)
    kimg = min(found, key=lambda k: found[k]['demo_fd'])
    name = f'network-snapshot-{int(kimg):06d}.pkl'
    assert (whole / BEST).is_symlink() and os.readlink(whole / BEST) == name
    origin = read_best(whole)['evaluation']['origin']
    assert read_best(whole) == {
        'snapshot': name, 'kimg': kimg, 'metric': 'demo_fd', 'scores': found[kimg],
        'evaluation': {'ref': ref, 'num_images': NUM, 'detector': 'demo', 'num_steps': 3,
                       'origin': origin}}
    assert load_snapshot(whole / BEST)[1]['nimg'] == kimg * 1000


def lines_of(numbers, protocol):
    return [{'Progress/kimg': {'num': 1, 'mean': kimg, 'std': 0},
             'Metrics/fid': {'num': 1, 'mean': value, 'std': 0}, 'evaluation': protocol}
            for kimg, value in numbers.items()]


def judged_folder(folder, numbers, protocol='a'):
    folder.mkdir()
    for kimg in numbers:
        (folder / f'network-snapshot-{int(kimg):06d}.pkl').write_text(f'{kimg}')
    (folder / 'stats.jsonl').write_text(''.join(json.dumps(line) + '\n'
                                                for line in lines_of(numbers, protocol)))
    return folder


def chosen(folder, protocol='a'):
    best = choose_best(folder, 'fid', protocol)
    return None if best is None else int(best.stem[-6:])


def test_the_best_is_the_lowest_of_what_was_judged_alike_and_is_there(tmp_path):
    folder = judged_folder(tmp_path / 'run', {10: 5.0, 20: 2.0, 30: 3.0, 40: 2.0, 50: None})
    # the earlier of two equals
    assert chosen(folder) == 20 and (folder / BEST).read_text() == '20'
    assert chosen(folder,
                  'b') is None and not (folder / BEST).exists() and read_best(folder) is None
    (folder / 'network-snapshot-000020.pkl').unlink()
    assert chosen(folder) == 40
    # the last snapshot of a run may replace one of the same thousand
    with open(folder / 'stats.jsonl', 'a') as file:
        file.write(json.dumps(lines_of({40.5: 4.0}, 'a')[0]) + '\n')
    assert chosen(folder) == 30


def test_thinning_spares_the_best(tmp_path):
    def left(best, keep):
        folder = judged_folder(tmp_path / f'{best}-{keep}',
                               dict.fromkeys(range(0, 100, 10), 5.0) | {best: 1.0})
        chosen(folder)
        thin_snapshots(folder, keep)
        return [int(path.stem[-6:]) for path in files_of(folder, SNAPSHOT)]

    assert left(40, 3) == [0, 40, 90]
    assert left(40, 2) == [0, 40, 90]   # first and last stay, too
    assert left(90, 2) == left(0, 2) == [0, 90]
    found = left(30, 4)
    assert len(found) == 4 and {0, 30, 90} < set(found) and found[2] - 30 > 10


def test_where_links_are_impossible_the_best_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError('symbolic link privilege not held')

    monkeypatch.setattr(Path, 'symlink_to', refuse)
    folder = judged_folder(tmp_path / 'run', {10: 5.0, 20: 2.0})
    assert (
        chosen(folder) == 20
        and not (folder / BEST).is_symlink()
        and (folder / BEST).read_text() == '20'
    )
    monkeypatch.undo()
    write_best(folder, {'snapshot': 'network-snapshot-000010.pkl'})
    assert (folder / BEST).is_symlink() and (folder / BEST).read_text() == '10'
    assert not [path for path in folder.iterdir() if path.name.endswith('.tmp')]


def test_statistics_keep_every_digit_and_nothing_else_is_touched(tmp_path):
    path = judged_folder(tmp_path / 'run', {10: 1 / 3}) / 'stats.jsonl'
    path.write_text(path.read_text() + '{"Progress/kimg": {"num": 1, "mean": 20, "std": '
                                       '0}}\n{"Progress/ki')
    before = path.read_text().splitlines()
    add_numbers(path, 20_000, {'fid': 0.1 + 0.2, 'kid': math.nan}, {'ref': 'x'})
    after = path.read_text().splitlines()
    assert after[0] == before[0] and len(after) == 2
    assert json.loads(after[1]) == {
        'Progress/kimg': {'num': 1, 'mean': 20, 'std': 0},
        'Metrics/fid': {'num': 1, 'mean': 0.1 + 0.2, 'std': 0},
        'Metrics/kid': {'num': 0, 'mean': None, 'std': None}, 'evaluation': {'ref': 'x'}}


def stop_within(evaluation, count):
    """Make an evaluation's images ask, after `count` batches in all, for what `stopped` returns."""
    asked = []
    images = evaluation._images

    def counted(net, stopping):
        return images(net, lambda: asked.append(1) or len(asked) > count or stopping())

    evaluation._images = counted
    return lambda: len(asked) > count


@pytest.mark.parametrize('nimg', [1000, 2000, 4000])  # between states, at a state, at the end
def test_a_stopped_evaluation_is_taken_up_and_the_files_are_those_of_one_run(
    digits, ref, whole, tmp_path, nimg  # noqa: F811
):
    config = tiny(digits)
    cut = evaluation_of(ref, config, batch=16)
    stopped = stop_within(cut, 2 * (nimg // 1000) - 1)   # two batches an evaluation: amid the last
    with pytest.raises(Interrupted, match=f'stopped at {nimg / 1000:.1f} kimg; the same command '
                                          f'continues from there'):
        trained(config, tmp_path / 'run', cut, should_stop=stopped)
    assert list(numbers_of(tmp_path / 'run')) == list(range(1, nimg // 1000))
    assert latest_state(tmp_path / 'run', pytest.fail)[1]['nimg'] == nimg
    trained(config, tmp_path / 'run', evaluation_of(ref, config))
    ours, theirs = files_in(tmp_path / 'run'), files_in(whole)
    assert ours == theirs   # a state is written before each evaluation


def test_an_evaluation_that_was_killed_goes_on_where_it_was(digits, ref, tmp_path,  # noqa: F811
                                                            monkeypatch):  # noqa: F811
    """Two chunks of images; the second process makes the second alone."""
    monkeypatch.setitem(measure.__kwdefaults__, 'save_seconds', -1)
    monkeypatch.setattr('metrics.statistics.CHUNK', 16)
    monkeypatch.setattr('metrics.one_pass.CHUNK', 16)
    net, made = build(tiny(digits), CPU).ema.net, []
    evaluation = evaluation_of(ref, tiny(digits))
    (tmp_path / '.evaluation-of-another').mkdir()

    def killed():
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        evaluation(net, tmp_path, killed)
    [folder] = tmp_path.glob('.evaluation-*')
    assert (folder / 'progress.npz').exists()
    made.clear()
    continued = evaluation(net, tmp_path, lambda: made.append(1))
    assert len(made) == 1 and not list(tmp_path.iterdir())
    assert continued.scores == evaluation(net, tmp_path, lambda: False).scores


def test_judging_may_begin_later_or_after_the_end(digits, ref, whole, tmp_path):  # noqa: F811
    """--eval in the continuing command alone judges from the state on; a finished run is judged at
    its end."""
    config = tiny(digits)
    trained(replace(config, total_nimg=2000), tmp_path / 'run', None)
    trained(config, tmp_path / 'run', evaluation_of(ref, config))
    assert numbers_of(tmp_path / 'run') == {
        kimg: numbers for kimg, numbers in numbers_of(whole).items() if kimg >= 2
    }
    trained(config, tmp_path / 'run', evaluation_of(ref, config, num_steps=2))
    lines = read_statistics(tmp_path / 'run' / 'stats.jsonl')
    assert [line.get('evaluation', {}).get('num_steps') for line in lines] == [None, None, 3, 3, 2]
    assert read_best(tmp_path / 'run')['kimg'] == 4   # 2 steps are compared with 2 steps only


def test_a_rolled_back_best_is_forgotten(digits, ref, tmp_path):  # noqa: F811
    """The numbers of the snapshots after the state are gone, and so is the claim that one of them
    is best."""
    config = tiny(digits)
    config = replace(config, nan=replace(config.nan, limit=1, then='rollback'), state_nimg=1000)
    state, seen = build(config, CPU), []

    def poisoned(grad):
        if state.nimg == 3500 and not seen:
            seen.append(read_best(tmp_path)['kimg'])
            add_numbers(tmp_path / 'stats.jsonl', 3000, {'demo_fd': 0.0}, evaluation.protocol)
            choose_best(tmp_path, 'demo_fd', evaluation.protocol)
            seen.append(read_best(tmp_path)['kimg'])
            (tmp_path / 'training-state-000003.pt').unlink()
            return grad * math.inf
        if state.nimg == 2000 and len(seen) == 2:
            seen.append(read_best(tmp_path)['kimg'])
        return grad

    evaluation = evaluation_of(ref, config)
    state.net.model.map_layer0.weight.register_hook(poisoned)
    training_loop(config, state, tmp_path, CPU, evaluation=evaluation)
    assert state.lr_factor == 0.5 and seen[1] == 3 and seen[2] in (1, 2)
    found = numbers_of(tmp_path)
    assert list(found) == [1, 2, 3, 4] and all(numbers['demo_fd'] > 0 for numbers in found.values())
    assert read_best(tmp_path)['scores']['demo_fd'] == min(
        numbers['demo_fd'] for numbers in found.values()
    )


def test_images_that_are_not_finite_do_not_end_the_training(digits, ref, tmp_path,  # noqa: F811
                                                            capsys):  # noqa: F811
    config = tiny(digits, total_nimg=2000)
    state = build(config, CPU)
    evaluation = evaluation_of(ref, config)
    images = evaluation._images

    def poisoned(net, stopping):
        if state.nimg == 1000:
            net = build(config, CPU).ema.net
            net.model.map_layer0.weight.data.fill_(math.nan)
        return images(net, stopping)

    evaluation._images = poisoned
    training_loop(config, state, tmp_path, CPU, evaluation=evaluation)
    found = numbers_of(tmp_path)
    assert found[1] == dict.fromkeys(NAMES) and all(math.isfinite(value)
                                                    for value in found[2].values())
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith('evaluation')]
    assert out[0].startswith('evaluation at kimg 1.0        no numbers: the images came out as '
                             'numbers that are not finite')
    assert re.fullmatch(r'evaluation at kimg 2\.0        demo_fd \S+ *  demo_precision \S+ *  '
                        r'demo_recall \S+ *  images 32  time \ds  best so far', out[1])
    assert read_best(tmp_path)['kimg'] == 2


def test_time_is_maintenance_and_not_that_of_a_save(digits, ref, tmp_path,  # noqa: F811
                                                    monkeypatch):  # noqa: F811
    clock = [0.0]
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    config = tiny(digits, total_nimg=2000)
    evaluation = evaluation_of(ref, config)
    judged = evaluation.judge.judged

    def slow(*args):
        clock[0] += 1000
        return judged(*args)

    evaluation.judge.judged = slow
    # were it a save, the next would have to begin at 0
    trained(config, tmp_path / 'run', evaluation, deadline=1500)
    lines = read_statistics(tmp_path / 'run' / 'stats.jsonl')
    assert [line['Timing/maintenance_sec']['mean'] for line in lines] == [0, 0, 1000]
    assert [line['Timing/sec_per_tick']['mean'] for line in lines] == [0, 0, 0]


def test_a_deadline_cuts_an_evaluation_short(digits, ref, tmp_path, monkeypatch):  # noqa: F811
    """A batch takes 100 s: 150 s before the deadline there is time for another, and then there is
    not."""
    clock = [0.0]
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    evaluation = evaluation_of(ref, tiny(digits), batch=2)
    images = evaluation._images

    def slow(net, stopping):
        made = images(net, stopping)
        generate = made._generate

        def waiting(positions):
            clock[0] += 100
            return generate(positions)

        made._generate = waiting
        return made

    evaluation._images = slow
    with pytest.raises(Interrupted, match='stopped at 1.0 kimg'):
        trained(tiny(digits), tmp_path / 'run', evaluation, deadline=1050)
    assert clock[0] == 1000 and latest_state(tmp_path / 'run', pytest.fail)[1]['nimg'] == 1000


def arguments(digits, run_dir, *more):  # noqa: F811
    return [f'--run-dir={run_dir}', f'--data={digits}', '--cond=1', '--cbase=16', '--cres=1',
            '--blocks=1', '--attn=8', '--batch=500', '--duration=0.003', '--lr-rampup=0.0005',
            '--dropout=0.1', '--augment=0', '--tick=1', '--snap=100', '--dump=1', '--workers=0',
            '--device=cpu', '--ema=0.0005', *more]


def judged_by(ref, *more):
    return ['--eval=1', f'--ref={ref}', '--eval-detector=demo', f'--eval-num={NUM}',
            '--eval-steps=3', *more]


def test_a_killed_command_ends_with_the_files_of_an_undisturbed_one(digits, ref,  # noqa: F811
                                                                    tmp_path):  # noqa: F811
    args = judged_by(ref, '--metrics=fid,pr')
    assert run(train.main, *arguments(digits, tmp_path / 'whole', *args)).exit_code == 0
    process = start(arguments(digits, tmp_path / 'run', *args))
    wait_for(lambda: (tmp_path / 'run' / 'network-snapshot-000002.pkl').exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(arguments(digits, tmp_path / 'run', *args))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and 'continuing from' in output, output
    assert files_in(tmp_path / 'run') == files_in(tmp_path / 'whole')
    assert len(numbers_of(tmp_path / 'run')) == 3
    again = run(train.main, *arguments(digits, tmp_path / 'run', *args))
    assert again.exit_code == 0 and 'there is nothing left to train' in again.output
    later = run(train.main, *arguments(digits, tmp_path / 'run', *args, '--eval-num=16'))
    assert (later.exit_code == 0 and 'evaluation at kimg 3.0' in later.output
            and later.output.endswith('Done.\n')), later.output


WORKER = """
import torch
import metrics.one_pass, metrics.statistics
import train
from evaluation.generated import GeneratedImages
import training.training_loop as loop
from torch_utils import distributed
torch.set_num_threads(1)
metrics.one_pass.CHUNK = metrics.statistics.CHUNK = 16   # so that both ranks have some
inner, batches, asked = loop.training_loop, GeneratedImages.batches, []
def counted(self, parts, device):
    asked.append(1)
    return batches(self, parts, device)
def stopping_loop(*args):
    stop = lambda: {stop} and bool(asked) and distributed.get_rank() == 1
    return inner(*args[:4], stop, *args[5:])
GeneratedImages.batches, train.training_loop = counted, stopping_loop
train.main()
"""


def test_two_processes_stop_together_and_find_the_numbers_of_one(
    digits, ref, tmp_path, monkeypatch  # noqa: F811
):
    """One rank is asked to stop amid the evaluation; what both of them then end with is bitwise
    what one finds."""
    args = ['--duration=0.001', *judged_by(ref, '--metrics=fid,pr')]
    plain = run(train.main, *arguments(digits, tmp_path / 'one', '--duration=0.001'))
    assert plain.exit_code == 0, plain.output
    shutil.copytree(tmp_path / 'one', tmp_path / 'two')
    for module in ('one_pass', 'statistics'):
        monkeypatch.setattr(f'metrics.{module}.CHUNK', 16)
    one = run(train.main, *arguments(digits, tmp_path / 'one', *args))
    assert one.exit_code == 0 and one.output.count('evaluation at kimg 1.0') == 1, one.output
    (tmp_path / 'worker.py').write_text(WORKER.replace('{stop}', 'True'))
    result = torchrun(2, tmp_path / 'worker.py', *arguments(digits, tmp_path / 'two', *args))
    assert (result.returncode != 0
            and 'Interrupted: stopped at 1.0 kimg' in result.stdout), result.stdout + result.stderr
    assert numbers_of(tmp_path / 'two') == {} and read_best(tmp_path / 'two') is None
    (tmp_path / 'worker.py').write_text(WORKER.replace('{stop}', 'False'))
    result = torchrun(2, tmp_path / 'worker.py', *arguments(digits, tmp_path / 'two', *args))
    assert result.returncode == 0 and result.stdout.count(
        'evaluation at kimg 1.0') == 1, result.stdout + result.stderr
    assert numbers_of(tmp_path / 'two') == numbers_of(tmp_path / 'one') and list(
        numbers_of(tmp_path / 'two')
    ) == [1.0]
    assert read_best(tmp_path / 'two') == read_best(tmp_path / 'one')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--ref=REF'], '--ref would have no effect without --eval'),
        (['--detector=demo'], '--eval-detector would have no effect without --eval'),
        (['--allow-mismatch'], '--allow-mismatch would have no effect without --eval'),
        (
            ['--eval=1'],
            '--eval=1 needs --ref, the statistics of the real images: fid.py ref makes them',
        ),
        (['--eval=2.5', '--ref=REF'], '--eval=2.5 is not a multiple of --tick=1: use 2 or 3'),
        (['--eval=0.5', '--ref=REF'], '--eval=0.5 is not a multiple of --tick=1: use 1'),
        (
            ['--eval=1', '--ref=REF', '--tick=0.5'],
            '--tick=0.5 is too short for --eval, as snapshots are named by thousands of images: '
            'use --tick=1 or more',
        ),
        (
            ['--eval=1', '--ref=REF', '--metrics=fids'],
            f'--metrics=fids is unknown: it takes {", ".join(METRICS)}, with commas between',
        ),
        (
            ['--eval=1', '--ref=REF', '--metrics=pr,fid', '--detector=demo'],
            '--metrics=pr,fid: the first chooses the best snapshot, by its lowest number; put one '
            'of fid, sfid, fd_dinov2, fd_efficientnet_lite0, fid_inf, kid before pr',
        ),
        (
            ['--eval=1', '--ref=REF', '--metrics=fid,is', '--detector=demo'],
            '--metrics=is needs the Inception network, and --detector=demo is another: leave is '
            'out, or use --detector=inception',
        ),
        (
            ['--eval=1', '--ref=REF', '--metrics=fid,pr', '--detector=demo', '--data=OTHER'],
            'is of images of shape [1, 8, 8], but these have shape [1, 4, 4]',
        ),
        (['--eval=1', '--ref=missing.npz', '--detector=demo'], 'missing.npz'),
        (
            ['--eval=1', '--ref=REF', '--detector=weights.pth'],
            '--detector=weights.pth is none of inception, efficientnet-lite0, dinov2, demo, '
            'arrays, no file of Inception weights, and no module:function',
        ),
    ],
)
def test_errors_come_before_anything_is_written(digits, ref, tmp_path, options,  # noqa: F811
                                                message):  # noqa: F811
    other = tmp_path / 'small.zip'
    assert CliRunner().invoke(dataset_tool.main, ['--source=digits', f'--dest={other}',
                                                  '--resolution=4x4',
                                                  '--max-images=20']).exit_code == 0
    options = [option.replace('REF', ref).replace('OTHER', str(other)) for option in options]
    args = [option for option in arguments(digits, tmp_path / 'run')
            if not option.startswith('--attn')]
    result = run(train.main, *args, *options)
    assert result.exit_code == 2 and not (tmp_path / 'run').exists()
    line = result.output.splitlines()[-1]
    assert line.startswith('Error: ') and message in line


def test_only_distances_choose(ref):
    distances = {'fid', 'sfid', 'fd_dinov2', 'fd_efficientnet_lite0', 'fid_inf', 'kid'}
    for name in METRICS:
        if name in distances:
            assert EvalConfig(1000, ref, (name, 'pr')).metrics[0] == name
        else:
            with pytest.raises(ValueError, match=f'before {name}$'):
                EvalConfig(1000, ref, (name,))
