"""Time and memory of judging images, beside other programs: python -m benchmarks.evaluation

Two things are measured, each in a process of its own, on the same machine and with the same number
of threads:

* the pass over --images PNG files, images -> features -> moments -> distance, beside
torch-fidelity, whose resize and
  network are the same, so that the numbers must agree;
* the Fréchet distance at 2048 dimensions beside the formula with scipy.linalg.sqrtm that
pytorch-fid and others use.

The weights are random, of the published network's shapes: as fast as the published ones. The result
is docs/evaluation.md.
"""

# ruff: noqa: E501 (the text is wrapped as it will be read)

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
import scipy
import torch
from torch import Tensor

from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from evaluation.judge import Judge, open_images
from metrics.distances import frechet_distance
from tests.inception_weights import random_weights
from torch_utils import distributed
from torch_utils.grids import save_png

DIM = 2048
BATCH = 64
# What two correct programs may differ by, relative to the larger number. Features agree to 1e-6;
# sqrtm and eigenvalues of a product lose half of the digits where a covariance is singular.
SAME_PASS, SAME_DISTANCE, SAME_SINGULAR = 1e-4, 1e-6, 1e-3

Job = dict[str, Any]     # what a process measures
Point = dict[str, Any]   # what it found


def images_of(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: coarse colours with noise, which PNG cannot make small."""
    random = np.random.RandomState(seed)
    coarse = random.uniform(0, 255, [count, 4, 4, 3])
    places = np.arange(size) * 4 // size
    return (0.6 * coarse[:, places][:, :, places] + 0.4
            * random.uniform(0, 255, [count, size, size, 3])).astype(np.uint8)


def features_of(count: int, dim: int, seed: int) -> np.ndarray:
    """[count, dim] like Inception's: not negative, correlated, with a spectrum that falls as a
    power."""
    random = np.random.RandomState(seed)
    spectrum = np.arange(1, dim + 1) ** -0.5
    mixing = np.random.RandomState(0).standard_normal([dim, dim]) / np.sqrt(dim)
    return np.abs((random.standard_normal([count, dim]) * spectrum) @ mixing)


def moments_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # torch-fidelity has means in float32, and refuses others
    return features.mean(axis=0).astype(np.float32).astype(np.float64), np.cov(features,
                                                                               rowvar=False)


def exact_distance(x: np.ndarray, y: np.ndarray, mu1: np.ndarray, mu2: np.ndarray) -> float:
    """The distance without a root of a covariance: tr (Σ₁ Σ₂)^½ is the nuclear norm of X Yᵀ,
    centred and scaled."""
    x, y = ((features - features.mean(axis=0)) / np.sqrt(len(features) - 1) for features in (x, y))
    return float(((mu1 - mu2) ** 2).sum() + (x**2).sum() + (y**2).sum()
                 - 2 * torch.linalg.svdvals(torch.from_numpy(x @ y.T)).sum())


def sqrtm_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray,
                   sigma2: np.ndarray) -> float:
    """As most programs have it: the trace of the matrix's root, of which the real part is taken."""
    root = scipy.linalg.sqrtm(sigma1.dot(sigma2))
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2
                 * np.trace(np.real(root)))


# What runs in a process of its own

