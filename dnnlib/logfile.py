"""A copy of what is printed, in a file."""

import os
import sys
from types import TracebackType
from typing import Any, TextIO


class LogFile:
    """While the block runs, everything printed to stdout also goes to the end of `path` (None:
    nowhere)."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = path
        self.file: TextIO | None = None
        self.stdout: Any = None

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
        self.stdout.write(text)
        if self.file is not None:
            self.file.write(text)

    def flush(self) -> None:
        self.stdout.flush()
        if self.file is not None:
            self.file.flush()

    def isatty(self) -> bool:
        return bool(self.stdout.isatty())
