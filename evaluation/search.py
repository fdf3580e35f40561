"""The search for the numbers of Algorithm 2: S_churn, S_min, S_max and S_noise."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from evaluation.settings import NUMBERS, text
from limpid.samplers import Churn


@dataclass(frozen=True)
class Grids:
    """The values tried for each number of Algorithm 2, rising.

    The defaults are those of Table 5, with its ellipses read as 1, 2, 5, 10.
    """
    S_churn: tuple[float, ...] = tuple(10.0 * i for i in range(11))
    S_min: tuple[float, ...] = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    S_max: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 80.0)
    S_noise: tuple[float, ...] = tuple(round(1 + i / 1000, 3) for i in range(11))

    def __post_init__(self) -> None:
        for name in NUMBERS:
            values = getattr(self, name)
            if not values or any(b <= a for a, b in itertools.pairwise(values)) or values[0] < 0:
                raise ValueError(f'--grid-{name}={text(values)} should be numbers from 0 that rise')

    def all(self) -> list[Churn]:
        """Return every combination with S_min <= S_max."""
        product = itertools.product(*(getattr(self, name) for name in NUMBERS))
        return [churn for churn in itertools.starmap(Churn, product) if churn.S_min <= churn.S_max]


def search_settings(grids: Grids, evaluate: Callable[[Churn], float],
                    same: Callable[[Churn], Hashable], rounds: int = 2) -> list[Churn]:
    """Return the settings tried, the best first.

    They are tried in rounds through the four numbers, or, with rounds = 0, in all combinations.

    The paper searched its grid (Appendix E.2), which has 11,253 combinations, without saying in
    which order. A round takes one number after the other, as the paper lists them, tries all its
    values with the best of the others, and keeps the best. It begins where Table 4 does: noise at
    all levels, and S_noise at its lowest. The last round is the one that changes nothing. The
    deterministic sampler is tried like the others, but the search goes on from the best stochastic
    one: with S_churn = 0 the other numbers mean nothing.

    `evaluate` returns a number that should be low, or inf if there is none. Settings for which
    `same` returns equal values draw the same images, and are evaluated once. Of equally good
    settings the one tried first comes first.
    """
    tried: dict[Hashable, tuple[Churn, float]] = {}

    def value(churn: Churn) -> float:
        key = same(churn)
        if key not in tried:
            tried[key] = churn, evaluate(churn)
        return tried[key][1]

    if rounds == 0:
        for churn in grids.all():
            value(churn)
    S_churn = next((number for number in grids.S_churn if number > 0), 0.0)
    best = Churn(S_churn, grids.S_min[0], grids.S_max[-1], grids.S_noise[0])
    for _ in range(rounds):
        before = best
        for name in NUMBERS:
            line = [dataclasses.replace(best, **{name: number}) for number in getattr(grids, name)]
            line = [churn for churn in line if churn.S_min <= churn.S_max]
            for churn in line:
                value(churn)
            best = min([best, *(churn for churn in line if churn.S_churn > 0)], key=value)
        if best == before:
            break
    return [churn for churn, _ in sorted(tried.values(), key=lambda pair: pair[1])]


def numbers_of(churn: Churn) -> dict[str, float]:
    """Return the numbers as sampler options; without fresh noise S_churn = 0 is enough."""
    return dataclasses.asdict(churn) if churn.S_churn > 0 else {'S_churn': 0.0}


def effect_of(churn: Churn, sigmas: Sequence[float]) -> Hashable:
    """Return γ_i at the noise levels σ_0 ... σ_N, and S_noise if any γ_i is not 0.

    If these are equal, so are the images.
    """
    gammas = tuple(churn.gamma(sigma, len(sigmas) - 1) for sigma in sigmas[:-1])
    return gammas, churn.S_noise if any(gammas) else None
