"""The checks at the start of a run: the loss of an untrained network, the spread of the data."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from limpid.loss import (
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    InverseVariance,
    LogNormal,
    UniformTimestep,
    VelocityLoss,
)
from limpid.preconditioning import EDM, PRECONDITIONERS, V
from limpid.table1 import column
from tests.training.test_training_loop import (  # noqa: F401
    CPU,
    digits,
    images_of,
    run_steps,
    small_config,
    small_pictures,
)
from torch_utils.grids import save_png
from training.course import first_step, spread, untrained_loss
from training.dataset import ImageFolderDataset
from training.step import StepFunction
from training.training_loop import build

f64 = torch.float64


def test_the_closed_form_of_edm():
    """(σ_data² + σ² m/σ_data²)/(σ² + σ_data²); 1 at every level where m = σ_data²."""
    sigma, m = torch.tensor([0.002, 0.5, 80.0], dtype=f64), torch.tensor(0.36, dtype=f64)
    precond = EDM(sigma_data=0.5)
    loss = DenoisingLoss(LogNormal(), InverseCOut(precond))
    expected, _ = untrained_loss(loss, precond, sigma, m, 64)
    assert torch.allclose(expected, (0.25 + sigma**2 * m / 0.25) / (sigma**2 + 0.25), rtol=1e-12)
    ones, _ = untrained_loss(loss, precond, sigma, torch.tensor(0.25, dtype=f64), 64)
    assert torch.allclose(ones, torch.ones(3, dtype=f64), rtol=1e-12)


@pytest.mark.parametrize('name', PRECONDITIONERS)
def test_the_mean_and_the_variance_over_the_noise(name):
    precond = PRECONDITIONERS[name]()
    loss = DenoisingLoss(LogNormal(), InverseVariance())
    y = torch.linspace(-1, 1, 50, dtype=f64)
    noise = torch.randn([20_000, 50], dtype=f64, generator=torch.Generator().manual_seed(0))
    for level in (0.05, 0.7, 20.0):
        sigma = torch.tensor([level], dtype=f64)
        c_skip = precond.c_skip(sigma)
        means = ((c_skip * (y + sigma * noise) - y)**2 / sigma**2).mean(dim=1)
        expected, variance = untrained_loss(loss, precond, sigma, y.square().mean(), 50)
        assert math.isclose(means.mean(), expected, rel_tol=0.01)
        assert math.isclose(means.var(), variance, rel_tol=0.05)


def test_at_infinity():
    precond = V(sigma_data=0.5)
    expected, variance = untrained_loss(
        VelocityLoss(UniformTimestep(), weighting=InverseCOut(precond)), precond,
        torch.tensor([math.inf], dtype=f64), torch.tensor(0.36, dtype=f64), 64)
    assert (float(expected), float(variance)) == (0.36 / 0.25, 0)


@pytest.mark.parametrize('name', PRECONDITIONERS)
def test_every_column_starts_with_the_loss_of_its_closed_form(digits, name):  # noqa: F811
    """With augmentation and in micro-batches."""
    cells = column(name)
    loss_of = VelocityLoss if cells.loss is VelocityLoss else DenoisingLoss
    config = small_config(digits, cells.precond, cells.noise_distribution, cells.weighting,
                          batch_gpu=6, loss=loss_of(cells.noise_distribution,
                                                    weighting=cells.weighting))
    state = build(config, CPU)
    step = StepFunction(config, state, CPU)
    step(*images_of(config))
    verdict = step.verdict()
    assert verdict.startswith('Course: the untrained network has the loss ')
    told, expected = (float(part.split()[-1]) for part in verdict.split(' ± ')[0].split(
        ', by its closed form'))
    assert told == pytest.approx(state.stats.take()['Loss/loss']['mean'], rel=1e-3)
    assert told == pytest.approx(expected, rel=0.15)
    assert step.verdict() == ''


def test_a_network_whose_output_is_not_0(digits):  # noqa: F811
    config = small_config(digits, augment=None)
    state = build(config, CPU)
    with torch.no_grad():
        for parameter in state.net.parameters():
            parameter += 0.05
    step = StepFunction(config, state, CPU)
    step(*images_of(config))
    verdict = step.verdict()
    assert verdict.startswith('Warning: the untrained network has the loss ')
    assert ', which is that of an output of 0: ' in verdict and ' at sigma 0.2 to 0.5' in verdict


def test_where_there_is_no_closed_form(digits):  # noqa: F811
    config = small_config(digits)
    assert first_step(small_config(digits, loss=HybridLoss())) is None
    later = run_steps(config, 1)
    assert StepFunction(config, later, CPU).course is None
    transferred = build(config, CPU)
    transferred.transferred = {'from': 'x'}
    assert StepFunction(config, transferred, CPU).course is None


@pytest.fixture
def half_black(tmp_path):
    """Images of which half of the pixels are black and half white: a standard deviation of 1."""
    for i in range(3):
        image = np.zeros([8, 8, 1], dtype=np.uint8)
        image[:4] = 255
        save_png(image, tmp_path / 'data' / f'{i}.png')
    return str(tmp_path / 'data')


def test_the_spread_of_the_data(half_black, digits):  # noqa: F811
    assert spread(ImageFolderDataset(half_black)) == (1.0, 3)
    dataset = ImageFolderDataset(digits)
    images = np.stack([dataset[i][0] for i in range(100)]) / 127.5 - 1
    assert spread(dataset) == pytest.approx((images.std(), 100), rel=1e-12)


def test_the_spread_of_arrays_is_what_a_network_sees(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        np.save(tmp_path / f'{i}.npy', (100 + 40 * rng.standard_normal([5, 4, 4])).astype('f4'))
    assert spread(ImageFolderDataset(tmp_path)) == (pytest.approx(0.5, rel=1e-6), 4)


def test_the_spread_is_measured_without_the_file_of_all_images(half_black, tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path / 'cache'))
    assert spread(ImageFolderDataset(half_black, cache='mmap')) == (1.0, 3)
    assert not (tmp_path / 'cache').exists()


def test_the_note_says_what_sets_it(half_black, tmp_path):
    note = ('Note: the standard deviation of the data is 1.00 (3 images), and sigma_data=0.5: '
            '--sigma_data=1.00 fits the network to them (the EDM paper has 0.5 for all of its data '
            'sets)\n')

    def told(*more):
        result = CliRunner().invoke(train.main, [
            f'--run-dir={tmp_path / "run"}', f'--data={half_black}', '--cbase=16', '--cres=1',
            '--blocks=1', '--device=cpu', '--dry-run', *more])
        assert result.exit_code == 0, result.output
        return result.stderr

    assert told() == note
    assert told('--sigma_data=1.00') == '' == told('--sigma_data=0.85') == told('--precond=v')
    (tmp_path / 'data' / '1.png').write_bytes(b'')   # which training will tell of
    assert told() == ''
