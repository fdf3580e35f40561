"""Runs that end by an error, a lost terminal or an option: what they leave, and how they go on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train
from dnnlib.logfile import LogFile
from options.continuing import command_to_continue
from tests.commands.test_generate import run
from tests.training.test_resume import arguments, num_lines, wait_for
from tests.training.test_training_loop import (  # noqa: F401
    CPU,
    ROOT,
    assert_same,
    digits,
    run_steps,
    small_config,
    small_pictures,
)
from training.dataset import DataConfig, ImageFolderDataset, batches
from training.ema import HalfLife, PowerFunction
from training.run_folder import SNAPSHOT, STATE, files_of, prune_states, set_aside, thin_snapshots
from training.state import load_state, permission_for, save_state
from training.stopping import graceful_signals
from training.training_loop import OtherSettingsError, build, prepare, training_loop

SHORT = '--duration=0.000064'


def damaged(source: str, dest: Path, number: int) -> str:
    """Copy a zip, with one image cut short; returns the name of the image."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(dest, 'w') as new:
        names = sorted(name for name in old.namelist() if name.endswith('.png'))
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data[:len(data) // 2] if name == names[number] else data)
    return names[number]


def unpacked(source: str, folder: Path) -> Path:
    with zipfile.ZipFile(source) as archive:
        archive.extractall(folder)
    return folder


def test_a_damaged_image_costs_nothing(digits, tmp_path):  # noqa: F811
    """The run saves where it is, says so, and goes on with the mended data on purpose, to where
    it would have been."""
    bad = tmp_path / 'bad.zip'
    name = damaged(digits, bad, 70)
    args = arguments(bad, tmp_path / 'run', '--duration=0.000128', '--dump=100')
    result = run(train.main, *args)
    assert result.exit_code == 2 and f'{name} is damaged' in result.output, result.output
    reached = load_state(files_of(tmp_path / 'run', STATE)[-1])['nimg']
    assert reached > 0 and reached % 16 == 0
    assert f'everything up to {reached / 1000:.1f} kimg is saved' in result.output
    assert 'To continue from the last training state: ' in result.output
    mended = arguments(digits, tmp_path / 'run', '--duration=0.000128', '--dump=100')
    result = run(train.main, *mended)
    assert result.exit_code == 2 and (
        'cannot be continued with these (--resume=never starts anew; --allow-data-change '
        'continues all the same): the images of the data set are others' in result.output)
    result = run(train.main, *mended, '--allow-data-change')
    assert result.exit_code == 0, result.output
    note = f'changed at {reached / 1000:.1f} kimg: the images of the data set are others'
    assert note in result.output and note in (tmp_path / 'run' / 'log.txt').read_text()
    line = json.loads((tmp_path / 'run' / 'changes.jsonl').read_text())
    assert (line['kimg'], line['changed']) == (reached / 1000,
                                               ['the images of the data set are others'])
    whole = run(train.main, *arguments(digits, tmp_path / 'whole', '--duration=0.000128'))
    assert whole.exit_code == 0, whole.output
    a, b = (load_state(files_of(tmp_path / name, STATE)[-1]) for name in ('run', 'whole'))
    assert_same(a['net'], b['net'])


@pytest.mark.parametrize('cache', [True, False])
def test_a_bad_image_may_be_skipped(digits, tmp_path, capsys, cache):  # noqa: F811
    bad = tmp_path / 'bad.zip'
    name = damaged(digits, bad, 3)
    config = DataConfig(str(bad), use_labels=True, cache=cache, on_bad_image='skip')
    whole, dataset = DataConfig(digits, use_labels=True).open(), config.open()
    for ours, theirs in [(2, 2), (3, 4), (4, 4)]:
        for a, b in zip(dataset[ours], whole[theirs], strict=True):
            np.testing.assert_array_equal(a, b)
    stream = batches(config.open(), 0, 0, 100)
    next(stream)
    next(stream)
    out = capsys.readouterr().out
    assert out.count(f'{name} is damaged') == 1 and out.endswith('; another image takes its '
                                                                 'place\n')
    first = tmp_path / 'first.zip'
    damaged(digits, first, 0)
    assert replace(config, path=str(first)).open().image_shape == [1, 8, 8]
    with pytest.raises(ValueError, match='is damaged'):
        DataConfig(str(first)).open()


def test_the_same_images_in_another_container(digits, tmp_path):  # noqa: F811
    """Unpacked, recompressed, with other spaces and needless labels: the same; else others."""
    folder = unpacked(digits, tmp_path / 'folder')
    original = ImageFolderDataset(digits, use_labels=True).contents()
    labels = folder / 'dataset.json'
    content = json.loads(labels.read_text())
    content['labels'].append(['none.png', 3])
    labels.write_text(json.dumps(content, indent=7))
    assert ImageFolderDataset(folder, use_labels=True).contents() == original
    with zipfile.ZipFile(tmp_path / 'small.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob('*')):
            archive.write(path, path.relative_to(folder))
    assert ImageFolderDataset(tmp_path / 'small.zip', use_labels=True).contents() == original
    assert ImageFolderDataset(folder).contents() != original
    image = sorted(folder.rglob('*.png'))[5]
    data = bytearray(image.read_bytes())
    data[-1] ^= 1   # of the same size
    image.write_bytes(data)
    changed = ImageFolderDataset(folder, use_labels=True)
    assert changed.contents() != original


def test_states_from_before_are_of_the_same_data(digits, tmp_path):  # noqa: F811
    args = arguments(digits, tmp_path, SHORT)
    assert run(train.main, *args).exit_code == 0
    path = files_of(tmp_path, STATE)[-1]
    contents = load_state(path)
    from torch_utils import checkpoint
    checkpoint.save({**contents, 'fingerprint': ImageFolderDataset(digits).fingerprint()}, path)
    result = run(train.main, *arguments(digits, tmp_path, '--duration=0.000096'))
    assert result.exit_code == 0 and 'continuing from' in result.output, result.output


def test_any_error_saves_the_state_between_two_steps(digits, tmp_path, monkeypatch):  # noqa: F811
    config = small_config(digits, state_nimg=10**6)
    state = build(config, CPU)
    accumulate = train.training_loop.__globals__['StepFunction']._accumulate

    def failing(self, *rest):
        accumulate(self, *rest)
        if self.state.nimg == 48:
            raise RuntimeError('out of memory, say')

    with monkeypatch.context() as patch:
        patch.setattr('training.step.StepFunction._accumulate', failing)
        with pytest.raises(RuntimeError, match='out of memory, say'):
            training_loop(config, state, tmp_path, CPU)
    path = files_of(tmp_path, STATE)[-1]
    contents = load_state(path)
    assert contents['nimg'] == 48
    state, _ = prepare(config, CPU, resume=(str(path), contents))
    whole = run_steps(config, 4)
    again = run_steps(config, 1, state)
    assert_same(whole.net.state_dict(), again.net.state_dict())
    assert whole.stats.state_dict().keys() == again.stats.state_dict().keys()


def test_states_are_written_by_the_clock(digits, tmp_path):  # noqa: F811
    config = small_config(digits, state_nimg=10**6, state_seconds=0.0, total_nimg=10**6)
    with pytest.raises(KeyboardInterrupt):   # which saves nothing, like SIGKILL
        training_loop(config, build(config, CPU), tmp_path, CPU, iter_then_fail(tmp_path))
    assert load_state(files_of(tmp_path, STATE)[-1])['nimg'] == 48
    from dnnlib.cli import flags_of
    from options.training import OPTIONS
    assert flags_of(OPTIONS)['dump_minutes'] == '--dump-minutes'


def iter_then_fail(run_dir):
    """A function that says no until a state of 48 images is there, and then fails for good."""
    def should_stop():
        found = files_of(run_dir, STATE)
        if found and load_state(found[-1])['nimg'] == 48:
            raise KeyboardInterrupt
        return False
    return should_stop


def test_the_clock_of_the_options(digits, tmp_path):  # noqa: F811
    for more, expected in [([], 900), (['--dump-minutes=2.5'], 150),
                           (['--dump-minutes=never'], None)]:
        result = run(train.main, *arguments(digits, tmp_path, '-n', *more))
        config = json.loads(result.stdout)
        assert config['state_seconds'] == expected and config['keep_states'] == 3
    result = run(train.main, *arguments(digits, tmp_path, '-n', '--dump-minutes=0'))
    assert result.exit_code == 2 and "'0' is neither a positive number nor never" in result.output


def test_resume_never_moves_the_run_before_aside(digits, tmp_path):  # noqa: F811
    folder = tmp_path / 'run'
    assert run(train.main, *arguments(digits, folder, '--duration=0.000128')).exit_code == 0
    (folder / 'training-state-000900.pt').write_bytes(b'later')
    (folder / 'mine.txt').write_text('not of a run')
    before = {path.name: path.read_bytes() for path in folder.iterdir()
              if path.name not in ('.lock', 'mine.txt')}
    args = arguments(digits, folder, SHORT, '--resume=never', '--keep=1')
    result = run(train.main, *args)
    assert result.exit_code == 0, result.output
    note = f'Note: the files that this run does not go on from are in {folder}/old-00000 now'
    assert note in result.output and note in (folder / 'log.txt').read_text()
    assert {path.name: path.read_bytes() for path in (folder / 'old-00000').iterdir()} == before
    assert (folder / 'mine.txt').exists()
    assert [path.name for path in files_of(folder, STATE)] == ['training-state-000000.pt']
    assert load_state(files_of(folder, STATE)[-1])['nimg'] == 64
    again = run(train.main, *arguments(digits, folder, SHORT))
    assert again.exit_code == 0 and 'is at 0.1 kimg: there is nothing left' in again.output
    assert run(train.main, *args).exit_code == 0 and (folder / 'old-00001').is_dir()


def test_nothing_just_written_is_pruned(tmp_path):
    for kimg in (1, 7, 8, 9):
        (tmp_path / f'training-state-{kimg:06d}.pt').touch()
        (tmp_path / f'network-snapshot-{kimg:06d}.pkl').touch()
    prune_states(tmp_path, 2, tmp_path / 'training-state-000001.pt')
    assert [path.stem[-1] for path in files_of(tmp_path, STATE)] == ['1', '8', '9']
    thin_snapshots(tmp_path, 2, tmp_path / 'network-snapshot-000007.pkl')
    assert [path.stem[-1] for path in files_of(tmp_path, SNAPSHOT)] == ['1', '7', '9']
    assert set_aside(tmp_path) == tmp_path / 'old-00000' and files_of(tmp_path, STATE) == []
    assert set_aside(tmp_path) is None


def test_an_earlier_state_puts_the_later_ones_aside(digits, tmp_path):  # noqa: F811
    assert run(train.main, *arguments(digits, tmp_path, SHORT)).exit_code == 0
    earlier = files_of(tmp_path, STATE)[-1]
    for name in ('training-state-000007.pt', 'fakes000007.png'):
        (tmp_path / name).touch()
    result = run(train.main, *arguments(digits, tmp_path, f'--resume={earlier}'))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / 'old-00000').iterdir()) == [
        'fakes000007.png', 'training-state-000007.pt']


