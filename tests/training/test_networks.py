"""The networks against numbers computed with the reference implementation, closed forms and
identities."""

import copy
import inspect
import itertools
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from limpid.denoiser import Denoiser
from limpid.levels import IDDPMLevels
from limpid.preconditioning import EDM, IDDPM, VE, VP
from limpid.schedules import VPSchedule
from tests.golden_weights import fill, golden_tensor
from training import config as configs
from training import networks
from training.networks import (
    ARCHITECTURES,
    MODELS,
    Conv2d,
    DhariwalUNet,
    EDMPrecond,
    FourierEmbedding,
    GroupNorm,
    Linear,
    NetworkConfig,
    PositionalEmbedding,
    SongUNet,
    UNetBlock,
    VEPrecond,
    VPPrecond,
    attention,
    build_network,
    complete_arguments,
    iDDPMPrecond,
    initial,
)

GOLDEN = Path(__file__).parents[1] / 'golden'
NETS = ['net_ddpmpp_cond_aug', 'net_ncsnpp_cond_aug', 'net_song_encskip', 'net_adm_cond_aug']
PRECONDS = ['precond_vp_ddpmpp', 'precond_ve_ncsnpp', 'precond_iddpm_adm', 'precond_edm_ddpmpp']
TINY = {'model_channels': 16, 'channel_mult': [1, 2], 'num_blocks': 1, 'attn_resolutions': [8],
        'dropout': 0.0}


class Golden:
    """One file of golden vectors: arrays by name as tensors, None for what is not there."""

    def __init__(self, stem):
        with np.load(GOLDEN / f'{stem}.npz', allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta = json.loads(str(self.arrays.pop('__meta__')))

    def __getitem__(self, name):
        array = self.arrays.get(name)
        return None if array is None else torch.from_numpy(array.copy())

    def network(self):
        return fill(getattr(networks, self.meta['cls'])(**self.meta['kwargs'])).eval()


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def tiny(cls=EDMPrecond, *arguments, model_type='SongUNet', **changes):
    """A filled 8x8 network with 3 channels, in evaluation mode."""
    return fill(cls(8, 3, *arguments, model_type=model_type, **{**TINY, **changes})).eval()


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# The weights recipe

def test_golden_weights_are_those_of_the_recipe():
    beginnings = {
        ('map_layer0.weight', (64, 16)): [-0.03122961, 0.08743659, 0.3709323],
        ('model.enc.16x16_conv.weight', (16, 3, 3, 3)): [0.06087394, -0.04348625, 0.02640356],
        ('enc.16x16_block0.norm0.weight', (16,)): [0.5961854, 1.258778, 1.091599],
        ('map_noise.freqs', (16,)): [-0.760002, 5.315047, 28.05219],
    }
    for (name, shape), values in beginnings.items():
        torch.testing.assert_close(golden_tensor(name, shape).flatten()[:3], torch.tensor(values),
                                   rtol=1e-6, atol=0)


# Backbones

@pytest.mark.parametrize('stem', NETS)
def test_backbone_computes_the_published_function(stem):
    golden = Golden(stem)
    net = golden.network()
    trace = {}
    for half in ('enc', 'dec'):
        for name, module in getattr(net, half).items():
            module.register_forward_hook(
                lambda _, __, out, name=f'{half}.{name}': trace.update(
                    {name: out.detach().to(torch.float64)}))
    x = golden['x'].requires_grad_()
    out = net(x, golden['noise_labels'], golden['class_labels'], golden['augment_labels'])
    assert relative_error(out, golden['out']) < 5e-6

    assert list(trace) == [name for name, *_ in golden.meta['trace']]
    for name, shape, mean, std in golden.meta['trace']:
        assert list(trace[name].shape) == shape
        assert trace[name].mean().item() == pytest.approx(mean, abs=1e-6)
        assert trace[name].std().item() == pytest.approx(std, rel=1e-5)

    gout = np.random.default_rng(zlib.crc32(f'{stem}/gout'.encode())).standard_normal(
        out.shape).astype(np.float32)
    (out * torch.from_numpy(gout)).sum().backward()
    parameters = dict(net.named_parameters())
    assert relative_error(x.grad, golden['grad_x']) < 5e-6
    for name in golden.arrays:
        if name.startswith('grad:'):
            assert relative_error(parameters[name.removeprefix('grad:')].grad,
                                  golden[name]) < 2e-5, name
    assert set(parameters) == set(golden.meta['grad_sums'])
    for name, (_, magnitude) in golden.meta['grad_sums'].items():
        assert parameters[name].grad.abs().sum(dtype=torch.float64).item() == pytest.approx(
            magnitude, rel=2e-5), name


@pytest.mark.parametrize('stem', NETS)
def test_backbone_without_augment_labels_and_with_one_noise_label(stem):
    golden = Golden(stem)
    net = golden.network()
    with torch.no_grad():
        if golden['out_noaug'] is not None:
            out = net(golden['x'], golden['noise_labels'], golden['class_labels'])
            assert relative_error(out, golden['out_noaug']) < 5e-6
        no_class = torch.zeros([1, net.label_dim]) if net.label_dim else None
        out = net(golden['x'], golden['noise_labels'][:1], no_class)
        assert relative_error(out, golden['out_onenoise']) < 5e-6


@pytest.mark.parametrize('stem', NETS)
def test_backbone_has_the_published_tensors(stem):
    golden = Golden(stem)
    net = getattr(networks, golden.meta['cls'])(**golden.meta['kwargs'])
    assert {name: list(tensor.shape)
            for name, tensor in net.state_dict().items()} == golden.meta['state_dict']
    assert sum(p.numel() for p in net.parameters()) == golden.meta['num_params']


PAPER = {   # architecture, class, resolution, classes, changes
    'cifar10-uncond-ddpmpp-edm': ('ddpmpp', EDMPrecond, 32, 0, {'augment_dim': 9}),
    'cifar10-uncond-ncsnpp-edm': ('ncsnpp', EDMPrecond, 32, 0, {'augment_dim': 9}),
    'cifar10-cond-ddpmpp-edm': ('ddpmpp', EDMPrecond, 32, 10, {'augment_dim': 9}),
    'cifar10-cond-ncsnpp-edm': ('ncsnpp', EDMPrecond, 32, 10, {'augment_dim': 9}),
    'cifar10-configA-ddpmpp': ('ddpmpp', VPPrecond, 32, 0, {'channel_mult': [1, 2, 2, 2]}),
    'cifar10-configA-ncsnpp': ('ncsnpp', VEPrecond, 32, 0, {'channel_mult': [1, 2, 2, 2]}),
    'ffhq64-ddpmpp': ('ddpmpp', VPPrecond, 64, 0, {'channel_mult': [1, 2, 2, 2], 'augment_dim': 9}),
    'ffhq64-ncsnpp': ('ncsnpp', VEPrecond, 64, 0, {'channel_mult': [1, 2, 2, 2], 'augment_dim': 9}),
    'imagenet64-cond-adm-edm': ('adm', EDMPrecond, 64, 1000, {}),
    'imagenet64-cond-adm-iddpm': ('adm', iDDPMPrecond, 64, 1000, {}),
}


def paper_network(name):
    """One of the paper's networks, without values."""
    architecture, cls, resolution, label_dim, changes = PAPER[name]
    model_type, preset = ARCHITECTURES[architecture]
    with torch.device('meta'):
        return cls(resolution, 3, label_dim, model_type=model_type, **{**preset, **changes}).eval()


@pytest.mark.parametrize('name', PAPER)
def test_sizes_of_the_papers_networks(name):
    counts = json.loads((GOLDEN / 'configs_counts.json').read_text())[name]
    model = paper_network(name).model
    assert sum(p.numel() for p in model.parameters()) == counts['num_params']
    assert len(list(model.parameters())) == counts['num_param_tensors']
    assert sum(b.numel() for b in model.buffers()) == counts['num_buffer_elems']


def published_names():
    """{network: [(tensor, shape)]} in the order of the state dict."""
    found, entries = {}, []
    for line in (GOLDEN / 'state_dict_names.txt').read_text().splitlines():
        if line.startswith('== '):
            entries = found[line.split()[1]] = []
        elif line.strip():
            prefix, tensors = line.split(': ')
            entries += [(f'{prefix}.{leaf}', [int(n) for n in shape.split(',')])
                        for leaf, shape in re.findall(r'(\S+)\[([\d,]+)\]', tensors)]
    return found


@pytest.mark.parametrize('name', published_names())
def test_names_shapes_and_order_of_the_state_dict(name):
    ours = [(key, list(tensor.shape)) for key, tensor in paper_network(name).state_dict().items()]
    assert ours == published_names()[name]


@pytest.mark.parametrize('name, gflop', [
    ('cifar10-cond-ddpmpp-edm', 42.4), ('cifar10-cond-ncsnpp-edm', 42.8),
    ('cifar10-configA-ddpmpp', 21.7), ('ffhq64-ddpmpp', 83.7), ('imagenet64-cond-adm-edm', 219.3)])
def test_work_of_one_forward_pass(name, gflop):
    net = paper_network(name)
    with torch.device('meta'), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, net.img_resolution, net.img_resolution), torch.tensor(1.0))
    assert round(counter.get_total_flops() / 1e9, 1) == gflop


