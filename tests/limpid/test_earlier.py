"""The samplers of previous work against closed forms: on Gaussian data they are affine, so that
moments are exact."""

import itertools
import math

import pytest
import torch

from limpid.denoiser import Conditioned
from limpid.earlier import DDIM, EARLIER, Ancestral, EulerMaruyama, PredictorCorrector
from limpid.per_image import sum_squares
from limpid.samplers import FlowSampler
from limpid.sampling import run
from limpid.schedules import NoScaling, VESchedule, VPScaling, VPSchedule
from limpid.seeds import StackedGenerator
from limpid.solvers import Euler
from limpid.steps import EDMSteps, IDDPMSteps, VESteps, VPSteps
from tests.oracles import Gaussian
from training.networks import EDMPrecond, iDDPMPrecond

f64 = torch.float64
MU, C = 0.3, 0.5


class LearnedGaussian(Gaussian):
    """Gaussian data, with variance channels that say F_var everywhere."""

    def __init__(self, F_var, **kwargs):
        super().__init__(**kwargs)
        self.F_var = F_var

    def __call__(self, x, sigma, class_labels=None, return_variance=False):
        D = super().__call__(x, sigma)
        return (D, torch.full_like(D, self.F_var)) if return_variance else D


def levels(steps, num_steps):
    return torch.nn.functional.pad(steps.sigmas(num_steps), (0, 1))


def forbidden(x):
    raise AssertionError('a deterministic sampler draws no noise')


def impulse_response(sampler, sigmas, draws, net=None):
    """mean and variance of x = m + A z + sum of w_k xi_k, exactly: row 1 gets z = 1, row k + 2 gets
    xi_k = 1."""
    drawn = itertools.count(2)
    noise = torch.zeros(draws + 3, 1, 1, 1, dtype=f64)
    noise[1] = 1

    def impulse(x):
        xi = torch.zeros_like(x)
        xi[next(drawn)] = 1
        return xi

    x = run(sampler, Conditioned(net or Gaussian(MU, C)), noise, sigmas, impulse).flatten()
    assert next(drawn) == draws + 2, 'another number of draws than expected'
    return float(x[0]), float(((x - x[0])[1:draws + 2] ** 2).sum())


def shrink(sigma):
    """D = mu + k (x - mu) on Gaussian data."""
    return C**2 / (C**2 + sigma**2)


def em_recursion(sigmas, original=False, deterministic=False):
    """Mean and variance in the VP frame; the score is -(x - s mu)/(s^2 (c^2 + sigma^2))."""
    N = len(sigmas) - 1
    schedule = VPSchedule.through(float(sigmas[-2]), float(sigmas[0]))
    t = [*schedule.sigma_inv(sigmas[:-1]).tolist(), 0.0]
    m, V = 0.0, 1.0
    for i in range(N):
        sigma = float(sigmas[i])
        precision, s = (1 + sigma**2) / (C**2 + sigma**2), 1 / math.sqrt(1 + sigma**2)
        h = 1 / N if original else t[i] - t[i + 1]
        rate = h * (schedule.beta_min + schedule.beta_d * t[i])
        share = 0.5 if deterministic else 1.0
        m = m + rate * (m / 2 - share * precision * (m - s * MU))
        V = (1 + rate * (0.5 - share * precision)) ** 2 * V
        V += 0 if deterministic or i == N - 1 else rate
    return m, V


@pytest.mark.parametrize('options', [{}, {'original': True}, {'deterministic': True},
                                     {'deterministic': True, 'original': True}])
@pytest.mark.parametrize('num_steps', [1, 2, 64, 1000])
def test_moments_of_euler_maruyama(num_steps, options):
    sigmas = levels(VPSteps(), num_steps) if num_steps > 1 else levels(VPSteps(), 2)[[0, 2]]
    draws = 0 if options.get('deterministic') else num_steps - 1
    if num_steps == 1:   # one level does not fix a schedule: Song's constants
        mean, variance = impulse_response(EulerMaruyama(**options), sigmas, draws)
        same = impulse_response(EulerMaruyama(schedule=VPSchedule(), **options), sigmas, draws)
        assert (mean, variance) == same and math.isfinite(variance)
        return
    mean, variance = impulse_response(EulerMaruyama(**options), sigmas, draws)
    expected = em_recursion(sigmas, **options)
    assert (mean, variance) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if num_steps == 1000 and 'deterministic' not in options:
        assert mean == pytest.approx(MU, abs=5e-4) and math.sqrt(variance) == pytest.approx(
            C, abs=5e-4
        )


