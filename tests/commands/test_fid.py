"""fid.py from end to end with the demo detector: numbers, any number of ranks, what it refuses."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from click.testing import CliRunner

import fid
import generate
from metrics.distances import frechet_distance
from metrics.features import DemoDetector
from metrics.statistics import CHUNK
from tests.inception_weights import random_weights

ROOT = Path(__file__).parents[2]
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
        features = DemoDetector().features(torch.from_numpy(images.transpose(0, 3, 1, 2)))[
            'demo'].double().numpy()
        stats += [features.mean(axis=0), np.cov(features.T)]
    saved = dict(np.load(real[2]))
    np.testing.assert_allclose(saved['mu'], stats[0], rtol=1e-6)
    np.testing.assert_allclose(saved['sigma'], stats[1], atol=1e-6 * np.abs(stats[1]).max())
    output = lines(run('calc', f'--images={write(tmp_path / "x", others)}', f'--ref={real[2]}',
                       '--num=250'))
    assert output[0] == f'{LABEL} of 250 images against 300:'
    assert float(output[1]) == pytest.approx(frechet_distance(*stats), rel=1e-4)
    assert output[1] == f'{float(output[1]):g}' and len(output) == 2


def test_what_a_reference_says_of_itself(real):
    saved = dict(np.load(real[2]))
    assert saved['mu'].dtype == saved['sigma'].dtype == np.float64
    assert (saved['mu'].shape, saved['sigma'].shape) == ((224,), (224, 224))
    assert (int(saved['count']), saved['image_shape'].tolist()) == (300, [3, 16, 16])
    assert (str(saved['detector_id']), str(saved['detector_digest'])) == (
        'demo-v1',
        DemoDetector().digest,
    )
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
        'noise': [others, *((others + s * noise).round().clip(0, 255).astype(np.uint8)
                            for s in (8, 16, 32))],
    }
    for name, levels in series.items():
        distances = [number(f'--images={write(tmp_path / f"{name}{i}.zip", level)}',
                            f'--ref={real[2]}', '--num=300')
                     for i, level in enumerate(levels)]
        assert distances == sorted(distances) and distances[-1] > 2 * distances[0], (
            name,
            distances,
        )


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
    lines(run('ref', f'--data={write(tmp_path / "grey.zip", grey)}',
              f'--dest={tmp_path / "grey.npz"}'))
    lines(run('ref', f'--data={write(tmp_path / "rgb.zip", grey.repeat(3, axis=3))}',
              f'--dest={tmp_path / "rgb.npz"}'))
    assert same_moments(tmp_path / 'grey.npz', tmp_path / 'rgb.npz')


def test_what_makes_a_number_doubtful_is_said(real, tmp_path):
    few = write(tmp_path / 'few', smooth_images(40, channels=1))
    PIL.Image.fromarray(smooth_images(1, channels=1)[0, :, :, 0]).save(few / 'x.jpg')
    output = lines(run('calc', f'--images={few}', f'--ref={real[2]}', '--num=41',
                       '--allow-mismatch'))
    assert output[:-1] == [
        f'Note: --ref={real[2]} is of images of shape [3, 16, 16], '
        'but these have shape [1, 16, 16]',
        f'Note: 41 images say little about 224 features: {LABEL} comes out far too high',
        'Note: some images are JPEG or WebP, and compression adds to the distance: use PNG',
        f'{LABEL} of 41 images against 300:',
    ]
    saved = np.load(real[2])
    np.savez(tmp_path / 'plain.npz', mu=saved['mu'], sigma=saved['sigma'])
    output = lines(run('calc', f'--images={real[1]}', f'--ref={tmp_path / "plain.npz"}',
                       '--num=300'))
    assert output[:-1] == [
        f'Note: {tmp_path / "plain.npz"} does not say which detector it was made with; only its '
        f'size fits',
        f'{LABEL} of 300 images:',
    ]


def test_the_published_network_is_not_replaced_silently(real, tmp_path, monkeypatch):
    """Without its weights the default detector ends in one line, before anything is computed or
    written."""
    for name in ['HOME', 'LIMPID_CACHE_DIR', 'TORCH_HOME', 'DNNLIB_CACHE_DIR', 'XDG_CACHE_HOME']:
        monkeypatch.setenv(name, str(tmp_path / 'nothing'))
    monkeypatch.delenv('LIMPID_DETECTOR', raising=False)
    for options in ([], ['--detector=inception']):
        for command in (['calc', f'--images={real[1]}', f'--ref={real[1]}', '--num=300'],
                        ['ref', f'--data={real[1]}', f'--dest={tmp_path / "x.npz"}']):
            message = error(CliRunner().invoke(fid.main, [*command, '--device=cpu', *options]))
            assert message.startswith('FID needs the published weights of Inception, which are not '
                                      'on this machine: download https://')
            assert 'sha256' in message and 'LIMPID_DETECTOR' in message
            assert 'for a trial without them --detector=demo measures the distance' in message
            assert 'NOT FID' in message
    assert list(tmp_path.iterdir()) == []


def test_statistics_with_a_file_of_inception_weights(tmp_path):
    """An imitation of the published file, with random weights: 2048 features, and where they come
    from."""
    weights = tmp_path / 'weights.pth'
    torch.save(random_weights(0), weights)
    folder = tmp_path / 'images'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        PIL.Image.fromarray(rng.integers(256, size=(28, 28, 3),
                                         dtype=np.uint8)).save(folder / f'{i}.png')
    result = CliRunner().invoke(fid.main, ['ref', f'--data={folder}',
                                           f'--dest={tmp_path / "x.npz"}', '--device=cpu',
                                           f'--detector={weights}'])
    assert result.exit_code == 0, result.output
    saved = np.load(tmp_path / 'x.npz')
    assert saved['mu'].shape == (2048,) and saved['sigma'].shape == (2048, 2048)
    assert str(saved['detector_id']) == 'inception-2015-12-05-pool_3-v1' and len(
        str(saved['detector_digest'])) == 64


def test_references_that_do_not_fit(real, tmp_path):
    saved, path = dict(np.load(real[2])), tmp_path / 'x.npz'

    def refused(**changes):
        np.savez(path, **{**saved, **changes})
        return error(run('calc', f'--images={real[1]}', f'--ref={path}', '--num=300'))

    remedy = 'make it anew with fid.py ref, or say --allow-mismatch'
    assert refused(detector_id='other-v2') == f'{path} has the unknown detector other-v2'
    assert (
        refused(detector_digest='0')
        == f'--ref={path} was made with other weights of detector demo-v1; {remedy}'
    )
    assert (
        refused(precision='float64')
        == f'--ref={path} was made with --precision=float64, not float32; {remedy}'
    )
    assert refused(mu=np.zeros(2048), sigma=np.eye(2048),
                   detector_id='inception-2015-12-05-pool_3-v1') == (
        f'--ref={path} has no statistics of demo-v1, which fid compares with here, only those for '
        f'FID; make it anew with fid.py ref --metrics=fid --detector=demo')
    assert refused(mu=np.full(224, np.nan)).startswith(f'{path}: ')
    path.unlink()
    assert str(path) in error(run('calc', f'--images={real[1]}', f'--ref={path}', '--num=300'))


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
    for dest in (tmp_path / 'folder.npz', tmp_path / 'x.txt'):
        assert error(run('ref', f'--data={real[1]}', f'--dest={dest}')) == (
            f'--dest={dest} should be the name of a file that ends in .npz or .pkl')
        assert error(run('calc', f'--images={real[1]}', f'--ref={real[2]}', f'--save={dest}')) == (
            f'--save={dest} should be the name of a file that ends in .npz or .pkl')


def test_help_names_every_option():
    for command in fid.main.commands.values():
        text = CliRunner().invoke(fid.main, [command.name, '--help']).output
        for option in command.params:
            names = ', '.join(option.opts)
            assert isinstance(option, click.Argument) or f'  {names} ' in text, option
        assert 'Examples:' in text
        assert 'NOT FID' in text or command.name in ('dist', 'detector')


def on_ranks(count, *arguments):
    """stdout of fid.py under torchrun, one thread each; without the two dashes it would take --num
    for its own."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                f'--nproc_per_node={count}', '--']
    process = subprocess.run(
        [*launcher, 'fid.py', *map(str, arguments), '--detector=demo', '--device=cpu'], cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_two_processes_give_the_same_bits_as_one(tmp_path):
    """One rank has one chunk more than the other, or none at all; rank 0 alone prints."""
    data = write(tmp_path / 'data.zip', smooth_images(2 * CHUNK + 50, size=8))
    other = write(tmp_path / 'other.zip', smooth_images(300, size=8, seed=1))
    one, two = tmp_path / 'one.npz', tmp_path / 'two.npz'
    lines(run('ref', f'--data={data}', f'--dest={one}'))
    assert on_ranks(2, 'ref', f'--data={data}', f'--dest={two}') == [
        f'Wrote the statistics of {2 * CHUNK + 50} images to {two}']
    assert one.read_bytes() == two.read_bytes()
    options = f'--images={other}', f'--ref={one}', '--num=290'
    printed = on_ranks(2, 'calc', *options)
    assert printed == lines(run('calc', *options))
    assert printed[0] == f'{LABEL} of 290 images against {2 * CHUNK + 50}:'
    assert float(printed[1]) > 0


# Images from a network, and the same pixels in other containers

@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """(ideal:zip of 40 images of 8x8, statistics of 300 others)."""
    folder = tmp_path_factory.mktemp('network')
    data, other = (
        write(folder / 'data.zip', smooth_images(40, size=8)),
        write(folder / 'other.zip', smooth_images(300, size=8, seed=1)),
    )
    lines(run('ref', f'--data={other}', f'--dest={folder / "other.npz"}', '--metrics=fid,kid,pr'))
    return f'ideal:{data}', folder / 'other.npz', other


def gen(network, *options):
    return run_without_workers('gen', f'--network={network[0]}', f'--ref={network[1]}', '--steps=5',
                               '--num=70', '--batch=32', *options)


def run_without_workers(command, *options):
    return CliRunner().invoke(
        fid.main, [command, '--detector=demo', '--device=cpu', *map(str, options)]
    )


@pytest.fixture(scope='module')
def generated(network, tmp_path_factory):
    """70 images written by generate.py."""
    folder = tmp_path_factory.mktemp('generated') / 'images'
    result = CliRunner().invoke(generate.main, [f'--network={network[0]}', f'--outdir={folder}',
                                                '--seeds=10-79', '--steps=5', '--device=cpu'])
    assert result.exit_code == 0, result.output
    return folder


def test_folder_zip_npz_and_network_give_the_same_number(network, generated, tmp_path):
    pixels = np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(generated.iterdir())])
    np.savez(tmp_path / 'stored.npz', arr_0=pixels)
    np.savez_compressed(tmp_path / 'packed.npz', arr_0=pixels, arr_1=np.zeros(70, np.int64))
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
        for path in sorted(generated.iterdir()):
            archive.write(path, path.name)
    numbers = {number(f'--images={path}', f'--ref={network[1]}', '--num=70', '--batch=32')
               for path in (generated, tmp_path / 'x.zip', tmp_path / 'stored.npz',
                            tmp_path / 'packed.npz')}
    output = lines(gen(network, '--seed=10'))
    assert output[-2] == f'{LABEL} of 70 images against 300:'
    assert numbers == {float(output[-1])}
    # --num of more: the same choice from an array as from files.
    chosen = [number(f'--images={path}', f'--ref={network[1]}', '--num=65', '--seed=3')
              for path in (generated, tmp_path / 'packed.npz')]
    assert chosen[0] == chosen[1]


