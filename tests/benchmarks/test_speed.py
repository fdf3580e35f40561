"""The benchmark of speed counts the right work, and writes what it measured."""

import json

import pytest
import torch

from benchmarks.speed import CIFAR10, DEMO, TASKS, line_of, measure, write
from training.work import operations


def test_the_work_of_the_networks():
    """42.4 GFLOP, as in the test of the network; that of the demo is some 280 times smaller."""
    assert operations(CIFAR10) / 1e9 == pytest.approx(42.4, abs=0.05)
    assert operations(DEMO) < operations(CIFAR10) / 250


def test_a_task_is_measured_and_written(tmp_path):
    task = next(task for task in TASKS if 'demo' in task.name and task.kind == 'training')
    result = measure(task, 'plain', 'fp32', torch.device('cpu'), 1)
    assert result.images_per_second == pytest.approx(task.small_batch / result.seconds)
    assert result.utilisation == pytest.approx(
        3 * result.images_per_second * operations(DEMO) / result.rate)
    write({'machine': {'device': 'this'}, 'results': [vars(result)]}, tmp_path)
    stored = json.loads((tmp_path / 'speed.json').read_text())
    assert stored['results'] == [vars(result)]
    assert (tmp_path / 'speed.md').read_text().count('\n') == 5
    assert 'plain' in line_of(result)
