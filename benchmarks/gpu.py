"""Every check and every benchmark of the repository that a GPU matters for, and one report.

    python -m benchmarks.gpu                # make gpu
    python -m benchmarks.gpu --dry-run      # only say what would run

A step that fails is reported, and the others go on; the exit code is 1 then.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from benchmarks.speed import machine
from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write

TAIL = 60   # lines of the output of a step that the report shows


@dataclass(frozen=True)
class Step:
    """A command, and the file of Markdown that it writes, if it does."""
    title: str
    command: str
    result: str | None = None


def steps(dest: str) -> list[Step]:
    """Return all steps, the checks first; they write below `dest`."""
    return [
        Step('Fast networks and images give what plain ones give', 'python -m pytest '
             'tests/training/test_compiled.py tests/commands/test_generate.py '
             'tests/commands/test_batch_auto.py'),
        Step('Training, resuming and sharding', 'python -m pytest '
             'tests/training/test_training_loop.py tests/training/test_resume.py '
             'tests/training/test_sharding.py'),
        Step('Speed of sampling and training', f'python -m benchmarks.speed --dest={dest}/speed',
             f'{dest}/speed/speed.md'),
        Step('Other programs', f'python -m benchmarks.peers --dest={dest}/peers',
             f'{dest}/peers/peers.md'),
        Step('Several GPUs', f'python -m benchmarks.scaling --device=cuda --dest={dest}/scaling',
             f'{dest}/scaling/scaling.md'),
        Step('Judging', 'python -m benchmarks.evaluation --device=cuda '
             f'--folder={dest}/evaluation --dest={dest}/evaluation.md', f'{dest}/evaluation.md'),
    ]


def run(step: Step) -> tuple[int, str]:
    """Run a step; return its exit code, and what the report says of it."""
    words = [sys.executable if word == 'python' else word for word in shlex.split(step.command)]
    start = time.monotonic()
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    seconds = time.monotonic() - start
    tail = '\n'.join(done.stdout.splitlines()[-TAIL:])
    text = (f'## {step.title}\n\n`{step.command}`, {seconds:.0f} s, exit code '
            f'{done.returncode}\n')
    if step.result is not None and done.returncode == 0 and Path(step.result).is_file():
        text += f'\n{Path(step.result).read_text()}'
    return done.returncode, f'{text}\n```\n{tail}\n```\n'


@click.command()
@click.option('--dest', help='Folder of the results', metavar='DIR', default='out/gpu',
              show_default=True)
@click.option('-n', '--dry-run', is_flag=True, help='Print the commands and stop')
@one_line_errors
def main(dest: str, dry_run: bool) -> None:
    """Run all checks and benchmarks for a GPU, and write report.md."""
    everything = steps(dest)
    if dry_run:
        for step in everything:
            click.echo(step.command)
        return
    if not torch.cuda.is_available():
        raise ValueError('no CUDA device was found here; --dry-run says what would run')
    report = [f'# {", ".join(machine(torch.device("cuda")).values())}\n']
    failed = 0
    for step in everything:
        click.echo(step.command)
        code, text = run(step)
        failed += code != 0
        report.append(text)
        with atomic_write(Path(dest) / 'report.md') as file:
            file.write('\n'.join(report).encode())
    click.echo(f'{dest}/report.md: {len(everything) - failed} of {len(everything)} steps succeeded')
    if failed:
        sys.exit(1)


if __name__ == '__main__':
    main()
