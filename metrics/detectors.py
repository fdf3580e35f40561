"""Detectors by name, each loaded once for all of its taps, in the precision asked for."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from metrics import dinov2, lite0, own_detector
from metrics.features import (
    TAPS,
    ArrayDetector,
    DemoDetector,
    DINOv2Detector,
    FeatureExtractor,
    InceptionDetector,
    Lite0Detector,
)
from metrics.weights import load_weights, locate
from torch_utils import distributed

PRECISIONS = ('float32', 'tf32', 'float64')

DETECTORS: dict[str, Callable[[torch.device, torch.dtype], FeatureExtractor]] = {
    'inception': lambda device, dtype: InceptionDetector(load_weights(locate()), device, dtype),
    'efficientnet-lite0': lambda device, dtype: Lite0Detector(lite0.load_weights(lite0.locate()),
                                                              device, dtype),
    'dinov2': lambda device, dtype: DINOv2Detector(dinov2.load_weights(dinov2.locate()), device,
                                                   dtype),
    'demo': DemoDetector,
    'arrays': ArrayDetector,
}

# What --detector takes, as its help shows it.
TAKEN = '|'.join((*DETECTORS, 'PATH', 'MODULE:FUNCTION'))

# Taps of metrics that have a detector of their own, whatever --detector is.
FIXED = ('dinov2', 'efficientnet_lite0')


def load_detector(name: str, device: torch.device,
                  dtype: torch.dtype = torch.float32) -> FeatureExtractor:
    """Load the detector of that name, or the Inception network with the weights of that file.

    A name such as mine:resnet is that of a function (metrics/own_detector.py).

    Raises ValueError if there is none: no other detector replaces it silently.
    """
    check_name(name)
    if name in DETECTORS:
        return DETECTORS[name](device, dtype)
    if own_detector.is_own(name):
        return own_detector.OwnDetector(own_detector.load(name), name, device, dtype)
    return InceptionDetector(load_weights(name), device, dtype)


def check_name(detector: str) -> None:
    """Raise ValueError for what is neither the name of a detector nor a file."""
    if not (detector in DETECTORS or os.path.isfile(detector) or own_detector.is_own(detector)):
        raise ValueError(f'detector={detector} is none of {", ".join(DETECTORS)}, no file of '
                         f'Inception weights, and no module:function')


def main_tap(detector: str) -> str:
    """Return the tap whose Fréchet distance is computed with this detector, a key of TAPS.

    A detector of one's own is loaded for that.
    """
    if detector not in DETECTORS and own_detector.is_own(detector):
        return own_detector.load(detector).tap
    return next((name for name, tap in TAPS.items() if tap.detector == detector), 'pool_3')


def load_extractors(taps: Iterable[str], detector: str, device: torch.device,
                    precision: str = 'float32') -> dict[str, FeatureExtractor]:
    """Load the networks of these taps, and return them by tap; taps of one network share it.

    `precision` is one of PRECISIONS. Collective. Raises ValueError if the device does not have it,
    if weights are missing, and if a detector is not the same on all ranks.
    """
    if precision == 'tf32' and device.type != 'cuda':
        raise ValueError(f'precision=tf32 is of CUDA devices, and would have no effect on '
                         f'{device.type}')
    if precision == 'float64' and device.type == 'mps':
        raise ValueError('precision=float64: this device has no float64; use device=cpu')
    dtype = torch.float64 if precision == 'float64' else torch.float32
    networks: dict[str, FeatureExtractor] = {}
    for kind in sorted(set(map(_kind, taps))):
        name = TAPS[kind].detector if kind in FIXED else detector
        networks[kind] = load_detector(name, device, dtype)
    told = distributed.gather_objects({name: net.digest for name, net in networks.items()})
    if any(digests != told[0] for digests in told):
        raise ValueError(f'detector={detector} has other weights in another process: load them '
                         f'from a file, or set the seed')
    if precision == 'tf32':
        networks = {kind: _TF32(network) for kind, network in networks.items()}
    return {tap: networks[_kind(tap)] for tap in taps}


def distinct(extractors: Iterable[FeatureExtractor]) -> list[FeatureExtractor]:
    """Return each network once, in order of appearance, however many taps it serves."""
    return list({id(extractor): extractor for extractor in extractors}.values())


def _kind(tap: str) -> str:
    """Return the network that a tap belongs to: 'inception', or the tap's own name."""
    return 'inception' if tap in ('pool_3', 'spatial') else tap


class _TF32:
    """A detector that computes in CUDA's TF32, while other code does not."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor, self.digest = extractor, extractor.digest

    @property
    def taps(self) -> tuple[str, ...]:
        return self.extractor.taps

    def features(self, images: Tensor) -> dict[str, Tensor]:
        with _tf32():
            return self.extractor.features(images)

    def logits(self, pool_3: Tensor) -> Tensor:
        """Return [B, 1008], computed without TF32, as the Inception Score takes it."""
        assert isinstance(self.extractor, InceptionDetector), 'other detectors have no classes'
        return self.extractor.logits(pool_3)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
