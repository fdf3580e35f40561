"""The labels that the images of a data set have, and how labels are drawn from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

DRAWS = ('even', 'data', 'balanced')


class Integers(Protocol):
    """A source of random integers, such as limpid.seeds.StackedGenerator."""

    def randint(self, high: int, shape: Sequence[int]) -> Tensor:
        """Draw integers in [0, high)."""


@dataclass(frozen=True)
class Labels:
    """The labels of a data set: classes or label vectors, and the number of images with each.

    counts   the number of images of each class, from class 0 on, or of each of `vectors`
    names    the names of the classes; () if they have none
    vectors  the label vectors that occur, all of one length; None for classes
    draw     how a label is drawn for a seed: 'even', all that occur are equally likely; 'data', as
             likely as in the data; 'balanced', in turn, by seed mod the number that occur
    """
    counts: tuple[int, ...]
    names: tuple[str, ...] = ()
    vectors: tuple[tuple[float, ...], ...] | None = None
    draw: str = 'even'

    @property
    def occurring(self) -> list[int]:
        """The numbers of the classes, or of the vectors, that at least one image has."""
        return [i for i, count in enumerate(self.counts) if count > 0]

    def draw_for(self, seeds: Sequence[int], label_dim: int, generator: Integers) -> Tensor:
        """Draw a label vector for each seed, float32 [B, label_dim]; classes are one-hot.

        One integer is drawn for each seed whatever `draw` says, so that what is drawn later is the
        same. Where every class occurs, 'even' is what EDM's program does, to the bit.
        """
        there = self.occurring
        if self.draw == 'data':
            ends = torch.tensor([self.counts[i] for i in there]).cumsum(dim=0)
            drawn = generator.randint(int(ends[-1]), [len(seeds)])
            place = torch.searchsorted(ends.to(drawn.device), drawn, right=True)
        else:
            place = generator.randint(len(there), [len(seeds)])
        if self.draw == 'balanced':
            place = torch.tensor([seed % len(there) for seed in seeds], device=place.device)
        index = torch.tensor(there, device=place.device)[place]
        if self.vectors is None:
            return torch.nn.functional.one_hot(index, label_dim).to(torch.float32)
        return torch.tensor(self.vectors, device=index.device)[index]

    def names_of(self, labels: Tensor) -> list[str]:
        """Return the name of the class of each one-hot label [B, label_dim]; '' where it has none.

        Label vectors have no names.
        """
        if not self.names or self.vectors is not None:
            return [''] * len(labels)
        return [self.names[index] for index in labels.argmax(dim=1).tolist()]

    def plain(self) -> dict[str, Any]:
        """Return what a file stores of them, as lists."""
        vectors = None if self.vectors is None else [list(vector) for vector in self.vectors]
        return {'counts': list(self.counts), 'names': list(self.names), 'vectors': vectors}


def describe_labels(label_dim: int, labels: Labels | None) -> str:
    """Return in words what labels a network takes, and which of them occur, as far as is known."""
    if not label_dim:
        return 'none'
    if labels is None or labels.vectors is None:
        there = label_dim if labels is None else len(labels.occurring)
        return str(label_dim) if there == label_dim else f'{label_dim}, of which {there} occur'
    return f'none, but label vectors of {label_dim} numbers'


def labels_from(stored: object, label_dim: int, where: str) -> Labels | None:
    """Return the labels that a file stored, or None for a file that does not say.

    Raises ValueError, which names the file `where`, unless they fit label vectors of `label_dim`.
    """
    if stored is None:
        return None
    try:
        counts, names, vectors = (stored[name]   # type: ignore[index]
                                  for name in ('counts', 'names', 'vectors'))
        labels = Labels(tuple(counts), tuple(names),
                        None if vectors is None else tuple(map(tuple, vectors)))
    except (TypeError, KeyError, IndexError):
        raise ValueError(f'{where}: the labels that it stores are malformed') from None
    kinds = (*((int, count) for count in labels.counts), *((str, name) for name in labels.names),
             *((float, value) for vector in labels.vectors or () for value in vector))
    lengths = {label_dim} if labels.vectors is None else {len(row) for row in labels.vectors}
    expected = label_dim if labels.vectors is None else len(labels.vectors)
    if (lengths != {label_dim} or len(labels.counts) != expected or not labels.occurring
            or len(labels.names) not in (0, label_dim)
            or any(type(value) is not kind for kind, value in kinds) or min(labels.counts) < 0):
        raise ValueError(f'{where}: the labels that it stores do not fit a network of '
                         f'label_dim={label_dim}')
    return labels
