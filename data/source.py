"""A source of images: what every reader in data/sources gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

Image = PIL.Image.Image
Size = tuple[int, int]   # width, height in pixels, as in Pillow


@dataclass(frozen=True)
class Source:
    """Images in their final order: their names, a function that loads one, and their labels.

    `load` raises ValueError, naming the image, for one that cannot be read. It gives an image of
    Pillow, or an array [C, H, W] where that has another type than uint8 or another number of
    channels than 1 and 3. It is called in several processes: what it needs goes through pickle.
    """
    names: Sequence[str]
    load: Callable[[str], Image | np.ndarray]
    labels: dict[str, Any] = field(default_factory=dict)   # empty: no labels
    resolution: Size | None = None       # used where --resolution is not given
    canvas: Size | None = None           # black, laid below each image unless another is asked for
    classes: tuple[str, ...] = ()        # the name of each class, if any
    note: str = ''                       # says which files were skipped
    path: str = ''                       # the location, if there is one
    several: Callable[[str], bool] = field(default=lambda name: False)   # was there another image?


class NumberedArrays:
    """Loads images out of one array, [N, H, W], [N, H, W, C] or [N, C, H, W], by their numbers.

    Of two places for the channels, the shorter axis is taken, and the last of two equal ones.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.ndim == 3:
            pixels = pixels[..., np.newaxis]
        if pixels.shape[1] < pixels.shape[3]:
            pixels = pixels.transpose(0, 2, 3, 1)
        self.pixels = pixels

    def names(self) -> list[str]:
        """Return the names 00000000, 00000001, ..."""
        return [f'{i:08d}' for i in range(len(self.pixels))]

    def __call__(self, name: str) -> Image | np.ndarray:
        """Return image number `name`."""
        return image_of(self.pixels[int(name)])


def image_of(pixels: np.ndarray) -> Image | np.ndarray:
    """Return [H, W, C] as an image of Pillow, or as [C, H, W] where Pillow has none such."""
    if pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 3):
        return PIL.Image.fromarray(np.ascontiguousarray(
            pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def needs(package: str, extra: str, what: str) -> str:
    """Return the message of a source whose package is not installed."""
    return f'{what} needs {package}, of the extra {extra}: pip install ".[{extra}]"'
