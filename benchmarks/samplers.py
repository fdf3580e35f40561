"""Quality against evaluations, for the samplers of the paper's Figures 2 and 4.

    python -m benchmarks.samplers

The network is the ideal denoiser of a data set, which makes no errors: all differences are those of
the samplers. Every point is what generate.py draws with the options that docs/samplers.md lists.
Points are kept in a JSON file as they are measured, and a run that was stopped goes on from there;
delete the file after a change to a sampler.
"""

import functools
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm
from torch import Tensor

from benchmarks import curves
from benchmarks.curves import Point, Results
from benchmarks.samplers_page import Facts, Setting, draw_picture, page
from checkpoints.open import ideal_denoiser
from dnnlib.cli import is_terminal, one_line_errors
from dnnlib.files import atomic_write
from limpid.denoiser import Counting, traits
from limpid.seeds import generate
from metrics.distances import frechet_distance
from metrics.features import TAPS, DemoDetector
from metrics.statistics import Moments, one_thread
from options.sampler import resolve_sampler, sampler_options
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).resolve().parents[1]
DIGITS = 'datasets/digits-16x16.zip'
DRAWS = 20    # of real images, for the floor
BATCH = 250


@click.command()
@sampler_options
def parse(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Parse the options of generate.py, as `resolve_sampler` takes them."""
    return options


class Bench:
    """The network and the real images, and what is measured of sets of `count` generated ones."""

    def __init__(self, data: str, count: int) -> None:
        if data == DIGITS and not os.path.exists(data):
            raise ValueError(f'{data} is missing: make it with python dataset_tool.py '
                             f'--source=digits --dest={data}, or name another set with --data')
        self.net = ideal_denoiser(data)
        self.count = count
        with ImageFolderDataset(data) as dataset:
            self.real = torch.from_numpy(dataset.batch(np.arange(len(dataset)))[0])
            self.fingerprint = dataset.fingerprint()
        self.detector = DemoDetector()
        self.reference = self.moments(self.real)

    def setting(self) -> str:
        """Return everything besides the command that a number depends on."""
        return (f'{self.count} images, {TAPS["demo"].detector_id}, data {self.fingerprint}, '
                f'torch {torch.__version__}')

    def moments(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of the features of uint8 images [N, C, H, W]."""
        total = Moments.zero(TAPS['demo'].dim)
        for part in torch.split(images, 1024):
            total.add(self.detector.features(part)['demo'])
        return total.mean(), total.cov()

    def distance(self, images: Tensor) -> float:
        """Return the Fréchet distance of uint8 images [N, C, H, W] to the whole data set."""
        return frechet_distance(*self.reference, *self.moments(images))

    def floor(self) -> dict[str, float]:
        """Return mean and deviation of the distance of `count` real images, over some draws.

        The images are drawn with replacement.
        """
        generator = torch.Generator().manual_seed(0)
        draws = [torch.randint(len(self.real), [self.count], generator=generator)
                 for _ in range(DRAWS)]
        distances = [self.distance(self.real[chosen]) for chosen in draws]
        return {'mean': float(np.mean(distances)), 'std': float(np.std(distances, ddof=1))}

    def apart(self) -> tuple[float, float]:
        """Return half the distance of a real image to others of its class, as two medians.

        The first is over the nearest other image of each, the second over all others.
        """
        net = self.net
        y = net.images.flatten(1).double()
        distances = torch.cdist(y, y)
        same = torch.ones_like(distances) if net.labels is None else net.labels @ net.labels.T
        others = distances.masked_fill((same == 0) | torch.eye(len(y), dtype=torch.bool), math.nan)
        nearest = others.nan_to_num(nan=math.inf).amin(dim=1)
        return float(nearest.median()) / 2, float(others.nanmedian()) / 2

    def draw(self, command: str) -> tuple[Tensor, float]:
        """Draw uint8 images of the seeds 0 to count − 1 as generate.py does.

        Returns the images and the number of evaluations for each of them.
        """
        options = parse.main(shlex.split(command), standalone_mode=False)
        sampling = resolve_sampler(options, traits(self.net))
        if sampling.notes:
            raise ValueError(f'{command}: {"; ".join(sampling.notes)}')
        watched, plan = Counting(self.net), sampling.plan(self.net)
        batches = [range(start, min(start + BATCH, self.count))
                   for start in range(0, self.count, BATCH)]
        images = [generate(watched, plan, seeds, None, torch.device('cpu')) for seeds in batches]
        return torch.cat(images), watched.images / self.count

    @functools.cached_property
    def exact(self) -> tuple[Tensor, float]:
        """The images to which the flow leads from these latents, and the evaluations of each."""
        return self.draw(curves.EXACT)

    def measure(self, command: str, deterministic: bool) -> dict[str, float]:
        """Measure one point: NFE per image, distance, errors and seconds of CPU time.

        The errors, `rms` and `elsewhere`, are those of deterministic samplers alone.
        """
        is_exact = command == curves.EXACT
        exact = self.exact[0] if deterministic and not is_exact else None   # before the clock runs
        start = time.process_time()   # not the wall's: other programs do not count
        images, nfe = self.exact if is_exact else self.draw(command)
        point = {'nfe': nfe, 'distance': self.distance(images)}
        if exact is not None:
            point |= {'rms': rms(images, exact), 'elsewhere': elsewhere(images, exact, self.real)}
        return point | {'seconds': time.process_time() - start}


def rms(images: Tensor, exact: Tensor) -> float:
    """Return the root mean square difference of uint8 images, in units of [-1, 1]."""
    return float(((images.double() - exact.double()) / 127.5).square().mean().sqrt())


def elsewhere(images: Tensor, exact: Tensor, real: Tensor) -> float:
    """Return the share of images whose nearest real image is not that of the exact ones."""
    nearest = (torch.cdist(x.flatten(1).double(), real.flatten(1).double()).argmin(dim=1)
               for x in (images, exact))
    return float(torch.ne(*nearest).double().mean())


def load(path: Path) -> dict[str, Results]:
    """Read {setting: results} from the JSON file. Raises ValueError where it is damaged."""
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_bytes())
        numbers = [number for results in settings.values() for point in results.values()
                   for number in point.values()]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError('a number is not finite')
        return settings
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({" ".join(str(error).split())}): delete it to '
                         f'measure anew') from error


