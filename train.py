"""Train a diffusion model: options -> TrainConfig -> training loop."""

import json
import os
import re
from pathlib import Path
from typing import Any

import click

from diffusion.preconditioning import IDDPM
from dnnlib.cli import GroupedCommand, IntList, heading, one_line_errors, reject_unused, with_options
from dnnlib.files import atomic_write
from dnnlib.logfile import LogFile
from torch_utils import distributed
from training import config as configs
from training.augment import AugmentConfig
from training.config import OptimizerConfig, TrainConfig
from training.dataset import DataConfig
from training.ema import EMAConfig
from training.loss import NOISE_DISTRIBUTIONS, WEIGHTINGS, DenoisingLoss, HybridLoss, UniformLevel, sigma_range
from training.networks import ARCHITECTURES, NetworkConfig, complete_arguments
from training.state import TrainState
from training.table1 import TABLE_1
from training.training_loop import prepare, training_loop

files = heading('Files')
column = heading('Rows of Table 1: network, preconditioning, training')
sizes = heading('Size of the network')
hyper = heading('Hyperparameters')
speed = heading('Performance')
output = heading('Reports and files written')
other = heading('Other')


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 110})
@files('--outdir', help='Where the folder of the run is made', metavar='DIR', required=True)
@files('--data', help='Data set: zip or folder, made by dataset_tool.py', metavar='ZIP|DIR', required=True)
@files('--nosubdir', help='Write into --outdir itself', is_flag=True)
@files('--desc', help='Suffix of the folder\'s name', metavar='STR')
@files('--transfer', help='Start from the weights of a snapshot', metavar='PKL')
@files('--resume', help='Continue from a training state', metavar='PT')
@column('--cond', help='Class-conditional: train on the labels', type=bool, metavar='BOOL', default=False, show_default=True)
@column('--arch', help='Backbone', type=click.Choice(list(ARCHITECTURES)), default='ddpmpp', show_default=True)
@column('--precond', help='Column of Table 1: preconditioning and, unless given, noise and weighting',
        type=click.Choice(list(TABLE_1)), default='edm', show_default=True)
@column('--noise', help='Noise distribution p_train  [default: that of --precond]', type=click.Choice(list(NOISE_DISTRIBUTIONS)))
@column('--weighting', help='Loss weighting λ(σ)  [default: that of --precond]', type=click.Choice(list(WEIGHTINGS)))
@column('--hybrid', help='Train the learned variance too, L_simple + L_vlb  [default: True where precond and noise are iddpm]',
        type=bool, metavar='BOOL')
