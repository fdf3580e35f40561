"""The unit variable: σ = ∞ for preconditioners, ideal denoisers, samplers, losses and training."""

import itertools
import json
import math

import pytest
import torch
from click.testing import CliRunner

import train
from limpid.adaptive import RK45, AdaptiveSDE
from limpid.denoiser import Conditioned, Traits, traits
from limpid.earlier import DDIM, Ancestral, EulerMaruyama, PredictorCorrector
from limpid.guidance import Guidance, guided
from limpid.ideal import Gaussian, IdealDenoiser, Mixture
from limpid.levels import CosineBetas, LinearBetas, ScaledLinearBetas, posterior_variances
from limpid.loss import InverseCOut, InverseVariance, UniformTimestep, VelocityLoss
from limpid.preconditioning import (
    EDM,
    IDDPM,
    PRECONDITIONERS,
    VE,
    VP,
    V,
    unit_coefficients,
    unit_scale,
)
from limpid.samplers import Angle, Churn, FlowSampler
from limpid.sampling import run, sample
from limpid.sde import GeneralSDE
from limpid.seeds import generate
from limpid.solvers import Adams, Multistep2M, SecondOrder
from limpid.steps import DiscreteSteps, EDMSteps, ExplicitSteps, IDDPMSteps
from limpid.unit import Level, change_of_scale
from options.sampler import resolve_sampler
from tests.training.test_training_loop import digits, small_config, torchrun  # noqa: F401 (digits is a fixture)
from training import config as configs
from training.config import TrainConfig
from training.networks import NetworkConfig, build_network, complete_arguments
from training.state import load_snapshot
from training.training_loop import build, training_loop

f64, inf = torch.float64, torch.tensor(math.inf, dtype=torch.float64)
SIGMAS = torch.tensor([0, 1e-3, 0.01, 0.5, 1, 80, 1e6, math.inf], dtype=f64)
FINITE = SIGMAS[1:-1]


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


# Levels

@pytest.mark.parametrize('d', [0.5, 1.0, 3.0])
def test_levels(d):
    level = Level.of_sigma(SIGMAS, d)
    torch.testing.assert_close(level.a**2 + level.b**2, torch.ones(8, dtype=f64), rtol=1e-15,
                               atol=0)
    assert [float(v) for v in (level.a[0], level.b[0], level.a[-1], level.b[-1])] == [1, 0, 0, 1]
    torch.testing.assert_close(level.sigma, SIGMAS, rtol=1e-14, atol=0)
    torch.testing.assert_close(level.phi, (SIGMAS / d).atan(), rtol=1e-14, atol=0)
    torch.testing.assert_close(level.snr, (d / SIGMAS) ** 2, rtol=1e-14, atol=0)
    for again in (Level.of_phi(level.phi, d), Level.of_snr(level.snr, d),
                  Level.of_alpha_bar(level.alpha_bar, d)):
        torch.testing.assert_close((again.a, again.b), (level.a, level.b), rtol=1e-8, atol=0)
        assert again.a[-1] == 0 and again.d == d


def test_levels_in_float32_lose_nothing():
    level = Level.of_sigma(torch.tensor([1e-30, 1e-3, 1e4, 1e30]), 0.5)
    exact = Level.of_sigma(torch.tensor([1e-30, 1e-3, 1e4, 1e30], dtype=f64), 0.5)
    torch.testing.assert_close((level.a.to(f64), level.b.to(f64)), (exact.a, exact.b), rtol=3e-7,
                               atol=0)


