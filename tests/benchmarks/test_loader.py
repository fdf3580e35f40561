"""The benchmark of the loader: its ways read the same images, and a case counts what it says."""

import os
import queue
import threading

import numpy as np
import pytest

from benchmarks import loader
from benchmarks.loader import Case
from data.dataset import ImageFolderDataset


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path / 'cache'))
    loader.make_set(tmp_path / 'set.zip', 64, 8)
    return str(tmp_path / 'set.zip')


def test_all_ways_read_each_image_once(path):
    with ImageFolderDataset(path) as dataset:
        expected = sorted(image.tobytes() for image in dataset.batch(np.arange(64))[0])
    streams = [loader.plain(path, 32, 0)] + [loader.ours(path, Case(way, 0, 1), 32, 0)
                                             for way in ('ram', 'mmap', 'off')]
    for stream in streams:
        images = [image.numpy().tobytes() for batch in (next(stream), next(stream))
                  for image in batch]
        assert sorted(images) == expected


@pytest.mark.parametrize('way', ['pil', 'mmap'])
def test_a_rank_counts_after_a_first_pass(path, way, monkeypatch):
    """In a thread instead of a process."""
    read, barrier, found = [], threading.Barrier(2), queue.Queue()
    for name in ('plain', 'ours'):
        monkeypatch.setattr(loader, name, lambda *_, make=getattr(loader, name): (
            read.append(len(batch)) or batch for batch in make(*_)))
    thread = threading.Thread(target=loader.run_rank, args=(
        path, Case(way, 0, 1), 32, 64, 0, barrier, found))
    thread.start()
    barrier.wait(60)
    barrier.wait(60)
    assert read == [32] * 4 and found.get(timeout=60) > 0
    assert loader._memory(os.getpid()) > 50   # MB: torch alone takes more
    barrier.wait(60)
    thread.join()
