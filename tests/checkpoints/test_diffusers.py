import json
import math
import socket
import sys

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.diffusers import read_diffusers, read_schedule
from checkpoints.open import open_network
from limpid.denoiser import Conditioned, traits
from limpid.earlier import DDIM, Ancestral
from limpid.guidance import Guidance, guided
from limpid.sampling import plan, run, sample
from limpid.seeds import generate
from limpid.steps import EDMSteps
from limpid.unit import Level
from options.network import open_with_plan
from torch_utils.safetensors_file import load_tensors, save_tensors

diffusers = pytest.importorskip('diffusers')

SMALL = {'sample_size': 8, 'block_out_channels': (8, 16), 'norm_num_groups': 4,
         'layers_per_block': 1, 'attention_head_dim': 4}
UNET = {**SMALL, 'down_block_types': ('DownBlock2D', 'AttnDownBlock2D'),
        'up_block_types': ('AttnUpBlock2D', 'UpBlock2D')}
CONDITION = {**SMALL, 'down_block_types': ('DownBlock2D', 'CrossAttnDownBlock2D'),
             'up_block_types': ('CrossAttnUpBlock2D', 'UpBlock2D'), 'cross_attention_dim': 6}
STABLE_DIFFUSION = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012}
STEM = 'diffusion_pytorch_model'
INF = torch.tensor(math.inf)


