"""What is done to each image: its kind, its part and its size."""

from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image

from data.limits import SMALL
from data.source import Image, Size

Resampling = PIL.Image.Resampling
KINDS = {'L': 'greyscale', 'RGB': 'RGB'}
BAND = 2**21     # pixels of a large image at a time
WIDEST = 2**25   # pixels of an image that has the width of the result and its own height
Box = tuple[int, int, int, int]   # left, upper, right, lower, as in Pillow
Convert = Callable[[Image], Image]


def kind_of(image: Image | np.ndarray) -> str:
    """Return greyscale, RGB, or the type and the number of channels of an array [C, H, W]."""
    if isinstance(image, np.ndarray):
        return f'{image.dtype} with {len(image)} channel{"s" if len(image) > 1 else ""}'
    return KINDS[image.mode]


def size_of(image: Image | np.ndarray) -> Size:
    """Return the width and height in pixels."""
    return (image.shape[2], image.shape[1]) if isinstance(image, np.ndarray) else image.size


def oddities(image: Image | np.ndarray) -> list[str]:
    """Return what makes an image other than plain 8-bit greyscale or RGB that stands upright."""
    if isinstance(image, np.ndarray):
        return []
    bits = {'I': '32-bit', 'F': '32-bit', '1': '1-bit'}
    if image.mode == 'I' and image.format in ('PNG', 'PPM'):
        bits['I'] = '16-bit'
    told = {**bits, 'P': 'palette', 'PA': 'palette', 'CMYK': 'CMYK', 'YCbCr': 'YCbCr',
            'LAB': 'Lab', 'HSV': 'HSV'}
    found = ['16-bit'] if image.mode.startswith('I;16') else []
    found += [told[image.mode]] if image.mode in told else []
    found += ['alpha'] if _is_transparent(image) else []
    return found + (['rotated'] if image.info.get('turned') else [])


def _is_transparent(image: Image) -> bool:
    return 'A' in image.getbands() or 'a' in image.getbands() or 'transparency' in image.info


def to_grey_or_rgb(image: Image, color: str | None = None) -> Image:
    """Return any image as 8-bit greyscale (mode L) or RGB; `color` forces one of them.

    Transparent parts show white. Of 16 bits the upper 8 are kept. Palettes and CMYK become RGB.
    Raises ValueError for pixels of 32 bits and for all others that Pillow cannot convert.
    """
    if image.mode.startswith('I;16') or (
            image.mode == 'I' and image.format in ('PNG', 'PPM')):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        raise ValueError('its pixels have 32 bits: save it with 8 or 16, or give '
                         '--color=keep')
    grey = image.mode in ('1', 'L', 'LA')
    if 'A' in image.getbands() or 'transparency' in image.info:
        white = PIL.Image.new('RGBA', image.size, 'white')
        image = image if image.mode == 'RGBA' else image.convert('RGBA')
        image = PIL.Image.alpha_composite(white, image)
    mode = {'grey': 'L', 'rgb': 'RGB', None: 'L' if grey else 'RGB'}[color]
    return image if image.mode == mode else image.convert(mode)   # which would copy it


