"""Training: build, restore, step, report, judge, save.

One clock, `nimg`, the number of images shown so far: learning rate, average, data order, noise,
reports and files are functions of it. The images, augmentations, noise levels and noise of a step
follow from (seed, nimg) alone, for the whole batch, of which each rank takes its part; dropout
follows from (seed, nimg, rank, micro-batch).
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.open import open_network
from evaluation.while_training import WhileTraining
from torch_utils import distributed
from torch_utils.random import seed_of
from torch_utils.stats import Collector
from training.config import TrainConfig, due
from training.dataset import ImageFolderDataset, batches
from training.ema import EMA
from training.networks import build_network
from training.reporter import Reporter
from training.state import (
    LossScale,
    TrainState,
    differences,
    latest_state,
    network_differences,
    restore_state,
    transfer_weights,
)
from training.step import WEIGHTS, StepFunction


def prepare(config: TrainConfig, device: torch.device,
            resume: tuple[str, dict[str, Any]] | None = None, transfer: str | None = None,
            fingerprint: str = '') -> tuple[TrainState, str]:
    """The state to start from, and a line that says what it is; writes nothing.

    `resume` is a training state to continue from, its name and contents; `transfer` a snapshot to
    take weights from. Raises FileNotFoundError or ValueError in one line for what cannot be used,
    and for a state of a run with other settings or other data (`fingerprint`).
    """
    state = build(config, device)
    state.fingerprint = fingerprint
    if resume is not None:
        path, contents = resume
        told = contents['config'] is not None
        changed = differences(contents['config'],
                              config) if told else network_differences(contents['network'], config)
        if fingerprint and contents['fingerprint'] not in ('', fingerprint):
            changed.append('the images of the data set are others')
        if changed:
            raise ValueError(f'{path} belongs to a run with other settings, so it cannot be '
                             f'continued with these (--resume=never starts anew): '
                             f'{"; ".join(changed)}')
        restore_state(state, contents, path)
        return state, f'continuing from {path} at {state.nimg / 1000:.1f} kimg'
    if transfer is not None:
        copied, fresh = transfer_weights(state, open_network(transfer), transfer)
        names = ', '.join(fresh) if len(
            fresh) <= 8 else f'{", ".join(fresh[:8])} and {len(fresh) - 8} more'
        state.transferred = {'from': transfer, 'copied': copied, 'fresh': fresh}
        return (state, f'{len(copied)} of {len(copied) + len(fresh)} tensors from {transfer}; '
                       f'fresh: {names or "none"}')
    return state, 'random'


class Interrupted(Exception):  # noqa: N818 (a state of affairs, not an error)
    """The run was asked to stop before its end, and has saved everything."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


def training_loop(config: TrainConfig, state: TrainState, run_dir: Path, device: torch.device,
                  should_stop: Callable[[], bool] = lambda: False, deadline: float = math.inf,
                  evaluation: WhileTraining | None = None) -> None:
    """Train until config.total_nimg images were shown; every rank calls this.

    `run_dir` receives the snapshots, states, pictures and statistics (rank 0 writes them). After
    each step `should_stop` is asked; as soon as it says yes on any rank, or little time is left
    until the `deadline` (of time.monotonic), everything is saved and Interrupted raised. Raises
    NonFiniteError when the gradients stay non-finite.

    With an `evaluation`, a snapshot is written and judged at each of its intervals and at the end.
    This comes last: where the state was saved before, a process that continues the run takes an
    evaluation up that did not end, and `should_stop` and the deadline cut one short.
    """
    _set_precision_flags(config)
    dataset = config.data.open()
    step = StepFunction(config, state, device)
    reporter = Reporter(config, state, run_dir, device, state.fingerprint or dataset.fingerprint())
    reporter.reals(dataset)
    votes = distributed.Votes()

    def stopping() -> bool:
        return should_stop() or reporter.ready_by() > deadline

    saved = state.nimg or -1   # what the run before saved is there already
    rolled_back = True
    while rolled_back:
        rolled_back = False
        for images, labels in stream_of(dataset, config, state.nimg, device):
            done = state.nimg >= config.total_nimg
            reported = state.nimg != saved and (done or due(state.nimg, config.batch_size,
                                                            config.tick_nimg))
            if reported:
                reporter.tick(done)
            judged = evaluation is None or not evaluation.is_due(state, config, run_dir)
            if not judged or (reported and (done or due(state.nimg, config.batch_size,
                                                        config.snapshot_nimg))):
                reporter.snapshot(dataset)
            # Never amid a streak of bad steps: a roll-back needs the state before it.
            calm = state.nimg > 0 and state.bad_steps == 0
            if reported and (done or (calm and due(state.nimg, config.batch_size,
                                                   config.state_nimg))):
                reporter.training_state()
                saved = state.nimg
            if evaluation is not None and not judged:
                judged = reporter.evaluate(evaluation, stopping)
            if done and judged:
                break
            if not judged or votes.any(stopping()):
                if state.nimg not in (0, saved):
                    reporter.training_state()
                reporter.close()
                raise Interrupted(f'stopped at {state.nimg / 1000:.1f} kimg; the same command '
                                  f'continues from there')
            step(images, labels)
            reporter.progress()
            if state.bad_steps >= config.nan.limit:
                roll_back(config, state, run_dir)
                saved, rolled_back = state.nimg, True
                reporter.rewind()
                break
    reporter.close()
    distributed.barrier()


def stream_of(dataset: ImageFolderDataset, config: TrainConfig, nimg: int,
              device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of every batch from the image counter `nimg` on."""
    return batches(dataset, config.seed, nimg, config.batch_size, distributed.get_rank(),
                   distributed.get_world_size(), config.data.workers,
                   pin_memory=device.type == 'cuda')


def roll_back(config: TrainConfig, state: TrainState, run_dir: Path) -> None:
    """Back to the last training state with half the learning rate, where that is wanted and
    possible."""
    trouble = f'{state.bad_steps} steps in a row up to {state.nimg / 1000:.1f} kimg had gradients that are not finite'
    if config.nan.then == 'stop':
        raise NonFiniteError(f'{trouble}; the last training state is untouched. '
                             f'--nan-then=rollback would go back to it with half the learning rate')
    found = latest_state(run_dir, distributed.print0)
    if found is None:
        raise NonFiniteError(f'{trouble}, and there is no training state to go back to')
    factor = state.lr_factor / 2
    if factor < 2**-10:
        raise NonFiniteError(f'{trouble}, even after the learning rate was halved ten times')
    restore_state(state, found[1], str(found[0]))
    state.lr_factor, state.bad_steps = factor, 0
    distributed.print0(f'{trouble}: back to {found[0]} with {factor:g} of the learning rate')


def _set_precision_flags(config: TrainConfig) -> None:
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def build(config: TrainConfig, device: torch.device) -> TrainState:
    """The state of a run at nimg = 0: the same weights on every rank."""
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    net = build_network(config.network).train().requires_grad_(True).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.optimizer.lr,
                                 betas=config.optimizer.betas, eps=config.optimizer.eps)
    loss_scale = LossScale(config.loss_scaling) if config.loss_scaling is not None else LossScale(
        2.0**16, dynamic=True)
    return TrainState(net=net, averages={average.name: EMA(net) for average in config.averages},
                      optimizer=optimizer, stats=Collector(device), loss_scale=loss_scale)