def save(folder, model=diffusers.UNet2DModel, arguments=UNET, scheduler=diffusers.DDIMScheduler,
         **schedule):
    """A pipeline's folder with random weights of a fixed seed, and its U-Net."""
    torch.manual_seed(0)
    unet = model(**arguments).eval().requires_grad_(False)
    unet.save_pretrained(folder / 'unet')
    scheduler(**schedule).save_pretrained(folder / 'scheduler')
    (folder / 'model_index.json').write_text(json.dumps({
        '_class_name': 'DDIMPipeline', 'unet': ['diffusers', model.__name__],
        'scheduler': ['diffusers', 'DDIMScheduler']}))
    return unet


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_line(call, *args, **kwargs):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call(*args, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# The denoiser is the closed form of what the U-Net answers.

@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction', 'sample'])
def test_denoised_images_follow_from_the_raw_output(tmp_path, images, prediction):
    unet = save(tmp_path, prediction_type=prediction)
    net = open_network(tmp_path)
    assert (net.img_resolution, net.img_channels, net.label_dim, traits(net).unit_scale,
            net.dtype) == (8, 3, 0, 1.0, torch.float32)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    alphas = diffusers.DDIMScheduler().alphas_cumprod.double()
    for t in ([0, 0], [500, 500], [999, 3]):
        sigma = net.schedule.sigma[torch.tensor(t)]
        ab = alphas[torch.tensor(t)].reshape(-1, 1, 1, 1)
        z = images.double()
        F = unet(images, torch.tensor(t)).sample.double()
        expected = {'epsilon': (z - (1 - ab).sqrt() * F) / ab.sqrt(),
                    'v_prediction': ab.sqrt() * z - (1 - ab).sqrt() * F, 'sample': F}[prediction]
        scale = expected.abs().max()
        D = net(images, sigma, unit=True)
        assert D.dtype == torch.float32
        assert (D - expected).abs().max() < 2e-6 * scale
        x = z * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
        assert (net(x, sigma) - expected).abs().max() < 5e-6 * scale
        assert (net(x, sigma.reshape(-1, 1, 1, 1)) - net(x, sigma)).abs().max() == 0
    assert (net(x[:1], sigma[0]) - net(x, sigma)[:1]).abs().max() < 2e-6 * scale
    c, sigma = net.precond, sigma.reshape(-1, 1, 1, 1)   # Eq. 7 with these cells is the same
    F = unet((c.c_in(sigma) * x).float(), c.c_noise(sigma.flatten())).sample.double()
    assert (c.c_skip(sigma) * x + c.c_out(sigma) * F - expected).abs().max() < 5e-6 * scale


@pytest.mark.parametrize(('prediction', 'sign'), [('v_prediction', -1), ('sample', 1)])
def test_the_level_without_signal(tmp_path, images, prediction, sign):
    """a = 0 and b = 1 at σ = ∞: D = −v, and D = F."""
    unet = save(tmp_path, prediction_type=prediction, rescale_betas_zero_snr=True)
    net = open_network(tmp_path)
    assert net.sigma_max == math.inf
    assert torch.equal(net(images, INF, unit=True), sign * unet(images, 999).sample)


def test_noise_prediction_ends_before_the_level_without_signal(tmp_path, images):
    save(tmp_path, rescale_betas_zero_snr=True)
    net = open_network(tmp_path)
    assert net.sigma_max == pytest.approx(15406.03, rel=1e-6)
    assert Conditioned(net).levels(traits(net).native_steps, 5)[0] == net.sigma_max
    reason = ('this network cannot work at sigma = inf: it predicts the noise, which tells nothing '
              'of the image where there is only noise')
    assert one_line(net, images, INF, unit=True) == reason
    assert one_line(net, images, torch.tensor([1.0, math.inf])) == reason
    assert one_line(Conditioned(net).unit, images, INF) == reason


def test_learned_variance(tmp_path, images):
    unet = save(tmp_path, arguments={**UNET, 'out_channels': 6})
    net = open_network(tmp_path)
    z = images
    D, F_var = net(z, net.schedule.sigma[700], unit=True, return_variance=True)
    assert torch.equal(F_var, unet(z, 700).sample[:, 3:]) 
    assert traits(net).learned_variance
    assert open_with_plan(str(tmp_path), None, {'sampler': 'ancestral'},
                        torch.device('cpu')).plan.sampler == Ancestral('learned')
    assert torch.equal(D, net(z, net.schedule.sigma[700], unit=True))
    result = run(Ancestral('learned'), Conditioned(net), z,
                 torch.tensor([*net.schedule.sigma[[900, 500, 100]], 0.0]))
    assert bool(result.isfinite().all())
    save(tmp_path / 'plain')
    assert open_with_plan(str(tmp_path / 'plain'), None, {'sampler': 'ancestral'},
                        torch.device('cpu')).plan.sampler == Ancestral('small')
    assert one_line(open_network(tmp_path / 'plain'), z, net.schedule.sigma[700],
                    return_variance=True) == (
        'return_variance needs a network with 6 outputs (iDDPM); this one has 3')


# Noise levels.

@pytest.mark.parametrize('name', ['DDPMScheduler', 'DDIMScheduler', 'PNDMScheduler',
                                  'DPMSolverMultistepScheduler', 'EulerDiscreteScheduler'])
@pytest.mark.parametrize('schedule', [{}, STABLE_DIFFUSION, {'beta_schedule': 'squaredcos_cap_v2'},
                                      {'trained_betas': [0.1, 0.2, 0.4], 'num_train_timesteps': 3}],
                         ids=['linear', 'scaled_linear', 'squaredcos_cap_v2', 'trained_betas'])
def test_alpha_bars_are_those_of_diffusers(tmp_path, name, schedule):
    if name == 'EulerDiscreteScheduler' and 'squaredcos_cap_v2' in schedule.values():
        schedule = {**schedule, 'num_train_timesteps': 200}
    theirs = getattr(diffusers, name)(**schedule)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'scheduler_config.json').read_text())
    ours, prediction_type = read_schedule(config, tmp_path)
    sigmas = ours.sigma
    assert prediction_type == 'epsilon'
    alpha_bars = 1 / (1 + sigmas**2)
    assert sigmas.dtype == torch.float64
    assert (alpha_bars - theirs.alphas_cumprod).abs().max() < 5e-7
    # the sum of 1000 roundings of float32
    assert (alpha_bars / theirs.alphas_cumprod - 1).abs().max() < 2e-5


@pytest.mark.parametrize('schedule', [{}, STABLE_DIFFUSION, {'beta_schedule': 'squaredcos_cap_v2'}],
                         ids=['linear', 'scaled_linear', 'squaredcos_cap_v2'])
def test_zero_terminal_snr_is_that_of_diffusers(schedule):
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, **schedule)
    sigmas = read_schedule(dict(theirs.config), 'scheduler_config.json')[0].sigma
    assert sigmas[-1] == math.inf and theirs.alphas_cumprod[-1] == 0
    alpha_bars = 1 / (1 + sigmas**2)
    assert (alpha_bars - theirs.alphas_cumprod).abs().max() < 1e-6
    assert (alpha_bars / theirs.alphas_cumprod - 1)[:-1].abs().max() < 5e-5
    # Where the signal vanishes two of their samplers have another number than what the network was
    # trained on.
    assert diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True,
                                            **schedule).alphas_cumprod[-1] == 2**-24


