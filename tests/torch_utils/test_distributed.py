"""torch_utils/distributed.py: what fails on one rank fails on all of them."""

import re

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


SLURM = {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3', 'SLURM_LOCALID': '1',
         'SLURM_JOB_ID': '123456', 'SLURM_STEP_ID': '2'}
TORCHRUN = {'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1', 'MASTER_ADDR': '10.0.0.1',
            'MASTER_PORT': '29500'}


@pytest.mark.parametrize(('environment', 'found'), [
    ({}, {}),
    ({'WORLD_SIZE': ''}, {}),
    ({'WORLD_SIZE': '1', **SLURM}, {}),
    (TORCHRUN, {}),
    ({**TORCHRUN, **SLURM, 'OMPI_COMM_WORLD_SIZE': '2'}, {}),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, {}),
    (SLURM, {'WORLD_SIZE': '4', 'RANK': '3', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'localhost',
             'MASTER_PORT': str(20000 + (123456 + 2018) % 20000)}),
    ({**SLURM, 'SLURM_STEP_NUM_NODES': '2', 'SLURM_STEP_NODELIST': 'gpu-[07-08,11],x',
      'MASTER_PORT': '99'},
     {'WORLD_SIZE': '4', 'RANK': '3', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'gpu-07'}),
    ({**SLURM, 'SLURM_STEP_NUM_NODES': '2', 'SLURM_STEP_NODELIST': 'a1,b2', 'MASTER_PORT': '99'},
     {'WORLD_SIZE': '4', 'RANK': '3', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'a1'}),
])
def test_what_a_launcher_left_unset(environment, found):
    assert distributed.launch(environment) == found


@pytest.mark.parametrize(('environment', 'message'), [
    ({'WORLD_SIZE': '2', 'RANK': '0'},
     'WORLD_SIZE=2 says that this is one of 2 processes, but MASTER_PORT is not set: start the '
     'command with torchrun, or set RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT too'),
    ({'WORLD_SIZE': '2', 'MASTER_PORT': '9'},
     'WORLD_SIZE=2 says that this is one of 2 processes, but RANK is not set: start the command '
     'with torchrun, or set RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT too'),
    ({**TORCHRUN, 'RANK': '2'}, 'RANK=2 is not below WORLD_SIZE=2'),
    ({'WORLD_SIZE': 'two'}, "the environment variable WORLD_SIZE is 'two', not a whole number"),
    ({'OMPI_COMM_WORLD_SIZE': '2'},
     'OMPI_COMM_WORLD_SIZE=2: mpirun has started 2 processes, which would all do the same work; '
     'start one command with torchrun instead'),
])
def test_processes_that_cannot_find_each_other_are_told_at_once(environment, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        distributed.launch(environment)
