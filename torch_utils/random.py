"""Randomness as a function of known numbers, so that the state of no generator is ever saved."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PIECE = 2**15   # numbers: fewer than the threads that GPUs of 32 multiprocessors run at a time


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


def normal_at(shape: Sequence[int], *keys: int, device: torch.device) -> Tensor:
    """Draw standard normal numbers that depend on `keys` alone, float32 of `shape` on `device`.

    They are not the same on CUDA as on the CPU, but the same on all models of GPU. Of a long row of
    numbers torch gives each thread of a GPU several, and models differ in how many threads there
    are; so there the numbers come in pieces, see `normal_in_pieces`.
    """
    if device.type == 'cuda':
        return normal_in_pieces(shape, *keys, device=device)
    return torch.randn(list(shape), device=device, generator=generator_at(*keys, device=device))


def normal_in_pieces(shape: Sequence[int], *keys: int, device: torch.device) -> Tensor:
    """Draw standard normal numbers in pieces of PIECE, each from a generator with its own seed.

    The seeds are the 64-bit words that numpy's SeedSequence makes of `keys`; the first one is
    `seed_of(*keys)`.
    """
    numbers = torch.empty(list(shape), device=device)
    pieces = numbers.view(-1).split(PIECE)
    generator = torch.Generator(device)
    for piece, seed in zip(pieces, _seeds_of(keys, len(pieces)), strict=True):
        piece.normal_(generator=generator.manual_seed(seed))
    return numbers


def random_subset(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Choose `size` of the positions 0 ... count - 1 at random; all of them if there are no more.

    Returns int64 [min(size, count)], rising. This is the choice of EDM's program, from NumPy's
    frozen RandomState; 0 <= seed < 2**32.
    """
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).permutation(count)[:size])
