"""Running out of memory, and going on with less at a time."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from dnnlib.cli import NO_MEMORY

T = TypeVar('T')


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was not enough memory, of a GPU or of the machine."""
    return (isinstance(error, MemoryError | torch.OutOfMemoryError)
            or isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))


def release() -> None:
    """Give back what is not in use, after an attempt that failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fits(attempt: Callable[[], object]) -> bool:
    """Return whether there is enough memory for an attempt, which may leave nothing behind."""
    try:
        attempt()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # What the frames of the error hold is in use until this block ends.
    else:
        return True
    release()
    return False


@dataclass
class BatchLimit:
    """The largest number of items at a time; an `adaptive` one is halved when memory runs out."""
    size: int
    adaptive: bool = False

    def pieces(self, items: Sequence[int],
               work: Callable[[Sequence[int]], T]) -> Iterator[tuple[Sequence[int], T]]:
        """Yield consecutive pieces of `items` and what `work` makes of each.

        The work on a piece that was too much is done again on a smaller one, and must therefore
        leave nothing behind.
        """
        done = 0
        while done < len(items):
            piece = items[done:done + self.size]
            made: list[T] = []
            if not self.adaptive or len(piece) == 1:
                made.append(work(piece))
            elif not fits(lambda piece=piece, made=made: made.append(work(piece))):  # type: ignore[misc]
                self.size = (len(piece) + 1) // 2
                continue
            yield piece, made[0]
            done += len(piece)
