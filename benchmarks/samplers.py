"""Quality against evaluations, for the samplers of the paper's Figures 2 and 4: python
-m benchmarks.samplers

The network is the ideal denoiser of a data set, so that all there is to see is the sampler's. Every
point is what generate.py draws with the options that docs/samplers.md lists. Points are kept in a
JSON file as they are measured, and a run that was stopped goes on from there; delete the file after
a change to a sampler.
"""

# ruff: noqa: E501 (the text is wrapped as it will be read; option tables are tables)

import functools
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm
from torch import Tensor

from checkpoints.open import ideal_denoiser
from dnnlib.cli import is_terminal, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from limpid.denoiser import Counting
from limpid.schedules import VPSchedule
from limpid.seeds import generate
from limpid.steps import Discretization, EDMSteps, VPSteps
from metrics.distances import frechet_distance
from metrics.features import TAPS, DemoDetector
from metrics.statistics import Moments, one_thread
from options.sampler import resolve_sampler, sampler_options
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).resolve().parents[1]
DIGITS = 'datasets/digits-16x16.zip'

# One range for all, so that all head for the same images. Its lower end is close to VP's own
# 0.0105, and the noise that the last step of VE leaves, half of it, is below one level of 8 bits.
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0
RANGE = f'--sigma_min={SIGMA_MIN:g} --sigma_max={SIGMA_MAX:g}'
EXACT = f'--solver=heun --steps=512 {RANGE}'
BUDGETS = (2, 4, 8, 16, 32, 64, 128, 256)
QUICK = (4, 16, 64)
STOCHASTIC_LIMIT = 128   # evaluations; long before that they have arrived
DRAWS = 20               # of real images, for the floor
BATCH = 250

Steps = Callable[[int], int]   # evaluations that may be spent -> steps


def one_each(budget: int) -> int:
    return budget


def heun(budget: int) -> int:
    """N steps cost 2N − 1."""
    return budget // 2


def adams(budget: int) -> int:
    """N steps of order 3 cost N + 2 (two of them 3)."""
    return budget - 2


@dataclass(frozen=True)
class Curve:
    """A sampler, as options of generate.py, and how it is drawn.

    steps       steps for a number of evaluations; or
    tolerances  values of the option `knob`, for samplers that choose their steps
    """
    name: str
    options: str
    colour: str
    marker: str = 'o'
    line: str = '-'
    steps: Steps | None = None
    knob: str = ''
    tolerances: tuple[float, ...] = ()

    def commands(self, limit: int, quick: bool) -> list[tuple[int | float, str]]:
        """(budget or tolerance, options of generate.py) of each point."""
        if self.steps is None:
            values = self.tolerances[::2] if quick else self.tolerances
            knobs = [(value, ' '.join(f'{knob}={value:g}' for knob in self.knob.split()))
                     for value in values]
        else:
            budgets = [b for b in (QUICK if quick else BUDGETS) if b <= limit
                       and self.steps(b) >= 2]
            knobs = [(b, f'--steps={self.steps(b)}') for b in budgets]
        return [(value, f'{self.options} {knob} {RANGE}'.strip()) for value, knob in knobs]


# The colours of the paper's Figure 2: blue for original samplers, orange for Euler in their frames,
# green for Heun there, red for Heun with σ = t. Circles are VP, squares VE, triangles the frame σ =
# t.
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GREY, BLACK = (
    '#3b6ea5', '#d98324', '#4d9a57', '#b5302c', '#7a5195', '#8c6d4f', '#8a8a8a', '#222222')

HEUN = Curve('Heun, ρ = 7, σ = t (EDM)', '--solver=heun', RED, '^', steps=heun)
VP_ORIGINAL = Curve('VP, original', '--sampler=em --deterministic=true --original=true', BLUE,
                    steps=one_each)
