"""Running tasks: each once, on from where a stop left them, and what is missing is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import reproduce
from reproduction import running
from reproduction.experiment import Task
from reproduction.running import Machine, Record, run


def writes(path, number=1, reads=(), fails_without=None):
    """A task that appends to a log and writes a file, unless another is not there."""
    check = f'assert __import__("os").path.exists("{fails_without}");' if fails_without else ''
    code = (f'{check}open("{path}.log", "a").write("x"); open("{path}", "w").write("{number}")')
    return Task(f"-c '{code}'", str(path), tuple(map(str, reads)))


def counts(*paths):
    return [len(path.with_name(f'{path.name}.log').read_text()) for path in paths]


def test_a_second_run_does_nothing(tmp_path):
    a, b = tmp_path / 'a', tmp_path / 'b'
    tasks = [writes(a), writes(b, reads=[a])]
    for _ in range(2):
        assert run(tasks, str(tmp_path), Machine(), {}) == []
        assert counts(a, b) == [1, 1]
    a.unlink()   # only what is not there is made again
    run(tasks, str(tmp_path), Machine(), {})
    assert counts(a, b) == [2, 1]


def test_it_goes_on_after_a_failure(tmp_path):
    a, b, key = tmp_path / 'a', tmp_path / 'b', tmp_path / 'key'
    tasks = [writes(a), writes(b, fails_without=key)]
    with pytest.raises(SystemExit) as stopped:
        run(tasks, str(tmp_path), Machine(), {})
    assert stopped.value.code == 1 and a.exists() and not b.exists()
    key.touch()
    assert run(tasks, str(tmp_path), Machine(), {}) == []
    assert counts(a, b) == [1, 1]


CHILD = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path('saved').touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path('ready').touch()
time.sleep(60)
"""


def test_a_signal_is_passed_on_and_the_command_may_save(tmp_path):
    (tmp_path / 'child.py').write_text(CHILD)
    code = f"from reproduction.running import _call; _call(['{sys.executable}', 'child.py'])"
    parent = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stderr=subprocess.PIPE,
                              env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])})
    while not (tmp_path / 'ready').exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    told = parent.communicate()[1].decode()
    assert parent.returncode == 75 and (tmp_path / 'saved').exists()
    assert told == ('Stopped, as python child.py ended with exit code 75. The same command of '
                    'reproduce.py goes on from there.\n')


def test_a_file_without_a_record_is_made_again(tmp_path):
    """A kill between the end of a command and the note of it costs a repetition, no more."""
    a = tmp_path / 'a'
    a.write_text('half')
    run([writes(a, 7)], str(tmp_path), Machine(), {})
    assert a.read_text() == '7'


def test_what_is_missing_is_said_and_the_rest_is_done(tmp_path):
    a, b, c, data = (tmp_path / name for name in ('a', 'b', 'c', 'data'))
    tasks = [writes(a, reads=[data]), writes(b, reads=[a]), writes(c)]
    assert run(tasks, str(tmp_path), Machine(), {str(data): 'the data of D'}) == [
        f'{data} is missing: put there the data of D']
    assert c.exists() and not a.exists() and not b.exists()
    data.touch()
    assert run(tasks, str(tmp_path), Machine(), {}) == []
    assert counts(a, b, c) == [1, 1, 1]


def test_a_file_of_another_command_is_not_taken(tmp_path):
    a = tmp_path / 'a'
    run([writes(a, 1)], str(tmp_path), Machine(), {})
    with pytest.raises(ValueError, match=f'^{a} was made by another command, python -c .*: move '
                                         'it away, or name another --out$'):
        run([writes(a, 2)], str(tmp_path), Machine(), {})
    assert a.read_text() == '1'


def test_a_command_that_makes_nothing(tmp_path):
    with pytest.raises(ValueError, match='ended without an error, and without '):
        run([Task('-c ""', str(tmp_path / 'x'))], str(tmp_path), Machine(), {})


def test_a_damaged_record(tmp_path):
    (tmp_path / running.RECORD).write_text('[')
    with pytest.raises(ValueError, match='commands.json is damaged: delete it, '):
        Record(str(tmp_path))


def test_devices_and_processes():
    task = Task('train.py --batch=64', 'x')
    assert Machine('cpu').arguments(task)[1:] == ['train.py', '--batch=64', '--device=cpu']
    assert Machine(None, 8).arguments(task)[1:] == [
        '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=8', '--', 'train.py',
        '--batch=64']
    formula = Task('-m reproduction.formulas edm-table1', 'x')
    assert Machine('cpu', 8).arguments(formula)[1:] == ['-m', 'reproduction.formulas',
                                                         'edm-table1']


def test_from_command_to_table(tmp_path):
    """A table that needs no data, with the real commands."""
    out = f'--out={tmp_path}'
    assert CliRunner().invoke(reproduce.main, ['run', 'zero-snr-table1', out]).exit_code == 0
    result = CliRunner().invoke(reproduce.main, ['table', 'zero-snr-table1', out])
    assert '| Stable Diffusion | √ᾱ_T | 0.068265 | 0.0682649 | -8.58e-08 | – | 1 |' in result.output
    assert (tmp_path / 'zero-snr-table1.md').read_text() == result.output[:-1]
    lines = (tmp_path / 'zero-snr-table1.csv').read_text().splitlines()
    assert lines[0] == 'row,column,paper,ours,difference,spread,N' and len(lines) == 7
    assert list(json.loads((tmp_path / 'commands.json').read_text())) == [
        f'{tmp_path}/zero-snr-table1.json']
