"""Run the probability flow in both directions: encode, decode, interpolate, likelihood."""

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch
import tqdm
from torch import Tensor

from checkpoints.open import open_network
from dnnlib.cli import GroupedCommand, IntList, heading, is_terminal, naming_flags, one_line_errors
from dnnlib.files import atomic_write
from limpid.denoiser import Conditioned, Network, Traits, traits
from limpid.inversion import decode, encode, interpolate
from limpid.likelihood import bits_per_dim, dequantize, log_likelihood, rademacher
from limpid.pixels import from_uint8, to_uint8
from limpid.samplers import FlowSampler
from limpid.seeds import StackedGenerator, latents_and_labels, share_of
from limpid.steps import EDMSteps
from options.network import check_classes
from options.sampler import resolve_sampler, sampler_options
from torch_utils import distributed
from torch_utils.grids import save_grid, save_png, tile, to_pil
from training.dataset import ImageFolderDataset

files = heading('Network and files')
method = heading('Method')
speed = heading('Performance')
SETTINGS: dict[str, Any] = {'max_content_width': 110}

NETWORK = files('--network', 'network_path', help='Snapshot of a training run, a published '
                                                  'checkpoint, a folder of diffusers, or '
                                                  'ideal:DATASET', metavar='PATH', required=True)
WEIGHTS = files('--weights', help='Which weights of the file: ema, ema:NAME or raw  [default: ema]',
                metavar='NAME')
IMAGES = files('--images', help='Folder or zip of images of the size of the network; with its '
                                'labels, if the network is conditional', metavar='PATH|ZIP',
               required=True)
NUM = files('--max-images', 'num', help='Use only this many images, a random choice by --seed  '
                                        '[default: all]', type=click.IntRange(min=1), metavar='INT')
CLASS = files('--class', 'label', help='One class for all images  [default: the labels of the '
                                       'images]', type=click.IntRange(min=0), metavar='INT')
SEED = files('--seed', help='Random seed', type=click.IntRange(min=0), metavar='INT', default=0,
             show_default=True)
BATCH = speed('--batch', help='Largest batch per device', type=click.IntRange(min=1), metavar='INT',
              default=64, show_default=True)
DEVICE = speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu',
               metavar='NAME', default='auto', show_default=True)


@click.group(context_settings=SETTINGS)
def main() -> None:
    """The probability flow in both directions: from images to latents and back, and what it says of
    images.

    Under torchrun the work is shared, and the results are the same.
    """


@main.command('encode', cls=GroupedCommand, context_settings=SETTINGS)
@NETWORK
@WEIGHTS
@IMAGES
@files('--dest', help='File of latents to write', metavar='NPZ', required=True)
@files('--check', help='Also decode the latents and print how far the images come back',
       is_flag=True)
@NUM
@CLASS
@SEED
@sampler_options
@BATCH
@DEVICE
@one_line_errors
@naming_flags(['weights'])
def encode_command(network_path: str, weights: str | None, images: str, dest: str, check: bool,
                   num: int | None, label: int | None, seed: int, batch: int, device: str,
                   **options: Any) -> None:  # noqa: ANN401
    """Find the latents from which the deterministic sampler comes to the given images.

    An image is taken for one with noise of sigma_min: its latent is where the flow carries it at
    sigma_max. The file holds `latents` [N, C, H, W], the `labels` used, and the `names` of the
    images. Default: 64 steps; --check tells whether these are enough.

    Examples:
    python flow.py encode --network=out/demo/run/network-snapshot-000064.pkl --images=datasets/digits-16x16.zip --max-images=16 \\
        --dest=out/latents.npz --check
    """
    _ends_in(dest, '--dest', ('.npz',))
    net, rows, sigmas, device_ = _open(network_path, weights, device, options)
    dataset, labels = _labelled(images, num, seed, label, net)

    def work(positions: np.ndarray) -> dict[str, Any]:
        pixels = torch.from_numpy(dataset.batch(positions)[0]).to(device_)
        x = from_uint8(pixels, torch.float64 if device_.type != 'mps' else torch.float32)
        denoise = _denoise(net, labels, positions, device_)
        latents = encode(denoise, x, sigmas, rows.solver, rows.schedule, rows.scaling)
        result = {'latents': latents.to(torch.float32).cpu().numpy()}
        if check:
            back = decode(denoise, latents, sigmas, rows.solver, rows.schedule, rows.scaling,
                          to_zero=False)
            result['error'] = (back - x).square().flatten(1).mean(dim=1).cpu().numpy()
        return result

    parts = _shared_work(len(dataset), batch, work)
    if parts is not None:
        names = [dataset.files.names[dataset.get_details(i).raw_idx] for i in range(len(dataset))]
        denoise = Conditioned(net)
        with atomic_write(dest) as file:
            np.savez(file, latents=parts['latents'], labels=labels.numpy(), names=np.array(names),
                     sigma_min=float(sigmas[-2]), sigma_max=float(sigmas[0]))
        print(f'Wrote {len(dataset)} latents to {dest}, mean {parts["latents"].mean():.4f}, '
              f'standard deviation {parts["latents"].std():.4f}')
        if check:
            print(f'Decoded again, the images are off by '
                  f'{127.5 * np.sqrt(parts["error"].mean()):.4g} of 255 levels (root mean square)')
    distributed.shutdown()


