"""Data sets: what an item is, which items there are, in which order, and what goes wrong."""

import io
import json
import multiprocessing
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch
from torch import Tensor

from data.image_files import ImageFiles
from training.dataset import DataConfig, ImageFolderDataset, batches, order_index


def pixels(i: int, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C], different for every i, without any symmetry."""
    return np.random.default_rng(i).integers(0, 256, [4, 4, channels], dtype=np.uint8)


def png(image: np.ndarray, format: str = 'PNG', **options: Any) -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(image.squeeze()).save(data, format=format, **options)
    return data.getvalue()


def png_of_16_bits(color_type: int) -> bytes:
    """A 1x1 PNG of 16 bits per channel: grey (0) or RGB (2)."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', 1, 1, 16, color_type, 0, 0, 0)
    rows = b'\0' + b'\x12\x34' * (1 if color_type == 0 else 3)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
            + chunk(b'IEND', b''))


def write(path: Path, files: dict[str, bytes]) -> str:
    """Make a zip (in the given order) or a folder."""
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return str(path)


def labelled(labels: Any) -> bytes:
    return json.dumps({'labels': labels}).encode()


def ten(tmp_path: Path, name: str = 'ten.zip') -> str:
    files = {f'{i}.png': png(pixels(i)) for i in range(10)}
    return write(tmp_path / name,
                 {**files, 'dataset.json': labelled([[f, i % 4] for i, f in enumerate(files)])})


def chw(i: int) -> np.ndarray:
    return pixels(i).transpose(2, 0, 1)


@pytest.mark.parametrize('name', ['set.zip', 'set'])
def test_items_are_in_the_order_of_their_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, {
        'b/1.PNG': png(pixels(1)), 'a.png': png(pixels(0)), 'c.bmp': png(pixels(2), 'BMP'),
        'notes.txt': b'', '._a.png': b'', '__MACOSX/._a.png': b'',
        'dataset.json': labelled([['c.bmp', 2], ['a.png', 0], ['b\\1.PNG', 1], ['gone.png', 9]]),
    })
    data = ImageFolderDataset(path, use_labels=True)
    assert len(data) == 3
    assert data.name == 'set'
    for i in range(3):
        image, label = data[i]
        assert image.dtype == np.uint8 and label.dtype == np.float32
        np.testing.assert_array_equal(image, chw(i))
        np.testing.assert_array_equal(label, np.eye(3)[i])
        np.testing.assert_array_equal(data.get_label(i), label)
    assert (data.image_shape, data.num_channels, data.resolution) == ([3, 4, 4], 3, 4)
    assert (data.label_dim, data.label_shape, data.has_labels,
            data.has_onehot_labels) == (3, [3], True, True)


def test_without_labels_and_in_grey(tmp_path: Path) -> None:
    path = write(tmp_path / 'set', {'a.png': png(pixels(0, channels=1))})
    data = ImageFolderDataset(path)
    image, label = data[0]
    np.testing.assert_array_equal(image, pixels(0, channels=1).transpose(2, 0, 1))
    assert label.shape == (0,) and label.dtype == np.float32
    assert (data.label_dim, data.has_labels) == (0, False)
    assert data.get_details(0).raw_label is None


def test_vectors_as_labels(tmp_path: Path) -> None:
    path = write(
        tmp_path / 'set',
        {
            'a.png': png(pixels(0)),
            'b.png': png(pixels(1)),
            'dataset.json': labelled([['b.png', [3, 4.5]], ['a.png', [1, -2]]]),
        },
    )
    data = ImageFolderDataset(path, use_labels=True)
    assert data.label_dim == 2 and not data.has_onehot_labels
    np.testing.assert_array_equal(data[0][1], np.float32([1, -2]))
    np.testing.assert_array_equal(data[1][1], np.float32([3, 4.5]))


