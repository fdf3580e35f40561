"""Reports."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tqdm
from torch import Tensor

from dnnlib.cli import is_terminal
from evaluation.while_training import WhileTraining, choose_best
from limpid.denoiser import Denoiser
from limpid.pixels import to_uint8
from limpid.sampling import plan
from limpid.seeds import StackedGenerator
from metrics.one_pass import Stopped
from torch_utils import distributed
from torch_utils.grids import save_grid
from training.config import TrainConfig
from training.dataset import ImageFolderDataset
from training.state import (
    SNAPSHOT,
    TrainState,
    file_of,
    prune_states,
    read_best,
    save_snapshot,
    save_state,
    thin_snapshots,
)
from training.stats_file import add_numbers, forget_statistics

GRID = 10   # columns of the pictures, and at most as many rows


class Reporter:
    """Status lines, statistics, pictures and files of a run."""

    def __init__(self, config: TrainConfig, state: TrainState, run_dir: Path, device: torch.device,
                 fingerprint: str) -> None:
        self.config, self.state, self.run_dir, self.device = config, state, run_dir, device
        self.fingerprint = fingerprint
        self.is_first = distributed.get_rank() == 0
        self.start = self.tick_start = time.monotonic()
        self.start_nimg = self.tick_nimg = state.nimg
        self.start_seconds = state.seconds
        self.maintenance = self.longest_save = self.longest_step = 0.0
        self.last_step = self.start
        self.bar: tqdm.tqdm[Any] | None = None
        if self.is_first:
            self._forget()
        if self.is_first and is_terminal():
            self.bar = tqdm.tqdm(total=config.total_nimg / 1000, initial=state.nimg / 1000,
                                 leave=False, bar_format='{l_bar}{bar}| {n:.1f}/{total:.1f} kimg '
                                                         '[{elapsed}<{remaining}]')

    def progress(self) -> None:
        """Call after every step."""
        now = time.monotonic()
        self.longest_step, self.last_step = max(self.longest_step, now - self.last_step), now
        if self.bar is not None:
            self.bar.update(self.state.nimg / 1000 - self.bar.n)

    def ready_by(self) -> float:
        """When another step and saving everything will be done, with half as much again to be
        safe."""
        return time.monotonic() + 1.5 * (self.longest_step + self.longest_save)

    def rewind(self) -> None:
        """The run went back to an earlier state: so do its statistics."""
        self.tick_nimg, self.tick_start, self.maintenance = self.state.nimg, time.monotonic(), 0.0
        self.start_nimg, self.start, self.start_seconds = (self.state.nimg, time.monotonic(),
                                                           self.state.seconds)
        if self.is_first:
            self._forget()

    def _forget(self) -> None:
        """Leave out of the statistics, and of the choice of the best snapshot, what comes after the
        state."""
        forget_statistics(self.run_dir / 'stats.jsonl', self.state.nimg)
        best = read_best(self.run_dir)
        if best is not None:
            choose_best(self.run_dir, best['metric'], best['evaluation'])

    def tick(self, done: bool) -> None:
        """Print the status line and append to stats.jsonl; collective."""
        self.state.seconds = self.start_seconds + time.monotonic() - self.start
        losses = self.state.stats.take()
        nonfinite = losses.get('Loss/nonfinite_gradients', {}).get('mean', 0)
        now = time.monotonic()
        kimg = (self.state.nimg - self.tick_nimg) / 1000
        seconds = now - self.tick_start - self.maintenance
        left = (self.config.total_nimg - self.state.nimg) / 1000
        pace = (now - self.start) / max((self.state.nimg - self.start_nimg) / 1000, 1e-9)
        numbers = {
            'Progress/tick': self.state.nimg // self.config.tick_nimg,
            'Progress/kimg': self.state.nimg / 1000,
            'Progress/lr_factor': self.state.lr_factor,
            'Progress/loss_scale': self.state.loss_scale.scale,
            'Timing/total_sec': self.state.seconds,
            'Timing/sec_per_tick': seconds,
            'Timing/sec_per_kimg': seconds / kimg if kimg else 0.0,
            'Timing/maintenance_sec': self.maintenance,
            'Resources/cpu_mem_gb': psutil.Process().memory_info().rss / 2**30,
            **_gpu_memory(self.device),
        }
        line = ' '.join([
            f"tick {numbers['Progress/tick']:<5d}",
            f"kimg {numbers['Progress/kimg']:<9.1f}",
            f"loss {losses['Loss/loss']['mean']:<8.4f}" if losses else 'loss -       ',
            f"time {duration(self.state.seconds):<12s}",
            f"sec/tick {seconds:<7.1f}",
            f"sec/kimg {numbers['Timing/sec_per_kimg']:<7.2f}",
            f'maintenance {self.maintenance:<6.1f}',
            f"cpumem {numbers['Resources/cpu_mem_gb']:<6.2f}",
            f"gpumem {numbers['Resources/peak_gpu_mem_gb']:<6.2f}",
            f'left '
            f'{duration(left * pace) if self.state.nimg > self.start_nimg and not done else "-"}',
        ])
        if nonfinite:
            line += f'  NON-FINITE gradients in {nonfinite:.0%} of the steps'
        self._say(line.rstrip())
        if self.is_first:
            entry: dict[str, Any] = {name: {'num': 1, 'mean': value, 'std': 0}
                                     for name, value in numbers.items()}
            with open(self.run_dir / 'stats.jsonl', 'a') as file:
                file.write(json.dumps({**losses, **entry, 'timestamp': time.time()}) + '\n')
        self.tick_start, self.tick_nimg, self.maintenance = now, self.state.nimg, 0.0

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        distributed.print0(line)
        if self.bar is not None:
            self.bar.refresh()

    @contextlib.contextmanager
    def _as_maintenance(self, is_save: bool = True) -> Iterator[None]:
        start = self.last_step = time.monotonic()
        yield
        self.last_step = time.monotonic()
        self.maintenance += self.last_step - start
        if is_save:
            self.longest_save = max(self.longest_save, self.last_step - start)

    def snapshot(self, dataset: ImageFolderDataset) -> None:
        """Write the averaged network and a picture of what it generates; collective."""
        with self._as_maintenance():
            if self.is_first:
                save_snapshot(self.state, self.config, self.run_dir)
                thin_snapshots(self.run_dir, self.config.keep_snapshots)
            labels, columns = grid_labels(dataset)
            images = generate_grid(self.state.ema.net, labels, self.device)
            if self.is_first:
                save_grid(images, self.run_dir / f'fakes{self.state.nimg // 1000:06d}.png', columns)

    def training_state(self) -> None:
        """Write all that is needed to continue; collective."""
        stats = distributed.gather_objects(self.state.stats.state_dict())
        self.state.seconds = self.start_seconds + time.monotonic() - self.start
        with self._as_maintenance():
            if self.is_first:
                save_state(self.state, self.config, self.run_dir, self.fingerprint, stats)
                prune_states(self.run_dir, self.config.keep_states)

    def evaluate(self, evaluation: WhileTraining, stopping: Callable[[], bool]) -> bool:
        """Judge the averaged network, note the numbers, choose the best snapshot: False where
        stopped; collective.

        Images that are not finite leave a line and numbers without a value, and training goes on.
        """
        def asked() -> bool:
            # a batch of images is what cannot be cut short here, as a step is in training
            self.progress()
            return stopping()

        start = time.monotonic()
        trouble, found = '', {}
        with self._as_maintenance(is_save=False):
            try:
                result = evaluation(self.state.ema.net, self.run_dir, asked)
                if isinstance(result, Stopped):
                    return False
                found = {} if result is None else result.scores
            except ValueError as error:
                trouble = f'no numbers: {error}'
            if self.is_first:
                numbers = {name: found.get(name, math.nan) for name in evaluation.config.names}
                self._note(evaluation, numbers, trouble, time.monotonic() - start)
        return True

    def _note(self, evaluation: WhileTraining, numbers: dict[str, float], trouble: str,
              seconds: float) -> None:
        config, nimg = evaluation.config, self.state.nimg
        add_numbers(self.run_dir / 'stats.jsonl', nimg, numbers, evaluation.protocol)
        best = choose_best(self.run_dir, config.names[0], evaluation.protocol)
        self._say('  '.join([
            f'evaluation at kimg {nimg / 1000:<9.1f}',
            trouble or '  '.join(f'{name} {value:<7.5g}' for name, value in numbers.items()),
            f'images {config.num}',
            f'time {duration(seconds)}',
            *(['best so far'] if best == file_of(self.run_dir, SNAPSHOT, nimg) else []),
        ]))

    def reals(self, dataset: ImageFolderDataset) -> None:
        """Write a picture of training images, one row a class, unless it is there."""
        path = self.run_dir / 'reals.png'
        if self.is_first and not path.exists():
            labels, columns = grid_labels(dataset)
            save_grid(real_images(dataset, labels), path, columns)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _gpu_memory(device: torch.device) -> dict[str, float]:
    allocated = reserved = 0
    if device.type == 'cuda':
        allocated, reserved = torch.cuda.max_memory_allocated(
            device), torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    return {'Resources/peak_gpu_mem_gb': allocated / 2**30,
            'Resources/peak_gpu_mem_reserved_gb': reserved / 2**30}


def duration(seconds: float) -> str:
    """1d 02h, 3h 04m, 5m 06s or 7s"""
    s = round(seconds)
    if s >= 86400:
        return f'{s // 86400}d {s % 86400 // 3600:02d}h'
    if s >= 3600:
        return f'{s // 3600}h {s % 3600 // 60:02d}m'
    return f'{s // 60}m {s % 60:02d}s' if s >= 60 else f'{s}s'


def grid_labels(dataset: ImageFolderDataset) -> tuple[Tensor, int]:
    """Labels [N, label_dim] of the picture, and its number of columns: one row a class where that
    fits.

    For labels that are vectors, those of the first images; N is at most 100, fewer for large
    images.
    """
    columns = max(2, min(GRID, 1280 // dataset.resolution))
    if dataset.label_dim == 0:
        return torch.zeros([columns**2, 0]), columns
    if dataset.has_onehot_labels:
        classes = torch.arange(min(dataset.label_dim, columns)).repeat_interleave(columns)
        return torch.nn.functional.one_hot(classes, dataset.label_dim).to(torch.float32), columns
    rows = [dataset.get_label(i % len(dataset)) for i in range(columns**2)]
    return torch.as_tensor(np.stack(rows)), columns


def real_images(dataset: ImageFolderDataset, labels: Tensor) -> np.ndarray:
    """The first training images with these labels, uint8 [N, C, H, W]; black where there are too
    few."""
    images = np.zeros([len(labels), *dataset.image_shape], dtype=np.uint8)
    wanted: dict[bytes, list[int]] = {}
    for place, label in enumerate(labels.numpy()):
        wanted.setdefault(label.tobytes(), []).append(place)
    for index in range(len(dataset)):
        places = wanted.get(dataset.get_label(index).astype(np.float32).tobytes())
        if places:
            images[places.pop(0)] = dataset[index][0]
        if not any(wanted.values()):
            break
    return images


def generate_grid(net: Denoiser, labels: Tensor, device: torch.device,
                  batch: int = 64) -> np.ndarray:
    """Images of seeds 0, 1, … with these labels by the deterministic sampler, uint8 [N, C, H, W].

    Each rank makes its share; collective.
    """
    drawing = plan(net)
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    mine = torch.arange(len(labels))[rank::world_size]
    parts = []
    for seeds in mine.split(batch):
        generator = StackedGenerator(seeds.tolist(), device)
        noise = generator.randn([len(seeds), net.img_channels, net.img_resolution,
                                 net.img_resolution])
        chosen = labels[seeds].to(device) if net.label_dim else None
        parts.append(to_uint8(drawing(net, noise, chosen)).cpu().numpy())
    images = np.zeros([len(labels), net.img_channels, net.img_resolution, net.img_resolution],
                      dtype=np.uint8)
    for other, theirs in enumerate(distributed.gather_objects(np.concatenate(parts) if parts
                                                              else None)):
        if theirs is not None:
            images[other::world_size] = theirs
    return images
