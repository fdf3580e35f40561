"""Which images are in a set, which way up they are, and which label belongs to which."""

import json
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from data.image_files import ImageFiles
from data.labels import matched, normal
from limpid.labels import Labels
from training.dataset import ImageFolderDataset

E = 'b/\N{LATIN SMALL LETTER E WITH ACUTE}.png'
NAMES = ['set/a/1.png', f'set/{E}']


def make(path: Path, names: list[str], labels: Any = None, at: str = 'dataset.json') -> Path:
    """A folder, or a zip, of images that are as wide as their place in the list, and labels."""
    path.mkdir()
    for width, name in enumerate(names, 1):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new('L', (width, 2)).save(path / name)
    if labels is not None:
        (path / at).write_text(json.dumps(labels))
    return path


@pytest.mark.parametrize('spelled', [
    NAMES,
    ['a/1.png', E],
    ['./set/a/1.png', f'./set/{E}'],
    ['/home/me/set/a/1.png', f'/home/me/set/{E}'],
    ['C:\\data\\set\\a\\1.png', f'C:\\data\\set\\{E}'],
    ['old/a/1.png', f'old/{E}'],
    ['set/a/1.png', unicodedata.normalize('NFD', f'set/{E}')],
])
def test_names_are_compared_whatever_their_spelling(spelled: list[str]) -> None:
    pairs = [*zip(spelled, (3, 4), strict=True)]
    assert matched(pairs, NAMES, 'here') == {NAMES[0]: 3, NAMES[1]: 4}
    decomposed = [unicodedata.normalize('NFD', name) for name in NAMES]
    assert [*matched(pairs, decomposed, 'here').values()] == [3, 4]
    assert [*matched(pairs, [name.replace('/', '\\') for name in NAMES], 'here').values()] == [3, 4]


@pytest.mark.parametrize('pairs, message', [
    ([('x/1.jpg', 0), ('x/2.jpg', 1)],
     'here has no label for set/a/1.png: label every image or none; its label of x/1.jpg is that '
     'of no image'),
    ([('a/1.png', 0), ('b/e.png', 1)],
     f'here has no label for set/{E}: label every image or none; its label of b/e.png is that of '
     'no image'),
    ([], 'here has no label for set/a/1.png: label every image or none'),
    ([('a/1.png', 0), ('.\\a\\1.png', 1)], 'here has two labels for .\\a\\1.png: 0 and 1'),
])
def test_labels_that_do_not_match(pairs: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        matched(pairs, NAMES, 'here')
    assert str(caught.value) == message


def test_normal_names() -> None:
    assert [normal(name) for name in ('./a//b.png', '/a/b.png', 'a\\b.png', 'c/../a/b.png')] == [
        'a/b.png'] * 4


def test_labels_in_the_one_folder_of_a_set(tmp_path: Path) -> None:
    path = make(tmp_path / 'in', NAMES, {'labels': [['a/1.png', 1], [E, 0]]},
                at='set/dataset.json')
    assert ImageFiles(path).labels() == {NAMES[0]: 1, NAMES[1]: 0}
    path = make(tmp_path / 'odd', NAMES, {'labels': []}, at='set/a/dataset.json')
    with pytest.raises(ValueError) as caught:
        ImageFiles(path).labels()
    assert str(caught.value) == (
        f'{path}: set/a/dataset.json is not at the top of the set, where the labels of all images '
        'belong: move it there or delete it')


@pytest.mark.parametrize('content', [{'Labels': [['a.png', 0]]}, {'a.png': 0}, {},
                                     {'labels': {'a.png': 0}}, {'labels': False}])
def test_other_shapes_of_dataset_json(tmp_path: Path, content: Any) -> None:
    path = make(tmp_path / 'in', ['a.png'], content)
    with pytest.raises(ValueError) as caught:
        ImageFiles(path).labels()
    assert str(caught.value) == (f'{path}: dataset.json should be {{"labels": [["name.png", '
                                 'label], ...]} or {"labels": null}')


def test_known_labels_of_a_set(tmp_path: Path) -> None:
    """Their numbers, over the images that are kept, and the names of classes."""
    names = ['a.png', 'b.png', 'c.png']
    path = make(tmp_path / 'in', names, {'labels': [['a.png', 3], ['b.png', 1], ['c.png', 3]],
                                         'classes': ['', 'cat', '', 'dog']})
    known = ImageFolderDataset(path, use_labels=True).known_labels
    assert known == Labels((0, 1, 0, 2), ('', 'cat', '', 'dog'))
    assert ImageFolderDataset(path).known_labels is None
    vectors = make(tmp_path / 'vectors', names, {'labels': [[name, [2, 0.5]] for name in names]})
    known = ImageFolderDataset(vectors, use_labels=True, max_size=2).known_labels
    assert known == Labels((2,), vectors=((2.0, 0.5),))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    there = make(tmp_path / 'elsewhere', ['1.png'])
    path = make(tmp_path / 'in', ['a/2.png'])
    (path / 'b').symlink_to(there)
    (path / 'a' / 'circle').symlink_to(path)
    (there / 'itself').symlink_to(there)
    files = ImageFiles(path)
    assert files.names == ['a/2.png', 'b/1.png']
    assert files.note() == f'{path}: passed over 2 linked in a circle (a/circle, ...)'
    assert files.image('b/1.png').size == (1, 2)


def test_hidden_files_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'in.zip', 'w') as archive:
        for name in ('a.jpe', 'b.JFIF', 'c/', '.d/e.png', '__MACOSX\\._f.png', 'g/.h.png', 'i'):
            archive.writestr(name, b'')
    files = ImageFiles(tmp_path / 'in.zip')
    assert files.names == ['a.jpe', 'b.JFIF']
    assert files.note() == (f'{tmp_path}/in.zip: passed over 3 hidden (.d/e.png, ...), '
                            '1 without an ending (i)')
    assert ImageFiles(make(tmp_path / 'plain', ['a.png'])).note() == ''


@pytest.mark.parametrize('ending', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    """Tag 274 says at which sides the first row and the first column of the pixels are shown.

    1: top, left; 2: top, right; 3: bottom, right; 4: bottom, left; 5: left, top; 6: right, top;
    7: right, bottom; 8: left, bottom.
    """
    stored = np.zeros([16, 32], dtype=np.uint8)
    stored[:8] = 128      # the first rows are grey
    stored[:8, :8] = 255   # their first columns white
    exif = PIL.Image.Exif()
    exif[274] = orientation
    path = tmp_path / f'a.{ending}'
    PIL.Image.fromarray(stored).convert('RGB').save(path, exif=exif)
    shown = ImageFolderDataset(tmp_path)[0][0][0].astype(int)
    np.testing.assert_allclose(STORED[orientation](shown), stored, atol=20)


# from what is shown back to what is stored
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.T,
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].T,
    8: lambda shown: np.rot90(shown, -1),
}
