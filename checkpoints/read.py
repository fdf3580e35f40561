"""Networks in files of all kinds, ours and published ones, built from our own classes.

    net, info = read_network('edm-cifar10-32x32-cond-vp.pkl')

There are five kinds of files, told apart by their contents:

    ours         network-snapshot-*.pkl, training-state-*.pt, and *.safetensors from checkpoint.py
    EDM          network-snapshot-*.pkl and training-state-*.pt of Karras et al. 2022 and of
                 projects built on it: modules, pickled with the source text of their classes
    ADM          64x64_diffusion.pt of Dhariwal and Nichol 2021: a state dict
    DDPM++       checkpoint_*.pth of Song et al. 2021 (DDPM++ cont., VP): a state dict, and the
                 average of its parameters as a list
    NCSN++       the same for NCSN++ cont. (VE)

Nothing in a file is executed (torch_utils/torch_files.py).
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpoints.adm import from_adm
from checkpoints.assemble import Found, assemble, check_fit, choose
from checkpoints.edm import from_edm
from checkpoints.song import from_song
from dnnlib.console import shown
from limpid.denoiser import Denoiser
from limpid.labels import labels_from
from limpid.values import standardization_from
from torch_utils.safe_pickle import Record
from torch_utils.safetensors_file import check_digest, is_safetensors, load_tensors
from torch_utils.torch_files import CHECKPOINTS, is_zip, read_file
from training import config as configs
from training.networks import NetworkConfig
from training.run_folder import SNAPSHOT, STATE
from training.state import load_snapshot, load_state

WHAT = f'{SNAPSHOT} or {STATE}'
METADATA = 'limpid'   # the key of our text in a safetensors file


def read_network(path: str | os.PathLike[str],
                 weights: str | None = None) -> tuple[Denoiser, dict[str, Any]]:
    """Return the network in a file of any kind above, on the CPU, and all else that the file says.

    The network is in evaluation mode. `weights` is 'ema', 'ema:NAME' or 'raw'; None stands for the
    average if there is one. The second value has `kind`, `weights`, `config` (a NetworkConfig),
    `nimg` (images seen in training, or None), `training` (all that is known about it) and `notes`
    (assumptions about what the file leaves open). Raises FileNotFoundError, or ValueError in one
    line that names the file, and the class or tensor that does not fit.
    """
    path = Path(path)
    if is_safetensors(path):
        found = _from_safetensors(path, weights)
    else:
        if is_zip(path):   # like all files of this project; only shapes are read
            shapes = read_file(path, CHECKPOINTS, WHAT, data=False)
            if isinstance(shapes, dict) and 'kind' in shapes:
                return _ours(path, shapes, weights)
        found = _recognise(read_file(path, CHECKPOINTS, WHAT), path, weights)
    net = assemble(found, path)
    net.known_labels = labels_from(found.info.pop('labels', None), net.label_dim, str(path))
    net.standardization = standardization_from(found.info.pop('standardization', None),
                                               net.img_channels, str(path))
    return net, {**found.info, 'config': found.config}


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a training state, ours or EDM's.

    EDM keeps the average in the snapshot of the same number, which must lie beside the state. The
    states of the optimizer follow the order of the parameters, which is the same here. Entries that
    EDM's file does not have (`config`, the images of the data set) are None or empty. Raises
    FileNotFoundError, or ValueError in one line.
    """
    path = Path(path)
    if is_zip(path):
        shapes = read_file(path, CHECKPOINTS, STATE, data=False)
        if isinstance(shapes, dict) and isinstance(shapes.get('net'), Record):
            return _edm_state(path)
    return load_state(path)