VP_EULER = Curve('Euler, VP', '--family=vp', ORANGE, steps=one_each)
VE_EULER = Curve('Euler, VE (also the original)', '--family=ve', ORANGE, 's', steps=one_each)
DDIM = Curve('DDIM, iDDPM levels', '--sampler=ddim', BLUE, '^', steps=one_each)
VP_HEUN = Curve('Heun, ρ = 7, VP frame', '--family=vp --solver=heun --disc=edm', GREEN, steps=heun)
VE_HEUN = Curve('Heun, ρ = 7, VE frame', '--family=ve --solver=heun --disc=edm', GREEN, 's',
                steps=heun)
EULER = Curve('Euler, ρ = 7, σ = t', '--solver=euler', GREY, '^', steps=one_each)
VP_STEPS = Curve('Heun, VP steps, σ = t', '--solver=heun --disc=vp', RED, 'o', ':', steps=heun)
EULER_VP_STEPS = Curve('Euler, VP steps, σ = t', '--solver=euler --disc=vp', GREY, 'o', ':',
                       steps=one_each)
MULTISTEP = Curve('DPM-Solver++(2M), ρ = 7', '--solver=dpmpp-2m', PURPLE, 'D', steps=one_each)
ADAMS = Curve('Adams, ρ = 7, σ = t', '--solver=adams', BROWN, 'v', steps=adams)
RK45 = Curve('RK45, σ = t', '--sampler=rk45', BLACK, 'x', '--', knob='--rtol --atol',
             tolerances=(1, 0.1, 0.03, 0.01))
DETERMINISTIC = (VP_ORIGINAL, VP_EULER, VE_EULER, DDIM, VP_HEUN, VE_HEUN, EULER, EULER_VP_STEPS,
                 HEUN, VP_STEPS, MULTISTEP, ADAMS, RK45)

EM_ORIGINAL = Curve('Euler–Maruyama, VP, original', '--sampler=em --original=true', BLUE, 'o', '--',
                    steps=one_each)
EM = Curve('Euler–Maruyama, VP', '--sampler=em', BLUE, steps=one_each)
PC = Curve('Predictor–corrector, VE', '--sampler=pc', ORANGE, 's', steps=heun)
SMALL = Curve('Ancestral, small variance', '--sampler=ancestral --variance=small', GREEN, '^',
              steps=one_each)
LARGE = Curve('Ancestral, large variance', '--sampler=ancestral --variance=large', GREEN, 'v', '--',
              steps=one_each)
SDE = Curve('Euler–Maruyama, ρ = 7, σ = t', '--sampler=sde', GREY, '^', steps=one_each)
CHURN_2 = Curve('Alg. 2, S_churn = 2', '--S_churn=2', PURPLE, '^', ':', steps=heun)
CHURN_10 = Curve('Alg. 2, S_churn = 10', '--S_churn=10', PURPLE, 's', '--', steps=heun)
CHURN_40 = Curve('Alg. 2, S_churn = 40', '--S_churn=40', PURPLE, 'D', steps=heun)
CHURN_LIMITED = Curve('Alg. 2, S_churn = 40, limits',
                      '--S_churn=40 --S_min=0.05 --S_max=50 --S_noise=1.003', BROWN, 'D',
                      steps=heun)
ADAPTIVE = Curve('Adaptive SDE, VP', '--sampler=adaptive', BLACK, 'x', '--', knob='--eps_rel',
                 tolerances=(0.5, 0.1, 0.05))
STOCHASTIC = (EM_ORIGINAL, EM, PC, SMALL, LARGE, SDE, CHURN_2, CHURN_10, CHURN_40, CHURN_LIMITED,
              ADAPTIVE)


