"""The solvers of other programs, stepped on the same denoiser and noise levels in float64."""

import pytest
import torch

from benchmarks.parts import Missing, part_of
from limpid.brownian import BrownianPath, SDEMultistep
from limpid.earlier import DDIM
from limpid.exponential import DPMSolver2, Multistep3M, Singlestep2S, UniPC
from limpid.grids import ExponentialSteps
from limpid.multistep import DEIS, IPNDM, LMS
from limpid.samplers import Churn, FlowSampler
from limpid.sampling import sample
from limpid.solvers import Euler, Multistep2M, SecondOrder
from limpid.steps import EDMSteps, ExplicitSteps, VPSteps

f64 = torch.float64
N = 9


def net(x, sigma, labels=None):
    return torch.tanh(x / (1 + sigma**2)) * 0.9


def noise():
    return torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(3))


def ours(solver, final='sigma-min'):
    return sample(net, noise(), num_steps=N, sampler=FlowSampler(solver, final=final))


# What the schedulers of diffusers say about arguments and each other is not about this project.
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')


def scheduler(name, count=N, levels=None, **settings):
    """A scheduler of diffusers with `count` timesteps, on the levels of this test or others."""
    diffusers = pytest.importorskip('diffusers', reason='the extra "diffusers" is not installed')
    made = getattr(diffusers, name)(**settings)
    made.set_timesteps(count)
    levels = EDMSteps().sigmas(N) if levels is None else levels
    made.sigmas = torch.nn.functional.pad(levels, (0, 1))
    return made


def theirs(made):
    """Step a scheduler of diffusers, whose x is that of VP, up to the lowest noise level."""
    signal = (1 + made.sigmas**2).rsqrt()
    x = noise() * made.sigmas[0] * signal[0]
    for i, t in enumerate(made.timesteps[:N - 1]):
        x = made.step(net(x / signal[i], made.sigmas[i]), t, x).prev_sample
    return x / signal[N - 1]


def close(x, y, tolerance=1e-6):
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


MULTI, PC = 'DPMSolverMultistepScheduler', 'UniPCMultistepScheduler'
DEIS_OF_DIFFUSERS = 'DEISMultistepScheduler'


@pytest.mark.parametrize(('name', 'settings', 'solver'), [
    (PC, {'solver_order': 3}, UniPC(3)), (PC, {'solver_order': 2}, UniPC(2)),
    (PC, {'solver_order': 2, 'solver_type': 'bh1'}, UniPC(2, 'bh1')),
    (PC, {'solver_order': 3, 'solver_type': 'bh1'}, UniPC(3, 'bh1')),
    (PC, {'solver_order': 1}, UniPC(1)),
    (PC, {'solver_order': 3, 'disable_corrector': list(range(N))}, UniPC(3, correct=False)),
    (MULTI, {'solver_order': 3}, Multistep3M()), (MULTI, {'solver_order': 2}, Multistep2M()),
    (MULTI, {'solver_order': 1}, Euler()),
    (DEIS_OF_DIFFUSERS, {'solver_order': 3}, DEIS(3, 'log-rho')),
    (DEIS_OF_DIFFUSERS, {'solver_order': 2}, DEIS(2, 'log-rho')),
    (DEIS_OF_DIFFUSERS, {'solver_order': 1}, DEIS(1))])
def test_multistep_solvers_of_diffusers(name, settings, solver):
    made = scheduler(name, prediction_type='sample', lower_order_final=False, **settings)
    close(theirs(made), ours(solver))


@pytest.mark.parametrize(('name', 'solver'), [
    (PC, UniPC(3, lower_order_final=True)), (MULTI, Multistep3M(lower_order_final=True)),
    (DEIS_OF_DIFFUSERS, DEIS(3, 'log-rho', lower_order_final=True))])
def test_lower_orders_at_the_end_are_those_of_diffusers(name, solver):
    # It counts the steps that are left by its timesteps.
    made = scheduler(name, N - 1, prediction_type='sample', lower_order_final=True, solver_order=3)
    close(theirs(made), ours(solver))


def test_singlestep_solver_of_diffusers():
    """Its second points are levels of the grid: here those between, in ln σ."""
    levels = ExponentialSteps().sigmas(N)
    made = scheduler('DPMSolverSinglestepScheduler', N - 1, levels, prediction_type='sample',
                     solver_order=2, lower_order_final=False, final_sigmas_type='sigma_min')
    x = sample(net, noise(), steps=ExplicitSteps(tuple(levels[::2].tolist())),
               sampler=FlowSampler(Singlestep2S(), final='sigma-min'))
    close(theirs(made), x)


@pytest.mark.parametrize(('name', 'solver', 'evaluations'), [
    ('EulerDiscreteScheduler', Euler(), 1), ('LMSDiscreteScheduler', LMS(4), 1),
    ('HeunDiscreteScheduler', SecondOrder(), 2)])
def test_solvers_of_diffusers_in_sigma(name, solver, evaluations, monkeypatch):
    made = scheduler(name, prediction_type='sample')
    levels = EDMSteps().sigmas(N)
    if evaluations == 2:   # each level but the ends is there twice
        made.sigmas = torch.cat([levels[:1], levels[1:].repeat_interleave(2), levels.new_zeros(1)])
        made.timesteps = torch.cat([made.timesteps[:1], made.timesteps[1:]])
    precise_integrals(monkeypatch)
    x = noise() * 80
    for i in range(evaluations * (N - 1)):
        made.is_scale_input_called = True
        x = made.step(net(x, made.sigmas[i]), made.timesteps[i], x).prev_sample
    close(x, ours(solver))


