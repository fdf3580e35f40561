"""Generate images from a trained network: snapshot + seeds + rows of Table 1 -> PNG files."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm

from diffusion.discretization import DISCRETIZATIONS, Discretization, noise_range
from diffusion.samplers import SOLVERS, Churn, RowsOfTable1
from diffusion.schedules import SCALINGS, SCHEDULES, VPSchedule
from diffusion.seeds import generate, share_of
from dnnlib.cli import GroupedCommand, IntList, heading, is_terminal, one_line_errors, with_options
from torch_utils import distributed
from torch_utils.grids import save_grid, save_png
from training.state import load_snapshot

files = heading('Network and images')
rows = heading('Rows of Table 1')
numbers = heading('Numbers of the chosen rows')
speed = heading('Performance')


class GridSize(click.ParamType):
    """`3x5` -> (3, 5), rows and columns."""
    name = 'RxC'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', value) if isinstance(value, str) else None
        if match is None:
            self.fail(f'{value!r} is not a number of rows and columns such as 3x5', param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 110})
@files('--network', 'network_path', help='Snapshot of a training run', metavar='PATH', required=True)
@files('--outdir', help='Where the images are written, as <seed>.png', metavar='DIR', required=True)
@files('--seeds', help='Random seeds, one image each, e.g. 1,2,5-10  [default: 0-63, or as many as --grid holds]', type=IntList())
@files('--subdirs', help='Make a subfolder for every 1000 seeds', is_flag=True)
@files('--class', 'classes', help='Class labels, cycled over the seeds, e.g. 3 or 0-9  [default: random, drawn from the seed]', type=IntList())
@files('--grid', help='Write one picture of R rows and C columns, grid.png, instead of single files', type=GridSize())
@rows('--steps', 'num_steps', help='Sampling steps N; Heun evaluates the network 2N - 1 times', type=click.IntRange(min=1),
      metavar='INT', default=18, show_default=True)
@rows('--solver', help='ODE solver  [default: heun]', type=click.Choice(list(SOLVERS)))
@rows('--disc', help='Time steps t_i  [default: edm]', type=click.Choice(list(DISCRETIZATIONS)))
@rows('--schedule', help='Noise schedule σ(t); vp takes its constants from the noise range  [default: linear]', type=click.Choice(list(SCHEDULES)))
@rows('--scaling', help='Signal scaling s(t)  [default: none]', type=click.Choice(list(SCALINGS)))
@numbers('--sigma_min', help='Lowest noise level  [default: by --disc; never below what the network supports]',
         type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@numbers('--sigma_max', help='Highest noise level  [default: by --disc; never above what the network supports]',
         type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@numbers('--rho', help='Exponent of the edm time steps; inf is geometric  [default: 7]', type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@numbers('--alpha', help='Second-order solver: 1 Heun, 0.5 midpoint, 0.6667 Ralston  [default: 1]', type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@numbers('--S_churn', 'S_churn', help='Amount of fresh noise; 0 is the deterministic sampler  [default: 0]', type=click.FloatRange(min=0), metavar='FLOAT')
@numbers('--S_min', 'S_min', help='Fresh noise only at noise levels from here  [default: 0]', type=click.FloatRange(min=0), metavar='FLOAT')
@numbers('--S_max', 'S_max', help='Fresh noise only at noise levels up to here  [default: inf]', type=click.FloatRange(min=0), metavar='FLOAT')
@numbers('--S_noise', 'S_noise', help='Standard deviation of the fresh noise  [default: 1]', type=float, metavar='FLOAT')
@speed('--batch', help='Largest batch per device', type=click.IntRange(min=1), metavar='INT', default=64, show_default=True)
@speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu', metavar='NAME', default='auto', show_default=True)
@speed('--rng', help='Where random numbers are drawn; cpu gives the same images on any device  [default: the device]', type=click.Choice(['cpu']))
@one_line_errors
def main(network_path: str, outdir: str, seeds: list[int] | None, subdirs: bool, classes: list[int] | None,
         grid: tuple[int, int] | None, num_steps: int, batch: int, device: str, rng: str | None, **options: Any) -> None:  # noqa: ANN401
    """Generate images from a trained network.

    Each image depends on its seed alone: not on the batch, the number of devices, or other seeds.
    The same command runs on one device and, under torchrun, on many.

    Examples:
    # 64 images of a snapshot, deterministic, 18 steps (35 evaluations of the network)
    python generate.py --network=out/demo/network-snapshot-000100.pkl --outdir=out/images

    # One picture with a row for each class
    python generate.py --network=out/demo/network-snapshot-000100.pkl --outdir=out --grid=10x10 \\
        --class=0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1,1,2,2,2,2,2,2,2,2,2,2,3,3,3,3,3,3,3,3,3,3,4,4,4,4,4,4,4,4,4,4,5

    # Stochastic sampling (Algorithm 2), on 8 GPUs
    torchrun --standalone --nproc_per_node=8 generate.py --network=net.pkl --outdir=out --seeds=0-49999 --subdirs \\
        --steps=256 --S_churn=40 --S_min=0.05 --S_max=50 --S_noise=1.003

    # The VP sampler of the paper's Table 1
    python generate.py --network=net.pkl --outdir=out --steps=256 --solver=euler --disc=vp --schedule=vp --scaling=vp
    """
    if seeds is None:
        seeds = list(range(grid[0] * grid[1] if grid else 64))
    if grid and len(seeds) != grid[0] * grid[1]:
        raise ValueError(f'--grid={grid[0]}x{grid[1]} holds {grid[0] * grid[1]} images, but --seeds names {len(seeds)}')
    chosen_device = distributed.init(device)
    net, _ = load_snapshot(network_path, chosen_device)
    check_classes(classes, net.label_dim)
    discretization, sampler, notes = sampler_rows(options, net.sigma_min, net.sigma_max)
    for note in notes:
        distributed.print0(f'Note: {note}')

    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    distributed.print0(f'Generating {len(seeds)} images to {outdir} ...')
    kept: dict[int, np.ndarray] = {}
    for positions in tqdm.tqdm(share_of(seeds, batch, rank, world_size), unit='batch', disable=rank != 0 or not is_terminal()):
        if len(positions) == 0:
            continue
        batch_seeds = [seeds[i] for i in positions]
        batch_classes = None if classes is None else [classes[i % len(classes)] for i in positions]
        images = generate(net, sampler, discretization, num_steps, batch_seeds, batch_classes, chosen_device, rng).cpu().numpy()
        if grid:
            kept.update(zip(positions.tolist(), images, strict=True))
            continue
        for seed, image in zip(batch_seeds, images, strict=True):
            save_png(image.transpose(1, 2, 0), image_path(outdir, seed, subdirs), durable=False)
    if grid:
        everything = {k: v for part in distributed.gather_objects(kept) for k, v in part.items()}
        if rank == 0:
            save_grid(np.stack([everything[i] for i in range(len(seeds))]), Path(outdir) / 'grid.png', columns=grid[1])
    distributed.barrier()
    distributed.print0('Done.')
    distributed.shutdown()


def image_path(outdir: str, seed: int, subdirs: bool) -> Path:
    folder = Path(outdir) / f'{seed - seed % 1000:06d}' if subdirs else Path(outdir)
    return folder / f'{seed:06d}.png'


def check_classes(classes: list[int] | None, label_dim: int) -> None:
    """ValueError for a class that the network does not know."""
    if classes is None:
        return
    if not label_dim:
        raise ValueError(f'--class={classes[0]}: this network is unconditional and knows no classes; leave --class out')
    for label in classes:
        if label >= label_dim:
            raise ValueError(f'--class={label} is out of range: this network knows the classes 0 to {label_dim - 1}')


def sampler_rows(options: dict[str, Any], lowest: float, highest: float) -> tuple[Discretization, RowsOfTable1, list[str]]:
    """Options (None: not given) -> time steps, sampler, and notes on options without effect.

    [lowest, highest] is the range of the network: a VP schedule takes its constants from the noise
    range that is left of the one asked for.
    """
    discretization = with_options(DISCRETIZATIONS[options['disc'] or 'edm'](), options)
    solver = with_options(SOLVERS[options['solver'] or 'heun'](), options)
    low, high = noise_range(discretization, lowest, highest)
    name = options['schedule'] or 'linear'
    schedule = VPSchedule.through(low, high) if name == 'vp' else SCHEDULES[name]()
    scaling = SCALINGS[options['scaling'] or 'none']()
    churn = with_options(Churn(), options)
    notes = [
        f'--{option} has no effect with --disc={options["disc"]}'
        for option in ('rho',) if options[option] is not None and not hasattr(discretization, option)
    ]
    if options['alpha'] is not None and 'alpha' not in {f.name for f in dataclasses.fields(solver)}:
        raise ValueError(f'--alpha would have no effect with --solver={options["solver"]}')
    return discretization, RowsOfTable1(solver, schedule, scaling, churn), notes


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
