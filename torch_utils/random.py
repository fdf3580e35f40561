"""Randomness as a function of numbers that are known, so that none of it is ever saved."""


import numpy as np
import torch


def seed_of(*keys: int) -> int:
    """A 64-bit seed from a tuple of integers (numpy's SeedSequence: stable over versions and
    machines)."""
    state = np.random.SeedSequence([key % 2**64 for key in keys]).generate_state(1, np.uint64)
    return int(state[0])


def generator_at(*keys: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """A generator that depends on `keys` alone, for example (seed, nimg, purpose)."""
    return torch.Generator(device).manual_seed(seed_of(*keys))