@main.command('decode', cls=GroupedCommand, context_settings=SETTINGS)
@NETWORK
@WEIGHTS
@files('--latents', help='File written by flow.py encode', metavar='NPZ', required=True)
@files('--outdir', help='Where the images are written, as <number>.png', metavar='DIR',
       required=True)
@sampler_options
@BATCH
@DEVICE
@one_line_errors
@naming_flags(['weights'])
def decode_command(network_path: str, weights: str | None, latents: str, outdir: str, batch: int,
                   device: str, **options: Any) -> None:  # noqa: ANN401
    """Turn a file of latents into images by the deterministic sampler.

    Default: 64 steps, as in encoding. Give the options that the latents were encoded with.

    Examples:
    python flow.py decode --network=out/demo/run/network-snapshot-000064.pkl --latents=out/latents.npz --outdir=out/decoded
    """
    net, rows, sigmas, device_ = _open(network_path, weights, device, options)
    stored, labels = _load_latents(latents, net)

    def work(positions: np.ndarray) -> dict[str, Any]:
        denoise = _denoise(net, labels, positions, device_)
        z = torch.from_numpy(stored[positions]).to(device_)
        x = to_uint8(decode(denoise, z, sigmas, rows.solver, rows.schedule,
                            rows.scaling)).cpu().numpy()
        for position, image in zip(positions, x, strict=True):
            save_png(image.transpose(1, 2, 0), Path(outdir) / f'{position:06d}.png', durable=False)
        return {}

    if _shared_work(len(stored), batch, work) is not None:
        print(f'Wrote {len(stored)} images to {outdir}')
    distributed.shutdown()


@main.command('interpolate', cls=GroupedCommand, context_settings=SETTINGS)
@NETWORK
@WEIGHTS
@files('--seeds', help='Two or more random seeds: the ends of the path, and stations on it, e.g. '
                       '3,8', type=IntList(), required=True)
@files('--frames', help='Images from each seed to the next, both ends included',
       type=click.IntRange(min=2), metavar='INT', default=8, show_default=True)
@files('--dest', help='What to write: a .png is a strip, a row for each pair of seeds; .gif and '
                      '.apng are moving pictures', metavar='FILE', required=True)
@files('--class', 'label', help='Class of all images  [default: that of the first seed]',
       type=click.IntRange(min=0), metavar='INT')
@files('--fps', help='Frames per second of a moving picture  [default: 10]',
       type=click.FloatRange(min=0, min_open=True), metavar='FLOAT')
