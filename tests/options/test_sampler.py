"""From options to samplers: every combination, what has an effect, and images that depend on their
seeds alone."""

import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import generate
from checkpoints.open import open_network
from limpid.adaptive import ADAPTIVE, RK45, AdaptiveSDE
from limpid.denoiser import Conditioned, Counting, Traits, traits
from limpid.earlier import DDIM, Ancestral, EulerMaruyama, PredictorCorrector
from limpid.ideal import IdealDenoiser
from limpid.preconditioning import EDM, IDDPM
from limpid.samplers import Churn, FlowSampler
from limpid.sampling import run
from limpid.schedules import (
    SCALINGS,
    SCHEDULES,
    LinearSchedule,
    NoScaling,
    VESchedule,
    VPScaling,
    VPSchedule,
)
from limpid.sde import GeneralSDE
from limpid.seeds import StackedGenerator, latents_and_labels
from limpid.solvers import SOLVERS, Adams, Euler, Multistep2M, SecondOrder
from limpid.steps import STEPS, EDMSteps, ExplicitSteps, IDDPMSteps, VESteps, VPSteps
from options.sampler import OLD, PRESETS, SAMPLERS, resolve_sampler, sampler_options
from tests.oracles import Gaussian
from tests.training.test_training_loop import torchrun

NAMES = [parameter.name for parameter in sampler_options(lambda: None).__click_params__]


def resolve(lowest=0.0, highest=float('inf'), **given):
    assert set(given) <= set(NAMES)
    told = Traits(sigma_min=lowest, sigma_max=highest, learned_variance=True)
    return resolve_sampler({**dict.fromkeys(NAMES), **given}, told)


def test_defaults_are_the_papers():
    sampling = resolve()
    assert sampling.sampler == FlowSampler(SecondOrder(1), LinearSchedule(), NoScaling(), Churn())
    assert (
        sampling.steps == EDMSteps(0.002, 80, 7)
        and sampling.num_steps == 18
        and sampling.notes == ()
    )


@pytest.mark.parametrize(('family', 'steps', 'schedule', 'scaling', 'solver'), [
    ('vp', VPSteps, VPSchedule, VPScaling, Euler), ('ve', VESteps, VESchedule, NoScaling, Euler),
    ('iddpm', IDDPMSteps, LinearSchedule, NoScaling, Euler), ('edm', EDMSteps, LinearSchedule,
                                                              NoScaling, SecondOrder)])
def test_a_family_is_a_column_of_table_1(family, steps, schedule, scaling, solver):
    sampling = resolve(family=family)
    assert type(sampling.steps) is steps
    assert [type(row) for row in (sampling.sampler.solver, sampling.sampler.schedule,
                                  sampling.sampler.scaling)] == [solver, schedule, scaling]
    replaced = resolve(family=family, solver='dpmpp-2m', disc='edm', schedule='ve', scaling='none')
    assert replaced.sampler == FlowSampler(Multistep2M(), VESchedule(),
                                           NoScaling()) and replaced.steps == EDMSteps()


def test_a_vp_schedule_takes_its_constants_from_the_range_that_is_left():
    sampling = resolve(lowest=0.02, highest=100.0, disc='vp', schedule='vp', scaling='vp')
    schedule = sampling.sampler.schedule
    ends = schedule.sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.02, 100.0], dtype=torch.float64))
    assert resolve(family='vp').sampler.schedule.beta_d == pytest.approx(19.9)


