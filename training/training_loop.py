"""Training: build, restore, step, report, save.

One clock, `nimg`, the number of images shown so far: learning rate, average, data order, noise,
reports and files are functions of it. The images, augmentations, noise levels and noise of a step
follow from (seed, nimg) alone, for the whole batch, of which each rank takes its part; dropout
follows from (seed, nimg, rank, micro-batch).
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tqdm
from torch import Tensor

from diffusion.samplers import sample, to_uint8
from dnnlib.cli import is_terminal
from torch_utils import distributed
from torch_utils.grids import save_grid
from torch_utils.random import StackedGenerator, generator_at, seed_of
from torch_utils.stats import Collector
from training.augment import AugmentPipe
from training.config import TrainConfig, learning_rate
from training.dataset import ImageFolderDataset, batches
from training.ema import EMA, ema_beta
from training.networks import Denoiser, build_network
from training.state import TrainState, restore_state, save_snapshot, save_state, transfer_weights

# What the random streams of a step are for; part of the seed, so never renumber.
WEIGHTS, NOISE_LEVEL, NOISE, AUGMENT, LABEL_DROPOUT, DROPOUT = range(6)
GRID = 10   # columns of the pictures, and at most as many rows


def prepare(config: TrainConfig, device: torch.device, resume: str | None = None,
            transfer: str | None = None) -> tuple[TrainState, str]:
    """The state to start from, and a line that says what it is; writes nothing.

    `resume` is a training state to continue from, `transfer` a snapshot to take weights from. Raises
    FileNotFoundError or ValueError in one line for a file that cannot be used.
    """
    state = build(config, device)
    if resume is not None:
        restore_state(state, resume)
        return state, f'Continuing from {resume} at {state.nimg / 1000:.1f} kimg'
    if transfer is not None:
        copied, fresh = transfer_weights(state, transfer)
        return state, f'Copied {len(copied)} tensors from {transfer}; starting fresh: {", ".join(fresh) or "none"}'
    return state, 'Starting from random weights'


def training_loop(config: TrainConfig, state: TrainState, run_dir: Path, device: torch.device) -> None:
    """Train until config.total_nimg images were shown; every rank calls this.

    `run_dir` receives the snapshots, states, pictures and statistics (rank 0 writes them).
    """
    _set_precision_flags(config)
    dataset = config.data.open()
    step = StepFunction(config, state, device)
    reporter = Reporter(config, state, run_dir, device)
    reporter.reals(dataset)

    saved = state.nimg or -1   # what the run before saved is there already
    stream = batches(dataset, config.seed, state.nimg, config.batch_size, distributed.get_rank(),
                     distributed.get_world_size(), config.data.workers, pin_memory=device.type == 'cuda')
    for images, labels in stream:
        done = state.nimg >= config.total_nimg
        if state.nimg != saved and (done or due(state, config, config.tick_nimg)):
            reporter.tick(done)
            if done or due(state, config, config.snapshot_nimg):
                reporter.snapshot(dataset)
            if done or (state.nimg > 0 and due(state, config, config.state_nimg)):
                reporter.training_state()
        if done:
            break
        step(images, labels)
        reporter.progress()
    reporter.close()
    distributed.barrier()


def due(state: TrainState, config: TrainConfig, interval: int) -> bool:
    """Whether the last step has reached or passed a multiple of `interval`; true at the very start."""
    return state.nimg // interval > (state.nimg - config.batch_size) // interval


def _set_precision_flags(config: TrainConfig) -> None:
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = False   # float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def build(config: TrainConfig, device: torch.device) -> TrainState:
    """The state of a run at nimg = 0: the same weights on every rank."""
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    net = build_network(config.network).train().requires_grad_(True).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.optimizer.lr,
                                 betas=config.optimizer.betas, eps=config.optimizer.eps)
    return TrainState(net=net, ema=EMA(net), optimizer=optimizer, stats=Collector(device))


@dataclass(frozen=True)
class Randomness:
    """All that is random about a step, for the whole batch, dropout apart."""
    u: Tensor                # [batch] float64 on the CPU: the noise level's quantile
    noise: Tensor            # [batch, C, H, W] on the device
    keep_labels: Tensor      # [batch, 1] on the CPU: 0 where the label is dropped
    augmentation: Any        # of the whole batch, or None


def draw(config: TrainConfig, pipe: AugmentPipe | None, nimg: int, image_shape: list[int],
         device: torch.device) -> Randomness:
    """The randomness of the step at `nimg`: a function of (seed, nimg), not of the number of ranks."""
    batch = config.batch_size

    def generator(purpose: int, where: torch.device | str = 'cpu') -> torch.Generator:
        return generator_at(config.seed, nimg, purpose, device=where)

    u = torch.rand([batch], dtype=torch.float64, generator=generator(NOISE_LEVEL)).clamp(min=2**-53)
    noise = torch.randn([batch, *image_shape], device=device, generator=generator(NOISE, device))
    keep = torch.rand([batch, 1], generator=generator(LABEL_DROPOUT)) >= config.label_dropout
    augmentation = None if pipe is None else pipe.draw(batch, image_shape, generator(AUGMENT))
    return Randomness(u, noise, keep.to(torch.float32), augmentation)


class StepFunction:
    """One training step on this rank's share of a batch (math of the optimiser: Adam, Section 5)."""

    def __init__(self, config: TrainConfig, state: TrainState, device: torch.device) -> None:
        self.config, self.state, self.device = config, state, device
        self.pipe = None if config.augment is None else AugmentPipe.from_config(config.augment)
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.net: Any = state.net
        if self.world_size > 1:
            self.net = torch.nn.parallel.DistributedDataParallel(
                state.net, device_ids=[device] if device.type == 'cuda' else None, broadcast_buffers=False)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """images uint8 [b, C, H, W] and labels [b, label_dim]: this rank's share of the batch at nimg."""
        state, config = self.state, self.config
        share = len(images)
        mine = slice(self.rank * share, (self.rank + 1) * share)
        randomness = draw(config, self.pipe, state.nimg, list(images.shape[1:]), self.device)
        state.optimizer.zero_grad(set_to_none=True)
        micro = min(config.batch_gpu or share, share)
        for number, start in enumerate(range(0, share, micro)):
            part = slice(start, min(start + micro, share))
            with self._sync_only_if(part.stop == share):
                self._accumulate(images, labels, randomness, mine, part, number)
        self._update()

    def _sync_only_if(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last or self.world_size == 1 else self.net.no_sync()

    def _accumulate(self, images: Tensor, labels: Tensor, randomness: Randomness,
                    mine: slice, part: slice, number: int) -> None:
        """Add the gradient of one micro-batch: rows `part` of the share, which is rows `mine` of the batch."""
        config = self.config
        rows = slice(mine.start + part.start, mine.start + part.stop)
        y = images[part].to(self.device, non_blocking=True).to(torch.float32) / 127.5 - 1
        conditions = {}
        if randomness.augmentation is not None:
            augmentation = randomness.augmentation[rows]
            y, conditions['augment_labels'] = augmentation.apply(y)
        kept = (labels[part] * randomness.keep_labels[rows]).to(self.device, non_blocking=True)
        if config.network.model.get('dropout'):
            torch.manual_seed(seed_of(config.seed, self.state.nimg, DROPOUT, self.rank, number))
        loss = config.loss(self.net, y, randomness.u[rows], randomness.noise[rows],
                           kept if config.network.label_dim else None, **conditions)
        self.state.stats.add('Loss/loss', loss)
        # DDP averages over ranks, so that the sum of gradients is that of the mean over the batch.
        (loss.sum() * (config.loss_scaling * self.world_size / config.batch_size)).backward()

    @torch.no_grad()
    def _update(self) -> None:
        state, config = self.state, self.config
        lr = learning_rate(state.nimg, config.optimizer)
        for group in state.optimizer.param_groups:
            group['lr'] = lr
        gradients = [p.grad for p in state.net.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        state.stats.add('Loss/nonfinite_gradients', (~norm.isfinite()).to(torch.float32))
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
        state.optimizer.step()
        ema = config.ema
        if not state.ema_rampup:
            ema = type(ema)(ema.halflife_nimg, rampup_ratio=None)
        state.ema.update(state.net, ema_beta(state.nimg, config.batch_size, ema))
        state.nimg += config.batch_size


class Reporter:
    """Status lines, statistics, pictures and files of a run."""

    def __init__(self, config: TrainConfig, state: TrainState, run_dir: Path, device: torch.device) -> None:
        self.config, self.state, self.run_dir, self.device = config, state, run_dir, device
        self.is_first = distributed.get_rank() == 0
        self.start = self.tick_start = time.monotonic()
        self.start_nimg = self.tick_nimg = state.nimg
        self.start_seconds = state.seconds
        self.maintenance = 0.0
        self.bar: tqdm.tqdm[Any] | None = None
        if self.is_first and is_terminal():
            self.bar = tqdm.tqdm(total=config.total_nimg / 1000, initial=state.nimg / 1000, leave=False,
                                 bar_format='{l_bar}{bar}| {n:.1f}/{total:.1f} kimg [{elapsed}<{remaining}]')

    def progress(self) -> None:
        if self.bar is not None:
            self.bar.update(self.state.nimg / 1000 - self.bar.n)

    def tick(self, done: bool) -> None:
        """Print the status line and append to stats.jsonl; collective."""
        losses = self.state.stats.take()
        nonfinite = losses.get('Loss/nonfinite_gradients', {}).get('mean', 0)
        now = time.monotonic()
        self.state.seconds = self.start_seconds + now - self.start
        kimg = (self.state.nimg - self.tick_nimg) / 1000
        seconds = now - self.tick_start - self.maintenance
        left = (self.config.total_nimg - self.state.nimg) / 1000
        pace = (now - self.start) / max((self.state.nimg - self.start_nimg) / 1000, 1e-9)
        numbers = {
            'Progress/tick': self.state.nimg // self.config.tick_nimg,
            'Progress/kimg': self.state.nimg / 1000,
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
            f'left {duration(left * pace) if self.state.nimg > self.start_nimg and not done else "-"}',
        ])
        if nonfinite:
            line += f'  NON-FINITE gradients in {nonfinite:.0%} of the steps'
        self._say(line.rstrip())
        if self.is_first:
            entry: dict[str, Any] = {name: {'num': 1, 'mean': value, 'std': 0} for name, value in numbers.items()}
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
    def _as_maintenance(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.maintenance += time.monotonic() - start

    def snapshot(self, dataset: ImageFolderDataset) -> None:
        """Write the averaged network and a picture of what it generates; collective."""
        with self._as_maintenance():
            if self.is_first:
                save_snapshot(self.state, self.config, self.run_dir)
            labels, columns = grid_labels(dataset)
            images = generate_grid(self.state.ema.net, labels, self.device)
            if self.is_first:
                save_grid(images, self.run_dir / f'fakes{self.state.nimg // 1000:06d}.png', columns)

    def training_state(self) -> None:
        """Write all that is needed to continue."""
        with self._as_maintenance():
            if self.is_first:
                save_state(self.state, self.config, self.run_dir)

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
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    return {'Resources/peak_gpu_mem_gb': allocated / 2**30, 'Resources/peak_gpu_mem_reserved_gb': reserved / 2**30}


def duration(seconds: float) -> str:
    """1d 02h, 3h 04m, 5m 06s or 7s"""
    s = round(seconds)
    if s >= 86400:
        return f'{s // 86400}d {s % 86400 // 3600:02d}h'
    if s >= 3600:
        return f'{s // 3600}h {s % 3600 // 60:02d}m'
    return f'{s // 60}m {s % 60:02d}s' if s >= 60 else f'{s}s'


def grid_labels(dataset: ImageFolderDataset) -> tuple[Tensor, int]:
    """Labels [N, label_dim] of the picture, and its number of columns: one row a class where that fits.

    For labels that are vectors, those of the first images; N is at most 100, fewer for large images.
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
    """The first training images with these labels, uint8 [N, C, H, W]; black where there are too few."""
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


def generate_grid(net: Denoiser, labels: Tensor, device: torch.device, batch: int = 64) -> np.ndarray:
    """Images of seeds 0, 1, … with these labels by the deterministic sampler, uint8 [N, C, H, W].

    Each rank makes its share; collective.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    mine = torch.arange(len(labels))[rank::world_size]
    parts = []
    for seeds in mine.split(batch):
        generator = StackedGenerator(seeds.tolist(), device)
        noise = generator.randn([len(seeds), net.img_channels, net.img_resolution, net.img_resolution])
        parts.append(to_uint8(sample(net, noise, labels[seeds].to(device) if net.label_dim else None)).cpu().numpy())
    images = np.zeros([len(labels), net.img_channels, net.img_resolution, net.img_resolution], dtype=np.uint8)
    for other, theirs in enumerate(distributed.gather_objects(np.concatenate(parts) if parts else None)):
        if theirs is not None:
            images[other::world_size] = theirs
    return images


def parameter_strides(net: Callable[..., Any] | torch.nn.Module) -> list[tuple[int, ...]]:
    """The strides of all parameters; equal on all ranks, or DDP refuses to start."""
    assert isinstance(net, torch.nn.Module)
    return [parameter.stride() for parameter in net.parameters()]
