"""Pictures made of many pictures."""

import os

import numpy as np
import PIL.Image

from dnnlib.files import atomic_write

GREY = 96   # the lines between images


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Arrange images, uint8 [N, C, H, W], row by row as one: uint8 [rows H, columns W, C].

    The last row is filled with black.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.zeros([rows * columns, channels, height, width], dtype=np.uint8)
    canvas[:count] = images
    canvas = canvas.reshape(rows, columns, channels, height, width)
    return canvas.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)


def to_pil(pixels: np.ndarray) -> PIL.Image.Image:
    """Return uint8 [H, W, C] with 1 channel (greyscale) or 3 (RGB) as an image of Pillow."""
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(f'an image file holds 1 or 3 channels, not {pixels.shape[-1]}')
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)


def save_png(pixels: np.ndarray, path: str | os.PathLike[str], durable: bool = True) -> None:
    """Write uint8 [H, W, C] as a PNG file, atomically."""
    with atomic_write(path, durable) as file:
        to_pil(pixels).save(file, format='PNG')


def save_grid(images: np.ndarray, path: str | os.PathLike[str], columns: int) -> None:
    """Write uint8 [N, C, H, W] as one picture with `columns` columns.

    A thin grey line surrounds each image. Images under 32 pixels are enlarged by a whole number,
    pixel by pixel, so that one can see them. Image (r, c) begins at pixel
    (1 + r (H + 1), 1 + c (W + 1)), times that number.
    """
    framed = np.pad(images, [(0, 0), (0, 0), (1, 0), (1, 0)], constant_values=GREY)
    pixels = np.pad(tile(framed, columns), [(0, 1), (0, 1), (0, 0)], constant_values=GREY)
    zoom = -(-32 // images.shape[-1])
    save_png(pixels.repeat(zoom, axis=0).repeat(zoom, axis=1), path)
