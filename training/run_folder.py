"""The folder of a run: the names of its files, which of them are kept, and which is the best.

network-snapshot-<kimg>.pkl   the averaged networks
training-state-<kimg>.pt      everything, to continue with
stats.jsonl                   a line of statistics for each tick
network-best.pkl, best.json   a link to the best snapshot that was judged, and why it is the best
training_options.json         the settings that make the run what it is
run_card.jsonl                options, versions, hardware and data of each start
tensorboard, wandb, wandb-id  what training.loggers keep
old-00000                     the files of a run that another one took the place of
"""

import contextlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from dnnlib.files import atomic_write, read_bounded, remove_leftovers
from training.stats_file import forget_statistics, nimg_of, number_in, read_statistics

SNAPSHOT, STATE = 'network snapshot', 'training state'
BEST = 'network-best.pkl'
OF_A_RUN = (r'network-(snapshot-\d+|best)\.pkl|training-state-\d+\.pt|fakes\d+\.png|reals\.png|'
            r'stats(\.old)?\.jsonl|best\.json|(training_options|transfer)\.json|'
            r'(changes|run_card)\.jsonl|\.evaluation-[0-9a-f]+|tensorboard|wandb|wandb-id')

ADDED_TO = {'log.txt', 'stats.jsonl', 'stats.old.jsonl', 'changes.jsonl', 'run_card.jsonl',
            'best.json', 'training_options.json', 'transfer.json', 'tensorboard', 'wandb',
            'wandb-id'}


def file_of(run_dir: Path, kind: str, nimg: int) -> Path:
    """Return the path of the snapshot or state of an image counter."""
    if kind == SNAPSHOT:
        return run_dir / f'network-snapshot-{nimg // 1000:06d}.pkl'
    return run_dir / f'training-state-{nimg // 1000:06d}.pt'


def files_of(run_dir: Path, kind: str) -> list[Path]:
    """Return the snapshots or states of a run, the oldest first."""
    pattern = r'network-snapshot-(\d+)\.pkl' if kind == SNAPSHOT else r'training-state-(\d+)\.pt'
    found = []
    for path in run_dir.iterdir() if run_dir.is_dir() else []:
        match = re.fullmatch(pattern, path.name)
        if match:
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def is_of_a_run(name: str) -> bool:
    """Return whether a run writes files of this name, but for its lock and its log."""
    return re.fullmatch(OF_A_RUN, name) is not None


def tidy(run_dir: Path) -> None:
    """Remove the temporary files that killed processes left in the folder of a run.

    A run writes into its own folder alone: raises ValueError for a link in place of a file that it
    adds to or writes anew.
    """
    remove_leftovers(run_dir, OF_A_RUN)
    for path in run_dir.iterdir():
        if path.is_symlink() and path.name in ADDED_TO:
            raise ValueError(f'{path} is a link, and a run writes into its own folder alone: '
                             f'delete it')
        if path.name in ADDED_TO and not path.is_file() and not path.is_dir():
            raise ValueError(f'{path} is a device or pipe, not a file: delete it')


def set_aside(run_dir: Path) -> Path | None:
    """Move the files of the run that was in a folder into old-00000, or the next free number.

    Whatever a run does not write stays where it is. Returns where the files are now; None where
    there was nothing but a log.
    """
    names = sorted(path.name for path in run_dir.iterdir() if is_of_a_run(path.name))
    if not names:
        return None
    if (run_dir / 'log.txt').exists():
        names.append('log.txt')
    return _moved(run_dir, names)


