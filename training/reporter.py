"""Reports: the status line, the bar of progress, and the lines of stats.jsonl."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
import tqdm

from dnnlib.cli import is_terminal
from dnnlib.files import append_line
from torch_utils import distributed
from training.clock import Clock
from training.config import TrainConfig, learning_rate
from training.curves import Curve
from training.loggers import Loggers
from training.run_folder import forget_after
from training.state import TrainState
from training.stats_file import SIGMA_RANGES, read_statistics, strict
from training.validation import line_of
from training.work import Work

Statistics = dict[str, dict[str, float]]   # name -> num, mean and std

BAR = '{l_bar}{bar}| {n:.1f}/{total:.1f} kimg [{elapsed}<{remaining}]'


class Reporter:
    """A reporter that prints and stores the progress of training; `with` closes its bar.

    Statistics of steps after the state, which a killed run reported but did not save, are removed
    at the beginning. `curve`, on rank 0, is what the loss is compared with.
    """

    def __init__(self, config: TrainConfig, state: TrainState, run_dir: Path,
                 device: torch.device, clock: Clock, loggers: Loggers | None = None,
                 curve: Curve | None = None) -> None:
        self.config, self.state, self.run_dir, self.device = config, state, run_dir, device
        self.clock, self.loggers, self.curve = clock, loggers or Loggers(), curve
        self.is_first = distributed.get_rank() == 0
        self.work = Work.of(config.network, device) if self.is_first else None
        self.bar: tqdm.tqdm[Any] | None = None
        self._begin()

    def __enter__(self) -> 'Reporter':
        if self.is_first and is_terminal():
            self.bar = tqdm.tqdm(total=self.config.total_nimg / 1000,
                                 initial=self.state.nimg / 1000, leave=False, bar_format=BAR)
        if self.curve is not None and self.state.nimg < self.curve.nimg[-1]:
            self.say(self.curve.announcement())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._with_bar(lambda bar: bar.close())

    def _with_bar(self, action: Callable[['tqdm.tqdm[Any]'], object]) -> None:
        """Do something with the bar, if there is one; without its terminal it is no more."""
        try:
            if self.bar is not None:
                action(self.bar)
        except (OSError, ValueError):
            self.bar = None

    def _begin(self) -> None:
        self.start_nimg = self.tick_nimg = self.state.nimg
        self.tick_start = self.clock.start
        if self.is_first:
            forget_after(self.run_dir, self.state.nimg)
            self.loggers.goes_on_from(self.state.nimg)

    def rewind(self) -> None:
        """Follow the run back to an earlier state, and remove later statistics."""
        self.clock.restart(self.state.seconds)
        self._begin()

    def progress(self) -> None:
        """Note the end of a step."""
        self.clock.step()
        self._with_bar(lambda bar: bar.update(self.state.nimg / 1000 - bar.n))

    def say(self, line: str) -> None:
        """Print a line, on rank 0, above the bar."""
        self._with_bar(lambda bar: bar.clear())
        distributed.print0(line)
        self._with_bar(lambda bar: bar.refresh())

    def tick(self, done: bool, held_out: Statistics | None = None) -> None:
        """Print the status line and append to stats.jsonl; `done` at the end. Collective.

        `held_out` are the losses of Validation.measure, if they are measured.
        """
        self.state.seconds = self.clock.seconds()
        losses = {name: entry for name, entry in self.state.stats.take().items()
                  if entry['num'] or name not in SIGMA_RANGES}
        now = time.monotonic()
        numbers = self._numbers(now)
        self.say(self._status_line(numbers, losses, now, done))
        if held_out:
            self.say(line_of(held_out))
        if self.is_first:
            line: dict[str, Any] = {**losses, **(held_out or {}),
                                    **{name: {'num': 1, 'mean': value, 'std': 0}
                                       for name, value in numbers.items()}}
            append_line(self.run_dir / 'stats.jsonl',
                        json.dumps(strict({**line, 'timestamp': time.time()})))
            self.loggers.numbers(self.state.nimg, {name: entry['mean']
                                                   for name, entry in line.items()})
            if self.curve is not None and self.state.nimg in self.curve.nimg:
                verdict = self.curve.verdict(read_statistics(self.run_dir / 'stats.jsonl'))
                if verdict:
                    self.say(verdict)
        self.tick_start, self.tick_nimg, self.clock.maintenance = now, self.state.nimg, 0.0

    def _numbers(self, now: float) -> dict[str, float]:
        kimg = (self.state.nimg - self.tick_nimg) / 1000
        seconds = now - self.tick_start - self.clock.maintenance
        images_per_second = 1000 * kimg / seconds if seconds > 0 else 0.0
        pace = images_per_second / distributed.get_world_size()
        return {
            'Progress/tick': self.state.nimg // self.config.tick_nimg,
            'Progress/kimg': self.state.nimg / 1000,
            'Progress/lr_factor': self.state.lr_factor,
            'Progress/loss_scale': self.state.loss_scale.scale,
            'Training/learning_rate': (learning_rate(self.state.nimg, self.config.optimizer)
                                       * self.state.lr_factor),
            'Timing/total_sec': self.state.seconds,
            'Timing/sec_per_tick': seconds,
            'Timing/sec_per_kimg': seconds / kimg if kimg else 0.0,
            'Timing/images_per_sec': images_per_second,
            **(self.work.numbers(pace) if self.work is not None else {}),
            'Timing/maintenance_sec': self.clock.maintenance,
            'Resources/cpu_mem_gb': psutil.Process().memory_info().rss / 2**30,
            **_gpu_memory(self.device),
        }

    def _status_line(self, numbers: dict[str, float], losses: Statistics, now: float,
                     done: bool) -> str:
        loss = '-       '   # before the first step, and where no step was a good one
        if 'Loss/loss' in losses:
            loss = f"{losses['Loss/loss']['mean']:<8.4f}"
        utilisation = numbers.get('Timing/utilisation', 0.0)   # other ranks print nothing
        line = ' '.join([
            f"tick {numbers['Progress/tick']:<5d}",
            f"kimg {numbers['Progress/kimg']:<9.1f}",
            f'loss {loss}',
            f"time {duration(self.state.seconds):<12s}",
            f"sec/tick {numbers['Timing/sec_per_tick']:<7.1f}",
            f"sec/kimg {numbers['Timing/sec_per_kimg']:<7.2f}",
            f"mfu {utilisation:<6.1%}",
            f"maintenance {numbers['Timing/maintenance_sec']:<6.1f}",
            f"cpumem {numbers['Resources/cpu_mem_gb']:<6.2f}",
            f"gpumem {numbers['Resources/peak_gpu_mem_gb']:<6.2f}",
            f'left {"-" if done else self._time_left(now)}',
        ])
        nonfinite = losses.get('Loss/nonfinite_gradients', {}).get('mean', 0)
        if nonfinite:
            line += f'  NON-FINITE gradients in {nonfinite:.0%} of the steps'
        return line.rstrip()

    def _time_left(self, now: float) -> str:
        if self.state.nimg == self.start_nimg:
            return '-'
        pace = (now - self.clock.start) / (self.state.nimg - self.start_nimg)
        return duration((self.config.total_nimg - self.state.nimg) * pace)


def _gpu_memory(device: torch.device) -> dict[str, float]:
    allocated = reserved = 0
    if device.type == 'cuda':
        allocated = torch.cuda.max_memory_allocated(device)
        reserved = torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    return {'Resources/peak_gpu_mem_gb': allocated / 2**30,
            'Resources/peak_gpu_mem_reserved_gb': reserved / 2**30}


def duration(seconds: float) -> str:
    """Return a time as 1d 02h, 3h 04m, 5m 06s or 7s."""
    s = round(seconds)
    if s >= 86400:
        return f'{s // 86400}d {s % 86400 // 3600:02d}h'
    if s >= 3600:
        return f'{s // 3600}h {s % 3600 // 60:02d}m'
    return f'{s // 60}m {s % 60:02d}s' if s >= 60 else f'{s}s'
