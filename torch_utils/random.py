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
