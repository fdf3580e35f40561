"""training/augment.py: the published transformations, their labels, and slices of a batch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training import augment
from training.augment import Augmentation, AugmentConfig, AugmentPipe

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'augment.npz')
META = json.loads(str(GOLDEN['__meta__']))
COLUMNS = {'xflip': [0], 'yflip': [1], 'scale': [2], 'rotate_frac': [3, 4], 'aniso': [5, 6],
           'translate_frac': [7, 8], 'train_p012': list(range(9)), 'train_p05': list(range(9)),
           'train_p1': list(range(9))}
EVERYTHING = AugmentPipe.from_config(AugmentConfig(p=1))


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def with_matrix(G_inv, n, height, width):
    G_inv = G_inv.expand(n, 3, 3)
    return Augmentation(torch.zeros(n, 9), G_inv, augment._margin(G_inv, height, width))


@pytest.mark.parametrize('case', COLUMNS)
def test_numbers_computed_with_the_reference_implementation(case):
    meta = META['cases'][case]
    torch.manual_seed(META['seed'])
    images, labels = AugmentPipe(**meta['kwargs'])(
        torch.from_numpy(GOLDEN['images'][:meta['batch']]))
    expected = GOLDEN[f'out:{case}']
    assert np.abs(images.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    padded = np.zeros([meta['batch'], 9], np.float32)
    padded[:, COLUMNS[case]] = GOLDEN[f'labels:{case}']
    np.testing.assert_array_equal(labels.numpy(), padded)


@pytest.mark.parametrize('pipe', [AugmentPipe.from_config(AugmentConfig(p=0)), AugmentPipe(p=1)])
def test_nothing_to_do_changes_nothing(pipe):
    x, before = uniform(3, 3, 8, 8), torch.get_rng_state()
    images, labels = pipe(x)
    assert torch.equal(images, x)
    assert torch.equal(labels, torch.zeros(3, 9))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (32, 32), (8, 8), (24, 16), (5, 9)])
def test_resampling_without_transformation_is_the_identity(height, width):
    """Borders included: sym6 is orthonormal, so that up and down again is exact but for
    rounding."""
    x = uniform(4, 3, height, width)
    images, _ = with_matrix(torch.eye(3), 4, height, width).apply(x)
    assert (images - x).abs().max() < 1.4e-5
    images, _ = with_matrix(torch.eye(3), 4, height, width).apply(x.double())
    assert images.dtype == torch.float64 and (images - x).abs().max() < 5e-6


def test_translation_by_whole_pixels_mirrors_what_comes_in():
    """Right by 3 and up by 2: out[y, x] = in[y + 2, x - 3]."""
    x = uniform(2, 1, 16, 20)
    images, _ = with_matrix(augment._translate(-3, 2), 2, 16, 20).apply(x)
    rows = [y + 2 if y + 2 <= 15 else 30 - (y + 2) for y in range(16)]
    columns = [abs(c - 3) for c in range(20)]
    torch.testing.assert_close(images, x[:, :, rows][:, :, :, columns], rtol=0, atol=3e-5)


@pytest.mark.parametrize(('G', 'place'), [
    # (dx, dy) = (3, 0) goes to (0, 3): y points down
    (augment._rotate(torch.tensor(math.pi / 2)), (15.5, 18.5)),
    (augment._scale(2, 0.5), (21.5, 15.5)),
    (augment._translate(-4, 2.5), (14.5, 18)),
])
def test_a_spot_goes_where_the_matrix_says(G, place):
    """A smooth spot at (18.5, 15.5), 3 right of the centre (15.5, 15.5), goes to `place`."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='ij')
    spot = torch.exp(-((x - 18.5) ** 2 + (y - 15.5) ** 2) / 6)
    image, _ = with_matrix(G.inverse(), 1, 32, 32).apply(spot[None, None])
    weight = image / image.sum()
    # sym6 is not symmetric: turned against itself it delays by a tenth of a pixel
    assert float((weight * x).sum()) == pytest.approx(place[0], abs=0.15)
    assert float((weight * y).sum()) == pytest.approx(place[1], abs=0.15)


def test_labels_describe_the_matrices():
    """G_inv is the inverse of: scale, then rotate by -a3, stretch along a4, translate (Table 6).

    The labels of (a4, a5) and of (a4 + π, -a5) are the same: a5 is either root.
    """
    n, height, width = 64, 8, 32
    drawn = EVERYTHING.draw(n, [3, height, width], torch.Generator().manual_seed(3))

    def rotate(theta):
        return np.array([[math.cos(theta), -math.sin(theta), 0],
                         [math.sin(theta), math.cos(theta), 0], [0, 0, 1]])

    signs = set()
    for label, G_inv in zip(drawn.labels.double().numpy(), drawn.G_inv.double().numpy(),
                            strict=True):
        S = np.diag([2 ** (0.2 * label[2])] * 2 + [1])
        R = rotate(-math.atan2(label[4], label[3] + 1))
        T = np.eye(3)
        T[:2, 2] = width / 8 * label[7], height / 8 * label[8]
        errors = {}
        for sign in (-1, 1):
            a5, a4 = sign * math.hypot(*label[5:7]), math.atan2(sign * label[6], sign * label[5])
            A = rotate(-a4) @ np.diag([2 ** (0.2 * a5), 2 ** (-0.2 * a5), 1]) @ rotate(a4)
            errors[sign] = np.abs(G_inv @ T @ A @ R @ S - np.eye(3)).max()
        signs.add(min(errors, key=errors.get))
        assert min(errors.values()) < 1e-5
    assert signs == {-1, 1}


