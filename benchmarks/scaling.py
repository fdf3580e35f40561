"""How the pace grows: with processes that each have the same batch, with the batch, with the side.

    python -m benchmarks.scaling                   # all of it on this CPU, to out/scaling
    python -m benchmarks.scaling --device=cuda     # NCCL, one GPU for each process
    python -m benchmarks.scaling --over=batch      # or processes, or resolution
    python -m benchmarks.scaling --paper           # computed for many GPUs: benchmarks/paper.py

Processes on one CPU have one thread each, and share its caches and its memory; those beyond the
number of cores share cores: this shows what the exchange of gradients costs, and is no forecast for
several machines.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from benchmarks import paper
from benchmarks.results import Lines, written
from benchmarks.speed import (
    TASKS,
    Task,
    gigabytes,
    in_way,
    machine,
    matrix_rate,
    measure,
    network_of,
    times_of,
    training_config,
)
from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from limpid.resolution import height_and_width
from torch_utils import distributed
from training.step import StepFunction
from training.training_loop import build
from training.work import operations

OVER = {'processes': 'processes', 'batch': 'images in a batch', 'resolution': 'pixels of a side'}
EVALUATIONS = {'sampling': 1, 'training': 3}   # worth of operations for each image


def task_of(size: str, kind: str = 'training') -> Task:
    """Return the task of benchmarks/speed.py with a network of this size."""
    return next(task for task in TASKS if size in task.name and task.kind == kind)


@dataclass(frozen=True)
class Point:
    """The pace with one batch size and side: evaluations of the network, or training steps.

    seconds      of a batch; the median
    utilisation  operations per second over the matrix rate
    gigabytes    most memory that was in use, on a GPU
    """
    kind: str
    batch: int
    side: int
    seconds: float
    utilisation: float
    gigabytes: float


def point(size: str, kind: str, batch: int, side: int, device: torch.device, precision: str,
          repeats: int) -> Point:
    """Measure eager evaluation or training with one batch size and side of the images."""
    task = task_of(size, kind)
    task = replace(task, batch=batch, small_batch=batch,
                   network=replace(task.network, img_resolution=side))
    if kind == 'training':
        found = measure(task, 'eager', precision, device, repeats)
        seconds, rate, most = found.seconds, found.rate, found.gigabytes
    else:
        rate = matrix_rate(precision, device)
        net = in_way(network_of(task, precision, device), 'eager')
        x = torch.randn([batch, task.network.img_channels, side, side], device=device)
        sigma, labels = torch.tensor(0.7, device=device), torch.zeros([1, 10], device=device)
        with torch.no_grad():
            list(times_of(lambda: net(x, sigma, labels), device, 2))
            seconds = median(times_of(lambda: net(x, sigma, labels), device, repeats))
        most = gigabytes(device)
    share = batch * EVALUATIONS[kind] * operations(task.network) / seconds / rate
    return Point(kind, batch, side, seconds, share, most)


def shapes(over: str, size: str, most: int) -> list[tuple[int, int]]:
    """Return the (batch, side) to measure.

    These are 1, 2, 4, ... images of the usual side, or half to four times that side, with as many
    pixels in a batch as `most` images usually have.
    """
    side, _ = height_and_width(task_of(size).network.img_resolution)
    if over == 'batch':
        return [(batch, side) for batch in doubled(most)]
    return [(max(most * side**2 // other**2, 1), other)
            for other in (side // 2, side, 2 * side, 4 * side)]


def doubled(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length())]


def seconds_of_step(size: str, device: torch.device, precision: str, batch: int,
                    repeats: int) -> float:
    """Return the median seconds of a step of this rank, with `batch` images on each rank."""
    world = distributed.get_world_size()
    task = task_of(size)
    config = training_config(task, precision, False, batch * world)
    state = build(config, device)
    step = StepFunction(config, state, device)
    sides = height_and_width(task.network.img_resolution)
    images = torch.randint(256, [batch, task.network.img_channels, *sides], dtype=torch.uint8)
    labels = torch.eye(10)[torch.arange(batch) % 10]
    list(times_of(lambda: step(images, labels), device, 3))
    return median(times_of(lambda: step(images, labels), device, repeats))


def launched(ranks: int, dest: Path, options: Sequence[str]) -> float:
    """Return the seconds of a step with so many processes, which torchrun starts."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    result = dest / f'ranks-{ranks}.json'
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={ranks}',
         f'--master_port={port}', '-m', 'benchmarks.scaling', *options, f'--worker={result}'],
        check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return float(json.loads(result.read_text()))


def work(result: str, size: str, device: torch.device, precision: str, batch: int,
         repeats: int) -> None:
    """Be one of the processes: write the seconds of the slowest of them."""
    seconds = seconds_of_step(size, device, precision, batch, repeats)
    slowest = max(distributed.gather_objects(seconds))
    if distributed.get_rank() == 0:
        with atomic_write(result) as file:
            file.write(json.dumps(slowest).encode())
    distributed.shutdown()


