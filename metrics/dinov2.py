"""The network behind FD-DINOv2: the vision transformer ViT-L/14 of DINOv2 (Oquab et al. 2023).

    net = DINOv2(load_weights(path), device='cuda')
    features = net(images)            # uint8 [B, 3, H, W] -> [B, 1024], the class token

Images are resized to 224 x 224 pixels as EDM2 does it: by bicubic interpolation, with smoothing
where they shrink, in float32 and without rounding. Stein et al. 2023, who proposed the distance,
round to uint8 after resizing, which gives a different number.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dnnlib.download import cached_path
from metrics import weights as files

SIZE = 224          # pixels of the input, high and wide
HEAD_DIM = 64       # the width of an attention head
EPSILON = 1e-6      # the constant of the layer normalisation
MAX_BATCH = 64      # images at a time
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)   # of ImageNet's colours, in 0 ... 1
WHAT = "file of DINOv2's weights"
PUBLISHED = files.Published(
    'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth',
    'd5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428', 1_217_586_395)


def weight_shapes(width: int = 1024, depth: int = 24, patch: int = 14,
                  grid: int = 37) -> dict[str, list[int]]:
    """Return the names in the published file, and their shapes.

    `mask_token` was for training only.
    """
    shapes = {
        'cls_token': [1, 1, width], 'pos_embed': [1, 1 + grid**2, width], 'mask_token': [1, width],
        'patch_embed.proj.weight': [width, 3, patch, patch], 'patch_embed.proj.bias': [width],
        'norm.weight': [width], 'norm.bias': [width],
    }
    for i in range(depth):
        for name in ('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias', 'ls1.gamma',
                     'ls2.gamma'):
            shapes[f'blocks.{i}.{name}'] = [width]
        for name, inputs, outputs in (('attn.qkv', width, 3 * width), ('attn.proj', width, width),
                                      ('mlp.fc1', width, 4 * width), ('mlp.fc2', 4 * width, width)):
            shapes[f'blocks.{i}.{name}.weight'] = [outputs, inputs]
            shapes[f'blocks.{i}.{name}.bias'] = [outputs]
    return shapes


class DINOv2:
    """The network on a device. Its tensors are constants: there is nothing to train.

    `weights` are those of `load_weights`; they determine width and depth. Heads have 64 numbers.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32) -> None:
        self.weights = {name: tensor.to(dtype).to(device) for name, tensor in weights.items()}
        patches = SIZE // weights['patch_embed.proj.weight'].shape[-1]
        self.positions = resized_positions(weights['pos_embed'], patches).to(dtype).to(device)
        self.depth = 1 + max(int(name.split('.')[1]) for name in weights
                             if name.startswith('blocks.'))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on the network's device -> [B, width]"""
        return torch.cat([self._features(part) for part in images.split(MAX_BATCH)])

    def _features(self, images: Tensor) -> Tensor:
        x = resized(images).to(self.positions)
        mean, std = (torch.tensor(values).to(x)[:, None, None] for values in (MEAN, STD))
        x = self._patches((x / 255 - mean) / std) + self.positions
        for i in range(self.depth):
            x = self._block(x, f'blocks.{i}')
        return self._norm(x[:, 0], 'norm')

    def _patches(self, x: Tensor) -> Tensor:
        """Embed [B, 3, SIZE, SIZE] -> [B, 1 + patches, width], the class token first."""
        weight = self.weights['patch_embed.proj.weight']
        x = F.conv2d(x, weight, self.weights['patch_embed.proj.bias'], stride=weight.shape[-1])
        return torch.cat([self.weights['cls_token'].expand(len(x), -1, -1), x.flatten(2).mT], dim=1)

    def _block(self, x: Tensor, name: str) -> Tensor:
        x = x + self.weights[f'{name}.ls1.gamma'] * self._attention(self._norm(x, f'{name}.norm1'),
                                                                    f'{name}.attn')
        hidden = F.gelu(self._linear(self._norm(x, f'{name}.norm2'), f'{name}.mlp.fc1'))
        return x + self.weights[f'{name}.ls2.gamma'] * self._linear(hidden, f'{name}.mlp.fc2')

    def _attention(self, x: Tensor, name: str) -> Tensor:
        # [B, tokens, 3, heads, HEAD_DIM]
        qkv = self._linear(x, f'{name}.qkv').unflatten(2, (3, -1, HEAD_DIM))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self._linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),
                            f'{name}.proj')

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f'{name}.weight'], self.weights[f'{name}.bias'])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f'{name}.weight'], self.weights[f'{name}.bias']
        return F.layer_norm(x, weight.shape, weight, bias, eps=EPSILON)


def resized(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 224, 224] in 0 ... 255, or a little outside of it."""
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode='bicubic', antialias=True,
                         align_corners=False)


def resized_positions(positions: Tensor, patches: int) -> Tensor:
    """[1, 1 + N², width], trained for N x N patches, -> [1, 1 + patches², width], bicubic.

    The scale is (patches + 0.1)/N, not patches/N: the 0.1 kept the published code from rounding a
    size down, and has been part of the network since. The class token comes first and stays
    unchanged.
    """
    grid = math.isqrt(positions.shape[1] - 1)
    square = positions[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    if grid != patches:
        scale = (patches + 0.1) / grid
        square = F.interpolate(square, scale_factor=(scale, scale), mode='bicubic',
                               align_corners=False)
    return torch.cat([positions[:, :1].float(), square.flatten(2).mT], dim=1)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in the published file; see metrics.weights.load_state_dict."""
    return files.load_state_dict(path, WHAT, 'DINOv2 ViT-L/14', to_canonical)


def to_canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check names, shapes and values. Raises ValueError."""
    return files.checked(tensors, weight_shapes())


def locate(source: str | os.PathLike[str] | None = None) -> Path:
    """Find the file of weights: `source` if given, else $LIMPID_DINOV2, else a download.

    Earlier downloads of this project and of torch.hub are found; if there is none, the file is
    downloaded. Raises ValueError as metrics.weights.locate does.
    """
    return files.source_of('FD-DINOv2', 'ViT-L/14', PUBLISHED, downloads(), source, 'LIMPID_DINOV2')


def downloads() -> Iterator[tuple[Path, str | None]]:
    """Yield the paths where downloads may be, best first, with their checksums."""
    yield cached_path(PUBLISHED.url), PUBLISHED.sha256
    yield Path(torch.hub.get_dir()) / 'checkpoints' / 'dinov2_vitl14_pretrain.pth', PUBLISHED.sha256