def test_known_noise_levels():
    config = {**STABLE_DIFFUSION, 'num_train_timesteps': 1000}
    plain = read_schedule(config, 'x')[0].sigma
    rescaled = read_schedule({**config, 'rescale_betas_zero_snr': True}, 'x')[0].sigma
    # √ᾱ_T: Table 1 of Lin et al. 2023
    assert 1 / (1 + plain[-1] ** 2) == pytest.approx(0.06826491**2, rel=1e-6)
    # ᾱ_1 = 1 − β_1 stays
    assert 1 / (1 + rescaled[0] ** 2) == pytest.approx(0.99915, rel=1e-12)
    assert rescaled[-2].item() == pytest.approx(2254.24, abs=5e-3)


def test_nearest_levels(tmp_path):
    save(tmp_path, rescale_betas_zero_snr=True, prediction_type='v_prediction')
    net = open_network(tmp_path)
    sigmas = net.schedule.sigma
    assert torch.equal(net.round_sigma(sigmas), sigmas)
    assert torch.equal(net.timestep(sigmas.float()), torch.arange(1000))
    assert torch.equal(net.round_sigma(sigmas * 1.0001)[:-1], sigmas[:-1])
    # only σ = ∞ has no signal
    assert net.timestep(torch.tensor([1e9, 3e38, math.inf])).tolist() == [998, 998, 999]
    assert net.round_sigma(0.0) == 0
    assert net.round_sigma(torch.tensor(0.01, dtype=torch.float32)).dtype == torch.float32
    assert net.round_sigma(torch.tensor(0.5)).shape == ()
    assert net.round_sigma(torch.full([2, 1], 0.5)).shape == (2, 1)
    steps = traits(net).native_steps.sigmas(4, net.sigma_min, net.sigma_max)
    assert torch.equal(steps, sigmas[[999, 749, 499, 249]])


def test_interpolated_timesteps(tmp_path, images):
    unet = save(tmp_path, rescale_betas_zero_snr=True, prediction_type='v_prediction')
    net = open_network(tmp_path, timesteps='interpolated')
    assert (net.timestep(net.schedule.sigma) - torch.arange(1000)).abs().max() < 1e-4
    between = (net.schedule.sigma[300] * net.schedule.sigma[301]).sqrt()
    assert net.timestep(between).item() == pytest.approx(300.5, abs=1e-3)
    assert net.round_sigma(between) == between
    assert net.timestep(torch.tensor([0.0, 1e-9, 1e30, math.inf])).tolist() == [0, 0, 998, 999]
    D = net(images, between, unit=True)
    expected = Level.of_sigma(between).denoised(images, unet(images, net.timestep(between)).sample)
    assert (D - expected).abs().max() < 1e-6
    assert not torch.equal(D, open_network(tmp_path)(images, between, unit=True))


# Sampling.

@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('steps', [{'timestep_spacing': 'trailing'},
                                   {'timestep_spacing': 'leading', 'steps_offset': 1}])
@pytest.mark.parametrize('clip', [False, True])
def test_ddim_is_that_of_diffusers(tmp_path, images, prediction, steps, clip):
    """In float32. Theirs starts from N(0, 1) where ours starts from N(0, b²), takes e from the
    unclipped image unless it is told otherwise, and without set_alpha_to_one stops at the lowest
    noise level instead of 0."""
    unet = save(tmp_path, prediction_type=prediction, **STABLE_DIFFUSION)
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=clip, **steps, **STABLE_DIFFUSION
    )
    scheduler.set_timesteps(10)
    net = open_network(tmp_path)
    sigmas = torch.nn.functional.pad(net.schedule.sigma[scheduler.timesteps], (0, 1))
    ours = run(DDIM(clip=clip), Conditioned(net), images, sigmas)
    z = images * Level.of_sigma(sigmas[0]).b
    for t in scheduler.timesteps:
        z = scheduler.step(unet(z, t).sample, t, z, use_clipped_model_output=clip).prev_sample
    assert (ours - z).abs().max() < 5e-6 * z.abs().max()


