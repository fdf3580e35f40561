"""The run card: run_card.jsonl, in which each start of a run says how, with what and on what."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import psutil
import torch

from torch_utils import distributed
from training.config import TrainConfig
from training.dataset import ImageFolderDataset
from training.state import TrainState

ROOT = Path(__file__).parents[1]


def run_card(config: TrainConfig, state: TrainState, dataset: ImageFolderDataset,
             device: torch.device, options: Mapping[str, object],
             arguments: Sequence[str]) -> dict[str, Any]:
    """Return what this start of a run is told by; call it on rank 0.

    options      all options by their names, those that were not given too
    arguments    those of the command, as they were typed
    """
    return {
        'started': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'kimg': state.nimg / 1000,
        'arguments': list(arguments),
        'options': dict(options),
        'seed': config.seed,
        'data': {'path': config.data.path, 'fingerprint': state.fingerprint,
                 'images': len(dataset), 'shape': list(dataset.image_shape),
                 'label_dim': dataset.label_dim},
        'parameters': sum(parameter.numel() for parameter in state.net.parameters()),
        'revision': revision(),
        'versions': versions(),
        'hardware': {'device': device_name(device), 'processes': distributed.get_world_size(),
                     'processor': processor(), 'cores': os.cpu_count(),
                     'memory_gb': round(psutil.virtual_memory().total / 2**30, 1)},
    }


def revision(root: Path = ROOT) -> dict[str, Any] | None:
    """Return the commit of the code and whether files differ from it; None where git knows none."""
    def git(*arguments: str) -> str:
        return subprocess.run(['git', '-C', str(root), *arguments], check=True, timeout=10,
                              capture_output=True, text=True).stdout.strip()
    try:
        # A folder without a repository may lie in that of something else.
        if not os.path.samefile(git('rev-parse', '--show-toplevel'), root):
            return None
        changed = git('status', '--porcelain', '--untracked-files=no')
        return {'commit': git('rev-parse', 'HEAD'), 'modified': bool(changed)}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers of a run."""
    found = {'python': platform.python_version(), 'torch': torch.__version__,
             'numpy': np.__version__, 'pillow': PIL.__version__, 'system': platform.platform()}
    if torch.version.cuda is not None:
        found['cuda'] = torch.version.cuda
        found['cudnn'] = str(torch.backends.cudnn.version())
    return found


def device_name(device: torch.device) -> str:
    """Return the name of the device: that of the GPU, or cpu or mps."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type


def processor() -> str:
    """Return the name of the processor, or of its kind where the system does not tell more."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text(errors='replace').splitlines() if path.exists() else []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else f'{platform.machine()} {sys.platform}'
