"""Reference statistics of every origin, imitated; hostile ones refused; our own bit for bit."""

import functools
import http.server
import os
import pickle
import threading

import numpy as np
import pytest
import torch

from dnnlib.download import cached_path
from metrics import reference_files as module
from metrics.features import TAPS
from metrics.reference_files import read_reference, write_reference
from metrics.statistics import CHUNK, Moments, Statistics

RANDOM = np.random.default_rng(0)
NOTE = (' does not say how images were resized: distances to it are FIDs if EDM or TTUR made it, '
        'or clean-fid in its mode legacy_tensorflow, but not if pytorch-fid did, or clean-fid in '
        'another mode')


@pytest.fixture(autouse=True)
def small_taps(monkeypatch):
    """As the published ones, with fewer features: files of megabytes take time."""
    dims = {'pool_3': 8, 'spatial': 7, 'dinov2': 6, 'demo': 5, 'efficientnet_lite0': 4,
            'arrays': 3}
    monkeypatch.setattr(module, 'TAPS', {name: tap._replace(dim=dims[name])
                                         for name, tap in TAPS.items()})


def pair(d):
    x = RANDOM.standard_normal([d, 2 * d])
    return RANDOM.standard_normal(d), x @ x.T / d


def same(statistics, mu, sigma):
    np.testing.assert_array_equal(statistics.mu, mu)
    np.testing.assert_array_equal(statistics.sigma, sigma)
    return statistics.mu.dtype == statistics.sigma.dtype == np.float64


def refused(path, source=None):
    with pytest.raises(ValueError) as error:
        read_reference(source or path)
    assert '\n' not in str(error.value)
    return str(error.value)


# Files of others

def test_dimensions_of_the_published_files():
    assert {tap.dim: name for name, tap in TAPS.items()} == {
        2048: 'pool_3',
        2023: 'spatial',
        1024: 'dinov2',
        224: 'demo',
        1280: 'efficientnet_lite0',
        256: 'arrays',
    }


def test_a_file_of_the_published_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'TAPS', TAPS)
    mu, sigma = np.linspace(0, 1, 2048), np.eye(2048)
    np.savez(tmp_path / 'cifar10-32x32.npz', mu=mu, sigma=sigma)
    found = read_reference(tmp_path / 'cifar10-32x32.npz')
    assert list(found.moments) == ['pool_3'] and same(found.moments['pool_3'], mu, sigma)


def test_mu_and_sigma_alone(tmp_path):
    """EDM, TTUR, clean-fid, pytorch-fid: nothing but the name of the file tells them apart."""
    mu, sigma = pair(8)
    for name, origin, notes in (
            ('cifar10-32x32.npz', 'mu and sigma', [NOTE]), ('fid_stats_cifar10_train.npz',
                                                            'mu and sigma', [NOTE]),
            ('cifar10_legacy_tensorflow_train_32.npz', 'clean-fid', []),
            ('cifar10_clean_train_32.npz', 'clean-fid', [
                " is named like clean-fid's mode clean, which resizes differently: distances to it "
                "are not FIDs"]),
            ('ffhq_legacy_pytorch_trainval_1024.npz', 'clean-fid', [
                " is named like clean-fid's mode legacy_pytorch, which resizes differently: "
                "distances to it are not FIDs"])):
        path = tmp_path / name
        np.savez(path, mu=mu, sigma=sigma)
        found = read_reference(str(path))
        assert same(found.moments['pool_3'], mu, sigma) and list(found.moments) == ['pool_3']
        assert (found.origin, found.notes) == (origin, [f'{path}{note}' for note in notes])
        assert (dict(found.features), found.has_images,
                found.moments['pool_3'].count) == ({}, False, None)


@pytest.mark.parametrize('d, tap', [(8, 'pool_3'), (7, 'spatial'), (6, 'dinov2'), (5, 'demo')])
def test_the_size_tells_the_tap(tmp_path, d, tap):
    mu, sigma = pair(d)
    # which is none of ours
    np.savez(tmp_path / 'a.npz', mu=mu.astype(np.float32), sigma=sigma, count=np.ones(3))
    found = read_reference(tmp_path / 'a.npz')
    assert list(found.moments) == [tap] and same(found.moments[tap], mu.astype(np.float32), sigma)
    assert bool(found.notes) == (tap == 'pool_3')


