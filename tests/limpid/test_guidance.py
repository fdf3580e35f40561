"""Guidance against closed forms: guided Gaussians are Gaussian, and guided scores are
derivatives."""

import dataclasses
import math

import pytest
import torch

from limpid.adaptive import RK45
from limpid.denoiser import Conditioned, Counting, traits
from limpid.earlier import DDIM, Ancestral
from limpid.guidance import SPACES, Guidance, Guided, guided
from limpid.ideal import IdealDenoiser
from limpid.per_image import image_sum, sum_squares
from limpid.samplers import FlowSampler
from limpid.sampling import run, sample
from limpid.solvers import Euler
from limpid.steps import EDMSteps
from training.networks import EDMPrecond, iDDPMPrecond

f64 = torch.float64
MEANS = torch.tensor([-0.6, 0.1, 0.8], dtype=f64)   # of the classes; without a class the mean is 0
TINY = {'model_channels': 4, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': [],
        'dropout': 0}


@dataclasses.dataclass
class Classes:
    """Data N(μ, c²) with a mean for each class, answered in the unit variable too: ideal, and
    affine in the labels."""
    c: float = 0.5
    mu: float = 0.0
    unit_scale: float = 0.5
    F_var: float = 0.25
    label_dim: int = 3

    def __call__(self, x, sigma, class_labels=None, unit=False, return_variance=False):
        sigma = sigma.reshape(-1, 1, 1, 1) if sigma.ndim else sigma
        mu = self.mu + (0 if class_labels is None
                        else (class_labels.to(f64) @ MEANS).reshape(-1, 1, 1, 1))
        d = self.unit_scale
        share = 1 / (1 + (sigma / self.c) ** 2)  # c²/(c² + σ²)
        D = (
            mu * (1 - share) + (share * (sigma**2 + d**2).sqrt()).nan_to_num(0) * x
            if unit
            else mu + share * (x - mu)
        )
        return (D, torch.full_like(D, self.F_var) * (1 + mu)) if return_variance else D


class Pixels(IdealDenoiser):
    """The ideal denoiser of 40 pictures of 2 classes: its answers are no affine functions of x."""

    def __init__(self, seed=0):
        images = torch.rand([40, 2, 4, 4], generator=torch.Generator().manual_seed(seed),
                            dtype=f64) * 2 - 1
        super().__init__(images, torch.eye(2)[torch.arange(40) % 2])


def noise(batch=4, channels=2, size=4, dtype=f64):
    return torch.randn([batch, channels, size, size], generator=torch.Generator().manual_seed(1),
                       dtype=dtype)


def labels(*classes, of=3):
    return torch.eye(of)[list(classes)]


def levels(num_steps, low=0.01, high=20.0):
    return torch.nn.functional.pad(EDMSteps(low, high).sigmas(num_steps), (0, 1))


