"""Signals that ask a run to save and leave, instead of ending it at once."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from dnnlib.signals import SIGNALS
from torch_utils import distributed

TWICE = 2.0   # seconds within which a second SIGINT is the same one, of a terminal and a launcher


@contextlib.contextmanager
def graceful_signals(otherwise: Callable[[], bool] = lambda: False) -> Iterator[
        Callable[[], bool]]:
    """Let the SIGNALS only ask to stop while the block runs.

    The block is given the function that says whether one came or `otherwise` says yes. A second
    SIGINT, two seconds after the first signal or later, stops at once. A SIGHUP that is ignored,
    as under nohup, stays so.
    """
    received: list[tuple[int, float]] = []
    told: list[int] = []

    def receive(number: int, frame: object) -> None:
        # It prints nothing: the signal may have come amid a print.
        now = time.monotonic()
        if number == signal.SIGINT and received and now - received[0][1] > TWICE:
            raise KeyboardInterrupt
        received.append((number, now))

    def asked() -> bool:
        if received and not told:
            told.append(received[0][0])
            distributed.print0(f'{signal.Signals(told[0]).name} received: finishing this step and '
                               f'saving')
        return bool(received) or otherwise()

    wanted = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, receive) for number in wanted
              if not _is_ignored_hangup(number)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored_hangup(number: int) -> bool:
    return (number == getattr(signal, 'SIGHUP', None)
            and signal.getsignal(number) == signal.SIG_IGN)
