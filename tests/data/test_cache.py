"""Decoded images that processes share: the same bits as decoding, made once, whatever happens."""

import io
import multiprocessing
import os
import shutil
import signal
import zipfile
from collections import namedtuple
from itertools import islice

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import train
from checkpoints.open import open_network
from data.dataset import ImageFolderDataset
from data.decoded import decoded_dir
from data.loader import batches, order_index
from options.training import Cache
from training.dataset import DataConfig

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, [70, 3, 4, 6], dtype=np.uint8)   # more than a chunk of 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path / 'cache'))


@pytest.fixture
def data(tmp_path):
    """A zip of PNG files with the PIXELS, which are of four classes."""
    path = tmp_path / 'set.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for i, pixels in enumerate(PIXELS):
            png = io.BytesIO()
            PIL.Image.fromarray(pixels.transpose(1, 2, 0)).save(png, 'PNG')
            archive.writestr(f'{i:02d}.png', png.getvalue())
        labels = [[f'{i:02d}.png', i % 4] for i in range(len(PIXELS))]
        archive.writestr('dataset.json', str({'labels': labels}).replace("'", '"'))
    return path


def files():
    """The files of decoded images."""
    return sorted(decoded_dir().glob('*.raw'))


@pytest.mark.parametrize('workers', [0, 1, 2])
@pytest.mark.parametrize('cache', ['ram', 'mmap', 'off'])
def test_batches_have_the_same_bits_whatever_the_cache_and_the_workers(data, cache, workers):
    order = order_index(5, 2 * len(PIXELS), range(60, 60 + 12 * 12))
    flipped = np.concatenate([PIXELS, PIXELS[..., ::-1]])
    for world_size in (1, 2):
        with ImageFolderDataset(data, use_labels=True, xflip=True, cache=cache) as dataset:
            streams = [batches(dataset, 5, 60, 12, rank, world_size, workers)
                       for rank in range(world_size)]
            parts = [part for shares in islice(zip(*streams, strict=True), 12) for part in shares]
        assert np.array_equal(torch.cat([images for images, _ in parts]), flipped[order])
        assert np.array_equal(torch.cat([labels for _, labels in parts]), np.eye(4)[order % 70 % 4])
    assert len(files()) == (cache == 'mmap')


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_other_processes_map_the_same_file(data, method):
    with ImageFolderDataset(data, cache='mmap') as dataset:
        dataset.share()
        loader = torch.utils.data.DataLoader(dataset, batch_size=70, num_workers=1,
                                             multiprocessing_context=method)
        assert np.array_equal(next(iter(loader))[0], PIXELS)


def test_nothing_is_decoded_twice(data, monkeypatch, capsys):
    with ImageFolderDataset(data, cache='mmap') as dataset:
        assert np.array_equal(dataset.batch(np.arange(70))[0], PIXELS)
    assert capsys.readouterr().out == f'Decoding 70 images to {files()[0]} (0.00 GB)\n'
    with ImageFolderDataset(data, max_size=9, random_seed=1, cache='mmap') as dataset:
        monkeypatch.setattr(PIL.Image, 'open', None)   # opening a set reads its first image
        kept = [dataset.get_details(i).raw_idx for i in range(9)]
        assert np.array_equal(dataset.batch(np.arange(9))[0], PIXELS[kept])
    assert capsys.readouterr().out == ''


def test_a_batch_is_a_copy(data):
    with ImageFolderDataset(data, cache='mmap') as dataset:
        dataset.batch(np.arange(3))[0][:] = 0
        assert np.array_equal(dataset.batch(np.arange(3))[0], PIXELS[:3])


def test_arrays_are_kept_as_they_are(tmp_path):
    values = RNG.standard_normal([3, 5, 2, 2]).astype(np.float16)
    (tmp_path / 'set').mkdir()
    for i, array in enumerate(values):
        np.save(tmp_path / 'set' / f'{i}.npy', array)
    with ImageFolderDataset(tmp_path / 'set', cache='mmap') as dataset:
        images = dataset.batch(np.arange(3))[0]
    assert images.dtype == np.float16 and np.array_equal(images, values)


def test_the_file_is_named_by_the_contents(data, tmp_path):
    shutil.copy(data, tmp_path / 'copy.zip')
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / 'folder')
    with ImageFolderDataset(data) as dataset:
        key = dataset.key()
    for other in ('copy.zip', 'folder'):
        with ImageFolderDataset(tmp_path / other) as dataset:
            assert dataset.key() == key
    PIL.Image.fromarray(PIXELS[1].transpose(1, 2, 0)).save(tmp_path / 'folder' / '00.bmp')
    before, other = tmp_path / 'folder' / '00.png', tmp_path / 'folder' / '00.bmp'
    size = before.stat().st_size
    before.write_bytes(other.read_bytes()[:size].ljust(size))   # as many bytes, but others
    (tmp_path / 'folder' / '00.bmp').unlink()
    with ImageFolderDataset(tmp_path / 'folder', on_bad_image='skip') as dataset:
        assert dataset.key() != key


