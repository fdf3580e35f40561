"""Images to judge: the members that the metrics need, and arrays of images in a file."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from metrics.sample_batch import SampleBatch
from torch_utils.random import random_subset


class Images(Protocol):
    """Images in a fixed order, from a folder, a file, or a network with seeds."""
    image_shape: list[int]   # C, H, W
    source: str              # their origin, for reports
    lossy: bool              # whether some were compressed with loss, as by JPEG
    is_array: bool           # whether they are no 8-bit images, but numbers of any kind
    in_subfolders: bool      # whether they lie in several folders, as classes often do

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Return a text that is equal for equal images."""
        ...

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        """Yield [len(part), C, H, W], uint8 or arrays, for each range of positions, which rise.

        The tensors are on `device`.
        Raises ValueError for an image that cannot be read or made. The images may end early if they
        were told to stop.
        """
        ...


def check_kind(images: Images, detector: str) -> None:
    """Raise ValueError for arrays that are to be judged by a detector of 8-bit images."""
    if images.is_array and detector != 'arrays':
        raise ValueError(f'{images.source} is of arrays, not of 8-bit images, and '
                         f'detector={detector} is for images: use detector=arrays')


class ArrayImages:
    """The images of an npz or npy file, such as a sample batch of ADM.

    With `num`, they are a random subset of that size, chosen by `seed`, or all if there are fewer.
    """
    lossy = in_subfolders = is_array = False

    def __init__(self, path: str, num: int | None = None, seed: int = 0) -> None:
        self.source, self.batch = path, SampleBatch(path)
        self.image_shape = list(self.batch.image_shape)
        self._positions, self._choice = None, ''
        if num is not None and num < len(self.batch):
            self._positions = random_subset(len(self.batch), num, seed % 2**31)
            self._choice = f' {num} of seed {seed}'

    def __len__(self) -> int:
        return len(self.batch) if self._positions is None else len(self._positions)

    def fingerprint(self) -> str:
        return self.batch.fingerprint() + self._choice

    def name(self, position: int) -> str:
        """Return the name of an image, which is its position, as an array has no names."""
        return str(position)

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        for part in parts:
            chosen: Sequence[int] = part
            if self._positions is not None:
                chosen = self._positions[part.start:part.stop].tolist()
            yield self.batch.images(chosen).to(device)
