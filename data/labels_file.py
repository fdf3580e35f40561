"""Labels in a CSV or JSON file of one's own: --labels."""

import csv
import dataclasses
import io
import json
from typing import Any

from data.labels import check_size, label_array, matched, most_labels
from data.limits import JSON_BYTES
from data.source import Source
from dnnlib.files import read_bounded

SHAPE = ('a CSV with a line `name,label` for each image, or JSON {"name": label, ...} or '
         '{"labels": [["name", label], ...]}')


def with_labels(source: Source, path: str) -> Source:
    """Return the source with the labels in a file instead of its own.

    A label is a class number, several numbers (a vector), or a word: the words are classes in
    sorted order. Names are compared as those in a dataset.json. Raises ValueError for an image
    without a label, and a file of another shape.
    """
    pairs = read(path, len(source.names))
    found = matched(pairs, list(source.names), path)
    words = sorted({label for label in found.values() if isinstance(label, str)})
    if words:
        other = next((name for name, label in found.items() if not isinstance(label, str)), None)
        if other is not None:
            raise ValueError(f'{path}: the label of {other} is {found[other]!r}, but others are '
                             'words')
        number = {word: i for i, word in enumerate(words)}
        found = {name: number[label] for name, label in found.items()}
    label_array(found, list(source.names), path)
    return dataclasses.replace(source, labels=found, classes=tuple(words))


def read(path: str, images: int) -> list[tuple[str, Any]]:
    """Return the pairs of a name and a label in a file for so many images; see `with_labels`."""
    data = read_bounded(path, JSON_BYTES)
    check_size(data, images, path)
    try:
        text = data.decode('utf-8-sig')
        pairs = _json(text) if text.lstrip()[:1] in ('{', '[') else _csv(text, images)
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f'{path} is not {SHAPE}: {error}') from error
    if not pairs:
        raise ValueError(f'{path} is empty: it should be {SHAPE}')
    return pairs


def _json(text: str) -> list[tuple[str, Any]]:
    content = json.loads(text)
    if isinstance(content, dict):
        content = content.get('labels', content)
    pairs = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(pairs, list) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
            for pair in pairs):
        raise ValueError('it holds something else')
    return [(name, label) for name, label in pairs]


def _csv(text: str, images: int) -> list[tuple[str, Any]]:
    if text.count('\n') > (most := most_labels(images)):
        raise ValueError(f'it has more than {most:,} lines for {images:,} images')
    first = text.partition('\n')[0]
    delimiter = next((mark for mark in (',', ';', '\t') if mark in first), ',')
    rows = [row for row in csv.reader(io.StringIO(text, newline=''), delimiter=delimiter) if row]
    if len({len(row) for row in rows}) > 1 or any(len(row) < 2 for row in rows):
        line = next(i for i, row in enumerate(rows) if len(row) < 2 or len(row) != len(rows[0]))
        raise ValueError(f'line {line + 1} has {len(rows[line])} fields, the first '
                         f'{len(rows[0])}')
    labelled = [(row[0], _label(row[1:])) for row in rows]
    return labelled[1:] if _is_heading(rows, labelled) else labelled


def _is_heading(rows: list[list[str]], labelled: list[tuple[str, Any]]) -> bool:
    """Return whether the first line is none of an image."""
    return bool(labelled) and isinstance(labelled[0][1], str) and (
        rows[0][0].lower() in ('name', 'file', 'filename', 'image', 'path', 'id')
        or any(not isinstance(label, str) for _, label in labelled[1:2]))


def _label(fields: list[str]) -> int | list[float] | str:
    try:
        return int(fields[0]) if len(fields) == 1 else [float(field) for field in fields]
    except ValueError:
        return ','.join(fields).strip()
