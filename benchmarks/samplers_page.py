"""The page docs/samplers.md and its picture, from the points that benchmarks.samplers measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import curves
from benchmarks.curves import (
    ADAMS,
    ADAPTIVE,
    BUDGETS,
    CHURN_2,
    CHURN_10,
    CHURN_40,
    CHURN_LIMITED,
    DDIM,
    EM,
    EM_ORIGINAL,
    EULER,
    EULER_VP_STEPS,
    HEUN,
    LARGE,
    MULTISTEP,
    PC,
    RANGE,
    RK45,
    SDE,
    SIGMA_MAX,
    SIGMA_MIN,
    SMALL,
    VE_EULER,
    VE_HEUN,
    VP_EULER,
    VP_HEUN,
    VP_ORIGINAL,
    VP_STEPS,
    Curve,
    Point,
    Results,
    points,
)
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from dnnlib.plots import pyplot
from limpid.noise_range import Steps
from limpid.schedules import VPSchedule
from limpid.steps import EDMSteps, VPSteps

if TYPE_CHECKING:   # matplotlib is an extra
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

ZERO = 2e-3   # where the logarithmic axis of the error shows 0


def draw_picture(results: Results, dest: Path) -> None:
    """Draw distance and error of deterministic samplers, and distance of stochastic ones."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 6.9))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.95, bottom=0.29, wspace=0.21)
    distance, error, stochastic = axes
    lines = [draw_panel(distance, 'Deterministic: distance to the data', curves.DETERMINISTIC,
                        results, 'distance'),
             draw_panel(error, 'Deterministic: distance from the exact solution of the ODE',
                        curves.DETERMINISTIC, results, 'rms'),
             draw_panel(stochastic, 'Stochastic: distance to the data',
                        (*curves.STOCHASTIC, HEUN), results, 'distance')]
    for ax, handles, columns in ((distance, lines[0], 4), (stochastic, lines[2], 2)):
        figure.legend(handles=handles, loc='upper left', frameon=False, fontsize=8.5,
                      bbox_to_anchor=(ax.get_position().x0 - 0.01, 0.215), ncols=columns,
                      handlelength=2.5, columnspacing=1.2)
        draw_floor(ax, results['floor'])
    distance.set_ylabel('demo distance (random features, NOT FID)')
    stochastic.set_ylim(distance.get_ylim())
    error.set(ylabel='RMS difference, images in [−1, 1]', ylim=(ZERO, 4))
    error.text(2, ZERO * 1.12, 'at the bottom: 0, all images are the exact ones', fontsize=9,
               color='0.3')
    with atomic_write(dest) as file:
        figure.savefig(file, format='png', dpi=120, metadata={'Software': None})


def draw_panel(ax: 'Axes', title: str, shown: tuple[Curve, ...],
               results: Results, field: str) -> list['Artist']:
    """Draw a line for each curve, and return the lines."""
    lines = [draw_curve(ax, curve, results, field) for curve in shown]
    ax.set(title=title, xlabel='NFE: evaluations of the denoiser per image', xscale='log',
           yscale='log', xlim=(1.8, 290), xticks=BUDGETS, xticklabels=BUDGETS)
    ax.minorticks_off()
    ax.grid(color='0.92', linewidth=0.6)
    ax.set_axisbelow(True)
    return lines


def draw_curve(ax: 'Axes', curve: Curve, results: Results,
               field: str) -> 'Artist':
    """Draw `field` of one curve over the evaluations, and return the line."""
    known = sorted((point['nfe'], point[field]) for point in points(curve, results).values())
    width, size, order = (2.4, 6, 4) if curve is HEUN else (1.2, 4.5, 3)
    return ax.plot([nfe for nfe, _ in known], [max(value, ZERO) for _, value in known],
                   color=curve.colour, marker=curve.marker, linestyle=curve.line, linewidth=width,
                   markersize=size, label=curve.name, zorder=order, clip_on=False)[0]


def draw_floor(ax: 'Axes', floor: Point) -> None:
    """Draw a band for the distances of as many real images."""
    low, high = floor['mean'] - 2 * floor['std'], floor['mean'] + 2 * floor['std']
    ax.axhspan(low, high, color='0.85', linewidth=0)
    ax.text(2, low, 'grey: as many real images', va='top', fontsize=9, color='0.3')


