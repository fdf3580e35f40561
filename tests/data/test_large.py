"""Large images: the same pixels as Pillow's for the whole, and no more memory than is there."""

import io
import json
import struct
import zipfile

import numpy as np
import PIL.Image
import pytest

from benchmarks import attacks
from data import image_files, labels, transforms
from data.image_files import UPRIGHT, ImageFiles, decode, turned_by
from data.prepare import Job, prepared
from data.source import Source
from data.transforms import TRANSFORMS, bands, resize, to_grey_or_rgb
from torch_utils.arrays import read_npz


def noise(mode, size=(53, 41)):
    rng = np.random.default_rng(0)
    if mode == 'I;16':
        return PIL.Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.uint16))
    image = PIL.Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), 'RGBA')
    return image if mode == 'RGBA' else image.convert('RGB').convert(mode)


def refused(path, name, data):
    with pytest.raises(ValueError, match='.') as caught:
        decode(path, name, data)
    return str(caught.value)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'RGBA', 'LA', 'CMYK', 'I;16'])
def test_bands_of_rows_give_what_the_whole_gives(monkeypatch, mode):
    """Width first and then height, each by Pillow, are exactly what a band at a time gives."""
    monkeypatch.setattr(transforms, 'SMALL', 100)
    image, results = noise(mode), []
    for band in (2**21, 200):
        monkeypatch.setattr(transforms, 'BAND', band)
        results.append([np.asarray(prepared(Job(Source([], str), name, size, color), image))
                        for name, size in [(None, (16, 12)), (None, (80, 9)),
                                           *((name, (12, 12)) for name in TRANSFORMS)]
                        for color in (None, 'grey', 'rgb')])
    assert len(list(bands(image))) > 10
    for whole, pieces in zip(*results, strict=True):
        np.testing.assert_array_equal(pieces, whole)
    lanczos = PIL.Image.Resampling.LANCZOS
    right = to_grey_or_rgb(image).resize((16, 41), lanczos).resize((16, 12), lanczos)
    np.testing.assert_array_equal(results[1][0], np.asarray(right))
    right = to_grey_or_rgb(image, 'rgb').crop((6, 0, 47, 41)).resize((12, 41), lanczos)
    np.testing.assert_array_equal(results[1][8], np.asarray(right.resize((12, 12), lanczos)))


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'LA', 'CMYK', 'I;16', 'F'])
def test_a_large_image_is_turned_by_way_of_a_file(monkeypatch, mode):
    monkeypatch.setattr(image_files, 'DECODED', 0)
    monkeypatch.setattr(image_files, 'STRIP', 7)
    for how in UPRIGHT.values():
        image = noise(mode)
        right = image.transpose(how)
        turned = turned_by(image, how)
        assert (turned.mode, turned.size) == (right.mode, right.size)
        assert turned.tobytes() == right.tobytes()


def test_what_takes_too_much_memory_to_decode_is_refused_before():
    """WebP takes 16 bytes for a pixel, and a JPEG in several scans its coefficients."""
    end = 'pixels that such an image may have: make it smaller'
    assert refused('set', 'a.webp', attacks.encoded('L', (6000, 5000), 'WEBP', method=0)) == (
        f'set: a.webp is 6000x5000, more than the 25,625,000 {end}')
    for size, subsampling, most in (((7654, 7655), None, '58,571,428'),
                                    ((6404, 6404), 0, '41,000,000')):
        options = {} if subsampling is None else {'subsampling': subsampling}
        data = bytearray(attacks.encoded('RGB', (64, 64), 'JPEG', progressive=True, **options))
        place = data.index(b'\xff\xc2') + 5
        data[place:place + 4] = struct.pack('>HH', *size[::-1])
        assert refused('set', 'a.jpg', bytes(data)) == (
            f'set: a.jpg is {size[0]}x{size[1]}, more than the {most} {end}')
    assert refused('set', 'a.png', attacks.large_png(2**16 + 1, 1, 0, 1)) == (
        'set: a.png is 65537x1, more than 65,536 pixels in a row: cut it up')
    assert refused('set', 'a.jpg', attacks.scans(64, 30)) == (
        'set: a.jpg has 40 scans, more than 32: save it anew')
    assert decode('set', 'a.jpg', attacks.scans(64, 20))[0].size == (64, 64)


def test_images_that_stay_too_large_for_a_data_set():
    image = PIL.Image.new('L', (4097, 4096))
    with pytest.raises(ValueError, match='it has 16,781,312 pixels, more than the 16,777,216 '):
        prepared(Job(Source([], str)), image)
    assert prepared(Job(Source([], str), resolution=(8, 8)), image).size == (8, 8)
    with pytest.raises(ValueError, match='it is 1x40000, too large or too narrow to become 1024x8'):
        resize(PIL.Image.new('L', (1, 40000)), (1024, 8))


def test_far_more_labels_than_images(tmp_path, monkeypatch):
    for i in range(2):
        PIL.Image.new('L', (2, 2)).save(tmp_path / f'{i}.png')
    monkeypatch.setattr(labels, 'FEW_LABELS', 40)
    pairs = [[f'{i}.png', 0] for i in range(41)]
    (tmp_path / 'dataset.json').write_text(json.dumps({'labels': pairs[:40]}))
    assert ImageFiles(tmp_path).labels() == {'0.png': 0, '1.png': 0}
    for count, said in ((41, 'has 41 labels, more than 40, and there are only 2 images: leave out'),
                        (200, 'has more than 120 brackets or colons for 2 images: leave out the')):
        (tmp_path / 'dataset.json').write_text(json.dumps({'labels': pairs[:1] * count}))
        with pytest.raises(ValueError, match=f'dataset.json {said}'):
            ImageFiles(tmp_path).labels()


def test_arrays_that_unfold_too_far_together(tmp_path):
    file = io.BytesIO()
    np.save(file, np.zeros(2**24 - 128, np.uint8))
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in 'ab':
            archive.writestr(f'{name}.npy', file.getvalue())
    assert read_npz(tmp_path / 'a.npz', 'a')['a'].nbytes == 2**24 - 128
    with pytest.raises(ValueError, match=r'its arrays claim 33,554,432 bytes and take 32,'):
        read_npz(tmp_path / 'a.npz')
