"""The options of train.py, and the configuration of a run that they resolve to."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
import torch

from data.dataset import CACHES
from dnnlib.cli import (
    FloatList,
    IntList,
    KeyOf,
    NumberOr,
    Real,
    Seconds,
    Whole,
    heading,
    reject_unused,
    with_options,
)
from limpid.levels import DISCRETE_SCHEDULES, DiscreteSchedule
from limpid.loss import (
    LOSSES,
    NOISE_DISTRIBUTIONS,
    WEIGHTINGS,
    DenoisingLoss,
    HybridLoss,
    InverseVariance,
    LogUniform,
    Loss,
    NoiseDistribution,
    UniformLevel,
    UniformTimestep,
    Weighting,
    sigma_range,
)
from limpid.preconditioning import IDDPM, NOISE_LABELS, PRECONDITIONERS, Preconditioner, V
from limpid.resolution import resolution_of
from limpid.table1 import Column
from limpid.table1 import column as column_of
from options.common import DEVICE, count, not_negative, positive, share, speed, workers
from options.optimizer import OPTIMIZER_OPTIONS, optimizer_config
from options.presets import PresetName, apply_preset
from torch_utils import distributed
from training.augment import AugmentConfig
from training.config import NanConfig, OptimizerConfig, TrainConfig
from training.dataset import DataConfig, ImageFolderDataset
from training.ema import HalfLife, PowerFunction, power_of
from training.loggers import LOGGERS
from training.networks import (
    ARCHITECTURES,
    PRECISIONS,
    NetworkConfig,
    build_network,
    complete_arguments,
)
from training.state import CHANGEABLE

files = heading('Files')
column = heading('Rows of Table 1: network, preconditioning, training')
sizes = heading('Size of the network')
hyper = heading('Hyperparameters')
output = heading('Reports and files written')
trouble = heading('Interruptions and numerical trouble')
other = heading('Other options')
boolean: dict[str, Any] = {'type': bool, 'metavar': 'BOOL', 'show_default': True}



class Names(click.ParamType):  # type: ignore[type-arg]
    """Names out of a table, separated by commas."""
    name = 'LIST'

    def __init__(self, table: Collection[str]) -> None:
        self.table = table

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(part.strip() for part in value.split(','))
        for name in names:
            if name not in self.table:
                self.fail(f'{name!r} is none of {", ".join(self.table)}', param, ctx)
        return names


class Cache(click.Choice):  # type: ignore[type-arg]
    """One of CACHES; booleans stand for ram and off."""

    def __init__(self) -> None:
        super().__init__(CACHES)

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:  # noqa: ANN401 (click's own)
        if isinstance(value, bool):
            value = str(value)
        word = str(value).lower()
        yes, no = ('1', 'true', 'yes', 'y', 't', 'on'), ('0', 'false', 'no', 'n', 'f')
        return super().convert('ram' if word in yes else 'off' if word in no else word, param, ctx)


OPTIONS = [   # those that `--help` lists first, in its order
    files('--preset', type=PresetName(), metavar='NAME|list', is_eager=True, callback=apply_preset,
          help='A run of the EDM paper\'s Table 2, such as cifar10-cond-vp-F, as defaults of the '
               'options below; options that are given override it, and --dry-run says where. list '
               'prints all presets'),
    files('--outdir', metavar='DIR',
          help='Folder in which to make the folder of the run  [required, unless --run is given]'),
    files('--data', metavar='ZIP|DIR', required=True,
          help='Data set: a zip or a folder made by dataset_tool.py'),
    files('--nosubdir', is_flag=True,
          help='Write into --outdir itself'),
    files('--run', '--run-dir', 'run', metavar='DIR',
          help='The folder of the run itself: short for --outdir=DIR --nosubdir. Under torchrun '
               'write --run-dir, since some versions of torchrun take --run for themselves'),
    files('--desc', metavar='STR',
          help='Suffix of the folder\'s name'),
    files('--transfer', metavar='PKL|URL',
          help='Start from the weights of a snapshot or of a published checkpoint. Every tensor '
               'that fits is copied, also from a network of another resolution or with other '
               'classes; transfer.json lists them'),
    files('--resume', metavar='auto|never|PT',
          help='Training state to continue from: a file; auto for the newest state in the folder '
               'of the run, if there is one; or never  [default: auto with --run or --nosubdir, '
               'else never]'),
    files('--allow-change', type=Names(CHANGEABLE), default=(), metavar='LIST',
          help='Options that may differ from those of the run that is continued, separated by '
               f'commas: {", ".join(CHANGEABLE)}; precision is also --fp16, --bf16. Averages '
               'that are new go on from the first one. changes.jsonl and the log tell of it'),
    files('--allow-data-change', is_flag=True,
          help='Continue although the images or labels of the data set have changed'),
    files('--on-bad-image', type=click.Choice(['stop', 'skip']), default=DataConfig.on_bad_image,
          show_default=True,
          help='Treatment of an image that cannot be read or does not fit: stop saves and ends the '
               'run; skip warns, and shows the next image of the data set instead'),

    column('--cond', **boolean, default=False,
           help='Train a class-conditional network on the labels of the data set'),
    column('--arch', type=KeyOf(ARCHITECTURES), default='ddpmpp', show_default=True,
           help='Backbone'),
    column('--precond', type=KeyOf(PRECONDITIONERS), default='edm', show_default=True,
           help='Preconditioning: a column of Table 1, or v for a network that predicts v. The '
                'noise distribution, weighting and loss of the same column are the defaults of '
                'the options below'),
    column('--noise', type=KeyOf(NOISE_DISTRIBUTIONS),
           help='Noise distribution p_train  [default: that of --precond]'),
    column('--weighting', type=KeyOf(WEIGHTINGS),
           help='Loss weighting λ(σ)  [default: that of --precond]'),
    column('--loss', type=KeyOf(LOSSES),
           help='Loss: denoising, velocity (the loss in v), or hybrid (denoising, and L_vlb for a '
                'learned variance)  [default: that of --precond]'),
    column('--hybrid', type=bool, metavar='BOOL',
           help='Also train the learned variance, L_simple + L_vlb: short for --loss=hybrid  '
                '[default: True where preconditioning and noise are iddpm]'),
    column('--P_mean', 'P_mean', type=Real(), metavar='FLOAT',
           help='Mean of ln σ, with --noise=edm  [default: -1.2]'),
    column('--P_std', 'P_std', type=positive, metavar='FLOAT',
           help='Standard deviation of ln σ, with --noise=edm  [default: 1.2]'),
    column('--sigma_data', type=positive, metavar='FLOAT',
           help='Standard deviation of the data in [-1, 1], with --precond=edm or v  [default: edm '
                '0.5; v 1]'),
    column('--sigma_min', type=positive, metavar='FLOAT',
           help='Lowest noise level, with --noise=ve  [default: 0.02]'),
    column('--sigma_max', type=positive, metavar='FLOAT',
           help='Highest noise level, with --noise=ve  [default: 100]'),
    column('--schedule', type=KeyOf(DISCRETE_SCHEDULES, 'linear'),
           help='Discrete schedule of T = 1000 timesteps, with --noise=timestep; linear is short '
                'for ddpm-linear  [default: scaled-linear]'),
    column('--zero-terminal-snr', type=bool, metavar='[BOOL]', is_flag=False, flag_value='true',
           help='Rescale that schedule so that nothing of the image is left at its last timestep, '
                'where σ = ∞; needs --precond=v  [default: True with --precond=v]'),
    column('--c-noise', type=click.Choice(NOISE_LABELS),
           help='The form in which the network receives the noise level, with --precond=v: the '
                'timestep, the angle atan(σ/σ_data), or log, ¼ ln σ, capped at twice the highest '
                'finite level of --schedule  [default: timestep with --noise=timestep, else '
                'angle]'),

    sizes('--cbase', type=Whole(1, 1_000_000), metavar='INT',
          help='Base number of channels  [default: by --arch]'),
    sizes('--cres', type=IntList(),
          help='Channels per resolution, as multiples of --cbase, e.g. 1,2,2,2  [default: by '
               '--arch]'),
    sizes('--blocks', type=Whole(1, 1000), metavar='INT',
          help='Residual blocks per resolution  [default: by --arch]'),
    sizes('--attn', type=IntList(),
          help='Resolutions with self-attention, e.g. 16,8. For images that are not square these '
               'are heights  [default: by --arch]'),

    hyper('--duration', type=positive, metavar='MIMG', default=200, show_default=True,
          help='Training duration, in millions of images'),
    hyper('--batch', type=count, metavar='INT', default=TrainConfig.batch_size, show_default=True,
          help='Total batch size over all devices'),
    hyper('--batch-gpu', type=NumberOr('auto', integer=True), metavar='INT|auto',
          help='Largest number of images at a time on one device. If its share of the batch is '
               'larger, gradients are accumulated. auto halves it before the first step until '
               'the memory is enough, and a continued run keeps it  [default: no limit]'),
    hyper('--lr', type=positive, metavar='FLOAT', default=OptimizerConfig.lr, show_default=True,
          help='Learning rate of Adam'),
    hyper('--lr-rampup', type=not_negative, metavar='MIMG',
          default=OptimizerConfig.lr_rampup_nimg / 1e6, show_default=True,
          help='Linear ramp-up of the learning rate, in millions of images'),
    hyper('--ema', type=FloatList(), metavar='MIMG', default=f'{HalfLife.halflife_nimg / 1e6:g}',
          show_default=True,
          help='Half-life of the average of the weights, in millions of images. Several values, '
               'e.g. 0.5,0.05, give several averages'),
    hyper('--ema-power', type=FloatList(),
          help='Also keep power-function averages of these relative widths, e.g. 0.05,0.1, for '
               'checkpoint.py reconstruct'),
    hyper('--ema-rampup', type=not_negative, metavar='FLOAT', default=HalfLife.rampup_ratio,
          show_default=True,
          help='Ramp-up of the half-life: it is at most this share of the images so far; 0 means '
               'no ramp-up'),
    hyper('--clip', type=positive, metavar='FLOAT',
          help='Largest norm of the gradient, of the loss summed over C, H, W and averaged over '
               'the batch  [default: no limit]'),
    hyper('--dropout', type=share, metavar='FLOAT', default=0.13, show_default=True,
          help='Dropout probability'),
    hyper('--label-dropout', type=share, metavar='FLOAT', default=0.0, show_default=True,
          help='Probability of hiding the label, with --cond'),
    hyper('--augment', type=share, metavar='FLOAT', default=0.12, show_default=True,
          help='Augmentation probability; 0 means no augmentation'),
    hyper('--xflip', **boolean, default=False,
          help='Double the data set by adding mirrored images'),

    *OPTIMIZER_OPTIONS,

    speed('--fp16', **boolean, default=False,
          help='Mixed precision: float16 in the backbone, on a GPU'),
    speed('--bf16', **boolean, default=False,
          help='Mixed precision: bfloat16 in the backbone'),
    speed('--precision', type=click.Choice(list(PRECISIONS)),
          help='The precision of the backbone: fp32, tf32, which is float32 whose products a GPU '
               'rounds to 11 bits, bf16 or fp16. --fp16=1 and --bf16=1 are older names of two of '
               'them  [default: fp32]'),
    speed('--compile', **boolean, default=False,
          help='Compile the residual blocks with torch.compile and, on a single GPU, record the '
               'forward and backward pass as a CUDA graph. This takes minutes at the start'),
    speed('--checkpointing', **boolean, default=False,
          help='Keep only the inputs of each residual block, and compute it once more in the '
               'backward pass: far less memory, and about a third more work. Gradients keep their '
               'bits. Without the recording of --compile'),
    speed('--shard', **boolean, default=False,
          help='Divide weights, gradients, moments and averages among the processes (FSDP2), for '
               'models that outgrow a device. Files are those of a run without it. Not with '
               '--compile, --batch-gpu=auto, --val or --nan-then=rollback'),
    speed('--ls', type=NumberOr('dynamic'), metavar='FLOAT|dynamic', default=1, show_default=True,
          help='Loss scaling: a number, or dynamic, which is halved after an overflow and doubled '
               'after 2000 steps without one'),
    speed('--bench', **boolean, default=True,
          help='Let cuDNN choose the fastest algorithms'),
    speed('--cache', type=Cache(), metavar='ram|mmap|off', default=DataConfig.cache,
          show_default=True,
          help='Where decoded images are kept: ram, in the memory of each process of the run; '
               'mmap, in a file in ~/.cache/limpid/decoded (or $LIMPID_CACHE_DIR/decoded) that is '
               'made once and that all processes of a machine share; off, nowhere. 1 and 0 stand '
               'for ram and off'),
    workers(DataConfig.workers),
    DEVICE,

    output('--tick', type=positive, metavar='KIMG', default=50, show_default=True,
           help='Interval of the status line and statistics, in thousands of images'),
    output('--snap', type=count, metavar='TICKS', default=50, show_default=True,
           help='Interval of snapshots and pictures, in ticks'),
    output('--log', '--loggers', 'log', type=Names(LOGGERS), default=(), metavar='LIST',
           help=f'Programs that get the numbers and pictures too, separated by commas: '
                f'{", ".join(LOGGERS)}. None of them can stop the run. Under torchrun write '
                f'--loggers, since it takes --log for an option of its own'),
    output('--pictures', type=Whole(0, 100), metavar='INT', default=TrainConfig.pictures,
           show_default=True,
           help='Largest number of images in the picture of each snapshot, a square grid; 0 for no '
                'pictures'),
    output('--picture-steps', type=Whole(1, 1000), metavar='INT',
           default=TrainConfig.picture_steps, show_default=True,
           help='Steps of the deterministic sampler that draws them; fewer cost less'),
    output('--dump', type=count, metavar='TICKS', default=500, show_default=True,
           help='Interval of training states, in ticks'),
    output('--dump-minutes', type=NumberOr('never'), metavar='FLOAT|never', default=15,
           show_default=True,
           help='Minutes after which a training state is written in any case: what a run loses at '
                'most where it is killed'),
    output('--keep', type=NumberOr('all', integer=True), metavar='INT|all', default=3,
           show_default=True,
           help='Number of training states to keep, the newest ones'),
    output('--keep-snapshots', type=NumberOr('all', integer=True), metavar='INT|all',
           default='all', show_default=True,
           help='Number of snapshots to keep, evenly spread over the run and including the first '
                'and the last'),
]

# The options that `--help` lists last, after those of other modules.
LAST_OPTIONS = [
    trouble('--max-time', type=Seconds(),
            help='Save and stop before this much time has passed, e.g. 30m, 47h, 2d, with exit '
                 'code 75'),
    trouble('--nan-policy', type=click.Choice(['skip', 'zero']), default=NanConfig.policy,
            show_default=True,
            help='Treatment of steps with non-finite gradients: skip leaves them out; zero '
                 'replaces nan by 0 and inf by 1e5 and goes on'),
    trouble('--nan-limit', type=count, metavar='INT', default=NanConfig.limit, show_default=True,
            help='Consecutive non-finite steps tolerated before --nan-then takes effect'),
    trouble('--nan-then', type=click.Choice(['stop', 'rollback']), default=NanConfig.then,
            show_default=True,
            help='What to do after that many: stop, or roll back to the last training state and '
                 'halve the learning rate'),

    other('--seed', type=Whole(0), metavar='INT', default=TrainConfig.seed,
          show_default=True,
          help='Random seed'),
    other('-n', '--dry-run', is_flag=True,
          help='Print the resolved options and stop'),
]


def data_config(given: dict[str, Any]) -> DataConfig:
    """Return the data set to train on; raise ValueError for options that do not go together."""
    check_batch(given['batch'], distributed.get_world_size())
    if given['fp16'] and given['bf16']:
        raise ValueError('--fp16 and --bf16 exclude each other')
    if given['precision'] and (given['fp16'] or given['bf16']):
        raise ValueError('--precision takes the place of --fp16 and --bf16; give one of them')
    if given['label_dropout'] and not given['cond']:
        raise ValueError(f'--label-dropout={given["label_dropout"]:g} would have no effect without '
                         f'--cond=1')
    return DataConfig(path=given['data'], use_labels=given['cond'], xflip=given['xflip'],
                      cache=given['cache'], workers=given['workers'],
                      on_bad_image=given['on_bad_image'])


def resolve(given: dict[str, Any], data: DataConfig, dataset: ImageFolderDataset) -> TrainConfig:
    """Turn options into the configuration of a run on `dataset`, which is `data` opened.

    `given` has a value for each of the options above, by the name of its parameter. Raises
    ValueError, in one line, for options that do not go together.
    """
    precond, loss = rows_of_table_1(given)
    augment, ls = given['augment'], given['ls']
    tick_nimg = max(round(given['tick'] * 1000), 1)
    return TrainConfig(
        data=data,
        network=network_config(given, precond, loss.noise_distribution, dataset),
        loss=loss,
        optimizer=optimizer_config(given),
        augment=AugmentConfig(p=augment) if augment else None,
        averages=averages_of(given['ema'], given['ema_rampup'], given['ema_power'] or []),
        label_dropout=given['label_dropout'],
        seed=given['seed'],
        batch_size=given['batch'],
        batch_gpu=None if given['batch_gpu'] == 'auto' else given['batch_gpu'],
        loss_scaling=None if ls == 'dynamic' else float(ls),
        nan=NanConfig(given['nan_policy'], given['nan_limit'], given['nan_then']),
        total_nimg=max(round(given['duration'] * 1e6), 1),
        tick_nimg=tick_nimg,
        snapshot_nimg=tick_nimg * given['snap'],
        state_nimg=tick_nimg * given['dump'],
        state_seconds=(None if given['dump_minutes'] == 'never'
                       else 60 * float(given['dump_minutes'])),
        keep_states=_number_or_all(given['keep']),
        keep_snapshots=_number_or_all(given['keep_snapshots']),
        pictures=given['pictures'],
        picture_steps=given['picture_steps'],
        cudnn_benchmark=given['bench'],
        compile=given['compile'],
        checkpointing=given['checkpointing'],
        shard=given['shard'],
    )


def _number_or_all(value: int | str) -> int | None:
    return None if value == 'all' else int(value)


def rows_of_table_1(given: dict[str, Any]) -> tuple[Preconditioner, Loss]:
    """Return the preconditioner and the loss: the column of --precond, changed row by row."""
    cells = column_of(given['precond'])
    noise = cells.noise_distribution
    if given['noise'] is not None:
        noise = NOISE_DISTRIBUTIONS[given['noise']]()
    discrete = discrete_schedule(given, cells, noise)
    if discrete is not None:
        noise = UniformTimestep(discrete)
    numbers = {name: given[name] for name in ('P_mean', 'P_std', 'sigma_data')}
    reject_unused(numbers, cells.precond, noise)
    noise = with_range(noise, given['sigma_min'], given['sigma_max'])
    precond = with_noise_label(given, with_options(cells.precond, numbers), discrete)
    noise = with_options(noise, numbers)
    cells = cells.around(precond)
    weighting = cells.weighting
    if given['weighting'] is not None:
        weighting = WEIGHTINGS[given['weighting']](precond)
    return precond, choose_loss(given, cells, noise, weighting)


def with_range(noise: NoiseDistribution, sigma_min: float | None,
               sigma_max: float | None) -> NoiseDistribution:
    """Return the noise distribution with these bounds; ValueError where it has no such bounds."""
    bounds = {'sigma_min': sigma_min, 'sigma_max': sigma_max}
    if not isinstance(noise, LogUniform):
        reject_unused(bounds, noise)
        return noise
    schedule = with_options(noise.schedule, bounds)
    if schedule.sigma_min >= schedule.sigma_max:
        raise ValueError(f'--sigma_min={schedule.sigma_min:g} is not below '
                         f'--sigma_max={schedule.sigma_max:g}')
    return LogUniform(schedule)


def discrete_schedule(given: dict[str, Any], cells: Column,
                      noise: NoiseDistribution) -> DiscreteSchedule | None:
    """Return the discrete schedule to train with, if any.

    Its last timestep has σ = ∞ by default if the network can work there. Raises ValueError if that
    is asked for and the network cannot.
    """
    name, zero = given['schedule'], given['zero_terminal_snr']
    if not isinstance(noise, UniformTimestep):
        for option, value in (('--schedule', name), ('--zero-terminal-snr', zero)):
            if value is not None:
                raise ValueError(f'{option}={value} would have no effect without --noise=timestep, '
                                 f'the noise of discrete timesteps')
        return None
    reason = cells.precond.no_infinity
    if zero is None:
        zero = not reason
    if zero and reason:
        raise ValueError(f'--precond={given["precond"]} cannot be trained with '
                         f'--zero-terminal-snr=1, up to sigma = inf: {reason}. Use --precond=v')
    name = 'ddpm-linear' if name == 'linear' else name or 'scaled-linear'
    return DISCRETE_SCHEDULES[name](zero_terminal_snr=zero)


def with_noise_label(given: dict[str, Any], precond: Preconditioner,
                     discrete: DiscreteSchedule | None) -> Preconditioner:
    """Return the preconditioner with the c_noise that was asked for, where it has a choice."""
    c_noise = given['c_noise']
    if isinstance(precond, V):
        if c_noise == 'timestep' and discrete is None:
            raise ValueError('--c-noise=timestep needs discrete timesteps, --noise=timestep')
        default = 'angle' if discrete is None else 'timestep'
        return V(precond.sigma_data, c_noise or default, discrete)
    if c_noise is not None:
        raise ValueError(f'--c-noise={c_noise} would have no effect with '
                         f'--precond={given["precond"]}: only v has a choice')
    return precond


def choose_loss(given: dict[str, Any], cells: Column, noise: NoiseDistribution,
                weighting: Weighting) -> Loss:
    """Return the loss of --loss or --hybrid, else that of the column.

    A hybrid loss needs the other rows of its own column. With different rows the default is the
    denoising loss, and asking for the hybrid one raises ValueError.
    """
    name, hybrid = given['loss'], given['hybrid']
    if None not in (name, hybrid) and hybrid != (name == 'hybrid'):
        raise ValueError(f'--loss={name} and --hybrid={int(hybrid)} exclude each other')
    loss = LOSSES[name] if name else HybridLoss if hybrid else cells.loss
    fits = (isinstance(cells.precond, IDDPM) and isinstance(noise, UniformLevel)
            and isinstance(weighting, InverseVariance))
    if loss is HybridLoss and not fits and (hybrid or name):
        asked = '--hybrid=1' if hybrid else '--loss=hybrid'
        raise ValueError(f'{asked} needs --precond=iddpm with its own noise levels and weighting')
    if loss is HybridLoss and (not fits or hybrid is False):
        loss = DenoisingLoss
    return loss(noise, weighting=weighting)


def averages_of(halflives: list[float], rampup: float,
                widths: list[float]) -> tuple[HalfLife | PowerFunction, ...]:
    """Return the averages to keep, the first of --ema first.

    Raises ValueError for one that is given twice or makes no sense.
    """
    if any(halflife < 0 for halflife in halflives):
        listed = ','.join(f'{halflife:g}' for halflife in halflives)
        raise ValueError(f'--ema={listed}: a half-life is not negative')
    for width in widths:
        power_of(width)   # raises for a width that no average has
    averages: tuple[HalfLife | PowerFunction, ...] = (
        *(HalfLife(halflife * 1e6, rampup or None) for halflife in halflives),
        *(PowerFunction(width) for width in widths))
    if len({average.name for average in averages}) < len(averages):
        raise ValueError('--ema and --ema-power name an average twice')
    return averages


def check_batch(batch: int, world_size: int) -> None:
    """Raise ValueError for a batch that the processes cannot share equally."""
    if batch % world_size:
        low = batch // world_size * world_size
        right = f'{low} or {low + world_size}' if low else f'{world_size}'
        raise ValueError(f'--batch={batch} is not a multiple of the {world_size} processes: use '
                         f'{right}')


def network_config(given: dict[str, Any], precond: Preconditioner, noise: NoiseDistribution,
                   dataset: ImageFolderDataset) -> NetworkConfig:
    """Return the network for these images and the noise levels that it will be trained with.

    Raises ValueError for sizes that do not fit together.
    """
    model_type, preset = ARCHITECTURES[given['arch']]
    sizes = {'model_channels': given['cbase'], 'channel_mult': given['cres'],
             'num_blocks': given['blocks'], 'attn_resolutions': given['attn'],
             'dropout': given['dropout'], 'augment_dim': 9 if given['augment'] else 0}
    chosen = {name: value for name, value in sizes.items() if value is not None}
    (height, width), num_channels = dataset.image_shape[1:], dataset.num_channels
    check_attention(given['attn'] or [], height, chosen.get('channel_mult')
                    or preset.get('channel_mult'))
    sigma_min, sigma_max = sigma_range(noise)
    if isinstance(precond, IDDPM):   # whatever it is trained with, it only has levels of its own
        lowest, highest = precond.sigma_range()
        sigma_min, sigma_max = max(sigma_min, lowest), min(sigma_max, highest)
    network = NetworkConfig(
        model_type=model_type, precond=precond, sigma_min=sigma_min, sigma_max=sigma_max,
        img_resolution=resolution_of(height, width), img_channels=num_channels,
        label_dim=dataset.label_dim, precision=precision_of(given),
        model=complete_arguments(model_type, {**preset, **chosen}))
    with torch.device('meta'):   # costs nothing, and raises for sizes that do not fit
        build_network(network)
    return network


def precision_of(given: dict[str, Any]) -> str:
    """Return the precision of the backbone, a key of PRECISIONS."""
    for older in ('fp16', 'bf16'):
        if given[older]:
            return older
    return given['precision'] or 'fp32'


def check_attention(attn: list[int], resolution: int, channel_mult: list[int] | None) -> None:
    """Raise ValueError for self-attention at a resolution that the network does not have."""
    there = [resolution >> level for level in range(len(channel_mult or []))]
    for wanted in attn:
        if wanted not in there:
            raise ValueError(f'--attn={wanted} would have no effect: this network works at '
                             f'{", ".join(map(str, there))} pixels')


def run_name(config: TrainConfig, given: dict[str, Any]) -> str:
    """<data>-<cond or uncond>-<arch>-<precond>-gpus<N>-batch<N>-<precision>[-desc]"""
    parts = [
        Path(config.data.path).stem,
        'cond' if config.data.use_labels else 'uncond',
        given['arch'],
        given['precond'],
        f'gpus{distributed.get_world_size()}',
        f'batch{config.batch_size}',
        config.network.precision,
    ]
    if given['desc']:
        parts.append(given['desc'])
    return '-'.join(parts)
