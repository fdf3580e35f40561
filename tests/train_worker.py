"""train.py with small pictures, to be started as a program of its own."""

import torch

import train
import training.training_loop

if __name__ == '__main__':
    torch.set_num_threads(1)
    training.training_loop.GRID = 2
    train.main()
