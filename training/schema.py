"""What a snapshot and a training state have to hold, before anything of it is used."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch

from training.run_folder import SNAPSHOT, STATE


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf   # type: ignore[operator]


def _is_config(value: object) -> bool:
    network = value.get('network') if isinstance(value, dict) else None
    return isinstance(network, dict) and isinstance(network.get('model'), dict)


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        for name, tensor in value.items())


def _is_averages(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and _is_weights(weights) for name, weights in value.items())


def _is_loss_scale(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and _is_number(value[0])
                             and value[0] > 0 and _is_count(value[1]))


def _is_statistics(value: object) -> bool:
    return isinstance(value, list) and all(
        _is_weights(part) and all(moments.shape == (3,) for moments in part.values())
        for part in value)


def _is_optimizer(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get('state'), dict)


# The keys of format 1, what their values have to be, and in words.
KEYS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    SNAPSHOT: {
        'config': (_is_config, 'the settings of a run'),
        'nimg': (lambda value: value is None or _is_count(value), 'a number of images'),
        'ema': (_is_weights, 'tensors of floating-point numbers by name'),
        'ema_name': (lambda value: value is None or isinstance(value, str), 'a name'),
        'averages': (_is_averages, 'averages by name'),
    },
    STATE: {
        'config': (_is_config, 'the settings of a run'),
        'fingerprint': (lambda value: isinstance(value, str), 'a digest'),
        'nimg': (_is_count, 'a number of images'),
        'seconds': (_is_number, 'a time'),
        'ema_rampup': (lambda value: isinstance(value, bool), 'true or false'),
        'lr_factor': (lambda value: _is_number(value) and 0 < value <= 1, 'a factor up to 1'),
        'bad_steps': (_is_count, 'a number of steps'),
        'loss_scale': (_is_loss_scale, 'a factor and a number of steps'),
        'net': (_is_weights, 'tensors of floating-point numbers by name'),
        'averages': (lambda value: _is_averages(value) and value, 'averages by name'),
        'optimizer': (_is_optimizer, 'the moments of Adam'),
        'stats': (_is_statistics, 'counts and sums by name'),
    },
}


def check_contents(contents: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise ValueError, which names the file and the key, for what does not fit KEYS."""
    kind = contents['kind']
    for key, (fits, right) in KEYS[kind].items():
        if key not in contents:
            raise ValueError(f'{path} is a {kind} without {key!r}')
        if not fits(contents[key]):
            raise ValueError(f'{path} is a {kind} whose {key!r} is not {right}')
