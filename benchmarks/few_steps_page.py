"""Few steps, measured: the solvers of a published table on real images and on a trained network.

    python -m benchmarks.few_steps_page --data=datasets/fashion-test.zip \\
        --network=out/run/network-snapshot-000012.pkl --trained-on=datasets/digits-16x16.zip \\
        --trained-by='train.py --data=datasets/digits-16x16.zip ...'

Two networks are asked: the ideal denoiser of a subset of the images, which makes no errors, and a
trained network. For each solver of benchmarks/few_steps.py and each NFE, images of the same seeds
are compared with the exact ends of their trajectories, and with the real images. The numbers are
kept in a JSON file as they come, and a run that was stopped goes on from there. The page,
docs/few-steps.md, and its picture follow from the numbers alone.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm
from torch import Tensor

from benchmarks.few_steps import BUDGETS, END, TABLE
from benchmarks.samplers import load
from checkpoints.open import open_network
from dnnlib.cli import is_terminal, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from dnnlib.plots import pyplot
from evaluation.nfe_table import DASH, steps_for, written
from limpid.denoiser import Conditioned, Network
from limpid.ideal import IdealDenoiser
from limpid.pixels import from_uint8, to_uint8
from limpid.seeds import StackedGenerator, latents_and_labels
from limpid.step_search import best_path, euler_errors
from limpid.steps import EDMSteps
from metrics.distances import frechet_distance
from metrics.features import TAPS, DemoDetector
from metrics.statistics import Moments, one_thread
from options.network import planned
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).resolve().parents[1]
EXACT = END | {'solver': 'heun', 'num_steps': 80}
SEARCHED: dict[str, dict[str, Any]] = {
    'Euler, searched': {'solver': 'euler'},
    'iPNDM-4, searched': {'solver': 'ipndm', 'order': 4}}
MORE = {'DPM++(2M)': END | {'solver': 'dpmpp-2m'}}
NAMES = (*(row.name for row in TABLE), *MORE, *SEARCHED)

Cell = dict[str, float]              # rms and distance
Cells = Mapping[str, Cell]           # 'solver NFE' or 'exact' -> what was measured


class Bench:
    """A network, and the images of `count` seeds that it draws, against real ones."""

    def __init__(self, net: Network, real: Tensor, count: int) -> None:
        self.net, self.real = net, real
        self.detector = DemoDetector()
        self.reference = self.moments(real)
        seeds = range(count)
        self.noise, self.labels = latents_and_labels(
            net, seeds, None, StackedGenerator(seeds, torch.device('cpu')))
        self._exact: Tensor | None = None
        self._costs: Tensor | None = None

    def moments(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of the features of uint8 images [N, C, H, W]."""
        total = Moments.zero(TAPS['demo'].dim)
        for part in torch.split(images, 512):
            total.add(self.detector.features(part)['demo'])
        return total.mean(), total.cov()

    def draw(self, options: Mapping[str, Any]) -> Tensor:
        """Return images float64 [B, C, H, W]."""
        opened = planned([self.net], options)
        return opened.plan(opened.net, self.noise, self.labels)

    def exact(self) -> Tensor:
        """Return where Heun's method ends with 80 levels."""
        if self._exact is None:
            self._exact = self.draw(EXACT)
        return self._exact

    def searched(self, num_levels: int) -> list[float]:
        """Return the levels that the search of Chen et al. finds among 61, for all these images."""
        sigmas = EDMSteps().sigmas(61)
        if self._costs is None:
            x = self.noise.double() * sigmas[0]
            self._costs = euler_errors(Conditioned(self.net, self.labels), x, sigmas)
        return sigmas[best_path(self._costs, num_levels)].tolist()

    def options(self, name: str, nfe: int) -> dict[str, Any] | None:
        """Return the options of a solver with this NFE, or None where it has no such NFE."""
        if name in SEARCHED:
            return END | SEARCHED[name] | {'sigmas': self.searched(nfe + 1)}
        chosen = MORE.get(name) or next(row.options for row in TABLE if row.name == name)
        num_steps = steps_for([self.net], chosen, nfe)
        return None if num_steps is None else chosen | {'num_steps': num_steps}

    def measure(self, name: str, nfe: int) -> Cell:
        """Return rms, in units of [-1, 1], and distance; nothing where there is no such NFE."""
        options = self.options(name, nfe)
        return {} if options is None else self.cell(self.draw(options))

    def cell(self, images: Tensor) -> Cell:
        """Return the numbers of images that were drawn."""
        distance = frechet_distance(*self.reference, *self.moments(to_uint8(images)))
        return {'rms': float((images - self.exact()).square().mean().sqrt()), 'distance': distance}


