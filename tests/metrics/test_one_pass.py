"""One pass over images, with the same bits on any number of ranks and after kills."""

import json
import os
import threading

import numpy as np
import pytest
import torch

from dnnlib.progress import Progress
from metrics import definitions
from metrics import scores as formulas
from metrics.definitions import (
    METRICS,
    Reference,
    below_zero,
    check,
    higher_is_better,
    names_of,
    needs,
    needs_of_reference,
    scores,
    tap_of,
)
from metrics.distances import frechet_distance
from metrics.features import TAPS, DemoDetector
from metrics.one_pass import Measured, Stopped, Wanted, _State, measure
from metrics.statistics import CHUNK, Moments, Statistics, chunks
from torch_utils import distributed

CPU = torch.device('cpu')
DEMO = DemoDetector()
BOTH = Wanted(frozenset({'demo'}), frozenset({'demo'}))


class Ranks:
    """Threads that take each other for the ranks of a process group."""

    def __init__(self, monkeypatch, world_size):
        self.world_size, self.mine = world_size, threading.local()
        self.barrier, self.table = threading.Barrier(world_size, timeout=60), [None] * world_size
        monkeypatch.setattr(distributed, 'get_rank', lambda: self.mine.rank)
        monkeypatch.setattr(distributed, 'get_world_size', lambda: world_size)
        monkeypatch.setattr(distributed, 'gather_objects', self.all)
        monkeypatch.setattr(distributed, 'gather', lambda x: self.all(x) if self.mine.rank == 0
                            else self.all(x)[:0])

    def all(self, value):
        self.table[self.mine.rank] = value
        self.barrier.wait()
        values = list(self.table)
        self.barrier.wait()
        return values

    def run(self, function):
        """[function(), ...], one for each rank; what was raised stands in place of a result."""
        results = [None] * self.world_size

        def work(rank):
            self.mine.rank = rank
            try:
                results[rank] = function()
            except BaseException as error:   # handed to the test
                results[rank] = error

        threads = [threading.Thread(target=work, args=[rank]) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


class Noise:
    """Random 4x4 images, each a function of its position. `ends_at`: the process dies there; `bad`:
    a broken file."""
    source, image_shape = 'noise', [3, 4, 4]

    def __init__(self, count, ends_at=None, bad=None, seed=0):
        self.pixels = torch.from_numpy(
            np.random.RandomState(seed).randint(0, 256, [count, 3, 4, 4], dtype=np.uint8)
        )
        self.ends_at, self.bad, self.read = ends_at, bad, []

    def __len__(self):
        return len(self.pixels)

    def fingerprint(self):
        return f'noise {len(self)}'

    def batches(self, parts, device):
        for part in parts:
            if self.ends_at is not None and part.stop > self.ends_at:
                raise Killed
            if self.bad in part:
                raise ValueError('b.png is damaged')
            self.read += part
            yield self.pixels[part.start:part.stop].to(device)


def look(images, wanted=BOTH, **options):
    return measure(images, [DEMO], wanted, device=CPU, **options)


def same(a, b):
    return torch.equal(a.moments['demo'].sums, b.moments['demo'].sums) and np.array_equal(
        a.features['demo'], b.features['demo']
    )


def test_a_pass_finds_the_features_and_their_moments():
    images = Noise(CHUNK + 30)
    found = look(images, batch=50)
    expected = DEMO.features(images.pixels)['demo'].numpy()
    np.testing.assert_allclose(found.features['demo'], expected, rtol=1e-5)
    stats = found.statistics('demo')
    np.testing.assert_allclose(stats.mu, expected.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats.sigma, np.cov(expected.astype(np.float64).T), rtol=1e-4,
                               atol=1e-6)
    assert (stats.count, stats.image_shape, stats.detector_id, stats.detector_digest,
            stats.data_fingerprint, stats.precision, stats.source) == (
        CHUNK + 30, [3, 4, 4], 'demo-v1', DEMO.digest, f'noise {CHUNK + 30}', 'float32', 'noise')


def test_only_the_features_asked_for_are_kept():
    keep = np.array([0, 7, CHUNK - 1, CHUNK, CHUNK + 29])
    images = Noise(CHUNK + 30)
    found = look(images, Wanted(features=frozenset({'demo'}), keep=keep))
    assert found.moments == {}
    np.testing.assert_array_equal(found.features['demo'], look(images).features['demo'][keep])


@pytest.mark.parametrize('count', [4 * CHUNK + 7, CHUNK, 3])
def test_any_number_of_ranks_gives_the_same_bits(monkeypatch, count):
    found = []
    for world_size in (1, 2, 3):
        with monkeypatch.context() as patch:
            first, *others = Ranks(patch, world_size).run(lambda: look(Noise(count)))
        assert isinstance(first, Measured), first
        assert others == [None] * (world_size - 1)
        found.append(first)
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert found[0].count == len(found[0].features['demo']) == count


def test_an_error_on_one_rank_ends_all(monkeypatch):
    results = Ranks(monkeypatch, 3).run(lambda: look(Noise(6 * CHUNK, bad=4 * CHUNK)))
    assert [(type(r), str(r)) for r in results] == [(ValueError, 'b.png is damaged')] * 3


class Interrupted(Noise):
    """Images that end before those from position `until` on."""

    def __init__(self, count, until):
        super().__init__(count)
        self.until = until

    def batches(self, parts, device):
        return super().batches([part for part in parts if part.stop <= self.until], device)


def test_images_that_end_on_one_rank_stop_all(monkeypatch, tmp_path):
    """No rank raises or has a result, and the same pass continues where it was."""
    count = 6 * CHUNK
    with monkeypatch.context() as patch:
        results = Ranks(patch, 3).run(
            lambda: look(Interrupted(count, 4 * CHUNK), state=tmp_path, save_seconds=0)
        )
    assert results == [Stopped()] * 3
    rest = Noise(count)
    assert same(look(rest, state=tmp_path), look(Noise(count)))
    assert sorted(rest.read) == list(range(3 * CHUNK, count))


def test_a_detector_whose_numbers_are_not_finite_is_refused(monkeypatch):
    monkeypatch.setattr(DemoDetector, 'features',
                        lambda self, x: {'demo': torch.full([len(x), 224], torch.nan)})
    with pytest.raises(ValueError, match='^the detector gave features that are not finite$'):
        look(Noise(5))


@pytest.mark.parametrize(('before', 'after'), [(1, 1), (2, 3), (3, 1)])
def test_a_killed_pass_continues_with_the_same_bits(monkeypatch, tmp_path, before, after):
    """On another number of ranks too, and without looking at an image twice whose chunk was
    saved."""
    count, options = 5 * CHUNK + 9, {'state': tmp_path, 'save_seconds': 0}
    with monkeypatch.context() as patch:
        killed = Ranks(patch, before)
        # the others wait for one that is gone
        killed.barrier = threading.Barrier(before, timeout=5)
        results = killed.run(lambda: look(Noise(count, ends_at=4 * CHUNK), **options))
        assert any(isinstance(r, Killed) for r in results)
    done = int(np.load(tmp_path / 'progress.npz')['done'])
    assert 0 < done < 5
    rest = Noise(count)
    with monkeypatch.context() as patch:
        first, *_ = Ranks(patch, after).run(lambda: look(rest, **options))
    assert sorted(rest.read) == list(range(done * CHUNK, count))
    assert same(first, look(Noise(count)))
    finished = Noise(count, ends_at=0)
    assert same(first, look(finished, **options)) and finished.read == []


def test_progress_of_something_else_is_refused(tmp_path):
    look(Noise(50), state=tmp_path)
    for images, wanted, difference in ((Noise(60), BOTH, 'data, images'),
                                       (Noise(50), Wanted(frozenset({'demo'})), 'features')):
        with pytest.raises(ValueError) as error:
            look(images, wanted, state=tmp_path)
        assert str(error.value) == (f'state={tmp_path} belongs to other images, or to a '
                                    f'measurement of something else ({difference}): delete the '
                                    f'folder, or name another')
    (tmp_path / 'progress.npz').write_bytes(b'PK')
    with pytest.raises(ValueError, match=r'^state=.* is damaged \(.*\): delete the folder, or '
                                         r'name another$'):
        look(Noise(50), state=tmp_path)


def test_a_pass_without_features_saves_sums_only(tmp_path):
    """Constant space, however many images: the file of 3 chunks is as large as that of 1."""
    sizes = []
    for count in (CHUNK, 3 * CHUNK):
        look(Noise(count), Wanted(frozenset({'demo'})), state=tmp_path / str(count), save_seconds=0)
        sizes.append({p.name: p.stat().st_size for p in (tmp_path / str(count)).iterdir()})
    assert sizes[0] == sizes[1] and set(sizes[0]) == {'progress.npz', '.lock'}


# The metrics by name

def some_reference(tap='demo', d=224, n=1500, seed=1):
    features = np.random.RandomState(seed).standard_normal([n, d]).astype(np.float32) * 0.1 + 0.5
    moments = Moments.zero(d)
    moments.add(torch.from_numpy(features))
    digest = DEMO.digest
    return Reference('real.npz', {tap: Statistics(moments.mean(), moments.cov(), n, [3, 4, 4],
                                                  'demo-v1', digest, precision='float32')},
                     {tap: features})


def test_metrics_are_the_functions_of_the_features():
    generated, reference = look(Noise(1200)), some_reference()
    names = ['fid', 'kid', 'pr', 'dc']
    found = scores(names, generated, reference, 'demo', {'demo': DEMO})
    assert list(found) == ['demo_fd', 'demo_kid', 'demo_kid_std', 'demo_precision', 'demo_recall',
                           'demo_density', 'demo_coverage']
    x, y = torch.from_numpy(generated.features['demo']), torch.from_numpy(
        reference.features['demo'])
    ours, theirs = generated.statistics('demo'), reference.moments['demo']
    assert found['demo_fd'] == frechet_distance(theirs.mu, theirs.sigma, ours.mu, ours.sigma)
    assert (found['demo_kid'], found['demo_kid_std']) == formulas.kernel_distance(x, y)
    assert (found['demo_precision'], found['demo_recall']) == formulas.precision_recall(x, y)
    assert (found['demo_density'], found['demo_coverage']) == formulas.density_coverage(x, y)


def test_density_and_coverage_are_of_ten_thousand_images(monkeypatch):
    monkeypatch.setattr(definitions, 'DC_IMAGES', 300)
    generated, reference = look(Noise(400)), some_reference(n=500)
    chosen = [np.sort(np.random.RandomState(0).permutation(n)[:300]) for n in (400, 500)]
    expected = formulas.density_coverage(torch.from_numpy(generated.features['demo'][chosen[0]]),
                                         torch.from_numpy(reference.features['demo'][chosen[1]]))
    found = scores(['dc'], generated, reference, 'demo', {'demo': DEMO})
    assert (found['demo_density'], found['demo_coverage']) == expected


def test_what_metrics_need():
    everything = list(METRICS)
    assert needs(everything, 'pool_3') == Wanted(
        frozenset({'pool_3', 'spatial', 'dinov2', 'efficientnet_lite0'}), frozenset({'pool_3'})
    )
    assert needs_of_reference(everything, 'pool_3') == Wanted(
        frozenset({'pool_3', 'spatial', 'dinov2', 'efficientnet_lite0'}), frozenset({'pool_3'})
    )
    assert needs_of_reference(['is'], 'pool_3').taps == []
    assert needs(['fid'], 'pool_3') == Wanted(frozenset({'pool_3'}))
    assert needs(['fd_dinov2'], 'pool_3').taps == ['dinov2']   # Inception is not even loaded
    for metric, main, detector in (('is', 'demo', 'demo'), ('sfid', 'demo', 'demo'),
                                   ('is', 'efficientnet_lite0', 'efficientnet-lite0')):
        with pytest.raises(ValueError) as error:
            tap_of(metric, main)
        assert str(error.value) == (f'metrics={metric} needs the Inception network, and '
                                    f'detector={detector} is another: leave {metric} out, or use '
                                    f'detector=inception')


def test_only_inception_has_an_fid():
    """Every number of another detector tells in its name which detector that is."""
    assert names_of('kid', 'pool_3') == ['kid', 'kid_std']
    assert names_of('fid_inf', 'demo') == ['demo_fd_inf']
    assert [name for metric in ('fid', 'fid_inf', 'kid', 'pr', 'dc', 'fd_dinov2')
            for name in names_of(metric, 'efficientnet_lite0')] == [
        'fd_efficientnet_lite0', 'fd_efficientnet_lite0_inf', 'kd_efficientnet_lite0',
        'kd_efficientnet_lite0_std', 'precision_efficientnet_lite0', 'recall_efficientnet_lite0',
        'density_efficientnet_lite0', 'coverage_efficientnet_lite0', 'fd_dinov2']
    for main in set(TAPS) - {'pool_3', 'spatial'}:
        others = [name for metric in METRICS if METRICS[metric].tap == 'main'
                  for name in names_of(metric, main)]
        assert not [name for name in others if name.startswith(('fid', 'kid'))]
    assert [name for name, tap in TAPS.items() if tap.number == 'FID'] == ['pool_3']
    assert [higher_is_better(name) for name in (
        'precision_efficientnet_lite0', 'demo_recall', 'is', 'fd_efficientnet_lite0',
        'kd_efficientnet_lite0_std', 'is_std')] == [True, True, True, False, False, False]


def checked(reference, metrics=('fid',), count=2000, shape=(3, 4, 4), precision='float32',
            **options):
    return check(reference, list(metrics), 'demo', {'demo': DEMO}, 'x', shape, count, precision,
                 **options)


def changed(reference, **fields):
    return Reference(reference.source,
                     {'demo': Statistics(**{**vars(reference.moments['demo']), **fields})},
                     reference.features)


def test_mismatches_are_refused_unless_allowed():
    reference = some_reference()
    assert checked(reference) == []
    for fields, what in (
            ({'detector_id': 'other-v2'}, 'was made with detector other-v2, not demo-v1'),
            ({'detector_digest': '0'}, 'was made with other weights of detector demo-v1'),
            ({'precision': 'tf32'}, 'was made with precision=tf32, not float32'),
            ({'image_shape': [3, 8, 8]}, 'is of images of shape [3, 8, 8], but these have shape '
                                         '[3, 4, 4]')):
        with pytest.raises(ValueError) as error:
            checked(changed(reference, **fields))
        assert (
            str(error.value)
            == f'ref=real.npz {what}; make it anew with fid.py ref, or say allow_mismatch=True'
        )
        assert checked(changed(reference, **fields), allow_mismatch=True) == [
            f'ref=real.npz {what}'
        ]
    assert checked(changed(reference, detector_id=None, detector_digest=None, image_shape=None,
                           precision=None)) == [
        'real.npz does not say which detector it was made with; only its size fits']
    assert checked(reference, count=224) == [
        '224 images say little about 224 features: demo-FD (random features, NOT FID) comes out '
        'far too high']


def test_references_that_lack_something():
    reference = some_reference()
    with pytest.raises(ValueError) as error:
        checked(Reference('real.npz', reference.moments), ['fid', 'kid'])
    assert str(error.value) == ('ref=real.npz holds no features of its images, which kid '
                                'compares with: make it anew with fid.py ref --metrics=fid,kid')
    with pytest.raises(ValueError) as error:
        checked(Reference('real.npz', {'pool_3': reference.moments['demo']}))
    assert str(error.value) == ('ref=real.npz has no statistics of demo-v1, which fid compares '
                                'with here, only those for FID; make it anew with fid.py ref '
                                '--metrics=fid --detector=demo')


def test_identity_is_plain_text(tmp_path):
    look(Noise(5), state=tmp_path)
    told = json.loads(str(np.load(tmp_path / 'progress.npz')['identity']))
    assert told['images'] == 5 and told['detectors'] == {'demo-v1': DEMO.digest}
    assert chunks(5) == [range(5)]


@pytest.mark.parametrize(
    ('damage', 'why'),
    [
        (
            lambda folder: np.save(folder / 'demo-000001.npy', np.zeros([5, 224], np.float32)),
            'demo-000001.npy is float32 [5, 224]',
        ),
        (lambda folder: changed_progress(folder, done=-1), '-1 of 2 chunks are done'),
        (lambda folder: changed_progress(folder, done=1), 'the sums of demo are of 1054 images'),
        (
            lambda folder: changed_progress(folder, **{'sums.demo': np.ones(1)}),
            'the sums of demo are not finite, or of another shape',
        ),
        (
            lambda folder: changed_progress(folder, **{'sums.demo': np.full([225, 225], np.nan)}),
            'the sums of demo are not finite, or of another shape',
        ),
    ],
)
def test_progress_that_no_pass_can_have_written(tmp_path, damage, why):
    look(Noise(CHUNK + 30), state=tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError) as error:
        look(Noise(CHUNK + 30), state=tmp_path)
    assert str(
        error.value) == f'state={tmp_path} is damaged ({why}): delete the folder, or name another'


def changed_progress(folder, **changes):
    np.savez(folder / 'progress.npz', **{**dict(np.load(folder / 'progress.npz')), **changes})


def test_references_that_say_too_little():
    few = some_reference(n=40)
    assert checked(few) == ['real.npz is of 40 images, which say little about 224 features']
    with pytest.raises(ValueError) as error:
        checked(few, ['kid'])
    assert str(
        error.value) == 'ref=real.npz holds the features of 40 images, and kid takes 1000 or more'
    crooked = changed(some_reference(), sigma=np.triu(some_reference().moments['demo'].sigma))
    with pytest.raises(ValueError) as error:
        checked(crooked)
    assert (
        str(error.value)
        == 'ref=real.npz: the covariance of demo is not symmetric, so it is none; make it anew'
    )
    negative = changed(some_reference(), sigma=np.diag([8.0] * 223 + [-2.0]))
    with pytest.raises(ValueError) as error:
        checked(negative)
    assert str(error.value) == ('ref=real.npz: the covariance of demo has the negative eigenvalue '
                                '-2, where the largest is 8, so it is none; make it anew')
    other = Reference('adm.npz', some_reference().moments, some_reference().features,
                      image_shape=[3, 64, 64])
    with pytest.raises(ValueError) as error:
        checked(other)
    assert str(error.value) == ('ref=adm.npz holds images of shape [3, 64, 64], but these have '
                                'shape [3, 4, 4]; make it anew with fid.py ref, or say '
                                'allow_mismatch=True')


def test_progress_goes_on_within_a_chunk_of_images(monkeypatch):
    shown = []
    monkeypatch.setattr(Progress, 'reach', lambda self, done: shown.append(done) or setattr(
        self, 'done', done))
    look(Noise(CHUNK + 30), batch=512)
    assert shown == [512, 1024, 1024, 1054, 1054]


def test_a_distance_below_zero_is_explained():
    assert below_zero({'fid': 0.0, 'kid': 0.1, 'demo_is': -1.0, 'kid_std': 0.2}) == []
    assert below_zero({'demo_kid': -0.00012, 'fid_inf': -0.5}) == [
        f'{name} came out at {value}: it estimates a distance without bias, and falls below 0 by '
        f'chance where the distance is about 0'
        for name, value in (('demo_kid', '-0.00012'), ('fid_inf', '-0.5'))]


def test_leftovers_of_a_killed_pass_are_removed(tmp_path):
    names = ['.progress.npz.abcdefgh.tmp', '.demo-000001.npy.abcdefgh.tmp', '.other.abcdefgh.tmp']
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    with _State(tmp_path, {}, [1], None):
        assert sorted(path.name for path in tmp_path.iterdir()) == ['.lock', names[2]]
