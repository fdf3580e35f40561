"""The streams of a command, whatever the place where it runs."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

LONGEST = 10_000   # characters of a line that is printed


def shown(text: str, length: int = 80) -> str:
    """Return text from a file, safe to print: short, in one line, without control characters."""
    text = ''.join(c if c.isprintable() else '?' for c in text[:length + 1])
    return text if len(text) <= length else f'{text[:length]}...'


def escaped(text: str) -> str:
    """Return text, which a file or a server may have given, as it may be printed.

    What a terminal would obey, such as escape sequences or marks of direction, stands there as an
    escape such as \\x1b; a line of more than LONGEST characters is cut.
    """
    if not text.isprintable():
        text = ''.join(c if c.isprintable() or c in '\n\t' else _escape(c) for c in text)
    if len(text) > LONGEST:
        text = '\n'.join(line if len(line) <= LONGEST else f'{line[:LONGEST]}...'
                         for line in text.split('\n'))
    return text


def _escape(c: str) -> str:
    return f'\\x{ord(c):02x}' if c < '\x80' else c.encode('ascii', 'backslashreplace').decode()


class Escaping:
    """A stream to which everything is printed as `escaped` says."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        self.stream.write(escaped(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Let any text be printed in a block, also to a closed stdout or stderr.

    What a terminal would obey is escaped, as `escaped` says. Characters that the encoding of a
    stream lacks, and bytes of file names that are no text, are printed as escapes such as \\u03c3.
    A stream that was closed swallows what is printed.
    """
    with contextlib.ExitStack() as stack:
        if sys.excepthook is sys.__excepthook__:   # it acts when this block has ended
            sys.excepthook = _print_escaped
        for name in ('stdout', 'stderr'):
            stream = getattr(sys, name)
            if isinstance(stream, io.TextIOWrapper):
                errors = stream.errors
                stream.reconfigure(errors='backslashreplace')
                stack.callback(_restore, stream, errors or 'strict')
                if name == 'stdout':   # bars of progress on stderr move the cursor on purpose
                    sys.stdout = Escaping(stream)   # type: ignore[assignment]
                    stack.callback(setattr, sys, name, stream)
            elif stream is None:
                nowhere = stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
                setattr(sys, name, nowhere)
                stack.callback(setattr, sys, name, None)
        yield


def _print_escaped(kind: type[BaseException], error: BaseException,
                   trace: TracebackType | None) -> None:
    """Print the stack trace of an error that nobody caught, whose message a file may have given."""
    text = ''.join(traceback.format_exception(kind, error, trace))
    if sys.stderr is not None:
        sys.stderr.write(escaped(text))


def _restore(stream: io.TextIOWrapper, errors: str) -> None:
    with contextlib.suppress(OSError, ValueError):   # it may be closed, or broken
        stream.reconfigure(errors=errors)
