"""Averages of the weights that were never stored, made of those that were.

See Karras et al. 2024 (EDM2), Section 3.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_utils import checkpoint
from torch_utils.torch_files import CHECKPOINTS, read_file
from training.ema import reconstruction_error, reconstruction_weights
from training.run_folder import SNAPSHOT, files_of
from training.schema import check_contents


class Stored(NamedTuple):
    """A power-function average in a snapshot."""
    nimg: int
    width: float
    path: Path
    name: str


def reconstructed(run_dir: str | os.PathLike[str], width: float,
                  nimg: float | None = None) -> tuple[dict[str, Any], int, float]:
    """Make the power-function average of relative `width` at `nimg` images of a run.

    nimg=None stands for the last snapshot. Returns the contents of a snapshot with the average, the
    number of stored averages it is made of, and the relative error of its profile. Raises
    ValueError for a run that stored none.
    """
    stored = stored_averages(run_dir)
    if not stored:
        raise ValueError(f'{run_dir} has no snapshots with power-function averages: train with '
                         f'--ema-power=0.05,0.1')
    end = max(average.nimg for average in stored) if nimg is None else nimg
    used = [average for average in stored if average.nimg <= end]
    if not used:
        raise ValueError(f'{end / 1000:g} kimg lie before the first snapshot with power-function '
                         f'averages in {run_dir}')
    profiles = [(float(average.nimg), average.width) for average in used]
    weights = reconstruction_weights(profiles, float(end), width)
    tensors, contents = _combined(used, weights.tolist())
    contents = {**contents, 'nimg': round(end), 'ema': tensors, 'ema_name': f'power-{width:g}',
                'averages': {}}
    return contents, len(used), reconstruction_error(profiles, weights, float(end), width)


def stored_averages(run_dir: str | os.PathLike[str]) -> list[Stored]:
    """List the power-function averages in the snapshots of a run, without their tensors."""
    stored = []
    for path in files_of(Path(run_dir), SNAPSHOT):
        try:
            told = read_file(path, CHECKPOINTS, SNAPSHOT, data=False)
            if not isinstance(told, dict) or told.get('kind') != SNAPSHOT:
                raise ValueError(f'{path} is not a {SNAPSHOT} of ours')
            check_contents(told, path)
        except (ValueError, OSError) as error:
            print(f'Warning: {error}; it is passed over', flush=True)
            continue
        for name in [told['ema_name'], *told['averages']]:
            number = re.fullmatch(r'power-(\d+(\.\d+)?(e-\d+)?)', name or '')
            if number and told['nimg']:
                stored.append(Stored(told['nimg'], float(number[1]), path, name))
    return stored


def _combined(used: list[Stored],
              weights: list[float]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weighted sum of averages, and the contents of the last snapshot."""
    total: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    opened = None
    for weight, average in zip(weights, used, strict=True):
        if average.path != opened:   # several averages may come from one file
            opened, contents = average.path, checkpoint.load(average.path, SNAPSHOT)
            check_contents(contents, average.path)
        is_first = average.name == contents['ema_name']
        tensors = contents['ema'] if is_first else contents['averages'][average.name]
        for key, tensor in tensors.items():
            if key.endswith(('resample_filter', 'freqs', '.u')) or key == 'u':
                total[key] = tensor   # buffers are copied, never averaged
            else:
                total[key] = total.get(key, 0) + weight * tensor.to(torch.float64)
    return {key: tensor.to(torch.float32) for key, tensor in total.items()}, contents
