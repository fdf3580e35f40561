"""Noise distributions, weightings and losses against closed forms and the reference
implementation."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from limpid.levels import IDDPMLevels, ScaledLinearBetas, posterior_variances
from limpid.loss import (
    NOISE_DISTRIBUTIONS,
    WEIGHTINGS,
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    InverseVariance,
    LogNormal,
    UniformLevel,
    VelocityLoss,
    sigma_range,
    variational_bound,
)
from limpid.preconditioning import EDM, PRECONDITIONERS
from limpid.table1 import COLUMNS, column
from tests.golden_weights import fill
from training import networks
from training.augment import AugmentPipe
from training.loss import EDMLoss, VELoss, VPLoss

GOLDEN = Path(__file__).parents[1] / 'golden'
f64 = torch.float64


@pytest.mark.parametrize('name', NOISE_DISTRIBUTIONS)
def test_quantiles_rise_from_end_to_end(name):
    distribution = NOISE_DISTRIBUTIONS[name]()
    u = torch.linspace(0, 1, 1001, dtype=f64)
    sigma = distribution.quantile(u)
    assert bool((sigma[1:] >= sigma[:-1]).all()) and sigma.dtype == f64
    assert sigma_range(distribution) == (float(sigma[0]), float(sigma[-1]))


# Mean and standard deviation of ln σ, from 200,000 draws of the reference implementation, and the
# supported range.
MOMENTS = {
    'vp': (1.33387, 1.93226, (0.0010005, 152.167)),
    've': (0.35354, 2.45851, (0.02, 100.0)),
    'edm': (-1.2, 1.2, (0.0, math.inf)),
    'iddpm': (None, None, (0.0064254, 20291.17)),
    'timestep': (None, None, (0.0291672, 14.6146)),
}


@pytest.mark.parametrize('name', MOMENTS)
def test_moments_of_the_noise_distribution(name):
    mean, std, (low, high) = MOMENTS[name]
    distribution = NOISE_DISTRIBUTIONS[name]()
    # the integral over u, by the midpoint rule
    middle = (torch.arange(100_000, dtype=f64) + 0.5) / 100_000
    log_sigma = distribution.quantile(middle).log()
    if mean is None:
        log_levels = (IDDPMLevels().u[:-1] if name == 'iddpm' else ScaledLinearBetas().sigma).log()
        mean, std = float(log_levels.mean()), float(log_levels.std(correction=0))
    assert float(log_sigma.mean()) == pytest.approx(mean, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(std, abs=0.02)
    assert sigma_range(distribution) == pytest.approx((low, high), rel=1e-4)


def test_every_noise_distribution_is_covered():
    assert set(MOMENTS) == set(NOISE_DISTRIBUTIONS)


def test_the_weighting_of_every_column_makes_the_effective_weight_one():
    sigma = torch.logspace(-2, 2, 20, dtype=f64)
    for precond in [make() for make in PRECONDITIONERS.values()]:
        weight = InverseCOut(precond)(sigma) * precond.c_out(sigma) ** 2
        torch.testing.assert_close(weight, torch.ones_like(sigma))
    edm = (sigma**2 + 0.25) / (sigma * 0.5) ** 2   # as Table 1 prints it
    torch.testing.assert_close(InverseCOut(EDM())(sigma), edm)
    torch.testing.assert_close(InverseVariance()(sigma), sigma**-2)


class RawZero:
    """A preconditioned network whose raw network F is zero."""

    def __init__(self, precond):
        self.precond = precond

    def __call__(self, x, sigma, class_labels=None, **conditions):
        return self.precond.c_skip(sigma) * x


def test_edm_loss_of_a_zero_network_is_one_at_every_noise_level():
    """Data N(0, σ_data²) and F = 0: the optimal denoiser, expected loss 1 per element at every
    σ."""
    generator = torch.Generator().manual_seed(0)
    y = 0.5 * torch.randn([6, 1, 300, 300], generator=generator, dtype=f64)
    noise = torch.randn(y.shape, generator=generator, dtype=f64)
    u = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999, 0.9999], dtype=f64)
    loss = DenoisingLoss(LogNormal(), InverseCOut(EDM()))(RawZero(EDM()), y, u, noise)
    torch.testing.assert_close(loss.mean([1, 2, 3]), torch.ones(6, dtype=f64), rtol=0.02, atol=0)


def test_edm_loss_for_data_of_another_width():
    """(σ_data² + σ² m/σ_data²)/(σ² + σ_data²), where m is the second moment of the data."""
    generator = torch.Generator().manual_seed(1)
    y = 0.8 * torch.randn([3, 1, 300, 300], generator=generator, dtype=f64)
    noise = torch.randn(y.shape, generator=generator, dtype=f64)
    u = torch.tensor([0.2, 0.8, 0.99], dtype=f64)
    sigma = LogNormal().quantile(u)
    loss = DenoisingLoss(LogNormal(), InverseCOut(EDM()))(RawZero(EDM()), y, u, noise)
    expected = (0.25 + sigma**2 * 0.64 / 0.25) / (sigma**2 + 0.25)
    torch.testing.assert_close(loss.mean([1, 2, 3]), expected, rtol=0.02, atol=0)


def test_level_of_iddpm_is_uniform():
    levels = UniformLevel(IDDPMLevels(M=10))
    u = (torch.arange(100, dtype=f64) + 0.5) / 100
    sigma = levels.quantile(u)
    assert [int((sigma == level).sum()) for level in IDDPMLevels(M=10).u[:-1]] == [10] * 10


def test_every_preconditioner_has_a_column_and_a_new_one_takes_the_rows_of_edm(monkeypatch):
    @dataclass(frozen=True)
    class Toy(EDM):
        """c_skip = 1"""

    assert set(COLUMNS) == set(PRECONDITIONERS)
    assert [column(name).loss for name in COLUMNS] == [DenoisingLoss, DenoisingLoss, HybridLoss,
                                                       DenoisingLoss, VelocityLoss]
    for name, cls in PRECONDITIONERS.items():
        assert type(column(name).precond) is cls
    monkeypatch.setitem(PRECONDITIONERS, 'toy', Toy)
    toy = column('toy')
    assert type(toy.precond) is Toy and toy.weighting == InverseCOut(Toy())
    assert toy.noise_distribution == LogNormal() and toy.loss is DenoisingLoss


LEVELS = IDDPMLevels(M=50)


def test_vlb_is_zero_for_the_true_posterior_and_the_printed_kl_elsewhere():
    j = torch.tensor([0, 10, 30])
    y = torch.tensor([0.3, -0.2, 0.1]).reshape(3, 1, 1, 1)
    lowest = torch.full_like(y, -1.0)   # nu = 0: the posterior's own variance
    torch.testing.assert_close(variational_bound(LEVELS, j, y, y, lowest), torch.zeros_like(y),
                               rtol=0, atol=1e-6)
    # Another mean and variance, with the KL of two Gaussians written out.
    F_var, denoised = torch.full_like(y, 0.4), y + 0.01
    u = LEVELS.u
    for row in range(3):
        a, b = float(u[j[row]]), float(u[j[row] + 1])
        q = b * b / (a * a)
        low, high = b * b * (1 - q), (a * a - b * b) * (1 + b * b) / (1 + a * a)
        variance = math.exp(0.7 * math.log(high) + 0.3 * math.log(low))
        kl = 0.5 * (math.log(variance / low) - 1 + low / variance + ((1 - q) * 0.01) ** 2
                    / variance) / math.log(2)
        ours = float(variational_bound(LEVELS, j, y, denoised, F_var)[row])
        assert ours == pytest.approx(kl, rel=1e-4, abs=1e-7)


def test_the_last_level_is_a_distribution_over_the_256_values():
    """Σ 2^(−nll) over all 8-bit values is one."""
    values = (torch.arange(256, dtype=torch.float32) / 127.5 - 1).reshape(256, 1, 1, 1)
    for nu, centre in itertools.product([-1.0, 1.0], [0.0, -1.0, 0.6]):
        j = torch.full([256], LEVELS.M - 1)
        bits = variational_bound(LEVELS, j, values, torch.full_like(values, centre),
                                 torch.full_like(values, nu))
        assert float((-bits * math.log(2)).exp().sum()) == pytest.approx(1, abs=2e-4)


def test_posterior_variances_are_those_of_the_ddpm_frame():
    """In x/√(1 + σ²), with ᾱ = 1/(1 + σ²): w_hi² is β and w_lo² is β̃ = (1 − ᾱ′)/(1 − ᾱ) β."""
    a, b = torch.tensor([5.0, 0.3], dtype=f64), torch.tensor([2.0, 0.1], dtype=f64)
    alpha_bar, alpha_bar_next = 1 / (1 + a**2), 1 / (1 + b**2)
    beta = 1 - alpha_bar / alpha_bar_next
    _, log_lo, log_hi = posterior_variances(a, b)
    frame = 1 / (1 + b**2)
    torch.testing.assert_close(log_hi.exp() * frame, beta)
    torch.testing.assert_close(log_lo.exp() * frame, (1 - alpha_bar_next) / (1 - alpha_bar) * beta)


def test_hybrid_loss_trains_the_variance_and_leaves_the_mean_alone():
    mean = torch.zeros([4, 1, 2, 2], requires_grad=True)
    variance = torch.zeros([4, 1, 2, 2], requires_grad=True)

    def net(x, sigma, class_labels=None, return_variance=False):
        assert return_variance
        return mean + 0 * x, variance

    y = torch.full([4, 1, 2, 2], 0.2)
    u = torch.tensor([0.001, 0.3, 0.6, 0.95], dtype=f64)   # the first is the last level
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    loss = HybridLoss(UniformLevel(LEVELS))(net, y, u, noise)
    loss.sum().backward()
    sigma = UniformLevel(LEVELS).quantile(u).to(torch.float32).reshape(-1, 1, 1, 1)
    # of the simple part alone
    torch.testing.assert_close(mean.grad, 2 * (mean.detach() - y) / sigma**2)
    assert bool((variance.grad.abs() > 0).all()) and bool(variance.grad.isfinite().all())


def test_ready_losses_reproduce_the_draws_of_the_reference():
    """sigma for torch.manual_seed(123), and three images."""
    expected = {VPLoss(): [12.142862, 3.1206458, 16.804583],
                VELoss(): [0.24908018, 1.6284648, 0.17058955],
                EDMLoss(): [0.26348454, 0.3479959, 0.19329041]}
    for loss, sigmas in expected.items():
        seen = []

        def net(x, sigma, class_labels=None, seen=seen):
            seen.append(sigma.flatten())
            return x

        torch.manual_seed(123)
        result = loss(net, torch.zeros(3, 3, 4, 4))
        torch.testing.assert_close(seen[0], torch.tensor(sigmas), rtol=1e-5, atol=0)
        assert result.shape == (3, 3, 4, 4)


def test_augmented_images_and_their_labels_reach_the_network():
    seen = {}

    def net(x, sigma, class_labels=None, augment_labels=None):
        seen.update(labels=class_labels, augment_labels=augment_labels)
        return torch.zeros_like(x)

    labels = torch.eye(2)
    loss = EDMLoss()(net, torch.ones(2, 1, 2, 2), labels,
                     augment_pipe=lambda x: (3 * x, torch.full([2, 9], 7.0)))
    assert seen['labels'] is labels and float(seen['augment_labels'].mean()) == 7
    assert float(loss.min()) > 9   # (0 − 3)² λ, and λ > 1


def test_every_weighting_goes_with_every_noise_distribution_and_preconditioner():
    y = torch.zeros(2, 1, 2, 2)
    for noise, weighting, precond in itertools.product(
            NOISE_DISTRIBUTIONS.values(), WEIGHTINGS.values(), PRECONDITIONERS.values()):
        loss = DenoisingLoss(noise(), weighting(precond()))
        value = loss(RawZero(precond()), y, torch.tensor([0.1, 0.9], dtype=f64), torch.ones_like(y))
        u = torch.tensor([0.1, 0.9], dtype=f64)
        sigma = noise().quantile(u).to(torch.float32).reshape(-1, 1, 1, 1)
        expected = weighting(precond())(sigma) * (precond().c_skip(sigma) * sigma) ** 2
        torch.testing.assert_close(value, expected.expand_as(y))


@pytest.mark.parametrize('name', ['loss_vp', 'loss_ve', 'loss_edm_aug'])
def test_the_reference_losses(name):
    """torch.manual_seed(123), then the loss of a network with known weights: every draw in the
    reference's order."""
    arrays = np.load(GOLDEN / f'{name}.npz')
    meta = json.loads(str(arrays['__meta__']))
    net = fill(getattr(networks, meta['precond_cls'])(**meta['precond_kwargs'])).eval()
    pipe = None if meta['augment_kwargs'] is None else AugmentPipe(**meta['augment_kwargs'])
    loss_fn = {'VPLoss': VPLoss, 'VELoss': VELoss,
               'EDMLoss': EDMLoss}[meta['cls']](**meta['loss_kwargs'])
    seen = {}

    def spy(x, sigma, class_labels=None, **conditions):
        seen.update(y_plus_n=x, sigma=sigma, D=net(x, sigma, class_labels, **conditions),
                    **conditions)
        return seen['D']

    torch.manual_seed(meta['seed'])
    seen['loss'] = loss_fn(spy, torch.as_tensor(arrays['images']),
                           torch.as_tensor(arrays['labels']), pipe)
    for key in ['sigma', 'y_plus_n', 'augment_labels', 'D', 'loss']:
        if key in arrays:
            expected = arrays[key]
            assert np.abs(seen[key].detach().numpy()
                          - expected).max() <= 2e-5 * np.abs(expected).max(), key
