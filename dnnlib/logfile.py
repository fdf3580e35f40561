"""A copy of the printed text in a file."""

import os
import sys
from types import TracebackType
from typing import TextIO


class LogFile:
    """A block in which everything printed to stdout also goes to the end of the file `path`.

    With path=None the block changes nothing.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = path
        self.file: TextIO | None = None
        self.stdout = sys.stdout

    def __enter__(self) -> 'LogFile':
        if self.path is not None:
            self.file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115 (closed in __exit__)
            self.stdout, sys.stdout = sys.stdout, self   # type: ignore[assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.file is not None:
            if error is not None and not isinstance(error, SystemExit):
                self.file.write(f'{kind.__name__ if kind else "error"}: {error}\n')
            sys.stdout = self.stdout
            self.file.close()

    def write(self, text: str) -> None:
        """Write to stdout and to the file."""
        self.stdout.write(text)
        if self.file is not None:
            self.file.write(text)

    def flush(self) -> None:
        """Flush stdout and the file."""
        self.stdout.flush()
        if self.file is not None:
            self.file.flush()

    def isatty(self) -> bool:
        """Return whether stdout is a terminal."""
        return bool(self.stdout.isatty())
