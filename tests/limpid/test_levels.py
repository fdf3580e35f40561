"""Discrete schedules, zero terminal SNR and the choice of timesteps, against Lin et al. 2023's
printed numbers."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from limpid.levels import (
    DISCRETE_SCHEDULES,
    CosineBetas,
    DiscreteSchedule,
    GivenBetas,
    IDDPMLevels,
    LinearBetas,
    ScaledLinearBetas,
    rescaled_to_zero_terminal_snr,
    timesteps,
)
from limpid.preconditioning import V
from limpid.steps import STEPS, DiscreteSteps

f64 = torch.float64
ALL = [make() for make in DISCRETE_SCHEDULES.values()]


def rescaled(schedule):
    return dataclasses.replace(schedule, zero_terminal_snr=True)


# Table 1: SNR(T) and √ᾱ_T. The printed numbers of the cosine schedule are those of float32
# arithmetic.
TABLE_1 = {
    LinearBetas(): (4.035993e-05, 0.006353),
    CosineBetas(): (2.428735e-09, 4.928220e-05),
    ScaledLinearBetas(): (0.004682, 0.068265),
}


@pytest.mark.parametrize('schedule', TABLE_1)
def test_table_1(schedule):
    snr, root = TABLE_1[schedule]
    single = torch.cumprod(1 - schedule.betas.to(torch.float32), 0)[-1]
    if schedule == CosineBetas():
        assert (
            f'{float(single / (1 - single)):.6e} {float(single.sqrt()):.6e}'
            == '2.428735e-09 4.928220e-05'
        )
        snr, root = 2.428767e-09, 4.928252e-05   # in float64
    assert float(schedule.snr[-1]) == pytest.approx(snr, rel=2e-7 if snr < 1e-3 else 1e-4)
    assert float(schedule.alpha_bar[-1].sqrt()) == pytest.approx(
        root, rel=2e-7 if root < 1e-3 else 1e-4
    )
    assert float(single.sqrt()) == pytest.approx(root, rel=1e-4)


def test_equation_10():
    """x_T = 0.068265 x_0 + 0.997667 ε, of Stable Diffusion's schedule."""
    alpha_bar = ScaledLinearBetas().alpha_bar[-1]
    assert (round(float(alpha_bar.sqrt()), 6), round(float((1 - alpha_bar).sqrt()),
                                                     6)) == (0.068265, 0.997667)
    assert float(ScaledLinearBetas().snr[-1]) == pytest.approx(4.681917e-03, rel=2e-7)


def test_the_betas_are_the_formulas():
    i = np.arange(1000) / 999
    t = np.arange(1001)
    f = np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    for schedule, betas in [(LinearBetas(), 0.0001 * (1 - i) + 0.02 * i),
                            (ScaledLinearBetas(),
                             (np.sqrt(0.00085) * (1 - i) + np.sqrt(0.012) * i) ** 2),
                            (CosineBetas(), np.minimum(1 - f[1:] / f[:-1], 0.999))]:
        np.testing.assert_allclose(schedule.betas.numpy(), betas, rtol=1e-9)
        np.testing.assert_allclose(schedule.alpha_bar.numpy(), np.cumprod(1 - betas), rtol=1e-11)
        np.testing.assert_allclose(schedule.sigma.numpy() ** -2,
                                   np.cumprod(1 - betas) / (1 - np.cumprod(1 - betas)), rtol=1e-9)
        assert schedule.sigma.dtype == f64 and len(schedule.sigma) == 1000
    assert torch.allclose(GivenBetas(tuple(LinearBetas().betas.tolist())).sigma,
                          LinearBetas().sigma, rtol=1e-9, atol=0)


def test_the_cosine_schedule_is_that_of_iddpm():
    """σ_t = u_{T−t}, although one is computed from ᾱ and the other by the recursion of Table 1."""
    torch.testing.assert_close(CosineBetas().sigma, IDDPMLevels().u[:-1].flip(0), rtol=1e-11,
                               atol=0)


@pytest.mark.parametrize('schedule', ALL, ids=str)
def test_algorithm_1(schedule):
    before, after = schedule, rescaled(schedule)
    assert after.alpha_bar[-1] == 0 and after.betas[-1] == 1 and after.snr[-1] == 0 and after.sigma[
        -1] == math.inf
    assert bool((after.sigma.diff() > 0).all()) and bool((after.betas > 0).all())
    assert bool(after.sigma[:-1].isfinite().all())
    if isinstance(schedule, CosineBetas):   # this one only loses its clipping
        t = np.arange(1, 1000)
        f = (
            np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
            / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
        )
        np.testing.assert_allclose(after.alpha_bar[:-1].numpy(), f, rtol=1e-9)
        return
    assert after.log_alpha_bar[0] == before.log_alpha_bar[0]
    root = np.sqrt(before.alpha_bar.numpy())
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(np.sqrt(after.alpha_bar.numpy())[:-1], expected[:-1], rtol=1e-11)