def measure_all(settings: dict[str, Any], setting: str, open_bench: Callable[[], Bench],
                save: Callable[[], None]) -> Cells:
    """Measure the cells that are missing, and save after each."""
    cells: dict[str, Cell] = settings.setdefault(setting, {})
    wanted = ['exact', *(f'{name} {nfe}' for name in NAMES for nfe in BUDGETS)]
    missing = [key for key in wanted if key not in cells]
    if not missing:
        return cells
    bench = open_bench()
    for key in tqdm.tqdm(missing, unit='cell', disable=not is_terminal()):
        name, _, nfe = key.rpartition(' ')
        cells[key] = bench.measure(name, int(nfe)) if name else bench.cell(bench.exact())
        save()
    return cells


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Return τ: the share of pairs in the same order minus the share in the other."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same = sum(math.copysign(1, (a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs)
    return same / len(pairs)


@dataclass(frozen=True)
class Statement:
    """Something that the published table says, as a test of numbers: {solver: number} by NFE."""
    text: str
    holds: Callable[[Mapping[int, Mapping[str, float]]], bool]


def _ahead(a: str, b: str, budgets: Sequence[int]) -> Callable[..., bool]:
    return lambda of: all(of[nfe][a] < of[nfe][b] for nfe in budgets)


MULTISTEP = ('DPM++(3M)', 'UniPC-3', 'DEIS-tAB3', 'iPNDM-4', 'iPNDM_v-4')
STATEMENTS = (
    Statement('Heun is the worst of all at NFE 4, 6 and 8', lambda of: all(
        max(of[nfe], key=of[nfe].__getitem__) == 'Heun' for nfe in (4, 6, 8))),
    Statement('Heun and Euler are equal, within 5 %, at NFE 10', lambda of: abs(
        of[10]['Heun'] / of[10]['Euler'] - 1) < 0.05),
    Statement('DPM-Solver-2 is ahead of Heun at NFE 4, 6, 8 and 10',
              _ahead('DPM-Solver-2', 'Heun', (4, 6, 8, 10))),
    Statement('every multistep solver is ahead of Euler from NFE 4 on', lambda of: all(
        of[nfe][name] < of[nfe]['Euler'] for nfe in range(4, 11) for name in MULTISTEP)),
    Statement('DPM++(3M) and UniPC-3 are behind Euler at NFE 3', lambda of: all(
        of[3][name] > of[3]['Euler'] for name in ('DPM++(3M)', 'UniPC-3'))),
    Statement('UniPC-3 is ahead of DPM++(3M) at every NFE',
              _ahead('UniPC-3', 'DPM++(3M)', BUDGETS)),
    Statement('iPNDM-4 is ahead of iPNDM_v-4 at every NFE',
              _ahead('iPNDM-4', 'iPNDM_v-4', BUDGETS)),
    Statement('iPNDM-4 is ahead of DEIS-tAB3 at every NFE',
              _ahead('iPNDM-4', 'DEIS-tAB3', BUDGETS)),
    Statement('iPNDM-4 is the best of all at every NFE', lambda of: all(
        min(of[nfe], key=of[nfe].__getitem__) == 'iPNDM-4' for nfe in BUDGETS)),
)
PUBLISHED = {nfe: {row.name: row.fid[nfe] for row in TABLE if nfe in row.fid} for nfe in BUDGETS}


def by_nfe(cells: Cells, field: str) -> dict[int, dict[str, float]]:
    """Return {NFE: {solver of the published table: number}}."""
    return {nfe: {name: cells[f'{name} {nfe}'][field] for name in PUBLISHED[nfe]}
            for nfe in BUDGETS}


