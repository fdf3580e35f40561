"""Randomness as a function of known numbers, so that the state of no generator is ever saved."""

import numpy as np
import torch


def seed_of(*keys: int) -> int:
    """Return a 64-bit seed from integers.

    numpy's SeedSequence makes it, which is stable over versions and machines.
    """
    state = np.random.SeedSequence([key % 2**64 for key in keys]).generate_state(1, np.uint64)
    return int(state[0])


def generator_at(*keys: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """Return a generator that depends on `keys` alone, for example (seed, nimg, purpose)."""
    return torch.Generator(device).manual_seed(seed_of(*keys))


def random_subset(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Choose `size` of the positions 0 ... count - 1 at random; all of them if there are no more.

    Returns int64 [min(size, count)], rising. This is the choice of EDM's program, from NumPy's
    frozen RandomState; 0 <= seed < 2**32.
    """
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).permutation(count)[:size])
