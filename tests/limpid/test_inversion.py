"""Inversion, interpolation and likelihood against closed forms."""

import itertools
import math

import pytest
import torch

from limpid.denoiser import Conditioned
from limpid.ideal import Gaussian, IdealDenoiser, Mixture
from limpid.inversion import decode, encode, interpolate
from limpid.likelihood import bits_per_dim, dequantize, log_likelihood, rademacher
from limpid.sampling import sample
from limpid.schedules import NoScaling, VESchedule, VPScaling, VPSchedule
from limpid.seeds import StackedGenerator
from limpid.solvers import SOLVERS, Adams, Euler, Multistep2M, SecondOrder
from limpid.steps import EDMSteps

f64 = torch.float64
GAUSSIAN = Gaussian(0.3, torch.tensor([0.1, 0.5, 1.2], dtype=f64))   # images [B, C, H, 3]


def draws(batch=4, seed=0):
    return torch.randn([batch, 1, 2, 3], generator=torch.Generator().manual_seed(seed), dtype=f64)


def slope(errors):
    """Mean order over the last doublings of N."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize(('solver', 'order'), [(Euler(), 1), (SecondOrder(), 2),
                                               (SecondOrder(0.5), 2), (Multistep2M(), 2),
                                               (Adams(), 3)])
def test_encode_converges_to_the_exact_latents(solver, order):
    images = 0.3 + GAUSSIAN.c * draws()
    exact = GAUSSIAN.flow(images, 0.002, 80.0) / 80
    denoise = Conditioned(GAUSSIAN)
    errors = []
    for num_steps in (256, 512, 1024):
        latents = encode(denoise, images, denoise.levels(EDMSteps(), num_steps), solver)
        errors.append((latents - exact).abs().max().item())
    assert slope(errors) > order - 0.1
    assert errors[-1] < (0.1 if order == 1 else 1e-4)


@pytest.mark.parametrize(('solver', 'order'), [(Euler(), 1), (SecondOrder(), 2), (Multistep2M(), 2),
                                               (Adams(), 2)])
def test_a_round_trip_converges(solver, order):
    denoise = Conditioned(Mixture(torch.ones(2), torch.tensor([-1.0, 1.0]), torch.full([2], 0.2)))
    images, errors = draws().sign() + 0.2 * draws(seed=1), []
    for num_steps in (128, 256, 512):
        sigmas = denoise.levels(EDMSteps(rho=3), num_steps)
        again = decode(denoise, encode(denoise, images, sigmas, solver), sigmas, solver,
                       to_zero=False)
        errors.append((again - images).abs().max().item())
    assert slope(errors) > order - 0.2


@pytest.mark.parametrize(('schedule', 'scaling'), [(VPSchedule.through(0.002, 80.0), VPScaling()),
                                                   (VESchedule(), NoScaling())])
def test_other_frames_have_the_same_latents(schedule, scaling):
    images = 0.3 + GAUSSIAN.c * draws()
    denoise, exact = Conditioned(GAUSSIAN), GAUSSIAN.flow(images, 0.002, 80.0) / 80
    sigmas = denoise.levels(EDMSteps(), 512)
    latents = encode(denoise, images, sigmas, schedule=schedule, scaling=scaling)
    assert (latents - exact).abs().max() < 3e-3
    again = decode(denoise, latents, sigmas, schedule=schedule, scaling=scaling, to_zero=False)
    assert (again - images).abs().max() < 3e-3


class Counting:
    """A network that notes the noise levels it is asked about."""

    def __init__(self, net):
        self.net, self.sigmas = net, []

    def __call__(self, x, sigma, class_labels=None):
        self.sigmas.append(float(sigma))
        return self.net(x, sigma, class_labels)


def test_evaluations_stay_inside_the_noise_range():
    net = Counting(GAUSSIAN)
    sigmas = Conditioned(net).levels(EDMSteps(), 10)
    latents = encode(Conditioned(net), draws(), sigmas)
    assert len(net.sigmas) == 18
    assert net.sigmas[0] == sigmas[-2].item() and net.sigmas[-1] == sigmas[0].item() and min(
        net.sigmas) > 0
    net.sigmas.clear()
    decode(Conditioned(net), latents, sigmas, to_zero=False)
    assert len(net.sigmas) == 18
    net.sigmas.clear()
    decode(Conditioned(net), latents, sigmas, SecondOrder())
    assert len(net.sigmas) == 19


@pytest.mark.parametrize('name', list(SOLVERS))
def test_decode_is_the_sampler(name):
    denoise, latents, solver = Conditioned(GAUSSIAN), draws(), SOLVERS[name]()
    sigmas = denoise.levels(EDMSteps(), 18)
    images = decode(denoise, latents, sigmas, solver)
    assert torch.equal(images, sample(GAUSSIAN, latents, solver=solver))
    # What it stops short of is the step to D(x; σ_min).
    before = decode(denoise, latents, sigmas, solver, to_zero=False)
    assert torch.allclose(GAUSSIAN(before, sigmas[-2]), images, rtol=0, atol=1e-5 if name == 'adams'
                          else 1e-14)


def test_interpolation_follows_great_circles():
    z1, z2 = draws(seed=1), draws(seed=2)
    frames = interpolate(z1, z2, 5)
    assert frames.shape == (5, 4, 1, 2, 3)
    assert torch.equal(frames[0], z1) and torch.equal(frames[-1], z2)
    units = interpolate(z1 / z1.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1),
                        z2 / z2.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1), 5).flatten(2)
    assert torch.allclose(units.norm(dim=2), torch.ones(5, 4, dtype=f64), rtol=1e-14)
    angles = (units[:-1] * units[1:]).sum(dim=2).acos()
    assert torch.allclose(angles, (units[0] * units[-1]).sum(dim=1).acos() / 4, rtol=1e-12)
    for i in range(4):
        assert torch.equal(interpolate(z1[i:i + 1], z2[i:i + 1], 5), frames[:, i:i + 1])
    with pytest.raises(ValueError,
                       match='^an interpolation has at least 2 frames, its ends, not 1$'):
        interpolate(z1, z2, 1)


@pytest.mark.parametrize('factor', [1.0, -1.0, 0.0, 3.0])
def test_interpolation_without_an_arc_is_a_straight_line(factor):
    z = draws()
    frames = interpolate(z, factor * z, 3)
    assert torch.allclose(frames[1], (1 + factor) / 2 * z, rtol=0, atol=1e-14)


def generator(batch):
    return StackedGenerator(range(batch), 'cpu')


def gaussian_likelihood(num_steps, prior):
    """Estimate, and truth with that prior at the other end of the exact flow."""
    images, denoise = 0.3 + GAUSSIAN.c * draws(), Conditioned(GAUSSIAN)
    sigmas = denoise.levels(EDMSteps(), num_steps)
    found = log_likelihood(denoise, images, sigmas, rademacher(images, generator(4)), prior=prior)
    stretch = (
        torch.hypot(GAUSSIAN.c, torch.tensor(80.0, dtype=f64)).log()
        - torch.hypot(GAUSSIAN.c, torch.tensor(0.002, dtype=f64)).log()
    )
    return found, prior.log_prob(GAUSSIAN.flow(images, 0.002, 80.0), 80.0) + 2 * stretch.sum()


def test_the_likelihood_of_gaussian_data():
    """Rademacher probes are exact, as ∂D/∂x is diagonal."""
    found, exact = gaussian_likelihood(193, GAUSSIAN)
    images = 0.3 + GAUSSIAN.c * draws()
    assert (exact - GAUSSIAN.log_prob(images, 0.002)).abs().max() < 1e-12
    assert (found - GAUSSIAN.log_prob(images, 0.002)).abs().max() < 1e-6
    found, exact = gaussian_likelihood(193, Gaussian(0.0, 0.0))
    assert (found - exact).abs().max() < 1e-6
    # the prior does make a difference
    assert (found - GAUSSIAN.log_prob(images, 0.002)).abs().max() > 1e-5


def test_the_likelihood_converges_with_the_fourth_order():
    images, denoise, errors = 0.3 + GAUSSIAN.c * draws(), Conditioned(GAUSSIAN), []
    for num_steps in (33, 65, 129):
        sigmas, probes = denoise.levels(EDMSteps(), num_steps), rademacher(images, generator(4))
        found = log_likelihood(denoise, images, sigmas, probes, prior=GAUSSIAN)
        errors.append((found - GAUSSIAN.log_prob(images, 0.002)).abs().max().item())
    assert slope(errors) > 3.9


def points():
    """A data set of 12 images of 2 pixels, and images of it with noise of 0.3."""
    images = torch.randn([12, 1, 1, 2], generator=torch.Generator().manual_seed(3), dtype=f64)
    return IdealDenoiser(images), images[:5] + 0.3 * draws(5)[:, :, :1, :2]


def test_the_likelihood_of_data_whose_jacobian_is_not_diagonal():
    """All four sign vectors together give the exact trace; the truth is the density that D belongs
    to."""
    net, images = points()
    denoise = Conditioned(net)
    sigmas = denoise.levels(EDMSteps(sigma_min=0.3), 193)
    signs = (
        torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))
        .reshape(4, 1, 1, 1, 2)
        .expand(4, 5, 1, 1, 2)
    )
    steps = []
    found = log_likelihood(denoise, images, sigmas, signs, prior=net,
                           progress=lambda *step: steps.append(step))
    assert (found - net.log_prob(images, torch.tensor(0.3, dtype=f64))).abs().max() < 2e-5
    assert steps[0] == (1, 192) and steps[-1] == (192, 192) and len(steps) == 192
    one = log_likelihood(denoise, images, sigmas, signs[:1], prior=net)
    assert (one - found).abs().max() > 1e-2   # a single probe is an estimate


def test_the_likelihood_of_an_image_does_not_depend_on_its_batch():
    net, images = points()
    sigmas = Conditioned(net).levels(EDMSteps(sigma_min=0.1), 9)
    together = log_likelihood(Conditioned(net), images, sigmas, rademacher(images, generator(5), 2))
    for i in range(5):
        probes = rademacher(images[i:i + 1], StackedGenerator([i], 'cpu'), 2)
        assert torch.equal(log_likelihood(Conditioned(net), images[i:i + 1], sigmas, probes),
                           together[i:i + 1])


def test_gradients_are_for_x_alone():
    """Under no_grad too, with a network in float32, whose parameters get no gradient."""
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def net(x, sigma, class_labels):
        return layer(x.float()) / (1 + sigma.float())

    images, sigmas = draws(), EDMSteps().sigmas(5)
    probes = rademacher(images, generator(4))
    with torch.no_grad():
        quiet = log_likelihood(Conditioned(net), images, sigmas, probes)
    loud = log_likelihood(Conditioned(net), images, sigmas, probes)
    assert torch.equal(quiet, loud) and not loud.requires_grad and loud.isfinite().all()
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_probes():
    images = draws()
    probes = rademacher(images, generator(4), 3)
    assert probes.shape == (3, 4, 1, 2, 3) and set(probes.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(rademacher(images[2:], StackedGenerator([2, 3], 'cpu'), 3), probes[:, 2:])
    many = rademacher(torch.zeros(1, 1, 100, 100), generator(1))
    assert abs(many.mean().item()) < 0.04   # four standard deviations


def test_dequantised_bits():
    """Noise that is uniform over all 256 levels has 8 bits per value."""
    k = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = dequantize(k, generator(1))
    offsets = (x + 1) * 127.5 - k
    assert x.dtype == f64 and offsets.abs().max() <= 0.5 + 1e-6 and offsets.std().item() > 0.25
    assert torch.equal(dequantize(k.expand(2, 1, 16, 16), generator(2))[:1], x)
    log_p = torch.tensor([-256 * math.log(256 / 127.5)], dtype=f64)
    assert bits_per_dim(log_p, 256).item() == pytest.approx(8, abs=1e-12)
    with pytest.raises(ValueError, match='^the images to dequantize must be uint8, not '
                                         'torch.float64$'):
        dequantize(x, generator(1))
