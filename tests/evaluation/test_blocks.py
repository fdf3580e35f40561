"""evaluation/blocks.py: which numbers of several blocks of seeds are reported."""

import numpy as np
import pytest

from evaluation.blocks import Blocks, summary


def test_the_other_numbers_are_those_of_the_block_with_the_best_first_number():
    """The second block has the lowest FID, but neither the best precision nor the best recall."""
    blocks = [{'fid': 2.0, 'precision': 0.7, 'recall': 0.5},
              {'fid': 1.9, 'precision': 0.6, 'recall': 0.4},
              {'fid': 2.1, 'precision': 0.8, 'recall': 0.3}]
    found = summary(blocks)
    assert [found[name].best for name in ('fid', 'precision', 'recall')] == [1.9, 0.6, 0.4]
    assert found['precision'].mean == pytest.approx(0.7)
    assert found['fid'].deviation == np.std([2.0, 1.9, 2.1], ddof=1)


def test_of_some_numbers_the_highest_is_the_best():
    found = summary([{'is': 9.0, 'fid': 1.0}, {'is': 9.8, 'fid': 2.0}])
    assert (found['is'].best, found['fid'].best) == (9.8, 2.0)


def test_one_block_has_no_deviation():
    assert summary([{'fid': 2.0}]) == {'fid': Blocks(2.0, 2.0, 0.0)}
