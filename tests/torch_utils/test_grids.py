"""Pictures of many images, and the names that stand beside them."""

import numpy as np
import PIL.Image
import pytest

from torch_utils.grids import GREY, save_grid, tile

IMAGES = np.arange(4 * 32 * 32, dtype=np.uint8).reshape(4, 1, 32, 32)


def grid(tmp_path, names=(), images=IMAGES):
    save_grid(images, tmp_path / 'grid.png', 2, names)
    return np.asarray(PIL.Image.open(tmp_path / 'grid.png'))


def test_images_stand_where_they_are_said_to(tmp_path):
    picture = grid(tmp_path).copy()
    assert picture.shape == (67, 67)
    for i in range(4):
        y, x = 1 + i // 2 * 33, 1 + i % 2 * 33
        assert np.array_equal(picture[y:y + 32, x:x + 32], IMAGES[i, 0])
        picture[y:y + 32, x:x + 32] = GREY
    assert np.all(picture == GREY)
    assert tile(IMAGES, 2).shape == (64, 64, 1)


@pytest.mark.parametrize(('names', 'down', 'right'), [
    (['cat', 'cat', 'dog', 'dog'], 0, True),        # one name a row: to the left
    (['cat', 'dog', 'cat', 'dog'], 13, False),      # one name a column: above
    (['cat', 'cat', '', 'eel'], 0, True),           # what has no name does not disturb
    (['läufer\x1b[2J', 'läufer\x1b[2J', '猫', '猫'], 0, True)])   # nothing but letters is drawn
def test_names_stand_beside_the_images_and_leave_them_as_they_are(tmp_path, names, down, right):
    plain, named = grid(tmp_path), grid(tmp_path, names)
    height, width = named.shape
    assert height == 67 + down and (width > 67) == right
    assert np.array_equal(named[down:, width - 67:], plain)
    margin = named[:down] if down else named[:, :width - 67]
    assert margin.max() > 200 and margin.min() >= GREY


def test_mixed_names_stand_above_each_image(tmp_path):
    named = grid(tmp_path, ['cat', 'dog', 'dog', 'cat'])
    assert named.shape == (67 + 2 * 13, 67)
    for i in range(4):
        y, x = 14 + i // 2 * 46, 1 + i % 2 * 33
        assert np.array_equal(named[y:y + 32, x:x + 32], IMAGES[i, 0])


def test_small_images_are_enlarged_with_their_names(tmp_path):
    small = grid(tmp_path, ['a', 'b', 'b', 'a'], IMAGES[:, :, :8, :8])
    assert small.shape == (2 * 4 * 9 + 4 + 2 * 16, 76)   # 13 lines are 4 of 4 pixels
    assert np.array_equal(small[20:52:4, 4:36:4], IMAGES[0, 0, :8, :8])