def test_xflip_comes_after_all_plain_images(tmp_path: Path) -> None:
    data = ImageFolderDataset(ten(tmp_path), xflip=True, use_labels=True)
    assert len(data) == 20
    for i in range(10):
        np.testing.assert_array_equal(data[i][0], chw(i))
        np.testing.assert_array_equal(data[10 + i][0], chw(i)[:, :, ::-1])
        np.testing.assert_array_equal(data[10 + i][1], np.eye(4)[i % 4])
    details = data.get_details(13)
    assert (details.raw_idx, details.xflip, details.raw_label) == (3, True, 3)


@pytest.mark.parametrize('cache', [False, True])
def test_max_size(tmp_path: Path, cache: bool) -> None:
    """RandomState(5) shuffles 0..9 into 9 5 2 4 7 1 0 8 6 3; the first three, sorted, are kept."""
    path = ten(tmp_path)
    for seed in (5, 5 + 2**31):
        data = ImageFolderDataset(path, max_size=3, random_seed=seed, xflip=True, use_labels=True,
                                  cache=cache)
        assert [data.get_details(i).raw_idx for i in range(6)] == [2, 5, 9, 2, 5, 9]
        np.testing.assert_array_equal(data[1][0], chw(5))
        np.testing.assert_array_equal(data[5][0], chw(9)[:, :, ::-1])
        assert data.label_dim == 4   # of the whole set: the images kept have the classes 2, 1, 1
    assert len(ImageFolderDataset(path, max_size=100)) == 10


def test_items_are_copies(tmp_path: Path) -> None:
    data = ImageFolderDataset(ten(tmp_path), use_labels=True, cache=True)
    for array in data[0]:
        array[...] = 7
    np.testing.assert_array_equal(data[0][0], chw(0))
    np.testing.assert_array_equal(data[0][1], [1, 0, 0, 0])
    assert data[-1][1].tolist() == data[9][1].tolist()
    with pytest.raises(IndexError):
        data[10]


def test_the_cache_decodes_an_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageFolderDataset(ten(tmp_path), cache=True, xflip=True)
    seen = []
    read = data.files.read
    monkeypatch.setattr(data.files, 'read', lambda name: (seen.append(name), read(name))[1])
    for _ in range(2):
        np.testing.assert_array_equal(data.batch(np.array([2, 14, 3]))[0][1], chw(4)[:, :, ::-1])
    assert seen == ['2.png', '4.png', '3.png']


def test_a_pickled_set_reads_the_same(tmp_path: Path) -> None:
    data = ImageFolderDataset(ten(tmp_path), cache=True, use_labels=True)
    np.testing.assert_array_equal(data[3][0], chw(3))
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[3][0], chw(3))
    data.close()
    np.testing.assert_array_equal(data[4][0], chw(4))


def _in_child(data: ImageFolderDataset, inherited: Any, queue: Any) -> None:
    image = data[7][0]
    queue.put((image.tolist(), data.files._archive() is inherited))


def test_a_forked_process_opens_the_zip_anew(tmp_path: Path) -> None:
    """With the inherited handle it would share the parent's position in the file."""
    data = ImageFolderDataset(ten(tmp_path))
    inherited = data.files._archive()
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(data, inherited, queue))
    child.start()
    image, same = queue.get(timeout=240)
    child.join()
    np.testing.assert_array_equal(image, chw(7))
    assert not same
    assert data.files._archive() is inherited


def test_config(tmp_path: Path) -> None:
    config = DataConfig(ten(tmp_path), use_labels=True, xflip=True, max_size=3, random_seed=5)
    with config.open() as data:
        assert (len(data), data.label_dim, data.cache) == (6, 4, 'ram')
        assert data.get_details(0).raw_idx == 2
    assert DataConfig(config.path, cache='off').open().cache == 'off'


