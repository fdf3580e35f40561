"""Turn images into a data set for training: square, of one size, in a zip or a folder."""

import contextlib
import importlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image

from data.image_files import ImageFiles
from data.labels import common_folders, label_array, normal
from data.limits import IMAGE_PIXELS
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.progress import progressing

Image = PIL.Image.Image
Size = tuple[int, int]   # width, height in pixels, as in Pillow
KINDS = {'L': 'greyscale', 'RGB': 'RGB'}
WRITTEN = re.compile(r'\d{5}/img\d{8}\.png')   # names that this tool gives


@dataclass(frozen=True)
class Source:
    """Images in their final order: their names, a function that loads one, and their labels."""
    names: list[str]
    load: Callable[[str], Image]
    labels: dict[str, Any] = field(default_factory=dict)   # empty: no labels
    resolution: Size | None = None                         # used where --resolution is not given
    classes: tuple[str, ...] = ()                          # the name of each class, if any
    note: Callable[[], str] = str                          # says which files were skipped
    path: str = ''                                         # the location, if there is one


def is_digits(path: str) -> bool:
    """Return whether the source is the word digits."""
    return path == 'digits'


def read_digits(path: str) -> Source:
    """Read the 1,797 8x8 scans of scikit-learn, whose greys 0..16 are stretched to 0..255."""
    try:
        datasets = importlib.import_module('sklearn.datasets')
    except ImportError as error:
        raise ValueError('--source=digits needs scikit-learn, of the extra demo: '
                         'pip install ".[demo]"') from error
    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = [f'{i:08d}' for i in range(len(pixels))]
    labels = dict(zip(names, digits.target.tolist(), strict=True))
    return Source(names, lambda name: PIL.Image.fromarray(pixels[int(name)]), labels, (16, 16))


def is_folder(path: str) -> bool:
    """Return whether the source is a folder."""
    return os.path.isdir(path)


def read_folder(path: str) -> Source:
    """Read a folder and its subfolders, sorted part by part: a/z.png comes before a.b/c.png."""
    files = ImageFiles(path)
    return source_of(files, sorted(files.names, key=lambda name: name.split('/')))


def is_zip(path: str) -> bool:
    """Return whether the source is a zip, or a file that claims to be one by its name."""
    return os.path.isfile(path) and (path.lower().endswith('.zip') or zipfile.is_zipfile(path))


def read_zip(path: str) -> Source:
    """Read a zip, in the order of the sorted names."""
    files = ImageFiles(path)
    return source_of(files, files.names)


def source_of(files: ImageFiles, names: list[str]) -> Source:
    """Return the images of a folder or a zip, in the order of `names`, with their labels.

    The labels are those of dataset.json, else the folders of the images; {} if neither has any.
    """
    found = files.labels()
    if found is not None:   # labels that train.py would refuse are refused here, before the work
        label_array(found, names, f'{files.path}: dataset.json')
        return Source(names, files.image, found, classes=files.class_names(), note=files.note,
                      path=files.path)
    labels, classes = folder_labels(names)
    return Source(names, files.image, labels, classes=classes, note=files.note, path=files.path)


