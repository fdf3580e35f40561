"""The checks of benchmarks.published, on files made here instead of downloaded."""

import io
import tarfile

import numpy as np
import torch
from click.testing import CliRunner

from benchmarks import published
from metrics.detectors import load_detector
from metrics.reference_files import write_reference
from metrics.statistics import Moments, Statistics
from tests.inception_weights import random_weights


def records(path, count):
    """A tar of five files of `count` records each; the pixels, [5 count, 3, 32, 32]."""
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, [5, count, 3072]).astype(np.uint8)
    with tarfile.open(path, 'w:gz') as archive:
        for number in range(5):
            data = np.concatenate([random.randint(0, 10, [count, 1]).astype(np.uint8),
                                   pixels[number]], axis=1).tobytes()
            info = tarfile.TarInfo(f'cifar-10-batches-bin/data_batch_{number + 1}.bin')
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return pixels.reshape(-1, 3, 32, 32)


def run(monkeypatch, files, *checks):
    monkeypatch.setattr(published, 'fetch', lambda url, sha256=None: files[url])
    return CliRunner().invoke(published.main, [*checks, '--device=cpu'])


def test_the_records_of_cifar10(tmp_path):
    pixels = records(tmp_path / 'x.tgz', 2)
    np.testing.assert_array_equal(published.cifar10_images(tmp_path / 'x.tgz'), pixels)


def test_one_digest_for_all_files_or_a_difference(tmp_path, monkeypatch):
    paths = []
    for seed in (0, 0, 1):
        paths.append(tmp_path / f'{len(paths)}.pth')
        torch.save(random_weights(seed), paths[-1])
    urls = [file.url for file in published.PUBLISHED] + [published.NGC_URL]
    same = run(monkeypatch, dict(zip(urls, [paths[0], paths[1], paths[0], paths[1]],
                                            strict=True)), 'detectors')
    assert same.exit_code == 0 and same.output.count('agrees ') == 4
    other = run(monkeypatch, dict(zip(urls, [paths[0], paths[1], paths[2], paths[1]],
                                             strict=True)), 'detectors')
    assert other.exit_code == 1 and [line[:7] for line in other.output.splitlines()] == ['agrees ',
                                                                                         'agrees ',
                                                                                         'DIFFERS',
                                                                                         'agrees ']


def test_the_training_set_against_its_own_statistics(tmp_path, monkeypatch):
    """With random weights: statistics of the same images, through our own file, give 0; others do
    not."""
    torch.save(random_weights(0), tmp_path / 'weights.pth')
    monkeypatch.setenv('LIMPID_DETECTOR', str(tmp_path / 'weights.pth'))
    pixels = records(tmp_path / 'cifar.tgz', 1)
    moments = Moments.zero(2048)
    moments.add(load_detector('inception',
                              torch.device('cpu')).features(torch.from_numpy(pixels))['pool_3'])
    write_reference(tmp_path / 'ref.npz', {'pool_3': Statistics(moments.mean(), moments.cov())})
    monkeypatch.setattr(published, 'EDM_CIFAR10', str(tmp_path / 'ref.npz'))
    result = run(monkeypatch, {published.CIFAR10: tmp_path / 'cifar.tgz'}, 'cifar10')
    assert result.exit_code == 0, result.output
    assert 'agrees   FID of the CIFAR-10 training set: ' in result.output
