"""Speed of sampling and of training steps, against the same networks written plainly.

    python -m benchmarks.speed                  # all of it, to out/speed
    python -m benchmarks.speed --task=demo      # the tasks whose names contain this

Each task is measured in several ways in the same process: `plain` (benchmarks/plain.py, eager,
NCHW), `eager` (this project's layers), `graph` (eager, recorded as a CUDA graph), `compiled`
(--compile of generate.py and train.py). Rates are compared with the matrix rate that this device
reaches in the same run.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

import functools
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import click
import torch
from torch import Tensor

from benchmarks.plain import made_plain
from benchmarks.results import Bars, written
from dnnlib.cli import one_line_errors
from dnnlib.markdown import table
from limpid.denoiser import Denoiser, Network
from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.preconditioning import EDM
from limpid.resolution import height_and_width
from limpid.sampling import sample
from torch_utils import distributed
from training.augment import AugmentConfig
from training.compiled import Graphed, hastened_for_sampling, set_tf32
from training.config import OptimizerConfig, TrainConfig
from training.dataset import DataConfig
from training.networks import PRECISIONS, NetworkConfig, build_network, complete_arguments
from training.step import StepFunction
from training.training_loop import build
from training.work import operations

NFE = 35   # evaluations of the network for an image of 18 steps
CIFAR10 = NetworkConfig('SongUNet', EDM(), 0, float('inf'), 32, 3, 10, model=complete_arguments(
    'SongUNet', {'model_channels': 128, 'channel_mult': [2, 2, 2], 'dropout': 0.13,
                 'augment_dim': 9}))
DEMO = NetworkConfig('SongUNet', EDM(), 0, float('inf'), 16, 1, 10, model=complete_arguments(
    'SongUNet', {'model_channels': 32, 'channel_mult': [1, 2], 'num_blocks': 1,
                 'attn_resolutions': [8], 'dropout': 0.0}))


@dataclass(frozen=True)
class Task:
    """Work to be measured: 'sampling' or 'training' of a network, with a batch size."""
    name: str
    kind: str
    network: NetworkConfig
    batch: int
    small_batch: int   # on a CPU


TASKS = [
    Task('CIFAR-10 DDPM++, sampling', 'sampling', CIFAR10, 256, 2),
    Task('CIFAR-10 DDPM++, training', 'training', CIFAR10, 256, 2),
    Task('network of make demo, sampling', 'sampling', DEMO, 128, 16),
    Task('network of make demo, training', 'training', DEMO, 64, 64),
]
WAYS = {'sampling': ('plain', 'eager', 'graph', 'compiled'),
        'training': ('plain', 'eager', 'compiled')}


@dataclass(frozen=True)
class Result:
    """What was measured of a task done in one way.

    seconds    of one evaluation of a batch, or one training step; the median
    images_per_second
               whole images of 35 evaluations, or training images
    rate       operations per second of a matrix product in that precision, right before
    utilisation
               floating-point operations per second over that rate
    gigabytes  most memory that was in use
    start_up   seconds of the first call, compiling included, beyond one later call
    error      ‖D − D_ref‖/‖D_ref‖ against float32 eager of one evaluation; None in training
    """
    task: str
    way: str
    precision: str
    batch: int
    seconds: float
    images_per_second: float
    rate: float
    utilisation: float
    gigabytes: float
    start_up: float
    error: float | None = None


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize()


def times_of(work: Callable[[], object], device: torch.device, repeats: int) -> Iterator[float]:
    """Yield the seconds of each of `repeats` calls, by the clock of the host."""
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        yield time.perf_counter() - start


def matrix_rate(precision: str, device: torch.device) -> float:
    """Return operations per second of a large matrix product on random data.

    It is measured before each task once more: the speed of a machine drifts, and of a virtual one
    by a third within minutes.
    """
    n = 8192 if device.type == 'cuda' else 1024
    set_tf32(precision == 'tf32')
    a, b = (torch.randn(n, n, device=device).to(PRECISIONS[precision]) for _ in range(2))
    product = functools.partial(torch.matmul, a, b)
    list(times_of(product, device, 3))
    rate = 2 * n**3 / median(times_of(product, device, 10))
    set_tf32(False)
    return rate


def network_of(task: Task, precision: str, device: torch.device) -> Denoiser:
    """Return the network of a task with random weights, none of which are nearly 0."""
    torch.manual_seed(0)
    net = build_network(replace(task.network, precision=precision)).eval().requires_grad_(False)
    for parameter in net.parameters():   # those of 1e-5, without which errors would not be seen
        if parameter.ndim == 4 and parameter.abs().max() < 1e-3:
            parameter.mul_(1e4)
    return net.to(device)


def in_way(net: Denoiser, way: str) -> Network:
    """Return a network for sampling that is evaluated in one of the ways."""
    if way == 'plain':
        return made_plain(net)
    if way == 'graph':
        return Graphed(cast(Denoiser, hastened_for_sampling(net, compiled=False)))
    return hastened_for_sampling(net, compiled=way == 'compiled')


def measure_sampling(task: Task, way: str, precision: str, device: torch.device,
                     repeats: int) -> Result:
    """Measure whole images, and one evaluation, in one way."""
    rate = matrix_rate(precision, device)
    set_tf32(precision == 'tf32')
    batch = task.batch if device.type == 'cuda' else task.small_batch
    net = network_of(task, precision, device)
    shape = batch, net.img_channels, *height_and_width(net.img_resolution)
    noise = torch.randn(shape, device=device)
    labels = torch.eye(10, device=device)[torch.arange(batch, device=device) % 10]
    sigma = torch.tensor(0.7, device=device)
    fast = in_way(net, way)

    def evaluate() -> Tensor:
        with torch.no_grad():
            return fast(noise, sigma, labels)

    first, = times_of(evaluate, device, 1)
    seconds = median(times_of(evaluate, device, repeats))
    sample(fast, noise, labels, num_steps=2)   # its precision differs, so that a graph is recorded
    whole = median(times_of(lambda: sample(fast, noise, labels), device, 1 + repeats // 4))
    images = batch / whole
    return Result(task.name, way, precision, batch, seconds, images, rate,
                  images * NFE * operations(task.network) / rate, gigabytes(device),
                  first - seconds, error_of(evaluate(), net, noise, sigma, labels))


def error_of(D: Tensor, net: Denoiser, noise: Tensor, sigma: Tensor, labels: Tensor) -> float:
    """Return ‖D − D_ref‖/‖D_ref‖, where D_ref is that of float32 on at most 16 images."""
    set_tf32(False)
    rows = slice(0, 16)
    with torch.no_grad():
        reference = net(noise[rows], sigma, labels[rows], force_fp32=True)
    difference = torch.linalg.vector_norm(D[rows].to(torch.float64) - reference)
    return float(difference / torch.linalg.vector_norm(reference.to(torch.float64)))


def gigabytes(device: torch.device) -> float:
    """Return the most memory in use since the last call, on a GPU; else 0."""
    if device.type != 'cuda':
        return 0.0
    most = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return most


def training_config(task: Task, precision: str, compiled: bool, batch: int) -> TrainConfig:
    """Return the configuration of a run: that of the paper but for its batch size."""
    return TrainConfig(
        data=DataConfig('none', use_labels=True),
        network=replace(task.network, precision=precision),
        loss=DenoisingLoss(LogNormal(), InverseCOut(EDM())),
        augment=AugmentConfig() if 'augment_dim' in task.network.model
        and task.network.model['augment_dim'] else None,
        optimizer=OptimizerConfig(lr_rampup_nimg=0), batch_size=batch, compile=compiled)


def measure_training(task: Task, way: str, precision: str, device: torch.device,
                     repeats: int) -> Result:
    """Measure training steps in one way, on images that are at hand."""
    rate = matrix_rate(precision, device)
    set_tf32(precision == 'tf32')
    batch = task.batch if device.type == 'cuda' else task.small_batch
    config = training_config(task, precision, way == 'compiled', batch)
    state = build(config, device)
    if way == 'plain':
        state.net = made_plain(state.net)
        state.optimizer = torch.optim.Adam(state.net.parameters(), lr=1e-3)
    step = StepFunction(config, state, device)
    size = height_and_width(task.network.img_resolution)
    images = torch.randint(256, [batch, task.network.img_channels, *size], dtype=torch.uint8)
    labels = torch.eye(10)[torch.arange(batch) % 10]
    first, = times_of(lambda: step(images, labels), device, 1)
    list(times_of(lambda: step(images, labels), device, 2))
    seconds = median(times_of(lambda: step(images, labels), device, repeats))
    return Result(task.name, way, precision, batch, seconds, batch / seconds, rate,
                  3 * batch * operations(task.network) / seconds / rate, gigabytes(device),
                  first - seconds)


def measure(task: Task, way: str, precision: str, device: torch.device, repeats: int) -> Result:
    """Measure one task in one way and precision; nothing of it is left in memory."""
    torch.backends.cudnn.benchmark = True
    work = measure_sampling if task.kind == 'sampling' else measure_training
    try:
        return work(task, way, precision, device, repeats)
    finally:
        set_tf32(False)
        gc.collect()
        torch._dynamo.reset()
        if device.type == 'cuda':
            torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, str]:
    """Return the names of the device and of the software."""
    name = torch.cuda.get_device_name() if device.type == 'cuda' else platform.processor()
    return {'device': name or platform.machine(), 'torch': torch.__version__,
            'python': platform.python_version(), 'cores': str(os.cpu_count())}


@click.command()
@click.option('--dest', help='Folder of the results', metavar='DIR', default='out/speed',
              show_default=True)
@click.option('--device', help='Device, as in generate.py', metavar='NAME', default='auto',
              show_default=True)
@click.option('--precision', 'precisions', help='Precisions, with commas between  [default: '
              'fp32,tf32,bf16,fp16 on a GPU, else fp32]', metavar='LIST')
@click.option('--task', 'chosen', help='Only tasks whose name contains this', metavar='STR',
              default='')
@click.option('--way', 'ways', help='Only these ways, with commas between', metavar='LIST')
@click.option('--repeats', help='Repetitions of each measurement', type=click.IntRange(min=1),
              default=10, show_default=True)
@one_line_errors
def main(dest: str, device: str, precisions: str | None, chosen: str, ways: str | None,
         repeats: int) -> None:
    """Measure speed in several ways, and write speed.json, speed.md and speed.png."""
    on = distributed.init(device)
    default = 'fp32,tf32,bf16,fp16' if on.type == 'cuda' else 'fp32'
    found: dict[str, Any] = {'machine': machine(on), 'results': []}
    print(', '.join(found['machine'].values()))
    for task in TASKS:
        for precision in (precisions or default).split(','):
            for way in WAYS[task.kind]:
                if chosen not in task.name or (ways and way not in ways.split(',')):
                    continue
                if way == 'graph' and on.type != 'cuda':
                    continue
                try:
                    result = measure(task, way, precision, on, repeats)
                except Exception as error:   # noqa: BLE001 (one way that fails leaves the others)
                    print(f'{task.name} {way} {precision}: {error!r}'[:600], flush=True)
                    continue
                found['results'].append(asdict(result))
                print(line_of(result), flush=True)
                write(found, Path(dest))


def write(found: dict[str, Any], dest: Path) -> None:
    """Write what was found so far: speed.json, a table of it, and a picture."""
    results = [Result(**result) for result in found['results']]
    rows = [[r.task, r.precision, r.way, str(r.batch), f'{r.images_per_second:.4g}',
             f'{1e3 * r.seconds:.4g}', f'{r.rate / 1e12:.3g}', f'{r.utilisation:.1%}',
             f'{r.gigabytes:.1f}', f'{r.start_up:.0f}'] for r in results]
    head = ['task', 'precision', 'way', 'batch', 'images/s', 'ms per evaluation or step',
            'matrix rate, TFLOP/s', 'of it', 'GB', 'start-up, s']
    bars: dict[str, dict[str, float]] = {}
    for r in results:
        bars.setdefault(f'{r.task}\n{r.precision}', {})[r.way] = r.images_per_second
    charts = [Bars('images/s', {name: bar}) for name, bar in bars.items()]
    written(dest, 'speed', found, table(head, rows), charts)


def line_of(result: Result) -> str:
    """Return a result in one line."""
    error = '' if result.error is None else f', error {result.error:.1e}'
    return (f'{result.task:32s} {result.precision:4s} {result.way:9s} batch {result.batch:4d}: '
            f'{result.images_per_second:9.4g} images/s, {result.seconds * 1e3:8.4g} ms, '
            f'{result.utilisation:6.1%} of {result.rate / 1e12:.3g} TFLOP/s, '
            f'{result.gigabytes:5.2f} GB, start-up {result.start_up:.1f} s{error}')


if __name__ == '__main__':
    main()
