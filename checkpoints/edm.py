"""Networks of Karras et al. 2022 and of projects built on it: pickled modules, read as data.

    network-snapshot-*.pkl    the averaged network, with its loss, augmentation and data set
    training-state-*.pt       the network as it is trained, and the optimizer's state
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from checkpoints.assemble import Found, choose
from dnnlib.console import shown
from limpid.levels import IDDPMLevels
from limpid.preconditioning import EDM, IDDPM, VE, VP, Preconditioner
from limpid.schedules import VPSchedule
from torch_utils.safe_pickle import Record
from training.networks import MODELS, NetworkConfig, complete_arguments

T = TypeVar('T')


def from_edm(contents: dict[str, Any], path: Path, weights: str | None) -> Found:
    """Describe a network snapshot, which has the average, or a training state, which does not."""
    averaged = isinstance(contents.get('ema'), Record)
    module = contents['ema' if averaged else 'net']
    tensors = dict(_tensors_of(module, '', path))
    notes = []
    if not averaged:
        notes.append('the average of the weights is in the network-snapshot of the same number')
    training = {'loss': _plain(contents.get('loss_fn')),
                'augment': _plain(contents.get('augment_pipe')),
                'data': _plain(contents.get('dataset_kwargs'))}
    number = re.fullmatch(r'.*-(\d{6,})', path.stem)
    return Found(_edm_config(module, tensors, path), tensors, {
        'kind': 'EDM network snapshot' if averaged else 'EDM training state',
        'weights': choose(weights, ['ema' if averaged else 'raw'], path),
        'nimg': int(number[1]) * 1000 if number else None,   # only the name of the file says it
        'training': {name: value for name, value in training.items() if value}, 'notes': notes})


def _tensors_of(module: object, prefix: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers of a pickled module, by their names in a state dict."""
    where = prefix.rstrip('.') or 'the network'
    if not isinstance(module, Record) or not isinstance(module.state, dict):
        raise ValueError(f'{path}: {shown(where)} is no module')
    if module.cls not in EDM_CLASSES:
        raise ValueError(f'{path}: {shown(where)} is of the class {shown(module.cls)}, which is '
                         f'unknown here')
    for group in ('_parameters', '_buffers'):
        for name, tensor in _entry(module.state, group, dict, path).items():
            if tensor is not None and not isinstance(tensor, Tensor):
                raise ValueError(f'{path}: {shown(f"{prefix}{name}")} is no tensor')
            if tensor is not None:
                yield f'{prefix}{name}', tensor
    for name, child in _entry(module.state, '_modules', dict, path).items():
        if child is not None:
            yield from _tensors_of(child, f'{prefix}{name}.', path)


def _edm_config(module: Record, tensors: dict[str, Tensor], path: Path) -> NetworkConfig:
    """Return the configuration in the network's attributes and its backbone's arguments."""
    if module.cls not in EDM_PRECONDITIONERS:
        raise ValueError(f'{path}: its network is of the class {module.cls}, '
                         f'not one of {", ".join(EDM_PRECONDITIONERS)}')
    state = module.state
    model_type, arguments = _edm_backbone(state['_modules'].get('model'), path)
    numbers = {name: value for name, value in state.items() if type(value) in (int, float)}
    try:
        precond, low, high = _edm_preconditioner(module.cls, numbers, tensors, path)
        sides = state.get('img_resolution')   # of our own classes: those of EDM are square
        resolution = tuple(sides) if isinstance(sides, list | tuple) else numbers['img_resolution']
        precision = 'fp16' if state.get('use_fp16') is True else 'fp32'
        return NetworkConfig(model_type, precond, float(low), float(high), resolution,
                             numbers['img_channels'], numbers['label_dim'], precision, arguments)
    except KeyError as error:
        raise ValueError(f'{path}: the attribute {error.args[0]} of {module.cls} is missing or no '
                         f'number') from None
    except (TypeError, ValueError, ArithmeticError, RuntimeError, IndexError) as error:
        raise ValueError(f'{path}: the attributes of {module.cls} make no sense: '
                         f'{shown(str(error), 200)}') from None


def _edm_backbone(model: object, path: Path) -> tuple[str, dict[str, Any]]:
    """Return the class of the backbone, and its arguments."""
    if not isinstance(model, Record) or model.cls not in MODELS:
        raise ValueError(f'{path}: its backbone is of the class '
                         f'{shown(getattr(model, "cls", "none"))}, not one of {", ".join(MODELS)}')
    names = list(inspect.signature(MODELS[model.cls]).parameters)
    given = dict(zip(names, _entry(model.state, '_init_args', tuple, path), strict=False))
    given.update(_entry(model.state, '_init_kwargs', dict, path))
    for name in ('img_resolution', 'in_channels', 'out_channels', 'label_dim'):
        given.pop(name, None)   # the preconditioned network says them, and tensors have to fit
    try:
        return model.cls, complete_arguments(model.cls, given)
    except ValueError as error:
        raise ValueError(f'{path}: {shown(str(error), 300)}') from None


def _edm_preconditioner(cls: str, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor],
                        path: Path) -> tuple[Preconditioner, float, float]:
    """Return the preconditioner with the constants of the file, and its range of noise levels."""
    if cls == 'VPPrecond':
        vp = VP(VPSchedule(numbers['beta_d'], numbers['beta_min']), numbers['M'])
        return vp, *vp.sigma_range(numbers['epsilon_t'])   # the file has it in float32 only
    if cls == 'VEPrecond':
        return VE(), numbers['sigma_min'], numbers['sigma_max']
    if cls == 'EDMPrecond':
        return EDM(numbers['sigma_data']), numbers['sigma_min'], numbers['sigma_max']
    M = numbers['M']
    if 'u' not in tensors or tensors['u'].numel() != M + 1:
        raise ValueError(f'{path}: the tensor u with {M + 1} noise levels is missing or of another '
                         f'length')
    iddpm = IDDPM(IDDPMLevels(M, numbers['C_1'], numbers['C_2']))
    return iddpm, *iddpm.sigma_range()


def _entry(mapping: Mapping[str, Any], name: str, kind: type[T], path: Path) -> T:
    value = mapping.get(name)
    if not isinstance(value, kind):
        raise ValueError(f'{path}: a module has no {name}')
    return value


def _plain(value: object) -> dict[str, Any]:
    """Return the plain attributes of an object or a dictionary, to be shown."""
    cls = {'class': value.cls} if isinstance(value, Record) else {}
    fields = value.state if isinstance(value, Record) else value
    if not isinstance(fields, dict):
        return cls
    return cls | {name: item for name, item in fields.items()
                  if isinstance(name, str) and not name.startswith('_')
                  and isinstance(item, bool | int | float | str)}


EDM_PRECONDITIONERS = ['VPPrecond', 'VEPrecond', 'iDDPMPrecond', 'EDMPrecond']
EDM_CLASSES = {*EDM_PRECONDITIONERS, *MODELS, 'UNetBlock', 'Conv2d', 'Linear', 'GroupNorm',
               'PositionalEmbedding', 'FourierEmbedding', 'ModuleDict'}
