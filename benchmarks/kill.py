"""Kill a command again and again, and see whether anything is lost.

    python -m benchmarks.kill --kills=200
    python -m benchmarks.kill --ranks=2 --kills=20
    python -m benchmarks.kill --what=generate --kills=20

The command is run once undisturbed. Then it is started, killed with SIGKILL at a random moment, and
started again, until it has been killed --kills times; the last start is left to finish. The exit
code is 1 if anything differs at the end, or if temporary files are left.

    train      every second kill comes amid a save; the report gives the most images that a kill
               cost, and whether the final weights, averages, optimizer and statistics are bitwise
               those of the undisturbed run. With --ranks=2, two processes train under torchrun,
               and a kill takes one of them, or both and torchrun
    dataset    dataset_tool.py: after each kill the zip is absent, or bitwise the undisturbed one
    generate   generate.py: each image that is there is bitwise that of the undisturbed command
    fid        fid.py gen --state: the numbers are absent, or those of the undisturbed command
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import tqdm

from dnnlib.files import SETTLED
from torch_utils import checkpoint
from training.run_folder import STATE, files_of
from training.state import latest_state, load_state

ROOT = Path(__file__).resolve().parent.parent

BATCH, TICK = 16, 64


def script(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a script of this project."""
    return [sys.executable, str(ROOT / name), *arguments]


def training(out: Path, run: str, images: int, ranks: int) -> list[str]:
    """Return the command that trains the run `run` in the folder `out` on so many images."""
    launched = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                f'--nproc_per_node={ranks}', str(ROOT / 'train.py')]
    return [
        *(launched if ranks > 1 else script('train.py')), f'--run-dir={out / run}',
        f'--data={out / "digits.zip"}', '--cond=1', '--cbase=32', '--cres=1,2', '--blocks=1',
        '--attn=4', f'--batch={BATCH}', f'--duration={images / 1e6:.6f}', '--lr-rampup=0.001',
        '--dropout=0.1', '--augment=0.1', f'--tick={TICK / 1000}', '--snap=1000000', '--dump=1',
        '--keep=3', '--workers=0', '--device=cpu']


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


def start(command: list[str]) -> 'subprocess.Popen[bytes]':
    """Start a command that prints nothing."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def strike(process: 'subprocess.Popen[bytes]', victim: int | None) -> None:
    """Kill a command with all its processes, or process number `victim` of those it launched.

    Raises subprocess.TimeoutExpired where the others do not end by themselves.
    """
    with contextlib.suppress(psutil.NoSuchProcess):   # it has come to its end
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        for one in processes if victim is None else processes[1:][victim:victim + 1]:
            one.kill()
    process.wait(timeout=120)


def kill_once(killed: list[str], run_dir: Path, moment: float, amid_save: bool,
              victim: int | None) -> tuple[int, bool]:
    """Start the command `killed`, and strike `moment` seconds after it made some progress.

    With `amid_save`, the kill waits for a save, 10 seconds at most. Returns the images that the run
    had reported, and whether the kill hit a save. Exits if the run was complete before.
    """
    before = images_reported(run_dir)
    process = start(killed)
    while images_reported(run_dir) <= before and process.poll() is None:
        time.sleep(0.002)
    until = time.monotonic() + moment
    while time.monotonic() < until or (amid_save and not saving(run_dir)):
        if process.poll() is not None or time.monotonic() > until + 10:
            break
        time.sleep(0.0005)
    reached, hit = images_reported(run_dir), saving(run_dir)
    strike(process, victim)
    if process.returncode == 0:
        sys.exit('the run came to its end before it was killed often enough')
    return reached, hit


def train(folder: Path, kills: int, seed: int, ranks: int) -> bool:
    """Kill training; return whether its end is that of an undisturbed run."""
    run_dir, images = folder / 'killed', TICK * 4 * kills   # there is always something left to kill
    begin = time.monotonic()
    subprocess.run(training(folder, 'undisturbed', images, ranks), check=True,
                   stdout=subprocess.DEVNULL)
    undisturbed = time.monotonic() - begin
    rng, killed = random.Random(seed), training(folder, 'killed', images, ranks)
    amid, worst, alone = 0, 0, 0
    passed_over: list[str] = []
    for i in tqdm.trange(kills):
        victim = [None, *range(ranks)][i % (ranks + 1)] if ranks > 1 else None
        reached, hit = kill_once(killed, run_dir, rng.uniform(0, 0.5), i % 2 == 1, victim)
        amid, alone = amid + hit, alone + (victim is not None)
        found = latest_state(run_dir, passed_over.append)
        worst = max(worst, reached - (found[1]['nimg'] if found else 0))
    time.sleep(SETTLED + 1)
    subprocess.run(killed, check=True, stdout=subprocess.DEVNULL)
    same = comparable(run_dir) == comparable(folder / 'undisturbed')
    left, of_one = leftovers(run_dir), f', {alone} of one of {ranks} processes' if alone else ''
    print(f'{kills} kills, {amid} of them amid a save{of_one}; at most {worst} images lost (save '
          f'interval {TICK}, batch {BATCH}); {len(passed_over)} damaged files passed over, '
          f'{len(left)} temporary files left')
    print(f'The end is {"bitwise that" if same else "NOT that"} of the undisturbed run '
          f'({undisturbed:.0f} s).')
    return same and worst <= TICK and not left


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in a folder and below it."""
    return [path for path in folder.rglob('.*') if path.name != '.lock']


