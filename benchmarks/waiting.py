"""What spinning threads cost, on an idle machine and beside other programs.

    python -m benchmarks.waiting        # to out/waiting; nothing else should run on the machine

The training step of `make demo` is timed in processes that differ in how their OpenMP threads wait
(dnnlib/threads.py), first alone, then beside as many busy programs as there are cores. A program
that gets its fair share then takes twice as long as alone.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from benchmarks.results import Bars, written
from dnnlib.cli import one_line_errors
from dnnlib.markdown import table
from dnnlib.threads import SPINS

WAYS: dict[str, dict[str, str]] = {
    "OpenMP's own": {'GOMP_SPINCOUNT': '300000'},
    f"limpid's, {SPINS} spins": {'GOMP_SPINCOUNT': str(SPINS)},
    'no spinning': {'GOMP_SPINCOUNT': '0'},
    'one thread': {'OMP_NUM_THREADS': '1'},
}


@contextlib.contextmanager
def busy(programs: int) -> Iterator[None]:
    """Let so many other programs compute while the block runs."""
    running = [subprocess.Popen([sys.executable, '-c', 'while True: pass'])
               for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def seconds_of_step(environment: Mapping[str, str], dest: Path, repeats: int) -> float:
    """Return the median seconds of a training step of `make demo` in a process of its own."""
    own = {name: value for name, value in os.environ.items()
           if not name.startswith(('OMP_', 'GOMP_', 'KMP_', 'MKL_NUM'))}
    subprocess.run([sys.executable, '-m', 'benchmarks.speed', '--device=cpu', '--way=eager',
                    '--task=make demo, training', f'--repeats={repeats}', f'--dest={dest}'],
                   env={**own, **environment}, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((dest / 'speed.json').read_text())
    return float(found['results'][0]['seconds'])


@click.command()
@click.option('--dest', help='Folder of the results', metavar='DIR', default='out/waiting',
              show_default=True)
@click.option('--repeats', help='Steps of each measurement', type=click.IntRange(min=1),
              default=30, show_default=True)
@one_line_errors
def main(dest: str, repeats: int) -> None:
    """Time a training step with several ways of waiting; write waiting.json, .md and .png."""
    cores = os.cpu_count() or 1
    found: dict[str, dict[str, float]] = {}
    for way, environment in WAYS.items():
        found[way] = {}
        for state, programs in (('alone', 0), (f'beside {cores} programs', cores)):
            with busy(programs):
                seconds = seconds_of_step(environment, Path(dest), repeats)
            found[way][state] = seconds
            print(f'{way:25s} {state:20s} {1e3 * seconds:8.1f} ms', flush=True)
        report(cores, found, Path(dest))


def report(cores: int, found: Mapping[str, Mapping[str, float]], dest: Path) -> None:
    """Write waiting.json, waiting.md and waiting.png; found[way][state] is in seconds."""
    ms = {way: {state: 1e3 * seconds for state, seconds in times.items()}
          for way, times in found.items()}
    heads = ['waiting', *(f'{state}, ms' for state in next(iter(ms.values())))]
    rows = [[way, *(f'{value:.1f}' for value in times.values())] for way, times in ms.items()]
    written(dest, 'waiting', {'cores': cores, 'seconds': found},
            f'{cores} cores\n\n{table(heads, rows)}', [Bars('ms of a training step', ms)])


if __name__ == '__main__':
    main()
