"""Images, or arrays, and labels from a zip or a folder."""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data import arrays, labels
from data.decoded import Decoded, key_of, shared
from data.image_files import ImageFiles
from data.limits import SET_PIXELS
from data.parallel import processors
from dnnlib.progress import progressing
from limpid.labels import Labels
from limpid.values import Standardization, standardization_from
from torch_utils import distributed
from torch_utils.random import random_subset

CACHES = ('ram', 'mmap', 'off')


@dataclass(frozen=True)
class Details:
    """The origin of an item: the number of its file, whether it is mirrored, its stored label."""
    raw_idx: int
    xflip: bool
    raw_label: np.ndarray | None   # [] int64 or [label_dim] float32


class ImageFolderDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """A zip or folder of images; item i is (uint8 image [C, H, W], float32 label [label_dim]).

    Images are 8-bit greyscale (C = 1) or RGB (C = 3), all of the shape of the first. Arrays of
    other types or numbers of channels, in .npy files, are float16 or float32 instead, with a
    `standardization`. Labels come from dataset.json: a class becomes a one-hot vector with
    label_dim = highest class of the whole set + 1, a vector stays itself; without `use_labels`,
    label_dim = 0.

    `max_size` keeps that many images, chosen by `random_seed`, in the order of their names. `xflip`
    doubles the set: first every image, then every image mirrored. `resolution` states the height
    and width that are expected.

    `cache` is 'ram', which keeps decoded images in the memory of this process, each from its first
    use on; 'mmap', which maps a file of all decoded images (data/decoded.py) that processes share;
    or 'off'. True and False stand for ram and off.

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
        cache: bool | str = False,
        on_bad_image: str = 'stop',
    ) -> None:
        if use_pyspng is not None:
            warnings.warn('use_pyspng has no effect: Pillow decodes every image', stacklevel=2)
        if max_size is not None and max_size < 1:
            raise ValueError(f'max_size={max_size}: keep at least 1 image, or None for all')
        self.cache = cache if isinstance(cache, str) else 'ram' if cache else 'off'
        if self.cache not in CACHES:
            raise ValueError(f'cache={cache} is none of {", ".join(CACHES)}')
        self.files = ImageFiles(path)
        self.path = self.files.path
        self.name = os.path.splitext(os.path.basename(os.path.abspath(self.path)))[0]
        self.xflip = xflip
        self._shared: Decoded | None = None
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
        first = self._usable(0, range(len(self.files.names)))
        self.image_shape, self.dtype = list(first.shape), first.dtype
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
        name = self.files.names[raw_idx]
        if arrays.is_array(name):
            pixels = arrays.stored_as(self.files.array(name))
        else:
            pixels = self._decode_image(name)
        self._check_alike(name, pixels)
        return pixels

    def _decode_image(self, name: str) -> np.ndarray:
        data = self.files.read(name)
        image = self.files.decode(name, data)
        if image.width * image.height > SET_PIXELS:
            raise ValueError(f'{self.path}: {name} has {image.width * image.height:,} pixels, more '
                             f'than the {SET_PIXELS:,} of a data set: {self._conversion()}')
        if image.mode not in ('L', 'RGB') or _is_16_bit(data):
            mode = 'of more than 8 bits' if image.mode[0] in 'IF' else image.mode
            mode = '16-bit' if _is_16_bit(data) else mode
            raise ValueError(f'{self.path}: {name} is {mode}, not 8-bit greyscale (L) or RGB: '
                             f'{self._conversion()}')
        pixels = np.asarray(image)
        return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _check_alike(self, name: str, pixels: np.ndarray) -> None:
        if not self.image_shape:   # it is the first
            return
        first = self.files.names[0]
        if list(pixels.shape) != self.image_shape:
            raise ValueError(f'{self.path}: {name} is {_size(pixels.shape)}, but {first} is '
                             f'{_size(self.image_shape)}: {self._conversion()}')
        if pixels.dtype != self.dtype:
            raise ValueError(f'{self.path}: {name} is {pixels.dtype}, but {first} is {self.dtype}: '
                             'save all of them with one type')

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
        """Return images [B, C, H, W] and labels float32 [B, label_dim] of items int [B].

        Both are new arrays; images are uint8, or of the `dtype` of the arrays of the set.
        """
        kept, flipped = indices % len(self._kept), indices >= len(self._kept)
        if self.cache == 'mmap':
            self.share()
        images = self._cached(kept) if self.cache == 'ram' else self._decoded(kept)
        if flipped.any():
            images[flipped] = images[flipped, :, :, ::-1]
        used = [self._instead.get(place, place) for place in kept.tolist()]
        return images, self._label_vectors(self._kept[used])

    def key(self) -> str:
        """Return the name of the file of decoded images: a digest of what it is made from."""
        return key_of(self._files_hash.hexdigest(), self.image_shape, self.dtype)

    def share(self, key: str | None = None) -> None:
        """Map the file of decoded images, after making it if it is not there.

        Of several processes one makes it, and the others wait. `key` is key(), if it is known
        already.
        """
        if self._shared is None:
            self._shared = shared(key or self.key(), self.files.names, self._decode_or_say,
                                  self.image_shape, self.dtype, processors())

    def _decode_or_say(self, raw_idx: int, name: str) -> np.ndarray | str:
        try:
            return self._decode(raw_idx)
        except ValueError as error:
            if not self.skips:
                raise
            return str(error)

    def _decoded(self, kept: np.ndarray) -> np.ndarray:
        if self._shared is not None and not self._shared.problems:
            return self._shared[self._kept[kept]]
        return np.ascontiguousarray(np.stack([self._usable(place, self._kept)
                                              for place in kept.tolist()]))

    def _usable(self, place: int, files: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the image of files[place], or where it is to be skipped the next usable one."""
        for step in range(len(files)):
            other = (place + step) % len(files)
            raw_idx = int(files[other])
            try:
                pixels = (self._decode(raw_idx) if self._shared is None
                          else self._shared.item(raw_idx))
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
            self._pixels = np.empty([len(self._kept), *self.image_shape], dtype=self.dtype)
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

    @functools.cached_property
    def standardization(self) -> Standardization | None:
        """The mean and std of arrays; None for 8-bit images.

        They are those of dataset.json. Where it has none, they are computed, for which all arrays
        are read.
        """
        if self.dtype == np.uint8:
            return None
        told = standardization_from(self.files.standardization(), self.num_channels,
                                    f'{self.path}: dataset.json')
        if told is not None:
            return told
        rows = []
        for raw_idx in progressing(range(len(self.files.names)), len(self.files.names),
                                   unit='arrays', quiet=distributed.get_rank() != 0):
            try:
                rows.append(arrays.sums(self._decode(raw_idx)))
            except ValueError:
                if not self.skips:
                    raise
        return arrays.standardization_of(rows)

    def contents(self) -> str:
        """Return a digest of the images and labels, whatever container they are in.

        It is the sha256 of the sorted names with sizes and CRC-32s, of the labels where they are
        used, and of mean and std where dataset.json tells them. The files of a folder are read for
        it, once.
        """
        digest = self._files_hash.copy()
        if self._labels is not None:
            digest.update(f'{self._labels.dtype} {self._labels.shape}'.encode())
            digest.update(self._labels.tobytes())
        told = None if self.dtype == np.uint8 else self.files.standardization()
        if told is not None:
            digest.update(json.dumps(told, sort_keys=True).encode())
        return digest.hexdigest()

    @functools.cached_property
    def _files_hash(self) -> 'hashlib._Hash':
        digest = hashlib.sha256()
        for name in self.files.names:
            try:
                checksum = self.files.checksum(name)
            except ValueError:   # of a folder; where it may be skipped it is one of a kind
                if not self.skips:
                    raise
                checksum = 'unreadable'
            digest.update(os.fsencode(name) + f'\0{checksum}\n'.encode())
        return digest

    def close(self) -> None:
        """Close the zip and drop the cache; both come back when an item is read."""
        self.files.close()
        self._pixels = self._present = self._shared = None

    def __enter__(self) -> 'ImageFolderDataset':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != '_files_hash'}
        return {**kept, '_pixels': None, '_present': None}

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