class Recorder(Gaussian):
    """Remembers the last x it was asked about."""

    def __call__(self, x, sigma, class_labels=None):
        self.x = x.flatten()
        return super().__call__(x, sigma)


def test_euler_maruyama_has_weak_order_one():
    """Where the last step, to zero, begins, the errors of mean and variance halve when the steps
    do."""
    errors = []
    for num_steps in [250, 500, 1000, 2000]:
        net = Recorder(MU, C)
        sigmas = levels(VPSteps(), num_steps)
        impulse_response(EulerMaruyama(), sigmas, num_steps - 1, net)
        variance = float(((net.x - net.x[0])[1:num_steps + 1] ** 2).sum())
        errors.append((abs(float(net.x[0]) - MU), abs(variance - C**2 - float(sigmas[-2]) ** 2)))
    for i in range(2):
        slopes = [math.log2(a[i] / b[i]) for a, b in itertools.pairwise(errors)]
        assert slopes == pytest.approx([1, 1, 1], abs=0.06), (errors, slopes)


def test_original_steps_need_uniform_times():
    with pytest.raises(ValueError, match='^original: steps of 1/N need time steps that are uniform '
                                         'in t; use the vp'):
        impulse_response(EulerMaruyama(original=True), levels(EDMSteps(), 8), 7)


def test_consistent_steps_take_any_noise_levels():
    mean, variance = impulse_response(EulerMaruyama(), levels(EDMSteps(), 2000), 1999)
    assert mean == pytest.approx(MU, abs=2e-3) and math.sqrt(variance) == pytest.approx(C, abs=4e-3)


def test_deterministic_euler_maruyama_is_eulers_method_in_the_vp_frame():
    z = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(0))
    sigmas = levels(VPSteps(), 40)
    schedule, scale = VPSchedule.through(float(sigmas[-2]),
                                         float(sigmas[0])), sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    ours = run(EulerMaruyama(deterministic=True), Conditioned(Gaussian()), z * scale, sigmas,
               forbidden)
    euler = run(FlowSampler(Euler(), schedule, VPScaling()), Conditioned(Gaussian()), z, sigmas,
                forbidden)
    torch.testing.assert_close(ours, euler, rtol=1e-9, atol=1e-9)


def pc_recursion(sigmas, predictor, ald_steps, snr, vp):
    m, V = 0.0, None
    for a, b in itertools.pairwise(sigmas.tolist()):
        s_a, s_b = (1 / math.sqrt(1 + a**2), 1 / math.sqrt(1 + b**2)) if vp else (1.0, 1.0)
        V = (a * s_a) ** 2 if V is None else V
        precision = 1 / (s_a**2 * (C**2 + a**2))   # score = -precision (x - s_a mu)
        for _ in range(ald_steps):
            e = 2 * (s_a / s_b) ** 2 * (snr * s_a * a) ** 2
            m, V = m - e * precision * (m - s_a * MU), (1 - e * precision) ** 2 * V + 2 * e
        v = s_a**2 * (a**2 - b**2)
        if predictor == 'ancestral':   # in the unscaled frame
            k, q = shrink(a), b**2 / a**2
            A = q + (1 - q) * k
            beta = 1 - (1 + b**2) / (1 + a**2)   # 1 - alpha-bar / alpha-bar', which Song's VP adds
            m, V = s_b * (MU + A * (m / s_a - MU)), s_b**2 * A**2 * V / s_a**2
            V += (beta if vp else b**2 * (1 - q)) if b > 0 else 0
        else:
            share = 0.5 if predictor == 'probability-flow' else 1.0
            m, V = ((2 - s_a / s_b) * m - share * v * precision * (m - s_a * MU),
                    (2 - s_a / s_b - share * v * precision) ** 2 * V)
            V += v if b > 0 and share == 1 else 0
    return m, V


