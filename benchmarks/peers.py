"""The same work in other programs, by the operations that it takes: networks of about equal size.

    pip install 'diffusers>=0.35' einops
    pip install --no-deps k-diffusion denoising-diffusion-pytorch smalldiffusion
    python -m benchmarks.peers      # to out/peers; programs that are missing are named, no more

Three things are timed for each: one evaluation of a batch, drawing images in 35 evaluations with
the program's own sampler, and a training step: denoising loss, and Adam as the program's trainer
makes it. Networks of other programs are not the same function, and take other numbers of
operations, so compare the share of the device's matrix rate, which is the throughput for each
operation. torch-fidelity is in benchmarks/evaluation.py.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parts import Missing, part_of
from benchmarks.results import Bars, written
from benchmarks.speed import CIFAR10, DEMO, NFE, machine, matrix_rate, times_of
from dnnlib.cli import one_line_errors
from dnnlib.markdown import table
from limpid.resolution import height_and_width
from limpid.sampling import sample
from torch_utils import distributed
from training.networks import NetworkConfig, build_network

SIZES = {'CIFAR-10': CIFAR10, 'demo': DEMO}
Function = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Peer:
    """A network of a program.

    evaluate  (x [B, C, H, W], σ [B]) -> what the network answers, of the shape of x
    draw      draws so many images in NFE evaluations
    fused     whether its trainer asks for Adam in one kernel
    """
    net: nn.Module
    evaluate: Function
    draw: Callable[[int], object]
    fused: bool | None = None


def limpid(network: NetworkConfig, device: torch.device) -> Peer:
    """This project, eagerly; benchmarks/speed.py has its faster ways."""
    net = build_network(network).to(device)
    shape = net.img_channels, *height_and_width(net.img_resolution)
    labels = torch.zeros([1, net.label_dim], device=device)

    def draw(count: int) -> Tensor:
        return sample(net, torch.randn([count, *shape], device=device), labels)

    return Peer(net, lambda x, sigma: net(x, sigma, labels), draw, fused=True)


@dataclass(frozen=True)
class Widths:
    """The size of a network, as other programs ask for it: one entry for each resolution."""
    side: int
    img_channels: int
    blocks: int
    channels: list[int]
    attends: list[bool]

    @classmethod
    def of(cls, network: NetworkConfig) -> 'Widths':
        """Return the size of one of this project's U-Nets."""
        model, (side, _) = network.model, height_and_width(network.img_resolution)
        mults = model['channel_mult']
        return cls(side, network.img_channels, model['num_blocks'],
                   [model['model_channels'] * mult for mult in mults],
                   [side >> level in model['attn_resolutions'] for level in range(len(mults))])


