"""Training: build, restore, step, report, judge, save.

One clock, `nimg`, the number of images shown so far: learning rate, average, data order, noise,
reports and files are functions of it. The images, augmentations, noise levels and noise of a step
follow from (seed, nimg) alone, for the whole batch, of which each rank takes its part; dropout
follows from (seed, nimg, rank, micro-batch).
"""

import contextlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tqdm
from torch import Tensor

from diffusion.samplers import Denoise, from_uint8, run, to_uint8
from dnnlib.cli import is_terminal
from torch_utils import distributed
from torch_utils.grids import save_grid
from torch_utils.random import StackedGenerator, generator_at, seed_of
from torch_utils.stats import Collector
from training.augment import AugmentPipe
from training.config import TrainConfig, due, learning_rate
from training.dataset import ImageFolderDataset, batches
from training.ema import EMA, HalfLife
from training.history import add_numbers, forget_statistics
from training.judging import Evaluation, choose_best
from training.networks import Denoiser, build_network
from training.open_network import open_network
from training.sampling import resolve_sampler
from training.state import (
    SNAPSHOT,
    LossScale,
    TrainState,
    differences,
    file_of,
    latest_state,
    network_differences,
    prune_states,
    read_best,
    restore_state,
    save_snapshot,
    save_state,
    thin_snapshots,
    transfer_weights,
)

# What the random streams of a step are for; part of the seed, so never renumber.
WEIGHTS, NOISE_LEVEL, NOISE, AUGMENT, LABEL_DROPOUT, DROPOUT = range(6)
GRID = 10   # columns of the pictures, and at most as many rows


def prepare(config: TrainConfig, device: torch.device, resume: tuple[str, dict[str, Any]] | None = None,
            transfer: str | None = None, fingerprint: str = '') -> tuple[TrainState, str]:
    """The state to start from, and a line that says what it is; writes nothing.

    `resume` is a training state to continue from, its name and contents; `transfer` a snapshot to take
    weights from. Raises FileNotFoundError or ValueError in one line for what cannot be used, and for a
    state of a run with other settings or other data (`fingerprint`).
    """
    state = build(config, device)
    state.fingerprint = fingerprint
    if resume is not None:
        path, contents = resume
        told = contents['config'] is not None
        changed = differences(contents['config'], config) if told else network_differences(contents['network'], config)
        if fingerprint and contents['fingerprint'] not in ('', fingerprint):
            changed.append('the images of the data set are others')
        if changed:
            raise ValueError(f'{path} belongs to a run with other settings, so it cannot be continued with these '
                             f'(--resume=never starts anew): {"; ".join(changed)}')
        restore_state(state, contents, path)
        return state, f'continuing from {path} at {state.nimg / 1000:.1f} kimg'
    if transfer is not None:
        copied, fresh = transfer_weights(state, open_network(transfer), transfer)
        names = ', '.join(fresh) if len(fresh) <= 8 else f'{", ".join(fresh[:8])} and {len(fresh) - 8} more'
        state.transferred = {'from': transfer, 'copied': copied, 'fresh': fresh}
        return state, f'{len(copied)} of {len(copied) + len(fresh)} tensors from {transfer}; fresh: {names or "none"}'
    return state, 'random'


class Interrupted(Exception):  # noqa: N818 (a state of affairs, not an error)
    """The run was asked to stop before its end, and has saved everything."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


def training_loop(config: TrainConfig, state: TrainState, run_dir: Path, device: torch.device,
                  should_stop: Callable[[], bool] = lambda: False, deadline: float = math.inf,
                  evaluation: Evaluation | None = None) -> None:
    """Train until config.total_nimg images were shown; every rank calls this.

    `run_dir` receives the snapshots, states, pictures and statistics (rank 0 writes them). After each
    step `should_stop` is asked; as soon as it says yes on any rank, or little time is left until the
    `deadline` (of time.monotonic), everything is saved and Interrupted raised. Raises NonFiniteError
    when the gradients stay non-finite.

    With an `evaluation`, a snapshot is written and judged at each of its intervals and at the end. This comes
    last: where the state was saved before, a process that continues the run takes an evaluation up that did
    not end, and `should_stop` and the deadline cut one short.
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
            reported = state.nimg != saved and (done or due(state.nimg, config.batch_size, config.tick_nimg))
            if reported:
                reporter.tick(done)
            judged = evaluation is None or not evaluation.is_due(state, config, run_dir)
            if not judged or (reported and (done or due(state.nimg, config.batch_size, config.snapshot_nimg))):
                reporter.snapshot(dataset)
            # Never amid a streak of bad steps: a roll-back needs the state before it.
            calm = state.nimg > 0 and state.bad_steps == 0
            if reported and (done or (calm and due(state.nimg, config.batch_size, config.state_nimg))):
                reporter.training_state()
                saved = state.nimg
            if evaluation is not None and not judged:
                judged = reporter.evaluate(evaluation, stopping, votes)
            if done and judged:
                break
            if not judged or votes.any(stopping()):
                if state.nimg not in (0, saved):
                    reporter.training_state()
                reporter.close()
                raise Interrupted(f'stopped at {state.nimg / 1000:.1f} kimg; the same command continues from there')
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
                   distributed.get_world_size(), config.data.workers, pin_memory=device.type == 'cuda')