def test_fingerprint(tmp_path: Path) -> None:
    path = ten(tmp_path)
    original = ImageFolderDataset(path).fingerprint()
    assert (
        original
        == ImageFolderDataset(ten(tmp_path, 'copy.zip'), xflip=True, max_size=2).fingerprint()
    )
    assert len(original) == 64
    folder = tmp_path / 'folder'
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    seen = {original, ImageFolderDataset(folder).fingerprint()}
    (folder / '3.png').rename(folder / '33.png')
    seen.add(ImageFolderDataset(folder).fingerprint())
    (folder / '4.png').write_bytes(png(pixels(4)) + b'more')
    seen.add(ImageFolderDataset(folder).fingerprint())
    (folder / 'dataset.json').write_text('{"labels": null}')
    seen.add(ImageFolderDataset(folder).fingerprint())
    files = {f'{i}.png': png(pixels(i + (i == 9))) for i in range(10)}   # same names and sizes
    seen.add(ImageFolderDataset(write(tmp_path / 'other.zip', files)).fingerprint())
    assert len(seen) == 6


def test_use_pyspng_is_not_ignored_silently(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match='use_pyspng has no effect: Pillow decodes every image'):
        ImageFolderDataset(ten(tmp_path), use_pyspng=True)


A = png(pixels(0))
GREY = png(pixels(0, channels=1))
ERRORS: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    'empty': (
        {'a.txt': b''},
        {},
        'SET holds no images (files that end in .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, '
        '.pgm, .png, .pnm, .ppm, .tif, .tiff, .webp, .npy)',
    ),
    'not an image': (
        {'a.png': A, 'b.png': b'hello'},
        {},
        'SET: b.png is not an image, or a damaged one',
    ),
    'first one bad': (
        {'a.png': b'', 'b.png': A},
        {},
        'SET: a.png is not an image, or a damaged one',
    ),
    'rgba': (
        {'a.png': A, 'b.png': png(pixels(0, channels=4))},
        {},
        'SET: b.png is RGBA, not 8-bit greyscale (L) or RGB: convert the set with '
        'python dataset_tool.py --source=SET --dest=NEW.zip --transform=center-crop '
        '--resolution=64x64',
    ),
    '16-bit grey': (
        {'a.png': png_of_16_bits(0)},
        {},
        'SET: a.png is 16-bit, not 8-bit greyscale (L) or RGB: '
        'convert the set with '
        'python dataset_tool.py --source=SET --dest=NEW.zip --transform=center-crop '
        '--resolution=64x64',
    ),
    '16-bit rgb': (
        {'a.png': png_of_16_bits(2)},
        {},
        'SET: a.png is 16-bit, not 8-bit greyscale (L) or RGB: '
        'convert the set with '
        'python dataset_tool.py --source=SET --dest=NEW.zip --transform=center-crop '
        '--resolution=64x64',
    ),
    'size': (
        {'a.png': A, 'b.png': png(pixels(0)[:3])},
        {},
        'SET: b.png is 4x3 pixels with 3 channels, but a.png is 4x4 pixels with 3 channels: '
        'convert the set with '
        'python dataset_tool.py --source=SET --dest=NEW.zip --transform=center-crop '
        '--resolution=64x64',
    ),
    'channels': (
        {'a.png': A, 'b.png': GREY},
        {},
        'SET: b.png is 4x4 pixels with 1 channel, but a.png is 4x4 pixels with 3 channels: convert '
        'the set with python dataset_tool.py --source=SET --dest=NEW.zip --transform=center-crop '
        '--resolution=64x64',
    ),
    'resolution': (
        {'a.png': A},
        {'resolution': 8},
        'SET: a.png is 4x4 pixels with 3 channels, but resolution=8 means 8x8 pixels',
    ),
    'max_size': (
        {'a.png': A},
        {'max_size': 0},
        'max_size=0: keep at least 1 image, or None for all',
    ),
    'no labels': (
        {'a.png': A},
        {'use_labels': True},
        'SET has no labels: add a dataset.json with {"labels": [["name.png", label], ...]}, or do '
        'without labels',
    ),
    'null labels': (
        {'a.png': A, 'dataset.json': b'{"labels": null}'},
        {'use_labels': True},
        'SET has no labels: add a dataset.json with {"labels": [["name.png", label], ...]}, or do '
        'without labels',
    ),
    'one missing': (
        {'a.png': A, 'b.png': A, 'dataset.json': labelled([['a.png', 1]])},
        {'use_labels': True},
        'SET: dataset.json has no label for b.png: label every image or none',
    ),
    'comma': (
        {'a.png': A, 'dataset.json': b'{"labels": [["a.png", 1],]}'},
        {'use_labels': True},
        None,
    ),
    'deep': ({'a.png': A, 'dataset.json': b'[' * 200_000}, {'use_labels': True}, None),
    'list': (
        {'a.png': A, 'dataset.json': b'[["a.png", 1]]'},
        {'use_labels': True},
        'SET: dataset.json should be {"labels": [["name.png", label], ...]} or {"labels": null}',
    ),
    'triple': (
        {'a.png': A, 'dataset.json': labelled([['a.png', 1, 2]])},
        {'use_labels': True},
        'SET: dataset.json should be {"labels": [["name.png", label], ...]} or {"labels": null}',
    ),
    'word': (
        {'a.png': A, 'dataset.json': labelled([['a.png', 'cat']])},
        {'use_labels': True},
        'SET: dataset.json: the label of a.png is "cat", which is neither an integer from 0 nor a '
        'list of finite numbers',
    ),
    'negative': (
        {'a.png': A, 'dataset.json': labelled([['a.png', -1]])},
        {'use_labels': True},
        'SET: dataset.json: the label of a.png is -1, which is neither an integer from 0 nor a '
        'list of finite numbers',
    ),
    'nan': (
        {'a.png': A, 'dataset.json': labelled([['a.png', [1, float('nan')]]])},
        {'use_labels': True},
        'SET: dataset.json: the label of a.png is [1, NaN], which is neither an integer from 0 nor '
        'a list of finite numbers',
    ),
    'mixture': (
        {'a.png': A, 'b.png': A, 'dataset.json': labelled([['a.png', [1, 2]], ['b.png', 3]])},
        {'use_labels': True},
        'SET: dataset.json: the label of b.png is an integer, but that of a.png is a list of 2',
    ),
}