@pytest.mark.parametrize('predictor', ['reverse-diffusion', 'ancestral', 'probability-flow'])
@pytest.mark.parametrize('corrector', [('none', 0), ('ald', 1), ('ald', 2)])
@pytest.mark.parametrize('vp', [False, True])
@pytest.mark.parametrize('num_steps', [1, 2, 50])
def test_moments_of_the_predictor_corrector(predictor, corrector, vp, num_steps):
    name, corrector_steps = corrector
    sampler = PredictorCorrector(predictor=predictor, corrector=name,
                                 corrector_steps=corrector_steps, scaling=VPScaling() if vp
                                 else NoScaling())
    sigmas = levels(VPSteps() if vp else VESteps(), num_steps)
    draws = num_steps * corrector_steps + (0 if predictor == 'probability-flow' else num_steps - 1)
    expected = pc_recursion(sigmas, predictor, corrector_steps, 0.16, vp)
    assert impulse_response(sampler, sigmas, draws) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_langevin_steps_by_the_formula():
    """One level: a corrector step, then the predictor to zero, which is the denoiser."""
    generator = torch.Generator().manual_seed(1)
    noise, z = torch.randn(2, 3, 1, 4, 4, dtype=f64, generator=generator)
    sigmas = torch.tensor([2.0, 0.0], dtype=f64)
    net, sigma = Gaussian(), torch.tensor(2.0, dtype=f64)
    for original in [False, True]:
        x = 2 * noise
        g = (net(x, sigma) - x) / 4
        norms = [v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for v in (z, g)]
        norms = [v.mean() for v in norms] if original else norms
        e = 2 * (0.16 * norms[0] / norms[1]) ** 2
        expected = net(x + e * g + (2 * e).sqrt() * z, sigma)
        ours = run(PredictorCorrector(original=original), Conditioned(net), noise, sigmas,
                   lambda x: z)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('snr', 'std'), [(0.16, 0.507), (0.01, 0.500)])
def test_predictor_corrector_on_gaussian_data(snr, std):
    torch.manual_seed(0)
    count, n = 40, 192
    sampler = PredictorCorrector(snr=snr)
    x = run(sampler, Conditioned(Gaussian(MU, C)), torch.randn(count, 3, 8, 8),
            levels(VESteps(), 1000))
    standard_error = std / math.sqrt(2 * count * n)
    # the value has three digits
    assert float(x.std()) == pytest.approx(std, abs=4 * standard_error + 5e-4)
    assert float(x.mean()) == pytest.approx(MU, abs=4 * std / math.sqrt(count * n) + 5e-4)


def test_the_original_deterministic_ve_sampler_is_eulers_method_in_sigma_squared():
    z = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(2))
    sigmas = levels(VESteps(), 30)
    ours = run(PredictorCorrector(predictor='probability-flow', corrector='none'),
               Conditioned(Gaussian()), z, sigmas, forbidden)
    euler = run(FlowSampler(Euler(), VESchedule()), Conditioned(Gaussian()), z, sigmas, forbidden)
    torch.testing.assert_close(ours, euler, rtol=1e-11, atol=1e-11)


def test_discrete_vp_predictors_by_their_betas():
    """Song's forms in beta_i = 1 - alpha_i: reverse diffusion, and ancestral sampling with the
    large variance."""
    sigmas = levels(VPSteps(), 25)
    z = torch.randn(2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(3))
    draws = torch.randn(25, 2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(4))
    alpha_bars = (1 / (1 + sigmas**2)).tolist()

    def chain(step, x):
        net = Gaussian()
        for i in range(25):
            beta = 1 - alpha_bars[i] / alpha_bars[i + 1]
            s = math.sqrt(alpha_bars[i])
            D = net(x / s, sigmas[i])
            x = step(x, beta, (s * D - x) / (1 - alpha_bars[i])) + (
                math.sqrt(beta) * draws[i] if i < 24 else 0
            )
        return x

    scale = sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    feed = iter(draws)
    ours = run(PredictorCorrector(corrector='none', scaling=VPScaling()), Conditioned(Gaussian()),
               z, sigmas, lambda x: next(feed))
    expected = chain(lambda x, beta, score: (2 - math.sqrt(1 - beta)) * x + beta * score, scale * z)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    feed = iter(draws)
    ours = run(Ancestral('large'), Conditioned(Gaussian()), z, sigmas, lambda x: next(feed))
    expected = chain(lambda x, beta, score: (x + beta * score) / math.sqrt(1 - beta), z)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def ancestral_recursion(sigmas, nu):
    a_0 = float(sigmas[0])
    m, V = 0.0, 1 + a_0**2
    for a, b in itertools.pairwise(sigmas.tolist()):
        q = b**2 / a**2
        A = q + (1 - q) * shrink(a)
        w2 = (b**2 * (1 - q)) ** (1 - nu) * ((a**2 - b**2) * (1 + b**2)
                                             / (1 + a**2)) ** nu if b else 0
        m, V = MU + A * (m - MU), A**2 * V + w2
    return m, V