@pytest.mark.parametrize('embedding_type', ['positional', 'fourier'])
@pytest.mark.parametrize('encoder_type', ['standard', 'skip', 'residual'])
@pytest.mark.parametrize('decoder_type', ['standard', 'skip'])
def test_every_combination_of_kinds_trains_every_parameter(
    embedding_type, encoder_type, decoder_type
):
    kinds = {'embedding_type': embedding_type, 'encoder_type': encoder_type,
             'decoder_type': decoder_type}
    net = fill(SongUNet(16, 3, 2, label_dim=4, augment_dim=9, resample_filter=[1, 3, 3, 1],
                        **{**TINY, 'channel_mult': [1, 2, 2]}, **kinds))
    out = net(images(2, 3, 16, 16), torch.tensor([0.3, 2.0]), torch.eye(4)[:2],
              images(2, 9, seed=1))
    assert out.shape == (2, 2, 16, 16)
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('kind', ['encoder_type', 'decoder_type'])
def test_skip_kinds_are_the_standard_ones_where_their_additions_are_zero(kind):
    arguments = {**TINY, 'channel_mult': [1, 2, 2], 'resample_filter': [1, 3, 3, 1]}
    standard = fill(SongUNet(16, 3, 3, **arguments)).eval()
    skip = fill(SongUNet(16, 3, 3, **{**arguments, kind: 'skip'})).eval()
    added = [name for name, _ in skip.named_parameters()
             if name not in dict(standard.named_parameters())]
    assert added
    x, noise = images(2, 3, 16, 16), torch.tensor([0.3, 2.0])
    with torch.no_grad():
        assert relative_error(skip(x, noise, None), standard(x, noise, None)) > 1e-2
        for name in added:
            skip.get_parameter(name).zero_()
        torch.testing.assert_close(skip(x, noise, None), standard(x, noise, None), rtol=0, atol=0)


