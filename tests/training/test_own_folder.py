"""The folder of a run that somebody else has filled, and what killed processes leave in it."""

import contextlib
import copy
import errno
import json
import math
import os
import time

import pytest
import torch

from checkpoints.reconstruct import reconstructed
from dnnlib.files import append_line
from options.continuing import unfinished_run
from tests.training.test_training_loop import CPU, digits, run_steps, small_config  # noqa: F401
from torch_utils import checkpoint
from train import check_transfer, in_run_dir
from training.clock import Clock
from training.ema import PowerFunction
from training.judging import judge
from training.loggers import Loggers
from training.pictures import generate_grid
from training.run_folder import SNAPSHOT, STATE, file_of, files_of
from training.saver import Saver
from training.state import load_state, save_snapshot, save_state
from training.stats_file import read_statistics


@pytest.fixture(scope='module')
def a_step(digits):  # noqa: F811
    """A function that returns the state after a step."""
    state = run_steps(small_config(digits), 1)
    return lambda: copy.deepcopy(state)


@pytest.fixture
def entered(tmp_path):
    """A function that enters the folder of a run as train.py does."""
    def enter():
        with in_run_dir(tmp_path, lambda: None):
            pass
    return enter


def test_leftovers_of_a_run_are_removed_and_no_others(tmp_path, entered):
    mine = ['.training-state-000064.pt.abcdefgh.tmp', '.stats.jsonl.abcdefg1.tmp',
            '.network-snapshot-000064.pkl.abc_efgh.tmp', '.fakes000064.png.abcdefgh.tmp']
    others = ['.notes.txt.abcdefgh.tmp', '.training-state-x.pt.abcdefgh.tmp', '.abcdefgh.tmp',
              'training-state-000064.pt.abcdefgh.tmp', '.training-state-000064.pt.tmp']
    for name in mine + others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 10,) * 2)
    entered()
    assert sorted(os.listdir(tmp_path)) == sorted([*others, '.lock', 'log.txt'])


@pytest.mark.parametrize('name', ['log.txt', 'stats.jsonl', 'changes.jsonl', 'run_card.jsonl',
                                  'best.json', 'training_options.json', '.lock'])
def test_a_run_does_not_write_through_links_in_its_folder(tmp_path, entered, name):
    """Text of somebody's files would otherwise get into ~/.profile."""
    outside = tmp_path.parent / f'{tmp_path.name}-profile'
    (tmp_path / name).symlink_to(outside)
    for content in (None, b'precious'):
        if content is not None:
            outside.write_bytes(content)
        with pytest.raises(ValueError, match=f'{name} is .*: delete it'):
            entered()
        assert (outside.read_bytes() if outside.exists() else None) == content


def test_states_and_snapshots_take_the_place_of_links(tmp_path, digits, a_step):  # noqa: F811
    config, state = small_config(digits), a_step()
    outside = tmp_path / 'precious'
    outside.write_bytes(b'precious')
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    for kind, save in ((SNAPSHOT, save_snapshot), (STATE, save_state)):
        path = file_of(run_dir, kind, state.nimg)
        path.symlink_to(outside)
        save(state, config, run_dir)
        assert path.is_file() and not path.is_symlink()
    assert outside.read_bytes() == b'precious'


def test_a_lock_that_is_a_pipe_does_not_hang(tmp_path, entered):
    os.mkfifo(tmp_path / '.lock')
    with pytest.raises(ValueError, match='cannot be the lock of its folder: delete it'):
        entered()


@pytest.mark.parametrize('content', [b'[' * 100_000, b'[]', b'{', b'\xff', b'{"from": 3}'])
def test_what_a_run_wrote_about_itself_may_be_torn(tmp_path, content):
    (tmp_path / 'transfer.json').write_bytes(content)
    with pytest.raises(ValueError, match='--transfer=a.pkl would have no effect'):
        check_transfer('a.pkl', 'state', tmp_path)


def test_other_runs_do_not_stop_a_new_one(tmp_path, digits):  # noqa: F811
    config = small_config(digits)
    for number, content in enumerate((b'[' * 100_000, b'\xff', None)):
        folder = tmp_path / f'0000{number}-name'
        folder.mkdir()
        file_of(folder, STATE, 64).touch()
        (folder / 'training_options.json').write_bytes(content or b'{}')
        if content is None:
            os.mkfifo(folder / 'stats.jsonl')
        else:
            (folder / 'stats.jsonl').write_bytes(b'')
    assert unfinished_run(str(tmp_path), 'name', config) is None


def test_a_full_disk_names_the_file_of_statistics(tmp_path):
    path = tmp_path / 'stats.jsonl'
    path.write_bytes(b'{"a": 1}\n{"to')   # torn by a kill
    append_line(path, '{"b": 2}')
    assert path.read_bytes() == b'{"a": 1}\n{"to\n{"b": 2}\n'
    with pytest.raises(OSError) as caught:
        append_line('/dev/full', 'x' * 100_000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, '/dev/full')


