"""Feature extractors: images -> vectors whose statistics are compared.

A distance means something only beside the extractor that it was measured with, so each one has
an identity (`detector_id`, `digest`), which goes into every file of statistics, and a name for its
number.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


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


def as_rgb(images: Tensor) -> Tensor:
    """uint8 [B, 1 or 3, H, W] -> contiguous [B, 3, H, W]; ValueError for anything else.

    The layout in memory selects among convolutions that round differently.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError('a detector takes uint8 images [B, 1 or 3, H, W], '
                         f'not {images.dtype} {list(images.shape)}')
    return images.expand(-1, 3, -1, -1).contiguous()


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, shapes and little-endian float32 values, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f'{name} {list(weights[name].shape)}\n'.encode())
        digest.update(np.ascontiguousarray(weights[name], dtype='<f4').tobytes())
    return digest.hexdigest()


DETECTORS: dict[str, Callable[[torch.device], FeatureExtractor]] = {
    'demo': DemoDetector,
}


def load_detector(name: str, device: torch.device) -> FeatureExtractor:
    """The extractor of that name; ValueError where there is none: nothing replaces it silently."""
    if name not in DETECTORS:
        raise ValueError(f'--detector={name} is not available in this version; --detector=demo '
                         'measures the distance of random features, which is NOT FID')
    return DETECTORS[name](device)
