"""The labels in a dataset.json, and which image each of them belongs to.

A dataset.json is often written on another computer than the one that holds the images: names are
compared without regard to how they spell a path or an accent, and to the folders above the set.
"""

import itertools
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np

from limpid.labels import Labels
from torch_utils.random import random_subset

MOST_CLASSES = 2**16   # or one for each image
MOST_DEPTH = 50        # folders above a set that may differ, and ways in which they may
COMMAS = 2**23         # in a dataset.json; that of ImageNet has 2.6 million
SPARE = 16             # times as many labels as images may be there ...
FEW_LABELS = 2**17     # ... or so many
UNUSUAL = re.compile(r'\\|//|^/|/$|(^|/)\.\.?(/|$)')   # in a path
LARGEST = float(np.finfo(np.float32).max)

SHAPE = '{"labels": [["name.png", label], ...]}'


def normal(name: str) -> str:
    """Return a file name with / between its parts, without ./, and with composed accents (NFC)."""
    if name and name.isascii() and UNUSUAL.search(name) is None:
        return name   # of a million names, nearly all
    path = posixpath.normpath(unicodedata.normalize('NFC', name).replace('\\', '/'))
    return path.lstrip('/')


def common_folders(names: Iterable[str]) -> list[str]:
    """Return the folders that all these normal names lie in, from the top."""
    path = posixpath.commonpath({posixpath.dirname(name) for name in names})
    return path.split('/') if path else []


