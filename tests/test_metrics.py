"""metrics/: the demo detector, moments over any number of ranks, files of them, Fréchet distances."""

import functools
import http.server
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch

from metrics import statistics
from metrics.distances import frechet_distance
from metrics.features import DETECTORS, DemoDetector, load_detector, weights_digest
from metrics.statistics import CHUNK, Moments, Statistics, chunks, load_statistics, moments_of_chunks

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'fid.npz')
CASES = json.loads(str(GOLDEN['__meta__']))['cases']


def images(n, *shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


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
        layer = np.stack([sum(scipy.signal.correlate2d(a, w, mode='same') for a, w in zip(layer, kernel, strict=True))
                          for kernel in weight])[:, ::stride, ::stride].clip(min=0)
        expected.append(layer.mean(axis=(1, 2)))
    features = DemoDetector()(x)
    assert features.dtype == torch.float32 and features.shape == (1, 224)
    np.testing.assert_allclose(features[0].numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-6)


def test_identity_of_the_demo_detector():
    detector = load_detector('demo', torch.device('cpu'))
    assert (detector.detector_id, detector.dim) == ('demo-v1', 224)
    assert detector.digest == 'f919533afffe36a7d3462e879099339d80410b9226d8206029b7e41c499ea0c7'
    assert 'NOT FID' in detector.number


def test_digest_depends_on_names_shapes_and_values():
    a = {'x': np.arange(6, dtype=np.float32), 'y': np.ones([2, 1], np.float32)}
    same = {'y': a['y'].astype('>f4'), 'x': a['x'].astype(np.float64)}
    others = [{'x': a['x'], 'z': a['y']}, {'x': a['x'].reshape(2, 3), 'y': a['y']}, {'x': a['x'] + 1, 'y': a['y']}]
    assert weights_digest(same) == weights_digest(a)
    assert len({weights_digest(w) for w in [a, *others]}) == 4


def test_grey_counts_as_three_equal_channels_and_images_do_not_mix():
    detector, grey = DemoDetector(), images(60, 1, 16, 16)
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
        DemoDetector()(x)
    assert str(error.value) == f'a detector takes uint8 images [B, 1 or 3, H, W], not {found}'


def test_a_detector_that_there_is_not_is_never_replaced():
    with pytest.raises(ValueError) as error:
        load_detector('inseption', torch.device('cpu'))
    assert str(error.value) == '--detector=inseption is neither inception nor demo nor a file of Inception weights'
    assert list(DETECTORS) == ['inception', 'demo']


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
    assert frechet_distance(*values) == pytest.approx(float(GOLDEN[f'{case}:fid']), rel=1e-7, abs=1e-12)


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
    f, threads = torch.randn(CHUNK, 64, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    sums = []
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            moments = Moments.zero(64)
            moments.add(f)
            assert torch.get_num_threads() == n
            sums.append((moments.sums, frechet_distance(moments.mean(), moments.cov(), moments.mean(), spd(64, 1))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[0], sums[0][0]) and other[1] == sums[0][1] for other in sums)


def test_chunks_are_dealt_out_in_turn():
    assert chunks(2 * CHUNK + 5) == [range(CHUNK), range(CHUNK, 2 * CHUNK), range(2 * CHUNK, 2 * CHUNK + 5)]
    assert chunks(2 * CHUNK + 5, 0, 2) == [range(CHUNK), range(2 * CHUNK, 2 * CHUNK + 5)]
    assert chunks(2 * CHUNK + 5, 1, 2) == [range(CHUNK, 2 * CHUNK)]
    assert chunks(5, 1, 2) == []


class Ranks:
    """Threads that take each other for the ranks of a process group."""

    def __init__(self, monkeypatch, world_size):
        self.world_size, self.mine = world_size, threading.local()
        self.barrier, self.table = threading.Barrier(world_size, timeout=20), [None] * world_size
        monkeypatch.setattr(statistics.distributed, 'get_rank', lambda: self.mine.rank)
        monkeypatch.setattr(statistics.distributed, 'get_world_size', lambda: world_size)
        monkeypatch.setattr(statistics.distributed, 'gather_objects', self.all)
        monkeypatch.setattr(statistics, '_gather', lambda x: self.all(x) if self.mine.rank == 0 else self.all(x)[:0])

    def all(self, value):
        self.table[self.mine.rank] = value
        self.barrier.wait()
        values = list(self.table)
        self.barrier.wait()
        return values

    def run(self, function):
        """[function(rank), ...]; what was raised stands in place of a result."""
        results = [None] * self.world_size

        def work(rank):
            self.mine.rank = rank
            try:
                results[rank] = function(rank)
            except Exception as error:   # handed to the test
                results[rank] = error

        threads = [threading.Thread(target=work, args=[rank]) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize('num_images', [5 * CHUNK + 7, CHUNK, 3])
def test_any_number_of_ranks_gives_the_same_bits(monkeypatch, num_images):
    f = torch.randn(num_images, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 7, 1e4])
    sums = []
    for world_size in (1, 2, 3):
        with monkeypatch.context() as patch:
            def share(rank, world_size=world_size):
                mine = (f[part.start:part.stop] for part in chunks(num_images, rank, world_size))
                return moments_of_chunks(mine, num_images, 4)

            first, *others = Ranks(patch, world_size).run(share)
        assert others == [None] * (world_size - 1)
        assert first.count == num_images
        sums.append(first.sums)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    np.testing.assert_allclose(Moments(sums[0]).mean(), f.double().mean(dim=0).numpy(), rtol=1e-9)


def test_an_error_on_one_rank_ends_all(monkeypatch):
    def share(rank):
        def features():
            yield torch.zeros(CHUNK, 2)
            if rank == 1:
                raise ValueError('b.png is damaged')
            yield torch.zeros(CHUNK, 2)
        return moments_of_chunks(features(), 6 * CHUNK, 2)

    results = Ranks(monkeypatch, 3).run(share)
    assert [(type(error), str(error)) for error in results] == [(ValueError, 'b.png is damaged')] * 3


# Files of statistics

def some_statistics(d=3):
    return Statistics(np.arange(d) / 7, spd(d, 0), 50, [3, 8, 8], 'demo-v1', 'abc', 'def', 'torch 1')


def test_statistics_survive_the_file(tmp_path):
    path = tmp_path / 'new' / 'a.npz'
    saved = some_statistics()
    saved.save(path)
    loaded = load_statistics(path)
    for name, value in vars(saved).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    plain = dict(np.load(path))
    np.testing.assert_array_equal(plain['mu'], saved.mu)
    np.testing.assert_array_equal(plain['sigma'], saved.sigma)
    assert plain['format'] == 1 and plain['mu'].dtype == plain['sigma'].dtype == np.float64
    saved.save(tmp_path / 'b.npz')
    assert (tmp_path / 'b.npz').read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ['a.npz']


def test_files_with_only_mu_and_sigma_can_be_read(tmp_path):
    np.savez(tmp_path / 'a.npz', mu=np.ones(2, np.float32), sigma=np.eye(2))
    loaded = load_statistics(tmp_path / 'a.npz')
    np.testing.assert_array_equal(loaded.mu, [1.0, 1.0])
    np.testing.assert_array_equal(loaded.sigma, np.eye(2))
    assert loaded.mu.dtype == np.float64
    assert (loaded.count, loaded.detector_id, loaded.image_shape) == (None, None, None)


class Executed:
    def __reduce__(self):
        return Path.touch, (Path('executed'),)


@pytest.mark.parametrize(('arrays', 'message'), [
    ({'pool_3': np.ones([5, 2]), 'n': np.ones(1)}, 'has no mu, only pool_3, n: make it with fid.py ref'),
    ({'mu': np.ones(2)}, 'has no sigma, only mu: make it with fid.py ref'),
    ({'mu': np.ones(2), 'sigma': np.eye(3)}, ': mu has shape [2] and sigma [3, 3], not [d] and [d, d]'),
    ({'mu': np.ones([1, 2]), 'sigma': np.eye(2)}, ': mu has shape [1, 2] and sigma [2, 2], not [d] and [d, d]'),
    ({'mu': np.ones(2), 'sigma': np.full([2, 2], np.inf)}, ': sigma holds something else than finite numbers'),
    ({'mu': np.array(['a', 'b']), 'sigma': np.eye(2)}, ': mu holds something else than finite numbers'),
    ({'mu': np.ones(2), 'sigma': np.eye(2), 'format': 9}, 'has format 9, but this version reads format 1'),
])
def test_what_is_no_file_of_statistics(tmp_path, arrays, message):
    path = tmp_path / 'a.npz'
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        load_statistics(path)
    assert str(error.value) == f'{path}{message if message[0] == ":" else " " + message}'


def test_damaged_and_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'a.npz'
    some_statistics(40).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[:100], b'', b'PK\3\4', pickle.dumps(Executed())):
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            load_statistics(path)
        assert str(error.value) == f'{path} is not an npz file, or a damaged one'
    path.write_bytes(whole[:300] + b'x' + whole[301:])
    with pytest.raises(ValueError, match=r'a\.npz cannot be read: Bad CRC-32 for file'):
        load_statistics(path)
    np.savez(path, mu=np.array([Executed()]), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r'a\.npz cannot be read: Object arrays cannot be loaded'):
        load_statistics(path)
    with pytest.raises(ValueError, match=r'b\.npz cannot be read: No such file or directory$'):
        load_statistics(tmp_path / 'b.npz')
    with pytest.raises(ValueError, match=r' is a folder, not an npz file: make one with fid\.py ref$'):
        load_statistics(tmp_path)
    assert not (tmp_path / 'executed').exists()


def test_statistics_from_an_address(tmp_path):
    some_statistics().save(tmp_path / 'a.npz')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        np.testing.assert_array_equal(load_statistics(f'{address}/a.npz').sigma, some_statistics().sigma)
        with pytest.raises(ValueError) as error:
            load_statistics(f'{address}/b.npz')
        server.shutdown()
    assert str(error.value) == (f'{address}/b.npz cannot be fetched: HTTP Error 404: File not found; '
                                'download it by hand and name the file')


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
    assert frechet_distance(ZERO, np.diag(a), SHIFT, np.diag(b)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(ZERO, Q * a @ Q.T, SHIFT, Q * b @ Q.T) == pytest.approx(expected, rel=1e-12)


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
    X, Y = rng.standard_normal([n1, 24]), rng.standard_normal([n2, 24]) * np.linspace(0.1, 2, 24) + 0.3
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
    assert frechet_distance(ZERO, nothing, SHIFT, S) == pytest.approx((SHIFT**2).sum() + np.trace(S), rel=1e-12)
    assert frechet_distance(SHIFT, S, ZERO, nothing) == pytest.approx((SHIFT**2).sum() + np.trace(S), rel=1e-12)


@pytest.mark.parametrize(('arguments', 'message'), [
    ((ZERO, np.eye(D), np.zeros(3), np.eye(D)), 'frechet_distance: mu2 has shape [3], not [12]'),
    ((ZERO, np.eye(3), ZERO, np.eye(D)), 'frechet_distance: sigma1 has shape [3, 3], not [12, 12]'),
    ((ZERO, np.eye(D), ZERO, np.eye(D) * np.nan), 'frechet_distance: sigma2 has values that are not finite'),
])
def test_distance_of_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError) as error:
        frechet_distance(*arguments)
    assert str(error.value) == message
