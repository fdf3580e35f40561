"""Samplers that choose their steps: against SciPy's solver, the exact flow and known moments."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from limpid.adaptive import ADAPTIVE, ERROR, NODES, RK45, STAGES, AdaptiveSDE
from limpid.denoiser import Conditioned
from limpid.sampling import run
from limpid.schedules import LinearSchedule, NoScaling, VESchedule, VPScaling, VPSchedule
from limpid.seeds import StackedGenerator
from limpid.steps import EDMSteps, VESteps, VPSteps
from tests.oracles import Gaussian

f64 = torch.float64
MU, C = 0.3, 0.5


class TwoDiracs:
    """Data at +1 and −1, for noise levels of each image."""

    def __call__(self, x, sigma, class_labels=None):
        return torch.tanh(x / sigma.reshape(-1, 1, 1, 1) ** 2)


def levels(steps, num_steps=2):
    return torch.nn.functional.pad(steps.sigmas(num_steps), (0, 1))


def normal(seed, *shape):
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def sampled(sampler, net, z, sigmas, randn_like=None, labels=None):
    """The images, and how often the network was evaluated for each of them."""
    nfe = []
    with torch.no_grad():
        return sampler(Conditioned(net, labels), z, sigmas, randn_like, nfe=nfe), nfe


def test_the_pair_of_dormand_and_prince():
    """Rows sum to the nodes; the weights satisfy the order conditions of order 5 and 4 for y' = t^k
    and y' = y."""
    nodes = np.array([0, *NODES])
    A = np.zeros([7, 7])
    for i, row in enumerate(STAGES, start=1):
        A[i, :i] = row
    b5 = A[6]
    b4 = b5 + np.array(ERROR)
    np.testing.assert_allclose(A.sum(axis=1), nodes, atol=1e-14)
    for order, b in [(5, b5), (4, b4)]:
        for k in range(order):
            assert b @ nodes**k == pytest.approx(1 / (k + 1), abs=1e-14)
        power = np.ones(7)
        for k in range(1, order + 1):   # b A^(k−1) 1 = 1/k!
            assert b @ power == pytest.approx(1 / math.factorial(k), abs=1e-14)
            power = A @ power
    assert b4 @ nodes**4 != pytest.approx(1 / 5, abs=1e-6)


def scipy_flow(net, x, sigma_max, sigma_min, rtol, atol):
    """The flow with σ = t, s = 1, of all entries of x as one system."""
    def velocity(t, y):
        y = torch.as_tensor(y).reshape(x.shape)
        return ((y - net(y, torch.tensor(t, dtype=f64))) / t).numpy().ravel()

    solution = solve_ivp(velocity, (sigma_max, sigma_min), x.numpy().ravel(), rtol=rtol, atol=atol)
    return torch.as_tensor(solution.y[:, -1]).reshape(x.shape), solution.nfev


@pytest.mark.parametrize('net', [Gaussian(MU, C), TwoDiracs()])
@pytest.mark.parametrize('tolerance', [1e7, 3.0, 1e-3, 1e-5])
@pytest.mark.parametrize('original', [False, True])
def test_rk45_takes_the_steps_of_scipy(net, tolerance, original):
    """Each image alone, or with original=True the batch as one system: the same steps, hence the
    same result."""
    z, sigmas = normal(0, 6, 1, 4, 4), levels(EDMSteps(sigma_min=0.05))
    z = z * torch.tensor([0.01, 0.1, 0.5, 1, 2, 5], dtype=f64).reshape(6, 1, 1, 1)
    x, nfe = sampled(RK45(rtol=tolerance, atol=tolerance, original=original), net, z, sigmas)
    for rows in [range(6)] if original else [[i] for i in range(6)]:
        expected, nfev = scipy_flow(net, 80 * z[list(rows)], 80, 0.05, tolerance, tolerance)
        denoised = net(expected, sigmas[-2])   # the step to zero
        torch.testing.assert_close(x[list(rows)], denoised, rtol=0, atol=1e-9)
        assert [nfe[i] for i in rows] == [nfev] * len(rows)
    assert original or tolerance > 1 or len(set(nfe)) > 1, 'the images should differ in their steps'


def test_where_nothing_moves_the_steps_are_those_of_scipy():
    def still(x, sigma, labels=None):
        return x.clone()

    z, sigmas = normal(0, 2, 1, 2, 2), levels(EDMSteps())
    x, nfe = sampled(RK45(), still, z, sigmas)
    assert (
        torch.equal(x, 80 * z) and nfe == [scipy_flow(still, 80 * z, 80, 0.002, 1e-5, 1e-5)[1]] * 2
    )


