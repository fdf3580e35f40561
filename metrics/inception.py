"""The network behind the FID: Inception-v3 as in TensorFlow's graph of 2015-12-05, and its resize.

    net = Inception(load_weights(path), device='cuda')
    pool_3, spatial = net(images)       # uint8 [B, 3, H, W] -> [B, 2048], [B, 2023]
    logits = net.logits(pool_3)         # [B, 1008], without biases, as the Inception Score has them

The network is one literal, `STEM` and `HEAD`: a chain is a list of steps, run one after the other;
a tuple of chains is a fork, whose ends are concatenated. It differs from torchvision's Inception-v3
in its weights, in its 1008 classes, in average pooling that does not count the border, and in the
last block, which pools by maximum.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 299            # pixels of the input, high and wide
CLASSES = 1008        # 1000 of ImageNet and 8 that mean nothing
EPSILON = 1e-3        # the constant of the batch normalisation
MAX_BATCH = 64        # images at a time, which bounds the memory: 0.9 GB of activations
SPATIAL_CHANNELS = 7  # the channels of Mixed_6d (of 768) that sFID uses, 17 x 17 pixels each


@dataclass(frozen=True)
class Conv:
    """Convolution without bias, batch normalisation, ReLU.

    `same` pads with as many zeros as keep the size (at stride 1); otherwise nothing is padded.
    """
    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)   # height, width
    stride: int = 1
    same: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        return (self.kernel[0] // 2, self.kernel[1] // 2) if self.same else (0, 0)


average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(F.max_pool2d, kernel_size=3, stride=2)

Pool = Callable[[Tensor], Tensor]
Chain = list[Any]   # its items are Conv | Pool | tuple[Chain, ...]


def _a(name: str, inputs: int, pool: int) -> tuple[Chain, ...]:
    conv = _convs_of(name)
    return (
        [conv('branch1x1', inputs, 64)],
        [conv('branch5x5_1', inputs, 48), conv('branch5x5_2', 48, 64, (5, 5))],
        [conv('branch3x3dbl_1', inputs, 64), conv('branch3x3dbl_2', 64, 96, (3, 3)),
         conv('branch3x3dbl_3', 96, 96, (3, 3))],
        [average, conv('branch_pool', inputs, pool)],
    )


def _b(name: str) -> tuple[Chain, ...]:
    conv = _convs_of(name)
    return (
        [conv('branch3x3', 288, 384, (3, 3), stride=2, same=False)],
        [conv('branch3x3dbl_1', 288, 64), conv('branch3x3dbl_2', 64, 96, (3, 3)),
         conv('branch3x3dbl_3', 96, 96, (3, 3), stride=2, same=False)],
        [halve],
    )


def _c(name: str, c: int) -> tuple[Chain, ...]:
    conv = _convs_of(name)
    return (
        [conv('branch1x1', 768, 192)],
        [conv('branch7x7_1', 768, c), conv('branch7x7_2', c, c, (1, 7)),
         conv('branch7x7_3', c, 192, (7, 1))],
        [conv('branch7x7dbl_1', 768, c), conv('branch7x7dbl_2', c, c, (7, 1)),
         conv('branch7x7dbl_3', c, c, (1, 7)), conv('branch7x7dbl_4', c, c, (7, 1)),
         conv('branch7x7dbl_5', c, 192, (1, 7))],
        [average, conv('branch_pool', 768, 192)],
    )


def _d(name: str) -> tuple[Chain, ...]:
    conv = _convs_of(name)
    return (
        [
            conv('branch3x3_1', 768, 192),
            conv('branch3x3_2', 192, 320, (3, 3), stride=2, same=False),
        ],
        [
            conv('branch7x7x3_1', 768, 192),
            conv('branch7x7x3_2', 192, 192, (1, 7)),
            conv('branch7x7x3_3', 192, 192, (7, 1)),
            conv('branch7x7x3_4', 192, 192, (3, 3), stride=2, same=False),
        ],
        [halve],
    )


def _e(name: str, inputs: int, pool: Pool) -> tuple[Chain, ...]:
    conv = _convs_of(name)
    return (
        [conv('branch1x1', inputs, 320)],
        [conv('branch3x3_1', inputs, 384),
         ([conv('branch3x3_2a', 384, 384, (1, 3))], [conv('branch3x3_2b', 384, 384, (3, 1))])],
        [conv('branch3x3dbl_1', inputs, 448), conv('branch3x3dbl_2', 448, 384, (3, 3)),
         ([conv('branch3x3dbl_3a', 384, 384, (1, 3))],
          [conv('branch3x3dbl_3b', 384, 384, (3, 1))])],
        [pool, conv('branch_pool', inputs, 192)],
    )


def _convs_of(block: str) -> Callable[..., Conv]:
    return lambda branch, *args, **kwargs: Conv(f'{block}.{branch}', *args, **kwargs)


STEM: Chain = [                                                       # 3 x 299 x 299
    Conv('Conv2d_1a_3x3', 3, 32, (3, 3), stride=2, same=False),       # 32 x 149 x 149
    Conv('Conv2d_2a_3x3', 32, 32, (3, 3), same=False),                # 32 x 147 x 147
    Conv('Conv2d_2b_3x3', 32, 64, (3, 3)),
    halve,                                                            # 64 x 73 x 73
    Conv('Conv2d_3b_1x1', 64, 80),
    Conv('Conv2d_4a_3x3', 80, 192, (3, 3), same=False),               # 192 x 71 x 71
    halve,                                                            # 192 x 35 x 35
    _a('Mixed_5b', 192, 32), _a('Mixed_5c', 256, 64), _a('Mixed_5d', 288, 64),
    _b('Mixed_6a'),                                                   # 768 x 17 x 17
    _c('Mixed_6b', 128), _c('Mixed_6c', 160), _c('Mixed_6d', 160),    # here sFID looks
]
HEAD: Chain = [
    _c('Mixed_6e', 192),
    _d('Mixed_7a'),                                                   # 1280 x 8 x 8
    _e('Mixed_7b', 1280, average), _e('Mixed_7c', 2048, maximum),     # 2048 x 8 x 8
]


def convs(chain: Chain) -> list[Conv]:
    """Return all convolutions of a chain and of the forks in it."""
    return [conv for step in chain for conv in (
        [step] if isinstance(step, Conv) else
        [inner for branch in step for inner in convs(branch)] if isinstance(step, tuple) else [])]


def weight_shapes() -> dict[str, list[int]]:
    """Return the canonical names of the network's 472 tensors, and their shapes.

    `bn.weight` and `bn.bias` are gamma and beta of the batch normalisation, `fc` is the classifier.
    """
    shapes: dict[str, list[int]] = {}
    for conv in convs(STEM + HEAD):
        shapes[f'{conv.name}.conv.weight'] = [conv.outputs, conv.inputs, *conv.kernel]
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'{conv.name}.bn.{name}'] = [conv.outputs]
    return {**shapes, 'fc.weight': [CLASSES, 2048], 'fc.bias': [CLASSES]}


class Taps(NamedTuple):
    """The features that the metrics use, float32 (or the precision of the network)."""
    # [B, 2048], the mean over the last 8 x 8 pixels: FID, KID, precision, recall, ...
    pool_3: Tensor
    spatial: Tensor   # [B, 2023], 17 x 17 x 7 in this order: sFID (Nash et al. 2021)


class Inception:
    """The network on a device. Its tensors are constants: there is nothing to train.

    `weights` are those of metrics.weights.load_weights. `folded` multiplies the batch normalisation
    into the convolutions, once, in float64; this is faster and changes features by about 1e-6 of
    their size. With dtype=torch.float64 everything after the resize is computed in float64.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32, folded: bool = True) -> None:
        def ready(tensor: Tensor) -> Tensor:
            # Channels last is how convolutions are fastest.
            layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
            return tensor.to(dtype).to(device).contiguous(memory_format=layout)

        self.device, self.dtype = torch.device(device), dtype
        self.convs: dict[str, tuple[Tensor, Tensor | None, list[Tensor]]] = {}
        for conv in convs(STEM + HEAD):
            weight = weights[f'{conv.name}.conv.weight']
            mean, var, gamma, beta = norm = [
                weights[f'{conv.name}.bn.{name}']
                for name in ('running_mean', 'running_var', 'weight', 'bias')]
            if folded:
                factor = gamma.double() / (var.double() + EPSILON).sqrt()
                self.convs[conv.name] = (ready(weight.double() * factor[:, None, None, None]),
                                         ready(beta.double() - mean.double() * factor), [])
            else:
                self.convs[conv.name] = (ready(weight), None, [ready(tensor) for tensor in norm])
        self.classifier = ready(weights['fc.weight'])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Taps:
        """uint8 [B, 3, H, W] on the network's device -> its taps."""
        parts = [self._taps(part) for part in images.split(MAX_BATCH)]
        return parts[0] if len(parts) == 1 else Taps(*map(torch.cat, zip(*parts, strict=True)))

    def logits(self, pool_3: Tensor) -> Tensor:
        """[B, 2048] -> [B, 1008], without the biases."""
        return pool_3.to(self.classifier) @ self.classifier.T

    def _taps(self, images: Tensor) -> Taps:
        x = ((tf1_resize(images) - 128) / 128).to(self.dtype)
        middle = self._run(x.contiguous(memory_format=torch.channels_last), STEM)
        last = self._run(middle, HEAD)
        return Taps(last.mean(dim=[2, 3]),
                    middle[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))

    def _run(self, x: Tensor, chain: Chain) -> Tensor:
        for step in chain:
            if isinstance(step, Conv):
                x = self._conv(x, step)
            elif isinstance(step, tuple):
                x = torch.cat([self._run(x, branch) for branch in step], dim=1)
            else:
                x = step(x)
        return x

    def _conv(self, x: Tensor, conv: Conv) -> Tensor:
        weight, bias, norm = self.convs[conv.name]
        x = F.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding)
        if norm:
            mean, var, gamma, beta = norm
            x = F.batch_norm(x, mean, var, gamma, beta, eps=EPSILON)
        return x.relu_()