def test_a_reference_may_be_the_images_themselves(network, generated):
    by_file, by_images = (run('calc', f'--images={generated}', f'--ref={ref}', '--num=70',
                              '--metrics=fid,pr') for ref in network[1:])
    assert lines(by_file) == lines(by_images)


def test_several_metrics_in_one_pass(network, generated, tmp_path):
    output = lines(run('calc', f'--images={generated}', f'--ref={network[1]}', '--num=70',
                       '--metrics=pr,fid', f'--json={tmp_path / "x.json"}'))
    told = json.loads((tmp_path / 'x.json').read_text())
    assert list(told['scores']) == ['demo_precision', 'demo_recall', 'demo_fd']
    assert output[-5:] == ['Numbers of random features (NOT FID) of 70 images against 300 '
                           '(features of 300):',
                           *(f'{name} = {value:g}' for name, value in told['scores'].items()),
                           f'{told["scores"]["demo_precision"]:g}']
    assert told['scores']['demo_fd'] == pytest.approx(
        number(f'--images={generated}', f'--ref={network[1]}', '--num=70'), rel=1e-5
    )
    assert (told['num_images'], told['ref_num_images'], told['precision']) == (70, 300, 'float32')
    assert told['detectors'] == {'demo-v1': DemoDetector().digest} and told['notes']


