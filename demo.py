"""The main job in minutes: make a data set, train, generate, judge.

Runs the four commands on scikit-learn's handwritten digits and prints each as you would type it.
Everything is written to out/demo; a run that is complete there is used again.
"""

import json
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import click
import numpy as np
import PIL.Image

from dnnlib.plots import pyplot

OUT = Path('out/demo')
DATA = OUT / 'digits-16x16.zip'
RUN = OUT / 'run'
GENERATED = 898   # as many as the half of the digits that they are compared with
KIMG = {'short': 64, 'long': 320}


def command(line: str, capture: bool = False) -> str:
    """Show and run one of the project's commands; the demo ends where it fails."""
    print(f'\n$ python {line}', flush=True)
    result = subprocess.run([sys.executable, *shlex.split(line)], check=False, text=True,
                            stdout=subprocess.PIPE if capture else None)
    if capture:
        print(result.stdout, end='', flush=True)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ''


def split_in_halves() -> None:
    """Every second digit to half-a, the others to half-b."""
    with zipfile.ZipFile(DATA) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.png'))
        for i, name in enumerate(names):
            path = OUT / ('half-a' if i % 2 == 0 else 'half-b') / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def recognised() -> float:
    """The share of the generated digits that a classifier of the real ones takes for the class
    asked for."""
    import sklearn.svm

    with zipfile.ZipFile(DATA) as archive:
        labels = dict(json.loads(archive.read('dataset.json'))['labels'])
        names = sorted(labels)
        real = np.stack([np.asarray(PIL.Image.open(archive.open(name))).ravel()
                         for name in names]) / 255
    classifier = sklearn.svm.SVC(gamma='scale').fit(real, [labels[name] for name in names])
    paths = [OUT / 'images' / f'{seed:06d}.png' for seed in range(GENERATED)]
    images = np.stack([np.asarray(PIL.Image.open(path)).ravel() for path in paths]) / 255
    return float((classifier.predict(images) == np.arange(GENERATED) % 10).mean())


def plot_loss() -> None:
    """The loss of stats.jsonl over the images shown, as out/demo/loss.png."""
    plt = pyplot()
    ticks = [json.loads(line) for line in (RUN / 'stats.jsonl').read_text().splitlines()]
    ticks = [tick for tick in ticks if 'Loss/loss' in tick]
    figure, axes = plt.subplots(figsize=(6, 3.5), layout='constrained')
    axes.plot([tick['Progress/kimg']['mean'] for tick in ticks],
              [tick['Loss/loss']['mean'] for tick in ticks])
    axes.set(xlabel='thousands of images', ylabel='weighted loss per element', yscale='log')
    axes.grid(True, which='both', alpha=0.3)
    figure.savefig(OUT / 'loss.png', dpi=120, metadata={'Software': None})


@click.command()
@click.option('--length', help='How long to train', type=click.Choice(list(KIMG)), default='short',
              show_default=True)
@click.option('--device', help='As in train.py', metavar='NAME', default='auto', show_default=True)
def main(length: str, device: str) -> None:
    """Train a small class-conditional EDM model on 1,797 handwritten digits and look at what it
    makes."""
    start = time.monotonic()
    kimg = KIMG[length]
    snapshot = RUN / f'network-snapshot-{kimg:06d}.pkl'
    OUT.mkdir(parents=True, exist_ok=True)
    if not DATA.exists():
        command(f'dataset_tool.py --source=digits --dest={DATA}')
    if snapshot.exists():
        print(f'{snapshot} is there already; delete {OUT} to train again')
    else:
        command(f'train.py --outdir={RUN} --nosubdir --data={DATA} --cond=1 --cbase=32 --cres=1,2 '
                f'--blocks=1 --attn=8 --batch=64 --duration={kimg / 1000:g} --lr=0.002 '
                f'--lr-rampup=0.01 --ema=0.01 --dropout=0 --augment=0 --tick={kimg / 20:g} '
                f'--snap=10 --dump=20 --device={device}')
    command(f"generate.py --network={snapshot} --outdir={OUT} --grid=10x10 --device={device} "
            f"--class={','.join(str(label) for label in range(10) for _ in range(10))}")
    command(f'generate.py --network={snapshot} --outdir={OUT}/images --seeds=0-{GENERATED - 1} '
            f'--class=0-9 --batch=128 --device={device}')
    split_in_halves()
    command(f'fid.py ref --data={OUT}/half-a --dest={OUT}/half-a.npz --detector=demo '
            f'--device={device}')
    judge = f'--ref={OUT}/half-a.npz --num={GENERATED} --detector=demo --device={device}'
    made = command(f'fid.py calc --images={OUT}/images {judge}', capture=True).split()[-1]
    real = command(f'fid.py calc --images={OUT}/half-b {judge}', capture=True).split()[-1]
    plot_loss()
    print(f'''
Done in {time.monotonic() - start:.0f} seconds.
  {OUT}/grid.png          what the model makes: a row for each digit
  {RUN}/reals.png     what it was shown
  {OUT}/loss.png          the loss
  demo distance to one half of the digits (random features, NOT FID; lower is better):
    {made:>10s}  {GENERATED} generated images
    {real:>10s}  the {GENERATED} images of the other half
  a classifier fitted to the real digits recognises {recognised():.1%} of the generated ones as the class asked for

Try next:
  make demo DEMO=long                                        train five times as long
  python generate.py --network={snapshot} --outdir=out/more --grid=4x8 --class=8 --steps=4
  python generate.py --network={snapshot} --outdir=out/more --grid=4x8 --S_churn=20
  python train.py --help''')


if __name__ == '__main__':
    main()