@pytest.mark.parametrize(('variance', 'nu'), [('small', 0.0), ('large', 1.0), ('learned', 0.3),
                                              ('learned', 1.2)])
@pytest.mark.parametrize('num_steps', [1, 2, 100, 992])
def test_moments_of_ancestral_sampling(variance, nu, num_steps):
    sigmas = levels(IDDPMSteps(), num_steps)
    net = LearnedGaussian(2 * nu - 1, mu=MU, c=C)
    moments = impulse_response(Ancestral(variance), sigmas, num_steps - 1, net)
    assert moments == pytest.approx(ancestral_recursion(sigmas, nu), rel=1e-9, abs=1e-12)
    if num_steps == 992 and variance != 'learned':  # every level up to 80
        assert math.sqrt(moments[1]) == pytest.approx(
            0.497 if variance == 'small' else 0.501, abs=1e-3
        )


def test_monte_carlo_agrees_with_the_recursions():
    torch.manual_seed(0)
    count = 20_000
    for sampler, steps, expected in [
            (Ancestral('small'), IDDPMSteps(), lambda sigmas: ancestral_recursion(sigmas, 0)),
            (EulerMaruyama(), VPSteps(), em_recursion),
            (PredictorCorrector(corrector='ald'), VESteps(),
             lambda s: pc_recursion(s, 'reverse-diffusion', 1, 0.16, 0))]:
        sigmas = levels(steps, 30)
        mean, variance = expected(sigmas)
        x = run(sampler, Conditioned(Gaussian(MU, C)), torch.randn(count, 1, 1, 1), sigmas)
        assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / count))
        assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / count))


@pytest.mark.parametrize('variance', ['small', 'large'])
def test_ancestral_sampling_is_the_chain_of_ddpm(variance):
    """Lin et al. 2023, Eq. 7 to 9 and 20 in alpha-bar, step by step in the scaled frame."""
    sigmas, net = levels(IDDPMSteps(), 40), Gaussian()
    z, *draws = torch.randn(40, 2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(5))
    x = z
    for i, (a, b) in enumerate(itertools.pairwise(sigmas.tolist())):
        ab, ab_next = 1 / (1 + a**2), 1 / (1 + b**2)
        alpha = ab / ab_next
        beta = 1 - alpha
        x0 = net(x / math.sqrt(ab), sigmas[i])
        x = (
            math.sqrt(ab_next) * beta / (1 - ab) * x0
            + math.sqrt(alpha) * (1 - ab_next) / (1 - ab) * x
        )
        if b > 0:
            x = x + math.sqrt(beta * ((1 - ab_next) / (1 - ab) if variance == 'small'
                                      else 1)) * draws[i]
    feed = iter(draws)
    ours = run(Ancestral(variance), Conditioned(Gaussian()), z, sigmas, lambda x: next(feed))
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('num_steps', [1, 2, 40])
def test_moments_of_ddim(eta, num_steps):
    sigmas = levels(IDDPMSteps(), num_steps)
    m, V = 0.0, float(sigmas[0]) ** 2
    for a, b in itertools.pairwise(sigmas.tolist()):   # Eq. 21 and 22 in alpha-bar
        ab, ab_next, k = 1 / (1 + a**2), 1 / (1 + b**2), shrink(a)
        w2 = eta**2 * (1 - ab_next) / (1 - ab) * (1 - ab / ab_next)
        A = k + math.sqrt(max(1 - ab_next - w2, 0) / ab_next) * (1 - k) / a
        m, V = MU + A * (m - MU), A**2 * V + w2 / ab_next
    moments = impulse_response(DDIM(eta), sigmas, num_steps - 1 if eta else 0)
    assert moments == pytest.approx((m, V), rel=1e-9, abs=1e-12)


def test_ddim_without_noise_is_eulers_method_in_sigma():
    z = torch.randn(2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(6))
    sigmas = levels(IDDPMSteps(), 50)
    ours = run(DDIM(), Conditioned(Gaussian()), z, sigmas, forbidden)
    euler = run(FlowSampler(Euler()), Conditioned(Gaussian()), z, sigmas, forbidden)
    torch.testing.assert_close(ours, euler, rtol=1e-12, atol=1e-12)


