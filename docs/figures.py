"""Draw the paper's figures with the formulas and samplers of this repository.

    python -m docs.figures trajectories

Every picture is a function of its options alone, to the byte for one version of matplotlib.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from torch import Tensor

from checkpoints.open import ideal_denoiser
from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from limpid.denoiser import Conditioned
from limpid.flow import ProbabilityFlow
from limpid.ideal import IdealDenoiser, Mixture
from limpid.schedules import (
    LinearSchedule,
    NoScaling,
    Scaling,
    Schedule,
    VESchedule,
    VPScaling,
    VPSchedule,
)
from limpid.steps import EDMSteps
from torch_utils.random import generator_at

if TYPE_CHECKING:   # matplotlib is an extra
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGITS = 'datasets/digits-16x16.zip'
f64 = torch.float64

data_option = click.option('--data', help='Data set: a zip or a folder of images', metavar='PATH',
                           default=DIGITS, show_default=True)
seed_option = click.option('--seed', help='Random seed', metavar='INT', type=int, default=0,
                           show_default=True)


def dest_option(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option --dest, whose default is docs/NAME.png."""
    return click.option('--dest', help='Picture to write', metavar='PNG',
                        default=os.fspath(Path(__file__).with_name(f'{name}.png')))


@click.group()
def main() -> None:
    """Draw the paper's figures from formulas and data; no network is involved."""


TWO_DIRACS = Mixture(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 0.0]))

# Title, σ(t), its name, s(t), and half the height of the picture for σ up to 25 and up to 1.
FRAMES: list[tuple[str, Schedule, str, Scaling, tuple[float, float]]] = [
    ('Variance preserving (VP)', VPSchedule(), 't', VPScaling(), (3.0, 2.4)),
    ('Variance exploding (VE)', VESchedule(), 't = σ²', NoScaling(), (65.0, 3.4)),
    ('DDIM and EDM', LinearSchedule(), 't = σ', NoScaling(), (65.0, 3.4)),
]


def solution(sigmas: Tensor, quantiles: Tensor) -> Tensor:
    """Return exact trajectories of the two points ±1 for s = 1, [Q, S].

    They pass the quantiles of N(0, σ²) at sigmas[-1].
    """
    start = torch.special.ndtri(quantiles) * sigmas[-1]
    return TWO_DIRACS.flow(start.expand(len(sigmas), -1), sigmas[-1], sigmas).T


@main.command()
@dest_option('trajectories')
@one_line_errors
def trajectories(dest: str) -> None:
    """Figure 3: the probability flow of two points, x = ±1, for three choices of σ(t) and s(t)."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), layout='constrained')
    sigmas = torch.cat([torch.linspace(0, 1, 241, dtype=f64),
                        torch.linspace(1, 25, 241, dtype=f64)[1:]])
    quantiles = (torch.arange(12, dtype=f64) + 0.5) / 12
    paths = solution(sigmas, quantiles)
    for column, (title, schedule, t_name, scaling, heights) in zip(axes.T, FRAMES, strict=True):
        column[0].set_title(title)
        column[1].set_xlabel(t_name)
        for ax, sigma_max, height in zip(column, (25.0, 1.0), heights, strict=True):
            shown = sigmas <= sigma_max
            draw_paths(ax, schedule, scaling, sigmas[shown], paths[:, shown], height)
            ax.text(0.97, 0.04, f'σ from 0 to {sigma_max:g}', transform=ax.transAxes, ha='right',
                    fontsize=9, bbox={'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8,
                                      'pad': 2})
    for ax in axes[:, 0]:
        ax.set_ylabel('x')
    figure.draw_without_rendering()   # from here on the panels have their final shape
    for column, (_, schedule, _, scaling, _) in zip(axes.T, FRAMES, strict=True):
        for ax, sigma_max in zip(column, (25.0, 1.0), strict=True):
            shown = sigmas <= sigma_max
            draw_gradients(ax, schedule, scaling, sigmas[shown], paths[:, shown])
    save(figure, dest)


def draw_paths(ax: 'Axes', schedule: Schedule, scaling: Scaling,
               sigmas: Tensor, paths: Tensor, height: float) -> None:
    """Draw the density of the two points, and paths [Q, S] of s = 1 at noise levels sigmas [S]."""
    times, scales = schedule.sigma_inv(sigmas), scaling.s(sigmas)
    t_max = float(times[-1])
    ax.set(xlim=(0, t_max), ylim=(-height, height))
    t, x, p = density(schedule, scaling, t_max, height)
    ax.pcolormesh(t.numpy(), x.numpy(), p.numpy(), cmap='Blues', vmin=0, vmax=1.6,
                  shading='nearest')
    ax.plot(times.numpy(), (paths * scales).T.numpy(), color='#a33', linewidth=0.9)


def density(schedule: Schedule, scaling: Scaling, t_max: float,
            height: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return t [T], x [X] and the density p(x; t) [X, T] of the two points.

    The density at each time is relative to its own maximum.
    """
    # Cell centres: none at t = 0, where the density is two points.
    t = (torch.arange(300, dtype=f64) + 0.5) * t_max / 300
    x = torch.linspace(-height, height, 301, dtype=f64)
    sigma = schedule.sigma(t)
    unscaled = x[:, None] / scaling.s(sigma)   # [X, T]
    log_p = torch.logaddexp(*(-((unscaled - y) / sigma) ** 2 / 2 for y in TWO_DIRACS.means))
    return t, x, (log_p - log_p.amax(dim=0)).exp()


