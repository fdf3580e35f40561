"""Sums over each image of a batch, with the same bits in every batch."""

import torch
from torch import Tensor


def image_sum(x: Tensor) -> Tensor:
    """Σ x over each image: [B, ...] -> [B, 1, 1, 1]

    The sum is taken by halves, in elementwise additions: a reduction kernel may choose its order of
    summation by the size of the batch, and an image must not depend on its batch.
    """
    x = x.flatten(1)
    while x.shape[1] > 1:
        if x.shape[1] % 2:
            x = torch.nn.functional.pad(x, (0, 1))
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x.reshape(-1, 1, 1, 1)


def sum_squares(x: Tensor) -> Tensor:
    """Σ x² over each image: [B, ...] -> [B, 1, 1, 1]"""
    return image_sum(x.square())


def row_sums(x: Tensor) -> Tensor:
    """Σ x over each image: [B, ...] -> [B]

    Each image is reduced by itself: when a whole batch is reduced, rounding may depend on its size.
    """
    return torch.stack([row.sum() for row in x])