def report(found: dict[str, Any], dest: Path) -> None:
    """Write scaling.json, scaling.md and scaling.png; efficiency is relative to one process."""
    parts, charts = [f"Network of {found['size']}, {found['precision']}"], []
    seconds = found.get('processes', {})
    if seconds:
        rows = [[ranks, f'{1e3 * value:.4g}', f"{found['images'] * int(ranks) / value:.4g}",
                 f"{seconds['1'] / value:.0%}"] for ranks, value in seconds.items()]
        parts += [f"Training with {found['images']} images on each process:", table(
            ['processes', 'ms per step', 'images/s', 'efficiency'], rows)]
        charts.append(Lines(OVER['processes'], 'efficiency, %', {'training': {
            int(ranks): 100 * seconds['1'] / value for ranks, value in seconds.items()}}))
    for over in ('batch', 'resolution'):
        made = [Point(**values) for values in found.get(over, [])]
        if not made:
            continue
        rows = [[p.kind, str(p.batch), str(p.side), f'{1e3 * p.seconds:.4g}',
                 f'{p.batch / p.seconds:.4g}', f'{p.utilisation:.1%}', f'{p.gigabytes:.1f}']
                for p in made]
        parts += [f'Over {OVER[over]} (sampling: single evaluations):', table(
            ['task', 'batch', 'side', 'ms', 'images/s', 'of the matrix rate', 'GB'], rows)]
        lines: dict[str, dict[float, float]] = {}
        for p in made:
            lines.setdefault(p.kind, {})[
                p.batch if over == 'batch' else p.side] = 100 * p.utilisation
        charts.append(Lines(OVER[over], '% of the matrix rate', lines))
    written(dest, 'scaling', found, '\n\n'.join(parts), charts)


@click.command()
@click.option('--dest', help='Folder of the results', metavar='DIR', default='out/scaling',
              show_default=True)
@click.option('--over', help='What grows', type=click.Choice(list(OVER)), multiple=True,
              default=list(OVER), show_default=True)
@click.option('--size', help='Size of the network  [default: CIFAR-10 on a GPU, else demo]',
              type=click.Choice(['CIFAR-10', 'demo']))
@click.option('--device', help='Device, as in train.py', metavar='NAME', default='cpu',
              show_default=True)
@click.option('--precision', help='Precision  [default: bf16 on a GPU, else fp32]', metavar='NAME')
@click.option('--most', help='Most processes  [default: the number of cores, or of GPUs]',
              type=click.IntRange(min=1))
@click.option('--batch', help='Images on each process', type=click.IntRange(min=1), default=64,
              show_default=True)
@click.option('--most-batch', help='Most images in a batch  [default: 512 on a GPU, else 64]',
              type=click.IntRange(min=1))
@click.option('--repeats', help='Repetitions of each measurement', type=click.IntRange(min=1),
              default=20, show_default=True)
@click.option('--paper', 'on_paper', is_flag=True, help='Only compute what many GPUs would reach')
@click.option('--worker', hidden=True)
@one_line_errors
def main(dest: str, over: tuple[str, ...], size: str | None, device: str, precision: str | None,
         most: int | None, batch: int, most_batch: int | None, repeats: int, on_paper: bool,
         worker: str | None) -> None:
    """Measure how the pace grows, and write scaling.json, scaling.md and scaling.png."""
    if on_paper:
        print(paper.report(Path(dest)))
        return
    on = distributed.init(device) if worker else torch.device(device)
    size = size or ('CIFAR-10' if on.type == 'cuda' else 'demo')
    precision = precision or ('bf16' if on.type == 'cuda' else 'fp32')
    if worker is not None:
        work(worker, size, on, precision, batch, repeats)
        return
    found: dict[str, Any] = {'machine': machine(on), 'size': size, 'precision': precision,
                             'images': batch, **{name: [] for name in OVER}, 'processes': {}}
    options = [f'--device={device}', f'--size={size}', f'--precision={precision}',
               f'--batch={batch}', f'--repeats={repeats}']
    there = torch.cuda.device_count() if on.type == 'cuda' else os.cpu_count() or 1
    for ranks in doubled(most or there) if 'processes' in over else []:
        seconds = launched(ranks, Path(dest), options)
        found['processes'][str(ranks)] = seconds
        print(f'{ranks} processes: {1e3 * seconds:.4g} ms, {batch * ranks / seconds:.4g} images/s',
              flush=True)
        report(found, Path(dest))
    for name in [name for name in ('batch', 'resolution') if name in over]:
        sizes = shapes(name, size, most_batch or (512 if on.type == 'cuda' else 64))
        for kind, (images, side) in itertools.product(EVALUATIONS, sizes):
            try:
                made = point(size, kind, images, side, on, precision, repeats)
            except torch.cuda.OutOfMemoryError:
                print(f'{kind}, {images} images of {side}x{side}: not enough memory', flush=True)
                continue
            found[name].append(asdict(made))
            print(made, flush=True)
            report(found, Path(dest))


if __name__ == '__main__':
    main()
