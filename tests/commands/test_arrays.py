"""Data that are no square 8-bit images: from a folder to a network, its samples and their number.

A data set of float arrays with five channels and one of photographs of 3:2 are converted, trained
on, sampled, inverted and judged by the commands that users type.
"""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import checkpoint
import dataset_tool
import fid
import flow
import generate
import train
from checkpoints.open import open_network
from data.arrays import decode_array
from data.dataset import ImageFolderDataset
from limpid.sampling import plan
from limpid.seeds import StackedGenerator
from limpid.values import Standardization, to_network, to_picture, to_values

RNG = np.random.default_rng(3)
SCALE = np.array([1, 20, 0.01, 3, 500])[:, None, None]
# five channels of very different size, which lie along a line from pixel to pixel
LATENTS = SCALE * (2 + RNG.standard_normal([24, 5, 1, 1])
                   + 0.1 * RNG.standard_normal([24, 5, 8, 12]))
SMALL = ['--cbase=8', '--cres=1,2', '--blocks=1', '--attn=4', '--batch=8', '--duration=0.000032',
         '--tick=0.016', '--snap=1', '--dump=1', '--lr-rampup=0', '--dropout=0',
         '--picture-steps=2', '--workers=0', '--device=cpu']


def run(command, *arguments, fails=False):
    """The output of a command, or its one line of error."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result.output.splitlines()[-1] if fails else result.output


@pytest.fixture(scope='module')
def latents(tmp_path_factory):
    """A folder of .npy files, as autoencoders leave them: two classes, no mean and std."""
    folder = tmp_path_factory.mktemp('latents')
    for i, latent in enumerate(LATENTS):
        path = folder / 'ab'[i % 2] / f'{i:03d}.npy'
        path.parent.mkdir(exist_ok=True)
        np.save(path, latent.astype(np.float32))
    return folder


@pytest.fixture(scope='module')
def converted(latents, tmp_path_factory):
    """The same as a zip of dataset_tool.py."""
    dest = tmp_path_factory.mktemp('data') / 'latents.zip'
    assert '24 images, 12x8 float32 with 5 channels, with labels' in run(
        dataset_tool.main, f'--source={latents}', f'--dest={dest}', '--workers=2')
    return dest


@pytest.fixture(scope='module')
def trained(converted, tmp_path_factory):
    """The folder of a run on it."""
    folder = tmp_path_factory.mktemp('run')
    run(train.main, f'--run={folder}', f'--data={converted}', '--cond=1', *SMALL)
    return folder


def test_mean_and_std_are_those_of_the_values(latents, converted):
    values = LATENTS.astype(np.float32).astype(np.float64)
    for path in (converted, latents):
        with ImageFolderDataset(path) as dataset:
            assert (dataset.image_shape, dataset.dtype) == ([5, 8, 12], np.float32)
            found = dataset.standardization
        assert np.allclose(found.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
        assert np.allclose(found.std, values.std(axis=(0, 2, 3)), rtol=1e-9)
    with ImageFolderDataset(converted) as dataset:   # labels: a, a, ..., b, b, ...
        assert np.array_equal(dataset[0][0], LATENTS[0].astype(np.float32))
        assert np.array_equal(dataset[12][0], LATENTS[1].astype(np.float32))
    seen = to_network(torch.from_numpy(values), found, torch.float64)
    assert torch.allclose(seen.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(seen.std(dim=(0, 2, 3), correction=0),
                          torch.full([5], 0.5, dtype=torch.float64))
    assert np.allclose(to_values(seen, found).numpy(), values, rtol=1e-6, atol=1e-8)


def test_wrong_means_and_stds(converted, tmp_path):
    with pytest.raises(ValueError, match='^2 means and 1 standard deviations are not one of each'):
        Standardization((0.0, 1.0), (1.0,))
    with pytest.raises(ValueError, match='and the latter are positive$'):
        Standardization((0.0,), (0.0,))
    for i in range(2):
        np.save(tmp_path / f'{i}.npy', LATENTS[i])
    for told, message in [({'mean': [0] * 5}, 'its mean and std are not lists of 5 numbers, one '
                                              'for each channel'),
                          ({'mean': [0] * 5, 'std': [1, 1, 1, 1, -1]},
                           'means and standard deviations are finite numbers, and the latter are '
                           'positive')]:
        (tmp_path / 'dataset.json').write_text(json.dumps({'labels': None, **told}))
        with pytest.raises(ValueError) as caught:
            _ = ImageFolderDataset(tmp_path).standardization
        assert str(caught.value) == f'{tmp_path}: dataset.json: {message}'


@pytest.mark.parametrize('second, message', [
    (np.zeros([5, 8, 12], np.float16), 'float16, but a.npy is float32: save all of them with one '
                                       'type'),
    (np.full([5, 8, 12], np.nan), None),
    (np.zeros([5], np.float32), 'an array [5] of float32, not numbers [C, H, W]'),
    (np.zeros([5, 8, 12], bool), 'an array [5, 8, 12] of bool, not numbers [C, H, W]'),
    (np.zeros([5, 8, 8], np.float32), '8x8 pixels with 5 channels, but a.npy is 12x8 pixels'),
])
def test_arrays_that_do_not_fit(tmp_path, second, message):
    np.save(tmp_path / 'a.npy', LATENTS[0])
    np.save(tmp_path / 'b.npy', second)
    with pytest.raises(ValueError) as caught:
        ImageFolderDataset(tmp_path)[1]
    start = f'{tmp_path}: b.npy '
    assert str(caught.value).startswith(
        f'{start}is {message}' if message else f'{start}has numbers that are not finite')


def test_altered_arrays_are_arrays_or_one_line():
    file = io.BytesIO()
    np.save(file, LATENTS[0][:2, :3, :3])
    whole, kinds = file.getvalue(), set()
    for _ in range(400):
        altered = bytearray(whole)
        for place in RNG.integers(0, 140, RNG.integers(1, 4)):
            altered[place] = RNG.integers(256)
        data = bytes(altered[:RNG.integers(1, len(whole))] if RNG.random() < 0.2 else altered)
        try:
            kinds.add(decode_array('a.npy', data).ndim)
        except ValueError as error:
            kinds.add('refused')
            assert str(error).startswith('a.npy ') and '\n' not in str(error)
    assert kinds == {3, 'refused'}


def test_arrays_beside_images_are_passed_over(tmp_path):
    PIL.Image.new('L', (2, 2)).save(tmp_path / 'a.png')
    np.save(tmp_path / 'features.npy', LATENTS[0])
    with ImageFolderDataset(tmp_path) as dataset:
        assert len(dataset) == 1 and dataset.standardization is None
        assert dataset.files.note().endswith('passed over 1 with other endings (features.npy)')


def test_a_network_makes_values_like_those_of_its_data(converted, trained, tmp_path):
    net = open_network(trained / 'network-snapshot-000000.pkl')
    with ImageFolderDataset(converted) as dataset:
        assert net.standardization == dataset.standardization
    run(generate.main, f'--network={trained}/network-snapshot-000000.pkl', f'--outdir={tmp_path}',
        '--seeds=0-2', '--steps=2', '--class=1', '--device=cpu')
    generator = StackedGenerator([0, 1, 2], 'cpu')
    x = plan(net, num_steps=2)(net, generator.randn([3, 5, 8, 12]), torch.eye(2)[[1, 1, 1]])
    for i, expected in enumerate(net.standardization.undo(x).numpy()):
        made = np.load(tmp_path / f'{i:06d}.npy')
        assert made.dtype == np.float32 and np.allclose(made, expected, rtol=1e-4, atol=1e-3)
    run(generate.main, f'--network={trained}/network-snapshot-000000.pkl', f'--outdir={tmp_path}',
        '--grid=1x2', '--steps=2', '--trajectory', '--device=cpu')
    for name in ('grid', 'trajectory'):   # the first three channels, from -2 to 2 std
        assert PIL.Image.open(tmp_path / f'{name}.png').mode == 'RGB'
    for name in ('reals.png', 'fakes000000.png'):
        assert PIL.Image.open(trained / name).mode == 'RGB'


def test_the_pictures_of_arrays():
    x = torch.linspace(-1, 1, 2 * 5 * 4 * 4).reshape(2, 5, 4, 4)
    assert torch.equal(to_picture(x), to_picture(x[:, :3])) and to_picture(x).shape[1] == 3
    assert torch.equal(to_picture(x[:, :2]), to_picture(x[:, :1]))


def test_mean_and_std_go_with_the_weights(trained, tmp_path):
    snapshot = trained / 'network-snapshot-000000.pkl'
    expected = open_network(snapshot).standardization
    for name in ('a.safetensors', 'b.pkl'):
        run(checkpoint.main, 'convert', snapshot, f'--dest={tmp_path}/{name}')
        assert open_network(tmp_path / name).standardization == expected
    assert 'Values' in run(checkpoint.main, 'inspect', snapshot)


def test_inversion_of_arrays(converted, trained, tmp_path):
    network = f'--network={trained}/network-snapshot-000000.pkl'
    told = run(flow.main, 'encode', network, f'--images={converted}', '--max-images=3', '--check',
               f'--dest={tmp_path}/z.npz', '--steps=32', '--device=cpu')
    assert 'standard deviations (root mean square)' in told
    run(flow.main, 'decode', network, f'--latents={tmp_path}/z.npz', f'--outdir={tmp_path}/x',
        '--steps=32', '--device=cpu')
    made = np.stack([np.load(tmp_path / 'x' / f'{i:06d}.npy') for i in range(3)])
    with ImageFolderDataset(converted, max_size=3) as dataset:
        real = np.stack([dataset[i][0] for i in range(3)])
    error = (made - real) / LATENTS.std(axis=(0, 2, 3))[:, None, None]
    assert np.sqrt(np.square(error).mean()) < 0.1   # of a standard deviation
    assert run(flow.main, 'likelihood', network, f'--images={converted}', '--device=cpu',
               f'--dest={tmp_path}/x.csv', fails=True) == (
        f'Error: --images={converted} holds arrays, and bits per dimension are of 8-bit images: '
        f'flow.py encode takes arrays too')


def test_judging_arrays(latents, converted, trained, tmp_path):
    snapshot = trained / 'network-snapshot-000000.pkl'
    network = f'--network={snapshot}'
    run(fid.main, 'ref', f'--data={converted}', f'--dest={tmp_path}/ref.npz', '--detector=arrays',
        '--device=cpu')
    same = run(fid.main, 'calc', f'--images={latents}', f'--ref={tmp_path}/ref.npz', '--num=24',
               '--detector=arrays', '--device=cpu')
    assert 'fd_arrays (random features, NOT FID)' in same
    assert abs(float(same.splitlines()[-1])) < 1e-2   # of squares of hundreds
    drawn = run(fid.main, 'gen', network, f'--ref={tmp_path}/ref.npz', '--num=8', '--steps=2',
                '--detector=arrays', '--device=cpu')
    assert float(drawn.splitlines()[-1]) > 100
    for command, option in ((['calc', f'--images={converted}', '--num=8'], converted),
                            (['gen', network, '--num=8'], snapshot)):
        assert run(fid.main, *command, f'--ref={tmp_path}/ref.npz', '--detector=demo',
                   '--device=cpu', fails=True) == (
            f'Error: {option} is of arrays, not of 8-bit images, and --detector=demo is for '
            f'images: use --detector=arrays')
    assert run(fid.main, 'nearest', f'--images={latents}', f'--data={converted}', '--device=cpu',
               f'--dest={tmp_path}/n.png', '--detector=demo', fails=True) == (
        f'Error: {converted} is of arrays, and the nearest are found among 8-bit images')


def test_judging_arrays_while_training(converted, tmp_path):
    arguments = [f'--run={tmp_path}/run', f'--data={converted}', f'--ref={converted}', '--eval=1',
                 '--eval-num=8', '--eval-steps=2', *SMALL, '--tick=1', '--pictures=0']
    assert run(train.main, *arguments, fails=True) == (
        f'Error: --data={converted} is of arrays, not of 8-bit images, and '
        f'--eval-detector=inception is for images: use --eval-detector=arrays')
    assert 'fd_arrays' in run(train.main, *arguments, '--detector=arrays')


def test_ideal_denoiser_of_arrays(converted):
    net = open_network(f'ideal:{converted}')
    with ImageFolderDataset(converted) as dataset:
        first = to_network(torch.from_numpy(dataset[0][0][None]), dataset.standardization)
        assert torch.allclose(net(first, torch.tensor(1e-6)), first)
        assert net.traits.standardization == dataset.standardization


def test_photographs_of_three_by_two(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i in range(24):
        PIL.Image.fromarray(RNG.integers(0, 256, [40, 60, 3], dtype=np.uint8)).save(
            folder / f'{i}.png')
    data = tmp_path / 'photos-12x8.zip'
    run(dataset_tool.main, f'--source={folder}', f'--dest={data}', '--transform=center-crop',
        '--resolution=12x8')
    run(train.main, f'--run={tmp_path}/run', f'--data={data}', *SMALL)
    network = f'--network={tmp_path}/run/network-snapshot-000000.pkl'
    run(generate.main, network, f'--outdir={tmp_path}/images', '--seeds=0-7', '--steps=2',
        '--device=cpu')
    assert PIL.Image.open(tmp_path / 'images' / '000007.png').size == (12, 8)
    run(flow.main, 'encode', network, f'--images={data}', f'--dest={tmp_path}/z.npz',
        '--max-images=2', '--steps=2', '--device=cpu')
    assert np.load(tmp_path / 'z.npz')['latents'].shape == (2, 3, 8, 12)
    told = run(fid.main, 'calc', f'--images={tmp_path}/images', f'--ref={data}', '--num=8',
               '--detector=demo', '--device=cpu')
    again = run(fid.main, 'gen', network, f'--ref={data}', '--num=8', '--steps=2',
                '--detector=demo', '--device=cpu')
    assert told.splitlines()[-1] == again.splitlines()[-1] and float(told.splitlines()[-1]) > 0


def test_arrays_have_no_likelihood_of_pixels_and_images_no_std(converted, trained, tmp_path):
    pictures = tmp_path / 'p'
    pictures.mkdir()
    for i in range(2):
        np.save(pictures / f'{i}.npy', np.zeros([3, 8, 12], np.uint8))
    with ImageFolderDataset(pictures) as dataset:   # 8-bit RGB is an image in any file
        assert (dataset.dtype, dataset.standardization) == (np.uint8, None)
    five = tmp_path / 'five.zip'
    assert 'uint8 with 5 channels' in run(
        dataset_tool.main, f'--source={five_channels(tmp_path)}', f'--dest={five}')
    with ImageFolderDataset(five) as dataset:
        assert dataset.dtype == np.float32 and dataset.standardization is not None


def five_channels(folder: Path) -> Path:
    path = folder / 'five.npy'
    np.save(path, RNG.integers(0, 256, [4, 6, 6, 5], dtype=np.uint8))
    return path
