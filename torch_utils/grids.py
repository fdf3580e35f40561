"""Pictures made of many pictures."""

import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

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


def save_values(values: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write data [C, H, W], atomically: uint8 as a PNG file, else as a .npy file (ending_of)."""
    if values.dtype == np.uint8:
        save_png(values.transpose(1, 2, 0), path, durable=False)
        return
    with atomic_write(path, durable=False) as file:
        np.save(file, values, allow_pickle=False)


def save_grid(images: np.ndarray, path: str | os.PathLike[str], columns: int,
              names: Sequence[str] = ()) -> None:
    """Write uint8 [N, C, H, W] as one picture with `columns` columns.

    A thin grey line surrounds each image. Images under 32 pixels are enlarged by a whole number,
    pixel by pixel, so that one can see them. Image (r, c) begins at pixel
    (1 + r (H + 1), 1 + c (W + 1)), times that number.

    `names` has the name of what each image shows, or nothing. If all images of a row have the same
    name, it stands to the left of the row, else if all of a column have, above the column, and
    else above each image: the images then begin further to the right or further down.
    """
    names = [*names, *[''] * (-len(names) % columns)]
    rows = [names[i:i + columns] for i in range(0, len(names), columns)]
    zoom = -(-32 // images.shape[-1])
    by_row = all(len(set(filter(None, row))) <= 1 for row in rows)
    by_column = all(name in ('', first) for row in rows
                    for name, first in zip(row, rows[0], strict=True))
    each = any(names) and not by_row and not by_column
    top = -(-TEXT // zoom) if each else 0
    framed = np.pad(images, [(0, 0), (0, 0), (1 + top, 0), (1, 0)], constant_values=GREY)
    pixels = np.pad(tile(framed, columns), [(0, 1), (0, 1), (0, 0)], constant_values=GREY)
    pixels = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    if any(names):
        height, width = (zoom * (size + 1) for size in images.shape[2:])
        if by_row:
            shown = [next(filter(None, row), '') for row in rows]
            places = [(2, zoom + r * height, name) for r, name in enumerate(shown)]
            margin = max(map(_width, shown)) + 6, 0
        elif by_column:
            places = [(zoom + c * width, 1, _fitting(name, width))
                      for c, name in enumerate(rows[0])]
            margin = 0, TEXT
        else:
            places = [(zoom + c * width, 1 + r * (height + zoom * top), _fitting(name, width))
                      for r, row in enumerate(rows) for c, name in enumerate(row)]
            margin = 0, 0
        pixels = _written(pixels, places, margin)
    save_png(pixels, path)


TEXT = 13   # the height of a line of text, in pixels


def _written(pixels: np.ndarray, places: Sequence[tuple[int, int, str]],
             margin: tuple[int, int]) -> np.ndarray:
    """Return the picture with texts at (x, y), and with a margin at the left and at the top."""
    left, top = margin
    canvas = to_pil(np.pad(pixels, [(top, 0), (left, 0), (0, 0)], constant_values=GREY))
    draw = PIL.ImageDraw.Draw(canvas)
    for x, y, text in places:
        draw.text((x, y), _printable(text), fill='white', font=PIL.ImageFont.load_default())
    return np.asarray(canvas).reshape(*canvas.size[::-1], pixels.shape[-1])


def _fitting(text: str, width: int) -> str:
    """Return as much of a text as fits into so many pixels."""
    while text and _width(text) > width - 3:
        text = text[:-1]
    return text


def _width(text: str) -> int:
    return round(PIL.ImageFont.load_default().getlength(_printable(text)))


def _printable(text: str) -> str:
    """Return a text with what every font has; Pillow may have none but Latin letters."""
    return ''.join(letter if letter.isprintable() else '?'
                   for letter in text[:40].encode('latin-1', 'replace').decode('latin-1'))
