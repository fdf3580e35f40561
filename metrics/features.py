"""Feature extractors: images -> vectors whose statistics are compared.

A distance means something only beside the extractor that it was measured with, so each one has
an identity (`detector_id`, `digest`), which goes into every file of statistics, and a name for its
number.
"""

import os
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.dinov2 import DINOv2
from metrics.inception import Inception, Taps
from metrics.weights import digest, load_weights, locate, weights_digest


class FeatureExtractor(Protocol):
    """What a detector is; nothing has to be inherited.

    Greyscale images count as three equal channels. The features of an image should not depend on
    the other images of the batch.
    """
    detector_id: str   # of the architecture, the preprocessing and the layer, with a version
    digest: str        # of the weights
    dim: int
    number: str        # what its Fréchet distance is called where it is printed

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 1 or 3, H, W] -> float32 [B, dim]"""
        ...


class DemoDetector:
    """Spatial means of three random 3x3 convolutions with ReLU (32, 64, 128 channels).

    Needs no download and answers at once. Its distance grows with blur and with noise, so that it
    serves demonstrations, tests and the comparison of runs; but it is NOT the FID.
    The weights are standard normal times sqrt(2 / fan-in), from NumPy's frozen RandomState: the
    same on every machine. Input (x - 128)/128, strides 1, 2, 2, padding 1, no biases.
    """
    detector_id = 'demo-v1'
    number = 'demo-FD (random features, NOT FID)'
    dim = 32 + 64 + 128

    def __init__(self, device: torch.device | str = 'cpu') -> None:
        normal = np.random.RandomState(20220601).standard_normal
        shapes = [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)]
        weights = [(normal(s) * np.sqrt(2 / (s[1] * 9))).astype(np.float32) for s in shapes]
        self.digest = weights_digest({f'conv{i}.weight': w for i, w in enumerate(weights)})
        self.weights = [torch.from_numpy(w).to(device) for w in weights]

    def __call__(self, images: Tensor) -> Tensor:
        x = (as_rgb(images).to(torch.float32) - 128) / 128
        means = []
        for weight, stride in zip(self.weights, (1, 2, 2), strict=True):
            x = F.conv2d(x, weight, stride=stride, padding=1).relu()
            means.append(x.mean(dim=[2, 3]))
        return torch.cat(means, dim=1)


class InceptionDetector:
    """The published network of the FID: the 2048 numbers of pool_3, after the resize of TensorFlow 1.

    `weights` as from metrics.weights.load_weights. Its `taps` are what other metrics look at, and its
    `logits` follow from pool_3.
    """
    detector_id = 'inception-2015-12-05-pool_3-v1'
    number = 'FID'
    dim = 2048

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu') -> None:
        self.digest = digest(weights)
        self.network = Inception(weights, device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.taps(images).pool_3

    def taps(self, images: Tensor) -> Taps:
        """uint8 [B, 1 or 3, H, W] -> pool_3 [B, 2048] and spatial [B, 2023], float32"""
        return self.network(as_rgb(images))

    def logits(self, pool_3: Tensor) -> Tensor:
        """[B, 2048] -> [B, 1008], without biases, for the Inception Score"""
        return self.network.logits(pool_3)


class DINOv2Detector:
    """The class token of DINOv2's ViT-L/14, after EDM2's bicubic resize.

    `weights` as from metrics.dinov2.load_weights.
    """
    detector_id = 'dinov2-vitl14-bicubic-v1'
    number = 'FD-DINOv2'
    dim = 1024

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu') -> None:
        self.digest = digest(weights)
        self.network = DINOv2(weights, device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(as_rgb(images))


def as_rgb(images: Tensor) -> Tensor:
    """uint8 [B, 1 or 3, H, W] -> contiguous [B, 3, H, W]; ValueError for anything else.

    The layout in memory selects among convolutions that round differently.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError('a detector takes uint8 images [B, 1 or 3, H, W], '
                         f'not {images.dtype} {list(images.shape)}')
    return images.expand(-1, 3, -1, -1).contiguous()


DETECTORS: dict[str, Callable[[torch.device], FeatureExtractor]] = {
    'inception': lambda device: InceptionDetector(load_weights(locate()), device),
    'demo': DemoDetector,
}


def load_detector(name: str, device: torch.device) -> FeatureExtractor:
    """The extractor of that name, or the Inception network with the weights of that file.

    ValueError where there is none: nothing replaces it silently.
    """
    if name in DETECTORS:
        return DETECTORS[name](device)
    if not os.path.isfile(name):
        raise ValueError(f'--detector={name} is neither {" nor ".join(DETECTORS)} nor a file of Inception weights')
    return InceptionDetector(load_weights(name), device)
