"""Follow the probability flow: encode, decode, interpolate, likelihood, search for steps."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from checkpoints.open import open_network
from dnnlib.cli import (
    ClassName,
    CommandGroup,
    GroupedCommand,
    IntList,
    Real,
    Whole,
    check_writable,
    heading,
    naming_flags,
    one_line_errors,
    with_each,
)
from dnnlib.files import atomic_write, remove_leftovers
from dnnlib.progress import Progress, progressing
from evaluation.settings import text
from limpid.denoiser import Conditioned, Denoiser, Network, Traits, traits
from limpid.inversion import decode, encode, interpolate
from limpid.likelihood import bits_per_dim, dequantize, log_likelihood, rademacher
from limpid.pixels import working_precision
from limpid.samplers import FlowSampler
from limpid.seeds import StackedGenerator, latents_and_labels, share_of
from limpid.step_search import GAMMA, best_path, candidates, euler_errors
from limpid.steps import EDMSteps
from limpid.values import SPREAD, is_images, to_network, to_picture, to_values
from options.common import BATCH, DEVICE, RNG, count, exponent_rho, positive
from options.guidance import guidance_options
from options.network import (
    CLASSES,
    CONDITIONS,
    DRAW,
    NETWORK,
    WEIGHTS,
    class_numbers,
    files,
    open_with_plan,
)
from options.sampler import resolve_sampler, sampler_options
from torch_utils import distributed
from torch_utils.arrays import floats, read_npz
from torch_utils.grids import save_grid, tile, to_pil
from torch_utils.writers import Writers
from training.dataset import ImageFolderDataset

method = heading('Method')
SETTINGS: dict[str, Any] = {'max_content_width': 110}

IMAGES = [
    files('--images', metavar='PATH|ZIP', required=True,
          help='A folder or zip of images of the size that the network makes. A class-conditional '
               'network also takes their labels'),
    files('--max-images', 'num', type=count, metavar='INT',
          help='Use only this many images, a random subset chosen by --seed  [default: all]'),
    files('--class', 'label', type=ClassName(),
          help='One class for all images  [default: the labels of the images]'),
    files('--seed', type=Whole(0, 4095), metavar='INT', default=0, show_default=True,
          help='The random seed'),
]
SPEED = [BATCH, DEVICE]

ENCODE = [
    NETWORK, WEIGHTS, *IMAGES,
    files('--dest', metavar='NPZ', required=True,
          help='The file of latents to write'),
    files('--check', is_flag=True,
          help='Also decode the latents, and print how close the results come to the images'),
    sampler_options, *SPEED]
DECODE = [
    NETWORK, WEIGHTS,
    files('--latents', metavar='NPZ', required=True,
          help='A file that flow.py encode has written'),
    files('--outdir', metavar='DIR', required=True,
          help='The folder for the images, <number>.png, or .npy for a network that makes arrays'),
    sampler_options, *SPEED]
INTERPOLATE = [
    NETWORK, WEIGHTS,
    files('--seeds', type=IntList(), required=True,
          help='Two or more random seeds, such as 3,8: the path leads from each to the next'),
    files('--frames', type=Whole(2, 10_000), metavar='INT', default=8, show_default=True,
          help='The number of images from one seed to the next, both ends included'),
    files('--dest', metavar='FILE', required=True,
          help='The file to write: .png for a strip with a row for each pair of seeds, .gif or '
               '.apng for a moving picture'),
    files('--class', 'label', type=ClassName(),
          help='The class of all images  [default: that of the first seed]'),
    files('--fps', type=positive, metavar='FLOAT',
          help='The number of frames per second of a moving picture  [default: 10]'),
    sampler_options, *SPEED]
LIKELIHOOD = [
    NETWORK, WEIGHTS, *IMAGES,
    files('--dest', metavar='CSV', required=True,
          help='The table to write, with the columns name, bits_per_dim and nats'),
    method('--steps', 'num_steps', type=Whole(2, 100_000), metavar='INT', default=33,
           show_default=True,
           help='The number N of noise levels. The network is evaluated 4 (N - 1) times, each time '
                'with a backward pass'),
    method('--sigma_min', type=positive, metavar='FLOAT', default=EDMSteps.sigma_min,
           show_default=True,
           help='The lowest noise level. The density is that of images with noise of this level'),
    method('--sigma_max', type=positive, metavar='FLOAT', default=EDMSteps.sigma_max,
           show_default=True,
           help='The highest noise level'),
    method('--rho', type=exponent_rho, metavar='FLOAT', default=EDMSteps.rho, show_default=True,
           help='The exponent ρ of the time steps'),
    method('--probes', type=Whole(1, 10_000), metavar='INT', default=1, show_default=True,
           help='The number of random directions over which the trace of the Jacobian is averaged '
                '(Hutchinson\'s estimator)'),
    method('--draws', type=count, metavar='INT', default=1, show_default=True,
           help='The number of draws of the dequantisation noise over which the result is '
                'averaged'),
    *SPEED]
STEPS = [
    NETWORK, WEIGHTS, *CONDITIONS, CLASSES, DRAW,
    files('--seeds', type=IntList(), default='0-63', show_default=True,
          help='The random seeds of the images whose trajectories are followed'),
    method('--steps', 'num_steps', type=Whole(2, 1000), metavar='INT', required=True,
           help='The number N of noise levels to find, both ends included'),
    method('--levels', type=Whole(3, 1001), metavar='INT', default=61, show_default=True,
           help='The number of levels to choose from. Heun\'s method follows the trajectories '
                'through all of them'),
    method('--sigma_min', type=positive, metavar='FLOAT', default=EDMSteps.sigma_min,
           show_default=True,
           help='The lowest noise level, but never less than the network supports'),
    method('--sigma_max', type=positive, metavar='FLOAT', default=EDMSteps.sigma_max,
           show_default=True,
           help='The highest noise level, but never more than the network supports'),
    method('--rho', type=exponent_rho, metavar='FLOAT', default=EDMSteps.rho, show_default=True,
           help='The exponent ρ of the levels to choose from'),
    method('--gamma', type=Real(above=0, most=100), metavar='FLOAT', default=GAMMA,
           show_default=True,
           help='The weight of a step\'s error, relative to that of the step before'),
    guidance_options, BATCH, RNG, DEVICE]

EXAMPLES = {
    'encode': """
        python flow.py encode --network=out/demo/run/network-snapshot-000064.pkl \\
            --images=datasets/digits-16x16.zip --max-images=16 --dest=out/latents.npz --check
        """,
    'decode': """
        python flow.py decode --network=out/demo/run/network-snapshot-000064.pkl \\
            --latents=out/latents.npz --outdir=out/decoded
        """,
    'interpolate': """
        python flow.py interpolate --network=out/demo/run/network-snapshot-000064.pkl \\
            --seeds=1,2 --class=8 --frames=10 --dest=out/path.png
        python flow.py interpolate --network=out/demo/run/network-snapshot-000064.pkl \\
            --seeds=1,2,3,1 --class=8 --frames=16 --dest=out/path.gif
        """,
    'likelihood': """
        python flow.py likelihood --network=out/demo/run/network-snapshot-000064.pkl \\
            --images=datasets/digits-16x16.zip --max-images=64 --dest=out/bits.csv
        """,
    'steps': """
        # Seven levels for six steps; the last line is the option --sigmas of generate.py
        python flow.py steps --network=out/demo/run/network-snapshot-000064.pkl --steps=7
        """,
}


@click.group(cls=CommandGroup, context_settings=SETTINGS)
def main() -> None:
    """Follow the probability flow in both directions.

    The commands turn images into latents and back, draw paths between images, and compute how
    likely the network finds an image and which few noise levels suit it. Under torchrun the devices
    share the work, and the results are the same.
    """


def command(name: str, options: Sequence[Callable[..., Any]]) -> Callable[..., click.Command]:
    """Make a function a command of flow.py."""
    def decorate(function: Callable[..., None]) -> click.Command:
        parsed = with_each(options, one_line_errors(naming_flags(['weights'])(function)))
        return main.command(name, cls=GroupedCommand, context_settings=SETTINGS,
                            examples=EXAMPLES[name])(parsed)
    return decorate


@command('encode', ENCODE)
def encode_command(network_path: str, weights: str | None, images: str, dest: str, check: bool,
                   num: int | None, label: int | str | None, seed: int, batch: int, device: str,
                   **options: Any) -> None:  # noqa: ANN401 (of the sampler)
    """Find the latents from which the deterministic sampler arrives at the given images.

    Each image is taken to have noise of level sigma_min, and its latent is where the flow carries
    it at sigma_max. The file holds `latents` [N, C, H, W], the `labels` that were used and
    the `names` of the images. The default is 64 steps; --check tells whether these are enough.
    """
    _ends_in(dest, '--dest', ('.npz',))
    flow = _open_flow(network_path, weights, device, options)
    dataset, labels = _labelled(images, num, seed, label, flow.net)

    def work(positions: np.ndarray) -> dict[str, np.ndarray]:
        pixels = torch.from_numpy(dataset.batch(positions)[0]).to(flow.device)
        x = to_network(pixels, traits(flow.net).standardization,
                       torch.float32 if flow.device.type == 'mps' else torch.float64)
        denoise = flow.denoise(labels, positions)
        latents = flow.encode(denoise, x)
        _check_finite(latents, f'the latents of --images={images}')
        result = {'latents': latents.to(torch.float32).cpu().numpy()}
        if check:
            back = flow.decode(denoise, latents, to_zero=False)
            result['error'] = (back - x).square().flatten(1).mean(dim=1).cpu().numpy()
        return result

    parts = _shared_work(len(dataset), batch, work)
    if parts is not None:
        _save_latents(dest, parts['latents'], labels, _names_of(dataset), flow.sigmas)
        if check:
            error, unit = np.sqrt(parts['error'].mean()), 'of 255 levels'
            scale = 127.5
            if dataset.standardization is not None:
                scale, unit = 1 / SPREAD, 'standard deviations'
            print(f'Decoded again, the images are off by {scale * error:.4g} {unit} (root mean '
                  f'square)')
    distributed.shutdown()


@command('decode', DECODE)
def decode_command(network_path: str, weights: str | None, latents: str, outdir: str, batch: int,
                   device: str, **options: Any) -> None:  # noqa: ANN401 (of the sampler)
    """Turn a file of latents into images with the deterministic sampler.

    The default is 64 steps, as in encoding. Give the same options as for encoding.
    """
    check_writable('--outdir', outdir, folder=True)
    remove_leftovers(outdir, r'\d{6,}\.(png|npy)')   # of a killed command
    flow = _open_flow(network_path, weights, device, options)
    stored, labels = _load_latents(latents, flow.net)
    told = traits(flow.net)
    ending = 'png' if is_images(stored.shape[1], told.standardization) else 'npy'

    def work(positions: np.ndarray) -> dict[str, np.ndarray]:
        z = torch.from_numpy(stored[positions]).to(flow.device)
        x = flow.decode(flow.denoise(labels, positions), z)
        _check_finite(x, f'the images of --latents={latents}')
        values = to_values(x, told.standardization).cpu().numpy()
        writers.write(values, [Path(outdir) / f'{position:06d}.{ending}' for position in positions])
        return {}

    with Writers() as writers:
        done = _shared_work(len(stored), batch, work)
    if done is not None:
        print(f'Wrote {len(stored)} images to {outdir}')
    distributed.shutdown()


@command('interpolate', INTERPOLATE)
def interpolate_command(network_path: str, weights: str | None, seeds: list[int], frames: int,
                        dest: str, label: int | str | None, fps: float | None, batch: int,
                        device: str, **options: Any) -> None:  # noqa: ANN401 (of the sampler)
    """Show what lies between images: decode a spherical interpolation of their latents.

    The first and the last image of a pair are those that generate.py draws with the same seeds,
    class and options. The default is 18 steps.
    """
    _ends_in(dest, '--dest', ('.png', '.gif', '.apng'))
    if len(seeds) < 2:
        raise ValueError(f'--seeds={seeds[0]} is one seed; an interpolation needs two or more, '
                         f'such as 3,8')
    if fps is not None and dest.endswith('.png'):
        raise ValueError(f'--fps would have no effect with --dest={dest}, which is a strip')
    flow = _open_flow(network_path, weights, device, options, num_steps=18)
    path, labels = _path(flow, seeds, label, frames)

    def work(positions: np.ndarray) -> dict[str, np.ndarray]:
        x = flow.decode(flow.denoise(labels, positions), path[torch.from_numpy(positions)])
        _check_finite(x, f'the images of --seeds={",".join(map(str, seeds[:9]))}')
        return {'images': to_picture(x).cpu().numpy()}

    parts = _shared_work(len(path), batch, work)
    if parts is not None:
        if dest.endswith('.png'):
            save_grid(parts['images'], dest, columns=frames)
        else:
            _save_moving(parts['images'], dest, fps or 10)
        print(f'Wrote {len(path)} frames to {dest}')
    distributed.shutdown()


@command('likelihood', LIKELIHOOD)
def likelihood_command(network_path: str, weights: str | None, images: str, dest: str,
                       num: int | None, label: int | str | None, seed: int, num_steps: int,
                       sigma_min: float, sigma_max: float, rho: float, probes: int, draws: int,
                       batch: int, device: str) -> None:
    """Compute the bits per dimension of 8-bit images under the probability flow of a network.

    Uniform noise of one level turns the 256 levels into a density, whose logarithm follows from the
    flow by the instantaneous change of variables; random directions estimate the trace of the
    Jacobian without bias. The numbers depend on sigma_min, which is printed with them.
    """
    _ends_in(dest, '--dest', ('.csv',))
    chosen = distributed.init(device)
    net = open_network(network_path, chosen, weights)
    _in_float32(net)
    dataset, labels = _labelled(images, num, seed, label, net)
    if dataset.standardization is not None:
        raise ValueError(f'--images={images} holds arrays, and bits per dimension are of 8-bit '
                         f'images: flow.py encode takes arrays too')
    sigmas = Conditioned(net).levels(EDMSteps(sigma_min, sigma_max, rho), num_steps)
    rounds = len(share_of(range(len(dataset)), batch, 0, distributed.get_world_size()))

    def work(positions: np.ndarray) -> dict[str, np.ndarray]:
        pixels = torch.from_numpy(dataset.batch(positions)[0]).to(chosen)
        # Each image has its own generator, so that its result does not depend on the other images.
        generator = StackedGenerator([seed * 2**20 + int(dataset.get_details(i).raw_idx)
                                      for i in positions], chosen)
        denoise = _denoise(net, labels, positions, chosen)
        nats = _mean_log_likelihood(denoise, pixels, sigmas, generator, probes, draws,
                                    lambda done, of: progress.advance())
        _check_finite(nats, f'the likelihoods of --images={images}')
        return {'nats': nats.numpy()}

    progress = Progress(rounds * draws * (num_steps - 1), unit='steps',
                        quiet=distributed.get_rank() != 0)
    with progress:
        parts = _shared_work(len(dataset), batch, work)
    if parts is not None:
        nats = torch.from_numpy(parts['nats'])
        bits = bits_per_dim(nats, int(np.prod(dataset.image_shape))).numpy()
        _save_table(dest, _names_of(dataset), bits, parts['nats'])
        spread = bits.std(ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else float('nan')
        print(f'{bits.mean():.4f} bits per dimension (standard error {spread:.4f}) over '
              f'{len(bits)} images at sigma_min={max(sigma_min, traits(net).sigma_min):g}')
        print(f'Wrote the number of each image to {dest}')
    distributed.shutdown()


@command('steps', STEPS)
def steps_command(network_path: str, weights: str | None, classes: list[int | str] | None,
                  seeds: list[int], num_steps: int, levels: int, sigma_min: float,
                  sigma_max: float, rho: float, gamma: float, batch: int, rng: str | None,
                  device: str, **options: Any) -> None:  # noqa: ANN401 (of network and guidance)
    """Search for the few noise levels that suit a network best (Chen et al. 2024, GITS).

    Trajectories of a few images are followed through many levels. The error of one of Euler's steps
    between any two of these levels is measured on them, and the levels with the least sum of errors
    follow by dynamic programming. The last line is the option --sigmas for generate.py; these
    levels are for any solver, and with --final=sigma-min they are the steps that were searched for.
    """
    if num_steps > levels:
        raise ValueError(f'--steps={num_steps} is more than the --levels={levels} to choose from')
    chosen = distributed.init(device)
    opened = open_with_plan(network_path, weights, options, chosen)
    for note in opened.notes:
        distributed.print0(f'Note: {note}')
    net = opened.net
    numbers = class_numbers(classes, traits(net))
    sigmas = candidates(Conditioned(net).levels(EDMSteps(sigma_min, sigma_max, rho), levels))
    rank = distributed.get_rank()
    shares = [share for share in share_of(seeds, batch, rank, distributed.get_world_size())
              if len(share)]
    errors = torch.zeros([len(sigmas)] * 2, dtype=torch.float64)
    with Progress(len(shares) * (len(sigmas) - 1), unit='steps', quiet=rank != 0) as progress:
        for share in shares:
            part = [seeds[i] for i in share]
            labels = None if numbers is None else [numbers[i % len(numbers)] for i in share]
            noise, drawn = latents_and_labels(net, part, labels,
                                              StackedGenerator(part, chosen, source=rng))
            errors += euler_errors(Conditioned(net, drawn),
                                   working_precision(noise) * sigmas[0], sigmas,
                                   progress.advance)
    costs = torch.stack(distributed.gather_objects(errors)).sum(dim=0) / len(seeds)
    _check_finite(costs, f'the trajectories of --network={network_path}')
    path = best_path(costs, num_steps, gamma)
    distributed.print0(f'Entries {path} of {len(sigmas)} levels')
    distributed.print0(_sigmas_option([float(sigmas[i]) for i in path], traits(net)))
    distributed.shutdown()


def _sigmas_option(levels: Sequence[float], told: Traits) -> str:
    """Write levels as an option, with six digits where the network supports these."""
    rounded = [float(f'{level:.6g}') for level in levels]
    return '--sigmas=' + ','.join(
        text(short if told.sigma_min <= short <= told.sigma_max else level)
        for short, level in zip(rounded, levels, strict=True))


def _check_finite(numbers: Tensor, what: str) -> None:
    if not bool(numbers.isfinite().all()):
        raise FloatingPointError(f'{what} came out as numbers that are not finite, and were not '
                                 f'written: the network or the options of the flow are to blame')


def _ends_in(path: str, option: str, endings: tuple[str, ...]) -> None:
    if not path.endswith(endings):
        raise ValueError(f'{option}={path} should end in {" or ".join(endings)}')
    check_writable(option, path)


@dataclass(frozen=True)
class _Flow:
    """A network, and how its probability flow is solved.

    sigmas  σ_0 > … > σ_{N−1} and σ_N = 0, float64 [N + 1] on the CPU
    """
    net: Network
    sampler: FlowSampler
    sigmas: Tensor
    device: torch.device

    def denoise(self, labels: Tensor, positions: np.ndarray) -> Conditioned:
        """Return the network with the labels of the images at these positions."""
        return _denoise(self.net, labels, positions, self.device)

    def encode(self, denoise: Conditioned, images: Tensor) -> Tensor:
        """Return the latents of images [B, C, H, W] in [-1, 1]."""
        rows = self.sampler
        return encode(denoise, images, self.sigmas, rows.solver, rows.schedule, rows.scaling)

    def decode(self, denoise: Conditioned, latents: Tensor, to_zero: bool = True) -> Tensor:
        """Return the images of latents [B, C, H, W], at σ = 0 or at the lowest noise level."""
        rows = self.sampler
        return decode(denoise, latents, self.sigmas, rows.solver, rows.schedule, rows.scaling,
                      to_zero)


def _open_flow(network_path: str, weights: str | None, device: str, options: Mapping[str, Any],
               num_steps: int = 64) -> _Flow:
    """Open the network, and choose how its flow is solved.

    Raises ValueError for a sampler that is not the flow.
    """
    chosen = distributed.init(device)
    net = open_network(network_path, chosen, weights)
    if options['num_steps'] is None and options['sigmas'] is None and options['preset'] is None:
        options = {**options, 'num_steps': num_steps}
    _in_float32(net)
    told = traits(net)
    limits = Traits(sigma_min=told.sigma_min, sigma_max=told.sigma_max, learned_variance=True)
    sampling = resolve_sampler(options, limits)
    sampler, sigmas = sampling.sampler, sampling.plan(net).sigmas
    if not isinstance(sampler, FlowSampler) and sigmas[0].isinf():
        raise ValueError('the flow of x cannot start at sigma = inf, where x is infinite: leave '
                         'out --zero-terminal-snr, or give --sigma_max')
    if not isinstance(sampler, FlowSampler) or sampler.churn.S_churn > 0:
        raise ValueError('the flow is deterministic: leave out --sampler and --S_churn, and choose '
                         '--solver, --disc, --schedule and --scaling')
    for note in sampling.notes:
        distributed.print0(f'Note: {note}')
    return _Flow(net, sampler, sigmas, chosen)


def _path(flow: _Flow, seeds: Sequence[int], label: int | str | None,
          frames: int) -> tuple[Tensor, Tensor]:
    """Return the latents on the path through the seeds, and the label of each, [N, label_dim]."""
    generator = StackedGenerator(seeds, flow.device)
    noise, drawn = latents_and_labels(flow.net, seeds, None, generator)
    if label is not None:
        one = _one_hot(label, flow.net)
    else:
        one = torch.zeros([0]) if drawn is None else drawn[0].cpu()
    path = torch.cat([interpolate(noise[i:i + 1], noise[i + 1:i + 2], frames)[:, 0]
                      for i in range(len(seeds) - 1)])
    return path, one.expand(len(path), -1)


def _mean_log_likelihood(denoise: Conditioned, pixels: Tensor, sigmas: Tensor,
                         generator: StackedGenerator, probes: int, draws: int,
                         progress: Callable[[int, int], None]) -> Tensor:
    """Return ln p of uint8 images, float64 [B], the mean over draws of the dequantisation noise."""
    nats = torch.zeros(len(pixels), dtype=torch.float64)
    for _ in range(draws):
        x = dequantize(pixels, generator)
        v = rademacher(pixels, generator, probes)
        nats += log_likelihood(denoise, x, sigmas, v,
                               progress=progress).cpu().to(torch.float64) / draws
    return nats


def _in_float32(net: Network) -> None:
    """Make a network work in single precision.

    Half precision is for drawing images; solving the flow backwards and differentiating need more.
    """
    if isinstance(net, Denoiser):
        net.dtype = torch.float32


def _labelled(path: str, num: int | None, seed: int, label: int | str | None,
              net: Network) -> tuple[ImageFolderDataset, Tensor]:
    """Open the images, and return them with a label vector for each, [N, label_dim].

    Raises ValueError where they do not fit the network.
    """
    told = traits(net)
    dataset = ImageFolderDataset(path, max_size=num, random_seed=seed)
    expected = list(told.image_shape or ())
    if dataset.image_shape != expected:
        raise ValueError(f'--images={path} has images of {dataset.image_shape} (channels, height, '
                         f'width), but the network takes {expected}')
    is_array = dataset.dtype != np.uint8
    if is_array and told.standardization is None:
        raise ValueError(f'--images={path} holds arrays of {dataset.dtype}, but the network does '
                         f'not tell the mean and std of such: it takes 8-bit images')
    if told.standardization is not None and not is_array:
        raise ValueError(f'--images={path} holds 8-bit images, but the network was trained on '
                         f'arrays')
    if num is not None and len(dataset) < num:
        raise ValueError(
            f'--images={path} has {len(dataset)} images, fewer than --max-images={num}')
    if not told.label_dim or label is not None:
        one = torch.zeros([0]) if label is None else _one_hot(label, net)
        return dataset, one.expand(len(dataset), -1)
    dataset = ImageFolderDataset(path, max_size=num, random_seed=seed, use_labels=True)
    if dataset.label_dim != told.label_dim:
        raise ValueError(f'--images={path} has labels of {dataset.label_dim} numbers, but the '
                         f'network takes {told.label_dim}; --class gives one class to all')
    return dataset, torch.from_numpy(np.stack([dataset.get_label(i) for i in range(len(dataset))]))


def _one_hot(label: int | str, net: Network) -> Tensor:
    told = traits(net)
    numbers = torch.tensor(class_numbers([label], told))
    return torch.nn.functional.one_hot(numbers, told.label_dim or 0)[0].to(torch.float32)


def _denoise(net: Network, labels: Tensor, positions: np.ndarray,
             device: torch.device) -> Conditioned:
    if not traits(net).label_dim:
        return Conditioned(net)
    return Conditioned(net, labels[torch.from_numpy(positions)].to(device))


def _names_of(dataset: ImageFolderDataset) -> list[str]:
    return [dataset.files.names[dataset.get_details(i).raw_idx] for i in range(len(dataset))]


def _save_latents(path: str, latents: np.ndarray, labels: Tensor, names: Sequence[str],
                  sigmas: Tensor) -> None:
    """Write the file of `encode`, and print what is in it."""
    with atomic_write(path) as file:
        np.savez(file, latents=latents, labels=labels.numpy(), names=np.array(names),
                 sigma_min=float(sigmas[-2]), sigma_max=float(sigmas[0]))
    print(f'Wrote {len(latents)} latents to {path}, mean {latents.mean():.4f}, standard deviation '
          f'{latents.std():.4f}')


def _load_latents(path: str, net: Network) -> tuple[np.ndarray, Tensor]:
    """Read latents [N, C, H, W] and labels [N, label_dim] from a file of `encode`.

    Raises ValueError in one line for any other file, and for latents of another network.
    """
    try:
        stored = read_npz(path, 'latents', 'labels')
        latents, labels = (floats(stored[name], name) for name in ('latents', 'labels'))
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f'--latents={path} is not a file of latents: {error}') from None
    told = traits(net)
    expected = told.image_shape or ()
    if latents.ndim != 4 or latents.shape[1:] != expected:
        raise ValueError(f'--latents={path} has latents of {list(latents.shape[1:])}, but the '
                         f'network takes {list(expected)}')
    if labels.shape != (len(latents), told.label_dim):
        raise ValueError(f'--latents={path} has labels of {labels.shape[-1]} numbers, but the '
                         f'network takes {told.label_dim}')
    if not (np.isfinite(latents).all() and np.isfinite(labels).all()):
        raise ValueError(f'--latents={path} has numbers that are not finite')
    return latents, torch.from_numpy(labels)


def _save_table(path: str, names: Sequence[str], bits: np.ndarray, nats: np.ndarray) -> None:
    """Write the table of `likelihood`, with as many digits as the numbers have."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(['name', 'bits_per_dim', 'nats'])
    for name, bits_of_one, nats_of_one in zip(names, bits.tolist(), nats.tolist(), strict=True):
        table.writerow([name, repr(bits_of_one), repr(nats_of_one)])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors='surrogateescape'))