@dataclass(frozen=True)
class Setting:
    """What was compared: `real` images, sets of `count` generated ones, `draws` for the floor.

    apart  half the distance of a real image to the nearest other of its class, and to any other
    """
    real: int
    count: int
    draws: int
    data: str
    apart: tuple[float, float]


@dataclass(frozen=True)
class Facts:
    """The numbers of the page, as text."""
    results: Results

    def limit(self) -> float:
        """Return the upper end of the floor: mean plus two standard deviations."""
        return self.results['floor']['mean'] + 2 * self.results['floor']['std']

    def arrives(self, curve: Curve) -> str:
        """Return the NFE from which on the distance is no larger than that of real images."""
        return self._needed(curve, lambda point: point['distance'] <= self.limit())

    def finds(self, curve: Curve) -> str:
        """Return the NFE from which on at least 95 % of the images are the exact ones."""
        return self._needed(curve, lambda point: point['elsewhere'] <= 0.05)

    def _needed(self, curve: Curve, good: Callable[[Point], bool]) -> str:
        found = 'not reached'
        for point in sorted(points(curve, self.results).values(), key=lambda point: -point['nfe']):
            if not good(point):
                break
            found = f'{point["nfe"]:.4g}'
        return found

    def where(self, a: Curve, b: Curve, field: str = 'rms') -> str:
        """Return the budgets at which a's number is below b's."""
        known = points(a, self.results), points(b, self.results)
        return ', '.join(f'{n:g}' for n in sorted(known[0].keys() & known[1].keys())
                         if known[0][n][field] < known[1][n][field]) or 'none'

    def gain(self, curve: Curve, n: int) -> str:
        """Return how many times larger the RMS difference of `curve` is than that of HEUN."""
        if n not in points(HEUN, self.results):
            return ''
        theirs, ours = points(curve, self.results)[n]['rms'], points(HEUN, self.results)[n]['rms']
        if theirs == ours:
            return '1'
        return f'{theirs / ours:.3g}' if ours > 0 else '∞'

    def order(self, curve: Curve) -> str:
        """Return p of RMS difference ~ NFE^−p, from the first to the last budget in 8 to 32."""
        known = [(p['nfe'], p['rms']) for n, p in sorted(points(curve, self.results).items())
                 if 8 <= n <= 32 and p['rms']]
        if len(known) < 2:
            return '(not measured)'
        (n, before), (m, after) = known[0], known[-1]
        return f'{math.log(before / after) / math.log(m / n):.2f}'

    def at(self, curve: Curve, n: int) -> str:
        """Return the distance with n evaluations."""
        known = points(curve, self.results)
        return f'{known[n]["distance"]:.3g}' if n in known else '(not measured)'

    def fewest(self, curve: Curve) -> str:
        """Return the smallest NFE of a sampler that chooses its steps."""
        spent = (point['nfe'] for point in points(curve, self.results).values())
        return f'{min(spent, default=math.nan):.0f}'

    def table(self, shown: tuple[Curve, ...], field: str) -> str:
        """Return a table of `field`: the curves over the evaluations allowed."""
        scale, unit = (100, ' %') if field == 'elsewhere' else (1, '')
        return self.budget_table(
            shown, lambda curve, n: f'{scale * points(curve, self.results)[n][field]:.3g}{unit}')

    def gains(self) -> str:
        """Return a table of `gain`, for all deterministic samplers but HEUN."""
        others = tuple(curve for curve in curves.DETERMINISTIC if curve is not HEUN)
        return self.budget_table(others, self.gain)

    def budget_table(self, shown: tuple[Curve, ...], cell: Callable[[Curve, int], str]) -> str:
        """Return a table with a row for each curve and a column for each number of evaluations."""
        known = {curve: points(curve, self.results) for curve in shown if curve.steps is not None}
        budgets = sorted({int(n) for there in known.values() for n in there})
        rows = [[curve.name, *(cell(curve, n) if n in there else '' for n in budgets)]
                for curve, there in known.items()]
        return table(['NFE, at most', *map(str, budgets)], rows)

    def tolerance_table(self) -> str:
        """Return a table of the samplers that choose their steps."""
        rows = [[curve.name, f'{value:g}', f'{point["nfe"]:.1f}', f'{point["distance"]:.3g}',
                 f'{point["rms"]:.3g}' if 'rms' in point else '']
                for curve in (RK45, ADAPTIVE)
                for value, point in points(curve, self.results).items()]
        return table(['Sampler', 'tolerance', 'NFE, mean', 'distance', 'RMS difference'], rows)

    def curve_table(self) -> str:
        """Return a table of all samplers: options, and evaluations needed."""
        rows = []
        for curve in (*curves.DETERMINISTIC, *curves.STOCHASTIC):
            options = ' '.join([curve.options, *(f'{knob}=…' for knob in curve.knob.split())])
            found = self.finds(curve) if curve in curves.DETERMINISTIC else ''
            rows.append([curve.name, f'`{options}`', self.arrives(curve), found])
        return table(['Sampler', 'options of generate.py', 'NFE to the floor', 'NFE to 95 %'], rows)