@pytest.mark.parametrize(('given', 'sampler', 'steps'), [
    ({'sampler': 'em'}, EulerMaruyama(), VPSteps),
    ({'sampler': 'em', 'original': True, 'deterministic': True},
     EulerMaruyama(original=True, deterministic=True), VPSteps),
    ({'sampler': 'pc', 'snr': 0.1, 'corrector': 'ald'},
     PredictorCorrector(snr=0.1, corrector='ald'), VESteps),
    ({'sampler': 'pc', 'scaling': 'vp'}, PredictorCorrector(scaling=VPScaling()), VESteps),
    ({'sampler': 'ancestral', 'variance': 'small', 'clip': True}, Ancestral('small', True),
     IDDPMSteps),
    ({'sampler': 'ddim', 'eta': 0.5, 'disc': 've'}, DDIM(0.5), VESteps),
    ({'sampler': 'sde', 'beta': 2.0, 'schedule': 've', 'S_max': 1.0},
     GeneralSDE(VESchedule(), beta=2.0, S_max=1.0), EDMSteps),
    ({'sampler': 'rk45', 'rtol': 1e-3}, RK45(rtol=1e-3), EDMSteps),
    ({'sampler': 'adaptive', 'eps_rel': 0.05}, AdaptiveSDE(eps_rel=0.05), VPSteps),
    ({'sampler': 'adaptive', 'sde': 've'}, AdaptiveSDE(sde='ve'), VESteps),
    ({'solver': 'adams', 'order': 2}, FlowSampler(Adams(2)), EDMSteps),
    ({'alpha': 0.5, 'S_churn': 3.0}, FlowSampler(SecondOrder(0.5), churn=Churn(3.0)), EDMSteps),
    ({'sigmas': [10.0, 1.0, 0.1]}, FlowSampler(), ExplicitSteps),
    ({'preset': 'imagenet64-edm'}, FlowSampler(churn=Churn(40, 0.05, 50, 1.003)), EDMSteps),
    ({'preset': 'imagenet64-edm', 'S_churn': 10.0}, FlowSampler(churn=Churn(10, 0.05, 50, 1.003)),
     EDMSteps),
    ({'preset': 've-original'}, PredictorCorrector(predictor='probability-flow', corrector='none'),
     VESteps)])
def test_options_become_samplers(given, sampler, steps):
    sampling = resolve(**given)
    assert sampling.sampler == sampler and type(
        sampling.steps) is steps and sampling.notes == ()


def test_presets_resolve_and_table_5_is_table_5():
    steps = {name: resolve(preset=name).num_steps for name in PRESETS}
    # N with 2N − 1 = 35, 79, 511, 511, 383, 767 evaluations, and N of the original samplers
    assert steps == {
        'cifar10-edm': 18, 'ffhq-edm': 40, 'afhqv2-edm': 40, 'imagenet64-edm': 256,
        'imagenet64-adm': 256, 'cifar10-vp': 192, 'cifar10-ve': 384, 'vp-original': 256,
        've-original': 8192, 'iddpm-original': 250}
    table_5 = [[PRESETS[name][key] for key in ('S_churn', 'S_min', 'S_max', 'S_noise')]
               for name in ('cifar10-vp', 'cifar10-ve', 'imagenet64-adm', 'imagenet64-edm')]
    assert table_5 == [[30, .01, 1, 1.007], [80, .05, 1, 1.007], [80, .05, 50, 1.003],
                       [40, .05, 50, 1.003]]


@pytest.mark.parametrize(('given', 'message'), [
    ({'sampler': 'ddim', 'snr': 0.1}, '--snr would have no effect with --sampler=ddim'),
    ({'solver': 'euler', 'alpha': 0.5}, '--alpha would have no effect with --sampler=table1 '
                                        '--solver=euler'),
    ({'eta': 0.5}, '--eta would have no effect with --sampler=table1'),
    ({'sampler': 'rk45', 'eps_rel': 0.1}, '--eps_rel would have no effect with --sampler=rk45'),
    ({'sampler': 'rk45', 'disc': 'beta', 'beta_a': 0.9},
     '--beta_a would have no effect with --sampler=rk45 --disc=beta')])
