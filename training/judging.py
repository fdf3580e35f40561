"""Judging between steps: the numbers of the averaged network, and the best snapshot so far.

This module knows only the members of an evaluation; evaluation.while_training implements them.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from limpid.denoiser import Denoiser
from torch_utils import distributed
from training.clock import Clock
from training.config import TrainConfig
from training.reporter import Reporter, duration
from training.run_folder import SNAPSHOT, choose_best, file_of
from training.state import TrainState
from training.stats_file import add_numbers

LINALG_ERROR: type[Exception] = torch.linalg.LinAlgError   # type: ignore[attr-defined]


class Evaluation(Protocol):
    """A judge of the averaged network of a run at intervals; all ranks call it together."""

    @property
    def names(self) -> list[str]:
        """The names of its numbers; the snapshot with the lowest of the first is the best."""
        ...

    @property
    def num_images(self) -> int:
        """The number of images that it generates."""
        ...

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that numbers must have in common to be compared."""
        ...

    def is_due(self, state: TrainState, config: TrainConfig, run_dir: Path) -> bool:
        """Return whether the present network is due to be judged and, by stats.jsonl, was not."""
        ...

    def numbers(self, net: Denoiser, run_dir: Path,
                stopping: Callable[[], bool]) -> dict[str, float] | None:
        """Return the numbers of a network by name, on rank 0; {} on the others.

        `stopping` is called again and again; if it returns true on any rank, the result is None.
        Raises ValueError, on all ranks, for images that are not finite.
        """
        ...


def judge(evaluation: Evaluation, state: TrainState, run_dir: Path, reporter: Reporter,
          clock: Clock, stopping: Callable[[], bool], net: Denoiser | None = None) -> bool:
    """Judge the averaged network, note its numbers and choose the best snapshot.

    Returns False if it was stopped. If images are not finite, a line says so, the numbers are
    stored without a value, and training goes on. `net` is that network where the state has only
    parts of it. Collective.
    """
    def asked() -> bool:
        reporter.progress()   # a batch of images is as indivisible as a step
        return stopping()

    start, trouble = time.monotonic(), ''
    with clock.pausing_training():
        try:
            found = evaluation.numbers(net or state.ema.net, run_dir, asked)
        except (ValueError, ArithmeticError, LINALG_ERROR) as error:
            found, trouble = {}, f'no numbers: {" ".join(str(error).split())}'
        if found is None:
            return False
        if distributed.get_rank() == 0:
            numbers = {name: found.get(name, math.nan) for name in evaluation.names}
            add_numbers(run_dir / 'stats.jsonl', state.nimg, numbers, evaluation.protocol, trouble)
            reporter.loggers.numbers(state.nimg, {f'Metrics/{name}': value
                                                  for name, value in numbers.items()})
            best = choose_best(run_dir, evaluation.names[0], evaluation.protocol)
            is_best = best == file_of(run_dir, SNAPSHOT, state.nimg)
            shown = '  '.join(f'{name} {value:<7.5g}' for name, value in numbers.items())
            reporter.say('  '.join([
                f'evaluation at kimg {state.nimg / 1000:<9.1f}',
                trouble or shown,
                f'images {evaluation.num_images}',
                f'time {duration(time.monotonic() - start)}',
                *(['best so far'] if is_best else []),
            ]))
    return True
