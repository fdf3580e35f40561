"""The benchmark of samplers against closed forms and generate.py, and its files byte for byte."""

import json

import click.testing
import numpy as np
import pytest
import torch
from PIL import Image

import generate
from benchmarks import curves, samplers, samplers_page
from limpid.denoiser import Counting, Traits
from limpid.ideal import Gaussian
from limpid.seeds import generate as images_of
from options.sampler import resolve_sampler
from torch_utils.grids import save_png

f64 = torch.float64


class Net(Gaussian):
    traits = Traits(image_shape=(1, 2, 2), label_dim=0)


def resolve(command):
    return resolve_sampler(samplers.parse.main(command.split(), standalone_mode=False))


def draw(net, command, count=3):
    sampling = resolve(command)
    assert sampling.notes == ()
    return images_of(net, sampling.plan(net), range(count), None, torch.device('cpu'))


@pytest.mark.parametrize('curve', [*curves.DETERMINISTIC, *curves.STOCHASTIC],
                         ids=lambda curve: curve.name)
def test_every_curve_spends_what_it_may(curve):
    commands = curve.commands(16, quick=False)
    assert commands and all(command.endswith(' --sigma_min=0.01 --sigma_max=80')
                            for _, command in commands)
    for budget, command in commands:
        if curve.steps is not None:
            net = Counting(Net())
            draw(net, command)
            spent = net.images / 3
            one_less = (curve.steps is curves.heun and curve is not curves.PC
                        or curve is curves.ADAMS and budget == 4)
            assert spent == budget - one_less


def test_the_original_sampler_of_ve_is_euler_in_its_frame():
    for steps in (4, 32):
        noise_range = f'--steps={steps} {curves.RANGE}'
        original = draw(Net(), f'--sampler=pc --predictor=probability-flow --corrector=none '
                               f'{noise_range}')
        assert torch.equal(original, draw(Net(), f'{curves.VE_EULER.options} {noise_range}'))


def test_how_far_images_are():
    real = torch.tensor([0, 100, 200], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    exact, images = real[[0, 0, 1, 2]], real[[0, 1, 1, 2]].clone()
    images[3] -= 30  # still nearest to itself
    assert samplers.rms(images, exact) == pytest.approx(
        ((100**2 + 30**2) / 4) ** 0.5 / 127.5, rel=1e-12
    )
    assert samplers.elsewhere(images, exact, real) == 0.25
    assert samplers.rms(exact, exact) == samplers.elsewhere(exact, exact, real) == 0


def facts(heun, other):
    """The facts of two curves with these errors at the budgets 8, 16 and 32."""
    results = {'floor': {'mean': 1.0, 'std': 0.1}}
    for curve, numbers in ((curves.HEUN, heun), (curves.VP_EULER, other)):
        for (n, command), value in zip(curve.commands(32, quick=False)[-3:], numbers, strict=True):
            results[command] = {'nfe': float(n), 'distance': 1 + value, 'rms': value,
                                'elsewhere': value / 10}
    return samplers_page.Facts(results)


def test_what_is_said_of_the_numbers():
    told = facts([0.8, 0.2, 0.0], [0.6, 0.3, 0.15])
    assert told.arrives(curves.HEUN) == '16' and told.arrives(curves.VP_EULER) == '32'
    assert told.finds(curves.HEUN) == '16' and told.finds(curves.VP_EULER) == '16'
    assert told.arrives(curves.DDIM) == 'not reached'
    assert told.where(curves.HEUN, curves.VP_EULER) == '16, 32'
    assert told.where(curves.VP_EULER, curves.HEUN) == '8'
    assert [told.gain(curves.VP_EULER, n) for n in (8, 16, 32)] == ['0.75', '1.5', '∞']
    assert told.order(curves.VP_EULER) == '1.00' and told.order(curves.HEUN) == '2.00'


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Arguments of a small benchmark: random images of two classes, and two curves."""
    images = np.random.RandomState(0).randint(256, size=[6, 8, 8, 1]).astype(np.uint8)
    for i, image in enumerate(images):
        save_png(image, tmp_path / 'data' / f'{i % 2}' / f'{i}.png')
    monkeypatch.setattr(curves, 'EXACT', f'--solver=heun --steps=20 {curves.RANGE}')
    monkeypatch.setattr(curves, 'DETERMINISTIC', (curves.HEUN, curves.VP_EULER, curves.RK45))
    monkeypatch.setattr(curves, 'STOCHASTIC', (curves.CHURN_10,))
    return [f'--data={tmp_path}/data', '--images=4', '--quick',
            f'--results={tmp_path}/results.json', f'--dest={tmp_path}/out']


def run(arguments):
    return click.testing.CliRunner().invoke(samplers.main, arguments)


def test_points_are_those_of_generate_and_are_measured_once(bench, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    result = run(bench)
    assert result.exit_code == 0, result.output
    (setting, results), = json.loads((tmp_path / 'results.json').read_text()).items()
    assert setting.startswith('4 images, demo-v1, data ')
    # floor and exact; budgets 4, 16 and 64; tolerances 1 and 0.03
    assert len(results) == 2 + 2 * 3 + 3 + 2
    command = f'--solver=heun --steps=2 {curves.RANGE}'

    network = [f'--network=ideal:{tmp_path}/data', '--seeds=0-3', '--device=cpu']
    drawn = {}
    for name, options in (('point', command), ('exact', curves.EXACT)):
        arguments = [*network, f'--outdir={tmp_path}/{name}', *options.split()]
        made = click.testing.CliRunner().invoke(generate.main, arguments)
        assert made.exit_code == 0, made.output
        images = [np.array(Image.open(tmp_path / name / f'{i:06d}.png')) for i in range(4)]
        drawn[name] = torch.from_numpy(np.stack(images))
    assert results[command]['rms'] == samplers.rms(drawn['point'], drawn['exact']) > 0
    assert results[command]['nfe'] == 3

    files = [(tmp_path / 'out' / name).read_bytes() for name in ('samplers.md', 'samplers.png')]
    text = files[0].decode()
    assert f'| {results[command]["distance"]:.3g} |' in text and curves.VP_EULER.options in text
    monkeypatch.setattr(samplers, 'generate', None)   # nothing is left to draw
    assert run(bench).exit_code == 0
    assert files == [(tmp_path / 'out' / name).read_bytes()
                     for name in ('samplers.md', 'samplers.png')]
    assert files[1][:4] == b'\x89PNG' and b'Software' not in files[1]


@pytest.mark.parametrize('content', ['{', '{"a": 1}', '{"a": {"b": {"c": NaN}}}', '[]'])
def test_damaged_results(bench, tmp_path, content):
    (tmp_path / 'results.json').write_text(content)
    result = run(bench)
    assert result.exit_code == 2
    assert result.output.startswith(f'Error: {tmp_path}/results.json is damaged (')
    assert result.output.endswith('): delete it to measure anew\n')
    assert result.output.count('\n') == 1


def test_without_the_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(['--quick'])
    assert result.exit_code == 2
    assert result.output == ('Error: datasets/digits-16x16.zip is missing: make it with python '
                             'dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip, or '
                             'name another set with --data\n')


def test_the_document_names_every_command():
    text = (samplers.ROOT / 'docs' / 'samplers.md').read_text()
    for curve in (*curves.DETERMINISTIC, *curves.STOCHASTIC):
        assert f'| {curve.name} | `{curve.options}' in text
