"""Progress of long work on stderr: a bar on a terminal, and a line a minute in a log.

    with Progress(50000, 'seeds 0-49999') as progress:
        progress.advance(64)
"""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import click
import tqdm

from dnnlib.cli import is_terminal

T = TypeVar('T')

FIRST, EVERY = 30.0, 60.0   # seconds before the first line of a log, and between two


class Progress:
    """The progress of something that counts up to `total`, until the end of a `with` block.

    `done` is where it begins, and `quiet` says that nothing is shown, as on all ranks but one. Work
    that takes less than FIRST seconds leaves no line in a log.
    """

    def __init__(self, total: int, title: str = '', unit: str = 'images', done: int = 0,
                 quiet: bool = False) -> None:
        self.total, self.title, self.unit, self.done = total, title, unit, done
        self._quiet, self._first = quiet, done
        self._bar: tqdm.tqdm[Any] | None = None
        self._started = time.monotonic()
        self._due = self._started + FIRST

    def __enter__(self) -> 'Progress':
        if is_terminal() and not self._quiet:
            self._bar = tqdm.tqdm(total=self.total, initial=self.done, unit=f' {self.unit}',
                                  desc=self.title or None, leave=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Count `count` more, but no more than there are."""
        self.reach(min(self.done + count, self.total))

    def reach(self, done: int) -> None:
        """Set how many are done, and show it if it is time to."""
        self.done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif not self._quiet and time.monotonic() >= self._due:
            click.echo(self.line(), err=True)
            self._due = time.monotonic() + EVERY

    def line(self) -> str:
        """Return a line on how many are done, how fast, and how long the others will take."""
        title = f'{self.title}: ' if self.title else ''
        told = f'{title}{self.done} of {self.total} {self.unit}'
        seconds, count = time.monotonic() - self._started, self.done - self._first
        if count <= 0 or seconds <= 0:
            return told
        left = tqdm.tqdm.format_interval((self.total - self.done) * seconds / count)
        return f'{told}, {count / seconds:.3g} a second, {left} left'


def progressing(items: Iterable[T], total: int, title: str = '', unit: str = 'images',
                quiet: bool = False) -> Iterator[T]:
    """Yield the items, `total` of them, and show how many have been dealt with."""
    with Progress(total, title, unit, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()
