"""fid.py from end to end with the demo detector: numbers, any number of ranks, what it refuses."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from click.testing import CliRunner

import fid
from metrics.distances import frechet_distance
from metrics.features import DemoDetector
from metrics.statistics import CHUNK
from tests.inception_weights import random_weights

ROOT = Path(__file__).parent.parent
LABEL = 'demo-FD (random features, NOT FID)'


def smooth_images(n, size=16, channels=3, seed=0):
    """uint8 [n, size, size, channels]: 4x4 random squares, with edges to lose."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, [n, 4, 4, channels], dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def png(pixels):
    data = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze()).save(data, format='PNG')
    return data.getvalue()


def write(path, images):
    """A zip or a folder of PNG files, by the name of `path`."""
    files = {f'{i:05d}.png': png(image) for i, image in enumerate(images)}
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
    return path


def run(command, *options, detector='demo', workers=0):
    options = [f'--detector={detector}', f'--workers={workers}', '--device=cpu', *map(str, options)]
    return CliRunner().invoke(fid.main, [command, *options])


def lines(result):
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def number(*options, **settings):
    return float(lines(run('calc', *options, **settings))[-1])


def error(result):
    """The one line of a usage error."""
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.output.splitlines() if not line.startswith('Note: ')]
    assert line.startswith('Error: ')
    return line.removeprefix('Error: ')


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """(images, zip, statistics) of 300 images."""
    folder = tmp_path_factory.mktemp('real')
    images = smooth_images(300)
    data = write(folder / 'real.zip', images)
    assert lines(run('ref', f'--data={data}', f'--dest={folder / "real.npz"}')) == [
        f'Wrote the statistics of 300 images to {folder / "real.npz"}']
    return images, data, folder / 'real.npz'


def test_the_number_is_the_distance_of_the_features(real, tmp_path):
    others = smooth_images(250, seed=1)
    stats = []
    for images in (real[0], others):
        features = DemoDetector()(torch.from_numpy(images.transpose(0, 3, 1, 2))).double().numpy()
        stats += [features.mean(axis=0), np.cov(features.T)]
    saved = dict(np.load(real[2]))
    np.testing.assert_allclose(saved['mu'], stats[0], rtol=1e-6)
    np.testing.assert_allclose(saved['sigma'], stats[1], atol=1e-6 * np.abs(stats[1]).max())
    output = lines(run('calc', f'--images={write(tmp_path / "x", others)}', f'--ref={real[2]}', '--num=250'))
    assert output[0] == f'{LABEL} of 250 images against 300:'
    assert float(output[1]) == pytest.approx(frechet_distance(*stats), rel=1e-4)
    assert output[1] == f'{float(output[1]):g}' and len(output) == 2


def test_what_a_reference_says_of_itself(real):
    saved = dict(np.load(real[2]))
    assert saved['mu'].dtype == saved['sigma'].dtype == np.float64
    assert (saved['mu'].shape, saved['sigma'].shape) == ((224,), (224, 224))
    assert (int(saved['count']), saved['image_shape'].tolist()) == (300, [3, 16, 16])
    assert (str(saved['detector_id']), str(saved['detector_digest'])) == ('demo-v1', DemoDetector().digest)
    assert re.fullmatch('[0-9a-f]{64}', str(saved['data_fingerprint']))
    assert f'torch {torch.__version__.partition("+")[0]}' in str(saved['versions'])


def test_identical_images_have_no_distance_from_folder_or_zip(real, tmp_path):
    folder = write(tmp_path / 'real', real[0])
    from_zip = number(f'--images={real[1]}', f'--ref={real[2]}', '--num=300')
    assert abs(from_zip) < 1e-6
    assert number(f'--images={folder}', f'--ref={real[2]}', '--num=300') == from_zip
    lines(run('ref', f'--data={folder}', f'--dest={tmp_path / "folder.npz"}'))
    assert same_moments(tmp_path / 'folder.npz', real[2])


def same_moments(a, b):
    a, b = dict(np.load(a)), dict(np.load(b))
    return np.array_equal(a['mu'], b['mu']) and np.array_equal(a['sigma'], b['sigma'])


def test_distance_grows_with_blur_and_with_noise(real, tmp_path):
    others = smooth_images(300, seed=1)
    rng = np.random.default_rng(2)
    noise = rng.standard_normal(others.shape)

    def blurred(radius):
        kernel = PIL.ImageFilter.GaussianBlur(radius)
        return np.stack([np.asarray(PIL.Image.fromarray(x).filter(kernel)) for x in others])

    series = {
        'blur': [others, *(blurred(radius) for radius in (0.5, 1, 2))],
        'noise': [others, *((others + s * noise).round().clip(0, 255).astype(np.uint8) for s in (8, 16, 32))],
    }
    for name, levels in series.items():
        distances = [number(f'--images={write(tmp_path / f"{name}{i}.zip", level)}', f'--ref={real[2]}', '--num=300')
                     for i, level in enumerate(levels)]
        assert distances == sorted(distances) and distances[-1] > 2 * distances[0], (name, distances)


