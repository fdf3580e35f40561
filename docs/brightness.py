"""The brightness of images under a flawed and a corrected noise schedule.

    python -m docs.brightness

This is Figure 1 of Lin et al. 2023 ("Common Diffusion Noise Schedules and Sample Steps are
Flawed"), small: digits on grounds from nearly black to nearly white, two networks that differ in
their schedule alone, and the mean brightness of the images that they make. Everything is kept in
out/brightness: a run that was stopped goes on from there, and a complete one is used again.
"""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import scipy.stats
import torch

from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from dnnlib.markdown import table
from dnnlib.plots import pyplot
from limpid.levels import ScaledLinearBetas, timesteps
from options.common import DEVICE
from torch_utils import distributed
from torch_utils.grids import GREY, save_png, tile
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).resolve().parents[1]
BRIGHTNESS, CONTRAST = 0.7, 0.18   # no pixel leaves [−1, 1]
STEPS, COUNT = 25, 500              # of the sampler; images of each setting
ENOUGH = 0.9                        # share of the data's range of brightness

TRAINING = ('--precond=v --schedule=scaled-linear --cbase=16 --cres=1,2,2 --blocks=1 --attn=12 '
            '--batch=32 --duration=0.12 --lr=0.002 --lr-rampup=0.01 --ema=0.01 --ema-rampup=0.1 '
            '--dropout=0 --augment=0 --tick=4 --snap=10 --dump=2')
SNAPSHOT = 'network-snapshot-000120.pkl'


@dataclass(frozen=True)
class Setting:
    """A denoiser, 'trained' with this schedule or 'ideal', and the timesteps of the sampler."""
    denoiser: str
    zero_terminal_snr: bool
    spacing: str

    @property
    def schedule(self) -> str:
        return 'corrected' if self.zero_terminal_snr else 'flawed'

    @property
    def options(self) -> str:
        """The options of generate.py."""
        return (f'--sampler=ddim --steps={STEPS} --disc=scaled-linear '
                f'--zero-terminal-snr={int(self.zero_terminal_snr)} --spacing={self.spacing}')

    @property
    def signal(self) -> float:
        """√ᾱ_t of the timestep at which the sampler starts, from noise alone."""
        schedule = ScaledLinearBetas(zero_terminal_snr=self.zero_terminal_snr)
        return float(schedule.alpha_bar[timesteps(STEPS, schedule.T, self.spacing)[-1] - 1].sqrt())


FLAWED, CORRECTED = Setting('trained', False, 'leading'), Setting('trained', True, 'trailing')
SETTINGS = (FLAWED, Setting('trained', False, 'trailing'), Setting('trained', True, 'leading'),
            CORRECTED, Setting('ideal', False, 'leading'), Setting('ideal', True, 'trailing'))


def shifted(images: np.ndarray) -> np.ndarray:
    """Return m + CONTRAST (y − mean(y)) for images y, uint8 [N, C, H, W].

    The images get little contrast and the mean brightness m; the m are evenly spread over
    ±BRIGHTNESS, in random order.
    """
    places = np.random.default_rng(0).permutation(len(images)).reshape(-1, 1, 1, 1)
    m = BRIGHTNESS * ((2 * places + 1) / len(images) - 1)
    y = images / 127.5 - 1
    y = m + CONTRAST * (y - y.mean(axis=(1, 2, 3), keepdims=True))
    return np.rint((y + 1) * 127.5).astype(np.uint8)


def brightness(images: np.ndarray) -> np.ndarray:
    """Return the mean of each image, uint8 [N, C, H, W] -> [N] in [−1, 1]."""
    return images.mean(axis=(1, 2, 3)) / 127.5 - 1


QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Numbers:
    """Numbers of the mean brightness of images, beside that of the data.

    quantiles  the quantiles QUANTILES
    covered    the share of the range from the data's 1 % to 99 % quantile that lies between those
               of the images
    darker     the share of the images below the data's 10 % quantile, and
    brighter   above its 90 % quantile; the data have 0.1
    distance   Wasserstein-1, ∫ |F − F_data|
    """
    quantiles: tuple[float, ...]
    covered: float
    darker: float
    brighter: float
    distance: float

    @classmethod
    def of(cls, images: np.ndarray, data: np.ndarray) -> 'Numbers':
        """Compare brightnesses [N] with those of the data [M]."""
        quantiles = np.quantile(images, QUANTILES)
        low, dark, bright, high = np.quantile(data, (0.01, 0.1, 0.9, 0.99))
        covered = max(min(quantiles[-1], high) - max(quantiles[0], low), 0) / (high - low)
        return cls(tuple(quantiles.tolist()), float(covered), float((images < dark).mean()),
                   float((images > bright).mean()),
                   float(scipy.stats.wasserstein_distance(images, data)))


def complaint(flawed: Numbers, corrected: Numbers) -> str:
    """Return how the numbers contradict the paper; '' if they do not."""
    if corrected.covered < ENOUGH:
        return (f'the corrected model covers {corrected.covered:.1%} of the range of brightness, '
                f'less than {ENOUGH:.0%}')
    if flawed.covered >= ENOUGH:
        return (f'the flawed model covers {flawed.covered:.1%} of the range of brightness, '
                f'not less than {ENOUGH:.0%}')
    return ''


