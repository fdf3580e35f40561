"""Solvers, ends and grids for few steps: orders, evaluations, and what equals what."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import betainc

from limpid.brownian import BrownianPath, SDEMultistep
from limpid.denoiser import Conditioned
from limpid.earlier import DDIM
from limpid.exponential import DPMSolver2, Multistep3M, Singlestep2S, UniPC
from limpid.flow import ProbabilityFlow
from limpid.grids import ALIGNED, aligned, beta_distribution, beta_quantile
from limpid.multistep import DEIS, IPNDM, LMS, IPNDMv
from limpid.samplers import Churn, FlowSampler
from limpid.sampling import plan, sample
from limpid.schedules import LinearSchedule, NoScaling, VPScaling, VPSchedule
from limpid.seeds import StackedGenerator
from limpid.solvers import Adams, Euler, Multistep2M, SecondOrder
from limpid.steps import STEPS, EDMSteps, VPSteps
from tests.limpid.convergence import dirac_case, errors_on_range, gaussian_case
from tests.oracles import Gaussian

f64 = torch.float64

FEW_STEPS = {'ipndm': (IPNDM(), 2), 'ipndm-v': (IPNDMv(), 4), 'ipndm-v-3': (IPNDMv(3), 3),
             'deis': (DEIS(), 4), 'deis-3': (DEIS(3), 3), 'deis-log': (DEIS(4, 'log-rho'), 4),
             'lms': (LMS(), 4), 'dpm-2': (DPMSolver2(), 2), 'dpmpp-2s': (Singlestep2S(), 2),
             'dpmpp-3m': (Multistep3M(), 2), 'unipc': (UniPC(), 4), 'unipc-1': (UniPC(1), 2),
             'unip-3': (UniPC(3, correct=False), 3), 'unipc-bh1': (UniPC(2, 'bh1'), 3)}


def order_of(solver, case, step_counts, *, low=0.3, high=20.0, start=10, rho=7):
    errors = errors_on_range(solver, LinearSchedule(), NoScaling(), case, step_counts, low, high,
                             start, rho)
    return math.log2(errors[0] / errors[1])


# What the docs claim, for every solver, order and form.
CLAIMS = [
    (Euler(), 1), (SecondOrder(), 2), (SecondOrder(0.5), 2), (SecondOrder(2 / 3), 2),
    (Multistep2M(), 2), (Multistep3M(), 2), (DPMSolver2(), 2), (Singlestep2S(), 2),
    *((Adams(order), order) for order in (1, 2, 3)),
    *((IPNDM(order), min(order, 2)) for order in (1, 2, 3, 4)),
    *((kind(order), order) for kind in (IPNDMv, DEIS, LMS) for order in (1, 2, 3, 4)),
    *((DEIS(order, space), order) for space in ('rho', 'log-rho') for order in (2, 3, 4)),
    *((UniPC(order, bh, correct), order + correct) for order in (1, 2, 3) for bh in ('bh1', 'bh2')
      for correct in (True, False))]


@pytest.mark.parametrize(('solver', 'order'), CLAIMS, ids=str)
@pytest.mark.parametrize('case', [gaussian_case, dirac_case])
def test_order_of_convergence(solver, order, case):
    """On the flow down to σ = 1, or for some to 0.3, where no errors of two orders cancel."""
    counts = [160, 320] if solver == IPNDM(3) else [80, 160]
    cancels = case is gaussian_case and solver in (
        IPNDM(3), UniPC(2, 'bh1'), UniPC(3, 'bh1', False), UniPC(3, 'bh2', False))
    if case is gaussian_case and solver == SecondOrder(0.5):
        order = 3   # of the midpoint rule on a Gaussian
    measured = order_of(solver, case, counts, low=0.3 if cancels else 1.0,
                        high=10.0 if cancels else 20.0)
    assert measured == pytest.approx(order, abs=0.25), measured


@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_ipndm_has_its_order_on_even_steps_and_two_on_others(order):
    even = order_of(IPNDM(order), gaussian_case, [100, 200], low=0.5, high=10.0, start=0, rho=1)
    assert order - 0.35 < even < order + 0.35
    if order > 2:
        assert 1.9 < order_of(IPNDM(order), gaussian_case, [80, 160], high=10.0) < 2.2


def test_the_published_third_order_dpm_solver_is_of_second_order():
    assert 2.2 < order_of(Multistep3M(), gaussian_case, [80, 160]) < 2.6


EULER = [IPNDM(1), IPNDMv(1), DEIS(1), DEIS(1, 'log-rho'), LMS(1), UniPC(1, correct=False),
         Adams(1)]


@pytest.mark.parametrize('solver', EULER)
def test_order_one_is_eulers_method_bitwise(solver):
    noise = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(5))
    ours, euler = (sample(Gaussian(), noise, num_steps=7, sampler=FlowSampler(s, final='sigma-min'))
                   for s in (solver, Euler()))
    assert torch.equal(ours, euler)


def test_what_equals_what():
    noise = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(5))
    x = sample(Gaussian(), noise, num_steps=9, solver=LMS(3))
    for same in (IPNDMv(3), DEIS(3, 'rho')):
        torch.testing.assert_close(sample(Gaussian(), noise, num_steps=9, solver=same), x,
                                   rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('solver', [DEIS(3), LMS(3), DPMSolver2(), Singlestep2S(), Multistep3M(),
                                    UniPC()])
def test_solvers_in_sigma_do_not_see_schedule_and_scaling(solver):
    noise = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(5))
    for final in ('denoise', 'sigma-min'):
        linear = FlowSampler(solver, final=final)
        vp = FlowSampler(solver, VPSchedule.through(0.002, 80), VPScaling(), final=final)
        torch.testing.assert_close(sample(Gaussian(), noise, num_steps=8, sampler=vp),
                                   sample(Gaussian(), noise, num_steps=8, sampler=linear),
                                   rtol=1e-7, atol=1e-7)


TWICE = {'heun', 'dpm-2', 'dpmpp-2s'}


@pytest.mark.parametrize('name', ['euler', *FEW_STEPS])
@pytest.mark.parametrize(('final', 'afs'), [('denoise', None), ('sigma-min', None),
                                            ('sigma-min', 0.3)])
def test_number_of_evaluations(name, final, afs):
    solver = Euler() if name == 'euler' else FEW_STEPS[name][0]
    net, N = Gaussian(), 6
    x = sample(net, torch.ones(1, 1, 2, 2), num_steps=N,
               sampler=FlowSampler(solver, final=final, afs=afs))
    steps = (2 if name in TWICE else 1) * (N - 1)
    assert len(net.sigmas) == steps + (final == 'denoise') - (afs is not None)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize('sampler', [FlowSampler(Euler(), final='sigma-min'), DDIM(
    final='sigma-min'), SDEMultistep(eta=0, final='sigma-min'),
    FlowSampler(Euler(), VPSchedule.through(0.02, 80), VPScaling(), final='sigma-min')])
def test_sigma_min_ends_with_the_noise_that_is_there(sampler):
    """On the exact flow of a Gaussian: x at sigma_min, not at 0."""
    z = torch.linspace(-2, 2, 7, dtype=f64).reshape(7, 1, 1, 1)
    net = Gaussian()
    x = sample(net, z, num_steps=800, sampler=sampler, steps=EDMSteps(sigma_min=0.5))
    assert min(net.sigmas) > 0.5
    torch.testing.assert_close(x, net.flow(80 * z, 80, 0.5), rtol=0, atol=0.02)


def test_the_analytical_first_step_is_nearly_the_first_evaluation():
    z = torch.randn(4, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(1))
    asked, afs = (sample(Gaussian(), z, num_steps=12, sampler=FlowSampler(IPNDM(), afs=mean))
                  for mean in (None, 0.3))
    assert 0 < float((asked - afs).abs().max()) < 0.01
    with pytest.raises(ValueError, match='^afs replaces the first evaluation of two steps or more'):
        sample(Gaussian(), z, num_steps=1, sampler=FlowSampler(afs=0.0))


@pytest.mark.parametrize('make', [lambda: IPNDM(5), lambda: DEIS(0), lambda: UniPC(4), lambda: LMS(
    9), lambda: SDEMultistep(1), lambda: DEIS(space='x'), lambda: UniPC(bh='x'),
    lambda: FlowSampler(final='x'), lambda: SDEMultistep(eta=2), lambda: FlowSampler(afs=math.nan)])
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match='must be'):
        make()


def test_a_brownian_path_has_the_increments_of_one():
    images = torch.zeros(500, 1, 1, 1, dtype=f64)
    path = BrownianPath(images, 1.0, StackedGenerator(range(500), 'cpu').randn_like)
    values = [path(torch.tensor(sigma, dtype=f64)).flatten() for sigma in (10.0, 1.0, 0.5)]
    u = [0.01, 1.0, 4.0]
    steps = torch.stack([values[0], values[1] - values[0], values[2] - values[1]])
    scaled = steps / torch.tensor(np.diff([0, *u]) ** 0.5).reshape(3, 1)
    np.testing.assert_allclose(np.cov(scaled), np.eye(3), atol=4 * math.sqrt(2 / 500))


def test_images_of_the_sde_follow_their_seed_whatever_the_steps_and_the_batch():
    def images(seeds, num_steps, order=3):
        generator = StackedGenerator(seeds, 'cpu')
        noise = generator.randn([len(seeds), 1, 2, 2], dtype=f64)
        return sample(Gaussian(), noise, num_steps=num_steps, sampler=SDEMultistep(order),
                      steps=EDMSteps(sigma_min=0.02), randn_like=generator.randn_like)

    fine, coarse = images([3, 4], 80), images([3, 4], 40)
    assert float((fine - coarse).square().mean()) < 0.1**2   # of independent ones: 0.7²
    assert torch.equal(images([4], 10), images([3, 4], 10)[1:])


def test_without_data_the_steps_of_the_sde_do_not_matter_at_all():
    """D = 0: only the path is left, so that one step and many give the same numbers."""
    def images(num_steps):
        generator = StackedGenerator([7], 'cpu')
        noise = generator.randn([1, 1, 2, 2], dtype=f64)
        return sample(lambda x, sigma, labels: torch.zeros_like(x), noise, num_steps=num_steps,
                      sampler=SDEMultistep(final='sigma-min'), steps=EDMSteps(sigma_min=1.0),
                      randn_like=generator.randn_like)

    torch.testing.assert_close(images(2), images(9), rtol=1e-9, atol=1e-9)


def test_the_distribution_function_of_beta_is_scipys():
    x = torch.linspace(0, 1, 41, dtype=f64)
    for a, b in itertools.product([0.05, 0.6, 1.0, 3.0, 20.0], repeat=2):
        np.testing.assert_allclose(beta_distribution(x, a, b), betainc(a, b, x.numpy()), atol=1e-10)
    np.testing.assert_allclose(betainc(0.6, 0.6, beta_quantile(x, 0.6, 0.6).numpy()), x, atol=1e-10)


def test_aligned_steps_are_the_tables_and_log_linear_between():
    for name, table in ALIGNED.items():
        np.testing.assert_allclose(aligned(name).sigmas(11), table, rtol=1e-12)
        np.testing.assert_allclose(aligned(name).sigmas(21)[1::2].log(),
                                   np.convolve(np.log(table), [0.5, 0.5], 'valid'), rtol=1e-10)
    ends = aligned('svd').sigmas(7, 0.01, 80)[[0, -1]]
    torch.testing.assert_close(ends, torch.tensor([80, 0.01], dtype=f64))


def test_vp_poly_with_rho_1_is_vp():
    ours = STEPS['vp-poly'](rho=1.0).sigmas(9)
    torch.testing.assert_close(ours, VPSteps(0.002, 80.0).sigmas(9), rtol=1e-9, atol=0)


def test_a_vp_schedule_goes_through_every_range_where_it_rises():
    rng = np.random.default_rng(0)
    drawn = 0
    for low, high in 10 ** rng.uniform(-3, 2, [200, 2]):
        if low >= high:
            continue
        if math.log1p(low**2) >= 1e-3 * (2 - 1e-3) * math.log1p(high**2):
            with pytest.raises(ValueError, match='no VP schedule goes from'):
                VPSchedule.through(low, high)
            continue
        drawn += 1
        schedule = VPSchedule.through(low, high)
        t = torch.linspace(1e-3, 1, 50, dtype=f64)
        sigma = schedule.sigma(t)
        assert bool((sigma.diff() > 0).all())
        torch.testing.assert_close(schedule.sigma_inv(sigma), t, rtol=1e-6, atol=1e-9)
    assert drawn > 10
    assert VPSchedule.through(0.1, 30).beta_d < 0


def test_churn_beyond_a_schedule_that_turns_is_one_line():
    flow = FlowSampler(schedule=VPSchedule.through(0.115, 30), churn=Churn(S_churn=40))
    with pytest.raises(ValueError, match='^S_churn=40 raises the noise level 30 beyond what the '):
        sample(Gaussian(), torch.ones(1, 1, 1, 1), num_steps=5, sampler=flow,
               steps=EDMSteps(sigma_min=0.115, sigma_max=30))


def test_a_step_of_a_repeated_level_changes_nothing():
    flow = ProbabilityFlow(Conditioned(Gaussian()), LinearSchedule(), NoScaling())
    x = torch.ones(1, 1, 1, 1, dtype=f64)
    once, twice = torch.tensor([9.0, 3, 1], dtype=f64), torch.tensor([9.0, 3, 3, 1], dtype=f64)
    for solver, _ in FEW_STEPS.values():
        ends = [solver(flow, x, t, lambda i, x, t=t: (x, t[i])) for t in (once, twice)]
        assert torch.equal(*ends), solver


def test_the_plan_of_a_sampler_that_stops_has_the_same_levels():
    stops = plan(Gaussian(), FlowSampler(final='sigma-min'), num_steps=5).sigmas
    assert torch.equal(stops, plan(Gaussian(), num_steps=5).sigmas)
