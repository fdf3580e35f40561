from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metrics import inception
from metrics.features import InceptionDetector
from metrics.inception import HEAD, STEM, Inception, convs, tf1_resize, weight_shapes
from metrics.weights import digest
from tests.inception_weights import random_images, random_weights

# Features by torch-fidelity 0.4.0, of the weights and images of tests/inception_weights.py, some of
# each.
GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'inception.npz')


@pytest.fixture(scope='module')
def weights():
    return random_weights(0)


@pytest.fixture(scope='module')
def detector(weights):
    return InceptionDetector(weights)


def error(found, right):
    return ((found.double() - right.double()).norm() / right.double().norm()).item()


@pytest.mark.parametrize('size', [28, 32, 64, 299, 512])
def test_features_are_those_of_another_implementation(detector, size):
    pool_3, spatial = detector.features(random_images(size)).values()
    assert list(pool_3.shape) == [1, 2048] and list(spatial.shape) == [1, 2023]
    logits = detector.logits(pool_3)
    assert list(logits.shape) == [1, 1008]
    for name, found, step in (('pool_3', pool_3, 64), ('spatial', spatial, 63),
                              ('logits', logits, 31)):
        assert error(found[0, ::step], torch.from_numpy(GOLDEN[f'{name}_{size}'])) < 1e-5


def test_golden_features_tell_images_apart():
    """They differ by far more than the tolerance above, or agreement would prove nothing."""
    sizes = (28, 32, 64, 299, 512)
    for name in ('pool_3', 'spatial', 'logits'):
        values = [torch.from_numpy(GOLDEN[f'{name}_{size}']) for size in sizes]
        assert min(error(a, b) for i, a in enumerate(values) for b in values[:i]) > 0.01


def test_folding_the_normalisation_changes_rounding_only(weights, detector):
    images = random_images(48)
    exact = Inception(weights, dtype=torch.float64, folded=False)(images)
    for network in (detector.network, Inception(weights, folded=False)):
        for found, right in zip(network(images), exact, strict=True):
            assert found.dtype == torch.float32 and error(found, right) < 3e-6
    for found, right in zip(Inception(weights, dtype=torch.float64)(images), exact, strict=True):
        assert found.dtype == torch.float64 and error(found, right) < 1e-13


