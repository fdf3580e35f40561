"""Moments of features: streaming in float64, the same for any number of ranks.

    μ = Σ f / N,   Σ = (Σ f fᵀ − N μ μᵀ) / (N − 1)

Images are taken in chunks of fixed size. Every chunk is summed up by itself, and these sums are
added in the order of the chunks: the result does not depend, in any bit, on the rank of a chunk.
"""

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024   # images; another number gives other rounding
FORMAT = 1     # of the npz files; mu and sigma mean the same in every version


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run linear algebra on the CPU in one order of summation, whatever the number of threads.

    torchrun gives every rank fewer threads than a single process has, which would change results.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


CONSTANT = 1e-13   # variance of a feature that is constant, relative to its mean square


class Moments:
    """N, Σ f and Σ f fᵀ of features f, in float64.

    They are the blocks of one matrix `sums` [1 + d, 1 + d] = Σ (1, f)(1, f)ᵀ, which is added up and
    sent between ranks. It is on the device of the features, or on the CPU if that device has no
    float64.
    """

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums

    @classmethod
    def zero(cls, dim: int, device: torch.device | str = 'cpu') -> 'Moments':
        where = 'cpu' if torch.device(device).type == 'mps' else device
        return cls(torch.zeros([1 + dim, 1 + dim], dtype=torch.float64, device=where))

    def add(self, features: Tensor) -> None:
        """Add features [B, d]. Raises ValueError if one of them is not finite."""
        x = features.detach().to(self.sums.device).to(torch.float64)
        if not x.isfinite().all():
            raise ValueError('the detector gave features that are not finite')
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        with one_thread():
            self.sums += x.T @ x

    def merge(self, other: 'Moments') -> None:
        """Add everything that was added to `other`."""
        self.sums += other.sums

    @property
    def count(self) -> int:
        return round(self.sums[0, 0].item())

    def mean(self) -> np.ndarray:
        """μ, float64 [d]"""
        return (self.sums[0, 1:] / self.sums[0, 0]).cpu().numpy()

    def cov(self) -> np.ndarray:
        """Σ, float64 [d, d], unbiased. Raises ValueError for fewer than 2 features.

        A feature that is the same in all images has the variance 0, not what rounding leaves.
        """
        if self.count < 2:
            raise ValueError(f'{self.count} images have no covariance: 2 are the least')
        N, total, outer = self.sums[0, 0], self.sums[0, 1:], self.sums[1:, 1:]
        sigma = (outer - torch.outer(total, total) / N) / (N - 1)
        constant = sigma.diagonal() <= CONSTANT * outer.diagonal() / N
        if bool(constant.any()):
            sigma[constant], sigma[:, constant] = 0.0, 0.0
        return sigma.cpu().numpy()


def chunks(num_images: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """Split 0 ... num_images - 1 into chunks; chunk c belongs to rank c mod world_size."""
    return [range(start, min(start + CHUNK, num_images))
            for start in range(rank * CHUNK, num_images, world_size * CHUNK)]


@dataclass(frozen=True)
class Statistics:
    """μ [d] and Σ [d, d] in float64, and their origin, with None for what a file does not say.

    metrics/reference_files.py writes and reads them.
    """
    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None               # how many images
    image_shape: list[int] | None = None   # C, H, W
    detector_id: str | None = None
    detector_digest: str | None = None
    data_fingerprint: str | None = None
    versions: str | None = None
    precision: str | None = None           # float32, tf32 or float64: of the detector
    source: str | None = None              # the images' name, as it was given


def library_versions() -> str:
    """Return the versions on which the last digits may depend: `torch 2.13.0, numpy 2.4.6, ...`."""
    names = ('torch', 'numpy', 'pillow')
    return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)
