"""Randomness as a function of known numbers, so that the state of no generator is ever saved."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PIECE = 2**15   # numbers: fewer than the threads that GPUs of 32 multiprocessors run at a time
ALL = slice(None)


def seed_of(*keys: int) -> int:
    """Return a 64-bit seed from integers.

    numpy's SeedSequence makes it, which is stable over versions and machines.
    """
    return _seeds_of(keys, 1)[0]


def _seeds_of(keys: Sequence[int], count: int) -> list[int]:
    sequence = np.random.SeedSequence([key % 2**64 for key in keys])
    seeds: list[int] = sequence.generate_state(count, np.uint64).tolist()
    return seeds


def generator_at(*keys: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """Return a generator that depends on `keys` alone, for example (seed, nimg, purpose)."""
    return torch.Generator(device).manual_seed(seed_of(*keys))


def normal_at(shape: Sequence[int], *keys: int, device: torch.device,
              rows: slice = ALL) -> Tensor:
    """Draw standard normal numbers that depend on `keys` alone, float32 of `shape` on `device`.

    `rows`, some of the first dimension, returns these alone, with the bits that they have among all
    of them. On a GPU hardly any others are drawn, so that a process of many draws its own.

    They are not the same on CUDA as on the CPU, but the same on all models of GPU. Of a long row of
    numbers torch gives each thread of a GPU several, and models differ in how many threads there
    are; so there the numbers come in pieces, see `normal_in_pieces`.
    """
    if device.type == 'cuda':
        return normal_in_pieces(shape, *keys, device=device, rows=rows)
    generator = generator_at(*keys, device=device)
    return torch.randn(list(shape), device=device, generator=generator)[rows]


def normal_in_pieces(shape: Sequence[int], *keys: int, device: torch.device,
                     rows: slice = ALL) -> Tensor:
    """Draw standard normal numbers in pieces of PIECE, each from a generator with its own seed.

    Of these numbers, in a row, the pieces are drawn that have a part of `rows`, as in normal_at.
    The seeds are the 64-bit words that numpy's SeedSequence makes of `keys`; the first one is
    `seed_of(*keys)`.
    """
    total, width = math.prod(shape), math.prod(shape[1:])
    first, stop, _ = rows.indices(shape[0])
    begin, end = first * width // PIECE, -(-stop * width // PIECE)   # of the pieces
    numbers = torch.empty(min(end * PIECE, total) - begin * PIECE, device=device)
    generator = torch.Generator(device)
    seeds = _seeds_of(keys, -(-total // PIECE))[begin:end]
    for piece, seed in zip(numbers.split(PIECE), seeds, strict=True):
        piece.normal_(generator=generator.manual_seed(seed))
    start = first * width - begin * PIECE
    return numbers[start:start + (stop - first) * width].view(stop - first, *shape[1:])


def random_subset(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Choose `size` of the positions 0 ... count - 1 at random; all of them if there are no more.

    Returns int64 [min(size, count)], rising. This is the choice of EDM's program, from NumPy's
    frozen RandomState; 0 <= seed < 2**32.
    """
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).permutation(count)[:size])