def test_untrained_adm_answers_zero_and_its_blocks_are_identities():
    block = UNetBlock(64, 64, 8, attention=True, init_zero={'init_weight': 0, 'init_bias': 0})
    x = images(2, 64, 4, 4)
    assert block.num_heads == 1
    torch.testing.assert_close(block(x, images(2, 8)), x, rtol=0, atol=0)
    net = DhariwalUNet(8, 3, 3, **{**TINY, 'model_channels': 64})
    assert net(images(2, 3, 8, 8), torch.tensor([1.0]), None).abs().max() == 0


def test_adm_blocks_below_64_channels_have_no_attention():
    net = DhariwalUNet(16, 3, 3, model_channels=32, channel_mult=[1, 2], num_blocks=1,
                       attn_resolutions=[16, 8])
    heads = {name: module.num_heads for name, module in net.named_modules()
             if isinstance(module, UNetBlock)}
    assert {name for name, n in heads.items() if n} == {
        'enc.8x8_block0', 'dec.8x8_in0', 'dec.8x8_block0', 'dec.8x8_block1'}


# Layers

DEVIATIONS = {'xavier_uniform': math.sqrt(2 / 500), 'xavier_normal': math.sqrt(2 / 500),
              'kaiming_uniform': math.sqrt(1 / 200), 'kaiming_normal': math.sqrt(1 / 200)}


@pytest.mark.parametrize('mode, std', DEVIATIONS.items())
def test_initial_distributions(mode, std):
    torch.manual_seed(0)
    w = initial([300, 200], mode, 200, 300).to(torch.float64)
    assert abs(w.mean().item()) < 4 * std / math.sqrt(w.numel())
    assert w.std().item() == pytest.approx(std, rel=0.01)
    # 1.8 of a uniform distribution, 3 of a normal one
    kurtosis = (w**4).mean() / (w**2).mean() ** 2
    if mode.endswith('uniform'):
        bound = math.sqrt(3) * std
        assert bound * 0.999 < w.abs().max().item() <= bound
        assert kurtosis.item() == pytest.approx(1.8, abs=0.05)
    else:
        assert kurtosis.item() == pytest.approx(3, abs=0.1)


def test_layers_draw_weight_and_bias_with_the_fans_of_the_weight():
    torch.manual_seed(0)
    conv = Conv2d(50, 2000, kernel=3, init_mode='kaiming_uniform', init_weight=2, init_bias=0.5)
    bound = math.sqrt(3 / (50 * 9))
    for values, factor in [(conv.weight, 2), (conv.bias, 0.5)]:
        assert 0.99 * factor * bound < values.abs().max().item() <= factor * bound
    linear = Linear(64, 4000, init_mode='xavier_normal', init_bias=1)
    assert linear.bias.std().item() == pytest.approx(math.sqrt(2 / 4064), rel=0.05)
    assert Linear(3, 5).bias.abs().max() == 0
    assert Linear(3, 5, bias=False).bias is None


def test_initial_scales_of_the_backbones():
    torch.manual_seed(0)
    song = SongUNet(8, 3, 3, label_dim=10, model_channels=64, channel_mult=[1], num_blocks=1,
                    attn_resolutions=[8])
    block = song.enc['8x8_block0']
    bounds = {
        block.conv0.weight: math.sqrt(6 / (64 * 9 + 64 * 9)),
        block.conv1.weight: 1e-5 * math.sqrt(6 / (64 * 9 + 64 * 9)),
        block.qkv.weight: math.sqrt(0.2) * math.sqrt(6 / (64 + 192)),
        block.proj.weight: 1e-5 * math.sqrt(6 / (64 + 64)),
        song.map_label.weight: math.sqrt(6 / (10 + 64)),
        song.dec['8x8_aux_conv'].weight: 1e-5 * math.sqrt(6 / (64 * 9 + 3 * 9)),
    }
    adm = DhariwalUNet(8, 3, 3, augment_dim=9, model_channels=64, channel_mult=[1], num_blocks=1,
                       attn_resolutions=[8])
    block = adm.enc['8x8_block0']
    bounds |= {
        block.conv0.weight: math.sqrt(1 / (64 * 9)),   # √⅓ · √(3/fan_in)
        block.affine.weight: math.sqrt(1 / 256),
        block.qkv.weight: math.sqrt(1 / 64),
    }
    for parameter, bound in bounds.items():
        assert 0.98 * bound < parameter.abs().max().item() <= bound * (1 + 1e-6)
    assert adm.enc['8x8_conv'].bias.abs().max() > 0
    for parameter in (block.conv1.weight, block.proj.weight, adm.out_conv.weight,
                      adm.map_augment.weight):
        assert parameter.abs().max() == 0
    labels = DhariwalUNet(8, 3, 3, label_dim=100, model_channels=64, channel_mult=[1],
                          num_blocks=1).map_label
    assert labels.bias is None
    assert labels.weight.std().item() == pytest.approx(1, rel=0.02)   # √label_dim · √(1/label_dim)


def test_resampling_with_the_box_filter_is_repetition_and_averaging():
    x = images(2, 5, 6, 6)
    up, down = Conv2d(5, 5, kernel=0, up=True), Conv2d(5, 5, kernel=0, down=True)
    torch.testing.assert_close(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=1e-6,
                               atol=0)
    torch.testing.assert_close(down(x), functional.avg_pool2d(x, 2), rtol=1e-6, atol=1e-7)
    assert list(up.state_dict()) == ['resample_filter']
    torch.testing.assert_close(up.resample_filter, torch.full([1, 1, 2, 2], 0.25))


