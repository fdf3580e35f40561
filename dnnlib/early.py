"""What every command does before its libraries are imported, which takes seconds.

Each imports this module before anything else. `--help` ends here, where it was asked for before
(dnnlib.help). How threads wait is decided here, since torch asks once (dnnlib.threads). And a batch
system may stop a job at any time: train.py leaves with the exit code that means "try again", as it
does once it trains; there is nothing to save yet.
"""

import os
import signal
import sys

from dnnlib import help, threads

TRY_AGAIN = 75   # EX_TEMPFAIL


def _leave(number: int, frame: object) -> None:
    os.write(2, b'Interrupted: stopped before the training began; the same command starts it\n')
    os._exit(TRY_AGAIN)


help.print_kept()
threads.apply()

if os.path.basename(sys.argv[0]) == 'train.py':   # and not where train is a module of a program
    for _name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP'):
        _number = getattr(signal, _name, None)
        if _number is not None and signal.getsignal(_number) != signal.SIG_IGN:   # as under nohup
            signal.signal(_number, _leave)
