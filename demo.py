"""The main job in minutes: make a data set, train, generate, judge.

This runs the four commands on scikit-learn's handwritten digits, and prints each of them as you
would type it. Everything is written to out/demo; a run that is complete there is used again. With
--data=fashion it trains on Fashion-MNIST instead, where that is installed, in out/fashion.
"""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

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
GENERATED = 898   # the size of the half of the digits that they are compared with
KIMG = {'short': 64, 'long': 320}
FASHION = Path('/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz')


def command(line: str, capture: bool = False) -> str:
    """Show and run one of the project's commands. The demo ends if the command fails."""
    print(f'\n$ python {line}', flush=True)
    result = subprocess.run([sys.executable, *shlex.split(line)], check=False, text=True,
                            stdout=subprocess.PIPE if capture else None)
    if capture:
        print(result.stdout, end='', flush=True)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ''


def split_in_halves() -> None:
    """Write every second digit to half-a, and the others to half-b."""
    with zipfile.ZipFile(DATA) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.png'))
        for i, name in enumerate(names):
            path = OUT / ('half-a' if i % 2 == 0 else 'half-b') / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def recognised() -> float:
    """Return the share of generated digits that a classifier recognises as the class asked for.

    The classifier was fitted to the real digits.
    """
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
    """Draw the loss of stats.jsonl over the number of images, as out/demo/loss.png."""
    plt = pyplot()
    ticks = [json.loads(line) for line in (RUN / 'stats.jsonl').read_text().splitlines()]
    ticks = [tick for tick in ticks if 'Loss/loss' in tick]
    figure, axes = plt.subplots(figsize=(6, 3.5), layout='constrained')
    axes.plot([tick['Progress/kimg']['mean'] for tick in ticks],
              [tick['Loss/loss']['mean'] for tick in ticks])
    axes.set(xlabel='thousands of images', ylabel='weighted loss per element', yscale='log')
    axes.grid(True, which='both', alpha=0.3)
    figure.savefig(OUT / 'loss.png', dpi=120, metadata={'Software': None})


def train_model(kimg: int, device: str) -> Path:
    """Train on the digits, unless that was done before, and return the last snapshot."""
    snapshot = RUN / f'network-snapshot-{kimg:06d}.pkl'
    if not DATA.exists():
        command(f'dataset_tool.py --source=digits --dest={DATA}')
    if snapshot.exists():
        print(f'{snapshot} is there already; delete {OUT} to train again')
    else:
        command(f'train.py --outdir={RUN} --nosubdir --data={DATA} --cond=1 --cbase=32 --cres=1,2 '
                f'--blocks=1 --attn=8 --batch=64 --duration={kimg / 1000:g} --lr=0.002 '
                f'--lr-rampup=0.01 --ema=0.01 --dropout=0 --augment=0 --tick={kimg / 20:g} '
                f'--snap=10 --dump=20 --device={device}')
    return snapshot


def generate_digits(snapshot: Path, device: str) -> None:
    """Draw a grid of digits, and a folder of them to be judged."""
    classes = ','.join(str(label) for label in range(10) for _ in range(10))
    command(f'generate.py --network={snapshot} --outdir={OUT} --grid=10x10 --device={device} '
            f'--class={classes}')
    command(f'generate.py --network={snapshot} --outdir={OUT}/images --seeds=0-{GENERATED - 1} '
            f'--class=0-9 --batch=128 --device={device}')


def judge(device: str) -> tuple[str, str]:
    """Return the distances of the generated digits and of half the real ones to the other half."""
    split_in_halves()
    command(f'fid.py ref --data={OUT}/half-a --dest={OUT}/half-a.npz --detector=demo '
            f'--device={device}')
    options = f'--ref={OUT}/half-a.npz --num={GENERATED} --detector=demo --device={device}'
    made = command(f'fid.py calc --images={OUT}/images {options}', capture=True).split()[-1]
    real = command(f'fid.py calc --images={OUT}/half-b {options}', capture=True).split()[-1]
    return made, real


def fashion(kimg: int, device: str) -> None:
    """Train on the 60,000 images of Fashion-MNIST, in 32x32, and draw a grid."""
    if not FASHION.exists():
        raise click.ClickException(
            f'{FASHION} is missing: install Fashion-MNIST with apt install dataset-fashion-mnist '
            '(Debian, Ubuntu), or convert your copy: python dataset_tool.py '
            '--source=train-images-idx3-ubyte.gz --dest=datasets/fashion-32x32.zip')
    out = Path('out/fashion')
    data, run = out / 'fashion-32x32.zip', out / 'run'
    snapshot = run / f'network-snapshot-{kimg:06d}.pkl'
    if not data.exists():
        command(f'dataset_tool.py --source={FASHION} --dest={data}')
    if not snapshot.exists():
        command(f'train.py --outdir={run} --nosubdir --data={data} --cond=1 --cbase=32 '
                f'--cres=1,2,2 --blocks=1 --attn=8 --batch=64 --duration={kimg / 1000:g} '
                f'--lr=0.002 --lr-rampup=0.01 --ema=0.01 --dropout=0 --augment=0 '
                f'--tick={kimg / 20:g} --snap=10 --dump=20 --device={device}')
    classes = ','.join(str(label) for label in range(10) for _ in range(10))
    command(f'generate.py --network={snapshot} --outdir={out} --grid=10x10 --device={device} '
            f'--class={classes}')
    print(f'\n{out}/grid.png has what the model makes, a row for each kind of clothes; '
          f'{run}/reals.png has what it was shown.\n'
          'make fashion DEMO=long trains five times as long.')


@click.command()
@click.option('--data', 'subject', help='Images to train on', default='digits', show_default=True,
              type=click.Choice(['digits', 'fashion']))
@click.option('--length', help='Duration of training', type=click.Choice(list(KIMG)),
              default='short', show_default=True)
@click.option('--device', help='Device of the commands, as in train.py', metavar='NAME',
              default='auto', show_default=True)
def main(subject: str, length: str, device: str) -> None:
    """Train a small class-conditional EDM model on 1,797 handwritten digits, and judge it.

    With --data=fashion it is trained on the 60,000 images of Fashion-MNIST, and not judged.
    """
    if subject == 'fashion':
        fashion(KIMG[length], device)
        return
    start = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    snapshot = train_model(KIMG[length], device)
    generate_digits(snapshot, device)
    made, real = judge(device)
    plot_loss()
    print(f'''
Done in {time.monotonic() - start:.0f} seconds.
  {OUT}/grid.png          what the model makes: a row for each digit
  {RUN}/reals.png     what it was shown
  {OUT}/loss.png          the loss
  demo distance to one half of the digits (random features, NOT FID; lower is better):
    {made:>10s}  {GENERATED} generated images
    {real:>10s}  the {GENERATED} images of the other half
  a classifier fitted to the real digits recognises {recognised():.1%} of the generated ones as \
the class asked for

Try next:
  make demo DEMO=long                                        train five times as long
  python generate.py --network={snapshot} --outdir=out/more --grid=4x8 --class=8 --steps=4
  python generate.py --network={snapshot} --outdir=out/more --grid=4x8 --S_churn=20
  python train.py --help''')


if __name__ == '__main__':
    main()
