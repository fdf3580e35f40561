"""Images that depend on their seeds alone, not on the batch or on the number of devices."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limpid.denoiser import Network, traits
from limpid.labels import Labels
from limpid.sampling import Plan
from limpid.values import to_values


class StackedGenerator:
    """A random generator for each image, so that an image depends on its seed and not on its batch.

    Each generator is seeded with its seed mod 2^32. Numbers are drawn on `source`, the device of
    the generators, and returned on `device`: with source='cpu' every device gets the same numbers.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str,
                 source: torch.device | str | None = None) -> None:
        self.device = torch.device(device)
        self.source = torch.device(source if source is not None else device)
        self.generators = [torch.Generator(self.source).manual_seed(int(seed) % 2**32)
                           for seed in seeds]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw normal numbers of `shape`, whose first dimension is the number of seeds."""
        self._check(shape)
        draws = [torch.randn(list(shape[1:]), generator=g, dtype=dtype, device=self.source)
                 for g in self.generators]
        return torch.stack(draws).to(self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Draw normal numbers of the shape and dtype of x [B, ...]."""
        return self.randn(x.shape, dtype=x.dtype)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw uniform numbers in [0, 1) of `shape`, whose first dimension counts the seeds."""
        self._check(shape)
        draws = [torch.rand(list(shape[1:]), generator=g, dtype=dtype, device=self.source)
                 for g in self.generators]
        return torch.stack(draws).to(self.device)

    def randint(self, high: int, shape: Sequence[int]) -> Tensor:
        """Draw integers in [0, high) of `shape`, whose first dimension is the number of seeds."""
        self._check(shape)
        draws = [torch.randint(high, list(shape[1:]), generator=g, device=self.source)
                 for g in self.generators]
        return torch.stack(draws).to(self.device)

    def _check(self, shape: Sequence[int]) -> None:
        if shape[0] != len(self.generators):
            raise ValueError(f'{shape[0]} rows asked of {len(self.generators)} generators')


def latents_and_labels(net: Network, seeds: Sequence[int], classes: Sequence[int] | None,
                       generator: StackedGenerator) -> tuple[Tensor, Tensor | None]:
    """Draw the latent of each seed and then, for conditional networks, its class.

    Returns noise [B, C, H, W] float32 and labels [B, label_dim], or None. Labels are drawn as
    Traits.known_labels says, or evenly from all classes if they are unknown. `classes` gives the
    class of each seed. The random label is drawn even then, so that later draws stay the same.
    """
    told = traits(net)
    if told.image_shape is None:
        raise ValueError('the network does not say what images it makes: Traits.image_shape')
    noise = generator.randn([len(seeds), *told.image_shape])
    if not told.label_dim:
        return noise, None
    known = told.known_labels or Labels(counts=(1,) * told.label_dim)
    drawn = known.draw_for(seeds, told.label_dim, generator)
    if classes is None:
        return noise, drawn
    chosen = torch.tensor(list(classes), device=drawn.device)
    return noise, torch.nn.functional.one_hot(chosen, told.label_dim).to(torch.float32)


def generate(net: Network, plan: Plan, seeds: Sequence[int], classes: Sequence[int] | None,
             device: torch.device, rng: str | None = None) -> Tensor:
    """Return images [B, C, H, W] of these seeds, on `device`: data like those of training.

    They are uint8, or float32 where the network has a standardization or other than 1 or 3 channels
    (limpid/values.py).
    rng='cpu' draws all random numbers on the CPU, so that every device starts from the same ones.
    Raises FloatingPointError when the images are not finite.
    """
    generator = StackedGenerator(seeds, device, source=rng)
    noise, labels = latents_and_labels(net, seeds, classes, generator)
    images = plan(net, noise, labels, generator.randn_like)
    if not bool(images.isfinite().all()):
        raise FloatingPointError('the images came out as numbers that are not finite, and were not '
                                 'written: the network or the combination of sampler options is to '
                                 'blame')
    return to_values(images, traits(net).standardization)


def share_of(seeds: Sequence[int], batch: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Return the positions in `seeds` that this rank works on, in batches of at most `batch`.

    All ranks get the same number of batches (some may be empty), of nearly the same size.
    """
    rounds = -(-len(seeds) // (batch * world_size))
    return np.array_split(np.arange(len(seeds)), rounds * world_size)[rank::world_size]