def folder_labels(names: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return {name: class} and the names of the classes: the sorted top-level folders.

    Where all images lie in folders of one folder, these are the classes. Folders whose names are
    all numbers are sorted as numbers. Images outside of folders are a class of their own, called
    ''. A single class is none, and so are the folders that this tool makes: ({}, ()).
    """
    paths = {name: normal(name) for name in names}
    if all(WRITTEN.fullmatch(path) for path in paths.values()):
        return {}, ()
    above = common_folders(paths.values())[:1]
    inside = {name: path.split('/')[len(above):-1] for name, path in paths.items()}
    if not all(inside.values()):   # images beside folders in one folder are no classes
        inside = {name: path.split('/')[:-1] for name, path in paths.items()}
    tops = {name: (folders or [''])[0] for name, folders in inside.items()}
    classes = {top: i for i, top in enumerate(in_order(set(tops.values())))}
    if len(classes) == 1:
        return {}, ()
    return {name: classes[top] for name, top in tops.items()}, tuple(classes)


def in_order(folders: set[str]) -> list[str]:
    """Return the names of folders sorted as numbers, if they all are whole numbers, or as text."""
    if all(re.fullmatch('[0-9]+', folder) for folder in folders - {''}):
        return sorted(folders, key=lambda folder: (int(folder or -1), folder))
    return sorted(folders)


def is_unsupported(path: str) -> bool:
    """Return whether the source is a data set of a known format that cannot be read."""
    name = os.path.basename(os.path.abspath(path))
    files = ('cifar-10-python.tar.gz', 'train-images-idx3-ubyte.gz')
    return name.endswith('_lmdb') or name in files


def read_unsupported(path: str) -> Source:
    """Raise ValueError, which says what to do instead."""
    raise ValueError(f'--source={path}: LSUN (lmdb), CIFAR-10 and MNIST files are not supported '
                     'yet: unpack the images into a folder, with one subfolder per class')


# The first entry that accepts --source reads it. A reader raises ValueError if it cannot.
SOURCES: dict[str, tuple[Callable[[str], bool], Callable[[str], Source]]] = {
    'digits': (is_digits, read_digits),
    'unsupported': (is_unsupported, read_unsupported),
    'folder': (is_folder, read_folder),
    'zip': (is_zip, read_zip),
}


def open_source(path: str) -> Source:
    """Read the names and labels of --source; its images are loaded one by one later."""
    there = os.path.exists(path)
    for accepts, read in SOURCES.values():
        if accepts(path) and (there or is_digits(path)):
            return read(path)
    problem = 'cannot be used' if there else 'does not exist'
    raise ValueError(f'--source={path} {problem}: give a folder of images, a zip of images, '
                     'or the word digits')


def to_grey_or_rgb(image: Image, color: str | None = None) -> Image:
    """Return any image as 8-bit greyscale (mode L) or RGB; `color` forces one of them.

    Transparent parts show white. Of 16 bits the upper 8 are kept. Palettes and CMYK become RGB.
    Raises ValueError for pixels of 32 bits and for all others that Pillow cannot convert.
    """
    if image.mode.startswith('I;16') or (
            image.mode == 'I' and image.format in ('PNG', 'PPM')):
        image = PIL.Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        raise ValueError('its pixels have 32 bits: save it with 8 or 16')
    grey = image.mode in ('1', 'L', 'LA')
    if 'A' in image.getbands() or 'transparency' in image.info:
        white = PIL.Image.new('RGBA', image.size, 'white')
        image = PIL.Image.alpha_composite(white, image.convert('RGBA'))
    return image.convert({'grey': 'L', 'rgb': 'RGB', None: 'L' if grey else 'RGB'}[color])


def resize(image: Image, size: Size) -> Image:
    """Return the image in another size, by Lanczos' filter."""
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.LANCZOS)


