"""How much arithmetic training takes, and how much the device can do: measured once, at the start.

The share that is used (model FLOP utilisation, Chowdhery et al. 2022) counts one evaluation of the
network and twice as much for its gradient, whatever is computed in addition, such as with
--checkpointing.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from limpid.resolution import height_and_width
from training.networks import PRECISIONS, NetworkConfig, build_network

SIDE = {'cuda': 8192, 'mps': 2048}   # of square matrices whose product takes milliseconds
SIDE_ON_CPU = 768
MEASURED_FOR = 0.05   # seconds, and three products at least


def operations(network: NetworkConfig) -> float:
    """Return the floating-point operations of one evaluation for one image.

    A multiplication and an addition count as two. Products and convolutions count, as
    torch.utils.flop_counter finds them without computing anything (on the device `meta`).
    """
    with torch.device('meta'), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = build_network(network).eval()
        net(torch.empty(1, net.img_channels, *height_and_width(net.img_resolution)),
            torch.tensor(1.0))
    return float(counter.get_total_flops())


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the operations per second of the fastest of a few large matrix products.

    Their factors are random, since those of zeros are faster, but no generator of a run is used.
    TF32 is allowed or not as it is at present.
    """
    n = SIDE.get(device.type, SIDE_ON_CPU)
    dtype = PRECISIONS[precision]
    if precision == 'fp16' and device.type == 'cpu':
        dtype = torch.float32   # as the network does
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, generator=generator)
    a, b = (torch.outer(rows, rows.roll(i)).to(device, dtype) for i in (1, 2))
    return 2 * n**3 / min(_seconds_of_products(a, b))


def _seconds_of_products(a: torch.Tensor, b: torch.Tensor) -> Iterator[float]:
    torch.matmul(a, b)   # chooses algorithms
    begin, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begin < MEASURED_FOR:
        _wait(a.device)
        start = time.perf_counter()
        torch.matmul(a, b)
        _wait(a.device)
        yield time.perf_counter() - start
        count += 1


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()
    elif device.type == 'mps':
        torch.mps.synchronize()


@dataclass(frozen=True)
class Work:
    """What a training image costs, and what one device can do.

    per_image  floating-point operations, forward and backward
    rate       operations per second of large matrix products in the precision of the network
    """
    per_image: float
    rate: float

    @classmethod
    def of(cls, network: NetworkConfig, device: torch.device) -> 'Work':
        """Count and measure: a fraction of a second."""
        return cls(3 * operations(network), matrix_rate(device, network.precision))

    def numbers(self, images_per_second: float) -> dict[str, float]:
        """Return the statistics of a device that trains at this pace."""
        flops = self.per_image * images_per_second
        return {'Timing/tflops': flops / 1e12, 'Timing/utilisation': flops / self.rate}