def tf1_resize(images: Tensor, size: int = SIZE) -> Tensor:
    """Resize uint8 [B, C, H, W] to float32 [B, C, size, size] in 0 ... 255 as TensorFlow 1 does.

    It is bilinear. Output pixel i lies at p = i · H/size between floor(p) and the next pixel:
    top-left corners are aligned, and shrinking is not smoothed. Interpolation runs first along the
    rows, l + (r − l)(p − floor(p)), then along the columns, in float32. F.interpolate aligns
    centres instead, which changes FID; published numbers were made with this resize.
    """
    left, right, weight = _neighbours(images.shape[3], size, images.device)
    l, r = (images.index_select(3, index).float() for index in (left, right))  # noqa: E741
    rows = l + (r - l) * weight
    top, bottom, weight = _neighbours(images.shape[2], size, images.device)
    t, b = (rows.index_select(2, index) for index in (top, bottom))
    return t + (b - t) * weight[:, None]


def _neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of `size` outputs the two inputs around it, and its place between them."""
    p = torch.arange(size, dtype=torch.float32) * (length / size)
    low = p.floor()
    first = low.long()
    neighbours = first, (first + 1).clamp(max=length - 1), p - low
    return tuple(tensor.to(device) for tensor in neighbours)  # type: ignore[return-value]
