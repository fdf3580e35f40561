"""Conversion: the same bytes for any number of processes and after a kill; the torture folder."""

import csv
import io
import json
import os
import shutil
import struct
import zipfile
import zlib

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import dataset_tool
from data import writing
from data.convert import convert
from data.parallel import CHUNK
from data.source import NumberedArrays, Source
from data.sources import open_source
from data.stats import stats_of
from data.transforms import center_crop, center_crop_dhariwal

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, [3 * CHUNK + 5, 6, 9, 3], dtype=np.uint8)
MANY = NumberedArrays(PIXELS)
SOURCE = Source(MANY.names(), MANY, {name: i % 3 for i, name in enumerate(MANY.names())})


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file()}


def run(*arguments):
    return CliRunner().invoke(dataset_tool.main, [str(word) for word in arguments])


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    for workers in (1, 2, 3):
        convert(SOURCE, str(tmp_path / f'{workers}.zip'), workers=workers)
        convert(SOURCE, str(tmp_path / str(workers)), workers=workers)
    assert len({(tmp_path / f'{n}.zip').read_bytes() for n in (1, 2, 3)}) == 1
    assert tree(tmp_path / '1') == tree(tmp_path / '2') == tree(tmp_path / '3')
    with zipfile.ZipFile(tmp_path / '1.zip') as archive:
        assert archive.testzip() is None and len(archive.namelist()) == len(PIXELS) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '1.zip', '2', '2.zip', '3',
                                                               '3.zip']


class Killed(BaseException):
    """What a test has instead of SIGKILL: no handler of errors sees it."""


@pytest.mark.parametrize('name', ['out.zip', 'out'])
@pytest.mark.parametrize('damage', [None, b'half a line', b'\0' * 50])
def test_the_same_command_continues_after_a_kill(tmp_path, monkeypatch, name, damage):
    convert(SOURCE, str(tmp_path / 'whole' / name), workers=1)
    add = writing.Partial.add

    def killing(self, chunk):
        if chunk[0].index == 2 * CHUNK:
            self.save(chunk[0].file, chunk[0].data[:100])   # amid a file
            self.flush()
            raise Killed
        add(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(writing.Partial, 'add', killing)
        with pytest.raises(Killed):
            convert(SOURCE, str(tmp_path / name), workers=1)
    assert not (tmp_path / name).exists()
    if damage is not None:
        with open(tmp_path / f'.{name}.partial' / 'journal', 'ab') as file:
            file.write(damage)
    told = convert(SOURCE, str(tmp_path / name), workers=2)
    assert told.splitlines()[0] == f'continued after {2 * CHUNK} images'
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, 'whole'])
    if name == 'out':
        assert tree(tmp_path / name) == tree(tmp_path / 'whole' / name)
    else:
        assert (tmp_path / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_another_command_begins_anew_and_one_at_a_time_writes(tmp_path, monkeypatch):
    def kill(self, dataset_json):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(writing._Zip, 'finish', kill)
        with pytest.raises(Killed):
            convert(SOURCE, str(tmp_path / 'a.zip'))
    with open(tmp_path / '.a.zip.partial' / 'data.zip', 'r+b') as file:
        file.seek(5000)
        file.write(b'altered')   # within the first chunk: nothing of it is used
    assert 'continued' not in convert(SOURCE, str(tmp_path / 'a.zip'))
    with writing.written(str(tmp_path / 'b.zip'), 'key'), \
            pytest.raises(ValueError, match='is in use by another process'):
        convert(SOURCE, str(tmp_path / 'b.zip'))


def test_center_crops_are_those_of_pillow():
    image = PIL.Image.fromarray(RNG.integers(0, 256, [70, 101, 3], dtype=np.uint8))
    lanczos, box, bicubic = (PIL.Image.Resampling.LANCZOS, PIL.Image.Resampling.BOX,
                             PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(center_crop(image, (16, 16)),
                          image.crop((15, 0, 85, 70)).resize((16, 16), lanczos))
    assert np.array_equal(center_crop(image, (24, 16)),
                          image.crop((0, 1, 101, 68)).resize((24, 16), lanczos))
    halved = image.resize((50, 35), box).resize((25, 17), box)
    small = halved.resize((24, 16), bicubic)
    assert np.array_equal(center_crop_dhariwal(image, (16, 16)), small.crop((4, 0, 20, 16)))
    assert center_crop_dhariwal(image.resize((9, 7)), (16, 16)).size == (16, 16)


def chunk(kind, data):
    return (struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data)))


