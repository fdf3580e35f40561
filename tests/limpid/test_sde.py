"""The general SDE: its marginals are those of the flow, for every rate of fresh noise, in both
directions."""

import itertools
import math

import pytest
import torch

from limpid.denoiser import Conditioned
from limpid.earlier import EulerMaruyama
from limpid.samplers import FlowSampler
from limpid.sampling import run
from limpid.schedules import SCALINGS, LinearSchedule, NoScaling, VESchedule, VPScaling, VPSchedule
from limpid.sde import SDES, GeneralSDE
from limpid.seeds import StackedGenerator
from limpid.solvers import Euler
from limpid.steps import EDMSteps, VESteps, VPSteps
from tests.oracles import Gaussian

f64 = torch.float64
MU, C = 0.3, 0.5
SCHEDULES = {'vp': VPSchedule(), 've': VESchedule(), 'linear': LinearSchedule()}
FRAMES = list(itertools.product(SCHEDULES, SCALINGS))
RATES = {'flow': {'beta': 0.0}, 'song': {'beta': 1.0}, 'half': {'beta': 0.5},
         'constant': {'beta': 0.7, 'constant': True},
         'interval': {'beta': 1.0, 'S_min': 0.3, 'S_max': 1.0}}


def levels(steps, num_steps):
    return torch.nn.functional.pad(steps.sigmas(num_steps), (0, 1))


def moments_after(sde, sigmas, forward):
    """Exact moments of x/s at the last of `sigmas`, from exact ones at the first: row 0 is the
    mean, row 1 the response to the standard deviation at the start, row k + 2 the response to the
    k-th noise."""
    first, last = float(sigmas[0]), float(sigmas[-1])
    times, denoise = sde.schedule.sigma_inv(sigmas), Conditioned(Gaussian(MU, C))
    x = torch.full([len(sigmas) + 1, 1, 1, 1], MU, dtype=f64)
    x[1] += math.sqrt(C**2 + first**2)
    x *= sde.scaling.s(sigmas[0])
    drawn = itertools.count(2)

    def impulse(x):
        xi = torch.zeros_like(x)
        xi[next(drawn)] = 1
        return xi

    if forward:
        x = sde.forward(denoise, x, times, impulse)
    else:
        for t, t_next in itertools.pairwise(times):
            x = sde.step(denoise, x, t, t_next, impulse(x))
    x = (x / sde.scaling.s(sigmas[-1])).flatten()
    return float(x[0]) - MU, float(((x - x[0])[1:] ** 2).sum()) / (C**2 + last**2) - 1


@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('forward', [False, True])
@pytest.mark.parametrize(('schedule', 'scaling'), FRAMES)
def test_marginals_of_both_directions(schedule, scaling, forward, rate):
    """The mean stays mu and the variance is c² + σ², up to errors of first order in the steps."""
    sde = GeneralSDE(SCHEDULES[schedule], SCALINGS[scaling](), **RATES[rate])
    errors = []
    for num_steps in [200, 400]:
        sigmas = EDMSteps(sigma_min=0.2, sigma_max=2.0, rho=3).sigmas(num_steps + 1)
        errors.append(moments_after(sde, sigmas.flip(0) if forward else sigmas, forward))
    for coarse, fine in zip(*errors, strict=True):
        assert abs(fine) < 0.02
        # Halved, or too small to tell (some schemes keep the mean exactly).
        assert abs(fine) < 0.6 * abs(coarse) or abs(fine) < 1e-4, errors


def test_wrong_signs_would_be_seen():
    """The same with the drift of the other direction ends elsewhere: the test above can fail."""
    class Wrong(GeneralSDE):
        def drift(self, denoise, x, t, forward=False):
            return super().drift(denoise, x, t, not forward)

    sigmas = EDMSteps(sigma_min=0.2, sigma_max=2.0, rho=3).sigmas(401)
    assert abs(moments_after(Wrong(), sigmas, False)[1]) > 0.5


@pytest.mark.parametrize(('schedule', 'scaling'), FRAMES)
def test_songs_rate_has_no_score_in_the_forward_drift(schedule, scaling):
    """dx = (ṡ/s) x dt + s √(2 σ̇ σ) dω: neither depends on the data."""
    sde = GeneralSDE(SCHEDULES[schedule], SCALINGS[scaling]())
    x = torch.randn(2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.3, dtype=f64)
    one, other = (sde.drift(Conditioned(Gaussian(mu)), x, t, forward=True) for mu in (0.0, 5.0))
    assert torch.equal(one, other)
    if schedule == scaling == 'vp':
        beta = 0.1 + 19.9 * 0.3
        torch.testing.assert_close(one, -beta / 2 * x, rtol=1e-13, atol=0)
        assert float(sde.diffusion(t)) == pytest.approx(math.sqrt(beta), rel=1e-13)
    if schedule == 've' and scaling == 'none':
        assert float(one.abs().max()) == 0 and float(sde.diffusion(t)) == pytest.approx(
            1, rel=1e-13
        )