def prepare(job: Job) -> Point:
    """Write images, weights, reference and covariances; {case: exact distance}."""
    folder, dim = Path(job['folder']), job['dim']
    for start in range(0, job['images'], 1000):
        for i, pixels in enumerate(images_of(min(1000, job['images'] - start), job['size'],
                                             seed=start), start):
            if not (folder / 'images' / f'{i:06d}.png').exists():
                save_png(pixels, folder / 'images' / f'{i:06d}.png', durable=False)
    torch.save(random_weights(0), folder / 'weights.pth')
    np.savez(folder / 'reference.npz',
             **dict(zip(('mu', 'sigma'), moments_of(features_of(3 * DIM // 2, DIM, seed=9)),
                        strict=True)))
    exact = {}
    for case, count in (('full', 3 * dim // 2), ('singular', dim // 2)):
        x, y = features_of(count, dim, seed=1), 1.1 * features_of(count, dim, seed=2)
        (mu1, sigma1), (mu2, sigma2) = moments_of(x), moments_of(y)
        np.savez(folder / f'{case}.npz', mu1=mu1, sigma1=sigma1, mu2=mu2, sigma2=sigma2)
        exact[case] = exact_distance(x, y, mu1, mu2)
    return exact


def limpid_pass(job: Job, device: torch.device) -> tuple[float, float, float]:
    """As fid.py calc has it: (seconds of the pass, of the distance, the number)."""
    judge = Judge(f'{job["folder"]}/reference.npz', ['fid'], device=device,
                  detector=f'{job["folder"]}/weights.pth', batch=BATCH, workers=0)
    reference, images = judge.reference(), open_images(f'{job["folder"]}/images')
    start = time.perf_counter()
    measured = judge.measure(images)
    middle = time.perf_counter()
    result = judge.judged(measured, reference, [])
    return middle - start, time.perf_counter() - middle, result.scores['fid']


def torch_fidelity_pass(job: Job, device: torch.device) -> tuple[float, float, float]:
    """The parts of torch_fidelity.calculate_metrics(fid=True), with the reference in place of a
    second folder."""
    stub_torchvision()
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_input_id_to_statistics, fid_statistics_to_metric
    from torch_fidelity.utils import create_feature_extractor

    with np.load(f'{job["folder"]}/reference.npz') as file:
        reference = {'mu': file['mu'].astype(np.float32), 'sigma': file['sigma']}
    options = {'input1': f'{job["folder"]}/images', 'fid': True, 'cuda': device.type == 'cuda',
               'batch_size': BATCH, 'save_cpu_ram': True,
               'feature_extractor_weights_path': f'{job["folder"]}/weights.pth', 'verbose': False}
    extractor = create_feature_extractor('inception-v3-compat', ['2048'], **options)
    start = time.perf_counter()
    statistics = fid_input_id_to_statistics(1, extractor, '2048', **options)
    middle = time.perf_counter()
    number = fid_statistics_to_metric(statistics, reference, False)[KEY_METRIC_FID]
    return middle - start, time.perf_counter() - middle, number


def stub_torchvision() -> None:
    """Where torchvision is missing, what torch-fidelity reads images with: it takes nothing else
    from there."""
    if importlib.util.find_spec('torchvision') is not None:
        return
    names = ('', '.transforms', '.transforms.functional', '.datasets')
    root, transforms, functional, datasets = modules = [types.ModuleType(f'torchvision{name}')
                                                        for name in names]
    root.transforms, root.datasets, transforms.functional = transforms, datasets, functional

    def compose(steps: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        [step] = steps   # the only use: the next function
        return step

    def pil_to_tensor(image: Any) -> Tensor:  # noqa: ANN401 (an image of Pillow's)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    transforms.Compose, functional.pil_to_tensor = compose, pil_to_tensor
    datasets.CIFAR10 = datasets.CIFAR100 = datasets.STL10 = torch.utils.data.Dataset
    sys.modules.update({module.__name__: module for module in modules})


PASSES = {'limpid': limpid_pass, 'torch-fidelity': torch_fidelity_pass}
DISTANCES = {'limpid': frechet_distance, 'scipy.linalg.sqrtm': sqrtm_distance}


def measured(job: Job) -> Point:
    """One job, in this process."""
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
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process(job: Job) -> Point:
    """Run this file with the job; ValueError with its last line where it fails."""
    threads = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'),
                            str(job['threads']))
    process = subprocess.run([sys.executable, '-m', 'benchmarks.evaluation', f'--job={json.dumps(job)}'],
                             env={**os.environ, **threads}, capture_output=True, text=True)
    if process.returncode != 0:
        raise ValueError(f'{job["program"]} failed: '
                         f'{(process.stderr.strip() or "no message").splitlines()[-1]}')
    return json.loads(process.stdout.splitlines()[-1])


# What is said of it

def check_same(what: str, a: float, b: float, tolerance: float) -> None:
    """ValueError for two numbers that should agree, and do not."""
    if not abs(a - b) <= tolerance * max(abs(a), abs(b)):
        raise ValueError(f'{what}: {a:.9g} and {b:.9g} differ by more than {tolerance:g} of the '
                         f'larger')


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def pass_table(points: dict[str, Point], images: int) -> str:
    """A row for each program; the last columns are how many times limpid's time and memory it
    takes."""
    ours = points['limpid']
    gpu = any(point['gpu'] for point in points.values())
    head = ['Program', 'pass, s', 'ms per image', 'distance, s', 'memory, MB',
            *(['GPU memory, MB'] if gpu else []), 'number', 'time', 'memory']
    return markdown(head, [
        [name, f'{point["seconds"]:.1f}', f'{1000 * point["seconds"] / images:.3g}',
         f'{point["distance"]:.1f}', f'{point["memory"] / 1e6:.0f}',
         *([f'{point["gpu"] / 1e6:.0f}'] if gpu else []), f'{point["number"]:.6f}',
         f'{(point["seconds"] + point["distance"]) / (ours["seconds"] + ours["distance"]):.2f} x',
         f'{point["memory"] / ours["memory"]:.2f} x']
        for name, point in points.items()])


def distance_table(points: dict[str, dict[str, Point]], exact: dict[str, float]) -> str:
    """A row for each case and program: `points[case][program]`."""
    return markdown(['Covariances', 'computed by', 'time, s', 'memory, MB', 'number', 'error',
                     'time'], [
        [case, name, f'{point["seconds"]:.1f}', f'{point["memory"] / 1e6:.0f}',
         f'{point["number"]:.9f}', f'{point["number"] - exact[case]:+.1e}',
         f'{point["seconds"] / of_case["limpid"]["seconds"]:.2f} x']
        for case, of_case in points.items() for name, point in of_case.items()])


def machine(device: torch.device) -> str:
    """What the times owe themselves to."""
    processor = next((line.split(':')[1].strip() for line in cpuinfo()
                      if line.startswith('model name')), platform.machine())
    where = f'{torch.cuda.get_device_name(device)}, ' if device.type == 'cuda' else ''
    return (f'{where}{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, '
            f'torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, pillow '
            f'{PIL.__version__}')


def cpuinfo() -> list[str]:
    path = Path('/proc/cpuinfo')
    return path.read_text().splitlines() if path.exists() else []


def report(command: str, setting: Job, where: str, versions: str, passes: dict[str, Point],
           distances: dict[str, dict[str, Point]], exact: dict[str, float]) -> str:
    """docs/evaluation.md"""
    images, size, dim = setting['images'], setting['size'], setting['dim']
    return f'''# Judging: time and memory

Written by `{command}`, in one run on one machine: {where}. Threads: {setting['threads']}.

## The pass: images, features, moments, distance

{images:,} PNG files of {size}x{size} pixels against one reference, on `{setting['device']}`, in batches of {BATCH}. Files are read by the process
that computes, and TF32 is off. All have the same random weights of the published network's shapes, so the number is no FID; it must
be the same for all within {SAME_PASS:g} of itself, and is. Loading the network is not counted, its first batch is. The last columns say how many
times limpid's time (pass and distance) and memory (the most that the process had, libraries included) a program takes. {versions}.

{pass_table(passes, images)}

limpid adds up moments as the features come, and holds no more of them however many images there are; torch-fidelity keeps the features of
all images to the end ({images * DIM * 4 / 1e6:.1f} MB here), and copies of them for the covariance. pytorch-fid is not among the programs: it resizes otherwise, so
its number is another, and its network needs torchvision.

## The Fréchet distance at {dim:,} dimensions

Between sets of {3 * dim // 2:,} features each (`full` rank) and of {dim // 2:,} (`singular`), made at random, in float64. The error is against the distance
computed from the features themselves, by singular values, without a root of any covariance: limpid's is within {SAME_DISTANCE:g} of it,
scipy.linalg.sqrtm's, as pytorch-fid and others use it, within {SAME_DISTANCE:g} at full rank and {SAME_SINGULAR:g} where the covariances are singular. limpid takes one
thread, whatever there is, so that its bits do not depend on the machine's cores.

{distance_table(distances, exact)}
'''


def require(against: list[str]) -> None:
    """ValueError, in one line, for programs that are not there."""
    unknown = [name for name in against if name not in PASSES]
    if unknown:
        raise ValueError(f'--against={",".join(unknown)} is unknown: it takes '
                         f'{", ".join(name for name in PASSES if name != "limpid")}')
    missing = [name for name in against if importlib.util.find_spec(name.replace('-', '_')) is None]
    if missing:
        raise ValueError(f'{", ".join(missing)} is not installed: pip install --no-deps '
                         f'{" ".join(missing)}, or say --against= to do without')


@click.command()
@click.option('--images', help='How many images the pass takes', type=click.IntRange(min=2),
              default=10_000, show_default=True)
@click.option('--size', help='Their height and width', type=click.IntRange(min=4), default=32,
              show_default=True)
@click.option('--dim', help='Dimensions of the distance', type=click.IntRange(min=8), default=DIM,
              show_default=True)
@click.option('--against', help='Programs to compare with, with commas between', metavar='LIST',
              default='torch-fidelity', show_default=True)
@click.option('--threads', help='Of every program  [default: all cores]',
              type=click.IntRange(min=1), metavar='INT')
@click.option('--device', help='Where the pass runs: auto, cuda, cpu', default='auto',
              show_default=True)
@click.option('--folder', help='For images and weights', default='out/benchmarks/evaluation',
              show_default=True)
@click.option('--dest', help='The report', default='docs/evaluation.md', show_default=True)
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
    setting = {'images': images, 'size': size, 'dim': dim, 'device': chosen.type, 'threads': threads
               or torch.get_num_threads(), 'folder': f'{folder}/{images}-{size}-{dim}'}
    Path(setting['folder']).mkdir(parents=True, exist_ok=True)
    exact = in_a_process({**setting, 'kind': 'prepare', 'program': 'the preparation'})
    passes = {}
    for name in ('limpid', *others):
        passes[name] = in_a_process({**setting, 'kind': 'pass', 'program': name})
        print(f'pass, {name}: {json.dumps(passes[name])}', flush=True)
        check_same(f'the pass of limpid and {name}', passes['limpid']['number'],
                   passes[name]['number'], SAME_PASS)
    distances: dict[str, dict[str, Point]] = {case: {} for case in exact}
    for case, of_case in distances.items():
        for name in DISTANCES:
            of_case[name] = in_a_process({**setting, 'kind': 'distance', 'case': case,
                                          'program': name})
            print(f'distance, {case}, {name}: {json.dumps(of_case[name])}', flush=True)
        check_same(f'limpid at {case} rank', of_case['limpid']['number'], exact[case],
                   SAME_DISTANCE)
        check_same(f'sqrtm at {case} rank', of_case['scipy.linalg.sqrtm']['number'], exact[case],
                   SAME_DISTANCE if case == 'full' else SAME_SINGULAR)
    options = (('images', images, 10_000), ('size', size, 32), ('dim', dim, DIM),
               ('threads', threads, None), ('device', device, 'auto'))
    command = ' '.join(['python -m benchmarks.evaluation',
                        *(f'--{name}={value}' for name, value, usual in options if value != usual)])
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}'
                         for name in others) or 'No other program was asked for'
    text = report(command, setting, machine(chosen), versions, passes, distances, exact)
    with atomic_write(dest) as file:
        file.write(text.encode())
    print(f'Wrote {dest}')


if __name__ == '__main__':
    main()
