"""The solvers of other programs, stepped on the same denoiser and noise levels in float64."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from limpid.brownian import BrownianPath, SDEMultistep
from limpid.exponential import DPMSolver2, Multistep3M, Singlestep2S, UniPC
from limpid.grids import ExponentialSteps, aligned
from limpid.levels import CosineBetas, ScaledLinearBetas
from limpid.multistep import LMS
from limpid.samplers import FlowSampler
from limpid.sampling import sample
from limpid.solvers import Euler, Multistep2M, SecondOrder
from limpid.steps import EDMSteps, ExplicitSteps, IDDPMSteps

f64 = torch.float64
N = 9


def net(x, sigma, labels=None):
    return torch.tanh(x / (1 + sigma**2)) * 0.9


def noise():
    return torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(3))


def ours(solver, final='sigma-min'):
    return sample(net, noise(), num_steps=N, sampler=FlowSampler(solver, final=final))


def theirs(scheduler):
    """Step a scheduler of diffusers, whose x is that of VP, up to the lowest noise level."""
    sigmas = EDMSteps().sigmas(N)
    scheduler.set_timesteps(N)
    scheduler.sigmas = torch.nn.functional.pad(sigmas, (0, 1))
    signal = (1 + sigmas**2).rsqrt()
    x = noise() * sigmas[0] * signal[0]
    for i, t in enumerate(scheduler.timesteps[:-1]):
        x = scheduler.step(net(x / signal[i], sigmas[i]), t, x).prev_sample
    return x / signal[-1]


@pytest.mark.parametrize(('name', 'settings', 'solver'), [
    ('UniPCMultistepScheduler', {'solver_order': 3}, UniPC(3)),
    ('UniPCMultistepScheduler', {'solver_order': 2}, UniPC(2)),
    ('UniPCMultistepScheduler', {'solver_order': 2, 'solver_type': 'bh1'}, UniPC(2, 'bh1')),
    ('UniPCMultistepScheduler', {'solver_order': 1}, UniPC(1)),
    ('DPMSolverMultistepScheduler', {'solver_order': 3}, Multistep3M()),
    ('DPMSolverMultistepScheduler', {'solver_order': 2}, Multistep2M())])
def test_solvers_of_diffusers(name, settings, solver):
    diffusers = pytest.importorskip('diffusers', reason='the extra "diffusers" is not installed')
    scheduler = getattr(diffusers, name)(prediction_type='sample', lower_order_final=False,
                                         **settings)
    torch.testing.assert_close(theirs(scheduler), ours(solver), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope='module')
def k_diffusion():
    """Its module of samplers alone: what else the package imports is not needed here."""
    found = importlib.util.find_spec('k_diffusion')
    if found is None or found.submodule_search_locations is None:
        pytest.skip('k-diffusion is not installed: pip install --no-deps k-diffusion')
    folder = Path(found.submodule_search_locations[0])
    stubs = {name: types.ModuleType(name) for name in (
        'torchdiffeq', 'torchsde', 'peer', 'peer.utils')}
    stubs['torchdiffeq'].odeint = None
    stubs['peer.utils'].append_dims = lambda x, n: x.reshape(-1, *[1] * (n - 1))
    stubs['peer'].utils, stubs['peer'].__path__ = stubs['peer.utils'], []
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, sys.modules.get(name, module))
        spec = importlib.util.spec_from_file_location('peer.sampling', folder / 'sampling.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(('name', 'settings', 'solver'), [
    ('sample_euler', {}, Euler()), ('sample_heun', {}, SecondOrder()),
    ('sample_dpm_2', {}, DPMSolver2()), ('sample_lms', {}, LMS(4)),
    ('sample_dpmpp_2s_ancestral', {'eta': 0}, Singlestep2S()),
    ('sample_dpmpp_2m', {}, Multistep2M())])
def test_solvers_of_k_diffusion(k_diffusion, name, settings, solver):
    sigmas = EDMSteps().sigmas(N)
    x = getattr(k_diffusion, name)(net_of_batch, noise() * 80, sigmas, disable=True, **settings)
    tolerance = 1e-4 if name == 'sample_lms' else 1e-6   # it integrates with rtol=1e-4
    torch.testing.assert_close(x, ours(solver), rtol=tolerance, atol=tolerance)


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


def test_the_grids_of_k_diffusion(k_diffusion):
    theirs = k_diffusion.get_sigmas_exponential(N, 0.002, 80)[:-1].to(f64)
    torch.testing.assert_close(ExponentialSteps().sigmas(N), theirs, rtol=1e-5, atol=0)


def test_the_edm_euler_loop_of_diffusers():
    """Its tests/schedulers/test_scheduler_edm_euler.py: 34.1855 and .0445."""
    x = (torch.arange(768, dtype=f64) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)

    def network(x, sigma, labels=None):   # F(u, c) = u c/(c + 1) in EDM's preconditioning
        c_in, c_noise = (sigma**2 + 0.25).rsqrt(), sigma.log() / 4
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 * c_in
        return c_skip * x + c_out * (c_in * x) * c_noise / (c_noise + 1)

    scaled = x * (80**2 + 1) ** 0.5 / 80   # the sampler multiplies by 80
    images = sample(network, scaled, num_steps=10, solver=Euler())
    assert float(images.abs().sum()) == pytest.approx(34.1855, abs=1e-2)
    assert float(images.abs().mean()) == pytest.approx(0.0445, abs=1e-3)


@pytest.mark.parametrize(('table', 'timesteps', 'schedule', 'within'), [
    ('sd15', [999, 850, 736, 645, 545, 455, 343, 233, 124, 24], ScaledLinearBetas(), 0.0027),
    ('sdxl', [999, 845, 730, 587, 443, 310, 193, 116, 53, 13], ScaledLinearBetas(), 0.0035)])
def test_align_your_steps_lists_timesteps_of_its_schedule(table, timesteps, schedule, within):
    """diffusers, schedulers/scheduling_utils.py"""
    levels = aligned(table).sigmas(11)[:10]
    np.testing.assert_allclose(levels, schedule.sigma[timesteps], atol=within, rtol=0)


def test_the_ends_of_stable_diffusions_schedule():
    ends = ScaledLinearBetas().sigma[[999, 0]]
    np.testing.assert_allclose(ends, [14.61464119, 0.02916753], rtol=2e-5)


def test_gits_lists_entries_of_edms_steps():
    """zju-pi/diff-sampler, gits-main: entries of 61 levels"""
    levels = EDMSteps().sigmas(61)[[0, 19, 27, 33, 39, 45, 60]]
    np.testing.assert_allclose(levels, [80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002],
                               atol=6e-5)
    x = sample(net, noise(), steps=ExplicitSteps(tuple(levels.tolist())), solver=Euler())
    assert bool(x.isfinite().all())


def test_the_grids_of_physicsnemo():
    np.testing.assert_allclose(EDMSteps().sigmas(10), [
        80, 42.415176, 21.108667, 9.723201, 4.066123, 1.501742, 0.469979, 0.116638, 0.020435,
        0.002], rtol=1e-4)
    # Theirs are computed in float32, whose rounding reaches 1e-5 at the lowest level.
    np.testing.assert_allclose(IDDPMSteps().sigmas(10), [
        80.203712, 5.376381, 2.694851, 1.719473, 1.191596, 0.841602, 0.583422, 0.372582, 0.187167,
        0.006432], rtol=1e-6, atol=1e-5)


def test_the_cosine_levels_of_deepfloyd():
    levels = CosineBetas().sigma[[995, 920, 811, 686, 555, 418, 315, 174, 109, 12]]
    np.testing.assert_allclose(levels, aligned('deepfloyd').sigmas(11)[:10], rtol=0.02)