def lively(net):
    """Untrained weights that let labels, noise level and image matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return net.eval().requires_grad_(False)


def coordinates(space, D, x, sigma, d):
    """v, x0 or ε as defined: z = x/√(σ² + d²), a = d/√(σ² + d²), b = σ/√(σ² + d²)."""
    radius = (sigma**2 + d**2).sqrt()
    z, a, b = x / radius, d / radius, sigma / radius
    return {'v': (a * z - D / d) / b, 'x0': D, 'eps': (z - a * D / d) / b}[space]


def restored(space, answer, x, sigma, d):
    """D of v, x0 or ε."""
    radius = (sigma**2 + d**2).sqrt()
    z, a, b = x / radius, d / radius, sigma / radius
    return {'v': d * (a * z - b * answer), 'x0': answer, 'eps': d * (z - b * answer) / a}[space]


def std(v):
    return v.flatten(1).std(dim=1).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize('guide', [None, Classes(1.0)])
def test_weight_1_is_the_network_itself(guide):
    net = Classes()
    assert guided(net, Guidance()) is net
    assert guided(net, Guidance(weight=1, rescale=0.7, interval=(0.1, 2)), guide) is net


@pytest.mark.parametrize('weight', [0.0, 0.5, 1.5, 3.0, 7.5])
@pytest.mark.parametrize('sigma', [0.02, 0.3, 2.0, 60.0, [0.02, 0.3, 2.0, 60.0]])
def test_the_guided_score_is_the_derivative_of_the_guided_density(weight, sigma):
    """D = x + σ² ∇[w ln p(x|c) + (1 − w) ln p(x)], with the densities of a data set."""
    net, y, sigma = Pixels(), labels(0, 1, 1, 0, of=2), torch.tensor(sigma, dtype=f64)
    column = sigma.reshape(-1, 1, 1, 1)
    x = (net.images[:4] + column * noise()).requires_grad_()
    mixed = weight * net.log_prob(x, sigma, y) + (1 - weight) * net.log_prob(x, sigma)
    score, = torch.autograd.grad(mixed.sum(), x)
    D = guided(net, Guidance(weight))(x.detach(), sigma, y)
    torch.testing.assert_close(D, x.detach() + column**2 * score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('weight', [0.5, 2.0, 4.0])
def test_gaussians_guide_each_other_by_their_product(weight):
    """p^w q^(1−w) of N(μ, c² + σ²) and N(μ′, c′² + σ²): precisions and precision-weighted means add
    up."""
    net, guide = Classes(c=0.4), Classes(c=0.9, mu=0.3, label_dim=0)
    for sigma in torch.tensor([0.05, 0.5, 5.0], dtype=f64):
        x = noise() * (1 + sigma)
        narrow, wide = weight / (0.4**2 + sigma**2), (1 - weight) / (0.9**2 + sigma**2)
        mean = (narrow * MEANS[2] + wide * 0.3) / (narrow + wide)
        expected = x + sigma**2 * (narrow + wide) * (mean - x)
        D = guided(net, Guidance(weight), guide)(x, sigma, labels(2))
        torch.testing.assert_close(D, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('sampler', [FlowSampler(), FlowSampler(Euler()), DDIM(), DDIM(eta=1.0),
                                     Ancestral('small'), RK45()])
def test_every_sampler_draws_from_the_guided_distribution(sampler):
    """Classes of one width, without classes the same width about 0: guided, N(w μ, c²), whose own
    samples it draws."""
    y, w = labels(0, 1, 2, 2), 2.5

    def draw(net, class_labels):
        generator = torch.Generator().manual_seed(2)
        return run(sampler, Conditioned(net, class_labels), noise(), levels(12),
                   lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))

    def alone(x, sigma, class_labels):
        return Classes()(x, sigma, w * class_labels)

    images = draw(guided(Classes(), Guidance(w)), y)
    torch.testing.assert_close(images, draw(alone, y.to(f64)), rtol=1e-8, atol=1e-8)
    means = images.flatten(1).mean(dim=1)
    # 32 pixels each
    torch.testing.assert_close(means, w * MEANS[[0, 1, 2, 2]], rtol=0, atol=4 * 0.5 / 32**0.5)


def test_heun_reaches_the_end_of_the_guided_flow():
    """x(σ_min) = w μ + (x(σ_max) − w μ) √((c² + σ_min²)/(c² + σ_max²)), to second order."""
    w, c, errors = 3.0, 0.5, []
    for num_steps in [32, 64]:
        x = sample(guided(Classes(c), Guidance(w)), noise(), labels(2), num_steps=num_steps,
                   steps=EDMSteps(0.002, 20.0))
        exact = w * MEANS[2] + (20 * noise() - w * MEANS[2]) * c / math.hypot(c, 20.0)
        errors.append(float((x - exact).abs().max()))
    assert errors[0] < 2e-2 and errors[0] / errors[1] > 3.5


@pytest.mark.parametrize('sigma', [0.5, [0.1, 0.5, 2.0, 30.0]])
def test_one_call_of_twice_the_images_equals_two_calls(sigma):
    """With a convolutional network in float32, labels for each image or one for all."""
    net = lively(EDMPrecond(8, 2, label_dim=3, model_type='SongUNet', **TINY))
    watched, sigma, w = Counting(net), torch.tensor(sigma, dtype=f64), 3.0
    x = noise(size=8) * (1 + sigma.reshape(-1, 1, 1, 1))
    for y in [labels(0, 2, 1, 1), labels(1)]:
        D_pos, D_ref = net(x, sigma, y), net(x, sigma, torch.zeros_like(y))
        assert float((D_pos - D_ref).abs().max()) > 0.02
        D = guided(watched, Guidance(w))(x, sigma, y)
        assert D.dtype == torch.float32 and D.shape == x.shape
        torch.testing.assert_close(D, D_ref + w * (D_pos - D_ref), rtol=1e-5, atol=1e-5)
    assert (watched.calls, watched.images) == (2, 16)


def test_evaluations_are_counted_inside():
    """Twice those of an unguided sampler in the interval, once outside."""
    sigmas, y = levels(10), labels(0, 1, 2, 2)
    inside = int(((sigmas >= 0.2) & (sigmas <= 5)).sum())
    assert inside == 4
    net, guide = Counting(Classes()), Counting(Classes(1.0))
    run(DDIM(), Conditioned(guided(net, Guidance(2.0)), y), noise(), sigmas)
    assert (net.calls, net.images) == (10, 80)
    net = Counting(Classes())
    run(DDIM(), Conditioned(guided(net, Guidance(2.0, interval=(0.2, 5))), y), noise(), sigmas)
    assert (net.calls, net.images) == (10, 40 + 4 * inside)
    net = Counting(Classes())
    run(DDIM(), Conditioned(guided(net, Guidance(2.0, interval=(0.2, 5)), guide), y), noise(),
        sigmas)
    assert (net.calls, net.images, guide.calls, guide.images) == (10, 40, inside, 4 * inside)
    assert guide.noise_levels() == pytest.approx(sigmas[(sigmas >= 0.2) & (sigmas <= 5)].tolist())


@pytest.mark.parametrize('space', SPACES)
def test_without_rescaling_plain_guidance_bitwise(space):
    net, y, sigma = Pixels(), labels(0, 1, 1, 0, of=2), torch.tensor(0.7, dtype=f64)
    x = net.images[:4] + sigma * noise()
    D_pos, D_ref = net(x, sigma, y), net(x, sigma)
    D = guided(net, Guidance(4.0, rescale=0.0, space=space))(x, sigma, y)
    assert torch.equal(D, D_ref + 4.0 * (D_pos - D_ref))


@pytest.mark.parametrize('guide', [None, 1])
@pytest.mark.parametrize('phi', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('space', SPACES)
@pytest.mark.parametrize('sigma', [0.02, 0.7, 30.0, [0.05, 0.4, 3.0, 80.0]])
@pytest.mark.parametrize('d', [1.0, 0.5])
def test_rescaling_by_the_letter(d, sigma, space, phi, guide):
    """Eq. 13 to 16 on v, x0 and ε themselves; and with φ = 1 each image has the standard deviation
    of D_pos."""
    net, y, sigma = Pixels(), labels(0, 1, 1, 0, of=2), torch.tensor(sigma, dtype=f64)
    guide = None if guide is None else Pixels(guide)
    if d != 1:
        net.traits = dataclasses.replace(net.traits, unit_scale=d)
    column = sigma.reshape(-1, 1, 1, 1)
    x, w = net.images[:4] + column * noise(), 3.0
    reference = net(x, sigma) if guide is None else guide(x, sigma, y)
    pos, neg = (coordinates(space, D, x, column, d) for D in (net(x, sigma, y), reference))
    cfg = neg + w * (pos - neg)
    expected = phi * cfg * std(pos) / std(cfg) + (1 - phi) * cfg
    D = guided(net, Guidance(w, phi, space), guide)(x, sigma, y)
    torch.testing.assert_close(D, restored(space, expected, x, column, d), rtol=1e-8, atol=1e-8)
    if phi == 1:
        torch.testing.assert_close(std(coordinates(space, D, x, column, d)), std(pos), rtol=1e-7,
                                   atol=0)


def test_guidance_is_the_same_in_every_space():
    """Affine with weights that add up to 1: Eq. 13 on v and on ε gives Eq. 13 on D."""
    net, y, sigma, w = Pixels(), labels(0, 1, 1, 0, of=2), torch.tensor(0.6, dtype=f64), 7.5
    x = net.images[:4] + sigma * noise()
    D = guided(net, Guidance(w))(x, sigma, y)
    for space in SPACES:
        pos, neg = (coordinates(space, net(x, sigma, label), x, sigma, 1.0) for label in (y, None))
        torch.testing.assert_close(restored(space, neg + w * (pos - neg), x, sigma, 1.0), D,
                                   rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('space', SPACES)
def test_where_nothing_varies_there_is_nothing_to_rescale(space):
    """Of constant pictures v, x0 and ε have no standard deviation: factor 1, no division by 0."""
    x, sigma = torch.full([2, 1, 4, 4], 0.5, dtype=f64), torch.tensor(0.5, dtype=f64)
    plain = guided(Classes(), Guidance(3.0))(x, sigma, labels(0, 2))
    assert torch.equal(guided(Classes(), Guidance(3.0, 1.0, space))(x, sigma, labels(0, 2)), plain)


def test_a_rescaled_image_does_not_depend_on_its_batch():
    net, y, sigma = Pixels(), labels(0, 1, 1, 0, of=2), torch.tensor(0.6, dtype=f64)
    x = net.images[:4] + sigma * noise()
    net = guided(net, Guidance(3.0, 0.7))
    whole = net(x, sigma, y)
    assert torch.equal(whole, torch.cat([net(x[i:i + 1], sigma, y[i:i + 1]) for i in range(4)]))
    v = noise(3, 3, 5)
    assert torch.equal(image_sum(v.square()), sum_squares(v))
    torch.testing.assert_close(image_sum(v).flatten(), v.flatten(1).sum(dim=1), rtol=0, atol=1e-12)


def test_outside_of_the_interval_the_network_alone():
    """Both limits included; one level, on the host, or a level for each image, side by side."""
    net, y = Classes(), labels(0, 1, 2, 0)
    within = guided(net, Guidance(3.0, 0.5, interval=(0.2, 5.0)))
    always = guided(net, Guidance(3.0, 0.5))
    for sigma in torch.tensor([0.0, 0.1, 0.199, 5.01, 80.0], dtype=f64):
        assert torch.equal(within(noise(), sigma, y), net(noise(), sigma, y))
    for sigma in torch.tensor([0.2, 0.2 - 1e-14, 1.0, 5.0, 5.0 + 1e-13], dtype=f64):
        assert torch.equal(within(noise(), sigma, y), always(noise(), sigma, y))
        assert not torch.equal(within(noise(), sigma, y), net(noise(), sigma, y))
    sigma = torch.tensor([0.1, 0.2, 5.0, 6.0], dtype=f64)
    for shape in [[4], [4, 1, 1, 1]]:
        D = within(noise(), sigma.reshape(shape), y)
        assert torch.equal(D[[0, 3]], net(noise(), sigma, y)[[0, 3]])
        assert torch.equal(D[[1, 2]], always(noise(), sigma, y)[[1, 2]])


class Anywhere(Classes):
    """Remembers what it was asked."""

    def __call__(self, x, sigma, class_labels=None, **conditions):
        assert sigma.device == x.device
        self.batches, self.conditions = [*getattr(self, 'batches', []), len(x)], conditions
        return x / (1 + sigma)


def test_no_device_is_waited_for():
    """Tensors without contents, of which the host can learn nothing, stand for those of a GPU that
    is still at work."""
    x, y = torch.empty(2, 1, 4, 4, device='meta'), torch.empty(2, 3, device='meta')
    for space in SPACES:
        net = Anywhere()
        within = guided(net, Guidance(3.0, 0.5, space, (0.2, 5.0)))
        for sigma in [torch.empty([], device='meta'), torch.empty([2], device='meta')]:
            assert within(x, sigma, y).shape == x.shape
        assert net.batches == [4, 4]
        for sigma in [0.1, 1.0, 6.0]:   # on the CPU the host knows: outside no second evaluation
            assert within(x, torch.tensor(sigma), y).device.type == 'meta'
        assert net.batches == [4, 4, 2, 4, 2]
        for sigma in [0.1, 1.0, 6.0]:   # as samplers call it
            Conditioned(within, y)(x, torch.tensor(sigma, dtype=f64))
        assert net.batches[5:] == [2, 4, 2]


@pytest.mark.parametrize('guidance',
                         [Guidance(3.0), *(Guidance(3.0, 0.7, space) for space in SPACES)])
@pytest.mark.parametrize('guide', [None, Classes(1.0, 0.2, unit_scale=0.5),
                                   Classes(1.0, 0.2, unit_scale=1.0)])
def test_the_unit_variable(guidance, guide):
    """z = x/√(σ² + d²) gives the same D at every finite level, whatever the unit of the guide, and
    a finite one at ∞."""
    net, y = guided(Classes(0.4), guidance, guide), labels(0, 1, 2, 2)
    assert traits(net).unit_scale == 0.5
    for sigma in torch.tensor([1e-3, 0.3, 2.0, 80.0, 1e4], dtype=f64):
        x = noise() * (0.25 + sigma**2).sqrt()
        torch.testing.assert_close(net(noise(), sigma, y, unit=True), net(x, sigma, y), rtol=1e-11,
                                   atol=1e-11)
    sigma = torch.tensor([math.inf, 1.0, math.inf, 0.1], dtype=f64)
    D = net(noise(), sigma, y, unit=True)
    torch.testing.assert_close(D[1], net(noise()[1:2], sigma[1], y[1:2], unit=True)[0], rtol=1e-12,
                               atol=1e-12)
    means = MEANS[[0, 2]] if guide is None else 3 * MEANS[[0, 2]] - 2 * (MEANS[[0, 2]] + 0.2)
    expected = (3 * means if guide is None else means).reshape(2, 1, 1, 1).expand(2, 2, 4, 4)
    # a constant picture: nothing to rescale
    torch.testing.assert_close(D[[0, 2]], expected, rtol=1e-12, atol=1e-12)


class Textured(Classes):
    """At σ = ∞ the class of an image leaves a pattern."""

    def __call__(self, x, sigma, class_labels=None, unit=False):
        pattern = torch.linspace(-1, 1, x[0].numel(), dtype=f64).reshape(x.shape[1:])
        return pattern * (class_labels.to(f64) @ MEANS).reshape(-1, 1, 1, 1) + 0.1 * pattern**2


@pytest.mark.parametrize(('space', 'phi', 'shrunk'), [('v', 1.0, True), ('x0', 1.0, True),
                                                      ('eps', 1.0, False), ('v', 0.0, False)])
def test_rescaling_at_infinite_noise(space, phi, shrunk):
    """There v = −D/d, so that v and x0 coincide; ε is the input itself, and leaves guidance as it
    is."""
    y, sigma = labels(2, 0), torch.tensor(math.inf, dtype=f64)
    D_pos = Textured()(noise(2), sigma, y)
    cfg = Textured()(noise(2), sigma, torch.zeros(2, 3)) * (1 - 3) + 3 * D_pos
    D = guided(Textured(), Guidance(3.0, phi, space))(noise(2), sigma, y, unit=True)
    torch.testing.assert_close(D, cfg * std(D_pos) / std(cfg) if shrunk else cfg, rtol=1e-12,
                               atol=1e-12)


def test_without_the_guides_unit_variable_there_is_none():
    class Plain:
        label_dim = 3

        def __call__(self, x, sigma, class_labels=None):
            return Classes(1.0)(x, sigma, class_labels)

    assert traits(guided(Classes(), Guidance(2.0), Plain())).unit_scale is None
    assert traits(guided(Plain(), Guidance(2.0), Classes())).unit_scale is None
    both = guided(Classes(), Guidance(2.0), Classes(unit_scale=1.0))
    assert traits(both).unit_scale == 0.5


def test_the_reason_of_either_network_forbids_infinite_noise():
    can, cannot = (
        with_attributes(no_infinity=''),
        with_attributes(no_infinity='it predicts the noise'),
    )
    for guide in (None, can, cannot):
        both = guided(cannot, Guidance(2.0), guide)
        assert traits(both).no_infinity == 'it predicts the noise'
    for net in (can, Classes()):
        assert traits(guided(net, Guidance(2.0), cannot)).no_infinity == (
            'the guide: it predicts the noise. With an interval of guidance (0, HI) the guide is '
            'asked up to HI only')
    for both in (guided(can, Guidance(2.0), can), guided(can, Guidance(2.0))):
        assert traits(both).no_infinity == ''
    # there the guide is not asked
    assert traits(guided(can, Guidance(2.0, interval=(0, 9)), cannot)).no_infinity == ''


def test_the_variance_is_that_of_the_conditional_answer():
    net, sigma, y = Classes(), torch.tensor(0.7, dtype=f64), labels(2, 0, 1, 1)
    D, F_var = guided(net, Guidance(3.0))(noise(), sigma, y, return_variance=True)
    assert torch.equal(D, guided(net, Guidance(3.0))(noise(), sigma, y))
    assert torch.equal(F_var, net(noise(), sigma, y, return_variance=True)[1]) and len(F_var) == 4
    guide = Anywhere(label_dim=0)
    D, F_var = guided(net, Guidance(3.0), guide)(noise(), sigma, y, return_variance=True)
    assert torch.equal(F_var, net(noise(), sigma, y, return_variance=True)[1])
    assert guide.conditions == {}   # it is not asked for a variance
    assert torch.equal(D, guided(net, Guidance(3.0), guide)(noise(), sigma, y))
    with pytest.raises(ValueError, match=r"variance='learned' needs a network with variance "
                                         r"channels"):
        Conditioned(guided(Pixels(), Guidance(3.0)), labels(0, of=2)).with_variance(noise(), sigma)


def test_learned_variances_of_a_network():
    net = lively(iDDPMPrecond(8, 2, label_dim=3, model_type='SongUNet', **TINY))
    y, sigma = labels(2, 0, 1, 1), torch.tensor(1.5, dtype=f64)
    D, F_var = guided(net, Guidance(2.0))(noise(size=8), sigma, y, return_variance=True)
    torch.testing.assert_close(F_var, net(noise(size=8), sigma, y, return_variance=True)[1],
                               rtol=1e-5, atol=1e-5)
    sigmas = net.round_sigma(levels(5))
    generator = torch.Generator().manual_seed(0)
    images = run(Ancestral(), Conditioned(guided(net, Guidance(2.0)), y), noise(size=8), sigmas,
                 lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    assert images.isfinite().all() and images.dtype == f64


def test_conditions_are_given_to_both_halves():
    """Those of each image twice, those for all once."""
    net = lively(EDMPrecond(8, 2, label_dim=3, model_type='SongUNet', augment_dim=2, **TINY))
    y, sigma, w = labels(2, 0, 1, 1), torch.tensor(0.5, dtype=f64), 2.0
    for augment in [torch.randn(4, 2), torch.randn(1, 2)]:
        D_pos, D_ref = (net(noise(size=8), sigma, label, augment_labels=augment)
                        for label in (y, torch.zeros_like(y)))
        D = guided(net, Guidance(w))(noise(size=8), sigma, y, augment_labels=augment,
                                     force_fp32=True)
        torch.testing.assert_close(D, D_ref + w * (D_pos - D_ref), rtol=1e-5, atol=1e-5)


def test_a_guide_is_asked_with_the_labels_it_knows():
    net, sigma, y = Classes(), torch.tensor(0.7, dtype=f64), labels(2, 0, 1, 1)
    D_pos = net(noise(), sigma, y)
    for label_dim, given in [(3, y), (0, None)]:
        D_ref = Classes(1.0)(noise(), sigma, given)
        D = guided(net, Guidance(3.0), Classes(1.0, label_dim=label_dim))(noise(), sigma, y)
        assert torch.equal(D, D_ref + 3.0 * (D_pos - D_ref))
    unconditional = guided(Classes(label_dim=0), Guidance(3.0), Classes(1.0, label_dim=0))
    assert unconditional(noise(), sigma).shape == noise().shape


def with_attributes(**attributes):
    net = Classes()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def test_attributes_are_those_of_the_network():
    net = with_attributes(sigma_min=0.01, sigma_max=90.0, img_resolution=4, img_channels=2,
                          round_sigma=lambda sigma: sigma.round())
    alone = Conditioned(guided(net, Guidance(2.0)))
    assert (alone.traits.sigma_min, alone.traits.sigma_max) == (0.01, 90.0)
    assert alone.traits.image_shape == (2, 4, 4)
    assert float(alone.nearest(torch.tensor(2.4))) == 2
    assert Conditioned(guided(Classes(), Guidance(2.0))).traits.image_shape is None


@pytest.mark.parametrize(('interval', 'expected'), [
    ((0.0, math.inf), (0.02, 50.0)), ((0.02, math.inf), (0.01, 50.0)), ((0.1, 10.0), (0.01, 90.0)),
    ((0.1, 60.0), (0.01, 50.0))])
def test_the_noise_range_is_what_both_support(interval, expected):
    """Of the guide's range only what guidance needs counts."""
    net, guide = (
        with_attributes(sigma_min=0.01, sigma_max=90.0),
        with_attributes(sigma_min=0.02, sigma_max=50.0),
    )
    both = guided(net, Guidance(2.0, interval=interval), guide)
    assert (traits(both).sigma_min, traits(both).sigma_max) == expected
    assert isinstance(both, Guided)
    assert Conditioned(guided(net, Guidance(2.0), Classes())).traits.sigma_max == 90.0