def test_adm_s_reference_batches(tmp_path):
    """mu and sigma are of all images, arr_0 has some of them: the one is read without the
    others."""
    path, (mu, sigma), (mu_s, sigma_s) = tmp_path / 'VIRTUAL.npz', pair(8), pair(7)
    images = RANDOM.integers(0, 256, [50, 16, 16, 3], dtype=np.uint8)
    np.savez_compressed(path, arr_0=images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s,
                        labels=np.arange(50))
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes(100) + whole[5100:])   # within arr_0
    with pytest.raises(Exception, match='Error -3|CRC'):
        np.load(path)['arr_0']
    found = read_reference(path)
    assert list(found.moments) == ['pool_3',
                                   'spatial'] and found.has_images and found.origin == 'ADM'
    assert same(found.moments['pool_3'], mu, sigma) and same(
        found.moments['spatial'], mu_s, sigma_s
    )
    assert found.notes == [] and not found.features


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_edm2_s_pickles(tmp_path, protocol, order):
    path, (mu, sigma), (mu_d, sigma_d) = tmp_path / 'img512.pkl', pair(8), pair(6)
    # not symmetric: an exchange of rows and columns would show
    sigma = np.asarray(sigma + np.arange(8), order=order)
    content = {'num_images': 1281167, 'fid': {'mu': mu, 'sigma': sigma},
               'fd_dinov2': {'mu': mu_d, 'sigma': sigma_d}}
    # of NumPy 2, and before
    for package in (b'numpy._core.', b'numpy.core.') if protocol < 4 else (b'numpy._core.',):
        path.write_bytes(pickle.dumps(content, protocol).replace(b'numpy._core.', package))
        found = read_reference(path)
        assert list(found.moments) == ['pool_3',
                                       'dinov2'] and (found.origin, found.notes) == ('EDM2', [])
        assert same(found.moments['pool_3'], mu, sigma) and same(
            found.moments['dinov2'], mu_d, sigma_d
        )
        assert found.moments['pool_3'].count == found.moments['dinov2'].count == 1281167
    path.write_bytes(pickle.dumps({'fd_dinov2': content['fd_dinov2'], 'num_images': np.int64(7)},
                                  4))
    found = read_reference(path)
    assert list(found.moments) == ['dinov2'] and found.moments['dinov2'].count == 7


