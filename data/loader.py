"""Batches of a data set, in an order that depends only on (seed, nimg)."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataset import ImageFolderDataset
from dnnlib.signals import leave_stopping_to_the_parent


def order_index(seed: int, size: int, nimg: int | range) -> np.ndarray:
    """Return the items of a set of `size` at positions `nimg` of the endless stream: int64 [n].

    Pass p = nimg // size visits every item once, in its own permutation, which depends only on
    (seed, p). An integer stands for one position.
    """
    where = nimg if isinstance(nimg, range) else range(nimg, nimg + 1)
    positions = np.arange(where.start, where.stop, where.step)
    passes, offsets = np.divmod(positions, size)
    indices = np.empty_like(positions)
    for p in np.unique(passes):
        indices[passes == p] = _permutation(seed, size, int(p))[offsets[passes == p]]
    return indices


@functools.lru_cache(maxsize=2)   # a batch may begin in one pass and end in the next
def _permutation(seed: int, size: int, p: int) -> np.ndarray:
    # Raw bits are the same in every version of numpy; Generator.permutation may change.
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, p])).random_raw(size)
    return np.argsort(bits, kind='stable')


class _BatchReader(torch.utils.data.Dataset[Any]):
    """A data set whose index is a whole batch, for a DataLoader without automatic batching."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset
        self.told: set[int] = set()

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor, list[str]] | str:
        """Return images, labels, and what is wrong with files that were skipped since the last."""
        try:
            images, labels = self.dataset.batch(indices)
        except ValueError as error:
            return str(error)   # raised in a worker, it would arrive as that worker's stack trace
        new = [number for number in self.dataset.skipped if number not in self.told]
        self.told.update(new)
        notes = [self.dataset.skipped[number] for number in new]
        return torch.from_numpy(images), torch.from_numpy(labels), notes


def batches(
    dataset: ImageFolderDataset,
    seed: int,
    nimg: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 [b, C, H, W], labels float32 [b, label_dim]) from counter `nimg` on.

    The stream is endless.

    Each global batch is the next `batch_size` positions of `order_index`; rank r of w gets the
    positions nimg + r b ... nimg + (r+1) b - 1, b = batch_size / w. The batches depend on neither
    `workers` nor the cache, and the ranks' shares together do not depend on the number of ranks.
    Tensors are on the CPU, and with `pin_memory` in pinned memory (then copies to a CUDA device
    need not wait).

    A set with cache='ram' is read by this process, whatever `workers` says: one copy of the images,
    and once they have been seen a batch is one indexing operation. Otherwise `workers` processes
    read ahead; with cache='mmap' all of them, and other ranks, share one copy. Raises ValueError
    for a batch that `world_size` does not divide, and for a bad file.
    """
    if batch_size < 1 or batch_size % world_size != 0:
        raise ValueError(f'a batch of {batch_size} images cannot be shared equally by {world_size} '
                         f'processes: use a multiple of {world_size}')
    share = batch_size // world_size
    if dataset.cache == 'mmap':
        dataset.share()   # the processes below would not be allowed to start others

    def indices() -> Iterator[np.ndarray]:
        start = nimg + rank * share
        while True:
            yield order_index(seed, len(dataset), range(start, start + share))
            start += batch_size

    loader = torch.utils.data.DataLoader(
        _BatchReader(dataset), batch_size=None, sampler=indices(), pin_memory=pin_memory,
        num_workers=0 if dataset.cache == 'ram' else workers,
        worker_init_fn=leave_stopping_to_the_parent,
        generator=torch.Generator())   # otherwise it would draw from the global generator

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for item in loader:
            if isinstance(item, str):
                raise ValueError(item)
            images, labels, notes = item
            for note in notes:
                with contextlib.suppress(OSError, ValueError):   # stdout may be gone
                    print(f'Warning: {note}; another image takes its place', flush=True)
            yield images, labels

    return stream()
