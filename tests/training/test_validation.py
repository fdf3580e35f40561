"""Held-out images: what is measured, by hand; that it shows overfitting and changes nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import train
from checkpoints.open import open_network
from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.pixels import from_uint8
from limpid.preconditioning import EDM
from torch_utils.random import generator_at
from training.config import TrainConfig
from training.dataset import DataConfig
from training.networks import NetworkConfig
from training.stats_file import SIGMA_RANGES
from training.step import VALIDATION
from training.validation import Validation, line_of

CPU = torch.device('cpu')
SMALL = ['--cbase=8', '--cres=1', '--blocks=1', '--batch=8', '--duration=0.000064',
         '--tick=0.032', '--snap=1', '--pictures=0', '--workers=0', '--device=cpu', '--cond=1']
LOSS = DenoisingLoss(LogNormal(), InverseCOut(EDM(0.5)))


def run(command, *arguments, fails=False):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result.output.splitlines()[-1] if fails else result.output


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """Paths of 40 digits to train on and of 20 others, all 8x8."""
    folder = tmp_path_factory.mktemp('digits')
    run(dataset_tool.main, '--source=digits', f'--dest={folder}/all.zip', '--resolution=8x8',
        '--max-images=60')
    run(dataset_tool.main, 'split', f'{folder}/all.zip', f'--dest={folder}/train.zip',
        f'--val={folder}/val.zip', '--count=20')
    return folder / 'train.zip', folder / 'val.zip'


def opened(split, num=20):
    """The validation, the configuration of the run and its data set."""
    network = NetworkConfig('x', EDM(), 0.0, 80.0, 8, 1)
    config = TrainConfig(DataConfig(str(split[0])), network, LOSS)
    with config.data.open() as dataset:
        return Validation(str(split[1]), num, config, dataset, CPU), config, dataset


def test_the_loss_of_each_image_at_each_level(split):
    validation, config, _ = opened(split, num=3)
    net = lambda x, sigma, labels=None: 0.5 * x   # noqa: E731
    found = validation.measure(SimpleNamespace(ema=SimpleNamespace(net=net)))
    with DataConfig(str(split[1]), max_size=3).open() as held_out:
        y = from_uint8(torch.from_numpy(held_out.batch(np.arange(3))[0]))
    by_hand, sigmas = [], []
    for i in range(3):
        for level in range(8):
            u = torch.tensor([(level + (i + 0.5) / 3) / 8], dtype=torch.float64)
            sigma = LogNormal().quantile(u).to(torch.float32)
            noise = torch.randn([1, 8, 8], generator=generator_at(0, 8 * i + level, VALIDATION))
            error = 0.5 * (y[i] + sigma * noise) - y[i]
            by_hand.append(float(error.square().mean() * (sigma**2 + 0.25) / (sigma * 0.5)**2))
            sigmas.append(float(sigma))
    assert found['Validation/loss']['num'] == 24
    assert found['Validation/loss']['mean'] == pytest.approx(np.mean(by_hand), rel=1e-5)
    for name, (low, high) in SIGMA_RANGES.items():
        inside = [loss for loss, sigma in zip(by_hand, sigmas, strict=True) if low <= sigma < high]
        entry = found.get(name.replace('Loss', 'Validation'))
        assert (entry is None) == (not inside)
        if inside:
            assert entry['mean'] == pytest.approx(np.mean(inside), rel=1e-5)


def test_a_network_that_has_learnt_its_images_by_heart_is_seen(split):
    validation, _, _ = opened(split)
    ideal = open_network(f'ideal:{split[0]}')
    ideal.traits = replace(ideal.traits, label_dim=0)
    found = validation.measure(SimpleNamespace(ema=SimpleNamespace(net=ideal)))
    assert found['Validation/loss']['mean'] > 2 * found['Validation/train_loss']['mean']
    levels = [name.removeprefix('Validation/') for name in found
              if name.startswith('Validation/sigma')]
    gaps = {name: found[f'Validation/{name}']['mean'] - found[f'Validation/train_{name}']['mean']
            for name in levels}
    assert gaps['sigma_0.1_to_0.2'] > 10 * abs(gaps['sigma_2_to_5'])
    line = line_of(found)
    assert line.startswith(f'held-out/training loss {found["Validation/loss"]["mean"]:.4g}/'
                           f'{found["Validation/train_loss"]["mean"]:.4g}; by sigma: ')
    assert ', 0.1-0.2 ' in line and line.count(',') == len(levels) - 1


def test_ranks_share_the_work(split, monkeypatch):
    validation, _, _ = opened(split, num=5)
    state = SimpleNamespace(ema=SimpleNamespace(net=lambda x, sigma, labels=None: 0.5 * x))
    alone = validation.measure(state)
    parts = {}
    for rank in (0, 1, 2):
        monkeypatch.setattr('torch_utils.distributed.get_rank', lambda rank=rank: rank)
        monkeypatch.setattr('torch_utils.distributed.get_world_size', lambda: 3)
        monkeypatch.setattr('torch_utils.distributed.gather_objects', lambda part, rank=rank: (
            parts.setdefault(rank, part), [])[1])
        validation._losses(state, *validation.held_out)
    together = iter([list(parts.values())] * 2)
    monkeypatch.setattr('torch_utils.distributed.gather_objects', lambda part: next(together))
    assert validation.measure(state)['Validation/loss'] == alone['Validation/loss']


def test_a_run_tells_them_and_is_the_same_without(split, tmp_path):
    told = run(train.main, f'--run={tmp_path}/a', f'--data={split[0]}', f'--val={split[1]}',
               '--val-num=8', *SMALL)
    run(train.main, f'--run={tmp_path}/b', f'--data={split[0]}', *SMALL)
    assert f'Held out:    {split[1]}, 8 images, every 0.032 kimg' in told
    lines = [json.loads(line) for line in (tmp_path / 'a' / 'stats.jsonl').read_text().splitlines()]
    assert len(lines) == 3 and told.count('held-out/training loss ') == 3
    for line in lines:
        assert line['Validation/loss']['num'] == line['Validation/train_loss']['num'] == 64
    # the averaged network of the start answers nearly nothing, so both losses are about the same
    assert lines[0]['Validation/loss']['mean'] == pytest.approx(
        lines[0]['Validation/train_loss']['mean'], rel=0.2)
    nets = [open_network(tmp_path / name / 'network-snapshot-000000.pkl') for name in 'ab']
    for ours, theirs in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(ours, theirs)


def test_images_that_do_not_fit_are_found_in_a_dry_run(split, tmp_path):
    run(dataset_tool.main, f'--source={split[1]}', f'--dest={tmp_path}/other.zip',
        '--resolution=16x16')
    run(dataset_tool.main, 'split', split[0], f'--dest={tmp_path}/labelled.zip',
        f'--val={tmp_path}/x.zip', '--count=5')
    vectors = tmp_path / 'vectors.json'
    with DataConfig(str(split[1])).open() as dataset:
        vectors.write_text(json.dumps({name: [0.5] for name in dataset.files.names}))
    run(dataset_tool.main, f'--source={split[1]}', f'--dest={tmp_path}/vectors.zip',
        f'--labels={vectors}')
    for path, message in [
        (split[0], 'is the data set that is trained on: hold images out with python '
                   'dataset_tool.py split'),
        (tmp_path / 'other.zip', 'has images of [1, 16, 16] (channels, height, width), but those '
                                 'of --data are [1, 8, 8]'),
        (tmp_path / 'vectors.zip', 'has labels of 1 numbers, but --data of 10'),
    ]:
        assert run(train.main, f'--run={tmp_path}/run', f'--data={split[0]}', f'--val={path}',
                   '-n', *SMALL, fails=True) == f'Error: --val={path} {message}'
    assert run(train.main, f'--run={tmp_path}/run', f'--data={split[0]}', '--val-num=3', '-n',
               *SMALL, fails=True) == 'Error: --val-num would have no effect without --val'
