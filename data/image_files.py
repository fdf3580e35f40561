"""The image files of a zip or of a folder, with their labels."""

import hashlib
import io
import os
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import PIL.TiffImagePlugin

from data import arrays, labels
from data.limits import DECODED, IMAGE_BYTES, JSON_BYTES, PIXELS_PER_BYTE, SCANS, SIDE, SMALL
from dnnlib.files import read_bounded

# Pillow knows more formats, some of which start other programs: only these are ever opened.
IMAGE_FORMATS = {
    '.bmp': 'BMP', '.gif': 'GIF', '.jfif': 'JPEG', '.jpe': 'JPEG', '.jpeg': 'JPEG', '.jpg': 'JPEG',
    '.pbm': 'PPM', '.pgm': 'PPM', '.png': 'PNG', '.pnm': 'PPM', '.ppm': 'PPM', '.tif': 'TIFF',
    '.tiff': 'TIFF', '.webp': 'WEBP',
}
FORMATS = sorted(set(IMAGE_FORMATS.values()))
JSON = 'dataset.json'
MOST_NAME = 4096   # characters of a name in a zip, like those of a path
OTHER = 'with other endings'
# Pillow warns of a number of pixels of its own, and calls compressed texts beside them damage.
PIL.Image.MAX_IMAGE_PIXELS = None
PIL.PngImagePlugin.MAX_TEXT_CHUNK = PIL.PngImagePlugin.MAX_TEXT_MEMORY = 2**26
# folders that systems put beside images, besides those that begin with a dot
SYSTEM = ('@eaDir', '__MACOSX', '#recycle', '$RECYCLE.BIN', 'System Volume Information')

# EXIF tag 274: how the stored pixels are to be turned to stand upright
ORIENTATION = 274
Transpose = PIL.Image.Transpose
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# those that put columns in the place of rows, and those that begin at the end
ASIDE = {Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90}
FROM_END = {Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSVERSE,
            Transpose.ROTATE_90}
STRIP = 256   # rows or columns that are turned at a time


