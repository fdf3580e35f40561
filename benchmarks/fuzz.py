"""Attack every reader with altered files, and see what it does.

    python -m benchmarks.fuzz --mutants=2000

A real file of each kind is made, altered at random (bits turned over, parts cut, repeated or taken
from another file, numbers blown up), and read as the commands read it. A reader may accept the
file, or refuse it in one line. It must not fail in any other way, run anything from the file, or
touch anything beside it. The report, docs/security.md, gives the number of files, the refusals, and
the longest time and the most memory that one file took. The exit code is 1 if a reader failed.
"""

import collections
import contextlib
import multiprocessing
import re
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm

from benchmarks.originals import originals
from checkpoints.diffusers import read_diffusers
from checkpoints.read import read_network, read_state
from data.labels_file import with_labels
from data.sources import lsun, open_source, parquet
from evaluation.table import Table
from metrics.detector_files import identify
from metrics.reference_files import read_reference
from metrics.sample_batch import SampleBatch
from torch_utils.arrays import read_npz
from training.dataset import ImageFolderDataset
from training.run_folder import read_best
from training.stats_file import read_statistics

FILES = 'files'   # the folder of the originals
MOST_SECONDS, MOST_MEGABYTES = 2.0, 500.0
REFUSALS = (ValueError, FileNotFoundError, OSError, FloatingPointError)


@dataclass
class Outcome:
    """What the readers did with the files of one kind."""
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0     # the longest
    megabytes: float = 0.0   # the most
    failures: list[str] = field(default_factory=list)


def read_set(path: Path) -> None:
    """Decode all images of a data set with their labels."""
    with ImageFolderDataset(path, use_labels=True) as dataset:
        dataset.batch(np.arange(len(dataset)))


def read_statistics_file(path: Path) -> None:
    """Read all arrays of a file of statistics."""
    found = read_reference(path)
    for tap in found.features:
        found.features[tap]


def read_table(path: Path) -> None:
    """Open the table of a sweep."""
    with Table(path.parent, path.name):
        pass


def read_batch(path: Path) -> None:
    """Read all images and classes of a batch."""
    with SampleBatch(path) as batch:
        batch.images(range(len(batch)))
        batch.labels()


def convert_from(path: Path) -> None:
    """Load all images of a source of dataset_tool.py."""
    for opened in (parquet._opened, parquet._group, lsun._in_process):   # kept by name
        opened.cache_clear()
    source = open_source(str(path))
    for name in source.names:
        source.load(name)


def read_labels(path: Path) -> None:
    """Read labels for the images of the folder in which they lie."""
    with_labels(open_source(str(path.parent)), str(path))


# The first file of a kind is read whole, unless it is altered; see benchmarks.originals.
READERS: dict[str, Callable[[Path], object]] = {
    'snapshot': read_network, 'state': read_state, 'safetensors': read_network,
    'diffusers': lambda path: read_diffusers(path.parent), 'detector': identify,
    'statistics': read_statistics_file, 'batch': read_batch,
    'latents': lambda path: read_npz(path, 'latents', 'labels'), 'zip': read_set,
    'dataset.json': lambda path: read_set(path.parent),
    'image': lambda path: read_set(path.parent.parent),
    'CIFAR': convert_from,
    'IDX': lambda path: convert_from(path.with_name(path.name.replace('labels-idx1',
                                                                      'images-idx3'))),
    'arrays': convert_from, 'classes': convert_from, 'tar': convert_from,
    'LMDB': lambda path: convert_from(path.parent), 'parquet': convert_from,
    'labels': read_labels, 'sweep.csv': read_table, 'stats.jsonl': read_statistics,
    'best.json': lambda path: read_best(path.parent),
}

# what a number in a text may be replaced with
NUMBERS = [b'-1', b'0', b'1e999', b'NaN', b'2147483647', b'99999999999999999999', b'-0.0', b'""',
           b'[]', b'1' * 400, b'null', b'1e-400', b'[' * 5000]