def test_ddim_from_zero_terminal_snr_is_that_of_diffusers(tmp_path, images):
    """Both start from N(0, 1) here, since b = 1."""
    schedule = {'prediction_type': 'v_prediction', 'rescale_betas_zero_snr': True,
                **STABLE_DIFFUSION}
    unet = save(tmp_path, **schedule)
    scheduler = diffusers.DDIMScheduler(timestep_spacing='trailing', clip_sample=False, **schedule)
    scheduler.set_timesteps(10)
    net = open_network(tmp_path)
    denoise = Conditioned(net)
    sigmas = denoise.levels(traits(net).native_steps, 10)
    assert torch.equal(sigmas[:-1],
                       net.schedule.sigma[scheduler.timesteps]) and sigmas[0] == math.inf
    ours, z = run(DDIM(), denoise, images, sigmas), images
    for t in scheduler.timesteps:
        z = scheduler.step(unet(z, t).sample, t, z).prev_sample
    assert (ours - z).abs().max() < 5e-6 * z.abs().max()


def test_images_of_seeds_under_other_samplers(tmp_path):
    """A DDPM network under Heun's method and EDM's time steps, rounded to its levels."""
    save(tmp_path)
    net = open_network(tmp_path)
    D = Conditioned(net)
    assert set(D.nearest(torch.tensor([30.0, 2.0, 0.1],
                                      dtype=torch.float64)).tolist()) < set(
                                          net.schedule.sigma.tolist())
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    result = sample(net, noise, num_steps=4)
    assert result.shape == noise.shape and bool(result.isfinite().all())
    pixels = generate(net, plan(net, DDIM(), EDMSteps(), 3), [0, 1], None, torch.device('cpu'))
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8


# Labels.

def test_classes(tmp_path, images):
    unet = save(tmp_path, arguments={**UNET, 'num_class_embeds': 4})
    sigma, z, labels = torch.tensor(1.0), images, torch.eye(4)
    net = open_network(tmp_path)
    assert net.label_dim == 4
    t = int(net.timestep(sigma))
    level = Level.of_sigma(sigma)

    def expected(*classes):
        return (z - level.b * unet(z, t, class_labels=torch.tensor(classes)).sample) / level.a

    assert (net(z, sigma, labels[[1, 3]], unit=True) - expected(1, 3)).abs().max() < 2e-6
    assert (net(z, sigma, labels[2:3], unit=True) - expected(2, 2)).abs().max() < 2e-6
    with_null = open_network(tmp_path, null_class=1)   # the labels are the classes 0, 2 and 3
    assert with_null.label_dim == 3
    assert (with_null(z, sigma, torch.eye(3)[[1, 2]], unit=True)
            - expected(2, 3)).abs().max() < 2e-6
    assert (with_null(z, sigma, torch.tensor([[0.0, 0, 0], [1, 0, 0]]), unit=True)
            - expected(1, 0)).abs().max() < 2e-6
    assert (with_null(z, sigma, unit=True) - expected(1, 1)).abs().max() < 2e-6
    unet.class_embedding = nn.Embedding.from_pretrained(torch.zeros(4, 32))
    assert (net(z, sigma, unit=True) - expected(0, 0)).abs().max() < 2e-6   # no class adds nothing
    assert one_line(net, z, sigma, torch.eye(3)[:2]) == (
        'class_labels has shape [2, 3]; this network takes one-hot vectors [batch, 4]')
    config = tmp_path / 'unet' / 'config.json'
    assert one_line(open_network, tmp_path, null_class=4) == (
        f'null_class=4: {config} has the classes 0 to 3')
    assert one_line(open_network, tmp_path, embeddings='x.npy') == (
        f"embeddings=x.npy would have no effect: {tmp_path / 'unet' / 'config.json'} is a "
        f"UNet2DModel, which has no cross-attention")
    save(tmp_path / 'plain')
    assert one_line(open_network, tmp_path / 'plain', null_class=0).endswith(
        'unet/config.json has no classes'
    )