def test_blocks_of_seeds(network, tmp_path):
    output = lines(gen(network, '--blocks=3', '--seed=10', f'--json={tmp_path / "x.json"}'))
    told = json.loads((tmp_path / 'x.json').read_text())
    values = [block['scores']['demo_fd'] for block in told['blocks']]
    assert [block['seeds'] for block in told['blocks']] == ['10-79', '80-149', '150-219']
    assert values[0] == pytest.approx(float(lines(gen(network, '--seed=10'))[-1]),
                                      rel=1e-5) and len(set(values)) == 3
    assert output[-6:] == [
        *(f'seeds {seeds}:  demo_fd {value:g}'
          for seeds, value in zip(('10-79', '80-149', '150-219'), values, strict=True)),
        f'{LABEL} of 3 x 70 images against 300:',
        f'demo_fd: minimum {min(values):g}, mean {np.mean(values):g}, standard deviation '
        f'{np.std(values, ddof=1):g}',
        f'{min(values):g}',
    ]
    assert told['summary']['demo_fd'] == {'best': min(values), 'mean': np.mean(values),
                                          'std': np.std(values, ddof=1)}


def test_three_ranks_generate_and_judge_the_same_bits(network, tmp_path):
    """One of them has nothing to do."""
    lines(gen(network, f'--save={tmp_path / "one.npz"}'))
    on_ranks(3, 'gen', f'--network={network[0]}', f'--ref={network[1]}', '--steps=5', '--num=70',
             '--batch=32', f'--save={tmp_path / "three.npz"}')
    assert (tmp_path / 'one.npz').read_bytes() == (tmp_path / 'three.npz').read_bytes()


