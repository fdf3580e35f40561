"""Compare with published numbers, for who has a network: about 12 GB of downloads, and hours
without a GPU.

    python -m benchmarks.published                 # everything
    python -m benchmarks.published detectors cifar10

Nothing of this is part of the tests, which reach for no network. The checks:

detectors  the four published files of Inception's weights hold the same weights: one digest
cifar10    the 50,000 training images of CIFAR-10 against EDM's reference of them: FID 0
adm        ADM-G, ADM-U's published ImageNet-256 samples against its published reference: IS 215.84,
           FID 3.94, sFID 6.14, precision 0.83, recall 0.53, as TensorFlow's evaluator found them

Every line says what was found and what was expected; the exit code is 1 where one differs.
"""

import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch

from dnnlib.cli import one_line_errors
from dnnlib.download import fetch
from evaluation.judge import Judge, open_images
from metrics.detector_files import identify
from metrics.sample_batch import write_sample_batch
from metrics.weights import NGC_URL, PUBLISHED
from torch_utils import distributed

CIFAR10 = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
EDM_CIFAR10 = 'https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz'
ADM = 'https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/'
ADM_SAMPLES, ADM_REFERENCE = (f'{ADM}admnet_guided_upsampled_imagenet256.npz',
                              f'{ADM}VIRTUAL_imagenet256_labeled.npz')
ADM_NUMBERS = {'fid': (3.94256, 0.002), 'sfid': (6.14043, 0.003), 'is': (215.837, 0.3),
               # and by how much another implementation has differed, rounded up
               'precision': (0.8265, 0.001), 'recall': (0.5309, 0.001)}

Line = tuple[str, str, str, bool]   # what, found, expected, whether they agree


def detectors(device: torch.device) -> Iterator[Line]:
    """One digest for all published files."""
    first = None
    for file in (*PUBLISHED, (NGC_URL, None, 0)):
        found = identify(fetch(file[0], file[1]))
        first = first or found.digest
        yield f'digest of {Path(file[0]).name} ({found.format})', found.digest, first, found.digest == first


def cifar10(device: torch.device) -> Iterator[Line]:
    """The training set against EDM's statistics of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'cifar10.npz')
        pixels = cifar10_images(fetch(CIFAR10))
        write_sample_batch(path, torch.from_numpy(pixels).split(1000), list(pixels.shape))
        result = Judge(EDM_CIFAR10, ['fid'], device=device)(open_images(path))
    assert result is not None
    yield 'FID of the CIFAR-10 training set', f'{result.scores["fid"]:.2e}', '0', abs(
        result.scores['fid']) < 1e-3


def cifar10_images(path: str | Path) -> np.ndarray:
    """uint8 [50000, 3, 32, 32]: five files of records, a byte for the class and 3072 for the
    pixels, by channel."""
    parts = []
    with tarfile.open(path, 'r:gz') as archive:
        for number in range(1, 6):
            member = archive.extractfile(f'cifar-10-batches-bin/data_batch_{number}.bin')
            assert member is not None
            parts.append(np.frombuffer(member.read(), dtype=np.uint8).reshape(-1, 3073)[:, 1:])
    return np.concatenate(parts).reshape(-1, 3, 32, 32)


def adm(device: torch.device) -> Iterator[Line]:
    """What ADM's evaluator says of ADM's samples."""
    samples, reference = str(fetch(ADM_SAMPLES)), str(fetch(ADM_REFERENCE))
    result = Judge(reference, ['fid', 'sfid', 'is', 'pr'], device=device)(open_images(samples))
    assert result is not None
    for name, (expected, tolerance) in ADM_NUMBERS.items():
        found = result.scores[name]
        agrees = abs(found - expected) <= tolerance
        yield f'{name} of ADM-G, ADM-U on ImageNet-256', f'{found:.5g}', f'{expected:g}', agrees


CHECKS: dict[str, Callable[[torch.device], Iterator[Line]]] = {'detectors': detectors,
                                                               'cifar10': cifar10, 'adm': adm}


@click.command()
@click.argument('checks', nargs=-1, type=click.Choice(list(CHECKS)))
@click.option('--device', default='auto', help='auto, cuda, mps or cpu')
@one_line_errors
def main(checks: tuple[str, ...], device: str) -> None:
    """Compare with published numbers; see the beginning of this file."""
    chosen = distributed.init(device)
    torch.backends.cudnn.deterministic = True
    agree = True
    for name in checks or CHECKS:
        for what, found, expected, good in CHECKS[name](chosen):
            print(f'{"agrees " if good else "DIFFERS"}  {what}: {found}, expected {expected}',
                  flush=True)
            agree = agree and good
    sys.exit(0 if agree else 1)


if __name__ == '__main__':
    main()
