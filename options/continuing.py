"""The command that continues a run, and the run that a command might have continued."""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dnnlib.files import held, read_bounded
from training.config import TrainConfig
from training.dataset import ImageFolderDataset
from training.run_folder import STATE, files_of
from training.state import CHANGEABLE, differences
from training.stats_file import nimg_of, read_statistics

# What a command that continues a run must not repeat: where the run was to be made, what it was
# to start from, and the changes that it has made already.
ONCE = ('--outdir', '--run', '--run-dir', '--desc', '--resume', '--transfer', '--allow-change')
FLAGS_ONCE = ('--nosubdir', '--allow-data-change')


def command_to_continue(arguments: Sequence[str], run_dir: Path) -> str:
    """Return the command line that continues the run in `run_dir`, from `arguments` of train.py."""
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, given, _ = argument.partition('=')
        if name in ONCE:
            if not given and rest:
                rest.pop(0)   # its value
        elif name not in FLAGS_ONCE:
            kept.append(argument)
    return f'{_program()} {shlex.join([f"--run-dir={run_dir}", *kept])}'


def _program() -> str:
    script = shlex.quote(sys.argv[0] or 'train.py')
    is_file = sys.argv[0].endswith('.py')
    everywhere, here = (os.environ.get(name, '1') for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE'))
    if everywhere != '1':
        on_one_machine = f'torchrun --standalone --nproc_per_node={here}'
        return f'{on_one_machine if here == everywhere else "torchrun, as before,"} {script}'
    return f'python {script}' if is_file else script


def unfinished_run(outdir: str, name: str, config: TrainConfig) -> tuple[Path, int] | None:
    """Return the newest run in `outdir` of this name and these settings that has not ended.

    It has a training state and is in no other process's hands. Returns its folder and the number
    of images that it has reported; None where there is none.
    """
    folders = [path for path in Path(outdir).glob('*')
               if re.fullmatch(rf'\d+-{re.escape(name)}', path.name)]
    for folder in sorted(folders, reverse=True):
        try:
            reached = max(map(nimg_of, read_statistics(folder / 'stats.jsonl')), default=0)
        except (OSError, ValueError):   # no run that could be continued
            continue
        if (files_of(folder, STATE) and reached < config.total_nimg and not _is_busy(folder)
                and _has_settings(folder, config)):
            return folder, reached
    return None


# The options whose names differ from those of the settings that they make, by these settings.
SETTINGS = {
    'batch_size': '--batch', 'data.use_labels': '--cond', 'loss.noise_distribution': '--noise',
    'loss.weighting': '--weighting', 'loss': '--loss', 'network.precond': '--precond',
    'network.model_type': '--arch', 'network.label_dim': '--cond, or the classes of --data',
    'network.img_resolution': 'the resolution of --data',
    'network.img_channels': 'the channels of --data', 'network.model.model_channels': '--cbase',
    'network.model.channel_mult': '--cres', 'network.model.num_blocks': '--blocks',
    'network.model.attn_resolutions': '--attn', 'network.model.augment_dim': '--augment',
    'network.model': '--arch', 'averages': '--ema or --ema-power',
    **{place: f'--{name}' for name, place in CHANGEABLE.items() if name not in ('ema', 'batch')},
}


def with_option(change: str) -> str:
    """Return one of the `differences` of two runs, with the option that makes the setting."""
    name, found, values = change.partition(':')
    place = name
    while place and place not in SETTINGS:
        place = place.rpartition('.')[0]
    return f'{SETTINGS[place]} ({name}){found}{values}' if found and place else change


def _has_settings(folder: Path, config: TrainConfig) -> bool:
    try:
        stored = json.loads(read_bounded(folder / 'training_options.json', 2**24))
        return isinstance(stored, dict) and not differences(stored, config)
    except (OSError, ValueError, RecursionError):
        return False


def _is_busy(folder: Path) -> bool:
    try:
        with held(folder / '.lock'):
            return False
    except (OSError, ValueError):
        return True


def with_stored_augment_dim(config: TrainConfig, stored: dict[str, Any]) -> TrainConfig:
    """Return `config` with the network of a stored run that has an input for augmentations.

    Without augmentation the input is not used, and --augment=0 would leave it out.
    """
    model = config.network.model
    dim = (stored['config'] or stored)['network']['model'].get('augment_dim') or 0
    if config.augment is None and not model.get('augment_dim') and dim:
        network = replace(config.network, model={**model, 'augment_dim': dim})
        return replace(config, network=network)
    return config


def with_stored_batch_gpu(config: TrainConfig, stored: dict[str, Any],
                          asked: int | str | None) -> TrainConfig:
    """Return `config` with the number of images at a time of a stored run, for --batch-gpu=auto.

    With another number the sums of gradients round otherwise, and masks of dropout are others.
    """
    found = (stored['config'] or {}).get('batch_gpu')
    is_count = type(found) is int and found > 0
    return replace(config, batch_gpu=found) if asked == 'auto' and is_count else config


def with_contents(stored: dict[str, Any], dataset: ImageFolderDataset,
                  contents: str) -> dict[str, Any]:
    """Return a stored run with the `contents` of its data set as the fingerprint of its data.

    Earlier states have ImageFolderDataset.fingerprint() instead.
    """
    if stored['fingerprint'] == dataset.fingerprint():
        return {**stored, 'fingerprint': contents}
    return stored