class Kept:
    """The folder of the experiment, and the commands that were run there, with their times."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / 'seconds.json'
        self.seconds: dict[str, float] = {}
        if self.path.exists():
            try:
                self.seconds = {str(line): float(number)
                                for line, number in json.loads(self.path.read_bytes()).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f'{self.path} is damaged: delete {folder} to start '
                                 f'anew') from error

    def command(self, line: str) -> None:
        """Show and run one of the project's commands, unless that was done before.

        The experiment ends if the command fails.
        """
        if line in self.seconds:
            return
        click.echo(f'\n$ python {line}')
        start = time.monotonic()
        program, *arguments = shlex.split(line)
        result = subprocess.run([sys.executable, os.fspath(ROOT / program), *arguments],
                                check=False)
        if result.returncode:
            sys.exit(result.returncode)
        self.seconds[line] = time.monotonic() - start
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.seconds, indent=1).encode())

    def data(self) -> np.ndarray:
        """Return the shifted digits, made if they are missing: uint8 [N, C, H, W]."""
        digits = self.folder / 'digits-24x24.zip'
        self.command(f'dataset_tool.py --source=digits --resolution=24x24 --color=rgb '
                     f'--dest={digits}')
        images = shifted(read(digits))
        there = self.folder / 'data'
        if len(list(there.glob('*.png'))) < len(images):
            for i, image in enumerate(images):
                save_png(image.transpose(1, 2, 0), there / f'{i:06d}.png', durable=False)
        return images

    def train(self, device: str) -> None:
        """Train a network with each of the two schedules."""
        for name, zero in (('flawed', 0), ('corrected', 1)):
            self.command(f'train.py --run={self.folder / name} --data={self.folder / "data"} '
                         f'{TRAINING} --zero-terminal-snr={zero} --device={device}')

    def images(self, setting: Setting, device: str) -> np.ndarray:
        """Generate the images of the seeds 0 to COUNT − 1: uint8 [N, C, H, W]."""
        dest = self.folder / f'{setting.denoiser}-{setting.schedule}-{setting.spacing}'
        network = (f'ideal:{self.folder / "data"}' if setting.denoiser == 'ideal'
                   else self.folder / setting.schedule / SNAPSHOT)
        self.command(f'generate.py --network={network} --outdir={dest} --seeds=0-{COUNT - 1} '
                     f'--batch=100 {setting.options} --device={device}')
        return read(dest)[:COUNT]


def machine_of(device: str) -> str:
    """Return a device in words, such as 2 CPU threads."""
    kind, threads = distributed.init(device).type, torch.get_num_threads()
    return f'{threads} CPU thread{"s" if threads > 1 else ""}' if kind == 'cpu' else kind.upper()


def read(path: Path) -> np.ndarray:
    """Read all images of a data set: uint8 [N, C, H, W]."""
    with ImageFolderDataset(os.fspath(path)) as dataset:
        return dataset.batch(np.arange(len(dataset)))[0]


SHOWN = 16
COLOURS = {'data': '0.8', 'flawed': '#b5302c', 'corrected': '#3b6ea5'}


def strip(images: np.ndarray) -> np.ndarray:
    """Return a row of images, sorted by brightness: uint8 [H + 2, SHOWN (W + 1) + 1, 3].

    They are taken at even steps from the 1 % to the 99 % quantile of brightness.
    """
    order = brightness(images).argsort(kind='stable')
    chosen = images[order[np.rint(np.linspace(0.01, 0.99, SHOWN) * (len(images) - 1)).astype(int)]]
    framed = np.pad(chosen, [(0, 0), (0, 0), (1, 1), (1, 0)], constant_values=GREY)
    return np.pad(tile(framed, SHOWN), [(0, 0), (0, 1), (0, 0)], constant_values=GREY)


def draw_picture(made: dict[str, np.ndarray], dest: str) -> None:
    """Draw a row of images for each entry of `made`, and the histograms of their brightness.

    `made` has the images, uint8 [N, C, H, W], of 'data', 'flawed' and 'corrected'.
    """
    plt = pyplot()
    figure, axes = plt.subplots(4, 1, figsize=(9, 5), gridspec_kw={'height_ratios': (1, 1, 1, 4)})
    figure.subplots_adjust(left=0.1, right=0.975, top=0.99, bottom=0.1, hspace=0.05)
    for ax, (name, images) in zip(axes, made.items(), strict=False):
        ax.imshow(strip(images), interpolation='nearest')
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha='right', va='center', labelpad=8)
        for spine in ax.spines.values():
            spine.set_visible(False)
    bins = np.linspace(-1, 1, 31)
    for name, images in made.items():
        kind = 'stepfilled' if name == 'data' else 'step'
        axes[-1].hist(brightness(images), bins, density=True, histtype=kind, color=COLOURS[name],
                      linewidth=1.8, label=name)
    axes[-1].set(xlabel='mean brightness of an image', ylabel='density', xlim=(-1, 1))
    axes[-1].legend(frameon=False, loc='upper right')
    with atomic_write(dest) as file:
        figure.savefig(file, format='png', dpi=120, metadata={'Software': None})


def cells(numbers: Numbers) -> list[str]:
    """Return the numbers as text, for a row of the table."""
    return [*(f'{q:.2f}' for q in numbers.quantiles), f'{numbers.covered:.1%}',
            f'{numbers.darker:.1%}', f'{numbers.brighter:.1%}', f'{numbers.distance:.3f}']


def number_table(data: Numbers, numbers: dict[Setting, Numbers]) -> str:
    """Return a table with a row for the data and for each setting."""
    named = {FLAWED: '**flawed**: ', CORRECTED: '**corrected**: '}
    rows = [['data', '', *cells(data)]]
    for setting, found in numbers.items():
        name = f'{setting.denoiser}, {setting.schedule} schedule, {setting.spacing}'
        rows.append([named.get(setting, '') + name, f'{setting.signal:.4f}', *cells(found)])
    quantiles = [f'{q * 100:g} %' for q in QUANTILES]
    return table(['', '√ᾱ at the start', *quantiles, 'range covered', 'darker', 'brighter', 'W₁'],
                 rows)


def report(data: Numbers, numbers: dict[Setting, Numbers], images: int, shape: tuple[int, ...],
           seconds: dict[str, float], machine: str, picture: str) -> str:
    """Return the text beside the picture: the method, and every number.

    The data are `images` images of `shape` [C, H, W].
    """
    minutes = sum(seconds.values()) / 60
    commands = '\n'.join(f'python {line}' for line in seconds)
    return f'''# Brightness, and the noise schedule

Written by `python -m docs.brightness`, whose commands took {minutes:.0f} minutes on {machine}
(torch {torch.__version__}) together. It ends with exit code 1 if the numbers do not bear out the
picture.

![Images sorted by brightness, and histograms]({picture})

{method(images, shape)}

{number_table(data, numbers)}

{explanation(shape)}

The commands:

```
{commands}
```
'''


def method(images: int, shape: tuple[int, ...]) -> str:
    """Return the paragraphs on what is compared."""
    left, size = ScaledLinearBetas().alpha_bar[-1].sqrt(), ' x '.join(map(str, shape))
    return f'''\
Stable Diffusion's schedule leaves √ᾱ_T = {left:.4f} of the image at its last timestep, so that a
network is trained to read the brightness there. Its samplers give the network noise alone, of which
the mean is next to zero, and take leading steps: they begin before the last timestep, where still
more of an image is expected. The result is of medium brightness (Lin et al. 2023, Figure 1). The
corrected schedule has zero terminal signal-to-noise ratio, and its steps are trailing: they begin
at σ = ∞, where the network was trained with noise alone.

* **Data**: {images:,} digits, {size}, of little contrast and of every brightness: the mean of the
  images is evenly spread over ±{BRIGHTNESS:g}.
* **Networks**: two of the same size, seed, images and duration. They predict v, and differ in
  `--zero-terminal-snr` alone.
* **Sampler**: DDIM, {STEPS} steps, {COUNT} images, the same seeds for all.
* **Ideal**: the perfect denoiser of the data (Eq. 57 of Karras et al. 2022) in place of a network:
  what is missing there is missing because of the schedule and the steps, not of the training.'''


def explanation(shape: tuple[int, ...]) -> str:
    """Return the paragraphs on what the numbers mean."""
    noise = 1 / math.sqrt(math.prod(shape))
    signal = BRIGHTNESS * FLAWED.signal / noise
    factor = 1 / math.sqrt(1 - FLAWED.signal**2)
    return f'''\
Quantiles are those of the mean brightness of an image in [−1, 1]. The range covered is the share of
the data's range, from the 1 % to the 99 % quantile, that lies between those of the images;
{ENOUGH:.0%} is asked of the corrected model and must be too much for the flawed one. Darker and
brighter are the shares of images beyond the data's 10 % and 90 % quantiles. W₁ is the Wasserstein
distance to the data's distribution.

The mean of the noise over the {math.prod(shape):,} values of an image has the standard deviation
{noise:.4f}; the brightness of the brightest image enters the start with {BRIGHTNESS:g} √ᾱ, which is
{signal:.1f} times as much under the flawed settings. The more values an image has, the larger is
that number: smaller images hide the flaw, and the latents of Stable Diffusion, of 16,384 values,
show it more. Its programs start from N(0, I) where this sampler starts from N(0, (1 − ᾱ) I), a
factor of {factor:.4f}, which nobody sees: both lack √ᾱ y.'''


@click.command()
@click.option('--run', 'folder', help='Folder in which everything is kept', metavar='DIR',
              default='out/brightness', show_default=True)
@click.option('--dest', help='Picture to write; the numbers go to a .md file of the same name',
              metavar='PNG', default=os.fspath(Path(__file__).with_suffix('.png')))
@DEVICE
@one_line_errors
def main(folder: str, dest: str, device: str) -> None:
    """Train with a flawed and a corrected noise schedule, and compare the images' brightness."""
    kept = Kept(Path(folder))
    data = kept.data()
    kept.train(device)
    made = {setting: kept.images(setting, device) for setting in SETTINGS}
    levels = brightness(data)
    draw_picture({'data': data, 'flawed': made[FLAWED], 'corrected': made[CORRECTED]}, dest)
    numbers = {setting: Numbers.of(brightness(images), levels) for setting, images in made.items()}
    text = report(Numbers.of(levels, levels), numbers, len(data), data.shape[1:], kept.seconds,
                  machine_of(device), os.path.basename(dest))
    with atomic_write(Path(dest).with_suffix('.md')) as file:
        file.write(text.encode())
    click.echo('\n' + '\n'.join(line for line in text.splitlines() if line.startswith('|')))
    click.echo(f'\nWrote {dest} and {Path(dest).with_suffix(".md")}')
    problem = complaint(numbers[FLAWED], numbers[CORRECTED])
    if problem:
        click.echo(f'Not as expected: {problem}', err=True)
        sys.exit(1)


if __name__ == '__main__':
    main()
