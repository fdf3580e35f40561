"""Training beside a peer: what its network is, the options, the numbers of the page."""

import json
import shlex

import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import train
from benchmarks import peer_training as beside
from limpid.preconditioning import EDM
from training.config import TrainConfig, decode
from training.networks import NetworkConfig, build_network


def test_the_backbone_is_called_as_limpid_calls_it():
    """D = c_skip y + c_out F(c_in y; ln(σ)/4), as the peer computes it, is limpid's."""
    config = NetworkConfig('SongUNet', EDM(), 0.0, float('inf'), 8, 1, model={
        'model_channels': 16, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})
    net = build_network(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02
        y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        sigma = torch.tensor([0.3, 5.0])
        s = sigma.reshape(-1, 1, 1, 1)
        F = beside.Backbone(net.model)(y / (s**2 + 0.25).sqrt(), sigma.log() / 4, None)
        D = (0.25 / (s**2 + 0.25)) * y + 0.5 * s / (s**2 + 0.25).sqrt() * F
        torch.testing.assert_close(D, net(y, sigma), rtol=1e-5, atol=1e-5)


def test_the_command_has_what_the_page_calls_equal(tmp_path):
    data = tmp_path / 'd.zip'
    made = CliRunner().invoke(dataset_tool.main, ['--source=digits', f'--dest={data}',
                                                  '--max-images=20'])
    assert made.exit_code == 0, made.output
    command = beside.training_task('limpid', str(tmp_path), 48).command
    words = shlex.split(command.replace(f'{tmp_path}/train', str(data)))[1:]
    result = CliRunner().invoke(train.main, [*words, '--dry-run'])
    assert result.exit_code == 0, result.output
    config = decode(json.loads(result.stdout), TrainConfig)
    assert config.batch_size == beside.BATCH and config.augment is None
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.clip) == (
        beside.LR, beside.BETAS, None)
    assert config.averages[0].halflife_nimg == beside.HALF_LIFE
    assert config.network.label_dim == 0 and config.network.precond == EDM()
    share = 0.5 ** (beside.BATCH / beside.HALF_LIFE)
    assert share == pytest.approx(0.98897, abs=1e-5)


def test_a_peer_that_was_stopped_goes_on_and_the_page_has_the_numbers(tmp_path):
    """A piece that was trained twice counts once, as it was the last time."""
    folder = tmp_path / 'peer'
    folder.mkdir()
    points = [(4, 0.9), (8, 0.5), (8, 0.4), (12, 0.3), (16, 0.2), (20, 0.1)]
    (folder / 'losses.jsonl').write_text(''.join(
        json.dumps({'kimg': kimg, 'loss': loss}) + '\n' for kimg, loss in points))
    found = beside.losses_of(beside.PEER, str(tmp_path))
    assert found == [(4, 0.9), (8, 0.4), (12, 0.3), (16, 0.2), (20, 0.1)]
    for name, value in (('real', 13.415), ('peer', 55.125)):
        (tmp_path / f'{name}.json').write_text(
            json.dumps({'scores': {'fd_efficientnet_lite0': value}}))
    text = beside.page({beside.PEER: found}, str(tmp_path), 20, 'python -m x', '2.3.4')
    assert '| 500 real images that no network saw | 13.41 | – |' in text
    assert '| denoising-diffusion-pytorch | 55.12 | 0.2500 |' in text
