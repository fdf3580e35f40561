"""options/network.py: the options of network and guidance, and what generate.py makes of them."""

import json
import math
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import flow
import generate
from evaluation.generated import digest_of
from limpid.denoiser import traits
from limpid.earlier import Ancestral
from limpid.guidance import Guidance, Guided
from limpid.levels import ScaledLinearBetas
from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.preconditioning import EDM, IDDPM, V
from options.guidance import guided_network
from options.network import open_with_plan
from tests.commands.test_fid import png, smooth_images
from training import state as states
from training.config import TrainConfig
from training.dataset import DataConfig
from training.networks import NetworkConfig
from training.training_loop import build


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    """ideal: of 30 images in three classes."""
    path = tmp_path_factory.mktemp('data') / 'data.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for i, image in enumerate(smooth_images(30, size=8)):
            archive.writestr(f'{i:03d}.png', png(image // 3 + 80 * (i % 3)))
        archive.writestr('dataset.json',
                         json.dumps({'labels': [[f'{i:03d}.png', i % 3] for i in range(30)]}))
    return f'ideal:{path}'


def options(**given):
    return given


def run(network, folder, *more):
    return CliRunner().invoke(generate.main, [f'--network={network}', f'--outdir={folder}',
                                              '--seeds=0-7', '--steps=6', '--sigma_min=1',
                                              '--device=cpu', '--stats', *more])


def evaluations(result):
    assert result.exit_code == 0, result.output
    [line] = [
        line
        for line in result.output.splitlines()
        if line.startswith('Evaluations of the network: ')
    ]
    return float(line.split()[4])


def pixels(folder):
    return np.stack([np.asarray(PIL.Image.open(folder / f'{seed:06d}.png')) for seed in range(8)])


def test_evaluations_are_counted_and_weight_one_is_no_guidance(classes, tmp_path):
    counts = {name: evaluations(run(classes, tmp_path / name, *more)) for name, more in {
        'plain': [], 'one': ['--guidance=1'], 'two': ['--guidance=2'],
        'early': ['--guidance=2', '--guidance-interval=5,100'],
        'rescaled': ['--guidance=2', '--guidance-rescale=0.7'],
        'guide': ['--guidance=2', f'--guide-network={classes}'],
        'ddim': ['--guidance=2', '--sampler=ddim', '--disc=edm']}.items()}
    assert counts == {'plain': 11, 'one': 11, 'two': 22, 'early': 18, 'rescaled': 22, 'guide': 22,
                      'ddim': 12}
    plain = pixels(tmp_path / 'plain')
    assert np.array_equal(plain, pixels(tmp_path / 'one'))
    assert np.array_equal(plain, pixels(tmp_path / 'guide'))   # away from itself is nowhere
    for name in ('two', 'early', 'rescaled'):
        assert not np.array_equal(plain, pixels(tmp_path / name)), name


def test_what_has_no_effect_is_refused(classes, tmp_path):
    for more, message in [
        (['--guidance-rescale=0.5'], '--guidance-rescale would have no effect without --guidance'),
        ([f'--guide-network={classes}'], '--guide-network would have no effect without --guidance'),
        (
            ['--guidance=2', '--guidance-space=x0'],
            '--guidance-space would have no effect without --guidance-rescale',
        ),
        (
            ['--guidance=2', '--guidance-interval=1'],
            '--guidance-interval needs two noise levels, LO,HI, not 1',
        ),
        (
            ['--null-class=3'],
            f'null_class=3 would have no effect: {classes} is no folder of diffusers',
        ),
    ]:
        result = run(classes, tmp_path, *more)
        assert (result.exit_code, result.output) == (2, f'Error: {message}\n')


def trained(label_dropout, path, precond=EDM(), sigma_max=math.inf):
    """A snapshot of a tiny conditional network, as a run leaves it behind."""
    network = NetworkConfig('SongUNet', precond, 0.0, sigma_max, 8, 3, 3, model={
        'model_channels': 8, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': [],
        'channel_mult_emb': 1})
    config = TrainConfig(DataConfig('x', use_labels=True), network,
                         DenoisingLoss(LogNormal(), InverseCOut()), label_dropout=label_dropout)
    path.mkdir()
    states.save_snapshot(build(config, torch.device('cpu')), config, path)
    return path / 'network-snapshot-000000.pkl'


def test_a_network_that_never_saw_an_image_without_its_class(tmp_path):
    cpu = torch.device('cpu')
    never, sometimes = trained(0.0, tmp_path / 'never'), trained(0.1, tmp_path / 'sometimes')
    message = ('this network was trained with --label-dropout=0 and has never seen an image '
               'without its class: what it answers without one, and guidance with it, means '
               'nothing; give --guide-network, or train with --label-dropout')
    with pytest.raises(ValueError, match=f'^{message}$'):
        open_with_plan(str(never), None, options(guidance=2.0), cpu)
    assert open_with_plan(str(sometimes), None, options(guidance=2.0), cpu).notes == ()
    assert open_with_plan(str(never), None, options(guidance=2.0, guide_network=str(sometimes)),
                        cpu).notes == ()
    assert open_with_plan(str(never), None, options(), cpu).notes == ()


def test_weight_one_leaves_the_rest_without_effect(classes, tmp_path):
    """But for a note: sweeps pass through it. The guide is not even opened."""
    given = options(guidance=1.0, guidance_rescale=0.7, guidance_interval=[0.5, 2.0],
                    guide_network=str(tmp_path / 'nowhere.pkl'))
    drawing = open_with_plan(classes, None, given, torch.device('cpu'))
    assert drawing.notes == tuple(f'--{name} has no effect with --guidance=1'
                                  for name in ('guidance-rescale', 'guidance-interval',
                                               'guide-network'))
    assert len(drawing.counted) == 1 and drawing.net is drawing.counted[0]
    with pytest.raises(FileNotFoundError):
        open_with_plan(classes, None,
                     options(guidance=2.0, guide_network=str(tmp_path / 'nowhere.pkl')),
                     torch.device('cpu'))
    assert open_with_plan(classes, None, options(guidance=1.0), torch.device('cpu')).notes == ()


TABLE = ScaledLinearBetas(zero_terminal_snr=True)
REASON = ('its c_noise, ln(sigma)/4, is infinite there; the v preconditioning with the same '
          'sigma_data is the same network with a finite c_noise')


def test_networks_that_cannot_start_at_infinity_are_refused_before_drawing(tmp_path):
    edm = str(trained(0.1, tmp_path / 'edm'))
    for more in (['--disc=scaled-linear', '--zero-terminal-snr'],
                 ['--sigmas=inf,1', '--sampler=ddim']):
        result = CliRunner().invoke(generate.main, [f'--network={edm}', f'--outdir={tmp_path}',
                                                    '--device=cpu', *more])
        assert (result.exit_code, result.output) == (
            2,
            f'Error: this network cannot work at sigma = inf: {REASON}\n',
        )
    ended = str(trained(0.1, tmp_path / 'ended', sigma_max=80.0))
    result = CliRunner().invoke(generate.main, [f'--network={ended}', f'--outdir={tmp_path}',
                                                '--device=cpu', '--disc=cosine',
                                                '--zero-terminal-snr'])
    assert (result.exit_code, result.output) == (
        2, f'Error: --zero-terminal-snr=True cannot start at sigma = inf, only at 80: the network '
           f'supports no more, as {REASON}\n')
    flow_result = CliRunner().invoke(flow.main, ['decode', f'--network={edm}', '--latents=x.npz',
                                                 f'--outdir={tmp_path}', '--device=cpu',
                                                 '--disc=cosine', '--zero-terminal-snr'])
    assert (flow_result.exit_code, flow_result.output) == (
        2, 'Error: the flow of x cannot start at sigma = inf, where x is infinite: leave out '
           '--zero-terminal-snr, or give --sigma_max\n')


def test_a_guide_that_ends_before_infinity(tmp_path):
    """It is said, and --guidance-interval is the way out."""
    cpu, way_out = torch.device(
        'cpu'), 'With --guidance-interval=0,HI the guide is asked up to HI only'
    v = str(trained(0.1, tmp_path / 'v', V(noise_label='timestep', schedule=TABLE)))
    ended = str(trained(0.1, tmp_path / 'ended', V(), 80.0))
    edm, ended_edm = (
        str(trained(0.1, tmp_path / 'edm')),
        str(trained(0.1, tmp_path / 'ended_edm', EDM(), 80.0)),
    )
    first = float(TABLE.sigma[TABLE.sigma <= 80][-1])
    for guide, reason in [(ended, ''), (ended_edm, f', as {REASON}')]:
        drawing = open_with_plan(v, None, options(guidance=2.0, guide_network=guide), cpu)
        assert drawing.notes == (f'drawing starts at sigma = {first:g}: the guide supports no '
                                 f'more{reason}. {way_out}',)
        with pytest.raises(ValueError, match=r'^--zero-terminal-snr=True cannot start at sigma = '
                                             r'inf, only at 80: the guide supports no more'):
            open_with_plan(v, None, options(guidance=2.0, guide_network=guide,
                                          zero_terminal_snr=True), cpu)
        below = open_with_plan(v, None, options(guidance=2.0, guide_network=guide,
                                              guidance_interval=[0.0, 80.0]), cpu)
        assert below.notes == () and traits(below.net).sigma_max == math.inf
    with pytest.raises(ValueError) as error:
        open_with_plan(v, None, options(guidance=2.0, guide_network=edm), cpu)
    assert str(
        error.value) == f'this network cannot work at sigma = inf: the guide: {REASON}. {way_out}'
    assert open_with_plan(v, None, options(guidance=2.0, guide_network=edm,
                                         guidance_interval=[0.0, 80.0]), cpu).notes == ()


def test_ancestral_sampling_knows_whether_the_variance_was_learned(tmp_path):
    cpu = torch.device('cpu')
    for precond, expected in [(EDM(), 'small'),
                              (V(noise_label='timestep', schedule=ScaledLinearBetas()), 'small'),
                              (IDDPM(), 'learned')]:
        path = str(trained(0.1, tmp_path / type(precond).__name__, precond, 80.0))
        assert open_with_plan(path, None, options(sampler='ancestral'),
                            cpu).plan.sampler == Ancestral(expected)


def test_guided_networks_are_told_apart(classes):
    """By what their images depend on: weights, numbers of guidance, the guide."""
    cpu = torch.device('cpu')
    cases = [options(), options(guidance=2.0), options(guidance=2.0, guidance_rescale=0.5),
             options(guidance=2.0, guide_network=classes)]
    digests = [digest_of(open_with_plan(classes, None, given, cpu).net) for given in cases]
    assert len(set(digests)) == 4
    assert digests == [digest_of(open_with_plan(classes, None, given, cpu).net) for given in cases]


def test_the_options_are_the_fields_of_guidance(classes):
    drawing = open_with_plan(
        classes,
        None,
        options(
            guidance=3.0, guidance_rescale=0.7, guidance_space='x0', guidance_interval=[0.5, 2.0]
        ),
        torch.device('cpu'),
    )
    assert isinstance(drawing.net, Guided) and drawing.net.guidance == Guidance(
        3.0, 0.7, 'x0', (0.5, 2.0)
    )
    net, notes = guided_network('a network', options(guidance=None))
    assert (net, notes) == ('a network', [])
