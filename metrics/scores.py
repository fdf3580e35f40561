"""Scores other than the Fréchet distance, from features of two sets of images or logits of one.

    kernel_distance         KID (Bińkowski et al. 2018)
    inception_score         IS (Salimans et al. 2016)
    precision_recall        precision and recall (Kynkäänniemi et al. 2019), on Inception's features
                            as in Dhariwal & Nichol 2021
    density_coverage        density and coverage (Naeem et al. 2020)
    frechet_distance_inf    FID∞ (Chong & Forsyth 2020)

sFID needs nothing from here: it is the Fréchet distance of Inception's spatial features. Everything
is computed in float64, on the device of the features (on the CPU if that has no float64), a part at
a time: half a gigabyte is enough, apart from a float64 copy of the features.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.distances import frechet_distances
from metrics.statistics import CHUNK, Moments

MAX_DISTANCES = 2**24   # in memory at a time: 128 MB, and as much again to sort them


def kernel_distance(generated: Tensor, reference: Tensor, num_subsets: int = 100,
                    subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """KID: mean and standard deviation, over random subsets, of the unbiased estimate of MMD².

        1/(m(m−1)) Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] − 2/m² Σ_ij k(x_i, y_j),   k(x, y) = (xᵀy/d +
        1)³

    x, y are m = `subset_size` of the features [N, d] of each set, without repetition. For equal
    distributions the mean is 0 on average, and may be negative. Raises ValueError for sets smaller
    than m.
    """
    for name, features in (('generated', generated), ('reference', reference)):
        if len(features) < subset_size:
            raise ValueError(f'KID takes subsets of {subset_size}, but there are only '
                             f'{len(features)} {name} images')
    x, y = _double(generated, reference)
    random = np.random.RandomState(seed)
    distances = []
    for _ in range(num_subsets):
        subset_x = x[torch.from_numpy(random.choice(len(x), subset_size,
                                                    replace=False)).to(x.device)]
        subset_y = y[torch.from_numpy(random.choice(len(y), subset_size,
                                                    replace=False)).to(y.device)]
        distances.append(_squared_mmd(subset_x, subset_y))
    values = torch.stack(distances)
    return values.mean().item(), values.std(correction=0).item()


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    m, xx, yy = len(x), kernel(x, x), kernel(y, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return within / (m * (m - 1)) - 2 * kernel(x, y).sum() / m**2


def inception_score(logits: Tensor, num_splits: int = 10) -> tuple[float, float]:
    """IS: mean and standard deviation, over consecutive parts, of exp(E_x KL(p(c|x) ‖ p(c))).

    The logits [N, C] are without biases and in the order of the images; p(c|x) is their softmax and
    p(c) its mean over the part. The score lies between 1 (every image is the same) and C. Published
    numbers are those of 50,000 images in 10 parts.
    """
    if len(logits) < num_splits:
        raise ValueError(f'the Inception Score takes {num_splits} parts, but there are only '
                         f'{len(logits)} images')
    (logits,) = _double(logits)
    bounds = [i * len(logits) // num_splits for i in range(num_splits + 1)]
    scores = torch.stack([_part_score(logits[a:b])
                          for a, b in zip(bounds, bounds[1:], strict=False)])
    return scores.mean().item(), scores.std(correction=0).item()


def _part_score(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    # finite even where every p is rounded to 0
    log_mean = log_p.logsumexp(dim=0) - np.log(len(log_p))
    return (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp()


def precision_recall(generated: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Compute precision and recall of generated images.

    Precision is the fraction of generated images within the manifold of the reference, and recall
    the fraction of reference images within that of the generated ones. A manifold is a union of
    balls, one around every image's features [d], up to its k-th nearest neighbour, the surface
    included. Both lie in 0 ... 1. Published numbers for ImageNet compare 50,000 generated with
    10,000 real images.
    """
    generated, reference = _double(generated, reference)

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = _radii(centres, k)
        return _fraction(points, centres, lambda distances: (distances <= radii).any(dim=1))

    return covered(generated, reference), covered(reference, generated)