@sampler_options
@BATCH
@DEVICE
@one_line_errors
@naming_flags(['weights'])
def interpolate_command(network_path: str, weights: str | None, seeds: list[int], frames: int,
                        dest: str, label: int | None, fps: float | None, batch: int, device: str,
                        **options: Any) -> None:  # noqa: ANN401
    """Show what lies between images: spherical interpolation of their latents, decoded.

    The first and the last image of a pair are those of generate.py with the same seeds, class and
    options. Default: 18 steps.

    Examples:
    python flow.py interpolate --network=out/demo/run/network-snapshot-000064.pkl --seeds=1,2 --class=8 --frames=10 --dest=out/path.png
    python flow.py interpolate --network=out/demo/run/network-snapshot-000064.pkl --seeds=1,2,3,1 --class=8 --frames=16 --dest=out/path.gif
    """
    _ends_in(dest, '--dest', ('.png', '.gif', '.apng'))
    if len(seeds) < 2:
        raise ValueError(f'--seeds={seeds[0]} is one seed; an interpolation needs two or more, '
                         f'such as 3,8')
    if fps is not None and dest.endswith('.png'):
        raise ValueError(f'--fps would have no effect with --dest={dest}, which is a strip')
    net, rows, sigmas, device_ = _open(network_path, weights, device, options, num_steps=18)
    generator = StackedGenerator(seeds, device_)
    noise, drawn = latents_and_labels(net, seeds, None, generator)
    one_label = torch.zeros([0]) if drawn is None else drawn[0].cpu()
    if label is not None:
        one_label = _one_hot(label, net)
    path = torch.cat([interpolate(noise[i:i + 1], noise[i + 1:i + 2], frames)[:, 0]
                      for i in range(len(seeds) - 1)])
    labels = one_label.expand(len(path), -1)

    def work(positions: np.ndarray) -> dict[str, Any]:
        denoise = _denoise(net, labels, positions, device_)
        x = decode(denoise, path[torch.from_numpy(positions)], sigmas, rows.solver, rows.schedule,
                   rows.scaling)
        return {'images': to_uint8(x).cpu().numpy()}

    parts = _shared_work(len(path), batch, work)
    if parts is not None:
        if dest.endswith('.png'):
            save_grid(parts['images'], dest, columns=frames)
        else:
            _save_moving(parts['images'], dest, fps or 10)
        print(f'Wrote {len(path)} frames to {dest}')
    distributed.shutdown()


@main.command('likelihood', cls=GroupedCommand, context_settings=SETTINGS)
@NETWORK
@WEIGHTS
@IMAGES
@files('--dest', help='File of numbers to write: name, bits_per_dim, nats', metavar='CSV',
       required=True)
@NUM
@CLASS
@SEED
@method('--steps', 'num_steps', help='Noise levels; the network is evaluated 4 (N - 1) times, each '
                                     'with a backward pass', type=click.IntRange(min=2),
        metavar='INT', default=33, show_default=True)
@method('--sigma_min', help='Lowest noise level: the density is that of images with noise of this '
                            'much', type=click.FloatRange(min=0, min_open=True), metavar='FLOAT',
        default=EDMSteps.sigma_min, show_default=True)
@method('--sigma_max', help='Highest noise level', type=click.FloatRange(min=0, min_open=True),
        metavar='FLOAT', default=EDMSteps.sigma_max, show_default=True)
@method('--rho', help='Exponent of the time steps', type=click.FloatRange(min=0, min_open=True),
        metavar='FLOAT', default=EDMSteps.rho, show_default=True)
@method('--probes', help='Random directions for the trace (Hutchinson), averaged',
        type=click.IntRange(min=1), metavar='INT', default=1, show_default=True)
@method('--draws', help='Draws of the dequantisation noise, averaged', type=click.IntRange(min=1),
        metavar='INT', default=1, show_default=True)
