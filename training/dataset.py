"""Images and labels from a zip or a folder, in an order that depends only on (seed, nimg)."""

import contextlib
import functools
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import labels
from data.image_files import ImageFiles
from limpid.labels import Labels
from torch_utils.random import random_subset
from training.stopping import leave_stopping_to_the_parent


@dataclass(frozen=True)
class Details:
    """The origin of an item: the number of its file, whether it is mirrored, its stored label."""
    raw_idx: int
    xflip: bool
    raw_label: np.ndarray | None   # [] int64 or [label_dim] float32


class ImageFolderDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """A zip or folder of images; item i is (uint8 image [C, H, W], float32 label [label_dim]).

    Images are 8-bit greyscale (C = 1) or RGB (C = 3), all of the shape of the first. Labels come
    from dataset.json: a class becomes a one-hot vector with label_dim = highest class of the whole
    set + 1, a vector stays itself; without `use_labels`, label_dim = 0.

    `max_size` keeps that many images, chosen by `random_seed`, in the order of their names. `xflip`
    doubles the set: first every image, then every image mirrored. `resolution` states the height
    and width that are expected. `cache` keeps decoded images in memory, each from its first use on;
    worker processes of a DataLoader would have one each, `batches()` below has one in all.

    Opening reads the list of files, the labels and the first image; the others are checked when
    they are decoded. Errors are ValueError in one line that names the file inside the set. With
    on_bad_image='skip', the next image in the set that is whole takes the place of one that cannot
    be used, its label and all, and `skipped` has what is wrong with the file, by its number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int | None = None,
        *,
        use_pyspng: bool | None = None,
        max_size: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        random_seed: int = 0,
        cache: bool = False,
        on_bad_image: str = 'stop',
    ) -> None:
        if use_pyspng is not None:
            warnings.warn('use_pyspng has no effect: Pillow decodes every image', stacklevel=2)
        if max_size is not None and max_size < 1:
            raise ValueError(f'max_size={max_size}: keep at least 1 image, or None for all')
        self.files = ImageFiles(path)
        self.path = self.files.path
        self.name = os.path.splitext(os.path.basename(os.path.abspath(self.path)))[0]
        self.xflip = xflip
        self.cache = cache
        self.skips = on_bad_image == 'skip'
        self.skipped: dict[int, str] = {}
        self._instead: dict[int, int] = {}   # among the images kept
        self.label_dim = 0
        self._labels: np.ndarray | None = self._read_labels() if use_labels else None
        self._kept = _keep(len(self.files.names), max_size, random_seed)
        # which labels these images have, and how often
        self.known_labels: Labels | None = None if self._labels is None else labels.label_set(
            self._labels[self._kept], self.files.class_names(), self.label_dim)
        self.image_shape: list[int] = []
        self.image_shape = list(self._usable(0, range(len(self.files.names))).shape)
        self._instead = {}   # that was by file
        if resolution is not None and self.image_shape[1:] != [resolution, resolution]:
            raise ValueError(f'{self.path}: {self.files.names[0]} is {_size(self.image_shape)}, '
                             f'but resolution={resolution} means {resolution}x{resolution} pixels')
        self._pixels: np.ndarray | None = None   # the cache: [images kept, C, H, W]
        self._present: np.ndarray | None = None

    def _read_labels(self) -> np.ndarray:
        found = self.files.labels()
        if found is None:
            raise ValueError(f'{self.path} has no labels: add a dataset.json with '
                             f'{labels.SHAPE}, or do without labels')
        values = labels.label_array(found, self.files.names, f'{self.path}: dataset.json')
        self.label_dim = int(values.max()) + 1 if values.ndim == 1 else values.shape[1]
        return values

    def _decode(self, raw_idx: int) -> np.ndarray:
        name, first = self.files.names[raw_idx], self.files.names[0]
        data = self.files.read(name)
        image = self.files.decode(name, data)
        if image.mode not in ('L', 'RGB') or _is_16_bit(data):
            mode = 'of more than 8 bits' if image.mode[0] in 'IF' else image.mode
            mode = '16-bit' if _is_16_bit(data) else mode
            raise ValueError(f'{self.path}: {name} is {mode}, not 8-bit greyscale (L) or RGB: '
                             f'{self._conversion()}')
        pixels = np.asarray(image)
        pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self.image_shape and list(pixels.shape) != self.image_shape:
            raise ValueError(f'{self.path}: {name} is {_size(pixels.shape)}, but {first} is '
                             f'{_size(self.image_shape)}: {self._conversion()}')
        return pixels

    def _conversion(self) -> str:
        """Return the command that makes a data set of images of any size and kind."""
        return (f'convert the set with python dataset_tool.py --source={self.path} --dest=NEW.zip '
                f'--transform=center-crop --resolution=64x64')

    def __len__(self) -> int:
        return len(self._kept) * (2 if self.xflip else 1)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.batch(np.array([self._checked(idx)]))
        return images[0], labels[0]

    def _checked(self, idx: int) -> int:
        if not -len(self) <= idx < len(self):
            raise IndexError(f'image {idx} of {self.path}, which has {len(self)}')
        return idx % len(self)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [B, C, H, W] and labels float32 [B, label_dim] of items int [B].

        Both are new arrays.
        """
        kept, flipped = indices % len(self._kept), indices >= len(self._kept)
        images = self._cached(kept) if self.cache else self._decoded(kept)
        if flipped.any():
            images[flipped] = images[flipped, :, :, ::-1]
        used = [self._instead.get(place, place) for place in kept.tolist()]
        return images, self._label_vectors(self._kept[used])

    def _decoded(self, kept: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.stack([self._usable(place, self._kept)
                                              for place in kept.tolist()]))

    def _usable(self, place: int, files: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the image of files[place], or where it is to be skipped the next usable one."""
        for step in range(len(files)):
            other = (place + step) % len(files)
            raw_idx = int(files[other])
            try:
                pixels = self._decode(raw_idx)
            except ValueError as error:
                if not self.skips:
                    raise
                self.skipped[raw_idx] = str(error)
                continue
            if step:
                self._instead[place] = other
            return pixels
        raise ValueError(f'{self.path}: none of the {len(files)} images can be used')

    def _cached(self, kept: np.ndarray) -> np.ndarray:
        if self._pixels is None or self._present is None:
            # the operating system hands out memory page by page as it is written
            self._pixels = np.empty([len(self._kept), *self.image_shape], dtype=np.uint8)
            self._present = np.zeros(len(self._kept), dtype=bool)
        for i in kept[~self._present[kept]]:
            self._pixels[i] = self._usable(int(i), self._kept)
            self._present[i] = True
        return self._pixels[kept]

    def _label_vectors(self, raw: np.ndarray) -> np.ndarray:
        if self._labels is not None and self._labels.ndim == 2:
            return self._labels[raw]
        vectors = np.zeros([len(raw), self.label_dim], dtype=np.float32)
        if self._labels is not None:
            vectors[np.arange(len(raw)), self._labels[raw]] = 1
        return vectors

    def get_label(self, idx: int) -> np.ndarray:
        """Return the float32 label [label_dim] of item `idx`, without decoding its image."""
        return self._label_vectors(self._kept[[self._checked(idx) % len(self._kept)]])[0]

    def get_details(self, idx: int) -> Details:
        """Return the origin of item `idx`."""
        idx = self._checked(idx)
        raw_idx = int(self._kept[idx % len(self._kept)])
        raw_label = None if self._labels is None else self._labels[raw_idx].copy()
        return Details(raw_idx, idx >= len(self._kept), raw_label)

    def fingerprint(self) -> str:
        """Return ImageFiles.fingerprint of the files, whatever the options of the set are."""
        return self.files.fingerprint()

    def contents(self) -> str:
        """Return a digest of the images and labels, whatever container they are in.

        It is the sha256 of the sorted names with sizes and CRC-32s, and of the labels where they
        are used. The files of a folder are read for it.
        """
        digest = hashlib.sha256()
        for name in self.files.names:
            try:
                checksum = self.files.checksum(name)
            except ValueError:   # of a folder; where it may be skipped it is one of a kind
                if not self.skips:
                    raise
                checksum = 'unreadable'
            digest.update(os.fsencode(name) + f'\0{checksum}\n'.encode())
        if self._labels is not None:
            digest.update(f'{self._labels.dtype} {self._labels.shape}'.encode())
            digest.update(self._labels.tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the zip and drop the cache; both come back when an item is read."""
        self.files.close()
        self._pixels = self._present = None

    def __enter__(self) -> 'ImageFolderDataset':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_pixels': None, '_present': None}

    @property
    def num_channels(self) -> int:
        return self.image_shape[0]

    @property
    def resolution(self) -> int:
        """Height and width of square images; raises ValueError for others."""
        if self.image_shape[1] != self.image_shape[2]:
            raise ValueError(f'{self.path}: {self.files.names[0]} is {_size(self.image_shape)}, '
                             'which is not square: convert the set with dataset_tool.py '
                             f'--source={self.path} --dest=NEW.zip --transform=center-crop '
                             '--resolution=64x64')
        return self.image_shape[1]

    @property
    def label_shape(self) -> list[int]:
        return [self.label_dim]

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        return self._labels is not None and self._labels.ndim == 1


def _keep(count: int, max_size: int | None, random_seed: int) -> np.ndarray:
    return random_subset(count, count if max_size is None else max_size, random_seed % 2**31)


def _is_16_bit(data: bytes) -> bool:
    """Return whether this is a 16-bit PNG; Pillow shows one with colours as if it were 8-bit."""
    return data.startswith(b'\x89PNG') and data[24] == 16


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f'{width}x{height} pixels with {channels} channel{"s" if channels > 1 else ""}'


@dataclass(frozen=True)
class DataConfig:
    """The data set to train on, and the way it is read.

    `cache` keeps decoded images in memory (one copy per rank). `workers` is the number of processes
    that read and decode ahead if there is no cache (0: the training process reads itself).
    `on_bad_image` is 'stop' or 'skip', as in ImageFolderDataset.
    """
    path: str
    use_labels: bool = False
    xflip: bool = False
    max_size: int | None = None
    random_seed: int = 0
    cache: bool = True
    workers: int = 1
    on_bad_image: str = 'stop'   # or 'skip'

    def open(self) -> ImageFolderDataset:
        """Open the data set; a `with` statement closes it."""
        return ImageFolderDataset(
            self.path, use_labels=self.use_labels, xflip=self.xflip, max_size=self.max_size,
            random_seed=self.random_seed, cache=self.cache, on_bad_image=self.on_bad_image)


def order_index(seed: int, size: int, nimg: int | range) -> np.ndarray:
    """Return the items of a set of `size` at positions `nimg` of the endless stream: int64 [n].

    Pass p = nimg // size visits every item once, in its own permutation, which depends only on
    (seed, p). An integer stands for one position.
    """
    where = nimg if isinstance(nimg, range) else range(nimg, nimg + 1)
    positions = np.arange(where.start, where.stop, where.step)
    passes, offsets = np.divmod(positions, size)
    indices = np.empty_like(positions)
    for p in np.unique(passes):
        indices[passes == p] = _permutation(seed, size, int(p))[offsets[passes == p]]
    return indices


@functools.lru_cache(maxsize=2)   # a batch may begin in one pass and end in the next
def _permutation(seed: int, size: int, p: int) -> np.ndarray:
    # Raw bits are the same in every version of numpy; Generator.permutation may change.
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, p])).random_raw(size)
    return np.argsort(bits, kind='stable')


