"""dataset_tool.py: names, pixels and labels of what it writes, and what it says when it cannot."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result

import dataset_tool
from data.sources.files import folder_labels
from data.transforms import to_grey_or_rgb
from training.dataset import ImageFolderDataset


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(dataset_tool.main, [str(arg) for arg in args])


def convert(source: Path | str, dest: Path, *options: str) -> str:
    result = run(f'--source={source}', f'--dest={dest}', *options)
    assert result.exit_code == 0, result.output
    return result.output.strip().splitlines()[-1]


def fails(source: Path | str, dest: Path, *options: str) -> str:
    """The one line that is printed; nothing may be left behind."""
    before = sorted(dest.parent.rglob('*')) if dest.parent.exists() else None
    result = run(f'--source={source}', f'--dest={dest}', *options)
    assert result.exit_code == 2
    assert (sorted(dest.parent.rglob('*')) if dest.parent.exists() else None) == before
    line = result.output.strip().splitlines()[-1]
    assert line.startswith('Error: ')
    return line.removeprefix('Error: ')


def random_image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)


def load(dest: Path, name: str) -> np.ndarray:
    return np.asarray(PIL.Image.open(dest / name))


def labels(dest: Path) -> Any:
    return json.loads((dest / 'dataset.json').read_text())['labels']


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, name in enumerate(['b/2.png', 'b/1.png', 'a/3.png']):
        save(tmp_path / 'photos' / name, random_image(i, 8, 8, 3))
    return tmp_path / 'photos'


def test_layout_of_a_zip(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / 'new' / 'out.zip'
    assert convert(photos, dest) == f'{dest}: 3 images, 8x8 RGB, with labels'
    with zipfile.ZipFile(dest) as archive:
        assert archive.namelist() == [
            '00000/img00000000.png', '00000/img00000001.png', '00000/img00000002.png',
            'dataset.json']
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read('dataset.json')) == {'labels': [
            ['00000/img00000000.png', 0], ['00000/img00000001.png', 1],
            ['00000/img00000002.png', 1]], 'classes': ['a', 'b']}
        # PNG, not compressed
        assert all(entry.file_size > 8 * 8 * 3 for entry in archive.infolist()[:3])
    data = ImageFolderDataset(dest, use_labels=True)
    for i, seed in enumerate([2, 1, 0]):
        np.testing.assert_array_equal(data[i][0], random_image(seed, 8, 8, 3).transpose(2, 0, 1))
    assert data.get_label(0).tolist() == [1, 0] and data.get_label(2).tolist() == [0, 1]


def test_the_same_command_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ('a.zip', 'b.zip'):
        convert(photos, tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    convert(tmp_path / 'a.zip', tmp_path / 'b.zip', '--overwrite')   # a copy of a copy
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()


def test_a_folder_has_a_thousand_images(tmp_path: Path) -> None:
    dest = tmp_path / 'digits'
    dest.mkdir()   # an empty folder is welcome
    pytest.importorskip('sklearn')
    convert('digits', dest, '--max-images=1002')
    assert sorted(path.name for path in dest.iterdir()) == ['00000', '00001', 'dataset.json']
    assert len(list((dest / '00000').iterdir())) == 1000
    assert sorted(path.name for path in (dest / '00001').iterdir()) == ['img00001000.png',
                                                                        'img00001001.png']


def test_digits(tmp_path: Path) -> None:
    datasets = pytest.importorskip('sklearn.datasets')
    dest = tmp_path / 'digits.zip'
    assert convert('digits', dest) == f'{dest}: 1797 images, 16x16 greyscale, with labels'
    data, digits = ImageFolderDataset(dest, use_labels=True), datasets.load_digits()
    assert (len(data), data.image_shape, data.label_dim) == (1797, [1, 16, 16], 10)
    assert [int(data.get_label(i).argmax()) for i in range(1797)] == digits.target.tolist()
    convert('digits', tmp_path / 'small', '--resolution=8x8', '--max-images=20')
    for i in range(20):
        scan = np.rint(digits.images[i] / 16 * 255).astype(np.uint8)
        np.testing.assert_array_equal(load(tmp_path / 'small', f'00000/img{i:08d}.png'), scan)
        lanczos = PIL.Image.fromarray(scan).resize((16, 16), PIL.Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(data[i][0][0], np.asarray(lanczos))


def test_digits_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    assert fails('digits', tmp_path / 'out.zip') == (
        '--source=digits needs scikit-learn, of the extra demo: pip install ".[demo]"')


@pytest.mark.parametrize('h, w, box', [(8, 13, (2, 0, 10, 8)), (13, 8, (0, 2, 8, 10)),
                                       (8, 8, (0, 0, 8, 8))])
def test_center_crop(tmp_path: Path, h: int, w: int, box: tuple[int, ...]) -> None:
    """(h - c) // 2 to (h + c) // 2: for 13 and 8, pixels 2 to 9."""
    pixels = random_image(0, h, w, 3)
    save(tmp_path / 'in' / 'a.png', pixels)
    convert(tmp_path / 'in', tmp_path / 'out', '--transform=center-crop', '--resolution=8x8')
    left, top, right, bottom = box
    np.testing.assert_array_equal(load(tmp_path / 'out', '00000/img00000000.png'),
                                  pixels[top:bottom, left:right])
    convert(tmp_path / 'in', tmp_path / 'four', '--transform=center-crop', '--resolution=4,4')
    small = PIL.Image.fromarray(pixels[top:bottom, left:right]).resize(
        (4, 4), PIL.Image.Resampling.LANCZOS
    )
    np.testing.assert_array_equal(load(tmp_path / 'four', '00000/img00000000.png'),
                                  np.asarray(small))


