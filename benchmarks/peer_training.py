"""The same network, trained by limpid and by denoising-diffusion-pytorch, on as many images.

    pip install denoising-diffusion-pytorch          # with torchvision, accelerate, ema-pytorch
    python -m benchmarks.peer_training               # to docs/reproduction/peer.md

The peer's ElucidatedDiffusion and Trainer get limpid's backbone with the weights of limpid's
snapshot before training, so that both start from the same network. What is done stays done, in
--state: after a stop the same command goes on, limpid's runs from their last state and the peer's
from its last milestone, with a new order of the images.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before torch)

import importlib.metadata
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from benchmarks.evaluation import machine
from checkpoints.open import open_network
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from dnnlib.files import append_line, atomic_write
from dnnlib.markdown import table
from dnnlib.plots import pyplot
from limpid.denoiser import Denoiser
from reproduction import small
from reproduction.edm import BLUE, GREEN, ORANGE
from reproduction.experiment import OUT, Task
from reproduction.running import Machine, run
from torch_utils.grids import save_png, tile
from training.stats_file import number_in, read_statistics

PEER = 'denoising-diffusion-pytorch'
BATCH, LR, BETAS, HALF_LIFE = 32, 0.002, (0.9, 0.999), 2000   # of the average, in images
SIDE, STEPS, TICK = 16, 18, 4   # pixels; of the sampler; thousands of images
SEED, SHOWN = 0, (6, 6)
SIZE = '--arch=ddpmpp --cbase=16 --blocks=1 --cres=2,2 --attn=8 --dropout=0.13 --xflip=0'
# What differs between limpid's runs; the peer is compared with the first.
RUNS = {'limpid': '--augment=0', 'limpid, with augmentation': '--augment=0.12'}
FOLDERS = {'limpid': 'limpid', PEER: 'peer', 'limpid, with augmentation': 'limpid-augment'}
COLOURS = {'limpid': BLUE, PEER: ORANGE, 'limpid, with augmentation': GREEN}
NUM = small.NUM   # images of a number, and the reference, as in the small tables


class Backbone(nn.Module):
    """A backbone of limpid as ElucidatedDiffusion calls one: net(x, c_noise [B], None)."""
    random_or_learned_sinusoidal_cond, self_condition = True, False   # what that one asks for

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_noise: Tensor, _: None) -> Tensor:
        answer: Tensor = self.net(x, c_noise, None)
        return answer


def peer_library() -> Any:   # noqa: ANN401 (their package)
    """Return the peer's package; raises ValueError, in one line, where it is missing."""
    try:
        import denoising_diffusion_pytorch as theirs
    except ImportError as error:
        raise ValueError(f'{PEER} cannot be imported ({error}): pip install {PEER}') from None
    return theirs


def peer_trainer(first: str, images: str, results: Path,
                 kimg: int) -> Any:   # noqa: ANN401 (their Trainer)
    """Return the peer's trainer for the network of a snapshot, at its last milestone."""
    library, net = peer_library(), open_network(first)
    assert isinstance(net, Denoiser)
    diffusion = library.ElucidatedDiffusion(
        Backbone(net.model.train().requires_grad_(True)), image_size=SIDE, channels=1,
        num_sample_steps=STEPS, S_churn=0)
    diffusion.is_ddim_sampling = False   # its trainer asks every model; this one has no answer
    results.mkdir(parents=True, exist_ok=True)
    trainer = library.Trainer(
        diffusion, images, train_batch_size=BATCH, augment_horizontal_flip=False, train_lr=LR,
        train_num_steps=kimg * 1000 // BATCH, ema_update_every=1,
        ema_decay=0.5**(BATCH / HALF_LIFE), adam_betas=BETAS,
        save_and_sample_every=TICK * 1000 // BATCH, num_samples=1, results_folder=str(results),
        calculate_fid=False, max_grad_norm=float('inf'))
    saved = [int(path.stem.removeprefix('model-')) for path in results.glob('model-*.pt')]
    if saved:
        trainer.load(max(saved))
    return trainer


