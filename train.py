"""Train a diffusion model: options -> TrainConfig -> training loop."""

import contextlib
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from checkpoints.read import read_state
from dnnlib.cli import (
    FloatList,
    GroupedCommand,
    IntList,
    NumberOr,
    Seconds,
    heading,
    naming_flags,
    one_line_errors,
    reject_unused,
    with_options,
)
from dnnlib.download import is_url
from dnnlib.files import atomic_write, held
from dnnlib.logfile import LogFile
from evaluation.while_training import EvalConfig, WhileTraining
from limpid.levels import DISCRETE_SCHEDULES, DiscreteSchedule
from limpid.loss import (
    NOISE_DISTRIBUTIONS,
    WEIGHTINGS,
    DenoisingLoss,
    HybridLoss,
    InverseVariance,
    UniformLevel,
    UniformTimestep,
    VelocityLoss,
    sigma_range,
)
from limpid.preconditioning import IDDPM, NOISE_LABELS, V
from limpid.table1 import COLUMNS
from metrics.definitions import METRICS
from metrics.judge import PARAMETERS
from torch_utils import distributed
from training import config as configs
from training.augment import AugmentConfig
from training.config import NanConfig, OptimizerConfig, TrainConfig
from training.dataset import DataConfig
from training.ema import HalfLife, PowerFunction, power_of
from training.networks import ARCHITECTURES, NetworkConfig, build_network, complete_arguments
from training.state import STATE, TrainState, files_of, latest_state
from training.training_loop import Interrupted, NonFiniteError, prepare, training_loop

files = heading('Files')
column = heading('Rows of Table 1: network, preconditioning, training')
sizes = heading('Size of the network')
hyper = heading('Hyperparameters')
speed = heading('Performance')
output = heading('Reports and files written')
judging = heading('Evaluation while training')
trouble = heading('Interruptions and numerical trouble')
other = heading('Other options')

# The options that fields of EvalConfig come from.
EVAL_FLAGS = {'ref': '--ref', 'metrics': '--metrics', 'num': '--eval-num',
              'detector': '--eval-detector', 'num_steps': '--eval-steps',
              'allow_mismatch': '--allow-mismatch'}


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 110})
@files('--outdir', help='Where the folder of the run is made  [required, unless --run is given]',
       metavar='DIR')
@files('--data', help='Data set: zip or folder, made by dataset_tool.py', metavar='ZIP|DIR',
       required=True)
@files('--nosubdir', help='Write into --outdir itself', is_flag=True)
@files('--run', '--run-dir', 'run', help='The folder of the run itself: short for --outdir=DIR '
                                         '--nosubdir. Under torchrun write --run-dir: '
                                        'some versions take --run for an option of their own',
       metavar='DIR')
@files('--desc', help='Suffix of the folder\'s name', metavar='STR')
@files('--transfer', help='Start from the weights of a snapshot or of a published checkpoint: '
                          'whatever fits, also of another resolution or with other classes; '
                          'transfer.json lists it', metavar='PKL|URL')
@files('--resume', help='auto: continue from the newest training state in the folder of the run; '
                        'never; or a training state  [default: auto with --run or --nosubdir, else '
                        'never]', metavar='auto|never|PT')
@column('--cond', help='Class-conditional: train on the labels', type=bool, metavar='BOOL',
        default=False, show_default=True)
@column('--arch', help='Backbone', type=click.Choice(list(ARCHITECTURES)), default='ddpmpp',
        show_default=True)
@column('--precond', help='Column of Table 1, or v, prediction of v: preconditioning and, unless '
                          'given, noise and weighting',
        type=click.Choice(list(COLUMNS)), default='edm', show_default=True)
@column('--noise', help='Noise distribution p_train  [default: that of --precond]',
        type=click.Choice(list(NOISE_DISTRIBUTIONS)))
@column('--weighting', help='Loss weighting λ(σ)  [default: that of --precond]',
        type=click.Choice(list(WEIGHTINGS)))
@column('--hybrid', help='Train the learned variance too, L_simple + L_vlb  [default: True where '
                         'precond and noise are iddpm]',
        type=bool, metavar='BOOL')
