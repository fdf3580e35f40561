"""Generate images from a trained network: snapshot + seeds + rows of Table 1 -> PNG files."""

import re
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm

from dnnlib.cli import GroupedCommand, IntList, heading, is_terminal, naming_flags, one_line_errors
from limpid.denoiser import Counting, traits
from limpid.seeds import generate, share_of
from options.guidance import guidance_options
from options.network import check_classes, network_options, open_with_plan
from options.sampler import sampler_options
from torch_utils import distributed
from torch_utils.grids import save_grid, save_png

files = heading('Network and images')
speed = heading('Performance')

TRAJECTORY = 12, 16   # at most so many noise levels and images are shown


class GridSize(click.ParamType):
    """`3x5` -> (3, 5), rows and columns."""
    name = 'RxC'

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> Any:  # noqa: ANN401
        match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', value) if isinstance(value, str) else None
        if match is None:
            self.fail(f'{value!r} is not a number of rows and columns such as 3x5', param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 110})
@network_options
@files('--outdir', help='Where the images are written, as <seed>.png', metavar='DIR', required=True)
@files('--seeds', help='Random seeds, one image each, e.g. 1,2,5-10  [default: 0-63, or as many as '
                       '--grid holds]', type=IntList())
@files('--subdirs', help='Make a subfolder for every 1000 seeds', is_flag=True)
@files('--class', 'classes', help='Class labels, cycled over the seeds, e.g. 3 or 0-9  [default: '
                                  'random, drawn from the seed]', type=IntList())
@files('--grid',
       help='Write one picture of R rows and C columns, grid.png, instead of single files',
       type=GridSize())
@files('--trajectory', help='Also write trajectory.png: the denoised images at each noise level, a '
                            'row for each of the first 16 images', is_flag=True)
@files('--stats', help='Also print the evaluations of the network, the time per image and the '
                       'noise levels', is_flag=True)
@sampler_options
@guidance_options
@speed('--batch', help='Largest batch per device', type=click.IntRange(min=1), metavar='INT',
       default=64, show_default=True)
@speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu', metavar='NAME',
       default='auto', show_default=True)
@speed('--rng', help='Where random numbers are drawn; cpu gives the same images on any device  '
                     '[default: the device]', type=click.Choice(['cpu']))
