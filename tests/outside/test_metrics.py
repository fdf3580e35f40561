"""Metrics and averages against other people's numbers, and their programs where installed."""

import math

import numpy as np
import pytest
import torch

from metrics.scores import density_coverage, precision_recall
from training.ema import power_of


def normal_sets(count, dim, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dim)), random.normal(size=(count, dim))


def ours(real, generated, k=5):
    real, generated = torch.from_numpy(real), torch.from_numpy(generated)
    return *precision_recall(generated, real, k), *density_coverage(generated, real, k)


def test_number_9_of_two_normal_sets():
    """The package prdc 0.2 on 2,000 normal vectors of 64 numbers (NumPy's default_rng(0))"""
    assert ours(*normal_sets(2000, 64, 0)) == pytest.approx((0.712, 0.7085, 0.9712, 0.963),
                                                           abs=5e-5)


def test_number_9_the_expected_coverage():
    """E = 1 − Π_{i<k} (N − 1 − i)/(2N − 1 − i) of two sets of N from one distribution"""
    N, k, draws = 60, 5, 150
    expected = 1 - math.prod((N - 1 - i) / (2 * N - 1 - i) for i in range(k))
    found = [ours(*normal_sets(N, 8, seed), k)[3] for seed in range(draws)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / draws**0.5)
    N = 10_000
    assert 1 - math.prod((N - 1 - i) / (2 * N - 1 - i) for i in range(k)) == pytest.approx(
        0.9688, abs=5e-5)


def test_the_program_of_number_9():
    prdc = pytest.importorskip('prdc', reason='prdc is not installed: see the extra "peers"')
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(300, 16)), random.normal(size=(400, 16)) * 1.1
    theirs = prdc.compute_prdc(real, generated, nearest_k=4)
    assert ours(real, generated, 4) == pytest.approx(
        tuple(theirs[name] for name in ('precision', 'recall', 'density', 'coverage')), rel=1e-12)


WIDTHS = {0.05: 16.9722, 0.10: 6.9372, 0.15: 3.5579, 0.20: 1.8262, 0.25: 0.7198}


def test_number_10_widths_of_averages():
    for width, power in WIDTHS.items():
        assert power_of(width) == pytest.approx(power, abs=5e-5)


def test_the_program_of_number_10():
    post_hoc = pytest.importorskip('ema_pytorch.post_hoc_ema', reason=(
        'ema-pytorch is not installed: see the extra "peers"'))
    for width in WIDTHS:
        assert power_of(width) == pytest.approx(post_hoc.sigma_rel_to_gamma(width), rel=1e-9)
