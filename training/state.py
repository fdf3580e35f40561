"""Everything that changes during training, and the two kinds of files in which it is kept.

network-snapshot-<kimg>.pkl   the averaged networks, from which images are generated
training-state-<kimg>.pt      everything that is needed to continue

Both hold plain values and tensors only, are read with weights_only=True, and carry a checksum. No
generator state is ever saved: all randomness is a function of (seed, nimg).
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from limpid.denoiser import Denoiser
from limpid.labels import labels_from
from limpid.resolution import height_and_width
from limpid.values import standardization_from
from torch_utils import checkpoint
from torch_utils.stats import Collector
from training import config as configs
from training.config import TrainConfig
from training.ema import EMA
from training.networks import NetworkConfig, build_network
from training.run_folder import SNAPSHOT, STATE, file_of, files_of, fresh
from training.schema import check_contents

MOMENTS = 'exp_avg', 'exp_avg_sq'   # of Adam


@dataclass
class LossScale:
    """The factor of the loss in float16.

    It is static, or halved after an overflow and doubled after `growth_interval` steps without one.
    """
    scale: float = 1.0
    dynamic: bool = False
    calm: int = 0            # steps since the last change
    growth_interval: int = 2000

    def update(self, finite: bool) -> None:
        """Note a step, and whether its gradients were finite."""
        if not self.dynamic:
            return
        self.calm = self.calm + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale / 2, 2.0**-14)
        elif self.calm == self.growth_interval:
            self.scale, self.calm = min(self.scale * 2, 2.0**24), 0


@dataclass
class TrainState:
    """Everything that changes during training."""
    net: Denoiser
    averages: dict[str, EMA[Denoiser]]   # by name; the first is called ema in snapshots
    optimizer: torch.optim.Optimizer
    stats: Collector
    loss_scale: LossScale = field(default_factory=LossScale)
    nimg: int = 0
    # the duration of training, over all processes that continued it
    seconds: float = 0.0
    ema_rampup: bool = True    # False if training starts from another network's weights
    lr_factor: float = 1.0     # halved at each roll-back
    bad_steps: int = 0         # with non-finite gradients, in a row
    transferred: dict[str, Any] | None = None   # tensors from another network, and others
    fingerprint: str = ''      # that of the data set, if it is known already
    is_whole: bool = True      # not amid an update
    changes: list[str] = field(default_factory=list)   # of settings, that were allowed on resuming

    @property
    def ema(self) -> EMA[Denoiser]:
        """The main average."""
        return next(iter(self.averages.values()))


def save_snapshot(state: TrainState, config: TrainConfig, run_dir: Path) -> Path:
    """Write network-snapshot-<kimg>.pkl: the averaged weights and what is needed to use them."""
    path = fresh(file_of(run_dir, SNAPSHOT, state.nimg))
    main, *others = [(name, checkpoint.state_dict_of(average.net))
                     for name, average in state.averages.items()]
    checkpoint.save({
        'kind': SNAPSHOT,
        'format': configs.FORMAT,
        'config': configs.encode(config),
        'nimg': state.nimg,
        'ema': main[1],
        'ema_name': main[0],
        'labels': _labels_of(state),
        'standardization': _standardization_of(state),
        'averages': dict(others),
    }, path)
    return path


def load_snapshot(path: str | os.PathLike[str], device: torch.device | str = 'cpu',
                  weights: str = 'ema') -> tuple[Denoiser, dict[str, Any]]:
    """Return a network of a snapshot or a training state, in evaluation mode, and all contents.

    `weights` is 'ema', the main average; 'ema:NAME', any average; or 'raw', which training states
    have. Raises FileNotFoundError or ValueError, in one line that names the file.
    """
    contents = _upgraded(checkpoint.load(path, SNAPSHOT, STATE), path)
    stored = contents['config']['network']
    net = build_network(configs.decode(stored, NetworkConfig, f'{path}: network'))
    checkpoint.load_into(net, choose_weights(contents, weights, path), str(path))
    net.known_labels = labels_from(contents.get('labels'), net.label_dim, str(path))
    net.standardization = standardization_from(contents.get('standardization'), net.img_channels,
                                               str(path))
    return net.eval().requires_grad_(False).to(device), contents


def _labels_of(state: TrainState) -> dict[str, Any] | None:
    known = next(iter(state.averages.values())).net.known_labels
    return None if known is None else known.plain()


def _standardization_of(state: TrainState) -> dict[str, Any] | None:
    known = next(iter(state.averages.values())).net.standardization
    return None if known is None else known.plain()


def choose_weights(contents: dict[str, Any], weights: str,
                   path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the state dict called `weights`; raise ValueError, with the names, if it is absent."""
    if contents['kind'] == STATE:
        names = list(contents['averages'])
        there = {'raw': contents['net'], 'ema': contents['averages'][names[0]],
                 **{f'ema:{name}': contents['averages'][name] for name in names}}
    else:
        there = {'ema': contents['ema'], f"ema:{contents['ema_name']}": contents['ema'],
                 **{f'ema:{name}': average for name, average in contents['averages'].items()}}
    if weights not in there:
        hint = '; raw weights are in training-state-*.pt' if weights == 'raw' else ''
        raise ValueError(f'weights={weights}: {path} has {", ".join(there)}{hint}')
    return there[weights]