def test_the_distance_of_two_files(network, real, tmp_path):
    saved = [dict(np.load(path)) for path in (network[1], real[2])]
    expected = frechet_distance(saved[0]['mu'], saved[0]['sigma'], saved[1]['mu'],
                                saved[1]['sigma'])

    def dist(*arguments):
        return CliRunner().invoke(fid.main, ['dist', *map(str, arguments)])

    assert error(dist(network[1], real[2])) == (
        f'{network[1]} and {real[2]} were made otherwise (image_shape: [3, 8, 8] and [3, 16, 16]); '
        'say --allow-mismatch to compare them all the same')
    assert lines(dist(network[1], real[2], '--allow-mismatch')) == [
        'Note: they differ in image_shape: [3, 8, 8] and [3, 16, 16]',
        f'{LABEL} of 300 images against 300 images:', f'{expected:g}']
    assert abs(float(lines(dist(real[2], real[2]))[-1])) < 1e-6
    np.savez(tmp_path / 'other.npz', mu=np.zeros(2048), sigma=np.eye(2048))
    assert (
        error(dist(real[2], tmp_path / 'other.npz'))
        == f'{real[2]} and {tmp_path / "other.npz"} have no features in common: demo and pool_3'
    )


def test_progress_is_saved_and_used(network, tmp_path):
    first = lines(gen(network, f'--state={tmp_path / "state"}'))
    assert [p.name for p in (tmp_path / 'state').iterdir()] == ['seeds-0-69']
    folder = tmp_path / 'state' / 'seeds-0-69'
    again = lines(gen(network, f'--state={tmp_path / "state"}'))
    assert again == [first[0], f'Note: taken from --state={folder}, where this was measured before',
                     *first[1:]]
    assert error(gen(network, '--solver=euler', f'--state={tmp_path / "state"}')) == (
        f'--state={folder} belongs to other images, or to a measurement of something else (data): '
        f'delete the folder, or name another')


