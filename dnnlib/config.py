"""Frozen dataclasses to plain values and back, strictly.

    {'batch_size': 512, 'precond': {'type': 'precond/edm', 'sigma_data': 0.5}}

A class that stands where several could is stored with its tag. Tags are given as a dict from tag to
class: classes may be renamed, tags may not.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

Tags = Mapping[str, type]


def encode(value: object, tags: Tags) -> Any:   # noqa: ANN401 (plain values, nested)
    """Return plain dicts, lists, strings and numbers, fit for JSON, for a dataclass or a value.

    Infinity becomes the string 'inf'. Fields that do not take part in comparisons (compare=False)
    are not configuration and are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {cls: tag for tag, cls in tags.items()}.get(type(value))
        stored = {f.name: encode(getattr(value, f.name), tags) for f in dataclasses.fields(value)
                  if f.compare}
        return stored if tag is None else {'type': tag, **stored}
    if isinstance(value, Mapping):
        return {key: encode(item, tags) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, tags) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return 'inf' if value > 0 else '-inf'
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f'{type(value).__name__} has no place in a configuration')


def decode(data: object, hint: object, tags: Tags,
           where: str = 'config') -> Any:   # noqa: ANN401 (a value of type `hint`)
    """Return the value of type `hint` that `encode` turned into `data`.

    Raises ValueError for an unknown field or tag (with the nearest known one), a missing field that
    has no default, and a value of the wrong kind; its message begins with the place, `where`.
    """
    if isinstance(data, dict) and isinstance(data.get('type'), str) and not _is_mapping(hint):
        cls = _lookup(data['type'], tags, where)
        return _decode_fields({k: v for k, v in data.items() if k != 'type'}, cls, tags, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _decode_fields(data, hint, tags, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) > 1:   # a list can only be meant for the one that is a list
            options = [option for option in options
                       if isinstance(data, list) == (typing.get_origin(option) in (tuple, list))]
        if len(options) == 1:
            return decode(data, options[0], tags, where)
        raise ValueError(f'{where}: a type is missing, one of {", ".join(tags)}')
    if origin in (tuple, list):
        if not isinstance(data, list):
            raise ValueError(f'{where} is {data!r}, not a list')
        return origin(decode(item, arguments[0], tags, f'{where}[{i}]')
                      for i, item in enumerate(data))
    if getattr(hint, '_is_protocol', False):   # any class that has the methods: only a tag can tell
        raise ValueError(f'{where}: a type is missing, one of {", ".join(tags)}')
    return _decode_plain(data, hint, where)


def _is_mapping(hint: object) -> bool:
    return hint is dict or typing.get_origin(hint) is dict


def _decode_plain(data: object, hint: object, where: str) -> object:
    if hint is float and isinstance(data, int | float | str) and not isinstance(data, bool):
        try:
            return float(data)
        except ValueError:
            raise ValueError(f'{where} is {data!r}, not a number') from None
    for wanted in (bool, int, str, dict):
        if hint is wanted or (wanted is dict and _is_mapping(hint)):
            is_number = wanted is int and isinstance(data, bool)   # which Python counts as an int
            if not isinstance(data, wanted) or is_number:
                raise ValueError(f'{where} is {data!r}, not of type {wanted.__name__}')
    return data


def _decode_fields(data: object, cls: type, tags: Tags, where: str) -> object:
    if not isinstance(data, dict):
        raise ValueError(f'{where} is {data!r}, not the fields of {cls.__name__}')
    fields = {f.name: f for f in dataclasses.fields(cls) if f.compare}
    hints = typing.get_type_hints(cls)
    for name in data:
        if name not in fields:
            raise ValueError(f'{where}.{name} is unknown{did_you_mean(name, fields)}')
    for name, f in fields.items():
        default, factory = f.default is not dataclasses.MISSING, f.default_factory
        if name not in data and not default and factory is dataclasses.MISSING:
            raise ValueError(f'{where}.{name} is missing')
    return cls(**{name: decode(value, hints[name], tags, f'{where}.{name}')
                  for name, value in data.items()})


def _lookup(tag: str, tags: Tags, where: str) -> type:
    if tag not in tags:
        raise ValueError(f'{where}: the type {tag!r} is unknown{did_you_mean(tag, tags)}')
    return tags[tag]


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """Return ' (did you mean …?)' with the nearest known name, or a list of the known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean {near[0]!r}?)' if near else f' (known: {", ".join(sorted(known))})'