def decisive(steps: Callable[..., Steps]) -> int:
    """Return how many of 16 noise levels lie between 1 and 10."""
    sigmas = steps(SIGMA_MIN, SIGMA_MAX).sigmas(16)
    return int(((sigmas >= 1) & (sigmas <= 10)).sum())


def overshoot() -> float:
    """Return N h β/(2σ²) at ε_s, for the last step h = 1/N of the original VP sampler."""
    vp = VPSchedule.through(SIGMA_MIN, SIGMA_MAX)
    return float(vp.beta(torch.tensor(1e-3))) / (2 * SIGMA_MIN**2)


def page(say: Facts, setting: Setting) -> str:
    """Return docs/samplers.md: the numbers, and what they show."""
    return '\n'.join([introduction(say, setting), tables(say, setting), beside_euler(say),
                      beside_frames(say), behind(say, setting), newer_solvers(say),
                      stochastic_settings(say, setting)])


def introduction(say: Facts, setting: Setting) -> str:
    """Return the beginning of the page: what is measured, and how."""
    floor, exact = say.results['floor'], say.results[curves.EXACT]
    minutes = sum(point.get('seconds', 0) for point in say.results.values()) / 60
    return f'''# Samplers: quality against evaluations

Written by `python -m benchmarks.samplers`, which measures every number below and draws the picture,
in about {minutes:.0f} minutes of one CPU core (torch {torch.__version__}).

[Few steps, measured](few-steps.md) has the solvers that were made for 3 to 10 evaluations, on
images of clothes and on a trained network.

![Quality against evaluations](samplers.png)

The denoiser is the ideal one of {setting.real:,} real images (Eq. 57 of Karras et al. 2022). It
makes no errors, so all errors seen here are the sampler's. Each point is measured on
{setting.count} images, of the seeds 0 to {setting.count - 1}, the same for all samplers.

* **Distance**: the Fréchet distance to the whole data set in the features of the `demo` detector,
  random convolutions. It is not the FID, and other detectors give other numbers.
* **Floor**: as many real images, drawn with replacement, have a distance of {floor['mean']:.4f}
  (mean of {setting.draws} draws, standard deviation {floor['std']:.4f}). A perfect sampler gets
  there and no further; a distance within twice the deviation, below {say.limit():.4f}, cannot be
  told from it.
* **RMS difference**: between the images and those of the exact solution of the ODE from the same
  latents (`{curves.EXACT}`,
  {exact['nfe']:g} evaluations, distance {exact['distance']:.4f}). It measures discretisation error
  alone. Pixels are in [−1, 1]; one level of 8 bits is {1 / 127.5:.4f}.
* **NFE**: evaluations per image, counted. Columns give the number that was allowed: Heun with N
  steps takes 2N − 1, Adams N + 2.

Samplers with other noise ranges end at other images. Here all have σ from {SIGMA_MIN:g} to
{SIGMA_MAX:g} and then 0, so the ranges of VP, VE and iDDPM are not quite their own. The original
sampler of VE is not listed: it is Euler's method in the VE frame, to the bit.
'''


def tables(say: Facts, setting: Setting) -> str:
    """Return the tables of the page."""
    return f'''## The samplers

The floor is a distance up to {say.limit():.4f}; 95 % means that so many images are those of the
exact solution (nearest to the same real image). Both hold from the given NFE on, for all larger
ones that were measured. All commands have the form
`python generate.py --network=ideal:{setting.data} --outdir=out --seeds=0-{setting.count - 1} \
OPTIONS {RANGE}`,
and `--steps` where no tolerance is given.

{say.curve_table()}

## Deterministic: distance

{say.table(curves.DETERMINISTIC, 'distance')}

## Deterministic: RMS difference from the exact solution

{say.table(curves.DETERMINISTIC, 'rms')}

The share of images that end at another real image than the exact solution:

{say.table(curves.DETERMINISTIC, 'elsewhere')}

How many times larger the RMS difference is than that of {HEUN.name}:

{say.gains()}

## Stochastic: distance

{say.table((*curves.STOCHASTIC, HEUN), 'distance')}

## Samplers that choose their steps

{say.tolerance_table()}
'''