def density_coverage(generated: Tensor, reference: Tensor, k: int = 5) -> tuple[float, float]:
    """Compute density and coverage of generated images.

    Density is the mean number of reference balls that hold a generated image, divided by k.
    Coverage is the fraction of reference balls that hold any. Balls are those of
    `precision_recall`, without their surface. Density may exceed 1; for equal distributions both
    are about 1 (coverage: 1 − 2^−k for many images). Published numbers are those of 10,000 images
    each.
    """
    generated, reference = _double(generated, reference)
    radii = _radii(reference, k)
    density = _fraction(generated, reference, lambda distances: (distances < radii).sum(dim=1)) / k
    nearest = torch.cat([distances.amin(dim=1) for distances in _distances(reference, generated)])
    return density, (nearest < radii).double().mean().item()


def frechet_distance_inf(generated: Tensor, mu: np.ndarray, sigma: np.ndarray, num_points: int = 15,
                         smallest: int = 5000, seed: int = 0) -> float:
    """FID∞, the limit of the Fréchet distance to N(mu, sigma) for many generated images.

    The bias of the distance falls like 1/n. Distances of `num_points` random subsets, from
    `smallest` up to all of the features [N, d], are fitted by a straight line in 1/n, whose value
    at 0 is returned.
    """
    if len(generated) <= smallest:
        raise ValueError(f'the limit is extrapolated from {smallest} images to more, but there are '
                         f'only {len(generated)}')
    random = np.random.RandomState(seed)
    sizes = np.linspace(smallest, len(generated), num_points).astype(int)

    def subsets() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for size in sizes:
            chosen = torch.from_numpy(random.permutation(len(generated))[:size]).to(
                generated.device)
            moments = Moments.zero(generated.shape[1], generated.device)
            for part in chosen.split(CHUNK):
                moments.add(generated[part])
            yield moments.mean(), moments.cov()

    distances = np.array(frechet_distances(mu, sigma, subsets()))
    (_, at_infinity), *_ = np.linalg.lstsq(
        np.stack([1 / sizes, np.ones(num_points)], axis=1), distances, rcond=None
    )
    return float(at_infinity)


def _double(*features: Tensor) -> tuple[Tensor, ...]:
    """Return float64, on the CPU if the device has none; ValueError for non-finite values."""
    for tensor in features:
        if tensor.ndim != 2 or tensor.shape[1] != features[0].shape[1]:
            raise ValueError(f'features should be [N, {features[0].shape[-1]}], not '
                             f'{list(tensor.shape)}')
        if not tensor.isfinite().all():
            raise ValueError('there are features that are not finite')
    return tuple((tensor.cpu() if tensor.device.type == 'mps' else tensor).detach().double()
                 for tensor in features)


def _distances(points: Tensor, centres: Tensor) -> Iterator[Tensor]:
    """Yield squared distances [rows, M] of every point, a few rows at a time, to all M centres."""
    norms = centres.square().sum(dim=1)
    rounding = 1e-12 * norms.max().item()   # smaller ones count as 0, the distance of equal images
    for rows in points.split(max(1, MAX_DISTANCES // len(centres))):
        squares = rows.square().sum(dim=1, keepdim=True) + norms
        yield F.threshold(squares.addmm_(rows, centres.T, alpha=-2), rounding, 0.0)


def _radii(centres: Tensor, k: int) -> Tensor:
    """Return the squared distance [N] of each point to its k-th nearest among the others."""
    if len(centres) <= k:
        raise ValueError(f'{len(centres)} images have no {k} nearest neighbours each')
    return torch.cat([distances.kthvalue(k + 1, dim=1).values
                      for distances in _distances(centres, centres)])


def _fraction(points: Tensor, centres: Tensor, judge: Callable[[Tensor], Tensor]) -> float:
    """Return the mean over the rows of distances of what `judge` returns for them."""
    return torch.cat([judge(distances)
                      for distances in _distances(points, centres)]).double().mean().item()
