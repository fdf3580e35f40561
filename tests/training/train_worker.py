"""train.py with small pictures, to be started as a program of its own."""

import torch

import train
import training.pictures

if __name__ == '__main__':
    torch.set_num_threads(1)
    training.pictures.GRID = 2
    train.main()
