"""A copy of the printed text in a file."""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

from dnnlib.console import escaped
from dnnlib.files import naming


class LogFile:
    """A block in which everything printed to stdout also goes to the end of the file `path`.

    With path=None there is no file. Where stdout breaks, because its reader or its terminal is
    gone, the text goes to the file alone.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = path
        self.file: TextIO | None = None
        self.stdout: TextIO | None = sys.stdout
        self._broken = False

    def __enter__(self) -> 'LogFile':
        if self.path is not None:
            self.file = open(  # noqa: SIM115 (closed in __exit__)
                self.path, 'a', encoding='utf-8', errors='backslashreplace')
            self.stdout, sys.stdout = sys.stdout, self   # type: ignore[assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.file is not None:
            if error is not None and not isinstance(error, SystemExit):
                self.file.write(escaped(f'{kind.__name__ if kind else "error"}: {error}\n'))
            sys.stdout = self.stdout   # type: ignore[assignment]
            self.file.close()

    def write(self, text: str) -> None:
        """Write to stdout and to the file, escaped for a terminal."""
        text = escaped(text)
        if self.file is not None and self.path is not None:
            with naming(self.path):
                self.file.write(text)
        if self.stdout is not None:
            with self._breaking():
                self.stdout.write(text)

    def flush(self) -> None:
        """Flush stdout and the file."""
        if self.file is not None and self.path is not None:
            with naming(self.path):
                self.file.flush()
        if self.stdout is not None:
            with self._breaking():
                self.stdout.flush()

    def is_broken(self) -> bool:
        """Return whether stdout broke; one that was closed from the beginning did not."""
        return self._broken

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except UnicodeError:
            raise
        except (OSError, ValueError):   # a broken pipe, a lost terminal; a closed file
            self._broken = True
            lost, self.stdout = self.stdout, None
            # What is left in its buffer would break the end of the process, too.
            with (contextlib.suppress(OSError, ValueError, AttributeError),
                  open(os.devnull, 'wb') as nowhere):
                os.dup2(nowhere.fileno(), lost.fileno())   # type: ignore[union-attr]

    def isatty(self) -> bool:
        """Return whether stdout is a terminal."""
        return self.stdout is not None and bool(self.stdout.isatty())