def spoilt(state, where):
    """Put a number that is not finite into the weights, the averages or the moments."""
    tensors = {'net': state.net.state_dict(), 'averages': state.ema.net.state_dict(),
               'optimizer': state.optimizer.state_dict()['state'][0]}[where]
    tensor = next(t for t in tensors.values() if isinstance(t, torch.Tensor) and t.numel() > 1)
    tensor.flatten()[0] = math.inf


@pytest.mark.parametrize('where', ['net', 'averages', 'optimizer'])
def test_a_state_that_is_not_finite_is_not_written_in_silence(tmp_path, digits,  # noqa: F811
                                                              a_step, capsys, where):
    config, state = small_config(digits), a_step()
    save_state(state, config, tmp_path)
    assert capsys.readouterr().out == ''
    spoilt(state, where)
    path = save_state(state, config, tmp_path)
    assert f'Warning: {path} is written with tensors that are not finite: {where}' in (
        capsys.readouterr().out)


def test_no_picture_of_numbers_that_are_not_finite(tmp_path, digits, a_step, capsys):  # noqa: F811
    config, state = small_config(digits), a_step()
    assert generate_grid(state.ema.net, torch.eye(10)[:1], CPU).shape == (1, 1, 8, 8)
    for parameter in state.ema.net.parameters():
        parameter.data.fill_(math.nan)
    assert generate_grid(state.ema.net, torch.eye(10)[:1], CPU) is None
    Saver(config, state, tmp_path, CPU, config.data.open(), Clock(0.0)).snapshot()
    assert len(files_of(tmp_path, SNAPSHOT)) == 1 and not list(tmp_path.glob('fakes*'))
    assert 'no picture of images, since they came out as numbers that are' in (
        capsys.readouterr().out)


def test_snapshots_that_cannot_be_read_are_passed_over(tmp_path, digits, capsys):  # noqa: F811
    config = small_config(digits, averages=(PowerFunction(0.05), PowerFunction(0.1)))
    state = run_steps(config, 2)
    state.nimg = 1000
    whole = save_snapshot(state, config, tmp_path)
    contents = checkpoint.load(whole, SNAPSHOT)
    (tmp_path / 'network-snapshot-000002.pkl').write_bytes(b'no snapshot')
    checkpoint.save({**contents, 'nimg': 'x'}, tmp_path / 'network-snapshot-000003.pkl')
    checkpoint.save({**contents, 'ema_name': 'power-x', 'averages': {'power-nan': {}}},
                    tmp_path / 'network-snapshot-000004.pkl')
    made, count, _ = reconstructed(tmp_path, 0.05)
    assert (made['nimg'], count) == (1000, 2)
    said = capsys.readouterr().out.splitlines()
    assert [line[-18:] for line in said] == ['; it is passed over'[-18:]] * 2


class Refusing:
    """An evaluation that cannot give numbers."""
    names, num_images, protocol = ['fid', 'kid'], 2, {'ref': 'a'}

    def __init__(self, error):
        self.error = error

    def numbers(self, net, run_dir, stopping):
        """Raise the error."""
        raise self.error


@pytest.mark.parametrize('error', [
    FloatingPointError('not finite'), ValueError('no covariance'),
    torch.linalg.LinAlgError('no\nconvergence'), ZeroDivisionError('zero')])
def test_an_evaluation_notes_numbers_or_the_reason(tmp_path, error):
    class Quiet:
        nimg, ema, said = 1000, type('EMA', (), {'net': None}), []
        loggers = Loggers()

        def pausing_training(self):
            """Do nothing."""
            return contextlib.nullcontext()

        def say(self, line):
            """Keep the line."""
            self.said.append(line)

    line = {'Progress/kimg': {'num': 1, 'mean': 1.0, 'std': 0}}
    (tmp_path / 'stats.jsonl').write_text(json.dumps(line) + '\n')
    quiet = Quiet()
    assert judge(Refusing(error), quiet, tmp_path, quiet, quiet, lambda: False)
    reason = f'no numbers: {" ".join(str(error).split())}'
    [noted] = read_statistics(tmp_path / 'stats.jsonl')
    assert noted['trouble'] == reason and reason in quiet.said[-1]
    assert noted['Metrics/fid'] == {'num': 0, 'mean': None, 'std': None}


def test_a_configuration_without_a_model_is_refused(tmp_path, digits, a_step):  # noqa: F811
    config = small_config(digits)
    path = save_state(a_step(), config, tmp_path)
    contents = checkpoint.load(path, STATE)
    for network in ({}, {**contents['config']['network'], 'model': 3}):
        checkpoint.save({**contents, 'config': {**contents['config'], 'network': network}}, path)
        with pytest.raises(ValueError, match="whose 'config' is not the settings of a run"):
            load_state(path)
