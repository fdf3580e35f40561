"""The same work in other programs, by the operations that it takes: networks of about equal size.

    pip install 'diffusers>=0.35' denoising-diffusion-pytorch     # what is missing is left out
    python -m benchmarks.peers                                    # to out/peers

Three things are timed for each: one evaluation of a batch, a training step (denoising loss, Adam),
and drawing images in 35 evaluations with the program's own sampler, where it has one for the
network. Networks of other programs are not the same function, and take other numbers of
operations, so compare the share of the device's matrix rate; torch-fidelity is in
benchmarks/evaluation.py.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import CIFAR10, DEMO, NFE, machine, matrix_rates, times_of
from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from limpid.resolution import height_and_width
from limpid.sampling import sample
from torch_utils import distributed
from training.networks import NetworkConfig, build_network

SIZES = {'CIFAR-10': CIFAR10, 'demo': DEMO}
Function = Callable[[Tensor, Tensor], Tensor]


class Missing(Exception):  # noqa: N818 (a state of affairs)
    """A reason why a peer cannot be measured here."""


@dataclass
class Peer:
    """A network of a program.

    evaluate  (x [B, C, H, W], σ [B]) -> what the network answers, of the shape of x
    draw      draws so many images in NFE evaluations; None where the program has no sampler for it
    """
    net: nn.Module
    evaluate: Function
    draw: Callable[[int], object] | None = None


def limpid(network: NetworkConfig, device: torch.device) -> Peer:
    """This project, eagerly; benchmarks/speed.py has its faster ways."""
    net = build_network(network).to(device)
    shape = net.img_channels, *height_and_width(net.img_resolution)
    labels = torch.zeros([1, net.label_dim], device=device)

    def draw(count: int) -> Tensor:
        return sample(net, torch.randn([count, *shape], device=device), labels)

    return Peer(net, lambda x, sigma: net(x, sigma, labels), draw)


def unet2d_of_diffusers(network: NetworkConfig, device: torch.device) -> Peer:
    """UNet2DModel of the same widths, blocks and attention, with EDM's Euler scheduler."""
    try:
        import diffusers as theirs
    except ImportError as error:
        raise Missing(f'diffusers is not there: {error}') from None
    library: Any = theirs
    model, (side, _) = network.model, height_and_width(network.img_resolution)
    attends = [side >> level in model['attn_resolutions']
               for level in range(len(model['channel_mult']))]
    net: Any = library.UNet2DModel(
        sample_size=side, in_channels=network.img_channels, out_channels=network.img_channels,
        layers_per_block=model['num_blocks'], attention_head_dim=None,
        block_out_channels=[model['model_channels'] * mult for mult in model['channel_mult']],
        down_block_types=['AttnDownBlock2D' if there else 'DownBlock2D' for there in attends],
        up_block_types=['AttnUpBlock2D' if there else 'UpBlock2D' for there in attends[::-1]],
    ).to(device)

    def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
        answer: Tensor = net(x, sigma.log() / 4).sample
        return answer

    def draw(count: int) -> Tensor:
        scheduler: Any = library.EDMEulerScheduler()
        scheduler.set_timesteps(NFE, device=device)
        x = torch.randn([count, network.img_channels, side, side],
                        device=device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            answer = net(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(answer, t, x).prev_sample
        return x

    return Peer(net, evaluate, draw)


def karras_unet(network: NetworkConfig, device: torch.device) -> Peer:
    """KarrasUnet, of EDM2's design; its program's EDM sampler takes other networks only."""
    try:
        import denoising_diffusion_pytorch as theirs
    except ImportError as error:
        raise Missing(f'denoising-diffusion-pytorch is not there: {error}') from None
    model, (side, _) = network.model, height_and_width(network.img_resolution)
    library: Any = theirs
    net: Any = library.KarrasUnet(
        image_size=side, dim=model['model_channels'], channels=network.img_channels,
        dim_max=model['model_channels'] * max(model['channel_mult']),
        num_downsamples=len(model['channel_mult']) - 1,
        num_blocks_per_stage=model['num_blocks'], attn_res=tuple(model['attn_resolutions']),
        attn_flash=device.type == 'cuda').to(device)
    return Peer(net, lambda x, sigma: net(x, sigma.log() / 4))


PEERS: dict[str, Callable[[NetworkConfig, torch.device], Peer]] = {
    'limpid': limpid, 'diffusers UNet2DModel': unet2d_of_diffusers,
    'denoising-diffusion-pytorch KarrasUnet': karras_unet}


@dataclass(frozen=True)
class Result:
    """What was measured of a peer: a task is evaluation, training step or drawing.

    gflop        of one evaluation of one image, as torch counts it
    utilisation  operations per second over the matrix rate; None for a peer that is missing
    """
    size: str
    peer: str
    task: str
    parameters: int = 0
    gflop: float = 0.0
    batch: int = 0
    seconds: float = 0.0
    utilisation: float | None = None
    missing: str = ''


@torch.no_grad()
def operations_of(peer: Peer, x: Tensor, sigma: Tensor) -> float:
    """Return the operations of one evaluation of a peer on the device `meta`.

    There torch counts those of attention, which it does not know as a CPU does them.
    """
    with FlopCounterMode(display=False) as counter:
        peer.evaluate(x.to('meta'), sigma.to('meta'))
    return float(counter.get_total_flops())


def training_step(peer: Peer, optimizer: torch.optim.Optimizer, y: Tensor) -> None:
    """Take a step on the denoising error of noisy images at σ = 0.7."""
    sigma = torch.full([len(y)], 0.7, device=y.device)
    loss = (peer.evaluate(y + 0.7 * torch.randn_like(y), sigma) - y).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()   # type: ignore[no-untyped-call]
    optimizer.step()


def measure(size: str, name: str, device: torch.device, rate: float, batch: int,
            repeats: int) -> list[Result]:
    """Time one peer at one size; a peer that is missing has one result, which says why."""
    network = SIZES[size]
    torch.manual_seed(0)
    try:
        peer = PEERS[name](network, device)
    except Missing as reason:
        return [Result(size, name, 'all', missing=str(reason))]
    sides = height_and_width(network.img_resolution)
    y = torch.randn([batch, network.img_channels, *sides], device=device)
    sigma = torch.full([batch], 0.7, device=device)
    peer.net.eval()
    operations = operations_of(PEERS[name](network, torch.device('meta')), y[:1], sigma[:1])
    found = functools.partial(Result, size, name,
                              parameters=sum(p.numel() for p in peer.net.parameters()),
                              gflop=operations / 1e9, batch=batch)

    def timed(task: str, work: Callable[[], object], evaluations: int) -> Result:
        list(times_of(work, device, 2))
        seconds = median(times_of(work, device, repeats))
        return found(task, seconds=seconds,
                     utilisation=evaluations * batch * operations / seconds / rate)

    with torch.no_grad():
        results = [timed('evaluation', lambda: peer.evaluate(y, sigma), 1)]
        if peer.draw is not None:
            draw = peer.draw
            seconds, = times_of(lambda: draw(batch), device, 1)
            results.append(found('drawing', seconds=seconds, utilisation=NFE * batch * operations
                                 / seconds / rate))
    peer.net.train()
    optimizer = torch.optim.Adam(peer.net.parameters(), lr=1e-4)
    results.append(timed('training step', lambda: training_step(peer, optimizer, y), 3))
    return results


def written(found: dict[str, Any], dest: Path) -> None:
    """Write peers.json and peers.md."""
    with atomic_write(dest / 'peers.json') as file:
        file.write(json.dumps(found, indent=1).encode())
    rows = [[r['size'], r['peer'], r['task'], f"{r['parameters'] / 1e6:.1f} M",
             f"{r['gflop']:.3g}", str(r['batch']), f"{1e3 * r['seconds']:.4g}",
             r['missing'] or f"{r['utilisation']:.1%}"] for r in found['results']]
    head = ['size', 'program', 'task', 'parameters', 'GFLOP per evaluation', 'batch', 'ms',
            'of the matrix rate']
    with atomic_write(dest / 'peers.md') as file:
        file.write(f'{", ".join(found["machine"].values())}\n\n{table(head, rows)}\n'.encode())


@click.command()
@click.option('--dest', help='Folder of the results', metavar='DIR', default='out/peers',
              show_default=True)
@click.option('--device', help='Device, as in generate.py', metavar='NAME', default='auto',
              show_default=True)
@click.option('--size', 'sizes', help='Sizes of networks', type=click.Choice(list(SIZES)),
              multiple=True, default=list(SIZES), show_default=True)
@click.option('--batch', help='Images in a batch  [default: 128 on a GPU, else 4]',
              type=click.IntRange(min=1))
@click.option('--repeats', help='Repetitions of each measurement', type=click.IntRange(min=1),
              default=10, show_default=True)
@one_line_errors
def main(dest: str, device: str, sizes: tuple[str, ...], batch: int | None, repeats: int) -> None:
    """Time limpid beside other programs, in float32 and eagerly."""
    on = distributed.init(device)
    rate = matrix_rates(on)['fp32']
    found: dict[str, Any] = {'machine': machine(on), 'rate': rate, 'results': []}
    for size in sizes:
        for name in PEERS:
            for result in measure(size, name, on, rate, batch or (128 if on.type == 'cuda' else 4),
                                  repeats):
                found['results'].append(asdict(result))
                print(result, flush=True)
                written(found, Path(dest))


if __name__ == '__main__':
    main()
