"""The evaluations that generate.py prints, against those that the network itself counts."""

import itertools

import pytest
from click.testing import CliRunner

import generate
from limpid.ideal import IdealDenoiser
from limpid.solvers import SOLVERS
from tests.commands.test_fid import smooth_images, write

TWICE = {'heun', 'dpm-2', 'dpmpp-2s'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp('data') / 'data.zip', smooth_images(5, size=4))


@pytest.mark.parametrize(('final', 'afs'), [*itertools.product(('denoise', 'sigma-min'), (
    [], ['--afs'], ['--afs=-0.4']))])
def test_the_printed_nfe_is_the_counted_one(data, tmp_path, monkeypatch, final, afs):
    asked = []
    real = IdealDenoiser.__call__
    monkeypatch.setattr(IdealDenoiser, '__call__', lambda self, x, *rest, **more: (
        asked.append(len(x)), real(self, x, *rest, **more))[1])
    N = 6
    for solver in SOLVERS:
        asked.clear()
        result = CliRunner().invoke(generate.main, [
            f'--network=ideal:{data}', f'--outdir={tmp_path}', '--seeds=0-1', '--device=cpu',
            f'--steps={N}', f'--solver={solver}', f'--final={final}', *afs, '--stats'])
        assert result.exit_code == 0, result.output
        printed = float(result.output.split('Evaluations of the network: ')[1].split()[0])
        evaluations = (2 if solver in TWICE else 1) * (N - 1)
        if solver == 'adams':
            evaluations += 2   # of its two steps of Heun's method
        assert printed == sum(asked) / 2 == evaluations + (final == 'denoise') - bool(afs), solver