@pytest.mark.parametrize('kind', ['npy', 'npz', 'safetensors'])
def test_embeddings(tmp_path, kind):
    unet = save(tmp_path, diffusers.UNet2DConditionModel, CONDITION, prediction_type='v_prediction')
    generator = torch.Generator().manual_seed(3)
    texts, negative = torch.randn(3, 5, 6,
                                  generator=generator), torch.randn(5, 6, generator=generator)
    path = tmp_path / f'prompts.{kind}'
    if kind == 'npy':
        np.save(path, texts.numpy().astype(np.float64))
        negative = torch.zeros(5, 6)
    elif kind == 'npz':
        np.savez(path, embeddings=texts.numpy(), negative=negative.numpy()[None])
    else:
        save_tensors({'embeddings': texts, 'negative': negative}, {}, path)
    net = open_network(tmp_path / 'unet', embeddings=path)
    assert (net.label_dim, net.img_channels) == (3, 4)
    z, sigma = torch.randn(2, 4, 8, 8, generator=generator), net.schedule.sigma[400]

    def expected(*rows):
        return Level.of_sigma(sigma).denoised(
            z, unet(z, 400, encoder_hidden_states=torch.stack(rows)).sample
        )

    assert (net(z, sigma, torch.eye(3)[[2, 0]], unit=True)
            - expected(texts[2], texts[0])).abs().max() < 2e-6
    assert (net(z, sigma, torch.eye(3)[1:2], unit=True)
            - expected(texts[1], texts[1])).abs().max() < 2e-6
    mixed = torch.tensor([[0.0, 0, 0], [0, 1, 0]])   # what guidance asks for: without, and with
    assert (net(z, sigma, mixed, unit=True) - expected(negative, texts[1])).abs().max() < 2e-6
    assert torch.equal(net(z, sigma, unit=True), net(z, sigma, torch.zeros(1, 3), unit=True))


def test_classifier_free_guidance(tmp_path, images):
    """D_none + w (D_class − D_none), at every noise level, σ = ∞ included."""
    unet = save(tmp_path, arguments={**UNET, 'num_class_embeds': 4}, prediction_type='v_prediction',
                rescale_betas_zero_snr=True)
    net = guided(open_network(tmp_path, null_class=3), Guidance(weight=2.5))
    for t in (10, 600, 999):
        sigma = net.net.schedule.sigma[t]
        D, D_none = (
            Level.of_sigma(sigma).denoised(
                images, unet(images, t, class_labels=torch.tensor(classes)).sample
            )
            for classes in ([0, 2], [3, 3])
        )
        result = net(images, sigma, torch.eye(3)[[0, 2]], unit=True)
        assert (result - (D_none + 2.5 * (D - D_none))).abs().max() < 5e-6


def test_guidance_away_from_what_training_never_saw(tmp_path):
    cpu, note = torch.device('cpu'), ('this network is told by an embedding of zeros, which its '
                                      'training never saw, that there is no class, and guidance '
                                      'leads away from the answer to that: give ')
    save(tmp_path, arguments={**UNET, 'num_class_embeds': 4})
    folder = str(tmp_path)
    assert open_with_plan(folder, None, {'guidance': 2.0}, cpu).notes == (f'{note}--null-class',)
    for given in ({'guidance': 2.0, 'null_class': 3}, {'guidance': 1.0}, {},
                  {'guidance': 2.0, 'guide_network': folder}):
        assert open_with_plan(folder, None, given, cpu).notes == (), given
    save(tmp_path, diffusers.UNet2DConditionModel, {**CONDITION, 'in_channels': 3,
                                                    'out_channels': 3})
    path = str(tmp_path / 'prompts.npz')
    np.savez(path, embeddings=np.ones([2, 5, 6]))
    given = {'guidance': 2.0, 'embeddings': path}
    assert open_with_plan(folder, None, given, cpu).notes == (
        f'{note}the array `negative` in the file of --embeddings',
    )
    # zeros that are meant, as SDXL's are
    np.savez(path, embeddings=np.ones([2, 5, 6]), negative=np.zeros([5, 6]))
    assert open_with_plan(folder, None, given, cpu).notes == ()


def test_a_guide_is_opened_with_the_options_of_the_network(tmp_path):
    """Of diffusers, if it is of diffusers."""
    save(tmp_path, diffusers.UNet2DConditionModel, {**CONDITION, 'in_channels': 3,
                                                    'out_channels': 3})
    path, folder = str(tmp_path / 'prompts.npz'), str(tmp_path)
    np.savez(path, embeddings=np.ones([2, 5, 6]), negative=np.zeros([5, 6]))
    given = {'guidance': 2.0, 'embeddings': path, 'timesteps': 'interpolated',
             'guide_network': folder}
    net, guide = (
        watched.net for watched in open_with_plan(folder, None, given, torch.device('cpu')).counted
    )
    assert guide.label_dim == 2 and guide.timesteps == 'interpolated' and torch.equal(
        guide.embeddings, net.embeddings)