@column('--P_mean', 'P_mean', help='Mean of ln σ, with --noise=edm  [default: -1.2]', type=float,
        metavar='FLOAT')
@column('--P_std', 'P_std', help='Standard deviation of ln σ, with --noise=edm  [default: 1.2]',
        type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@column('--sigma_data', help='Standard deviation of the data in [-1, 1], with --precond=edm or v  '
                             '[default: edm 0.5; v 1]',
        type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@column('--schedule', help='Discrete schedule of T = 1000 timesteps, with --noise=timestep; linear '
                           'is short for ddpm-linear  [default: scaled-linear]',
        type=click.Choice([*DISCRETE_SCHEDULES, 'linear']))
@column('--zero-terminal-snr', help='Rescale that schedule so that nothing of the image is left at '
                                    'its last timestep, σ = ∞, with --precond=v  [default: True '
                                    'with --precond=v]', type=bool, metavar='[BOOL]',
        is_flag=False, flag_value='true')
@column('--c-noise', help='What the network is told of the noise level, with --precond=v: the '
                          'timestep, the angle atan(σ/σ_data), or log, ¼ ln σ, capped at twice the '
                          'highest finite level of --schedule  [default: timestep with '
                          '--noise=timestep, else angle]', type=click.Choice(NOISE_LABELS))
@sizes('--cbase', help='Channel multiplier  [default: by --arch]', type=click.IntRange(min=1),
       metavar='INT')
@sizes('--cres', help='Channels per resolution, e.g. 1,2,2,2  [default: by --arch]', type=IntList())
@sizes('--blocks', help='Residual blocks per resolution  [default: by --arch]',
       type=click.IntRange(min=1), metavar='INT')
@sizes('--attn', help='Resolutions with self-attention, e.g. 16,8  [default: by --arch]',
       type=IntList())
@hyper('--duration', help='Training duration, millions of images',
       type=click.FloatRange(min=0, min_open=True), metavar='MIMG', default=200, show_default=True)
@hyper('--batch', help='Total batch size over all devices', type=click.IntRange(min=1),
       metavar='INT', default=TrainConfig.batch_size, show_default=True)
@hyper('--batch-gpu', help='Limit per device; gradients accumulate over the rest  [default: no '
                           'limit]',
       type=click.IntRange(min=1), metavar='INT')
@hyper('--lr', help='Learning rate of Adam', type=click.FloatRange(min=0, min_open=True),
       metavar='FLOAT', default=OptimizerConfig.lr, show_default=True)
@hyper('--lr-rampup', help='Linear ramp-up of the learning rate, millions of images',
       type=click.FloatRange(min=0), metavar='MIMG', default=OptimizerConfig.lr_rampup_nimg / 1e6,
       show_default=True)
@hyper('--ema', help='Half-life of the average of the weights, millions of images; several give '
                     'several averages, e.g. 0.5,0.05',
       type=FloatList(), metavar='MIMG', default=f'{HalfLife.halflife_nimg / 1e6:g}',
       show_default=True)
@hyper('--ema-power', help='Also keep power-function averages of these relative widths, e.g. '
                           '0.05,0.1, for checkpoint.py reconstruct', type=FloatList())
@hyper('--ema-rampup', help='The half-life is at most this share of the images so far; 0 = no '
                            'ramp-up',
       type=click.FloatRange(min=0), metavar='FLOAT', default=HalfLife.rampup_ratio,
       show_default=True)
@hyper('--clip', help='Largest norm of the gradient (of the loss summed over C, H, W and averaged '
                      'over the batch)  [default: any]',
       type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@hyper('--dropout', help='Dropout probability', type=click.FloatRange(min=0, max=1),
       metavar='FLOAT', default=0.13, show_default=True)
@hyper('--label-dropout', help='Probability of hiding the label, with --cond',
       type=click.FloatRange(min=0, max=1), metavar='FLOAT', default=0.0, show_default=True)
@hyper('--augment', help='Augmentation probability; 0 = off', type=click.FloatRange(min=0, max=1),
       metavar='FLOAT', default=0.12, show_default=True)
@hyper('--xflip', help='Double the data set by x-flips', type=bool, metavar='BOOL', default=False,
       show_default=True)
@speed('--fp16', help='Mixed precision: float16 in the backbone, on a GPU', type=bool,
       metavar='BOOL', default=False, show_default=True)
@speed('--bf16', help='Mixed precision: bfloat16 in the backbone', type=bool, metavar='BOOL',
       default=False, show_default=True)
@speed('--ls', help='Loss scaling: a number, or dynamic (halved after an overflow, doubled after '
                    '2000 calm steps)',
       type=NumberOr('dynamic'), metavar='FLOAT|dynamic', default=1, show_default=True)
@speed('--bench', help='Let cuDNN choose the fastest algorithms', type=bool, metavar='BOOL',
       default=True, show_default=True)
@speed('--cache', help='Keep the decoded images in memory', type=bool, metavar='BOOL', default=True,
       show_default=True)
@speed('--workers', help='Loader processes', type=click.IntRange(min=0), metavar='INT',
       default=DataConfig.workers, show_default=True)
@speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu', metavar='NAME',
       default='auto', show_default=True)
@output('--tick', help='Status line and statistics, thousands of images',
        type=click.FloatRange(min=0, min_open=True), metavar='KIMG', default=50, show_default=True)
@output('--snap', help='Snapshot and picture every so many ticks', type=click.IntRange(min=1),
        metavar='TICKS', default=50, show_default=True)
@output('--dump', help='Training state every so many ticks', type=click.IntRange(min=1),
        metavar='TICKS', default=500, show_default=True)
@output('--keep', help='Keep this many of the newest training states',
        type=NumberOr('all', integer=True), metavar='INT|all', default='all', show_default=True)
@output('--keep-snapshots', help='Keep this many snapshots, evenly spread over the run, first and '
                                 'last included',
        type=NumberOr('all', integer=True), metavar='INT|all', default='all', show_default=True)
@judging('--eval', 'eval_kimg', help='Judge the averaged network every so many thousands of '
                                     'images, a multiple of --tick, and at the end. The numbers go '
                                     'to stats.jsonl, and network-best.pkl leads to the best '
                                     'snapshot',
         type=click.FloatRange(min=0, min_open=True), metavar='KIMG')
@judging('--ref', help='The real images, for --eval: a file of statistics from fid.py ref, or what '
                       'else fid.py takes', metavar='NPZ|PKL|PT|URL|ZIP|DIR')
@judging('--metrics', help=f'Which numbers, with commas between: {", ".join(METRICS)}. The lowest '
                           f'of the first is the best  [default: fid]', metavar='LIST')
@judging('--eval-num', help='How many images, of seeds 0, 1, ...; compare numbers of equal '
                            '--eval-num only  [default: 50000]', type=click.IntRange(min=2),
         metavar='INT')
@judging('--eval-detector', '--detector', 'eval_detector', help='What turns images into features, '
                                                                'as in fid.py: inception, demo, or '
                                                                'a file of weights  [default: '
                                                                'inception]',
         metavar='inception|demo|PATH')
@judging('--eval-steps', help='Steps of the deterministic sampler  [default: 18]',
         type=click.IntRange(min=1), metavar='INT')
@judging('--allow-mismatch', help='Compare although the reference was made otherwise', is_flag=True)
@trouble('--max-time', help='Save and leave before so much time is over, e.g. 30m, 47h, 2d; exit '
                            'code 75', type=Seconds())
@trouble('--nan-policy', help='Steps with non-finite gradients: skip them, or zero: go on with nan '
                              'replaced by 0, inf by 1e5',
         type=click.Choice(['skip', 'zero']), default=NanConfig.policy, show_default=True)
@trouble('--nan-limit', help='How many such steps in a row are borne', type=click.IntRange(min=1),
         metavar='INT', default=NanConfig.limit, show_default=True)
@trouble('--nan-then', help='What then: stop, or rollback to the last training state with half the '
                            'learning rate',
         type=click.Choice(['stop', 'rollback']), default=NanConfig.then, show_default=True)
@other('--seed', help='Random seed', type=click.IntRange(min=0), metavar='INT',
       default=TrainConfig.seed, show_default=True)
@other('-n', '--dry-run', help='Print the resolved options and stop', is_flag=True)
@one_line_errors
@naming_flags(PARAMETERS)
def main(outdir: str | None, nosubdir: bool, run: str | None, desc: str | None,
         transfer: str | None, resume: str | None, max_time: float | None, dry_run: bool,
         device: str, eval_kimg: float | None, ref: str | None, metrics: str | None,
         eval_num: int | None, eval_detector: str | None, eval_steps: int | None,
         allow_mismatch: bool, **options: Any) -> None:  # noqa: ANN401
    """Train a diffusion model on a data set of images.

    The options choose the rows of Table 1 of the EDM paper one by one; without any, the model is
    configuration F of its Table 2. The same command runs on one device and, under torchrun, on
    many. Units: KIMG and MIMG are thousands and millions of images shown.

    With --run, the same command again continues where the run was, and the result is bit for bit
    that of a run that was never interrupted. SIGTERM, SIGINT and SIGUSR1 finish the step, save
    everything and leave with exit code 75 (under torchrun, torchrun itself reports 1).

    Examples:
    # A small class-conditional model, in minutes on a CPU
    python dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip
    python train.py --outdir=runs --data=datasets/digits-16x16.zip --cond=1 --cbase=32 --cres=1,2 --blocks=1 \\
        --attn=8 --batch=64 --duration=0.064 --lr-rampup=0.01 --dropout=0 --augment=0 --tick=6.4 --snap=5 --dump=5

    # The paper's model for CIFAR-10, on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train.py --outdir=runs --data=datasets/cifar10-32x32.zip --cond=1 --arch=ddpmpp

    # The same, judged every 5 million images; the snapshot of the lowest FID is network-best.pkl
    torchrun --standalone --nproc_per_node=8 train.py --run-dir=runs/cifar10 --data=datasets/cifar10-32x32.zip --cond=1 \\
        --eval=5000 --ref=cifar10-32x32.npz

    # Prediction of v up to zero signal-to-noise ratio (Lin et al. 2023), with the labels of some images hidden for guidance
    python train.py --outdir=runs --data=datasets/digits-16x16.zip --cond=1 --label-dropout=0.1 --precond=v --schedule=scaled-linear

    # VP preconditioning, but the EDM noise distribution and weighting; only show the options
    python train.py --outdir=runs --data=datasets/digits-16x16.zip --precond=vp --noise=edm --weighting=inverse-c-out --cres=1,2 -n
    """
    start = time.monotonic()
    if (outdir is None) == (run is None):
        raise click.UsageError('give either --outdir, where the folder of the run is made, or '
                               '--run, the folder itself')
    if desc and re.search(r'[/\\\\]', desc):
        raise click.UsageError(f'--desc={desc} is part of a folder\'s name and cannot have slashes')
    # the folder of the run, if it is known beforehand
    fixed = run or (outdir if nosubdir else None)
    if resume == 'auto' and fixed is None:
        raise click.UsageError('--resume=auto needs to know the folder of the run: give --run=DIR')
    if resume not in (None, 'auto', 'never') and transfer is not None:
        raise click.UsageError('--resume and --transfer exclude each other: a training state '
                               'brings its own weights')
    local = None if transfer is None or is_url(transfer) else transfer
    for option, path in [('--resume', None if resume in ('auto', 'never') else resume),
                         ('--transfer', local)]:
        if path is not None and not os.path.isfile(path):
            raise click.UsageError(f'{option}={path}: there is no such file')
    chosen = distributed.init(device)
    config = resolve(world_size=distributed.get_world_size(), **options)
    evaluated = eval_config(config.tick_nimg, eval_kimg, ref=ref, metrics=None if metrics is None
                            else tuple(metrics.split(',')), num=eval_num, detector=eval_detector,
                            num_steps=eval_steps, allow_mismatch=allow_mismatch or None)
    if dry_run:
        distributed.print0(json.dumps(configs.encode(config), indent=2))
        distributed.shutdown()
        return
    stored = state_to_resume(resume, Path(fixed) if fixed else None)
    with config.data.open() as dataset:
        fingerprint = dataset.fingerprint()
    state, origin = prepare(config, chosen, stored, None if stored else transfer, fingerprint)
    evaluation = None if evaluated is None else WhileTraining(evaluated, state.ema.net, chosen)
    judged = evaluation is None or fixed is None or not evaluation.is_missing(Path(fixed),
                                                                              state.nimg)
    if state.nimg >= config.total_nimg and judged:
        done = f'{stored[0] if stored else "the state"} is at {state.nimg / 1000:.1f} kimg: there is nothing left to train'
        if fixed is None:
            raise ValueError(f'{done}; give a longer --duration')
        distributed.print0(f'Done: {done}.')
        distributed.shutdown()
        return
    # nothing is written before all is well
    run_dir = make_run_dir(fixed, outdir, run_name(config, options, desc))
    lock = held(run_dir / '.lock') if distributed.get_rank() == 0 else contextlib.nullcontext()
    with lock, graceful_signals() as asked_to_stop, LogFile(run_dir / 'log.txt'
                                                            if distributed.get_rank() == 0
                                                            else None):
        if distributed.get_rank() == 0:
            with atomic_write(run_dir / 'training_options.json') as file:
                file.write(json.dumps(configs.encode(config), indent=2).encode())
            if state.transferred is not None:
                with atomic_write(run_dir / 'transfer.json') as file:
                    file.write(json.dumps(state.transferred, indent=2).encode())
        announce(config, state, run_dir, str(chosen), origin, evaluated)
        try:
            training_loop(config, state, run_dir, chosen, asked_to_stop, start + max_time
                          if max_time else math.inf, evaluation)
        except Interrupted as reason:
            distributed.print0(f'Interrupted: {reason}')
            distributed.shutdown()
            sys.exit(75)   # EX_TEMPFAIL: try again
        except NonFiniteError as error:
            distributed.print0(f'Stopped: {error}')
            distributed.shutdown()
            sys.exit(1)
        distributed.print0('Done.')
    distributed.shutdown()


def state_to_resume(resume: str | None, run_dir: Path | None) -> tuple[str, dict[str, Any]] | None:
    """The name and contents of the training state to continue from, if any."""
    if resume == 'never' or (resume is None and run_dir is None):
        return None
    if resume not in (None, 'auto'):
        return resume, read_state(resume)
    assert run_dir is not None
    found = latest_state(run_dir, lambda line: distributed.print0(f'Warning: {line}'))
    if found is None and files_of(run_dir, STATE):
        raise ValueError(f'{run_dir} has training states, but none of them is whole; '
                         f'--resume=never starts anew')
    return (str(found[0]), found[1]) if found else None


@contextlib.contextmanager
def graceful_signals() -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM, SIGINT and SIGUSR1 only ask to stop; a second SIGINT stops at
    once."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        if not received:
            distributed.print0(f'{signal.Signals(number).name} received: finishing this step and '
                               f'saving')
        received.append(number)

    wanted = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1')
              if hasattr(signal, name)]
    before = {number: signal.signal(number, receive) for number in wanted}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resolve(*, data: str, cond: bool, arch: str, precond: str, noise: str | None,
            weighting: str | None, hybrid: bool | None, cbase: int | None, cres: list[int] | None,
            blocks: int | None, attn: list[int] | None, P_mean: float | None, P_std: float | None,
            sigma_data: float | None, schedule: str | None, zero_terminal_snr: bool | None,
            c_noise: str | None, duration: float, batch: int, batch_gpu: int | None, lr: float,
            lr_rampup: float, ema: list[float], ema_rampup: float, ema_power: list[float] | None,
            clip: float | None, dropout: float, label_dropout: float, augment: float, xflip: bool,
            fp16: bool, bf16: bool, ls: float | str, bench: bool, cache: bool, workers: int,
            tick: float, snap: int, dump: int, keep: int | str, keep_snapshots: int | str,
            nan_policy: str, nan_limit: int, nan_then: str, seed: int,
            world_size: int) -> TrainConfig:
    """Options -> configuration. Opens the data set to learn its shape; ValueError in one line."""
    check_batch(batch, world_size)
    if fp16 and bf16:
        raise ValueError('--fp16 and --bf16 exclude each other')
    if label_dropout and not cond:
        raise ValueError(f'--label-dropout={label_dropout:g} would have no effect without --cond=1')
    data_config = DataConfig(path=data, use_labels=cond, xflip=xflip, cache=cache, workers=workers)
    with data_config.open() as dataset:
        channels, resolution, label_dim = (dataset.num_channels, dataset.resolution,
                                           dataset.label_dim)

    cells = COLUMNS[precond]()
    numbers = {'P_mean': P_mean, 'P_std': P_std, 'sigma_data': sigma_data}
    noise_distribution = NOISE_DISTRIBUTIONS[noise]() if noise else cells.noise_distribution
    discrete = discrete_schedule(precond, noise_distribution, schedule, zero_terminal_snr)
    if discrete is not None:
        noise_distribution = UniformTimestep(discrete)
    reject_unused(numbers, cells.precond, noise_distribution)
    preconditioner = with_options(cells.precond, numbers)
    if precond == 'v':
        preconditioner = v_preconditioner(preconditioner.sigma_data, discrete, c_noise)
    elif c_noise is not None:
        raise ValueError(f'--c-noise={c_noise} would have no effect with --precond={precond}: only '
                         f'v has a choice')
    noise_distribution = with_options(noise_distribution, numbers)
    weight = WEIGHTINGS[weighting or ('inverse-c-out' if precond in ('edm', 'v')
                                      else 'inverse-variance')](preconditioner)
    loss: DenoisingLoss | VelocityLoss | HybridLoss = DenoisingLoss(noise_distribution, weight)
    if precond == 'v':
        loss = VelocityLoss(noise_distribution, weight)
    fits_hybrid = precond == 'iddpm' and noise in (None,
                                                   'iddpm') and weighting in (None,
                                                                              'inverse-variance')
    if hybrid and not fits_hybrid:
        raise ValueError('--hybrid=1 needs --precond=iddpm with its own noise levels and weighting')
    if hybrid or (hybrid is None and fits_hybrid):
        loss = HybridLoss(noise_distribution)

    return TrainConfig(
        data=data_config,
        network=network_config(arch, preconditioner, noise_distribution, channels, resolution,
                               label_dim, precision='fp16' if fp16 else 'bf16' if bf16 else 'fp32',
                               model_channels=cbase, channel_mult=cres, num_blocks=blocks,
                               attn_resolutions=attn, dropout=dropout, augment_dim=9 if augment
                               else 0),
        loss=loss,
        optimizer=OptimizerConfig(lr=lr, lr_rampup_nimg=lr_rampup * 1e6, clip=clip),
        augment=AugmentConfig(p=augment) if augment else None,
        averages=averages_of(ema, ema_rampup, ema_power or []),
        label_dropout=label_dropout,
        seed=seed,
        batch_size=batch,
        batch_gpu=batch_gpu,
        loss_scaling=None if ls == 'dynamic' else float(ls),
        nan=NanConfig(nan_policy, nan_limit, nan_then),
        total_nimg=max(round(duration * 1e6), 1),
        tick_nimg=max(round(tick * 1000), 1),
        snapshot_nimg=max(round(tick * 1000), 1) * snap,
        state_nimg=max(round(tick * 1000), 1) * dump,
        keep_states=None if keep == 'all' else int(keep),
        keep_snapshots=None if keep_snapshots == 'all' else int(keep_snapshots),
        cudnn_benchmark=bench,
    )


def eval_config(tick_nimg: int, kimg: float | None,
                **given: Any) -> EvalConfig | None:  # noqa: ANN401
    """How to judge while training, every `kimg` (None: not at all); `given` are fields of
    EvalConfig (None: not given)."""
    given = {name: value for name, value in given.items() if value is not None}
    if kimg is None:
        for name in given:
            raise ValueError(f'{EVAL_FLAGS[name]} would have no effect without --eval')
        return None
    if 'ref' not in given:
        raise ValueError(f'--eval={kimg:g} needs --ref, the statistics of the real images: fid.py '
                         f'ref makes them')
    interval = round(kimg * 1000)
    if tick_nimg < 1000:
        raise ValueError(f'--tick={tick_nimg / 1000:g} is too short for --eval, as snapshots are '
                         f'named by thousands of images: use --tick=1 or more')
    if interval == 0 or interval % tick_nimg:
        low = interval // tick_nimg * tick_nimg
        right = [f'{number / 1000:g}' for number in (low, low + tick_nimg) if number]
        raise ValueError(f'--eval={kimg:g} is not a multiple of --tick={tick_nimg / 1000:g}: use '
                         f'{" or ".join(right)}')
    return EvalConfig(interval, **given)


def discrete_schedule(precond: str, noise_distribution: Any, name: str | None,
                      zero_terminal_snr: bool | None) -> DiscreteSchedule | None:  # noqa: ANN401
    """The discrete schedule to train with, if any; ValueError for a network that its last timestep
    is too much for."""
    if not isinstance(noise_distribution, UniformTimestep):
        for option, value in (('--schedule', name), ('--zero-terminal-snr', zero_terminal_snr)):
            if value is not None:
                raise ValueError(f'{option}={value} would have no effect without --noise=timestep, '
                                 f'the noise of discrete timesteps')
        return None
    zero = precond == 'v' if zero_terminal_snr is None else zero_terminal_snr
    name = 'ddpm-linear' if name == 'linear' else name or 'scaled-linear'
    schedule = DISCRETE_SCHEDULES[name](zero_terminal_snr=zero)
    reason = COLUMNS[precond]().precond.no_infinity
    if zero and reason:
        raise ValueError(f'--precond={precond} cannot be trained with --zero-terminal-snr=1, up to '
                         f'sigma = inf: {reason}. Use --precond=v')
    return schedule


def v_preconditioner(sigma_data: float, schedule: DiscreteSchedule | None,
                     c_noise: str | None) -> V:
    if c_noise == 'timestep' and schedule is None:
        raise ValueError('--c-noise=timestep needs discrete timesteps, --noise=timestep')
    return V(sigma_data, c_noise or ('timestep' if schedule else 'angle'), schedule)


def averages_of(halflives: list[float], rampup: float,
                widths: list[float]) -> tuple[HalfLife | PowerFunction, ...]:
    """The averages to keep, the first of --ema first; ValueError for one that is given twice or
    makes no sense."""
    if any(halflife < 0 for halflife in halflives):
        raise ValueError(f'--ema={",".join(f"{h:g}" for h in halflives)}: a half-life is not '
                         f'negative')
    for width in widths:
        power_of(width)   # raises for a width that no average has
    averages = (*(HalfLife(h * 1e6, rampup or None) for h in halflives),
                *map(PowerFunction, widths))
    if len({average.name for average in averages}) < len(averages):
        raise ValueError('--ema and --ema-power name an average twice')
    return averages


def check_batch(batch: int, world_size: int) -> None:
    if batch % world_size:
        low = batch // world_size * world_size
        right = f'{low} or {low + world_size}' if low else f'{world_size}'
        raise ValueError(f'--batch={batch} is not a multiple of the {world_size} processes: use '
                         f'{right}')


def network_config(arch: str, preconditioner: Any, noise_distribution: Any, channels: int,
                   resolution: int,  # noqa: ANN401
                   label_dim: int, precision: str, **given: Any) -> NetworkConfig:  # noqa: ANN401
    """The network for such images, with the range of noise levels that it will be trained for."""
    model_type, preset = ARCHITECTURES[arch]
    levels = len(given.get('channel_mult') or preset['channel_mult'])
    there = [resolution >> level for level in range(levels)]
    for wanted in given.get('attn_resolutions') or []:
        if wanted not in there:
            raise ValueError(f'--attn={wanted} would have no effect: this network works at '
                             f'{", ".join(map(str, there))} pixels')
    sigma_min, sigma_max = sigma_range(noise_distribution)
    # whatever it was trained with, it has no levels beyond its own
    if isinstance(preconditioner, IDDPM):
        lowest, highest = sigma_range(UniformLevel(preconditioner.levels))
        sigma_min, sigma_max = max(sigma_min, lowest), min(sigma_max, highest)
    network = NetworkConfig(
        model_type=model_type, precond=preconditioner, sigma_min=sigma_min, sigma_max=sigma_max,
        img_resolution=resolution, img_channels=channels, label_dim=label_dim, precision=precision,
        model=complete_arguments(model_type,
                                 {**preset, **{k: v for k, v in given.items() if v is not None}}),
    )
    with torch.device('meta'):   # costs nothing, and says what does not fit
        build_network(network)
    return network


def make_run_dir(fixed: str | None, outdir: str | None, name: str) -> Path:
    """Make the folder of the run, the same on every rank: the fixed one, or a numbered one in
    --outdir."""
    run_dir = None
    if distributed.get_rank() == 0:
        if fixed is not None:
            run_dir = Path(fixed)
        else:
            assert outdir is not None
            names = os.listdir(outdir) if os.path.isdir(outdir) else []
            numbers = [int(match[1]) for match in (re.match(r'(\d+)(-|$)', n) for n in names)
                       if match]
            run_dir = Path(outdir) / f'{max(numbers, default=-1) + 1:05d}-{name}'
        run_dir.mkdir(parents=True, exist_ok=fixed is not None)
    return distributed.gather_objects(run_dir)[0]


def notes_on(config: TrainConfig, device: torch.device) -> list[str]:
    """What the user may not expect of these options."""
    notes = []
    if config.network.precision == 'fp16' and device.type == 'cpu':
        notes.append('--fp16 has no effect on the CPU: the network works in float32')
    if min(config.snapshot_nimg, config.state_nimg) < 1000:
        notes.append('files are named by thousands of images: those of the same thousand replace '
                     'each other')
    noise, weighting = config.loss.noise_distribution, config.loss.weighting
    if isinstance(noise, UniformTimestep) and isinstance(weighting,
                                                         InverseVariance) and math.isinf(
                                                             noise.schedule.sigma[-1]):
        notes.append('with --weighting=inverse-variance the last timestep, sigma = inf, has the '
                     'weight 0: what sampling starts with is never trained')
    return notes


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


def announce(config: TrainConfig, state: TrainState, run_dir: Path, device: str, origin: str,
             evaluated: EvalConfig | None) -> None:
    network = config.network
    num_parameters = sum(parameter.numel() for parameter in state.net.parameters())
    summary = {
        'Run folder': run_dir,
        'Data set': f'{config.data.path}, {network.img_channels} x {network.img_resolution} x '
                    f'{network.img_resolution}, {network.label_dim} classes' if network.label_dim
                    else config.data.path,
        'Network': f'{network.model_type}, {type(network.precond).__name__} preconditioning, '
                   f'{num_parameters:,} parameters, {network.precision}',
        'Loss': f'{config.loss.noise_distribution}, {type(config.loss.weighting).__name__}',
        'Batch': f'{config.batch_size} on {distributed.get_world_size()} x {device}',
        'Weights': origin,
        'Duration': f'{config.total_nimg / 1000:g} kimg, '
                    f'{-(-config.total_nimg // config.batch_size)} steps',
    }
    if evaluated is not None:
        summary['Evaluation'] = (f'{", ".join(evaluated.names)} of {evaluated.num} images against '
                                 f'{evaluated.ref}, every {evaluated.interval_nimg / 1000:g} kimg')
    for note in notes_on(config, torch.device(device)):
        distributed.print0(f'Note: {note}')
    for name, value in summary.items():
        distributed.print0(f'{name + ":":13s}{value}')


if __name__ == '__main__':
    main()
