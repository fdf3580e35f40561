"""Detectors of one's own: loaded, named, told apart by their digest, and refused in one line."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fid
from metrics import own_detector
from metrics.detectors import load_detector, load_extractors, main_tap
from metrics.features import TAPS, register
from metrics.reference_files import read_reference, write_reference
from metrics.statistics import Statistics
from tests.commands.test_fid import smooth_images, write
from torch_utils import distributed

MODULE = '''
import torch

class Means(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(SCALE))
        self.dropout = torch.nn.Dropout(0.5)   # off in evaluation mode

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        x = images.float()
        return self.dropout(self.scale * torch.cat([x.mean(dim=[2, 3]), x.std(dim=[2, 3])], dim=1))

means = Means

def plain():
    return lambda images: images.double().mean(dim=[2, 3])
'''


@pytest.fixture(autouse=True)
def apart():
    """What is registered here is forgotten afterwards."""
    before = dict(TAPS)
    yield
    TAPS.clear()
    TAPS.update(before)
    own_detector.load.cache_clear()


@pytest.fixture
def module(tmp_path):
    """Makes a file with the module, of this scale."""
    def make(scale=2.0, name='mine.py', text=MODULE):
        path = tmp_path / name
        path.write_text(text.replace('SCALE', repr(scale)))
        return path
    return make


def test_features_of_a_module(module):
    name = f'{module()}:means'
    assert main_tap(name) == 'means'
    assert TAPS['means'] == (6, 'own-means', 'fd_means', name)
    detector = load_detector(name, torch.device('cpu'))
    images = torch.randint(0, 256, [5, 1, 9, 12], dtype=torch.uint8)
    found = detector.features(images)['means']
    grey = 2 * images.float().mean(dim=[2, 3])
    torch.testing.assert_close(found[:, :3], grey.expand(-1, 3))
    assert detector.taps == ('means',) and not found.requires_grad
    assert not any(p.requires_grad for p in detector.own.network.parameters())


def test_a_function_in_place_of_a_module_and_a_module_by_its_name(module, monkeypatch):
    path = module(name='my_detectors.py')
    monkeypatch.syspath_prepend(str(path.parent))
    detector = load_detector('my_detectors:plain', torch.device('cpu'))
    found = detector.features(torch.full([2, 3, 4, 4], 7, dtype=torch.uint8))['plain']
    assert found.dtype == torch.float64 and found.tolist() == [[7, 7, 7], [7, 7, 7]]


def test_the_digest_is_of_source_and_weights(module):
    def digest(*args, function='means'):
        return own_detector.load(f'{module(*args)}:{function}').digest

    first = digest(2.0, 'a.py')
    assert digest(2.0, 'b.py') == first   # the same text and weights elsewhere
    assert digest(3.0, 'c.py') != first
    assert digest(2.0, 'd.py', MODULE + '# more\n') != first
    other = module(2.0, 'e.py', MODULE.replace('SCALE', 'torch.rand(()).item()'))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = own_detector.load(f'{other}:means').digest
        own_detector.load.cache_clear()
        assert own_detector.load(f'{other}:means').digest != one   # other weights, the same text


def command(name, *options):
    return CliRunner().invoke(fid.main, [name, *map(str, options)])


def test_commands_name_it_and_keep_its_digest(module, tmp_path):
    images, npz = write(tmp_path / 'a.zip', smooth_images(40)), tmp_path / 'a.npz'
    other = write(tmp_path / 'b.zip', smooth_images(40, seed=1))
    own = f'--detector={module()}:means', '--device=cpu'
    made = command('ref', f'--data={images}', f'--dest={npz}', '--metrics=fid,pr', *own)
    assert made.exit_code == 0, made.output
    digest = own_detector.load(f'{tmp_path / "mine.py"}:means').digest
    statistics = read_reference(npz).moments['means']
    assert (statistics.detector_id, statistics.detector_digest) == ('own-means', digest)
    result = command('calc', f'--images={other}', f'--ref={npz}', '--num=40',
                     '--metrics=fid,pr', f'--json={tmp_path / "told.json"}', *own)
    assert result.exit_code == 0 and 'FID' not in result.output, result.output
    assert [line.partition(' = ')[0] for line in result.output.splitlines()[-4:-1]] == [
        'fd_means', 'precision_means', 'recall_means']
    told = json.loads((tmp_path / 'told.json').read_text())
    assert told['detectors'] == {'own-means': digest} and told['detector'] == own[0][11:]
    alone = command('calc', f'--images={other}', f'--ref={npz}', '--num=40', *own)
    assert alone.output.splitlines()[-2] == 'fd_means of 40 images against 40:'
    nearest = command('nearest', f'--images={other}', f'--data={images}',
                      f'--dest={tmp_path / "a.png"}', *own)
    assert nearest.exit_code == 0 and 'means' in nearest.output, nearest.output


def test_statistics_of_another_one_are_refused(module, tmp_path):
    images, files = write(tmp_path / 'a.zip', smooth_images(4)), {}
    for scale in (2.0, 3.0):
        path, files[scale] = module(scale, f'of{scale:.0f}.py'), tmp_path / f'{scale:.0f}.npz'
        made = command('ref', f'--data={images}', f'--dest={files[scale]}',
                       f'--detector={path}:means', '--device=cpu')
        assert made.exit_code == 0, made.output
    own = f'--detector={tmp_path / "of2.py"}:means', '--device=cpu', '--num=4'
    result = command('calc', f'--images={images}', f'--ref={files[3.0]}', *own)
    assert (result.exit_code, result.output) == (
        2, f'Error: --ref={files[3.0]} was made with other weights or another program of detector '
           f'own-means; make it anew with fid.py ref, or say --allow-mismatch\n')
    assert command('calc', f'--images={images}', f'--ref={files[3.0]}', '--allow-mismatch',
                   *own).exit_code == 0
    result = command('dist', files[2.0], files[3.0])
    assert result.exit_code == 2 and 'were made otherwise (detector_digest: ' in result.output
    TAPS.pop('means')   # as in a process that has no such detector
    own_detector.load.cache_clear()
    result = command('dist', files[2.0], files[2.0])
    assert result.output.splitlines() == ['fd_means of 4 images against 4 images:', '0']
    demo = command('calc', f'--images={images}', f'--ref={files[2.0]}', '--detector=demo', *own[1:])
    assert demo.exit_code == 2 and 'has no statistics of demo-v1' in demo.output


def test_another_number_of_features_under_the_same_name(tmp_path):
    for dim in (3, 5):
        write_reference(tmp_path / f'{dim}.npz', {register_anew('net', dim): Statistics(
            np.zeros(dim), np.eye(dim), detector_id='own-net')})
    with pytest.raises(ValueError) as error:
        read_reference(tmp_path / '3.npz')
    assert str(error.value) == (f'{tmp_path / "3.npz"}: own-net has 3 features, and another '
                                f'detector of this name has 5')
    assert read_reference(tmp_path / '5.npz').moments['net'].mu.shape == (5,)


def register_anew(name, dim):
    TAPS.pop(name, None)
    return register(name, dim, f'x:{name}')


@pytest.mark.parametrize('text, message', [
    ('', "fails with AttributeError: module 'detector_of_HASH' has no attribute 'net'"),
    ('1 +', 'fails with SyntaxError: invalid syntax (mine.py, line 1)'),
    ('net = 5', "fails with TypeError: 'int' object is not callable"),
    ('net = lambda: 5', "fails with TypeError: 'int' object is not callable"),
    ('net = lambda: lambda x: 1 / 0', 'fails with ZeroDivisionError: division by zero'),
    ('net = lambda: lambda x: x', 'gives torch.uint8 [1, 3, 224, 224] for 1 images, not floating '
                                  '[1, d]'),
    ('net = lambda: lambda x: 3', 'gives int for 1 images, not floating [1, d]'),
    ('net = lambda: lambda x: x.float()[0, 0]',
     'gives torch.float32 [224, 224] for 1 images, not floating [1, d]')])
def test_what_cannot_be_a_detector(module, text, message):
    name = f'{module(text=text)}:net'
    with pytest.raises(ValueError) as error:
        main_tap(name)
    assert str(error.value).replace(own_detector_name(name), 'detector_of_HASH') == (
        f'detector={name} {message}')


def own_detector_name(name):
    return f'detector_of_{hashlib.sha256(name.rpartition(":")[0].encode()).hexdigest()[:16]}'


def test_names_that_would_mislead(module):
    for function, problem in {
            'pool_3': 'fd_pool_3 is the distance of a detector that is here already: call the '
                      'function otherwise',
            'dinov2': 'fd_dinov2 is the distance of a detector that is here already: call the '
                      'function otherwise',
            'a_std': 'a name that ends in _inf or _std means something else in names of numbers; '
                     'call the function otherwise'}.items():
        name = f'{module(text=MODULE + f"{function} = Means", name=f"{function}.py")}:{function}'
        with pytest.raises(ValueError) as error:
            main_tap(name)
        assert str(error.value) == f'detector={name}: {problem}'
    with pytest.raises(ValueError) as error:
        main_tap('no_such_module_here:net')
    assert str(error.value) == ("detector=no_such_module_here:net fails with ModuleNotFoundError: "
                                "No module named 'no_such_module_here': name its file, as "
                                "no_such_module_here.py:net, or its folder in PYTHONPATH")


def test_features_that_depend_on_the_size_and_other_precisions(module):
    name = f'{module(text="net = lambda: lambda x: x.float().flatten(1)[:, ::1000]")}:net'
    detector = load_detector(name, torch.device('cpu'))
    with pytest.raises(ValueError) as error:
        detector.features(torch.zeros([2, 3, 8, 8], dtype=torch.uint8))
    assert str(error.value) == (f'detector={name} gives torch.float32 [2, 1] for 2 images, not '
                                f'floating [2, 151]')
    with pytest.raises(ValueError) as error:
        load_detector(name, torch.device('cpu'), torch.float64)
    assert str(error.value) == (f'precision=float64: detector={name} computes in a precision of '
                                f'its own; leave --precision out')


def test_ranks_that_have_different_weights(module, monkeypatch):
    """As where the seed is not set; one of the ranks would measure something else."""
    name = f'{module()}:means'
    extractors = load_extractors({main_tap(name)}, name, torch.device('cpu'))
    assert extractors['means'].digest == own_detector.load(name).digest
    monkeypatch.setattr(distributed, 'gather_objects', lambda digests: [digests, {'means': 'x'}])
    with pytest.raises(ValueError) as error:
        load_extractors({'means'}, name, torch.device('cpu'))
    assert str(error.value) == (f'detector={name} has other weights in another process: load them '
                                f'from a file, or set the seed')


def test_the_example_in_the_documentation(module):
    """It gives features, and the same digest at every start."""
    page = (Path(__file__).parents[2] / 'docs' / 'judging.md').read_text()
    [code] = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    name = f'{module(text=code)}:net'
    first = own_detector.load(name)
    own_detector.load.cache_clear()
    assert first.dim == 64 and own_detector.load(name).digest == first.digest
