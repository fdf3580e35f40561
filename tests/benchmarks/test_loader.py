"""The benchmark of the loader: its ways read the same images, and a case counts what it says."""

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


def test_a_case(path):
    pace, memory = loader.measured(path, Case('mmap', 1, 1), 32, 64)
    assert pace > 0 and memory > 50   # MB: torch alone takes more
