"""Worker processes end with their parent, and let go of what it held."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dnnlib.files import held

PROGRAM = """
import os, signal, sys, time
from data.parallel import in_order
from dnnlib.files import held

def work(number, name):
    if number == 100:
        time.sleep(60)
    return number

with held(sys.argv[1]):
    for chunk in in_order(work, ['x'] * 200, workers=2):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_command_let_go_of_its_lock(tmp_path):
    killed = subprocess.run([sys.executable, '-c', PROGRAM, tmp_path / 'lock'], check=False,
                            env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])})
    assert killed.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while True:
        try:
            with held(tmp_path / 'lock'):
                break
        except ValueError:
            assert time.monotonic() < until
            time.sleep(0.05)
