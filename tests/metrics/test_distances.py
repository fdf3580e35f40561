"""metrics/: the demo detector, moments over any number of ranks, files of them, Fréchet
distances."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch

from metrics.detectors import DETECTORS, load_detector
from metrics.distances import frechet_distance, frechet_distances, negative_eigenvalue
from metrics.features import TAPS, DemoDetector
from metrics.statistics import CHUNK, Moments, chunks
from torch_utils.digest import digest_of_tensors

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'fid.npz')
CASES = json.loads(str(GOLDEN['__meta__']))['cases']


def images(n, *shape, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    )


def spd(d, seed):
    x = np.random.default_rng(seed).standard_normal([d, 2 * d])
    return x @ x.T / d


# The detector

def test_demo_detector_is_three_convolutions():
    """Against loops over channels; the weights are one stream of RandomState(20220601)."""
    stream = np.random.RandomState(20220601)
    x = images(1, 3, 9, 8)
    layer, expected = (x[0].double().numpy() - 128) / 128, []
    for channels, stride in ((32, 1), (64, 2), (128, 2)):
        fan_in = len(layer) * 9
        weight = stream.standard_normal([channels, len(layer), 3, 3]) * np.sqrt(2 / fan_in)
        layer = np.stack([sum(scipy.signal.correlate2d(a, w, mode='same')
                              for a, w in zip(layer, kernel, strict=True))
                          for kernel in weight])[:, ::stride, ::stride].clip(min=0)
        expected.append(layer.mean(axis=(1, 2)))
    features = DemoDetector().features(x)['demo']
    assert features.dtype == torch.float32 and features.shape == (1, 224)
    np.testing.assert_allclose(features[0].numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-6)


def test_identity_of_the_demo_detector():
    detector = load_detector('demo', torch.device('cpu'))
    assert detector.taps == ('demo',) and (TAPS['demo'].detector_id,
                                           TAPS['demo'].dim) == ('demo-v1', 224)
    assert detector.digest == 'f919533afffe36a7d3462e879099339d80410b9226d8206029b7e41c499ea0c7'
    assert 'NOT FID' in TAPS['demo'].number


def test_digest_depends_on_names_shapes_and_values():
    a = {'x': torch.arange(6, dtype=torch.float32), 'y': torch.ones([2, 1])}
    same = {'y': a['y'].half(), 'x': a['x'].double()}
    others = [{'x': a['x'], 'z': a['y']}, {'x': a['x'].reshape(2, 3), 'y': a['y']},
              {'x': a['x'] + 1, 'y': a['y']}]
    assert digest_of_tensors(same) == digest_of_tensors(a)
    assert len({digest_of_tensors(w) for w in [a, *others]}) == 4


def test_grey_counts_as_three_equal_channels_and_images_do_not_mix():
    grey = images(60, 1, 16, 16)

    def detector(x):
        return DemoDetector().features(x)['demo']

    rgb = grey.repeat(1, 3, 1, 1)
    assert torch.equal(detector(grey), detector(rgb))
    assert torch.equal(detector(rgb), detector(rgb.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(detector(grey)[2:3], detector(grey[2:3]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('x', 'found'), [
    (torch.zeros(2, 3, 8, 8), 'torch.float32 [2, 3, 8, 8]'),
    (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), 'torch.uint8 [2, 4, 8, 8]'),
    (torch.zeros(3, 8, 8, dtype=torch.uint8), 'torch.uint8 [3, 8, 8]'),
])
def test_detectors_take_uint8_images_only(x, found):
    with pytest.raises(ValueError) as error:
        DemoDetector().features(x)
    assert str(error.value) == (f'a detector takes uint8 images [B, 1 or 3, H, W], not {found}: '
                                f'for arrays there is detector=arrays')


def test_a_detector_that_there_is_not_is_never_replaced():
    with pytest.raises(ValueError) as error:
        load_detector('inseption', torch.device('cpu'))
    assert (
        str(error.value)
        == 'detector=inseption is none of inception, efficientnet-lite0, dinov2, demo, arrays, no '
           'file of Inception weights, and no module:function'
    )
    assert list(DETECTORS) == ['inception', 'efficientnet-lite0', 'dinov2', 'demo', 'arrays']


# Moments

@pytest.mark.parametrize('case', CASES)
def test_moments_and_distance_computed_with_the_reference_implementation(case):
    values = []
    for i in '12':
        moments = Moments.zero(GOLDEN[f'{case}:f{i}'].shape[1])
        for part in np.array_split(GOLDEN[f'{case}:f{i}'], 7):
            moments.add(torch.from_numpy(part))
        for name, value in (('mu', moments.mean()), ('sigma', moments.cov())):
            expected = GOLDEN[f'{case}:{name}{i}']
            assert value.dtype == np.float64
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
            values.append(value)
    assert frechet_distance(*values) == pytest.approx(
        float(GOLDEN[f'{case}:fid']), rel=1e-7, abs=1e-12
    )


def test_moments_against_numpy():
    """Far from the origin, where float32 sums would lose everything."""
    f = np.random.default_rng(0).standard_normal([500, 5]).astype(np.float32) + 1000
    a, b = Moments.zero(5), Moments.zero(5)
    a.add(torch.from_numpy(f[:123]))
    b.add(torch.from_numpy(f[123:]))
    a.merge(b)
    assert (a.count, b.count) == (500, 377)
    np.testing.assert_allclose(a.mean(), f.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(a.cov(), np.cov(f.T.astype(np.float64)), atol=1e-8)
    np.testing.assert_array_equal(a.cov(), a.cov().T)


def test_what_has_no_moments():
    moments = Moments.zero(2)
    with pytest.raises(ValueError, match=r'^the detector gave features that are not finite$'):
        moments.add(torch.tensor([[0.0, torch.nan]]))
    assert moments.count == 0
    moments.add(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r'^1 images have no covariance: 2 are the least$'):
        moments.cov()


def test_moments_have_the_same_bits_for_any_number_of_threads():
    f, threads = torch.randn(CHUNK, 64,
                             generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    sums = []
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            moments = Moments.zero(64)
            moments.add(f)
            assert torch.get_num_threads() == n
            sums.append((moments.sums, frechet_distance(moments.mean(), moments.cov(),
                                                        moments.mean(), spd(64, 1))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[0], sums[0][0]) and other[1] == sums[0][1] for other in sums)


def test_chunks_are_dealt_out_in_turn():
    assert chunks(2 * CHUNK + 5) == [range(CHUNK), range(CHUNK, 2 * CHUNK),
                                     range(2 * CHUNK, 2 * CHUNK + 5)]
    assert chunks(2 * CHUNK + 5, 0, 2) == [range(CHUNK), range(2 * CHUNK, 2 * CHUNK + 5)]
    assert chunks(2 * CHUNK + 5, 1, 2) == [range(CHUNK, 2 * CHUNK)]
    assert chunks(5, 1, 2) == []


# Fréchet distance

D = 12
ZERO, SHIFT = np.zeros(D), np.linspace(-1, 2, D)


def test_distance_of_a_shift_alone():
    S = spd(D, 0)
    assert frechet_distance(ZERO, S, SHIFT, S) == pytest.approx((SHIFT**2).sum(), rel=1e-12)


def test_distance_of_a_scaled_covariance():
    """Σ₂ = c² Σ₁: (1 − c)² tr Σ₁"""
    S = spd(D, 0)
    assert frechet_distance(ZERO, S, ZERO, 9 * S) == pytest.approx(4 * np.trace(S), rel=1e-12)


def test_distance_of_commuting_covariances():
    """Σ (√a − √b)², also in a rotated frame"""
    a, b = np.arange(1.0, D + 1), np.arange(D, 0, -1) ** 2 / 3
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal([D, D]))[0]
    expected = ((a**0.5 - b**0.5) ** 2).sum() + (SHIFT**2).sum()
    assert frechet_distance(ZERO, np.diag(a), SHIFT,
                            np.diag(b)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(ZERO, Q * a @ Q.T, SHIFT,
                            Q * b @ Q.T) == pytest.approx(expected, rel=1e-12)


def test_distance_of_covariances_that_do_not_commute():
    """Σ₂ = M Σ₁ M with M symmetric and positive: tr (I − M) Σ₁ (I − M)"""
    S, M = spd(D, 0), spd(D, 1)
    assert np.abs(S @ M - M @ S).max() > 0.5
    expected = np.trace((np.eye(D) - M) @ S @ (np.eye(D) - M))
    assert frechet_distance(ZERO, S, ZERO, M @ S @ M) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(ZERO, M @ S @ M, ZERO, S) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(('n1', 'n2'), [(10, 14), (10, 100), (100, 10), (2, 2)])
def test_distance_where_covariances_are_singular(n1, n2):
    """tr (Σ₁ Σ₂)^½ is the nuclear norm of X₁ X₂ᵀ / √((n₁ − 1)(n₂ − 1)), X centred."""
    rng = np.random.default_rng(0)
    X, Y = (
        rng.standard_normal([n1, 24]),
        rng.standard_normal([n2, 24]) * np.linspace(0.1, 2, 24) + 0.3,
    )
    mu = X.mean(axis=0), Y.mean(axis=0)
    X, Y = X - mu[0], Y - mu[1]
    S = X.T @ X / (n1 - 1), Y.T @ Y / (n2 - 1)
    root = np.linalg.svd(X @ Y.T / np.sqrt((n1 - 1) * (n2 - 1)), compute_uv=False).sum()
    expected = ((mu[0] - mu[1]) ** 2).sum() + np.trace(S[0]) + np.trace(S[1]) - 2 * root
    distance = frechet_distance(mu[0], S[0], mu[1], S[1])
    assert type(distance) is float
    assert distance == pytest.approx(expected, rel=1e-12)
    assert abs(frechet_distance(mu[0], S[0], mu[0], S[0])) < 1e-12


def test_distance_without_any_variance():
    nothing, S = np.zeros([D, D]), spd(D, 0)
    assert frechet_distance(ZERO, nothing, ZERO, nothing) == 0
    assert frechet_distance(ZERO, nothing, SHIFT,
                            S) == pytest.approx((SHIFT**2).sum() + np.trace(S), rel=1e-12)
    assert frechet_distance(SHIFT, S, ZERO,
                            nothing) == pytest.approx((SHIFT**2).sum() + np.trace(S), rel=1e-12)


@pytest.mark.parametrize(('arguments', 'message'), [
    ((ZERO, np.eye(D), np.zeros(3), np.eye(D)), 'frechet_distance: mu2 has shape [3], not [12]'),
    ((ZERO, np.eye(3), ZERO, np.eye(D)), 'frechet_distance: sigma1 has shape [3, 3], not [12, 12]'),
    ((ZERO, np.eye(D), ZERO, np.eye(D) * np.nan), 'frechet_distance: sigma2 has values that are '
                                                  'not finite'),
])
def test_distance_of_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError) as error:
        frechet_distance(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize('S', [np.diag([4.0, 1.0, -0.5]), np.array([[1.0, 2, 0], [2, 1, 0],
                                                                   [0, 0, 1]])])
def test_distance_of_matrices_with_negative_eigenvalues(S):
    """diag(4, 1, −½) and [[1, 2], [2, 1]], whose eigenvalues are 3 and −1, have no root."""
    told = {4.0: '-0.5, where the largest is 4', 1.0: '-1, where the largest is 3'}[S[0, 0]]
    zero, one = np.zeros(3), np.eye(3)
    for arguments, name in (((zero, S, zero, one), 'sigma1'), ((zero, one, zero, S), 'sigma2')):
        with pytest.raises(ValueError) as error:
            frechet_distance(*arguments)
        assert str(error.value) == (f'frechet_distance: {name} has the negative eigenvalue {told}, '
                                    f'so it is no covariance')
    with pytest.raises(ValueError, match=r'^frechet_distance: sigma2 has the negative eigenvalue '):
        frechet_distances(zero, one, [(zero, S)])


def test_rounding_in_float32_is_no_negative_eigenvalue():
    """A covariance of rank 3 that was stored in float32 has some of −1e-7 of the largest."""
    x = np.random.default_rng(0).standard_normal([4, 64])
    S = np.cov(x.T)
    rounded = S.astype(np.float32).astype(np.float64)
    assert -1e-6 < np.linalg.eigvalsh(rounded)[0] / np.linalg.eigvalsh(rounded)[-1] < -1e-9
    assert negative_eigenvalue(rounded) is None and negative_eigenvalue(np.zeros([4, 4])) is None
    assert frechet_distance(np.zeros(64), rounded, np.zeros(64), S) == pytest.approx(0, abs=1e-3)


def test_images_that_are_all_equal_have_a_covariance_of_zero():
    """Rounding would leave one that is neither symmetric nor positive."""
    feature = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 100
    equal, others = Moments.zero(50), Moments.zero(50)
    for _ in range(40):
        equal.add(feature.expand(7, -1))
    x = torch.randn([1000, 50], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    others.add(x)
    assert np.array_equal(equal.cov(), np.zeros([50, 50]))
    assert np.allclose(others.cov(), np.cov(x.numpy().T), atol=1e-12)
    distance = frechet_distance(equal.mean(), equal.cov(), others.mean(), others.cov())
    expected = ((equal.mean() - others.mean())**2).sum() + np.trace(others.cov())
    assert distance == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(equal.mean(), equal.cov(), equal.mean(), equal.cov()) == 0