@click.command()
@sampler_options
def parse(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    """The options of generate.py as `resolve_sampler` takes them."""
    return options


class Bench:
    """The network, the real images and what is measured of generated ones: sets of `count` images
    each."""

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
        """What, beside a command, a number owes itself to."""
        return f'{self.count} images, {TAPS["demo"].detector_id}, data {self.fingerprint}, torch {torch.__version__}'

    def moments(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        total = Moments.zero(TAPS['demo'].dim)
        for part in images.split(1024):
            total.add(self.detector.features(part)['demo'])
        return total.mean(), total.cov()

    def distance(self, images: Tensor) -> float:
        return frechet_distance(*self.reference, *self.moments(images))

    def floor(self) -> dict[str, float]:
        """The distance of as many real images, drawn with replacement: mean and standard deviation
        of a few draws."""
        generator = torch.Generator().manual_seed(0)
        distances = [self.distance(self.real[torch.randint(len(self.real), [self.count],
                                                           generator=generator)])
                     for _ in range(DRAWS)]
        return {'mean': float(np.mean(distances)), 'std': float(np.std(distances, ddof=1))}

    def apart(self) -> tuple[float, float]:
        """Half the distance of a real image to the nearest other, and to any other, of its class:
        medians."""
        net = self.net
        y = net.images.flatten(1).double()
        distances = torch.cdist(y, y)
        same = torch.ones_like(distances) if net.labels is None else net.labels @ net.labels.T
        others = distances.masked_fill((same == 0) | torch.eye(len(y), dtype=torch.bool), math.nan)
        nearest = others.nan_to_num(nan=math.inf).amin(dim=1)
        return float(nearest.median()) / 2, float(others.nanmedian()) / 2

    def draw(self, command: str) -> tuple[Tensor, float]:
        """uint8 images of the seeds 0 to count − 1, as generate.py draws them, and the evaluations
        of each."""
        options = parse.main(shlex.split(command), standalone_mode=False)
        sampling = resolve_sampler(options, self.net.sigma_min, self.net.sigma_max)
        if sampling.notes:
            raise ValueError(f'{command}: {"; ".join(sampling.notes)}')
        watched = Counting(self.net)
        batches = [range(start, min(start + BATCH, self.count))
                   for start in range(0, self.count, BATCH)]
        images = [generate(watched, sampling.sampler, sampling.discretization, sampling.num_steps,
                           seeds, None, torch.device('cpu')) for seeds in batches]
        return torch.cat(images), watched.images / self.count

    @functools.cached_property
    def exact(self) -> tuple[Tensor, float]:
        """The images that the flow leads to from these latents, and the evaluations of each."""
        return self.draw(EXACT)

    def measure(self, command: str, deterministic: bool) -> dict[str, float]:
        """One point: NFE per image, the distance, how far the images are from the exact ones,
        seconds of CPU time."""
        # not on this point's clock
        exact = self.exact[0] if deterministic and command != EXACT else None
        start = time.process_time()   # not the wall's: other programs do not count
        images, nfe = self.exact if command == EXACT else self.draw(command)
        point = {'nfe': nfe, 'distance': self.distance(images)}
        if exact is not None:
            point |= {'rms': rms(images, exact), 'elsewhere': elsewhere(images, exact, self.real)}
        return point | {'seconds': time.process_time() - start}


def rms(images: Tensor, exact: Tensor) -> float:
    """Root of the mean square over all pixels of uint8 images, in units of [-1, 1]."""
    return float(((images.double() - exact.double()) / 127.5).square().mean().sqrt())


def elsewhere(images: Tensor, exact: Tensor, real: Tensor) -> float:
    """The share of images that are nearest to another real image than the exact ones are."""
    nearest = (torch.cdist(x.flatten(1).double(), real.flatten(1).double()).argmin(dim=1)
               for x in (images, exact))
    return float(torch.ne(*nearest).double().mean())


Point = dict[str, float]
Results = dict[str, Point]   # command, 'floor' or EXACT -> what was measured


def load(path: Path) -> dict[str, Results]:
    """All settings of the JSON file; ValueError in one line where it is damaged."""
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_bytes())
        if not all(math.isfinite(number) for results in settings.values()
                   for point in results.values()
                   for number in point.values()):
            raise ValueError('a number is not finite')
        return settings
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({" ".join(str(error).split())}): delete it to '
                         f'measure anew') from error


