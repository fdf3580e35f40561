"""Tar files of images: the shards of WebDataset, or class folders. They are not unpacked."""

import functools
import json
import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from data.image_files import IMAGE_FORMATS, decode
from data.limits import IMAGE_BYTES
from data.source import Image, Source
from data.sources.files import folder_labels
from dnnlib.files import open_regular

LABEL_BYTES = 2**16   # of a file with the label of one image


class Place(NamedTuple):
    """The place of an image: the number of the tar, the first byte, their number, its sample."""
    file: int
    start: int
    size: int
    sample: str


def is_tar(path: str) -> bool:
    """Return whether the source is a tar, or a folder with nothing but such files."""
    return bool(_files(path))


def read_tar(path: str) -> Source:
    """Read images in the order of the tars and of their places there.

    The label of 0001.jpg is the number in 0001.cls, or "label" in 0001.json, beside it; without
    these, top-level folders are classes.
    """
    files = _files(path)
    places: dict[str, Place] = {}
    found: dict[str, Any] = {}
    for number, file in enumerate(files):
        prefix = f'{os.path.basename(file)}:' if len(files) > 1 else ''
        try:
            _scan(file, number, prefix, places, found)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f'{file} is no tar, or a damaged or compressed one (unpack it with '
                             f'gunzip): {error}') from error
    if not places:
        raise ValueError(f'{path} holds no images (files that end in {", ".join(IMAGE_FORMATS)})')
    labels: dict[str, Any] = {name: found[place.sample] for name, place in places.items()
                              if place.sample in found}
    classes: tuple[str, ...] = ()
    if not labels and len(files) == 1:
        labels, classes = folder_labels(list(places))
    if 0 < len(labels) < len(places):
        without = next(name for name in places if name not in labels)
        raise ValueError(f'{path}: {without} has no label, but others have: label every image')
    return Source(list(places), functools.partial(_load, tuple(files), places), labels,
                  classes=classes, path=path)


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path] if path.lower().endswith('.tar') else []
    if not os.path.isdir(path):
        return []
    names = sorted(name for name in os.listdir(path) if not name.startswith('.'))
    tars = [os.path.join(path, name) for name in names if name.lower().endswith('.tar')]
    return tars if len(tars) == len(names) else []


def _scan(file: str, number: int, prefix: str, places: dict[str, Place],
          labels: dict[str, Any]) -> None:
    with open_regular(file) as raw:
        for archive, member in _members(raw):
            name, ending = member.name, os.path.splitext(member.name)[1].lower()
            if not member.isreg() or os.path.basename(name).startswith('.'):
                continue
            if ending in IMAGE_FORMATS:
                if prefix + name in places:
                    raise ValueError(f'{file}: {name} is in the tar more than once')
                places[prefix + name] = Place(
                    number, member.offset_data, member.size, _key(number, name))
            elif ending in ('.cls', '.json') and member.size <= LABEL_BYTES:
                content = archive.extractfile(member)
                assert content is not None   # it is a regular file
                label = _label(content.read(), ending, f'{file}: {name}')
                if label is not None:
                    labels[_key(number, name)] = label


def _members(raw: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each member of a tar. Raises tarfile.TarError, also for sizes below 0."""
    try:
        with tarfile.open(fileobj=raw, mode='r:') as archive:
            for member in archive:
                if member.size < 0:
                    raise tarfile.ReadError(f'a member of {member.size} bytes')
                yield archive, member
    except ValueError as error:   # of a header that continues for a negative number of bytes
        raise tarfile.ReadError(str(error)) from None


def _label(data: bytes, ending: str, where: str) -> Any:   # noqa: ANN401 (judged by label_array)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is no number, and not JSON: {error}') from error
    if ending == '.cls':
        return value
    return value.get('label') if isinstance(value, dict) else None


def _key(number: int, name: str) -> str:
    """Return what the files of one sample have in common: the tar, and the name up to a dot."""
    folder, base = os.path.split(name)
    return f'{number}:{folder}/{base.partition(".")[0]}'


def _load(files: tuple[str, ...], places: dict[str, Place], name: str) -> Image:
    place = places[name]
    if place.size > IMAGE_BYTES:
        raise ValueError(f'{files[place.file]}: {name} has more than {IMAGE_BYTES:,} bytes')
    with open_regular(files[place.file]) as file:
        file.seek(place.start)
        return decode(files[place.file], name, file.read(place.size))[0]
