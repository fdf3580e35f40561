"""One thread per process: the tests are small, and several processes with a thread per core get in each other's way."""

import torch

torch.set_num_threads(1)