def test_the_error_of_rk45_is_in_proportion_to_the_tolerance():
    net, z, sigmas = Gaussian(MU, C), normal(1, 8, 1, 4, 4), levels(EDMSteps())
    expected = net(net.flow(80 * z, 80, 0.002), sigmas[-2])
    tolerances, errors = 10.0 ** -np.arange(3, 10), []
    for tolerance in tolerances:
        x, _ = sampled(RK45(rtol=tolerance, atol=tolerance), net, z, sigmas)
        errors.append(float((x - expected).abs().max()))
    assert errors[-1] < 1e-7
    slope = np.polyfit(np.log10(tolerances), np.log10(errors), 1)[0]
    assert 0.8 < slope < 1.2, errors


@pytest.mark.parametrize(('schedule', 'scaling'), [(VPSchedule(), VPScaling()),
                                                   (VESchedule(), NoScaling()),
                                                   (LinearSchedule(), VPScaling())])
def test_rk45_in_other_frames(schedule, scaling):
    net, z, sigmas = Gaussian(MU, C), normal(2, 3, 1, 4, 4), levels(VPSteps())
    x, _ = sampled(RK45(rtol=1e-8, atol=1e-8, schedule=schedule, scaling=scaling), net, z, sigmas)
    high, low = float(sigmas[0]), float(sigmas[-2])
    # the step to zero is Euler's
    torch.testing.assert_close(x, net.flow(high * z, high, 0), rtol=0, atol=low)


def test_one_noise_level_is_one_euler_step():
    z, sigmas = normal(3, 2, 1, 2, 2), levels(EDMSteps(), 1)
    x, nfe = sampled(RK45(), Gaussian(MU, C), z, sigmas)
    torch.testing.assert_close(x, Gaussian(MU, C)(80 * z, sigmas[0]), rtol=0, atol=1e-12)
    assert nfe == [1, 1]
    for sde in ['vp', 've']:
        x, nfe = sampled(AdaptiveSDE(sde=sde), Gaussian(MU, C), z, sigmas)
        assert nfe == [1, 1] and bool(x.isfinite().all())


# Standard deviation and largest number of evaluations of data N(0, 0.5²), n = 192, from 10 runs
# each.
@pytest.mark.parametrize(('eps_rel', 'std', 'nfe'), [(0.01, 0.501, 321), (0.05, 0.5015, 149),
                                                     (0.5, 0.482, 39)])
def test_the_adaptive_sde_on_gaussian_data(eps_rel, std, nfe):
    count, n = 50, 192
    z = normal(4, count, 3, 8, 8)
    torch.manual_seed(0)
    x, evaluations = sampled(AdaptiveSDE(eps_rel=eps_rel), Gaussian(0.0, C), z, levels(VPSteps()),
                             torch.randn_like)
    assert max(evaluations) == pytest.approx(nfe, rel=0.12)
    assert float(x.mean()) == pytest.approx(0, abs=4 * std / math.sqrt(count * n))
    assert float(x.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2 * count * n))


def test_the_adaptive_sde_of_ve():
    count, n = 50, 192
    torch.manual_seed(0)
    x, _ = sampled(AdaptiveSDE(eps_rel=0.05, sde='ve'), Gaussian(MU, C), normal(5, count, 3, 8, 8),
                   levels(VESteps()), torch.randn_like)
    assert float(x.mean()) == pytest.approx(MU, abs=4 * C / math.sqrt(count * n))
    assert float(x.std()) == pytest.approx(C, abs=4 * C / math.sqrt(2 * count * n) + 2e-3)


def test_one_image_by_the_formulas():
    """C = one image, in plain numbers, with the VP functions written out."""
    sampler = AdaptiveSDE(eps_rel=0.1)
    sigmas, net = levels(VPSteps()), Gaussian(MU, C)
    z = normal(6, 1, 1, 3, 3)
    x, nfe = sampled(sampler, net, z, sigmas, StackedGenerator([5], 'cpu').randn_like)

    generator = StackedGenerator([5], 'cpu')
    end = 1e-3

    def beta(t):
        return 0.1 + 19.9 * t

    def drift(x, t):
        log = 0.5 * 19.9 * t**2 + 0.1 * t
        s, sigma = math.exp(-log / 2), math.sqrt(math.expm1(log))
        score = (net(x / s, torch.tensor(sigma, dtype=f64)) - x / s) / (s * sigma**2)
        return -beta(t) * x / 2 - beta(t) * score

    y, y_tilde, t, h, tries = z, z, 1.0, 0.01 * (1 - end), 0
    while t > end + 1e-9:
        xi = generator.randn_like(y)
        k1 = -h * drift(y, t) + math.sqrt(h * beta(t)) * xi
        k2 = -h * drift(y + k1, t - h) + math.sqrt(h * beta(t - h)) * xi
        tolerance = torch.maximum((y + k1).abs(), y_tilde.abs()).mul(0.1).clamp(min=2 / 256)
        Q = float((((k2 - k1) / 2 / tolerance) ** 2).mean().sqrt())
        if Q <= 1:
            y, y_tilde, t = y + (k1 + k2) / 2, y + k1, t - h
        h = min(t - end, 0.9 * h * Q**-0.9)
        tries += 1
    low = sigmas[-2]
    expected = net(y * (1 + low**2).sqrt(), low)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-8)
    assert nfe == [2 * tries + 1]


