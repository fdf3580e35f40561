"""Signals that come before a program is ready for them, while its libraries are still imported.

A batch system may stop a job at any time. Imported before anything else, this module lets train.py
leave with the exit code that means "try again", as it does once it trains; there is nothing to
save yet.
"""

import os
import signal
import sys

TRY_AGAIN = 75   # EX_TEMPFAIL


def _leave(number: int, frame: object) -> None:
    os.write(2, b'Interrupted: stopped before the training began; the same command starts it\n')
    os._exit(TRY_AGAIN)


if os.path.basename(sys.argv[0]) == 'train.py':   # and not where train is a module of a program
    for _name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP'):
        _number = getattr(signal, _name, None)
        if _number is not None and signal.getsignal(_number) != signal.SIG_IGN:   # as under nohup
            signal.signal(_number, _leave)