@pytest.mark.parametrize('kernel', [1, 3])
def test_fused_resampling_is_both_steps_at_the_higher_resolution(kernel):
    """Away from the border; there the fused forms pad once instead of twice."""
    f = [1, 3, 3, 1]
    conv = fill(Conv2d(4, 4, kernel, init_bias=1))
    x = images(2, 4, 12, 12)
    for way, expected in [
        ('up', conv(Conv2d(4, 4, kernel=0, up=True, resample_filter=f)(x))),
        ('down', Conv2d(4, 4, kernel=0, down=True, resample_filter=f)(conv(x))),
    ]:
        fused = fill(Conv2d(4, 4, kernel, resample_filter=f, fused_resample=True, init_bias=1,
                            **{way: True}))
        actual = fused(x)
        assert actual.shape == expected.shape
        inside = (
            (..., slice(3, -3), slice(3, -3)) if way == 'up' else (..., slice(1, -1), slice(1, -1))
        )
        torch.testing.assert_close(actual[inside], expected[inside], rtol=1e-5, atol=1e-5)


def test_group_norm_has_at_least_four_channels_per_group():
    groups = {channels: GroupNorm(channels).num_groups for channels in (4, 16, 96, 128, 256)}
    assert groups == {4: 1, 16: 4, 96: 24, 128: 32, 256: 32}
    x = images(2, 16, 3, 3).to(torch.float64)
    group = x[0, 4:8]
    expected = (group - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(GroupNorm(16)(x)[0, 4:8], expected)


@pytest.mark.parametrize('endpoint', [False, True])
def test_positional_embedding(endpoint):
    x = torch.tensor([0.0, 0.7, 12.5])
    out = PositionalEmbedding(8, endpoint=endpoint)(x)
    for b, i in itertools.product(range(3), range(4)):
        phase = x[b].item() * 10000 ** (-i / (3 if endpoint else 4))
        assert out[b, i].item() == pytest.approx(math.cos(phase), abs=2e-6)
        assert out[b, 4 + i].item() == pytest.approx(math.sin(phase), abs=2e-6)


def test_fourier_embedding():
    torch.manual_seed(0)
    layer = FourierEmbedding(20000, scale=16)
    assert layer.freqs.std().item() == pytest.approx(16, rel=0.03)
    phases = 2 * math.pi * layer.freqs.to(torch.float64) * 0.01
    expected = torch.cat([phases.cos(), phases.sin()]).to(torch.float32)
    torch.testing.assert_close(layer(torch.tensor([0.01]))[0], expected, rtol=0, atol=2e-5)


def test_song_embedding_takes_the_sine_first():
    net = SongUNet(8, 3, 3, **TINY)
    seen = []
    net.map_layer0.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(images(1, 3, 8, 8), torch.tensor([0.5]), None)
    assert seen[0][0, 0].item() == pytest.approx(math.sin(0.5))
    assert seen[0][0, 8].item() == pytest.approx(math.cos(0.5))


def test_attention_is_the_sum_over_keys_with_the_published_channel_order():
    B, heads, c, H, W = 2, 2, 3, 2, 4
    qkv = images(B, heads * c * 3, H, W)
    out = attention(qkv, heads)
    flat = qkv.reshape(B, -1, H * W).to(torch.float64)
    for b, head, i in itertools.product(range(B), range(heads), range(H * W)):
        q, k, v = ([flat[b, (head * c + channel) * 3 + part] for channel in range(c)]
                   for part in range(3))
        scores = sum(q[n][i] * k[n] for n in range(c)) / math.sqrt(c)
        for n in range(c):
            expected = (scores.softmax(0) * v[n]).sum().item()
            assert out[b, head * c + n].flatten()[i].item() == pytest.approx(expected, abs=1e-6)


# Denoisers

@pytest.mark.parametrize('stem', PRECONDS)
def test_denoiser_computes_the_published_function(stem):
    golden = Golden(stem)
    net = golden.network()
    if golden['u'] is not None:
        assert relative_error(net.u, golden['u']) < 1e-6   # ours is exact, the reference's is not
        net.u.copy_(golden['u'])
    # Below u_{M−1}/2 the reference rounds to u_M = 0, which is no noise level.
    rows = golden['sigma'] > (golden['u'][-2] / 2 if golden['u'] is not None else 0)
    seen = []
    net.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        D = net(golden['x'], golden['sigma'], golden['class_labels'],
                augment_labels=golden['augment_labels'])
        alone = net(golden['x'][:2].to(torch.float64), torch.tensor(0.75, dtype=torch.float64))
    assert D.dtype == alone.dtype == torch.float32
    assert relative_error(D[rows], golden['D'][rows]) < 2e-5
    assert relative_error(alone, golden['D_scalar_nolabel']) < 2e-5

    (x, c_noise, labels), (_, c_noise_alone, no_labels) = seen
    torch.testing.assert_close(x.sum(dim=[1, 2, 3])[rows],
                               golden['model_x'][rows].to(torch.float32), rtol=2e-5, atol=2e-4)
    assert relative_error(c_noise[rows], golden['c_noise'][rows]) < 2e-5
    assert relative_error(c_noise_alone, golden['c_noise_scalar']) < 2e-5
    exact = net.precond.c_noise(golden['sigma'].to(torch.float64))
    torch.testing.assert_close(c_noise.to(torch.float64), exact, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(labels, golden['class_labels'], check_dtype=False)
    assert no_labels.tolist() == [[0.0] * net.label_dim]


@pytest.mark.parametrize('stem', PRECONDS)
def test_round_sigma(stem):
    golden = Golden(stem)
    net = golden.network()
    sigma, rows = golden['round_in'], slice(None)
    if golden['u'] is not None:
        net.u.copy_(golden['u'])
        rows = sigma > golden['u'][-2] / 2
        index = net.round_sigma(sigma, return_index=True)
        assert index.dtype == torch.int64
        assert index[rows].tolist() == golden['round_index'][rows].tolist()
    for dtype, name in [(torch.float64, 'round_f64'), (torch.float32, 'round_f32')]:
        rounded = net.round_sigma(sigma.to(dtype))
        assert rounded.dtype == golden[name].dtype == dtype
        torch.testing.assert_close(rounded[rows], golden[name][rows], rtol=1e-7, atol=0)
    dtype, shape, value = golden.meta['round_pyfloat']
    rounded = net.round_sigma(0.3)
    assert (str(rounded.dtype), list(rounded.shape)) == (dtype, shape)
    assert rounded.item() == pytest.approx(value, rel=1e-7)


def test_ranges_of_the_published_classes():
    assert (tiny(EDMPrecond).sigma_min, tiny(EDMPrecond).sigma_max) == (0, math.inf)
    assert (tiny(VEPrecond).sigma_min, tiny(VEPrecond).sigma_max) == (0.02, 100)
    vp = tiny(VPPrecond)   # √(exp(½ 19.9 t² + 0.1 t) − 1)
    assert vp.sigma_min == pytest.approx(math.sqrt(math.expm1(9.95e-10 + 1e-6)), rel=1e-12)
    assert vp.sigma_max == pytest.approx(math.sqrt(math.expm1(10.05)), rel=1e-12)
    u = IDDPMLevels().u
    iddpm = tiny(iDDPMPrecond)
    assert (iddpm.sigma_min, iddpm.sigma_max) == (u[999].item(), u[0].item())
    assert (vp.beta_d, vp.beta_min, vp.M, vp.epsilon_t) == (19.9, 0.1, 1000, 1e-5)
    assert (iddpm.C_1, iddpm.C_2, iddpm.M, tiny(EDMPrecond).sigma_data) == (0.001, 0.008, 1000, 0.5)


def test_preconditioners_of_the_published_classes():
    assert tiny(VPPrecond, 0, False, 10.0, 0.2, 500).precond == VP(VPSchedule(10.0, 0.2), 500)
    assert tiny(VEPrecond).precond == VE()
    assert tiny(iDDPMPrecond, 0, False, 0.002, 0.01,
                50).precond == IDDPM(IDDPMLevels(50, 0.002, 0.01))
    assert tiny(EDMPrecond, 0, False, 0, 80, 0.7).precond == EDM(0.7)


def test_iddpm_levels_of_the_weights_win():
    net = tiny(iDDPMPrecond)
    assert list(net.state_dict())[0] == 'u'
    assert net.u.dtype == torch.float32
    state = net.state_dict()
    state['u'] = state['u'] * 2
    twin = copy.deepcopy(net)
    twin.load_state_dict(state)
    sigma = torch.tensor([0.3, 5.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(twin.round_sigma(2 * sigma), 2 * net.round_sigma(sigma), rtol=0,
                               atol=0)
    assert twin.precond.table is twin.u
    assert net.round_sigma(torch.tensor(1e9)).item() == net.u[0].item()


def test_networks_without_values_leave_the_table_of_levels_intact():
    levels = IDDPMLevels(M=37)
    with torch.device('meta'):
        net = iDDPMPrecond(8, 3, M=37, **TINY, model_type='SongUNet')
    assert net.u.device.type == 'meta'
    assert net.sigma_max == levels.u[0].item() > 100


def test_noise_levels_in_any_shape():
    net = tiny()
    x, sigma = images(3, 3, 8, 8), torch.tensor([0.1, 1.0, 30.0])
    with torch.no_grad():
        D = net(x, sigma)
        for same in (sigma.reshape(3, 1, 1, 1), sigma.to(torch.float64)):
            torch.testing.assert_close(net(x, same), D, rtol=0, atol=0)
        one = net(x, torch.tensor([1.0]))
        for same in (1.0, torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64),
                     torch.full([3], 1.0)):
            torch.testing.assert_close(net(x, same), one, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(D[1], one[1], rtol=1e-5, atol=1e-5)


def test_no_labels_are_labels_of_zeros():
    net = tiny(EDMPrecond, 4)
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        unlabelled = net(x, 1.0)
        torch.testing.assert_close(net(x, 1.0, torch.zeros(2, 4)), unlabelled, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(net(x, 1.0, torch.eye(4)[1]), net(x, 1.0, torch.eye(4)[[1, 1]]),
                                   rtol=1e-6, atol=1e-6)
        assert relative_error(net(x, 1.0, torch.eye(4)[:2]), unlabelled) > 1e-3


@pytest.mark.parametrize('model_type', MODELS)
def test_label_dropout_zeroes_whole_labels_in_training_only(model_type):
    net = tiny(EDMPrecond, 4, model_type=model_type, label_dropout=0.4).model
    twin = tiny(EDMPrecond, 4, model_type=model_type).model.train()
    x, noise, labels = images(50, 3, 8, 8), images(50, seed=1), torch.eye(4)[torch.arange(50) % 4]
    with torch.no_grad():
        torch.testing.assert_close(net(x, noise, labels), twin(x, noise, labels), rtol=0, atol=0)
        net.train()
        torch.manual_seed(7)
        out = net(x, noise, labels)
        torch.manual_seed(7)
        kept = torch.rand([50, 1]) >= 0.4
        assert 0 < kept.sum() < 50
        torch.testing.assert_close(out, twin(x, noise, labels * kept), rtol=0, atol=0)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = tiny(dropout=0.5)
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(x, 1.0), tiny()(x, 1.0), rtol=0, atol=0)
        net.train()
        assert relative_error(net(x, 1.0), net(x, 1.0)) > 1e-3


def test_learned_variance():
    net = tiny(iDDPMPrecond, model_type='DhariwalUNet')
    x, sigma = images(2, 3, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        D, F_var = net(x, sigma, return_variance=True)
        torch.testing.assert_close(D, net(x, sigma), rtol=0, atol=0)
        level = sigma.reshape(-1, 1, 1, 1)
        F = net.model(net.precond.c_in(level) * x, net.precond.c_noise(sigma), None)
    assert F.shape[1] == 6
    torch.testing.assert_close(F_var, F[:, 3:], rtol=0, atol=0)
    torch.testing.assert_close(D, x - level * F[:, :3])
    with pytest.raises(ValueError) as error:
        tiny()(x, sigma, return_variance=True)
    assert str(
        error.value) == 'return_variance needs a network with 6 outputs (iDDPM); this one has 3'


@pytest.mark.parametrize('model_type', MODELS)
def test_precision_of_the_backbone(model_type):
    net = (
        tiny(EDMPrecond, 4, model_type=model_type, model_channels=64, embedding_type='fourier')
        if model_type == 'SongUNet'
        else tiny(EDMPrecond, 4, model_type=model_type, model_channels=64)
    )
    half = fill(EDMPrecond(8, 3, 4, True, model_type=model_type,
                           **{**TINY, 'model_channels': 64})).eval()
    assert half.use_fp16 and not net.use_fp16
    x, sigma, labels = images(2, 3, 8, 8), torch.tensor([0.1, 20.0]), torch.eye(4)[:2]
    seen = {}
    for name, module in net.model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    with torch.no_grad():
        exact = net(x, sigma, labels)
        assert set(seen.values()) == {torch.float32}
        net.dtype = torch.bfloat16
        rough = net(x, sigma, labels)
        torch.testing.assert_close(net(x, sigma, labels, force_fp32=True), exact, rtol=0, atol=0)
        net(x, sigma, labels)
    assert rough.dtype == torch.float32
    assert 1e-5 < relative_error(rough, exact) < 3e-2
    float32 = {name.rsplit('.')[-1] for name, dtype in seen.items() if dtype == torch.float32}
    assert float32 == {'map_noise', 'map_label', 'map_layer0', 'map_layer1', 'affine'}
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_half_precision_is_full_precision_on_the_cpu():
    half = fill(EDMPrecond(8, 3, 0, True, model_type='SongUNet', **TINY)).eval()
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(half(x, 1.0), tiny()(x, 1.0), rtol=0, atol=0)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('cls, model_type', [(VEPrecond, 'SongUNet'), (EDMPrecond, 'DhariwalUNet')])
def test_parameters_stay_contiguous(cls, model_type, memory_format):
    net = cls(8, 3, 0, model_type=model_type, **{**TINY, 'model_channels': 64})
    before = [p.stride() for p in net.parameters()]
    assert before == [torch.empty(p.shape).stride() for p in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(2):
        net(images(2, 3, 8, 8).contiguous(memory_format=memory_format),
            1.0).square().sum().backward()
        optimizer.step()
    assert [p.stride() for p in net.parameters()] == before


@pytest.mark.skipif(torch.__version__.startswith('2.6.'),
                    reason='the compiler of torch 2.6 cannot trace dataclasses.replace')
def test_compiled_without_graph_breaks():
    torch.compiler.reset()
    net = tiny(iDDPMPrecond, 4)
    x, sigma, labels = images(2, 3, 8, 8), torch.tensor([0.5, 3.0]), torch.eye(4)[:2]
    with torch.no_grad():
        compiled = torch.compile(net, backend='eager', fullgraph=True)(x, sigma, labels)
        torch.testing.assert_close(compiled, net(x, sigma, labels), rtol=1e-6, atol=1e-6)


# Configurations

def network_config(precond, sigma_min, sigma_max, **changes):
    return NetworkConfig('SongUNet', precond, sigma_min, sigma_max, 8, 3, 4,
                         model=complete_arguments('SongUNet', TINY), **changes)


VP_RANGE = (math.sqrt(math.expm1(9.95e-10 + 1e-6)), math.sqrt(math.expm1(10.05)))
IDDPM_RANGE = (IDDPMLevels().u[999].item(), IDDPMLevels().u[0].item())


@pytest.mark.parametrize('precond, limits, cls', [
    (EDM(), (0.0, math.inf), EDMPrecond),
    (EDM(0.7), (0.002, 80.0), EDMPrecond),
    (VE(), (0.02, 100.0), VEPrecond),
    (VP(), VP_RANGE, VPPrecond),
    (VP(M=500), VP_RANGE, VPPrecond),
    (VP(), (0.0, math.inf), Denoiser),
    (IDDPM(), IDDPM_RANGE, iDDPMPrecond),
    (IDDPM(), (0.1, 50.0), Denoiser),
])
def test_configurations_build_the_published_classes_where_they_fit(precond, limits, cls):
    config = network_config(precond, *limits)
    stored = json.loads(json.dumps(configs.encode(config), allow_nan=False))
    assert configs.decode(stored, NetworkConfig) == config
    net = fill(build_network(config)).eval()
    assert type(net) is cls
    assert net.precond == precond
    assert (net.sigma_min, net.sigma_max) == pytest.approx(limits, rel=1e-9)
    assert (net.img_resolution, net.img_channels, net.label_dim) == (8, 3, 4)
    x, sigma = images(2, 3, 8, 8), torch.tensor([0.5, 3.0])
    published = {EDM: EDMPrecond, VE: VEPrecond, VP: VPPrecond, IDDPM: iDDPMPrecond}[type(precond)]
    with torch.no_grad():
        reference = fill(published(8, 3, 4, model_type='SongUNet', **TINY)).eval()
        shapes = [[(name, tensor.shape) for name, tensor in n.state_dict().items()]
                  for n in (net, reference)]
        assert shapes[0] == shapes[1]
        if precond == type(precond)():   # the same numbers, then also the same function
            torch.testing.assert_close(net(x, sigma), reference(x, sigma), rtol=0, atol=0)


def test_configurations_set_the_precision():
    dtypes = {p: build_network(network_config(VE(), 0.02, 100, precision=p)).dtype
              for p in networks.PRECISIONS}
    assert dtypes == {'fp32': torch.float32, 'tf32': torch.float32, 'fp16': torch.float16,
                      'bf16': torch.bfloat16}


def test_complete_arguments():
    assert complete_arguments('DhariwalUNet', {'num_blocks': 2, 'channel_mult': (1, 2)}) == {
        'augment_dim': 0, 'model_channels': 192, 'channel_mult': [1, 2], 'channel_mult_emb': 4,
        'num_blocks': 2, 'attn_resolutions': [32, 16, 8], 'dropout': 0.1, 'label_dropout': 0}
    complete = complete_arguments('SongUNet', {})
    assert complete_arguments('SongUNet', complete) == complete


SIGNATURES = {   # as checkpoints rely on them: what their record leaves out has these values
    'Linear': 'in_features, out_features, bias=True, init_mode=kaiming_normal, init_weight=1, '
              'init_bias=0',
    'Conv2d': 'in_channels, out_channels, kernel, bias=True, up=False, down=False, '
              'resample_filter=[1, 1], fused_resample=False, init_mode=kaiming_normal, '
              'init_weight=1, init_bias=0',
    'GroupNorm': 'num_channels, num_groups=32, min_channels_per_group=4, eps=1e-05',
    'PositionalEmbedding': 'num_channels, max_positions=10000, endpoint=False',
    'FourierEmbedding': 'num_channels, scale=16',
    'UNetBlock': 'in_channels, out_channels, emb_channels, up=False, down=False, attention=False, '
                 'num_heads=None, channels_per_head=64, dropout=0, skip_scale=1, eps=1e-05, '
                 'resample_filter=[1, 1], resample_proj=False, '
                 "adaptive_scale=True, init={}, init_zero={'init_weight': 0}, init_attn=None",
    'SongUNet': 'img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, '
                'model_channels=128, channel_mult=[1, 2, 2, 2], channel_mult_emb=4, num_blocks=4, '
                'attn_resolutions=[16], dropout=0.1, label_dropout=0, embedding_type=positional, '
                'channel_mult_noise=1, encoder_type=standard, decoder_type=standard, '
                'resample_filter=[1, 1]',
    'DhariwalUNet': 'img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, '
                    'model_channels=192, channel_mult=[1, 2, 3, 4], channel_mult_emb=4, '
                    'num_blocks=3, attn_resolutions=[32, 16, 8], dropout=0.1, label_dropout=0',
    'VPPrecond': 'img_resolution, img_channels, label_dim=0, use_fp16=False, beta_d=19.9, '
                 'beta_min=0.1, M=1000, epsilon_t=1e-05, model_type=SongUNet, **model_kwargs',
    'VEPrecond': 'img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_min=0.02, '
                 'sigma_max=100, model_type=SongUNet, **model_kwargs',
    'iDDPMPrecond': 'img_resolution, img_channels, label_dim=0, use_fp16=False, C_1=0.001, '
                    'C_2=0.008, M=1000, model_type=DhariwalUNet, **model_kwargs',
    'EDMPrecond': 'img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_min=0, '
                  'sigma_max=inf, sigma_data=0.5, model_type=DhariwalUNet, **model_kwargs',
}


@pytest.mark.parametrize('name', SIGNATURES)
def test_constructor_arguments(name):
    def written(p):
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        return (f'**{p.name}' if p.kind is p.VAR_KEYWORD else p.name if default is p.empty
                else f'{p.name}={default}')

    parameters = inspect.signature(getattr(networks, name)).parameters.values()
    assert ', '.join(map(written, parameters)) == SIGNATURES[name]


# What does not fit

@pytest.mark.parametrize(
    'build, message',
    [
        (
            lambda: tiny(width=3),
            "SongUNet takes no argument 'width' (known: attn_resolutions, "
            'augment_dim, '
            'channel_mult, channel_mult_emb, channel_mult_noise, decoder_type, dropout, '
            'embedding_type, encoder_type, label_dropout, model_channels, num_blocks, '
            'resample_filter)',
        ),
        (
            lambda: tiny(num_block=3),
            "SongUNet takes no argument 'num_block' (did you mean 'num_blocks'?)",
        ),
        (
            lambda: tiny(model_type='SongUnet'),
            "model_type='SongUnet' is unknown (did you mean 'SongUNet'?)",
        ),
        (
            lambda: SongUNet(28, 1, 1),
            'a resolution of 28 cannot be halved 3 times, as the 4 levels of channel_mult=[1, 2, '
            '2, 2] need: use 32, the nearest multiple of 8, or at most 3 levels',
        ),
        (
            lambda: DhariwalUNet(9, 1, 1, channel_mult=[1, 2]),
            'a resolution of 9 cannot be halved 1 times, as the 2 levels of channel_mult=[1, 2] '
            'need: use 10, the nearest multiple of 2, or at most 1 levels',
        ),
        (
            lambda: SongUNet((30, 44), 1, 1),
            'a resolution of 30x44 cannot be halved 3 times, as the 4 levels of channel_mult=[1, '
            '2, 2, 2] need: use 32x48, the nearest multiple of 8, or at most 2 levels',
        ),
        (
            lambda: SongUNet((8, 0), 1, 1),
            'img_resolution=(8, 0) is neither the side of a square nor a height and a width',
        ),
        (
            lambda: SongUNet(8, 1, 1, channel_mult=[]),
            'channel_mult is empty; it takes one factor per resolution, such as [1, 2, 2, 2]',
        ),
        (
            lambda: tiny(encoder_type='residuals'),
            "encoder_type='residuals' is unknown; it is one of standard, skip, residual",
        ),
        (
            lambda: tiny(decoder_type='residual'),
            "decoder_type='residual' is unknown; it is one of standard, skip",
        ),
        (
            lambda: tiny(embedding_type='sine'),
            "embedding_type='sine' is unknown; it is one of positional, fourier",
        ),
        (
            lambda: tiny(resample_filter=[1, 2, 1]),
            'resample_filter=[1, 2, 1] has an odd number of taps, which cannot double a '
            'resolution; use an even number, such as [1, 1] or [1, 3, 3, 1]',
        ),
        (
            lambda: tiny(model_channels=148),
            '148 channels cannot be normalised in 32 groups of at least 4; channel counts that are '
            'multiples of 32 always can',
        ),
        (
            lambda: GroupNorm(3),
            '3 channels cannot be normalised in 1 groups of at least 4; channel counts that are '
            'multiples of 32 always can',
        ),
        (
            lambda: UNetBlock(64, 64, 8, attention=True, num_heads=3),
            '64 channels cannot be shared among 3 attention heads; use a multiple of 3',
        ),
        (
            lambda: PositionalEmbedding(5),
            'an embedding of the noise level takes an even number of channels, not 5',
        ),
        (lambda: Conv2d(3, 3, 3, up=True, down=True), 'a Conv2d takes up or down, not both'),
        (
            lambda: initial([3], 'xavier', 3, 3),
            "init_mode='xavier' is unknown (did you mean 'xavier_normal'?)",
        ),
        (
            lambda: build_network(network_config(VE(), 0.02, 100, precision='half')),
            "precision='half' is unknown (known: bf16, fp16, fp32, tf32)",
        ),
        (
            lambda: tiny()(images(3, 3, 8, 8), torch.ones(2)),
            'sigma has 2 noise levels for 3 images; give one, or one per image',
        ),
        (
            lambda: tiny(EDMPrecond, 4)(images(3, 3, 8, 8), 1.0, torch.eye(5)[:3]),
            'class_labels has shape [3, 5]; this network takes one-hot vectors [batch, 4]',
        ),
        (
            lambda: tiny(EDMPrecond, 4).model(images(3, 3, 8, 8), torch.ones(1), None),
            'a class-conditional backbone needs class_labels; '
            'a vector of zeros stands for no class',
        ),
    ],
)
def test_errors_say_what_would_be_right(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == message


OBLONG = [('SongUNet', {**TINY, 'attn_resolutions': [8]}), ('DhariwalUNet', {
    **TINY, 'attn_resolutions': [8], 'model_channels': 64})]


@pytest.mark.parametrize('model_type, arguments', OBLONG)
def test_oblong_networks_have_the_names_of_both_sides_and_attend_by_height(model_type, arguments):
    """A network of 8x12 differs from that of 8x8 in names and in nothing else."""
    square, oblong = (build_network(NetworkConfig(model_type, EDM(), 0.01, 80.0, resolution, 5,
                                                  model=arguments)).eval()
                      for resolution in (8, (8, 12)))
    renamed = {name.replace('8x8', '8x12').replace('4x4', '4x6'): tensor
               for name, tensor in square.state_dict().items()}
    assert 'model.enc.8x12_block0.qkv.weight' in renamed
    assert list(renamed) == list(oblong.state_dict())
    oblong.load_state_dict(renamed)
    assert (oblong.img_resolution, oblong.traits.image_shape) == ((8, 12), (5, 8, 12))
    x = torch.randn(2, 5, 8, 12, generator=torch.Generator().manual_seed(1))
    assert oblong(x, torch.tensor(1.0)).shape == x.shape
    # A convolution knows no shape: an oblong network run on a square is the square network.
    assert torch.equal(oblong(x[..., :8], torch.tensor(1.0)), square(x[..., :8], torch.tensor(1.0)))


def test_a_resolution_has_one_name_and_survives_a_file():
    config = NetworkConfig('SongUNet', EDM(), 0.01, 80.0, (16, 24), 3, model=TINY)
    plain = configs.encode(config)
    assert plain['img_resolution'] == [16, 24]
    assert configs.decode(plain, NetworkConfig) == config
    assert NetworkConfig('SongUNet', EDM(), 0.01, 80.0, (16, 16), 3).img_resolution == 16
    with pytest.raises(ValueError, match=r'img_resolution=\(1, 2, 3\) is neither the side of a '):
        configs.decode({**plain, 'img_resolution': [1, 2, 3]}, NetworkConfig)
    with pytest.raises(ValueError, match="config.img_resolution is '16', not of type int"):
        configs.decode({**plain, 'img_resolution': '16'}, NetworkConfig)