def test_center_crop_wide(tmp_path: Path) -> None:
    """The middle ch = round(W h / w) rows, resized to W x H = 8 x 4, in the middle of black 8 x
    8."""
    exact, tall = random_image(0, 4, 8, 3), random_image(1, 11, 8, 3)
    save(tmp_path / 'in' / 'a.png', exact)                         # ch = 4: all rows
    save(tmp_path / 'in' / 'b.png', random_image(2, 4, 7, 3))      # w < W
    save(tmp_path / 'in' / 'c.png', random_image(3, 3, 8, 3))      # ch = 3 < H
    save(tmp_path / 'in' / 'd.png', tall)                          # ch = 11: squeezed
    # ch = round(6.5) = 6: rows 3 to 8
    save(tmp_path / 'in' / 'e.png', wide := random_image(4, 13, 16, 3))
    dest = tmp_path / 'out'
    assert convert(tmp_path / 'in', dest, '--transform=center-crop-wide', '--resolution=8x4') == (
        f'{dest}: 3 images, 8x8 RGB, without labels, 2 skipped')
    assert sorted(path.name for path in (dest / '00000').iterdir()) == [
        'img00000000.png', 'img00000003.png', 'img00000004.png']
    for number, rows in ((0, exact), (3, tall), (4, wide[3:9])):
        middle = PIL.Image.fromarray(rows).resize((8, 4), PIL.Image.Resampling.LANCZOS)
        got = load(dest, f'00000/img{number:08d}.png')
        np.testing.assert_array_equal(got[2:6], np.asarray(middle))
        assert not got[:2].any() and not got[6:].any()


