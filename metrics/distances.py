"""Distances between sets of images: statistics of features -> a number."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from metrics.statistics import one_thread


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray,
                     mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Compute ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½, the Fréchet distance of two Gaussians.

    The shapes are mu [d] and sigma [d, d]. With Σ₁ = A Aᵀ, the eigenvalues of Σ₁ Σ₂ are those of
    Aᵀ Σ₂ A, so that no number ever becomes complex. If a covariance is singular, they are computed
    as the squared singular values of Aᵀ B with Σ₂ = B Bᵀ, which does not amplify rounding errors.
    The computation is in float64, and gives the same bits for any number of threads. For equal
    arguments the result is 0 up to rounding, and never negative. Raises ValueError for shapes that
    do not fit, for values that are not finite, and for matrices that are not covariances.
    """
    m1, S1, m2, S2 = _checked(mu1=mu1, sigma1=sigma1, mu2=mu2, sigma2=sigma2)
    with one_thread():
        A = _root(S1)
        if A.shape[1] == len(S1) and _has_full_rank(S2):
            trace_of_root = torch.linalg.eigvalsh(A.T @ S2 @ A).clamp(min=0).sqrt().sum()
        else:
            trace_of_root = torch.linalg.svdvals(A.T @ _root(S2)).sum()
        distance = (m1 - m2).square().sum() + S1.trace() + S2.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def frechet_distances(mu: np.ndarray, sigma: np.ndarray,
                      others: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Compute the Fréchet distance of one Gaussian to each of many; `sigma` is decomposed once.

    With Σ = A Aᵀ, tr (Σ Σ₂)^½ is the sum of the roots of the eigenvalues of Aᵀ Σ₂ A. If Σ₂ is
    singular, rounding errors add up to about 1e-7 of the trace, which is good enough for statistics
    of many distances. Raises ValueError as frechet_distance does.
    """
    m1, S1 = _checked(mu1=mu, sigma1=sigma)
    distances = []
    with one_thread():
        A = _root(S1)
        for mu2, sigma2 in others:
            *_, m2, S2 = _checked(mu1=mu, mu2=mu2, sigma2=sigma2)
            roots = torch.linalg.eigvalsh(A.T @ S2 @ A).clamp(min=0).sqrt()
            distance = (m1 - m2).square().sum() + S1.trace() + S2.trace() - 2 * roots.sum()
            distances.append(max(float(distance), 0.0))
    return distances


def is_symmetric(sigma: np.ndarray) -> bool:
    """Return whether sigma equals its transpose up to rounding in float32."""
    return bool(np.abs(sigma - sigma.T).max(initial=0) <= 1e-5 * np.abs(sigma).max(initial=0))


def negative_eigenvalue(sigma: np.ndarray) -> str | None:
    """Describe a negative eigenvalue of the symmetric [d, d] `sigma`, or return None if none is.

    An eigenvalue that is negative by no more than float32 rounding of the largest, times d, counts
    as 0: some published covariances were computed in float32. Cholesky's decomposition, which takes
    a small part of the time of eigenvalues, clears most matrices.
    """
    S = torch.tensor(np.asarray(sigma), dtype=torch.float64)
    if not len(S):
        return None
    with one_thread():
        allowed = _rounding(S.diagonal().max(), len(S), torch.float32)
        _, failed = torch.linalg.cholesky_ex(S + allowed * torch.eye(len(S), dtype=S.dtype))
        if not failed:
            return None
        least, *_, largest = torch.linalg.eigvalsh(S).tolist()
    if least >= -_rounding(torch.tensor(max(largest, 0.0)), len(S), torch.float32):
        return None
    return f'the negative eigenvalue {least:g}, where the largest is {largest:g}'


def _checked(**arrays: np.ndarray) -> list[Tensor]:
    d = len(arrays['mu1'])
    for name, array in arrays.items():
        right = [d] if name.startswith('mu') else [d, d]
        if list(np.shape(array)) != right:
            raise ValueError(
                f'frechet_distance: {name} has shape {list(np.shape(array))}, not {right}')
        if not np.isfinite(array).all():
            raise ValueError(f'frechet_distance: {name} has values that are not finite')
        if array.ndim == 2 and not is_symmetric(array):
            raise ValueError(f'frechet_distance: {name} is not symmetric, so it is no covariance')
        negative = negative_eigenvalue(array) if array.ndim == 2 else None
        if negative:
            raise ValueError(f'frechet_distance: {name} has {negative}, so it is no covariance')
    return [torch.tensor(np.asarray(a), dtype=torch.float64) for a in arrays.values()]


def _has_full_rank(S: Tensor) -> bool:
    """Return whether Cholesky's decomposition finds variance in every direction.

    This costs little compared with eigenvalues.
    """
    L, failed = torch.linalg.cholesky_ex(S)
    return not bool(failed) and bool(L.diagonal().square().min()
                                     > _rounding(S.diagonal().max(), len(S), S.dtype))


def _rounding(largest: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """Return the rounding error of a [d, d] covariance's eigenvalues, relative to the largest."""
    return largest * d * torch.finfo(dtype).eps


def _root(S: Tensor) -> Tensor:
    """Return A [d, rank] with A Aᵀ = S, for a covariance S.

    Eigenvalues within the rounding error of the largest count as 0: their roots would be noise.
    """
    eigenvalues, U = torch.linalg.eigh((S + S.T) / 2)
    kept = eigenvalues > _rounding(eigenvalues.abs().max(), len(S), S.dtype)
    A: Tensor = U[:, kept] * eigenvalues[kept].sqrt()
    return A