def precise_integrals(monkeypatch):
    """LMS of diffusers and of k-diffusion integrate with scipy, to 1e-4 alone."""
    from scipy import integrate
    quad = integrate.quad
    monkeypatch.setattr(integrate, 'quad', lambda function, a, b, **_: quad(
        function, float(a), float(b), epsabs=1e-13, epsrel=1e-12))


def test_ipndm_of_diffusers():
    """Its levels are angles, and it takes v = α ε − β D."""
    made = scheduler('IPNDMScheduler')
    levels = EDMSteps().sigmas(N)
    made.alphas, made.betas = (1 + levels**2).rsqrt(), levels * (1 + levels**2).rsqrt()
    x = noise() * made.betas[0]
    for i in range(N - 1):
        D = net(x / made.alphas[i], levels[i])
        v = (x / made.alphas[i] - D) / levels[i] * made.alphas[i] - made.betas[i] * D
        x = made.step(v, made.timesteps[i], x).prev_sample
    close(x / made.alphas[N - 1], ours(IPNDM(4)))


@pytest.fixture(scope='module')
def k_diffusion():
    """Its module of samplers alone: what else the package imports is not needed here."""
    try:
        return part_of('k_diffusion', 'sampling')[0]
    except Missing as reason:
        pytest.skip(f'{reason}: pip install --no-deps k-diffusion')


@pytest.mark.parametrize(('name', 'settings', 'solver'), [
    ('sample_euler', {}, Euler()), ('sample_heun', {}, SecondOrder()),
    ('sample_dpm_2', {}, DPMSolver2()), ('sample_lms', {}, LMS(4)),
    ('sample_lms', {'order': 2}, LMS(2)), ('sample_dpmpp_2s_ancestral', {'eta': 0}, Singlestep2S()),
    ('sample_dpmpp_2m', {}, Multistep2M())])
def test_solvers_of_k_diffusion(k_diffusion, name, settings, solver, monkeypatch):
    precise_integrals(monkeypatch)
    x = getattr(k_diffusion, name)(net_of_batch, noise() * 80, EDMSteps().sigmas(N), disable=True,
                                   **settings)
    close(x, ours(solver))


CHURN = {'s_churn': 3.0, 's_tmin': 0.05, 's_tmax': 50.0, 's_noise': 1.01}


@pytest.mark.parametrize(('name', 'solver'), [('sample_euler', Euler()),
                                              ('sample_heun', SecondOrder()),
                                              ('sample_dpm_2', DPMSolver2())])
def test_fresh_noise_of_k_diffusion(k_diffusion, name, solver, monkeypatch):
    """Algorithm 2, with the same numbers drawn."""
    sigmas = torch.nn.functional.pad(EDMSteps().sigmas(N), (0, 1))
    monkeypatch.setattr(torch, 'randn_like', torch.sin)
    x = getattr(k_diffusion, name)(net_of_batch, noise() * 80, sigmas, disable=True, **CHURN)
    churn = Churn(*CHURN.values())
    close(x, sample(net, noise(), num_steps=N, randn_like=torch.sin,
                    sampler=FlowSampler(solver, churn=churn)))


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
def test_the_ancestral_sampler_of_k_diffusion_is_ddim(k_diffusion, eta):
    sigmas = torch.nn.functional.pad(EDMSteps().sigmas(N), (0, 1))
    x = k_diffusion.sample_euler_ancestral(net_of_batch, noise() * 80, sigmas, disable=True,
                                           eta=eta, noise_sampler=lambda *_: torch.cos(noise()))
    close(x, sample(net, noise(), num_steps=N, sampler=DDIM(eta=eta),
                    randn_like=lambda x: torch.cos(noise())))


def net_of_batch(x, sigma):
    return net(x, sigma.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(('name', 'order'), [('sample_dpmpp_2m_sde', 2),
                                             ('sample_dpmpp_3m_sde', 3)])
def test_stochastic_solvers_of_k_diffusion(k_diffusion, name, order):
    """With the increments of our own path, for the noise that theirs takes from outside."""
    def normal(x):
        return torch.ones_like(x)

    path = BrownianPath(noise() * 80, 1.0, normal)

    def sampler(sigma, sigma_next):
        scale = (sigma_next**-2 - sigma**-2).sqrt()
        return (path(sigma_next) - path(sigma)) / scale

    sigmas = torch.nn.functional.pad(EDMSteps().sigmas(N), (0, 1))
    x = getattr(k_diffusion, name)(net_of_batch, noise() * 80, sigmas, disable=True,
                                   noise_sampler=sampler)
    expected = sample(net, noise(), num_steps=N, sampler=SDEMultistep(order), randn_like=normal)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('name', 'steps', 'settings'), [
    ('get_sigmas_exponential', ExponentialSteps(), (0.002, 80)),
    ('get_sigmas_karras', EDMSteps(rho=5), (0.002, 80, 5)),
    ('get_sigmas_vp', VPSteps(), ())])
def test_the_grids_of_k_diffusion(k_diffusion, name, steps, settings):
    theirs = getattr(k_diffusion, name)(N, *settings)[:-1].to(f64)   # computed in float32
    torch.testing.assert_close(steps.sigmas(N), theirs, rtol=3e-4, atol=0)