def numbers(cells: Cells, field: str) -> str:
    """Return the table of a field, the best of each column in bold."""
    best = {nfe: min(cells[f'{name} {nfe}'].get(field, math.inf) for name in NAMES)
            for nfe in BUDGETS}

    def cell(name: str, nfe: int) -> str:
        value = cells[f'{name} {nfe}'].get(field)
        if value is None:
            return DASH
        return f'**{written(value)}**' if value == best[nfe] else written(value)

    return table(['NFE', *map(str, BUDGETS)],
                 [[name, *(cell(name, nfe) for nfe in BUDGETS)] for name in NAMES])


def agreement(measured: Mapping[str, Cells]) -> str:
    """Return Kendall's τ between the published order of solvers and the measured ones."""
    lines = []
    for title, cells in measured.items():
        for field in ('rms', 'distance'):
            found = by_nfe(cells, field)
            taus = [kendall(list(PUBLISHED[nfe].values()), list(found[nfe].values()))
                    for nfe in BUDGETS]
            lines.append([f'{title}, {field}', *(f'{tau:.2f}' for tau in taus)])
    return table(['NFE', *map(str, BUDGETS)], lines)


def statements(measured: Mapping[str, Cells]) -> str:
    """Return what the published table says, and where that holds here."""
    def held(statement: Statement, cells: Cells, field: str) -> str:
        return 'yes' if statement.holds(by_nfe(cells, field)) else 'no'

    kinds = list(itertools.product(measured.items(), ('rms', 'distance')))
    return table(['published', *(f'{title}, {field}' for (title, _), field in kinds)],
                 [[statement.text, *(held(statement, cells, field) for (_, cells), field in kinds)]
                  for statement in STATEMENTS])


def page(measured: Mapping[str, Cells], about: Mapping[str, str], count: int) -> str:
    """Return docs/few-steps.md."""
    parts = [f"""# Few steps, measured

`python -m benchmarks.few_steps_page` wrote this page and its picture.

The solvers are those of the table of zju-pi/diff-sampler, with the options that `python -m
benchmarks.published --few-steps --dry-run` lists: ρ = 7 from 80 to 0.002, `--final=sigma-min`. Two
have been added: DPM-Solver++(2M), and levels that were searched for each NFE (`flow.py steps`).
{count} images of the same seeds are drawn by each. *rms* is their root mean square difference, in
units of [-1, 1], from the exact ends of the same trajectories, by Heun's method with 80 levels.
*distance* is the Fréchet distance to the real images in features of the demo detector, which are
random and NOT FID; of so few images it is compared with that of the exact ones alone. A dash: no
number of steps has this NFE.

![Error and distance over NFE](few-steps.png)
"""]
    for title, cells in measured.items():
        parts.append(f"""## {title}

{about[title]} The exact images have a distance of {written(cells['exact']['distance'])}.

rms:

{numbers(cells, 'rms')}

distance:

{numbers(cells, 'distance')}
""")
    parts.append(f"""## What agrees with the published table

That table is FID of 50,000 images of EDM's CIFAR-10 network. What can be compared is the order of
its solvers. Kendall's τ is 1 where it is the same here and −1 where it is reversed:

{agreement(measured)}

What the published numbers say, and whether it holds here:

{statements(measured)}

rms asks whether a seed leads to where its trajectory ends. A distance does not see which image that
is, and of so few images it is rough: a τ or a "no" that rests on small differences may be chance.
""")
    return '\n'.join(parts)


