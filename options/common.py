"""What the options of several commands have in common."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from limpid.guidance import GUIDED_BELOW

# What the library calls by the names of its arguments, and the options that set them.
SPOKEN = {
    GUIDED_BELOW: 'With --guidance-interval=0,HI the guide is asked up to HI only',
    'the range of the network and of the steps': 'the range of the network and of --sigma_min and '
                                                 '--sigma_max',
    'give null_class': 'give --null-class',
    'in the file of embeddings': 'in the file of --embeddings',
}


def unused(options: Mapping[str, Any], used: set[str]) -> list[str]:
    """Return the names of the options that were given (not None) and have no effect, sorted."""
    return sorted(name for name, value in options.items() if value is not None and name not in used)


def with_flags(message: str) -> str:
    """Put the options in place of what the library calls them."""
    for phrase, spoken in SPOKEN.items():
        message = message.replace(phrase, spoken)
    return message


@contextmanager
def naming_flags() -> Iterator[None]:
    """Let a ValueError of the library name options."""
    try:
        yield
    except ValueError as error:
        raise ValueError(with_flags(str(error))) from error