@one_line_errors
@naming_flags(['weights'])
def main(network_path: str, weights: str | None, outdir: str, seeds: list[int] | None,
         subdirs: bool, classes: list[int] | None, grid: tuple[int, int] | None, trajectory: bool,
         stats: bool, batch: int, device: str, rng: str | None,
         **options: Any) -> None:  # noqa: ANN401
    """Generate images from a trained network.

    Each image depends on its seed alone: not on the batch, the number of devices, or other seeds.
    The same command runs on one device and, under torchrun, on many.

    Examples:
    # 64 images of a snapshot, deterministic, 18 steps (35 evaluations of the network)
    python generate.py --network=out/demo/run/network-snapshot-000064.pkl --outdir=out/images

    # One picture, a column for each class; how it came about; and what it took
    python generate.py --network=out/demo/run/network-snapshot-000064.pkl --outdir=out --grid=4x10 --class=0-9 --trajectory --stats

    # Stochastic sampling (Algorithm 2), on 8 GPUs
    torchrun --standalone --nproc_per_node=8 generate.py --network=net.pkl --outdir=out --seeds=0-49999 --subdirs \\
        --steps=256 --S_churn=40 --S_min=0.05 --S_max=50 --S_noise=1.003

    # The VP column of Table 1; its sampler with another solver; a sampler of previous work
    python generate.py --network=net.pkl --outdir=out --family=vp --steps=256
    python generate.py --network=net.pkl --outdir=out --family=vp --steps=64 --solver=heun
    python generate.py --network=net.pkl --outdir=out --sampler=pc --steps=500

    # Guidance: away from the answer without the class, for a network trained with --label-dropout; then from a worse network
    python generate.py --network=net.pkl --outdir=out --class=3 --guidance=3 --guidance-rescale=0.7
    python generate.py --network=net.pkl --outdir=out --guidance=2 --guide-network=early.pkl --guidance-interval=0.2,3

    # No training at all: the ideal denoiser of a data set
    python generate.py --network=ideal:datasets/digits-16x16.zip --outdir=out --grid=8x8 --steps=10 --stats
    """
    if seeds is None:
        seeds = list(range(grid[0] * grid[1] if grid else 64))
    if grid and len(seeds) != grid[0] * grid[1]:
        raise ValueError(f'--grid={grid[0]}x{grid[1]} holds {grid[0] * grid[1]} images, but '
                         f'--seeds names {len(seeds)}')
    chosen_device = distributed.init(device)
    opened = open_with_plan(network_path, weights, options, chosen_device)
    check_classes(classes, traits(opened.net).label_dim)
    opened.say()
    watched = Counting(opened.net, keep_sigmas=stats, keep_frames=trajectory)

    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    distributed.print0(f'Generating {len(seeds)} images to {outdir} ...')
    kept: dict[int, np.ndarray] = {}     # for the grid, by position
    frames: dict[int, np.ndarray] = {}   # for the trajectory: [noise levels, C, H, W]
    start = time.monotonic()
    for positions in tqdm.tqdm(share_of(seeds, batch, rank, world_size), unit='batch',
                               disable=rank != 0 or not is_terminal()):
        if len(positions) == 0:
            continue
        batch_seeds = [seeds[i] for i in positions]
        batch_classes = None if classes is None else [classes[i % len(classes)] for i in positions]
        images = generate(watched, opened.plan, batch_seeds, batch_classes, chosen_device,
                          rng).cpu().numpy()
        if trajectory and positions[0] < TRAJECTORY[1]:
            frames.update(zip(positions.tolist(), steps_of(watched, images), strict=True))
        watched.frames.clear()
        watched.keep_sigmas = False   # those of the first batch are enough
        if grid:
            kept.update(zip(positions.tolist(), images, strict=True))
            continue
        for seed, image in zip(batch_seeds, images, strict=True):
            save_png(image.transpose(1, 2, 0), image_path(outdir, seed, subdirs), durable=False)
    seconds = time.monotonic() - start
    if grid:
        everything = merged(kept)
        if rank == 0:
            save_grid(np.stack([everything[i] for i in range(len(seeds))]),
                      Path(outdir) / 'grid.png', columns=grid[1])
    if trajectory:
        shown = merged(frames)
        if rank == 0:
            rows = np.stack([shown[i] for i in range(min(len(seeds), TRAJECTORY[1]))])
            save_grid(rows.reshape(-1, *rows.shape[2:]), Path(outdir) / 'trajectory.png',
                      columns=rows.shape[1])
    if stats:
        print_stats(distributed.gather_objects((opened.evaluations, seconds)), watched, len(seeds))
    distributed.barrier()
    distributed.print0('Done.')
    distributed.shutdown()


def merged(parts: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The dictionaries of all ranks in one; collective."""
    return {k: v for part in distributed.gather_objects(parts) for k, v in part.items()}


def steps_of(watched: Counting, images: np.ndarray) -> np.ndarray:
    """[B, noise levels, C, H, W]: denoised images at up to 12 noise levels, the highest first, and
    the result."""
    sigmas = sorted(watched.frames, reverse=True)
    chosen = np.unique(np.linspace(0, len(sigmas) - 1,
                                   min(len(sigmas), TRAJECTORY[0] - 1)).round().astype(int))
    return np.stack([*(watched.frames[sigmas[i]].numpy() for i in chosen), images], axis=1)


def print_stats(ranks: list[tuple[int, float]], watched: Counting, count: int) -> None:
    """Evaluations per image, seconds per image, and the noise levels of the first batch."""
    evaluations, seconds = (sum(column) for column in zip(*ranks, strict=True))
    levels = sorted(set(watched.noise_levels()), reverse=True)
    shown = [f'{level:.4g}' for level in levels]
    if len(levels) > 40:
        shown[20:-20] = ['...']
    distributed.print0(f'Evaluations of the network: {evaluations / count:g} per image (NFE)')
    distributed.print0(f'Time: {seconds / count:.4g} s per image and device')
    distributed.print0(f'Noise levels ({len(levels)}): {", ".join(shown)}')


def image_path(outdir: str, seed: int, subdirs: bool) -> Path:
    folder = Path(outdir) / f'{seed - seed % 1000:06d}' if subdirs else Path(outdir)
    return folder / f'{seed:06d}.png'


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