def test_resizing_keeps_grey_and_crops_make_rgb(tmp_path: Path) -> None:
    grey = random_image(0, 6, 9)
    save(tmp_path / 'in' / 'a.png', grey)
    convert(tmp_path / 'in', tmp_path / 'plain', '--resolution=4x4')
    small = PIL.Image.fromarray(grey).resize((4, 4), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(load(tmp_path / 'plain', '00000/img00000000.png'),
                                  np.asarray(small))
    crop = ('--transform=center-crop', '--resolution=6x6')
    convert(tmp_path / 'in', tmp_path / 'crop', *crop)
    np.testing.assert_array_equal(
        load(tmp_path / 'crop', '00000/img00000000.png'), np.stack([grey[:, 1:7]] * 3, axis=-1))
    convert(tmp_path / 'in', tmp_path / 'grey', *crop, '--color=grey')
    np.testing.assert_array_equal(load(tmp_path / 'grey', '00000/img00000000.png'), grey[:, 1:7])


def test_max_images_counts_source_images(tmp_path: Path) -> None:
    for i, size in enumerate([8, 3, 8, 8]):
        save(tmp_path / 'in' / f'{i}.png', random_image(i, size, size, 3))
    convert(tmp_path / 'in', tmp_path / 'out', '--transform=center-crop-wide', '--resolution=8x8',
            '--max-images=3')
    assert [path.name for path in sorted((tmp_path / 'out' / '00000').iterdir())] == [
        'img00000000.png', 'img00000002.png']


def test_order_of_folders_and_zips(tmp_path: Path) -> None:
    """`a` < `a.b` by component, but `a.b/` < `a/` as strings."""
    names = ['a/1.png', 'a.b/2.png']
    for i, name in enumerate(names):
        save(tmp_path / 'in' / name, random_image(i, 4, 4, 3))
    with zipfile.ZipFile(tmp_path / 'in.zip', 'w') as archive:
        for name in names:
            archive.write(tmp_path / 'in' / name, name)
    convert(tmp_path / 'in', tmp_path / 'folder')
    convert(tmp_path / 'in.zip', tmp_path / 'zip')
    np.testing.assert_array_equal(load(tmp_path / 'folder', '00000/img00000000.png'),
                                  random_image(0, 4, 4, 3))
    np.testing.assert_array_equal(load(tmp_path / 'zip', '00000/img00000000.png'),
                                  random_image(1, 4, 4, 3))
    # both sort the folders' names
    assert [label for _, label in labels(tmp_path / 'folder')] == [0, 1]
    assert [label for _, label in labels(tmp_path / 'zip')] == [1, 0]


@pytest.mark.parametrize('content, expected, said', [
    ([['a/3.png', 7], ['b/1.png', 5], ['b/2.png', 3]], [7, 5, 3], 'with labels'),
    ([['a/3.png', [1, 2.5]], ['b/1.png', [0, 0]], ['b/2.png', [3, 4]]], [[1, 2.5], [0, 0], [3, 4]],
     'with labels'),
    ([['a/3.png', None], ['b/1.png', None], ['b/2.png', None]], [0, 1, 1], 'with labels'),
    (None, [0, 1, 1], 'with labels'),     # as if absent
], ids=['classes', 'vectors', 'nulls', 'null'])
def test_labels_of_dataset_json(photos: Path, tmp_path: Path, content: Any, expected: Any,
                                said: str) -> None:
    (photos / 'dataset.json').write_text(json.dumps({'labels': content}))
    assert convert(photos, tmp_path / 'out').endswith(said)
    written = labels(tmp_path / 'out')
    assert (written and [label for _, label in written]) == expected


def test_labels_of_some_images_are_no_labels(photos: Path, tmp_path: Path) -> None:
    (photos / 'dataset.json').write_text('{"labels": [["a/3.png", 7], ["b/1.jpg", 5]]}')
    assert fails(photos, tmp_path / 'out') == (
        f'{photos}: dataset.json has no label for b/1.png: label every image or none; '
        'its label of b/1.jpg is that of no image')


def test_what_was_passed_over_is_said(photos: Path, tmp_path: Path) -> None:
    """Not a class: what Jupyter, a Synology server and macOS leave behind."""
    for name in ('.ipynb_checkpoints/a.png', '@eaDir/b.png', 'a/.thumbnails/c.png',
                 '__MACOSX/a/._3.png'):
        save(photos / name.replace('._', ''), random_image(9, 8, 8, 3))
    (photos / 'a' / 'photo').write_bytes(b'')
    (photos / 'a' / 'photo.heic').write_bytes(b'')
    (photos / 'Thumbs.db').write_bytes(b'')
    dest = tmp_path / 'out'
    result = run(f'--source={photos}', f'--dest={dest}')
    assert result.output == (
        'class 0: a\nclass 1: b\n'
        f'{photos}: passed over 4 hidden (.ipynb_checkpoints/, ...), '
        '2 with other endings (Thumbs.db, ...), 1 without an ending (a/photo)\n'
        f'{dest}: 3 images, 8x8 RGB, with labels\n')


def test_the_first_of_several_images_is_taken(tmp_path: Path) -> None:
    frames = [PIL.Image.fromarray(random_image(i, 4, 4)) for i in range(3)]
    (tmp_path / 'in').mkdir()
    frames[0].save(tmp_path / 'in' / '0.gif')
    for ending in ('gif', 'png', 'tif', 'webp'):
        frames[0].save(tmp_path / 'in' / f'1.{ending}', save_all=True, append_images=frames[1:],
                       **({'lossless': True} if ending == 'webp' else {}))
    result = run(f'--source={tmp_path}/in', f'--dest={tmp_path}/out', '--color=grey')
    assert result.output.startswith(
        'palette: became greyscale: 1 (0.gif)\n'
        'palette, several images: became greyscale, took the first: 1 (1.gif)\n'
        'several images: took the first: 3 (1.png, 1.tif, 1.webp)\n')
    for i in range(5):
        np.testing.assert_array_equal(load(tmp_path / 'out', f'00000/img{i:08d}.png'),
                                      random_image(0, 4, 4))


def test_a_set_of_this_tool_without_labels_stays_without(tmp_path: Path) -> None:
    """Its folders of a thousand images are no classes."""
    for i in (0, 1000):
        save(tmp_path / 'in' / f'{i // 1000:05d}' / f'img{i:08d}.png', random_image(i, 4, 4))
    (tmp_path / 'in' / 'dataset.json').write_text('{"labels": null}')
    assert convert(tmp_path / 'in', tmp_path / 'out').endswith('without labels')


def test_folders_that_are_numbers_are_sorted_as_numbers() -> None:
    names = [f'{i}/a.png' for i in (10, 9, 2, 1)]
    assert folder_labels(names) == (
        {'1/a.png': 0, '2/a.png': 1, '9/a.png': 2, '10/a.png': 3}, ('1', '2', '9', '10'))
    assert folder_labels([*names, 'x/a.png'])[1] == ('1', '10', '2', '9', 'x')


def test_one_folder_above_the_classes() -> None:
    names = ['photos/dog/1.png', 'photos\\cat\\2.png']
    assert folder_labels(names) == (dict(zip(names, (1, 0), strict=True)),
                                                 ('cat', 'dog'))


def test_folder_labels() -> None:
    assert folder_labels(['x/1.png', 'x/y/2.png']) == ({}, ())
    assert folder_labels(['1.png', '2.png']) == ({}, ())
    assert folder_labels(['b/1.png', '2.png', 'a/c/3.png']) == (
        {'b/1.png': 2, '2.png': 0, 'a/c/3.png': 1}, ('', 'a', 'b'))


def test_modes(tmp_path: Path) -> None:
    """What each kind of file becomes: grey stays grey, transparency is laid on white, 16 bits lose
    8."""
    rgb = PIL.Image.fromarray(random_image(0, 4, 4, 3))
    rgba = rgb.copy()
    rgba.putalpha(PIL.Image.fromarray(np.uint8([[255, 255, 0, 0]] * 4)))
    over_white = np.asarray(rgb).copy()
    over_white[:, 2:] = 255
    grey = random_image(1, 4, 4)
    la = PIL.Image.fromarray(grey)
    la.putalpha(255)
    palette = rgb.quantize(16)
    deep = PIL.Image.fromarray(np.uint16([[0, 255, 256, 65535]] * 4))
    bilevel = PIL.Image.fromarray(grey > 127)
    for image, mode, expected in [
        (rgb, 'RGB', np.asarray(rgb)), (rgba, 'RGB', over_white), (la, 'L', grey),
        (palette, 'RGB', np.asarray(palette.convert('RGB'))),
        (deep, 'L', np.uint8([[0, 0, 1, 255]] * 4)), (bilevel, 'L', np.uint8(grey > 127) * 255),
    ]:
        image.save(tmp_path / 'a.png')
        result = to_grey_or_rgb(PIL.Image.open(tmp_path / 'a.png'))
        assert result.mode == mode
        np.testing.assert_array_equal(np.asarray(result), expected)


def test_mixed_colors(tmp_path: Path) -> None:
    save(tmp_path / 'in' / 'a.png', color := random_image(0, 4, 4, 3))
    save(tmp_path / 'in' / 'b.png', grey := random_image(1, 4, 4))
    assert fails(tmp_path / 'in', tmp_path / 'out') == (
        'b.png is greyscale, but a.png is RGB: convert all images with --color=rgb or --color=grey')
    convert(tmp_path / 'in', tmp_path / 'rgb', '--color=rgb')
    np.testing.assert_array_equal(load(tmp_path / 'rgb', '00000/img00000001.png'),
                                  np.stack([grey] * 3, axis=-1))
    convert(tmp_path / 'in', tmp_path / 'grey.zip', '--color=grey')
    luma = np.asarray(PIL.Image.fromarray(color).convert('L'))
    np.testing.assert_array_equal(ImageFolderDataset(tmp_path / 'grey.zip')[0][0][0], luma)


@pytest.mark.parametrize('dest', ['out', 'out.zip', 'new/deep/out', 'new/deep/out.zip'])
@pytest.mark.parametrize('bad, message', [
    (random_image(1, 3, 6, 3), 'b.png is 6x3, but a.png is 4x4: give all images one size, for '
                               'example with --transform=center-crop --resolution=4x3, or leave '
                               'out those that differ from most with --on-mismatch=skip'),
    (b'hello', 'IN: b.png is not an image, or a damaged one'),
])
def test_bad_images_leave_nothing_behind(
    tmp_path: Path, dest: str, bad: np.ndarray | bytes, message: str
) -> None:
    save(tmp_path / 'in' / 'a.png', random_image(0, 4, 4, 3))
    if isinstance(bad, bytes):
        (tmp_path / 'in' / 'b.png').write_bytes(bad)
    else:
        save(tmp_path / 'in' / 'b.png', bad)
    assert fails(tmp_path / 'in', tmp_path / dest) == message.replace('IN', str(tmp_path / 'in'))
    assert [path.name for path in tmp_path.iterdir()] == ['in']


def test_a_failure_keeps_the_old_zip(tmp_path: Path) -> None:
    save(tmp_path / 'in' / 'a.png', random_image(0, 4, 5, 3))
    save(tmp_path / 'in' / 'b.png', random_image(0, 4, 4, 3))
    (tmp_path / 'out.zip').write_bytes(b'precious')
    assert fails(tmp_path / 'in', tmp_path / 'out.zip') == (
        f'--dest={tmp_path}/out.zip exists: give a new name, or --overwrite to replace it')
    assert 'give all images one size' in fails(tmp_path / 'in', tmp_path / 'out.zip', '--overwrite')
    assert (tmp_path / 'out.zip').read_bytes() == b'precious'


def test_floating_point_pixels(tmp_path: Path) -> None:
    save(tmp_path / 'in' / 'a.tiff', np.zeros([4, 4], dtype=np.float32))
    assert fails(tmp_path / 'in', tmp_path / 'out') == (
        'a.tiff (F) cannot be converted: its pixels have 32 bits: save it with 8 or 16, or '
        'give --color=keep')


@pytest.mark.parametrize(
    'options, message',
    [
        (
            ['--transform=center-crop'],
            '--transform=center-crop needs --resolution, for example --resolution=64x64',
        ),
        (
            ['--transform=center-crop-wide'],
            '--transform=center-crop-wide needs --resolution, for example --resolution=64x64',
        ),
        (
            ['--transform=center-crop-dhariwal', '--resolution=8x4'],
            '--resolution=8x4 is not square, as center-crop-dhariwal needs it: use '
            '--resolution=8x8, or --transform=center-crop',
        ),
        (
            ['--transform=center-crop-wide', '--resolution=4x8'],
            '--resolution=4x8 is higher than wide: center-crop-wide needs a width of at least the '
            'height, for example --resolution=512x384',
        ),
        (
            ['--transform=center-crop-wide', '--resolution=16x12'],
            '--transform=center-crop-wide skips images smaller than --resolution: all of them are',
        ),
        (
            ['--resolution=64'],
            "Invalid value for '--resolution': '64' is not a width and a height in "
            'pixels '
            'such as 64x64',
        ),
        (
            ['--resolution=0x0'],
            "Invalid value for '--resolution': '0x0' is not a width and a height in "
            'pixels '
            'such as 64x64',
        ),
        (['--max-images=0'], "Invalid value for '--max-images': 0 is not in the range x>=1."),
    ],
)
def test_combinations_that_cannot_work(
    photos: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert fails(photos, tmp_path / 'out.zip', *options) == message


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    dest = tmp_path / 'out.zip'
    hint = ('give a folder, a zip or a tar of images, an .npy, .npz, IDX, .parquet or CIFAR '
            'archive, a folder *_lmdb, or the word digits')
    assert fails(tmp_path / 'none', dest) == f'--source={tmp_path}/none does not exist: {hint}'
    (tmp_path / 'a.rar').write_bytes(b'Rar!')
    assert fails(tmp_path / 'a.rar', dest) == f'--source={tmp_path}/a.rar cannot be used: {hint}'
    (tmp_path / 'a.zip').write_bytes(b'PK')
    assert fails(tmp_path / 'a.zip',
                 dest) == f'{tmp_path}/a.zip is not a zip, or a damaged one: File is not a zip file'
    (tmp_path / 'empty').mkdir()
    assert fails(tmp_path / 'empty', dest).startswith(
        f'{tmp_path}/empty holds no images (files that end in '
    )
    for name in ('cat_lmdb', 'cifar-10-python.tar.gz', 'train-images-idx3-ubyte.gz'):
        assert 'does not exist' in fails(tmp_path / name, dest)
    (tmp_path / 'cat_lmdb').mkdir()
    assert fails(tmp_path / 'cat_lmdb', dest) == (
        f'--source={tmp_path}/cat_lmdb holds no data.mdb: give the folder that does')
    (tmp_path / 'cifar-10-python.tar.gz').touch()
    assert fails(tmp_path / 'cifar-10-python.tar.gz', dest).startswith(
        f'{tmp_path}/cifar-10-python.tar.gz cannot be read: ')
    (tmp_path / 'train-images-idx3-ubyte.gz').touch()
    assert fails(tmp_path / 'train-images-idx3-ubyte.gz', dest) == (
        f'{tmp_path}/train-images-idx3-ubyte.gz is no IDX file of 3 dimensions, or a damaged one: '
        'it begins with nothing')


def test_labels_that_training_would_refuse(photos: Path, tmp_path: Path) -> None:
    (photos / 'dataset.json').write_text(
        '{"labels": [["a/3.png", "cat"], ["b/1.png", 0], ["b/2.png", 1]]}')
    assert fails(photos, tmp_path / 'out.zip') == (
        f'{photos}: dataset.json: the label of a/3.png is "cat", '
        'which is neither an integer from 0 nor a list of finite numbers')


def test_destinations_that_are_taken(photos: Path, tmp_path: Path) -> None:
    assert fails(photos, photos) == f'--dest={photos} is the source itself: give a new name'
    save(tmp_path / 'full' / 'diary.png', random_image(0, 8, 8))
    assert fails(photos, tmp_path / 'full') == (
        f'--dest={tmp_path}/full is not empty: give a new name or an empty folder')
    (tmp_path / 'file').write_bytes(b'')
    assert fails(photos, tmp_path / 'file') == (
        f'--dest={tmp_path}/file is a file: give a new name, an empty folder or a name that ends '
        f'in .zip')
    (tmp_path / 'dir.zip').mkdir()
    assert fails(photos, tmp_path / 'dir.zip') == (
        f'--dest={tmp_path}/dir.zip is a folder: give the name of a zip file, or a folder without '
        f'.zip')


def test_the_source_is_never_replaced(photos: Path, tmp_path: Path) -> None:
    original = tmp_path / 'z.zip'
    convert(photos, original)
    (tmp_path / 'link.zip').symlink_to(original)
    before = original.read_bytes()
    for dest in ('z.zip', 'link.zip', 'nowhere/../z.zip'):
        for options in ([], ['--overwrite']):
            assert fails(original, tmp_path / dest, *options) == (
                f'--dest={tmp_path}/{dest} is the source itself: give a new name')
    assert original.read_bytes() == before
    for dest in (photos / 'out.zip', photos / 'a' / 'out'):
        assert fails(photos, dest, '--overwrite') == (
            f'--dest={dest} lies inside the source, and would be read with it the next time: '
            f'give a name outside of --source={photos}')
    assert fails(photos / 'a', photos, '--overwrite') == (
        f'--source={photos}/a lies inside --dest={photos}, which would replace it: give a new name')


def test_a_data_set_is_replaced_only_on_purpose(photos: Path, tmp_path: Path) -> None:
    dest = tmp_path / 'out'
    convert(photos, dest)
    assert fails(photos, dest) == (
        f'--dest={dest} is a data set: give a new name, or --overwrite to replace it')
    convert(photos, dest, '--overwrite', '--max-images=1', '--resolution=2x2')
    assert ImageFolderDataset(dest).image_shape == [3, 2, 2]
    assert [path.name for path in (dest / '00000').iterdir()] == ['img00000000.png']
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]
    (dest / 'diary.txt').write_text('precious')
    assert fails(photos, dest, '--overwrite') == (
        f'--dest={dest} is not empty: give a new name or an empty folder')


def test_permissions_are_the_usual_ones(photos: Path, tmp_path: Path) -> None:
    (tmp_path / 'usual').mkdir()
    convert(photos, tmp_path / 'out')
    assert (tmp_path / 'out').stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_the_help_explains_every_option() -> None:
    text = run('--help').output
    for option in ('--source PATH', '--dest PATH', '--overwrite', '--max-images INT', '--transform',
                   'center-crop-wide', '--resolution WxH', '--color [grey|rgb|keep]',
                   '--on-mismatch [convert|skip|error]', '--labels FILE', '--report CSV',
                   '--workers INT', 'Examples:'):
        assert option in text
    assert all(option.help for option in dataset_tool.main.params)