def test_metrics_that_cannot_be(network, generated):
    for metrics, message in {
            'fid,foo': '--metrics=foo is unknown: it takes fid, sfid, fd_dinov2, '
                       'fd_efficientnet_lite0, fid_inf, is, kid, pr, dc, with commas between',
            'fid,fid': '--metrics=fid,fid names one twice',
            'kid': '--metrics=kid takes 1000 images or more, not 70',
            'sfid': '--metrics=sfid needs the Inception network, and --detector=demo is another: '
                    'leave sfid out, or use --detector=inception',
    }.items():
        assert error(run('calc', f'--images={generated}', f'--ref={network[1]}', '--num=70',
                         f'--metrics={metrics}')) == message


@pytest.mark.parametrize('arguments', [[], ['--fetch=foo'], ['missing.pth'], ['--convert=x.pth']])
def test_the_detector_command(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path))
    result = CliRunner().invoke(fid.main, ['detector', *arguments])
    assert result.exit_code == (0 if not arguments else 2), result.output
    assert 'Traceback' not in result.output and str(
        tmp_path) in result.output if not arguments else 'Error' in result.output


def test_files_of_weights_are_identified_and_converted(tmp_path):
    torch.save(random_weights(0), tmp_path / 'a.pth')
    output = lines(CliRunner().invoke(fid.main, ['detector', str(tmp_path / 'a.pth'),
                                                 f'--convert={tmp_path / "b.safetensors"}']))
    assert output[-1] == f'Wrote {tmp_path / "b.safetensors"}, with the same digest'
    assert any(line.split() == ['weights', 'of:', 'inception'] for line in output)


def test_files_that_change_but_keep_their_sizes_are_other_images(tmp_path):
    """Uncompressed PNGs and arrays of one shape have one size, whatever they show."""
    folder, array = tmp_path / 'images', tmp_path / 'x.npy'
    folder.mkdir()

    def make(seed):
        images = smooth_images(30, size=8, seed=seed)
        for i, image in enumerate(images):
            PIL.Image.fromarray(image).save(folder / f'{i}.png', compress_level=0)
        np.save(array, images)
        return [lines(run('ref', f'--data={path}', f'--dest={tmp_path / f"{path.stem}{seed}.npz"}',
                          '--metrics=fid')) for path in (folder, array)]

    for seed in (0, 1):
        make(seed)
    for name in ('images', 'x'):
        a, b = (dict(np.load(tmp_path / f'{name}{seed}.npz')) for seed in (0, 1))
        assert a['data_fingerprint'] != b['data_fingerprint'] and not np.array_equal(
            a['mu'], b['mu']
        )
    lines(run('ref', f'--data={folder}', f'--dest={tmp_path / "y.npz"}',
              f'--state={tmp_path / "state"}'))
    make(2)
    assert error(run('ref', f'--data={folder}', f'--dest={tmp_path / "y.npz"}',
                     f'--state={tmp_path / "state"}')).startswith(
        f'--state={tmp_path / "state"} belongs to other images, or to a measurement of something '
        f'else (data)')