def save_state(state: TrainState, config: TrainConfig, run_dir: Path, fingerprint: str = '',
               stats: list[dict[str, torch.Tensor]] | None = None) -> Path:
    """Write training-state-<kimg>.pt, everything that is needed to continue.

    `fingerprint` is that of the data set; `stats` are those of all ranks, by default of this one.
    """
    path = fresh(file_of(run_dir, STATE, state.nimg))
    checkpoint.save({
        'kind': STATE,
        'format': configs.FORMAT,
        'config': configs.encode(config),
        'fingerprint': fingerprint,
        'nimg': state.nimg,
        'seconds': state.seconds,
        'ema_rampup': state.ema_rampup,
        'lr_factor': state.lr_factor,
        'bad_steps': state.bad_steps,
        'loss_scale': [state.loss_scale.scale, state.loss_scale.calm],
        'net': checkpoint.state_dict_of(state.net),
        'averages': {name: checkpoint.state_dict_of(average.net)
                     for name, average in state.averages.items()},
        'optimizer': state.optimizer.state_dict(),
        'stats': [state.stats.state_dict()] if stats is None else stats,
        'labels': _labels_of(state),
        'standardization': _standardization_of(state),
    }, path)
    return path


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a training state; raises ValueError in one line if it is unusable."""
    return _upgraded(checkpoint.load(path, STATE), path)


def restore_state(state: TrainState, contents: dict[str, Any], origin: str,
                  other_averages: bool = False) -> None:
    """Continue from the contents of a training state; raises ValueError where they do not fit.

    With `other_averages`, averages that the file does not have go on from the first that it has.
    """
    averages = contents['averages']
    if list(averages) == [None] and len(state.averages) == 1:
        # a file that does not say how long its average is
        averages = dict(zip(state.averages, averages.values(), strict=True))
    if other_averages:
        averages = _carried_over(averages, list(state.averages))
    if list(averages) != list(state.averages):
        there, wanted = ', '.join(map(str, averages)), ', '.join(state.averages)
        raise ValueError(f'{origin} has the averages {there}, not {wanted}')
    checkpoint.load_into(state.net, contents['net'], origin)
    for name, average in state.averages.items():
        checkpoint.load_into(average.net, averages[name], origin)
    restore_moments(state.optimizer, contents['optimizer'], origin)
    if contents['stats']:
        state.stats.restore(contents['stats'])
    if contents['loss_scale'] is not None and state.loss_scale.dynamic:
        state.loss_scale.scale, state.loss_scale.calm = contents['loss_scale']
    for name in ('nimg', 'seconds', 'ema_rampup', 'lr_factor', 'bad_steps'):
        setattr(state, name, contents[name])


def _carried_over(averages: dict[str, Any], names: list[str]) -> dict[str, Any]:
    first = next(iter(averages.values()))
    for name in names:
        if name not in averages and name.startswith('power-'):
            raise ValueError(f'the average {name} is one of the whole run and cannot begin amid '
                             f'it')
    return {name: averages.get(name, first) for name in names}


def restore_moments(optimizer: torch.optim.Optimizer, stored: dict[str, Any],
                    origin: str) -> None:
    """Take the moments of Adam, and the numbers of steps, from a stored state_dict.

    Everything else, such as the learning rate or the constants, is what `optimizer` has: a file
    does not decide how it works. Raises ValueError, which names the parameter by its place, for
    moments that do not fit.
    """
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    moments = {}
    for place, entry in stored['state'].items():
        where = f'{origin}: the moments of parameter {place}'
        if type(place) is not int or not 0 <= place < len(parameters):
            raise ValueError(f'{where} are of none of the {len(parameters)} parameters')
        try:
            step, *tensors = (torch.as_tensor(entry[name]) for name in ('step', *MOMENTS))
        except (TypeError, KeyError, ValueError, RuntimeError):
            raise ValueError(f'{where} are incomplete') from None
        if any(tensor.shape != parameters[place].shape or not tensor.is_floating_point()
               for tensor in tensors):
            raise ValueError(f'{where} have the shapes {[list(t.shape) for t in tensors]}, not '
                             f'{list(parameters[place].shape)}')
        if step.numel() != 1 or not 0 <= float(step) < 2**53:
            raise ValueError(f'{where} are of no number of steps')
        if not all(bool(tensor.isfinite().all()) for tensor in tensors) or bool(
                (tensors[1] < 0).any()):
            raise ValueError(f'{where} are not finite, or negative where they are squares')
        moments[place] = {'step': step.to(torch.float32).reshape(()),
                          **dict(zip(MOMENTS, tensors, strict=True))}
    if moments and len(moments) < len(parameters):
        raise ValueError(f'{origin} has moments of {len(moments)} of {len(parameters)} parameters')
    optimizer.load_state_dict({'state': moments,
                               'param_groups': optimizer.state_dict()['param_groups']})


def latest_state(run_dir: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest undamaged training state of a run, or None.

    Each one that is damaged or cannot be read is skipped and reported to `say`.
    """
    for path in reversed(files_of(run_dir, STATE)):
        try:
            return path, load_state(path)
        except (ValueError, OSError) as error:
            say(f'{error}; trying the one before it')
    return None