def draw_gradients(ax: 'Axes', schedule: Schedule, scaling: Scaling,
                   sigmas: Tensor, paths: Tensor) -> None:
    """Draw arrows of one length along −(1, dx/dt), from points of every third path.

    This is where Algorithm 1 heads from there.
    """
    flow = ProbabilityFlow(Conditioned(TWO_DIRACS), schedule, scaling)
    width, height = ax.get_xlim()[1], 2 * ax.get_ylim()[1]
    box, paper = ax.get_position(), ax.get_figure(root=True)
    assert paper is not None
    aspect = (box.height * paper.get_figheight()) / (box.width * paper.get_figwidth())
    times = schedule.sigma_inv(sigmas)
    # The angle on paper is given: an arrow that is to point along data would have a length that
    # varies.
    for fraction in (0.25, 0.6, 0.95):
        k = int((times - fraction * width).abs().argmin())
        x = paths[1::3, k] * scaling.s(sigmas[k])
        slope = flow.velocity(x, times[k]) * width / height * aspect   # on paper
        angle = torch.atan2(-slope, torch.tensor(-1.0, dtype=f64)).numpy()
        ax.quiver(np.full(len(angle), float(times[k])), x.numpy(), np.cos(angle), np.sin(angle),
                  scale=9, width=0.006, headwidth=4, angles=np.rad2deg(angle), color='black',
                  zorder=3)


LEVELS = (0, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 20, 50)


@main.command()
@data_option
@click.option('--images', 'count', help='Number of images', metavar='INT',
              type=click.IntRange(min=1), default=3, show_default=True)
@seed_option
@dest_option('denoiser')
@one_line_errors
def denoiser(data: str, count: int, seed: int, dest: str) -> None:
    """Figure 1: images of a data set with noise, and the ideal denoiser's answers."""
    plt = pyplot()
    net = open_data(data)
    generator = generator_at(seed)
    y, noise = draw(net, count, generator)
    figure, axes = plt.subplots(2 * count, len(LEVELS),
                                figsize=(0.85 * len(LEVELS) + 0.6, 1.74 * count + 0.3),
                                squeeze=False, gridspec_kw={'hspace': 0.06, 'wspace': 0.06})
    figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=0.995, bottom=0.01,
                           top=1 - 0.3 / figure.get_figheight())
    for j, level in enumerate(LEVELS):
        sigma = torch.tensor(float(level), dtype=f64)
        x = y + sigma * noise
        axes[0, j].set_title(f'σ = {level:g}', fontsize=9)
        for i, pictures in enumerate(zip(x, net(x, sigma), strict=True)):
            for ax, picture in zip(axes[2 * i:2 * i + 2, j], pictures, strict=True):
                show_image(ax, picture)
    for i in range(count):
        axes[2 * i, 0].set_ylabel('y + n', fontsize=9)
        axes[2 * i + 1, 0].set_ylabel('D(x; σ)', fontsize=9)
    save(figure, dest)