@BATCH
@DEVICE
@one_line_errors
@naming_flags(['weights'])
def likelihood_command(network_path: str, weights: str | None, images: str, dest: str,
                       num: int | None, label: int | None, seed: int, num_steps: int,
                       sigma_min: float, sigma_max: float, rho: float, probes: int, draws: int,
                       batch: int, device: str) -> None:
    """Bits per dimension of 8-bit images under the probability flow of a network.

    Uniform noise of one level makes the 256 levels a density, whose logarithm follows from the flow
    by the instantaneous change of variables; the trace of the Jacobian is estimated, without bias,
    by random directions. The numbers depend on sigma_min, which is printed with them.

    Examples:
    python flow.py likelihood --network=out/demo/run/network-snapshot-000064.pkl --images=datasets/digits-16x16.zip --max-images=64 \\
        --dest=out/bits.csv
    """
    _ends_in(dest, '--dest', ('.csv',))
    device_ = distributed.init(device)
    net = open_network(network_path, device_, weights)
    _in_float32(net)
    dataset, labels = _labelled(images, num, seed, label, net)
    steps = EDMSteps(sigma_min, sigma_max, rho)
    rounds = len(share_of(range(len(dataset)), batch, 0,
                          distributed.get_world_size())) * draws * (num_steps - 1)
    bar = tqdm.tqdm(total=rounds, unit='step', disable=distributed.get_rank() != 0
                    or not is_terminal())

    def work(positions: np.ndarray) -> dict[str, Any]:
        pixels = torch.from_numpy(dataset.batch(positions)[0]).to(device_)
        denoise = _denoise(net, labels, positions, device_)
        sigmas = denoise.levels(steps, num_steps)
        # Each image has a generator of its own, so that it does not matter which images come along.
        generator = StackedGenerator([seed * 2**20 + int(dataset.get_details(i).raw_idx)
                                      for i in positions], device_)
        nats = torch.zeros(len(positions), dtype=torch.float64)
        for _ in range(draws):
            x = dequantize(pixels, generator)
            v = rademacher(pixels, generator, probes)
            nats += log_likelihood(denoise, x, sigmas, v,
                                   progress=lambda done, of: bar.update()).cpu().to(
                                       torch.float64) / draws
        return {'nats': nats.numpy()}

    parts = _shared_work(len(dataset), batch, work)
    bar.close()
    if parts is not None:
        bits = bits_per_dim(torch.from_numpy(parts['nats']),
                            int(np.prod(dataset.image_shape))).numpy()
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(['name', 'bits_per_dim', 'nats'])
        for i, (b, nats) in enumerate(zip(bits.tolist(), parts['nats'].tolist(), strict=True)):
            table.writerow([dataset.files.names[dataset.get_details(i).raw_idx], repr(b),
                            repr(nats)])
        with atomic_write(dest) as file:
            file.write(text.getvalue().encode())
        spread = bits.std(ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else float('nan')
        print(f'{bits.mean():.4f} bits per dimension (standard error {spread:.4f}) over '
              f'{len(bits)} images at sigma_min={max(sigma_min, traits(net).sigma_min):g}')
        print(f'Wrote the number of each image to {dest}')
    distributed.shutdown()


def _ends_in(path: str, option: str, endings: tuple[str, ...]) -> None:
    if not path.endswith(endings):
        raise ValueError(f'{option}={path} should end in {" or ".join(endings)}')


def _open(network_path: str, weights: str | None, device: str, options: dict[str, Any],
          num_steps: int = 64) -> tuple[Network, FlowSampler, Tensor, torch.device]:
    """Open the network and choose how its flow is solved: network, sampler, noise levels, device.

    Raises ValueError for a sampler that is not the flow.
    """
    chosen = distributed.init(device)
    net = open_network(network_path, chosen, weights)
    if options['num_steps'] is None and options['sigmas'] is None and options['preset'] is None:
        options['num_steps'] = num_steps
    _in_float32(net)
    told = traits(net)
    limits = Traits(sigma_min=told.sigma_min, sigma_max=told.sigma_max, learned_variance=True)
    sampling = resolve_sampler(options, limits)
    sigmas = sampling.plan(net).sigmas
    if not isinstance(sampling.sampler, FlowSampler) and sigmas[0].isinf():
        raise ValueError('the flow of x cannot start at sigma = inf, where x is infinite: leave '
                         'out --zero-terminal-snr, or give --sigma_max')
    if not isinstance(sampling.sampler, FlowSampler) or sampling.sampler.churn.S_churn > 0:
        raise ValueError('the flow is deterministic: leave out --sampler and --S_churn, and choose '
                         '--solver, --disc, --schedule and --scaling')
    for note in sampling.notes:
        distributed.print0(f'Note: {note}')
    return net, sampling.sampler, sigmas, chosen


def _in_float32(net: Network) -> None:
    """Half precision is for drawing images; what is solved backwards or differentiated needs
    more."""
    if hasattr(net, 'dtype'):
        net.dtype = torch.float32


def _labelled(path: str, num: int | None, seed: int, label: int | None,
              net: Network) -> tuple[ImageFolderDataset, Tensor]:
    """The images, and a label vector for each, [N, label_dim]; ValueError where they do not fit the
    network."""
    told = traits(net)
    dataset = ImageFolderDataset(path, max_size=num, random_seed=seed,
                                 use_labels=bool(told.label_dim) and label is None)
    expected = list(told.image_shape or ())
    if dataset.image_shape != expected:
        raise ValueError(f'--images={path} has images of {dataset.image_shape} (channels, height, '
                         f'width), but the network takes {expected}')
    if num is not None and len(dataset) < num:
        raise ValueError(
            f'--images={path} has {len(dataset)} images, fewer than --max-images={num}')
    if not told.label_dim or label is not None:
        one = torch.zeros([0]) if label is None else _one_hot(label, net)
        return dataset, one.expand(len(dataset), -1)
    if dataset.label_dim != told.label_dim:
        raise ValueError(f'--images={path} has labels of {dataset.label_dim} numbers, but the '
                         f'network takes {told.label_dim}; --class gives one class to all')
    return dataset, torch.from_numpy(np.stack([dataset.get_label(i) for i in range(len(dataset))]))


def _one_hot(label: int, net: Network) -> Tensor:
    label_dim = traits(net).label_dim or 0
    check_classes([label], label_dim)
    return torch.nn.functional.one_hot(torch.tensor(label), label_dim).to(torch.float32)


def _denoise(net: Network, labels: Tensor, positions: np.ndarray,
             device: torch.device) -> Conditioned:
    if not traits(net).label_dim:
        return Conditioned(net)
    return Conditioned(net, labels[torch.from_numpy(positions)].to(device))


def _load_latents(path: str, net: Network) -> tuple[np.ndarray, Tensor]:
    """latents [N, C, H, W] and labels [N, label_dim] of a file of `encode`; ValueError in one
    line."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            latents, labels = stored['latents'], stored['labels']
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f'--latents={path} is not a file of latents: {error}') from None
    told = traits(net)
    expected = told.image_shape or ()
    if latents.ndim != 4 or latents.shape[1:] != expected:
        raise ValueError(f'--latents={path} has latents of {list(latents.shape[1:])}, but the '
                         f'network takes {list(expected)}')
    if labels.shape != (len(latents), told.label_dim):
        raise ValueError(f'--latents={path} has labels of {labels.shape[-1]} numbers, but the '
                         f'network takes {told.label_dim}')
    return latents, torch.from_numpy(labels)


def _shared_work(count: int, batch: int, work: Callable[[np.ndarray], dict[str, Any]]) -> dict[str,
                                                                                               np.ndarray] | None:
    """What `work(positions)` returns for all positions below `count`, in order, on rank 0; None
    elsewhere.

    Each rank works through its share alone; the results meet once, at the end.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    shares = [positions for positions in share_of(range(count), batch, rank, world_size)
              if len(positions)]
    done = [(positions, work(positions))
            for positions in tqdm.tqdm(shares, unit='batch', disable=rank != 0 or not is_terminal(),
                                       leave=False)]
    everything = [item for part in distributed.gather_objects(done) for item in part]
    if rank != 0:
        return None
    order = np.concatenate([positions for positions, _ in everything]).argsort()
    return {name: np.concatenate([result[name] for _, result in everything])[order]
            for name in everything[0][1]}


def _save_moving(images: np.ndarray, path: str, fps: float) -> None:
    """Write uint8 [N, C, H, W] as an endless GIF or APNG."""
    zoom = max(-(-128 // images.shape[-1]), 1)
    frames: list[PIL.Image.Image] = [to_pil(tile(image[None],
                                                 1).repeat(zoom, axis=0).repeat(zoom, axis=1))
                                     for image in images]
    with atomic_write(path) as file:
        frames[0].save(file, format='GIF' if path.endswith('.gif') else 'PNG', save_all=True,
                       append_images=frames[1:], duration=round(1000 / fps), loop=0)


if __name__ == '__main__':
    main()
