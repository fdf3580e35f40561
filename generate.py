"""Generate images from a trained network: snapshot + seeds + rows of Table 1 -> PNG files."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import functools
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dnnlib.cli import (
    GroupedCommand,
    IntList,
    check_writable,
    naming_flags,
    one_line_errors,
    with_each,
)
from dnnlib.files import remove_leftovers
from dnnlib.progress import progressing
from limpid.denoiser import Counting, Network, traits
from limpid.sampling import Plan
from limpid.seeds import StackedGenerator, generate, latents_and_labels, share_of
from limpid.values import is_images, picture_of
from options.batches import BATCH, limit_of
from options.common import DEVICE, RNG
from options.guidance import guidance_options
from options.network import CLASSES, DRAW, class_numbers, files, network_options, open_with_plan
from options.sampler import sampler_options
from options.speed import COMPILE, PRECISION, hasten
from torch_utils import distributed
from torch_utils.grids import save_grid
from torch_utils.memory import BatchLimit
from torch_utils.writers import Writers

TRAJECTORY = 12, 16   # the largest numbers of noise levels and of images that are shown


class GridSize(click.ParamType):  # type: ignore[type-arg]
    """A number of rows and columns: `3x5` becomes (3, 5)."""
    name = 'RxC'

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', value) if isinstance(value, str) else None
        if match is None:
            self.fail(f'{value!r} is not a number of rows and columns such as 3x5', param, ctx)
        rows, columns = int(match[1]), int(match[2])
        if rows * columns > 1_000_000:
            self.fail(f'{value} has more than 1,000,000 images', param, ctx)
        return rows, columns


FILES = [
    files('--outdir', metavar='DIR', required=True,
          help='The folder for the images, <seed>.png, or <seed>.npy [C, H, W] for a network '
               'that makes arrays'),
    files('--seeds', type=IntList(),
          help='The random seeds, each of which makes one image, such as 1,2,5-10  [default: 0-63, '
               'or as many as fill the --grid]'),
    files('--subdirs', is_flag=True,
          help='Make a subfolder for every 1000 seeds'),
    CLASSES,
    DRAW,
    files('--grid', type=GridSize(),
          help='Write a single picture, grid.png, with R rows and C columns, instead of a file for '
               'each image'),
    files('--trajectory', is_flag=True,
          help='Also write trajectory.png. It has a row for each of the first 16 images, which '
               'shows the denoised images at noise levels on the way to it'),
    files('--stats', is_flag=True,
          help='Also print the number of network evaluations, the time per image and the noise '
               'levels'),
]

EXAMPLES = """
    # 64 images of a snapshot, deterministic, 18 steps (35 evaluations of the network)
    python generate.py --network=out/demo/run/network-snapshot-000064.pkl --outdir=out/images

    # One picture with a column for each class, another of how it came about, and the cost
    python generate.py --network=out/demo/run/network-snapshot-000064.pkl --outdir=out \\
        --grid=4x10 --class=0-9 --trajectory --stats

    # Stochastic sampling (Algorithm 2), on 8 GPUs
    torchrun --standalone --nproc_per_node=8 generate.py --network=net.pkl --outdir=out \\
        --seeds=0-49999 --subdirs --steps=256 --S_churn=40 --S_min=0.05 --S_max=50 --S_noise=1.003

    # The VP column of Table 1; the same with another solver; a sampler of earlier work
    python generate.py --network=net.pkl --outdir=out --family=vp --steps=256
    python generate.py --network=net.pkl --outdir=out --family=vp --steps=64 --solver=heun
    python generate.py --network=net.pkl --outdir=out --sampler=pc --steps=500

    # Guidance: away from the answer without the class, for a network trained with
    # --label-dropout; then away from a worse network
    python generate.py --network=net.pkl --outdir=out --class=3 --guidance=3 --guidance-rescale=0.7
    python generate.py --network=net.pkl --outdir=out --guidance=2 --guide-network=early.pkl \\
        --guidance-interval=0.2,3

    # No training at all: the ideal denoiser of a data set
    python generate.py --network=ideal:datasets/digits-16x16.zip --outdir=out --grid=8x8 \\
        --steps=10 --stats
    """


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 110}, examples=EXAMPLES)
@network_options
@functools.partial(with_each, FILES)
@sampler_options
@guidance_options
@functools.partial(with_each, [BATCH, DEVICE, RNG, PRECISION, COMPILE])
@one_line_errors
@naming_flags(['weights'])
def main(network_path: str, weights: str | None, outdir: str, seeds: list[int] | None,
         subdirs: bool, classes: list[int | str] | None, grid: tuple[int, int] | None,
         trajectory: bool, stats: bool, batch: int | str, device: str, rng: str | None,
         precision: str | None, compiled: bool,
         **options: Any) -> None:  # noqa: ANN401 (of the network, the sampler and guidance)
    """Generate images from a trained network.

    Each image depends on its own seed, but not on the batch size, the number of devices, or the
    other seeds. The same command runs on one device and, under torchrun, on many.
    """
    if grid and subdirs:
        raise ValueError('--subdirs would have no effect with --grid, which is one file')
    seeds = seeds_for(seeds, grid)
    if grid is None:
        check_names(seeds)
    check_writable('--outdir', outdir, folder=True)
    chosen = distributed.init(device)
    opened = open_with_plan(network_path, weights, options, chosen)
    numbers = class_numbers(classes, traits(opened.net))
    limit = limit_of(batch, opened.net, chosen, len(seeds))   # before anything is compiled
    opened.forget_counts()
    hasten(opened.counted, precision, compiled)
    opened.say()
    net = Counting(opened.net, keep_sigmas=stats, keep_frames=trajectory)
    ending = ending_of(opened.net)
    if grid is None:
        say_replaced(outdir, seeds, subdirs, ending)
    distributed.print0(f'Generating {len(seeds)} images to {outdir} ...')
    start = time.monotonic()
    distributed.on_rank_0(lambda: forget_killed(outdir, seeds, subdirs))
    in_grid: dict[int, np.ndarray] = {}   # images by position
    frames: dict[int, np.ndarray] = {}    # the way to each of them: [noise levels, C, H, W]
    with Writers() as writers:
        for positions, images in drawn(net, opened.plan, seeds, numbers, limit, chosen, rng):
            if trajectory and positions[0] < TRAJECTORY[1]:
                frames.update(zip(positions, frames_of(net, pictures(net, images)), strict=True))
            net.frames.clear()
            net.keep_sigmas = False   # those of the first batch are enough
            if grid:
                in_grid.update(zip(positions, pictures(net, images), strict=True))
            else:
                writers.write(images, [file_of(outdir, seeds[i], subdirs, ending)
                                       for i in positions])
    seconds = time.monotonic() - start
    if grid:
        write_grid(Path(outdir) / 'grid.png', in_grid, grid[1],
                   names_of(opened.net, seeds, numbers, chosen, rng))
    if trajectory:
        write_trajectory(Path(outdir) / 'trajectory.png', frames)
    if stats:
        print_stats(opened.evaluations, seconds, net, len(seeds))
    distributed.barrier()
    distributed.print0('Done.')
    distributed.shutdown()


def seeds_for(seeds: list[int] | None, grid: tuple[int, int] | None) -> list[int]:
    """Return the seeds to draw; raises ValueError where they do not fill the grid."""
    if grid is None:
        return list(range(64)) if seeds is None else seeds
    rows, columns = grid
    if seeds is None:
        return list(range(rows * columns))
    if len(seeds) != rows * columns:
        raise ValueError(f'--grid={rows}x{columns} holds {rows * columns} images, but --seeds '
                         f'names {len(seeds)}')
    return seeds


def check_names(seeds: Sequence[int]) -> None:
    """Raise ValueError for seeds of which one would overwrite or repeat the image of another.

    A generator takes its seed modulo 2^32, so that larger seeds repeat the images of smaller ones.
    """
    first: dict[int, int] = {}   # the first seed with this remainder
    for seed in seeds:
        other = first.setdefault(seed % 2**32, seed)
        if other != seed:
            raise ValueError(f'--seeds: {other} and {seed} are equal modulo 2^32 and give the same '
                             f'image: leave one of them out')
    if len(first) < len(seeds):
        again = next(seed for seed, count in Counter(seeds).items() if count > 1)
        raise ValueError(f'--seeds names {again} more than once, and there is one file for each '
                         f'seed, {again:06d}.png: leave the repetitions out, or draw them into one '
                         f'picture with --grid')


def drawn(net: Counting, plan: Plan, seeds: Sequence[int], classes: Sequence[int] | None,
          limit: BatchLimit, device: torch.device,
          rng: str | None) -> Iterator[tuple[list[int], np.ndarray]]:
    """Draw this rank's share of the images, batch by batch.

    Yields the positions of the images in `seeds`, and the images, uint8 or float32 [B, C, H, W].
    """
    def draw(positions: Sequence[int]) -> np.ndarray:
        labels = None if classes is None else [classes[i % len(classes)] for i in positions]
        images = generate(net, plan, [seeds[i] for i in positions], labels, device, rng)
        return images.cpu().numpy()

    rank = distributed.get_rank()
    shares = share_of(seeds, limit.size, rank, distributed.get_world_size())
    for share in progressing(shares, len(shares), unit='batches', quiet=rank != 0):
        for positions, images in limit.pieces(share.tolist(), draw):
            yield list(positions), images


def forget_killed(outdir: str, seeds: Sequence[int], subdirs: bool) -> None:
    """Remove the temporary files that killed commands left among the pictures of this one."""
    folders = {f'{seed - seed % 1000:06d}' for seed in seeds} if subdirs else set()
    for folder in ('.', *sorted(folders)):
        remove_leftovers(Path(outdir) / folder, r'\d{6,}\.(png|npy)|(grid|trajectory)\.png')


def ending_of(net: Network) -> str:
    """Return png for a network that makes 8-bit images, and npy for one that makes arrays."""
    told = traits(net)
    shape = told.image_shape
    return 'png' if shape is None or is_images(shape[0], told.standardization) else 'npy'


def pictures(net: Network, images: np.ndarray) -> np.ndarray:
    """Return what can be shown of images: uint8 [B, 1 or 3, H, W]."""
    return picture_of(torch.from_numpy(images), traits(net).standardization).numpy()


def file_of(outdir: str, seed: int, subdirs: bool, ending: str) -> Path:
    """Return the path of the image of a seed."""
    folder = Path(outdir) / f'{seed - seed % 1000:06d}' if subdirs else Path(outdir)
    return folder / f'{seed:06d}.{ending}'


def say_replaced(outdir: str, seeds: Sequence[int], subdirs: bool, ending: str) -> None:
    """Say how many images of these seeds are there already, maybe of another network."""
    if distributed.get_rank() == 0 and Path(outdir).is_dir():
        there = sum(file_of(outdir, seed, subdirs, ending).exists() for seed in seeds)
        if there:
            print(f'Note: {there} of these images are in {outdir} already, and are replaced',
                  flush=True)


def frames_of(net: Counting, images: np.ndarray) -> np.ndarray:
    """Return the network's answers on the way to pictures, followed by the pictures themselves.

    The shape is [B, noise levels, C, H, W], with at most 12 noise levels, the highest first.
    """
    sigmas = sorted(net.frames, reverse=True)
    chosen = np.linspace(0, len(sigmas) - 1, min(len(sigmas), TRAJECTORY[0] - 1))
    frames = [net.frames[sigmas[i]].numpy() for i in np.unique(chosen.round().astype(int))]
    return np.stack([*frames, images], axis=1)


def names_of(net: Network, seeds: Sequence[int], classes: Sequence[int] | None,
             device: torch.device, rng: str | None) -> list[str]:
    """Return the name of the class of each image, if the network knows the names of its classes."""
    known = traits(net).known_labels
    if known is None or not any(known.names):
        return []
    if classes is not None:
        return [known.names[classes[i % len(classes)]] for i in range(len(seeds))]
    names = []
    for part in (seeds[i:i + 64] for i in range(0, len(seeds), 64)):
        generator = StackedGenerator(part, device, source=rng)
        _, labels = latents_and_labels(net, part, None, generator)
        names += known.names_of(labels) if labels is not None else [''] * len(part)
    return names


def write_grid(path: Path, images: dict[int, np.ndarray], columns: int,
               names: Sequence[str]) -> None:
    """Write the images of all ranks as one picture, with the names of their classes; collective."""
    everything = merged(images)
    if distributed.get_rank() == 0:
        save_grid(np.stack(everything), path, columns=columns, names=names)


def write_trajectory(path: Path, frames: dict[int, np.ndarray]) -> None:
    """Write the ways to the first 16 images, a row for each; collective."""
    rows = merged(frames)[:TRAJECTORY[1]]
    if distributed.get_rank() == 0:
        save_grid(np.concatenate(rows), path, columns=len(rows[0]))


def merged(parts: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Return the parts of all ranks, in the order of their positions; collective."""
    everything = {i: value for part in distributed.gather_objects(parts)
                  for i, value in part.items()}
    return [everything[i] for i in sorted(everything)]


def print_stats(evaluations: int, seconds: float, net: Counting, count: int) -> None:
    """Print evaluations and seconds per image, and the noise levels of the first batch; collective.

    `evaluations` and `seconds` are those of this rank; `count` is the number of all images.
    """
    evaluations = sum(distributed.gather_objects(evaluations))
    seconds = sum(distributed.gather_objects(seconds))
    levels = sorted(set(net.noise_levels()), reverse=True)
    shown = [f'{level:.4g}' for level in levels]
    if len(levels) > 40:
        shown[20:-20] = ['...']
    distributed.print0(f'Evaluations of the network: {evaluations / count:g} per image (NFE)')
    distributed.print0(f'Time: {seconds / count:.4g} s per image and device')
    distributed.print0(f'Noise levels ({len(levels)}): {", ".join(shown)}')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