# Settings that may differ between a run and its continuation: durations, intervals, resources.
MAY_CHANGE = {'total_nimg', 'tick_nimg', 'snapshot_nimg', 'state_nimg',
              'state_seconds', 'batch_gpu', 'data.workers', 'data.cache', 'data.path',
              'data.on_bad_image', 'keep_states', 'keep_snapshots', 'pictures', 'picture_steps',
              'compile', 'checkpointing', 'shard'}
NETWORK_MAY_CHANGE = {'network.model.dropout', 'network.model.label_dropout', 'network.sigma_min',
                      'network.sigma_max'}


def differences(stored: dict[str, Any], config: TrainConfig) -> list[str]:
    """Return each setting in which `config` differs from a stored run: 'name: stored, now other'.

    Settings that may change within a run (MAY_CHANGE) are not compared.
    """
    return _changes(_flat(configs.upgraded(stored)), _flat(configs.encode(config)), MAY_CHANGE)


# What may be changed within a run on purpose: the names of the options, and the settings that
# are theirs, with all below them. The tensors of the network stay what they are.
CHANGEABLE = {
    'lr': 'optimizer.lr', 'lr-rampup': 'optimizer.lr_rampup_nimg', 'clip': 'optimizer.clip',
    'betas': 'optimizer.betas', 'adam-eps': 'optimizer.eps',
    'weight-decay': 'optimizer.weight_decay', 'lr-decay': 'optimizer.lr_decay_nimg',
    'ema': 'averages', 'dropout': 'network.model.dropout', 'label-dropout': 'label_dropout',
    'augment': 'augment', 'xflip': 'data.xflip', 'batch': 'batch_size', 'seed': 'seed',
    'precision': 'network.precision', 'ls': 'loss_scaling', 'bench': 'cudnn_benchmark',
    'nan-policy': 'nan.policy', 'nan-limit': 'nan.limit', 'nan-then': 'nan.then',
}
OTHER_DATA = 'the images of the data set are others'


