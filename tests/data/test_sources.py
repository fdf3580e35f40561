"""Every source of images: a tiny imitation of each format comes back, pixels, labels and names."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks.originals import write_lmdb
from data.convert import convert
from data.labels_file import with_labels
from data.source import NumberedArrays, Source
from data.sources import SOURCES, open_source
from data.sources.lmdb_file import Database
from data.stats import stats_of

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, [3, 32, 32, 3], dtype=np.uint8)
GREY = RNG.integers(0, 256, [3, 28, 28], dtype=np.uint8)
FASHION = Path('/usr/share/datasets/fashion-mnist')


def png(pixels):
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).save(data, format='PNG')
    return data.getvalue()


def is_color(source: Source, labels, classes=()):
    """The source has the three images of COLOR."""
    for name, expected in zip(source.names, COLOR, strict=True):
        assert np.array_equal(np.asarray(source.load(name)), expected)
    assert [source.labels.get(name) for name in source.names] == labels
    assert source.classes == classes


def python2_pickle(content):
    """A dictionary as Python 2 and numpy of 2009 wrote it: bytes everywhere, arrays by _reconstruct
    and a state."""
    def text(value):
        return b'U' + bytes([len(value)]) + value

    def item(value):
        if isinstance(value, list):
            return b']' + b'(' + b''.join(map(item, value)) + b'e'
        if isinstance(value, int):
            return b'K' + bytes([value])
        if isinstance(value, bytes):
            return text(value)
        rows, columns = value.shape
        return (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
                b'(K\x01' + b'J' + struct.pack('<i', rows) + b'J' + struct.pack('<i', columns)
                + b'\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff'
                b'J\xff\xff\xff\xffK\x00tb\x89T' + struct.pack('<i', value.size) + value.tobytes()
                + b'tb')

    pairs = b''.join(text(key) + item(value) for key, value in content.items())
    return b'\x80\x02}(' + pairs + b'u.'


def add(archive, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def planes(pixels):
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), 3072)


def test_cifar_10(tmp_path):
    path = tmp_path / 'cifar-10-python.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        add(archive, 'cifar-10-batches-py/data_batch_2',
            python2_pickle({b'labels': [9], b'data': planes(COLOR[2:])}))
        add(archive, 'cifar-10-batches-py/data_batch_1', python2_pickle(
            {b'batch_label': b'training batch 1 of 5', b'labels': [6, 0],
             b'data': planes(COLOR[:2]), b'filenames': [b'a.png', b'b.png']}))
        add(archive, 'cifar-10-batches-py/test_batch', python2_pickle(
            {b'labels': [3, 5], b'data': planes(COLOR[1:])}))
        add(archive, 'cifar-10-batches-py/batches.meta',
            python2_pickle({b'label_names': [b'airplane', b'automobile']}))
    is_color(open_source(str(path)), [6, 0, 9], ('airplane', 'automobile'))
    test = open_source(f'test:{path}')
    assert (test.labels, test.classes) == ({'00000000': 3, '00000001': 5},
                                           ('airplane', 'automobile'))
    assert np.array_equal(test.load('00000001'), COLOR[2])
    with pytest.raises(ValueError, match=f'^--source=test:{tmp_path} cannot be used: '):
        open_source(f'test:{tmp_path}')
    convert(open_source(str(path)), str(tmp_path / 'out'))
    assert json.loads((tmp_path / 'out/dataset.json').read_text())['labels'] == [
        ['00000/img00000000.png', 6], ['00000/img00000001.png', 0], ['00000/img00000002.png', 9]]
    assert np.array_equal(PIL.Image.open(tmp_path / 'out/00000/img00000001.png'), COLOR[1])


def test_cifar_100(tmp_path):
    path = tmp_path / 'cifar-100-python.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        add(archive, 'cifar-100-python/train', python2_pickle(
            {b'fine_labels': [19, 29, 0], b'coarse_labels': [1, 2, 3], b'data': planes(COLOR)}))
        add(archive, 'cifar-100-python/meta', python2_pickle(
            {b'fine_label_names': [b'apple'], b'coarse_label_names': [b'fruit']}))
    is_color(open_source(str(path)), [19, 29, 0], ('apple',))


def test_a_pickle_in_a_cifar_archive_executes_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'attacked'),)

    path = tmp_path / 'cifar-10-python.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        add(archive, 'x/data_batch_1', pickle.dumps({'data': Attack()}, protocol=2))
    with pytest.raises(ValueError, match=r'cifar-10-python.tar.gz cannot be read: it refers to '
                                         r'.*mkdir'):
        open_source(str(path))
    assert not (tmp_path / 'attacked').exists()


def idx(pixels):
    return bytes([0, 0, 8, pixels.ndim]) + struct.pack(
        f'>{pixels.ndim}I', *pixels.shape) + pixels.tobytes()


@pytest.mark.parametrize('images, labels, pack', [
    ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz', gzip.compress),
    ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte', bytes),
    ('emnist-letters-train-images-idx3-ubyte.gz', 'emnist-letters-train-labels-idx1-ubyte', bytes),
])
def test_idx(tmp_path, images, labels, pack):
    (tmp_path / images).write_bytes(pack(idx(GREY)))
    (tmp_path / labels).write_bytes(pack(idx(np.uint8([5, 0, 4]))))
    for options, padding in (({}, 2), ({'resolution': (28, 28)}, 0), ({'resolution': (32, 32)}, 2)):
        convert(open_source(str(tmp_path / images)), str(tmp_path / 'out'), overwrite=True,
                **options)
        for i in range(3):
            assert np.array_equal(PIL.Image.open(tmp_path / f'out/00000/img{i:08d}.png'),
                                  np.pad(GREY[i], padding))
    written = json.loads((tmp_path / 'out/dataset.json').read_text())['labels']
    assert [label for _, label in written] == [5, 0, 4]


@pytest.mark.parametrize('data, message', [
    (idx(GREY)[:-1], 'it claims 2,352 bytes of pixels, and has 2,351'),
    (idx(GREY) + b'0', 'it claims 2,352 bytes of pixels, and has more'),
    (idx(np.uint8([1])), 'it begins with 00000801'),
    (bytes([0, 0, 8, 3]) + b'\xff' * 12, 'bytes, more than 4,294,967,296'),
])
def test_damaged_idx(tmp_path, data, message):
    (tmp_path / 'x-idx3-ubyte').write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / 'x-idx3-ubyte'))


def test_lmdb(tmp_path):
    path = tmp_path / 'cat_train_lmdb'
    write_lmdb(path / 'data.mdb', {f'key{i}'.encode(): png(COLOR[i]) for i in (2, 0, 1)})
    is_color(open_source(str(path)), [None] * 3)   # the order of the keys counts
    (tmp_path / 'bad_lmdb').mkdir()
    (tmp_path / 'bad_lmdb' / 'data.mdb').write_bytes(b'nothing' * 1000)
    with pytest.raises(ValueError, match='bad_lmdb is no database of LMDB, or a damaged one: '):
        open_source(str(tmp_path / 'bad_lmdb'))


def test_lmdb_reads_what_the_library_writes(tmp_path):
    """Trees of three levels, after values were replaced and deleted."""
    lmdb, rng = pytest.importorskip('lmdb'), np.random.default_rng(0)
    with lmdb.open(str(tmp_path), map_size=2**28) as database:
        assert list(Database(tmp_path / 'data.mdb')) == []
        for _ in range(3):
            with database.begin(write=True) as transaction:
                for i in rng.permutation(20000):
                    if rng.random() < 0.1:
                        transaction.delete(b'%0100x' % i)
                    else:
                        transaction.put(b'%0100x' % i, rng.bytes(int(rng.choice([0, 9, 3000]))))
        with database.begin() as transaction:
            expected = [(bytes(key), bytes(value)) for key, value in transaction.cursor()]
    found = Database(tmp_path / 'data.mdb')
    assert found.depth == 3
    assert list(found) == [key for key, _ in expected]
    for key, value in expected[::20]:
        assert found.value(key, 2**20) == value
    assert found.value(b'none', 2**20) is None


def test_a_loop_in_lmdb(tmp_path):
    write_lmdb(tmp_path / 'x_lmdb' / 'data.mdb', {b'a': b'1', b'b': b'2'})
    data = bytearray((tmp_path / 'x_lmdb' / 'data.mdb').read_bytes())
    data[2 * 4096 + 16:2 * 4096 + 18] = data[2 * 4096 + 18:2 * 4096 + 20]   # the last key twice
    (tmp_path / 'x_lmdb' / 'data.mdb').write_bytes(data)
    with pytest.raises(ValueError, match='x_lmdb is no database of LMDB, or a damaged one: its '
                                         'keys do not ascend'):
        open_source(str(tmp_path / 'x_lmdb'))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    names = {'info': {'features': {'label': {'names': ['cat', 'dog'], '_type': 'ClassLabel'}}}}
    for part, chosen in (('0', [0, 1]), ('1', [2])):
        table = pyarrow.table({'image': [{'bytes': png(COLOR[i]), 'path': None} for i in chosen],
                               'label': [[0, 1, 1][i] for i in chosen]})
        table = table.replace_schema_metadata({'huggingface': json.dumps(names)})
        (tmp_path / 'hf').mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / f'hf/train-{part}.parquet', row_group_size=1)
    is_color(open_source(str(tmp_path / 'hf')), [0, 1, 1], ('cat', 'dog'))
    one = open_source(str(tmp_path / 'hf/train-1.parquet'))
    assert np.array_equal(one.load(one.names[0]), COLOR[2])
    (tmp_path / 'x.parquet').write_bytes(b'PAR1')
    with pytest.raises(ValueError, match='x.parquet is no parquet file, or a damaged one: '):
        open_source(str(tmp_path / 'x.parquet'))


def test_arrays(tmp_path):
    np.savez(tmp_path / 'adm.npz', COLOR, [4, 5, 6])
    is_color(open_source(str(tmp_path / 'adm.npz')), [4, 5, 6])
    np.save(tmp_path / 'planes.npy', COLOR.transpose(0, 3, 1, 2))
    is_color(open_source(str(tmp_path / 'planes.npy')), [None] * 3)
    latents = RNG.standard_normal([3, 4, 8, 6]).astype(np.float32)
    np.save(tmp_path / 'latents.npy', latents)
    assert convert(open_source(str(tmp_path / 'latents.npy')), str(tmp_path / 'out')) == (
        f'{tmp_path}/out: 3 images, 6x8 float32 with 4 channels, without labels')
    for i in range(3):
        assert np.array_equal(np.load(tmp_path / f'out/00000/img{i:08d}.npy'), latents[i])
    np.save(tmp_path / 'objects.npy', np.array([{}]))
    with pytest.raises(ValueError, match='objects.npy cannot be read: an array holds pickled'):
        open_source(str(tmp_path / 'objects.npy'))


def test_shards_of_webdataset(tmp_path):
    (tmp_path / 'wds').mkdir()
    for shard, chosen in enumerate([[0, 1], [2]]):
        with tarfile.open(tmp_path / f'wds/{shard:05d}.tar', 'w') as archive:
            for i in chosen:
                add(archive, f'{i:04d}.png', png(COLOR[i]))
                add(archive, f'{i:04d}.cls', str(i + 3).encode())
                add(archive, f'{i:04d}.txt', b'a caption')
    is_color(open_source(str(tmp_path / 'wds')), [3, 4, 5])
    with tarfile.open(tmp_path / 'folders.tar', 'w') as archive:
        for name, pixels in zip(('b/1.png', 'a/2.png', 'b/3.png'), COLOR, strict=True):
            add(archive, name, png(pixels))
    is_color(open_source(str(tmp_path / 'folders.tar')), [1, 0, 1], ('a', 'b'))
    with tarfile.open(tmp_path / 'some.tar', 'w') as archive:
        add(archive, '0.png', png(COLOR[0]))
        add(archive, '1.png', png(COLOR[1]))
        add(archive, '1.json', b'{"label": 2}')
    with pytest.raises(ValueError, match='some.tar: 0.png has no label, but others have'):
        open_source(str(tmp_path / 'some.tar'))


def test_class_folders_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, pixels in zip(('photos/a/1.png', 'photos/b/2.png', 'photos/b/3.png'), COLOR,
                                strict=True):
            archive.writestr(name, png(pixels))
    is_color(open_source(str(tmp_path / 'a.zip')), [0, 1, 1], ('a', 'b'))


THREE = NumberedArrays(COLOR)


@pytest.mark.parametrize('text, expected, classes', [
    ('name,label\na.png,2\nb.png,0\nc.png,1\n', [2, 0, 1], ()),
    ('c.png;0\nb.png;1\na.png;2\n', [2, 1, 0], ()),
    ('a.png,dog\nb.png,cat\nc.png,dog\n', [1, 0, 1], ('cat', 'dog')),
    ('file,x,y\na.png,1,2.5\nb.png,0,0\nc.png,3,4\n', [[1, 2.5], [0, 0], [3, 4]], ()),
    ('{"a.png": 1, "b.png": 0, "c.png": 1}', [1, 0, 1], ()),
    ('{"labels": [["a.png", "x"], ["b.png", "y"], ["c.png", "y"]]}', [0, 1, 1], ('x', 'y')),
    ('[["a.png", [0.5]], ["b.png", [1]], ["c.png", [2]]]', [[0.5], [1], [2]], ()),
])
def test_labels_of_a_file(tmp_path, text, expected, classes):
    (tmp_path / 'l').write_text(text)
    source = with_labels(Source(['a.png', 'b.png', 'c.png'], THREE), str(tmp_path / 'l'))
    assert [source.labels[name] for name in source.names] == expected
    assert source.classes == classes


@pytest.mark.parametrize('text, message', [
    ('a.png,0\nb.png,1\n', 'l has no label for c.png: label every image or none'),
    ('a.png,0\nb.png\n', 'line 2 has 1 fields, the first 2'),
    ('', 'is empty'),
    ('{"labels": 3}', 'it holds something else'),
    ('a.png,0\nb.png,x\nc.png,1', 'the label of a.png is 0, but others are words'),
])
def test_wrong_files_of_labels(tmp_path, text, message):
    (tmp_path / 'l').write_text(text)
    with pytest.raises(ValueError, match=message):
        with_labels(Source(['a.png', 'b.png', 'c.png'], THREE), str(tmp_path / 'l'))


def test_every_source_is_tried_here():
    assert set(SOURCES) == {'digits', 'lsun', 'cifar', 'idx', 'arrays', 'parquet', 'tar', 'folder',
                            'zip'}


@pytest.mark.skipif(not FASHION.is_dir(), reason='needs the package dataset-fashion-mnist')
def test_fashion_mnist():
    """60,000 images, 6,000 of each class, mean .2860, std .3530 of [0, 1]."""
    source = open_source(str(FASHION / 'train-images-idx3-ubyte.gz'))
    assert len(source.names) == 60000
    assert np.bincount(list(source.labels.values())).tolist() == [6000] * 10
    pixels = source.load.pixels
    assert abs(pixels.mean(dtype=np.float64) / 255 - 0.2860) < 5e-5
    assert abs(pixels.std(dtype=np.float64) / 255 - 0.3530) < 5e-5
    assert stats_of(Source(source.names[:200], source.load)).images == 200