def _save_moving(images: np.ndarray, path: str, fps: float) -> None:
    """Write uint8 [N, C, H, W] as an endless GIF or APNG."""
    zoom = max(-(-128 // images.shape[-1]), 1)
    frames = [to_pil(tile(image[None], 1).repeat(zoom, axis=0).repeat(zoom, axis=1))
              for image in images]
    with atomic_write(path) as file:
        frames[0].save(file, format='GIF' if path.endswith('.gif') else 'PNG', save_all=True,
                       append_images=frames[1:], duration=round(1000 / fps), loop=0)


def _shared_work(count: int, batch: int, work: Callable[[np.ndarray], dict[str, np.ndarray]]
                 ) -> dict[str, np.ndarray] | None:
    """Return what `work(positions)` returns for all positions below `count`, in their order.

    Each rank works through its share alone; the results are gathered once, at the end, on rank 0.
    The other ranks get None.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    shares = [share for share in share_of(range(count), batch, rank, world_size) if len(share)]
    done = [(share, work(share))
            for share in progressing(shares, len(shares), unit='batches', quiet=rank != 0)]
    everything = [item for part in distributed.gather_objects(done) for item in part]
    if rank != 0:
        return None
    order = np.concatenate([positions for positions, _ in everything]).argsort()
    return {name: np.concatenate([result[name] for _, result in everything])[order]
            for name in everything[0][1]}


if __name__ == '__main__':
    main()