def unet2d_of_diffusers(network: NetworkConfig, device: torch.device) -> Peer:
    """UNet2DModel of the same widths, blocks and attention, with EDM's Euler scheduler."""
    try:
        import diffusers as theirs
    except ImportError as error:
        raise Missing(f'diffusers is not there: {error}') from None
    library: Any = theirs
    size = Widths.of(network)
    net: Any = library.UNet2DModel(
        sample_size=size.side, in_channels=size.img_channels, out_channels=size.img_channels,
        layers_per_block=size.blocks, attention_head_dim=None, block_out_channels=size.channels,
        down_block_types=['AttnDownBlock2D' if there else 'DownBlock2D' for there in size.attends],
        up_block_types=['AttnUpBlock2D' if there else 'UpBlock2D' for there in size.attends[::-1]],
    ).to(device)

    def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
        answer: Tensor = net(x, sigma.log() / 4).sample
        return answer

    def draw(count: int) -> Tensor:
        scheduler: Any = library.EDMEulerScheduler()
        scheduler.set_timesteps(NFE, device=device)
        x = torch.randn([count, size.img_channels, size.side, size.side],
                        device=device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            answer = net(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(answer, t, x).prev_sample
        return x

    return Peer(net, evaluate, draw)


def karras_unet(network: NetworkConfig, device: torch.device) -> Peer:
    """KarrasUnet, of EDM2's design, in ElucidatedDiffusion, with Heun's method.

    The sampler asks its network for an attribute that only the program's other U-Net has.
    """
    unet: Any
    elucidated: Any
    unet, elucidated = part_of('denoising_diffusion_pytorch', 'karras_unet', 'elucidated_diffusion')
    size = Widths.of(network)
    sides = [size.side >> level for level in range(len(size.channels))]
    net: Any = unet.KarrasUnet(
        image_size=size.side, dim=network.model['model_channels'], channels=size.img_channels,
        dim_max=max(size.channels), num_downsamples=len(sides) - 1,
        num_blocks_per_stage=size.blocks,
        attn_res=tuple(side for side, there in zip(sides, size.attends, strict=True) if there),
        attn_flash=device.type == 'cuda').to(device)
    net.random_or_learned_sinusoidal_cond = True   # as it is: MPFourierEmbedding is random
    elucidated.tqdm = lambda steps, desc=None: steps
    diffusion: Any = elucidated.ElucidatedDiffusion(
        net, image_size=size.side, channels=size.img_channels, num_sample_steps=(NFE + 1) // 2,
        S_churn=0)
    return Peer(net, diffusion.preconditioned_network_forward, diffusion.sample)


def unet_of_k_diffusion(network: NetworkConfig, device: torch.device) -> Peer:
    """ImageDenoiserModelV1 of the same widths, blocks and attention, with Heun's method."""
    layers, sampling, models = part_of('k_diffusion', 'layers', 'sampling', 'models.image_v1')
    size = Widths.of(network)
    net: Any = layers.Denoiser(models.ImageDenoiserModelV1(
        c_in=size.img_channels, feats_in=4 * network.model['model_channels'],
        depths=[size.blocks] * len(size.channels), channels=size.channels,
        self_attn_depths=size.attends), sigma_data=0.5).to(device)

    def draw(count: int) -> Tensor:
        sigmas = sampling.get_sigmas_karras((NFE + 1) // 2, 0.002, 80, device=device)
        x = sigmas[0] * torch.randn([count, size.img_channels, size.side, size.side],
                                    device=device)
        drawn: Tensor = sampling.sample_heun(net, x, sigmas, disable=True)
        return drawn

    return Peer(net, net, draw)


def unet_of_smalldiffusion(network: NetworkConfig, device: torch.device) -> Peer:
    """Unet of the same widths, blocks and attention, with its accelerated sampler."""
    unet, diffusion = part_of('smalldiffusion', 'model_unet', 'diffusion')
    size = Widths.of(network)
    width = network.model['model_channels']
    net: Any = unet.Unet(
        size.side, size.img_channels, size.img_channels, ch=width,
        ch_mult=tuple(channels // width for channels in size.channels),
        num_res_blocks=size.blocks, dropout=network.model['dropout'],
        attn_resolutions=[size.side >> level for level, there in enumerate(size.attends) if there],
    ).to(device)

    def draw(count: int) -> Tensor:
        sigmas = diffusion.ScheduleLogLinear(1000, 0.002, 80).sample_sigmas(NFE)
        *_, last = diffusion.samples(net, sigmas, gam=2, batchsize=count,
                                     accelerator=SimpleNamespace(device=device))
        drawn: Tensor = last
        return drawn

    return Peer(net, net, draw)


PEERS: dict[str, Callable[[NetworkConfig, torch.device], Peer]] = {
    'limpid': limpid, 'diffusers UNet2DModel': unet2d_of_diffusers,
    'k-diffusion ImageDenoiserModelV1': unet_of_k_diffusion,
    'denoising-diffusion-pytorch KarrasUnet': karras_unet,
    'smalldiffusion Unet': unet_of_smalldiffusion}
TASKS = {'evaluation': 1, 'drawing': NFE, 'training step': 3}   # evaluations' worth of operations


@dataclass(frozen=True)
class Result:
    """What was measured of a peer: a task is evaluation, drawing or training step.

    gflop        floating-point operations for an image, in 10⁹, as torch counts them: those of one
                 evaluation, of 35, or of one and twice as many for its gradient
    seconds      of a batch
    utilisation  operations per second over the matrix rate, as measured right before
    """
    size: str
    peer: str
    task: str
    parameters: int
    gflop: float
    batch: int
    seconds: float
    images_per_second: float
    utilisation: float


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


def measure(size: str, name: str, device: torch.device, batch: int,
            repeats: int) -> Iterator[Result]:
    """Time one peer at one size; raises Missing for one that is not installed."""
    network = SIZES[size]
    torch.manual_seed(0)
    peer = PEERS[name](network, device)
    sides = height_and_width(network.img_resolution)
    y = torch.randn([batch, network.img_channels, *sides], device=device)
    sigma = torch.full([batch], 0.7, device=device)
    peer.net.eval()
    operations = operations_of(PEERS[name](network, torch.device('meta')), y[:1], sigma[:1])
    parameters = sum(p.numel() for p in peer.net.parameters())
    optimizer = torch.optim.Adam(peer.net.parameters(), lr=1e-4, fused=peer.fused)
    work: dict[str, Callable[[], object]] = {
        'evaluation': lambda: peer.evaluate(y, sigma), 'drawing': lambda: peer.draw(batch),
        'training step': lambda: training_step(peer, optimizer, y)}
    for task, evaluations in TASKS.items():
        training = task == 'training step'
        peer.net.train(training)
        rate = matrix_rate('fp32', device)   # its speed drifts
        with torch.set_grad_enabled(training):
            if task != 'drawing':   # which repeats the same work often enough to be warm
                list(times_of(work[task], device, 2))
            seconds = median(times_of(work[task], device, 1 if task == 'drawing' else repeats))
        gflop = evaluations * operations / 1e9
        yield Result(size, name, task, parameters, gflop, batch, seconds, batch / seconds,
                     batch * gflop * 1e9 / seconds / rate)


HEAD = ['size', 'program', 'task', 'parameters', 'GFLOP per image', 'batch', 'ms', 'images/s',
        'of the matrix rate']


def report(found: dict[str, Any], dest: Path) -> None:
    """Write peers.json, peers.md and peers.png."""
    results = [Result(**result) for result in found['results']]
    rows = [[r.size, r.peer, r.task, f'{r.parameters / 1e6:.1f} M', f'{r.gflop:.3g}', str(r.batch),
             f'{1e3 * r.seconds:.4g}', f'{r.images_per_second:.4g}', f'{r.utilisation:.1%}']
            for r in results]
    bars: dict[str, dict[str, float]] = {}
    for r in results:
        bars.setdefault(f'{r.size}\n{r.task}', {})[r.peer] = 100 * r.utilisation
    notes = [f'{name} at the size of {size} is left out: {reason}'
             for size, name, reason in found['missing']]
    written(dest, 'peers', found, '\n\n'.join([table(HEAD, rows), *notes]),
            [Bars('% of the matrix rate', bars)])


def line_of(result: Result) -> str:
    """Return a result in one line."""
    return (f'{result.size:8s} {result.peer:38s} {result.task:13s} {result.images_per_second:9.4g} '
            f'images/s of {result.gflop:8.4g} GFLOP, {result.utilisation:6.1%} of the matrix rate')


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
    found: dict[str, Any] = {'machine': machine(on), 'results': [], 'missing': []}
    batch = batch or (128 if on.type == 'cuda' else 4)
    for size in sizes:
        for name in PEERS:
            try:
                for result in measure(size, name, on, batch, repeats):
                    found['results'].append(asdict(result))
                    print(line_of(result), flush=True)
            except Exception as error:   # noqa: BLE001 (a program that fails leaves the others)
                reason = str(error) if isinstance(error, Missing) else repr(error)
                found['missing'].append([size, name, reason])
                print(f'{name} at the size of {size} is left out: {reason}'[:300], flush=True)
            report(found, Path(dest))


if __name__ == '__main__':
    main()
