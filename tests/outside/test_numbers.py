"""Numbers that others measured or publish, from this project's own functions.

Those that do not come out are listed with the reason in docs/sampling.md, "Other people's numbers".
"""

import numpy as np
import pytest
import torch

from limpid.earlier import DDIM
from limpid.exponential import UniPC
from limpid.grids import aligned
from limpid.levels import CosineBetas, IDDPMLevels, LinearBetas, ScaledLinearBetas
from limpid.multistep import DEIS
from limpid.preconditioning import EDM, IDDPM
from limpid.samplers import FlowSampler
from limpid.sampling import sample
from limpid.solvers import Euler, Multistep2M
from limpid.steps import DiscreteSteps, EDMSteps, ExplicitSteps, IDDPMSteps, VESteps

f64 = torch.float64

# The network and the first sample of the tests of diffusers: F = x t/(t + 1), timesteps t = 0 to
# 999 of linear betas, x of VP's frame.
LEVELS = LinearBetas().sigma
FIRST = (torch.arange(768, dtype=f64) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


class Model:
    """D of that network. `prediction` is what F predicts; t is that of the nearest level."""

    def __init__(self, prediction='epsilon'):
        self.prediction = prediction

    def __call__(self, x, sigma, labels=None):
        t = (LEVELS.log() - sigma.log()).abs().argmin()
        a = (1 + sigma**2).rsqrt()
        F = a * x * t / (t + 1)
        return a * a * x - a * sigma * F if self.prediction == 'v' else x - sigma * F


def drawn(prediction, sampler, steps, num_steps):
    """|x| in VP's frame where the sampler ends."""
    high, low = steps.sigmas(num_steps)[[0, -1]]
    x = sample(Model(prediction), FIRST * (1 + high**2).sqrt() / high, num_steps=num_steps,
               steps=steps, sampler=sampler)
    return x.abs() if sampler.final == 'denoise' else x.abs() / (1 + low**2).sqrt()


def flow(solver):
    return FlowSampler(solver, final='sigma-min')


def test_number_1_the_euler_loop_on_edms_steps():
    """diffusers, tests/schedulers/test_scheduler_edm_euler.py"""
    def network(x, sigma, labels=None):   # F(u, c) = u c/(c + 1)
        c = EDM()
        c_noise = c.c_noise(sigma)
        return c.c_skip(sigma) * x + c.c_out(sigma) * c.c_in(sigma) * x * c_noise / (c_noise + 1)

    images = sample(network, FIRST * (80**2 + 1) ** 0.5 / 80, num_steps=10, solver=Euler())
    assert float(images.abs().sum()) == pytest.approx(34.1855, abs=1e-3)
    assert float(images.abs().mean()) == pytest.approx(0.0445, abs=5e-5)


@pytest.mark.parametrize(('prediction', 'total', 'mean'), [('epsilon', 172.0067, 0.223967),
                                                           ('v', 52.5302, 0.0684)])
def test_number_2_ddim(prediction, total, mean):
    """diffusers, tests/schedulers/test_scheduler_ddim.py"""
    x = drawn(prediction, DDIM(clip=True), DiscreteSteps(LinearBetas(), 'leading'), 10)
    assert float(x.sum()) == pytest.approx(total, abs=1e-3)
    assert float(x.mean()) == pytest.approx(mean, abs=5e-5)


# Ten steps from t = 999 to t = 0, evenly; and ten levels of ρ = 7 between the levels of both.
EVEN = DiscreteSteps(LinearBetas(), 'linspace')
KARRAS = EDMSteps(float(LEVELS[0]), float(LEVELS[-1]))
# Its last level twice, as there: a step of no length, before which UniC corrects once more.
TWICE = ExplicitSteps((*KARRAS.sigmas(10).tolist(), float(LEVELS[0]) * (1 - 1e-9)))


@pytest.mark.parametrize(('solver', 'prediction', 'steps', 'num_steps', 'mean'), [
    (Multistep2M(), 'epsilon', EVEN, 11, 0.3301),
    (Multistep2M(), 'v', EVEN, 11, 0.2251),
    (Multistep2M(), 'v', KARRAS, 10, 0.2092),   # printed 0.2096; diffusers 0.42 has 0.20920
    (UniPC(2, lower_order_final=True), 'epsilon', EVEN, 11, 0.2464),
    (UniPC(2, lower_order_final=True), 'epsilon', TWICE, 11, 0.2925),
    (UniPC(2, lower_order_final=True), 'v', EVEN, 11, 0.1014),
    (DEIS(2, 'log-rho', True), 'epsilon', EVEN, 11, 0.23916),
    (DEIS(2, 'log-rho', True), 'v', EVEN, 11, 0.0911)])   # printed 0.091; diffusers has 0.09107
def test_number_3_multistep_solvers(solver, prediction, steps, num_steps, mean):
    """diffusers, tests/schedulers/test_scheduler_dpm_multi.py, _unipc.py and _deis.py"""
    assert float(drawn(prediction, flow(solver), steps, num_steps).mean()) == pytest.approx(
        mean, abs=6e-5)


@pytest.mark.parametrize(('table', 'timesteps', 'schedule', 'within'), [
    ('sd15', [999, 850, 736, 645, 545, 455, 343, 233, 124, 24], ScaledLinearBetas(), 0.0027),
    ('sdxl', [999, 845, 730, 587, 443, 310, 193, 116, 53, 13], ScaledLinearBetas(), 0.0035)])
def test_number_4_align_your_steps_lists_timesteps_of_its_schedule(table, timesteps, schedule,
                                                                   within):
    """diffusers, schedulers/scheduling_utils.py"""
    levels = aligned(table).sigmas(11)[:10]
    np.testing.assert_allclose(levels, schedule.sigma[timesteps], atol=within, rtol=0)


def test_number_4_the_cosine_levels_of_deepfloyd():
    levels = CosineBetas().sigma[[995, 920, 811, 686, 555, 418, 315, 174, 109, 12]]
    np.testing.assert_allclose(levels, aligned('deepfloyd').sigmas(11)[:10], rtol=0.02)


def test_number_5_the_ends_of_stable_diffusions_schedule():
    ends = ScaledLinearBetas().sigma[[999, 0]]
    np.testing.assert_allclose(ends, [14.61464119, 0.02916753], rtol=2e-5)


GITS = [80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002]


def test_number_6_gits_lists_entries_of_edms_steps():
    """zju-pi/diff-sampler, gits-main: entries of 61 levels"""
    levels = EDMSteps().sigmas(61)[[0, 19, 27, 33, 39, 45, 60]]
    np.testing.assert_allclose(levels, GITS, atol=6e-5)
    assert ExplicitSteps(tuple(GITS)).sigmas(7).tolist() == GITS


SIGMA = torch.tensor([0.57728028, 0.78348833, 0.52665728, 0.53179187], dtype=f64)


def test_number_7_preconditioners():
    """NVIDIA/physicsnemo, test/models/diffusion/test_preconditioning.py"""
    c = EDM(sigma_data=1.0)
    for function, expected in (
            (c.c_in, [0.86605161, 0.78716886, 0.88479370, 0.88291740]),
            (c.c_out, [0.49995452, 0.61673760, 0.46598306, 0.46952829]),
            (c.c_skip, [0.75004542, 0.61963475, 0.78285986, 0.77954316]),
            (c.c_noise, [-0.13735685, -0.06099978, -0.16030131, -0.15787578])):
        np.testing.assert_allclose(function(SIGMA), expected, rtol=1e-6)
    levels = IDDPMLevels(C_1=0.001, C_2=0.008, M=2000)
    assert IDDPM(levels).c_noise(SIGMA).tolist() == [655, 836, 605, 610]


def test_number_8_grids():
    """NVIDIA/physicsnemo; in float32, whose rounding reaches 1e-5 at the lowest levels"""
    np.testing.assert_allclose(EDMSteps().sigmas(10), [
        80, 42.415176, 21.108667, 9.723201, 4.066123, 1.501742, 0.469979, 0.116638, 0.020435,
        0.002], rtol=1e-4)
    np.testing.assert_allclose(IDDPMSteps().sigmas(10), [
        80.203712, 5.376381, 2.694851, 1.719473, 1.191596, 0.841602, 0.583422, 0.372582, 0.187167,
        0.006432], rtol=1e-6, atol=1e-5)
    levels = IDDPMLevels(C_1=0.002, C_2=0.01, M=500)
    np.testing.assert_allclose(IDDPMSteps(levels=levels).sigmas(10), [
        80.359306, 5.387045, 2.700539, 1.723506, 1.194859, 0.847133, 0.588187, 0.376969, 0.191397,
        0.010318], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(VESteps().sigmas(10) ** 2, [
        10000, 1506.630127, 226.993454, 34.199512, 5.152603, 0.776306, 0.116961, 0.017622, 0.002655,
        0.0004], rtol=1e-4, atol=5e-7)
