"""The folder of a run: the names of its files, which of them are kept, and which is the best.

network-snapshot-<kimg>.pkl   the averaged networks
training-state-<kimg>.pt      everything, to continue with
stats.jsonl                   a line of statistics for each tick
network-best.pkl, best.json   a link to the best snapshot that was judged, and why it is the best
"""

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from dnnlib.files import atomic_write
from training.stats_file import forget_statistics, nimg_of, read_statistics

SNAPSHOT, STATE = 'network snapshot', 'training state'
BEST = 'network-best.pkl'


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


def prune_states(run_dir: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` training states; None keeps all."""
    if keep is not None:
        for path in files_of(run_dir, STATE)[:-keep]:
            path.unlink()


def thin_snapshots(run_dir: Path, keep: int | None) -> None:
    """Delete snapshots until at most `keep` are left, evenly spread over the run.

    The first, the last and the best stay; None keeps all.
    """
    paths = files_of(run_dir, SNAPSHOT)
    times = [int(path.stem.rsplit('-', 1)[1]) for path in paths]
    best = (read_best(run_dir) or {}).get('snapshot')
    while keep is not None and len(paths) > keep:
        # The snapshot whose neighbours are closest to each other is the least needed.
        gaps = {i: times[i + 1] - times[i - 1] for i in range(1, len(times) - 1)
                if paths[i].name != best}
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


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """Return the contents of best.json, which describe the best snapshot, or None without one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        best: dict[str, Any] = json.loads((run_dir / 'best.json').read_text())
        return best
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
    numbers = {path: line.get(f'Metrics/{metric}', {}).get('mean')
               for path, line in judged.items() if path.exists()}
    candidates = [path for path, number in numbers.items() if number is not None]
    if not candidates:
        write_best(run_dir, None)
        return None
    best = min(candidates, key=lambda path: numbers[path])
    line = judged[best]
    scores = {name.removeprefix('Metrics/'): line[name]['mean'] for name in line
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
