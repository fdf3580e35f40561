"""Rows "Schedule", "Scaling", "Time steps" and "Preconditioning" of Table 1 against closed
forms."""

import math
import re

import pytest
import torch

from limpid.levels import IDDPMLevels
from limpid.noise_range import noise_range
from limpid.preconditioning import EDM, IDDPM, PRECONDITIONERS, VE, VP
from limpid.schedules import SCALINGS, SCHEDULES, VPScaling, VPSchedule
from limpid.steps import STEPS, EDMSteps, IDDPMSteps, VESteps, VPSteps

f64 = torch.float64


@pytest.mark.parametrize('name', SCHEDULES)
def test_the_inverse_and_the_derivative_belong_to_sigma(name):
    schedule = SCHEDULES[name]()
    t = torch.linspace(0.01, 1, 50, dtype=f64).requires_grad_(True)
    sigma = schedule.sigma(t)
    torch.testing.assert_close(schedule.sigma_inv(sigma), t, rtol=1e-11, atol=1e-13)
    derivative, = torch.autograd.grad(sigma.sum(), t)
    torch.testing.assert_close(schedule.sigma_dot(t), derivative, rtol=1e-10, atol=0)


@pytest.mark.parametrize('name', SCALINGS)
def test_the_logarithmic_derivative_belongs_to_s(name):
    scaling = SCALINGS[name]()
    sigma = torch.logspace(-3, 2, 50, dtype=f64)
    difference = (scaling.s(sigma * (1 + 1e-5)).log() - scaling.s(sigma * (1 - 1e-5)).log()) / (
        2e-5 * sigma
    )
    torch.testing.assert_close(scaling.dlog_s(sigma), difference, rtol=1e-7, atol=1e-8)


def test_vp_is_table_1():
    schedule = VPSchedule()
    t = torch.tensor([1e-5, 1e-3, 1.0], dtype=f64)
    expected = torch.tensor([0.0010005, 0.010486, 152.167], dtype=f64)
    torch.testing.assert_close(schedule.sigma(t), expected, rtol=1e-5, atol=0)
    s = VPScaling().s(schedule.sigma(t))
    torch.testing.assert_close(s, (-0.5 * (0.5 * 19.9 * t**2 + 0.1 * t)).exp(), rtol=1e-13, atol=0)


def test_vp_in_float32_does_not_cancel_near_zero():
    """exp(B) − 1 in float32 would be off by 2.4 % at t = 1e-5."""
    sigma = VPSchedule().sigma(torch.tensor(1e-5))
    assert abs(float(sigma) / 0.00100049987 - 1) < 1e-5
    assert abs(float(VPSchedule().sigma_inv(sigma)) / 1e-5 - 1) < 1e-5


def test_vp_constants_from_the_noise_range():
    default = VPSchedule.through(VPSteps().sigma_min, VPSteps().sigma_max)
    assert default.beta_d == pytest.approx(19.9, abs=1e-11)
    assert default.beta_min == pytest.approx(0.1, abs=1e-11)
    edge = VPSchedule.through(0.002, 80)
    assert edge.beta_d == pytest.approx(17.537956987271, abs=1e-11)
    assert edge.beta_min == pytest.approx(-0.004768986493614, abs=1e-14)
    ends = torch.tensor([1e-3, 1.0], dtype=f64)
    torch.testing.assert_close(edge.sigma(ends), torch.tensor([0.002, 80], dtype=f64), rtol=1e-9,
                               atol=0)
    torch.testing.assert_close(edge.sigma_inv(edge.sigma(ends)), ends, rtol=1e-9, atol=0)


def test_a_vp_schedule_that_would_have_to_turn_back_is_refused():
    message = (r'no VP schedule goes from sigma\(0.001\) = 0.2 to sigma\(1\) = 152: '
               r'with this sigma_max, sigma_min must be below 0.1424$')
    with pytest.raises(ValueError, match=message):
        VPSchedule.through(0.2, 152)
    assert VPSchedule.through(0.1, 152).beta_d > 0
    with pytest.raises(ValueError, match='no VP schedule goes from'):
        VPSteps(sigma_min=1, sigma_max=80).sigmas(8)


def test_iddpm_levels():
    u = IDDPMLevels().u
    expected = [20291.17, 641.66, 320.83, 213.89, 160.41, 128.33, 106.94, 91.66, 80.20, 71.29]
    torch.testing.assert_close(u[:10], torch.tensor(expected, dtype=f64), rtol=1e-4, atol=0)
    torch.testing.assert_close(u[998:], torch.tensor([0.0093505, 0.0064254, 0], dtype=f64),
                               rtol=1e-5, atol=0)
    assert bool((u.diff() < 0).all()) and len(u) == 1001