def test_images_noise_and_velocity_determine_each_other():
    y, eps = randn(4, 3), randn(4, 3, seed=1)
    for d, sigma in itertools.product([0.5, 1.0], SIGMAS[1:]):
        level = Level.of_sigma(sigma, d)
        z = level.a * y / d + level.b * eps
        v = level.a * eps - level.b * y / d
        torch.testing.assert_close(level.denoised(z, v), y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(level.noise(z, v), eps, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(level.velocity(z, y), v, rtol=1e-9, atol=1e-12)
        turned = change_of_scale(sigma, d, 2.0) * z
        torch.testing.assert_close(turned, Level.of_sigma(sigma, 2.0).a * y / 2
                                   + Level.of_sigma(sigma, 2.0).b * eps, rtol=1e-12, atol=1e-12)
    assert float(change_of_scale(inf, 1.0, 0.5)) == 1


# Preconditioners

@pytest.mark.parametrize('name', PRECONDITIONERS)
def test_unit_coefficients_are_those_of_equation_7(name):
    c = PRECONDITIONERS[name]()
    h = torch.hypot(FINITE, torch.tensor(unit_scale(c), dtype=f64))
    c_skip, c_out, c_in = unit_coefficients(c, FINITE)
    torch.testing.assert_close(c_skip / h, c.c_skip(FINITE), rtol=1e-12, atol=0)
    torch.testing.assert_close(c_in / h, c.c_in(FINITE), rtol=1e-12, atol=0)
    assert torch.equal(c_out, c.c_out(FINITE))


@pytest.mark.parametrize('d', [0.5, 1.0])
def test_v_is_edm_with_the_sign_of_f_turned(d):
    v, edm = V(d), EDM(d)
    for ours, theirs in [(v.c_skip, edm.c_skip), (v.c_in, edm.c_in),
                         (v.c_out, lambda s: -edm.c_out(s))]:
        torch.testing.assert_close(ours(FINITE), theirs(FINITE), rtol=1e-12, atol=0)
    assert [float(f(inf)) for f in (v.c_skip, v.c_out, v.c_in)] == [0, -d, 0]
    assert [float(k) for k in unit_coefficients(v, inf)] == [0, -d, 1]
    alpha_bar = torch.linspace(0.01, 0.99, 7, dtype=f64)   # Lin et al. 2023, Eq. 19, d = 1
    c_skip, c_out, _ = unit_coefficients(V(), Level.of_alpha_bar(alpha_bar).sigma)
    torch.testing.assert_close((c_skip, c_out), (alpha_bar.sqrt(), -(1 - alpha_bar).sqrt()),
                               rtol=1e-12, atol=0)


def test_what_v_tells_the_network():
    table = ScaledLinearBetas(zero_terminal_snr=True)
    c = V(noise_label='timestep', schedule=table)
    for dtype in (f64, torch.float32):
        assert c.c_noise(table.sigma.to(dtype)).tolist() == list(range(1000))
    # however high a finite σ is, it is not σ = ∞, which has no signal
    for dtype in (f64, torch.float32):
        assert c.c_noise(torch.tensor([0, 1e-9, 3e3, 1e9, 3e38, math.inf],
                                      dtype=dtype)).tolist() == [0, 0, 998, 998, 998, 999]
        assert c.nearest(torch.tensor([1e4, 3e38, math.inf],
                                      dtype=dtype)).tolist() == [
                                          *[float(table.sigma[998].to(dtype))] * 2, math.inf]
    assert V(noise_label='timestep', schedule=ScaledLinearBetas()).c_noise(
        torch.tensor([1e9, math.inf])
    ).tolist() == [999, 999]
    middle = ((table.sigma[10].atan() + table.sigma[11].atan()) / 2).tan()
    around = torch.stack([middle * (1 - 1e-9), middle * (1 + 1e-9), torch.zeros([], dtype=f64),
                          inf])
    assert torch.equal(
        c.nearest(around), torch.stack([table.sigma[10], table.sigma[11], around[2], inf])
    )
    assert torch.equal(c.nearest(table.sigma), table.sigma)
    assert c.nearest(around.to(torch.float32)).dtype == torch.float32
    torch.testing.assert_close(V(0.5).c_noise(SIGMAS), 2 / math.pi * (SIGMAS / 0.5).atan())
    assert float(V().c_noise(inf)) == 1 and torch.equal(V().nearest(SIGMAS), SIGMAS)
    log = V(noise_label='log').c_noise(SIGMAS[1:])
    assert torch.equal(log[:-2],
                       SIGMAS[1:-2].log() / 4) and log[-2:].tolist() == [math.log(4096) / 4] * 2
    for schedule in (table, LinearBetas(), CosineBetas(), CosineBetas(zero_terminal_snr=True)):
        sigma = (21 * torch.rand(500, dtype=f64, generator=torch.Generator().manual_seed(0))
                 - 7).exp()
        phi = schedule.sigma[schedule.sigma.isfinite()].atan()
        nearest = (sigma.atan().reshape(-1, 1) - phi).abs().argmin(dim=1)   # in φ
        assert torch.equal(V(1.0, 'timestep', schedule).index(sigma), nearest)
        c = V(1.0, 'log', schedule)
        assert c.cap == 2 * float(schedule.sigma[schedule.sigma.isfinite()][-1])
        assert len(c.c_noise(schedule.sigma).unique()) == 1000 and bool(
            c.c_noise(schedule.sigma).isfinite().all())
    # as by those who had no other
    stored = configs.encode(V(1.0, 'log', CosineBetas(), cap=4096.0))
    assert (
        stored['cap'] == 4096
        and configs.decode(stored, V).c_noise(torch.tensor(2e4, dtype=f64)) == math.log(4096) / 4
    )
    del stored['cap']
    assert configs.decode(stored, V).cap == pytest.approx(40582.35, rel=1e-6)
    # unused, as it always was
    assert V(1.0, 'angle', CosineBetas()).cap == V(1.0, 'timestep', CosineBetas()).cap == 4096
    with pytest.raises(ValueError, match="^noise_label must be one of timestep, angle, log, not "
                                         "'sigma'$"):
        V(noise_label='sigma')
    with pytest.raises(ValueError, match="^noise_label='timestep' needs a schedule of discrete "
                                         "timesteps$"):
        V(noise_label='timestep')


MODEL = complete_arguments('SongUNet', {'model_channels': 16, 'channel_mult': [1], 'num_blocks': 1,
                                        'attn_resolutions': []})
TABLE = ScaledLinearBetas(zero_terminal_snr=True)


def network(precond, sigma_max=math.inf, label_dim=0):
    torch.manual_seed(0)
    net = build_network(NetworkConfig('SongUNet', precond, 0.0, sigma_max, 8, 1, label_dim,
                                      model=MODEL)).eval()
    for parameter in net.parameters():   # F is not zero
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return net.requires_grad_(False)


@pytest.mark.parametrize('precond', [VP(), VE(), IDDPM(), EDM(), EDM(0.8), V(), V(0.5, 'log'),
                                     V(1.0, 'timestep', TABLE)], ids=str)
def test_networks_answer_alike_in_x_and_in_the_unit_variable(precond):
    net = network(precond)
    unit_scale = traits(net).unit_scale
    assert unit_scale == getattr(precond, 'sigma_data', 1.0)
    sigma = torch.tensor([0.02, 0.5, 40.0])
    z = randn(3, 1, 8, 8).float()
    x = z * torch.hypot(sigma, torch.tensor(unit_scale)).reshape(-1, 1, 1, 1)
    expected, ours = net(x, sigma), net(z, sigma, unit=True)
    torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))
    assert float((ours - net(torch.zeros_like(z), sigma)).abs().max()) > 0.01
    if isinstance(precond, V):
        D = net(z, torch.tensor([0.5, math.inf, math.inf]), unit=True)
        F = net.model(z, precond.c_noise(inf.float().expand(3)), None)
        # D = −d F at a = 0
        torch.testing.assert_close(D[1:], -precond.sigma_data * F[1:], rtol=1e-5, atol=1e-6)
        assert traits(net).no_infinity == ''
        assert (traits(net).native_steps is None) == (precond.schedule is None)


REASONS = {
    VP(): 'it predicts the noise, which tells nothing of the image where there is only noise',
           VE(): 'its input is the unscaled image, which is infinite there',
           IDDPM(): 'it predicts the noise, which tells nothing of the image where there is only '
                    'noise',
           EDM(): 'its c_noise, ln(sigma)/4, is infinite there; the v preconditioning with the '
                  'same sigma_data is the same network with a finite c_noise'}


@pytest.mark.parametrize('precond', REASONS, ids=str)
def test_networks_that_cannot_say_why(precond):
    net, z = network(precond), torch.zeros(1, 1, 8, 8)
    for ask in (
        lambda: net(z, math.inf, unit=True),
        lambda: net(z, torch.tensor([math.inf]), unit=True),
        lambda: Conditioned(net).unit(z, inf),
        lambda: run(DDIM(), Conditioned(net), z, torch.tensor([math.inf, 0])),
    ):
        with pytest.raises(ValueError) as error:
            ask()
        assert str(error.value) == f'this network cannot work at sigma = inf: {REASONS[precond]}'


