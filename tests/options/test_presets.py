"""options/presets.py: what each preset resolves to, beside Tables 2, 7 and 8 of the paper."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

import train
from options import training as options
from options.presets import GFLOP, PRESETS, Preset, table
from options.sampler import PRESETS as SAMPLER_PRESETS
from options.training import data_config, resolve
from training.networks import build_network
from training.state import differences
from training.step import StepFunction
from training.training_loop import build

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')
COUNTS = json.loads((ROOT / 'tests/golden/configs_counts.json').read_text())


def params_of(*arguments):
    context = train.main.make_context('train.py', ['--data=x', *arguments])
    return context.params


def config_of(*arguments, resolution, label_dim, channels=3):
    given = params_of(*arguments)
    data = SimpleNamespace(image_shape=[channels, resolution, resolution], num_channels=channels,
                           label_dim=label_dim if given['cond'] else 0)
    return resolve(given, data_config(given), data)


def of_preset(name):
    return config_of(f'--preset={name}', resolution=PRESETS[name].resolution,
                     label_dim=1000 if 'imagenet' in name else 10)


# Table 7, as columns of a run; what a configuration does not change is that of the one above.
# precond, noise, weighting, channels, batch, lr, ramp-up, half-life, clip, dropout, augment, xflip
VP, VE, EDM = 'VP UniformTime', 'VE LogUniform', 'EDM LogNormal'
BY_SIGMA, BY_C_OUT = 'InverseVariance', 'InverseCOut'
CIFAR_VP = {
    'A': (VP, BY_SIGMA, [1, 2, 2, 2], 128, 2e-4, .64e6, .89e6, 1.0, .10, None, True),
    'B': (VP, BY_SIGMA, [1, 2, 2, 2], 512, 1e-3, 10e6, .5e6, None, .13, None, True),
    'C': (VP, BY_SIGMA, [2, 2, 2], 512, 1e-3, 10e6, .5e6, None, .13, None, True),
    'D': ('EDM UniformTime', BY_SIGMA, [2, 2, 2], 512, 1e-3, 10e6, .5e6, None, .13, None, True),
    'E': (EDM, BY_C_OUT, [2, 2, 2], 512, 1e-3, 10e6, .5e6, None, .13, None, True),
    'F': (EDM, BY_C_OUT, [2, 2, 2], 512, 1e-3, 10e6, .5e6, None, .13, .12, False),
}
FFHQ_VE = {
    'A': (VE, BY_SIGMA, [1, 1, 2, 2, 2], 128, 2e-4, .64e6, .09e6, 1.0, .10, None, True),
    'B': (VE, BY_SIGMA, [1, 1, 2, 2, 2], 256, 2e-4, 10e6, .5e6, None, .05, None, True),
    'C': (VE, BY_SIGMA, [1, 2, 2, 2], 256, 2e-4, 10e6, .5e6, None, .05, None, True),
    'D': ('EDM LogUniform', BY_SIGMA, [1, 2, 2, 2], 256, 2e-4, 10e6, .5e6, None, .05, None, True),
    'E': (EDM, BY_C_OUT, [1, 2, 2, 2], 256, 2e-4, 10e6, .5e6, None, .05, None, True),
    'F': (EDM, BY_C_OUT, [1, 2, 2, 2], 256, 2e-4, 10e6, .5e6, None, .05, .15, False),
}


def expected(name):
    """(row, arch, label_dim, total_nimg, precision, loss scaling) of a preset."""
    if name == 'imagenet64-cond-adm-E':
        return ((EDM, BY_C_OUT, [1, 2, 3, 4], 4096, 1e-4, 10e6, 50e6, None, .1, None, False),
                'adm', 1000, 2.5e9, 'fp16', 100.0)
    if name == 'imagenet64-cond-adm-A':
        return (('IDDPM UniformLevel', BY_SIGMA, [1, 2, 3, 4], 2048, 3e-4, 0, 14.19e6, None, .1,
                 None, False), 'adm', 1000, 1.106e9, 'fp32', 1.0)
    data, column, letter = re.fullmatch(r'(.*)-(vp|ve)-([A-F])', name).groups()
    small = data.startswith('cifar10')
    row = list((CIFAR_VP if small else FFHQ_VE)[letter])
    if small != (column == 'vp'):   # the other column, with the same numbers
        row[0] = {'VP UniformTime': VE, 'VE LogUniform': VP, 'EDM UniformTime': 'EDM LogUniform',
                  'EDM LogUniform': 'EDM UniformTime'}.get(row[0], row[0])
        if letter == 'A':
            row[6] = {'vp': .89e6, 've': .09e6}[column]
    if data.startswith('afhqv2') and letter != 'A':
        row[8] = .25
    total = {'cifar10-uncond-vp-A': 51.2e6, 'cifar10-uncond-ve-A': 153.6e6}.get(name, 200e6)
    return (tuple(row), {'vp': 'ddpmpp', 've': 'ncsnpp'}[column],
            10 if data == 'cifar10-cond' else 0, total, 'fp32', 1.0)


def test_each_preset_resolves_to_the_numbers_of_table_7(monkeypatch):
    monkeypatch.setattr(options, 'build_network', lambda network: None)   # seconds, for all
    assert len(PRESETS) == 4 * 2 * 6 + 2
    for name, preset in PRESETS.items():
        config = of_preset(name)
        network, loss = config.network, config.loss
        row = (f'{type(network.precond).__name__} {type(loss.noise_distribution).__name__}',
               type(loss.weighting).__name__, network.model['channel_mult'], config.batch_size,
               config.optimizer.lr, config.optimizer.lr_rampup_nimg,
               config.averages[0].halflife_nimg, config.optimizer.clip, network.model['dropout'],
               config.augment and config.augment.p, config.data.xflip)
        assert (row, preset.options['arch'], network.label_dim, config.total_nimg,
                network.precision, config.loss_scaling) == expected(name), name
        assert len(config.averages) == 1 and config.averages[0].rampup_ratio == .05, name
        assert config.optimizer.betas == (.9, .999) and config.optimizer.weight_decay == 0, name
        assert type(loss).__name__ == ('HybridLoss' if name == 'imagenet64-cond-adm-A'
                                       else 'DenoisingLoss'), name
        assert config.label_dropout == 0 and config.snapshot_nimg == 2_500_000, name


def test_presets_carry_the_results_of_table_2_and_the_samplers():
    """FIDs of every corner, and the noise levels at which VE's runs A to D stop."""
    assert [PRESETS[name].fid for name in (
        'cifar10-cond-vp-A', 'cifar10-cond-ve-F', 'cifar10-uncond-ve-D', 'ffhq64-uncond-ve-C',
        'afhqv2-64-uncond-vp-E', 'imagenet64-cond-adm-E')] == [2.48, 1.79, 3.10, 41.62, 2.29, 2.23]
    for name, preset in PRESETS.items():
        assert preset.sampler.startswith(f'--steps={18 if preset.resolution == 32 else 40}')
        stops = re.search('-ve-[A-D]', name) is not None
        assert preset.sampler.endswith(' --sigma_min=0.02') == stops, name
        if preset.stochastic:
            assert preset.stochastic.removeprefix('--preset=') in SAMPLER_PRESETS
    assert [name for name, preset in PRESETS.items() if preset.pretrained] == [
        'cifar10-uncond-vp-A', 'cifar10-uncond-ve-A', 'imagenet64-cond-adm-A']