def draw_picture(measured: Mapping[str, Cells], dest: Path) -> None:
    """Draw rms and distance of all solvers over NFE, a row for each network."""
    plt = pyplot()
    figure, axes = plt.subplots(len(measured), 2, figsize=(11, 4.2 * len(measured)), squeeze=False,
                                layout='constrained')
    for row, (title, cells) in zip(axes, measured.items(), strict=True):
        for ax, field in zip(row, ('rms', 'distance'), strict=True):
            for i, name in enumerate(NAMES):
                known = [(nfe, cells[f'{name} {nfe}'][field]) for nfe in BUDGETS
                         if field in cells[f'{name} {nfe}']]
                ax.plot(*zip(*known, strict=True), marker='o', markersize=3, linewidth=1.2,
                        color=plt.cm.tab10(i % 10), linestyle='-' if i < 8 else '--', label=name)
            ax.set(title=f'{title}: {field}', xlabel='NFE', yscale='log', xticks=BUDGETS)
            ax.grid(color='0.92', linewidth=0.6)
        row[1].axhline(cells['exact']['distance'], color='0.5', linewidth=0.8, linestyle=':')
    axes[0, 1].legend(fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))
    with atomic_write(dest) as file:
        figure.savefig(file, format='png', dpi=110, metadata={'Software': None})
    plt.close(figure)


def real_images(path: str, most: int | None) -> tuple[Tensor, Tensor, str]:
    """Return uint8 images, their labels (of no numbers if there are none), and a fingerprint."""
    with ImageFolderDataset(path, max_size=1) as dataset:
        labelled = dataset.files.labels() is not None
    with ImageFolderDataset(path, max_size=most, use_labels=labelled) as dataset:
        images, labels = dataset.batch(np.arange(len(dataset)))
        return torch.from_numpy(images), torch.from_numpy(labels), dataset.fingerprint()


@click.command(context_settings={'max_content_width': 110})
@click.option('--data', help='Real images for the ideal denoiser', metavar='ZIP|DIR', required=True)
@click.option('--real', help='How many of them are taken', metavar='INT', default=2000,
              type=click.IntRange(2), show_default=True)
@click.option('--network', help='A trained network', metavar='PATH', required=True)
@click.option('--trained-on', help='The images that it was trained on', metavar='ZIP|DIR',
              required=True)
@click.option('--trained-by', help='The command that trained it, for the page', metavar='TEXT')
@click.option('--images', 'count', help='Number of generated images', metavar='INT', default=64,
              type=click.IntRange(2), show_default=True)
@click.option('--results', 'path', help='File in which numbers are kept', metavar='JSON',
              default='out/benchmarks/few-steps.json', show_default=True)
@click.option('--dest', help='Folder of the page  [default: docs]', metavar='DIR')
@one_line_errors
def main(data: str, real: int, network: str, trained_on: str, trained_by: str | None, count: int,
         path: str, dest: str | None) -> None:
    """Measure the solvers of a published table on two networks, and write a page."""
    settings, kept = load(Path(path)), Path(path)

    def save() -> None:
        with atomic_write(kept) as file:
            file.write(json.dumps(settings, indent=1).encode())

    images, labels, known = real_images(data, real)
    theirs, _, seen = real_images(trained_on, None)
    here = Path(network).name

    def ideal() -> Bench:
        return Bench(IdealDenoiser(from_uint8(images), labels if labels.shape[1] else None), images,
                     count)

    def trained() -> Bench:
        return Bench(open_network(network, torch.device('cpu')), theirs, count)

    version = f'{count} images, torch {torch.__version__}'
    with torch.no_grad(), one_thread():
        measured = {
            'The ideal denoiser': measure_all(
                settings, f'ideal, {len(images)} of {known}, {version}', ideal, save),
            'A trained network': measure_all(
                settings, f'{here}, {Path(network).stat().st_size} bytes, {seen}, {version}',
                trained, save)}
    shape, other = ('x'.join(map(str, x.shape[2:])) for x in (images, theirs))
    about = {'The ideal denoiser': f'It knows {len(images)} images of `{Path(data).name}`, in '
                                   f'{shape}.',
             'A trained network': f'`{here}` was trained on {len(theirs)} images of '
                                  f'`{Path(trained_on).name}`, {other}'
                                  f'{f", by `python {trained_by}`" if trained_by else ""}.'}
    folder = ROOT / 'docs' if dest is None else Path(dest)
    draw_picture(measured, folder / 'few-steps.png')
    with atomic_write(folder / 'few-steps.md') as file:
        file.write(page(measured, about, count).encode())
    click.echo(f'Wrote few-steps.md and few-steps.png to {folder}')


if __name__ == '__main__':
    main()
