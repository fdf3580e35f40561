"""Images to judge from a folder, a zip or an array file."""

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from metrics.images import ArrayImages, Images
from torch_utils import distributed
from training.dataset import ImageFolderDataset

LOSSY = ('.jpg', '.jpeg', '.webp')
ARRAYS = ('.npz', '.npy')


class FolderImages:
    """The images of a folder or zip: all of them, or `num` that `seed` chooses, as EDM does.

    `workers` processes read them ahead; 0: none.
    """

    def __init__(self, path: str, num: int | None = None, seed: int = 0, workers: int = 0) -> None:
        self.source, self.workers = path, workers
        self.dataset = ImageFolderDataset(path, max_size=num, random_seed=seed)
        self.image_shape = list(self.dataset.image_shape)
        names = self.dataset.files.names
        self.is_array = self.dataset.dtype != np.uint8
        self.lossy = any(name.lower().endswith(LOSSY) for name in names)
        self.in_subfolders = any('/' in name for name in names)
        self._choice = '' if num is None or len(names) <= num else f' {num} of seed {seed}'

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        """Return a digest of names and contents.

        A zip has checksums of its files. The files of a folder are read, as files of equal size may
        hold different images.
        """
        digest = hashlib.sha256(self.dataset.fingerprint().encode())
        if not self.dataset.files.is_zip:
            for name in self.dataset.files.names:
                digest.update(f'{zlib.crc32(self.dataset.files.read(name)):08x}'.encode())
        return digest.hexdigest() + self._choice

    def name(self, position: int) -> str:
        """Return the name of an image's file in the folder or zip."""
        return self.dataset.files.names[self.dataset.get_details(position).raw_idx]

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        loader = torch.utils.data.DataLoader(
            _Reader(self.dataset), batch_size=None, sampler=parts,
            num_workers=self.workers if parts else 0, pin_memory=device.type == 'cuda')
        for item in loader:
            if isinstance(item, str):
                raise ValueError(item)
            yield item.to(device, non_blocking=True)


class _Reader(torch.utils.data.Dataset[Tensor | str]):
    """A data set whose index is a range of positions."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, positions: range) -> Tensor | str:
        try:
            return torch.from_numpy(self.dataset.batch(np.array(positions))[0])
        except ValueError as error:
            return str(error)   # raised in a worker, it would arrive as that worker's stack trace


def open_images(path: str, num: int | None = None, seed: int = 0,
                workers: int = 0) -> FolderImages | ArrayImages:
    """Open a folder or zip of images, or an npz or npy file of them.

    Raises ValueError, naming the path, for anything else.
    """
    if path.lower().endswith(ARRAYS) and not os.path.isdir(path):
        return ArrayImages(path, num, seed)
    return _told(FolderImages(path, num, seed, workers))


def open_reference(path: str, workers: int = 0) -> str | Images:
    """Open the images of a folder or a zip; return the path of any other reference unchanged."""
    is_zip = path.lower().endswith('.zip') and os.path.isfile(path)
    if is_zip or os.path.isdir(path):
        return _told(FolderImages(path, workers=workers))
    return path


def _told(images: FolderImages) -> FolderImages:
    """Print which files are not among the images that are judged."""
    note = images.dataset.files.note()
    if note:
        distributed.print0(f'Note: {note}')
    return images
