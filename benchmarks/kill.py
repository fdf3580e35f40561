"""Kill training again and again, and see whether anything is lost.

    python -m benchmarks.kill --kills=200

A small run is made once undisturbed. Then the same command is started, killed with SIGKILL at a
random moment or amid a save, and started again, until it has been killed --kills times; the last
start is left to finish. The report gives the number of kills that hit a save, the most images that
a kill cost, and whether the final weights, averages, optimizer and statistics are bitwise those of
the undisturbed run. The exit code is 1 if they are not.
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
from training.run_folder import STATE, files_of
from training.state import latest_state, load_state

ROOT = Path(__file__).resolve().parent.parent

BATCH, TICK = 16, 64


def command(out: Path, run: str, images: int) -> list[str]:
    """Return the command that trains the run `run` in the folder `out` on so many images."""
    return [sys.executable, str(ROOT / 'train.py'), f'--run={out / run}',
            f'--data={out / "digits.zip"}', '--cond=1', '--cbase=32', '--cres=1,2', '--blocks=1',
            '--attn=4', f'--batch={BATCH}', f'--duration={images / 1e6:.6f}',
            '--lr-rampup=0.001', '--dropout=0.1', '--augment=0.1', f'--tick={TICK / 1000}',
            '--snap=1000000', '--dump=1', '--keep=3', '--workers=0', '--device=cpu']


def images_reported(run_dir: Path) -> int:
    """Return the image counter in the last whole line of stats.jsonl."""
    stats = run_dir / 'stats.jsonl'
    for line in reversed(stats.read_text().splitlines() if stats.exists() else []):
        try:
            return round(json.loads(line)['Progress/kimg']['mean'] * 1000)
        except ValueError:
            continue
    return 0


def saving(run_dir: Path) -> bool:
    """Whether a training state is being written at this moment."""
    return run_dir.is_dir() and any(path.name.startswith('.training-state')
                                    for path in run_dir.iterdir())


def comparable(run_dir: Path) -> tuple[str, list[tuple[object, object]]]:
    """Return the checksum of the last state, without its time, and the losses of all ticks."""
    state = load_state(files_of(run_dir, STATE)[-1])
    state.pop('seconds')
    ticks = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    losses = [(tick['Progress/kimg'], tick.get('Loss/loss')) for tick in ticks]
    return checkpoint.checksum(state), losses


def kill_once(killed: list[str], run_dir: Path, moment: float,
              amid_save: bool) -> tuple[int, bool]:
    """Start the command `killed`, and kill it `moment` seconds after it made some progress.

    With `amid_save`, the kill waits for a save, 10 seconds at most. Returns the images that the run
    had reported, and whether the kill hit a save. Exits if the run was complete before.
    """
    before = images_reported(run_dir)
    process = subprocess.Popen(killed, stdout=subprocess.DEVNULL)
    while images_reported(run_dir) <= before and process.poll() is None:
        time.sleep(0.002)
    until = time.monotonic() + moment
    while time.monotonic() < until or (amid_save and not saving(run_dir)):
        if process.poll() is not None or time.monotonic() > until + 10:
            break
        time.sleep(0.0005)
    reached, hit = images_reported(run_dir), saving(run_dir)
    process.send_signal(signal.SIGKILL)
    if process.wait() == 0:
        sys.exit('the run came to its end before it was killed often enough')
    return reached, hit


@click.command()
@click.option('--kills', help='Number of kills', type=click.IntRange(min=1), default=200,
              show_default=True)
@click.option('--seed', help='Seed of the random moments', type=int, default=0, show_default=True)
@click.option('--out', help='Folder for the runs', default='out/benchmarks/kill', show_default=True)
def main(kills: int, seed: int, out: str) -> None:
    """Kill a small training run --kills times, and compare its end with an undisturbed run's."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = folder / 'killed'
    if run_dir.exists():
        sys.exit(f'{folder}/killed exists: delete it first')
    images = TICK * 4 * kills   # so that there is always something left to kill
    subprocess.run([sys.executable, str(ROOT / 'dataset_tool.py'), '--source=digits',
                    f'--dest={folder / "digits.zip"}', '--resolution=8x8'], check=True)
    begin = time.monotonic()
    subprocess.run(command(folder, 'undisturbed', images), check=True, stdout=subprocess.DEVNULL)
    undisturbed = time.monotonic() - begin

    rng, killed = random.Random(seed), command(folder, 'killed', images)
    amid, worst = 0, 0
    passed_over: list[str] = []
    for kill in tqdm.trange(kills):
        reached, hit = kill_once(killed, run_dir, rng.uniform(0, 0.5), amid_save=kill % 2 == 1)
        amid += hit
        found = latest_state(run_dir, passed_over.append)
        worst = max(worst, reached - (found[1]['nimg'] if found else 0))
    subprocess.run(killed, check=True, stdout=subprocess.DEVNULL)
    same = comparable(run_dir) == comparable(folder / 'undisturbed')
    print(f'{kills} kills, {amid} of them amid a save; at most {worst} images lost (save interval '
          f'{TICK}, batch {BATCH}); {len(passed_over)} damaged files passed over')
    print(f'The end is {"bitwise that" if same else "NOT that"} of the undisturbed run '
          f'({undisturbed:.0f} s).')
    sys.exit(0 if same and worst <= TICK else 1)


if __name__ == '__main__':
    main()
