"""Moments of features: streaming in float64, the same for any number of ranks, to and from npz.

    μ = Σ f / N,   Σ = (Σ f fᵀ − N μ μᵀ) / (N − 1)

Images are taken in chunks of fixed size. Every chunk is summed up by itself, and these sums are
added in the order of the chunks: which rank a chunk was on leaves no trace in any bit.
"""

import contextlib
import http.client
import importlib.metadata
import io
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.files import atomic_write
from torch_utils import distributed

CHUNK = 1024   # images; another number gives other rounding
FORMAT = 1     # of the npz files; mu and sigma mean the same in every version


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on the CPU in one order of summation, however many threads there are.

    torchrun gives every rank fewer threads than a single process has; results would show it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Moments:
    """N, Σ f and Σ f fᵀ of features f, in float64.

    They are the blocks of one matrix `sums` [1 + d, 1 + d] = Σ (1, f)(1, f)ᵀ, which is what is
    added and what travels between ranks. It lives where the features do, or on the CPU where
    that device has no float64.
    """

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums

    @classmethod
    def zero(cls, dim: int, device: torch.device | str = 'cpu') -> 'Moments':
        where = 'cpu' if torch.device(device).type == 'mps' else device
        return cls(torch.zeros([1 + dim, 1 + dim], dtype=torch.float64, device=where))

    def add(self, features: Tensor) -> None:
        """Count features [B, d]. Raises ValueError where one of them is not finite."""
        x = features.detach().to(self.sums.device).to(torch.float64)
        if not x.isfinite().all():
            raise ValueError('the detector gave features that are not finite')
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        with one_thread():
            self.sums += x.T @ x

    def merge(self, other: 'Moments') -> None:
        """Count everything that `other` counted."""
        self.sums += other.sums

    @property
    def count(self) -> int:
        return round(self.sums[0, 0].item())

    def mean(self) -> np.ndarray:
        """μ, float64 [d]"""
        return (self.sums[0, 1:] / self.sums[0, 0]).cpu().numpy()

    def cov(self) -> np.ndarray:
        """Σ, float64 [d, d], unbiased. Raises ValueError for fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f'{self.count} images have no covariance: 2 are the least')
        N, total, outer = self.sums[0, 0], self.sums[0, 1:], self.sums[1:, 1:]
        return ((outer - torch.outer(total, total) / N) / (N - 1)).cpu().numpy()


def chunks(num_images: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """The positions 0 ... num_images - 1 in chunks; chunk c is that of rank c mod world_size."""
    return [range(start, min(start + CHUNK, num_images))
            for start in range(rank * CHUNK, num_images, world_size * CHUNK)]


def moments_of_chunks(features: Iterator[Tensor], num_images: int, dim: int,
                      device: torch.device | str = 'cpu') -> Moments | None:
    """The moments of `num_images` images over all ranks: on rank 0; None on the others.

    `features` yields [len(chunk), dim] for each of this rank's `chunks(...)` in turn. Collective,
    once for every world_size chunks. A ValueError on one rank is raised on all of them.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    total = Moments.zero(dim, device)
    for first in range(0, len(chunks(num_images)), world_size):
        part, error = Moments.zero(dim, device), None
        try:
            if first + rank < len(chunks(num_images)):
                part.add(next(features))
        except ValueError as failure:
            error = str(failure)
        raise_on_all(error)
        for sums in _gather(part.sums):
            total.merge(Moments(sums))
    if rank > 0:
        return None
    assert total.count == num_images, f'{total.count} of {num_images} images were counted'
    return total


def raise_on_all(error: str | None) -> None:
    """ValueError on every rank where any has an `error`: none is left waiting for the others."""
    errors = [found for found in distributed.gather_objects(error) if found is not None]
    if errors:
        raise ValueError(errors[0])


def _gather(tensor: Tensor) -> list[Tensor]:
    """Everybody's tensor in the order of the ranks, on rank 0; nothing on the others."""
    if distributed.get_world_size() == 1:
        return [tensor]
    if distributed.get_rank() > 0:
        torch.distributed.gather(tensor)
        return []
    tensors = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    torch.distributed.gather(tensor, tensors)
    return tensors


@dataclass(frozen=True)
class Statistics:
    """μ [d] and Σ [d, d] in float64, and what they are of; None where a file does not say.

    As an npz file: arrays of these names, and `format`. Whoever knows only `mu` and `sigma`
    (EDM's own fid.py, for one) can read it, and files with only these two can be read here.
    """
    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None               # how many images
    image_shape: list[int] | None = None   # C, H, W
    detector_id: str | None = None
    detector_digest: str | None = None
    data_fingerprint: str | None = None
    versions: str | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as npz, all or nothing; the same statistics give the same bytes."""
        arrays: dict[str, Any] = {k: v for k, v in vars(self).items() if v is not None}
        with atomic_write(path) as file:
            np.savez(file, format=FORMAT, **arrays)


def load_statistics(source: str | os.PathLike[str]) -> Statistics:
    """Read npz statistics from a file or an http(s) address; nothing in it is executed.

    Raises ValueError, naming `source`, for what is missing, damaged, or does not fit together.
    """
    where = os.fspath(source)
    content = _fetch(where) if where.startswith(('http://', 'https://')) else _read(where)
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f'{where} is not an npz file, or a damaged one')
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            names = [*Statistics.__dataclass_fields__, 'format']
            found = {name: file[name] for name in file.files if name in names}
            others = ', '.join(file.files) or 'nothing'
    except (ValueError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError,
            zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{where} cannot be read: {" ".join(str(error).split())}') from error
    for name in ('mu', 'sigma'):
        if name not in found:
            raise ValueError(f'{where} has no {name}, only {others}: make it with fid.py ref')
    return _checked(found, where)


def _read(path: str) -> bytes:
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder, not an npz file: make one with fid.py ref')
    try:
        with open(path, 'rb') as file:
            return file.read()
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}') from error


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return bytes(response.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(
            f'{url} cannot be fetched: {error}; download it by hand and name the file') from error


def _checked(found: dict[str, np.ndarray], where: str) -> Statistics:
    mu, sigma = found.pop('mu'), found.pop('sigma')
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f'{where}: mu has shape {list(mu.shape)} and sigma {list(sigma.shape)}, '
                         'not [d] and [d, d]')
    for name, array in (('mu', mu), ('sigma', sigma)):
        if array.dtype.kind != 'f' or not np.isfinite(array).all():
            raise ValueError(f'{where}: {name} holds something else than finite numbers')
    told = {name: value.tolist() for name, value in found.items()}
    version = told.pop('format', FORMAT)
    if version != FORMAT:
        raise ValueError(f'{where} has format {version}, but this version reads format {FORMAT}')
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64), **told)


def library_versions() -> str:
    """What a number may owe its last digits to: `torch 2.13.0, numpy 2.4.6, pillow 13.0.0`."""
    names = ('torch', 'numpy', 'pillow')
    return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)