def test_a_denoiser_without_the_unit_variable():
    def net(x, sigma, labels):
        return x / (1 + sigma**2)

    z = randn(2, 1, 2, 2)
    torch.testing.assert_close(Conditioned(net).unit(z, torch.tensor(3.0, dtype=f64)), z / 10**0.5)
    with pytest.raises(ValueError, match='^this network cannot work at sigma = inf: it does not '
                                         'take the unit variable$'):
        Conditioned(net).unit(z, inf)


# Ideal denoisers

IMAGES = 2 * torch.rand([40, 1, 3, 3], generator=torch.Generator().manual_seed(0), dtype=f64) - 1
MIXTURE = Mixture(*torch.tensor([[1.0, 3.0], [-0.5, 0.7], [0.1, 0.0]], dtype=f64))
MEANS = {'ideal': (IdealDenoiser(IMAGES), IMAGES.mean(dim=0)),
         'gaussian': (Gaussian(0.3, 0.5), 0.3), 'mixture': (MIXTURE, -0.5 * 0.25 + 0.7 * 0.75),
         'mixture of images': (Mixture(torch.ones(2), IMAGES[:2], torch.tensor([0.2, 0.4])),
                               IMAGES[:2].mean(dim=0))}


@pytest.mark.parametrize('name', MEANS)
def test_ideal_denoisers_in_the_unit_variable(name):
    net, mean = MEANS[name]
    z, d = randn(7, 1, 3, 3), traits(net).unit_scale
    for sigma in (0.01, 0.3, 2.0, 80.0, 1e6):
        level = torch.tensor(sigma, dtype=f64)
        torch.testing.assert_close(net(z, level, unit=True), net(z * math.hypot(sigma, d), level),
                                   rtol=1e-9, atol=1e-10)
    limit = torch.as_tensor(mean, dtype=f64).expand_as(z)
    torch.testing.assert_close(net(z, inf, unit=True), limit, rtol=1e-10, atol=1e-10)
    levels = torch.tensor([0.3, 1.0, 5.0, 80, 1e3, 1e8, math.inf], dtype=f64)
    each = net(z, levels, unit=True)
    for row in range(7):
        torch.testing.assert_close(each[row:row + 1], net(z[row:row + 1], levels[row], unit=True),
                                   rtol=1e-12, atol=1e-12)
    assert net(z.float(), inf, unit=True).dtype == torch.float32


# Samplers, on Gaussian data whose axes have their own mean and width, from σ = ∞

D = 0.5
MU = torch.tensor([0.8, -0.6, 0, 0.3], dtype=f64).reshape(1, 4, 1, 1)
C = torch.tensor([0.05, 0.3, 0.5, 1.2], dtype=f64).reshape(1, 4, 1, 1)


class Axes:
    """D = (c² a d z + d² b² μ)/(a² c² + d² b²), and nothing but finite numbers on the way."""
    unit_scale = D

    def __call__(self, z, sigma, class_labels=None, unit=False):
        assert unit and bool(z.isfinite().all())
        level = Level.of_sigma(sigma, D)
        return (C**2 * level.a * D * z + (D * level.b) ** 2
                * MU) / ((level.a * C) ** 2 + (D * level.b) ** 2)


def affine(sampler, sigmas):
    """m, A and each W of x = m + A z + Σ W ξ, exactly: rows 1 and k + 2 get z = 1 and ξ_k = 1."""
    drawn = itertools.count(2)
    noise = torch.zeros(len(sigmas) + 2, 4, 1, 1, dtype=f64)
    noise[1] = 1

    def impulse(x):
        xi = torch.zeros_like(x)
        xi[next(drawn)] = 1
        return xi

    x = run(sampler, Conditioned(Axes()), noise, sigmas, impulse).reshape(-1, 4)
    assert bool(x.isfinite().all())
    return x[0], x[1] - x[0], x[2:] - x[0]


def rms(sampler, sigmas):
    """The distance from μ + c z, where the flow ends, in expectation."""
    m, A, _ = affine(sampler, sigmas)
    return float((((m - MU.flatten()) ** 2 + (A - C.flatten()) ** 2).mean()).sqrt())


def uniform_angles(num_steps):
    phi = torch.arange(num_steps, -1, -1, dtype=f64) / num_steps * (math.pi / 2)
    return Level.of_phi(phi, D).sigma


def trailing(num_steps, schedule=TABLE):
    """The schedule acts on data divided by d."""
    return torch.nn.functional.pad(D * DiscreteSteps(schedule).sigmas(num_steps), (0, 1))


# For 5, 10, …, 320 steps uniform in φ; 8 draws of z and the expectation differ in the third digit.
EXPECTED = {
    'ddim': (DDIM(), [0.196, 0.104, 0.0538, 0.0274, 0.0139, 0.00697, 0.00349], 1),
    'heun': (Angle(), [0.0517, 0.0165, 0.0056, 0.00159, 4.1e-4, 1.0e-4, 2.5e-5], 2),
    'rotation': (
        Angle('rotation'),
        [0.0567, 0.0175, 0.00576, 0.00161, 4.13e-4, 1.035e-4, 2.59e-5],
        2,
    ),
}


@pytest.mark.parametrize('name', EXPECTED)
def test_errors_and_orders_from_infinity(name):
    sampler, expected, order = EXPECTED[name]
    assert uniform_angles(5)[0] == math.inf
    errors = [rms(sampler, uniform_angles(5 * 2**k)) for k in range(7)]
    assert errors == pytest.approx(expected, rel=0.025)
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.01)


@pytest.mark.parametrize(('num_steps', 'expected'), [(5, .165), (25, .0404), (100, .0127),
                                                     (1000, .0018)])
def test_ddim_with_trailing_steps_of_the_rescaled_schedule(num_steps, expected):
    assert rms(DDIM(), trailing(num_steps)) == pytest.approx(expected, rel=0.02)


