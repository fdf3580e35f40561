"""Algorithms 1 to 3 against vectors of the reference implementation and closed forms."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from limpid.denoiser import Conditioned
from limpid.noise_range import noise_range
from limpid.pixels import to_uint8
from limpid.samplers import Churn, FlowSampler
from limpid.sampling import run, sample
from limpid.schedules import (
    SCALINGS,
    SCHEDULES,
    LinearSchedule,
    NoScaling,
    VESchedule,
    VPScaling,
    VPSchedule,
)
from limpid.seeds import StackedGenerator, latents_and_labels
from limpid.solvers import SOLVERS, Adams, Euler, Multistep2M, SecondOrder
from limpid.steps import STEPS, DiscreteSteps, EDMSteps
from tests.golden_weights import fill
from tests.limpid.convergence import dirac_case, errors_on_range, gaussian_case
from tests.limpid.test_few_steps import FEW_STEPS
from tests.oracles import Gaussian
from training import networks

GOLDEN = Path(__file__).parents[1] / 'golden'
f64 = torch.float64


def golden_cases():
    for name in ['sampler_edm', 'sampler_ablation_subset']:
        meta = json.loads(str(np.load(GOLDEN / f'{name}.npz')['__meta__']))
        for case in meta['cases']:
            if not case.endswith('nan'):
                yield name, case


def rows_from(kwargs, lowest, highest):
    """Keyword arguments of the reference sampler -> keyword arguments of ours."""
    kwargs = dict(kwargs)
    churn = Churn(**{name: kwargs.pop(name) for name in list(kwargs) if name.startswith('S_')})
    steps = STEPS[kwargs.pop('discretization', 'edm')]()
    names = {field.name for field in dataclasses.fields(steps)}
    given = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
    steps = dataclasses.replace(steps, **given)
    solver = kwargs.pop('solver', 'heun')
    alpha = kwargs.pop('alpha', 1)
    schedule = kwargs.pop('schedule', 'linear')
    if schedule == 'vp':
        schedule = VPSchedule.through(*noise_range(steps, lowest, highest))
    else:
        schedule = SCHEDULES[schedule]()
    return {
        'num_steps': kwargs.pop('num_steps', 18), 'steps': steps, 'churn': churn,
        'schedule': schedule, 'solver': Euler() if solver == 'euler' else SecondOrder(alpha),
        'scaling': SCALINGS[kwargs.pop('scaling', 'none')](), **kwargs}


@pytest.mark.parametrize(('name', 'case'), list(golden_cases()))
def test_the_reference_sampler(name, case):
    arrays = np.load(GOLDEN / f'{name}.npz')
    meta = json.loads(str(arrays['__meta__']))
    net = Gaussian(mu=meta['mean'], c=meta['sd'])
    u = torch.as_tensor(arrays['iddpm_u'])
    for attribute, value in meta['cases'][case]['net'].items():
        if attribute == 'u':
            net.round_sigma = lambda sigma: u[(sigma.reshape(-1, 1)
                                               - u).abs().argmin(1)].reshape(sigma.shape).to(sigma)
        else:
            ends = {'sigma_max': float(u[0]), 'sigma_min': float(u[-2])}
            setattr(net, attribute, ends[attribute] if value == 'u' else value)
    rows = rows_from(meta['cases'][case]['kwargs'], getattr(net, 'sigma_min', 0),
                     getattr(net, 'sigma_max', math.inf))
    latents = torch.as_tensor(arrays['latents'])
    x = sample(net, latents, randn_like=StackedGenerator(meta['seeds'], 'cpu').randn_like, **rows)
    # The reference computes the iDDPM levels in float32.
    levels, tolerance = (
        (1e-3, 1e-5) if 'iddpm' in case and not meta['cases'][case]['net'] else (1e-9, 1e-9)
    )
    np.testing.assert_allclose(net.sigmas, arrays[f'sigmas:{case}'], rtol=levels)
    expected = arrays[f'x:{case}']
    assert np.abs(x.numpy() - expected).max() <= tolerance * np.abs(expected).max()


def test_seeds_draw_what_the_reference_draws():
    arrays = np.load(GOLDEN / 'stacked_rng.npz')
    generator = StackedGenerator([0, 1, 2, 3], 'cpu')
    assert np.array_equal(generator.randn([4, 3, 8, 8]).numpy(), arrays['latents'])
    assert np.array_equal(generator.randint(10, [4]).numpy(), arrays['labels'])
    for name in ['noise0_f64', 'noise1_f64']:
        assert np.array_equal(generator.randn_like(torch.empty(4, 3, 2, 2, dtype=f64)).numpy(),
                              arrays[name])
    big = StackedGenerator(arrays['big_seeds'].tolist(), 'cpu')
    assert np.array_equal(big.randn([4, 1, 2, 2]).numpy(), arrays['big_latents'])


ROWS = list(itertools.product(SCHEDULES, SCALINGS))


def schedule_of(name):
    return VPSchedule.through(0.002, 80) if name == 'vp' else SCHEDULES[name]()


# Lower bounds of the order of convergence: Gaussian data superconverge in some frames.
ORDERS = {'euler': (Euler(), 1), 'heun': (SecondOrder(), 2), 'midpoint': (SecondOrder(0.5), 2),
          'ralston': (SecondOrder(2 / 3), 2), 'alpha-1.1': (SecondOrder(1.1), 2),
          'dpmpp-2m': (Multistep2M(), 2), 'adams': (Adams(), 3), 'adams-2': (Adams(2), 2),
          'adams-1': (Adams(1), 1)}


@pytest.mark.parametrize('name', ORDERS)
@pytest.mark.parametrize(('schedule', 'scaling'), ROWS)
def test_order_of_convergence_on_gaussian_data(name, schedule, scaling):
    solver, order = ORDERS[name]
    errors = errors_on_range(solver, schedule_of(schedule), SCALINGS[scaling](), gaussian_case,
                             [128, 256, 512], 0.002)
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert slopes[-1] > order - 0.15, (errors, slopes)
    if name == 'euler':
        assert slopes[-1] < 1.3


@pytest.mark.parametrize('name', ORDERS)
def test_order_of_convergence_on_two_diracs(name):
    solver, order = ORDERS[name]
    errors = errors_on_range(solver, LinearSchedule(), NoScaling(), dirac_case, [320, 640],
                             sigma_min=0.1)
    slope = math.log2(errors[0] / errors[1])
    assert order - 0.2 < slope < order + 0.3, (errors, slope)


def test_every_solver_has_a_declared_order():
    assert set(SOLVERS) <= {*ORDERS, *FEW_STEPS}


@pytest.mark.parametrize(('schedule', 'scaling'), ROWS)
@pytest.mark.parametrize('disc', STEPS)
def test_the_whole_sampler_reaches_the_data_of_a_gaussian(schedule, scaling, disc):
    """Every combination of rows, from noise to images: the exact flow ends at mu + c z."""
    # cosine begins at 20291, too far for 512 steps
    net, steps = Gaussian(sigma_max=160.0), STEPS[disc]()
    z = torch.linspace(-2, 2, 7, dtype=f64).reshape(7, 1, 1, 1)
    high, *_, low = steps.sigmas(512, 0, 160).tolist()
    schedule = VPSchedule.through(low, high) if schedule == 'vp' else SCHEDULES[schedule]()
    x = sample(net, z, num_steps=512, steps=steps, schedule=schedule,
               scaling=SCALINGS[scaling]())
    expected = net.flow(z * high, high, 0)
    # What is left is the last step, from the lowest noise level to zero: an Euler step,
    # O(sigma_min).
    torch.testing.assert_close(x, expected, rtol=0, atol={'ve': 0.03, 'iddpm': 0.03,
                                                          'cosine': 0.05}.get(disc, 0.015))


def test_one_dirac_is_exact_on_any_grid_where_sigma_is_time():
    class Point:
        def __call__(self, x, sigma, class_labels=None):
            return torch.full_like(x, 0.7)

    z = torch.randn(3, 1, 4, 4, dtype=f64, generator=torch.Generator().manual_seed(0))
    for solver in [Euler(), SecondOrder(), SecondOrder(0.5), SecondOrder(1.1)]:
        for num_steps in [1, 2, 5]:
            x = sample(Point(), z, num_steps=num_steps, solver=solver)
            torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-13)


@pytest.mark.parametrize(('solver', 'evaluations'), [
    (Euler(), lambda n: n), (SecondOrder(), lambda n: 2 * n - 1),
    (SecondOrder(0.5), lambda n: 2 * n - 1)])
@pytest.mark.parametrize('num_steps', [1, 2, 18, 40])
def test_number_of_evaluations(solver, evaluations, num_steps):
    net = Gaussian()
    x = sample(net, torch.ones(1, 1, 2, 2), num_steps=num_steps, solver=solver)
    assert len(net.sigmas) == evaluations(num_steps)
    assert bool(x.isfinite().all())


def test_alpha_beyond_one_never_leaves_the_time_axis():
    """alpha = 1.1 on a coarse grid would put the second point of a step at t < 0: there the step is
    Euler."""
    net = Gaussian()
    sample(net, torch.ones(1, 1, 2, 2), num_steps=5, solver=SecondOrder(1.1))
    assert min(net.sigmas) > 0
    assert len(net.sigmas) < 9


@pytest.mark.parametrize('disc', STEPS)
def test_alpha_beyond_one_stays_finite_where_a_vp_schedule_ends_before_zero(disc):
    """With β_min < 0 there is no σ(t) just above t = 0: a second point there makes the step
    Euler's."""
    steps = STEPS[disc]()
    if not isinstance(steps, DiscreteSteps):   # whose range is that of the timesteps
        steps = dataclasses.replace(steps, sigma_min=0.002, sigma_max=80.0)
    schedule = VPSchedule.through(0.002, 80)
    assert schedule.beta_min < 0
    for num_steps, alpha in itertools.product([5, 9, 10, 11, 24, 28, 101], [1.1, 1.5, 2.0]):
        x = sample(Gaussian(), torch.ones(1, 1, 1, 1), num_steps=num_steps,
                   solver=SecondOrder(alpha), scaling=VPScaling(), steps=steps,
                   schedule=schedule)
        assert bool(x.isfinite().all()), (num_steps, alpha)


