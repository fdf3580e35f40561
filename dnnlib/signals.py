"""The signals that ask a program to stop, and processes that leave the answer to their parent."""

import signal

# of batch systems, of a terminal, of one that is closed or whose connection drops, and of Windows
SIGNALS = ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP', 'SIGBREAK')


def leave_stopping_to_the_parent(_: int) -> None:
    """Ignore the SIGNALS in a process that reads data.

    A terminal and a batch system send them to all processes of a run. The one that trains saves
    and then ends the others, without which it could not go on to the end of its step.
    """
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
