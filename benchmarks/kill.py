"""Kill training again and again, at random moments and amid its saves, and see whether anything is
lost.

    python -m benchmarks.kill --kills=200

A small run is made once undisturbed. Then the same command is started and killed with SIGKILL, and
started again, until it has been killed so often; the last start is left to finish. Reported are the
number of kills that hit a save, the most images that a kill cost, and whether the final weights,
averages, optimiser and statistics are bitwise those of the undisturbed run. Exit code 1 if not.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import tqdm

from torch_utils import checkpoint
from training.state import STATE, files_of, latest_state, load_state

ROOT = Path(__file__).resolve().parent.parent

BATCH, TICK = 16, 64


def command(out: Path, run: str, images: int) -> list[str]:
    return [sys.executable, str(ROOT / 'train.py'), f'--run={out / run}',
            f'--data={out / "digits.zip"}', '--cond=1', '--cbase=32', '--cres=1,2', '--blocks=1',
            '--attn=4', f'--batch={BATCH}', f'--duration={images / 1e6:.6f}',
            '--lr-rampup=0.001', '--dropout=0.1', '--augment=0.1', f'--tick={TICK / 1000}',
            '--snap=1000000', '--dump=1', '--keep=3', '--workers=0', '--device=cpu']


def images_reported(run_dir: Path) -> int:
    """The image counter of the last whole line of stats.jsonl."""
    stats = run_dir / 'stats.jsonl'
    for line in reversed(stats.read_text().splitlines() if stats.exists() else []):
        try:
            return round(json.loads(line)['Progress/kimg']['mean'] * 1000)
        except ValueError:
            continue
    return 0


def saving(run_dir: Path) -> bool:
    """Whether a training state is being written at this moment."""
    return any(path.name.startswith('.training-state')
               for path in run_dir.iterdir()) if run_dir.is_dir() else False


def comparable(run_dir: Path) -> tuple[str, list[object]]:
    """The checksum of everything in the last state but the time it took, and the losses of all
    ticks."""
    state = load_state(files_of(run_dir, STATE)[-1])
    state.pop('seconds')
    ticks = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    return checkpoint.checksum(state), [(tick['Progress/kimg'], tick.get('Loss/loss'))
                                        for tick in ticks]


@click.command()
@click.option('--kills', help='How often', type=click.IntRange(min=1), default=200,
              show_default=True)
@click.option('--seed', help='Of the random moments', type=int, default=0, show_default=True)
@click.option('--out', help='Folder for the runs', default='out/benchmarks/kill', show_default=True)
def main(kills: int, seed: int, out: str) -> None:
    """Kill a small training run so often, and compare its end with that of an undisturbed run."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / 'killed').exists():
        sys.exit(f'{folder}/killed exists: delete it first')
    images = TICK * 4 * kills   # so that there is always something left to kill
    subprocess.run([sys.executable, str(ROOT / 'dataset_tool.py'), '--source=digits',
                    f'--dest={folder / "digits.zip"}', '--resolution=8x8'], check=True)
    begin = time.monotonic()
    subprocess.run(command(folder, 'undisturbed', images), check=True, stdout=subprocess.DEVNULL)
    undisturbed = time.monotonic() - begin

    rng, run_dir = random.Random(seed), folder / 'killed'
    amid, worst, passed_over = 0, 0, []
    for kill in tqdm.trange(kills):
        before = images_reported(run_dir)
        process = subprocess.Popen(command(folder, 'killed', images), stdout=subprocess.DEVNULL)
        while images_reported(run_dir) <= before and process.poll() is None:   # some progress first
            time.sleep(0.002)
        until = time.monotonic() + rng.uniform(0, 0.5)
        # every second one amid a save
        while time.monotonic() < until or (kill % 2 == 1 and not saving(run_dir)):
            if process.poll() is not None or time.monotonic() > until + 10:
                break
            time.sleep(0.0005)
        reached, hit = images_reported(run_dir), saving(run_dir)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            sys.exit('the run came to its end before it was killed often enough')
        amid += hit
        found = latest_state(run_dir, passed_over.append)
        worst = max(worst, reached - (found[1]['nimg'] if found else 0))
    subprocess.run(command(folder, 'killed', images), check=True, stdout=subprocess.DEVNULL)
    same = comparable(run_dir) == comparable(folder / 'undisturbed')
    print(f'{kills} kills, {amid} of them amid a save; at most {worst} images lost (save interval '
          f'{TICK}, batch {BATCH}); {len(passed_over)} damaged files passed over')
    print(f'The end is {"bitwise that" if same else "NOT that"} of the undisturbed run '
          f'({undisturbed:.0f} s).')
    sys.exit(0 if same and worst <= TICK else 1)


if __name__ == '__main__':
    main()