@pytest.mark.parametrize('make',
                         [lambda: Churn(S_churn=math.nan), lambda: Churn(
                             S_noise=math.inf),
                          lambda: SecondOrder(math.inf), lambda: SecondOrder(math.nan)])
def test_numbers_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match='must be'):
        make()


def test_one_step_is_the_denoiser_at_the_highest_level():
    net = Gaussian()
    z = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(1))
    expected = net(80 * z, torch.tensor(80.0, dtype=f64))
    torch.testing.assert_close(sample(net, z, num_steps=1), expected, rtol=0, atol=1e-12)


def test_without_churn_algorithm_2_is_algorithm_1_bitwise():
    z = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(2))

    def forbidden(x):
        raise AssertionError('a deterministic sampler draws no noise')

    deterministic = sample(Gaussian(), z, num_steps=7, randn_like=forbidden)
    outside = sample(Gaussian(), z, num_steps=7, churn=Churn(S_churn=10, S_min=200))
    assert torch.equal(deterministic, outside)


def test_algorithm_2_as_printed():
    """The general sampler with σ = t, s = 1, alpha = 1 against the lines of Algorithm 2."""
    net = Gaussian()
    z = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(3))
    churn = Churn(S_churn=6, S_min=0.05, S_max=50, S_noise=1.003)
    ours = sample(net, z, num_steps=9, churn=churn,
                  randn_like=StackedGenerator([1, 2], 'cpu').randn_like)

    generator = StackedGenerator([1, 2], 'cpu')
    t = torch.cat([EDMSteps().sigmas(9), torch.zeros(1, dtype=f64)]).tolist()
    x = z * t[0]
    for i in range(9):
        gamma = min(6 / 9, math.sqrt(2) - 1) if 0.05 <= t[i] <= 50 else 0
        noise = 1.003 * generator.randn_like(x)
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * noise
        d = (x_hat - net(x_hat, torch.tensor(t_hat, dtype=f64))) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = (x - net(x, torch.tensor(t[i + 1], dtype=f64))) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