@pytest.mark.parametrize('name', ['set.zip', 'set'])
@pytest.mark.parametrize('case', ERRORS)
def test_errors_name_the_file(tmp_path: Path, name: str, case: str) -> None:
    files, options, message = ERRORS[case]
    path = write(tmp_path / name, files)
    with pytest.raises(ValueError) as caught:
        for _ in map(ImageFolderDataset(path, **options).__getitem__, range(2)):
            pass
    if message is None:   # the reason is worded by Python
        assert str(caught.value).startswith(f'{path}: dataset.json is not JSON: ')
        assert '\n' not in str(caught.value)
    else:
        assert str(caught.value) == message.replace('SET', path)


def test_damaged_archives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='none.zip: no such zip or folder$'):
        ImageFolderDataset(tmp_path / 'none.zip')
    path = Path(ten(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match='ten.zip is not a zip, or a damaged one: File is not a '
                                         'zip file$'):
        ImageFolderDataset(path)
    at = whole.index(pixels_of_png := png(pixels(1))) + len(pixels_of_png) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    data = ImageFolderDataset(path)
    with pytest.raises(ValueError, match="ten.zip: 1.png cannot be read: Bad CRC-32 for file "
                                         "'1.png'$"):
        data[1]


def test_a_truncated_image(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, [64, 64, 3], dtype=np.uint8)
    path = write(tmp_path / 'set', {'a.png': png(big), 'b.png': png(big)[:5000]})
    with pytest.raises(ValueError, match='set: b.png is damaged: '):
        ImageFolderDataset(path)[1]


def test_resolution_of_oblong_images(tmp_path: Path) -> None:
    path = write(tmp_path / 'set', {'a.png': png(pixels(0)[:3])})
    data = ImageFolderDataset(path)
    assert data[0][0].shape == (3, 3, 4)
    with pytest.raises(ValueError,
                       match='a.png is 4x3 pixels with 3 channels, which is not square: '
                             'convert the set with dataset_tool.py --source=.* '
                             '--transform=center-crop --resolution=64x64$'):
        _ = data.resolution


def test_order_visits_everything_once_per_pass() -> None:
    first = order_index(0, 7, range(0, 7))
    assert sorted(first) == list(range(7)) == sorted(order_index(0, 7, range(7, 14)))
    assert sorted(order_index(0, 7, range(7 * 10**9, 7 * 10**9 + 7))) == list(range(7))


def test_order_is_a_function_of_seed_and_position() -> None:
    """The numbers are pinned: training that is resumed years later continues in the same order."""
    assert order_index(0, 7, range(0, 14)).tolist() == PINNED
    assert order_index(0, 7, range(5, 9)).tolist() == PINNED[5:9]
    assert [int(order_index(0, 7, i)[0]) for i in range(14)] == PINNED
    assert order_index(0, 7, np.int64(8)).tolist() == PINNED[8:9]
    assert order_index(1, 7, range(0, 14)).tolist() != PINNED
    assert order_index(-1, 7, 0).tolist() == order_index(2**64 - 1, 7, 0).tolist()


PINNED = [3, 2, 1, 6, 0, 4, 5, 4, 5, 1, 6, 2, 0, 3]


Stream = Iterator[tuple[Tensor, Tensor]]


def joined(streams: list[Stream], count: int) -> tuple[Tensor, Tensor]:
    """`count` global batches, each put together from the ranks' shares."""
    parts = [part for shares in islice(zip(*streams, strict=True), count) for part in shares]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('cache', [False, True])
def test_batches_depend_on_neither_ranks_nor_workers_nor_cache(
    tmp_path: Path, workers: int, cache: bool,
) -> None:
    path = ten(tmp_path)
    reference = ImageFolderDataset(path, use_labels=True, xflip=True)
    indices = order_index(3, 20, range(12, 12 + 24))
    images = torch.stack([torch.from_numpy(reference[i][0]) for i in indices])
    labels = torch.stack([torch.from_numpy(reference[i][1]) for i in indices])
    for world_size in (1, 2, 3):
        data = ImageFolderDataset(path, use_labels=True, xflip=True, cache=cache)
        streams = [batches(data, 3, 12, 6, rank, world_size, workers) for rank in range(world_size)]
        got_images, got_labels = joined(streams, 4)
        assert (got_images.dtype, got_labels.dtype) == (torch.uint8, torch.float32)
        assert torch.equal(got_images, images) and torch.equal(got_labels, labels)


def test_a_rank_gets_a_contiguous_share(tmp_path: Path) -> None:
    data = ImageFolderDataset(ten(tmp_path))
    images, labels = next(batches(data, 0, 8, 6, rank=1, world_size=2))
    assert labels.shape == (3, 0)
    for image, index in zip(images, order_index(0, 10, range(11, 14)), strict=True):
        np.testing.assert_array_equal(image.numpy(), chw(index))


def test_batches_resume_at_any_counter(tmp_path: Path) -> None:
    data = ImageFolderDataset(ten(tmp_path), cache=True)
    whole = joined([batches(data, 0, 0, 4)], 6)[0]
    assert torch.equal(joined([batches(data, 0, 8, 4)], 4)[0], whole[8:])


@pytest.mark.parametrize('workers', [0, 1])
def test_batches_leave_the_global_generator_alone(tmp_path: Path, workers: int) -> None:
    data = ImageFolderDataset(ten(tmp_path))
    before = torch.get_rng_state()
    next(batches(data, 0, 0, 4, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_image_is_one_line_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    path = write(tmp_path / 'set', {'a.png': A, 'b.png': b'hello'})
    stream = batches(ImageFolderDataset(path), 0, 0, 2, workers=workers)
    with pytest.raises(ValueError) as caught:
        next(stream)
    assert str(caught.value) == f'{path}: b.png is not an image, or a damaged one'


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    data = ImageFolderDataset(ten(tmp_path))
    with pytest.raises(ValueError) as caught:
        batches(data, 0, 0, 10, world_size=3)
    assert str(caught.value) == ('a batch of 10 images cannot be shared equally by 3 processes: '
                                 'use a multiple of 3')


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        PIL.Image.new('L', (2, 2)).save(path / name)
    return path


def test_pipes_and_devices_are_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / 'set', 'a.png')
    os.mkfifo(folder / 'pipe.png')
    os.mkfifo(folder / 'dataset.json')
    (folder / 'zero.png').symlink_to('/dev/zero')
    (folder / 'lost.png').symlink_to('nowhere')
    files = ImageFiles(folder)
    assert files.names == ['a.png']
    assert files.note() == f'{folder}: passed over 4 that are no regular files (dataset.json, ...)'


def test_an_image_that_is_twice_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive, pytest.warns(UserWarning):
        for _ in range(2):
            archive.writestr('a.png', b'')
    with pytest.raises(ValueError, match='set.zip: a.png is in the zip more than once: make it '):
        ImageFiles(tmp_path / 'set.zip')


def test_small_files_stay_small(tmp_path: Path) -> None:
    """Each of these takes at most a few MB, and claims gigabytes."""
    zeros = tmp_path / 'zeros.zip'
    with (zipfile.ZipFile(zeros, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
          archive.open('a.png', 'w') as entry):
        for _ in range(257):
            entry.write(bytes(2**20))
    with pytest.raises(ValueError, match=r'a.png cannot be read: it has 269,484,032 bytes, more '):
        ImageFiles(zeros).image('a.png')
    folder = folder_of(tmp_path / 'set', 'a.png')
    file = io.BytesIO()
    PIL.Image.new('L', (8, 8)).save(file, 'BMP')
    (folder / 'a.png').write_bytes(file.getvalue().replace(
        struct.pack('<ii', 8, 8), struct.pack('<ii', 10250, 10001)))
    with pytest.raises(ValueError, match=r'a.png is 10250x10001, more than the 102,500,000 '):
        ImageFiles(folder).image('a.png')
    PIL.Image.new('1', (4097, 4096)).save(folder / 'a.png')
    with pytest.raises(ValueError, match=r'a.png has 16,781,312 pixels in 2,\d+ bytes, far '):
        ImageFiles(folder).image('a.png')
    with open(folder / 'dataset.json', 'wb') as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=r'dataset.json has more than 67,108,864 bytes'):
        ImageFiles(folder).labels()
    (folder / 'dataset.json').write_text('[' * 2**20 + '{' * 2**23)
    with pytest.raises(ValueError, match='dataset.json has more than 393,216 brackets or '):
        ImageFiles(folder).labels()


def test_long_texts_beside_the_pixels_are_no_damage(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / 'set')
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text('prompt', 'x' * 3_000_000, zip=True)
    PIL.Image.new('L', (2, 2), 7).save(folder / 'a.png', pnginfo=text)
    assert ImageFiles(folder).image('a.png').getpixel((1, 1)) == 7


def test_a_class_far_above_the_number_of_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / 'set', 'a.png', 'b.png')
    for label, refused in ((20240115, True), (2**16, True), (2**16 - 1, False)):
        (folder / 'dataset.json').write_text(
            json.dumps({'labels': [['a.png', 0], ['b.png', label]]}))
        if refused:
            with pytest.raises(ValueError, match=f'the label of b.png is {label}, far above what 2 '
                                                 'images need: number the classes from 0'):
                ImageFolderDataset(folder, use_labels=True)
        else:
            assert ImageFolderDataset(folder, use_labels=True).label_dim == 2**16