def test_the_choice_of_images_follows_num_and_seed(real, tmp_path):
    """--num of more images: RandomState(seed) shuffles 0 ... N − 1, the first are kept."""
    def choice(seed):
        order = np.arange(300)
        np.random.RandomState(seed).shuffle(order)
        return write(tmp_path / f'{seed}.zip', real[0][np.sort(order[:260])])

    def chosen(*options):
        return number(f'--ref={real[2]}', '--num=260', *options)

    numbers = [chosen(f'--images={choice(seed)}') for seed in (0, 5)]
    assert numbers[0] != numbers[1]
    assert [chosen(f'--images={real[1]}'), chosen(f'--images={real[1]}', '--seed=5')] == numbers


def test_workers_and_batches_change_nothing(real, tmp_path):
    for name, options in {'workers': {'workers': 2}, 'none': {}}.items():
        lines(run('ref', f'--data={real[1]}', f'--dest={tmp_path / name}.npz', **options))
        assert same_moments(tmp_path / f'{name}.npz', real[2])
    lines(run('ref', f'--data={real[1]}', f'--dest={tmp_path / "batch.npz"}', '--batch=7'))
    a, b = dict(np.load(tmp_path / 'batch.npz')), dict(np.load(real[2]))
    np.testing.assert_allclose(a['sigma'], b['sigma'], rtol=0, atol=1e-6 * np.abs(b['sigma']).max())


def test_grey_images(tmp_path):
    grey = smooth_images(60, channels=1)
    lines(run('ref', f'--data={write(tmp_path / "grey.zip", grey)}', f'--dest={tmp_path / "grey.npz"}'))
    lines(run('ref', f'--data={write(tmp_path / "rgb.zip", grey.repeat(3, axis=3))}', f'--dest={tmp_path / "rgb.npz"}'))
    assert same_moments(tmp_path / 'grey.npz', tmp_path / 'rgb.npz')


def test_what_makes_a_number_doubtful_is_said(real, tmp_path):
    few = write(tmp_path / 'few', smooth_images(40, channels=1))
    PIL.Image.fromarray(smooth_images(1, channels=1)[0, :, :, 0]).save(few / 'x.jpg')
    output = lines(run('calc', f'--images={few}', f'--ref={real[2]}', '--num=41'))
    assert output[:-1] == [
        f'Note: {real[2]} is of images of shape [3, 16, 16], but these have shape [1, 16, 16]',
        'Note: some images are JPEG or WebP, and compression adds to the distance: use PNG',
        'Note: 41 images say little about 224 features: the distance is far too high',
        f'{LABEL} of 41 images against 300:',
    ]
    saved = np.load(real[2])
    np.savez(tmp_path / 'plain.npz', mu=saved['mu'], sigma=saved['sigma'])
    output = lines(run('calc', f'--images={real[1]}', f'--ref={tmp_path / "plain.npz"}', '--num=300'))
    assert output[:-1] == [
        f'Note: {tmp_path / "plain.npz"} does not say which detector it was made with; only its size fits',
        f'{LABEL} of 300 images:',
    ]


def test_the_published_network_is_not_replaced_silently(real, tmp_path, monkeypatch):
    """Without its weights the default detector ends in one line, before anything is computed or written."""
    for name in ['HOME', 'LIMPID_CACHE_DIR', 'TORCH_HOME', 'DNNLIB_CACHE_DIR', 'XDG_CACHE_HOME']:
        monkeypatch.setenv(name, str(tmp_path / 'nothing'))
    monkeypatch.delenv('LIMPID_DETECTOR', raising=False)
    for options in ([], ['--detector=inception']):
        for command in (['calc', f'--images={real[1]}', f'--ref={real[2]}'], ['ref', f'--data={real[1]}', f'--dest={tmp_path / "x.npz"}']):
            message = error(CliRunner().invoke(fid.main, [*command, '--device=cpu', *options]))
            assert message.startswith('FID needs the published weights of Inception, which are not on this machine: download https://')
            assert 'sha256' in message and 'LIMPID_DETECTOR' in message and 'NOT FID' in message
    assert list(tmp_path.iterdir()) == []