def test_the_numbers_of_the_rescaled_schedules():
    sd = rescaled(ScaledLinearBetas())
    assert float(sd.alpha_bar[0]) == pytest.approx(0.99915, abs=1e-12)
    assert float(sd.alpha_bar[-2].sqrt()) == pytest.approx(4.436088e-04, rel=2e-7)
    assert float(sd.sigma[-2]) == pytest.approx(2254.24, abs=0.005)
    assert float(sd.betas[-2]) == pytest.approx(0.7511370, abs=1e-7)
    assert float(rescaled(LinearBetas()).alpha_bar[-2].sqrt()) == pytest.approx(
        6.490965e-05, rel=2e-7
    )


def test_rescaling_loses_no_digits_where_there_is_little_noise():
    """Against exact arithmetic with 50 digits: 1 − ᾱ of the first timesteps, and the last but
    one."""
    from decimal import Decimal, getcontext
    getcontext().prec = 50
    betas = [Decimal(b) for b in ScaledLinearBetas().betas.tolist()]
    roots, product = [], Decimal(1)
    for beta in betas:
        product *= 1 - beta
        roots.append(product.sqrt())
    sigma = GivenBetas(tuple(map(float, betas)), zero_terminal_snr=True).sigma
    for t in (1, 2, 3, 10, 500, 999):
        root = (roots[t - 1] - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        assert float(sigma[t - 1]) == pytest.approx(
            float(((1 - root**2) / root**2).sqrt()), rel=2e-12
        )


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            lambda: LinearBetas(T=1, zero_terminal_snr=True).sigma,
            'it needs a schedule of two timesteps or more, which falls',
        ),
        (
            lambda: rescaled_to_zero_terminal_snr(torch.zeros(5, dtype=f64)),
            'it needs a schedule of two timesteps or more, which falls',
        ),
        (
            lambda: LinearBetas(T=0).sigma,
            '^the number of timesteps T must be from 1 to 100,000, not 0$',
        ),
        (lambda: CosineBetas(T=3 * 10**7).sigma, 'from 1 to 100,000, not 30000000$'),
        (lambda: IDDPMLevels(M=10**9).u, 'from 1 to 100,000, not 1000000000$'),
        (
            lambda: GivenBetas((0.1, 1.5)).sigma,
            '^betas must be above 0 and below 1 .the last may be 1., not 1.5$',
        ),
        (lambda: GivenBetas((0.1, 1.0, 0.2)).sigma, 'not 1$'),
        (lambda: GivenBetas(()).sigma, '^a schedule needs at least one beta$'),
        (
            lambda: timesteps(10, 100, 'leding'),
            "^spacing must be one of trailing, linspace, leading, not 'leding'$",
        ),
        (
            lambda: DiscreteSteps(spacing='leding'),
            "^spacing must be one of trailing, linspace, leading, not 'leding'$",
        ),
        (lambda: timesteps(0, 100), '^the number of steps must be at least 1, not 0$'),
        (lambda: timesteps(101, 100), '^101 steps are more than the 100 timesteps there are$'),
        (
            lambda: DiscreteSteps().sigmas(5, 1000),
            r'^no timestep has a noise level within \[1000, inf\], the range of the network and of '
            r'the steps$',
        ),
        (
            lambda: DiscreteSteps(highest=0.01).sigma_max,
            r'^no timestep has a noise level within \[0, 0\.01\], the range of the network and of',
        ),
        (
            lambda: DiscreteSteps(lowest=2, highest=5).sigmas(5, 0, 1),
            r'^no timestep has a noise level within \[2, 1\], the range of the network and of',
        ),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_single_timestep_without_rescaling():
    assert LinearBetas(T=1).betas.tolist() == pytest.approx([1e-4])
    assert GivenBetas((0.1, 1.0)).sigma[-1] == math.inf   # rescaled by somebody else


def test_table_2():
    assert timesteps(10, 1000, 'leading') == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert timesteps(10, 1000, 'linspace') == [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]
    assert timesteps(10, 1000, 'trailing') == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


@pytest.mark.parametrize('T', [1, 7, 1000])
@pytest.mark.parametrize('half_even', [False, True])
def test_every_number_of_steps_has_its_timesteps(T, half_even):
    for S in range(1, T + 1):
        for spacing in ('trailing', 'linspace', 'leading'):
            t = timesteps(S, T, spacing, half_even)
            assert (
                len(t) == S
                and t[0] >= 1
                and t[-1] <= T
                and all(b > a for a, b in zip(t, t[1:], strict=False))
            ), (S, spacing)
            assert spacing == 'leading' or t[-1] == T
        if S > 1:
            assert timesteps(S, T, 'linspace', half_even)[0] == 1