def moments(sigmas, eta=1.0):
    """Mean and variance of eta-DDIM by Eq. 20 to 22, in a and b alone."""
    mu, c = MU.flatten(), C.flatten()
    m, V_ = torch.zeros(4, dtype=f64), torch.ones(4, dtype=f64)   # of z = ε
    for sigma, sigma_next in itertools.pairwise(sigmas):
        here, there = Level.of_sigma(sigma, D), Level.of_sigma(sigma_next, D)
        a, b, a_next, b_next = (float(v) for v in (here.a, here.b, there.a, there.b))
        k = c**2 * a * D / (a**2 * c**2 + D**2 * b**2)   # D = k z + l
        l = D**2 * b**2 * mu / (a**2 * c**2 + D**2 * b**2)  # noqa: E741
        w = eta * b_next / b * math.sqrt(1 - (a / a_next) ** 2)
        share = math.sqrt(max(b_next**2 - w**2, 0)) / b
        gain = share + (a_next - share * a) / D * k
        m, V_ = gain * m + (a_next - share * a) / D * l, gain**2 * V_ + w**2
    return D * m, D**2 * V_


@pytest.mark.parametrize('num_steps', [1, 2, 50, 1000])
@pytest.mark.parametrize('sampler', [Ancestral('small'), DDIM(eta=1.0), DDIM(eta=0.3)], ids=str)
def test_moments_of_stochastic_sampling_from_infinity(sampler, num_steps):
    sigmas = trailing(num_steps)
    m, A, W = affine(sampler, sigmas)
    mean, variance = moments(sigmas, getattr(sampler, 'eta', 1.0))
    torch.testing.assert_close((m, A**2 + (W**2).sum(dim=0)), (mean, variance), rtol=1e-9,
                               atol=1e-12)
    if sampler != DDIM(eta=0.3) and num_steps in (50, 1000):
        ratios = {50: [.554, .913, .942, .957], 1000: [.910, .992, .996, .998]}[num_steps]
        assert (variance.sqrt() / C.flatten()).tolist() == pytest.approx(ratios, abs=6e-4)
        assert float((mean - MU.flatten()).abs().max()) <= 0.005


def test_ddpm_is_the_chain_of_equation_20():
    """Ancestral with the small variance, against Eq. 20 and 9 in ᾱ and β, step by step from ᾱ_T =
    0."""
    sigmas = trailing(20)
    alpha_bars = [0.0, *(1 / (1 + (s / D) ** 2) for s in sigmas[1:].tolist())]
    z, *draws = randn(20, 2, 4, 1, 1)
    x = z
    for i, (ab, ab_next) in enumerate(itertools.pairwise(alpha_bars)):
        alpha = ab / ab_next
        beta = 1 - alpha
        x0 = Axes()(x, sigmas[i], unit=True) / D
        x = (
            math.sqrt(ab_next) * beta / (1 - ab) * x0
            + math.sqrt(alpha) * (1 - ab_next) / (1 - ab) * x
        )
        if ab_next < 1:
            x = x + math.sqrt((1 - ab_next) / (1 - ab) * beta) * draws[i]
    feed = iter(draws)
    ours = run(Ancestral('small'), Conditioned(Axes()), z, sigmas, lambda z: next(feed))
    torch.testing.assert_close(ours, D * x, rtol=1e-10, atol=1e-11)


