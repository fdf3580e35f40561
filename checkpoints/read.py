"""Networks that others have published, rebuilt from our own classes, and our own.

    net, info = read_network('edm-cifar10-32x32-cond-vp.pkl')

Five kinds of files, told apart by what they hold:

    ours         network-snapshot-*.pkl, training-state-*.pt, and *.safetensors from checkpoint.py
    EDM          network-snapshot-*.pkl and training-state-*.pt of Karras et al. 2022 and of
                 projects built on it: modules, pickled with the source text of their classes
    ADM          64x64_diffusion.pt of Dhariwal and Nichol 2021: a state dict
    DDPM++       checkpoint_*.pth of Song et al. 2021 (DDPM++ cont., VP): a state dict, and the
    average of
    NCSN++       its parameters as a list (NCSN++ cont., VE)

Nothing in a file is executed (torch_utils/legacy.py).
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from checkpoints.adm import from_adm
from checkpoints.assemble import Found, assemble, check_fit, choose
from checkpoints.edm import from_edm
from checkpoints.song import from_song
from limpid.denoiser import Denoiser
from torch_utils.safe_pickle import Record, shown
from torch_utils.safetensors_file import is_safetensors, load_tensors
from torch_utils.torch_files import CHECKPOINTS, is_zip, read_file
from training import config as configs
from training.networks import NetworkConfig
from training.state import SNAPSHOT, STATE, load_snapshot, load_state

WHAT = f'{SNAPSHOT} or {STATE}'
METADATA = 'limpid'   # the key of our text in a safetensors file


def read_network(path: str | os.PathLike[str], weights: str | None = None) -> tuple[Denoiser,
                                                                                    dict[str, Any]]:
    """The network in a file of any kind above, in evaluation mode on the CPU, and what else the
    file says.

    `weights` is 'ema', 'ema:NAME' or 'raw'; None: the average where there is one. The second value
    has `kind`, `weights`, `config` (a NetworkConfig), `nimg` (images seen in training, or None),
    `training` (what is known of it) and `notes` (what the file leaves open). Raises
    FileNotFoundError, or ValueError in one line that names the file, and the class or tensor where
    one does not fit.
    """
    path = Path(path)
    if is_safetensors(path):
        found = _from_safetensors(path, weights)
    else:
        if is_zip(path):   # as all of ours are; a look at their shapes costs nothing
            shapes = read_file(path, CHECKPOINTS, WHAT, data=False)
            if isinstance(shapes, dict) and 'kind' in shapes:
                return _ours(path, shapes, weights)
        found = _recognise(read_file(path, CHECKPOINTS, WHAT), path, weights)
    net = assemble(found, path)
    return net, {**found.info, 'config': found.config}


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a training state, ours or EDM's; FileNotFoundError or ValueError in one line.

    EDM keeps the average in the snapshot of the same number, which must lie beside the state. The
    states of the optimizer go by the order of the parameters, which is the same here. What EDM's
    file does not tell (`config`, the images of the data set) is None or empty.
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
    parameters = list(raw.parameters())
    moments = optimizer.get('state') if isinstance(optimizer, dict) else None
    if not isinstance(moments,
                      dict) or set(moments) - set(
                          range(len(parameters))) or 'param_groups' not in optimizer:
        raise ValueError(f'{path}: its optimizer_state is not that of the {len(parameters)} '
                         f'parameters of its network')
    for index, entry in moments.items():
        for name in ('exp_avg', 'exp_avg_sq'):
            tensor = entry.get(name) if isinstance(entry, dict) else None
            if not isinstance(tensor, torch.Tensor) or tensor.shape != parameters[index].shape:
                raise ValueError(f'{path}: {name} of parameter {index} in its optimizer_state is '
                                 f'missing or misshapen')
    return {'kind': STATE, 'format': configs.FORMAT, 'config': None, 'network': info['config'],
            'fingerprint': '', 'nimg': info['nimg'], 'seconds': 0.0, 'ema_rampup': True,
            'lr_factor': 1.0, 'bad_steps': 0, 'loss_scale': None, 'net': raw.state_dict(),
            'averages': {None: average.state_dict()}, 'optimizer': optimizer, 'stats': []}


def _recognise(contents: Any, path: Path, weights: str | None) -> Found:  # noqa: ANN401
    if isinstance(contents, dict):
        if isinstance(contents.get('ema'), Record) or isinstance(contents.get('net'), Record):
            return from_edm(contents, path, weights)
        if 'input_blocks.0.0.weight' in contents:
            return from_adm(contents, path, weights)
        if isinstance(contents.get('model'), dict) and any('all_modules.' in str(name)
                                                           for name in contents['model']):
            return from_song(contents, path, weights)
        holds = ', '.join(shown(str(key), 30) for key in list(contents)[:6]) or 'nothing'
    else:
        holds = f'a {type(contents).__name__}'
    raise ValueError(f'{path} is not a {WHAT}: it does not say what it is; it holds {holds}')


def _ours(path: Path, shapes: dict[str, Any],
          weights: str | None) -> tuple[Denoiser, dict[str, Any]]:
    """Our own files; `shapes` is what they hold, on the device 'meta'."""
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
    tensors, metadata = load_tensors(path)
    try:
        told = json.loads(metadata[METADATA])
        config = configs.decode(told['config']['network'], NetworkConfig, f'{path}: network')
        info = {'kind': told['kind'], 'weights': choose(weights, ['ema'], path),
                'nimg': told['nimg'], 'training': told['config'], 'notes': []}
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError):
        raise ValueError(
            f'{path} is not a {WHAT}: its metadata do not say which network it is') from None
    return Found(config, tensors, info)