def _edm_state(path: Path) -> dict[str, Any]:
    raw, info = read_network(path, 'raw')
    if info['nimg'] is None:
        raise ValueError(f'{path}: the name of an EDM training state ends in its number of '
                         f'thousands of images')
    beside = path.with_name(f'network-snapshot-{path.stem.rsplit("-", 1)[1]}.pkl')
    if not beside.is_file():
        raise ValueError(f'{path} has no average of the weights: it is in {beside.name}, which is '
                         f'not beside it')
    average, _ = read_network(beside, 'ema')
    optimizer = read_file(path, CHECKPOINTS, STATE).get('optimizer_state')
    _check_optimizer(optimizer, list(raw.parameters()), path)
    return {'kind': STATE, 'format': configs.FORMAT, 'config': None, 'network': info['config'],
            'fingerprint': '', 'nimg': info['nimg'], 'seconds': 0.0, 'ema_rampup': True,
            'lr_factor': 1.0, 'bad_steps': 0, 'loss_scale': None, 'net': raw.state_dict(),
            'averages': {None: average.state_dict()}, 'optimizer': optimizer, 'stats': []}


def _check_optimizer(optimizer: object, parameters: list[nn.Parameter], path: Path) -> None:
    """Raise ValueError unless this is the state of Adam for these parameters."""
    moments = optimizer.get('state') if isinstance(optimizer, dict) else None
    known = range(len(parameters))
    if not isinstance(optimizer, dict) or 'param_groups' not in optimizer \
            or not isinstance(moments, dict) or not all(index in known for index in moments):
        raise ValueError(f'{path}: its optimizer_state is not that of the {len(parameters)} '
                         f'parameters of its network')
    for index, entry in moments.items():
        for name in ('exp_avg', 'exp_avg_sq'):
            tensor = entry.get(name) if isinstance(entry, dict) else None
            if not isinstance(tensor, torch.Tensor) or tensor.shape != parameters[index].shape:
                raise ValueError(f'{path}: {name} of parameter {index} in its optimizer_state is '
                                 f'missing or misshapen')


def _recognise(contents: object, path: Path, weights: str | None) -> Found:
    """Describe the network in the contents of a file that is not ours."""
    if isinstance(contents, dict):
        if isinstance(contents.get('ema'), Record) or isinstance(contents.get('net'), Record):
            return from_edm(contents, path, weights)
        if 'input_blocks.0.0.weight' in contents:
            return from_adm(contents, path, weights)
        model = contents.get('model')
        if isinstance(model, dict) and any('all_modules.' in str(name) for name in model):
            return from_song(contents, path, weights)
        holds = ', '.join(shown(str(key), 30) for key in list(contents)[:6]) or 'nothing'
    else:
        holds = f'a {type(contents).__name__}'
    raise ValueError(f'{path} is not a {WHAT}: it does not say what it is; it holds {holds}')


def _ours(path: Path, shapes: dict[str, Any],
          weights: str | None) -> tuple[Denoiser, dict[str, Any]]:
    """Read a snapshot or a state of ours, whose contents on the device 'meta' are `shapes`."""
    config = None
    if shapes['kind'] in (SNAPSHOT, STATE) and isinstance(shapes.get('config'), dict):
        config = configs.decode(shapes['config'].get('network'), NetworkConfig, f'{path}: network')
        tensors = shapes.get('ema' if shapes['kind'] == SNAPSHOT else 'net')
        check_fit(config, tensors if isinstance(tensors, dict) else {}, path)
    try:
        net, contents = load_snapshot(path, weights=weights or 'ema')
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f'{path} is a damaged {shapes["kind"]}: {shown(str(error))}') from None
    return net, {'kind': contents['kind'], 'weights': weights or 'ema', 'config': config,
                 'nimg': contents['nimg'], 'training': contents['config'], 'notes': []}


def _from_safetensors(path: Path, weights: str | None) -> Found:
    """Describe the network in a safetensors file of ours."""
    tensors, metadata = load_tensors(path)
    check_digest(tensors, metadata, path)
    try:
        told = json.loads(metadata[METADATA])
        config = configs.decode(told['config']['network'], NetworkConfig, f'{path}: network')
        info = {'kind': told['kind'], 'weights': choose(weights, ['ema'], path),
                'nimg': told['nimg'], 'training': told['config'], 'notes': [],
                'labels': told.get('labels'), 'standardization': told.get('standardization')}
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError):
        raise ValueError(
            f'{path} is not a {WHAT}: its metadata do not say which network it is') from None
    return Found(config, tensors, info)