class _BatchReader(torch.utils.data.Dataset[Any]):
    """A data set whose index is a whole batch, for a DataLoader without automatic batching."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset
        self.told: set[int] = set()

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor, list[str]] | str:
        """Return images, labels, and what is wrong with files that were skipped since the last."""
        try:
            images, labels = self.dataset.batch(indices)
        except ValueError as error:
            return str(error)   # raised in a worker, it would arrive as that worker's stack trace
        new = [number for number in self.dataset.skipped if number not in self.told]
        self.told.update(new)
        notes = [self.dataset.skipped[number] for number in new]
        return torch.from_numpy(images), torch.from_numpy(labels), notes


def batches(
    dataset: ImageFolderDataset,
    seed: int,
    nimg: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 [b, C, H, W], labels float32 [b, label_dim]) from counter `nimg` on.

    The stream is endless.

    Each global batch is the next `batch_size` positions of `order_index`; rank r of w gets the
    positions nimg + r b ... nimg + (r+1) b - 1, b = batch_size / w. The batches depend on neither
    `workers` nor the cache, and the ranks' shares together do not depend on the number of ranks.
    Tensors are on the CPU, and with `pin_memory` in pinned memory (then copies to a CUDA device
    need not wait).

    A set with a cache is read by this process, whatever `workers` says: one copy of the images,
    and once they have been seen a batch is one indexing operation. Otherwise `workers` processes
    read ahead. Raises ValueError for a batch that `world_size` does not divide, and for a bad file.
    """
    if batch_size < 1 or batch_size % world_size != 0:
        raise ValueError(f'a batch of {batch_size} images cannot be shared equally by {world_size} '
                         f'processes: use a multiple of {world_size}')
    share = batch_size // world_size

    def indices() -> Iterator[np.ndarray]:
        start = nimg + rank * share
        while True:
            yield order_index(seed, len(dataset), range(start, start + share))
            start += batch_size

    loader = torch.utils.data.DataLoader(
        _BatchReader(dataset), batch_size=None, sampler=indices(), pin_memory=pin_memory,
        num_workers=0 if dataset.cache else workers, worker_init_fn=leave_stopping_to_the_parent,
        generator=torch.Generator())   # otherwise it would draw from the global generator

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for item in loader:
            if isinstance(item, str):
                raise ValueError(item)
            images, labels, notes = item
            for note in notes:
                with contextlib.suppress(OSError, ValueError):   # stdout may be gone
                    print(f'Warning: {note}; another image takes its place', flush=True)
            yield images, labels

    return stream()