def test_ddim_with_all_noise_is_ancestral_sampling_with_the_small_variance():
    z, *draws = torch.randn(50, 2, 1, 3, 3, dtype=f64, generator=torch.Generator().manual_seed(7))
    sigmas = levels(IDDPMSteps(), 50)
    feeds = [iter(draws), iter(draws)]
    # the two start from N(0, 1 + a^2) and N(0, a^2)
    start = (1 + sigmas[0] ** 2).sqrt() / sigmas[0]
    ddim = run(DDIM(eta=1.0), Conditioned(Gaussian()), start * z, sigmas, lambda x: next(feeds[0]))
    ancestral = run(Ancestral('small'), Conditioned(Gaussian()), z, sigmas,
                    lambda x: next(feeds[1]))
    torch.testing.assert_close(ddim, ancestral, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('sampler', [Ancestral('small', clip=True), DDIM(clip=True)])
def test_clipping_the_denoised_image(sampler):
    """Far from the data every D is clipped to 1, and x becomes a walk towards it."""
    sigmas = levels(IDDPMSteps(), 10)
    x = run(sampler, Conditioned(Gaussian(mu=5.0, c=0.01)), torch.zeros(1, 1, 1, 1), sigmas,
            torch.zeros_like)
    assert float(x) == 1
    unclipped = type(sampler)(**{'variance': 'small'} if isinstance(sampler, Ancestral) else {})
    y = run(unclipped, Conditioned(Gaussian(mu=5.0, c=0.01)), torch.zeros(1, 1, 1, 1), sigmas,
            torch.zeros_like)
    assert float(y) == pytest.approx(5, abs=0.01)


def test_repeated_levels_are_passed_over():
    """With more steps than an iDDPM network has levels, some repeat; w_lo would be log 0 there."""
    sigmas = torch.tensor([5.0, 5.0, 1.0, 1.0, 0.2, 0.0], dtype=f64)
    once = torch.tensor([5.0, 1.0, 0.2, 0.0], dtype=f64)
    for sampler in [Ancestral('small'), Ancestral('learned'), Ancestral('large'), DDIM(1.0)]:
        x, y = (run(sampler, Conditioned(LearnedGaussian(0.1)), torch.ones(2, 1, 2, 2), s,
                    StackedGenerator([1, 2], 'cpu').randn_like) for s in (sigmas, once))
        assert torch.equal(x, y) and bool(x.isfinite().all())


SAMPLERS = {   # with the evaluations of N steps
    'em': (EulerMaruyama(), lambda n: n),
    'em-original': (EulerMaruyama(original=True), lambda n: n),
    'pc': (PredictorCorrector(), lambda n: 2 * n),
    'pc-2': (PredictorCorrector(corrector_steps=2, predictor='ancestral'), lambda n: 3 * n),
    'pc-vp': (PredictorCorrector(scaling=VPScaling()), lambda n: 2 * n),
    'pc-none': (PredictorCorrector(corrector='none'), lambda n: n),
    'ancestral': (Ancestral('learned'), lambda n: n),
    'ancestral-small': (Ancestral('small', clip=True), lambda n: n),
    'ddim': (DDIM(), lambda n: n),
    'ddim-eta': (DDIM(eta=0.5, clip=True), lambda n: n),
}


def test_every_sampler_is_tested():
    assert set(EARLIER) <= set(SAMPLERS)


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('num_steps', [1, 2, 18])
def test_number_of_evaluations(name, num_steps):
    sampler, evaluations = SAMPLERS[name]
    net = LearnedGaussian(0.0)
    torch.manual_seed(0)
    sigmas = levels(VPSteps(), 18)[[*range(num_steps - 1), 17, 18] if num_steps == 18
                                   else [*range(num_steps), 18]]
    if name == 'em-original':
        sigmas = levels(VPSteps(), num_steps)
    x = run(sampler, Conditioned(net), torch.randn(2, 1, 2, 2), sigmas)
    assert len(net.sigmas) == evaluations(num_steps)
    assert net.sigmas[0] == float(sigmas[0]) and net.sigmas[-1] == float(sigmas[-2])
    assert x.dtype == f64 and bool(x.isfinite().all())


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('batch', [1, 7, 64])
def test_an_image_does_not_depend_on_its_batch(name, batch):
    def images(seeds):
        generator = StackedGenerator(seeds, 'cpu')
        return run(SAMPLERS[name][0], Conditioned(LearnedGaussian(0.3)),
                   generator.randn([len(seeds), 3, 16, 16]), levels(VPSteps(), 4),
                   generator.randn_like)

    together = images(range(64))
    few = range(64) if batch == 64 else range(0, 28)
    parts = torch.cat([images(few[i:i + batch]) for i in range(0, len(few), batch)])
    assert torch.equal(together[:len(few)], parts)


def test_with_original_norms_an_image_does_depend_on_its_batch():
    z = torch.randn(2, 1, 2, 2, dtype=f64, generator=torch.Generator().manual_seed(8))
    sigmas = levels(VESteps(), 3)
    together = run(PredictorCorrector(original=True), Conditioned(Gaussian()), z, sigmas,
                   torch.ones_like)
    alone = run(PredictorCorrector(original=True), Conditioned(Gaussian()), z[:1], sigmas,
                torch.ones_like)
    assert not torch.equal(together[:1], alone)


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 1, 3, 1), (2, 3, 5, 7), (5, 3, 32, 32)])
def test_sum_of_squares(shape):
    x = torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(sum_squares(x).flatten(), (x**2).flatten(1).sum(1), rtol=1e-14,
                               atol=0)
    assert sum_squares(x).shape == (shape[0], 1, 1, 1)