def measure_all(bench: Bench, path: Path, budget: int, quick: bool) -> Results:
    """Measure what the JSON file lacks, and write it after each point."""
    settings = load(path)
    results = settings.setdefault(bench.setting(), {})
    jobs: dict[str, Callable[[], Point]] = {'floor': bench.floor}
    jobs[EXACT] = functools.partial(bench.measure, EXACT, True)
    for curve in (*DETERMINISTIC, *STOCHASTIC):
        limit = budget if curve in DETERMINISTIC else min(budget, STOCHASTIC_LIMIT)
        for _, command in curve.commands(limit, quick):
            jobs[command] = functools.partial(bench.measure, command, curve in DETERMINISTIC)
    missing = [command for command in jobs if command not in results]
    for command in tqdm.tqdm(missing, unit='point', disable=not is_terminal()):
        results[command] = jobs[command]()
        with atomic_write(path) as file:
            file.write(json.dumps(settings, indent=1, ensure_ascii=False).encode())
    return {command: results[command] for command in jobs}


def points(curve: Curve, results: Results) -> dict[int | float, Point]:
    """What is known of a curve: {evaluations that were allowed, or tolerance: point}."""
    return {value: results[command] for value, command in curve.commands(max(BUDGETS), False)
            if command in results}


def decisive(steps: Callable[..., Discretization]) -> int:
    """How many of 16 noise levels lie between 1 and 10."""
    sigmas = steps(SIGMA_MIN, SIGMA_MAX).sigmas(16)
    return int(((sigmas >= 1) & (sigmas <= 10)).sum())