def test_posterior_variances_at_infinity():
    b = torch.tensor([0.1, 2.0], dtype=f64)
    q, log_lo, log_hi = posterior_variances(inf.expand(2), b)
    torch.testing.assert_close((q, log_lo.exp(), log_hi.exp()), (0 * b, b**2, 1 + b**2))
    near = posterior_variances(torch.tensor(1e9, dtype=f64).expand(2), b)
    torch.testing.assert_close((log_lo, log_hi), near[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('schedule', [(ScaledLinearBetas(), -.0487), (LinearBetas(), -.0046),
                                      (CosineBetas(), -3.5e-5)], ids=str)
def test_the_flaw_of_starting_from_noise_where_there_should_be_signal(schedule):
    """With a perfect denoiser and perfect steps, the mean is off by −a_T μ c/√(a_T² c² + d² b_T²);
    not after the fix."""
    schedule, printed = schedule
    level = Level.of_sigma(D * schedule.sigma[-1], D)
    exact = -level.a * MU * C / ((level.a * C) ** 2 + (D * level.b) ** 2).sqrt()
    assert float(exact[0, 3]) == pytest.approx(printed, rel=0.02)
    fine = torch.cat([D * schedule.sigma[-1:],
                      Level.of_phi(torch.linspace(1, 0, 2001, dtype=f64)[1:] * float(level.phi),
                                   D).sigma])
    still = torch.zeros(1, 4, 1, 1, dtype=f64)   # the mean of the images is the image of the mean
    torch.testing.assert_close(run(Angle(), Conditioned(Axes()), still, fine), MU + exact, rtol=0,
                               atol=1e-6)
    torch.testing.assert_close(run(Angle(), Conditioned(Axes()), still, uniform_angles(2000)), MU,
                               rtol=0, atol=1e-6)


@pytest.mark.parametrize('rule', ['heun', 'rotation'])
def test_the_angle_sampler_evaluates_twice_per_step_and_ends_in_the_denoiser(rule):
    asked = []

    class Counted(Axes):
        def __call__(self, z, sigma, class_labels=None, unit=False):
            asked.append(float(sigma))
            return super().__call__(z, sigma, class_labels, unit)

    sigmas = uniform_angles(6)[[0, 1, 2, 2, 3, 4, 5, 6]]   # a level that repeats is passed over
    run(Angle(rule), Conditioned(Counted()), randn(1, 4, 1, 1), sigmas)
    expected = [level for pair in itertools.pairwise(uniform_angles(6)[:-1].tolist())
                for level in pair]
    assert asked == [*expected, float(sigmas[-2])]
    one = run(Angle(rule), Conditioned(Axes()), randn(1, 4, 1, 1),
              torch.stack([inf, 0 * SIGMAS[0]]))
    torch.testing.assert_close(one, MU, rtol=1e-14, atol=1e-14)   # at σ = ∞ only the mean is known


def test_the_rotation_rule_is_exact_for_one_image():
    class Point:
        unit_scale = 1.0

        def __call__(self, z, sigma, class_labels=None, unit=False):
            return torch.full_like(z, 0.7)

    sigmas = torch.tensor([math.inf, 3.0, 0.4, 0], dtype=f64)
    stops = []
    z = randn(2, 1, 2, 2)

    class Seen(Point):
        def __call__(self, z, sigma, class_labels=None, unit=False):
            stops.append((z, sigma))
            return super().__call__(z, sigma)

    run(Angle('rotation'), Conditioned(Seen()), z, sigmas)
    for seen, sigma in stops:
        level = Level.of_sigma(sigma)
        torch.testing.assert_close(seen, level.a * 0.7 + level.b * z, rtol=1e-14, atol=1e-14)


def test_churn_in_the_angle_is_algorithm_2():
    """Its added noise, against x̂ = x + √(σ̂² − σ²) S_noise ξ; none at σ = ∞; drawn at every
    step."""
    sampler = Angle(churn=Churn(S_churn=10, S_max=100, S_noise=1.01))
    z, xi, sigma = randn(3, 4, 1, 1), randn(3, 4, 1, 1, seed=1), torch.tensor(2.0, dtype=f64)
    sigma_hat = sigma * math.sqrt(2)
    x_hat = z * math.hypot(2, D) + math.sqrt(4) * 1.01 * xi
    torch.testing.assert_close(sampler.add_noise(z, sigma, sigma_hat, D, xi),
                               x_hat / math.hypot(float(sigma_hat), D), rtol=1e-13, atol=1e-13)
    sigmas = uniform_angles(200)
    assert sampler.churn.raised(Conditioned(Axes()), sigmas)[0] == math.inf
    m, A, W = affine(sampler, sigmas)
    assert int((W != 0).any(dim=1).sum()) == int((sigmas[:-1] <= 100).sum())
    variance = A**2 + (W**2).sum(dim=0)
    torch.testing.assert_close(m, MU.flatten(), rtol=0, atol=1e-3)
    torch.testing.assert_close(variance.sqrt(), C.flatten(), rtol=0.02, atol=0)


@pytest.mark.parametrize('sampler', [
    FlowSampler(), FlowSampler(Multistep2M()), FlowSampler(Adams()), EulerMaruyama(),
    PredictorCorrector(), GeneralSDE(), RK45(), AdaptiveSDE()],
                         ids=lambda sampler: type(getattr(sampler, 'solver', sampler)).__name__)
def test_the_others_cannot_start_at_infinity(sampler):
    kind = type(getattr(sampler, 'solver', sampler))
    name = {SecondOrder: 'heun', Multistep2M: 'dpmpp-2m', Adams: 'adams'}.get(kind, kind.__name__)
    with pytest.raises(ValueError) as error:
        run(sampler, Conditioned(Axes()), torch.zeros(1, 4, 1, 1), uniform_angles(4))
    assert str(error.value) == (
        f'{name} cannot start at sigma = inf, where x is infinite: use steps that start at a '
        f'finite noise level, or a sampler that works in the unit variable (DDIM, Ancestral or '
        f'Angle)')


def test_learned_variance_cannot_start_at_infinity():
    with pytest.raises(ValueError, match=r"^variance='learned' cannot start at sigma = inf; use "
                                         r"variance='small' or 'large'$"):
        run(Ancestral(), Conditioned(Axes()), torch.zeros(1, 4, 1, 1), uniform_angles(4))


def test_the_frame_makes_no_difference():
    """The same network, asked in x, in the unit variable of d = 1 and in that of d = 0.5."""
    class Wrapped:
        def __init__(self, d):
            self.unit_scale = d

        def __call__(self, z, sigma, class_labels=None, unit=False):
            return Gaussian(0.3, 0.5)(z * math.hypot(float(sigma), self.unit_scale), sigma)

    def plain(x, sigma, labels):
        return Gaussian(0.3, 0.5)(x, sigma)

    z, *draws = randn(19, 2, 1, 3, 3)
    sigmas = torch.nn.functional.pad(EDMSteps().sigmas(18), (0, 1))
    for sampler in (DDIM(), DDIM(0.7), DDIM(clip=True), Ancestral('small'), Ancestral('large')):
        results = []
        for net in (plain, Wrapped(1.0), Wrapped(0.5)):
            feed = iter(draws)
            results.append(run(sampler, Conditioned(net), z, sigmas,
                               lambda z, feed=feed: next(feed)))
        torch.testing.assert_close(results[1:], results[:1] * 2, rtol=1e-12, atol=1e-12)


def test_guidance_and_explicit_levels_start_at_infinity():
    labels = torch.eye(2)[torch.arange(40) % 2]
    net = IdealDenoiser(IMAGES, labels)
    denoise = Conditioned(guided(net, Guidance(2.0, rescale=0.7)), torch.eye(2)[[0, 1, 1]])
    sigmas = denoise.levels(ExplicitSteps((math.inf, 1.0, 0.1)), 3)
    assert bool(run(DDIM(), denoise, randn(3, 1, 3, 3), sigmas).isfinite().all())
    step = run(DDIM(), Conditioned(net, torch.eye(2)[[0, 1, 1]]), randn(3, 1, 3, 3),
               sigmas[[0, -1]])
    torch.testing.assert_close(step[1], IMAGES[1::2].mean(dim=0), rtol=1e-12, atol=1e-12)


# Options

def told(native, lowest=0.0, highest=math.inf, learned_variance=True):
    return Traits(sigma_min=lowest, sigma_max=highest, native_steps=native,
                  learned_variance=learned_variance)


def resolve(native=DiscreteSteps(TABLE), lowest=0.0, highest=math.inf, learned_variance=True,
            **given):
    return resolve_sampler(given, told(native, lowest, highest, learned_variance))


def test_native_steps_are_the_default_with_ddim():
    sampling = resolve()
    assert sampling.sampler == DDIM() and sampling.steps == DiscreteSteps(
        TABLE) and sampling.num_steps == 18
    assert resolve(sampler='ancestral').sampler == Ancestral('small')
    assert resolve(sampler='angle', rule='rotation', S_churn=5.0).sampler == Angle(
        'rotation', Churn(5.0)
    )
    assert resolve(spacing='leading').steps == DiscreteSteps(TABLE, 'leading')
    for given in ({'solver': 'heun'}, {'sampler': 'table1'}, {'disc': 'edm'}, {'family': 'edm'},
                  {'preset': 'cifar10-edm'}):
        sampling = resolve(**given)
        assert type(
            sampling.sampler) is FlowSampler and sampling.steps == EDMSteps(), given
    assert resolve(sampler='em').steps.epsilon_s == 1e-3
    assert resolve(sampler='ddim', disc='cosine').steps == DiscreteSteps(CosineBetas())
    assert resolve(None).sampler == FlowSampler()


def test_discrete_timesteps_are_for_ddim():
    """Of a network that knows such, and from σ = ∞; unless rows of Table 1 are asked for."""
    for native, given, expected in [
            (DiscreteSteps(TABLE), {'disc': 'cosine'}, DDIM),
            (None, {'disc': 'cosine'}, FlowSampler),
            (None, {'disc': 'cosine', 'zero_terminal_snr': True}, DDIM),
            (DiscreteSteps(TABLE), {'disc': 've'}, FlowSampler),
            (None, {'disc': 'cosine', 'zero_terminal_snr': True, 'spacing': 'leading'},
             FlowSampler), (None, {'disc': 'cosine', 'zero_terminal_snr': True, 'sigma_max': 80.0},
                            FlowSampler), (DiscreteSteps(TABLE),
                                           {'disc': 'cosine', 'scaling': 'none'}, FlowSampler),
            (DiscreteSteps(TABLE), {'disc': 'cosine', 'sampler': 'rk45'}, RK45)]:
        assert type(resolve(native, **given).sampler) is expected, given


def test_presets_bring_their_own_time_steps():
    assert resolve(preset='iddpm-original').steps == IDDPMSteps()
    assert resolve(preset='iddpm-original', disc='edm').steps == EDMSteps()
    # that names none
    assert resolve(preset='cifar10-edm', sampler='ddim').steps == DiscreteSteps(TABLE)
    assert resolve(preset='vp-original').sampler == EulerMaruyama(deterministic=True, original=True)


def test_the_variance_of_ancestral_sampling():
    """Learned where it has been, but not at σ = ∞."""
    finite = DiscreteSteps(ScaledLinearBetas())
    for native, learned_variance, given, expected in [
            (finite, True, {}, 'learned'), (finite, False, {}, 'small'), (None, False, {}, 'small'),
            (None, True, {}, 'learned'), (DiscreteSteps(TABLE), True, {}, 'small'),
            (DiscreteSteps(TABLE), True, {'sigma_max': 80.0}, 'learned'),
            (None, True, {'disc': 'cosine', 'zero_terminal_snr': True}, 'small'),
            (finite, False, {'variance': 'learned'}, 'learned')]:
        sampling = resolve(native, sampler='ancestral', learned_variance=learned_variance, **given)
        assert sampling.sampler == Ancestral(expected), given
    assert traits(network(IDDPM())).learned_variance
    assert not traits(network(V())).learned_variance


@pytest.mark.parametrize(('native', 'disc'), [(DiscreteSteps(TABLE), {}),
                                              (None, {'disc': 'scaled-linear',
                                                      'zero_terminal_snr': True})])
def test_discrete_timesteps_within_a_range(native, disc):
    sampling = resolve(native, sigma_min=0.1, sigma_max=float(TABLE.sigma[899]), num_steps=3,
                       spacing='linspace', **disc)
    sigmas = sampling.steps.sigmas(3)
    assert (
        float(sigmas[0]) == float(TABLE.sigma[899])
        and float(sigmas[-1]) == pytest.approx(0.1, rel=0.05)
        and sampling.notes == ()
    )
    assert (
        float(sampling.steps.sigmas(3, 0, 5.0)[0]) == pytest.approx(5, rel=0.01)
        and len(sigmas) == 3
    )
    with pytest.raises(ValueError, match=r'^no timestep has a noise level within \[0, 0\.01\], the '
                                         r'range of the network and of --sigma_min and '
                                         r'--sigma_max$'):
        resolve(native, sigma_max=0.01, **disc)


def test_networks_that_end_before_infinity():
    """Silence would be another schedule than the one asked for."""
    highest = float(TABLE.sigma[-2])
    reason = 'the guide supports no more, as it is old'
    for given, native in [({'disc': 'scaled-linear', 'zero_terminal_snr': True}, None),
                          ({'zero_terminal_snr': True}, DiscreteSteps())]:
        with pytest.raises(ValueError, match=f'^--zero-terminal-snr=True cannot start at sigma = '
                                             f'inf, only at 2254.24: {reason}$'):
            resolve_sampler(given, told(native, 0.0, highest), limit=reason)
        with pytest.raises(ValueError, match='^--zero-terminal-snr=True cannot start at sigma = '
                                             'inf, only at 100: the network supports no more$'):
            resolve(native, highest=100.0, **given)
        assert resolve(native, highest=100.0, sigma_max=80.0, **given).notes == ()
    assert resolve(highest=highest).notes == ('drawing starts at sigma = 2254.24: the network '
                                              'supports no more',)
    assert (
        resolve(highest=highest, spacing='leading').notes
        == resolve(highest=highest, solver='heun').notes
        == resolve().notes
        == ()
    )


def test_options_of_discrete_timesteps():
    sampling = resolve(None, disc='scaled-linear', sampler='angle', zero_terminal_snr=True,
                       spacing='linspace')
    assert sampling.steps == DiscreteSteps(TABLE, 'linspace') and sampling.notes == ()
    assert resolve(None, sigmas=[math.inf, 1.0],
                   sampler='ddim').steps == ExplicitSteps((math.inf, 1.0))
    finite = resolve(None, disc='scaled-linear', schedule='vp', highest=100.0,
                     zero_terminal_snr=True, sigma_max=100.0)
    assert float(finite.sampler.schedule.sigma(torch.ones([], dtype=f64))) == float(
        TABLE.sigma[TABLE.sigma <= 100][-1]
    )
    # begins before the last
    leading = resolve(None, disc='scaled-linear', zero_terminal_snr=True, spacing='leading')
    assert type(leading.sampler) is FlowSampler and leading.steps.sigmas(18)[
        0] == TABLE.sigma[935]
    for given, message in [
        (
            {'disc': 'edm', 'sigma_max': math.inf, 'sampler': 'ddim'},
            '^no noise levels are left: sigma_min=0.002 and sigma_max=inf must',
        ),
        (
            {'disc': 'scaled-linear', 'zero_terminal_snr': True, 'solver': 'heun'},
            '^heun cannot start at sigma = inf, where x is infinite: use time',
        ),
        (
            {'disc': 'cosine', 'zero_terminal_snr': True, 'schedule': 'vp'},
            '^heun cannot start at sigma = inf',
        ),
        (
            {'zero_terminal_snr': True},
            '^--zero-terminal-snr would have no effect without discrete timesteps: give '
            '--disc=ddpm-linear, scaled-linear, cosine$',
        ),
        (
            {'spacing': 'leading', 'disc': 'edm'},
            '^--spacing would have no effect without discrete timesteps: give --disc=ddpm-linear, '
            'scaled-linear, cosine$',
        ),
        ({'rule': 'heun'}, '^--rule would have no effect with --sampler=table1$'),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve(None, **given)


# Loss and training

class OneF:
    """A network with a given F, in the unit variable."""

    def __init__(self, precond, F):
        self.precond, self.F, self.unit_scale = precond, F, unit_scale(precond)

    def __call__(self, z, sigma, class_labels=None, unit=False):
        c_skip, c_out, _ = unit_coefficients(self.precond, sigma)
        return c_skip * z + c_out * self.F


class Levels:
    def quantile(self, u):
        return torch.tensor([0.01, 0.5, 80, math.inf], dtype=f64)


@pytest.mark.parametrize('d', [0.5, 1.0])
def test_the_loss_in_v_is_the_loss_in_d(d):
    """λ_t (v̂ − v)² = λ(σ) (D − y)², and for λ_t = 1 EDM's loss, at finite σ and at infinity."""
    y, noise, F = randn(4, 1, 2, 2), randn(4, 1, 2, 2, seed=1), randn(4, 1, 2, 2, seed=2)
    sigma = Levels().quantile(None).reshape(-1, 1, 1, 1)
    level = Level.of_sigma(sigma, d)
    v = level.a * noise - level.b * y / d   # and F is v̂
    net = OneF(V(d), F)
    ours = VelocityLoss(Levels(), InverseCOut(V(d)))(net, y, torch.zeros(4), noise)
    torch.testing.assert_close(ours, (F - v) ** 2, rtol=1e-9, atol=1e-12)
    in_noise = VelocityLoss(Levels(), InverseVariance())(net, y, torch.zeros(4), noise)
    torch.testing.assert_close(in_noise, level.a**2 * (F - v) ** 2, rtol=1e-9, atol=1e-12)
    assert float(in_noise[-1].max()) == 0
    # DenoisingLoss with EDM's weighting, of the network with the other sign
    x = y[:3] + sigma[:3] * noise[:3]
    denoised = EDM(d).c_skip(sigma[:3]) * x - EDM(d).c_out(sigma[:3]) * F[:3]
    torch.testing.assert_close(ours[:3], InverseCOut(EDM(d))(sigma[:3]) * (denoised - y[:3]) ** 2,
                               rtol=1e-9, atol=1e-12)


def test_the_loss_of_the_best_network_for_data_of_unit_width():
    """Data N(0, d²): v̂ = 0 is optimal, and E (v̂ − v)² = 1 at every level."""
    y, noise = 0.5 * randn(4, 1, 300, 300), randn(4, 1, 300, 300, seed=1)
    loss = VelocityLoss(Levels(), InverseCOut(V(0.5)))(OneF(V(0.5), 0.0), y, torch.zeros(4), noise)
    torch.testing.assert_close(loss.mean([1, 2, 3]), torch.ones(4, dtype=f64), rtol=0.02, atol=0)


def test_the_loss_needs_a_network_of_its_scale():
    y = torch.zeros(4, 1, 2, 2)
    with pytest.raises(ValueError, match='^the loss in v is for a network with sigma_data=1; this '
                                         'one takes the unit variable of sigma_data=0.5$'):
        VelocityLoss(Levels())(OneF(V(0.5), 0.0), y, torch.zeros(4), y)
    with pytest.raises(ValueError, match='this one takes no unit variable$'):
        VelocityLoss(Levels())(lambda x, sigma, labels: x, y, torch.zeros(4), y)


def test_timesteps_are_uniform_and_include_the_last():
    noise = UniformTimestep(TABLE)
    u = (torch.arange(3000, dtype=f64) + 0.5) / 3000
    assert torch.equal(noise.quantile(u), TABLE.sigma.repeat_interleave(3))
    assert noise.quantile(torch.ones(1, dtype=f64)).item() == math.inf


def v_config(digits, **changes):  # noqa: F811
    precond = V(noise_label='timestep', schedule=TABLE)
    # σ = ∞ in every fourth image
    noise = UniformTimestep(ScaledLinearBetas(T=4, zero_terminal_snr=True))
    return small_config(digits, precond, noise, loss=VelocityLoss(noise, InverseCOut(precond)),
                        **changes)


def test_training_up_to_zero_signal(digits, tmp_path):  # noqa: F811
    config = v_config(digits)
    assert configs.decode(json.loads(json.dumps(configs.encode(config), allow_nan=False)),
                          TrainConfig) == config
    state = build(config, torch.device('cpu'))
    training_loop(config, state, tmp_path, torch.device('cpu'))
    ticks = [json.loads(line) for line in (tmp_path / 'stats.jsonl').read_text().splitlines()]
    assert all(0.1 < tick['Loss/loss']['mean'] < 4 for tick in ticks[1:])
    assert all(tick.get('Loss/nonfinite_gradients', {'mean': 0})['mean'] == 0 for tick in ticks)
    net, _ = load_snapshot(tmp_path / 'network-snapshot-000000.pkl')
    assert net.sigma_max == math.inf and traits(net).native_steps == DiscreteSteps(TABLE)
    for given in ({}, {'sampler': 'ancestral'}, {'sampler': 'angle'}, {'solver': 'heun'}):
        sampling = resolve(
            traits(net).native_steps, net.sigma_min, net.sigma_max, num_steps=4, **given
        )
        images = generate(net, sampling.plan(net), [0, 1, 2], [1, 2, 3], torch.device('cpu'))
        assert images.shape == (3, 1, 8, 8) and len(images.unique()) > 5
        alone = generate(net, sampling.plan(net), [1], [2], torch.device('cpu'))
        assert int((images[1].int() - alone[0].int()).abs().max()) <= 1
    # from σ = 80 it is as good a network as another
    assert bool(sample(net, torch.zeros(1, 1, 8, 8)).isfinite().all())


def arguments(digits, *more):  # noqa: F811
    return [f'--data={digits}', '--cond=1', '--cbase=16', '--cres=1,2', '--blocks=1', '--attn=4',
            '--batch=16', '--duration=0.000096', '--lr-rampup=0.000032', '--dropout=0',
            '--tick=0.032', '--snap=100', '--dump=100', '--workers=0', '--label-dropout=0.1',
            '--device=cpu', *more]


def test_two_processes_train_v_like_one(digits, tmp_path):  # noqa: F811
    given = arguments(digits, '--precond=v', '--nosubdir')
    result = torchrun(2, 'tests/training/train_worker.py', *given, f'--outdir={tmp_path}/two')
    assert result.returncode == 0, result.stderr
    outcome = CliRunner().invoke(train.main, [*given, f'--outdir={tmp_path}/one'])
    assert outcome.exit_code == 0, outcome.output
    one, two = (load_snapshot(tmp_path / name / 'network-snapshot-000000.pkl')[0]
                for name in ('one', 'two'))
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        # that of the keys shifts all of a softmax alike: its gradient is rounding, blown up by Adam
        if not name.endswith('qkv.bias'):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    losses = [[json.loads(line)['Loss/loss']['mean']
               for line in (tmp_path / name / 'stats.jsonl').read_text().splitlines()[1:]]
              for name in ('one', 'two')]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 3


def resolved(digits, *more):  # noqa: F811
    result = CliRunner().invoke(train.main, [*arguments(digits, '--outdir=nowhere', '-n'), *more])
    return configs.decode(json.loads(result.stdout),
                          TrainConfig) if result.exit_code == 0 else result.output


def test_options_of_v(digits):  # noqa: F811
    config = resolved(digits, '--precond=v')
    precond = V(noise_label='timestep', schedule=TABLE)
    assert config.network.precond == precond and config.network.sigma_max == math.inf
    assert config.network.sigma_min == pytest.approx(float(TABLE.sigma[0]))
    assert config.loss == VelocityLoss(UniformTimestep(TABLE), InverseCOut(precond))
    assert config.label_dropout == 0.1
    config = resolved(digits, '--precond=v', '--schedule=cosine', '--zero-terminal-snr=0',
                      '--c-noise=log', '--sigma_data=0.5', '--weighting=inverse-variance')
    assert (
        config.network.precond == V(0.5, 'log', CosineBetas())
        and config.network.precond.cap == pytest.approx(2 * 20291.17)
        and config.network.sigma_max == pytest.approx(20291.17)
    )
    assert config.loss == VelocityLoss(UniformTimestep(CosineBetas()), InverseVariance())
    config = resolved(digits, '--precond=v', '--noise=edm', '--sigma_data=0.5', '--P_std=1.0')
    assert config.network.precond == V(0.5) and config.loss.noise_distribution.P_std == 1.0
    config = resolved(digits, '--precond=vp', '--noise=timestep', '--schedule=ddpm-linear')
    assert config.loss.noise_distribution == UniformTimestep(
        LinearBetas()) and config.network.sigma_max == pytest.approx(157.407, abs=1e-3)


def test_a_timestep_of_weight_zero_is_noted(digits):  # noqa: F811
    note = ('with --weighting=inverse-variance the last timestep, sigma = inf, has the weight 0: '
            'what sampling starts with is never trained')
    for more, expected in [(['--weighting=inverse-variance'], [note]), ([], []),
                           (['--weighting=inverse-variance', '--zero-terminal-snr=0'], []),
                           (['--weighting=inverse-variance', '--noise=edm'], [])]:
        config = resolved(digits, '--precond=v', '--tick=1', *more)
        assert train.notes_on(config) == expected


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--precond=edm', '--noise=timestep', '--zero-terminal-snr=1'],
            f'--precond=edm cannot be trained with --zero-terminal-snr=1, up to sigma = inf: '
            f'{REASONS[EDM()]}. Use --precond=v',
        ),
        (
            ['--precond=vp', '--noise=timestep', '--zero-terminal-snr=1'],
            f'--precond=vp cannot be trained with --zero-terminal-snr=1, up to sigma = inf: '
            f'{REASONS[VP()]}. Use --precond=v',
        ),
        (
            ['--schedule=cosine'],
            '--schedule=cosine would have no effect without --noise=timestep, the noise of '
            'discrete timesteps',
        ),
        (
            ['--precond=v', '--noise=edm', '--zero-terminal-snr=1'],
            '--zero-terminal-snr=True would have no effect without --noise=timestep, the noise of '
            'discrete timesteps',
        ),
        (
            ['--c-noise=log'],
            '--c-noise=log would have no effect with --precond=edm: only v has a choice',
        ),
        (
            ['--precond=v', '--noise=edm', '--c-noise=timestep'],
            '--c-noise=timestep needs discrete timesteps, --noise=timestep',
        ),
    ],
)
def test_options_that_do_not_go_together(digits, options, message):  # noqa: F811
    assert resolved(digits, *options) == f'Error: {message}\n'


