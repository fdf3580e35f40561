"""Training: build, restore, step, report, judge, save.

One clock, `nimg`, the number of images shown so far: learning rate, average, data order, noise,
reports and files are functions of it. The images, augmentations, noise levels and noise of a step
follow from (seed, nimg) alone, for the whole batch, of which each rank takes its part; dropout
follows from (seed, nimg, rank, micro-batch).
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limpid.denoiser import Denoiser
from torch_utils import distributed
from torch_utils.random import seed_of
from torch_utils.stats import Collector
from training.clock import Clock
from training.compiled import set_tf32
from training.config import TrainConfig, due
from training.curves import curve_of
from training.dataset import ImageFolderDataset, batches
from training.ema import EMA
from training.judging import Evaluation, judge
from training.loggers import Loggers
from training.networks import build_network
from training.reporter import Reporter
from training.saver import Saver
from training.sharding import shard
from training.state import (
    OTHER_DATA,
    LossScale,
    TrainState,
    differences,
    latest_state,
    network_differences,
    permission_for,
    restore_state,
    transfer_weights,
)
from training.step import WEIGHTS, StepFunction
from training.validation import Validation


class Interrupted(Exception):  # noqa: N818 (a state of affairs, not an error)
    """An interruption: the run was asked to stop before its end, and has saved everything."""


class NonFiniteError(RuntimeError):
    """An error for too many steps in a row with gradients that are not finite."""


class OtherSettingsError(ValueError):
    """An error for a training state of a run with other settings or data, listed in `changed`."""

    def __init__(self, origin: str, changed: list[str]) -> None:
        super().__init__(f'{origin} belongs to a run with other settings, so it cannot be '
                         f'continued with these: {"; ".join(changed)}')
        self.origin, self.changed = origin, changed


def prepare(config: TrainConfig, device: torch.device,
            resume: tuple[str, dict[str, Any]] | None = None,
            transfer: tuple[str, Denoiser] | None = None,
            fingerprint: str = '', allow: Collection[str] = ()) -> tuple[TrainState, str]:
    """Return the state to start from, and a line that describes it, without writing anything.

    resume       the name and the contents of a training state to continue from
    transfer     the name of a network to take weights from, and the network
    fingerprint  that of the data set
    allow        what may have changed since the training state: names of CHANGEABLE, and 'data'

    Raises OtherSettingsError for a state of a run with other settings or other data, and ValueError
    in one line for anything else that cannot be used.
    """
    state = build(config, device)
    state.fingerprint = fingerprint
    if resume is not None:
        origin, contents = resume
        state.changes = check_same_run(origin, contents, config, fingerprint, allow)
        restore_state(state, contents, origin,
                      other_averages='ema' in map(permission_for, state.changes))
        return state, f'continuing from {origin} at {state.nimg / 1000:.1f} kimg'
    if transfer is not None:
        origin, source = transfer
        copied, fresh = transfer_weights(state, source, origin)
        state.transferred = {'from': origin, 'copied': copied, 'fresh': fresh}
        names = ', '.join(fresh[:8])
        if len(fresh) > 8:
            names += f' and {len(fresh) - 8} more'
        return state, (f'{len(copied)} of {len(copied) + len(fresh)} tensors from {origin}; '
                       f'fresh: {names or "none"}')
    return state, 'random'


def check_same_run(origin: str, contents: dict[str, Any], config: TrainConfig,
                   fingerprint: str, allow: Collection[str] = ()) -> list[str]:
    """Return what has changed since a training state, all of which is in `allow`.

    Raises OtherSettingsError where something else has: the state is none of a run with this
    `config`.
    """
    if contents['config'] is not None:
        changed = differences(contents['config'], config)
    else:   # a published file, which tells of the network alone
        changed = network_differences(contents['network'], config)
    if fingerprint and contents['fingerprint'] not in ('', fingerprint):
        changed.append(OTHER_DATA)
    refused = [change for change in changed if permission_for(change) not in allow]
    if refused:
        raise OtherSettingsError(origin, refused)
    return changed


def training_loop(config: TrainConfig, state: TrainState, run_dir: Path, device: torch.device,
                  should_stop: Callable[[], bool] = lambda: False, deadline: float = math.inf,
                  evaluation: Evaluation | None = None,
                  dataset: ImageFolderDataset | None = None,
                  validation: Validation | None = None,
                  loggers: Loggers | None = None) -> None:
    """Train until config.total_nimg images were shown; every rank calls this.

    `run_dir` receives the snapshots, states, pictures and statistics (rank 0 writes them). After
    each step `should_stop` is asked; as soon as it says yes on any rank, or little time is left
    until the `deadline` (of time.monotonic), everything is saved and Interrupted raised. Raises
    NonFiniteError when the gradients stay non-finite. Any other error, such as ValueError for a
    damaged image, comes after the state was saved, too. `dataset` is config.data, where it is open
    already. The losses of a `validation` are part of each report. `loggers`, on rank 0, get the
    numbers and the pictures too.

    With an `evaluation`, a snapshot is written and judged at each of its intervals and at the end.
    This comes last: if the state has been saved by then, a process that continues the run also
    completes an evaluation that did not end. `should_stop` and the deadline cut an evaluation
    short, too.
    """
    _set_precision_flags(config)
    dataset = config.data.open() if dataset is None else dataset
    if dataset.cache == 'mmap':   # all ranks wait here for the one that makes the file
        dataset.share(distributed.on_rank_0(dataset.key))
    images_and_labels = stream_of(dataset, config, state, device)
    if config.shard:
        shard(state, device)
    step = StepFunction(config, state, device)
    clock = Clock(state.seconds)
    loggers = loggers or Loggers()
    saver = Saver(config, state, run_dir, device, dataset, clock, loggers)
    votes = distributed.Votes()

    def stopping() -> bool:
        return should_stop() or clock.ready_by() > deadline

    curve = curve_of(config, dataset, run_dir) if distributed.get_rank() == 0 else None
    reporter = Reporter(config, state, run_dir, device, clock, loggers, curve)
    with reporter, saving_what_there_is(saver):
        saver.real_images()
        while True:
            now = due_now(config, state, saver.saved)
            if now.report:
                with clock.pausing_training():
                    held_out = None if validation is None else validation.measure(state)
                reporter.tick(now.end, held_out)
            judging = evaluation is not None and evaluation.is_due(state, config, run_dir)
            if now.snapshot or judging:
                saver.snapshot()
            if now.state:
                saver.training_state()
            elif judging and config.state_seconds is not None and state.bad_steps == 0:
                saver.last_state()   # judging takes long, and the clock saves between steps only
            stopped = (evaluation is not None and judging
                       and not judge(evaluation, state, run_dir, reporter, clock, stopping,
                                      saver.drawing_network()))
            if now.end and not stopped:
                break
            batch, trouble = next_batch(images_and_labels)
            stop, late = votes.each(stopped or trouble != '' or stopping(), saver.is_late())
            if stop:
                saver.last_state()
                raise_on_all(trouble, saver)
                raise Interrupted(f'stopped at {state.nimg / 1000:.1f} kimg; the same command '
                                  f'continues from there')
            if late and state.bad_steps == 0:
                saver.last_state()
            step(*batch)
            reporter.progress()
            if verdict := step.verdict():
                reporter.say(verdict)
            if state.bad_steps >= config.nan.limit:
                roll_back(config, state, run_dir)
                saver.rewind()
                reporter.rewind()
    distributed.barrier()


@contextlib.contextmanager
def saving_what_there_is(saver: Saver) -> Iterator[None]:
    """Write the training state of now where an error ends the block, and let the error pass.

    Of several ranks, the one that has the error writes: the others wait for it, and end when it
    has gone (a ConnectionError), or are ended by the launcher. Nothing is written amid an update,
    nor for gradients that are not finite, whose weights may be spoilt.
    """
    try:
        yield
    except (Interrupted, NonFiniteError):
        raise
    except Exception as error:
        if distributed.is_loss_of_a_peer(error):
            raise ConnectionError(f'process {distributed.get_rank()} has lost another one, which '
                                  f'has ended; its message says why') from error
        if saver.state.is_whole:
            with contextlib.suppress(Exception):   # the first error is the one to report
                saver.last_state(alone=True)
                if saver.saved > 0:
                    say_what_is_saved(saver)
        raise


def next_batch(batches_of_run: Iterator[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], str]:
    """Return images and labels, and what is wrong with them: '' where nothing is."""
    try:
        return list(next(batches_of_run)), ''
    except ValueError as error:
        return [], str(error)


def raise_on_all(trouble: str, saver: Saver) -> None:
    """Raise ValueError, on all ranks, with the first `trouble` that any of them has; collective."""
    troubles = [found for found in distributed.gather_objects(trouble) if found]
    if troubles:
        if distributed.get_world_size() > 1 and distributed.get_rank() == 0:
            say_what_is_saved(saver)
        raise ValueError(troubles[0])


def say_what_is_saved(saver: Saver) -> None:
    """Print up to where an error costs nothing."""
    print(f'Stopped by an error: everything up to {saver.saved / 1000:.1f} kimg is saved',
          flush=True)


@dataclass(frozen=True)
class Due:
    """The tasks at an image counter, before the next step."""
    end: bool        # no step is left
    report: bool     # print and store statistics
    snapshot: bool   # write a snapshot
    state: bool      # write a training state


def due_now(config: TrainConfig, state: TrainState, saved: int) -> Due:
    """Return what is due at state.nimg; nothing where a training state of it is `saved` already.

    Everything happens at ticks and at the end, which are reported.
    """
    end = state.nimg >= config.total_nimg

    def reached(interval: int) -> bool:
        return end or due(state.nimg, config.batch_size, interval)

    report = state.nimg != saved and reached(config.tick_nimg)
    # Never amid a streak of bad steps: a roll-back needs the state before it.
    calm = end or (state.nimg > 0 and state.bad_steps == 0)
    return Due(end, report, snapshot=report and reached(config.snapshot_nimg),
               state=report and calm and reached(config.state_nimg))


def stream_of(dataset: ImageFolderDataset, config: TrainConfig, state: TrainState,
              device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's share of the batch at state.nimg, which may also go back."""
    while True:
        nimg = state.nimg
        for images, labels in batches(dataset, config.seed, nimg, config.batch_size,
                                      distributed.get_rank(), distributed.get_world_size(),
                                      config.data.workers, pin_memory=device.type == 'cuda'):
            yield images, labels
            nimg += config.batch_size
            if state.nimg != nimg:
                break


