"""Scores against their definitions, written out with loops, and against values known in closed
form."""

import itertools

import numpy as np
import pytest
import torch

from metrics import scores
from metrics.distances import frechet_distance, frechet_distances
from metrics.scores import (
    density_coverage,
    frechet_distance_inf,
    inception_score,
    kernel_distance,
    precision_recall,
)
from metrics.statistics import Moments


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


# KID

def slow_mmd(x, y):
    """The unbiased estimate, term by term."""
    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3
    m = len(x)
    pairs = [(i, j) for i in range(m) for j in range(m)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j)
    return within / (m * (m - 1)) - 2 * sum(k(x[i], y[j]) for i, j in pairs) / m**2


def test_kernel_distance_is_its_definition():
    x, y = normal(9, 3), 0.5 + normal(8, 3, seed=1)
    random = np.random.RandomState(7)
    subsets = [(random.choice(9, 5, replace=False), random.choice(8, 5, replace=False))
               for _ in range(4)]
    expected = [slow_mmd(x[a], y[b]) for a, b in subsets]
    mean, deviation = kernel_distance(x, y, num_subsets=4, subset_size=5, seed=7)
    assert mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert deviation == pytest.approx(np.std(expected), rel=1e-12)


def test_kernel_distance_is_unbiased():
    """Over all ways of splitting ten numbers into two fives, its mean is that of all pairs,
    exactly."""
    values = normal(10, 2).double()
    estimates = []
    for chosen in itertools.combinations(range(10), 5):
        others = [i for i in range(10) if i not in chosen]
        estimates.append(kernel_distance(values[list(chosen)], values[others], 1, 5)[0])
    assert np.mean(estimates) == pytest.approx(0, abs=1e-12)
    assert np.std(estimates) > 0.1


def test_kernel_distance_of_too_few_images():
    with pytest.raises(ValueError, match='^KID takes subsets of 1000, but there are only 999 '
                                         'reference images$'):
        kernel_distance(normal(1000, 2), normal(999, 2))


# Inception Score

def test_inception_score_closed_forms():
    assert inception_score(torch.zeros(20, 8), 2) == pytest.approx((1, 0), abs=1e-12)
    certain = 1000 * torch.eye(8).repeat(5, 1)   # so certain that other probabilities round to 0
    assert inception_score(certain, 5) == pytest.approx((8, 0), abs=1e-12)
    # (1/2, 1/2) and (3/4, 1/4)
    half = torch.tensor([[0.0, 0.0], [np.log(3), 0.0]], dtype=torch.float64)
    kl = 0.5 * (0.5 * np.log(0.5 / 0.625) + 0.5 * np.log(0.5 / 0.375)
                + 0.75 * np.log(0.75 / 0.625) + 0.25 * np.log(0.25 / 0.375))
    assert inception_score(half, 1) == pytest.approx((np.exp(kl), 0), rel=1e-12)


def test_inception_score_of_consecutive_parts():
    logits = 3 * normal(23, 5)
    parts = [0, 7, 15, 23]
    expected = [inception_score(logits[a:b], 1)[0] for a, b in itertools.pairwise(parts)]
    assert inception_score(logits, 3) == pytest.approx(
        (np.mean(expected), np.std(expected)), rel=1e-12
    )
    with pytest.raises(ValueError, match='^the Inception Score takes 10 parts, but there are only '
                                         '9 images$'):
        inception_score(logits[:9])


# Manifolds

def slow_radii(points, k):
    return [sorted(float((p - q).double().square().sum()) for q in points)[k] for p in points]


def slow_manifolds(points, centres, k):
    """[points, centres]: squared distance and squared radius, in loops."""
    radii = slow_radii(centres, k)
    return [[(float((p.double() - c.double()).square().sum()), r)
             for c, r in zip(centres, radii, strict=True)] for p in points]


@pytest.fixture(params=[2**24, 100, 1])
def in_parts(request, monkeypatch):
    """All distances at once, a few rows at a time, one row at a time."""
    monkeypatch.setattr(scores, 'MAX_DISTANCES', request.param)


def test_precision_recall_is_its_definition(in_parts):
    x, y = normal(40, 4), 0.7 * normal(50, 4, seed=1) + 0.8
    precision = np.mean([any(d <= r for d, r in row) for row in slow_manifolds(x, y, 3)])
    recall = np.mean([any(d <= r for d, r in row) for row in slow_manifolds(y, x, 3)])
    assert precision_recall(x, y) == pytest.approx((precision, recall), abs=1e-12)
    assert precision_recall(y, x) == pytest.approx((recall, precision), abs=1e-12)
    assert 0 < precision < recall < 1