@column('--P_mean', 'P_mean', help='Mean of ln σ, with --noise=edm  [default: -1.2]', type=float, metavar='FLOAT')
@column('--P_std', 'P_std', help='Standard deviation of ln σ, with --noise=edm  [default: 1.2]',
        type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@column('--sigma_data', help='Standard deviation of the data in [-1, 1], with --precond=edm  [default: 0.5]',
        type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@sizes('--cbase', help='Channel multiplier  [default: by --arch]', type=click.IntRange(min=1), metavar='INT')
@sizes('--cres', help='Channels per resolution, e.g. 1,2,2,2  [default: by --arch]', type=IntList())
@sizes('--blocks', help='Residual blocks per resolution  [default: by --arch]', type=click.IntRange(min=1), metavar='INT')
@sizes('--attn', help='Resolutions with self-attention, e.g. 16,8  [default: by --arch]', type=IntList())
@hyper('--duration', help='Training duration, millions of images', type=click.FloatRange(min=0, min_open=True),
       metavar='MIMG', default=200, show_default=True)
@hyper('--batch', help='Total batch size over all devices', type=click.IntRange(min=1), metavar='INT',
       default=TrainConfig.batch_size, show_default=True)
@hyper('--batch-gpu', help='Limit per device; gradients accumulate over the rest  [default: no limit]',
       type=click.IntRange(min=1), metavar='INT')
@hyper('--lr', help='Learning rate of Adam', type=click.FloatRange(min=0, min_open=True), metavar='FLOAT',
       default=OptimizerConfig.lr, show_default=True)
@hyper('--lr-rampup', help='Linear ramp-up of the learning rate, millions of images', type=click.FloatRange(min=0),
       metavar='MIMG', default=OptimizerConfig.lr_rampup_nimg / 1e6, show_default=True)
@hyper('--ema', help='Half-life of the average of the weights, millions of images', type=click.FloatRange(min=0),
       metavar='MIMG', default=EMAConfig.halflife_nimg / 1e6, show_default=True)
@hyper('--ema-rampup', help='The half-life is at most this share of the images so far; 0 = no ramp-up',
       type=click.FloatRange(min=0), metavar='FLOAT', default=EMAConfig.rampup_ratio, show_default=True)
@hyper('--dropout', help='Dropout probability', type=click.FloatRange(min=0, max=1), metavar='FLOAT', default=0.13, show_default=True)
@hyper('--label-dropout', help='Probability of hiding the label, with --cond', type=click.FloatRange(min=0, max=1),
       metavar='FLOAT', default=0.0, show_default=True)
@hyper('--augment', help='Augmentation probability; 0 = off', type=click.FloatRange(min=0, max=1), metavar='FLOAT',
       default=0.12, show_default=True)
@hyper('--xflip', help='Double the data set by x-flips', type=bool, metavar='BOOL', default=False, show_default=True)
@speed('--fp16', help='Mixed precision: float16 in the backbone, on a GPU', type=bool, metavar='BOOL', default=False, show_default=True)
@speed('--bf16', help='Mixed precision: bfloat16 in the backbone', type=bool, metavar='BOOL', default=False, show_default=True)
@speed('--ls', help='Loss scaling', type=click.FloatRange(min=0, min_open=True), metavar='FLOAT', default=1, show_default=True)
@speed('--bench', help='Let cuDNN choose the fastest algorithms', type=bool, metavar='BOOL', default=True, show_default=True)
@speed('--cache', help='Keep the decoded images in memory', type=bool, metavar='BOOL', default=True, show_default=True)
@speed('--workers', help='Loader processes', type=click.IntRange(min=0), metavar='INT', default=DataConfig.workers, show_default=True)
@speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu', metavar='NAME', default='auto', show_default=True)
@output('--tick', help='Status line and statistics, thousands of images', type=click.FloatRange(min=0, min_open=True),
        metavar='KIMG', default=50, show_default=True)
@output('--snap', help='Snapshot and picture every so many ticks', type=click.IntRange(min=1), metavar='TICKS', default=50, show_default=True)
@output('--dump', help='Training state every so many ticks', type=click.IntRange(min=1), metavar='TICKS', default=500, show_default=True)
@other('--seed', help='Random seed', type=click.IntRange(min=0), metavar='INT', default=TrainConfig.seed, show_default=True)
@other('-n', '--dry-run', help='Print the resolved options and stop', is_flag=True)
@one_line_errors
def main(outdir: str, nosubdir: bool, desc: str | None, transfer: str | None, resume: str | None,
         dry_run: bool, device: str, **options: Any) -> None:  # noqa: ANN401
    """Train a diffusion model on a data set of images.

    The options choose the rows of Table 1 of the EDM paper one by one; without any, the model is
    configuration F of its Table 2. The same command runs on one device and, under torchrun, on many.
    Units: KIMG and MIMG are thousands and millions of images shown.

    Examples:
    # A small class-conditional model, in minutes on a CPU
    python dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip
    python train.py --outdir=runs --data=datasets/digits-16x16.zip --cond=1 --cbase=32 --cres=1,2 --blocks=1 \\
        --attn=8 --batch=64 --duration=0.064 --lr-rampup=0.01 --dropout=0 --augment=0 --tick=6.4 --snap=5 --dump=5

    # The paper's model for CIFAR-10, on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train.py --outdir=runs --data=datasets/cifar10-32x32.zip --cond=1 --arch=ddpmpp

    # VP preconditioning, but the EDM noise distribution and weighting; only show the options
    python train.py --outdir=runs --data=datasets/digits-16x16.zip --precond=vp --noise=edm --weighting=inverse-c-out --cres=1,2 -n
    """
    if resume is not None and transfer is not None:
        raise click.UsageError('--resume and --transfer exclude each other: a training state brings its own weights')
    for option, path in [('--resume', resume), ('--transfer', transfer)]:
        if path is not None and not os.path.isfile(path):
            raise click.UsageError(f'{option}={path}: there is no such file')
    chosen = distributed.init(device)
    config = resolve(world_size=distributed.get_world_size(), **options)
    if dry_run:
        distributed.print0(json.dumps(configs.encode(config), indent=2))
        distributed.shutdown()
        return
    state, origin = prepare(config, chosen, resume, transfer)
    run_dir = make_run_dir(outdir, nosubdir, run_name(config, options, desc))   # nothing is written before all is well
    with LogFile(run_dir / 'log.txt' if distributed.get_rank() == 0 else None):
        if distributed.get_rank() == 0:
            with atomic_write(run_dir / 'training_options.json') as file:
                file.write(json.dumps(configs.encode(config), indent=2).encode())
        announce(config, state, run_dir, str(chosen), origin)
        training_loop(config, state, run_dir, chosen)
        distributed.print0('Done.')
    distributed.shutdown()


def resolve(*, data: str, cond: bool, arch: str, precond: str, noise: str | None, weighting: str | None,
            hybrid: bool | None, cbase: int | None, cres: list[int] | None, blocks: int | None, attn: list[int] | None,
            P_mean: float | None, P_std: float | None, sigma_data: float | None,
            duration: float, batch: int, batch_gpu: int | None, lr: float, lr_rampup: float, ema: float,
            ema_rampup: float, dropout: float, label_dropout: float, augment: float, xflip: bool,
            fp16: bool, bf16: bool, ls: float, bench: bool, cache: bool, workers: int,
            tick: float, snap: int, dump: int, seed: int, world_size: int) -> TrainConfig:
    """Options -> configuration. Opens the data set to learn its shape; ValueError in one line."""
    check_batch(batch, world_size)
    if fp16 and bf16:
        raise ValueError('--fp16 and --bf16 exclude each other')
    if label_dropout and not cond:
        raise ValueError(f'--label-dropout={label_dropout:g} would have no effect without --cond=1')
    data_config = DataConfig(path=data, use_labels=cond, xflip=xflip, cache=cache, workers=workers)
    with data_config.open() as dataset:
        channels, resolution, label_dim = dataset.num_channels, dataset.resolution, dataset.label_dim

    cells = TABLE_1[precond]()
    numbers = {'P_mean': P_mean, 'P_std': P_std, 'sigma_data': sigma_data}
    noise_distribution = NOISE_DISTRIBUTIONS[noise]() if noise else cells.noise_distribution
    reject_unused(numbers, cells.precond, noise_distribution)
    preconditioner = with_options(cells.precond, numbers)
    noise_distribution = with_options(noise_distribution, numbers)
    weight = WEIGHTINGS[weighting or ('inverse-c-out' if precond == 'edm' else 'inverse-variance')](preconditioner)
    loss: DenoisingLoss | HybridLoss = DenoisingLoss(noise_distribution, weight)
    fits_hybrid = precond == 'iddpm' and noise in (None, 'iddpm') and weighting in (None, 'inverse-variance')
    if hybrid and not fits_hybrid:
        raise ValueError('--hybrid=1 needs --precond=iddpm with its own noise levels and weighting')
    if hybrid or (hybrid is None and fits_hybrid):
        loss = HybridLoss(noise_distribution)

    return TrainConfig(
        data=data_config,
        network=network_config(arch, preconditioner, noise_distribution, channels, resolution, label_dim,
                               precision='fp16' if fp16 else 'bf16' if bf16 else 'fp32',
                               model_channels=cbase, channel_mult=cres, num_blocks=blocks, attn_resolutions=attn,
                               dropout=dropout, augment_dim=9 if augment else 0),
        loss=loss,
        optimizer=OptimizerConfig(lr=lr, lr_rampup_nimg=lr_rampup * 1e6),
        augment=AugmentConfig(p=augment) if augment else None,
        ema=EMAConfig(halflife_nimg=ema * 1e6, rampup_ratio=ema_rampup or None),
        label_dropout=label_dropout,
        seed=seed,
        batch_size=batch,
        batch_gpu=batch_gpu,
        loss_scaling=ls,
        total_nimg=max(round(duration * 1e6), 1),
        tick_nimg=max(round(tick * 1000), 1),
        snapshot_nimg=max(round(tick * 1000), 1) * snap,
        state_nimg=max(round(tick * 1000), 1) * dump,
        cudnn_benchmark=bench,
    )


def check_batch(batch: int, world_size: int) -> None:
    if batch % world_size:
        low = batch // world_size * world_size
        right = f'{low} or {low + world_size}' if low else f'{world_size}'
        raise ValueError(f'--batch={batch} is not a multiple of the {world_size} processes: use {right}')


def network_config(arch: str, preconditioner: Any, noise_distribution: Any, channels: int, resolution: int,  # noqa: ANN401
                   label_dim: int, precision: str, **given: Any) -> NetworkConfig:  # noqa: ANN401
    """The network for such images, with the range of noise levels that it will be trained for."""
    model_type, preset = ARCHITECTURES[arch]
    sigma_min, sigma_max = sigma_range(noise_distribution)
    if isinstance(preconditioner, IDDPM):   # whatever it was trained with, it has no levels beyond its own
        lowest, highest = sigma_range(UniformLevel(preconditioner.levels))
        sigma_min, sigma_max = max(sigma_min, lowest), min(sigma_max, highest)
    return NetworkConfig(
        model_type=model_type, precond=preconditioner, sigma_min=sigma_min, sigma_max=sigma_max,
        img_resolution=resolution, img_channels=channels, label_dim=label_dim, precision=precision,
        model=complete_arguments(model_type, {**preset, **{k: v for k, v in given.items() if v is not None}}),
    )


def make_run_dir(outdir: str, nosubdir: bool, name: str) -> Path:
    """Make the folder of the run, the same on every rank: --outdir itself, or a numbered one in it."""
    run_dir = None
    if distributed.get_rank() == 0:
        if nosubdir:
            run_dir = Path(outdir)
        else:
            names = os.listdir(outdir) if os.path.isdir(outdir) else []
            numbers = [int(match[1]) for match in (re.match(r'(\d+)(-|$)', n) for n in names) if match]
            run_dir = Path(outdir) / f'{max(numbers, default=-1) + 1:05d}-{name}'
        run_dir.mkdir(parents=True, exist_ok=nosubdir)
    return distributed.gather_objects(run_dir)[0]


def run_name(config: TrainConfig, options: dict[str, Any], desc: str | None) -> str:
    """<data>-<cond or uncond>-<arch>-<precond>-gpus<N>-batch<N>-<precision>[-desc]"""
    parts = [
        Path(config.data.path).stem,
        'cond' if config.data.use_labels else 'uncond',
        options['arch'],
        options['precond'],
        f'gpus{distributed.get_world_size()}',
        f'batch{config.batch_size}',
        config.network.precision,
    ]
    return '-'.join(parts + ([desc] if desc else []))


def announce(config: TrainConfig, state: TrainState, run_dir: Path, device: str, origin: str) -> None:
    network = config.network
    num_parameters = sum(parameter.numel() for parameter in state.net.parameters())
    summary = {
        'Run folder': run_dir,
        'Data set': f'{config.data.path}, {network.img_channels} x {network.img_resolution} x {network.img_resolution}, '
                    f'{network.label_dim} classes' if network.label_dim else config.data.path,
        'Network': f'{network.model_type}, {type(network.precond).__name__} preconditioning, '
                   f'{num_parameters:,} parameters, {network.precision}',
        'Loss': f'{config.loss.noise_distribution}, {type(config.loss.weighting).__name__}',
        'Batch': f'{config.batch_size} on {distributed.get_world_size()} x {device}',
        'Weights': origin,
        'Duration': f'{config.total_nimg / 1000:g} kimg, {-(-config.total_nimg // config.batch_size)} steps',
    }
    for name, value in summary.items():
        distributed.print0(f'{name + ":":13s}{value}')


if __name__ == '__main__':
    main()
