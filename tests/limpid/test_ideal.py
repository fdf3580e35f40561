"""Ideal denoisers against sums written out, derivatives, and each other."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import torch

from checkpoints.open import open_network
from limpid import ideal
from limpid.denoiser import Conditioned
from limpid.ideal import Gaussian, IdealDenoiser, Mixture
from limpid.likelihood import _velocity_and_divergence
from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.preconditioning import EDM
from limpid.sampling import sample
from torch_utils.grids import save_png
from training.config import TrainConfig
from training.dataset import DataConfig
from training.networks import NetworkConfig, build_network
from training.state import save_snapshot

f64 = torch.float64


@pytest.fixture
def images():
    return torch.rand([300, 2, 3, 3], generator=torch.Generator().manual_seed(0), dtype=f64) * 2 - 1


@pytest.fixture
def labels():
    return torch.eye(3)[torch.arange(300) % 3]


def noisy(images, sigma, batch=5, seed=1):
    noise = torch.randn([batch, *images.shape[1:]], generator=torch.Generator().manual_seed(seed),
                        dtype=f64)
    return images[:batch] + sigma * noise


def summed_out(images, x, sigma):
    """Eq. 57 and ln p, one x at a time, from differences."""
    D, log_p = [], []
    for row, level in zip(x, sigma.expand(len(x)), strict=True):
        logits = -(row - images).square().flatten(1).sum(dim=1) / (2 * level**2)
        D.append(torch.einsum('i,i...->...', logits.softmax(dim=0), images))
        n = row.numel()
        log_p.append(logits.logsumexp(dim=0) - math.log(len(images)) - n / 2
                     * torch.log(2 * math.pi * level**2))
    return torch.stack(D), torch.stack(log_p)


@pytest.mark.parametrize('kept', [2**24, 0])
@pytest.mark.parametrize('columns', [1024, 7])
@pytest.mark.parametrize('sigma', [0.01, 0.2, 1.0, 80.0, [0.02, 0.3, 0.7, 5.0, 60.0]])
def test_equation_57(images, sigma, columns, kept, monkeypatch):
    monkeypatch.setattr(ideal, 'COLUMNS', columns)
    monkeypatch.setattr(ideal, 'KEPT', kept)
    net, sigma = IdealDenoiser(images), torch.tensor(sigma, dtype=f64)
    x = noisy(images, sigma.reshape(-1, 1, 1, 1))
    D, log_p = summed_out(images, x, sigma)
    assert (net(x, sigma) - D).abs().max() < 1e-9
    assert torch.allclose(net.log_prob(x, sigma), log_p, rtol=1e-11, atol=1e-9)


def test_far_from_zero(images):
    """An offset of everything moves D by as much, and costs no digits to speak of."""
    sigma, x = torch.tensor(0.4, dtype=f64), noisy(images, 0.4)
    moved = IdealDenoiser(images + 1000)(x + 1000, sigma) - 1000
    assert (moved - IdealDenoiser(images)(x, sigma)).abs().max() < 1e-9


@pytest.mark.parametrize('sigma', [0.0, 0.3, 2.0, math.inf])
def test_an_image_does_not_depend_on_its_batch(images, labels, sigma):
    net, sigma = IdealDenoiser(images, labels), torch.tensor(sigma, dtype=f64)
    x, classes = noisy(images, 1.0, batch=70), labels[torch.arange(70) % 5]
    together = net(x, sigma, classes)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x[order], sigma, classes[order]), together[order])
    for i in (0, 31, 32, 69):
        assert torch.equal(net(x[i:i + 1], sigma.expand(1), classes[i:i + 1]), together[i:i + 1])
        assert torch.equal(net.log_prob(x[i:i + 1], sigma + 0.1),
                           net.log_prob(x, sigma + 0.1)[i:i + 1])


def test_both_ends_of_the_noise_range(images):
    net = IdealDenoiser(images)
    x = noisy(images, 0.5, batch=40)
    nearest = images[torch.cdist(x.flatten(1), images.flatten(1)).argmin(dim=1)]
    assert torch.allclose(net(x, torch.tensor(0.0)), nearest, rtol=0, atol=1e-14)
    assert torch.allclose(net(x, torch.tensor(1e-200, dtype=f64)), nearest, rtol=0, atol=1e-14)
    infinite = net(torch.full_like(x, math.inf), torch.tensor(math.inf))
    assert torch.allclose(infinite, images.mean(dim=0).expand_as(x), rtol=0, atol=1e-14)
    both = net(x[:2], torch.tensor([0.0, math.inf]))
    assert torch.equal(both, torch.stack([net(x, torch.tensor(0.0))[0], infinite[0]]))


def test_ties_average():
    """0.1 and 0.7 are as far from 0.4 as each other, but for rounding; the duplicate counts
    twice."""
    net = IdealDenoiser(torch.tensor([0.1, 0.7, 0.7, 3.0], dtype=f64).reshape(4, 1, 1, 1))
    assert net(torch.full([1, 1, 1, 1], 0.4, dtype=f64),
               torch.tensor(0.0)).item() == pytest.approx(0.5, abs=1e-14)


def test_the_score_has_the_precision_of_the_image():
    net = IdealDenoiser(torch.rand(3, 1, 2, 2))
    x = torch.randn(2, 1, 2, 2)
    for sigma in (torch.tensor(0.5), torch.tensor([0.5, 0.5])):
        assert net.score(x, sigma).dtype == torch.float32


def test_classes(images, labels):
    net, sigma = IdealDenoiser(images, labels), torch.tensor(0.6, dtype=f64)
    x = noisy(images, 0.6)
    for k in range(3):
        own = IdealDenoiser(images[k::3])
        classes = labels[k].expand(5, 3)
        assert torch.equal(net(x, sigma.reshape(1, 1, 1, 1), classes[:1]), net(x, sigma, classes))
        assert torch.allclose(net(x, sigma, classes), own(x, sigma), rtol=0, atol=1e-12)
        assert torch.allclose(net.log_prob(x, sigma, classes), own.log_prob(x, sigma), rtol=1e-12)
        assert torch.allclose(net(x, torch.tensor(0.0), classes), own(x, torch.tensor(0.0)), rtol=0,
                              atol=1e-12)
        assert torch.allclose(net(x, torch.tensor(math.inf), classes)[0], images[k::3].mean(dim=0),
                              atol=1e-12)
    assert torch.equal(net(x, sigma, torch.zeros(5, 3)), net(x, sigma))
    assert net.traits.label_dim == 3 and net.traits.image_shape == (2, 3, 3)


def test_what_does_not_fit_is_named(images, labels):
    with pytest.raises(ValueError, match=r'^the labels must be one-hot \[300, L\]; these \[300, '
                                         r'3\] are not$'):
        IdealDenoiser(images, labels * 0.5)
    with pytest.raises(ValueError, match=r'^the images must be floating point .* not torch.uint8 '
                                         r'\[300, 2, 3, 3\]$'):
        IdealDenoiser(images.to(torch.uint8))
    with pytest.raises(ValueError, match=r'^images of shape \[2, 4, 4\] given to .* \[2, 3, 3\]$'):
        IdealDenoiser(images)(torch.zeros(1, 2, 4, 4), torch.tensor(1.0))
    net = IdealDenoiser(images[:2], labels[:2])   # classes 0 and 1
    with pytest.raises(ValueError, match='^a class was asked for of which the 2 images hold none$'):
        net(images[:1], torch.tensor(1.0), torch.tensor([[0.0, 0.0, 1.0]]))
    with pytest.raises(ValueError, match=r'^class_labels must be \[1, 3\], not \[1, 2\]$'):
        net(images[:1], torch.tensor(1.0), torch.zeros(1, 2))


def oracles(images):
    generator = torch.Generator().manual_seed(2)
    weights, stds = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.1, 0.7, 0.0], dtype=f64)
    means = torch.randn([3, 2, 3, 3], generator=generator, dtype=f64)
    return {
        'ideal': IdealDenoiser(images),
        'gaussian': Gaussian(torch.rand([2, 3, 3], generator=generator),
                             torch.rand([3], generator=generator)),
        'numbers': Mixture(weights, torch.tensor([-1.0, 0.2, 0.5], dtype=f64), stds),
        'whole images': Mixture(weights, means, stds),
    }


@pytest.mark.parametrize('name', ['ideal', 'gaussian', 'numbers', 'whole images'])
@pytest.mark.parametrize('sigma', [0.3, [0.2, 0.5, 1.0, 3.0, 30.0]])
def test_tweedie(name, sigma, images):
    """D = x + σ² ∇ ln p(x; σ), with the gradient of log_prob."""
    net, sigma = oracles(images)[name], torch.tensor(sigma, dtype=f64)
    x = noisy(images, 0.5).requires_grad_()
    gradient, = torch.autograd.grad(net.log_prob(x, sigma).sum(), x)
    level = sigma.reshape(-1, 1, 1, 1)
    assert (x + level**2 * gradient - net(x, sigma)).abs().max() < 1e-10
    if name == 'ideal':
        assert (net.score(x, sigma) - gradient).abs().max() < 1e-9


def test_the_jacobian_is_a_covariance(images):
    """∂D/∂x = Cov_p(y)/σ²: autograd sees through the blocks, with the largest logit held."""
    net, sigma, x = IdealDenoiser(images), torch.tensor(0.5, dtype=f64), noisy(images, 0.5, batch=1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, sigma), x).reshape(18, 18)
    y = images.flatten(1)
    p = (-(x.flatten() - y).square().sum(dim=1) / (2 * 0.25)).softmax(dim=0)
    centred = y - p @ y
    assert (jacobian - centred.T @ (p[:, None] * centred) / 0.25).abs().max() < 1e-12


def test_precision_and_dtype_of_the_answer(images):
    for net in oracles(images).values():
        x = noisy(images, 0.5)
        single = net(x.float(), torch.tensor(0.5))
        assert single.dtype == torch.float32
        assert torch.equal(single, net(x.float().double(), torch.tensor(0.5)).float())


def test_the_ideal_denoiser_samples_its_data(images):
    noise = torch.randn([16, 2, 3, 3], generator=torch.Generator().manual_seed(0))
    x = sample(IdealDenoiser(images), noise, num_steps=18)
    distances = (x.flatten(1)[:, None] - images.flatten(1)).norm(dim=2)
    assert distances.amin(dim=1).max() < 1e-12
    assert len(distances.argmin(dim=1).unique()) > 8


def test_gaussian_limits():
    net, x = Gaussian(0.3, 0.5), torch.tensor([[[[1.0]]]], dtype=f64)
    assert net(x, torch.tensor(0.0)).item() == 1.0
    assert net(x * math.inf, torch.tensor(math.inf)).item() == pytest.approx(0.3, abs=1e-15)
    expected = torch.distributions.Normal(torch.tensor(0.3, dtype=f64),
                                          math.sqrt(0.25 + 4)).log_prob(x)
    assert net.log_prob(x, 2.0).item() == pytest.approx(expected.item(), rel=1e-14)
    assert Gaussian(0.0, 0.0)(x, torch.tensor(2.0)).item() == 0.0
    assert net.flow(net.flow(x, 0.002, 80.0), 80.0, 0.002).item() == pytest.approx(1.0, abs=1e-13)


def test_two_diracs_are_a_tanh():
    net = Mixture(torch.ones(2), torch.tensor([-1.0, 1.0]), torch.zeros(2))
    x = torch.linspace(-4, 4, 41, dtype=f64).reshape(1, 1, 1, 41)
    for sigma in (0.1, 1.0, 10.0):
        assert torch.allclose(net(x, torch.tensor(sigma)),
                              torch.tanh(x / torch.tensor(sigma).double()**2), atol=1e-13)


def test_a_mixture_of_images_without_spread_is_a_data_set(images):
    mixture = Mixture(torch.ones(300), images, torch.zeros(300))
    x, sigma = noisy(images, 0.4), torch.tensor(0.4, dtype=f64)
    assert torch.allclose(mixture(x, sigma), IdealDenoiser(images)(x, sigma), rtol=0, atol=1e-12)
    assert torch.allclose(mixture.log_prob(x, sigma), IdealDenoiser(images).log_prob(x, sigma),
                          rtol=1e-12)


def test_the_flow_of_a_mixture_keeps_quantiles():
    weights, means, stds = torch.tensor(
        [[0.2, 0.5, 0.3], [-1.0, 0.2, 2.0], [0.1, 0.7, 0.0]], dtype=f64
    )
    net = Mixture(weights, means, stds)
    x = torch.linspace(-30, 30, 61, dtype=f64).reshape(1, 1, 1, 61)

    def cdf(x, sigma, sign=1):
        z = (x[..., None] - means) / (stds**2 + sigma**2).sqrt()
        # torch's is 1 + erf
        return (weights * torch.from_numpy(scipy.special.ndtr(sign * z.numpy()))).sum(dim=-1)

    moved = net.flow(x, 6.0, 0.3)
    assert (cdf(moved, 0.3) - cdf(x, 6.0)).abs().max() < 1e-14
    # both tails keep their digits, down to probabilities of 1e-8
    for side, sign in ((x < 0, 1), (x > 0, -1)):
        assert torch.allclose(cdf(moved, 0.3, sign)[side], cdf(x, 6.0, sign)[side], rtol=1e-12,
                              atol=0)
    assert torch.allclose(net.flow(moved, 0.3, 6.0), x, rtol=1e-9, atol=1e-12)
    assert (moved.diff(dim=-1) > 0).all()


def test_the_flow_of_one_component_and_down_to_points():
    x = torch.linspace(-3, 3, 7, dtype=f64).reshape(1, 1, 1, 7)
    one = Mixture(torch.ones(1), torch.tensor([0.25]), torch.tensor([0.5]))
    assert torch.allclose(one.flow(x, 0.1, 9.0), Gaussian(0.25, 0.5).flow(x, 0.1, 9.0), rtol=1e-14)
    net = Mixture(torch.ones(2), torch.tensor([-1.0, 1.0]), torch.zeros(2))
    # between the points lies nothing: x = 0 may stay
    ends = net.flow(x, 5.0, 0.0).flatten()[[0, 1, 2, 4, 5, 6]]
    assert torch.allclose(ends, torch.tensor([-1, -1, -1, 1, 1, 1], dtype=f64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r'^the flow is known for mixtures of numbers, means '
                                         r'\[K\], only$'):
        Mixture(torch.ones(1), torch.zeros(1, 1, 1, 7), torch.ones(1)).flow(x, 1.0, 2.0)
    with pytest.raises(ValueError, match=r'must agree in K; they are \[2\], \[1\] and \[2\]$'):
        Mixture(torch.ones(2), torch.zeros(1), torch.ones(2))


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.RandomState(0).randint(256, size=[6, 4, 4, 1]).astype(np.uint8)
    for i, image in enumerate(pixels):
        save_png(image, tmp_path / f'{i}.png')
    return tmp_path, torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_open_network_reads_a_data_set(folder):
    path, images = folder
    x, sigma = noisy(images, 1.0), torch.tensor(1.0)
    net = open_network(f'ideal:{path}')
    assert net.traits.label_dim == 0
    assert torch.equal(net(x, sigma), IdealDenoiser(images)(x, sigma))
    (path / 'dataset.json').write_text(str([[f'{i}.png', i % 2] for i in range(6)]).replace("'",
                                                                                            '"').join(
        ['{"labels": ', '}']))
    net = open_network(f'ideal:{path}')
    assert net.traits.label_dim == 2
    classes = torch.tensor([[0.0, 1.0]]).expand(5, 2)
    assert torch.allclose(net(x, sigma, classes), IdealDenoiser(images[1::2])(x, sigma), atol=1e-12)


def test_open_network_reads_a_snapshot(tmp_path):
    config = TrainConfig(
        DataConfig('nowhere'), NetworkConfig('SongUNet', EDM(), 0.0, math.inf, 8, 1,
                                             model={'model_channels': 8}),
        DenoisingLoss(LogNormal(), InverseCOut()))
    torch.manual_seed(0)
    trained = build_network(config.network)
    for parameter in trained.parameters():   # a fresh network's outputs are nearly zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    path = save_snapshot(SimpleNamespace(nimg=5000, averages={'0.5': SimpleNamespace(net=trained)}),
                         config, tmp_path)
    net, x = open_network(path), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x, torch.tensor(0.5)), trained.eval()(x, torch.tensor(0.5)))
    # What its likelihood is made of, in float32, against its whole Jacobian.
    sigma, d = torch.tensor(0.7, dtype=f64), 0.4
    phi = (sigma / d).atan()
    z = x[:1].double() / torch.hypot(sigma, torch.tensor(d, dtype=f64))
    # Σ_k e_kᵀ J e_k = mean_k (8 e_k)ᵀ J (8 e_k)
    probes = torch.eye(64, dtype=f64).reshape(64, 1, 1, 8, 8) * 8
    _, divergence = _velocity_and_divergence(Conditioned(net), z, phi, d, probes)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, sigma), x[:1]).reshape(64, 64)
    expected = (64 * phi.cos() - jacobian.trace() / phi.cos()) / phi.sin()
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-4)


def test_open_network_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match='nowhere: no such zip or folder$'):
        open_network(f'ideal:{tmp_path}/nowhere')
    with pytest.raises((ValueError, FileNotFoundError), match='nothing.pkl'):
        open_network(f'{tmp_path}/nothing.pkl')
