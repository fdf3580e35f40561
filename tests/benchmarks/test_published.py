"""The checks of benchmarks.published, on files made here instead of downloaded."""

import io
import tarfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import few_steps, published
from metrics.detectors import load_detector
from metrics.reference_files import write_reference
from metrics.statistics import Moments, Statistics
from tests.commands.test_fid import smooth_images, write
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


def test_a_dry_run_of_few_steps_lists_steps_and_dashes():
    """Of each cell of the published table, and of no other, there is a number of steps."""
    result = CliRunner().invoke(published.main, ['--few-steps', '--dry-run'])
    assert result.exit_code == 0, result.output
    lines = [line.strip('| ').split(' | ') for line in result.output.splitlines()
             if line.startswith('|')][2:]
    assert '\nHow that program counts: its `num_steps` is the number of time' in result.output
    assert [line[0] for line in lines] == [row.name for row in few_steps.TABLE]
    for line, row in zip(lines, few_steps.TABLE, strict=True):
        assert line[1].startswith('`--') and '--final=sigma-min' in line[1]
        twice = row.name in ('Heun', 'DPM-Solver-2')
        assert line[2:] == [str((nfe // 2 if twice else nfe) + 1) if nfe in row.fid else '–'
                            for nfe in range(3, 11)]
    assert sum(len(row.fid) for row in few_steps.TABLE) == 6 * 8 + 2 * 4


def test_few_steps_end_to_end(tmp_path):
    """With an ideal denoiser and random features, whose numbers are far from the published."""
    data = write(tmp_path / 'data.zip', smooth_images(20, size=8))
    options = ['--few-steps', f'--network=ideal:{data}', f'--ref={data}', '--detector=demo',
               '--num=10', '--nfe=3,4', f'--dest={tmp_path}/out', '--device=cpu']
    result = CliRunner().invoke(published.main, options)
    assert result.exit_code == 1, result.output
    text = (tmp_path / 'out' / 'few-steps.md').read_text()
    lines = [line.strip('| ').split(' | ') for line in text.splitlines()]
    assert lines[3][:2] == ['Heun', '–'] and lines[3][2].endswith(' / 319.87 !')
    assert lines[2][1].endswith(' / 93.36 !') and len(lines) == 2 + 8
    rows = (tmp_path / 'out' / 'sweep.csv').read_bytes()
    again = CliRunner().invoke(published.main, options)   # nothing is measured twice
    assert again.output == text and rows == (tmp_path / 'out' / 'sweep.csv').read_bytes()


def test_cells_that_agree_with_the_published_ones():
    found = {row.name: {nfe: {'fid': str(value * 1.02)} for nfe, value in row.fid.items()}
             for row in few_steps.TABLE}
    lines, agree = few_steps.compared(found, 'fid', few_steps.BUDGETS)
    assert agree and lines[0][1] == '95.23 / 93.36' and lines[1][1] == '–'
    found['Euler'][3] = {'fid': '97'}
    lines, agree = few_steps.compared(found, 'fid', few_steps.BUDGETS)
    assert not agree and lines[0][1] == '97.00 / 93.36 !'


@pytest.mark.parametrize(('options', 'expected'), [
    (['--few-steps', 'adm'], '--few-steps takes no checks: leave out adm'),
    (['--dry-run'], '--dry-run would have no effect without --few-steps'),
    (['--few-steps', '--nfe=0'], '--nfe=0: a sampler evaluates the network at least once')])
def test_options_of_few_steps_that_do_not_fit(options, expected):
    result = CliRunner().invoke(published.main, options)
    assert result.exit_code == 2 and result.output == f'Error: {expected}\n'
