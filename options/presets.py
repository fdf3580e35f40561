"""The training runs of the EDM paper's Table 2, as values of the options of train.py.

`python train.py --preset=list` prints them as the table of docs/presets.md.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource

from training.networks import NetworkConfig

# Table 2: what each configuration changes of the one before it, with the numbers of Table 7. At 64
# pixels, B has other numbers. COLUMN stands for vp or ve, None for the default of train.py.
COLUMN = 'vp or ve'
CHANGES: dict[str, dict[str, Any]] = {
    'A': {'precond': COLUMN, 'cres': [1, 2, 2, 2], 'duration': 200.0, 'batch': 128, 'lr': 2e-4,
          'lr_rampup': 0.64, 'ema': [0.89], 'clip': 1.0, 'dropout': 0.1, 'augment': 0.0,
          'xflip': True},
    'B': {'batch': 512, 'lr': 1e-3, 'lr_rampup': 10.0, 'ema': [0.5], 'clip': None, 'dropout': 0.13},
    'C': {'cres': [2, 2, 2]},
    'D': {'precond': 'edm', 'noise': COLUMN, 'weighting': 'inverse-variance'},
    'E': {'noise': None, 'weighting': None},
    'F': {'augment': 0.12, 'xflip': False},
}
AT_64: dict[str, dict[str, Any]] = {
    'A': {'cres': [1, 1, 2, 2, 2]},
    'B': {'batch': 256, 'lr': 2e-4},
    'C': {'cres': [1, 2, 2, 2]},
    'F': {'augment': 0.15},
}
ARCHITECTURE = {'vp': 'ddpmpp', 've': 'ncsnpp'}

# Options whose values the paper does not say, by configuration; `at least` these.
INFERRED = {'A': ('ema_rampup',), 'F': ('ema_rampup',),
            **dict.fromkeys('BCDE', ('ema_rampup', 'xflip'))}

# Table 2: the FID of A to F, VP and VE.
FID = {
    'cifar10-cond': ((2.48, 3.11), (2.18, 2.48), (2.08, 2.52), (2.09, 2.64), (1.88, 1.86),
                     (1.79, 1.79)),
    'cifar10-uncond': ((3.01, 3.77), (2.51, 2.94), (2.31, 2.83), (2.29, 3.10), (2.05, 1.99),
                       (1.97, 1.98)),
    'ffhq64-uncond': ((3.39, 25.95), (3.13, 22.53), (2.78, 41.62), (2.94, 3.39), (2.60, 2.81),
                      (2.39, 2.53)),
    'afhqv2-64-uncond': ((2.58, 18.52), (2.43, 23.12), (2.54, 15.04), (2.79, 3.81), (2.29, 2.28),
                         (1.96, 2.16)),
}
# Dropout from B on, Table 7.
DROPOUT = {'ffhq64-uncond': 0.05, 'afhqv2-64-uncond': 0.25}

# 10^9 floating-point operations of one evaluation, counted by torch.utils.flop_counter (a product
# and a sum are two), by architecture, pixels and channels per resolution.
GFLOP = {
    ('ddpmpp', 32, (1, 2, 2, 2)): 21.7, ('ddpmpp', 32, (2, 2, 2)): 42.4,
    ('ncsnpp', 32, (1, 2, 2, 2)): 22.0, ('ncsnpp', 32, (2, 2, 2)): 42.8,
    ('ddpmpp', 64, (1, 1, 2, 2, 2)): 54.0, ('ddpmpp', 64, (1, 2, 2, 2)): 83.7,
    ('ncsnpp', 64, (1, 1, 2, 2, 2)): 54.8, ('ncsnpp', 64, (1, 2, 2, 2)): 84.9,
    ('adm', 64, (1, 2, 3, 4)): 219.3,
}
RATE = 1e14   # operations a second: about a third of what an A100 has at most in bfloat16
PER_IMAGE = 3   # evaluations that a forward and a backward pass cost


@dataclass(frozen=True)
class Preset:
    """A training run of the paper, with its FID and the sampling that the FID was measured with."""
    options: Mapping[str, Any]   # of train.py, by the names of their parameters
    resolution: int              # pixels of the data set
    fid: float                   # the lowest of the snapshots, each the lowest of three
    sampler: str                 # the options of generate.py for that FID
    inferred: tuple[str, ...]    # names in `options`, or of defaults, that the paper does not say
    fid_stochastic: float | None = None
    stochastic: str = ''         # the options of generate.py for that one
    gpus: int | None = None      # as in the paper; None: it does not say
    pretrained: bool = False     # others trained it before the paper

    def flop(self) -> float:
        """Estimate the operations of the run: three evaluations for each image."""
        arch, cres = self.options['arch'], tuple(self.options['cres'])
        return (PER_IMAGE * GFLOP[arch, self.resolution, cres] * 1e9
                * self.options['duration'] * 1e6)

    def gpu_days(self) -> float:
        """Estimate the time on one GPU that does RATE operations a second."""
        return self.flop() / RATE / 86400


def _table_2() -> Iterator[tuple[str, Preset]]:
    for name, values in FID.items():
        for j, column in enumerate(ARCHITECTURE):
            options: dict[str, Any] = {'cond': name == 'cifar10-cond', 'arch': ARCHITECTURE[column]}
            resolution = 32 if name.startswith('cifar10') else 64
            for letter, row in zip(CHANGES, values, strict=True):
                options = {**options, **_changes(letter, column, name, resolution)}
                yield f'{name}-{column}-{letter}', Preset(
                    {key: value for key, value in options.items() if value is not None},
                    resolution, row[j], _sampler(column, letter, resolution),
                    INFERRED[letter] + (('ema',) if (letter, column) == ('A', 've') else ()),
                    gpus=4 if letter == 'A' else 8)


def _changes(letter: str, column: str, name: str, resolution: int) -> dict[str, Any]:
    """Return what a configuration of Table 2 changes of the one before it."""
    changes = {**CHANGES[letter], **(AT_64.get(letter, {}) if resolution == 64 else {})}
    if letter == 'B' and name in DROPOUT:
        changes['dropout'] = DROPOUT[name]
    if letter == 'A' and column == 've':
        # Table 7 prints 0.9. Score-SDE, which A repeats, keeps 0.999 a step of 128 images: 0.0887.
        changes['ema'] = [0.09]
    return {key: column if value == COLUMN else value for key, value in changes.items()}


def _sampler(column: str, letter: str, resolution: int) -> str:
    """Return the deterministic sampler of Table 2: 35 evaluations at 32 pixels, 79 at 64."""
    options = '--steps=18' if resolution == 32 else '--steps=40'
    # Appendix C.2.5: what was trained on VE's noise levels stops where these do.
    return f'{options} --sigma_min=0.02' if column == 've' and letter in 'ABCD' else options


_IMAGENET = {'cond': True, 'arch': 'adm', 'cres': [1, 2, 3, 4], 'dropout': 0.1, 'augment': 0.0,
             'xflip': False}
PRESETS: dict[str, Preset] = dict(_table_2())
for _column, _duration, _fid in (('vp', 51.2, 2.27), ('ve', 153.6, 2.23)):
    _name = f'cifar10-uncond-{_column}-A'
    PRESETS[_name] = replace(
        PRESETS[_name], options={**PRESETS[_name].options, 'duration': _duration},
        inferred=(*PRESETS[_name].inferred, 'duration'), pretrained=True, gpus=None,
        fid_stochastic=_fid, stochastic=f'--preset=cifar10-{_column}')
PRESETS['imagenet64-cond-adm-A'] = Preset(
    {**_IMAGENET, 'precond': 'iddpm', 'duration': 1106.0, 'batch': 2048, 'lr': 3e-4,
     'lr_rampup': 0.0, 'ema': [14.19]},
    64, 2.64, '--steps=40', ('duration', 'batch', 'lr', 'lr_rampup', 'ema', 'ema_rampup'),
    1.55, '--preset=imagenet64-adm', pretrained=True)
PRESETS['imagenet64-cond-adm-E'] = Preset(
    {**_IMAGENET, 'precond': 'edm', 'duration': 2500.0, 'batch': 4096, 'lr': 1e-4,
     'lr_rampup': 10.0, 'ema': [50.0], 'fp16': True, 'ls': 100.0},
    64, 2.23, '--steps=40', ('ema_rampup',), 1.36, '--preset=imagenet64-edm', gpus=32)

# What a preset says nothing of: files, reports, speed. Everything else departs from it.
APART = {'Files', 'Reports and files written', 'Interruptions and numerical trouble',
         'Evaluation while training', 'Other options'}
SPEED = {'batch_gpu', 'compile', 'checkpointing', 'shard', 'bench', 'cache', 'workers', 'device'}


def command_options(preset: Preset) -> str:
    """Return the preset as options of train.py."""
    return ' '.join(f'--{name.replace("_", "-")}={_written(value)}'
                    for name, value in preset.options.items())


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return ','.join(map(_written, value))
    if isinstance(value, bool):
        return str(int(value))
    return f'{value:g}' if isinstance(value, float) else str(value)


def table() -> str:
    """Return the presets as a table in Markdown, two samplers where the paper has two."""
    lines = ['| preset | options of train.py | inferred | FID | options of generate.py | 10¹⁸ FLOP '
             '| days of one GPU |', '| --- | --- | --- | --- | --- | --- | --- |']
    for name, preset in PRESETS.items():
        fids, samplers = f'{preset.fid:.2f}', f'`{preset.sampler}`'
        if preset.fid_stochastic is not None:
            fids += f'; {preset.fid_stochastic:.2f}'
            samplers += f'; `{preset.stochastic}`'
        inferred = ', '.join(option.replace('_', '-') for option in preset.inferred)
        lines.append(f'| `{name}`{"*" if preset.pretrained else ""} | '
                     f'`{command_options(preset)}` | {inferred} | {fids} | {samplers} | '
                     f'{preset.flop() / 1e18:.3g} | {preset.gpu_days():.2g} |')
    return '\n'.join(lines)


class PresetName(click.ParamType):   # type: ignore[type-arg]
    """The name of a preset, or `list`."""
    name = 'NAME'

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if value in PRESETS or value == 'list' or not isinstance(value, str):
            return value
        near = difflib.get_close_matches(value, PRESETS, n=1)
        hint = f'did you mean {near[0]}? ' if near else ''
        self.fail(f'{value!r} is no preset: {hint}--preset=list lists them', param, ctx)


def apply_preset(ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    """Make the values of a preset the defaults of the command; `list` prints all and ends it."""
    if name == 'list':
        click.echo(table())
        ctx.exit()
    if name is not None:
        ctx.default_map = dict(PRESETS[name].options)
    return name


def departures(ctx: click.Context) -> list[str]:
    """Return each option of the command line that is not as the preset has it.

    These are lines such as '--lr=0.001, not 0.0002'. Options that the preset does not name should
    have their defaults.
    """
    found = []
    for option in ctx.command.params:
        name = option.name or ''
        if (ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name in SPEED
                or getattr(option, 'heading', 'Other options') in APART):
            continue
        usual, given = option.type_cast_value(ctx, option.get_default(ctx)), ctx.params[name]
        if given != usual:
            was = 'the default' if usual is None else _written(usual)
            found.append(f'{option.opts[0]}={_written(given)}, not {was}')
    return found


def remarks(network: NetworkConfig) -> list[str]:
    """Return what to say, before it begins, of a run that the running command takes from a preset.

    These are the paper's FID, what the paper does not say, and what is changed.
    """
    ctx = click.get_current_context(silent=True)
    name = None if ctx is None else ctx.params.get('preset')
    if ctx is None or name is None:
        return []
    preset, changed = PRESETS[name], departures(ctx)
    if (network.img_channels, network.img_resolution) != (3, preset.resolution):
        changed.append(f'images of {network.img_channels} x {network.img_resolution} pixels, not '
                       f'3 x {preset.resolution}')
    fid = f'--preset={name} has the FID {preset.fid:g} in the paper, by generate.py '
    fid += preset.sampler
    if preset.stochastic:
        fid += f', and {preset.fid_stochastic:g} by {preset.stochastic}'
    inferred = ', '.join(f'--{option.replace("_", "-")}' for option in preset.inferred)
    return [fid, f'--preset={name} takes from elsewhere than the paper: {inferred}',
            *(f'--preset={name} is changed: {change}' for change in changed)]