def test_noise_prediction_is_said_to_begin_later(tmp_path):
    save(tmp_path, rescale_betas_zero_snr=True)
    drawing = open_with_plan(str(tmp_path), None, {}, torch.device('cpu'))
    assert drawing.notes == ('drawing starts at sigma = 15406: the network supports no more, as it '
                             'predicts the noise, which tells nothing of the image where there is '
                             'only noise',)
    assert drawing.plan.sampler == DDIM()


def test_files_of_embeddings_that_do_not_fit(tmp_path):
    save(tmp_path, diffusers.UNet2DConditionModel, CONDITION)
    config, path = tmp_path / 'unet' / 'config.json', tmp_path / 'prompts.npz'
    assert one_line(open_network, tmp_path) == (
        f'{config} is a UNet2DConditionModel, which needs embeddings: a file .npy, .npz or '
        f'.safetensors with numbers [N, tokens, 6]')
    assert one_line(open_network, tmp_path, embeddings=path) == (
        f"[Errno 2] there is no such file of embeddings: '{path}'")
    np.savez(path, embeddings=np.zeros([2, 5, 7]))
    assert one_line(open_network, tmp_path, embeddings=path) == (
        f'{path}: embeddings must be [N, tokens, 6], not [2, 5, 7]')
    np.savez(path, prompts=np.zeros([2, 5, 6]))
    assert one_line(open_network, tmp_path, embeddings=path) == (
        f'{path}: embeddings must be [N, tokens, 6], not missing')
    np.savez(path, embeddings=np.zeros([2, 5, 6]), negative=np.zeros([4, 6]))
    assert one_line(open_network, tmp_path, embeddings=path) == (
        f'{path}: negative must be [5, 6] like one of the embeddings, not [4, 6]')
    np.savez(path, embeddings=np.full([2, 5, 6], np.nan))
    assert one_line(open_network, tmp_path, embeddings=path) == (
        f'{path}: embeddings has numbers that are not finite')
    np.savez(path, embeddings=np.array([Hostile()], dtype=object))
    assert one_line(open_network, tmp_path, embeddings=path).startswith(
        f'{path} is no file of embeddings: '
    )
    assert one_line(open_network, tmp_path, null_class=0) == (
        f'null_class=0 would have no effect: {config} is a UNet2DConditionModel, whose labels are '
        f'embeddings')


# Files.

def test_where_the_parts_are(tmp_path):
    save(tmp_path)
    tensors = open_network(tmp_path).state_dict()
    assert all(torch.equal(tensors[name], tensor)
               for name, tensor in open_network(str(tmp_path / 'unet')).state_dict().items())
    (tmp_path / 'scheduler' / 'scheduler_config.json').rename(
        tmp_path / 'unet' / 'scheduler_config.json'
    )
    assert open_network(tmp_path / 'unet').sigma_min == pytest.approx(0.0100005, abs=1e-8)
    assert one_line(open_network, tmp_path) == (
        f"[Errno 2] the configuration of the scheduler, which tells the noise levels, is missing: "
        f"'{tmp_path / 'scheduler' / 'scheduler_config.json'}'")


