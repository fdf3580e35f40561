"""Time and memory of judging images, beside other programs.

    python -m benchmarks.evaluation

Two things are measured, each in a process of its own, on the same machine and with the same number
of threads:

* the pass over --images PNG files, images -> features -> moments -> distance, beside
  torch-fidelity, whose resize and network are the same, so that the numbers must agree;
* the Fréchet distance at 2048 dimensions, beside the formula with scipy.linalg.sqrtm that
  pytorch-fid and others use.

The weights are random, of the published network's shapes: as fast as the published ones. The result
is docs/evaluation.md.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL
import PIL.Image
import scipy
import torch
from torch import Tensor

from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from evaluation.images import open_images
from metrics.distances import frechet_distance
from metrics.judge import Judge
from metrics.one_pass import Measured
from tests.inception_weights import random_weights
from torch_utils import distributed
from torch_utils.grids import save_png
from training.run_card import processor

DIM = 2048
BATCH = 64
# The difference of two correct programs, at most, relative to the larger number. Features agree to
# 1e-6; sqrtm and eigenvalues of a product lose half of the digits where a covariance is singular.
SAME_PASS, SAME_DISTANCE, SAME_SINGULAR = 1e-4, 1e-6, 1e-3

Job = dict[str, Any]     # the settings of one process
Point = dict[str, Any]   # its measurements


def images_of(count: int, size: int, seed: int) -> np.ndarray:
    """Make uint8 [count, size, size, 3]: coarse colours with noise, which PNG cannot make small."""
    random = np.random.RandomState(seed)
    coarse = random.uniform(0, 255, [count, 4, 4, 3])
    places = np.arange(size) * 4 // size
    noise = random.uniform(0, 255, [count, size, size, 3])
    return (0.6 * coarse[:, places][:, :, places] + 0.4 * noise).astype(np.uint8)


def features_of(count: int, dim: int, seed: int) -> np.ndarray:
    """Make features [count, dim] that resemble Inception's.

    They are not negative, and correlated, with a spectrum that falls as a power.
    """
    random = np.random.RandomState(seed)
    spectrum = np.arange(1, dim + 1) ** -0.5
    mixing = np.random.RandomState(0).standard_normal([dim, dim]) / np.sqrt(dim)
    return np.abs((random.standard_normal([count, dim]) * spectrum) @ mixing)


def moments_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [D] and covariance [D, D] of features [N, D]."""
    mean = features.mean(axis=0).astype(np.float32)   # torch-fidelity refuses means in float64
    return mean.astype(np.float64), np.cov(features, rowvar=False)


def exact_distance(x: np.ndarray, y: np.ndarray, mu1: np.ndarray, mu2: np.ndarray) -> float:
    """Return the Fréchet distance without the root of a covariance.

    tr (Σ₁ Σ₂)^½ is the nuclear norm of X Yᵀ, for X and Y centred and scaled.
    """
    x, y = ((features - features.mean(axis=0)) / np.sqrt(len(features) - 1) for features in (x, y))
    nuclear_norm = torch.linalg.svdvals(torch.from_numpy(x @ y.T)).sum()
    return float(((mu1 - mu2) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * nuclear_norm)


def sqrtm_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray,
                   sigma2: np.ndarray) -> float:
    """Return the Fréchet distance as most programs do: by the real part of the root's trace."""
    root = np.real(scipy.linalg.sqrtm(sigma1.dot(sigma2)))
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2)
                 - 2 * np.trace(root))


# The jobs, each of which runs in a process of its own

