"""Feature extractors: images -> vectors whose statistics are compared.

A distance means something only beside the extractor that it was measured with, so each one has
an identity (`detector_id`, `digest`), which goes into every file of statistics, and a name for its
number.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.dinov2 import DINOv2
from metrics.inception import Inception
from metrics.lite0 import Lite0
from metrics.weights import digest
from torch_utils.digest import digest_of_tensors


class Tap(NamedTuple):
    """A place in a network where features are taken, and the name of the number computed there."""
    dim: int
    detector_id: str   # names architecture, preprocessing, layer and version
    number: str        # the printed name of its Fréchet distance, which is FID for pool_3 alone
    detector: str      # the value of --detector that gives it


TAPS = {
    'pool_3': Tap(2048, 'inception-2015-12-05-pool_3-v1', 'FID', 'inception'),
    'spatial': Tap(2023, 'inception-2015-12-05-spatial-v1', 'sFID', 'inception'),
    'dinov2': Tap(1024, 'dinov2-vitl14-bicubic-v1', 'FD-DINOv2', 'dinov2'),
    'demo': Tap(224, 'demo-v1', 'demo-FD (random features, NOT FID)', 'demo'),
    'arrays': Tap(256, 'arrays-v1', 'fd_arrays (random features, NOT FID)', 'arrays'),
    'efficientnet_lite0': Tap(1280, 'efficientnet-lite0-bicubic-v1', 'fd_efficientnet_lite0',
                              'efficientnet-lite0'),
}


BUILT_IN = frozenset(TAPS)
OWN = 'own-'   # begins the identity of a detector of one's own


def register(name: str, dim: int, detector: str) -> str:
    """Add the tap of a detector of one's own to TAPS, and return its name.

    Raises ValueError for the name of another tap, and for another number of features than before.
    """
    if name in BUILT_IN:
        raise ValueError(f'fd_{name} is the distance of a detector that is here already: call the '
                         f'function otherwise')
    if name in TAPS and TAPS[name].dim != dim:
        raise ValueError(f'{OWN}{name} has {dim} features, and another detector of this name has '
                         f'{TAPS[name].dim}')
    TAPS[name] = Tap(dim, f'{OWN}{name}', f'fd_{name}', detector)
    return name


class FeatureExtractor(Protocol):
    """The members of a detector, which need not inherit from this class.

    Greyscale images count as three equal channels. The features of an image should not depend on
    the other images of the batch.
    """
    digest: str             # the digest of the weights

    @property
    def taps(self) -> tuple[str, ...]:
        """Keys of TAPS, the most important first."""
        ...

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 1 or 3, H, W] -> {tap: float32 or float64 [B, dim]}"""
        ...


class DemoDetector:
    """Spatial means of three random 3x3 convolutions with ReLU (32, 64, 128 channels).

    It needs no download and is fast. Its distance grows with blur and with noise, so that it serves
    demonstrations, tests and the comparison of runs; but it is NOT the FID.
    The weights are standard normal times sqrt(2 / fan-in), from NumPy's frozen RandomState: the
    same on every machine. Input (x - 128)/128, strides 1, 2, 2, padding 1, no biases.
    """
    taps = ('demo',)

    def __init__(self, device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32) -> None:
        weights = _random_weights(3, 128)
        self.digest = digest_of_tensors({f'conv{i}.weight': w for i, w in enumerate(weights)})
        self.weights = [w.to(dtype).to(device) for w in weights]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        x = (as_rgb(images).to(self.weights[0].dtype) - 128) / 128
        return {'demo': _convolved(x, self.weights)}


class ArrayDetector:
    """The same for data that are no images: three random convolutions (32, 64, 160 channels).

    They take arrays of any type with any number of channels as they are, without scaling. So the
    distance is in the units of the data, squared, and a channel of large values counts most:
    compare only numbers of the same data. The weights are those of DemoDetector's rule.
    """
    taps = ('arrays',)

    def __init__(self, device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.digest = digest_of_tensors({f'conv{i}.weight': weight for i, weight
                                         in enumerate(_random_weights(3, 160))})
        self.weights: dict[int, list[Tensor]] = {}   # by the number of channels

    def features(self, images: Tensor) -> dict[str, Tensor]:
        channels = images.shape[1]
        if channels not in self.weights:
            self.weights[channels] = [weight.to(self.dtype).to(self.device)
                                      for weight in _random_weights(channels, 160)]
        return {'arrays': _convolved(images.to(self.dtype), self.weights[channels])}


def _random_weights(channels: int, last: int) -> list[Tensor]:
    normal = np.random.RandomState(20220601).standard_normal
    shapes = [(32, channels, 3, 3), (64, 32, 3, 3), (last, 64, 3, 3)]
    return [torch.from_numpy((normal(s) * np.sqrt(2 / (s[1] * 9))).astype(np.float32))
            for s in shapes]


def _convolved(x: Tensor, weights: list[Tensor]) -> Tensor:
    means = []
    for weight, stride in zip(weights, (1, 2, 2), strict=True):
        x = F.conv2d(x, weight, stride=stride, padding=1).relu()
        means.append(x.mean(dim=[2, 3]))
    return torch.cat(means, dim=1)


class InceptionDetector:
    """The published network of the FID, after the resize of TensorFlow 1.

    `weights` are those of metrics.weights.load_weights. Its taps are pool_3 and spatial
    (Inception.Taps), and its `logits` follow from pool_3.
    """
    taps = ('pool_3', 'spatial')

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32) -> None:
        self.digest = digest(weights)
        self.network = Inception(weights, device, dtype)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return self.network(as_rgb(images))._asdict()

    def logits(self, pool_3: Tensor) -> Tensor:
        """[B, 2048] -> [B, 1008], without biases, for the Inception Score"""
        return self.network.logits(pool_3)


class _OneTap:
    """A network whose answers are the features of its one tap; `weights` are those it loads."""
    taps: tuple[str, ...]
    Network: type[DINOv2] | type[Lite0]

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32) -> None:
        self.digest = digest(weights)
        self.network = self.Network(weights, device, dtype)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {self.taps[0]: self.network(as_rgb(images))}


class DINOv2Detector(_OneTap):
    """The class token of DINOv2's ViT-L/14, after EDM2's bicubic resize.

    `weights` are those of metrics.dinov2.load_weights.
    """
    taps, Network = ('dinov2',), DINOv2


class Lite0Detector(_OneTap):
    """EfficientNet-Lite0, after a bicubic resize.

    `weights` are those of metrics.lite0.load_weights.
    """
    taps, Network = ('efficientnet_lite0',), Lite0


def as_rgb(images: Tensor) -> Tensor:
    """Turn uint8 [B, 1 or 3, H, W] into contiguous [B, 3, H, W]; raise ValueError for others.

    It is contiguous because the layout in memory selects among convolutions that round differently.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError('a detector takes uint8 images [B, 1 or 3, H, W], '
                         f'not {images.dtype} {list(images.shape)}: for arrays there is '
                         'detector=arrays')
    return images.expand(-1, 3, -1, -1).contiguous()
