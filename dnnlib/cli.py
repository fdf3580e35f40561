"""Commands whose options become objects. An option without an effect is an error."""

import dataclasses
import errno
import functools
import inspect
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import click

from dnnlib.console import shown, tolerant_streams
from dnnlib.files import expanded
from dnnlib.help import kept

F = TypeVar('F', bound=Callable[..., Any])
P = ParamSpec('P')
R = TypeVar('R')
T = TypeVar('T')


# metavars of options that name a file or a folder
PLACES = re.compile(r'\b(DIR|PATH|FILE|PATHS|ZIP|NPZ|PKL|PT|PNG|CSV|HTML)\b')
# The options of which a smaller value needs less memory.
SMALLER = ('--batch', '--batch-gpu', '--workers', '--max-images', '--grid')
# In the words of torch, of CUDA's libraries and of C++.
NO_MEMORY = ('out of memory', "can't allocate memory", 'not enough memory', 'bad_alloc',
             'ALLOC_FAILED', 'insufficient shared memory')
LONGEST_ERROR = 2000   # characters
MOST = 2**63 - 1   # the largest whole number that arrays can hold


class GroupedCommand(click.Command):
    """A command whose help lists its options under the headings given by `heading(...)`.

    An option whose metavar speaks of files or folders, such as PATH or NPZ|PKL, is a Place.
    `examples` is printed last, unchanged. Without it, the text of the docstring after a line
    `Examples:` is printed instead.
    """

    def __init__(self, *args: Any, examples: str = '',   # noqa: ANN401 (click's own)
                 **kwargs: Any) -> None:   # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.examples = examples
        for parameter in self.params:
            metavar = parameter.metavar or (parameter.name or '').upper()
            if parameter.type is click.STRING and PLACES.search(metavar):
                parameter.type = Place(several=',...' in metavar)

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (click's own)
        """Run as a program."""
        with tolerant_streams():
            return super().main(*args, **kwargs)

    def get_help(self, ctx: click.Context) -> str:
        """Return the text of `--help`, and keep it for the next time."""
        return kept(super().get_help(ctx))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, where `--afs=-0.4` is a value of an option that may have none."""
        free = {f'{name}=-' for option in self.params for name in option.opts
                if getattr(option, '_flag_needs_value', False)}
        # click takes what begins with a dash for the next option, even behind an equals sign
        return super().parse_args(ctx, [arg.replace('=-', '= -', 1) if arg.startswith(tuple(free))
                                        else arg for arg in args])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, description, the options under their headings, and the examples."""
        text, _, examples = inspect.cleandoc(self.callback.__doc__ or '').partition('Examples:\n')
        examples = self.examples or examples
        self.format_usage(ctx, formatter)
        for paragraph in text.strip().split('\n\n'):
            formatter.write_paragraph()
            formatter.write_text(' '.join(paragraph.split()))
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, 'heading', 'Other options'), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if examples:
            with formatter.section('Examples'):
                for line in inspect.cleandoc(examples).splitlines():
                    formatter.write(f'  {line}'.rstrip() + '\n')


class CommandGroup(click.Group):
    """A group of commands that can print anything anywhere, like a GroupedCommand."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (click's own)
        """Run as a program."""
        with tolerant_streams():
            return super().main(*args, **kwargs)

    def get_help(self, ctx: click.Context) -> str:
        """Return the text of `--help`, and keep it for the next time."""
        return kept(super().get_help(ctx))


class KeyOf(click.Choice):  # type: ignore[type-arg]
    """A key of `table` or one of `more`; keys that are added to the table later are valid too."""

    def __init__(self, table: Mapping[str, object], *more: str) -> None:
        self.table, self.more = table, more
        super().__init__([])

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.table, *self.more)

    @choices.setter
    def choices(self, value: object) -> None:
        """The table decides, and not click's constructor."""


def heading(title: str) -> Callable[..., Callable[[F], F]]:
    """Return a `click.option` whose options a GroupedCommand lists under `title`."""
    class HeadedOption(click.Option):
        heading = title

    return functools.partial(click.option, cls=HeadedOption)


