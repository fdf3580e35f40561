"""Look into checkpoints, convert them, and check them, without running any of their code."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import json
import math
import os
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from checkpoints.read import METADATA, WHAT, read_network
from checkpoints.reconstruct import reconstructed
from checkpoints.to_edm import call, published_arguments
from dnnlib.cli import (
    CommandGroup,
    GroupedCommand,
    Real,
    check_apart,
    check_writable,
    heading,
    naming_flags,
    one_line_errors,
)
from dnnlib.download import fetch, is_url
from dnnlib.files import atomic_write
from limpid.denoiser import Denoiser
from limpid.labels import describe_labels
from metrics.reference_files import read_reference
from torch_utils import checkpoint
from torch_utils.digest import digest_of_tensors
from torch_utils.safetensors_file import DIGEST, is_safetensors, load_tensors, save_tensors
from torch_utils.torch_files import CHECKPOINTS, read_file, tensors_in
from training import config as configs
from training.networks import NetworkConfig
from training.run_folder import SNAPSHOT

files = heading('Network and files')
SETTINGS: dict[str, Any] = {'max_content_width': 110}


class _File(click.Argument):
    heading = 'Network and files'


FILE = click.argument('file', cls=_File)
WEIGHTS = files('--weights', metavar='NAME',
                help='Weights to take: ema, ema:NAME or raw, where the file has several  '
                     '[default: the average]')
DEST_HELP = ('File to write: a snapshot if its name ends in .pkl; .safetensors with the '
             'configuration in its metadata; or .pt, a plain state dict for the classes of '
             'NVlabs/edm, with a .json beside it that has the arguments to build them')


@click.group(cls=CommandGroup, context_settings=SETTINGS)
def main() -> None:
    """Describe, convert and check checkpoints, without running any code in them.

    FILE is a snapshot or training state of this project, of EDM, or of a project built on EDM;
    ADM's 64x64_diffusion.pt; a checkpoint_*.pth of DDPM++ cont. (VP) or NCSN++ cont. (VE); a
    .safetensors file of this project; or the address of one of these on the web.

    \b
    Examples:
      python checkpoint.py inspect edm-cifar10-32x32-cond-vp.pkl
      python checkpoint.py convert edm-cifar10-32x32-cond-vp.pkl --dest=cifar10.pkl
      python checkpoint.py verify out/demo/run/training-state-000064.pt
    """


@main.command(cls=GroupedCommand, context_settings=SETTINGS)
@FILE
@WEIGHTS
@one_line_errors
@naming_flags(['weights'])
def inspect(file: str, weights: str | None) -> None:
    """Describe the network in a file.

    This prints its size, noise levels and training. The digest is the SHA-256 over the names,
    shapes and float32 values of all tensors, in the order of their names: the same network has the
    same digest in every kind of file.

    Examples:
    python checkpoint.py inspect out/demo/run/network-snapshot-000064.pkl
    """
    path = _local(file)
    try:
        net, info = read_network(path, weights)
    except ValueError as error:
        refuse_statistics(path)
        raise error
    for title, text in describe(path, net, info):
        print(f'{title + ":":<17}{text}')


def refuse_statistics(path: Path) -> None:
    """Raise ValueError, which says what is in it, for a file of statistics of images."""
    try:
        found = read_reference(path)
    except (ValueError, OSError):
        return
    held = ', '.join(sorted({*found.moments, *found.features}))
    raise ValueError(f'{path} is no network but a file of statistics of images ({held}; '
                     f'{found.origin}): fid.py takes it as --ref')


@main.command(cls=GroupedCommand, context_settings=SETTINGS)
@FILE
@files('--dest', help=DEST_HELP, metavar='PKL|SAFETENSORS|PT', required=True)
@WEIGHTS
@one_line_errors
@naming_flags(['weights'])
def convert(file: str, dest: str, weights: str | None) -> None:
    """Write a network in another format.

    The network of any FILE becomes a snapshot of this project, safetensors, or a plain state dict
    that torch.load(weights_only=True) reads and NVlabs/edm's own classes load. Every tensor keeps
    its name and its float32 values. There is no conversion to a UNet2DModel of diffusers: it scales
    its skips and resamples in other ways, so the mapping would not be exact.

    Examples:
    python checkpoint.py convert edm-cifar10-32x32-cond-vp.pkl --dest=cifar10.pkl
    python checkpoint.py convert out/demo/run/network-snapshot-000064.pkl --dest=digits.safetensors
    python checkpoint.py convert out/demo/run/network-snapshot-000064.pkl --dest=digits.pt
    """
    kind = Path(dest).suffix
    if kind not in ('.pkl', '.safetensors', '.pt') or Path(dest).is_dir():
        raise ValueError(f'--dest={dest} should be the name of a file that ends in .pkl, '
                         f'.safetensors or .pt')
    check_apart({'--dest': dest}, {'FILE': file})
    check_writable('--dest', dest)
    path = _local(file)
    net, info = read_network(path, weights)
    tensors = checkpoint.state_dict_of(net)
    about = contents_of(info)
    if net.known_labels is not None:
        about['labels'] = net.known_labels.plain()
    if net.standardization is not None:
        about['standardization'] = net.standardization.plain()
    if kind == '.pkl':
        checkpoint.save({**about, 'ema': tensors, 'ema_name': info['weights'], 'averages': {}},
                        dest)
    elif kind == '.pt':
        checkpoint.warn_of_nonfinite(tensors, dest)
        write_plain(tensors, info['config'], Path(dest))
    else:
        checkpoint.warn_of_nonfinite(tensors, dest)
        save_tensors(tensors, {METADATA: json.dumps(about),
                               DIGEST: digest_of_tensors(tensors)}, dest)
    print(f'Wrote {len(tensors)} tensors to {dest}; digest {digest_of_tensors(tensors)}')


def write_plain(tensors: dict[str, Tensor], config: NetworkConfig, dest: Path) -> None:
    """Write a plain state dict, and beside it how NVlabs/edm builds its network."""
    made = published_arguments(config)
    if made is None:
        raise ValueError(f'--dest={dest}: the published classes make no network like this one, '
                         f'preconditioned as {config.precond}: use .safetensors')
    with atomic_write(dest) as file:
        torch.save(tensors, file)
    with atomic_write(dest.with_suffix('.json')) as file:
        file.write((json.dumps({'class': made[0], 'arguments': made[1]}, indent=2) + '\n').encode())
    print(f'Wrote {dest.with_suffix(".json")}, which says how to build the network: '
          f'training.networks.{call(*made)}')


@main.command(cls=GroupedCommand, context_settings=SETTINGS)
@FILE
@one_line_errors
def verify(file: str) -> None:
    """Check that a file is undamaged.

    It must be readable, its tensors must fit its network, and all numbers must be finite. The exit
    code is 0 if all is well, 1 if not, and 2 if there is no such file.

    Examples:
    python checkpoint.py verify out/demo/run/network-snapshot-000064.pkl && echo fine
    """
    path = _local(file)
    if not path.is_file():
        raise FileNotFoundError(2, f'there is no such {WHAT}', str(path))
    try:
        network, held = check_finite(path)
        checked = CHECKED[has_checksum(path)]
    except ValueError as error:
        failure = click.ClickException(str(error))
        failure.exit_code = 1  # type: ignore[misc]
        raise failure from None
    print(f'{path}: {held} tensors, all finite; the {network} of the network fit it; {checked}')


CHECKED = {True: 'they have the checksum that was written with them',
           False: 'the file has no checksum that could tell whether they are the original ones'}


def has_checksum(path: Path) -> bool:
    """Return whether a file stores a checksum of its tensors.

    Files of this project do; it was compared when the network was read.
    """
    if not is_safetensors(path):
        contents = read_file(path, CHECKPOINTS, WHAT, data=False)
        return isinstance(contents, dict) and 'checksum' in contents
    return DIGEST in load_tensors(path)[1]


def check_finite(path: Path) -> tuple[int, int]:
    """Return the number of tensors of the network, and of the whole file.

    A file also has the optimizer's state, and other averages. Raises ValueError, which names the
    tensor, where one has numbers that are not finite.
    """
    net, _ = read_network(path)
    tensors = net.state_dict()
    held = list(tensors.values())
    if not is_safetensors(path):
        held = list(tensors_in(read_file(path, CHECKPOINTS, WHAT)))
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f'{path}: {name} holds {_not_finite(tensor)} numbers that are not '
                             f'finite')
    for tensor in held:
        if not tensor.isfinite().all():
            raise ValueError(f'{path}: beside the network, a tensor {list(tensor.shape)} holds '
                             f'{_not_finite(tensor)} numbers that are not finite')
    return len(tensors), len(held)


@main.command(cls=GroupedCommand, context_settings=SETTINGS)
@files('--run', 'run_dir', help='Folder of a run that was trained with --ema-power', metavar='DIR',
       required=True)
@files('--width', help='Relative width of the average, such as 0.075', metavar='FLOAT',
       type=Real(above=0), required=True)
@files('--kimg', help='Point of the run, in thousands of images  [default: the last snapshot]',
       metavar='KIMG', type=Real(above=0))
@files('--dest', help='Snapshot to write', metavar='PKL', required=True)
@one_line_errors
def reconstruct(run_dir: str, width: float, kimg: float | None, dest: str) -> None:
    """Make an average that was never stored.

    A power-function average of any width is computed from those in the snapshots of a run. The
    stored profiles are combined so as to come closest, in least squares, to the profile asked for
    (Karras et al. 2024, EDM2, Section 3). With more snapshots the result comes closer; the error is
    printed.

    Examples:
    python checkpoint.py reconstruct --run=runs/mine --width=0.075 --dest=runs/mine/width-0.075.pkl
    """
    if not dest.endswith('.pkl') or Path(dest).is_dir():
        raise ValueError(f'--dest={dest} should be the name of a file that ends in .pkl')
    check_apart({'--dest': dest}, {f'a snapshot of --run={run_dir}': str(path)
                                   for path in Path(run_dir).glob('network-snapshot-*.pkl')})
    check_writable('--dest', dest)
    contents, count, error = reconstructed(run_dir, width, None if kimg is None else kimg * 1000)
    checkpoint.save(contents, dest)
    print(f'Wrote the average of width {width:g} at {contents["nimg"] / 1000:g} kimg, made of '
          f'{count} stored ones, to {dest}; its profile is off by {error:.2%}')


def describe(path: Path, net: Denoiser, info: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (title, text) for everything that is known about a network."""
    config, nimg = info['config'], info['nimg']
    parameters = sum(parameter.numel() for parameter in net.parameters())
    highest = 'infinity' if math.isinf(net.sigma_max) else f'{net.sigma_max:g}'
    images = 'unknown number of images'
    if nimg is not None:
        images = f'{nimg:,} images ({nimg / 1e6:g} Mimg)'
    return [
        ('File', f'{path} ({os.path.getsize(path) / 1e6:.1f} MB)'),
        ('Kind', f'{info["kind"]}, {"averaged" if info["weights"] != "raw" else "raw"} weights'),
        ('Network', f'{config.model_type}, preconditioned as {type(config.precond).__name__}: '
                    f'{config.precond}'),
        ('Arguments', ', '.join(f'{name}={value}' for name, value in config.model.items())),
        *(('In EDM', call(*made)) for made in [published_arguments(config)] if made),
        ('Parameters', f'{parameters:,} ({parameters / 1e6:.1f} M)'),
        ('Images', ' x '.join(map(str, net.traits.image_shape or ()))),
        *(('Values', f'mean {told.mean}, std {told.std}')
          for told in [net.standardization] if told),
        ('Classes', describe_labels(net.label_dim, net.known_labels)),
        ('Noise levels', f'{net.sigma_min:g} to {highest}'),
        ('Precision', config.precision),
        ('Trained with', images),
        *((name.capitalize(), value if isinstance(value, str) else json.dumps(value))
          for name, value in info['training'].items() if name != 'network'),
        *(('Note', note) for note in info['notes']),
        ('Digest', digest_of_tensors(net.state_dict())),
    ]


def contents_of(info: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a snapshot besides its tensors."""
    config = info['training']
    if 'network' not in config:   # somebody else's file
        config = {'network': configs.encode(info['config']),
                  'origin': {'kind': info['kind'], **info['training']}}
    return {'kind': SNAPSHOT, 'format': configs.FORMAT, 'config': config, 'nimg': info['nimg']}


def _local(file: str) -> Path:
    return fetch(file) if is_url(file) else Path(file)


def _not_finite(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum())


if __name__ == '__main__':
    main()