BATCHED = {
    'rk45': (RK45(rtol=1e-3, atol=1e-3), LinearSchedule()),
    'rk45-vp': (RK45(rtol=1e-3, atol=1e-4, schedule=VPSchedule(), scaling=VPScaling()), None),
    'adaptive': (AdaptiveSDE(eps_rel=0.2), None),
    'adaptive-ve': (AdaptiveSDE(eps_rel=0.5, sde='ve'), None),
}


def test_every_sampler_is_tested():
    assert set(ADAPTIVE) <= set(BATCHED)


@pytest.mark.parametrize('name', BATCHED)
def test_an_image_does_not_depend_on_its_batch(name):
    """Bitwise, with different data behind different labels, and with steps that the images do not
    share."""
    class Labelled(Gaussian):
        def __call__(self, x, sigma, class_labels):
            assert class_labels.shape == (len(x), 1)
            sigma = sigma.reshape(-1, 1, 1, 1)
            c = 0.02 + class_labels.reshape(-1, 1, 1, 1).to(f64)
            return c**2 * x / (c**2 + sigma**2)

    def images(seeds):
        generator = StackedGenerator(seeds, 'cpu')
        labels = torch.tensor([[seed % 5 / 4] for seed in seeds])
        z = generator.randn([len(seeds), 3, 16, 16]).to(f64)
        return sampled(BATCHED[name][0], Labelled(), z, levels(VPSteps()), generator.randn_like,
                       labels)

    x, nfe = images(range(64))
    assert len(set(nfe)) > 2
    for batch in [1, 7]:
        for i in range(0, 28, 7) if batch == 7 else range(4):
            part, part_nfe = images(range(i, i + batch))
            assert torch.equal(part, x[i:i + batch]) and part_nfe == nfe[i:i + batch]


def test_images_that_have_arrived_are_not_evaluated():
    rows = []

    class Counting(Gaussian):
        def __call__(self, x, sigma, class_labels=None):
            assert sigma.shape == (len(x),)
            rows.append(len(x))
            return super().__call__(x, sigma)

    z = normal(7, 5, 1, 4, 4) * torch.tensor([0.01, 0.1, 1, 3, 10], dtype=f64).reshape(5, 1, 1, 1)
    _, nfe = sampled(RK45(), Counting(MU, C), z, levels(EDMSteps()))
    assert sum(rows) == sum(nfe) and rows[0] == 5 and rows[-1] < 5 and len(rows) == max(nfe)


def test_one_label_for_the_whole_batch_stays():
    labels = torch.ones(1, 3)
    seen = set()

    class Labelled(Gaussian):
        def __call__(self, x, sigma, class_labels):
            seen.add(tuple(class_labels.shape))
            return super().__call__(x, sigma)

    sampled(
        RK45(),
        Labelled(),
        normal(8, 5, 1, 4, 4) * torch.tensor([0.01, 1, 2, 5, 9]).reshape(5, 1, 1, 1),
        levels(EDMSteps()),
        labels=labels,
    )
    assert seen == {(1, 3)}


def test_they_are_samplers_like_all_others():
    torch.manual_seed(0)
    for cls in ADAPTIVE.values():
        x = run(cls(), Conditioned(Gaussian(MU, C)), torch.randn(3, 1, 2, 2),
                levels(EDMSteps(), 18))
        assert x.shape == (3, 1, 2, 2) and x.dtype == f64 and bool(x.isfinite().all())


@pytest.mark.parametrize('sampler', [RK45(), RK45(original=True), AdaptiveSDE()])
@pytest.mark.parametrize('from_call', [1, 9])
def test_a_broken_denoiser_ends_in_one_line(sampler, from_call):
    calls = []

    def broken(x, sigma, labels):
        calls.append(1)
        return x * math.nan if len(calls) >= from_call else x / 2

    with pytest.raises(ValueError, match=r'^(RK45 with rtol=1e-05, atol=1e-05|AdaptiveSDE with '
                                         r'eps_rel=0.02): an image '
                                         r'needs steps below the rounding of its time; the '
                                         r'denoiser is not finite '
                                         r'there, or the tolerance is too small$'):
        sampled(sampler, broken, normal(9, 2, 1, 2, 2), levels(EDMSteps()), torch.randn_like)
    assert len(calls) < 1000


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: RK45(rtol=0.0), 'rtol must be positive, not 0'),
    (lambda: RK45(atol=math.nan), 'atol must be positive, not nan'),
    (lambda: AdaptiveSDE(sde='edm'), "sde must be one of vp, ve, not 'edm'"),
    (lambda: AdaptiveSDE(h_init=-1.0), 'h_init must be positive, not -1'),
])
def test_numbers_out_of_range(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
