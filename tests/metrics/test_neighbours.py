"""The nearest training images: against brute force, and from end to end with the demo detector."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import fid
from metrics import neighbours
from metrics.features import DemoDetector
from metrics.neighbours import (
    Neighbours,
    describe,
    distance_ratio,
    draw,
    feature_distances,
    nearest,
    pixel_distances,
    table_of,
)
from metrics.statistics import CHUNK
from torch_utils.grids import GREY

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')


class Array:
    """Images in memory, as open_images gives those of a file."""

    def __init__(self, pixels, broken=None):
        self.pixels, self.broken = pixels, broken
        self.image_shape, self.source = list(pixels.shape[1:]), 'an array'

    def __len__(self):
        return len(self.pixels)

    def fingerprint(self):
        return ''

    def batches(self, parts, device):
        for part in parts:
            if self.broken in part:
                raise ValueError(f'image {self.broken} is damaged')
            yield self.pixels[part.start:part.stop].to(device)


class Means:
    """Features with few values, so that many distances are equal: the means of columns, divided by
    32."""
    taps, digest = ('demo',), ''

    def features(self, images):
        return {'demo': images.float().mean(dim=2).div(32).floor().flatten(1)}


def pictures(n, size=4, seed=0, channels=1):
    return torch.from_numpy(
        np.random.RandomState(seed).randint(0, 256, [n, channels, size, size]).astype(np.uint8)
    )


def brute_force(queries, training, features, count, xflip):
    """By differences in float64, sorted by (distance, position)."""
    result = {}
    for space in ('pixels', 'demo'):
        def of(images, space=space):
            return (images.double().flatten(1) if space == 'pixels'
                    else features(images)['demo'].double()).numpy()
        scale = np.sqrt(training[0].numel()) if space == 'pixels' else 1
        x = of(queries)[:, None]
        straight = np.sqrt(((x - of(training)) ** 2).sum(-1)) / scale
        flipped = np.sqrt(((x - of(training.flip(-1))) ** 2).sum(
            -1)) / scale if xflip else np.full_like(straight, np.inf)
        distances = np.minimum(straight, flipped)
        order = np.lexsort((np.broadcast_to(np.arange(len(training)), distances.shape),
                            distances))[:, :count]
        result[space] = [np.take_along_axis(a, order, 1)
                         for a in (distances, flipped < straight)] + [order]
    return result


@pytest.mark.parametrize('xflip', [False, True])
@pytest.mark.parametrize('detector', [DemoDetector(), Means()], ids=['demo', 'ties'])
def test_the_nearest_are_those_of_brute_force(detector, xflip, monkeypatch):
    """Over two chunks and a bit, batches that do not divide them, and queries in parts."""
    monkeypatch.setattr(neighbours, 'ROWS', 7)
    training, queries = pictures(2 * CHUNK + 50), pictures(20, seed=1)
    found = nearest(queries, Array(training), detector, count=12, device=CPU, batch=100,
                    xflip=xflip)
    for space, (distances, mirrored, positions) in brute_force(
        queries, training, detector.features, 12, xflip
    ).items():
        assert found[space].distances == pytest.approx(
            distances, rel=1e-12 if space == 'pixels' else 1e-5
        )
        assert np.array_equal(found[space].positions,
                              positions) and np.array_equal(found[space].mirrored, mirrored)
        assert mirrored.any() == xflip
    if isinstance(detector, Means):
        assert (np.diff(found['demo'].distances) == 0).mean() > 0.5   # there were ties to break


def test_copies_are_at_distance_zero_wherever_they_are():
    """Features of equal images differ by rounding between batches of different size; their distance
    does not."""
    training = pictures(CHUNK + 3, size=16, channels=3)
    where = [0, 5, CHUNK - 1, CHUNK, CHUNK + 2]
    queries = torch.cat([training[where], training[where].flip(-1)])
    found = nearest(queries, Array(training), DemoDetector(), count=2, device=CPU, batch=64,
                    xflip=True)
    for part in found.values():
        assert part.positions[:, 0].tolist() == where * 2
        assert part.mirrored[:, 0].tolist() == [False] * 5 + [True] * 5
        assert not part.distances[:, 0].any() and part.distances[:, 1].min() > 0
        assert not distance_ratio(part.distances, 1).any()
    straight = nearest(queries[5:], Array(training), DemoDetector(), count=2, device=CPU)
    assert all(part.distances.min() > 0 for part in straight.values())


def test_equal_images_come_in_their_order():
    training = pictures(1).expand(CHUNK + 40, -1, -1, -1)
    found = nearest(training[:2], Array(training), DemoDetector(), count=CHUNK + 2, device=CPU,
                    batch=64, xflip=True)
    for part in found.values():
        assert np.array_equal(part.positions, np.broadcast_to(np.arange(CHUNK + 2), [2, CHUNK + 2]))
        assert not part.mirrored.any() and not part.distances.any()


def test_pixel_distances_are_exact():
    """The largest there are, and a difference of 1 in 200,000 pixels, which float32 would lose."""
    x = torch.zeros([3, 200_000], dtype=torch.uint8)
    x[1] = 255
    x[2, 77] = 1
    expected = [[0, 255**2 * 200_000, 1], [255**2 * 200_000, 0, 255**2 * 199_999 + 254**2],
                [1, 255**2 * 199_999 + 254**2, 0]]
    assert pixel_distances(x, x).tolist() == expected
    y = pictures(9, size=40).flatten(1)
    assert torch.equal(pixel_distances(y, y), (y[:, None].long() - y.long()).square().sum(dim=2))


def test_feature_distances_do_not_cancel():
    x = torch.full([2, 2048], 100.0)
    x[1, 0] += 2**-16
    assert feature_distances(x, x).tolist() == [[0, 2**-16], [2**-16, 0]]


def test_the_ratio():
    distances = np.array([[1.0, 2, 4, 6, 100], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [3, 3, 3, 3, 3]])
    assert distance_ratio(distances, 3).tolist() == [1 / 4, 0, 0, 1]
    assert distance_ratio(distances, 1).tolist() == [1 / 2, 0, 0, 1]
    # A copy of what the training set has twice: the nearest two are equally near.
    twice = np.array([[0.1, 0.1] + [10.0] * 49])
    assert distance_ratio(twice, 1) == 1 and distance_ratio(twice) == pytest.approx(
        0.1 / ((0.1 + 490) / 50), rel=1e-12
    )
    with pytest.raises(ValueError, match='^a ratio to 5 others needs 6 distances, not 5$'):
        distance_ratio(distances, 5)


def test_what_is_said_of_the_ratios():
    distances = np.array([[0.0, 4], [1, 4], [2, 4], [3, 4], [4, 4]])
    found = Neighbours(distances, np.zeros_like(distances, dtype=int), distances < 0)
    told = describe(found, among=1, threshold=0.4)
    assert told == {'images': 5, 'lowest_distance': 0, 'median_distance': 2, 'copies': 2,
                    'identical': 1, 'ratio_quantiles': {'0.01': 0.01, '0.1': 0.1, '0.5': 0.5,
                                                        '0.9': 0.9, '0.99': 0.99}}
    assert describe(found, among=1, threshold=0.5)['copies'] == 2   # below, not at
    head, line = table_of({'images': {'pixels': told}}).splitlines()
    assert line.split() == ['images,', 'pixels', '5', '0', '2', '0.010', '0.100', '0.500', '0.900',
                            '0.990', '2', '1']
    assert len(head) == len(line) and head.endswith('copies  identical')


def test_the_picture():
    """16 pixels are enlarged three times; the nearest of the second row only, in one space, has a
    red frame."""
    images, near = (
        pictures(2, size=16).numpy(),
        pictures(4, size=16, seed=1).numpy().reshape(2, 2, 1, 16, 16),
    )
    canvas = draw(images, {'a': near, 'b': near[:, :1]}, {'a': np.array([False, True]),
                                                          'b': np.array([False, False])})
    assert canvas.shape == (20 + 2 * 52, 4 * 52 + 4 * 12, 3)

    def tile(row, x):
        return canvas[20 + 52 * row + 2:20 + 52 * row + 50, x + 2:x + 50]

    for row in (0, 1):
        for x, expected in ((12, images[row]), (76, near[row, 0]), (128, near[row, 1]),
                            (192, near[row, 0])):
            assert np.array_equal(
                tile(row, x),
                np.broadcast_to(expected.repeat(3, 1).repeat(3, 2).transpose(1, 2, 0), [48, 48, 3]),
            )
    red = (canvas == [255, 0, 0]).all(axis=2)
    assert red[72:124, 76:128].sum() == red.sum() == 52**2 - 48**2
    assert (canvas[72:124, :12] == GREY).all()


def test_what_cannot_be_compared():
    training = Array(pictures(5))
    with pytest.raises(ValueError, match=r'^images \[3, 4, 4\] have no distance in pixels to those '
                                         r'of an array, which are \[1, 4, 4\] \(channels, height, '
                                         r'width\)$'):
        nearest(pictures(1, channels=3), training, DemoDetector(), count=1, device=CPU)
    with pytest.raises(ValueError, match='^an array has 5 images, fewer than the 6 nearest$'):
        nearest(pictures(1), training, DemoDetector(), count=6, device=CPU)
    with pytest.raises(ValueError, match='^image 3 is damaged$'):
        nearest(pictures(1), Array(training.pixels, broken=3), DemoDetector(), count=1, device=CPU)


# The command

def write(folder, images, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images.numpy(), first):
        PIL.Image.fromarray(image[0]).save(folder / f'{i:05d}.png')
    return folder


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """--images: a copy, a mirrored one, a copy with noise of what is there twice, two others;
    --data of two chunks; --control."""
    folder = tmp_path_factory.mktemp('sets')
    smooth = torch.nn.functional.interpolate(pictures(CHUNK + 70, size=4).float(), size=8).byte()
    training, others = smooth[:CHUNK + 40], smooth[CHUNK + 40:]
    training[9] = training[CHUNK + 9]
    noisy = (training[9].int() + 3 * (pictures(1, size=8, seed=2)[0]
                                      > 127).int()).clamp(max=255).byte()
    generated = torch.cat([training[[CHUNK + 5]], training[[7]].flip(-1), noisy[None], others[:2]])
    np.savez(folder / 'images.npz', arr_0=generated.permute(0, 2, 3, 1).numpy())
    return (
        write(folder / 'images', generated),
        write(folder / 'data', training),
        write(folder / 'control', others[2:]),
    )


def options(sets, tmp_path, *more):
    return ['nearest', f'--images={sets[0]}', f'--data={sets[1]}', '--detector=demo',
            '--device=cpu', '--workers=0', f'--dest={tmp_path / "x.png"}', *map(str, more)]


def run(*arguments):
    return CliRunner().invoke(fid.main, [*arguments])


def error(result):
    assert result.exit_code == 2, result.output
    [line] = result.output.splitlines()
    return line.removeprefix('Error: ')


def test_the_command(sets, tmp_path):
    result = run(*options(sets, tmp_path, '--xflip', f'--control={sets[2]}',
                          f'--csv={tmp_path / "x.csv"}', f'--json={tmp_path / "x.json"}', '--k=2',
                          '--show=3'))
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / 'x.json').read_text())
    assert (told['among'], told['threshold'], told['xflip'],
            told['detector']) == (50, 1 / 3, True, 'demo-v1')
    for space in ('pixels', 'demo'):
        of = told['summary']['images'][space]
        assert (of['images'], of['copies'], of['identical'], of['lowest_distance']) == (5, 3, 2, 0)
        of = told['summary']['control'][space]
        assert (of['images'], of['copies'],
                of['identical']) == (28, 0, 0) and of['lowest_distance'] > 0
    assert result.output.splitlines()[0] == (f'The nearest of {CHUNK + 40} training images. Ratio: '
                                             f'the distance of the nearest / the mean of the 50 '
                                             f'after it; copies: below 0.333')
    assert '\n'.join(result.output.splitlines()[1:]) == table_of(told['summary'])
    assert PIL.Image.open(tmp_path / 'x.png').size == (5 * 52 + 4 * 12, 20 + 3 * 52)

    lines = list(csv.DictReader((tmp_path / 'x.csv').open()))
    assert len(lines) == (5 + 28) * 2 * 2
    first = [(x['image'], x['neighbour'], x['position'], x['mirrored'], x['distance'])
             for x in lines
             if x['set'] == 'images' and x['space'] == 'pixels' and x['rank'] == '1']
    assert first[:2] == [('00000.png', f'{CHUNK + 5:05d}.png', f'{CHUNK + 5}', '0', '0'),
                         ('00001.png', '00007.png', '7', '1', '0')]
    near = [x for x in lines if x['image'] == '00002.png' and x['set'] == 'images'
            and x['space'] == 'pixels']
    assert [x['position'] for x in near] == ['9',
                                             f'{CHUNK + 9}'] and near[0]['distance'] == near[1][
                                                 'distance']
    assert 0 < float(near[0]['distance']) <= 3 and float(near[0]['ratio']) < 0.1


def test_arrays_choices_and_one_neighbour(sets, tmp_path):
    """An npz has positions for names; --num takes what random_subset takes; with --among=1 what is
    there twice is missed."""
    result = run(*options((sets[0].parent / 'images.npz', sets[1]), tmp_path, '--xflip',
                          '--among=1', '--num=3', '--seed=0', f'--csv={tmp_path / "x.csv"}'))
    assert result.exit_code == 0, result.output
    lines = [x for x in csv.DictReader((tmp_path / 'x.csv').open()) if x['space'] == 'pixels'
             and x['rank'] == '1']
    assert [int(x['image'])
            for x in lines] == sorted(np.random.RandomState(0).permutation(5)[:3].tolist())
    full = run(*options(sets, tmp_path, '--xflip', '--among=1', f'--json={tmp_path / "x.json"}'))
    assert full.exit_code == 0 and json.loads((tmp_path / 'x.json').read_text())['summary'][
        'images']['pixels']['copies'] == 2


def test_any_number_of_processes(sets, tmp_path):
    """Three, of which one has nothing to do."""
    arguments = ['--xflip', f'--control={sets[2]}', f'--csv={tmp_path / "x.csv"}',
                 f'--json={tmp_path / "x.json"}']
    one = run(*options(sets, tmp_path, *arguments))
    assert one.exit_code == 0, one.output
    expected = [(tmp_path / name).read_bytes() for name in ('x.png', 'x.csv', 'x.json')]
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=3',
                '--', 'fid.py']
    process = subprocess.run([*launcher, *options(sets, tmp_path, *arguments)], cwd=ROOT,
                             env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True,
                             text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    assert process.stdout == one.output
    assert expected == [(tmp_path / name).read_bytes() for name in ('x.png', 'x.csv', 'x.json')]


def test_a_small_training_set(tmp_path):
    folder = write(tmp_path / 'data', pictures(3, size=8))
    result = run(*options((folder, folder), tmp_path))
    assert result.exit_code == 0 and 'the mean of the 2 after it' in result.output
    assert (
        error(run(*options((folder, folder), tmp_path, '--k=4')))
        == f'--data={folder} has 3 images: 4 neighbours are the least'
    )


def test_refusals(sets, tmp_path):
    other = write(tmp_path / 'other', pictures(2, size=4))
    assert error(run(*options((other, sets[1]), tmp_path))) == (
        f'--images={other} has images [1, 4, 4], but those of --data={sets[1]} are [1, 8, 8] '
        f'(channels, height, width): use images of one size')
    assert error(run(*options(sets, tmp_path, f'--control={other}'))).startswith(
        f'--control={other} has images [1, 4, 4], but'
    )
    assert (
        error(run(*options(sets, tmp_path, f'--dest={tmp_path / "x.jpg"}')))
        == f'--dest={tmp_path / "x.jpg"} should be the name of a file that ends in .png'
    )
    assert error(run(*options(sets, tmp_path,
                              f'--csv={tmp_path}'))) == f'--csv={tmp_path} is a folder; name a file'
    (other / '00001.png').write_bytes(b'no image')
    assert error(run(*options((other, other), tmp_path,
                              '--k=2'))) == f'{other}: 00001.png is not an image, or a damaged one'
    assert not (tmp_path / 'x.png').exists()