# (steps, churn, S_noise) -> mean and standard deviation that the exact recursion gives for data
# N(0.3, 0.5²).
MOMENTS = [(18, 0, 1.0, 0.2980, 0.5276), (32, 30, 1.007, 0.3000, 0.5289),
           (256, 40, 1.003, 0.3000, 0.5025)]


def affine_moments(num_steps, churn, mu=0.3, c=0.5):
    """Algorithm 2 is affine on Gaussian data: its mean and variance follow from a recursion."""
    s = torch.cat([EDMSteps().sigmas(num_steps), torch.zeros(1, dtype=f64)]).tolist()
    mean, variance = 0.0, s[0] ** 2
    for i in range(num_steps):
        hat = s[i] * (1 + churn.gamma(s[i], num_steps))
        variance += (hat**2 - s[i] ** 2) * churn.S_noise**2
        h, k = s[i + 1] - hat, hat / (hat**2 + c**2)
        if i == num_steps - 1:
            A = 1 + h * k
        else:
            A = 1 + h / 2 * (k + s[i + 1] / (s[i + 1] ** 2 + c**2) * (1 + h * k))
        mean, variance = mu + A * (mean - mu), A**2 * variance
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(('num_steps', 'S_churn', 'S_noise', 'mean', 'std'), MOMENTS)
def test_moments_of_algorithm_2_on_gaussian_data(num_steps, S_churn, S_noise, mean, std):
    churn = Churn(S_churn=S_churn, S_noise=S_noise)
    exact_mean, exact_std = affine_moments(num_steps, churn)
    assert exact_mean == pytest.approx(mean, abs=5e-5) and exact_std == pytest.approx(std, abs=5e-5)
    torch.manual_seed(0)
    count = 20_000
    x = sample(Gaussian(), torch.randn(count, 1, 1, 1, dtype=f64), num_steps=num_steps, churn=churn)
    assert float(x.mean()) == pytest.approx(exact_mean, abs=4 * exact_std / math.sqrt(count))
    assert float(x.std()) == pytest.approx(exact_std, rel=4 / math.sqrt(2 * count))