@pytest.mark.parametrize(('fields', 'message'), [
    ({'weight': math.nan}, 'the weight of guidance must be a finite number, not nan'),
    ({'weight': math.inf}, 'the weight of guidance must be a finite number, not inf'),
    ({'rescale': 1.2}, 'the rescaling of guidance must be from 0 to 1, not 1.2'),
    ({'rescale': math.nan}, 'the rescaling of guidance must be from 0 to 1, not nan'),
    ({'space': 'D'}, "the space of the rescaling must be one of v, x0, eps, not 'D'"),
    ({'interval': (2, 1)}, 'the interval of guidance must be two noise levels, the lowest and the '
                           'highest, not 2, 1'),
    ({'interval': (-1, 1)}, 'the interval of guidance must be two noise levels, the lowest and the '
                            'highest, not -1, 1'),
    ({'interval': (0, math.nan)}, 'the interval of guidance must be two noise levels, the lowest '
                                  'and the highest, not 0, nan')])
def test_numbers_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        Guidance(**fields)


@pytest.mark.parametrize(('attributes', 'message'), [
    ({'img_resolution': 8}, 'the guide has img_resolution=8; to guide this network it must have 4'),
    ({'img_channels': 1}, 'the guide has img_channels=1; to guide this network it must have 2'),
    ({'label_dim': 2}, 'the guide has label_dim=2; to guide this network it must have 3 or 0')])
def test_a_guide_of_other_images(attributes, message):
    net = with_attributes(img_resolution=4, img_channels=2)
    with pytest.raises(ValueError, match=f'^{message}$'):
        guided(
            net,
            Guidance(2.0),
            with_attributes(**{'img_resolution': 4, 'img_channels': 2, **attributes}),
        )


def test_what_has_no_labels_cannot_guide_itself():
    with pytest.raises(ValueError, match='^guidance needs a class-conditional network, trained '
                                         'with label dropout, or a guide; this network is '
                                         'unconditional$'):
        guided(Classes(label_dim=0), Guidance(2.0))
    with pytest.raises(ValueError, match='^guidance needs class labels, or a guide$'):
        guided(Classes(), Guidance(2.0))(noise(), torch.tensor(1.0, dtype=f64))
    with pytest.raises(ValueError, match='^the guide has label_dim=3; to guide this network it '
                                         'must have 0$'):
        guided(Classes(label_dim=0), Guidance(2.0), Classes())
