"""Sampler settings of a sweep: options with several values, and settings as a user writes them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from dnnlib.cli import FloatList
from limpid.samplers import Churn
from options.guidance import guidance_options
from options.sampler import sampler_options


class Several(click.ParamType):  # type: ignore[type-arg]
    """Values of one type, separated by commas, as a list; a type that is a list has one value."""

    def __init__(self, kind: click.ParamType) -> None:  # type: ignore[type-arg]
        self.kind, self.name = kind, kind.name

    def get_metavar(self, *args: Any, **kwargs: Any) -> str | None:  # noqa: ANN401 (click's own)
        return self.kind.get_metavar(*args, **kwargs)

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        parts = [value] if isinstance(self.kind, FloatList) else value.split(',')
        return [self.kind.convert(part.strip(), param, ctx) for part in parts]


def _with_options(command: Callable[..., Any]) -> list[click.Option]:
    """Give a command the options of sampler and guidance; return these, the last one first."""
    before = len(getattr(command, '__click_params__', []))
    changed = sampler_options(guidance_options(command))
    found: list[click.Option] = vars(changed)['__click_params__'][before:]
    return found


def swept_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of sampler and guidance, each with several values.

    --sigmas, which is a list itself, takes one value.
    """
    for option in _with_options(command):
        option.type = Several(option.type)
    return command


def searched_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of sampler and guidance except those that are searched for."""
    parameters: list[Any] = getattr(command, '__click_params__', [])
    for option in _with_options(command):
        if option.name in NUMBERS:
            parameters.remove(option)
    return command


# S_churn, S_min, S_max, S_noise
NUMBERS = tuple(field.name for field in dataclasses.fields(Churn))
FLAGS = {option.name or '': option.opts[0].removeprefix('--')              # num_steps: steps
         for option in reversed(_with_options(lambda: None))}


def text(value: object) -> str:
    """Write a value as on the command line; numbers with as many digits as they need."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f'{value:g}' if float(f'{value:g}') == value else repr(value)
    if isinstance(value, (list, tuple)):
        return ','.join(map(text, value))
    return str(value)


def spelled(options: Mapping[str, object]) -> str:
    """Write options of sampler and guidance as on the command line."""
    return ' '.join(f'--{FLAGS[name]}={text(options[name])}' for name in FLAGS
                    if options.get(name) is not None)


def combinations(options: Mapping[str, Sequence[Any] | None]) -> list[dict[str, Any]]:
    """Return the Cartesian product of the values given, in the order of the options.

    The last option changes fastest; one that is None is left out.
    """
    given = {name: values for name, values in options.items() if values is not None}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]
