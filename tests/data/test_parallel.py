"""Worker processes end with their parent, and let go of what it held."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnlib.files import held

KILLED = """
import os, signal, sys, time
from data.parallel import in_order
from dnnlib.files import held

def work(number, name):
    if number == 100:
        time.sleep(600)
    return number

with held(sys.argv[1]):
    for chunk in in_order(work, ['x'] * 200, workers=2):
        os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_BEFORE_ITS_WORKER_BEGINS = """
import os, signal, sys, time
from data import parallel
from dnnlib.files import held

with held(sys.argv[1]):
    parent = os.getpid()
    if os.fork():
        os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    parallel._begin(None, parent)
    time.sleep(600)
"""


@pytest.mark.parametrize('program', [KILLED, KILLED_BEFORE_ITS_WORKER_BEGINS])
def test_workers_of_a_killed_command_let_go_of_its_lock(tmp_path, program):
    killed = subprocess.run([sys.executable, '-c', program, tmp_path / 'lock'], check=False,
                            env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])})
    assert killed.returncode == -signal.SIGKILL
    until = time.monotonic() + 120   # it takes 0.2 seconds, where the machine has the time
    while True:
        try:
            with held(tmp_path / 'lock'):
                break
        except ValueError:
            assert time.monotonic() < until
            time.sleep(0.05)
