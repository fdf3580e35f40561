"""Randomness as a function of numbers that are known, so that none of it is ever saved."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def seed_of(*keys: int) -> int:
    """A 64-bit seed from a tuple of integers (numpy's SeedSequence: stable over versions and machines)."""
    state = np.random.SeedSequence([key % 2**64 for key in keys]).generate_state(1, np.uint64)
    return int(state[0])


def generator_at(*keys: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """A generator that depends on `keys` alone, for example (seed, nimg, purpose)."""
    return torch.Generator(device).manual_seed(seed_of(*keys))


class StackedGenerator:
    """One generator per image, so that an image depends on its seed and not on its batch.

    Each generator is seeded with seed mod 2^32. Draws are made on `source`, the device of the
    generators, and handed over on `device`: with `source='cpu'` every device gets the same numbers.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str,
                 source: torch.device | str | None = None) -> None:
        self.device = torch.device(device)
        self.source = torch.device(source if source is not None else device)
        self.generators = [torch.Generator(self.source).manual_seed(int(seed) % 2**32) for seed in seeds]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers of `shape`, whose first dimension is the number of seeds."""
        self._check(shape)
        draws = [torch.randn(list(shape[1:]), generator=g, dtype=dtype, device=self.source) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        return self.randn(x.shape, dtype=x.dtype)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1) of `shape`, whose first dimension is the number of seeds."""
        self._check(shape)
        draws = [torch.rand(list(shape[1:]), generator=g, dtype=dtype, device=self.source) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def randint(self, high: int, shape: Sequence[int]) -> Tensor:
        """Integers in [0, high) of `shape`, whose first dimension is the number of seeds."""
        self._check(shape)
        draws = [torch.randint(high, list(shape[1:]), generator=g, device=self.source) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def _check(self, shape: Sequence[int]) -> None:
        if shape[0] != len(self.generators):
            raise ValueError(f'{shape[0]} rows asked of {len(self.generators)} generators')
