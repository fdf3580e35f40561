"""Training on many GPUs, computed: the exchange of gradients beside the arithmetic of a step.

    python -m benchmarks.scaling --paper      # prints it, and writes out/scaling/paper.*

Nothing is measured. A GPU takes t = 3 F b / (u R) for b images, where F is the work of one
evaluation, and R and u are its matrix rate and the share of it that is used. The gradient, 4 bytes
for each of P parameters, is summed over n GPUs around a ring (Patarasu & Yuan 2009): each sends
2 (n − 1)/n of it over the slowest link, in 2 (n − 1) messages for each bucket, and each message
costs a latency. DistributedDataParallel sends a bucket once the backward pass, two thirds of t, has
come to its end, so that the wait is what the exchange takes beyond the backward pass, and never
less than that of the last bucket:

    wait = max(last bucket, exchange − 2/3 t),  efficiency = t / (t + wait)

The model leaves out what the exchange takes of the GPU's memory and cores, stragglers, the loader,
and small batches' lower share u. NCCL sends along trees where rings are slow because of latency.
"""

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.results import Lines, written
from benchmarks.speed import CIFAR10
from dnnlib.markdown import table
from limpid.preconditioning import EDM
from training.networks import NetworkConfig, build_network, complete_arguments
from training.work import operations

ADM64 = NetworkConfig('DhariwalUNet', EDM(), 0, float('inf'), 64, 3, 1000,
                      model=complete_arguments('DhariwalUNet', {}))
RATE, SHARE = 786e12, 0.5   # of an H200 in bf16, measured (docs/speed.md); above what is reached
BUCKET = 25 * 2**20         # bytes, the default of DistributedDataParallel
COUNTS = tuple(2**i for i in range(10))   # GPUs: 1 ... 512


@dataclass(frozen=True)
class Links:
    """What joins the GPUs: bytes per second in each direction, and seconds for each message.

    inside   of a GPU to the others of its node
    between  of a node to the other nodes, all its adapters together, which rings share evenly
    """
    name: str
    inside: float = 0.8 * 450e9   # NVLink 4; 0.8 of the nominal rate, as for the network
    between: float = 0.8 * 400e9
    latency_inside: float = 2e-6
    latency_between: float = 10e-6
    gpus: int = 8

    def rate(self, n: int) -> float:
        """Return the bytes per second of the slowest link in a ring of n GPUs."""
        return self.inside if n <= self.gpus else min(self.inside, self.between)

    def latency(self, n: int) -> float:
        """Return the seconds for each message in a ring of n GPUs, the mean of its links."""
        if n <= self.gpus:
            return self.latency_inside
        return ((self.gpus - 1) * self.latency_inside + self.latency_between) / self.gpus


FAST = Links('fast')                          # 8 adapters of 400 Gb/s for each node
SLOW = Links('slow', between=0.8 * 12.5e9)   # one of 100 Gb/s


@dataclass(frozen=True)
class Training:
    """A network with P parameters and F operations for one evaluation of one image.

    images  of each GPU, where the batch grows with the number of GPUs
    batch   of all GPUs together, where it does not
    """
    name: str
    P: int
    F: float
    images: int
    batch: int

    def seconds(self, images: float) -> float:
        """Return the time t of the arithmetic of a step with so many images on a GPU."""
        return 3 * self.F * images / (SHARE * RATE)


def all_reduce(size: float, n: int, links: Links) -> float:
    """Return the seconds in which n GPUs sum `size` bytes around a ring."""
    return 2 * (n - 1) / n * size / links.rate(n) + 2 * (n - 1) * links.latency(n)


def exchange(size: float, n: int, links: Links) -> float:
    """Return the seconds for a gradient of `size` bytes, bucket after bucket."""
    whole, rest = divmod(size, BUCKET)
    return whole * all_reduce(BUCKET, n, links) + (all_reduce(rest, n, links) if rest else 0)


def wait(training: Training, images: float, n: int, links: Links) -> float:
    """Return the seconds by which the exchange makes a step longer, with b images on each GPU."""
    size = 4 * training.P
    last = all_reduce(min(size, BUCKET), n, links)
    return max(last, exchange(size, n, links) - 2 / 3 * training.seconds(images))


def efficiency(training: Training, images: float, n: int, links: Links) -> float:
    """Return t / (t + wait)."""
    t = training.seconds(images)
    return t / (t + wait(training, images, n, links))


def trainings() -> list[Training]:
    """Return CIFAR-10 and ImageNet-64 of the EDM paper, with its batches (Table 7)."""
    return [Training('CIFAR-10, DDPM++', parameters(CIFAR10), operations(CIFAR10), 256, 512),
            Training('ImageNet-64, ADM', parameters(ADM64), operations(ADM64), 64, 4096)]


def parameters(network: NetworkConfig) -> int:
    """Return the number of parameters of a network, which takes no memory."""
    with torch.device('meta'):
        return sum(p.numel() for p in build_network(network).parameters())


def table_of(training: Training) -> str:
    """Return exchange and efficiency for each number of GPUs, with fast and with slow links."""
    head = ['GPUs']
    for links in (FAST, SLOW):
        head += [f'{links.name}: exchange, ms', f'{training.images} each',
                 f'{training.batch} together']
    rows = []
    for n in COUNTS:
        row = [str(n)]
        for links in (FAST, SLOW):
            row += [f'{1e3 * exchange(4 * training.P, n, links):.1f}',
                    f'{efficiency(training, training.images, n, links):.0%}',
                    f'{efficiency(training, training.batch / n, n, links):.0%}']
        rows.append(row)
    return table(head, rows)


def report(dest: Path) -> str:
    """Write paper.json, paper.md and paper.png, and return the text of paper.md."""
    everything = trainings()
    text = '\n\n'.join(
        f'{one.name}: {one.P / 1e6:.1f} M parameters, {3 * one.F / 1e9:.0f} GFLOP and '
        f'{1e6 * one.seconds(1):.0f} µs for an image\n\n{table_of(one)}' for one in everything)
    lines: dict[str, dict[str, dict[float, float]]] = {one.name: {} for one in everything}
    for one, links in itertools.product(everything, (FAST, SLOW)):
        lines[one.name][f'{one.images} images each, {links.name} links'] = {
            n: 100 * efficiency(one, one.images, n, links) for n in COUNTS}
        lines[one.name][f'{one.batch} together, {links.name} links'] = {
            n: 100 * efficiency(one, one.batch / n, n, links) for n in COUNTS}
    found = {'rate': RATE, 'share': SHARE, 'bucket': BUCKET, 'links': [asdict(FAST), asdict(SLOW)],
             'trainings': [asdict(one) for one in everything], 'efficiency, %': lines}
    written(dest, 'paper', found, text, [Lines(f'GPUs, {name}', 'efficiency, %', values)
                                         for name, values in lines.items()])
    return text