def roll_back(config: TrainConfig, state: TrainState, run_dir: Path) -> None:
    """Back to the last training state with half the learning rate, where that is wanted and possible."""
    trouble = f'{state.bad_steps} steps in a row up to {state.nimg / 1000:.1f} kimg had gradients that are not finite'
    if config.nan.then == 'stop':
        raise NonFiniteError(f'{trouble}; the last training state is untouched. --nan-then=rollback would go back to '
                             'it with half the learning rate')
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
    loss_scale = LossScale(config.loss_scaling) if config.loss_scaling is not None else LossScale(2.0**16, dynamic=True)
    return TrainState(net=net, averages={average.name: EMA(net) for average in config.averages},
                      optimizer=optimizer, stats=Collector(device), loss_scale=loss_scale)


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
            ddp = torch.nn.parallel.DistributedDataParallel
            known = inspect.signature(ddp).parameters   # torch 2.13 has another name for it
            sync = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'
            self.net = ddp(state.net, device_ids=[device] if device.type == 'cuda' else None, **{sync: False})

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
        y = from_uint8(images[part].to(self.device, non_blocking=True))
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
        (loss.sum() * (self.state.loss_scale.scale * self.world_size / config.batch_size)).backward()

    @torch.no_grad()
    def _update(self) -> None:
        """Adam on the gradients, which are the same on every rank, and so is what is decided from them."""
        state, config = self.state, self.config
        gradients = [p.grad for p in state.net.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        state.stats.add('Loss/nonfinite_gradients', (~norm.isfinite()).to(torch.float32))
        finite = bool(norm.isfinite())   # the one place where a step waits for the device
        scale = state.loss_scale.scale
        state.bad_steps = 0 if finite else state.bad_steps + 1
        state.loss_scale.update(finite)
        if finite or config.nan.policy == 'zero':
            for group in state.optimizer.param_groups:
                group['lr'] = learning_rate(state.nimg, config.optimizer) * state.lr_factor
            if not finite:
                for gradient in gradients:
                    torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            if state.loss_scale.dynamic:   # a static one stays: Adam does not see it
                torch._foreach_div_(gradients, scale)
                norm, scale = norm / scale, 1.0
            if config.optimizer.clip is not None:
                torch._foreach_mul_(gradients, (config.optimizer.clip * scale / (norm + 1e-12)).clamp(max=1))
            state.optimizer.step()
            for average in config.averages:
                if isinstance(average, HalfLife) and not state.ema_rampup:
                    average = replace(average, rampup_ratio=None)
                state.averages[average.name].update(state.net, average.beta(state.nimg, config.batch_size))
        state.nimg += config.batch_size


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
            self.bar = tqdm.tqdm(total=config.total_nimg / 1000, initial=state.nimg / 1000, leave=False,
                                 bar_format='{l_bar}{bar}| {n:.1f}/{total:.1f} kimg [{elapsed}<{remaining}]')

    def progress(self) -> None:
        """Call after every step."""
        now = time.monotonic()
        self.longest_step, self.last_step = max(self.longest_step, now - self.last_step), now
        if self.bar is not None:
            self.bar.update(self.state.nimg / 1000 - self.bar.n)

    def ready_by(self) -> float:
        """When another step and saving everything will be done, with half as much again to be safe."""
        return time.monotonic() + 1.5 * (self.longest_step + self.longest_save)

    def rewind(self) -> None:
        """The run went back to an earlier state: so do its statistics."""
        self.tick_nimg, self.tick_start, self.maintenance = self.state.nimg, time.monotonic(), 0.0
        self.start_nimg, self.start, self.start_seconds = self.state.nimg, time.monotonic(), self.state.seconds
        if self.is_first:
            self._forget()

    def _forget(self) -> None:
        """Leave out of the statistics, and of the choice of the best snapshot, what comes after the state."""
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

    def evaluate(self, evaluation: Evaluation, stopping: Callable[[], bool], votes: distributed.Votes) -> bool:
        """Judge the averaged network, note the numbers, choose the best snapshot: False where stopped; collective.

        Images that are not finite leave a line and numbers without a value, and training goes on.
        """
        def asked() -> bool:
            self.progress()   # a batch of images is what cannot be cut short here, as a step is in training
            return stopping()

        start = time.monotonic()
        trouble, found = '', {}
        with self._as_maintenance(is_save=False):
            try:
                result = evaluation(self.state.ema.net, self.run_dir, asked)
                found = {} if result is None else result.scores
            except ValueError as error:
                if votes.any(stopping()):
                    return False
                trouble = f'no numbers: {error}'
            if self.is_first:
                numbers = {name: found.get(name, math.nan) for name in evaluation.config.names}
                self._note(evaluation, numbers, trouble, time.monotonic() - start)
        return True

    def _note(self, evaluation: Evaluation, numbers: dict[str, float], trouble: str, seconds: float) -> None:
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
    sampling = resolve_sampler({}, net.sigma_min, net.sigma_max, net.native_steps)
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    mine = torch.arange(len(labels))[rank::world_size]
    parts = []
    for seeds in mine.split(batch):
        generator = StackedGenerator(seeds.tolist(), device)
        noise = generator.randn([len(seeds), net.img_channels, net.img_resolution, net.img_resolution])
        denoise = Denoise(net, labels[seeds].to(device) if net.label_dim else None)
        levels = denoise.levels(sampling.discretization, sampling.num_steps)
        parts.append(to_uint8(run(sampling.sampler, denoise, noise, levels)).cpu().numpy())
    images = np.zeros([len(labels), net.img_channels, net.img_resolution, net.img_resolution], dtype=np.uint8)
    for other, theirs in enumerate(distributed.gather_objects(np.concatenate(parts) if parts else None)):
        if theirs is not None:
            images[other::world_size] = theirs
    return images
