"""Batches of images in one array: every layout, pieces in any order, and no more read than was
asked for."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from metrics import sample_batch as module
from metrics.sample_batch import SampleBatch, write_sample_batch

IMAGES = np.random.default_rng(0).integers(0, 256, [23, 6, 5, 3], dtype=np.uint8)   # N, H, W, C
CLASSES = np.arange(23) % 10
CHANNELS_FIRST = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)


def write_npy(path, images, **others):
    with open(path, 'wb') as file:
        np.save(file, images)


WRITERS = {'stored': np.savez, 'compressed': np.savez_compressed, 'npy': write_npy}


def saved(path, images=IMAGES, how='stored', **others):
    with open(path, 'wb') as file:
        WRITERS[how](file if how != 'npy' else path, images, **others)
    return path


@pytest.mark.parametrize('how', WRITERS)
def test_pieces_in_any_order(tmp_path, how):
    with SampleBatch(saved(tmp_path / 'a', how=how)) as batch:
        assert len(batch) == 23 and batch.image_shape == [3, 6, 5]
        for positions in (range(0, 4), range(4, 9), range(20, 23), range(2, 3), range(0, 23),
                          range(5, 20, 3), range(7, 7), [1, 2, 9, 10, 11, 22], np.array([3, 3, 0])):
            found = batch.images(positions)
            assert found.dtype == torch.uint8 and found.is_contiguous()
            assert torch.equal(found, CHANNELS_FIRST[list(positions)])
        for positions in (range(20, 24), [-1], [23]):
            with pytest.raises(IndexError, match=f'of {tmp_path}/a, which has 23$'):
                batch.images(positions)


@pytest.mark.parametrize('how', WRITERS)
@pytest.mark.parametrize('shape', [[7, 4, 5], [7, 4, 5, 1]])
def test_grey_images(tmp_path, how, shape):
    grey = IMAGES.reshape(-1)[:140].reshape(shape)
    batch = SampleBatch(saved(tmp_path / 'a', grey, how))
    assert batch.image_shape == [1, 4, 5]
    np.testing.assert_array_equal(batch.images(range(2, 7)).numpy(), grey.reshape(7, 1, 4, 5)[2:])


def test_labels(tmp_path):
    for dtype in (np.int64, np.int32, np.uint8):
        batch = SampleBatch(saved(tmp_path / 'a', IMAGES, 'compressed',
                                  arr_1=CLASSES.astype(dtype)))
        assert batch.labels().dtype == np.int64
        np.testing.assert_array_equal(batch.labels(), CLASSES)
    assert SampleBatch(saved(tmp_path / 'b')).labels() is None
    assert SampleBatch(saved(tmp_path / 'c', how='npy')).labels() is None
    for labels, found in ((CLASSES[:9], r'int64 \[9\]'), (CLASSES / 2, r'float64 \[23\]'),
                          (np.array([{}] * 23), r'object \[23\]')):
        batch = SampleBatch(saved(tmp_path / 'd', arr_1=labels))
        assert torch.equal(batch.images(range(23)), CHANNELS_FIRST)
        with pytest.raises(ValueError, match=rf'd is damaged or not a batch of images: its arr_1 '
                                             rf'is {found}, not classes \[23\]$'):
            batch.labels()


# No more is read than was asked for.

def test_opening_reads_no_image_and_a_stored_piece_is_found_at_once(tmp_path, monkeypatch):
    read = []

    class Counted(module._Stored):
        def readinto(self, target):
            read.append(super().readinto(target))
            return read[-1]

    monkeypatch.setattr(module, '_Stored', Counted)
    batch = SampleBatch(saved(tmp_path / 'a'))
    assert read == []
    for positions in (range(20, 22), range(3, 4), range(4, 8)):
        assert torch.equal(batch.images(positions), CHANNELS_FIRST[list(positions)])
    assert read == [2 * 90, 90, 4 * 90]


def test_ten_gigabytes_are_no_trouble(tmp_path):
    """A file with a hole in it takes no room on the disk; its last image does."""
    path, shape = tmp_path / 'large.npy', (50_000, 256, 256, 3)
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False,
                                                    'shape': shape})
        file.truncate(file.tell() + int(np.prod(shape)) - 5)
        file.seek(0, 2)
        file.write(b'\1\2\3\4\5')
    batch = SampleBatch(path)
    assert len(batch) == 50_000 and batch.image_shape == [3, 256, 256]
    last = batch.images(range(49_999, 50_000))
    assert (
        last.sum() == 15
        and last[0, :, -1, -1].tolist() == [3, 4, 5]
        and last[0, :, -1, -2].tolist() == [0, 1, 2]
    )
    assert not batch.images(range(0, 2)).any()
    assert len(batch.fingerprint()) == 64


def test_a_compressed_file_is_decompressed_once_where_pieces_come_in_order(tmp_path, monkeypatch):
    images, opened, sizes = (
        np.random.default_rng(1).integers(0, 256, [300, 32, 32, 3], dtype=np.uint8),
        [],
        [],
    )
    path = saved(tmp_path / 'a', images, 'compressed')
    original, decompressed = zipfile.ZipExtFile.read, zipfile.ZipExtFile._read1
    monkeypatch.setattr(zipfile.ZipExtFile, 'read', lambda self, n=-1: opened.append(n)
                        or original(self, n))

    def counted(self, n):
        data = decompressed(self, n)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, '_read1', counted)
    batch = SampleBatch(path)
    header = sum(sizes)
    assert header < 10_000
    for start in range(0, 300, 10):
        assert np.array_equal(batch.images(range(start, start + 10)).numpy(),
                              images[start:start + 10].transpose(0, 3, 1, 2))
    assert images.nbytes <= sum(sizes) - header <= images.nbytes + 10_000   # each byte once
    # and never more than a piece at a time
    assert max(opened) <= 10 * 32 * 32 * 3
    batch.images(range(0, 10))
    # back to the start, and no further
    assert sum(sizes) - header < images.nbytes + 10 * 32 * 32 * 3 + 20_000


# Processes

class Ranges(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, start):
        return self.batch.images(range(start, start + 1))

    def __len__(self):
        return len(self.batch)


@pytest.mark.parametrize('how', WRITERS)
def test_processes_do_not_share_a_position(tmp_path, how):
    batch = SampleBatch(saved(tmp_path / 'a', how=how))
    batch.images(range(5))   # opens the file, which workers inherit
    loader = torch.utils.data.DataLoader(Ranges(batch), batch_size=None, num_workers=2,
                                         multiprocessing_context='fork')
    found = [(image, batch.images(range(i, i + 1))) for i, image in enumerate(loader)]
    for i, (theirs, ours) in enumerate(found):
        assert torch.equal(theirs, CHANNELS_FIRST[i:i + 1]) and torch.equal(ours, theirs)
    copy = pickle.loads(pickle.dumps(batch))
    assert len(pickle.dumps(batch)) < 2000
    assert torch.equal(copy.images(range(9)), CHANNELS_FIRST[:9])
    batch.close()
    batch.close()
    assert torch.equal(batch.images(range(3)), CHANNELS_FIRST[:3])


# Fingerprints

def test_fingerprint_is_of_the_pixels(tmp_path):
    other = IMAGES.copy()
    other[11, 2, 2, 1] ^= 1
    found = {name: SampleBatch(saved(tmp_path / name, images, how, **labels)).fingerprint()
             for name, images, how, labels in (
        ('a', IMAGES, 'stored', {}), ('compressed', IMAGES, 'compressed', {'arr_1': CLASSES}),
        ('other', other, 'stored', {}), ('npy', IMAGES, 'npy', {}),
        ('other npy', other, 'npy', {}))}
    assert found['a'] == found['compressed'] == found['npy'] and found['other'] == found[
        'other npy'] != found['a']
    assert len(found['a']) == 64
    os.rename(tmp_path / 'a', tmp_path / 'b')
    assert SampleBatch(tmp_path / 'b').fingerprint() == found['a']


# What is no batch of images

@pytest.mark.parametrize('how', WRITERS)
@pytest.mark.parametrize('images, problem', [
    (IMAGES.astype(np.float32), 'arr_0 is float32 [23, 6, 5, 3], not uint8 [N, H, W, 3]: '
                                'save (x * 127.5 + 128).clip(0, 255) as uint8, for x in -1 ... 1'),
    (IMAGES.astype(np.int64), 'arr_0 is int64 [23, 6, 5, 3], not uint8 [N, H, W, 3]: '
                              'save (x * 127.5 + 128).clip(0, 255) as uint8, for x in -1 ... 1'),
    (IMAGES.transpose(0, 3, 1, 2).copy(), 'arr_0 is uint8 [23, 3, 6, 5], channels first; channels '
                                          'last are right: save x.transpose(0, 2, 3, 1)'),
    (IMAGES[0, 0], 'arr_0 is uint8 [5, 3], not [N, H, W, 3], [N, H, W, 1] or [N, H, W]'),
    (np.zeros([4, 8, 8, 4], np.uint8), 'arr_0 is uint8 [4, 8, 8, 4], not [N, H, W, 3], [N, H, W, '
                                       '1] or [N, H, W]'),
    (IMAGES[:0], 'arr_0 is uint8 [0, 6, 5, 3], not [N, H, W, 3], [N, H, W, 1] or [N, H, W]'),
    (np.asfortranarray(IMAGES), "arr_0 is in Fortran's order: save np.ascontiguousarray(x)"),
    (np.array([{}, {}]), 'arr_0 holds pickled objects, not uint8 [N, H, W, 3]'),
])
def test_other_arrays_are_refused(tmp_path, how, images, problem):
    path = saved(tmp_path / 'a', images, how)
    with pytest.raises(ValueError) as error:
        SampleBatch(path)
    assert str(error.value) == f'{path}: {problem}'


def test_other_files_are_refused(tmp_path):
    path = tmp_path / 'a'

    def message():
        with pytest.raises(ValueError) as error:
            SampleBatch(path)
        text = str(error.value)
        assert '\n' not in text
        return text.removeprefix(f'{path} is damaged or not a batch of images: ')

    assert message() == f'{path}: no such batch of images'
    for content, problem in ((b'', 'it is empty'), (b'\x89PNG\r\n\0', r"it starts with "
                                                                      r"b'\x89PNG\r\n'")):
        path.write_bytes(content)
        assert message() == problem
    np.savez(tmp_path / 'b.npz', mu=np.zeros(3), sigma=np.eye(3))
    path.write_bytes((tmp_path / 'b.npz').read_bytes())
    assert message() == 'it has no arr_0, only mu, sigma'
    whole = saved(path, how='npy').read_bytes()
    path.write_bytes(whole[:-1])
    assert message() == 'its array, uint8 [23, 6, 5, 3], should have 2070 bytes, but has 2069'
    path.write_bytes(b'\x93NUMPY\x07\x00' + whole[8:])
    assert message() == 'an array is in version (7, 0) of the format'
    path.unlink()
    path.mkdir()
    assert message() == f'{path} is a folder, not a batch of images (.npz or .npy)'


@pytest.mark.parametrize('how', ['stored', 'compressed'])
def test_damaged_zips_are_told(tmp_path, how):
    path = saved(tmp_path / 'a', how=how)
    whole = path.read_bytes()
    for size in (len(whole) - 10, len(whole) // 2, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='^.*/a is damaged or not a batch of images: File is '
                                             'not a zip file$'):
            SampleBatch(path)
    if how == 'compressed':
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:])
        with pytest.raises(ValueError, match='^.*/a is damaged or not a batch of images: '):
            SampleBatch(path).images(range(23))


def test_a_file_that_shrinks_is_told(tmp_path):
    path = saved(tmp_path / 'a', how='npy')
    batch = SampleBatch(path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(ValueError, match='/a is damaged or not a batch of images: it ends 100 '
                                         'bytes before image 23 does$'):
        batch.images(range(20, 23))
    assert torch.equal(batch.images(range(21)), CHANNELS_FIRST[:21])


# Writing

def test_what_is_written_is_what_adm_reads(tmp_path):
    path = tmp_path / 'new' / 'a.npz'
    write_sample_batch(path, iter(CHANNELS_FIRST.split(7)), [23, 3, 6, 5], CLASSES)
    with np.load(path) as file:
        assert file.files == ['arr_0', 'arr_1']
        np.testing.assert_array_equal(file['arr_0'], IMAGES)
        np.testing.assert_array_equal(file['arr_1'], CLASSES)
        assert file['arr_0'].dtype == np.uint8 and file['arr_1'].dtype == np.int64
    batch = SampleBatch(path)
    assert torch.equal(batch.images(range(23)), CHANNELS_FIRST)
    np.testing.assert_array_equal(batch.labels(), CLASSES)
    write_sample_batch(tmp_path / 'b.npz', [CHANNELS_FIRST.contiguous()], [23, 3, 6, 5],
                       CLASSES.astype(np.int32))
    assert (tmp_path / 'b.npz').read_bytes() == path.read_bytes()
    write_sample_batch(tmp_path / 'c.npz', CHANNELS_FIRST[:, :1].split(1), [23, 1, 6, 5])
    np.testing.assert_array_equal(np.load(tmp_path / 'c.npz')['arr_0'], IMAGES[..., :1])
    assert np.load(tmp_path / 'c.npz').files == ['arr_0']


def test_each_piece_is_written_before_the_next_is_asked_for(tmp_path):
    sizes = []

    def pieces():
        for i in range(40):
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
            yield torch.full([10, 3, 64, 64], i, dtype=torch.uint8)

    write_sample_batch(tmp_path / 'a.npz', pieces(), [400, 3, 64, 64])
    assert all(i * 10 * 3 * 64 * 64 <= size + 150_000 for i, size in enumerate(sizes))
    assert SampleBatch(tmp_path / 'a.npz').images([0, 399])[:, 0, 0, 0].tolist() == [0, 39]


@pytest.mark.parametrize('images, shape, labels, problem', [
    (CHANNELS_FIRST, [24, 3, 6, 5], None, '23 images came, not 24'),
    (CHANNELS_FIRST, [22, 3, 6, 5], None, '23 images came, not 22'),
    (CHANNELS_FIRST, [23, 3, 5, 6], None, 'images are torch.uint8 [23, 3, 6, 5], not torch.uint8 '
                                          '[B, 3, 5, 6]'),
    (CHANNELS_FIRST / 255, [23, 3, 6, 5], None, 'images are torch.float32 [23, 3, 6, 5], not '
                                                'torch.uint8 [B, 3, 6, 5]'),
    (CHANNELS_FIRST, [23, 3, 6, 5], CLASSES[:3], '23 images cannot have the labels int64 [3]'),
    (CHANNELS_FIRST, [23, 3, 6, 5], CLASSES / 2, '23 images cannot have the labels float64 [23]'),
])
def test_what_cannot_be_written_leaves_no_file(tmp_path, images, shape, labels, problem):
    path = tmp_path / 'a.npz'
    with pytest.raises(ValueError) as error:
        write_sample_batch(path, [images], shape, labels)
    assert str(error.value) == f'{path}: {problem}'
    assert list(tmp_path.iterdir()) == []