def test_every_form_of_weights(tmp_path, images):
    """A state dict in the names of old versions, in several files, in half precision."""
    save(tmp_path)
    unet, single = tmp_path / 'unet', tmp_path / 'unet' / f'{STEM}.safetensors'
    sigma = torch.tensor(1.0)
    expected = open_network(tmp_path)(images, sigma)
    tensors, _ = load_tensors(single)
    single.unlink()
    assert one_line(open_network, tmp_path) == (
        f"[Errno 2] the weights of the model are missing: '{single}'")

    new_names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    old = {}
    for name, tensor in tensors.items():
        for new, before in new_names.items():
            name = name.replace(new, before)
        old[name] = tensor
    assert sum(name not in tensors for name in old) == 32
    torch.save(old, unet / f'{STEM}.bin')
    assert torch.equal(open_network(tmp_path)(images, sigma), expected)

    names = sorted(tensors)
    parts = {f'{STEM}-0000{i + 1}-of-00002.safetensors': names[i::2] for i in range(2)}
    for file, chosen in parts.items():
        save_tensors({name: tensors[name] for name in chosen}, {}, unet / file)
    index = unet / f'{STEM}.safetensors.index.json'
    index.write_text(
        json.dumps(
            {'weight_map': {name: file for file, chosen in parts.items() for name in chosen}}
        )
    )
    assert torch.equal(open_network(tmp_path)(images, sigma), expected)
    index.write_text(json.dumps({'weight_map': {names[0]: '../elsewhere.safetensors'}}))
    assert one_line(open_network, tmp_path) == (
        f'{index} is damaged: its weight_map does not lead from names to files beside it')

    half = unet / f'{STEM}.fp16.safetensors'
    save_tensors({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, {}, half)
    net = open_network(tmp_path, weights='fp16')
    assert net.dtype == torch.float32
    assert 0 < (net(images, sigma) - expected).abs().max() < 1e-2
    save_tensors({name: tensors[name] for name in names[1:]}, {}, half)
    assert one_line(open_network, tmp_path, weights='fp16') == (
        f'{half}: the tensor {names[0]} is missing')
    save_tensors({**tensors, 'more.weight': torch.zeros(1)}, {}, half)
    assert one_line(open_network, tmp_path, weights='fp16') == (
        f'{half}: the tensor more.weight is unknown to this network')
    save_tensors({**tensors, 'conv_in.bias': torch.zeros(1)}, {}, half)
    assert one_line(open_network, tmp_path, weights='fp16') == (
        f'{half}: the tensor conv_in.bias has shape [1], not [8]')


def test_precision(tmp_path, images):
    save(tmp_path, arguments={**UNET, 'num_class_embeds': 2}, prediction_type='v_prediction',
         rescale_betas_zero_snr=True)
    net, half = open_network(tmp_path), open_network(tmp_path).to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    half.dtype = torch.float32   # as the commands set it
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    half.dtype = torch.bfloat16
    # the levels stay what they were
    assert torch.equal(half.timestep(half.schedule.sigma.float()), torch.arange(1000))
    labels = torch.eye(2)
    for sigma in (torch.tensor(1.0), INF):
        D, exact = half(images, sigma, labels, unit=True), net(images, sigma, labels, unit=True)
        assert D.dtype == torch.float32
        assert 0 < (D - exact).abs().max() < 0.05 * exact.abs().max()


class Hostile:
    """A pickle that would run a function if it were believed."""
    ran = False

    def __reduce__(self):
        return _run, ()


def _run():
    Hostile.ran = True


def test_nothing_is_executed_or_fetched(tmp_path, images, monkeypatch):
    save(tmp_path)
    def refuse(*_args, **_kwargs):
        raise AssertionError('a connection was opened')
    monkeypatch.setattr(socket, 'socket', refuse)
    open_network(tmp_path)
    unet = tmp_path / 'unet'
    (unet / 'unet.py').write_text('raise SystemExit')
    edit(unet / 'config.json', auto_map={'AutoModel': 'unet.UNet'})
    open_network(tmp_path)
    edit(unet / 'config.json', _class_name='os')
    assert one_line(open_network, tmp_path) == (
        f"{unet / 'config.json'}: _class_name is 'os', not UNet2DModel or UNet2DConditionModel")
    edit(unet / 'config.json', _class_name='UNet2DModel')
    (unet / f'{STEM}.safetensors').unlink()
    torch.save({'conv_in.weight': Hostile()}, unet / f'{STEM}.bin')
    message = one_line(open_network, tmp_path)
    assert message.startswith(f'{unet / STEM}.bin is not a state dict of ours or of a kind known '
                              f'here: ')
    assert message.endswith('; nothing in it was executed')
    assert not Hostile.ran


def test_without_diffusers(tmp_path, monkeypatch):
    save(tmp_path)
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    assert one_line(open_network, tmp_path) == (
        f"{tmp_path / 'unet'} needs diffusers, of the extra diffusers: pip install "
        f"\".[diffusers]\", or pip install diffusers")


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'beta_schedule': 'sigmoid'},
            ": beta_schedule is 'sigmoid', not one of linear, scaled_linear, squaredcos_cap_v2",
        ),
        (
            {'beta_schedule': None, '_class_name': 'FlowMatchEulerDiscreteScheduler'},
            ': FlowMatchEulerDiscreteScheduler has no betas; networks of other kinds than DDPM '
            '(VE, EDM, flow matching) are not supported',
        ),
        (
            {'beta_schedule': ['linear']},
            ": beta_schedule is ['linear'], not one of linear, scaled_linear, squaredcos_cap_v2",
        ),
        (
            {'prediction_type': 'flow'},
            ": prediction_type is 'flow', not one of epsilon, v_prediction, sample",
        ),
        (
            {'num_train_timesteps': 1},
            ': num_train_timesteps is 1, not a whole number from 2 to 100000',
        ),
        (
            {'beta_end': None},
            ': beta_start and beta_end are 0.0001 and None, not numbers that rise between 0 and 1',
        ),
        ({'trained_betas': [0.1, 0.2]}, ': trained_betas is not a list of 1000 numbers'),
        (
            {'trained_betas': [0.1, -0.2], 'num_train_timesteps': 2},
            ': betas must be above 0 and below 1 (the last may be 1), not -0.2',
        ),
        (
            {'trained_betas': [0.1, 1e-300], 'num_train_timesteps': 2},
            ': its noise levels do not rise',
        ),
    ],
)
def test_schedulers_that_do_not_fit(tmp_path, changes, message):
    save(tmp_path)
    path = tmp_path / 'scheduler' / 'scheduler_config.json'
    edit(path, **changes)
    assert one_line(open_network, tmp_path) == f'{path}{message}'