def train_peer(trainer: Any, losses: Path) -> None:   # noqa: ANN401
    """Train to the end, and append the mean loss of every TICK thousand images to a file."""
    since: list[float] = []
    start = time.monotonic()

    def note(_: nn.Module, __: object, loss: Tensor) -> None:
        since.append(float(loss.detach()))
        if (trainer.step + 1) % (TICK * 1000 // BATCH) == 0:
            append_line(losses, json.dumps({
                'kimg': (trainer.step + 1) * BATCH / 1000, 'loss': float(np.mean(since)),
                'seconds': time.monotonic() - start}))
            since.clear()

    trainer.model.register_forward_hook(note)
    trainer.train()


def draw_peer(trainer: Any, folder: Path) -> None:   # noqa: ANN401
    """Draw NUM images with the peer's own sampler and averaged network, as PNG files."""
    net = trainer.ema.ema_model.eval()
    torch.manual_seed(SEED)
    for start in range(0, NUM, 100):
        drawn = net.sample(batch_size=min(100, NUM - start))
        pixels = (drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for i, image in enumerate(pixels, start):
            save_png(image, folder / f'{i:06d}.png', durable=False)


def data_tasks(state: str) -> list[Task]:
    """Return the tasks that make images and reference, those of the small tables, and a folder."""
    tasks = [task.at(state) for task in small.data_tasks()]
    made = f'{state}/train'
    return [*tasks, Task(f'dataset_tool.py --source={tasks[0].makes} --dest={made}',
                         f'{made}/dataset.json', (tasks[0].makes,))]


def training_task(name: str, state: str, kimg: int) -> Task:
    """Return a run of limpid."""
    folder = f'{state}/{FOLDERS[name]}'
    return Task(
        f'train.py --run={folder} --data={state}/train --duration={kimg / 1000:g} --tick={TICK} '
        f'--snap={kimg} --pictures=0 --workers=0 {SIZE} --batch={BATCH} --lr={LR} '
        f'--lr-rampup=0.0008 --ema={HALF_LIFE / 1e6:g} {RUNS[name]} --seed={SEED}',
        f'{folder}/network-snapshot-{kimg:06d}.pkl', (f'{state}/train/dataset.json',))


def judging_task(state: str, images: str, made: str) -> Task:
    """Return the task that judges a folder or zip of images."""
    ref = small.STATISTICS.replace(OUT, state)
    return Task(f'fid.py calc --images={images} --ref={ref} --num={NUM} '
                f'--detector={small.DETECTOR} --json={made}', made, (images, ref))


def done_by_limpid(name: str, state: str, kimg: int) -> list[Task]:
    """Return the tasks of a run of limpid: train, draw, judge."""
    training = training_task(name, state, kimg)
    images = f'{state}/{FOLDERS[name]}/images'
    drawing = Task(f'generate.py --network={training.makes} --outdir={images} '
                   f'--seeds=0-{NUM - 1} --steps={STEPS}', f'{images}/{NUM - 1:06d}.png',
                   (training.makes,))
    return [training, drawing, judging_task(state, images, f'{state}/{FOLDERS[name]}.json')]


def compare(state: str, kimg: int) -> None:
    """Do all that is not done: train, draw and judge."""
    peer, machine_of_all = Path(state) / FOLDERS[PEER], Machine('cpu')
    peer_is_done = (peer / 'images' / f'{NUM - 1:06d}.png').exists()
    if not peer_is_done:
        peer_library()   # fail now, not after the training of limpid, if it is missing
    held_out = small.HELD_OUT.replace(OUT, state)
    needs = {need.path: need.source for need in small.NEEDS}
    first, other = RUNS
    missing = run([*data_tasks(state), judging_task(state, held_out, f'{state}/real.json'),
                   *done_by_limpid(first, state, kimg)], state, machine_of_all, needs)
    if missing:
        raise ValueError(missing[0])
    if not peer_is_done:
        torch.manual_seed(SEED)
        trainer = peer_trainer(f'{state}/{FOLDERS[first]}/network-snapshot-000000.pkl',
                               f'{state}/train', peer, kimg)
        train_peer(trainer, peer / 'losses.jsonl')
        draw_peer(trainer, peer / 'images')
    run([judging_task(state, str(peer / 'images'), f'{state}/{FOLDERS[PEER]}.json'),
         *done_by_limpid(other, state, kimg)], state, machine_of_all, needs)


def losses_of(name: str, state: str) -> list[tuple[float, float]]:
    """Return the points (thousands of images, mean loss since the last) of a training."""
    folder = Path(state) / FOLDERS[name]
    if name == PEER:
        lines = [json.loads(line) for line in (folder / 'losses.jsonl').read_text().splitlines()]
        return sorted({line['kimg']: line['loss'] for line in lines}.items())
    return [(number_in(line, 'Progress/kimg') or 0.0, loss)
            for line in read_statistics(folder / 'stats.jsonl')
            if (loss := number_in(line, 'Loss/loss')) is not None]


def distance_of(state: str, name: str) -> float | None:
    """Return a distance that was measured; None where there is none yet."""
    path = Path(state) / f'{FOLDERS.get(name, name)}.json'
    if not path.exists():
        return None
    return float(json.loads(path.read_text())['scores'][small.METRIC])


def draw(losses: Mapping[str, Sequence[tuple[float, float]]], state: str, path: str) -> None:
    """Draw images of each, and the losses."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(losses) + 1, figsize=(3.1 * len(losses) + 4.2, 3.4),
                                width_ratios=[1] * len(losses) + [1.35], layout='constrained')
    for ax, name in zip(axes, losses, strict=False):
        files = [Path(state) / FOLDERS[name] / 'images' / f'{i:06d}.png'
                 for i in range(SHOWN[0] * SHOWN[1])]
        images = np.stack([np.asarray(PIL.Image.open(file))[None] for file in files])
        ax.imshow(tile(images, SHOWN[1])[:, :, 0], cmap='gray', vmin=0, vmax=255)
        ax.set(title=name, xticks=[], yticks=[])
    for name, points in losses.items():
        axes[-1].plot(*zip(*points, strict=True), color=COLOURS[name], label=name)
    axes[-1].set(xlabel='thousands of images', ylabel='weighted loss per value', yscale='log')
    axes[-1].grid(which='both', linewidth=0.3)
    axes[-1].legend(fontsize=8, frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=110, metadata={'Software': None})
    plt.close(figure)


def page(losses: Mapping[str, Sequence[tuple[float, float]]], state: str, kimg: int,
         command: str, version: str) -> str:
    """Return docs/reproduction/peer.md; `version` is that of the peer."""
    rows = []
    for name in ('real', *losses):
        distance, points = distance_of(state, name), losses.get(name, [])
        last = [loss for _, loss in points[-4:]]
        rows.append([f'{NUM} real images that no network saw' if name == 'real' else name,
                     '–' if distance is None else f'{distance:.2f}',
                     f'{np.mean(last):.4f}' if last else '–'])
    head = ['images of', small.METRIC, f'loss of the last {4 * TICK},000 images']
    commands = [task.command for name in RUNS for task in done_by_limpid(name, 'STATE', kimg)]
    return PAGE.format(
        command=command, where=machine(torch.device('cpu')), peer=PEER,
        version=version, table=table(head, rows), kimg=kimg, num=NUM,
        reference=small.REFERENCE, batch=BATCH, lr=LR, half_life=HALF_LIFE, steps=STEPS,
        nfe=2 * STEPS - 1, beta=0.5**(BATCH / HALF_LIFE), betas=' and '.join(map(str, BETAS)),
        commands='\n'.join(f'python {line}' for line in commands))


PAGE = '''# The same network trained by a peer

Written by `{command}` on {where}.

![Images and losses](peer.png)

The small network of [small-table2](small-table2.md) (configuration E, DDPM++, but without classes),
on Fashion-MNIST at 16x16, trained on {kimg},000 images by limpid, and by {peer}
{version} (`ElucidatedDiffusion` and `Trainer`), which follows the same paper.

{table}

The distance is that of {num} generated images to the first {reference:,} training images. It is not
FID; {num} images make it too large. There is one seed of each, and in small-table2 the distances of
seeds of one configuration differ by 1 to 12 % (standard deviation).

Equal: the backbone and its first weights (limpid's snapshot before training); images, batch
({batch}), Adam with a learning rate of {lr} and betas {betas}, no clipping, dropout, EDM's
preconditioning, noise levels and weighting; an average of the weights with a half-life of
{half_life:,} images (the peer's `ema_decay={beta:.5f}`); the deterministic sampler of {steps}
steps, {nfe} evaluations.

Not equal:

* limpid raises the learning rate over the first 800 images (`--lr-rampup`), which the peer's
  trainer cannot do.
* The averages start differently: limpid's half-life is 5 % of the images so far at most
  (`--ema-rampup`), the peer copies the weights for 100 steps and then has a ramp-up of its own.
* Each program has its own noise, order of images and dropout masks, and draws its images from its
  own noise. A run of the peer that was stopped goes on with a new order.
* The peer's sampler clamps every denoised image to [-1, 1], limpid's does not.
* "With augmentation" is the whole recipe, configuration F. The peer has no such augmentation.

limpid's commands, where STATE is the folder of the results:

```
{commands}
```
'''


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@heading('Work')('--kimg', type=Whole(TICK, 1_000_000), metavar='INT', default=48,
                 show_default=True, help='Thousands of images that each network is trained on.')
@heading('Output')('--state', metavar='DIR', default='out/peer-training', show_default=True,
                   help='Folder of everything that is made, from which a run continues.')
@heading('Output')('--dest', metavar='DIR', default='docs/reproduction', show_default=True,
                   help='Folder of peer.md and peer.png.')
@heading('Output')('--page-only', is_flag=True,
                   help='Only write the page, of what is done in --state.')
@one_line_errors
def main(kimg: int, state: str, dest: str, page_only: bool) -> None:
    """Train the same network with limpid and with denoising-diffusion-pytorch."""
    pyplot()   # fail now, not after the measurements, if pictures cannot be drawn
    if kimg % TICK:
        raise ValueError(f'--kimg={kimg} is not a multiple of {TICK}')
    if not page_only:
        compare(state, kimg)
    losses = {name: losses_of(name, state) for name in FOLDERS
              if distance_of(state, name) is not None}
    os.makedirs(dest, exist_ok=True)
    draw(losses, state, os.path.join(dest, 'peer.png'))
    options = '' if kimg == 48 else f' --kimg={kimg}'
    text = page(losses, state, kimg, f'python -m benchmarks.peer_training{options}',
                importlib.metadata.version(PEER))
    with atomic_write(os.path.join(dest, 'peer.md')) as file:
        file.write(text.encode())


if __name__ == '__main__':
    main()