def test_transfer_where_a_run_continues(digits, tmp_path):  # noqa: F811
    assert run(train.main, *arguments(digits, tmp_path / 'a', SHORT)).exit_code == 0
    weights = files_of(tmp_path / 'a', SNAPSHOT)[-1]
    args = [f'--transfer={weights}']
    assert run(train.main, *arguments(digits, tmp_path / 'b', SHORT, *args)).exit_code == 0
    longer = run(train.main, *arguments(digits, tmp_path / 'b', '--duration=0.000096', *args))
    assert longer.exit_code == 0 and 'continuing from' in longer.output, longer.output
    result = run(train.main, *arguments(digits, tmp_path / 'a', *args))
    assert result.exit_code == 2 and (
        f'--transfer={weights} would have no effect: the run continues from {tmp_path}/a/training-'
        f'state-000000.pt. Leave it out, or start anew with --resume=never' in result.output)


def outdir_arguments(digits, outdir, *more):  # noqa: F811
    return [f'--outdir={outdir}', '--desc', 'x', *arguments(digits, 'no', *more)[1:]]


def test_the_message_after_an_interruption_is_a_command_that_continues(
        digits, tmp_path, monkeypatch):  # noqa: F811
    """With --outdir the same command starts anew, and says so."""
    inner = training_loop

    def stopping(config, state, run_dir, device, should_stop, *rest):
        return inner(config, state, run_dir, device, lambda: state.nimg == 32, *rest)

    args = outdir_arguments(digits, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr('train.training_loop', stopping)
        result = run(train.main, *args)
    assert result.exit_code == 75, result.output
    folder = next(tmp_path.iterdir())
    line = next(line for line in result.output.splitlines() if line.startswith('Interrupted'))
    text, _, command = line.partition('there: ')
    assert text == 'Interrupted: stopped at 0.0 kimg; to continue from '
    words = shlex.split(command)
    assert words[-len(args) + 2:] == [f'--run-dir={folder}', *args[3:]]
    other = run(train.main, *args)
    assert other.exit_code == 0 and (
        f'Note: {folder} is an unfinished run with these options, at 0.0 kimg, and this is a new '
        f'run. To continue that one: {command}' in other.output), other.output
    result = run(train.main, *words[words.index(f'--run-dir={folder}'):])
    assert result.exit_code == 0 and 'continuing from' in result.output, result.output
    third = run(train.main, *args)   # both have ended
    assert third.exit_code == 0 and 'unfinished' not in third.output


def test_the_command_leaves_out_what_is_done_once(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['my train.py'])
    args = ['--outdir', 'a b', '--desc=x', '--data=d.zip', '--nosubdir', '--resume=never',
            '--lr', '0.1', '--transfer=p', '--allow-change=lr', '--allow-data-change']
    expected = "python 'my train.py' '--run-dir=r 1' --data=d.zip --lr 0.1"
    assert command_to_continue(args, Path('r 1')) == expected
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert command_to_continue(['--cond=1'], Path('r')) == (
        "torchrun --standalone --nproc_per_node=2 'my train.py' --run-dir=r --cond=1")


def test_settings_change_on_purpose_only(digits, tmp_path):  # noqa: F811
    args = arguments(digits, tmp_path, SHORT, '--augment=0.1', '--ema=0.0001', '--lr=0.001')
    args.remove('--ema-power=0.1')
    assert run(train.main, *args).exit_code == 0
    changed = [*args, '--duration=0.000096', '--lr=0.002', '--augment=0', '--ema=0.0002,0.001',
               '--dropout=0.2']
    result = run(train.main, *changed)
    assert result.exit_code == 2 and (
        '(--resume=never starts anew; --allow-change=augment,dropout,ema,lr continues all the '
        'same): ' in result.output), result.output
    assert '--lr (optimizer.lr): 0.001, now 0.002' in result.output
    dry = run(train.main, *changed, '-n')
    assert dry.exit_code == 2 and dry.output == result.output
    file = run(train.main, *args, '-n', '--resume=README.md')
    assert file.exit_code == 2 and file.output.startswith(
        'Error: --resume=README.md: is damaged or not a training state'), file.output
    result = run(train.main, *changed, '--allow-change=lr')
    assert result.exit_code == 2 and 'optimizer.lr' not in result.output
    allowed = run(train.main, *changed, '--allow-change=lr,dropout,ema,augment')
    assert allowed.exit_code == 0, allowed.output
    assert 'Note: changed at 0.1 kimg: optimizer.lr: 0.001, now 0.002' in allowed.output
    told = json.loads((tmp_path / 'changes.jsonl').read_text())
    assert told['kimg'] == 0.064 and 'network.model.dropout: 0.1, now 0.2' in told['changed']
    state = load_state(files_of(tmp_path, STATE)[-1])
    assert state['nimg'] == 96 and list(state['averages']) == ['0.0002', '0.001']
    assert state['config']['augment'] is None and state['optimizer']['param_groups'][0]['lr'] > 1e-3
    again = run(train.main, *[*changed, '--duration=0.000128'])   # without any permission
    assert again.exit_code == 0 and 'Note: changed' not in again.output, again.output
    result = run(train.main, *args, '--allow-change=cbase')
    assert result.exit_code == 2 and "'cbase' is none of lr, lr-rampup, clip, " in result.output


def test_new_averages_go_on_from_the_first(digits, tmp_path):  # noqa: F811
    config = small_config(digits)
    contents = load_state(save_state(run_steps(config, 2), config, tmp_path))
    other = replace(config, averages=(HalfLife(999, 0.5), HalfLife(200, 0.5)))
    state, _ = prepare(other, CPU, ('it', contents), allow=['ema'])
    for average in state.averages.values():
        assert_same(average.net.state_dict(), contents['averages'][config.averages[0].name])
    assert all(permission_for(change) == 'ema' for change in state.changes) and state.changes
    with pytest.raises(OtherSettingsError):
        prepare(replace(other, batch_size=8), CPU, ('it', contents), allow=['ema'])
    with pytest.raises(ValueError, match='the average power-0.1 is one of the whole run and cannot '
                                         'begin amid it'):
        prepare(replace(config, averages=(PowerFunction(0.1),)), CPU, ('it', contents),
                allow=['ema'])


def test_float16_on_a_cpu_is_refused(digits, tmp_path):  # noqa: F811
    result = run(train.main, *arguments(digits, tmp_path / 'run', '--fp16=1'))
    assert result.exit_code == 2 and ('--fp16=1 would have no effect on the CPU, where the network '
                                      'works in float32: leave it out' in result.output)
    assert not (tmp_path / 'run').exists()
    assert run(train.main, *arguments(digits, tmp_path / 'run', '--fp16=1', '-n')).exit_code == 0


class Broken:
    """A stdout whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError(32, 'Broken pipe')

    flush = write


def test_a_broken_stdout_leaves_the_log_and_asks_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', Broken())
    with LogFile(tmp_path / 'log.txt') as log, graceful_signals(log.is_broken) as asked:
        assert not asked()
        print('first')
        print('second', flush=True)
        assert asked()
    assert (tmp_path / 'log.txt').read_text() == 'first\nsecond\n'
    monkeypatch.setattr(sys, 'stdout', None)
    with LogFile(tmp_path / 'log.txt') as log:
        print('third')
    assert not log.is_broken() and (tmp_path / 'log.txt').read_text().endswith('third\n')


def test_signals_only_ask(capsys, monkeypatch):
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with graceful_signals() as asked:
            assert not asked()
            os.kill(os.getpid(), number)
            assert asked() and asked()
        signal.signal(signal.SIGHUP, before)
        assert capsys.readouterr().out == (f'{signal.Signals(number).name} received: finishing '
                                           f'this step and saving\n')
    with graceful_signals() as asked:   # of a terminal and of torchrun: the same one
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        monkeypatch.setattr('training.stopping.TWICE', -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)   # as nohup does
    with graceful_signals():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('how', ['group', 'pipe'])
def test_a_lost_terminal_saves(digits, tmp_path, how):  # noqa: F811
    """The whole process group is hung up, its data workers too; or the reader of stdout leaves."""
    args = arguments(digits, tmp_path / 'run', '--cache=0', '--workers=1', '--dump=100',
                     '--duration=1')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, '-c', 'import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); '
         'import training.pictures; training.pictures.GRID = 2; import train; train.main()',
         *[arg for arg in args if not arg.startswith('--workers=0')]],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    wait_for(lambda: num_lines(tmp_path / 'run' / 'stats.jsonl') >= 3, process)
    if how == 'group':
        os.killpg(process.pid, signal.SIGHUP)
    else:
        process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=240) == 75, error
    log = (tmp_path / 'run' / 'log.txt').read_text()
    assert re.search(r'Interrupted: stopped at \d+\.\d kimg; the same command continues', log)
    assert load_state(files_of(tmp_path / 'run', STATE)[-1])['nimg'] >= 64
    assert 'Traceback' not in error and 'Exception ignored' not in error, error
