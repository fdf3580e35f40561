"""The text of `--help`, kept for the next time, since it takes seconds to import what it speaks of.

Like bytecode, a kept text holds for as long as no source file has changed. There is a file for each
command and width of the terminal, in ~/.cache/limpid/help.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dnnlib.console import tolerant_streams
from dnnlib.files import atomic_write, home, read_bounded

ROOT = Path(__file__).parents[1]
LONGEST = 1_000_000   # bytes of a text
MOST = 100            # texts; the oldest give way


def kept_at(arguments: Sequence[str], root: Path = ROOT) -> Path | None:
    """Return where the help of a command line is kept: [script, --help] or [script, name, --help].

    None for any other command line.
    """
    script, *rest = arguments or ['']
    names = rest[:-1]
    if (rest[-1:] != ['--help'] or len(names) > 1 or any(name.startswith('-') for name in names)
            or Path(os.path.realpath(script)).parent != root or not script.endswith('.py')):
        return None
    click = importlib.util.find_spec('click')   # it is not imported
    sources = [*root.glob('*.py'), *root.glob('[a-z]*/*.py'),
               *([Path(click.origin)] if click and click.origin else [])]
    stamps = sorted((str(path), found.st_mtime_ns, found.st_size)
                    for path, found in ((path, path.stat()) for path in sources))
    key = hashlib.sha256(repr([sys.version, stamps, shutil.get_terminal_size().columns, script,
                               names]).encode()).hexdigest()
    return home() / '.cache' / 'limpid' / 'help' / f'{Path(script).stem}.{key[:32]}.txt'


def kept(text: str) -> str:
    """Return the help of the running program; keep it if that is what it was asked for."""
    with contextlib.suppress(OSError, ValueError):
        path = kept_at(sys.argv)
        if path is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in sorted(path.parent.glob('*.txt'), key=os.path.getmtime)[:-MOST + 1]:
                old.unlink(missing_ok=True)
            with atomic_write(path) as file:
                file.write(text.encode())
    return text


def print_kept() -> None:
    """Print the help that the program was asked for and end it, where it was kept."""
    try:
        path = kept_at(sys.argv)
        text = '' if path is None else read_bounded(path, LONGEST).decode()
    except (OSError, ValueError):
        return
    if not text:
        return
    with tolerant_streams():
        try:
            print(text, flush=True)
        except BrokenPipeError:   # of `| head`, which has read enough
            sys.stdout = open(os.devnull, 'w', encoding='utf-8')   # noqa: SIM115
    sys.exit(0)