def test_statistics_with_a_file_of_inception_weights(tmp_path):
    """An imitation of the published file, with random weights: 2048 features, and where they come from."""
    weights = tmp_path / 'weights.pth'
    torch.save(random_weights(0), weights)
    folder = tmp_path / 'images'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        PIL.Image.fromarray(rng.integers(256, size=(28, 28, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    result = CliRunner().invoke(fid.main, ['ref', f'--data={folder}', f'--dest={tmp_path / "x.npz"}', '--device=cpu', f'--detector={weights}'])
    assert result.exit_code == 0, result.output
    saved = np.load(tmp_path / 'x.npz')
    assert saved['mu'].shape == (2048,) and saved['sigma'].shape == (2048, 2048)
    assert str(saved['detector_id']) == 'inception-2015-12-05-pool_3-v1' and len(str(saved['detector_digest'])) == 64


def test_references_that_do_not_fit(real, tmp_path):
    saved, path = dict(np.load(real[2])), tmp_path / 'x.npz'

    def refused(**changes):
        np.savez(path, **{**saved, **changes})
        return error(run('calc', f'--images={real[1]}', f'--ref={path}', '--num=300'))

    remedy = 'make it anew with fid.py ref --detector=demo'
    assert refused(detector_id='other-v2') == (
        f'--ref={path} was made with detector other-v2, but --detector=demo is demo-v1: {remedy}')
    assert refused(detector_digest='0') == (
        f'--ref={path} was made with other weights of detector demo-v1: {remedy}')
    assert refused(mu=np.zeros(2048), sigma=np.eye(2048)) == (
        f'--ref={path} has 2048 features, but --detector=demo has 224: {remedy}')
    assert refused(mu=np.full(224, np.nan)) == f'{path}: mu holds something else than finite numbers'
    path.unlink()
    assert error(run('calc', f'--images={real[1]}', f'--ref={path}', '--num=300')) == (
        f'{path} cannot be read: No such file or directory')


def test_too_few_images(real, tmp_path):
    assert error(run('calc', f'--images={real[1]}', f'--ref={real[2]}')) == (
        f'--images={real[1]} has 300 images, fewer than --num=50000: generate more, '
        'or lower --num and compare with distances of that --num only')
    one = write(tmp_path / 'one', smooth_images(1))
    assert error(run('ref', f'--data={one}', f'--dest={tmp_path / "x.npz"}')) == (
        f'--data={one} has 1 image, which has no covariance: 2 are the least')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_image_is_named_and_nothing_is_written(tmp_path, workers):
    folder = write(tmp_path / 'x', smooth_images(5))
    (folder / '00003.png').write_bytes(b'no image')
    result = run('ref', f'--data={folder}', f'--dest={tmp_path / "x.npz"}', workers=workers)
    assert error(result) == f'{folder}: 00003.png is not an image, or a damaged one'
    assert not (tmp_path / 'x.npz').exists()


def test_destinations_that_cannot_be(real, tmp_path):
    (tmp_path / 'folder.npz').mkdir()
    for dest in (tmp_path / 'folder.npz', tmp_path / 'x.pkl'):
        assert error(run('ref', f'--data={real[1]}', f'--dest={dest}')) == (
            f'--dest={dest} should be the name of a file that ends in .npz')


def test_help_names_every_option():
    for command in fid.main.commands.values():
        text = CliRunner().invoke(fid.main, [command.name, '--help']).output
        for option in command.params:
            assert f'  {option.opts[0]} ' in text
        assert 'NOT FID' in text and 'Examples:' in text


def on_two_ranks(*arguments):
    """stdout of fid.py under torchrun, one thread each; without the two dashes it would take --num for its own."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--']
    process = subprocess.run(
        [*launcher, 'fid.py', *map(str, arguments), '--detector=demo', '--workers=0', '--device=cpu'], cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=100)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_two_processes_give_the_same_bits_as_one(tmp_path):
    """One rank has one chunk more than the other, or none at all; rank 0 alone prints."""
    data = write(tmp_path / 'data.zip', smooth_images(2 * CHUNK + 50, size=8))
    other = write(tmp_path / 'other.zip', smooth_images(300, size=8, seed=1))
    one, two = tmp_path / 'one.npz', tmp_path / 'two.npz'
    lines(run('ref', f'--data={data}', f'--dest={one}'))
    assert on_two_ranks('ref', f'--data={data}', f'--dest={two}') == [
        f'Wrote the statistics of {2 * CHUNK + 50} images to {two}']
    assert one.read_bytes() == two.read_bytes()
    options = f'--images={other}', f'--ref={one}', '--num=290'
    printed = on_two_ranks('calc', *options)
    assert printed == lines(run('calc', *options))
    assert printed[0] == f'{LABEL} of 290 images against {2 * CHUNK + 50}:'
    assert float(printed[1]) > 0
