"""Threads that write images while the next ones are drawn."""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from torch_utils.grids import save_values

THREADS = 4   # zlib and the disk let others run; Python's own part of a small file does not


class Writers:
    """Writes batches of images as `save_values` does, each while its user makes the next one.

    The memory is that of one batch more. When the block ends, all files are there:

        with Writers() as writers:
            for images, paths in batches:
                writers.write(images, paths)

    What goes wrong in a thread is raised by the next call or at the end of the block: the first
    error in the order of the images. Then, and where the block itself ends with an error, what has
    not begun is left out. Every file is either whole or absent.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='writer')
        self._pending: list[Future[None]] = []

    def __enter__(self) -> 'Writers':
        return self

    def write(self, images: Iterable[np.ndarray], paths: Iterable[str | os.PathLike[str]]) -> None:
        """Begin to write data [B, C, H, W] to B files, once those of the last call are written."""
        self._wait()
        self._pending = [self._pool.submit(save_values, image, path)
                         for image, path in zip(images, paths, strict=True)]

    def _wait(self) -> None:
        try:
            for future in self._pending:
                future.result()
        except BaseException:
            self._pool.shutdown(cancel_futures=True)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if kind is None:
            self._wait()
        self._pool.shutdown(cancel_futures=True)