def roll_back(config: TrainConfig, state: TrainState, run_dir: Path) -> None:
    """Go back to the last training state with half the learning rate.

    Raises NonFiniteError if that is not wanted (config.nan.then is 'stop') or not possible.
    """
    trouble = (f'{state.bad_steps} steps in a row up to {state.nimg / 1000:.1f} kimg had gradients '
               f'that are not finite')
    if config.nan.then == 'stop':
        raise NonFiniteError(f'{trouble}; the last training state is untouched')
    found = latest_state(run_dir, distributed.print0)
    if found is None:
        raise NonFiniteError(f'{trouble}, and there is no training state to go back to')
    factor = state.lr_factor / 2
    if factor < 2**-10:
        raise NonFiniteError(f'{trouble}, even after the learning rate was halved ten times')
    restore_state(state, found[1], str(found[0]), other_averages=True)
    state.lr_factor, state.bad_steps = factor, 0
    distributed.print0(f'{trouble}: back to {found[0]} with {factor:g} of the learning rate')


def _set_precision_flags(config: TrainConfig) -> None:
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    set_tf32(config.network.precision == 'tf32')


def build(config: TrainConfig, device: torch.device) -> TrainState:
    """Return the state of a run at nimg = 0, with the same weights on every rank."""
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    # What is divided among the ranks later on may be too large for one of them.
    place = torch.device('cpu') if config.shard else device
    net = build_network(config.network).train().requires_grad_(True).to(place)
    beta1, beta2 = config.optimizer.betas
    decay = config.optimizer.weight_decay
    Adam = torch.optim.AdamW if decay else torch.optim.Adam
    optimizer = Adam(net.parameters(), lr=config.optimizer.lr, betas=(beta1, beta2),
                     eps=config.optimizer.eps, weight_decay=decay,
                     fused=place.type in ('cpu', 'cuda'))   # one pass over memory
    loss_scale = LossScale(2.0**16, dynamic=True)
    if config.loss_scaling is not None:
        loss_scale = LossScale(config.loss_scaling)
    return TrainState(net=net, averages={average.name: EMA(net) for average in config.averages},
                      optimizer=optimizer, stats=Collector(device), loss_scale=loss_scale)