def test_sum_of_squares_adds_halves_in_every_batch():
    """Bit for bit the order of summation that is promised, whatever a reduction kernel would
    choose."""
    def by_halves(values):
        while len(values) > 1:
            half = (len(values) + 1) // 2
            values = [
                a + b for a, b in itertools.zip_longest(values[:half], values[half:], fillvalue=0.0)
            ]
        return values[0]

    x = torch.randn(8, 3, 5, 7, dtype=f64, generator=torch.Generator().manual_seed(11))
    expected = [by_halves([v * v for v in image.flatten().tolist()]) for image in x]
    assert sum_squares(x).flatten().tolist() == expected
    assert sum_squares(x[3:4]).item() == expected[3]


def small_network(cls, **kwargs):
    torch.manual_seed(0)
    return cls(img_resolution=8, img_channels=1, label_dim=2, model_type='SongUNet',
               model_channels=32, channel_mult=[1], num_blocks=1, attn_resolutions=[],
               **kwargs).eval()


def test_learned_variance_of_a_network():
    """Against the formula, with D and F_var of the network itself."""
    net = small_network(iDDPMPrecond)
    labels = torch.eye(2)
    denoise = Conditioned(net, labels)
    sigmas = denoise.levels(IDDPMSteps(), 2)
    z, xi = torch.randn(2, 2, 1, 8, 8, dtype=f64, generator=torch.Generator().manual_seed(10))
    ours = run(Ancestral(), denoise, z, sigmas, lambda x: xi)
    with torch.no_grad():
        a, b = sigmas[:2].tolist()
        x = math.sqrt(1 + a**2) * z
        D, F_var = (v.to(f64) for v in net(x, sigmas[0], labels, return_variance=True))
        nu = (F_var + 1) / 2
        q = b**2 / a**2
        lo, hi = b**2 * (1 - q), (a**2 - b**2) * (1 + b**2) / (1 + a**2)
        x = D + q * (x - D) + (0.5 * (nu * math.log(hi) + (1 - nu) * math.log(lo))).exp() * xi
        expected = net(x, sigmas[1], labels).to(f64)
    assert float(F_var.std()) > 0
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('net', [Gaussian(), small_network(EDMPrecond)])
def test_learned_variance_needs_variance_channels(net):
    with pytest.raises(ValueError, match=r"^variance='learned' needs a network with variance "
                                         r"channels \(iDDPM\), which "
                                         r"this one is not; use variance='small' or 'large'$"):
        run(Ancestral(), Conditioned(net), torch.zeros(1, 1, 8, 8), levels(EDMSteps(), 2))


def test_other_errors_of_a_network_pass():
    def broken(x, sigma, labels, return_variance=False):
        raise ValueError('another matter')

    with pytest.raises(ValueError, match='^another matter$'):
        Conditioned(broken).with_variance(torch.zeros(1, 1, 1, 1),
                              torch.ones([], dtype=f64))


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: PredictorCorrector(predictor='euler'),
     "predictor must be one of reverse-diffusion, ancestral, probability-flow, not 'euler'"),
    (lambda: PredictorCorrector(corrector='mala'), "corrector must be one of langevin, ald, none, "
                                                   "not 'mala'"),
    (lambda: PredictorCorrector(snr=0.0), 'snr must be positive, not 0'),
    (lambda: PredictorCorrector(corrector_steps=-1), 'corrector_steps must be 0 or more, not -1'),
    (lambda: Ancestral('big'), "variance must be one of learned, small, large, not 'big'"),
    (lambda: DDIM(eta=1.5), 'eta must be from 0 to 1, not 1.5'),
])
def test_numbers_out_of_range(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
