"""Threads that leave room for other programs: what OpenMP is told before torch is imported.

Threads that wait for the next piece of work spin, about a millisecond, before they sleep. On a
machine that has other work to do, they spin while the thread they wait for cannot run.
"""

import contextlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

# Turns of the loop in which a thread of GNU's OpenMP waits before it sleeps (its own: 300,000).
SPINS = 10_000
# With any of these, the user has decided how threads wait.
WAITING = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'
# With any of these, how many there are. torchrun sets the first.
NUMBER = 'OMP_NUM_THREADS', 'OMP_THREAD_LIMIT', 'MKL_NUM_THREADS', 'KMP_ALL_THREADS'


def settings(environment: Mapping[str, str], cpus: int | None,
             quota: float | None) -> dict[str, str]:
    """Return the variables to add to the environment; none that speaks of the same is there.

    cpus   that this process may run on; torch makes so many threads by itself
    quota  of CPU time in seconds per second, which torch does not look at; None: no limit

    Threads beyond the quota would use it up early in each period, and all of them wait for the next
    one.
    """
    found = {}
    if not any(environment.get(name) for name in WAITING):
        found['GOMP_SPINCOUNT'] = str(SPINS)
    few = None if quota is None else max(math.ceil(quota), 1)
    if few is not None and (cpus is None or few < cpus) and not any(map(environment.get, NUMBER)):
        found['OMP_NUM_THREADS'] = str(few)
    return found


def apply() -> None:
    """Set the variables for this process and those that it starts; torch is imported after it."""
    affinity = getattr(os, 'sched_getaffinity', None)   # Linux has it
    cpus = len(affinity(0)) if affinity else os.cpu_count()
    os.environ.update(settings(os.environ, cpus, cpu_quota()))


def cpu_quota(root: Path = Path('/')) -> float | None:
    """Return the CPU time per second that the control groups of this process allow, if limited.

    Containers and batch systems set it (`docker --cpus=2`). Both versions of Linux's control groups
    are read, from `root`; the lowest limit on the way to the group counts.
    """
    limits = []
    with contextlib.suppress(OSError, ValueError):
        for line in (root / 'proc/self/cgroup').read_text(errors='replace').splitlines()[:100]:
            match = re.fullmatch(r'\d+:([^:]*):/(.*)', line)
            if match is None or not (match[1] == '' or 'cpu' in match[1].split(',')):
                continue
            mounted = root / 'sys/fs/cgroup' / (match[1] and 'cpu')
            group = mounted / match[2]
            limits += [_limit(folder) for folder in (group, *group.parents)
                       if folder.is_relative_to(mounted)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path) -> float | None:
    """Return the limit of one control group: quota / period, where both are positive numbers."""
    def words(name: str) -> list[str]:
        try:
            with open(group / name, encoding='ascii') as file:
                return file.read(100).split()
        except (OSError, ValueError):
            return []

    numbers = words('cpu.max') or words('cpu.cfs_quota_us') + words('cpu.cfs_period_us')
    if len(numbers) != 2 or not all(re.fullmatch(r'\d{1,15}', number) for number in numbers):
        return None   # `max`, or -1: no limit
    quota, period = map(int, numbers)
    return quota / period if quota and period else None