class ImageFiles:
    """The image files of a zip or of a folder and its subfolders, named like `00000/a.png`.

    `names` are sorted as strings. Links are followed. Hidden files and folders (names that begin
    with a dot, and system folders such as @eaDir), files with other endings, and links to a folder
    that contains them are skipped: `passed_over` is {reason: names}, and `note()` describes it. Of
    a file with several images, which `several` then names, only the first is read. Where there is
    no image file at all, the files of arrays (.npy, data/arrays.py) take their place.

    The zip is opened anew in every process that reads from it, so that no two processes share a
    position in the file; a copy made by pickle is independent too. Raises ValueError, in one line,
    if `path` is missing, damaged or holds no image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.is_zip = os.path.isfile(self.path)
        self._zip: zipfile.ZipFile | None = None
        self._process = 0
        self.passed_over: dict[str, list[str]] = {}
        self.several: set[str] = set()
        self._known: tuple[tuple[str, ...], dict[str, Any] | None] | None = None
        if not os.path.exists(self.path):
            raise ValueError(f'{self.path}: no such zip or folder')
        found: list[str] = []
        of_arrays: list[str] = []
        self._jsons: list[str] = []   # the files dataset.json, at the top and below
        for name in self._zip_names() if self.is_zip else self._folder_names():
            reason = _reason(name)
            if reason == JSON:
                self._jsons.append(name)
            elif reason == OTHER and arrays.is_array(name):
                of_arrays.append(name)
            elif reason:
                self.passed_over.setdefault(reason, []).append(name)
            else:
                found.append(name)
        if found and of_arrays:
            self.passed_over.setdefault(OTHER, []).extend(of_arrays)
        self.names = sorted(found or of_arrays)
        if not self.names:
            endings = ', '.join([*IMAGE_FORMATS, arrays.NPY])
            raise ValueError(f'{self.path} holds no images (files that end in {endings})')

    def note(self) -> str:
        """Return a sentence on the files skipped so far, with the reasons; '' if there are none."""
        reasons = ', '.join(f'{len(names)} {reason} ({_one_of(names)})'
                            for reason, names in sorted(self.passed_over.items()))
        told = [f'passed over {reasons}'] if reasons else []
        if self.several:
            told.append(f'took the first of several images in {len(self.several)} '
                        f'file{"s" if len(self.several) > 1 else ""} ({_one_of(self.several)})')
        return f'{self.path}: {"; ".join(told)}' if told else ''

    def _zip_names(self) -> list[str]:
        archive = self._archive()
        if len(archive.filelist) > len(archive.NameToInfo):
            again = next(name for name, count in Counter(
                info.filename for info in archive.filelist).items() if count > 1)
            raise ValueError(f'{self.path}: {again} is in the zip more than once: make it anew, '
                             'with one file of each name')
        longest = max(archive.NameToInfo, key=len, default='')
        if len(longest) > MOST_NAME:   # much is done with the folders of a name
            raise ValueError(f'{self.path} has a file with a name of {len(longest)} characters, '
                             f'more than {MOST_NAME}')
        if sum(info.compress_size for info in archive.filelist) > os.path.getsize(self.path):
            raise ValueError(f'{self.path} is not a zip, or a damaged one: its files overlap')
        return [name for name in archive.NameToInfo if not name.endswith('/')]

    def _folder_names(self) -> Iterator[str]:
        return self._walk('', (os.path.realpath(self.path),))

    def _walk(self, inside: str, above: tuple[str, ...]) -> Iterator[str]:
        """Yield the files below a folder, and its hidden folders, which end in a slash.

        `above` are the real paths of the folder and of those that led to it.
        """
        try:
            entries = list(os.scandir(os.path.join(self.path, inside)))
        except OSError as error:
            raise ValueError(f'{self.path}: {inside or "."} cannot be read: '
                             f'{error.strerror}') from error
        for entry in entries:
            name = inside + entry.name
            if entry.is_file():
                yield name
            elif not entry.is_dir():   # a pipe or a device has no end; a link may lead nowhere
                self.passed_over.setdefault('that are no regular files', []).append(name)
            elif _is_hidden(entry.name):
                yield f'{name}/'
            elif (real := os.path.realpath(entry.path)) in above:
                self.passed_over.setdefault('linked in a circle', []).append(name)
            else:
                yield from self._walk(f'{name}/', (*above, real))

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._process != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
                raise ValueError(f'{self.path} is not a zip, or a damaged one: {error}') from error
            self._process = os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_zip': None}

    def close(self) -> None:
        """Close the zip; the next read opens it again."""
        if self._zip is not None and self._process == os.getpid():
            self._zip.close()
        self._zip = None

    def read(self, name: str, most: int = IMAGE_BYTES) -> bytes:
        """Return the bytes of one file, at most so many.

        Raises ValueError, naming the file, if they cannot be read or are more.
        """
        try:
            if not self.is_zip:
                return read_bounded(os.path.join(self.path, name), most)
            size = self._archive().NameToInfo[name].file_size
            if size > most:
                raise ValueError(f'it has {size:,} bytes, more than {most:,}')
            with self._archive().open(name) as file:
                return file.read(size + 1)   # no more is unfolded of a file that lies about it
        except Exception as error:   # zipfile raises a dozen unrelated kinds on damaged files
            raise ValueError(f'{self.path}: {name} cannot be read: {error}') from error

    def load(self, name: str) -> PIL.Image.Image | np.ndarray:
        """Return one decoded image of any mode, or the array [C, H, W] of a .npy file."""
        if arrays.is_array(name):
            return self.array(name)
        return self.image(name)

    def array(self, name: str) -> np.ndarray:
        """Return the array [C, H, W] of a .npy file; raises ValueError, naming a damaged one."""
        return arrays.decode_array(f'{self.path}: {name}', self.read(name))

    def image(self, name: str) -> PIL.Image.Image:
        """Return one decoded image of any mode; raises ValueError, naming a damaged file."""
        return self.decode(name, self.read(name))

    def decode(self, name: str, data: bytes) -> PIL.Image.Image:
        """Return the image that `data`, the bytes of the file `name`, encode."""
        image, several = decode(self.path, name, data)
        if several:
            self.several.add(name)
        return image

    def labels(self) -> dict[str, Any] | None:
        """Return {name: label} for all images, from the dataset.json of the set.

        dataset.json is {"labels": [[name, label], ...]} and lies at the top, or in the one folder
        that holds everything. The result is None if there are no labels. Raises ValueError if an
        image has none but others do.
        """
        file = self._json()
        if file is None:
            return None
        where = f'{self.path}: {file}'
        pairs = labels.pairs_in(self._content(file), where)
        if pairs is None:
            return None
        found = labels.matched(pairs, self.names, where)
        return None if all(label is None for label in found.values()) else found

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, if the dataset.json of the set tells them."""
        return self._facts()[0]

    def standardization(self) -> dict[str, Any] | None:
        """Return the mean and std of arrays as the dataset.json of the set tells them."""
        return self._facts()[1]

    def _facts(self) -> tuple[tuple[str, ...], dict[str, Any] | None]:
        """Return what dataset.json tells beside the labels, which may be large and are not kept."""
        if self._known is None:
            file = self._json()
            if file is None:
                return (), None
            self._content(file)
            assert self._known is not None
        return self._known

    def _content(self, file: str) -> object:
        where, data = f'{self.path}: {file}', self.read(file, JSON_BYTES)
        labels.check_size(data, len(self.names), where)
        content = labels.parse(data, where)
        self._known = labels.class_names(content), arrays.told(content)
        return content

    def _json(self) -> str | None:
        """Return the name of the dataset.json that holds the labels, if there is one.

        Raises ValueError for one that lies beside only some of the images.
        """
        if JSON in self._jsons:
            return JSON
        above = '/'.join([*labels.common_folders(map(labels.normal, self.names)), JSON])
        for name in self._jsons:
            if not above.startswith(f'{labels.normal(name).rpartition("/")[0]}/'):
                raise ValueError(f'{self.path}: {name} is not at the top of the set, where the '
                                 'labels of all images belong: move it there or delete it')
        return self._jsons[0] if self._jsons else None

    def fingerprint(self) -> str:
        """Return the sha256 of dataset.json and of the sorted names, sizes and, in a zip, CRC-32s.

        It reads no image. A change that keeps the size of a file is noticed only in a zip.
        """
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(os.fsencode(name) + f'\0{self._signature(name)}\n'.encode())
        if JSON in self._jsons:
            digest.update(self.read(JSON, JSON_BYTES))
        return digest.hexdigest()

    def checksum(self, name: str) -> str:
        """Return the size and CRC-32 of a file; one in a folder is read, one in a zip is not."""
        if self.is_zip:
            entry = self._archive().NameToInfo[name]
            return f'{entry.file_size} {entry.CRC:08x}'
        data = self.read(name)
        return f'{len(data)} {zlib.crc32(data):08x}'

    def _signature(self, name: str) -> str:
        if self.is_zip:
            return self.checksum(name)
        return str(os.path.getsize(Path(self.path, name)))


