"""checkpoint.py as its users see it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from checkpoint import main
from checkpoints.read import read_network
from checkpoints.to_edm import published_arguments
from tests.checkpoints.test_read import assert_same, lively
from torch_utils import checkpoint
from torch_utils.digest import digest_of_tensors
from torch_utils.safetensors_file import load_tensors, save_tensors
from training import config as configs
from training import networks
from training.networks import NetworkConfig, build_network

ROOT = Path(__file__).parents[2]
PUBLISHED = 'tests/golden/published-ddpmpp-edm.pkl'
DIGEST = '4ccb80e3b1c6add3b06779f3ac7997cf7226470d2ce0d263999d9686b9ca3ab2'


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines(result):
    return dict(line.split(': ', 1) for line in result.output.splitlines())


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_inspect():
    result = run('inspect', PUBLISHED)
    assert result.exit_code == 0, result.output
    told = {title: text.strip() for title, text in lines(result).items()}
    assert told['File'] == f'{PUBLISHED} (0.8 MB)' and told[
        'Kind'] == 'EDM network snapshot, averaged weights'
    assert told['Network'] == 'SongUNet, preconditioned as EDM: EDM(sigma_data=0.5)'
    assert told['Parameters'] == '183,235 (0.2 M)' and told['Images'] == '3 x 16 x 16' and told[
        'Classes'] == '4'
    assert told['Noise levels'] == '0 to infinity' and told[
        'Trained with'] == 'unknown number of images'
    assert json.loads(told['Loss']) == {'class': 'EDMLoss', 'P_mean': -1.2, 'P_std': 1.2,
                                        'sigma_data': 0.5}
    assert told['Digest'] == DIGEST


def test_the_digest_is_what_its_description_says():
    import hashlib
    net, _ = read_network(PUBLISHED)
    total = hashlib.sha256()
    for name in sorted(net.state_dict()):
        array = net.state_dict()[name].numpy().astype('<f4')
        total.update(f'{name} {list(array.shape)}\n'.encode() + array.tobytes())
    assert digest_of_tensors(net.state_dict()) == total.hexdigest() == DIGEST


def test_convert_there_and_back(tmp_path):
    """Published -> ours -> safetensors -> ours: every tensor bit for bit, and the same
    configuration."""
    steps = [PUBLISHED, tmp_path / 'a.pkl', tmp_path / 'b.safetensors', tmp_path / 'c.pkl']
    for source, dest in zip(steps, steps[1:], strict=False):
        result = run('convert', source, f'--dest={dest}')
        assert result.exit_code == 0, result.output
        assert result.output == f'Wrote 149 tensors to {dest}; digest {DIGEST}\n'
    (net, info), (other, told) = read_network(steps[0]), read_network(steps[-1])
    assert_same(net, other)
    assert type(net) is type(other) and info['config'] == told['config']
    assert told['kind'] == 'network snapshot' and told['nimg'] is None
    assert told['training']['origin']['kind'] == 'EDM network snapshot'
    assert (
        'EDMLoss' in run('inspect', steps[-1]).output
        and 'unknown number' in run('inspect', steps[-1]).output
    )


def test_other_programs_read_the_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    run('convert', PUBLISHED, f'--dest={tmp_path}/a.safetensors')
    net, tensors = read_network(PUBLISHED)[0], safetensors.load_file(tmp_path / 'a.safetensors')
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())


def small(path, **changes):
    """A snapshot of ours."""
    net = lively(build_network(NetworkConfig('SongUNet', configs.preconditioning.EDM(), 0.0,
                                             float('inf'), 8, 1, model={
        'model_channels': 16, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})))
    tensors = checkpoint.state_dict_of(net)
    config = NetworkConfig('SongUNet', configs.preconditioning.EDM(), 0.0, float('inf'), 8, 1,
                           model={
        'model_channels': 16, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})
    checkpoint.save({'kind': 'network snapshot', 'format': configs.FORMAT,
                     'config': {'network': configs.encode(config)}, 'nimg': 64000,
                     'ema': {**tensors, **changes}, 'ema_name': '0.5', 'averages': {}}, path)
    return net


def test_verify(tmp_path):
    assert run('verify', PUBLISHED).output == (
        f'{PUBLISHED}: 149 tensors, all finite; the 149 of the network fit it; the file has no '
        f'checksum that could tell whether they are the original ones\n')
    for name in ('plain.pkl', 'plain.safetensors'):
        run('convert', PUBLISHED, f'--dest={tmp_path / name}')
        assert run('verify', tmp_path / name).output.endswith(
            'the 149 of the network fit it; they have the checksum that was written with them\n')
    data = bytearray((tmp_path / 'plain.safetensors').read_bytes())
    data[-2] ^= 1
    (tmp_path / 'plain.safetensors').write_bytes(data)
    altered = run('verify', tmp_path / 'plain.safetensors')
    assert altered.exit_code == 1 and 'plain.safetensors is damaged: its tensors' in altered.output
    small(tmp_path / 'fine.pkl')
    result = run('verify', tmp_path / 'fine.pkl')
    assert result.exit_code == 0, result.output
    assert lines(run('inspect',
                     tmp_path / 'fine.pkl'))['Trained with'].strip() == '64,000 images (0.064 Mimg)'


FAULTS = {
    'nan': (
        {'model.map_layer0.bias': torch.full([64], float('nan'))},
        'model.map_layer0.bias holds 64 numbers that are not finite',
    ),
    'infinity': (
        {'model.map_layer0.bias': torch.tensor([0.0] * 63 + [float('inf')])},
        'model.map_layer0.bias holds 1 numbers that are not finite',
    ),
    'a shape': (
        {'model.map_layer0.bias': torch.zeros(7)},
        'the tensor model.map_layer0.bias has shape [7], not [64]',
    ),
    'one too many': ({'extra': torch.zeros(1)}, 'the tensor extra is unknown to this network'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_verify_finds_faults(tmp_path, fault):
    path, (changes, message) = tmp_path / 'net.pkl', FAULTS[fault]
    small(path, **changes)
    result = run('verify', path)
    assert result.exit_code == 1 and result.output == f'Error: {path}: {message}\n'


def test_verify_looks_at_everything_in_the_file(tmp_path):
    small(tmp_path / 'net.pkl')
    contents = checkpoint.load(tmp_path / 'net.pkl', 'network snapshot')
    contents['averages'] = {'0.1': {'model.map_layer0.bias': torch.full([3], float('inf'))}}
    checkpoint.save(contents, tmp_path / 'net.pkl')
    result = run('verify', tmp_path / 'net.pkl')
    assert result.exit_code == 1
    assert (result.output == f'Error: {tmp_path}/net.pkl: beside the network, a tensor [3] holds 3 '
                             f'numbers that are not finite\n')
    data = (tmp_path / 'net.pkl').read_bytes()
    (tmp_path / 'net.pkl').write_bytes(data[:len(data) // 2])
    assert run('verify', tmp_path / 'net.pkl').exit_code == 1


def test_an_altered_snapshot_of_ours_is_noticed(tmp_path):
    """A giant configuration in a file of ours is refused before memory is taken for it."""
    small(tmp_path / 'net.pkl')
    contents = checkpoint.load(tmp_path / 'net.pkl', 'network snapshot')
    contents['config']['network']['model']['model_channels'] = 1 << 18
    checkpoint.save(contents, tmp_path / 'net.pkl')
    with pytest.raises(ValueError, match=r'the tensor model.map_layer0.weight has shape \[64, '
                                         r'16\], not \[1048576, 262144\]$'):
        read_network(tmp_path / 'net.pkl')


MISTAKES = {
    ('inspect', 'nowhere.pkl'): 'nowhere.pkl: there is no such network snapshot or training state',
    ('verify', 'nowhere.pkl'): 'nowhere.pkl: there is no such network snapshot or training state',
    ('inspect', 'tests'): 'tests is a folder, not a network snapshot or training state',
    ('inspect', 'README.md'): "README.md is damaged or not a network snapshot or training state: "
                              "it starts with b'# limpid'",
    ('convert', PUBLISHED, '--dest=net.pth'): '--dest=net.pth should be the name of a file that '
                                              'ends in .pkl, .safetensors or .pt',
    ('inspect', PUBLISHED, '--weights=raw'): f'--weights=raw: {PUBLISHED} has ema',
}


@pytest.mark.parametrize('arguments', MISTAKES)
def test_mistakes_end_in_one_line(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and result.output == f'Error: {MISTAKES[arguments]}\n'


def test_safetensors_that_are_damaged(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_tensors({'a': torch.ones(5), 'b': torch.tensor(2.0), 'c': torch.empty(0, 3)}, {'x': 'y'},
                 path)
    tensors, metadata = load_tensors(path)
    assert (
        metadata == {'x': 'y'}
        and tensors['c'].shape == (0, 3)
        and tensors['b'] == 2
        and torch.equal(tensors['a'], torch.ones(5))
    )
    with pytest.raises(ValueError, match='its metadata do not say which network it is$'):
        read_network(path)
    data = path.read_bytes()
    for cut in range(1, 100):
        path.write_bytes(data[:len(data) * cut // 100])
        with pytest.raises(ValueError):
            load_tensors(path)
    huge = json.dumps({'a': {'dtype': 'F32', 'shape': [1 << 40],
                             'data_offsets': [0, 1 << 42]}}).encode()
    negative = json.dumps({'a': {'dtype': 'F32', 'shape': [-2, -2],
                                 'data_offsets': [0, 16]}}).encode()
    for header in (huge, negative, b'{' + b'[' * 100_000, b'[]', b'{"a": 3}'):
        path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(16))
        with pytest.raises(ValueError, match='is a damaged safetensors file: '):
            load_tensors(path)


def test_it_runs_as_a_script():
    result = subprocess.run([sys.executable, 'checkpoint.py', '--help'], capture_output=True,
                            text=True, check=True)
    assert 'inspect' in result.stdout and 'without running' in result.stdout


def test_the_published_classes_load_a_plain_state_dict(tmp_path):
    result = run('convert', PUBLISHED, f'--dest={tmp_path}/net.pt')
    assert result.exit_code == 0, result.output
    made = json.loads((tmp_path / 'net.json').read_text())
    assert made['class'] == 'EDMPrecond' and {
        name: made['arguments'][name] for name in list(made['arguments'])[:4]} == {
            'img_resolution': 16, 'img_channels': 3, 'label_dim': 4, 'model_type': 'SongUNet'}
    net = getattr(networks, made['class'])(**made['arguments'])
    net.load_state_dict(torch.load(tmp_path / 'net.pt', weights_only=True))
    assert_same(net, read_network(PUBLISHED)[0])
    told = lines(run('inspect', PUBLISHED))['In EDM'].strip()
    assert told.startswith("EDMPrecond(img_resolution=16, img_channels=3, label_dim=4, model_type")
    assert eval(told, vars(networks)).img_resolution == 16
    v = NetworkConfig('SongUNet', configs.preconditioning.V(), 0.0, 80.0, 8, 1)
    assert published_arguments(v) is None


def test_statistics_are_no_network(tmp_path):
    np.savez(tmp_path / 'ref.npz', mu=np.zeros(224), sigma=np.eye(224))
    result = run('inspect', tmp_path / 'ref.npz')
    assert result.exit_code == 2 and result.output.startswith(
        f'Error: {tmp_path}/ref.npz is no network but a file of statistics of images (demo; ')
