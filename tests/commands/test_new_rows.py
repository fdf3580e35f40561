"""The promise of CONTRIBUTING: one entry in one dict, and the command line has it."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

import train
from limpid.denoiser import traits
from limpid.levels import DISCRETE_SCHEDULES, LinearBetas
from limpid.loss import LOSSES, NOISE_DISTRIBUTIONS, WEIGHTINGS, DenoisingLoss, LogNormal
from limpid.preconditioning import EDM, PRECONDITIONERS
from tests.commands.test_generate import run
from tests.training.test_training_loop import digits, small_config, small_pictures  # noqa: F401
from training import config as configs
from training.config import TrainConfig
from training.networks import ARCHITECTURES, MODELS, build_network


@dataclass(frozen=True)
class ToyPrecond(EDM):
    """A preconditioner that is told σ instead of ¼ ln σ."""
    sigma_data: float = 0.7

    def c_noise(self, sigma):
        return sigma


@dataclass(frozen=True)
class ToyNoise:
    """σ ~ U(low, high)"""
    low: float = 0.1
    high: float = 2.0

    def quantile(self, u):
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class ToyWeighting:
    """λ(σ) = factor"""
    factor: float = 3.0

    def __call__(self, sigma):
        return torch.full_like(sigma, self.factor)


@dataclass(frozen=True)
class ToyLoss(DenoisingLoss):
    """The denoising loss, doubled."""

    def __call__(self, *args, **conditions):
        return 2 * super().__call__(*args, **conditions)


@dataclass(frozen=True)
class ToySchedule(LinearBetas):
    """Another last beta."""
    last: float = 0.03


class ToyUNet(torch.nn.Module):
    """One layer, which looks at the images only."""

    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, width=3, dropout=0.1,
                 augment_dim=0):
        super().__init__()
        self.enter = torch.nn.Conv2d(in_channels, width, 3, padding=1)
        self.leave = torch.nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        return self.leave(self.enter(x).relu())


def resolved(digits, *options):  # noqa: F811
    """The configuration of a dry run, read back from what it prints."""
    result = run(train.main, f'--data={digits}', '--outdir=nowhere', '--cres=1,2', '-n',
                 '--device=cpu', *options)
    assert result.exit_code == 0, result.output
    return configs.decode(json.loads(result.stdout), TrainConfig)


def test_a_preconditioner(digits, monkeypatch):  # noqa: F811
    """It comes with the other rows of EDM's column, and with a weighting made for it."""
    monkeypatch.setitem(PRECONDITIONERS, 'toy', ToyPrecond)
    config = resolved(digits, '--precond=toy')
    assert config.network.precond == ToyPrecond() and type(config.network.precond) is ToyPrecond
    assert config.loss == replace(small_config(digits).loss, weighting=config.loss.weighting)
    assert type(config.loss.weighting.precond) is ToyPrecond
    assert resolved(digits, '--precond=toy', '--sigma_data=2').network.precond == ToyPrecond(2.0)
    assert 'toy' in run(train.main, '--help').output
    net = build_network(config.network)
    assert type(net.precond) is ToyPrecond and traits(net).unit_scale == 0.7


def test_a_noise_distribution(digits, monkeypatch):  # noqa: F811
    monkeypatch.setitem(NOISE_DISTRIBUTIONS, 'toy', ToyNoise)
    config = resolved(digits, '--noise=toy')
    assert config.loss.noise_distribution == ToyNoise()
    assert (config.network.sigma_min, config.network.sigma_max) == (0.1, 2.0)


def test_a_weighting(digits, monkeypatch):  # noqa: F811
    monkeypatch.setitem(WEIGHTINGS, 'toy', lambda precond: ToyWeighting())
    assert resolved(digits, '--weighting=toy').loss == DenoisingLoss(LogNormal(), ToyWeighting())


