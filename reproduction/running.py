"""Running the commands of an experiment, each once; the same call continues after a stop."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from dnnlib.files import atomic_write, held, read_bounded
from reproduction.experiment import Task, is_missing

RECORD = 'commands.json'   # of a folder: which command made which file
# Signals to end, as train.py takes them.
PASSED_ON = [signal.SIGTERM, *([signal.SIGHUP, signal.SIGUSR1] if sys.platform != 'win32' else [])]
# Programs that take --device, and may run under torchrun.
PARALLEL = ('train.py', 'generate.py', 'fid.py')


@dataclass(frozen=True)
class Machine:
    """Where the commands run: the device that each of them is given, and how many processes."""
    device: str | None = None
    processes: int = 1

    def arguments(self, task: Task) -> list[str]:
        """Return the command as a list, from the interpreter on."""
        words = shlex.split(task.command)
        takes_device = words[0] in PARALLEL or words[1:2] in (['reproduction.losses'],
                                                              ['docs.brightness'])
        if self.device is not None and takes_device:
            words.append(f'--device={self.device}')
        if self.processes > 1 and words[0] in PARALLEL:
            return [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                    f'--nproc_per_node={self.processes}', '--', *words]
        return [sys.executable, *words]


class Record:
    """The commands that were done, in a file of the folder `out`."""

    def __init__(self, out: str) -> None:
        self.path = Path(out) / RECORD
        self.done: dict[str, str] = {}
        if self.path.exists():
            try:
                told = json.loads(read_bounded(self.path, 2**26))
                self.done = {str(name): str(command) for name, command in told.items()}
            except (ValueError, AttributeError, RecursionError):
                raise ValueError(f'{self.path} is damaged: delete it, and what is there is looked '
                                 f'at anew') from None

    def has(self, task: Task) -> bool:
        """Return whether a task is done. Raises ValueError if another command made its file."""
        if is_missing(task.makes) or task.makes not in self.done:
            return False
        if self.done[task.makes] != task.command:
            raise ValueError(f'{task.makes} was made by another command, python '
                             f'{self.done[task.makes]}: move it away, or name another --out')
        return True

    def add(self, task: Task) -> None:
        """Note that a task is done."""
        self.done[task.makes] = task.command
        with atomic_write(self.path) as file:
            file.write((json.dumps(self.done, indent=1) + '\n').encode())


def run(tasks: Sequence[Task], out: str, machine: Machine,
        needs: Mapping[str, str]) -> list[str]:
    """Run the tasks that are not done, in their order; return what could not be done, and why.

    A task whose files are missing is passed over, and so are those that wait for it. Each command
    continues its own work where a kill has left it. Raises SystemExit with the exit code of a
    command that fails. `needs` says where files come from that no command makes.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    with held(Path(out) / '.lock'):
        record = Record(out)
        for number, task in enumerate(tasks, start=1):
            if record.has(task):
                continue
            lacking = [path for path in task.reads if is_missing(path)]
            if lacking:
                missing.update({path: needs[path] for path in lacking if path in needs})
                continue
            click.echo(f'\n[{number}/{len(tasks)}] $ python {task.command}')
            _call(machine.arguments(task))
            if is_missing(task.makes):
                raise ValueError(f'python {task.command} ended without an error, and without '
                                 f'{task.makes}')
            record.add(task)
    return [f'{path} is missing: put there {source}' for path, source in missing.items()]


def _call(arguments: Sequence[str]) -> None:
    """Run a command to its end; raise SystemExit with its exit code if that is not 0.

    A signal to stop is passed on, so that the command can save what it has, and is waited for.
    (Ctrl-C reaches both from the terminal.) `python -m` finds packages in the current folder.
    """
    with subprocess.Popen(arguments) as process:
        before = {number: signal.signal(number, lambda number, _: process.send_signal(number))
                  for number in PASSED_ON}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if code:
        code = code if code > 0 else 128 - code
        click.echo(f'Stopped, as python {shlex.join(arguments[1:])} ended with exit code {code}. '
                   f'The same command of reproduce.py goes on from there.', err=True)
        raise SystemExit(code)