def parse(data: bytes, where: str) -> object:
    """Return the content of a dataset.json; raise ValueError, naming `where`, if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is not JSON: {error}') from error


def pairs_in(content: object, where: str) -> list[tuple[str, Any]] | None:
    """Return the pairs of a name and a label in a dataset.json, or None where it says null.

    Raises ValueError, which names `where` it was found, for anything of another shape.
    """
    pairs = content.get('labels', 'missing') if isinstance(content, dict) else 'not a dictionary'
    if pairs is None:
        return None
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise ValueError(f'{where} should be {SHAPE} or {{"labels": null}}')
    return [(name, label) for name, label in pairs]


def most_labels(images: int) -> int:
    """Return how many labels may be given where there are so many images."""
    return max(FEW_LABELS, SPARE * images)


def check_size(data: bytes, images: int, where: str) -> None:
    """Raise ValueError, which names `where` it was found, for far more labels than images.

    It looks at the bytes of JSON, without taking them apart: each label has one or two brackets,
    or a colon.
    """
    most = most_labels(images)
    if max(data.count(mark) for mark in (b'[', b'{', b':')) > 3 * most:
        raise ValueError(f'{where} has more than {3 * most:,} brackets or colons for {images:,} '
                         f'images: leave out the labels of others')
    if data.count(b',') > COMMAS:
        raise ValueError(f'{where} has more than {COMMAS:,} commas')


def class_names(content: object) -> tuple[str, ...]:
    """Return the names of the classes in a dataset.json, "classes": ["cat", ...]; () for none."""
    names = content.get('classes') if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def label_set(values: np.ndarray, names: tuple[str, ...], label_dim: int) -> Labels:
    """Return which of the labels, [N] classes or [N, L] vectors, occur how often.

    Of label vectors that are all different, a part is kept, 2^16 numbers in all.
    """
    if values.ndim == 1:
        counts = np.bincount(values, minlength=label_dim)
        named = [*names, *[''] * label_dim][:label_dim] if any(names) else []
        return Labels(tuple(counts.tolist()), tuple(named))
    vectors, counts = np.unique(values, axis=0, return_counts=True)
    kept = random_subset(len(vectors), max(2**16 // values.shape[1], 1), 0)
    return Labels(tuple(counts[kept].tolist()), vectors=tuple(map(tuple, vectors[kept].tolist())))


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)


def matched(pairs: Sequence[tuple[str, Any]], names: Sequence[str], where: str) -> dict[str, Any]:
    """Return the label of each of the image files `names`.

    Names are compared in their normal form, if need be without folders that all images or all
    labels lie in, so that /home/me/set/cats/1.png is cats/1.png. Labels of images that are not
    there are left out. Raises ValueError, which shows a name of either side, for an image without
    a label, and for one with two.
    """
    if len(pairs) > (most := most_labels(len(names))):
        raise ValueError(f'{where} has {len(pairs):,} labels, more than {most:,}, and there are '
                         f'only {len(names):,} images: leave out the labels of others')
    given: dict[str, Any] = {}
    for name, label in pairs:
        if given.setdefault(normal(name), label) != label:
            raise ValueError(f'{where} has two labels for {name}: '
                             f'{json.dumps(given[normal(name)])} and {json.dumps(label)}')
    files = {name: normal(name) for name in names}
    above, above_labels = common_folders(files.values()), common_folders(given or [''])

    def labelled(file: str, depth: int, more: int) -> str:
        return '/'.join([*above_labels[:more], *file.split('/')[depth:]])

    some = [files[names[i]] for i in (0, len(names) // 2, -1)] if names else []
    depths = itertools.product(range(min(len(above), MOST_DEPTH) + 1),
                               range(min(len(above_labels), MOST_DEPTH) + 1))
    likely = (pair for pair in depths if any(labelled(file, *pair) in given for file in some))
    best: tuple[int, dict[str, str]] = 0, {}
    for depth, more in itertools.islice(likely, MOST_DEPTH):
        found = {name: key for name, file in files.items()
                 if (key := labelled(file, depth, more)) in given}
        if len(found) == len(files):
            return {name: given[key] for name, key in found.items()}
        best = max(best, (len(found), found), key=lambda pair: pair[0])
    raise ValueError(_mismatch(list(names), [name for name, _ in pairs], best[1], where))


def _mismatch(names: list[str], labelled: list[str], found: dict[str, str], where: str) -> str:
    """Return a message that shows an image without a label, and a label without an image."""
    image = next(name for name in names if name not in found)
    used = set(found.values())
    unused = [name for name in labelled if normal(name) not in used]
    other = f'; its label of {unused[0]} is that of no image' if unused else ''
    return f'{where} has no label for {image}: label every image or none{other}'


def label_array(labels: dict[str, Any], names: list[str], where: str) -> np.ndarray:
    """Return the labels of `names`: int64 [N] of classes from 0, or float32 [N, L] of vectors.

    Raises ValueError, naming the image and `where` it was looked up, for a label that is neither an
    integer nor a list of finite numbers, or is of another kind than the first.
    """
    for name in names:
        label, first = labels[name], labels[names[0]]
        if isinstance(label, list) and len(label) > MOST_CLASSES:
            raise ValueError(f'{where}: the label of {name} has {len(label)} numbers, more than '
                             f'{MOST_CLASSES}')
        if not (_is_class(label) or _is_vector(label)):
            raise ValueError(f'{where}: the label of {name} is {json.dumps(label)}, '
                             'which is neither an integer from 0 nor a list of finite numbers')
        if _length(label) != _length(first):
            raise ValueError(f'{where}: the label of {name} is {_describe(label)}, '
                             f'but that of {names[0]} is {_describe(first)}')
        if _is_class(label) and label >= max(MOST_CLASSES, len(names)):
            raise ValueError(f'{where}: the label of {name} is {label}, far above what '
                             f'{len(names)} images need: number the classes from 0')
    values = [labels[name] for name in names]
    return np.array(values, dtype=np.int64 if _is_class(values[0]) else np.float32)


def _is_class(label: object) -> TypeGuard[int]:
    return type(label) is int and 0 <= label < 2**31


def _is_vector(label: object) -> TypeGuard[list[float]]:
    return isinstance(label, list) and len(label) > 0 and all(
        type(value) in (int, float) and abs(value) <= LARGEST for value in label)


def _length(label: int | list[float]) -> int:
    return len(label) if isinstance(label, list) else 0


def _describe(label: int | list[float]) -> str:
    return f'a list of {len(label)}' if isinstance(label, list) else 'an integer'
