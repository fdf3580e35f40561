"""Averages of the weights that were never kept, put together from those that were (Karras et al.
2024, Section 3)."""

import os
from pathlib import Path
from typing import Any

import torch

from torch_utils import checkpoint
from torch_utils.torch_files import CHECKPOINTS, read_file
from training.ema import reconstruction_error, reconstruction_weights
from training.state import SNAPSHOT, files_of


def reconstructed(run_dir: str | os.PathLike[str], width: float,
                  nimg: float | None = None) -> tuple[dict[str, Any], int, float]:
    """The power-function average of relative `width` at `nimg` images (None: the last), from a
    run's snapshots.

    Returns the contents of a snapshot with it, the number of stored averages it is made of, and how
    far its profile is off, relatively. Raises ValueError for a run that kept none.
    """
    stored = []   # (nimg, width, path, name)
    for path in files_of(Path(run_dir), SNAPSHOT):
        # what there is; the tensors come below
        told = read_file(path, CHECKPOINTS, SNAPSHOT, data=False)
        known = isinstance(told, dict) and told.get('kind') == SNAPSHOT
        if not known or not {'ema_name', 'averages', 'nimg'} <= told.keys():
            raise ValueError(f'{path} is not a {SNAPSHOT} of ours')
        for name in [told['ema_name'], *told['averages']]:
            if name.startswith('power-') and told['nimg'] > 0:
                stored.append((told['nimg'], float(name.removeprefix('power-')), path, name))
    if not stored:
        raise ValueError(f'{run_dir} has no snapshots with power-function averages: train with '
                         f'--ema-power=0.05,0.1')
    end = max(time for time, *_ in stored) if nimg is None else nimg
    used = [item for item in stored if item[0] <= end]
    if not used:
        raise ValueError(f'{end / 1000:g} kimg lie before the first snapshot with power-function '
                         f'averages in {run_dir}')
    profiles = [(float(time), relative) for time, relative, *_ in used]
    weights = reconstruction_weights(profiles, float(end), width)
    total: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    opened = None
    for weight, (_, _, path, name) in zip(weights.tolist(), used, strict=True):
        if path != opened:   # several averages may come from one file
            opened, contents = path, checkpoint.load(path, SNAPSHOT)
        tensors = contents['ema'] if name == contents['ema_name'] else contents['averages'][name]
        for key, tensor in tensors.items():
            # buffers are copied, never averaged
            if key.endswith(('resample_filter', 'freqs', '.u')) or key == 'u':
                total[key] = tensor
            else:
                total[key] = total.get(key, 0) + weight * tensor.to(torch.float64)
    tensors = {key: tensor.to(torch.float32) for key, tensor in total.items()}
    contents = {**contents, 'nimg': round(end), 'ema': tensors, 'ema_name': f'power-{width:g}',
                'averages': {}}
    return contents, len(used), reconstruction_error(profiles, weights, float(end), width)