def set_aside_later(run_dir: Path, nimg: int) -> Path | None:
    """Move the states, snapshots and pictures of after `nimg` like `set_aside`.

    A run that goes on from an earlier state would mix its own with them.
    """
    names = [match[0] for match in (re.fullmatch(r'[a-z-]+(\d{6,})\.(pkl|pt|png)', path.name)
                                    for path in run_dir.iterdir())
             if match and is_of_a_run(match[0]) and int(match[1]) > nimg // 1000]
    return _moved(run_dir, sorted(names)) if names else None


def _moved(run_dir: Path, names: list[str]) -> Path:
    number = next(n for n in itertools.count() if not (run_dir / f'old-{n:05d}').exists())
    folder = run_dir / f'old-{number:05d}'
    folder.mkdir()
    for name in names:
        (run_dir / name).rename(folder / name)
    return folder


def fresh(path: Path) -> Path:
    """Return the path of a file to write; a link of this name is removed, not followed."""
    if path.is_symlink():
        path.unlink()
    return path


def prune_states(run_dir: Path, keep: int | None, written: Path | None = None) -> None:
    """Delete all but the newest `keep` training states, and never the one just `written`.

    None keeps all.
    """
    if keep is not None:
        for path in files_of(run_dir, STATE)[:-keep]:
            if path != written:
                path.unlink()


def thin_snapshots(run_dir: Path, keep: int | None, written: Path | None = None) -> None:
    """Delete snapshots until at most `keep` are left, evenly spread over the run.

    The first, the last, the best and the one just `written` stay; None keeps all.
    """
    paths = files_of(run_dir, SNAPSHOT)
    times = [int(path.stem.rsplit('-', 1)[1]) for path in paths]
    best = _best_name(run_dir)
    while keep is not None and len(paths) > keep:
        # The snapshot whose neighbours are closest to each other is the least needed.
        gaps = {i: times[i + 1] - times[i - 1] for i in range(1, len(times) - 1)
                if paths[i].name != best and paths[i] != written}
        if not gaps:
            break
        victim = min(gaps, key=lambda i: gaps[i])
        paths.pop(victim).unlink()
        times.pop(victim)


def forget_after(run_dir: Path, nimg: int) -> None:
    """Remove from stats.jsonl, and from the choice of the best, everything after `nimg`."""
    forget_statistics(run_dir / 'stats.jsonl', nimg)
    best = read_best(run_dir)
    if best is not None:
        choose_best(run_dir, best['metric'], best['evaluation'])


def _best_name(run_dir: Path) -> str | None:
    """Return the name of the best snapshot; the link to it tells where best.json is damaged."""
    best, link = read_best(run_dir), run_dir / BEST
    if best is not None:
        return str(best['snapshot'])
    return os.path.basename(os.readlink(link)) if link.is_symlink() else None


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """Return the contents of best.json, which describe the best snapshot.

    None where there is no such file, or where it is not one that `write_best` wrote.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        best = json.loads(read_bounded(run_dir / 'best.json', 2**20))
        kinds = {'snapshot': str, 'metric': str, 'evaluation': dict}
        if isinstance(best, dict) and all(isinstance(best.get(name), kind)
                                          for name, kind in kinds.items()):
            name = best['snapshot']
            return best if re.fullmatch(r'network-snapshot-\d+\.pkl', name) else None
    return None


def choose_best(run_dir: Path, metric: str, protocol: dict[str, Any]) -> Path | None:
    """Make the snapshot with the lowest `metric` the best, and return its path.

    It is chosen among the snapshots that still exist and were judged by this `protocol`; if there
    are none, the result is None and no snapshot is marked as the best.
    """
    judged = {}
    for line in read_statistics(run_dir / 'stats.jsonl'):
        if line.get('evaluation') == protocol:
            # A later snapshot of the same name replaced an earlier one.
            judged[file_of(run_dir, SNAPSHOT, nimg_of(line))] = line
    numbers = {path: number_in(line, f'Metrics/{metric}')
               for path, line in judged.items() if path.exists()}
    candidates = [path for path, number in numbers.items() if number is not None]
    if not candidates:
        write_best(run_dir, None)
        return None
    best = min(candidates, key=lambda path: numbers[path] or 0.0)
    line = judged[best]
    scores = {name.removeprefix('Metrics/'): number_in(line, name) for name in line
              if name.startswith('Metrics/')}
    write_best(run_dir, {'snapshot': best.name, 'kimg': nimg_of(line) / 1000, 'metric': metric,
                         'scores': scores, 'evaluation': protocol})
    return best


def write_best(run_dir: Path, best: dict[str, Any] | None) -> None:
    """Write best.json, and make network-best.pkl a link to best['snapshot'].

    With None, both are removed.
    """
    link = run_dir / BEST
    if best is None:
        (run_dir / 'best.json').unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        return
    with atomic_write(run_dir / 'best.json') as file:
        file.write((json.dumps(best, indent=2) + '\n').encode())
    temporary = run_dir / f'.{BEST}.tmp'
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(best['snapshot'])   # relative: the folder may move
    # The system has no links, or does not let every user make them.
    except (OSError, NotImplementedError):
        with open(run_dir / best['snapshot'], 'rb') as source, atomic_write(link) as file:
            shutil.copyfileobj(source, file)
    else:
        temporary.replace(link)