def kept(image: Image) -> Image | np.ndarray:
    """Return greyscale and RGB as they are, and others as arrays [C, H, W] of all their channels.

    Palettes become RGB or RGBA, and one bit becomes greyscale.
    """
    if image.mode in ('P', '1'):
        transparent = 'transparency' in image.info
        image = image.convert('L' if image.mode == '1' else 'RGBA' if transparent else 'RGB')
    if image.mode in KINDS:
        return image
    pixels = np.asarray(image)
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        pixels = pixels.astype(np.uint16)
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def bands(image: Image, box: Box | None = None) -> Iterator[Image]:
    """Yield the rows of a part of an image, the whole if there is no box, some at a time."""
    left, upper, right, lower = box or (0, 0, *image.size)
    rows = max(BAND // (right - left), 1)
    for start in range(upper, lower, rows):
        band = image.crop((left, start, right, min(start + rows, lower)))
        band.format = image.format
        yield band


def resize(image: Image, size: Size, convert: Convert | None = None, box: Box | None = None,
           filter: Resampling = Resampling.LANCZOS) -> Image:
    """Return a part of an image, the whole if there is no box, converted and then resized.

    Of a large image, a few rows at a time are converted and made as wide as the result, and then
    all together as high, so that the part is never there as a whole. Pillow, left to itself, does
    one or the other first; that changes the rounding. Raises ValueError where an image as wide as
    the result and as high as the part takes too much.
    """
    box = box or (0, 0, *image.size)
    w, h = box[2] - box[0], box[3] - box[1]
    if size[0] * h > WIDEST:
        raise ValueError(f'it is {w}x{h}, too large or too narrow to become {size[0]}x{size[1]}')
    if w * h <= SMALL:
        part = image if box == (0, 0, *image.size) else image.crop(box)
        part.format = image.format
        part = part if convert is None else convert(part)
        return part if part.size == size else part.resize(size, filter)
    narrow, row = None, 0
    for band in bands(image, box):
        part = band if convert is None else convert(band)
        part = part.resize((size[0], part.height), filter)
        narrow = narrow or PIL.Image.new(part.mode, (size[0], h))
        narrow.paste(part, (0, row))
        row += part.height
    assert narrow is not None   # there are rows
    return narrow.resize(size, filter)


def rgb(image: Image) -> Image:
    """Return an image of greyscale or RGB in RGB."""
    return image if image.mode == 'RGB' else image.convert('RGB')


def center_crop(image: Image, size: Size, convert: Convert = rgb) -> Image:
    """Return the largest middle part of the aspect ratio of `size`, resized, in RGB."""
    (w, h), (W, H) = image.size, size
    cw, ch = min(w, max(h * W // H, 1)), min(h, max(w * H // W, 1))
    box = ((w - cw) // 2, (h - ch) // 2, (w + cw) // 2, (h + ch) // 2)
    return resize(image, size, convert, box)


def center_crop_wide(image: Image, size: Size, convert: Convert = rgb) -> Image | None:
    """Return the middle rows of aspect W:H, resized, on a black W x W canvas, in RGB.

    Returns None for an image that is too small.
    """
    (w, h), (W, H) = image.size, size
    ch = round(W * h / w)
    if w < W or ch < H:
        return None
    middle = resize(image, size, convert, (0, (h - ch) // 2, w, (h + ch) // 2))
    canvas = PIL.Image.new('RGB', (W, W))
    canvas.paste(middle, (0, (W - H) // 2))
    return canvas


def center_crop_dhariwal(image: Image, size: Size, convert: Convert = rgb) -> Image:
    """Return the middle square as ADM's data have it (Dhariwal and Nichol 2021), in RGB.

    The image is halved by averaging (a box filter) while its shorter side is at least twice the
    target, then resized to the target on the shorter side by the bicubic filter, then cropped.
    """
    target, first = size[0], convert
    while min(image.size) >= 2 * target:
        image = resize(image, (image.width // 2, image.height // 2), first, filter=Resampling.BOX)
        first = rgb
    scale = target / min(image.size)
    image = resize(image, (round(image.width * scale), round(image.height * scale)), first,
                   filter=Resampling.BICUBIC)
    left, top = (image.width - target) // 2, (image.height - target) // 2
    return image.crop((left, top, left + target, top + target))


TRANSFORMS: dict[str, Callable[[Image, Size, Convert], Image | None]] = {
    'center-crop': center_crop,
    'center-crop-wide': center_crop_wide,
    'center-crop-dhariwal': center_crop_dhariwal,
}


def check_transform(transform: str | None, resolution: Size | None) -> None:
    """Raise ValueError where --transform and --resolution do not fit together."""
    if transform is None:
        return
    if resolution is None:
        raise ValueError(f'--transform={transform} needs --resolution, '
                         'for example --resolution=64x64')
    W, H = resolution
    if transform == 'center-crop-wide' and W < H:
        raise ValueError(f'--resolution={W}x{H} is higher than wide: center-crop-wide needs '
                         'a width of at least the height, for example --resolution=512x384')
    if transform == 'center-crop-dhariwal' and W != H:
        raise ValueError(f'--resolution={W}x{H} is not square, as center-crop-dhariwal needs it: '
                         f'use --resolution={W}x{W}, or --transform=center-crop')