def test_what_cannot_be_written_is_said_before_anything_is_measured(network, generated, tmp_path):
    (tmp_path / 'file').write_text('')

    def refused(*options):
        return error(run('calc', f'--images={generated}', f'--ref={network[1]}', '--num=70',
                         *options))

    assert refused('--metrics=pr', f'--save={tmp_path / "x.npz"}') == (
        f'--save={tmp_path / "x.npz"} writes means and covariances, which these metrics do not '
        f'need: add fid to --metrics')
    assert refused(f'--save={tmp_path / "x.pkl"}') == (
        f'--save={tmp_path / "x.pkl"}: the format of EDM2 has room for the statistics of fid and '
        f'fd_dinov2 only; use .npz for the others')
    assert (
        refused(f'--json={tmp_path / "file" / "x"}')
        == f'--json={tmp_path / "file" / "x"}: {tmp_path / "file"} is no folder that files '
        'can be written to'
    )
    assert (
        refused(f'--state={tmp_path / "file"}')
        == f'--state={tmp_path / "file"} is a file, or lies in one; name a folder'
    )
    assert (
        refused('--precision=tf32')
        == '--precision=tf32 is of CUDA devices, and would have no effect on cpu'
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file']


def test_how_many_features_were_compared_is_said(network, generated, tmp_path):
    lines(run('ref', f'--data={network[2]}', f'--dest={tmp_path / "x.npz"}', '--metrics=pr',
              '--features=50'))
    output = lines(run('calc', f'--images={generated}', f'--ref={tmp_path / "x.npz"}', '--num=70',
                       '--metrics=pr', f'--json={tmp_path / "x.json"}'))
    assert output[
        -4] == 'Numbers of random features (NOT FID) of 70 images against 300 (features of 50):'
    assert json.loads((tmp_path / 'x.json').read_text())['ref_features'] == {'demo': 50}


OF_DEMO = ('--ref=NPZ has no statistics of inception-2015-12-05-pool_3-v1, which fid compares with '
           'here, only those for demo-FD (random features, NOT FID); make it anew with fid.py ref '
           '--metrics=fid')


@pytest.mark.parametrize(('command', 'message'), [
    ('calc --images=ZIP --ref=NPZ --num=300',
     OF_DEMO),
    ('calc --images=ZIP --ref=NPZ --num=300 --metrics=pr',
     '--ref=NPZ holds no features of its images, which pr compares with: make it anew with fid.py '
     'ref --metrics=pr'),
    ('calc --images=ZIP --ref=ZIP --num=301',
     '--images=ZIP has 300 images, fewer than --num=301: generate more, or lower --num and compare '
     'with distances of that --num only'),
    ('calc --images=ZIP --ref=ZIP --num=300 --metrics=kid',
     '--metrics=kid takes 1000 images or more, not 300'),
    ('gen --network=ideal:ZIP --ref=NPZ --num=4',
     OF_DEMO),
    ('gen --network=ideal:ZIP --ref=ZIP --num=4 --metrics=kid',
     '--metrics=kid takes 1000 images or more, not 4'),
    ('sweep --network=ideal:ZIP --ref=ZIP --dest=DIR --num=4 --metrics=is',
     '--metrics=is takes 10 images or more, not 4'),
    ('search --network=ideal:ZIP --ref=ZIP --dest=DIR --num=4 --metrics=is',
     '--metrics=is takes 10 images or more, not 4'),
    ('ref --data=ONE --dest=DIR/a.npz',
     '--data=ONE has 1 image, which has no covariance: 2 are the least'),
    ('nearest --images=ONE --data=ONE --dest=DIR/a.png --detector=dinov2',
     '--data=ONE has 1 images: 3 neighbours are the least')])
def test_mistakes_are_told_before_a_detector_is_loaded(real, tmp_path, monkeypatch, command,
                                                       message):
    """Its weights would be downloaded first, 95 MB of Inception's."""
    def load(*_):
        raise AssertionError('a detector was loaded')

    monkeypatch.setattr('metrics.detectors.load_detector', load)
    monkeypatch.setenv('LIMPID_OFFLINE', '1')
    one = write(tmp_path / 'one.zip', smooth_images(1))
    names = {'ZIP': real[1], 'NPZ': real[2], 'DIR': tmp_path, 'ONE': one}

    def filled(text):
        for name, path in names.items():
            text = re.sub(rf'\b{name}\b', str(path), text)
        return text

    name, *options = filled(command).split()
    assert error(CliRunner().invoke(fid.main, [name, *options, '--device=cpu'])) == filled(message)


def test_ref_says_what_it_replaces_and_what_has_no_effect(real, tmp_path):
    dest = tmp_path / 'a' / 'b' / 'x.npz'
    arguments = 'ref', f'--data={real[1]}', f'--dest={dest}'
    assert lines(run(*arguments))[0] == (
        f'Note: --dest={dest}: the folder {dest.parent} is not there, and will be made')
    assert lines(run(*arguments))[0] == (
        f'Note: --dest={dest} is there already, and will be replaced')
    assert error(run(*arguments, '--features=5')) == (
        '--features=5 would have no effect with --metrics=fid: only kid, pr and dc keep features')