def test_a_loss(digits, monkeypatch):  # noqa: F811
    monkeypatch.setitem(LOSSES, 'toy', ToyLoss)
    config = resolved(digits, '--loss=toy', '--precond=vp')
    assert type(config.loss) is ToyLoss
    plain = resolved(digits, '--precond=vp').loss
    assert type(plain) is DenoisingLoss and config.loss.weighting == plain.weighting


def test_a_backbone(digits, monkeypatch):  # noqa: F811
    monkeypatch.setitem(MODELS, 'ToyUNet', ToyUNet)
    monkeypatch.setitem(ARCHITECTURES, 'toy', ('ToyUNet', {'width': 5}))
    result = run(train.main, f'--data={digits}', '--outdir=nowhere', '-n', '--device=cpu',
                 '--arch=toy')
    assert result.exit_code == 0, result.output
    network = configs.decode(json.loads(result.stdout), TrainConfig).network
    assert network.model == {'width': 5, 'dropout': 0.13, 'augment_dim': 9}
    assert build_network(network).model.enter.out_channels == 5


def test_a_discrete_schedule(digits, monkeypatch):  # noqa: F811
    monkeypatch.setitem(DISCRETE_SCHEDULES, 'toy', ToySchedule)
    config = resolved(digits, '--precond=v', '--schedule=toy')
    assert config.network.precond.schedule == ToySchedule(zero_terminal_snr=True)
    assert config.loss.noise_distribution.schedule == ToySchedule(zero_terminal_snr=True)


def test_a_new_row_trains(digits, monkeypatch, tmp_path):  # noqa: F811
    """All of them at once, from the command to the snapshot, which is read back."""
    for table, entry in [(PRECONDITIONERS, ToyPrecond), (NOISE_DISTRIBUTIONS, ToyNoise),
                         (WEIGHTINGS, lambda precond: ToyWeighting()), (LOSSES, ToyLoss),
                         (ARCHITECTURES, ('ToyUNet', {}))]:
        monkeypatch.setitem(table, 'toy', entry)
    monkeypatch.setitem(MODELS, 'ToyUNet', ToyUNet)
    result = run(train.main, f'--data={digits}', f'--run={tmp_path}/run', '--device=cpu',
                 '--precond=toy', '--noise=toy', '--weighting=toy', '--loss=toy', '--arch=toy',
                 '--augment=0', '--dropout=0', '--batch=8', '--duration=0.000016', '--workers=0')
    assert result.exit_code == 0, result.output
    from training.state import load_snapshot
    net, contents = load_snapshot(tmp_path / 'run' / 'network-snapshot-000000.pkl')
    assert type(net.model) is ToyUNet and contents['nimg'] == 16


@pytest.mark.parametrize(('options', 'message'), [
    (['--loss=hybrid'], '--loss=hybrid needs --precond=iddpm with its own noise levels and '
                        'weighting'),
    (['--loss=denoising', '--hybrid=1'], '--loss=denoising and --hybrid=1 exclude each other'),
    (['--precond=iddpm', '--loss=hybrid', '--hybrid=0'],
     '--loss=hybrid and --hybrid=0 exclude each other'),
])
def test_losses_that_do_not_fit(digits, options, message):  # noqa: F811
    result = run(train.main, f'--data={digits}', '--outdir=nowhere', '--cres=1,2', '-n',
                 '--device=cpu', *options)
    assert result.exit_code == 2 and result.output == f'Error: {message}\n'


def test_losses_by_name_are_those_of_the_columns(digits):  # noqa: F811
    names = {'vp': 'denoising', 've': 'denoising', 'iddpm': 'hybrid', 'edm': 'denoising',
             'v': 'velocity'}
    for precond, name in names.items():
        default = resolved(digits, f'--precond={precond}')
        assert resolved(digits, f'--precond={precond}', f'--loss={name}') == default
    plain = resolved(digits, '--precond=iddpm', '--hybrid=0')
    assert plain == resolved(digits, '--precond=iddpm', '--loss=denoising')
    assert type(plain.loss) is DenoisingLoss
