"""Reproduce the tables and figures of the papers: list, plan, run, table."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dnnlib.cli import CommandGroup, GroupedCommand, Whole, heading, one_line_errors, with_each
from dnnlib.files import atomic_write
from dnnlib.markdown import table as markdown
from reproduction import pictures, tables
from reproduction.catalogue import EXPERIMENTS, NEEDS, experiment
from reproduction.experiment import HARDWARE, Experiment, Task, duration, is_missing
from reproduction.running import Machine, Record
from reproduction.running import run as run_tasks

files = heading('Files')
WIDE = {'max_content_width': 110}

NAMES = click.argument('names', nargs=-1, required=True, metavar='NAME...')
OUT = files('--out', metavar='DIR', default='out/reproduction', show_default=True,
            help='The folder in which everything is kept')

EXAMPLES = {
    'list': 'python reproduce.py list',
    'plan': """
        python reproduce.py plan small-table2
        python reproduce.py plan edm-table2/cifar10-cond-vp-F
        """,
    'run': """
        # Minutes on a CPU
        python reproduce.py run zero-snr-table1 edm-table1

        # One cell of Table 2, on 8 GPUs; the same command continues after a stop
        python reproduce.py run edm-table2/cifar10-cond-vp-F --gpus=8
        """,
    'table': 'python reproduce.py table small-table2 --dest=docs/reproduction',
}


@click.group(cls=CommandGroup, context_settings=WIDE)
def main() -> None:
    """Reproduce the tables and figures of the papers.

    `list` names them, `plan` tells what a table or figure takes, `run` runs its commands and
    continues them after a stop, and `table` sets our values beside the paper's. The names that
    begin with small- are the same experiments at a size that a CPU does in minutes.
    """


def command(*options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command of reproduce.py with these options."""
    def decorate(function: Callable[..., Any]) -> click.Command:
        name = function.__name__.rstrip('_')
        wrapped = with_each(options, one_line_errors(function))
        return main.command(name, cls=GroupedCommand, context_settings=WIDE,
                            examples=EXAMPLES[name])(wrapped)
    return decorate


@command(OUT)
def list_(out: str) -> None:
    """List all tables and figures: what they are, how much is done, and what they take."""
    rows = []
    for name in EXPERIMENTS:
        found = experiment(name, out)
        record = Record(out)
        done = sum(record.has(task) for task in found.tasks)
        lacking = sum(map(is_missing, found.needs()))
        hardware = HARDWARE['core' if name.startswith(('small', 'zero')) else 'a100']
        flop = sum(task.flop for task in found.tasks)
        rows.append([f'`{name}`', found.title, f'{done} of {len(found.tasks)}',
                     f'{lacking} files' if lacking else '–',
                     f'{duration(flop / hardware.rate)} of {hardware.title}' if flop else '–'])
    click.echo(markdown(['name', 'what', 'commands done', 'missing', 'time, estimated'], rows))


@command(NAMES, OUT)
def plan(names: tuple[str, ...], out: str) -> None:
    """Tell what tables or figures take: commands, data, and time and cost as an estimate."""
    for name in names:
        found, record = experiment(name, out), Record(out)
        click.echo(f'{name}: {found.title}\n')
        for remark in found.remarks:
            click.echo(f'* {remark}')
        click.echo('Commands:')
        for task in found.tasks:
            mark = 'done' if record.has(task) else 'to do'
            click.echo(f'  {mark:5s}  python {task.command}')
        _say_needs(found)
        todo = [task for task in found.tasks if not record.has(task)]
        click.echo(f'\nEstimates for what is to do, {sum(task.flop for task in todo):.2g} '
                   f'operations; the prices are assumptions:')
        for hardware in HARDWARE.values():
            click.echo(f'  {hardware.title:16s} {_estimate(todo, hardware.rate, hardware.price)}')
        click.echo('')


def _estimate(tasks: list[Task], rate: float, price: float) -> str:
    seconds = sum(task.flop for task in tasks) / rate
    return (f'{duration(seconds):>10s}  {seconds / 3600 * price:10,.2f} dollars at {price:g} an '
            f'hour')


def _say_needs(found: Experiment) -> None:
    """Say which files must be there, and where those come from that are not."""
    needed = found.needs()
    if not needed:
        click.echo('\nIt needs no data.')
        return
    click.echo('\nFiles that it needs:')
    for path in needed:
        if is_missing(path):
            click.echo(f'  missing  {path}: put there {NEEDS[path]}')
        else:
            click.echo(f'  there    {path}')


@command(NAMES, OUT,
         files('--device', metavar='NAME', help='The device of each command, as in train.py'),
         files('--gpus', type=Whole(1, 4096), metavar='INT', default=1, show_default=True,
               help='The number of processes: with more than one, commands run under torchrun'))
def run(names: tuple[str, ...], out: str, device: str | None, gpus: int) -> None:
    """Run the commands of tables or figures that are not done yet.

    The same command continues after a stop, wherever that was. A command whose data are missing is
    passed over; what is missing is listed at the end, and then the exit code is 1.
    """
    missing: list[str] = []
    chosen = [experiment(name, out) for name in names]
    for found in chosen:
        missing += run_tasks(found.tasks, out, Machine(device, gpus), NEEDS)
    if missing:
        raise click.ClickException('not all could be done:\n  ' + '\n  '.join(
            dict.fromkeys(missing)))
    click.echo('Done. reproduce.py table shows the values.')


@command(NAMES, OUT,
         files('--dest', metavar='DIR', help='The folder of NAME.md, NAME.csv and NAME.png  '
                                             '[default: --out]'))
def table(names: tuple[str, ...], out: str, dest: str | None) -> None:
    """Set our values beside the paper's, with difference, spread and number of measurements.

    For each name it writes a page in Markdown, a CSV file of the values, and a picture where there
    is something to draw. What was not measured yet has a dash.
    """
    folder = Path(dest or out)
    for name in names:
        found = experiment(name, out)
        values = [tables.find(value) for value in found.values]
        short = name.replace('/', '-')
        metric = 'fid' if found.unit == 'FID' else found.unit
        title = f'{found.title} (small: 16x16 pixels, {os.cpu_count()} CPU cores)'
        drawn = pictures.draw(found, title if name.startswith('small') else found.title, metric,
                              folder / f'{short}.png')
        text = tables.page(name, found, values, drawn)
        _write(folder / f'{short}.md', text)
        if values:
            _write(folder / f'{short}.csv', tables.as_csv(values))
        click.echo(text)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


if __name__ == '__main__':
    main()