def prepare(job: Job) -> Point:
    """Write images, weights, reference and covariances, and return {case: exact distance}."""
    folder, dim = Path(job['folder']), job['dim']
    for start in range(0, job['images'], 1000):
        count = min(1000, job['images'] - start)
        for i, pixels in enumerate(images_of(count, job['size'], seed=start), start):
            if not (folder / 'images' / f'{i:06d}.png').exists():
                save_png(pixels, folder / 'images' / f'{i:06d}.png', durable=False)
    torch.save(random_weights(0), folder / 'weights.pth')
    mu, sigma = moments_of(features_of(3 * DIM // 2, DIM, seed=9))
    np.savez(folder / 'reference.npz', mu=mu, sigma=sigma)
    exact = {}
    for case, count in (('full', 3 * dim // 2), ('singular', dim // 2)):
        x, y = features_of(count, dim, seed=1), 1.1 * features_of(count, dim, seed=2)
        (mu1, sigma1), (mu2, sigma2) = moments_of(x), moments_of(y)
        np.savez(folder / f'{case}.npz', mu1=mu1, sigma1=sigma1, mu2=mu2, sigma2=sigma2)
        exact[case] = exact_distance(x, y, mu1, mu2)
    return exact


def limpid_pass(job: Job, device: torch.device) -> tuple[float, float, float]:
    """Judge as fid.py calc does: (seconds of the pass, seconds of the distance, the number)."""
    judge = Judge(f'{job["folder"]}/reference.npz', ['fid'], device=device,
                  detector=f'{job["folder"]}/weights.pth', batch=BATCH)
    reference, images = judge.reference(), open_images(f'{job["folder"]}/images')
    start = time.perf_counter()
    measured = judge.measure(images)
    middle = time.perf_counter()
    assert isinstance(measured, Measured) and reference is not None
    result = judge.judged(measured, reference, [])
    return middle - start, time.perf_counter() - middle, result.scores['fid']


def torch_fidelity_pass(job: Job, device: torch.device) -> tuple[float, float, float]:
    """Judge with the parts of torch_fidelity.calculate_metrics(fid=True).

    The reference takes the place of a second folder. Returns what `limpid_pass` returns.
    """
    stub_torchvision()
    from torch_fidelity import metric_fid
    from torch_fidelity.utils import create_feature_extractor

    with np.load(f'{job["folder"]}/reference.npz') as file:
        reference = {'mu': file['mu'].astype(np.float32), 'sigma': file['sigma']}
    options = {'input1': f'{job["folder"]}/images', 'fid': True, 'cuda': device.type == 'cuda',
               'batch_size': BATCH, 'save_cpu_ram': True,
               'feature_extractor_weights_path': f'{job["folder"]}/weights.pth', 'verbose': False}
    extractor = create_feature_extractor('inception-v3-compat', ['2048'], **options)
    start = time.perf_counter()
    statistics = metric_fid.fid_input_id_to_statistics(1, extractor, '2048', **options)
    middle = time.perf_counter()
    scores = metric_fid.fid_statistics_to_metric(statistics, reference, False)
    return middle - start, time.perf_counter() - middle, scores[metric_fid.KEY_METRIC_FID]


def stub_torchvision() -> None:
    """Provide the functions by which torch-fidelity reads images, where torchvision is missing.

    It takes nothing else from there.
    """
    if importlib.util.find_spec('torchvision') is not None:
        return
    names = ('', '.transforms', '.transforms.functional', '.datasets')
    modules: list[Any] = [types.ModuleType(f'torchvision{name}') for name in names]
    root, transforms, functional, datasets = modules
    root.transforms, root.datasets, transforms.functional = transforms, datasets, functional

    def compose(steps: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        [step] = steps   # the only use: the next function
        return step

    def pil_to_tensor(image: PIL.Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    transforms.Compose, functional.pil_to_tensor = compose, pil_to_tensor
    datasets.CIFAR10 = datasets.CIFAR100 = datasets.STL10 = torch.utils.data.Dataset
    sys.modules.update({module.__name__: module for module in modules})


PASSES = {'limpid': limpid_pass, 'torch-fidelity': torch_fidelity_pass}
DISTANCES = {'limpid': frechet_distance, 'scipy.linalg.sqrtm': sqrtm_distance}


def measured(job: Job) -> Point:
    """Run one job in this process."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(job['threads'])
    if job['kind'] == 'prepare':
        return prepare(job)
    if job['kind'] == 'distance':
        with np.load(f'{job["folder"]}/{job["case"]}.npz') as file:
            arrays = [file[name] for name in ('mu1', 'sigma1', 'mu2', 'sigma2')]
        start = time.perf_counter()
        number = DISTANCES[job['program']](*arrays)
        return {'seconds': time.perf_counter() - start, 'number': number, 'memory': peak_memory()}
    device = distributed.init(job['device'])   # float32 means float32 for everybody: TF32 is off
    seconds, distance, number = PASSES[job['program']](job, device)
    gpu = torch.cuda.max_memory_allocated() if device.type == 'cuda' else 0
    return {'seconds': seconds, 'distance': distance, 'number': number, 'memory': peak_memory(),
            'gpu': gpu}


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process(job: Job) -> Point:
    """Run one job in a process of its own. Raises ValueError with its last line if it fails."""
    threads = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'),
                            str(job['threads']))
    command = [sys.executable, '-m', 'benchmarks.evaluation', f'--job={json.dumps(job)}']
    process = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    if process.returncode != 0:
        raise ValueError(f'{job["program"]} failed: '
                         f'{(process.stderr.strip() or "no message").splitlines()[-1]}')
    return json.loads(process.stdout.splitlines()[-1])


# The report

def check_same(what: str, a: float, b: float, tolerance: float) -> None:
    """Raise ValueError for two numbers that should agree, and do not."""
    if not abs(a - b) <= tolerance * max(abs(a), abs(b)):
        raise ValueError(f'{what}: {a:.9g} and {b:.9g} differ by more than {tolerance:g} of the '
                         f'larger')


def pass_table(points: dict[str, Point], images: int) -> str:
    """Return a table with a row for each program.

    The last columns say how many times limpid's time and memory it takes.
    """
    ours = points['limpid']
    gpu = any(point['gpu'] for point in points.values())
    head = ['Program', 'pass, s', 'ms per image', 'distance, s', 'memory, MB',
            *(['GPU memory, MB'] if gpu else []), 'number', 'time', 'memory']
    rows = []
    for name, point in points.items():
        time_ratio = (point['seconds'] + point['distance']) / (ours['seconds'] + ours['distance'])
        rows.append([
            name, f'{point["seconds"]:.1f}', f'{1000 * point["seconds"] / images:.3g}',
            f'{point["distance"]:.1f}', f'{point["memory"] / 1e6:.0f}',
            *([f'{point["gpu"] / 1e6:.0f}'] if gpu else []), f'{point["number"]:.6f}',
            f'{time_ratio:.2f} x', f'{point["memory"] / ours["memory"]:.2f} x'])
    return table(head, rows)


def distance_table(points: dict[str, dict[str, Point]], exact: dict[str, float]) -> str:
    """Return a table with a row for each case and program: `points[case][program]`."""
    rows = [[case, name, f'{point["seconds"]:.1f}', f'{point["memory"] / 1e6:.0f}',
             f'{point["number"]:.9f}', f'{point["number"] - exact[case]:+.1e}',
             f'{point["seconds"] / programs["limpid"]["seconds"]:.2f} x']
            for case, programs in points.items() for name, point in programs.items()]
    return table(['Covariances', 'computed by', 'time, s', 'memory, MB', 'number', 'error', 'time'],
                 rows)


def machine(device: torch.device) -> str:
    """Describe the hardware and the libraries on which the times depend."""
    where = f'{torch.cuda.get_device_name(device)}, ' if device.type == 'cuda' else ''
    return (f'{where}{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, '
            f'torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, '
            f'pillow {PIL.__version__}')


def report(command: str, setting: Job, where: str, versions: str, passes: dict[str, Point],
           distances: dict[str, dict[str, Point]], exact: dict[str, float]) -> str:
    """Return docs/evaluation.md."""
    images, size, dim = setting['images'], setting['size'], setting['dim']
    return f'''# Judging: time and memory

Written by `{command}`, in one run
on one machine: {where}.
Threads: {setting['threads']}.

## The pass: images, features, moments, distance

{images:,} PNG files of {size}x{size} pixels against one reference, on `{setting['device']}`, in
batches of {BATCH}. Files are read by the process that computes, and TF32 is off. All have the same
random weights of the published network's shapes, so the number is no FID; it must be the same for
all within {SAME_PASS:g} of itself, and is. Loading the network is not counted, its first batch is.
The last columns say how many times limpid's time (pass and distance) and memory (the most that the
process had, libraries included) a program takes. {versions}.

{pass_table(passes, images)}

limpid adds up moments as the features come, and holds no more of them however many images there
are; torch-fidelity keeps the features of all images to the end ({images * DIM * 4 / 1e6:.1f} MB
here), and copies of them for the covariance. pytorch-fid is not among the programs: it resizes
otherwise, so its number is another, and its network needs torchvision.

## The Fréchet distance at {dim:,} dimensions

Between sets of {3 * dim // 2:,} features each (`full` rank) and of {dim // 2:,} (`singular`), made
at random, in float64. The error is against the distance computed from the features themselves, by
singular values, without the root of a covariance: limpid's is within {SAME_DISTANCE:g} of it,
scipy.linalg.sqrtm's, as pytorch-fid and others use it, within {SAME_DISTANCE:g} at full rank and
{SAME_SINGULAR:g} where the covariances are singular. limpid takes one thread, however many there
are, so that its bits do not depend on the machine's cores.

{distance_table(distances, exact)}
'''


def require(against: list[str]) -> None:
    """Raise ValueError, in one line, for programs that are not installed."""
    unknown = [name for name in against if name not in PASSES]
    if unknown:
        raise ValueError(f'--against={",".join(unknown)} is unknown: it takes '
                         f'{", ".join(name for name in PASSES if name != "limpid")}')
    missing = [name for name in against if importlib.util.find_spec(name.replace('-', '_')) is None]
    if missing:
        raise ValueError(f'{", ".join(missing)} is not installed: pip install --no-deps '
                         f'{" ".join(missing)}, or say --against= to do without')


def measure_passes(setting: Job, programs: list[str]) -> dict[str, Point]:
    """Measure the pass of each program. Raises ValueError where its number is not limpid's."""
    passes = {}
    for name in programs:
        passes[name] = in_a_process({**setting, 'kind': 'pass', 'program': name})
        print(f'pass, {name}: {json.dumps(passes[name])}', flush=True)
        check_same(f'the pass of limpid and {name}', passes['limpid']['number'],
                   passes[name]['number'], SAME_PASS)
    return passes


def measure_distances(setting: Job, exact: dict[str, float]) -> dict[str, dict[str, Point]]:
    """Measure the distance of each case by each program. Raises ValueError where one is wrong."""
    distances: dict[str, dict[str, Point]] = {}
    for case, number in exact.items():
        distances[case] = {}
        for name in DISTANCES:
            point = in_a_process({**setting, 'kind': 'distance', 'case': case, 'program': name})
            print(f'distance, {case}, {name}: {json.dumps(point)}', flush=True)
            distances[case][name] = point
        tolerance = SAME_DISTANCE if case == 'full' else SAME_SINGULAR
        check_same(f'limpid at {case} rank', distances[case]['limpid']['number'], number,
                   SAME_DISTANCE)
        check_same(f'sqrtm at {case} rank', distances[case]['scipy.linalg.sqrtm']['number'], number,
                   tolerance)
    return distances


def command_line(**options: int | str | None) -> str:
    """Return the command with all options that were given a value of their own."""
    usual = {'images': 10_000, 'size': 32, 'dim': DIM, 'threads': None, 'device': 'auto'}
    given = [f'--{name}={value}' for name, value in options.items() if value != usual[name]]
    return ' '.join(['python -m benchmarks.evaluation', *given])


@click.command()
@click.option('--images', help='Number of images in the pass', type=click.IntRange(min=2),
              default=10_000, show_default=True)
@click.option('--size', help='Height and width of the images', type=click.IntRange(min=4),
              default=32, show_default=True)
@click.option('--dim', help='Number of dimensions of the Fréchet distance',
              type=click.IntRange(min=8), default=DIM, show_default=True)
@click.option('--against', help='Programs to compare with, separated by commas', metavar='LIST',
              default='torch-fidelity', show_default=True)
@click.option('--threads', help='Number of threads of every program  [default: all cores]',
              type=click.IntRange(min=1), metavar='INT')
@click.option('--device', help='Device for the pass: auto, cuda or cpu', default='auto',
              show_default=True)
@click.option('--folder', help='Folder for images and weights', default='out/benchmarks/evaluation',
              show_default=True)
@click.option('--dest', help='Report to write', default='docs/evaluation.md', show_default=True)
@click.option('--job', hidden=True)
@one_line_errors
def main(images: int, size: int, dim: int, against: str, threads: int | None, device: str,
         folder: str, dest: str, job: str | None) -> None:
    """Measure time and memory of judging images, and write docs/evaluation.md."""
    if job is not None:
        print(json.dumps(measured(json.loads(job))))
        return
    others = [name for name in against.split(',') if name]
    require(others)
    chosen = distributed.init(device)
    setting: Job = {'images': images, 'size': size, 'dim': dim, 'device': chosen.type,
                    'threads': threads or torch.get_num_threads(),
                    'folder': f'{folder}/{images}-{size}-{dim}'}
    Path(setting['folder']).mkdir(parents=True, exist_ok=True)
    exact = in_a_process({**setting, 'kind': 'prepare', 'program': 'the preparation'})
    passes = measure_passes(setting, ['limpid', *others])
    distances = measure_distances(setting, exact)
    command = command_line(images=images, size=size, dim=dim, threads=threads, device=device)
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in others)
    text = report(command, setting, machine(chosen),
                  versions or 'No other program was asked for', passes, distances, exact)
    with atomic_write(dest) as file:
        file.write(text.encode())
    print(f'Wrote {dest}')


if __name__ == '__main__':
    main()
