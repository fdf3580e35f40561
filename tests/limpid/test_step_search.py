"""The search for noise levels, against closed forms on Gaussian data and all paths."""

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from limpid.denoiser import Conditioned
from limpid.samplers import FlowSampler
from limpid.sampling import sample
from limpid.solvers import Euler
from limpid.step_search import best_path, candidates, euler_errors
from limpid.steps import EDMSteps, ExplicitSteps
from tests.oracles import Gaussian

f64 = torch.float64
C = 0.5


def cost(a, b):
    """E|x − x′| of Euler's step from σ = a to b, for each number, over E|z|: N(mu, C²) flows along
    x − mu ~ √(C² + σ²)."""
    return abs(math.hypot(C, b) - (C**2 + a * b) / math.hypot(C, a))


def costs_of(sigmas):
    M = len(sigmas)
    return torch.tensor([[cost(float(a), float(b)) if j > i else 0 for j, b in enumerate(sigmas)]
                         for i, a in enumerate(sigmas)], dtype=f64), M


def test_errors_are_those_of_the_closed_form():
    sigmas = EDMSteps(sigma_max=20).sigmas(121)[::4]
    fine = EDMSteps(sigma_max=20).sigmas(121)
    z = torch.tensor([-1.5, 0.5, 1.0], dtype=f64).reshape(3, 1, 1, 1)
    x = 0.3 + z * math.hypot(C, 20)
    net = Gaussian(0.3, C)
    errors = euler_errors(Conditioned(net), x, fine)[::4, ::4]
    assert len(net.sigmas) == 2 * 120
    closed, _ = costs_of(sigmas)
    # Heun's own error on the 121 levels is what differs.
    torch.testing.assert_close(errors, 3.0 * closed, rtol=0, atol=2e-3 * 3)
    assert torch.equal(errors.tril(), torch.zeros_like(errors))


@pytest.mark.parametrize('gamma', [1.0, 1.15, 3.0])
def test_the_path_is_the_best_of_all(gamma):
    costs, M = costs_of(EDMSteps().sigmas(11))

    def total(path):
        return sum(gamma**k * float(costs[i, j]) for k, (i, j) in enumerate(
            itertools.pairwise(path)))

    for num_levels in range(2, M + 1):
        every = [(0, *inner, M - 1) for inner in itertools.combinations(range(1, M - 1),
                                                                       num_levels - 2)]
        found = best_path(costs, num_levels, gamma)
        assert total(found) == pytest.approx(min(map(total, every)), rel=1e-12)
        assert len(found) == num_levels
    assert best_path(costs, M, gamma) == list(range(M))


@pytest.mark.parametrize('gamma', [1.0, 1.15])
def test_one_level_between_is_the_optimum_of_gaussian_data(gamma):
    sigmas = EDMSteps().sigmas(801)
    costs, _ = costs_of(sigmas[::8])
    best = minimize_scalar(lambda log: cost(80, math.exp(log)) + gamma * cost(
        math.exp(log), 0.002), bounds=(-4, 4), method='bounded')
    found = best_path(costs, 3, gamma)[1]
    neighbours = sigmas[::8][[found + 1, found - 1]].log()
    assert float(neighbours[0]) < best.x < float(neighbours[1])


def test_found_levels_are_better_than_those_of_edm():
    """Euler's method with 6 steps, on Gaussian data."""
    z = torch.randn(64, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(0))
    net, fine = Gaussian(0.3, C), EDMSteps().sigmas(61)
    few = fine[best_path(euler_errors(Conditioned(net), z * 80, fine), 7)]
    euler = FlowSampler(Euler(), final='sigma-min')
    exact = net.flow(80 * z, 80, 0.002)
    found = sample(net, z, steps=ExplicitSteps(tuple(few.tolist())), sampler=euler)
    edm = sample(net, z, num_steps=7, sampler=euler)
    assert float((found - exact).norm()) < 0.6 * float((edm - exact).norm())


def test_bounds_and_repeated_levels():
    levels = torch.tensor([3.0, 2, 2, 1, 0], dtype=f64)
    assert candidates(levels).tolist() == [3, 2, 1]
    for wrong in (1, 4):
        with pytest.raises(ValueError, match='^the number of levels must be from 2 to 3, '):
            best_path(torch.ones(3, 3), wrong)
    assert best_path(torch.ones(3, 3), 2) == [0, 2]
