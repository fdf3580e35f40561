"""Several blocks of seeds, one after the other, and which of their numbers are reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metrics.definitions import higher_is_better


@dataclass(frozen=True)
class Blocks:
    """A number over several blocks of seeds."""
    best: float        # the number of the block that is reported
    mean: float
    deviation: float   # standard deviation, unbiased; 0 for a single block


def summary(scores: Sequence[Mapping[str, float]]) -> dict[str, Blocks]:
    """Summarise the numbers of blocks of seeds, {name: number} for each, as papers report them.

    Papers give the lowest FID of three blocks, and beside it the other numbers of that same block.
    So the block that is best by the first number is reported with all of its numbers, although
    another number may be better in another block. Of equally good blocks the first counts.
    """
    first = next(iter(scores[0]))
    choose = max if higher_is_better(first) else min
    reported = choose(scores, key=lambda block: block[first])
    found = {}
    for name in reported:
        values = np.array([block[name] for block in scores])
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        found[name] = Blocks(float(reported[name]), float(values.mean()), deviation)
    return found