def test_torch_fidelity_s_caches(tmp_path):
    mu, sigma = pair(8)
    path = tmp_path / 'cifar10-train-inception-v3-compat-stat-fid-2048.pt'
    for zipped in (True, False):
        torch.save({'mu': mu.astype(np.float32), 'sigma': sigma}, path,
                   _use_new_zipfile_serialization=zipped)
        found = read_reference(path)
        assert list(found.moments) == ['pool_3'] and same(found.moments['pool_3'],
                                                          mu.astype(np.float32), sigma)
        assert (found.origin, found.has_images, dict(found.features)) == (
            'torch-fidelity',
            False,
            {},
        )
    torch.save({'mu': torch.from_numpy(mu), 'sigma': torch.from_numpy(sigma)}, path)
    assert same(read_reference(path).moments['pool_3'], mu, sigma)
    features = RANDOM.standard_normal([30, 8]).astype(np.float32)
    torch.save(torch.from_numpy(features[:2]).bfloat16(), path)
    np.testing.assert_array_equal(read_reference(path).features['pool_3'],
                                  torch.from_numpy(features[:2]).bfloat16().float())
    torch.save(torch.from_numpy(features), path)
    found = read_reference(path)
    np.testing.assert_array_equal(found.features['pool_3'], features)
    np.testing.assert_allclose(found.moments['pool_3'].sigma,
                               np.cov(features, rowvar=False, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize('key, d, tap, origin', [
    ('pool_3', 8, 'pool_3', 'Score-SDE'), ('reps', 6, 'dinov2', 'dgm-eval'),
    ('feats', 8, 'pool_3', 'clean-fid')])
def test_files_of_features(tmp_path, key, d, tap, origin):
    count, path = CHUNK + 76, tmp_path / 'a.npz'
    features = RANDOM.standard_normal([count, d]) + 3
    others = {'hparams': np.array([{'depth': 7}]),
              'arr_9': np.zeros(2)} if origin == 'dgm-eval' else {}
    np.savez(path, **{key: features}, **others)
    found = read_reference(path)
    assert list(found.features) == list(found.moments) == [tap] and found.origin == origin
    assert found.features[tap].dtype == np.float32
    np.testing.assert_array_equal(found.features[tap], features.astype(np.float32))
    statistics, x = found.moments[tap], features.astype(np.float32).astype(np.float64)
    assert statistics.count == count
    np.testing.assert_allclose(statistics.mu, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(statistics.sigma, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)
    total = Moments.zero(d)   # and bit for bit what fid.py makes of such features
    for part in (x[:CHUNK], x[CHUNK:]):
        moments = Moments.zero(d)
        moments.add(torch.from_numpy(part))
        total.merge(moments)
    assert same(statistics, total.mean(), total.cov())
    assert found.notes == ([f'{path}: reps does not say which network and resize it is of; with '
                            f'DINOv2 dgm-eval rounds resized images to uint8, and distances are '
                            f'not those of EDM2'] if origin == 'dgm-eval' else [])


def test_a_file_from_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path / 'cache'))
    (tmp_path / 'server').mkdir()
    mu, sigma = pair(8)
    np.savez(tmp_path / 'server' / 'a.npz', mu=mu, sigma=sigma)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / 'server'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/a.npz'
        found = read_reference(url)
        server.shutdown()
    assert same(found.moments['pool_3'], mu, sigma) and found.notes == [url + NOTE]
    assert cached_path(url).is_file()
    assert same(read_reference(url).moments['pool_3'], mu, sigma)   # nobody is asked again
    monkeypatch.setattr(module, 'EDM_URL', url)
    assert (read_reference(url).origin, read_reference(url).notes) == ('EDM', [])


# Our own

def statistics(tap, count=50):
    return Statistics(*pair(module.TAPS[tap].dim), count, [3, 8, 8], TAPS[tap].detector_id,
                      f'digest of {tap}', 'images', 'torch 1',
                      *(['float64', 'photos.zip'] if tap != 'spatial' else []))


@pytest.mark.parametrize('taps', [
    ['pool_3', 'spatial', 'dinov2'], ['demo'], ['dinov2'], ['spatial'],
    ['dinov2', 'demo', 'spatial', 'pool_3'], ['dinov2', 'demo']])
def test_ours_come_back_bit_for_bit(tmp_path, taps):
    path = tmp_path / 'new' / 'a.npz'
    moments = {tap: statistics(tap, count) for count, tap in enumerate(taps, 40)}
    features = {tap: RANDOM.standard_normal([4, module.TAPS[tap].dim]).astype(np.float32)
                for tap in taps[:2]}
    write_reference(path, moments, features)
    found = read_reference(path)
    assert set(found.moments) == set(moments) and set(found.features) == set(features) and len(
        found.features) == len(features)
    for tap, saved in moments.items():
        assert same(found.moments[tap], saved.mu, saved.sigma)
        for name in set(vars(saved)) - {'mu', 'sigma'}:
            assert getattr(found.moments[tap], name) == getattr(saved, name), name
    for tap in features:
        np.testing.assert_array_equal(found.features[tap], features[tap])
        assert found.features[tap].dtype == np.float32 and found.features[tap] is found.features[
            tap]
    assert (found.origin, found.has_images, found.notes) == ('limpid', False, [])
    write_reference(tmp_path / 'b.npz', moments, features)
    assert (tmp_path / 'b.npz').read_bytes() == path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ['a.npz']


def test_edm_and_adm_find_what_they_look_for(tmp_path):
    path = tmp_path / 'a.npz'
    moments = {tap: statistics(tap) for tap in ('dinov2', 'spatial', 'pool_3')}
    write_reference(path, moments)
    plain = dict(np.load(path))
    for tap, mu, sigma in (('pool_3', 'mu', 'sigma'), ('spatial', 'mu_s', 'sigma_s'),
                           ('dinov2', 'fd_dinov2.mu', 'fd_dinov2.sigma')):
        np.testing.assert_array_equal(plain[mu], moments[tap].mu)
        np.testing.assert_array_equal(plain[sigma], moments[tap].sigma)
        assert plain[mu].dtype == plain[sigma].dtype == np.float64
    assert (plain['format'], plain['count'],
            plain['detector_id']) == (1, 50, 'inception-2015-12-05-pool_3-v1')
    assert plain['image_shape'].tolist() == [3, 8, 8] and plain['spatial.versions'] == 'torch 1'


def test_files_of_earlier_versions(tmp_path):
    """They had one tap, under plain names."""
    mu, sigma = pair(3)
    np.savez(tmp_path / 'a.npz', format=1, mu=mu, sigma=sigma, count=50, image_shape=[1, 8, 8],
             detector_id='demo-v1', detector_digest='abc', data_fingerprint='def',
             versions='torch 1')
    found = read_reference(tmp_path / 'a.npz')
    assert list(found.moments) == ['demo'] and same(found.moments['demo'], mu, sigma)
    assert vars(found.moments['demo']) | {'mu': 0, 'sigma': 0} == {
        'mu': 0, 'sigma': 0, 'count': 50, 'image_shape': [1, 8, 8], 'detector_id': 'demo-v1',
        'detector_digest': 'abc', 'data_fingerprint': 'def', 'versions': 'torch 1',
        'precision': None, 'source': None}


def test_features_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    path, read = tmp_path / 'a.npz', []
    features = RANDOM.standard_normal([3000, 8])
    write_reference(path, {'pool_3': statistics('pool_3')}, {'pool_3': features})
    original = module._array
    monkeypatch.setattr(module, '_array', lambda path, name: read.append(name)
                        or original(path, name))
    found = read_reference(path)
    assert 'features.pool_3' not in read and 'mu' in read
    assert list(found.features) == ['pool_3'] and 'features.pool_3' not in read
    np.testing.assert_array_equal(found.features['pool_3'], features.astype(np.float32))
    assert found.features['pool_3'] is found.features['pool_3'] and read.count(
        'features.pool_3') == 1
    whole = path.read_bytes()
    # among the features, which are last
    path.write_bytes(whole[:-9000] + bytes(100) + whole[-8900:])
    found = read_reference(path)
    with pytest.raises(ValueError, match='a.npz is damaged or not a file of statistics: its zip is '
                                         'damaged: Bad CRC-32 '
                                         'for file'):
        found.features['pool_3']


def test_edm2_s_dictionary(tmp_path):
    path, moments = tmp_path / 'a.pkl', {tap: statistics(tap)
                                         for tap in ('spatial', 'pool_3', 'dinov2')}
    write_reference(path, moments, {'pool_3': np.zeros([2, 8])})
    data = path.read_bytes()
    plain = pickle.loads(data)
    assert data[:2] == b'\x80\x04' and list(plain) == ['num_images', 'fid',
                                                       'fd_dinov2'] and plain['num_images'] == 50
    found = read_reference(path)
    for key, tap in (('fid', 'pool_3'), ('fd_dinov2', 'dinov2')):
        assert set(plain[key]) == {'mu', 'sigma'} and type(plain[key]) is dict
        np.testing.assert_array_equal(plain[key]['mu'], moments[tap].mu)
        assert same(found.moments[tap], moments[tap].mu,
                    moments[tap].sigma) and found.moments[tap].count == 50
    write_reference(path, {'dinov2': moments['dinov2']})
    assert list(pickle.loads(path.read_bytes())) == ['num_images', 'fd_dinov2']
    path.unlink()
    for content, problem in (
            ({'demo': statistics('demo')}, "EDM2's pickles hold moments of pool_3 and dinov2, not "
                                           "of demo: write an .npz"),
            ({'pool_3': statistics('pool_3', 5), 'dinov2': statistics('dinov2', 6)},
             "EDM2's pickles have one number of images, not 5 and 6: write an .npz")):
        with pytest.raises(ValueError) as error:
            write_reference(path, content)
        assert str(error.value) == f'{path}: {problem}' and not path.exists()


def test_what_cannot_be_written(tmp_path):
    path, good = tmp_path / 'a.npz', {'demo': statistics('demo')}
    for arguments, problem in (
        (({},), 'there are no moments to write'),
        (({'pool_9': good['demo']},), 'there is no tap pool_9, but ' + ', '.join(TAPS)),
        (
            (good, {'clip': np.zeros([2, 2])}),
            'there is no tap clip, but ' + ', '.join(TAPS),
        ),
        (
            (good, {'demo': np.zeros(3)}),
            'features of demo is float64 [3], not finite numbers [N, d]',
        ),
        (
            (good, {'demo': np.full([2, 5], np.nan)}),
            'features of demo is float64 [2, 5], not finite numbers [N, d]',
        ),
    ):
        with pytest.raises(ValueError) as error:
            write_reference(path, *arguments)
        assert str(error.value) == f'{path}: {problem}'
    assert list(tmp_path.iterdir()) == []


# What is refused

class Executed:
    def __reduce__(self):
        return os.system, ('touch executed',)


def test_programs_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, (mu, _) = tmp_path / 'a.npz', pair(8)
    np.savez(path, mu=mu, sigma=np.array([Executed()]))
    assert refused(path) == (f'{path} is damaged or not a file of statistics: an array holds '
                             f'pickled objects')
    for protocol in (2, 3, 4, 5):
        for sigma in (Executed(), np.array([Executed()])):
            path.write_bytes(pickle.dumps({'fid': {'sigma': sigma, 'mu': mu}}, protocol))
            assert refused(path) == (f'{path} is not a file of statistics of ours or of a kind '
                                     f'known here: it refers to {os.system.__module__}.system; '
                                     f'nothing in it was executed')
    torch.save({'mu': mu, 'sigma': Executed()}, path)
    assert f'it refers to {os.system.__module__}.system; nothing' in refused(path)
    path.write_bytes(b'\x80\x02cnumpy\nndarray\nK\x05\x85R.')   # np.ndarray(5)
    assert refused(path).endswith('it calls the type of an array; nothing in it was executed')
    path.write_bytes(b'\x80\x02cnumpy\nload\nX\x01\x00\x00\x00x\x85R.')
    assert refused(path).endswith('it refers to numpy.load; nothing in it was executed')
    assert not (tmp_path / 'executed').exists()
    pickle.loads(pickle.dumps(Executed()))   # it would have shown
    assert (tmp_path / 'executed').exists()


MU, SIGMA = pair(8)
GOOD = {'mu': MU, 'sigma': SIGMA}
OURS = {**GOOD, 'format': 1}


@pytest.mark.parametrize(
    'arrays, problem',
    [
        (
            {'n': MU, 'm': MU},
            ' has neither mu and sigma nor features, only m, n: make one with fid.py ref',
        ),
        (
            {'arr_0': MU},
            ' has neither mu and sigma nor features, only arr_0: it is a batch of images; make '
            'statistics of it with fid.py ref',
        ),
        ({'mu': MU}, ' has no sigma, only mu: make one with fid.py ref'),
        (
            {**GOOD, 'mu_s': np.zeros(7)},
            ' has no sigma_s, only mu, mu_s, sigma: make one with fid.py ref',
        ),
        ({'mu': MU, 'sigma': SIGMA[:7]}, ': mu has shape [8] and sigma [7, 8], not [d] and [d, d]'),
        (
            {'mu': MU[None], 'sigma': SIGMA},
            ': mu has shape [1, 8] and sigma [8, 8], not [d] and [d, d]',
        ),
        ({'mu': MU, 'sigma': SIGMA + np.inf}, ': sigma holds something else than finite numbers'),
        ({'mu': MU.astype(str), 'sigma': SIGMA}, ': mu holds something else than finite numbers'),
        (
            {'mu': MU[:3], 'sigma': SIGMA[:3, :3]},
            ' has 3 features, but known are 8 (pool_3), 7 (spatial), 6 (dinov2), 5 (demo)',
        ),
        (
            {**GOOD, 'mu_s': np.full(7, np.nan), 'sigma_s': np.eye(7)},
            ': mu_s holds something else than finite numbers',
        ),
        ({'pool_3': MU}, ': pool_3 is float64 [8], not finite numbers [N, d]'),
        (
            {'pool_3': np.full([5, 8], np.inf)},
            ': pool_3 is float64 [5, 8], not finite numbers [N, d]',
        ),
        ({'pool_3': np.ones([1, 8])}, ': pool_3 has the features of 1 images: 2 are the least'),
        (
            {'reps': np.ones([5, 3])},
            ': reps has 3 features, but known are 8 (pool_3), 7 (spatial), 6 (dinov2), 5 (demo)',
        ),
        ({**GOOD, 'format': 9}, ' has format 9, but this version reads format 1'),
        ({**GOOD, 'format': 'one'}, ': format is <U3 [], not of type int'),
        ({**OURS, 'count': 'many'}, ': count is <U4 [], not of type int'),
        ({**OURS, 'image_shape': 3}, ': image_shape is int64 [], not of type list'),
        ({**OURS, 'versions': MU}, ': versions is float64 [8], not of type str'),
        ({**OURS, 'detector_id': 'theirs'}, ' has the unknown detector theirs'),
        (
            {**OURS, 'fd_dinov2.mu': MU},
            ' has no fd_dinov2.sigma, only fd_dinov2.mu, format, mu, sigma: make one with fid.py '
            'ref',
        ),
    ],
)
def test_other_npz_files(tmp_path, arrays, problem):
    path = tmp_path / 'a.npz'
    np.savez(path, **arrays)
    assert refused(path) == f'{path}{problem}'


@pytest.mark.parametrize(
    'content, problem',
    [
        (
            {},
            ' has neither mu and sigma nor fid nor fd_dinov2, only nothing: make one with fid.py '
            'ref',
        ),
        (
            [1, 2],
            ' has neither mu and sigma nor fid nor fd_dinov2, only nothing: make one with fid.py '
            'ref',
        ),
        (
            {'num_images': 5, 'kid': {}},
            ' has neither mu and sigma nor fid nor fd_dinov2, only num_images, kid: make one with '
            'fid.py ref',
        ),
        ({'num_images': 'x', 'fid': GOOD}, ': num_images is x, not a number of images'),
        ({'fid': {'mu': MU}}, ': fid: it is no array'),
        (
            {'fid': {'mu': MU, 'sigma': SIGMA.astype(np.int64)}},
            ': fid: one of its arrays is not of little-endian float32 or float64',
        ),
        (
            {'fid': {'mu': MU, 'sigma': SIGMA.astype('>f8')}},
            ': fid: one of its arrays is not of little-endian float32 or float64',
        ),
        (
            {'fid': {'mu': MU, 'sigma': SIGMA[:3]}},
            ': fid: mu has shape [8] and sigma [3, 8], not [d] and [d, d]',
        ),
        ({'mu': MU, 'sigma': SIGMA * np.nan}, ': sigma holds something else than finite numbers'),
        (
            {'mu': MU[:2], 'sigma': SIGMA[:2, :2]},
            ' has 2 features, but known are 8 (pool_3), 7 (spatial), 6 (dinov2), 5 (demo)',
        ),
    ],
)
def test_other_pickles(tmp_path, content, problem):
    path = tmp_path / 'a.pkl'
    path.write_bytes(pickle.dumps(content, 4))
    assert refused(path) == f'{path}{problem}'


def test_arrays_that_claim_more_than_they_have(tmp_path):
    path = tmp_path / 'a.pkl'
    data = pickle.dumps({'mu': MU, 'sigma': SIGMA}, 2)
    assert data.count(b'K\x08\x85') == 1                                    # the shape (8,)
    path.write_bytes(data.replace(b'K\x08\x85', b'K\x09\x85'))
    assert refused(path) == f'{path}: one of its arrays has not the bytes that its shape [9] needs'
    path.write_bytes(data.replace(b'K\x08\x85', b'\x8a\x08\0\0\0\0\0\0\0\x7f\x85'))
    assert refused(path) == f'{path}: one of its arrays has an impossible shape'


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / 'a.npz'
    write_reference(path, {'demo': statistics('demo')})
    whole = path.read_bytes()
    for content, problem in (
            (whole[:-30], 'File is not a zip file'), (whole[:100], 'File is not a zip file'),
            (b'', 'it is empty'), (b'PK\3\4', 'File is not a zip file'),
            (b'<!DOCTYPE html>', 'it is a web page'), (b'\x89PNG\r\n', 'it is an image')):
        path.write_bytes(content)
        assert refused(path) == f'{path} is damaged or not a file of statistics: {problem}'
    at = whole.index(b'sigma.npy') + 300
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    assert refused(
        path) == (f"{path} is damaged or not a file of statistics: its zip is damaged: Bad CRC-32 "
                  f"for file 'sigma.npy'")
    assert (
        refused(tmp_path / 'none.npz')
        == f'{tmp_path}/none.npz: no such file of statistics: make one with fid.py ref'
    )
    assert refused(
        tmp_path) == f'{tmp_path} is a folder, not a file of statistics: make one with fid.py ref'
