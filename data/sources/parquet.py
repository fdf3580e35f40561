"""Parquet files as Hugging Face's datasets have them on disk: encoded images, class labels."""

import functools
import importlib
import json
import os
from typing import Any

from data.image_files import decode
from data.limits import IMAGE_BYTES
from data.source import Image, Source, needs
from dnnlib.console import shown
from dnnlib.files import MOST_RATIO, SMALL_UNFOLDED

IMAGES = ('image', 'img', 'jpg', 'png', 'webp')   # columns, the first of which is taken
LABELS = ('label', 'labels', 'fine_label', 'cls')
# of a group, which is read at once; writers make groups of 100 to 1,000 rows
MOST_ROWS = 2**20
MOST_BYTES = 2**30


def is_parquet(path: str) -> bool:
    """Return whether the source is a parquet file, or a folder with such files alone."""
    return bool(_files(path))


def read_parquet(path: str) -> Source:
    """Read the images of one or more files, in the order of their names and rows.

    Labels of -1, which test sets have, mean that there are none.
    """
    names: list[str] = []
    values: list[Any] = []
    classes: tuple[str, ...] = ()
    for file in _files(path):
        table = _opened(file, 0)
        label = _column(table, LABELS)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if rows > MOST_ROWS:
                raise ValueError(f'{file} has a group of {rows:,} rows, more than {MOST_ROWS:,}')
            names += [f'{os.path.basename(file)}:{group}:{row}' for row in range(rows)]
            if label is not None:
                values += _read(table, file, group, label).to_pylist()
        classes = classes or _class_names(table, label)
    if not names:
        raise ValueError(f'{path} has no rows')
    labels = dict(zip(names, values, strict=True)) if values and -1 not in values else {}
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    return Source(names, functools.partial(_load, folder), labels, path=path,
                  classes=classes if labels else ())


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path] if path.lower().endswith('.parquet') else []
    if not os.path.isdir(path):
        return []
    names = sorted(name for name in os.listdir(path) if not name.startswith('.'))
    tables = [os.path.join(path, name) for name in names if name.lower().endswith('.parquet')]
    return tables if len(tables) == len(names) else []


def _load(folder: str, name: str) -> Image:
    file, group, row = name.rsplit(':', 2)
    value = _group(os.path.join(folder, file), int(group), os.getpid())[int(row)].as_py()
    data = value.get('bytes') if isinstance(value, dict) else value
    if not isinstance(data, bytes) or len(data) > IMAGE_BYTES:
        raise ValueError(f'{folder}: {name} holds no image of at most {IMAGE_BYTES:,} bytes')
    return decode(folder, name, data)[0]


@functools.lru_cache(maxsize=1)
def _group(file: str, group: int, process: int) -> Any:   # noqa: ANN401 (pyarrow has no types)
    table = _opened(file, process)
    column = _column(table, IMAGES)
    if column is None:
        raise ValueError(f'{file} has no column {", ".join(IMAGES)}, but '
                         f'{", ".join(table.schema_arrow.names)}')
    return _read(table, file, group, column)


def _read(table: Any, file: str, group: int, column: str) -> Any:   # noqa: ANN401
    """Return a column of a group, if it has no more than the file can hold, as the file says."""
    rows, size = table.metadata.row_group(group), os.path.getsize(file)
    for part in map(rows.column, range(rows.num_columns)):
        if part.path_in_schema.partition('.')[0] != column:
            continue
        most = min(MOST_BYTES, max(SMALL_UNFOLDED, MOST_RATIO * size))
        if part.total_uncompressed_size > most or part.num_values > max(MOST_ROWS, size):
            raise ValueError(f'{file}: group {group} claims {part.total_uncompressed_size:,} bytes '
                             f'and {part.num_values:,} values of {column}, more than such a file '
                             f'can have')
        if column in LABELS and part.physical_type == 'BYTE_ARRAY':
            raise ValueError(f'{file} has a column {column} of texts, not of numbers')
    try:
        return table.read_row_group(group, columns=[column])[column]
    except Exception as error:   # pyarrow raises a dozen kinds on damaged files
        raise ValueError(f'{file} is damaged: {_short(error)}') from error


def _short(error: Exception) -> str:
    return shown(' '.join(str(error).split()), 300)


@functools.lru_cache(maxsize=1)
def _opened(file: str, process: int) -> Any:   # noqa: ANN401
    try:
        parquet = importlib.import_module('pyarrow.parquet')
    except ImportError as error:
        raise ValueError(needs('pyarrow', 'parquet', f'--source={file}')) from error
    try:
        # Images stay as they are stored: a dictionary may have one that stands in a million rows.
        metadata = parquet.read_metadata(file)
        columns = [name for image in IMAGES for name in (image, f'{image}.bytes')]
        return parquet.ParquetFile(file, read_dictionary=[
            part.path for part in map(metadata.schema.column, range(metadata.num_columns))
            if part.path in columns and part.physical_type == 'BYTE_ARRAY'])
    except Exception as error:   # pyarrow raises a dozen kinds on damaged files
        raise ValueError(f'{file} is no parquet file, or a damaged one: {_short(error)}') from error


def _column(table: Any, names: tuple[str, ...]) -> str | None:   # noqa: ANN401
    return next((name for name in names if name in table.schema_arrow.names), None)


def _class_names(table: Any, label: str | None) -> tuple[str, ...]:   # noqa: ANN401
    """Return the names of the classes, which datasets keeps as JSON in the description."""
    try:
        features = json.loads((table.schema_arrow.metadata or {})[b'huggingface'])
        return tuple(map(str, features['info']['features'][label]['names']))
    except (KeyError, TypeError, ValueError):
        return ()
