"""The benchmark of judging: its formulas, its tables, and what it takes from torchvision."""

import importlib.util
import json
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from benchmarks import evaluation
from metrics.distances import frechet_distance


def point(**changes):
    return {'seconds': 2.0, 'distance': 1.0, 'number': 5.0, 'memory': 500_000_000, 'gpu': 0,
            **changes}


@pytest.mark.parametrize('count', [24, 8])
def test_three_ways_to_one_distance(count):
    """With 16 dimensions: full rank and singular, where sqrtm loses half of the digits."""
    x, y = (
        evaluation.features_of(count, 16, seed=1),
        1.1 * evaluation.features_of(count, 16, seed=2),
    )
    (mu1, sigma1), (mu2, sigma2) = evaluation.moments_of(x), evaluation.moments_of(y)
    exact = evaluation.exact_distance(x, y, mu1, mu2)
    assert exact > 0.05
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(exact, rel=1e-12)
    assert evaluation.sqrtm_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(
        exact, rel=1e-12 if count == 24 else 1e-5
    )


def test_the_images():
    images = evaluation.images_of(3, 8, seed=1)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    assert np.array_equal(images, evaluation.images_of(3, 8, seed=1))
    assert not np.array_equal(images, evaluation.images_of(3, 8, seed=2))


def test_the_stub_reads_images_as_torchvision_does(monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'modules', dict(sys.modules))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'torchvision'
                        else found(name))
    evaluation.stub_torchvision()
    root = sys.modules['torchvision']
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    read = root.transforms.Compose([root.transforms.functional.pil_to_tensor])(
        PIL.Image.fromarray(pixels))
    assert read.dtype == torch.uint8 and np.array_equal(read.numpy(), pixels.transpose(2, 0, 1))
    assert {'torchvision.transforms.functional', 'torchvision.datasets'} <= set(sys.modules)
    assert issubclass(root.datasets.CIFAR10, torch.utils.data.Dataset)


def test_the_tables():
    table = evaluation.pass_table({'limpid': point(),
                                   'other': point(seconds=8.0, memory=750_000_000)}, images=100)
    head, _, *rows = table.splitlines()
    assert head == ('| Program | pass, s | ms per image | distance, s | memory, MB | number | time '
                    '| memory |')
    assert rows == ['| limpid | 2.0 | 20 | 1.0 | 500 | 5.000000 | 1.00 x | 1.00 x |',
                    '| other | 8.0 | 80 | 1.0 | 750 | 5.000000 | 3.00 x | 1.50 x |']
    assert '| GPU memory, MB |' in evaluation.pass_table({'limpid': point(gpu=1)}, images=1)
    table = evaluation.distance_table({'full': {'limpid': point(),
                                                'sqrtm': point(seconds=5.0, number=5.5)}},
                                      {'full': 5.0})
    assert table.splitlines()[2:] == [
        '| full | limpid | 2.0 | 500 | 5.000000000 | +0.0e+00 | 1.00 x |',
        '| full | sqrtm | 5.0 | 500 | 5.500000000 | +5.0e-01 | 2.50 x |']


def test_numbers_that_differ_are_refused():
    evaluation.check_same('a', 1.0, 1.0001, 1e-4)
    for other in (1.0002, float('nan')):
        with pytest.raises(ValueError, match=f'^a: 1 and {other:.9g} differ by more than 0.0001 of '
                                             f'the larger$'):
            evaluation.check_same('a', 1.0, other, 1e-4)


def test_programs_that_are_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='^torch-fidelity is not installed: pip install --no-deps '
                                         'torch-fidelity, or say --against= to do without$'):
        evaluation.require(['torch-fidelity'])
    with pytest.raises(ValueError, match='^--against=foo is unknown: it takes torch-fidelity$'):
        evaluation.require(['foo'])
    evaluation.require([])


def test_a_job_that_fails(tmp_path):
    """In a process of its own; the message is that of the job."""
    job = {'kind': 'pass', 'program': 'limpid', 'folder': str(tmp_path), 'device': 'cpu',
           'threads': 1}
    with pytest.raises(ValueError, match=r'^limpid failed: Error: .*weights\.pth is none '
                                         r'of .*, no file of Inception weights, and no '
                                         r'module:function$'):
        evaluation.in_a_process(job)


def test_the_report(tmp_path, monkeypatch):
    """Everything but the measurements themselves."""
    jobs = []

    def found(job):
        jobs.append(json.loads(json.dumps(job)))
        return (
            {'full': 5.0, 'singular': 5.0}
            if job['kind'] == 'prepare'
            else point(number=5.0 if job['kind'] == 'pass' else 5.000001)
        )

    monkeypatch.setattr(evaluation, 'in_a_process', found)
    dest = tmp_path / 'x.md'
    options = ['--against=', '--images=20', '--threads=3', '--device=cpu', f'--folder={tmp_path}',
               f'--dest={dest}']
    result = CliRunner().invoke(evaluation.main, options)
    assert result.exit_code == 0, result.output
    assert [(job['kind'], job['program']) for job in jobs] == [
        ('prepare', 'the preparation'), ('pass', 'limpid'),
        *[('distance', name) for name in ('limpid', 'scipy.linalg.sqrtm')] * 2]
    assert all(job['threads'] == 3 and job['images'] == 20 and job['dim'] == 2048 for job in jobs)
    text = dest.read_text()
    assert text.startswith('# Judging: time and memory\n\nWritten by `python '
                           '-m benchmarks.evaluation --images=20 --threads=3 --device=cpu`, ')
    assert '20 PNG files of 32x32 pixels' in text and text.count('| scipy.linalg.sqrtm |') == 2
    dest.unlink()
    monkeypatch.setattr(evaluation, 'SAME_DISTANCE', 1e-7)
    refused = CliRunner().invoke(evaluation.main, options)
    assert refused.exit_code == 2 and not dest.exists()
    assert refused.output.splitlines()[
        -1] == 'Error: limpid at full rank: 5.000001 and 5 differ by more than 1e-07 of the larger'
