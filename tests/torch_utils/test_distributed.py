"""torch_utils/distributed.py: what fails on one rank fails on all of them."""

import pytest

from tests.metrics.test_one_pass import Ranks
from torch_utils import distributed


def test_an_error_of_one_rank_is_raised_on_all(monkeypatch):
    def work():
        with distributed.errors_on_all(ValueError, OSError):
            if distributed.get_rank() == 1:
                raise OSError('the disk is full')
        return 'not reached'

    results = Ranks(monkeypatch, 3).run(work)
    assert [(type(r), str(r)) for r in results] == [(ValueError, 'the disk is full')] * 3


def test_an_error_of_another_kind_passes():
    with pytest.raises(KeyError), distributed.errors_on_all():
        raise KeyError('x')


def test_the_result_of_rank_0_is_on_all_ranks(monkeypatch):
    called = []

    def function():
        called.append(distributed.get_rank())
        return 'found'

    assert Ranks(monkeypatch, 3).run(lambda: distributed.on_rank_0(function)) == ['found'] * 3
    assert called == [0]


def test_an_error_of_rank_0_is_raised_on_all_and_keeps_its_type_alone(monkeypatch):
    def function():
        raise FileNotFoundError('no such file')

    with pytest.raises(FileNotFoundError):
        distributed.on_rank_0(function)
    results = Ranks(monkeypatch, 2).run(lambda: distributed.on_rank_0(function))
    assert [(type(r), str(r)) for r in results] == [(ValueError, 'no such file')] * 2