def mutated(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Return the bytes of a file after one to three alterations at random."""
    for _ in range(int(rng.integers(1, 4))):
        data = ALTERATIONS[int(rng.integers(len(ALTERATIONS)))](data, others, rng)
    return data


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(data) + 1))
    return start, min(len(data), start + int(2 ** rng.uniform(0, 10)))


def _flip(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(len(data), size=int(rng.integers(1, 9))) if data else ():
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    return data[:int(rng.integers(len(data) + 1))]


def _leave_out(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 50)) + data[end:]


def _splice(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    other = others[int(rng.integers(len(others)))]
    (start, end), (first, last) = _span(data, rng), _span(other, rng)
    return data[:start] + other[first:last] + data[end:]


def _overwrite(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + bytes([int(rng.choice([0, 127, 255]))]) * (end - start) + data[end:]


def _blow_up(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    found = list(re.finditer(rb'\d+(\.\d+)?', data[:200_000]))
    if not found:
        return _flip(data, others, rng)
    match = found[int(rng.integers(len(found)))]
    return data[:match.start()] + NUMBERS[int(rng.integers(len(NUMBERS)))] + data[match.end():]


ALTERATIONS = [_flip, _cut, _leave_out, _repeat, _splice, _overwrite, _blow_up, _blow_up]


def attack(kind: str, files: dict[str, list[Path]], place: Path, count: int, seed: int,
           progress: Callable[[], object] = lambda: None) -> Outcome:
    """Give `count` altered files of a kind to its reader, in the folder `place`."""
    rng, outcome = np.random.default_rng([seed, *kind.encode()]), Outcome()
    contents = [path.read_bytes() for path in files[kind]]
    others = [paths[0].read_bytes() for paths in files.values()]
    for number in range(count):
        data = mutated(contents[number % len(contents)], others, rng)
        with placed(files[kind][number % len(contents)], place, data) as path:
            _read(kind, path, number, outcome)
        progress()
    return outcome


@contextlib.contextmanager
def placed(original: Path, place: Path, data: bytes) -> Iterator[Path]:
    """Put an altered file where its reader looks for it, and clear the place afterwards.

    What lies beside it in a folder of its own is there, too.
    """
    top = next(above for above in [original, *original.parents] if above.parent.name == FILES)
    path = place / original.relative_to(top.parent)
    if top.is_dir():
        shutil.copytree(top, place / top.name)
    place.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        yield path
    finally:
        shutil.rmtree(place)


def _read(kind: str, path: Path, number: int, outcome: Outcome) -> None:
    before, start = memory(), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            READERS[kind](path)
        outcome.accepted += 1
    except REFUSALS as refusal:
        outcome.refused += 1
        if '\n' in str(refusal):
            outcome.failures.append(f'{kind} {number}: several lines: {refusal}')
    except Exception as error:
        outcome.failures.append(f'{kind} {number}: {type(error).__name__}: {error}')
    outcome.seconds = max(outcome.seconds, time.perf_counter() - start)
    outcome.megabytes = max(outcome.megabytes, memory(peak=True) - before)


def memory(peak: bool = False) -> float:
    """Return the memory of this process in MB, or with `peak` the most since the last call.

    Where the system does not tell the former, it is the most that the process has ever had.
    """
    try:
        status = Path('/proc/self/status').read_text()
        if not peak:
            Path('/proc/self/clear_refs').write_text('5')   # the peak begins anew
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = re.search(r'VmHWM:\s*(\d+)' if peak else r'VmRSS:\s*(\d+)', status)
    return int(found[1]) / 1024 if found else 0.0


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder with their contents."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def in_a_process(kind: str, files: dict[str, list[Path]], place: Path, count: int,
                 seed: int) -> Outcome:
    """Attack in a process of its own, which a fault in a compiled library may end."""
    context = multiprocessing.get_context('fork')
    done = context.Value('i', 0)
    with ProcessPoolExecutor(1, context, _count_in, (done,)) as pool:
        future = pool.submit(_attack, kind, files, place, count, seed)
        try:
            return future.result()
        except BrokenProcessPool:
            shutil.rmtree(place, ignore_errors=True)
            return Outcome(failures=[f'{kind} {done.value}: the process was ended'])


_done: Any = None   # the number of files so far, in the process of an attack


def _count_in(value: object) -> None:
    global _done
    _done = value


def _attack(kind: str, files: dict[str, list[Path]], place: Path, count: int,
            seed: int) -> Outcome:
    def progress() -> None:
        _done.value += 1
    return attack(kind, files, place, count, seed, progress)


@click.command()
@click.option('--mutants', help='Altered files of each kind', type=click.IntRange(1), default=2000,
              show_default=True)
@click.option('--seed', help='Random seed', type=click.IntRange(0), default=0, show_default=True)
def main(mutants: int, seed: int) -> None:
    """Attack every reader with altered files, and print what each of them did."""
    torch.set_num_threads(1)
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        base, mark = Path(folder), Path(folder) / 'mark'
        files = originals(base / FILES, mark)
        before = tree(base)
        rows = {}
        for kind in tqdm.tqdm(files, disable=None):
            rows[kind] = in_a_process(kind, files, base / 'place', mutants, seed)
        if tree(base) != before:
            failures.append('a file beside the one that was read has changed, or was executed')
    print('| file | read | refused | longest, s | most memory, MB |\n' + '| --- ' * 5 + '|')
    for kind, outcome in rows.items():
        print(f'| {kind} | {outcome.accepted} | {outcome.refused} | {outcome.seconds:.2f} | '
              f'{outcome.megabytes:.0f} |')
        failures += outcome.failures
        if outcome.seconds > MOST_SECONDS or outcome.megabytes > MOST_MEGABYTES:
            failures.append(f'{kind} took {outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB')
    kinds = collections.Counter(line.partition(' ')[0] for line in failures)
    for line in failures[:50]:
        print(line[:500])
    if failures:
        raise SystemExit(f'{len(failures)} failures: {dict(kinds)}')


if __name__ == '__main__':
    main()