def show_image(ax: 'Axes', image: Tensor) -> None:
    """Show one image [C, H, W] in [-1, 1] (clipped), with square pixels and without ticks."""
    pixels = ((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
    ax.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap='gray', vmin=0, vmax=1,
              interpolation='nearest')
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


RHOS = (1.0, 2.0, 3.0, 5.0, 7.0)


@main.command()
@data_option
@click.option('--steps', 'num_steps', help='Number of noise levels N of the sampler', metavar='INT',
              type=click.IntRange(min=2), default=64, show_default=True)
@click.option('--samples', help='Number of points x for each step; the paper has 200',
              metavar='INT', type=click.IntRange(min=1), default=8, show_default=True)
@click.option('--substeps', help='Number of Euler steps in the reference of one step',
              metavar='INT', type=click.IntRange(min=1), default=200, show_default=True)
@seed_option
@dest_option('truncation')
@one_line_errors
def truncation(data: str, num_steps: int, samples: int, substeps: int, seed: int,
               dest: str) -> None:
    """Appendix D.1: the error of a single step, over the noise range, for several ρ of Eq. 5.

    D is the ideal denoiser of the data. Where the noise is too weak to reach from one image to the
    next, the flow is straight and any step exact: the curves leave the picture.
    """
    plt = pyplot()
    net = open_data(data)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout='constrained')
    colours = plt.get_cmap('viridis')(np.linspace(0.9, 0, len(RHOS)))
    for rho, colour in zip(RHOS, colours, strict=True):
        sigmas = EDMSteps(rho=rho).sigmas(num_steps)
        generator = generator_at(seed)   # the same images and the same noise for every ρ
        y, noise = draw(net, samples, generator)
        errors = local_errors(net, y, noise, sigmas, substeps)
        for ax, rmse in zip(axes, errors, strict=True):
            ax.loglog(sigmas[:-1].numpy(), rmse.numpy(), color=colour, linewidth=1.4,
                      label=f'ρ = {rho:g}')
    for ax, title in zip(axes, ('Euler', 'Heun'), strict=True):
        ax.set(title=title, xlabel='σ at the start of the step', xlim=(0.2, 80), ylim=(1e-6, 1))
        ax.grid(color='0.9', linewidth=0.6)
    axes[0].set_ylabel('RMSE of one step')
    axes[0].legend(frameon=False, fontsize=9, loc='upper left')
    save(figure, dest)


@torch.no_grad()
def local_errors(net: Callable[..., Tensor], y: Tensor, noise: Tensor, sigmas: Tensor,
                 substeps: int) -> tuple[Tensor, Tensor]:
    """Return the RMSE of single steps of Euler and Heun between neighbours of `sigmas` [N].

    The steps start from x = y + σ_i n; the result is [N − 1] for each method. The reference takes
    `substeps` steps of Euler's method, uniform in t = σ, in place of one. All the steps are taken
    side by side, as rows of one batch.
    """
    count = len(sigmas) - 1
    ones = [1] * (y.ndim - 1)
    start, end = (level.repeat_interleave(len(y)).reshape(-1, *ones)
                  for level in (sigmas[:-1], sigmas[1:]))
    x = y.repeat(count, *ones) + start * noise.repeat(count, *ones)

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return (x - net(x, t.flatten())) / t

    exact, h = x, end - start
    for k in range(substeps):
        exact = exact + h / substeps * slope(exact, start + h * (k / substeps))
    d = slope(x, start)
    euler = x + h * d
    heun = x + h * (d + slope(euler, end)) / 2
    euler, heun = ((step - exact).square().reshape(count, -1).mean(dim=1).sqrt()
                   for step in (euler, heun))
    return euler, heun


def open_data(path: str) -> IdealDenoiser:
    """Return the ideal denoiser of a data set. Raises ValueError where the digits are missing."""
    if path == DIGITS and not os.path.exists(path):
        raise ValueError(f'{path} is missing: make it with python dataset_tool.py --source=digits '
                         f'--dest={path}, or name another set with --data')
    return ideal_denoiser(path)


def draw(net: IdealDenoiser, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` images of the set, and as much unit noise: [count, C, H, W] float64 each."""
    chosen = torch.randint(len(net.images), [count], generator=generator)
    y = net.images[chosen].to(f64)
    return y, torch.randn(y.shape, generator=generator, dtype=f64)


def save(figure: 'Figure', dest: str) -> None:
    """Write a figure as PNG."""
    with atomic_write(dest) as file:
        figure.savefig(file, format='png', dpi=120, metadata={'Software': None})
    click.echo(f'Wrote {dest}')


if __name__ == '__main__':
    main()