@pytest.mark.parametrize(('name', 'count'), [
    ('cifar10-cond-vp-F', COUNTS['cifar10-cond-ddpmpp-edm']['num_params']),
    ('cifar10-uncond-ve-F', COUNTS['cifar10-uncond-ncsnpp-edm']['num_params']),
    ('cifar10-uncond-vp-A', COUNTS['cifar10-configA-ddpmpp']['num_params']),
    ('cifar10-uncond-ve-B', COUNTS['cifar10-configA-ncsnpp']['num_params']),
    ('cifar10-uncond-vp-C', 55_732_739), ('cifar10-uncond-ve-D', 56_395_523),
    ('ffhq64-uncond-vp-A', 66_715_267), ('afhqv2-64-uncond-ve-B', 67_817_219),
    ('ffhq64-uncond-vp-F', COUNTS['ffhq64-ddpmpp']['num_params']),
    ('afhqv2-64-uncond-ve-F', COUNTS['ffhq64-ncsnpp']['num_params']),
    ('imagenet64-cond-adm-A', COUNTS['imagenet64-cond-adm-iddpm']['num_params']),
    ('imagenet64-cond-adm-E', COUNTS['imagenet64-cond-adm-edm']['num_params'])])
def test_parameter_counts(monkeypatch, name, count):
    monkeypatch.setattr(options, 'build_network', lambda network: None)
    config = of_preset(name)
    with torch.device('meta'):
        net = build_network(config.network)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_the_cost_is_that_of_the_network_times_its_images():
    config = of_preset('cifar10-uncond-vp-A')
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        build_network(config.network)(torch.zeros(1, 3, 32, 32), torch.ones(1))
    counted = counter.get_total_flops()
    assert counted == pytest.approx(GFLOP['ddpmpp', 32, (1, 2, 2, 2)] * 1e9, rel=2e-3)
    preset = PRESETS['cifar10-uncond-vp-A']
    assert preset.flop() == pytest.approx(3 * counted * 51.2e6, rel=2e-3)
    assert preset.gpu_days() == pytest.approx(preset.flop() / 1e14 / 86400)


@pytest.mark.parametrize('name', [
    'cifar10-cond-vp-A', 'cifar10-cond-ve-A', 'cifar10-uncond-vp-D', 'cifar10-uncond-ve-D',
    'ffhq64-uncond-vp-E', 'afhqv2-64-uncond-ve-F', 'imagenet64-cond-adm-A'])
