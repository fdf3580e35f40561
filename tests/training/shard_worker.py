"""Train as one of two processes: divided, stopped and continued, and as DistributedDataParallel.

shard_worker.py DATA FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

import training.pictures
from tests.training.test_training_loop import small_config
from torch_utils import distributed
from training.run_folder import STATE, files_of
from training.state import load_state
from training.training_loop import prepare, training_loop

if __name__ == '__main__':
    torch.set_num_threads(1)
    training.pictures.GRID = 2
    device = distributed.init('cpu')
    data, folder = sys.argv[1], Path(sys.argv[2])
    config = small_config(data, dropout=0.2, total_nimg=96, tick_nimg=32, snapshot_nimg=96,
                          state_nimg=32, batch_size=32, batch_gpu=6)
    config = replace(config, optimizer=replace(config.optimizer, clip=1.0), checkpointing=True)
    for name, changes, ends in [('ddp', {}, [96]), ('shard', {'shard': True}, [32, 96])]:
        run_dir = folder / name
        run_dir.mkdir(exist_ok=True)
        for end in ends:
            own = replace(config, total_nimg=end, **changes)
            there = files_of(run_dir, STATE)
            resume = (str(there[-1]), load_state(there[-1])) if there else None
            distributed.barrier()
            state, _ = prepare(own, device, resume=resume)
            training_loop(own, state, run_dir, device, lambda: False)
    distributed.shutdown()
