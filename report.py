"""Show runs of train.py as one page of HTML: curves, losses by noise level, pictures, settings."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

from pathlib import Path

import click

from dnnlib.cli import GroupedCommand, Whole, check_writable, heading, one_line_errors
from dnnlib.files import atomic_write

MOST_RUNS = 30   # with a line of their own

EXAMPLES = """
# A run, as runs/photos/report.html
python report.py runs/photos

# Three runs side by side, with the settings that differ
python report.py runs/lr-0.001 runs/lr-0.002 runs/lr-0.004 --dest=out/learning-rates.html
"""


@click.command(cls=GroupedCommand, examples=EXAMPLES, context_settings={'max_content_width': 100})
@click.argument('folders', metavar='DIR...', nargs=-1, required=True)
@heading('Output')('--dest', metavar='HTML',
                   help='The page to write  [default: report.html, for one run in its folder]')
@heading('Output')('--pictures', type=Whole(0, 1000), metavar='INT', default=6, show_default=True,
                   help='Largest number of pictures of each run, evenly spread over it; 0 for none')
@one_line_errors
def main(folders: tuple[str, ...], dest: str | None, pictures: int) -> None:
    """Show runs of train.py as one page of HTML.

    The page is a single file without scripts, which loads nothing from elsewhere: it can be mailed,
    and opened without a network. It has curves of the loss, the gradient's norm, the learning rate,
    the pace and the memory, the loss by noise level, evaluations, pictures, and settings. Several
    runs are drawn into the same curves, and the settings that differ come first. A run that is
    still going on can be shown too. Needs matplotlib.
    """
    from reports.page import report  # what takes seconds to import: --help does without
    from reports.run import read_runs

    if len(folders) > MOST_RUNS:
        raise ValueError(f'{len(folders)} runs are more than can be told apart: name at most '
                         f'{MOST_RUNS}')
    runs = read_runs(folders)
    if dest is None:
        dest = str(Path(folders[0]) / 'report.html') if len(runs) == 1 else 'report.html'
    check_writable('--dest', dest)
    data = report(runs, pictures)
    with atomic_write(dest) as file:
        file.write(data)
    click.echo(f'Wrote {dest}')


if __name__ == '__main__':
    main()
