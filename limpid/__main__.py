"""`python -m limpid` prints Table 1 of the paper from the objects that the commands use."""

import contextlib
import os
import sys

from limpid.table1 import print_table

if __name__ == '__main__':
    try:
        print_table()
        sys.stdout.flush()
    except BrokenPipeError:   # of `| head`, which has read enough
        with contextlib.suppress(OSError), open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