def test_an_added_option_without_effect_is_an_error(given, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        resolve(**given)


@pytest.mark.parametrize(('given', 'note'), [
    ({'disc': 'vp', 'rho': 5.0}, '--rho has no effect with --sampler=table1 --disc=vp'),
    ({'sampler': 'ddim', 'solver': 'heun'}, '--solver has no effect with --sampler=ddim'),
    ({'sampler': 'rk45', 'num_steps': 5}, '--steps has no effect with --sampler=rk45'),
    ({'sampler': 'em', 'S_churn': 5.0}, '--S_churn has no effect with --sampler=em'),
    ({'sigmas': [1.0], 'num_steps': 5}, '--steps has no effect with --sampler=table1'),
    ({'solver': 'deis', 'schedule': 'vp'},
     '--schedule has no effect with --sampler=table1 --solver=deis'),
    ({'solver': 'dpmpp-2s', 'scaling': 'vp'},
     '--scaling has no effect with --sampler=table1 --solver=dpmpp-2s'),
    ({'sampler': 'rk45', 'rho': 5.0}, '--rho has no effect with --sampler=rk45'),
    ({'sampler': 'ddim', 'family': 'vp', 'disc': 'edm'},
     '--family has no effect with --sampler=ddim --disc=edm'),
    ({'family': 'vp', 'disc': 'edm', 'solver': 'lms'},
     '--family has no effect with --sampler=table1 --solver=lms --disc=edm'),
    ({'S_noise': 1.01}, '--S_noise has no effect without --S_churn'),
    ({'sampler': 'angle', 'S_min': 0.1}, '--S_min has no effect without --S_churn'),
    ({'S_churn': 5.0, 'S_min': 50.0, 'S_max': 1.0},
     'no fresh noise is added, as --S_min=50 is above --S_max=1')])
def test_an_old_option_without_effect_is_a_note(given, note):
    assert resolve(**given).notes == (note,)


# Options without effect beside values of others: what stays the same, and the note.
IDLE = [
    ({'solver': 'deis', 'order': 1}, {'space': 'log-rho'}, '--order=1'),
    ({'solver': 'deis', 'order': 1}, {'lower_order_final': True}, '--order=1'),
    ({'solver': 'unipc', 'order': 1}, {'lower_order_final': True}, '--order=1'),
    ({'solver': 'unipc', 'order': 1, 'correct': False}, {'bh': 'bh1'}, '--order=1 --correct=False'),
    ({'sampler': 'pc', 'corrector': 'none'}, {'snr': 0.5}, '--corrector=none'),
    ({'sampler': 'pc', 'corrector': 'none'}, {'corrector_steps': 3}, '--corrector=none'),
    ({'sampler': 'pc', 'corrector': 'none'}, {'original': True}, '--corrector=none'),
    ({'sampler': 'pc', 'corrector_steps': 0}, {'corrector': 'ald'}, '--corrector_steps=0'),
    ({'sampler': 'pc', 'corrector_steps': 0}, {'snr': 0.5}, '--corrector_steps=0'),
    ({'sampler': 'pc', 'corrector': 'ald'}, {'original': True}, '--corrector=ald'),
    ({'sampler': 'sde', 'beta': 0.0}, {'constant': True}, '--beta=0'),
    ({'sampler': 'sde', 'beta': 0.0}, {'S_min': 1.0}, '--beta=0')]
# As near to these as can be, and with an effect.
BUSY = [
    ({'solver': 'deis', 'order': 2}, {'space': 'log-rho'}),
    ({'solver': 'deis', 'order': 2}, {'lower_order_final': True}),
    ({'solver': 'unipc', 'order': 1}, {'bh': 'bh1'}),
    ({'solver': 'unipc', 'order': 2, 'correct': False}, {'bh': 'bh1'}),
    ({'solver': 'adams'}, {'schedule': 'vp'}), ({'solver': 'ipndm'}, {'scaling': 'vp'}),
    ({'sampler': 'pc'}, {'snr': 0.5}), ({'sampler': 'pc'}, {'original': True}),
    ({'sampler': 'pc', 'corrector': 'ald'}, {'snr': 0.5}),
    ({'sampler': 'sde', 'beta': 0.5}, {'constant': True}),
    ({'sampler': 'sde', 'beta': 0.5}, {'S_min': 1.0}),
    ({'sampler': 'rk45', 'rtol': 0.01, 'atol': 0.01}, {'schedule': 'vp'}),
    ({'family': 'vp', 'disc': 'edm', 'solver': 'heun'}, {'schedule': 'linear'})]
OF_SIGMA = [({'solver': name}, {row: 'vp'}, f'--sampler=table1 --solver={name}')
            for name in ('dpmpp-2m', 'dpmpp-3m', 'dpmpp-2s', 'dpm-2', 'unipc', 'deis', 'lms')
            for row in ('schedule', 'scaling')]


def drawn(given):
    """What a sampler draws for a denoiser that is neither linear nor the same in σ."""
    def net(x, sigma, labels=None):
        sigma = sigma.reshape(-1, 1, 1, 1)
        return torch.tanh(x / (0.3 + sigma)) * (1 - 0.1 * torch.sin(sigma + x))

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn([3, 1, 2, 2], dtype=torch.float64, generator=generator)
    return resolve(**{'num_steps': 6, **given} if given.get('sampler') != 'rk45' else given).plan(
        net)(net, noise, None, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator))