def permission_for(change: str) -> str:
    """Return the name in CHANGEABLE that one of the `differences` is under, or ''.

    For OTHER_DATA it is 'data'.
    """
    if change == OTHER_DATA:
        return 'data'
    name = change.partition(':')[0] + '.'
    return next((option for option, place in CHANGEABLE.items() if name.startswith(place + '.')),
                '')


def network_differences(network: NetworkConfig, config: TrainConfig) -> list[str]:
    """Return the same as `differences` for a file that stores only the network.

    Its dropout, precision and noise levels may be chosen anew.
    """
    old, new = (_flat(configs.encode(replace(net, precision='fp32')), 'network')
                for net in (network, config.network))
    return _changes(old, new, NETWORK_MAY_CHANGE)


def _changes(old: dict[str, Any], new: dict[str, Any], may_change: set[str]) -> list[str]:
    return [f'{name}: {old.get(name, "absent")}, now {new.get(name, "absent")}'
            for name in sorted(old.keys() | new.keys())
            if name not in may_change and old.get(name, '') != new.get(name, '')]


def _flat(data: object, prefix: str = '') -> dict[str, Any]:
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        data = dict(enumerate(data))
    if isinstance(data, dict):
        parts = (_flat(item, f'{prefix}.{key}' if prefix else str(key))
                 for key, item in data.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: data}


def transfer_weights(state: TrainState, source: Denoiser,
                     origin: str) -> tuple[list[str], list[str]]:
    """Start from the weights of another network: copy every tensor of the same place and shape.

    Places are levels of the U-Net, so that a network of another resolution, or with other classes
    or channels, takes the tensors that fit. Returns the names that were copied and those that start
    fresh. The averages start from the same weights, without ramp-up. Raises ValueError if nothing
    fits.
    """
    given, own = _by_level(source), _by_level(state.net)
    fits = [place for place in own if place in given and given[place][1].shape
            == own[place][1].shape]
    weights = [place for place in fits if not place.endswith(('resample_filter', 'freqs'))]
    if not weights:
        raise ValueError(f'transfer={origin}: no tensor of that network fits this one')
    copied = {own[place][0]: given[place][1] for place in fits}
    for net in (state.net, *(average.net for average in state.averages.values())):
        net.load_state_dict(copied, strict=False)
    state.ema_rampup = False
    return list(copied), [name for name, _ in own.values() if name not in copied]


def _by_level(net: Denoiser) -> dict[str, tuple[str, torch.Tensor]]:
    """Return {place: (name, tensor)}; the place has level1 for 16x16 in a network of 32 pixels."""
    def place(match: re.Match[str]) -> str:
        return f'.level{(height // int(match[1])).bit_length() - 1}_'

    height, _ = height_and_width(net.img_resolution)
    return {re.sub(r'\.(\d+)x\d+_', place, name): (name, tensor)
            for name, tensor in net.state_dict().items()}


def _upgraded(contents: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `contents` in today's format; raise ValueError if they are newer or incomplete."""
    number = contents.get('format')
    while number in UPGRADES:
        contents = {**UPGRADES[number](contents), 'format': number + 1}
        number += 1
    if number != configs.FORMAT:
        raise ValueError(f'{path} has format {number}; this version reads formats 1 to '
                         f'{configs.FORMAT}')
    check_contents(contents, path)
    return {**contents, 'config': configs.upgraded(contents['config'])}


# Functions that turn the contents of a file of format n into those of format n + 1. There has been
# one format only.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
