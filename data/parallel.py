"""The same work on many images, in several processes, with the results in order."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar('T')
Work = Callable[[int, str], T]

CHUNK = 64   # images that a process deals with at a time


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(work: Work[T], names: Sequence[str], start: int = 0,
             workers: int = 1) -> Iterator[list[T]]:
    """Yield work(number, name) for the images from number `start` on, in order, some at a time.

    The results do not depend on the number of worker processes, to which `work` goes by fork or
    through pickle. At most a few chunks wait in memory.
    """
    starts = range(start, len(names), CHUNK)
    if workers == 1 or len(starts) < 2:
        for first in starts:
            yield [work(first + i, name) for i, name in enumerate(names[first:first + CHUNK])]
        return
    try:
        yield from _in_processes(work, names, starts, min(workers, len(starts)))
    except BrokenProcessPool as error:
        raise ChildProcessError('a worker process was ended from outside, perhaps for want of '
                                'memory: use fewer --workers') from error


def _in_processes(work: Work[T], names: Sequence[str], starts: range,
                  workers: int) -> Iterator[list[T]]:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if 'fork' in methods else None)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin,
                               initargs=(work, os.getpid()))
    waiting: deque[Future[list[Any]]] = deque()
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        for start in starts:
            waiting.append(pool.submit(_chunk, start, names[start:start + CHUNK]))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_work: Work[Any] | None = None   # of this worker process


def _begin(work: Work[Any], parent: int) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # the parent ends it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, however that ended.

    A worker that outlives it would wait for work for ever, with the files of the parent open and
    their locks held. `parent` is the number that the parent has of itself: it may be gone before
    this process first asks whose child it is.
    """
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _chunk(start: int, names: Sequence[str]) -> list[Any]:
    assert _work is not None
    return [_work(start + i, name) for i, name in enumerate(names)]
