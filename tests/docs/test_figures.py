"""The figures: their numbers against closed forms, their files byte for byte."""

import builtins

import click.testing
import numpy as np
import pytest
import torch

from docs import figures
from limpid.ideal import Gaussian
from limpid.steps import EDMSteps
from torch_utils.grids import save_png

f64 = torch.float64


def test_trajectories_keep_their_quantiles():
    sigmas = torch.tensor([0.0, 0.5, 1.0, 25.0], dtype=f64)
    quantiles = torch.tensor([0.1, 0.4, 0.75], dtype=f64)
    paths = figures.solution(sigmas, quantiles)
    assert torch.allclose(paths[:, 0], torch.tensor([-1, -1, 1], dtype=f64), rtol=0, atol=1e-12)
    start = torch.special.ndtri(quantiles) * 25
    assert torch.allclose(paths[:, -1], start, rtol=1e-12)
    at_the_start = sum(torch.special.ndtr((start - y) / 25) for y in (-1, 1))
    for sigma, x in zip(sigmas[1:], paths.T[1:], strict=True):
        assert torch.allclose(sum(torch.special.ndtr((x - y) / sigma) for y in (-1, 1)),
                              at_the_start, rtol=1e-12)


def test_the_density_of_two_points():
    t, x, p = figures.density(figures.LinearSchedule(), figures.NoScaling(), 1.0, 3.0)
    k = int((t - 0.5).abs().argmin())
    expected = sum(torch.exp(-(x - y)**2 / (2 * t[k]**2)) for y in (-1, 1))
    assert torch.allclose(p[:, k], expected / expected.max(), rtol=1e-10, atol=1e-300)


def test_local_errors_of_gaussian_data():
    """With its exact flow, Euler's and Heun's steps are off by a factor that is known."""
    net, sigmas = Gaussian(0.0, 0.5), EDMSteps().sigmas(8)
    y = torch.full([3, 1, 2, 2], 0.25, dtype=f64)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=f64)
    found = figures.local_errors(net, y, noise, sigmas, 20000)

    def k(s):
        return s / (s**2 + 0.25)   # dx/dσ = k x

    start, end = sigmas[:-1], sigmas[1:]
    h, exact = end - start, (k(start) / start / (k(end) / end)).sqrt()
    factors = 1 + h * k(start), 1 + h / 2 * (k(start) + k(end) * (1 + h * k(start)))
    size = torch.stack([(y + sigma * noise).square().mean().sqrt() for sigma in start])
    for rmse, factor in zip(found, factors, strict=True):
        expected = (factor - exact).abs() * size
        assert torch.allclose(rmse, expected, rtol=0.02, atol=1e-3 * expected.max().item())


@pytest.fixture
def data(tmp_path):
    for i, image in enumerate(
        np.random.RandomState(0).randint(256, size=[5, 8, 8, 1]).astype(np.uint8)
    ):
        save_png(image, tmp_path / 'data' / f'{i}.png')
    return str(tmp_path / 'data')


def draw(*arguments):
    return click.testing.CliRunner().invoke(figures.main, list(arguments))


@pytest.mark.parametrize('name', ['trajectories', 'denoiser', 'truncation'])
def test_pictures_are_the_same_to_the_byte(name, data, tmp_path):
    pytest.importorskip('matplotlib')
    options = {'trajectories': [], 'denoiser': [f'--data={data}', '--images=1'],
               'truncation': [f'--data={data}', '--steps=4', '--samples=2', '--substeps=3']}[name]
    files = []
    for i in range(2):
        result = draw(name, *options, f'--dest={tmp_path}/{i}.png')
        assert (result.exit_code, result.output) == (0, f'Wrote {tmp_path}/{i}.png\n')
        files.append((tmp_path / f'{i}.png').read_bytes())
    assert files[0] == files[1] and files[0][:4] == b'\x89PNG' and b'Software' not in files[0]
    if name != 'trajectories':
        draw(name, *options, '--seed=1', f'--dest={tmp_path}/other.png')
        assert (tmp_path / 'other.png').read_bytes() != files[0]


def test_without_the_digits(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    result = draw('denoiser')
    assert result.exit_code == 2
    assert result.output == ('Error: datasets/digits-16x16.zip is missing: make it with python '
                             'dataset_tool.py --source=digits --dest=datasets/digits-16x16.zip, or '
                             'name another set with --data\n')


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    result = draw('trajectories')
    assert result.exit_code == 2
    assert result.output == ('Error: pictures need matplotlib, of the extra demo: pip install '
                             '".[demo]", or pip install matplotlib\n')