def decode(path: str, name: str, data: bytes) -> tuple[PIL.Image.Image, bool]:
    """Return the upright image that the bytes of a file encode, and whether it is one of several.

    Raises ValueError, naming `path` and the file in it, for a damaged one and one that is too
    large.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        too_large = _too_large(image, data)
        if not too_large:
            image.load()
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f'{path}: {name} is not an image, or a damaged one') from error
    except Exception as error:   # Pillow's decoders raise a dozen unrelated kinds
        raise ValueError(f'{path}: {name} is damaged: {error}') from error
    if too_large:
        raise ValueError(f'{path}: {name} {too_large}')
    several = _has_several(image, data)
    return upright(image), several


def _too_large(image: PIL.Image.Image, data: bytes) -> str:
    """Say why an image, of which only the size was read so far, takes too much; '' for nothing."""
    pixels, scans = image.width * image.height, 0
    size = _bytes_per_pixel(image)
    if image.format in ('JPEG', 'MPO') and _in_scans(data):
        size, scans = size + _coefficients(image), data.count(b'\xff\xda')
    if pixels * size > DECODED:
        return (f'is {image.width}x{image.height}, more than the {int(DECODED / size):,} pixels '
                f'that such an image may have: make it smaller')
    if max(image.size) > SIDE:
        return f'is {image.width}x{image.height}, more than {SIDE:,} pixels in a row: cut it up'
    if pixels > max(SMALL, PIXELS_PER_BYTE * len(data)):
        return (f'has {pixels:,} pixels in {len(data):,} bytes, far more than any photograph: '
                f'leave it out, or make it smaller')
    return f'has {scans} scans, more than {SCANS}: save it anew' if scans > SCANS else ''


def _bytes_per_pixel(image: PIL.Image.Image) -> float:
    """Return the most memory that Pillow takes for a pixel while it decodes."""
    if image.format == 'WEBP':
        return 16   # four copies of RGBA
    if isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
        # a JPEG of several scans may be inside; what is turned is copied
        in_jpeg = image.info.get('compression') == 'jpeg'
        return 12 if in_jpeg else 8 if image.tag_v2.get(ORIENTATION, 1) != 1 else 4
    return 4


def _in_scans(data: bytes) -> bool:
    """Return whether a JPEG has its pixels in several scans, for which it is kept as a whole."""
    place, components = 2, 0
    while place + 10 <= len(data):
        kind, length = data[place + 1], int.from_bytes(data[place + 2:place + 4], 'big')
        if data[place] != 0xff or kind == 0xff:
            place += 1
        elif kind == 0xda:
            return data[place + 4] < components
        elif kind in (0xc2, 0xc6, 0xca, 0xce):
            return True
        else:
            if kind in (0xc0, 0xc1, 0xc9):
                components = data[place + 9]
            place += 2 + length
    return False


def _coefficients(image: PIL.Image.Image) -> float:
    """Return the bytes of the coefficients of a JPEG, two each, for a pixel."""
    layers: list[tuple[int, int, int, int]] = getattr(image, 'layer', [])
    widest, highest = (max((layer[axis] for layer in layers), default=1) for axis in (1, 2))
    return 2 * sum(layer[1] * layer[2] for layer in layers) / max(1, widest * highest)


def _reason(name: str) -> str:
    """Return the reason for skipping a file, JSON for a dataset.json, or '' for an image."""
    *folders, file = name.replace('\\', '/').split('/')
    if _is_hidden(file) or any(map(_is_hidden, folders)) or not file:
        return 'hidden'
    ending = os.path.splitext(file)[1].lower()
    if file == JSON:
        return JSON
    if not ending:
        return 'without an ending'
    return '' if ending in IMAGE_FORMATS else OTHER


def _one_of(names: Collection[str]) -> str:
    return f'{min(names)}{", ..." if len(names) > 1 else ""}'


def _has_several(image: PIL.Image.Image, data: bytes) -> bool:
    if image.format in ('PNG', 'WEBP'):
        return getattr(image, 'n_frames', 1) > 1
    if image.format not in ('GIF', 'TIFF'):   # a photograph may bring previews of itself
        return False
    try:
        with PIL.Image.open(io.BytesIO(data), formats=[image.format]) as again:
            return getattr(again, 'n_frames', 1) > 1
    except Exception:   # the first is whole, the others need not be
        return True


def _is_hidden(part: str) -> bool:
    return part.startswith('.') or part in SYSTEM


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image turned as its EXIF data say, like every program that shows it.

    The image itself may be closed after that.
    """
    if not image.info or image.format == 'TIFF':   # Pillow turns a TIFF while it decodes it
        return image
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:   # what is written beside the pixels may be of any kind
        return image
    if orientation not in UPRIGHT:
        return image
    turned = turned_by(image, UPRIGHT[orientation])
    turned.info['turned'] = True   # dataset_tool.py tells of it
    return turned


def turned_by(image: PIL.Image.Image, how: Transpose) -> PIL.Image.Image:
    """Return the image turned; a large one by way of a file, for two of them take much memory."""
    W, H = image.size
    if 2 * 4 * W * H <= DECODED or image.mode == 'P':
        turned = image.transpose(how)
        turned.format = image.format
        return turned
    length = W if how in ASIDE else H
    starts = range(0, length, STRIP)
    with tempfile.TemporaryFile() as file:
        for start in starts:
            end = min(start + STRIP, length)
            box = (start, 0, end, H) if how in ASIDE else (0, start, W, end)
            file.write(image.crop(box).transpose(how).tobytes())
        image.close()
        turned = PIL.Image.new(image.mode, (H, W) if how in ASIDE else (W, H))
        turned.info, turned.format = image.info.copy(), image.format
        file.seek(0)
        for start in starts:
            rows = min(STRIP, length - start)
            row = len(PIL.Image.new(image.mode, (turned.width, 1)).tobytes())
            part = PIL.Image.frombytes(image.mode, (turned.width, rows), file.read(rows * row))
            turned.paste(part, (0, length - start - rows if how in FROM_END else start))
    return turned