def test_a_network_that_was_trained_to_infinity_is_told_where_else_it_starts():
    """Its own schedule keeps its terminal SNR; whatever starts lower is worth a note."""
    native = DiscreteSteps(TABLE)
    own = resolve_sampler({'disc': 'scaled-linear'}, told(native))
    assert own.steps.schedule == TABLE and own.notes == () and type(own.sampler) is DDIM
    flawed = resolve_sampler({'disc': 'scaled-linear', 'zero_terminal_snr': False}, told(native))
    assert flawed.notes == ('this network was trained up to sigma = inf, and these time steps '
                            'start at 14.6146',)
    for options in ({'solver': 'heun'}, {'family': 'edm'}, {'sampler': 'table1'}, {'disc': 'edm'}):
        assert resolve_sampler(options, told(native)).notes == (
            'this network was trained up to sigma = inf, and these time steps start at 80',
        )
    assert resolve_sampler({'sigma_max': 10.0},
                           told(native)).notes == resolve_sampler({}, told(native)).notes == ()


def test_a_weighting_that_is_nan_at_infinity_is_refused():
    class Net:
        traits = Traits(unit_scale=0.5)

    loss = VelocityLoss(UniformTimestep(ScaledLinearBetas(zero_terminal_snr=True)),
                        InverseCOut(EDM(0.5)))
    y = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r'^the weighting InverseCOut\(.*\) is not a number at '
                                         'sigma = inf: use InverseCOut'):
        loss(Net(), y, torch.tensor([0.9999], dtype=f64), y)