@pytest.mark.parametrize(('schedule', 'scaling'), FRAMES)
def test_no_fresh_noise_is_eulers_method(schedule, scaling):
    def forbidden(x):
        raise AssertionError('the flow draws no noise')

    z = torch.randn(2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(1))
    for num_steps in [1, 2, 20]:
        sigmas = levels(EDMSteps(), num_steps)
        rows = SCHEDULES[schedule], SCALINGS[scaling]()
        ours = run(GeneralSDE(*rows, beta=0.0), Conditioned(Gaussian()), z, sigmas, forbidden)
        euler = run(FlowSampler(Euler(), *rows), Conditioned(Gaussian()), z, sigmas, forbidden)
        torch.testing.assert_close(ours, euler, rtol=1e-10, atol=1e-10)


def test_songs_sde_of_vp_is_euler_maruyama():
    z, *draws = torch.randn(60, 2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(2))
    sigmas = levels(VPSteps(), 60)
    schedule = VPSchedule.through(float(sigmas[-2]), float(sigmas[0]))
    feeds = [iter(draws), iter(draws)]
    ours = run(GeneralSDE(schedule, VPScaling()), Conditioned(Gaussian()), z, sigmas,
               lambda x: next(feeds[0]))
    start = sigmas[0] / (1 + sigmas[0] ** 2).sqrt()   # Euler–Maruyama starts from N(0, 1)
    em = run(EulerMaruyama(), Conditioned(Gaussian()), start * z, sigmas, lambda x: next(feeds[1]))
    torch.testing.assert_close(ours, em, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('options', [{'beta': 0.5}, {'beta': 0.3, 'constant': True},
                                     {'beta': 1.0, 'S_min': 0.05, 'S_max': 10.0}])
def test_sampling_gives_the_data_of_a_gaussian(options):
    """Whole runs, against the recursion of Euler–Maruyama with σ = t, s = 1, within four standard
    errors."""
    sigmas, num_steps, count = levels(EDMSteps(), 60), 60, 20_000
    sde = GeneralSDE(**options)
    mean, variance = 0.0, float(sigmas[0]) ** 2
    for i, (a, b) in enumerate(itertools.pairwise(sigmas.tolist())):
        rate = options['beta'] * (1 if options.get('constant') else 1 / a)
        rate = rate if options.get('S_min', 0) <= a <= options.get('S_max', math.inf) else 0
        A = 1 - (a - b) * (1 / a + rate) * a**2 / (a**2 + C**2)
        mean, variance = MU + A * (mean - MU), A**2 * variance
        variance += 2 * rate * a**2 * (a - b) if i < num_steps - 1 else 0
    torch.manual_seed(0)
    x = run(sde, Conditioned(Gaussian(MU, C)), torch.randn(count, 1, 1, 1), sigmas)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / count))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / count))
    assert math.sqrt(variance) == pytest.approx(C, rel=0.15)


def test_the_rate_of_fresh_noise():
    t = torch.tensor([0.04, 0.05, 2.0, 10.0, 10.1], dtype=f64)
    inside = torch.tensor([0, 1, 1, 1, 0], dtype=f64)
    sde = GeneralSDE(VESchedule(), beta=0.6, S_min=0.05**0.5, S_max=10**0.5)
    # σ̇/σ = 1/(2t)
    torch.testing.assert_close(sde.rate(t), 0.6 * inside / (2 * t), rtol=1e-14, atol=0)
    sde = GeneralSDE(beta=0.6, constant=True, S_min=0.05, S_max=10.0)
    assert torch.equal(sde.rate(t), 0.6 * inside)


@pytest.mark.parametrize('num_steps', [1, 2, 18])
def test_number_of_evaluations(num_steps):
    net = Gaussian()
    x = run(SDES['sde'](), Conditioned(net), torch.ones(2, 1, 2, 2), levels(EDMSteps(), num_steps))
    assert len(net.sigmas) == num_steps and bool(x.isfinite().all())


@pytest.mark.parametrize('batch', [1, 7, 64])
def test_an_image_does_not_depend_on_its_batch(batch):
    def images(seeds):
        generator = StackedGenerator(seeds, 'cpu')
        return run(GeneralSDE(VESchedule(), VPScaling()), Conditioned(Gaussian()),
                   generator.randn([len(seeds), 3, 4, 4]), levels(VESteps(), 6),
                   generator.randn_like)

    together = images(range(64))
    assert torch.equal(together,
                       torch.cat([images(range(i, min(i + batch, 64)))
                                  for i in range(0, 64, batch)]))


@pytest.mark.parametrize('beta', [-1.0, math.inf, math.nan])
def test_rates_out_of_range(beta):
    with pytest.raises(ValueError, match=f'^beta is the rate of fresh noise and must be 0 or more, '
                                         f'not {beta:g}$'):
        GeneralSDE(scaling=NoScaling(), beta=beta)


@pytest.mark.parametrize('schedule', [VPSchedule(), VESchedule(), LinearSchedule()])
def test_limits_that_are_levels_count_as_inside(schedule):
    """Whatever σ(σ⁻¹(·)) does to the last bit."""
    sigmas = VPSteps().sigmas(64)
    times = schedule.sigma_inv(sigmas)
    for i in range(64):
        level = float(sigmas[i])
        assert float(GeneralSDE(schedule, S_min=level).rate(times[i])) > 0
        assert float(GeneralSDE(schedule, S_max=level).rate(times[i])) > 0