def test_each_network_and_loss_takes_a_step(name):
    """At a tiny size: the loss is finite, and the weights move behind ADM's zeros too."""
    config = config_of(f'--preset={name}', '--cbase=32', '--cres=1,1', '--blocks=1', '--attn=4',
                       '--batch=4', '--lr-rampup=0', resolution=8, label_dim=3)
    state = build(config, CPU)
    before = {key: value.clone() for key, value in state.net.state_dict().items()}
    step, images = StepFunction(config, state, CPU), torch.arange(4 * 192, dtype=torch.uint8)
    labels = torch.eye(3)[[0, 1, 2, 0]] if config.network.label_dim else torch.zeros(4, 0)
    for _ in range(4):   # the first has the learning rate 0, and two pass through ADM's zeros
        step(images.reshape(4, 3, 8, 8), labels)
    assert state.nimg == 16 and state.bad_steps == 0
    assert all(bool(losses.isfinite().all()) for losses, _ in step.losses)
    moved = [key for key, value in state.net.named_parameters()
             if not torch.equal(value, before[key])]
    assert len(moved) > .5 * len(before)


def test_options_override_and_a_dry_run_says_what_differs(tmp_path):
    from tests.commands.test_fid import png, smooth_images

    for i, image in enumerate(smooth_images(3, size=16)):
        (tmp_path / f'{i}.png').write_bytes(png(image))
    arguments = ['--preset=cifar10-uncond-ve-A', f'--data={tmp_path}', f'--outdir={tmp_path}/r',
                 '--lr=0.0003', '--batch=128', '--ema=0.9,0.09', '--betas=0.9,0.99', '-n']
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    resolved = json.loads(result.stdout)
    assert resolved['optimizer']['lr'] == 3e-4 and resolved['optimizer']['clip'] == 1
    assert resolved['network']['precond']['type'] == 'precond/ve'
    start = 'Note: --preset=cifar10-uncond-ve-A'
    assert result.stderr.splitlines() == [
        f'{start} has the FID 3.77 in the paper, by generate.py --steps=18 --sigma_min=0.02, and '
        f'2.23 by --preset=cifar10-ve',
        f'{start} takes from elsewhere than the paper: --ema-rampup, --ema, --duration',
        f'{start} is changed: --lr=0.0003, not 0.0002',
        f'{start} is changed: --ema=0.9,0.09, not 0.09',
        f'{start} is changed: --betas=0.9,0.99, not 0.9,0.999',
        f'{start} is changed: images of 3 x 16 pixels, not 3 x 32']


def test_a_preset_leaves_the_defaults_of_the_next_command_alone():
    assert params_of('--preset=imagenet64-cond-adm-E')['batch'] == 4096
    assert params_of()['batch'] == 512
    # F for CIFAR-10 is what train.py does without options
    without, preset = params_of(), params_of('--preset=cifar10-uncond-vp-F')
    assert {name for name in without if without[name] != preset[name]} == {'preset', 'cres'}


def test_the_list_is_the_table_of_the_documentation():
    result = CliRunner().invoke(train.main, ['--preset=list'])
    assert result.exit_code == 0 and result.output == table() + '\n'
    assert table() in (ROOT / 'docs/presets.md').read_text()
    assert len(result.output.splitlines()) == 2 + len(PRESETS)


def test_an_unknown_preset_is_one_line():
    result = CliRunner().invoke(train.main, ['--preset=cifar10-cond-vp-G', '--data=x'])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == (
        "Error: Invalid value for '--preset': 'cifar10-cond-vp-G' is no preset: did you mean "
        'cifar10-cond-vp-F? --preset=list lists them')
    assert isinstance(PRESETS['cifar10-cond-vp-F'], Preset)


@pytest.mark.parametrize(('argument', 'message'), [
    ('--sigma_min=1', '--sigma_min would have no effect with LogNormal'),
    ('--betas=0.9', "'0.9' is not two numbers from 0 to below 1, such as 0.9,0.999"),
    ('--betas=0.9,1', "'0.9,1' is not two numbers from 0 to below 1, such as 0.9,0.999")])
def test_constants_that_do_not_fit(argument, message):
    with pytest.raises(Exception, match=re.escape(message)):
        config_of(argument, resolution=8, label_dim=0)


def test_the_range_of_ve_and_the_decays(monkeypatch):
    monkeypatch.setattr(options, 'build_network', lambda network: None)
    config = config_of('--precond=ve', '--sigma_min=0.1', '--sigma_max=50', '--weight-decay=0.05',
                       '--lr-decay=2', '--adam-eps=1e-6', resolution=32, label_dim=0)
    assert (config.network.sigma_min, config.network.sigma_max) == pytest.approx((.1, 50))
    assert config.optimizer.weight_decay == .05 and config.optimizer.eps == 1e-6
    assert config.optimizer.lr_decay_nimg == 2e6
    with pytest.raises(ValueError, match='--sigma_min=50 is not below --sigma_max=10'):
        config_of('--precond=ve', '--sigma_min=50', '--sigma_max=10', resolution=32, label_dim=0)
    # a run that was stored before there were decays is one without them
    from training import config as configs
    stored = configs.encode(config)
    del stored['optimizer']['weight_decay'], stored['optimizer']['lr_decay_nimg']
    assert differences(stored, config) == ['optimizer.lr_decay_nimg: None, now 2000000.0',
                                           'optimizer.weight_decay: 0.0, now 0.05']