def test_density_coverage_is_its_definition(in_parts):
    x, y = normal(40, 4), 0.7 * normal(50, 4, seed=1) + 0.8
    inside = np.array([[d < r for d, r in row] for row in slow_manifolds(x, y, 5)])
    density, coverage = density_coverage(x, y)
    assert density == pytest.approx(inside.sum(axis=1).mean() / 5, abs=1e-12)
    assert coverage == pytest.approx(inside.any(axis=0).mean(), abs=1e-12)
    assert 0.1 < coverage < 0.9


def test_manifolds_closed_forms():
    line = torch.arange(10.0)[:, None]
    assert precision_recall(line, line) == (1, 1)
    # Within 3 of 0, and within 2 of everything between 2 and 7: the surface is in precision, not in
    # density.
    assert precision_recall(torch.tensor([[-3.0], [-3.1], [12.0], [12.1]]), line)[0] == 0.5
    assert density_coverage(torch.tensor([[-3.0], [12.0]]), line, k=3) == (0, 0)
    assert density_coverage(torch.tensor([[-2.0]]), line, k=3) == (1 / 3, 1 / 10)
    # each image eight times: rounding must not move them apart
    same = 100 * normal(20, 300).repeat(8, 1)
    distances = torch.cat(list(scores._distances(same.double(), same.double())))
    assert (distances == 0).sum() == 20 * 8 * 8
    assert precision_recall(same, same) == (1, 1)
    assert density_coverage(same, same) == (0, 0)
    assert precision_recall(line, line + 100) == (0, 0)
    with pytest.raises(ValueError, match='^3 images have no 3 nearest neighbours each$'):
        precision_recall(line, line[:3])


def test_equal_distributions_have_the_known_coverage():
    """1 - 2^-k for many images (Naeem et al. 2020, Eq. 8); density 1."""
    pairs = [density_coverage(normal(400, 3, seed=2 * i), normal(400, 3, seed=2 * i + 1), k=2)
             for i in range(20)]
    density, coverage = np.mean(pairs, axis=0)
    assert coverage == pytest.approx(1 - 2**-2, abs=0.01)
    assert density == pytest.approx(1, abs=0.02)


# Fréchet distances

def gaussian(seed, rank=6):
    factor = np.random.RandomState(seed).standard_normal([6, rank])
    return factor[:, 0], factor @ factor.T


def test_frechet_distances_are_those_of_the_function_for_two():
    others = [gaussian(seed) for seed in (1, 2)] + [gaussian(3, rank=4), gaussian(0),
                                                    (np.zeros(6), np.zeros([6, 6]))]
    for first in (gaussian(0), gaussian(5, rank=4)):
        expected = [frechet_distance(*first, *other) for other in others]
        assert frechet_distances(*first, others) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r'^frechet_distance: mu2 has shape \[4\], not \[6\]$'):
        frechet_distances(*gaussian(0), [(np.zeros(4), np.eye(4))])


def test_frechet_distance_inf_is_the_fit():
    features = normal(300, 4)
    mu, sigma = np.full(4, 0.5), 2 * np.eye(4)
    random, sizes, distances = np.random.RandomState(3), [50, 133, 216, 300], []
    for size in (50, 133, 216, 300):
        moments = Moments.zero(4)
        moments.add(features[torch.from_numpy(random.permutation(300)[:size])])
        distances.append(frechet_distance(moments.mean(), moments.cov(), mu, sigma))
    expected = np.polyfit(1 / np.array(sizes), distances, 1)[1]
    found = frechet_distance_inf(features, mu, sigma, num_points=4, smallest=50, seed=3)
    assert found == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_inf_removes_the_bias():
    """Of features that have the distribution of the reference, d(d + 7)/4n is the mean distance for
    many n."""
    features = normal(4000, 8)
    moments = Moments.zero(8)
    moments.add(features)
    biased = frechet_distance(moments.mean(), moments.cov(), np.zeros(8), np.eye(8))
    repeated = [frechet_distance_inf(features, np.zeros(8), np.eye(8), 15, 200, seed)
                for seed in range(5)]
    assert biased > 0.004
    assert abs(np.mean(repeated)) < 0.5 * biased
    with pytest.raises(ValueError, match='^the limit is extrapolated from 5000 images to more, '
                                         'but there are only 4000$'):
        frechet_distance_inf(features, np.zeros(8), np.eye(8))


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match='^there are features that are not finite$'):
        precision_recall(normal(9, 2), torch.full([9, 2], np.nan))
    with pytest.raises(ValueError, match=r'^features should be \[N, 2\], not \[9, 3\]$'):
        density_coverage(normal(9, 2), normal(9, 3))