def test_a_sampler_works_on_any_callable():
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    x = sample(lambda x, sigma, labels: x / (1 + sigma**2), z)
    assert x.dtype == f64 and x.shape == z.shape
    labels = torch.eye(2)
    seen = []
    sample(lambda x, sigma, labels: seen.append(labels)
           or x / (1 + sigma**2), z, labels, num_steps=1)
    assert seen[0] is labels


@pytest.mark.parametrize('batch', [1, 7, 64])
def test_an_image_does_not_depend_on_its_batch(batch):
    rows = {'num_steps': 6, 'churn': Churn(S_churn=3), 'schedule': VESchedule(),
            'scaling': VPScaling()}

    def images(seeds):
        generator = StackedGenerator(seeds, 'cpu')
        return sample(Gaussian(), generator.randn([len(seeds), 3, 4, 4]),
                      randn_like=generator.randn_like, **rows)

    seeds = list(range(20))
    together = images(seeds)
    parts = torch.cat([images(seeds[i:i + batch]) for i in range(0, 20, batch)])
    assert torch.equal(together, parts)


def test_rounding_networks_see_their_own_levels():
    """Times of an iDDPM network are its levels, also after noise was added."""
    levels = torch.tensor([50.0, 10, 2, 0.5, 0.1], dtype=f64)
    net = Gaussian(sigma_min=0.1, sigma_max=50.0)
    net.round_sigma = lambda sigma: levels[(sigma.reshape(-1, 1) - levels).abs().argmin(1)].reshape(
        sigma.shape
    )
    sample(net, torch.ones(1, 1, 2, 2), num_steps=4, churn=Churn(S_churn=100))
    assert set(net.sigmas) <= set(levels.tolist())


def test_pixels_are_truncated_and_clipped():
    x = torch.tensor([-1.1, -1.0, -0.99, 0.0, 0.999, 1.0, 1.5], dtype=f64)
    assert to_uint8(x).tolist() == [0, 0, 1, 128, 255, 255, 255]


def test_run_takes_any_sampler():
    denoise = Conditioned(Gaussian())
    sigmas = denoise.levels(EDMSteps(), 5)
    assert float(sigmas[-1]) == 0 and len(sigmas) == 6
    x = run(FlowSampler(), denoise, torch.ones(1, 1, 1, 1), sigmas)
    torch.testing.assert_close(x, sample(Gaussian(), torch.ones(1, 1, 1, 1), num_steps=5), rtol=0,
                               atol=0)


@pytest.mark.parametrize('name', ['netsample_edm_ddpmpp', 'netsample_edm_churn',
                                  'netsample_vp_abl'])
def test_small_networks_sample_like_the_reference(name):
    """Latents, labels and step noise of seeds 5 and 6, through a network with known weights."""
    arrays = np.load(GOLDEN / f'{name}.npz')
    meta = json.loads(str(arrays['__meta__']))
    net = fill(getattr(networks, meta['precond_cls'])(**meta['precond_kwargs'])).eval()
    generator = StackedGenerator(meta['seeds'], 'cpu')
    noise, labels = latents_and_labels(net, meta['seeds'], None, generator)
    assert np.array_equal(noise.numpy(), arrays['latents'])
    assert np.array_equal(labels.numpy(), arrays['class_labels'])
    rows = rows_from(meta['kwargs'], net.sigma_min, net.sigma_max)
    x = sample(net, noise, labels, randn_like=generator.randn_like, **rows)
    assert np.abs(x.numpy() - arrays['x']).max() <= 2e-5 * np.abs(arrays['x']).max()
    difference = to_uint8(x).permute(0, 2, 3, 1).numpy().astype(int) - arrays['images_u8']
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() <= 1e-3


@pytest.mark.parametrize('name', ['S_churn', 'S_min', 'S_max', 'S_noise'])
def test_no_number_of_churn_is_nan(name):
    with pytest.raises(ValueError, match=f'^{name} must be a (finite )?number, not nan$'):
        Churn(**{name: math.nan})