def draw_picture(results: Results, dest: Path) -> None:
    """Three panels: distance and error of deterministic samplers, distance of stochastic ones."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 6.9))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.95, bottom=0.29, wspace=0.21)
    panels = [
        (axes[0], 'Deterministic: distance to the data', DETERMINISTIC, 'distance'),
        (axes[1], 'Deterministic: distance from the exact solution of the ODE', DETERMINISTIC,
         'rms'),
        (axes[2], 'Stochastic: distance to the data', (*STOCHASTIC, HEUN), 'distance'),
    ]
    for ax, title, curves, field in panels:
        lines = [plot(ax, curve, results, field) for curve in curves]
        ax.set(title=title, xlabel='NFE: evaluations of the denoiser per image', xscale='log',
               yscale='log', xlim=(1.8, 290), xticks=BUDGETS, xticklabels=BUDGETS)
        ax.minorticks_off()
        ax.grid(color='0.92', linewidth=0.6)
        ax.set_axisbelow(True)
        if ax is not axes[1]:
            legend_at = axes[0].get_position().x0 if ax is axes[0] else ax.get_position().x0
            figure.legend(handles=lines, loc='upper left', bbox_to_anchor=(legend_at - 0.01, 0.215),
                          frameon=False, fontsize=8.5, ncols=4 if ax is axes[0] else 2,
                          handlelength=2.5, columnspacing=1.2)
    floor = results['floor']
    for ax in (axes[0], axes[2]):
        ax.axhspan(floor['mean'] - 2 * floor['std'], floor['mean'] + 2 * floor['std'], color='0.85',
                   linewidth=0)
        ax.text(2, floor['mean'] - 2 * floor['std'], 'grey: as many real images', va='top',
                fontsize=9, color='0.3')
    axes[0].set_ylabel('demo distance (random features, NOT FID)')
    axes[2].set_ylim(axes[0].get_ylim())
    axes[1].set(ylabel='RMS difference, images in [−1, 1]', ylim=(ZERO, 4))
    axes[1].text(2, ZERO * 1.12, 'at the bottom: 0, all images are the exact ones', fontsize=9,
                 color='0.3')
    with atomic_write(dest) as file:
        figure.savefig(file, format='png', dpi=120, metadata={'Software': None})


ZERO = 2e-3   # where the logarithmic axis of the error shows 0


def plot(ax: Any, curve: Curve, results: Results, field: str) -> Any:  # noqa: ANN401 (matplotlib's)
    known = sorted((point['nfe'], point[field]) for point in points(curve, results).values())
    best = curve is HEUN
    return ax.plot([nfe for nfe, _ in known], [max(value, ZERO) for _, value in known],
                   color=curve.colour, marker=curve.marker, linestyle=curve.line, linewidth=2.4
                   if best else 1.2, markersize=6 if best else 4.5, label=curve.name, zorder=4
                   if best else 3, clip_on=False)[0]


def budget_table(curves: tuple[Curve, ...], results: Results,
                 cell: Callable[[Curve, int], str]) -> str:
    """A Markdown table: a row for each curve, a column for each number of evaluations that was
    allowed."""
    curves = tuple(curve for curve in curves if curve.steps is not None)
    budgets = sorted({b for curve in curves for b in points(curve, results)})
    rows = [[curve.name, *(cell(curve, int(b)) if b in points(curve, results) else ''
                           for b in budgets)]
            for curve in curves]
    return markdown(['NFE, at most', *(str(b) for b in budgets)], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def tolerance_table(results: Results) -> str:
    rows = [[curve.name, f'{value:g}', f'{point["nfe"]:.1f}', f'{point["distance"]:.3g}',
             f'{point["rms"]:.3g}' if 'rms' in point else '']
            for curve in (RK45, ADAPTIVE) for value, point in points(curve, results).items()]
    return markdown(['Sampler', 'tolerance', 'NFE, mean', 'distance', 'RMS difference'], rows)


@dataclass(frozen=True)
class Facts:
    """What the text says of the numbers, in words."""
    results: Results

    def limit(self) -> float:
        """The upper end of what as many real images get: mean plus two standard deviations."""
        return self.results['floor']['mean'] + 2 * self.results['floor']['std']

    def arrives(self, curve: Curve) -> str:
        """NFE from which on the distance is no larger than that of real images."""
        return self._needed(curve, lambda point: point['distance'] <= self.limit())

    def finds(self, curve: Curve) -> str:
        """NFE from which on at least 95 % of the images are the exact ones."""
        return self._needed(curve, lambda point: point['elsewhere'] <= 0.05)

    def _needed(self, curve: Curve, good: Callable[[Point], bool]) -> str:
        found = 'not reached'
        for point in sorted(points(curve, self.results).values(), key=lambda point: -point['nfe']):
            if not good(point):
                break
            found = f'{point["nfe"]:.4g}'
        return found

    def where(self, a: Curve, b: Curve, field: str = 'rms') -> str:
        """The budgets at which a's number is below b's."""
        known = points(a, self.results), points(b, self.results)
        return ', '.join(f'{n:g}' for n in sorted(known[0].keys() & known[1].keys())
                         if known[0][n][field] < known[1][n][field]) or 'none'

    def gain(self, curve: Curve, n: int) -> str:
        """How many times larger the RMS difference of `curve` is than that of HEUN."""
        if n not in points(HEUN, self.results):
            return ''
        theirs, ours = points(curve, self.results)[n]['rms'], points(HEUN, self.results)[n]['rms']
        return '1' if theirs == ours else f'{theirs / ours:.3g}' if ours > 0 else '∞'

    def order(self, curve: Curve) -> str:
        """p of RMS difference ~ NFE^−p, from the first to the last of the budgets 8 to 32."""
        known = [(p['nfe'], p['rms']) for n, p in sorted(points(curve, self.results).items())
                 if 8 <= n <= 32 and p['rms']]
        if len(known) < 2:
            return '(not measured)'
        (n, before), (m, after) = known[0], known[-1]
        return f'{math.log(before / after) / math.log(m / n):.2f}'

    def table(self, curves: tuple[Curve, ...], field: str) -> str:
        scale, unit = (100, ' %') if field == 'elsewhere' else (1, '')
        return budget_table(curves, self.results,
                            lambda curve, n: f'{scale * points(curve, self.results)[n][field]:.3g}{unit}')

    def curves(self) -> str:
        rows = [[curve.name,
                 f'`{" ".join([curve.options, *(f"{knob}=…" for knob in curve.knob.split())])}`',
                 self.arrives(curve), self.finds(curve) if curve in DETERMINISTIC else '']
                for curve in (*DETERMINISTIC, *STOCHASTIC)]
        return markdown(['Sampler', 'options of generate.py', 'NFE to the floor', 'NFE to 95 %'],
                        rows)


def report(results: Results, bench: Bench) -> str:
    """docs/samplers.md: the numbers, and what they say."""
    say = Facts(results)
    floor, exact = results['floor'], results[EXACT]
    minutes = sum(point.get('seconds', 0) for point in results.values()) / 60
    vp = VPSchedule.through(SIGMA_MIN, SIGMA_MAX)
    # h β/(2σ²) at ε_s, times N
    overshoot = float(vp.beta(torch.tensor(1e-3))) / (2 * SIGMA_MIN**2)

    def at(curve: Curve, n: int) -> str:
        return f'{points(curve, results)[n]["distance"]:.3g}' if n in points(curve,
                                                                             results) else '(not measured)'

    def fewest(curve: Curve) -> float:
        return min((point['nfe'] for point in points(curve, results).values()), default=math.nan)

    return f'''# Samplers: quality against evaluations

Written by `python -m benchmarks.samplers`, which measures every number below, and draws the picture, in about
{minutes:.0f} minutes of one CPU core (torch {torch.__version__}).

![Quality against evaluations](samplers.png)

The denoiser is the ideal one of {len(bench.real):,} real images (Eq. 57 of Karras et al. 2022). It makes no errors: what
there is to see is the sampler's. Each point is {bench.count} images, of the seeds 0 to {bench.count - 1}, the same for all.

* **Distance**: the Fréchet distance to the whole data set in the features of the `demo` detector, random convolutions. It is
  not the FID, and other detectors give other numbers.
* **Floor**: as many real images, drawn with replacement, have a distance of {floor['mean']:.4f} (mean of {DRAWS} draws, standard
  deviation {floor['std']:.4f}). A perfect sampler gets there and no further; what lies within twice the deviation, below
  {say.limit():.4f}, cannot be told from it.
* **RMS difference**: between the images and those of the exact solution of the ODE from the same latents
  (`{EXACT}`, {exact['nfe']:g} evaluations, distance {exact['distance']:.4f}). It measures discretisation error
  alone. Pixels are in [−1, 1]; one level of 8 bits is {1 / 127.5:.4f}.
* **NFE**: evaluations per image, counted. Columns are what was allowed: Heun with N steps takes 2N − 1, Adams N + 2.

Samplers with other noise ranges end at other images. Here all have σ from {SIGMA_MIN:g} to {SIGMA_MAX:g} and then 0, so VP, VE and iDDPM
do not have quite the ranges of their own. The original sampler of VE is not listed: it is Euler's method in the VE frame, to the bit.

## The samplers

The floor is a distance up to {say.limit():.4f}; 95 % means that so many images are those of the exact solution (nearest to the
same real image). Both from the given NFE on, for all larger ones that were measured. All commands have the form
`python generate.py --network=ideal:{DIGITS} --outdir=out --seeds=0-{bench.count - 1} OPTIONS {RANGE}`, and `--steps`
where no tolerance is given.

{say.curves()}

## Deterministic: distance

{say.table(DETERMINISTIC, 'distance')}

## Deterministic: RMS difference from the exact solution

{say.table(DETERMINISTIC, 'rms')}

The share of images that end at another real image than the exact solution:

{say.table(DETERMINISTIC, 'elsewhere')}

How many times larger the RMS difference is than that of {HEUN.name}:

{budget_table(tuple(c for c in DETERMINISTIC if c is not HEUN), results, say.gain)}

## Stochastic: distance

{say.table((*STOCHASTIC, HEUN), 'distance')}

## Samplers that choose their steps

{tolerance_table(results)}

## What this shows

### Does Heun with ρ = 7 on σ = t beat Euler on the VP and VE schedules at equal NFE?

In RMS difference, {HEUN.name} is ahead of

* Euler VE at {say.where(HEUN, VE_EULER)} evaluations, and behind at {say.where(VE_EULER, HEUN)};
* Euler VP at {say.where(HEUN, VP_EULER)}, and behind at {say.where(VP_EULER, HEUN)};
* DDIM at {say.where(HEUN, DDIM)}, and behind at {say.where(DDIM, HEUN)};
* Euler with its own time steps and frame at {say.where(HEUN, EULER)}, and behind at {say.where(EULER, HEUN)}.

It has 95 % of the images right from {say.finds(HEUN)} evaluations on; Euler VP from {say.finds(VP_EULER)}, DDIM from {say.finds(DDIM)}, Euler VE: {say.finds(VE_EULER)}.
With enough evaluations this is the paper's finding, on data of which nothing had to be learned. In distance it is over sooner: the
floor is reached at {say.arrives(HEUN)} evaluations by {HEUN.name}, {say.arrives(VP_EULER)} by Euler VP and {say.arrives(VE_EULER)} by Euler VE, but at {say.arrives(DDIM)} by
DDIM, and by Euler with ρ = 7 at {say.arrives(EULER)}. **The distance stops telling samplers apart long before their errors are gone.** An image
that ends at the wrong real image is still a real image, and a Fréchet distance cannot see which one. What it does see is
noise that a sampler leaves or makes, and that is decided by the frame: see next.

### And the frame: σ = t against VP and VE, with the same solver and the same noise levels?

{HEUN.name} is ahead of Heun in the VP frame at {say.where(HEUN, VP_HEUN)} evaluations and behind at {say.where(VP_HEUN, HEUN)}; ahead of
Heun in the VE frame at {say.where(HEUN, VE_HEUN)} and behind at {say.where(VE_HEUN, HEUN)}. (The last table above says by how much.) With few steps the curved frames do not lose
by a little: they diverge. While D stays the same, any step from σ = a to b on σ = t multiplies the noise x − D by b/a, exactly
as it should. In the VE frame an Euler step multiplies it by (1 + b²/a²)/2, at least one half, however small b is; the second point
of Heun's method divides this by b², and its correction then overshoots by about (a/b)²/8 of the noise. For b < 0.55 a, Heun is
worse there than Euler. In the VP frame the same happens at the lowest noise levels, where σ ~ √t.

### Where is it behind, and why?

* **Few evaluations.** Euler's method has twice as many steps to spend, and where they are counts more than the order. Two images
  that are a distance r apart are told apart at σ of about r/2. Half the distance of a real image to its nearest neighbour is
  {bench.apart()[0]:.1f} (median), to any other of its class {bench.apart()[1]:.1f}, so that most is decided at σ from 1 to 10. Elsewhere the flow is nearly straight
  and steps are lost. Of 16 levels ρ = 7 has {decisive(EDMSteps)} in this range, VP's time steps {decisive(VPSteps)}. A network needs steps at low levels too, since its
  images change there; the ideal denoiser of a finite set has found its image by then. On VP's time steps with σ = t, Heun
  (`{VP_STEPS.options}`) is ahead of ρ = 7 at {say.where(VP_STEPS, HEUN)} evaluations, and Euler (`{EULER_VP_STEPS.options}`) of Euler with ρ = 7
  at {say.where(EULER_VP_STEPS, EULER)}. That does not explain all: Euler in VP's own frame is ahead of Euler on σ = t, on the same noise
  levels, at {say.where(VP_EULER, EULER_VP_STEPS)}; why is open. In distance it is not: with 4 evaluations it has {at(VP_EULER, 4)} against {at(EULER_VP_STEPS, 4)}.
* **Many evaluations.** All errors that are left are a few images of {bench.count} at another real image, so that a lead there is chance.
  Even the last solvers do not agree on every image: one that lies close enough to a border is one of {bench.count}.
  The flow of a finite set parts the latents into basins, one for each real image, and an error counts only where it
  crosses a border. The share of such images is proportional to the error, and the RMS difference to the root of the share: Euler
  (ρ = 7, σ = t) falls as NFE^−{say.order(EULER)} from 8 to 32 evaluations and Heun as NFE^−{say.order(HEUN)}, where orders 1 and 2 lead to
  expect ½ and 1.
* **The last step.** To σ = 0 from σ = t it gives D itself. In the VE frame it leaves half the noise, and in the VP frame some,
  less than a level of 8 bits at σ = {SIGMA_MIN:g}: small differences that do not fall with the NFE.
* **The original VP sampler** takes steps of 1/N, also in the end, from t = 0.001 to 0. That one multiplies the noise by
  1 − {overshoot:.0f}/N: it grows for N < {overshoot / 2:.0f}. It is at the floor from {say.arrives(VP_ORIGINAL)} evaluations on, Euler with the right steps from {say.arrives(VP_EULER)}.

### And newer solvers?

95 % of the images are right from {say.finds(MULTISTEP)} evaluations on with DPM-Solver++(2M) and from {say.finds(ADAMS)} with Adams, against {say.finds(HEUN)} with Heun;
they are ahead of Heun at {say.where(MULTISTEP, HEUN)} and at {say.where(ADAMS, HEUN)}. RK45 takes {fewest(RK45):.0f} evaluations or more at any
tolerance here, which is more than Heun needs for 95 %: its cost outweighs its benefits, as the paper says. Its smallest tolerance
confirms the exact solution by another method.

### Which stochastic settings help?

There are no errors of a network to correct, so fresh noise can correct only those of the steps. The floor is reached at

* {say.arrives(HEUN)} evaluations without noise, and {say.arrives(CHURN_2)}, {say.arrives(CHURN_10)} and {say.arrives(CHURN_40)} with Algorithm 2 and S_churn = 2, 10 and 40; {say.arrives(CHURN_LIMITED)} with the limits of
  `--preset=imagenet64-edm`. Churn does not help to get there. At few steps it costs; S_churn = 10 and 40 are the same up to N = 24,
  since γ is at its limit, √2 − 1.
* {say.arrives(LARGE)} with the ancestral sampler of large variance and {say.arrives(SMALL)} with the small one. With 2 evaluations the large variance has {at(LARGE, 2)}, the
  small one {at(SMALL, 2)} and DDIM {at(DDIM, 2)}; with 4, {at(LARGE, 4)}, {at(SMALL, 4)} and {at(DDIM, 4)}. Of the noise tried here, this helps. An ancestral step of any size is exact while D does not change, and its fresh noise lets later steps correct the earlier ones; the
  large variance is that of data as wide as σ = 1, the small one that of a single point.
* {say.arrives(EM)} with Euler–Maruyama for VP and {say.arrives(SDE)} with Euler–Maruyama on the levels of Algorithm 2, where few steps
  diverge: it adds noise √(2a(a − b)), of the size of the level a that it leaves, not of b where it arrives. The paper's remark that it
  matters to compute the step after adding the noise is plain to see.
* {say.arrives(PC)} with predictor–corrector. The original Euler–Maruyama program, {say.arrives(EM_ORIGINAL)}: the same last step as above with twice the
  score, which makes noise for N < {overshoot:.0f}. Adaptive steps take {fewest(ADAPTIVE):.0f} evaluations or more.

Differences within the grey band are those between one draw of {bench.count} images and another.
'''


@click.command(context_settings={'max_content_width': 110})
@click.option('--data', help='The data set, a zip or a folder', metavar='PATH', default=DIGITS,
              show_default=True)
@click.option('--images', 'count', help='Generated images of each point', metavar='INT',
              type=click.IntRange(min=2), default=500, show_default=True)
@click.option('--max_nfe', help='Evaluations per image, at most', metavar='INT',
              type=click.IntRange(min=4), default=max(BUDGETS), show_default=True)
@click.option('--quick', help='Few points, of at most 64 evaluations', is_flag=True)
@click.option('--results', 'path', help='Where the measured points are kept', metavar='JSON',
              default='out/benchmarks/samplers.json', show_default=True)
@click.option('--dest', help='Where samplers.md and samplers.png are written  [default: docs; with '
                             '--quick: the folder of --results]', metavar='DIR')
@one_line_errors
def main(data: str, count: int, max_nfe: int, quick: bool, path: str, dest: str | None) -> None:
    """Measure samplers on the ideal denoiser of a data set: quality against evaluations."""
    bench = Bench(data, count)
    with torch.no_grad(), one_thread():
        results = measure_all(bench, Path(path), max_nfe, quick)
    folder = Path(dest) if dest else Path(path).parent if quick else ROOT / 'docs'
    draw_picture(results, folder / 'samplers.png')
    with atomic_write(folder / 'samplers.md') as file:
        file.write(report(results, bench).encode())
    click.echo(f'Wrote samplers.png and samplers.md to {folder}')


if __name__ == '__main__':
    main()