def test_steps_are_the_levels_of_the_timesteps_and_start_at_infinity():
    schedule = rescaled(ScaledLinearBetas())
    sigmas = DiscreteSteps(schedule).sigmas(25)
    assert torch.equal(sigmas, schedule.sigma[39::40].flip(0)) and sigmas[0] == math.inf
    assert DiscreteSteps(schedule, 'leading').sigmas(10)[0] == schedule.sigma[900]
    assert (DiscreteSteps().sigma_min,
            DiscreteSteps(schedule).sigma_max) == (float(ScaledLinearBetas().sigma[0]), math.inf)
    # Of a network that supports fewer levels, those that it does.
    assert torch.equal(DiscreteSteps(schedule).sigmas(1, 0, float(schedule.sigma[499])),
                       schedule.sigma[499:500])
    assert torch.equal(DiscreteSteps(schedule).sigmas(5, 0, float(schedule.sigma[499])),
                       schedule.sigma[99:500:100].flip(0))
    # Or those that are wanted, or both.
    assert torch.equal(DiscreteSteps(schedule, highest=float(schedule.sigma[499])).sigmas(5),
                       schedule.sigma[99:500:100].flip(0))
    both = DiscreteSteps(schedule, 'linspace', lowest=0.1, highest=50.0)
    assert torch.equal(both.sigmas(2, 0, 20.0),
                       schedule.sigma[(schedule.sigma >= 0.0999) & (schedule.sigma <= 20)][[-1, 0]])
    assert (
        (both.sigma_min, both.sigma_max)
        == (float(both.levels()[0]), float(both.levels()[-1]))
        == pytest.approx((0.1, 50), rel=0.03)
    )
    for name in DISCRETE_SCHEDULES:
        assert isinstance(STEPS[name]().schedule, DISCRETE_SCHEDULES[name])


def test_tables_are_the_base_class():
    with pytest.raises(NotImplementedError):
        DiscreteSchedule().table()


# diffusers: the same tables in float32, and the same choices except for halves, single steps and
# lengths.

schedulers = pytest.importorskip('diffusers.schedulers.scheduling_ddim')
NAMES = {'ddpm-linear': {'beta_schedule': 'linear', 'beta_start': 1e-4, 'beta_end': 0.02},
         'scaled-linear': {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085,
                           'beta_end': 0.012},
         'cosine': {'beta_schedule': 'squaredcos_cap_v2'}}


@pytest.mark.parametrize('name', NAMES)
def test_the_tables_of_diffusers(name):
    theirs = schedulers.DDIMScheduler(**NAMES[name])
    ours = DISCRETE_SCHEDULES[name]()
    torch.testing.assert_close(theirs.alphas_cumprod.to(f64), ours.alpha_bar, rtol=5e-5, atol=1e-7)
    if name != 'cosine':
        theirs = schedulers.rescale_zero_terminal_snr(ours.betas)   # in float64
        torch.testing.assert_close(theirs, rescaled(ours).betas, rtol=1e-8, atol=1e-12)


def of_diffusers(spacing, S):
    scheduler = schedulers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(S)
    return (scheduler.timesteps.flip(0) + 1).tolist()


def test_the_timesteps_of_diffusers():
    """The same but for exact halves, a single linspace step, and numbers of steps for which theirs
    is a wrong list."""
    assert all(of_diffusers('leading', S) == timesteps(S, 1000, 'leading') for S in range(1, 1001))
    wrong, halves = [], []
    for S in range(1, 1001):
        theirs, ours = of_diffusers('trailing', S), timesteps(S)
        if len(theirs) != S:
            wrong.append(S)
            continue
        different = [k for k in range(S) if theirs[k] != ours[k]]
        halves += [S] if different else []
        assert all(Fraction(1000 * (k + 1), S).denominator == 2 and theirs[k] == ours[k] - 1
                   for k in different)
    assert len(wrong) == 62 and wrong[:3] == [61, 103, 121]
    even = [S for S in range(1, 1001) if timesteps(S) != timesteps(S, half_even=True)]
    assert (len(even), len(halves)) == (62, 35), len(halves)
    assert even[:2] == [16, 32] and set(halves) <= set(even)
    assert of_diffusers('trailing', 16) == timesteps(16, half_even=True) != timesteps(16)
    assert of_diffusers('linspace', 1) == [1] and timesteps(1, 1000, 'linspace') == [1000]
    for S in range(2, 1001):
        pairs = zip(of_diffusers('linspace', S), timesteps(S, 1000, 'linspace'), strict=True)
        different = [k for k, (theirs, ours) in enumerate(pairs) if theirs != ours]
        assert all(Fraction(999 * k, S - 1).denominator == 2 for k in different), S


def test_one_kind_of_table_serves_both_papers():
    """The levels of iDDPM by its recursion are those of the cosine schedule by its logarithms."""
    iddpm, cosine = IDDPMLevels(), CosineBetas()
    assert torch.equal(iddpm.sigma, iddpm.u[:-1].flip(0))
    torch.testing.assert_close(iddpm.sigma, cosine.sigma, rtol=1e-9, atol=0)
    torch.testing.assert_close(iddpm.betas, cosine.betas, rtol=1e-9, atol=1e-12)
    ours, theirs = DiscreteSteps(iddpm).sigmas(10), DiscreteSteps(cosine).sigmas(10)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    sigma = torch.tensor([0.01, 1.0, 100.0], dtype=f64)
    by_iddpm, by_cosine = (V(noise_label='timestep', schedule=s) for s in (iddpm, cosine))
    assert torch.equal(by_iddpm.index(sigma), by_cosine.index(sigma))