def beside_euler(say: Facts) -> str:
    """Return the comparison with Euler's method."""
    return f'''## What this shows

### Does Heun with ρ = 7 on σ = t beat Euler on the VP and VE schedules at equal NFE?

In RMS difference, {HEUN.name} is ahead of

* Euler VE at {say.where(HEUN, VE_EULER)} evaluations, and behind at {say.where(VE_EULER, HEUN)};
* Euler VP at {say.where(HEUN, VP_EULER)}, and behind at {say.where(VP_EULER, HEUN)};
* DDIM at {say.where(HEUN, DDIM)}, and behind at {say.where(DDIM, HEUN)};
* Euler with the same time steps and frame at {say.where(HEUN, EULER)}, and behind at
  {say.where(EULER, HEUN)}.

It has 95 % of the images right from {say.finds(HEUN)} evaluations on; Euler VP from
{say.finds(VP_EULER)}, DDIM from {say.finds(DDIM)}, Euler VE: {say.finds(VE_EULER)}. With enough
evaluations this is the paper's finding, on data of which nothing had to be learned. In distance it
is over sooner: the floor is reached at {say.arrives(HEUN)} evaluations by {HEUN.name},
{say.arrives(VP_EULER)} by Euler VP and {say.arrives(VE_EULER)} by Euler VE, but at
{say.arrives(DDIM)} by DDIM, and by Euler with ρ = 7 at {say.arrives(EULER)}. **The distance stops
telling samplers apart long before their errors are gone.** An image that ends at the wrong real
image is still a real image, and a Fréchet distance cannot see which one. It does see noise that a
sampler leaves or makes, and that is decided by the frame, as the next section shows.
'''


def beside_frames(say: Facts) -> str:
    """Return the comparison of the frames of VP and VE with sigma = t."""
    return f'''### And the frame: σ = t against VP and VE, with the same solver and noise levels?

{HEUN.name} is ahead of Heun in the VP frame at {say.where(HEUN, VP_HEUN)} evaluations and behind at
{say.where(VP_HEUN, HEUN)}; ahead of Heun in the VE frame at {say.where(HEUN, VE_HEUN)} and behind
at {say.where(VE_HEUN, HEUN)}. (The last table on deterministic samplers above says by how much.)
With few steps the curved frames do not lose by a little: they diverge. While D stays the same, any
step from σ = a to b on σ = t multiplies the noise x − D by b/a, exactly as it should. In the VE
frame an Euler step multiplies it by (1 + b²/a²)/2, at least one half, however small b is; the
second point of Heun's method divides this by b², and its correction then overshoots by about
(a/b)²/8 of the noise. For b < 0.55 a, Heun is worse there than Euler. In the VP frame the same
happens at the lowest noise levels, where σ ~ √t.
'''


