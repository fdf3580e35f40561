"""One thread per process: the tests are small, and several processes with a thread per core get in
each other's way."""

import os

import torch

torch.set_num_threads(1)
os.environ['LIMPID_OFFLINE'] = '1'   # no test reaches for the network