def measure_all(bench: Bench, path: Path, budget: int, quick: bool) -> Results:
    """Measure the points that the JSON file lacks, and write it after each of them."""
    settings = load(path)
    results = settings.setdefault(bench.setting(), {})
    jobs: dict[str, Callable[[], Point]] = {'floor': bench.floor}
    jobs[curves.EXACT] = functools.partial(bench.measure, curves.EXACT, True)
    for curve in (*curves.DETERMINISTIC, *curves.STOCHASTIC):
        deterministic = curve in curves.DETERMINISTIC
        limit = budget if deterministic else min(budget, curves.STOCHASTIC_LIMIT)
        for _, command in curve.commands(limit, quick):
            jobs[command] = functools.partial(bench.measure, command, deterministic)
    missing = [command for command in jobs if command not in results]
    for command in tqdm.tqdm(missing, unit='point', disable=not is_terminal()):
        results[command] = jobs[command]()
        with atomic_write(path) as file:
            file.write(json.dumps(settings, indent=1, ensure_ascii=False).encode())
    return {command: results[command] for command in jobs}


@click.command(context_settings={'max_content_width': 110})
@click.option('--data', help='Data set: a zip or a folder of images', metavar='PATH',
              default=DIGITS, show_default=True)
@click.option('--images', 'count', help='Number of generated images for each point', metavar='INT',
              type=click.IntRange(min=2), default=500, show_default=True)
@click.option('--max_nfe', help='Largest number of evaluations per image', metavar='INT',
              type=click.IntRange(min=4), default=max(curves.BUDGETS), show_default=True)
@click.option('--quick', help='Measure few points, of at most 64 evaluations', is_flag=True)
@click.option('--results', 'path', help='File in which measured points are kept', metavar='JSON',
              default='out/benchmarks/samplers.json', show_default=True)
@click.option('--dest', help='Folder for samplers.md and samplers.png  [default: docs; with '
                             '--quick: the folder of --results]', metavar='DIR')
@one_line_errors
def main(data: str, count: int, max_nfe: int, quick: bool, path: str, dest: str | None) -> None:
    """Measure the quality of samplers against the number of evaluations, and write a page.

    The network is the ideal denoiser of a data set.
    """
    bench = Bench(data, count)
    with torch.no_grad(), one_thread():
        results = measure_all(bench, Path(path), max_nfe, quick)
    folder = Path(dest) if dest else Path(path).parent if quick else ROOT / 'docs'
    setting = Setting(len(bench.real), count, DRAWS, DIGITS, bench.apart())
    draw_picture(results, folder / 'samplers.png')
    with atomic_write(folder / 'samplers.md') as file:
        file.write(page(Facts(results), setting).encode())
    click.echo(f'Wrote samplers.png and samplers.md to {folder}')


if __name__ == '__main__':
    main()