@dataclass(frozen=True)
class Work:
    """A command that writes what it has to write to a place, such as out/killed/result.

    whole   whether what is at the place of a killed command, the first argument, is part of what
            the undisturbed one, the second, has written
    """
    command: Callable[[Path, Path], list[str]]   # of the folder of the data, and the place
    result: str                                  # the last part of the place
    whole: Callable[[Path, Path], bool]


def same_files(place: Path, right: Path) -> bool:
    """Return whether each file that is there is bitwise the right one, but for temporary files."""
    if not place.is_dir():
        return not place.exists() or place.read_bytes() == right.read_bytes()
    return all(path.read_bytes() == (right / path.name).read_bytes() for path in place.iterdir()
               if not path.name.startswith('.'))


def same_numbers(place: Path, right: Path) -> bool:
    """Return whether the numbers of fid.py, if there are any, are the right ones."""
    read = [json.loads(path.read_text()) for path in (place, right) if path.exists()]
    return len(read) < 2 or read[0] == read[1]


WORKS = {
    'dataset': Work(lambda data, place: script(
        'dataset_tool.py', f'--source={data / "images"}', f'--dest={place}', '--resolution=128x128',
        '--transform=center-crop', '--overwrite'), 'data.zip', same_files),
    'generate': Work(lambda data, place: script(
        'generate.py', f'--network=ideal:{data / "digits.zip"}', f'--outdir={place}',
        '--seeds=0-255', '--batch=4', '--device=cpu'), 'images', same_files),
    'fid': Work(lambda data, place: script(
        'fid.py', 'gen', f'--network=ideal:{data / "digits.zip"}', f'--ref={data / "ref.npz"}',
        '--detector=demo', '--num=2048', f'--json={place}', f'--state={place.parent / "state"}',
        '--device=cpu'), 'fid.json', same_numbers),
}


def prepare(folder: Path, what: str) -> None:
    """Make the data that a command reads."""
    digits = folder / 'digits.zip'
    subprocess.run(script('dataset_tool.py', '--source=digits', f'--dest={digits}',
                          '--resolution=8x8'), check=True)
    if what == 'dataset':   # large images, so that the work takes longer than the start
        subprocess.run(script('dataset_tool.py', f'--source={digits}', '--resolution=256x256',
                              f'--dest={folder / "images"}'), check=True)
    if what == 'fid':
        subprocess.run(script('fid.py', 'ref', f'--data={digits}', f'--dest={folder / "ref.npz"}',
                              '--detector=demo', '--device=cpu'), check=True)


def restarted(work: Work, folder: Path, kills: int, seed: int) -> bool:
    """Kill a command that starts again; return whether nothing was ever half-written.

    A kill comes at a random moment of the time that the undisturbed command took.
    """
    right, place = folder / 'undisturbed' / work.result, folder / 'killed' / work.result
    begin = time.monotonic()
    subprocess.run(work.command(folder, right), check=True, stdout=subprocess.DEVNULL)
    undisturbed = time.monotonic() - begin
    rng, killed = random.Random(seed), work.command(folder, place)
    hits, broken, amid = 0, 0, 0
    for _ in tqdm.trange(kills):
        process = start(killed)
        try:
            process.wait(rng.uniform(0.2, 1) * undisturbed)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            hits += process.wait() != 0
        amid += place.parent.exists() and bool(leftovers(place.parent))
        broken += not work.whole(place, right)
    time.sleep(SETTLED + 1)
    subprocess.run(killed, check=True, stdout=subprocess.DEVNULL)
    names = [sorted(os.listdir(path)) if path.is_dir() else [] for path in (place, right)]
    same, left = names[0] == names[1] and work.whole(place, right), leftovers(place.parent)
    print(f'{hits} kills of {kills} starts, after {amid} of which there was a temporary file; '
          f'{broken} times something was half-written, {len(left)} temporary files are left')
    print(f'The end is {"that" if same else "NOT that"} of the undisturbed command '
          f'({undisturbed:.0f} s).')
    return same and not broken and not left


@click.command()
@click.option('--what', help='What to kill', type=click.Choice(['train', *WORKS]),
              default='train', show_default=True)
@click.option('--kills', help='Number of kills', type=click.IntRange(min=1), default=200,
              show_default=True)
@click.option('--ranks', help='Processes that train', type=click.IntRange(min=1), default=1,
              show_default=True)
@click.option('--seed', help='Seed of the random moments', type=int, default=0, show_default=True)
@click.option('--out', help='Folder for the files, which each command has below it',
              default='out/benchmarks/kill', show_default=True)
def main(what: str, kills: int, ranks: int, seed: int, out: str) -> None:
    """Kill a small command --kills times, and compare its end with an undisturbed one's."""
    folder = Path(out) / (what if ranks == 1 else f'{what}-{ranks}')
    if what != 'train' and ranks > 1:
        sys.exit(f'--ranks={ranks} is for --what=train')
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / 'killed').exists():
        sys.exit(f'{folder}/killed exists: delete it first')
    prepare(folder, what)
    if what in WORKS:
        good = restarted(WORKS[what], folder, kills, seed)
    else:
        good = train(folder, kills, seed, ranks)
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
