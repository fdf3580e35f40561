"""torch_utils/random.py: the random subset that EDM's program and published comparisons take."""

import numpy as np

from torch_utils.random import random_subset


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