@pytest.mark.parametrize(('given', 'more', 'values'), [*IDLE, *OF_SIGMA])
def test_what_is_noted_has_no_effect(given, more, values):
    [name] = more
    assert resolve(**given, **more).notes == (f'--{name} has no effect with {values}',)
    torch.testing.assert_close(drawn(given), drawn({**given, **more}), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(('given', 'more'), BUSY)
def test_what_is_not_noted_has_one(given, more):
    assert resolve(**given, **more).notes == ()
    assert float((drawn(given) - drawn({**given, **more})).abs().max()) > 1e-6


def test_other_alphas_are_noted_where_levels_are_discrete():
    def notes(alpha, round_sigma):
        given = {**dict.fromkeys(NAMES), 'alpha': alpha}
        return resolve_sampler(given, Traits(round_sigma=round_sigma)).notes

    assert notes(0.5, IDDPM().nearest) == (
        'alpha = 0.5 asks for noise levels between those that this network knows, and it answers '
        'for the nearest: alpha = 1 does not',)
    assert notes(0.5, EDM().nearest) == notes(0.5, None) == notes(1.0, IDDPM().nearest) == ()


def test_s_options_without_churn_are_silent():
    assert resolve(S_churn=0.0, S_min=0.1, S_max=2.0, S_noise=1.01).notes == ()


def test_every_field_of_every_sampler_is_an_option():
    shared = {'schedule', 'scaling', 'solver', 'churn'}
    for cls in [*SAMPLERS.values(), *SOLVERS.values(), Churn]:
        assert {field.name for field in dataclasses.fields(cls)} - shared <= set(NAMES), cls
    assert set(NAMES) >= OLD


@pytest.mark.parametrize(('levels', 'message'), [
    ((), 'explicit steps need at least one noise level'),
    ((1.0, 2.0), 'noise levels must fall: 1, 2 do not'),
    ((50.0, 0.001), r'the noise level 0\.001 must be positive and within the range of the network, '
                    r'\[0\.01, 100\]')])
def test_explicit_noise_levels_are_checked(levels, message):
    with pytest.raises(ValueError, match=message):
        ExplicitSteps(levels).sigmas(3, 0.01, 100)


class Conditional(Gaussian):
    """A float64 oracle with a mean for each class, shaped like a network for images [3, 4, 4]."""
    img_channels, img_resolution, label_dim = 3, 4, 5

    def __call__(self, x, sigma, class_labels=None, **conditions):
        mu = (
            class_labels.to(x) @ torch.linspace(-1, 1, 5, dtype=x.dtype)
            if class_labels is not None
            else torch.zeros(1, dtype=x.dtype)
        )
        sigma = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
        mu = mu.reshape(-1, 1, 1, 1)
        D = (0.25 * x + sigma**2 * mu) / (0.25 + sigma**2)
        return (D, torch.zeros_like(D)) if conditions.get('return_variance') else D


CHOICES = [{'sampler': name} for name in SAMPLERS] + [{'solver': name} for name in SOLVERS] + [
    {'S_churn': 5.0}, {'S_churn': 5.0, 'family': 'vp', 'solver': 'heun'},
    {'sampler': 'adaptive', 'sde': 've'}, {'sampler': 'ancestral', 'variance': 'large'},
    {'sampler': 'ddim', 'eta': 1.0}, {'sampler': 'pc', 'predictor': 'ancestral',
                                      'corrector': 'ald'}]


def images_of(net, sampling, seeds):
    generator = StackedGenerator(seeds, 'cpu')
    noise, labels = latents_and_labels(net, seeds, None, generator)
    denoise = Conditioned(net, labels)
    return run(sampling.sampler, denoise, noise,
               denoise.levels(sampling.steps, sampling.num_steps), generator.randn_like)


@pytest.mark.parametrize('given', CHOICES, ids=str)
def test_an_image_depends_on_its_seed_alone_with_every_sampler(given):
    """Bitwise, in batches of 1, 7 and 64."""
    sampling = resolve(**given, **({} if given.get('sampler') in ADAPTIVE else {'num_steps': 5}))
    seeds = list(range(64))
    together = images_of(Conditional(), sampling, seeds)
    assert bool(together.isfinite().all()) and float(together.std()) > 0.2
    for batch, first in [(1, 3), (1, 63), (7, 0), (7, 57)]:
        assert torch.equal(images_of(Conditional(), sampling, seeds[first:first + batch]),
                           together[first:first + batch])


@pytest.mark.parametrize('given', CHOICES, ids=str)
def test_evaluations_are_counted(given):
    if given.get('sampler') in ADAPTIVE:
        watched = Counting(Conditional())
        counts = []
        denoise = Conditioned(watched, torch.eye(5))
        sampling = resolve(**given)
        torch.manual_seed(0)
        sampling.sampler(denoise, torch.randn(5, 3, 4, 4, dtype=torch.float64),
                         denoise.levels(sampling.steps, 5), torch.randn_like, nfe=counts)
        assert watched.images == sum(counts) and watched.calls == max(counts)
        return
    expected = {'pc': 10, 'flow': 9, 'table1': 9, 'angle': 9}.get(given.get('sampler'), 5)
    if given.get('solver') == 'adams':
        expected = 7
    elif given.get('solver') in ('heun', 'dpm-2', 'dpmpp-2s') or list(given) == ['S_churn']:
        expected = 9
    watched = Counting(Conditional())
    images_of(watched, resolve(num_steps=5, **given), [0, 1])
    assert watched.calls == expected and watched.images == 2 * expected


@pytest.mark.parametrize('given', [{'sampler': name} for name in SAMPLERS]
                         + [{'solver': name} for name in SOLVERS], ids=str)
@pytest.mark.parametrize('num_steps', [1, 2])
def test_one_and_two_steps_work_with_every_sampler(given, num_steps):
    x = images_of(Conditional(), resolve(num_steps=num_steps, **given), [0, 1, 2])
    assert bool(x.isfinite().all())


def test_every_combination_of_the_rows_runs():
    for disc, schedule, scaling, solver in itertools.product(STEPS, SCHEDULES, SCALINGS, SOLVERS):
        x = images_of(Conditional(), resolve(num_steps=6, disc=disc, schedule=schedule,
                                             scaling=scaling, solver=solver), [0, 1])
        assert bool(x.isfinite().all()), (disc, schedule, scaling, solver)


def test_a_watched_network_keeps_its_answers_by_noise_level():
    net = Counting(Conditional(), keep_frames=True)
    images_of(net, resolve(num_steps=4), [0, 1])
    assert sorted(net.frames, reverse=True) == pytest.approx(
        EDMSteps().sigmas(4).tolist(), rel=1e-12
    )
    assert {frame.shape for frame in net.frames.values()} == {(2, 3, 4, 4)}
    assert (
        net.noise_levels()[0] == 80
        and len(net.noise_levels()) == 7
        and traits(net).image_shape == (3, 4, 4)
    )
    with pytest.raises(ValueError, match='a trajectory needs one noise level for all images'):
        images_of(net, resolve(sampler='rk45'), [0, 1])


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'digits.zip'
    assert CliRunner().invoke(dataset_tool.main, ['--source=digits', f'--dest={path}',
                                                  '--resolution=8x8',
                                                  '--max-images=60']).exit_code == 0
    return path


def test_the_ideal_denoiser_in_place_of_a_network(digits, tmp_path):
    """Deterministic sampling of the ideal denoiser ends at images of the data set, of the class
    asked for; on two ranks too."""
    arguments = [f'--network=ideal:{digits}', '--seeds=0-8', '--class=0-2', '--steps=12',
                 '--device=cpu', '--batch=2']
    result = CliRunner().invoke(generate.main, [*arguments, f'--outdir={tmp_path}/one', '--stats',
                                                '--trajectory'])
    assert result.exit_code == 0, result.output
    assert (
        'Evaluations of the network: 23 per image (NFE)' in result.output
        and 'Noise levels (12): 80, ' in result.output
    )
    assert PIL.Image.open(tmp_path / 'one' / 'trajectory.png').size == (
        4 * (12 * 9 + 1),
        4 * (9 * 9 + 1),
    )
    two = torchrun(2, 'generate.py', *arguments, f'--outdir={tmp_path}/two', '--stats',
                   '--trajectory')
    assert two.returncode == 0, two.stderr
    files = sorted(path.name for path in (tmp_path / 'one').iterdir())
    assert files == sorted(path.name for path in (tmp_path / 'two').iterdir()) and len(files) == 10
    for name in files:
        assert np.array_equal(*(np.asarray(PIL.Image.open(tmp_path / folder / name))
                                for folder in ['one', 'two'])), name
    from training.dataset import ImageFolderDataset
    with ImageFolderDataset(digits, use_labels=True) as dataset:
        images, labels = dataset.batch(np.arange(60))
    made = np.stack([np.asarray(PIL.Image.open(tmp_path / 'one' / f'{seed:06d}.png'))
                     for seed in range(9)])
    distance = np.abs(made[:, None].astype(int) - images[None, :, 0]).mean(axis=(2, 3))
    assert distance.min(axis=1).max() < 2   # within two levels of some training image on average
    assert labels[distance.argmin(axis=1)].argmax(axis=1).tolist() == [0, 1, 2] * 3
    assert isinstance(open_network(f'ideal:{digits}'), IdealDenoiser)


def test_the_papers_sampler_has_two_names():
    for given in ({}, {'solver': 'euler'}, {'S_churn': 5.0, 'rho': 5.0}):
        assert resolve(sampler='flow', **given) == resolve(sampler='table1', **given)
