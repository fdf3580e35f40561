"""Checks of the numbers and names in a dataclass; each raises ValueError in one line."""

import math
from collections.abc import Sequence


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Require that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, not {value!r}')


def positive(name: str, value: float) -> None:
    """Require a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f'{name} must be positive, not {value:g}')
