"""torch_utils/random.py: noise as a function of keys, and the random subset that EDM's program and
published comparisons take."""

import numpy as np
import pytest
import torch

from torch_utils import random
from torch_utils.random import (
    PIECE,
    generator_at,
    normal_at,
    normal_in_pieces,
    random_subset,
    seed_of,
)

CPU = torch.device('cpu')


def test_a_subset_is_both_published_choices():
    """EDM shuffles the positions, and others permute them: with one seed these are the same."""
    for seed in (0, 7, 2**31 - 1):
        shuffled = np.arange(100)
        np.random.RandomState(seed).shuffle(shuffled)
        permuted = np.random.RandomState(seed).permutation(100)
        found = random_subset(100, 10, seed)
        assert found.tolist() == sorted(shuffled[:10].tolist()) == sorted(permuted[:10].tolist())


def test_the_choice_is_pinned_and_all_are_taken_where_there_are_no_more():
    assert random_subset(10, 3, 0).tolist() == [2, 4, 8]
    assert random_subset(3, 5).tolist() == [0, 1, 2]


def test_seeds_are_pinned():
    """numpy promises that these stay; the noise of every run depends on them."""
    assert seed_of(0, 160, 2) == 14607991463671739913
    assert seed_of(-1) == seed_of(2**64 - 1) != seed_of(1)


def test_on_the_cpu_noise_is_one_draw():
    expected = torch.randn([3, PIECE], generator=generator_at(0, 160, 2))
    assert torch.equal(normal_at([3, PIECE], 0, 160, 2, device=CPU), expected)


def test_pieces_come_from_generators_of_their_own():
    """No more than 32,768 numbers from one: a T4 runs 40,960 threads at a time."""
    assert PIECE == 32768
    noise = normal_in_pieces([2, 3, 16384], 0, 160, 2, device=CPU).flatten()
    seeds = np.random.SeedSequence([0, 160, 2]).generate_state(3, np.uint64).tolist()
    for number, seed in enumerate(seeds):
        piece = noise[number * PIECE:(number + 1) * PIECE]
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(piece, torch.randn([PIECE], generator=generator))
    assert seeds[0] == seed_of(0, 160, 2) and len(set(seeds)) == 3
    few = normal_in_pieces([5, 7], 0, 160, 2, device=CPU)
    assert torch.equal(few, torch.randn([5, 7], generator=generator_at(0, 160, 2)))


@pytest.mark.parametrize('draw', [normal_at, normal_in_pieces])
def test_some_rows_have_the_bits_that_they_have_among_all(draw):
    """Rows of 12,288 numbers end within pieces; the last piece of 40 rows is a short one."""
    shape = [40, 3, 64, 64]
    whole = draw(shape, 5, 6, device=CPU)
    for first, stop in [(0, 40), (0, 8), (3, 5), (8, 16), (39, 40), (7, 7)]:
        rows = draw(shape, 5, 6, device=CPU, rows=slice(first, stop))
        assert torch.equal(rows, whole[first:stop])


def test_no_more_is_drawn_than_the_pieces_that_rows_lie_in(monkeypatch):
    drawn = []
    monkeypatch.setattr(torch.Tensor, 'normal_', lambda piece, generator: drawn.append(len(piece)))
    normal_in_pieces([64, 3, 64, 64], 1, device=CPU, rows=slice(8, 16))   # 98,304 to 196,608
    assert drawn == [PIECE] * 3


def test_noise_comes_in_pieces_on_a_gpu(monkeypatch):
    monkeypatch.setattr(random, 'normal_in_pieces',
                        lambda shape, *keys, device, rows: (shape, keys, device.type, rows))
    rows = slice(2, 4)
    assert normal_at([8, 3], 1, 2, device=torch.device('cuda'), rows=rows) == (
        [8, 3], (1, 2), 'cuda', rows)
