"""One image on its way into a data set."""

import functools
import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from data import arrays
from data.limits import SET_PIXELS
from data.source import Image, Size, Source
from data.transforms import (
    KINDS,
    TRANSFORMS,
    kept,
    kind_of,
    oddities,
    resize,
    rgb,
    size_of,
    to_grey_or_rgb,
)


@dataclass(frozen=True)
class Job:
    """What is done with the images of a source; see dataset_tool.py --help for the fields.

    `canvas` is laid below each image. `wanted` is the size and the kind that --on-mismatch=convert
    and =skip hold an image against. Without `encode`, an outcome has no data and no checksum.
    """
    source: Source
    transform: str | None = None
    resolution: Size | None = None
    color: str | None = None
    on_mismatch: str | None = None
    canvas: Size | None = None
    wanted: tuple[Size, str] | None = None
    encode: bool = True

    def __call__(self, index: int, name: str) -> 'Outcome':
        """Load, prepare and encode one image."""
        return outcome(self, index, name)


@dataclass(frozen=True)
class Outcome:
    """What became of image number `index`: its file, or the reason why there is none."""
    index: int
    name: str
    ending: str = ''                   # png or npy; '' for one that is left out
    size: Size = (0, 0)
    kind: str = ''
    found: tuple[str, ...] = ()        # what was odd about it
    done: tuple[str, ...] = ()         # what was done about that
    problem: str = ''                  # the error of one that cannot be used
    enlarged: bool = False
    crc: int = 0
    length: int = 0
    sums: tuple[float, ...] = ()       # of an array, for its mean and std (data/arrays.py)
    data: bytes = field(default=b'', repr=False)

    @property
    def file(self) -> str:
        """The name in the data set, by the number in the source."""
        return f'{self.index // 1000:05d}/img{self.index:08d}.{self.ending}'

    def record(self) -> dict[str, Any]:
        """Return everything but the data, for JSON."""
        return {key: value for key, value in vars(self).items() if key != 'data'}

    @staticmethod
    def of(record: dict[str, Any]) -> 'Outcome':
        """Return the outcome that `record` came from, without its data."""
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                  for key, value in record.items()}
        return Outcome(**fields)


def outcome(job: Job, index: int, name: str) -> Outcome:
    """Return what becomes of one image."""
    try:
        image = job.source.load(name)
    except ValueError as error:
        return Outcome(index, name, found=('unreadable',), done=('left out',), problem=str(error))
    found = [*oddities(image), *(['several images'] if job.source.several(name) else [])]
    try:
        result = prepared(job, image)
    except ValueError as error:
        mode = image.mode if isinstance(image, PIL.Image.Image) else kind_of(image)
        return Outcome(index, name, found=tuple(found), done=('left out',),
                       problem=f'{name} ({mode}) cannot be converted: {error}')
    if result is None:
        return Outcome(index, name, found=('too small',), done=('left out',))
    done = [{'several images': 'took the first', 'rotated': 'turned upright'}.get(
        what, f'became {kind_of(result)}') for what in found]
    if job.wanted is not None:
        result = _matched(job, result, found, done)
    if result is None or (found and job.on_mismatch == 'skip'):
        return Outcome(index, name, found=tuple(found), done=('left out',))
    W, H = size_of(result)
    w, h = size_of(image)
    data = encoded(result) if job.encode else b''
    is_array = isinstance(result, np.ndarray)
    return Outcome(index, name, 'npy' if is_array else 'png', (W, H), kind_of(result),
                   tuple(found), tuple(dict.fromkeys(done)),
                   enlarged=(w < W or h < H) and (w, h) != (W, H) and not job.canvas,
                   crc=zlib.crc32(data), length=len(data), data=data,
                   sums=arrays.sums(np.asarray(result)) if is_array and job.encode else ())


def prepared(job: Job, image: Image | np.ndarray) -> Image | np.ndarray | None:
    """Return the image as it goes into the data set, or None if the transform skips it.

    Raises ValueError for one that cannot be, and for one that would be too large there.
    """
    if not isinstance(image, np.ndarray):
        _check_pixels(job, image)
    if job.color == 'keep' and not isinstance(image, np.ndarray):
        image = kept(image)
    if isinstance(image, np.ndarray):
        if job.transform or job.color in ('grey', 'rgb') or job.resolution not in (
                None, size_of(image)):
            raise ValueError(f'only greyscale and RGB can be changed, and it is {kind_of(image)}: '
                             'leave out --transform, --color and --resolution')
        return image
    if job.canvas is not None:
        image = on_canvas(_converted(image, job.color), job.canvas)
    if job.resolution is None:
        return _converted(image, job.color)
    if job.transform is None:
        return resize(image, job.resolution, functools.partial(_converted, color=job.color))
    result = TRANSFORMS[job.transform](
        image, job.resolution, lambda part: rgb(_converted(part, job.color)))
    return result.convert('L') if result is not None and job.color == 'grey' else result


def _converted(image: Image, color: str | None) -> Image:
    return image if color == 'keep' else to_grey_or_rgb(image, color)


def _check_pixels(job: Job, image: Image) -> None:
    """Raise ValueError for an image that would stay larger than those of a data set may be."""
    stays = job.resolution is None or (job.color == 'keep' and image.mode not in KINDS)
    if stays and image.width * image.height > SET_PIXELS:
        raise ValueError(f'it has {image.width * image.height:,} pixels, more than the '
                         f'{SET_PIXELS:,} of a data set: give a --resolution')


def on_canvas(image: Image, size: Size) -> Image:
    """Return the image in the middle of a black one."""
    canvas = PIL.Image.new(image.mode, size)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def _matched(job: Job, result: Image | np.ndarray, found: list[str],
             done: list[str]) -> Image | np.ndarray | None:
    """Return the image in the size and kind that are wanted, or None for one to be left out."""
    assert job.wanted is not None
    size, kind = job.wanted
    differs = [what for what, has in ((f'{result_size(result)}', size_of(result) != size),
                                      (kind_of(result), kind_of(result) != kind)) if has]
    if not differs:
        return result
    found += differs
    if job.on_mismatch == 'skip' or isinstance(result, np.ndarray) or kind not in MODES:
        return None
    done += [f'became {size[0]}x{size[1]} {kind}']
    return resize(result.convert(MODES[kind]), size)


MODES = {'greyscale': 'L', 'RGB': 'RGB'}


def result_size(image: Image | np.ndarray) -> str:
    """Return the size in words: 64x48."""
    return '{}x{}'.format(*size_of(image))


def encoded(image: Image | np.ndarray) -> bytes:
    """Return the pixels as an uncompressed PNG, which is quick to read, or as a .npy file."""
    if isinstance(image, np.ndarray):
        data = io.BytesIO()
        np.save(data, image, allow_pickle=False)
        return data.getvalue()
    return png(np.asarray(image))


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 [H, W] or [H, W, 3] as a PNG file that is not compressed.

    Pillow takes several times as long, half of the time of a conversion of small images.
    """
    height, width = pixels.shape[:2]
    color = 2 if pixels.ndim == 3 else 0
    rows = np.zeros([height, 1 + pixels[0].size], np.uint8)   # each begins with its filter, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack('>IIBBBBB', width, height, 8, color, 0, 0, 0)
    parts = [b'\x89PNG\r\n\x1a\n']
    for name, content in (
            (b'IHDR', header), (b'IDAT', zlib.compress(rows.data, 0)), (b'IEND', b'')):
        parts += [struct.pack('>I', len(content)), name, content,
                  struct.pack('>I', zlib.crc32(content, zlib.crc32(name)))]
    return b''.join(parts)