def test_distribution_of_the_labels():
    """Standard deviations at p = 1; with p = 0.12 that part of the images, but every x-flip."""
    labels = EVERYTHING.draw(40000, [3, 8, 8], torch.Generator().manual_seed(0)).labels
    expected = [0.5, 0.5, 1, 0.5**0.5, 0.5**0.5, 0.75**0.5, 0.5, 1, 1]
    np.testing.assert_allclose(labels.std(dim=0).numpy(), expected, atol=0.015)
    labels = (
        AugmentPipe.from_config(AugmentConfig())
        .draw(40000, [3, 8, 8], torch.Generator().manual_seed(0))
        .labels
    )
    used = (labels != 0).double().mean(dim=0).numpy()
    np.testing.assert_allclose(used[[0, 1, 2, 3, 4, 5, 7, 8]], [0.5, 0.06, *[0.12] * 6], atol=0.01)
    assert used[6] == pytest.approx(0.06, abs=0.01)   # sin a4 = 0 for half of the stretched ones


def test_slices_of_a_batch_are_what_they_are_in_the_batch():
    x = uniform(12, 3, 16, 16)
    drawn = EVERYTHING.draw(12, x.shape[1:], torch.Generator().manual_seed(5))
    images, labels = drawn.apply(x)
    for size in (1, 4, 5):
        parts = [drawn[i:i + size].apply(x[i:i + size]) for i in range(0, 12, size)]
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), images, rtol=0,
                                   atol=1e-6)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert drawn[3:5].margin == drawn.margin


def test_draws_depend_on_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (EVERYTHING.draw(4, [3, 8, 8], torch.Generator().manual_seed(seed))
               for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        torch.equal(a.labels, b.labels) and torch.equal(a.G_inv, b.G_inv) and a.margin == b.margin
    )
    assert not torch.equal(a.labels, c.labels)


def test_margins():
    """Left, top, right, bottom: 6 pixels beyond what the corners reach, at most the side less
    one."""
    identity, moved = torch.eye(3)[None], augment._translate(-3, 1.5)[None]
    assert augment._margin(identity, 32, 64) == (6, 6, 6, 6)
    assert augment._margin(identity, 4, 5) == (4, 3, 4, 3)
    assert augment._margin(moved, 32, 64) == (9, 5, 3, 8)
    assert augment._margin(torch.cat([moved, augment._translate(2, 0)[None]]), 32,
                           64) == (9, 6, 8, 8)
    assert augment._margin(augment._scale(9, 9)[None], 32, 64) == (63, 31, 63, 31)


def test_a_wider_margin_changes_nothing():
    x = uniform(2, 1, 16, 16)
    G_inv = augment._translate(1.3, -0.7).expand(2, 3, 3)
    narrow = Augmentation(torch.zeros(2, 9), G_inv, augment._margin(G_inv, 16, 16))
    wide = Augmentation(torch.zeros(2, 9), G_inv, (15, 14, 13, 12))
    torch.testing.assert_close(narrow.apply(x)[0], wide.apply(x)[0], rtol=0, atol=1.4e-5)


def test_channels_are_transformed_alike():
    x = uniform(3, 3, 16, 16)
    drawn = EVERYTHING.draw(3, x.shape[1:], torch.Generator().manual_seed(8))
    single = torch.cat([drawn.apply(x[:, c:c + 1])[0] for c in range(3)], dim=1)
    torch.testing.assert_close(drawn.apply(x)[0], single, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('kwargs', 'message'), [
    ({'p': 1.5}, 'augmentation with p=1.5: a probability is between 0 and 1'),
    ({'p': math.nan}, 'augmentation with p=nan: a probability is between 0 and 1'),
    ({'rotate_int': 1}, 'augmentation with rotate_int=1: there are only xflip, yflip, scale, '
                        'rotate_frac, aniso and translate_frac; use rotate_int=0'),
    ({'hue': 0.5}, 'augmentation with hue=0.5: there are only xflip, yflip, scale, rotate_frac, '
                   'aniso and translate_frac; use hue=0'),
])
def test_what_there_is_not_is_refused(kwargs, message):
    with pytest.raises(ValueError) as error:
        AugmentPipe(**kwargs)
    assert str(error.value) == message


@pytest.mark.parametrize(('images', 'message'), [
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 'images of torch.uint8 cannot be augmented: make '
                                                 'them floating point'),
    (torch.zeros(3, 3, 8, 8), '3 images, but 2 were drawn for'),
])
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError) as error:
        EVERYTHING.draw(2, [3, 8, 8]).apply(images)
    assert str(error.value) == message