def interlaced_png(pixels):
    """RGB in the seven passes of Adam7."""
    rows = b''.join(b'\0' + row.tobytes() for y, x, dy, dx in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
        (1, 0, 2, 1)) for row in pixels[y::dy, x::dx] if row.size)
    head = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(
        b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def vast_png():
    """60000x60000 black pixels that claim 10 GB, in a kilobyte."""
    head = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(
        b'IDAT', zlib.compress(bytes(900000))) + chunk(b'IEND', b'')


@pytest.fixture(scope='module')
def torture(tmp_path_factory):
    folder = tmp_path_factory.mktemp('torture') / 'in'
    (folder / 'deep').mkdir(parents=True)
    rgb = PIL.Image.fromarray(RNG.integers(0, 256, [12, 12, 3], dtype=np.uint8))
    (folder / 'interlaced.png').write_bytes(interlaced_png(np.asarray(rgb)))
    grey = rgb.convert('L')
    for name in ('plain.png', 'Plain.png', 'z.bmp', 'ünïcode 画像.png', 'x' * 200 + '.png'):
        rgb.save(folder / name)
    grey.save(folder / 'grey.png')
    grey.convert('LA').save(folder / 'la.png')
    rgb.convert('RGBA').save(folder / 'rgba.png')
    rgb.quantize(8).save(folder / 'palette.png')
    rgb.convert('CMYK').save(folder / 'cmyk.jpg')
    PIL.Image.fromarray(np.uint16(np.asarray(grey)) * 256).save(folder / 'deep16.png')
    rgb.resize((18, 12)).save(folder / 'wide.png')
    rgb.resize((1, 1)).save(folder / 'one.png')
    rotated = PIL.Image.Exif()
    rotated[274] = 6
    rgb.save(folder / 'turned.jpg', exif=rotated)
    rgb.save(folder / 'moving.gif', save_all=True, append_images=[rgb.rotate(90)])
    whole = (folder / 'plain.png').read_bytes()
    (folder / 'truncated.png').write_bytes(whole[:len(whole) // 2])
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'text.png').write_text('hello')
    (folder / 'vast.png').write_bytes(vast_png())
    (folder / 'link.png').symlink_to(folder / 'plain.png')
    (folder / 'deep' / 'circle').symlink_to(folder)
    return folder


UNREADABLE = ['empty.png', 'text.png', 'truncated.png', 'vast.png']
ODD = {'la.png': 'alpha', 'rgba.png': 'alpha', 'palette.png': 'palette', 'cmyk.jpg': 'CMYK',
       'deep16.png': '16-bit', 'turned.jpg': 'rotated',
       'moving.gif': 'palette; several images'}
UNLIKE = {'grey.png': 'greyscale', 'wide.png': '18x12', 'one.png': '1x1'}


def report(path):
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    return {row['image']: row for row in rows}


def test_torture_converted(torture, tmp_path):
    result = run(f'--source={torture}', f'--dest={tmp_path}/out.zip', '--on-mismatch=convert',
                 f'--report={tmp_path}/r.csv', '--workers=2')
    assert result.exit_code == 0, result.output
    rows = report(tmp_path / 'r.csv')
    assert sorted(rows) == sorted([*UNREADABLE, *ODD, *UNLIKE])
    assert [name for name in rows if rows[name]['done'] == 'left out'] == UNREADABLE
    assert all(rows[name]['found'].startswith(what) for name, what in {**ODD, **UNLIKE}.items())
    assert 'more than the 102,500,000 pixels' in rows['vast.png']['error']
    assert rows['wide.png']['done'] == 'became 12x12 RGB'
    count = len([path for path in torture.rglob('*') if path.is_file()
                 and 'circle' not in str(path)]) - len(UNREADABLE)
    assert result.output.splitlines()[-1] == (
        f'{tmp_path}/out.zip: {count} images, 12x12 RGB, without labels, 4 skipped')
    assert sorted(os.listdir(tmp_path)) == ['out.zip', 'r.csv']


def test_torture_skipped_and_refused(torture, tmp_path):
    result = run(f'--source={torture}', f'--dest={tmp_path}/out', '--on-mismatch=skip',
                 f'--report={tmp_path}/r.csv')
    assert result.exit_code == 0, result.output
    rows = report(tmp_path / 'r.csv')
    assert sorted(rows) == sorted([*UNREADABLE, *ODD, *UNLIKE])
    assert {row['done'] for row in rows.values()} == {'left out'}
    kept = {np.asarray(PIL.Image.open(path)).tobytes() for path in
            (tmp_path / 'out').rglob('*.png')}
    assert kept == {np.asarray(PIL.Image.open(torture / 'plain.png')).tobytes()}
    shutil.rmtree(tmp_path / 'out')
    result = run(f'--source={torture}', f'--dest={tmp_path}/out', '--on-mismatch=error')
    assert result.exit_code == 2
    assert result.output == (
        'Error: cmyk.jpg is not plain (CMYK): --on-mismatch=convert converts such images, and '
        '--on-mismatch=skip leaves them out\n')
    assert os.listdir(tmp_path) == ['r.csv']


def test_enlarged_images_are_counted(tmp_path):
    told = convert(SOURCE, str(tmp_path / 'out'), max_images=2, resolution=(20, 10))
    assert told.splitlines()[0] == 'enlarged 2: 00000000, 00000001'
    assert told.endswith('2 images, 20x10 RGB, with labels')


def test_only_classes_that_are_there_are_listed(tmp_path):
    source = Source(SOURCE.names, MANY, SOURCE.labels, classes=('a', 'b', 'c'))
    assert convert(source, str(tmp_path / 'out'), max_images=2).splitlines()[:-1] == [
        'class 0: a', 'class 1: b']


def test_kept_kinds(torture, tmp_path):
    for name, expected in (('rgba.png', 'uint8 with 4 channels'),
                           ('deep16.png', 'uint16 with 1 channel')):
        (tmp_path / 'in').mkdir(exist_ok=True)
        shutil.copy(torture / name, tmp_path / 'in' / name)
        told = convert(open_source(str(tmp_path / 'in')), str(tmp_path / 'out'), color='keep',
                       overwrite=True)
        assert told.endswith(f'1 images, 12x12 {expected}, without labels')
        pixels = np.asarray(PIL.Image.open(torture / name))
        assert np.array_equal(np.load(tmp_path / 'out/00000/img00000000.npy'),
                              np.atleast_3d(pixels).transpose(2, 0, 1))
        shutil.rmtree(tmp_path / 'in')


def test_check(torture, tmp_path):
    result = run('check', torture, f'--json={tmp_path}/c.json')
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[-1].startswith('problems: 4 unreadable, 3 sizes, ')
    found = json.loads((tmp_path / 'c.json').read_text())
    assert len(found['unreadable']) == 4 and found['sizes']['18x12'] == 1
    assert {'plain.png', 'Plain.png', 'link.png', 'z.bmp'} <= set(max(found['duplicates'], key=len))
    convert(SOURCE, str(tmp_path / 'a.zip'))
    result = run('check', tmp_path / 'a.zip', '--workers=2')
    assert (result.exit_code, result.output.splitlines()) == (0, [
        '197 images', 'sizes: 9x6 (197)', 'kinds: RGB (197)', 'class 0: 66', 'class 1: 66',
        'class 2: 65', 'no problems'])


def test_stats(tmp_path):
    """Against numpy on the whole array."""
    found = stats_of(SOURCE, workers=2)
    x = PIXELS / 255
    assert np.allclose(found.mean, x.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert np.allclose(found.std, x.std(axis=(0, 1, 2)), rtol=1e-10)
    assert np.isclose(found.sigma_data, (2 * x - 1).std(), rtol=1e-12)
    flat = (2 * x - 1).reshape(len(x), -1)
    assert np.isclose(found.sigma_max, max(np.linalg.norm(flat - row, axis=1).max()
                                           for row in flat), rtol=1e-10)
    assert (sum(found.brightness), found.sampled) == (197, 197)
    convert(SOURCE, str(tmp_path / 'a.zip'))
    result = run('stats', tmp_path / 'a.zip', f'--json={tmp_path}/s.json', '--workers=1')
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / 's.json').read_text())['sigma_data'] == found.sigma_data
    latents = RNG.standard_normal([5, 4, 2, 3]) * 7 + 1
    seen = (latents - latents.mean(axis=(0, 1, 2))) / latents.std(axis=(0, 1, 2)) / 2
    found = stats_of(Source([f'{i}' for i in range(5)], NumberedArrays(latents)))
    assert found.sigma_data == 0.5
    assert np.isclose(found.sigma_max, max(np.linalg.norm(a - b) for a in seen for b in seen))
    assert np.allclose(found.std, latents.std(axis=(0, 1, 2)))


def test_preview(tmp_path):
    source = Source(SOURCE.names, MANY, SOURCE.labels, classes=('a', 'b', 'c'))
    convert(source, str(tmp_path / 'a.zip'))
    result = run('preview', tmp_path / 'a.zip', f'--dest={tmp_path}/p.png', '--rows=2',
                 '--columns=4')
    assert result.output == f'{tmp_path}/p.png: 8 of 197 images\n'
    picture = np.asarray(PIL.Image.open(tmp_path / 'p.png'))
    zoom = 4   # 9 pixels are fewer than 32
    left = picture.shape[1] - zoom * (4 * 10 + 1)
    assert np.array_equal(picture[zoom:zoom + 24:zoom, left + zoom:left + zoom + 36:zoom],
                          PIXELS[0])
    assert np.array_equal(picture[zoom * 8:zoom * 14:zoom, left + zoom:left + zoom + 36:zoom],
                          PIXELS[1])


def test_split(tmp_path):
    convert(SOURCE, str(tmp_path / 'a.zip'))
    result = run('split', tmp_path / 'a.zip', f'--dest={tmp_path}/train.zip',
                 f'--val={tmp_path}/val.zip', '--count=20', '--seed=3')
    assert result.exit_code == 0, result.output
    train, val = (open_source(str(tmp_path / name)) for name in ('train.zip', 'val.zip'))
    parts = [{np.asarray(part.load(name)).tobytes(): part.labels[name] for name in part.names}
             for part in (train, val)]
    whole = {PIXELS[i].tobytes(): i % 3 for i in range(len(PIXELS))}
    assert parts[0] | parts[1] == whole and not parts[0].keys() & parts[1].keys()
    assert sorted(np.bincount(list(parts[1].values()))) == [6, 7, 7]
    result = run('split', tmp_path / 'a.zip', f'--dest={tmp_path}/b', f'--val={tmp_path}/c',
                 '--count=197')
    assert result.output == 'Error: --count=197 leaves nothing: there are 197 images\n'
