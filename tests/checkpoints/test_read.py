"""Other people's checkpoints: read exactly, and refused in one line where they are damaged or
hostile."""

import collections
import json
import math
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import generate
from checkpoints.read import read_network, read_state
from limpid.denoiser import Conditioned, traits
from limpid.levels import IDDPMLevels
from limpid.preconditioning import IDDPM, VE, VP
from limpid.sampling import run
from limpid.schedules import VPSchedule
from limpid.seeds import StackedGenerator, latents_and_labels
from options.sampler import resolve_sampler
from tests.golden_weights import golden_tensor
from tests.training.test_training_loop import digits, run_steps, small_config  # noqa: F401 (digits is a fixture)
from training.networks import EDMPrecond, NetworkConfig, attention, build_network, iDDPMPrecond
from training.training_loop import prepare

GOLDEN = Path(__file__).parents[1] / 'golden'
PUBLISHED = GOLDEN / 'published-ddpmpp-edm.pkl'
ROOT = Path(__file__).parents[2]


def lively(net, seed=0):
    """A network whose every tensor is random, levels and filters excepted."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not name.endswith(('resample_filter', 'u')):
                tensor.copy_(torch.randn(tensor.shape, generator=generator)
                             / math.sqrt(max(tensor[0].numel(), 1)))
    return net.eval().requires_grad_(False)


def assert_same(net, other):
    a, b = net.state_dict(), other.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


# A snapshot as it was published.


@pytest.fixture(scope='module')
def published():
    return read_network(PUBLISHED)


def test_a_published_snapshot_has_its_weights_bit_for_bit(published, monkeypatch, tmp_path):
    """Its embedded source would write a file and leave, if anybody ran it."""
    monkeypatch.setenv('POISON_MARK', str(tmp_path / 'poison'))
    net, info = read_network(PUBLISHED)
    assert type(net) is EDMPrecond and not net.training
    checked = 0
    for name, tensor in net.state_dict().items():
        expected = golden_tensor(name, tuple(tensor.shape))
        if expected is not None:
            assert torch.equal(tensor, expected), name
            checked += 1
    assert checked == len(net.state_dict()) - 4 == 145   # two filters in each of `down` and `up`
    assert (net.img_resolution, net.img_channels, net.label_dim, net.use_fp16) == (16, 3, 4, False)
    assert (net.sigma_min, net.sigma_max, net.sigma_data) == (0, math.inf, 0.5)
    assert info['kind'] == 'EDM network snapshot' and info['weights'] == 'ema' and info[
        'nimg'] is None
    assert info['training']['loss'] == {'class': 'EDMLoss', 'P_mean': -1.2, 'P_std': 1.2,
                                        'sigma_data': 0.5}
    assert info['training']['data']['path'] == 'datasets/tiny16.zip'
    assert info['config'].model['channel_mult'] == [1,
                                                    2] and info['config'].model[
                                                        'channel_mult_emb'] == 4
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not (tmp_path / 'poison').exists()


CASES = json.loads(str(np.load(GOLDEN / 'published-ddpmpp-edm.npz')['__meta__']))['cases']


@pytest.mark.parametrize('case', CASES)
def test_it_generates_the_images_of_the_reference_implementation(published, tmp_path, case):
    golden, net = np.load(GOLDEN / 'published-ddpmpp-edm.npz'), published[0]
    arguments = [f'--network={PUBLISHED}', '--seeds=0-3', '--steps=5', '--device=cpu',
                 f'--outdir={tmp_path}', *CASES[case]]
    result = CliRunner().invoke(generate.main, arguments)
    assert result.exit_code == 0, result.output
    pixels = np.stack([np.asarray(PIL.Image.open(tmp_path / f'{seed:06d}.png'))
                       for seed in range(4)]).astype(int)
    difference = np.abs(pixels - golden[f'png:{case}'])
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3

    names = {'--S_churn': 'S_churn', '--S_min': 'S_min', '--S_max': 'S_max', '--S_noise': 'S_noise',
             '--solver': 'solver'}
    given = dict(argument.split('=') for argument in CASES[case])
    options = {names[k]: v if k == '--solver' else float(v) for k, v in given.items() if k in names}
    sampling = resolve_sampler({'num_steps': 5, **options}, traits(net))
    generator = StackedGenerator([0, 1, 2, 3], torch.device('cpu'))
    classes = [int(given['--class'])] * 4 if '--class' in given else None
    noise, labels = latents_and_labels(net, [0, 1, 2, 3], classes, generator)
    assert np.array_equal(noise.numpy(), golden['latents'])
    assert np.array_equal(labels.numpy(), golden[f'labels:{case}'])
    denoise = Conditioned(net, labels)
    with torch.no_grad():
        x = run(sampling.sampler, denoise, noise, denoise.levels(sampling.steps, 5),
                generator.randn_like)
    expected = golden[f'x:{case}']
    assert np.abs(x.numpy() - expected).max() <= 2e-5 * np.abs(expected).max()


# Files of the kinds that EDM writes, imitated: modules whose classes pickle as theirs do.


def persistent(cls, state):
    """An object that pickles as a call of _reconstruct_persistent_obj."""
    return Reduced('torch_utils.persistence', '_reconstruct_persistent_obj', (
        {'type': 'class', 'version': 6, 'module_src': 'raise SystemExit', 'class_name': cls,
         'state': state},))


class Reduced:
    """Pickles as module.name(*arguments), whatever that is."""

    def __init__(self, module, name, arguments):
        self.named, self.arguments = (module, name), arguments

    def __reduce__(self):
        return getattr(sys.modules[self.named[0]], self.named[1]), self.arguments


@pytest.fixture(autouse=True)
def pretended_module(monkeypatch):
    """pickle writes only names that can be imported."""
    def never(meta):
        raise AssertionError('what is read is not called')
    never.__module__, never.__qualname__ = 'torch_utils.persistence', '_reconstruct_persistent_obj'
    module = types.ModuleType('torch_utils.persistence')
    module._reconstruct_persistent_obj = never
    monkeypatch.setitem(sys.modules, 'torch_utils.persistence', module)


def imitate(module, **attributes):
    """A module of ours as EDM pickles its own."""
    children = {name: imitate(child) for name, child in module.named_children()}
    state = {'training': False, '_parameters': dict(module._parameters),
             '_buffers': dict(module._buffers), '_non_persistent_buffers_set': set(),
             '_forward_hooks': collections.OrderedDict(), '_modules': children, **attributes}
    return persistent(type(module).__name__, state)


def imitation(config, **attributes):
    """(the network, as EDM would pickle it)"""
    net = lively(build_network(config))
    fields = {'img_resolution': config.img_resolution, 'img_channels': config.img_channels,
              'label_dim': config.label_dim, 'use_fp16': False, 'sigma_min': net.sigma_min,
              'sigma_max': net.sigma_max, **attributes}
    module = imitate(net, **fields)
    model = module.arguments[0]['state']['_modules']['model'].arguments[0]['state']
    outputs = config.img_channels * (2 if isinstance(config.precond, IDDPM) else 1)
    model['_init_args'] = (config.img_resolution, config.img_channels, outputs)
    model['_init_kwargs'] = {'label_dim': config.label_dim, **config.model}
    return net, module


SMALL = {'model_channels': 16, 'channel_mult': [1, 2], 'num_blocks': 1, 'attn_resolutions': [4]}
VP_RANGE = VPSchedule().sigma(torch.tensor([1e-5, 1], dtype=torch.float64)).tolist()
U = IDDPMLevels().u
KINDS = {
    'vp': (NetworkConfig('SongUNet', VP(), *VP_RANGE, 8, 3, 5, model=SMALL),
           {'beta_d': 19.9, 'beta_min': 0.1, 'M': 1000, 'epsilon_t': 1e-5,
            'sigma_min': 0.00097656}),
    've': (NetworkConfig('SongUNet', VE(), 0.02, 100.0, 8, 1, model={
        **SMALL, 'embedding_type': 'fourier', 'encoder_type': 'residual', 'channel_mult_noise': 2,
        'resample_filter': [1, 3, 3, 1]}), {}),
    'iddpm': (NetworkConfig('DhariwalUNet', IDDPM(), U[999].item(), U[0].item(), 8, 3,
                            model={**SMALL, 'model_channels': 32}),
              {'C_1': 0.001, 'C_2': 0.008, 'M': 1000}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    config, attributes = KINDS[request.param]
    return config, *imitation(config, **attributes)


def test_snapshots_and_states_of_every_preconditioner(kind, tmp_path):
    config, net, module = kind
    snapshot = tmp_path / 'network-snapshot-002500.pkl'
    snapshot.write_bytes(pickle.dumps({
        'ema': module, 'loss_fn': persistent('VPLoss', {'beta_d': 19.9}), 'augment_pipe': None,
        'dataset_kwargs': {}}, 4))
    read, info = read_network(snapshot)
    assert type(read) is type(net) and (read.sigma_min,
                                        read.sigma_max) == (net.sigma_min, net.sigma_max)
    assert info['nimg'] == 2_500_000 and info['training'] == {'loss': {'class': 'VPLoss',
                                                                       'beta_d': 19.9}}
    assert_same(read, net)
    x, sigma = torch.randn(2, config.img_channels, 8, 8), torch.tensor([0.5, 3.0])
    assert torch.equal(read(x, sigma), net(x, sigma))

    state = tmp_path / 'training-state-002500.pt'
    torch.save({'net': module, 'optimizer_state': {
        'state': {0: {'step': torch.tensor(3.0), 'exp_avg': torch.zeros(4)}},
        'param_groups': [{'lr': 1e-3, 'params': [0]}]}}, state)
    read, info = read_network(state)
    assert info['kind'] == 'EDM training state' and info['weights'] == 'raw'
    assert_same(read, net)
    with pytest.raises(ValueError, match='^weights=ema: .* has raw$'):
        read_network(state, 'ema')


def test_an_edm_training_state_is_continued(digits, tmp_path):  # noqa: F811
    """Raw weights and Adam's moments from the state, the average from the snapshot beside it: the
    same next steps."""
    config = small_config(digits, dropout=0.0)
    state = run_steps(config, 4)
    state.nimg = 2_000_000

    def pretended(net):
        fields = {name: getattr(net, name) for name in ('img_resolution', 'img_channels',
                                                        'label_dim', 'sigma_min', 'sigma_max',
                                                        'sigma_data')}
        module = imitate(net, **fields, use_fp16=False)
        model = module.arguments[0]['state']['_modules']['model'].arguments[0]['state']
        model['_init_args'], model['_init_kwargs'] = (8, 1,
                                                      1), {'label_dim': 10, **config.network.model}
        return module

    path = tmp_path / 'training-state-002000.pt'
    torch.save({'net': pretended(state.net), 'optimizer_state': state.optimizer.state_dict()}, path)
    with pytest.raises(ValueError, match='it is in network-snapshot-002000.pkl, which is not '
                                         'beside it'):
        read_state(path)
    (tmp_path / 'network-snapshot-002000.pkl').write_bytes(
        pickle.dumps({'ema': pretended(state.ema.net)}, 4)
    )
    again, line = prepare(config, torch.device('cpu'), (str(path), read_state(path)))
    assert line == f'continuing from {path} at 2000.0 kimg' and again.nimg == 2_000_000
    for _ in range(2):
        run_steps(config, 1, state)
        run_steps(config, 1, again)
    assert_same(again.net, state.net)
    assert_same(again.ema.net, state.ema.net)
    with pytest.raises(ValueError, match='network.label_dim: 10, now 3'):
        prepare(replace(config, network=replace(config.network, label_dim=3)), torch.device('cpu'),
                (str(path), read_state(path)))
    torch.save({'net': pretended(state.net),
                'optimizer_state': {'state': {0: {'exp_avg': torch.zeros(2)}}, 'param_groups': []}},
               path)
    with pytest.raises(ValueError, match='exp_avg of parameter 0 in its optimizer_state is missing '
                                         'or misshapen'):
        read_state(path)


def test_the_levels_of_a_file_win(tmp_path):
    config, attributes = KINDS['iddpm']
    net, module = imitation(config, **attributes)
    net.u.mul_(1.0003)   # as far off as float32 made them
    path = tmp_path / 'net.pkl'
    path.write_bytes(pickle.dumps({'ema': module}, 4))
    read, _ = read_network(path)
    assert type(read) is iDDPMPrecond and torch.equal(read.u, net.u)
    assert (read.sigma_min, read.sigma_max) == (net.u[999].item(), net.u[0].item())


def with_state(module, change):
    """The same pickled network after `change` of (its attributes, its backbone's)."""
    state = module.arguments[0]['state']
    change(state, state['_modules']['model'].arguments[0]['state'])
    return module


MISFITS = {
    'a missing tensor': (
        lambda net, model: (
            model['_modules']['map_layer0'].arguments[0]['state']['_parameters'].pop('bias')
        ),
        'the tensor model.map_layer0.bias is missing',
    ),
    'a misshapen tensor': (
        lambda net, model: (
            model['_modules']['map_layer0']
            .arguments[0]['state']['_parameters']
            .update(bias=torch.zeros(7))
        ),
        'the tensor model.map_layer0.bias has shape [7], not [64]',
    ),
    'an unknown tensor': (
        lambda net, model: model['_parameters'].update(extra=torch.zeros(1)),
        'the tensor model.extra is unknown to this network',
    ),
    'whole numbers': (
        lambda net, model: (
            model['_modules']['map_layer0']
            .arguments[0]['state']['_parameters']
            .update(bias=torch.zeros(64, dtype=torch.int64))
        ),
        'model.map_layer0.bias holds no floating-point numbers',
    ),
    'no tensor': (
        lambda net, model: model['_parameters'].update(extra='x'),
        'model.extra is no tensor',
    ),
    'an unknown class': (
        lambda net, model: net['_modules'].update(model=persistent('Net2', model)),
        'model is of the class Net2, which is unknown here',
    ),
    'an unknown argument': (
        lambda net, model: model['_init_kwargs'].update(channel_mults=[1]),
        "SongUNet takes no argument 'channel_mults' (did you mean 'channel_mult'?)",
    ),
    'an argument of another kind': (
        lambda net, model: model['_init_kwargs'].update(channel_mult='12'),
        "channel_mult is '12', where [1, 2, 2, 2] is usual",
    ),
    'a giant': (
        lambda net, model: model['_init_kwargs'].update(model_channels=1 << 20),
        'the tensor model.map_label.weight has shape [16, 5], not [1048576, 5]',
    ),
    'endless blocks': (
        lambda net, model: model['_init_kwargs'].update(num_blocks=10**6),
        'it has 2000000 blocks, but only',
    ),
    'endless classes': (
        lambda net, model: net.update(label_dim=10**12),
        'label_dim is 1000000000000',
    ),
    'a missing attribute': (
        lambda net, model: net.pop('beta_d'),
        'the attribute beta_d of VPPrecond is missing or no number',
    ),
    'noise levels upside down': (
        lambda net, model: net.update(beta_d=-100.0),
        'its noise levels go from',
    ),
}


@pytest.mark.parametrize('misfit', MISFITS)
def test_what_does_not_fit_is_named(tmp_path, misfit):
    change, message = MISFITS[misfit]
    _, module = imitation(*KINDS['vp'][:1], **KINDS['vp'][1])
    path = tmp_path / 'net.pkl'
    path.write_bytes(pickle.dumps({'ema': with_state(module, change)}, 4))
    with pytest.raises(ValueError) as error:
        read_network(path)
    assert str(error.value).startswith(str(path)) and message in str(
        error.value) and '\n' not in str(error.value)


# ADM and Song et al., imitated from our own networks by tables written out for one small case of
# each.

ADM_MODULES = {   # ours: theirs, for two levels with one block each
    'map_layer0': 'time_embed.0', 'map_layer1': 'time_embed.2',
               'enc.64x64_conv': 'input_blocks.0.0',
    'out_norm': 'out.0', 'out_conv': 'out.2'}
ADM_BLOCKS = {    # ours: theirs, their attention
    'enc.64x64_block0': ('input_blocks.1.0', None), 'enc.32x32_down': ('input_blocks.2.0', None),
    'enc.32x32_block0': ('input_blocks.3.0', 'input_blocks.3.1'),
              'dec.32x32_in0': ('middle_block.0', 'middle_block.1'),
    'dec.32x32_in1': ('middle_block.2', None),
              'dec.32x32_block0': ('output_blocks.0.0', 'output_blocks.0.1'),
    'dec.32x32_block1': ('output_blocks.1.0', 'output_blocks.1.1'),
              'dec.64x64_up': ('output_blocks.1.2', None),
    'dec.64x64_block0': ('output_blocks.2.0', None),
              'dec.64x64_block1': ('output_blocks.3.0', None)}
ADM_PARTS = {'norm0': 'in_layers.0', 'conv0': 'in_layers.2', 'affine': 'emb_layers.1',
             'norm1': 'out_layers.0', 'conv1': 'out_layers.3', 'skip': 'skip_connection'}
ADM_ATTENTION = {'norm2': 'norm', 'qkv': 'qkv', 'proj': 'proj_out'}


def adm_imitation(net):
    """The state dict under the names, and in the order of attention, of the published file."""
    theirs = {}
    for name, tensor in net.model.state_dict().items():
        if name.endswith('resample_filter'):
            continue
        if name == 'map_label.weight':
            theirs['label_emb.weight'] = tensor.T
            continue
        module, leaf = name.rsplit('.', 1)
        if module in ADM_MODULES:
            theirs[f'{ADM_MODULES[module]}.{leaf}'] = tensor
            continue
        block, part = module.rsplit('.', 1)
        place, attention = ADM_BLOCKS[block]
        # our row (head · 64 + channel) · 3 + k is their row k · C + head · 64 + channel
        if part == 'qkv':
            C = len(tensor) // 3
            tensor = torch.stack([tensor[(head * 64 + channel) * 3 + k] for k in range(3)
                                  for head in range(C // 64)
                                  for channel in range(64)])
        if part in ('qkv', 'proj') and leaf == 'weight':
            tensor = tensor[..., 0]
        theirs[f'{attention}.{ADM_ATTENTION[part]}.{leaf}' if part in ADM_ATTENTION
               else f'{place}.{ADM_PARTS[part]}.{leaf}'] = tensor
    return theirs


@pytest.fixture(scope='module')
def adm():
    config = NetworkConfig('DhariwalUNet', IDDPM(), U[999].item(), U[0].item(), 64, 3, 10, model={
        'model_channels': 128, 'channel_mult': [1, 1], 'num_blocks': 1, 'attn_resolutions': [32]})
    return lively(build_network(config))


def test_adm(adm, tmp_path):
    path = tmp_path / '64x64_diffusion.pt'
    torch.save(adm_imitation(adm), path)
    net, info = read_network(path)
    assert type(net) is iDDPMPrecond and info['kind'] == 'ADM state dict' and info[
        'config'].label_dim == 10
    assert_same(net, adm)
    # the old stream
    torch.save(collections.OrderedDict(adm_imitation(adm)), path,
               _use_new_zipfile_serialization=False)
    assert_same(read_network(path)[0], adm)


ADM_MISFITS = {
    'a missing tensor': (
        lambda t: t.pop('middle_block.1.qkv.bias'),
        'the tensor middle_block.1.qkv.bias is missing',
    ),
    'an unknown tensor': (
        lambda t: t.update(extra=torch.zeros(1)),
        'the tensor extra is unknown to this network',
    ),
    'no learned variance': (
        lambda t: t.update({'out.2.weight': t['out.2.weight'][:3]}),
        'out.2.weight has 3 outputs, not 6',
    ),
    'other attention': (
        lambda t: t.update({'input_blocks.1.1.qkv.weight': torch.zeros(1)}),
        'of the 2 levels of this one, [0, 1] attend',
    ),
    'a misshapen tensor': (
        lambda t: t.update({'out.0.bias': torch.zeros(7)}),
        'the tensor model.out_norm.bias has shape [7], not [128]',
    ),
    'no block': (
        lambda t: t.pop('input_blocks.1.0.out_layers.3.weight'),
        'input_blocks.1.0.out_layers.3.weight is missing',
    ),
}


@pytest.mark.parametrize('misfit', ADM_MISFITS)
def test_adm_that_does_not_fit(adm, tmp_path, misfit):
    change, message = ADM_MISFITS[misfit]
    theirs = adm_imitation(adm)
    change(theirs)
    torch.save(theirs, tmp_path / 'net.pt')
    with pytest.raises(ValueError) as error:
        read_network(tmp_path / 'net.pt')
    assert str(error.value).startswith(f'{tmp_path}/net.pt: ') and message in str(error.value)


SONG_ORDER = [   # ours, and what theirs is called, for two levels with one block each
    ('map_layer0', ''), ('map_layer1', ''), ('enc.32x32_conv', ''), ('enc.32x32_block0', 'block'),
              ('enc.16x16_down', 'block'),
    ('enc.16x16_block0', 'block'), ('enc.16x16_block0', 'attention'), ('dec.16x16_in0', 'block'),
              ('dec.16x16_in0', 'attention'),
    ('dec.16x16_in1', 'block'), ('dec.16x16_block0', 'block'), ('dec.16x16_block1', 'block'),
              ('dec.16x16_block1', 'attention'),
    ('dec.32x32_up', 'block'), ('dec.32x32_block0', 'block'), ('dec.32x32_block1', 'block'),
              ('dec.32x32_aux_norm', ''),
    ('dec.32x32_aux_conv', '')]
SONG_PARTS = {'norm0': 'GroupNorm_0', 'conv0': 'Conv_0', 'affine': 'Dense_0',
              'norm1': 'GroupNorm_1', 'conv1': 'Conv_1', 'skip': 'Conv_2'}


def song_imitation(net):
    """all_modules.* in their order."""
    ours, theirs, order = net.model.state_dict(), {}, list(SONG_ORDER)
    if 'map_noise.freqs' in ours:
        order.insert(0, ('map_noise', 'fourier'))
        order.insert(order.index(('enc.16x16_down', 'block')) + 1,
                     ('enc.16x16_aux_residual', 'pyramid'))
    for i, (name, kind) in enumerate(order):
        place = f'module.all_modules.{i}'
        if kind == 'fourier':
            theirs[f'{place}.W'] = ours['map_noise.freqs']
        elif kind == 'attention':
            theirs[f'{place}.GroupNorm_0.weight'], theirs[f'{place}.GroupNorm_0.bias'] = (
                ours[f'{name}.norm2.{leaf}'] for leaf in ('weight', 'bias'))
            for k in range(4):
                part, rows = ('qkv', slice(k, None, 3)) if k < 3 else ('proj', slice(None))
                theirs[f'{place}.NIN_{k}.W'] = ours[f'{name}.{part}.weight'][
                    rows, :, 0, 0
                ].T.contiguous()
                theirs[f'{place}.NIN_{k}.b'] = ours[f'{name}.{part}.bias'][rows].contiguous()
        else:
            parts = SONG_PARTS if kind == 'block' else {'': 'Conv2d_0' if kind == 'pyramid' else ''}
            for part, their_part in parts.items():
                for leaf in ('weight', 'bias'):
                    own = '.'.join(filter(None, [name, part, leaf]))
                    if own in ours:
                        theirs['.'.join(filter(None, [place, their_part, leaf]))] = ours[own]
    return theirs


def song_checkpoint(net):
    averages, sigmas = song_imitation(net), torch.linspace(math.log(50), math.log(0.01), 1000).exp()
    raw = {name: torch.randn_like(tensor) if not name.endswith('.W') or 'NIN' in name else tensor
           for name, tensor in averages.items()}
    trained = [tensor for name, tensor in averages.items() if not name.endswith('.all_modules.0.W')]
    return {'optimizer': {'state': {0: {'step': 7, 'exp_avg': torch.zeros(3)}}, 'param_groups': []},
            'step': 600000, 'model': collections.OrderedDict(**{'module.sigmas': sigmas}, **raw),
            'ema': {'decay': 0.9999, 'num_updates': 600000, 'shadow_params': trained}}, raw


SONG = {'model_channels': 16, 'channel_mult': [1, 2], 'num_blocks': 1, 'attn_resolutions': [16]}
SONG_KINDS = {
    'DDPM++': NetworkConfig('SongUNet', VP(), *VP_RANGE, 32, 3, model=SONG),
    'NCSN++': NetworkConfig('SongUNet', VE(), 0.02, 100.0, 32, 3, model={
        **SONG, 'embedding_type': 'fourier', 'encoder_type': 'residual', 'channel_mult_noise': 2,
        'resample_filter': [1, 3, 3, 1]}),
}


@pytest.mark.parametrize('name', SONG_KINDS)
@pytest.mark.parametrize('zipped', [True, False])
def test_song(tmp_path, name, zipped):
    net, path = lively(build_network(SONG_KINDS[name])), tmp_path / 'checkpoint_8.pth'
    contents, raw = song_checkpoint(net)
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    read, info = read_network(path)
    assert type(read) is type(net) and info['kind'] == f'{name} checkpoint' and info[
        'training'] == {
        'step': 600000}
    assert (read.sigma_min, read.sigma_max) == (net.sigma_min, net.sigma_max)
    assert_same(read, net)
    x, sigma = torch.randn(1, 3, 32, 32), torch.tensor(0.7)
    assert torch.equal(read(x, sigma), net(x, sigma))
    trained, _ = read_network(path, 'raw')
    assert torch.equal(trained.model.map_layer0.weight,
                       raw[f'module.all_modules.{int(name == "NCSN++")}.weight'])


def test_songs_attention_is_what_its_matrices_say():
    """q = h W_q + b_q and so on over channels, softmax(q·k/√C), output W_3, in the rows that are
    ours."""
    net = lively(build_network(SONG_KINDS['DDPM++']))
    block, theirs = net.model.dec['16x16_in0'], song_imitation(net)
    x = torch.randn(1, 32, 4, 4)
    W = [theirs[f'module.all_modules.8.NIN_{k}.W'] for k in range(4)]
    b = [theirs[f'module.all_modules.8.NIN_{k}.b'] for k in range(4)]
    pixels = block.norm2(x).flatten(2).transpose(1, 2)[0]
    q, k, v = (pixels @ W[i] + b[i] for i in range(3))
    expected = (torch.softmax(q @ k.T / math.sqrt(32), dim=1) @ v @ W[3] + b[3]).T.reshape(
        1, 32, 4, 4
    )
    torch.testing.assert_close(block.proj(attention(block.qkv(block.norm2(x)), 1)), expected)


SONG_MISFITS = {
    'too few averages': (
        lambda c: c['ema']['shadow_params'].pop(),
        'ema.shadow_params is no list of ',
    ),
    'averages in another order': (
        lambda c: c['ema']['shadow_params'].reverse(),
        'ema.shadow_params does not fit the tensor all_modules.0.weight',
    ),
    'a module too many': (
        lambda c: c['model'].update({'module.all_modules.99.weight': torch.zeros(1)}),
        'ema.shadow_params is no list of',
    ),
    'another architecture': (
        lambda c: (
            c['model'].pop('module.all_modules.3.GroupNorm_1.weight'),
            c['ema']['shadow_params'].pop(12),
        ),
        'only DDPM++ cont. (VP) and NCSN++ cont. (VE) are known here, and this is neither',
    ),
}


@pytest.mark.parametrize('misfit', SONG_MISFITS)
def test_song_that_does_not_fit(tmp_path, misfit):
    change, message = SONG_MISFITS[misfit]
    contents, _ = song_checkpoint(lively(build_network(SONG_KINDS['DDPM++'])))
    change(contents)
    torch.save(contents, tmp_path / 'net.pth')
    with pytest.raises(ValueError) as error:
        read_network(tmp_path / 'net.pth')
    assert str(error.value).startswith(f'{tmp_path}/net.pth: ') and message in str(error.value)
