"""The streams of a command, whatever the place where it runs."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Let any text be printed in a block, also to a closed stdout or stderr.

    Characters that the encoding of a stream lacks, and bytes of file names that are no text, are
    printed as escapes such as \\u03c3. A stream that was closed swallows what is printed.
    """
    with contextlib.ExitStack() as stack:
        for name in ('stdout', 'stderr'):
            stream = getattr(sys, name)
            if isinstance(stream, io.TextIOWrapper):
                errors = stream.errors
                stream.reconfigure(errors='backslashreplace')
                stack.callback(_restore, stream, errors or 'strict')
            elif stream is None:
                nowhere = stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
                setattr(sys, name, nowhere)
                stack.callback(setattr, sys, name, None)
        yield


def _restore(stream: io.TextIOWrapper, errors: str) -> None:
    with contextlib.suppress(OSError, ValueError):   # it may be closed, or broken
        stream.reconfigure(errors=errors)