def test_edm_steps_are_the_printed_grid():
    expected = torch.tensor([
        80, 57.58598, 40.78557, 28.37458, 19.35245, 12.91008, 8.400935, 5.315195, 3.256822,
        1.923340, 1.088171, .5853481, .2964423, .1395165, .05994731, .02293452, .007528020, .002],
                            dtype=f64)
    torch.testing.assert_close(EDMSteps().sigmas(18), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('rho', [1e300, 1e16, 1e-3])
def test_a_rho_whose_levels_are_lost_in_rounding_is_refused(rho):
    with pytest.raises(ValueError, match=re.escape(f'rho={rho:g} is beyond what float64 can tell: '
                                                   'take a number nearer to 7, or inf')):
        EDMSteps(rho=rho).sigmas(7)


def test_rho_infinity_is_geometric_and_rho_one_uniform():
    infinite = EDMSteps(sigma_min=0.02, sigma_max=100, rho=math.inf).sigmas(7)
    torch.testing.assert_close(infinite, VESteps().sigmas(7), rtol=1e-14, atol=0)
    torch.testing.assert_close(EDMSteps(rho=1e9).sigmas(7), EDMSteps(rho=math.inf).sigmas(7),
                               rtol=1e-6, atol=0)
    torch.testing.assert_close(EDMSteps(rho=1).sigmas(5).diff(),
                               torch.full([4], (0.002 - 80) / 4, dtype=f64))


@pytest.mark.parametrize('num_steps', [10, 18, 100, 384])
def test_iddpm_steps_are_the_formula(num_steps):
    u, j_0, M = IDDPMLevels().u, 8, 1000
    j = [math.floor(j_0 + (M - 1 - j_0) / (num_steps - 1) * i + 0.5) for i in range(num_steps)]
    assert torch.equal(IDDPMSteps().sigmas(num_steps), u[j])


def test_a_float32_lowest_level_keeps_the_last_iddpm_level():
    u = IDDPMLevels().u
    # what a network that computed it in float32 may report
    lowest = float(u[999].to(torch.float32)) * (1 + 4e-4)
    assert float(IDDPMSteps(sigma_min=0.002).sigmas(5, lowest=lowest)[-1]) == float(u[999])


@pytest.mark.parametrize('name', STEPS)
def test_steps_start_at_the_top_fall_and_respect_the_network(name):
    steps = STEPS[name]()
    sigmas = steps.sigmas(12)
    assert bool((sigmas.diff() < 0).all()) and float(sigmas[-1]) > 0
    assert sigmas.dtype == f64
    # one step starts at the top
    assert float(steps.sigmas(1)[0]) == pytest.approx(float(sigmas[0]), rel=1e-12)
    clamped = steps.sigmas(12, lowest=0.05, highest=40)
    assert float(clamped[0]) <= 40 * (1 + 1e-9) and float(clamped[-1]) >= 0.05 * (1 - 1e-3)


def test_an_empty_range_and_no_steps_are_refused():
    with pytest.raises(ValueError, match='no noise levels are left: sigma_min=0.002 and '
                                         'sigma_max=80 must satisfy'):
        noise_range(EDMSteps(), 90, 100)
    with pytest.raises(ValueError, match='the number of steps must be at least 1, not 0'):
        EDMSteps().sigmas(0)


# The standard deviation of the data for which c_in makes the variance of the network's input one
# (None: it does not), and for which the variance of its target is one (Appendix B.6).
PROPERTIES = {
    'vp': {'unit_input': 1.0, 'unit_target': 'any'},
    've': {'unit_input': None, 'unit_target': 'any'},
    'iddpm': {'unit_input': 1.0, 'unit_target': 'any'},
    'edm': {'unit_input': 0.5, 'unit_target': 0.5},
    'v': {'unit_input': 1.0, 'unit_target': 1.0},
}


@pytest.mark.parametrize('name', PRECONDITIONERS)
@pytest.mark.parametrize('sigma_data', [0.5, 1.0])
def test_variances_of_the_network_input_and_target(name, sigma_data):
    c = PRECONDITIONERS[name]()
    sigma = torch.logspace(-2, 1.9, 30, dtype=f64)
    one = torch.ones_like(sigma)
    input_variance = c.c_in(sigma) ** 2 * (sigma_data**2 + sigma**2)
    assert torch.allclose(input_variance, one,
                          rtol=1e-12) == (PROPERTIES[name]['unit_input'] == sigma_data)
    # target = (y − c_skip (y + n)) / c_out
    c_skip, c_out = c.c_skip(sigma), c.c_out(sigma)
    target_variance = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2
    assert torch.allclose(target_variance, one,
                          rtol=1e-12) == (PROPERTIES[name]['unit_target'] in ('any', sigma_data))


def test_every_preconditioner_declares_its_properties():
    assert set(PROPERTIES) == set(PRECONDITIONERS)


def test_c_noise():
    sigma = torch.tensor([0.02, 0.5, 80], dtype=f64)
    torch.testing.assert_close(EDM().c_noise(sigma), sigma.log() / 4)
    torch.testing.assert_close(VE().c_noise(sigma), (sigma / 2).log())
    torch.testing.assert_close(VP().c_noise(sigma), 999 * VPSchedule().sigma_inv(sigma))
    u = IDDPMLevels().u
    assert IDDPM().c_noise(u[[0, 8, 999]]).tolist() == [999, 991, 0]


def test_iddpm_rounds_to_the_nearest_level_and_keeps_zero_and_the_dtype():
    u = IDDPMLevels().u
    middle = (u[10] + u[11]) / 2
    low, zero = torch.tensor([1e-4, 0], dtype=f64)
    sigma = torch.stack([u[10] * 1.0001, middle * (1 + 1e-9), middle * (1 - 1e-9), low, zero])
    assert torch.equal(IDDPM().nearest(sigma), torch.stack([u[10], u[10], u[11], u[999], zero]))
    assert IDDPM().nearest(sigma.to(torch.float32)).dtype == torch.float32


def test_a_table_that_a_network_brings_wins():
    table = torch.tensor([9.0, 3.0, 1.0, 0.0])
    precond = IDDPM(IDDPMLevels(M=3), table=table)
    assert precond.nearest(torch.tensor([5.0, 7.0, 0.2])).tolist() == [3.0, 9.0, 1.0]
