"""Weak scaling: the pace of training with 1, 2, 4, ... processes, each with the same batch.

    python -m benchmarks.scaling                 # gloo on this CPU, one thread for each process
    python -m benchmarks.scaling --device=cuda   # NCCL, one GPU for each process

Processes on one CPU share its caches and its memory, and those beyond the number of cores share
cores: this shows what the exchange of gradients costs, and is no forecast for several machines.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from benchmarks.speed import TASKS, machine, times_of, training_config
from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from limpid.resolution import height_and_width
from torch_utils import distributed
from training.step import StepFunction
from training.training_loop import build

TASK = next(task for task in TASKS if 'demo' in task.name and task.kind == 'training')


def seconds_of_step(device: torch.device, batch: int, repeats: int) -> float:
    """Return the median seconds of a step of this rank, with `batch` images on each rank."""
    world = distributed.get_world_size()
    config = training_config(TASK, 'fp32', False, batch * world)
    state = build(config, device)
    step = StepFunction(config, state, device)
    size = height_and_width(TASK.network.img_resolution)
    images = torch.randint(256, [batch, TASK.network.img_channels, *size], dtype=torch.uint8)
    labels = torch.eye(10)[torch.arange(batch) % 10]
    list(times_of(lambda: step(images, labels), device, 3))
    return median(times_of(lambda: step(images, labels), device, repeats))


def launched(ranks: int, device: str, batch: int, repeats: int, dest: Path) -> float:
    """Return the seconds of a step with so many processes, which torchrun starts."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    result = dest / f'ranks-{ranks}.json'
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={ranks}',
         f'--master_port={port}', '-m', 'benchmarks.scaling', f'--device={device}',
         f'--batch={batch}', f'--repeats={repeats}', f'--worker={result}'],
        check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return float(json.loads(result.read_text()))


def written(found: dict[str, Any], dest: Path) -> None:
    """Write scaling.json and scaling.md; efficiency is relative to one process."""
    with atomic_write(dest / 'scaling.json') as file:
        file.write(json.dumps(found, indent=1).encode())
    seconds = found['seconds']
    alone = seconds['1']
    rows = [[ranks, f'{1e3 * value:.4g}', f"{found['batch'] * int(ranks) / value:.4g}",
             f'{alone / value:.0%}'] for ranks, value in seconds.items()]
    with atomic_write(dest / 'scaling.md') as file:
        head = ['processes', 'ms per step', 'images/s', 'efficiency']
        file.write(f'{", ".join(found["machine"].values())}\n\n{table(head, rows)}\n'.encode())


@click.command()
@click.option('--dest', help='Folder of the results', metavar='DIR', default='out/scaling',
              show_default=True)
@click.option('--device', help='Device, as in train.py', metavar='NAME', default='cpu',
              show_default=True)
@click.option('--most', help='Most processes  [default: the number of cores, or of GPUs]',
              type=click.IntRange(min=1))
@click.option('--batch', help='Images on each process', type=click.IntRange(min=1), default=64,
              show_default=True)
@click.option('--repeats', help='Steps of each measurement', type=click.IntRange(min=1), default=20,
              show_default=True)
@click.option('--worker', hidden=True)
@one_line_errors
def main(dest: str, device: str, most: int | None, batch: int, repeats: int,
         worker: str | None) -> None:
    """Measure the pace of training the network of make demo with several processes."""
    if worker is not None:
        seconds = seconds_of_step(distributed.init(device), batch, repeats)
        slowest = max(distributed.gather_objects(seconds))
        if distributed.get_rank() == 0:
            with atomic_write(worker) as file:
                file.write(json.dumps(slowest).encode())
        distributed.shutdown()
        return
    on = torch.device(device)
    there = torch.cuda.device_count() if on.type == 'cuda' else os.cpu_count() or 1
    found: dict[str, Any] = {'machine': machine(on), 'batch': batch, 'seconds': {}}
    ranks = 1
    while ranks <= (most or there):
        seconds = launched(ranks, device, batch, repeats, Path(dest))
        found['seconds'][str(ranks)] = seconds
        print(f'{ranks} processes: {1e3 * seconds:.4g} ms, {batch * ranks / seconds:.4g} images/s',
              flush=True)
        written(found, Path(dest))
        ranks *= 2


if __name__ == '__main__':
    main()
