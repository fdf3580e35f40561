"""Compare with published numbers: about 12 GB of downloads, and hours of work without a GPU.

    python -m benchmarks.published                 # all checks
    python -m benchmarks.published detectors cifar10
    python -m benchmarks.published --few-steps   # a table of FID in 3 to 10 evaluations

The tests do none of this, since they use no network. The checks:

detectors  The four published files of Inception's weights hold the same weights: one digest.
cifar10    The 50,000 training images of CIFAR-10 against EDM's reference of them: FID 0.
adm        The published ImageNet-256 samples of ADM-G, ADM-U against the published reference: IS
           215.84, FID 3.94, sFID 6.14, precision 0.83, recall 0.53, as TensorFlow's evaluator found
           them.

Every line gives the number found and the number expected; the exit code is 1 where they differ.
With --few-steps the table of zju-pi/diff-sampler is measured instead: see benchmarks/few_steps.py,
which also says how that program counts steps. --dry-run needs no file, and shows what would run.
"""

import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import few_steps as table_of_few_steps
from dnnlib.cli import IntList, one_line_errors
from dnnlib.download import fetch
from evaluation.images import open_images
from metrics.detector_files import identify
from metrics.judge import Judge, Result
from metrics.sample_batch import write_sample_batch
from metrics.weights import NGC_URL, PUBLISHED
from options.common import BATCH, DEVICE, images_to_draw
from torch_utils import distributed

CIFAR10 = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
EDM_CIFAR10 = 'https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz'
ADM = 'https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/'
ADM_SAMPLES, ADM_REFERENCE = (f'{ADM}admnet_guided_upsampled_imagenet256.npz',
                              f'{ADM}VIRTUAL_imagenet256_labeled.npz')
ADM_NUMBERS = {'fid': (3.94256, 0.002), 'sfid': (6.14043, 0.003), 'is': (215.837, 0.3),
               # with the difference of another implementation, rounded up
               'precision': (0.8265, 0.001), 'recall': (0.5309, 0.001)}

Line = tuple[str, str, str, bool]   # name, found, expected, whether they agree


def detectors(device: torch.device) -> Iterator[Line]:
    """Compare the digests of all published files with that of the first."""
    first = None
    for file in (*PUBLISHED, (NGC_URL, None, 0)):
        found = identify(fetch(file[0], file[1]))
        first = first or found.digest
        name = f'digest of {Path(file[0]).name} ({found.format})'
        yield name, found.digest, first, found.digest == first


def cifar10(device: torch.device) -> Iterator[Line]:
    """Compare the training set with EDM's statistics of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'cifar10.npz')
        pixels = cifar10_images(fetch(CIFAR10))
        write_sample_batch(path, torch.split(torch.from_numpy(pixels), 1000), list(pixels.shape))
        result = Judge(EDM_CIFAR10, ['fid'], device=device)(open_images(path))
    assert isinstance(result, Result)
    fid = result.scores['fid']
    yield 'FID of the CIFAR-10 training set', f'{fid:.2e}', '0', abs(fid) < 1e-3


def cifar10_images(path: str | Path) -> np.ndarray:
    """Read the training images, uint8 [50000, 3, 32, 32].

    The archive has five files of records: a byte for the class, and 3072 for the pixels.
    """
    parts = []
    with tarfile.open(path, 'r:gz') as archive:
        for number in range(1, 6):
            member = archive.extractfile(f'cifar-10-batches-bin/data_batch_{number}.bin')
            assert member is not None
            parts.append(np.frombuffer(member.read(), dtype=np.uint8).reshape(-1, 3073)[:, 1:])
    return np.concatenate(parts).reshape(-1, 3, 32, 32)


def adm(device: torch.device) -> Iterator[Line]:
    """Compare the numbers of ADM's samples with those that ADM's evaluator gives."""
    samples, reference = str(fetch(ADM_SAMPLES)), str(fetch(ADM_REFERENCE))
    result = Judge(reference, ['fid', 'sfid', 'is', 'pr'], device=device)(open_images(samples))
    assert isinstance(result, Result)
    for name, (expected, tolerance) in ADM_NUMBERS.items():
        found = result.scores[name]
        agrees = abs(found - expected) <= tolerance
        yield f'{name} of ADM-G, ADM-U on ImageNet-256', f'{found:.5g}', f'{expected:g}', agrees


CHECKS: dict[str, Callable[[torch.device], Iterator[Line]]] = {'detectors': detectors,
                                                               'cifar10': cifar10, 'adm': adm}


def check_few_steps(checks: tuple[str, ...], few_steps: bool, dry_run: bool,
                    budgets: list[int]) -> None:
    """Raise ValueError for options and checks that do not go together."""
    if few_steps and checks:
        raise ValueError(f'--few-steps takes no checks: leave out {", ".join(checks)}')
    if dry_run and not few_steps:
        raise ValueError('--dry-run would have no effect without --few-steps')
    if min(budgets) < 1:
        raise ValueError('--nfe=0: a sampler evaluates the network at least once')


@click.command(context_settings={'max_content_width': 110})
@click.argument('checks', nargs=-1, type=click.Choice(list(CHECKS)))
@click.option('--few-steps', is_flag=True,
              help='Measure the table of FID in few steps of zju-pi/diff-sampler instead')
@click.option('--dry-run', is_flag=True, help='--few-steps: say what would be measured')
@click.option('--network', help='--few-steps: the checkpoint', metavar='PATH|URL',
              default=table_of_few_steps.CHECKPOINT, show_default=True)
@click.option('--ref', help='--few-steps: the reference', metavar='NPZ|URL', default=EDM_CIFAR10,
              show_default=True)
@click.option('--dest', help='--few-steps: the folder of the table', metavar='DIR',
              default='out/few-steps', show_default=True)
@click.option('--nfe', 'budgets', help='--few-steps: the evaluations of the network',
              type=IntList(), default='3-10', show_default=True)
@click.option('--num', help='--few-steps: the number of images for each cell', metavar='INT',
              type=images_to_draw, default=50000, show_default=True)
@click.option('--detector', help='--few-steps: the detector of fid.py', metavar='NAME|PATH',
              default='inception', show_default=True)
@BATCH
@DEVICE
@one_line_errors
def main(checks: tuple[str, ...], few_steps: bool, dry_run: bool, budgets: list[int], device: str,
         **options: Any) -> None:  # noqa: ANN401 (those of --few-steps)
    """Compare with published numbers: all of them, or those of the CHECKS.

    detectors: the published files of Inception's weights hold the same weights. cifar10: the FID of
    CIFAR-10's training images against EDM's reference of them is 0. adm: the published samples of
    ADM have the published numbers. All of it downloads about 12 GB. --few-steps measures FID of
    EDM's CIFAR-10 network for 8 solvers instead, and goes on where it was stopped.
    """
    check_few_steps(checks, few_steps, dry_run, budgets)
    if dry_run:
        print('\n'.join(table_of_few_steps.dry_run(budgets)))
        return
    chosen = distributed.init(device)
    torch.backends.cudnn.deterministic = True
    if few_steps:
        lines, agree = table_of_few_steps.measure(budgets=budgets, device=chosen, **options)
        distributed.print0('\n'.join(lines))
        sys.exit(0 if agree else 1)
    agree = True
    for name in checks or CHECKS:
        for what, found, expected, good in CHECKS[name](chosen):
            verdict = 'agrees ' if good else 'DIFFERS'
            print(f'{verdict}  {what}: {found}, expected {expected}', flush=True)
            agree = agree and good
    sys.exit(0 if agree else 1)


if __name__ == '__main__':
    main()
