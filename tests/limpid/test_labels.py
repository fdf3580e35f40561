"""Labels: which ones are drawn for a seed, and how a file tells them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from limpid.denoiser import Traits
from limpid.labels import Labels, describe_labels, labels_from
from limpid.seeds import StackedGenerator, latents_and_labels

GAPS = Labels(counts=(0, 1, 3, 0, 2), names=('', 'cat', 'dog', '', 'eel'))
VECTORS = Labels(counts=(2, 1), vectors=((0.5, -1.0), (2.0, 0.0)))
SEEDS = range(2**40, 2**40 + 6)   # 2^40 = 1 mod 3


class InTurn:
    """Draws 0, 1, ..., high - 1, 0, ..."""

    def randint(self, high: int, shape: Sequence[int]) -> Tensor:
        return torch.arange(shape[0]) % high


@pytest.mark.parametrize('draw, expected', [
    ('even', [1, 2, 4, 1, 2, 4]), ('data', [1, 2, 2, 2, 4, 4]), ('balanced', [2, 4, 1, 2, 4, 1])])
def test_only_classes_that_occur_are_drawn(draw: str, expected: list[int]) -> None:
    labels = Labels(GAPS.counts, draw=draw).draw_for(SEEDS, 5, InTurn())
    assert labels.dtype == torch.float32
    assert torch.equal(labels, torch.eye(5)[expected])


@pytest.mark.parametrize('draw, expected', [
    ('even', [0, 1, 0, 1, 0, 1]), ('data', [0, 0, 1, 0, 0, 1]), ('balanced', [0, 1, 0, 1, 0, 1])])
def test_only_vectors_that_occur_are_drawn(draw: str, expected: list[int]) -> None:
    labels = Labels(VECTORS.counts, vectors=VECTORS.vectors, draw=draw)
    drawn = labels.draw_for(SEEDS, 2, InTurn())
    assert torch.equal(drawn, torch.tensor([[0.5, -1], [2, 0]])[expected])


class Net:
    """A network that only says what it takes."""

    def __init__(self, known: Labels | None) -> None:
        self.traits = Traits(image_shape=(1, 2, 2), label_dim=5, known_labels=known)


def test_where_every_class_occurs_labels_and_noise_are_those_of_the_published_program() -> None:
    """The latent and then the class come from the generator of the seed."""
    seeds = list(range(20))
    plain = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn([1, 2, 2], generator=generator) for generator in plain])
    classes = [int(torch.randint(5, [], generator=generator)) for generator in plain]
    after = torch.stack([torch.randn([3], generator=generator) for generator in plain])
    for known in (None, Labels((7, 1, 1, 1, 9)), GAPS, Labels(GAPS.counts, draw='data'),
                  Labels(GAPS.counts, draw='balanced')):
        generator = StackedGenerator(seeds, 'cpu')
        latents, labels = latents_and_labels(Net(known), seeds, None, generator)
        assert labels is not None
        assert torch.equal(latents, noise)
        if known is None or len(known.occurring) == 5:
            assert torch.equal(labels, torch.eye(5)[classes])
        assert torch.equal(generator.randn([20, 3]), after)


@pytest.mark.parametrize('labels, label_dim', [(GAPS, 5), (VECTORS, 2)])
def test_what_a_file_stores_is_what_comes_back(labels: Labels, label_dim: int) -> None:
    assert labels_from(labels.plain(), label_dim, 'net.pkl') == labels
    assert labels_from(None, label_dim, 'net.pkl') is None


@pytest.mark.parametrize('change', [
    {'counts': [1, 2]}, {'counts': [0] * 5}, {'counts': [1, 1, 1, 1, -1]}, {'names': ['a']},
    {'counts': [1, 1, 1, 1, 0.5]}, {'names': [0] * 5}, {'vectors': [[1.0, 2.0]]}])
def test_labels_of_a_file_that_do_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        labels_from({**GAPS.plain(), **change}, 5, 'net.pkl')
    assert str(caught.value) == (
        'net.pkl: the labels that it stores do not fit a network of label_dim=5')


@pytest.mark.parametrize('stored', [{}, [], 7, {**GAPS.plain(), 'counts': 3}])
def test_malformed_labels(stored: object) -> None:
    with pytest.raises(ValueError) as caught:
        labels_from(stored, 5, 'net.pkl')
    assert str(caught.value) == 'net.pkl: the labels that it stores are malformed'


def test_in_words() -> None:
    assert describe_labels(0, None) == 'none'
    assert describe_labels(5, None) == '5'
    assert describe_labels(5, GAPS) == '5, of which 3 occur'
    assert describe_labels(2, VECTORS) == 'none, but label vectors of 2 numbers'