def behind(say: Facts, setting: Setting) -> str:
    """Return where Heun's method on sigma = t is behind, and why."""
    return f'''### Where is it behind, and why?

* **Few evaluations.** Euler's method has twice as many steps to spend, and where they are counts
  more than the order. Two images that are a distance r apart are told apart at σ of about r/2. Half
  the distance of a real image to its nearest neighbour is {setting.apart[0]:.1f} (median), to any
  other of its class {setting.apart[1]:.1f}, so that most is decided at σ from 1 to 10. Elsewhere
  the flow is nearly straight and steps are lost. Of 16 levels ρ = 7 has {decisive(EDMSteps)} in
  this range, VP's time steps {decisive(VPSteps)}. A network needs steps at low levels too, since
  its images change there; the ideal denoiser of a finite set has found its image by then. On VP's
  time steps with σ = t, Heun (`{VP_STEPS.options}`) is ahead of ρ = 7 at
  {say.where(VP_STEPS, HEUN)} evaluations, and Euler (`{EULER_VP_STEPS.options}`) of Euler with
  ρ = 7 at {say.where(EULER_VP_STEPS, EULER)}. That does not explain all: Euler in VP's own frame is
  ahead of Euler on σ = t, on the same noise levels, at {say.where(VP_EULER, EULER_VP_STEPS)}; why
  is open. In distance it is not: with 4 evaluations it has {say.at(VP_EULER, 4)} against
  {say.at(EULER_VP_STEPS, 4)}.
* **Many evaluations.** All errors that are left are a few images of {setting.count} at another real
  image, so that a lead there is chance. Even the last solvers do not agree on every image: one that
  lies close enough to a border is one of {setting.count}. The flow of a finite set parts the
  latents into basins, one for each real image, and an error counts only where it crosses a border.
  The share of such images is proportional to the error, and the RMS difference to the root of the
  share: Euler (ρ = 7, σ = t) falls as NFE^−{say.order(EULER)} from 8 to 32 evaluations and Heun as
  NFE^−{say.order(HEUN)}, where orders 1 and 2 lead to expect ½ and 1.
* **The last step.** To σ = 0 from σ = t it gives D itself. In the VE frame it leaves half the
  noise, and in the VP frame some, less than a level of 8 bits at σ = {SIGMA_MIN:g}: small
  differences that do not fall with the NFE.
* **The original VP sampler** takes steps of 1/N, also in the end, from t = 0.001 to 0. That one
  multiplies the noise by 1 − {overshoot():.0f}/N: it grows for N < {overshoot() / 2:.0f}. It is at
  the floor from {say.arrives(VP_ORIGINAL)} evaluations on, Euler with the right steps from
  {say.arrives(VP_EULER)}.
'''


def newer_solvers(say: Facts) -> str:
    """Return the comparison with solvers that came later, and with adaptive steps."""
    return f'''### And newer solvers?

95 % of the images are right from {say.finds(MULTISTEP)} evaluations on with DPM-Solver++(2M) and
from {say.finds(ADAMS)} with Adams, against {say.finds(HEUN)} with Heun; they are ahead of Heun at
{say.where(MULTISTEP, HEUN)} and at {say.where(ADAMS, HEUN)}. RK45 takes {say.fewest(RK45)}
evaluations or more at any tolerance here, which is more than Heun needs for 95 %: its cost
outweighs its benefits, as the paper says. Its smallest tolerance confirms the exact solution by
another method.
'''


def stochastic_settings(say: Facts, setting: Setting) -> str:
    """Return the comparison of stochastic samplers."""
    churned = [say.arrives(curve) for curve in (CHURN_2, CHURN_10, CHURN_40)]
    return f'''### Which stochastic settings help?

There are no errors of a network to correct, so fresh noise can correct only those of the steps. The
floor is reached at

* {say.arrives(HEUN)} evaluations without noise, and {churned[0]}, {churned[1]} and {churned[2]}
  with Algorithm 2 and S_churn = 2, 10 and 40; {say.arrives(CHURN_LIMITED)} with the limits of
  `--preset=imagenet64-edm`. Churn does not help to get there. At few steps it costs; S_churn = 10
  and 40 are the same up to N = 24, since γ is at its limit, √2 − 1.
* {say.arrives(LARGE)} with the ancestral sampler of large variance and {say.arrives(SMALL)} with
  the small one. With 2 evaluations the large variance has {say.at(LARGE, 2)}, the small one
  {say.at(SMALL, 2)} and DDIM {say.at(DDIM, 2)}; with 4, {say.at(LARGE, 4)}, {say.at(SMALL, 4)} and
  {say.at(DDIM, 4)}. Of the noise tried here, this helps. An ancestral step of any size is exact
  while D does not change, and its fresh noise lets later steps correct the earlier ones; the large
  variance is that of data as wide as σ = 1, the small one that of a single point.
* {say.arrives(EM)} with Euler–Maruyama for VP and {say.arrives(SDE)} with Euler–Maruyama on the
  levels of Algorithm 2, where few steps diverge: it adds noise √(2a(a − b)), of the size of the
  level a that it leaves, not of b where it arrives. The paper's remark that it matters to compute
  the step after adding the noise is plain to see.
* {say.arrives(PC)} with predictor–corrector. The original Euler–Maruyama program,
  {say.arrives(EM_ORIGINAL)}: the same last step as above with twice the score, which makes noise
  for N < {overshoot():.0f}. Adaptive steps take {say.fewest(ADAPTIVE)} evaluations or more.

Differences within the grey band are those between one draw of {setting.count} images and another.
'''