def test_a_damaged_file_is_made_again(data):
    with ImageFolderDataset(data, cache='mmap') as dataset:
        dataset.share()
    whole = files()[0].read_bytes()
    for damaged in (whole[:-10], b'', b'x' * len(whole)):
        files()[0].write_bytes(damaged)
        with ImageFolderDataset(data, cache='mmap') as dataset:
            assert np.array_equal(dataset.batch(np.arange(70))[0], PIXELS)
        assert files()[0].read_bytes() == whole


def read_all(data, found, dies_at=-1):
    """Put the sum of all pixels into a queue, unless the process is killed at an image."""
    decode = ImageFolderDataset._decode

    def dying(self, raw_idx):
        if raw_idx == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, raw_idx)

    ImageFolderDataset._decode = dying
    with ImageFolderDataset(data, cache='mmap') as dataset:
        found.put(int(dataset.batch(np.arange(70))[0].astype(int).sum()))


def test_processes_at_once_make_one_file_and_a_killed_one_leaves_none(data, monkeypatch, capfd):
    monkeypatch.setattr('data.dataset.processors', lambda: 1)   # it decodes itself
    context = multiprocessing.get_context('fork')
    found = context.Queue()
    killed = context.Process(target=read_all, args=(data, found, 66))
    killed.start()
    killed.join()
    assert (killed.exitcode, files()) == (-signal.SIGKILL, [])
    capfd.readouterr()
    processes = [context.Process(target=read_all, args=(data, found)) for _ in range(4)]
    for process in processes:
        process.start()
    assert {found.get(timeout=60) for _ in processes} == {PIXELS.astype(int).sum()}
    for process in processes:
        process.join()
    assert capfd.readouterr().out.count('Decoding 70 images to ') == len(files()) == 1


def test_images_that_cannot_be_used(tmp_path):
    folder = tmp_path / 'set'
    folder.mkdir()
    for i in (0, 2):
        PIL.Image.fromarray(PIXELS[i].transpose(1, 2, 0)).save(folder / f'{i}.png')
    (folder / '1.png').write_bytes(b'nothing')
    problem = f'{folder}: 1.png is not an image, or a damaged one'
    with ImageFolderDataset(folder, cache='mmap') as dataset:
        with pytest.raises(ValueError, match=problem):
            dataset.share()
        assert files() == []
    with ImageFolderDataset(folder, cache='mmap', on_bad_image='skip') as dataset:
        images, _ = dataset.batch(np.arange(3))
        assert np.array_equal(images, PIXELS[[0, 2, 2]]) and dataset.skipped == {1: problem}
    with ImageFolderDataset(folder, cache='mmap') as dataset:   # the file is there now
        assert np.array_equal(dataset.batch(np.array([0, 2]))[0], PIXELS[[0, 2]])
        with pytest.raises(ValueError, match=problem):
            dataset.batch(np.array([0, 1]))


def test_a_full_disk(data, tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10**9, 10**9, 5000))
    with ImageFolderDataset(data, cache='mmap') as dataset, pytest.raises(ValueError) as caught:
        dataset.share()
    assert str(caught.value) == (
        f'the decoded images take 0.0 GB, and {tmp_path}/cache/decoded has 0.0 GB left: set '
        f'LIMPID_CACHE_DIR to a folder on another disk, or use --cache=ram or --cache=off')
    assert files() == []


def test_a_run_is_the_same_with_any_cache(data, tmp_path):
    states = []
    for cache in ('ram', 'mmap'):
        result = CliRunner().invoke(train.main, [
            f'--run={tmp_path}/{cache}', f'--data={data}', f'--cache={cache}', '--cond=1',
            '--cbase=8', '--cres=1', '--blocks=1', '--batch=7', '--duration=0.000021', '--tick=1',
            '--pictures=0', '--lr-rampup=0', '--workers=0', '--device=cpu'])
        assert result.exit_code == 0, result.output
        states.append(open_network(tmp_path / cache / 'training-state-000000.pt', weights='raw'))
    assert all(torch.equal(a, b) for a, b in zip(
        *(net.state_dict().values() for net in states), strict=True))
    assert len(files()) == 1


def test_the_option():
    values = {word: Cache().convert(word, None, None)
              for word in ('ram', 'mmap', 'off', 'True', '1', '0', 'false', True, False)}
    assert list(values.values()) == ['ram', 'mmap', 'off', 'ram', 'ram', 'off', 'off', 'ram', 'off']
    with pytest.raises(ValueError, match='^cache=disk is none of ram, mmap, off$'):
        DataConfig('x', cache='disk').open()