def slow_features(x, weights):
    """The first blocks and a fork of each kind of pooling, written out; x [B, 3, 299, 299] in -1
    ... 1."""
    def conv(x, name, **kwargs):
        x = F.conv2d(x, weights[f'{name}.conv.weight'], **kwargs)
        mean, var, gamma, beta = (weights[f'{name}.bn.{part}'][:, None, None]
                                  for part in ('running_mean', 'running_var', 'weight', 'bias'))
        return ((x - mean) / (var + 0.001).sqrt() * gamma + beta).relu()

    x = conv(x, 'Conv2d_1a_3x3', stride=2)
    x = conv(conv(x, 'Conv2d_2a_3x3'), 'Conv2d_2b_3x3', padding=1)
    x = conv(conv(F.max_pool2d(x, 3, 2), 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3')
    x = F.max_pool2d(x, 3, 2)
    # less than 1 where the window leaves the image
    inside = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
    return torch.cat([
        conv(x, 'Mixed_5b.branch1x1'),
        conv(conv(x, 'Mixed_5b.branch5x5_1'), 'Mixed_5b.branch5x5_2', padding=2),
        conv(conv(conv(x, 'Mixed_5b.branch3x3dbl_1'), 'Mixed_5b.branch3x3dbl_2', padding=1),
             'Mixed_5b.branch3x3dbl_3', padding=1),
        conv(F.avg_pool2d(x, 3, 1, 1) / inside, 'Mixed_5b.branch_pool')], dim=1)


def test_first_blocks_written_out(weights, detector):
    x = torch.from_numpy(
        np.random.RandomState(0).uniform(-1, 1, [1, 3, 299, 299]).astype(np.float32)
    )
    upto = next(i for i, step in enumerate(STEM) if isinstance(step, tuple)) + 1
    found = detector.network._run(x, STEM[:upto])
    assert list(found.shape) == [1, 256, 35, 35]
    assert error(found, slow_features(x, weights)) < 1e-6


def test_the_network_has_the_published_size():
    assert len(convs(STEM + HEAD)) == 94
    shapes = weight_shapes()
    assert len(shapes) == 472
    assert sum(np.prod(shape) for shape in shapes.values()) * 4 == 95_541_568   # bytes
    assert shapes['Mixed_7b.branch3x3_2b.conv.weight'] == [384, 384, 3, 1]
    assert shapes['Mixed_6c.branch7x7dbl_4.conv.weight'] == [160, 160, 7, 1]


def test_detector_takes_grey_images_and_batches_of_any_size(monkeypatch, detector, weights):
    images = random_images(20, 3)
    together = detector.features(images)['pool_3']
    monkeypatch.setattr(inception, 'MAX_BATCH', 2)
    parts = detector.features(images)['pool_3']
    assert list(parts.shape) == [3, 2048] and error(parts, together) < 1e-6
    assert torch.equal(*(detector.features(x)['pool_3']
                         for x in (images[:1, :1], images[:1, :1].expand(-1, 3, -1, -1))))
    assert (detector.taps, detector.digest) == (('pool_3', 'spatial'), digest(weights))
    with pytest.raises(ValueError, match=r'^a detector takes uint8 images \[B, 1 or 3, H, W\], not '
                                         r'torch.float32'):
        detector.features(images.float())
    with pytest.raises(ValueError, match=r'not torch.uint8 \[3, 4, 20, 20\]'):
        detector.features(torch.zeros([3, 4, 20, 20], dtype=torch.uint8))


# The resize

def slow_resize(image, size):
    """float32 [H, W] -> [size, size], pixel by pixel, each operation rounded to float32."""
    f = np.float32
    height, width = image.shape
    result = np.empty([size, size], f)
    for i in range(size):
        y = f(i) * f(height / size)
        top, bottom = int(y), min(int(y) + 1, height - 1)
        for j in range(size):
            x = f(j) * f(width / size)
            left, right = int(x), min(int(x) + 1, width - 1)
            fx, fy = x - f(left), y - f(top)
            a = image[top, left] + (image[top, right] - image[top, left]) * fx
            b = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * fx
            result[i, j] = a + (b - a) * fy
    return result


@pytest.mark.parametrize('shape, size', [((2, 2), 4), ((28, 28), 61), ((33, 20), 50), ((1, 7), 9),
                                         ((50, 64), 37)])
def test_resize_is_its_definition_to_the_bit(shape, size):
    image = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    found = tf1_resize(torch.from_numpy(image)[None, None], size)
    assert found.dtype == torch.float32
    assert np.array_equal(found[0, 0].numpy(), slow_resize(image.astype(np.float32), size))


def test_resize_by_hand():
    """Top-left corners are aligned: the last rows and columns repeat, unlike where centres are
    aligned."""
    image = torch.tensor([[[[0, 100], [40, 200]]]], dtype=torch.uint8)
    right = torch.tensor([[0.0, 50, 100, 100], [20, 85, 150, 150], [40, 120, 200, 200],
                          [40, 120, 200, 200]])
    assert torch.equal(tf1_resize(image, 4)[0, 0], right)


def test_resize_of_the_network_s_own_size_and_of_one_pixel():
    images = random_images(299)
    assert torch.equal(tf1_resize(images), images.float())
    assert torch.equal(tf1_resize(images[:, :, :1, :1]),
                       images[:, :, :1, :1].float().expand(-1, -1, 299, 299))


def test_resize_does_not_smooth():
    """Half the size takes every other pixel."""
    images = random_images(598)
    assert torch.equal(tf1_resize(images), images[:, :, ::2, ::2].float())
