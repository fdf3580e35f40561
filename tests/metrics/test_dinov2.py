import numpy as np
import pytest
import torch
from torch import nn

from dnnlib.download import cached_path
from metrics.dinov2 import (
    PUBLISHED,
    DINOv2,
    load_weights,
    locate,
    resized,
    resized_positions,
    weight_shapes,
)
from tests.inception_weights import random_images


def random_weights(**sizes):
    random = np.random.RandomState(0)
    weights = {}
    for name, shape in weight_shapes(**sizes).items():
        scale = 1 / np.sqrt(np.prod(shape[1:])) if name.endswith('.weight') and len(
            shape) > 1 else 0.3
        shift = 1 if name.endswith(('norm1.weight', 'norm2.weight', 'norm.weight', 'gamma')) else 0
        weights[name] = torch.from_numpy((shift + scale
                                          * random.standard_normal(shape)).astype(np.float32))
    return weights


@torch.no_grad()
def by_torch(weights, x, depth, width):
    """torch.nn's own transformer, with the scales of the branches multiplied into their last
    layers."""
    patches = nn.functional.unfold(x, 14,
                                   stride=14).mT @ weights['patch_embed.proj.weight'].flatten(1).mT
    x = torch.cat([weights['cls_token'], patches + weights['patch_embed.proj.bias']], dim=1)
    x = x + weights['pos_embed']
    for i in range(depth):
        w = {name.removeprefix(f'blocks.{i}.'): t for name, t in weights.items()
             if name.startswith(f'blocks.{i}.')}
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0, 'gelu', 1e-6, True, True
        ).eval()
        layer.load_state_dict({
            'self_attn.in_proj_weight': w['attn.qkv.weight'],
            'self_attn.in_proj_bias': w['attn.qkv.bias'],
            'self_attn.out_proj.weight': w['ls1.gamma'][:, None] * w['attn.proj.weight'],
            'self_attn.out_proj.bias': w['ls1.gamma'] * w['attn.proj.bias'],
            'linear1.weight': w['mlp.fc1.weight'], 'linear1.bias': w['mlp.fc1.bias'],
            'linear2.weight': w['ls2.gamma'][:, None] * w['mlp.fc2.weight'],
            'linear2.bias': w['ls2.gamma'] * w['mlp.fc2.bias'],
            **{f'{norm}.{part}': w[f'{norm}.{part}'] for norm in ('norm1', 'norm2')
               for part in ('weight', 'bias')}})
        x = layer(x)
    return nn.functional.layer_norm(x, [width], weights['norm.weight'], weights['norm.bias'],
                                    1e-6)[:, 0]


def test_features_are_those_of_torch_s_own_transformer():
    weights = random_weights(width=128, depth=3, grid=16)
    images = random_images(224, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(DINOv2(weights)(images), by_torch(weights, x, 3, 128), rtol=1e-4,
                               atol=1e-5)
    exact = DINOv2(weights, dtype=torch.float64)(images)
    torch.testing.assert_close(DINOv2(weights)(images).double(), exact, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batch():
    weights = random_weights(width=64, depth=1, grid=37)
    images = random_images(32, 3)
    together = DINOv2(weights)(images)
    torch.testing.assert_close(DINOv2(weights)(images[2:]), together[2:], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_the_network_has_the_published_size():
    """The file has 4 bytes for every number, and some names."""
    size = 4 * sum(int(np.prod(shape)) for shape in weight_shapes().values())
    assert size == 1_217_474_560
    assert 0 < PUBLISHED.size - size < 150_000


def cubic(x):
    """Keys' kernel with a = -3/4."""
    x, a = np.abs(x), -0.75
    return np.where(x <= 1, (a + 2) * x**3 - (a + 3) * x**2 + 1,
                    np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))


def test_positions_are_resized_with_the_offset():
    """Output i of 16 lies at (i + 1/2)·37/16.1 − 1/2, and the border repeats."""
    positions = torch.from_numpy(np.random.RandomState(0).standard_normal([1, 1 + 37**2, 2]))
    matrix = np.zeros([16, 37])
    for i in range(16):
        at = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[i, np.clip(j, 0, 36)] += cubic(at - j)
    square = positions[0, 1:].numpy().reshape(37, 37, 2)
    right = np.einsum('ia,jb,abc->ijc', matrix, matrix, square).reshape(256, 2)
    found = resized_positions(positions, 16)
    assert torch.equal(found[:, :1], positions[:, :1].float())
    np.testing.assert_allclose(found[0, 1:].numpy(), right, rtol=0, atol=2e-5)
    assert torch.equal(resized_positions(positions, 37), positions.float())


def test_images_are_resized_without_rounding_and_smoothed():
    images = random_images(448)
    small = resized(images)
    assert list(small.shape) == [1, 3, 224, 224] and small.dtype == torch.float32
    assert not torch.equal(small, small.round())
    assert torch.equal(resized(images[..., :224, :224]), images[..., :224, :224].float())
    stripes = torch.zeros([1, 3, 8, 896], dtype=torch.uint8)
    stripes[..., ::4] = 200
    torch.testing.assert_close(resized(stripes)[..., 8:-8], torch.full([1, 3, 224, 208], 50.0),
                               rtol=0, atol=2)


def test_files_are_read_and_checked(tmp_path, monkeypatch):
    sizes = {'width': 64, 'depth': 1, 'grid': 4}
    monkeypatch.setattr('metrics.dinov2.weight_shapes', lambda: weight_shapes(**sizes))
    weights, path = random_weights(**sizes), tmp_path / 'weights.pth'
    torch.save(weights, path)
    found = load_weights(path)
    assert list(found) == list(weights) and all(
        torch.equal(found[name], weights[name]) for name in weights
    )
    torch.save({**weights, 'norm.bias': torch.zeros(3)}, path)
    with pytest.raises(ValueError) as error:
        load_weights(path)
    assert str(error.value) == (f'{path} does not have the weights of DINOv2 ViT-L/14: the tensor '
                                f'norm.bias has shape [3], not [64]')
    for name in ('LIMPID_DINOV2', 'TORCH_HOME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(tmp_path))
    with pytest.raises(ValueError, match=r'^FD-DINOv2 needs the published weights of ViT-L/14, .* '
                                         r'set LIMPID_DINOV2'):
        locate()
    cached_path(PUBLISHED.url).parent.mkdir(parents=True, exist_ok=True)
    cached_path(PUBLISHED.url).write_bytes(b'torn')
    with pytest.raises(ValueError, match='is damaged: its sha256 is'):
        locate()
    monkeypatch.setenv('LIMPID_DINOV2', str(path))
    assert locate() == path