def with_each(options: Sequence[Callable[[F], F]], command: F) -> F:
    """Give a click command these options, which `--help` lists in this order."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def flags_of(options: Sequence[Callable[..., Any]]) -> dict[str, str]:
    """Return the first spelling of each option, by the name of its parameter."""
    def command() -> None:
        """Carry the options."""
    declared: list[click.Option] = vars(with_each(options, command))['__click_params__']
    return {option.name or '': option.opts[0] for option in reversed(declared)}


class Whole(click.IntRange):
    """A whole number from `least` to `most`; `--help` tells of `least` alone."""

    def __init__(self, least: int = 0, most: int = MOST) -> None:
        super().__init__(min=least)
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None,   # noqa: ANN401 (click's own)
                ctx: click.Context | None) -> int:
        number = super().convert(value, param, ctx)
        if number > self.most:
            self.fail(f'{value} is not in the range x<={self.most}.', param, ctx)
        return number


class Real(click.FloatRange):
    """A finite number in a range, or ∞ where that is allowed; not-a-number never is."""

    def __init__(self, least: float | None = None, most: float | None = None,
                 above: float | None = None, infinite: bool = False) -> None:
        lowest = least if above is None else above
        super().__init__(min=lowest, max=most, min_open=above is not None)
        self.infinite = infinite

    def convert(self, value: Any, param: click.Parameter | None,   # noqa: ANN401 (click's own)
                ctx: click.Context | None) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if self.infinite and number == math.inf:
            return number
        if not math.isfinite(number):
            self.fail(_not_finite(number, self.infinite), param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        unbounded = self.min is None and self.max is None
        return '' if unbounded else super()._describe_range()


def _not_finite(number: float, infinite: bool = False) -> str:
    """Say why a number was refused: `infinite` where ∞ would not have been."""
    return f'{number} is not a finite number{" or inf" if infinite else ""}'


class Place(click.ParamType):   # type: ignore[type-arg]
    """The path of a file or folder, or an address; `~` is the home folder, as in a shell.

    With `several` there may be more, with commas between.
    """
    name = 'PATH'

    def __init__(self, several: bool = False) -> None:
        self.several = several

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        parts = value.split(',') if self.several else [value]
        try:
            return ','.join(map(expanded, parts))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class IntList(click.ParamType):   # type: ignore[type-arg]
    """A list of integers in the order given: `1,2,5-10` becomes [1, 2, 5, 6, 7, 8, 9, 10]."""
    name = 'LIST'
    LONGEST = 10_000_000   # more take gigabytes

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        items: list[int | str] = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
            if match is None:
                items.append(self.other(part, value, param, ctx))
                continue
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f'the range {part.strip()} is empty: write the smaller number first',
                          param, ctx)
            if last > MOST:
                self.fail(f'{last} is too large: the largest is {MOST}', param, ctx)
            if len(items) + last - first >= self.LONGEST:
                self.fail(f'more than {self.LONGEST:,} numbers: give fewer at once', param, ctx)
            items.extend(range(first, last + 1))
        return items

    def other(self, part: str, value: str, param: click.Parameter | None,
              ctx: click.Context | None) -> str:
        """Return what a part that is no number stands for; here, nothing."""
        self.fail(f'{value!r} is not a list of integers and ranges such as 1,2,5-10', param, ctx)


class ClassList(IntList):
    """A list of classes by number or name: `1,2,cat` becomes [1, 2, 'cat']."""

    def other(self, part: str, value: str, param: click.Parameter | None,
              ctx: click.Context | None) -> str:
        """Return the name of a class."""
        if not part.strip():
            self.fail(f'{value!r} is not a list of classes such as 3, 0-9 or cat,dog', param, ctx)
        return part.strip()


class ClassName(click.ParamType):   # type: ignore[type-arg]
    """A class by number or name: `3` becomes 3, and `cat` stays 'cat'."""
    name = 'CLASS'

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        return int(value) if isinstance(value, str) and re.fullmatch('[0-9]+', value) else value


class FloatList(click.ParamType):  # type: ignore[type-arg]
    """A list of finite numbers in the order given: `80,10,1` becomes [80.0, 10.0, 1.0].

    With `infinite`, ∞ may be among them.
    """
    name = 'LIST'

    def __init__(self, infinite: bool = False) -> None:
        self.infinite = infinite

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        try:
            numbers = [float(part) for part in value.split(',')]
        except ValueError:
            self.fail(f'{value!r} is not a list of numbers such as 80,10,1', param, ctx)
        for number in numbers:
            if not math.isfinite(number) and not (self.infinite and number == math.inf):
                self.fail(_not_finite(number, self.infinite), param, ctx)
        return numbers


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A duration such as `47h`, `90m`, `30s` or `2d`, which becomes seconds."""
    name = 'TIME'

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        match = re.fullmatch(r'(\d+(?:\.\d+)?)([smhd])', value) if isinstance(value, str) else None
        if match is None:
            self.fail(f'{value!r} is not a duration such as 30s, 90m, 47h or 2d', param, ctx)
        seconds = float(match[1]) * {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[match[2]]
        if not math.isfinite(seconds):
            self.fail(_not_finite(seconds), param, ctx)
        return seconds


class NumberOr(click.ParamType):  # type: ignore[type-arg]
    """A positive number, or one of the given words."""
    name = 'FLOAT'

    def __init__(self, *words: str, integer: bool = False) -> None:
        self.words, self.kind = words, int if integer else float

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        if value in self.words or not isinstance(value, str):
            return value
        try:
            number = self.kind(value)
        except ValueError:
            number = self.kind(0)
        if not 0 < number <= (MOST if self.kind is int else sys.float_info.max):
            number_kind = 'whole number' if self.kind is int else 'number'
            self.fail(f'{value!r} is neither a positive {number_kind} nor {", ".join(self.words)}',
                      param, ctx)
        return number


def with_options(obj: T, options: dict[str, Any]) -> T:
    """Return a copy of a dataclass with the fields that were given on the command line.

    An option that was not given is None.
    """
    given = {name: options[name] for name in field_names(obj) & options.keys()
             if options[name] is not None}
    return dataclasses.replace(obj, **given)  # type: ignore[type-var]


def field_names(obj: object) -> set[str]:
    """Return the names of the fields of a dataclass, or of an instance of one."""
    return {field.name for field in dataclasses.fields(obj)}  # type: ignore[arg-type]


def unused(options: Mapping[str, object], used: Collection[str]) -> list[str]:
    """Return the names of the options that were given (not None) and have no effect."""
    return [name for name, value in options.items() if value is not None and name not in used]


def reject_unused(options: Mapping[str, object], *objects: object) -> None:
    """Raise ValueError for a given option that is a field of none of the chosen dataclasses."""
    names = set().union(*(field_names(obj) for obj in objects))
    for name in unused(options, names):
        chosen = ', '.join(type(obj).__name__ for obj in objects)
        known = ', '.join(f'--{name}' for name in options if name in names)
        taken = f', which take {known}' if known else ''
        raise ValueError(f'--{name} would have no effect with {chosen}{taken}')


def check_apart(written: Mapping[str, str | None], read: Mapping[str, str | None]) -> None:
    """Raise ValueError where a file to write is also one to read, or another one to write.

    Both have the paths of files by the options that name them; None: not given.
    """
    named: dict[str, str] = {}
    for options, writes in ((read, False), (written, True)):
        for option, path in options.items():
            if path is None:
                continue
            place = os.path.realpath(path)
            if writes and place in named:
                raise ValueError(f'{option}={path} is also {named[place]}, and one would replace '
                                 f'the other: give another name')
            named.setdefault(place, option)


def check_writable(option: str, path: str, folder: bool = False) -> None:
    """Raise ValueError for a file, or a folder of files, that cannot be made there.

    Nothing is left behind. A device or a pipe may take the place of a file.
    """
    if folder and os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f'{option}={path} is a file; name a folder')
    if not folder and os.path.isdir(path):
        raise ValueError(f'{option}={path} is a folder; name a file')
    place = Path(os.path.realpath(path))
    if not folder and place.exists() and not place.is_file():
        return
    there = next(parent for parent in (place if folder else place.parent, *place.parents)
                 if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError:
        raise ValueError(f'{option}={path}: {there} is no folder that files can be written '
                         f'to') from None


def one_line_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command: errors that its user can correct become one line and an exit code.

    ValueError, FileNotFoundError and similar errors are errors of usage, with exit code 2. Running
    out of disk or of memory while working is a failure, with exit code 1. LIMPID_TRACEBACK=1 shows
    the stack trace instead.
    """
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError,
                PermissionError, FileExistsError) as error:
            if os.environ.get('LIMPID_TRACEBACK'):
                raise
            raise _fail(_line(error), code=2) from error
        except BrokenPipeError:
            raise   # of `| head`, which has read enough: click ends the command without a word
        except (OSError, MemoryError, FloatingPointError) as error:
            if os.environ.get('LIMPID_TRACEBACK'):
                raise
            if isinstance(error, MemoryError) or error.args[:1] == (errno.ENOMEM,):
                raise _fail(_of_memory(error), code=1) from error
            raise _fail(_line(error), code=1) from error
        except RuntimeError as error:
            told = any(words in str(error) for words in NO_MEMORY)
            if not told or os.environ.get('LIMPID_TRACEBACK'):
                raise
            raise _fail(_of_memory(error), code=1) from error

    return wrapper


def with_flags(message: str, names: Collection[str] = (),
               phrases: Mapping[str, str] = MappingProxyType({})) -> str:
    """Name parameters in `message` as options of the running command: ref=x becomes --ref=x.

    Messages of the libraries name the parameters of their functions; `names` are those to look
    for. If the command has an option of that name, the message names it instead: `ref=x.npz`
    becomes `--ref=x.npz`, and `allow_mismatch=True` becomes `--allow-mismatch`. Without a running
    command the names stay as they are. `phrases` maps phrases to replacements for every command.
    """
    for phrase, spoken in phrases.items():
        message = message.replace(phrase, spoken)
    context = click.get_current_context(silent=True)
    options = [] if context is None else context.command.params
    for name in names:
        flag = f'--{name.replace("_", "-")}'
        option = next((option for option in options if flag in option.opts), None)
        if isinstance(option, click.Option):
            value = '=True' if option.is_flag else '(?==)'
            message = re.sub(rf'(?<![\w./-]){name}{value}', flag, message)
    return message


@contextmanager
def naming_flags(names: Collection[str] = (),
                 phrases: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Let a ValueError name options, as `with_flags` does.

    This is a context, and a decorator for a whole command.
    """
    try:
        yield
    except ValueError as error:
        message = with_flags(str(error), names, phrases)
        if message == str(error):
            raise
        raise ValueError(message) from error


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    return ' '.join(str(error).split()) or type(error).__name__


def _of_memory(error: BaseException) -> str:
    """Return a line on a lack of memory, with the options of the command that have a say in it."""
    said = ' '.join(str(error).split())
    line = said if 'memory' in said.lower() else f'out of memory: {said}'.removesuffix(': ')
    context = click.get_current_context(silent=True)
    known = {option for parameter in (context.command.params if context else [])
             for option in parameter.opts}
    options = [option for option in SMALLER if option in known]
    return line + (f' (a smaller {" or ".join(options)} needs less)' if options else '')


def _fail(message: str, code: int) -> click.ClickException:
    failure = click.ClickException(shown(message, LONGEST_ERROR))
    failure.exit_code = code  # type: ignore[misc]
    return failure


def is_terminal() -> bool:
    """Return whether stderr is a terminal. Only then are progress bars drawn."""
    return sys.stderr.isatty()