@pytest.mark.parametrize(('changes', 'message'), [
    ({'in_channels': 9}, ': it takes 9 channels and returns 3; a network that takes more than the '
                         'noisy image (inpainting, upscaling) is not supported'),
    ({'sample_size': None}, ': sample_size is None, not the width of a square image, or a '
     'height and a width'),
    ({'sample_size': [8, 0]}, ': sample_size is [8, 0], not the width of a square image, or a '
     'height and a width'),
    ({'time_embedding_type': 'fourier'}, ': time_embedding_type is fourier, of VE networks, which '
                                         'are not supported'),
    ({'class_embed_type': 'identity'}, ": class_embed_type is 'identity'; only classes that are "
                                       "numbered (null) are supported"),
    ({'block_out_channels': [8]}, ': its arguments do not make a network: '),
    ({'norm_num_groups': 'four'}, ': its arguments do not make a network: '),
])
def test_networks_that_do_not_fit(tmp_path, changes, message):
    save(tmp_path)
    path = tmp_path / 'unet' / 'config.json'
    edit(path, **changes)
    found = one_line(open_network, tmp_path)
    assert found.startswith(f'{path}{message}') and (message.endswith(': ')
                                                     or found == f'{path}{message}')


def test_blocks_whose_constants_are_in_no_file(tmp_path):
    save(tmp_path, arguments={**UNET, 'block_out_channels': (32, 32),
                              'down_block_types': ('KDownBlock2D', 'DownBlock2D'),
                              'up_block_types': ('UpBlock2D', 'UpBlock2D')})
    assert one_line(open_network, tmp_path) == (
        f"{tmp_path / 'unet' / 'config.json'}: down_blocks.0.downsamplers.0.kernel is in no file; "
        f"blocks of this kind are not supported")


def test_learned_timesteps(tmp_path, images):
    unet = save(tmp_path, arguments={**UNET, 'time_embedding_type': 'learned',
                                     'num_train_timesteps': 1000, 'sample_size': [8, 8]},
                prediction_type='sample')
    net = open_network(tmp_path)
    assert net.img_resolution == 8
    assert torch.equal(net(images, net.schedule.sigma[700], unit=True), unet(images, 700).sample)
    assert one_line(open_network, tmp_path, timesteps='interpolated') == (
        f"timesteps=interpolated: {tmp_path / 'unet' / 'config.json'} has learned timesteps, which "
        f"know no fractions")


def test_folders_and_options_that_do_not_fit(tmp_path):
    save(tmp_path)
    index = tmp_path / 'model_index.json'
    index.write_text('{"_class_name": "DiTPipeline", "transformer": ["diffusers", '
                     '"DiTTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}')
    assert one_line(open_network, tmp_path) == (
        f'{index}: this pipeline has no unet; it has transformer, vae')
    index.write_text('{')
    assert one_line(open_network, tmp_path).startswith(f'{index} is damaged: ')
    assert one_line(read_diffusers, tmp_path, timesteps='linear') == (
        "timesteps must be one of nearest, interpolated, not 'linear'")
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert one_line(open_network, empty).startswith(
        f'{empty} is a folder without model_index.json or config.json, '
    )
    assert one_line(open_network, empty, null_class=3).startswith(
        f'{empty} is a folder without model_index.json'
    )