def center_crop(image: Image, size: Size) -> Image:
    """Return the middle square, resized, in RGB."""
    w, h = image.size
    c = min(w, h)
    box = ((w - c) // 2, (h - c) // 2, (w + c) // 2, (h + c) // 2)
    return resize(image.convert('RGB').crop(box), size)


def center_crop_wide(image: Image, size: Size) -> Image | None:
    """Return the middle rows of aspect W:H, resized, on a black W x W canvas, in RGB.

    Returns None for an image that is too small.
    """
    (w, h), (W, H) = image.size, size
    ch = round(W * h / w)
    if w < W or ch < H:
        return None
    middle = resize(image.convert('RGB').crop((0, (h - ch) // 2, w, (h + ch) // 2)), size)
    canvas = PIL.Image.new('RGB', (W, W))
    canvas.paste(middle, (0, (W - H) // 2))
    return canvas


TRANSFORMS: dict[str, Callable[[Image, Size], Image | None]] = {
    'center-crop': center_crop,
    'center-crop-wide': center_crop_wide,
}


def check_transform(transform: str | None, resolution: Size | None) -> None:
    """Raise ValueError where --transform and --resolution cannot give square images."""
    if resolution is None:
        if transform is not None:
            raise ValueError(f'--transform={transform} needs --resolution, '
                             'for example --resolution=64x64')
        return
    W, H = resolution
    if transform == 'center-crop-wide' and W < H:
        raise ValueError(f'--resolution={W}x{H} is higher than wide: center-crop-wide needs '
                         'a width of at least the height, for example --resolution=512x384')
    if transform != 'center-crop-wide' and W != H:
        raise ValueError(f'--resolution={W}x{H} is not square: use --resolution={W}x{W}, '
                         'or --transform=center-crop-wide for black bars')


def prepare(image: Image, transform: str | None, resolution: Size | None,
            color: str | None) -> Image | None:
    """Return the image as it goes into the data set, or None if the transform skips it."""
    image = to_grey_or_rgb(image, color)
    if resolution is None:
        return image
    result = (TRANSFORMS[transform] if transform else resize)(image, resolution)
    return result.convert('L') if result is not None and color == 'grey' else result


def images(source: Source, max_images: int | None, transform: str | None, resolution: Size | None,
           color: str | None) -> Iterator[tuple[int, str, Image]]:
    """Yield (number, name, final image) for the first `max_images` images, less skipped ones.

    Raises ValueError, which names the image, for one that is unreadable, not square or unlike the
    first.
    """
    first: tuple[Image, str] | None = None
    names = source.names[:max_images]
    for index, name in enumerate(progressing(names, len(names))):
        loaded = source.load(name)
        try:
            image = prepare(loaded, transform, resolution, color)
        except ValueError as error:
            raise ValueError(f'{name} ({loaded.mode}) cannot be converted: {error}') from error
        if image is None:
            continue
        first = first or (image, name)
        check_image(image, name, *first)
        yield index, name, image


def check_image(image: Image, name: str, first: Image, first_name: str) -> None:
    """Raise ValueError unless `image` is square and has the size and the colours of the first."""
    (w, h), (W, H) = image.size, first.size
    if w != h:
        raise ValueError(f'{name} is {w}x{h}, not square: crop it with --transform=center-crop '
                         f'--resolution={min(w, h)}x{min(w, h)}')
    if (w, h) != (W, H):
        raise ValueError(f'{name} is {w}x{h}, but {first_name} is {W}x{H}: '
                         f'resize all images with --resolution={W}x{H}')
    if image.mode != first.mode:
        raise ValueError(f'{name} is {KINDS[image.mode]}, but {first_name} is {KINDS[first.mode]}: '
                         'convert all images with --color=rgb or --color=grey')


def encode_png(image: Image) -> bytes:
    """Return the pixels as an uncompressed PNG, which is quick to read."""
    data = io.BytesIO()
    PIL.Image.fromarray(np.asarray(image)).save(data, format='PNG', compress_level=0)
    return data.getvalue()


Save = Callable[[str, bytes], None]


def check_apart(source: str, dest: str) -> None:
    """Raise ValueError where the result would replace the source or be read with it later."""
    theirs, ours = (Path(os.path.realpath(path)) for path in (source, dest))
    if ours == theirs or (ours.exists() and os.path.samefile(ours, theirs)):
        raise ValueError(f'--dest={dest} is the source itself: give a new name')
    if theirs in ours.parents:
        raise ValueError(f'--dest={dest} lies inside the source, and would be read with it the '
                         f'next time: give a name outside of --source={source}')
    if ours in theirs.parents:
        raise ValueError(f'--source={source} lies inside --dest={dest}, which would replace it: '
                         'give a new name')


@contextlib.contextmanager
def open_dest(path: str, overwrite: bool = False) -> Iterator[Save]:
    """Give a function save(name, bytes) that writes into the data set `path`.

    The data set appears when the block ends without an error. A zip must be new and a folder new or
    empty; with `overwrite` they may be a file and a data set of this tool, which are replaced.
    """
    dest = Path(os.path.abspath(path))
    made = [parent for parent in dest.parents if not parent.exists()]
    to = _zip_dest if dest.suffix.lower() == '.zip' else _folder_dest
    try:
        with to(dest, overwrite) as save:
            yield save
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _zip_dest(dest: Path, overwrite: bool) -> Iterator[Save]:
    if dest.is_dir():
        raise ValueError(f'--dest={dest} is a folder: give the name of a zip file, '
                         'or a folder without .zip')
    if dest.exists() and not overwrite:
        raise ValueError(f'--dest={dest} exists: give a new name, or --overwrite to replace it')
    with atomic_write(dest) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        def save(name: str, data: bytes) -> None:
            # Neither time nor system is stored, so that equal images give equal bytes.
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)

        yield save


@contextlib.contextmanager
def _folder_dest(dest: Path, overwrite: bool) -> Iterator[Save]:
    if dest.exists() and not dest.is_dir():
        raise ValueError(f'--dest={dest} is a file: give a new name, an empty folder '
                         'or a name that ends in .zip')
    if dest.exists() and any(dest.iterdir()):
        if not is_data_set(dest):
            raise ValueError(f'--dest={dest} is not empty: give a new name or an empty folder')
        if not overwrite:
            raise ValueError(f'--dest={dest} is a data set: give a new name, or --overwrite to '
                             'replace it')
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{dest.name}.', dir=dest.parent) as temporary:
        filled = Path(temporary, 'data')   # the outer folder lacks the usual permissions
        filled.mkdir()

        def save(name: str, data: bytes) -> None:
            file = filled / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)

        yield save
        old = Path(temporary, 'old')
        if dest.exists():
            os.replace(dest, old)
        try:
            os.replace(filled, dest)
        except BaseException:
            if old.exists():
                os.replace(old, dest)
            raise


def is_data_set(folder: Path) -> bool:
    """Return whether a folder holds what this tool writes, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return 'dataset.json' in names and all(re.fullmatch(r'\d{5}|dataset\.json', name)
                                           for name in names)


def convert(source: Source, dest: str, max_images: int | None = None,
            transform: str | None = None, resolution: Size | None = None,
            color: str | None = None, overwrite: bool = False) -> str:
    """Write the data set `dest`, and return a summary, after the classes if they are folders.

    A data set that is there is replaced only with `overwrite`, and the source never.

    Images are called `00000/img00000000.png` by their number in the source, so skipped ones leave
    gaps. dataset.json holds {"labels": [[name, label], ...]}, or null where there are none.
    """
    resolution = resolution or source.resolution
    check_transform(transform, resolution)
    if source.path:
        check_apart(source.path, dest)
    labels: list[tuple[str, Any]] = []
    with open_dest(dest, overwrite) as save:
        for index, name, image in images(source, max_images, transform, resolution, color):
            file = f'{index // 1000:05d}/img{index:08d}.png'
            save(file, encode_png(image))
            labels.append((file, source.labels.get(name)))
        if not labels:
            raise ValueError(f'--transform={transform} skips images smaller than --resolution: '
                             'all of them are')
        told = {'labels': labels if source.labels else None}
        named = {'classes': source.classes} if any(source.classes) else {}
        save('dataset.json', json.dumps({**told, **named}).encode())
    considered = min(len(source.names), max_images or len(source.names))
    skipped = f', {considered - len(labels)} skipped' if considered > len(labels) else ''
    labelled = 'with labels' if source.labels else 'without labels'
    return (f'{summary_of_classes(source, source.names[:max_images])}{dest}: {len(labels)} images, '
            f'{image.width}x{image.height} {KINDS[image.mode]}, {labelled}{skipped}')


def summary_of_classes(source: Source, names: Sequence[str]) -> str:
    """Return a line for each class that is a folder of these images, and one on skipped files."""
    there = {source.labels.get(name) for name in names} if source.classes else set()
    lines = [f'class {number}: {name or "(no folder)"}\n'
             for number, name in enumerate(source.classes) if number in there]
    note = source.note()
    return ''.join([*lines, f'{note}\n' if note else ''])


class Resolution(click.ParamType):   # type: ignore[type-arg]
    """Width and height in pixels: `64x64` or `64,64`."""
    name = 'WxH'

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> Size:
        match = re.fullmatch(r'(\d{1,5})[x,](\d{1,5})', str(value))
        if match is None or int(match[1]) == 0 or int(match[2]) == 0:
            self.fail(f'{value!r} is not a width and a height in pixels such as 64x64', param, ctx)
        if int(match[1]) * int(match[2]) > IMAGE_PIXELS:
            self.fail(f'{value!r} has more than {IMAGE_PIXELS:,} pixels', param, ctx)
        return int(match[1]), int(match[2])


files = heading('From and to')
method = heading('What to do with each image')


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@files('--source', metavar='PATH', required=True,
       help='Source of the images: a folder (with its subfolders), a zip, or the word digits. '
            'digits stands for 1,797 scanned digits with labels, 16x16 unless --resolution is '
            'given; it needs scikit-learn.')
@files('--dest', metavar='PATH', required=True,
       help='Data set to write, outside of the source: a zip if the name ends in .zip, else a '
            'folder. A zip must be new, and a folder new or empty.')
@files('--overwrite', is_flag=True,
       help='Replace the zip, or the folder of a data set, that has the name of --dest.')
@files('--max-images', type=Whole(1), metavar='INT',
       help='Use only the first INT images of the source.  [default: all]')
@method('--transform', type=click.Choice(list(TRANSFORMS)), metavar='NAME',
        help='Way of cropping. center-crop cuts out the middle square and resizes it to '
             '--resolution. center-crop-wide cuts out the middle rows with the aspect ratio W:H of '
             '--resolution, resizes them and adds black bars to make them WxW; images smaller than '
             'WxH are skipped. Both give RGB.  [default: no cropping; --resolution squeezes images '
             'that are not square]')
@method('--resolution', type=Resolution(), metavar='WxH',
        help='Width and height in pixels, such as 64x64 or 64,64. Images are resized with the '
             'Lanczos filter.  [default: the size of the images]')
@method('--color', type=click.Choice(['grey', 'rgb']),
        help='Convert every image to this kind.  [default: greyscale stays greyscale, all others '
             'become RGB]')
@one_line_errors
def main(source: str, dest: str, overwrite: bool, max_images: int | None, transform: str | None,
         resolution: Size | None, color: str | None) -> None:
    """Turn images into a data set for train.py: square PNG files of one size, with labels.

    The images may be BMP, GIF, JPEG, PNG, PPM, TIFF or WebP. Transparent parts become white, and
    16-bit values become 8-bit ones. The results must be square and of one size, all greyscale or
    all RGB.

    Labels come from dataset.json in the source, {"labels": [["cats/1.png", 0], ...]}, where a label
    is a class from 0 or a list of numbers, for every image; without that file, each top-level
    folder is a class, in sorted order.

    Examples:
    # a first data set, which needs no download
    python dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip

    # any folder of photographs, as 64x64 RGB
    python dataset_tool.py --source=photos --dest=datasets/photos-64x64.zip \\
        --transform=center-crop --resolution=64x64

    # the first thousand images of a data set, in greyscale, as a folder
    python dataset_tool.py --source=datasets/photos-64x64.zip --dest=datasets/grey \\
        --max-images=1000 --color=grey
    """
    click.echo(convert(open_source(source), dest, max_images, transform, resolution, color,
                       overwrite))


if __name__ == '__main__':
    main()
