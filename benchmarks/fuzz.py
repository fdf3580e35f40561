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
import io
import json
import pickle
import re
import resource
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import PIL.Image
import torch
import tqdm

from checkpoints.read import read_network, read_state
from evaluation.table import Table
from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.preconditioning import EDM
from metrics.detector_files import identify
from metrics.reference_files import read_reference, write_reference
from metrics.sample_batch import SampleBatch
from metrics.statistics import Moments, Statistics
from torch_utils import checkpoint
from torch_utils.arrays import read_npz
from torch_utils.digest import digest_of_tensors
from torch_utils.safetensors_file import save_tensors
from training import config as configs
from training.config import TrainConfig
from training.dataset import DataConfig, ImageFolderDataset
from training.networks import NetworkConfig
from training.run_folder import STATE, read_best
from training.state import save_snapshot, save_state
from training.stats_file import read_statistics
from training.training_loop import build

MOST_SECONDS, MOST_MEGABYTES = 2.0, 500.0
REFUSALS = (ValueError, FileNotFoundError, OSError, FloatingPointError)


@dataclass
class Outcome:
    """What the readers did with the files of one kind."""
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0     # the longest
    megabytes: float = 0.0   # the most, in which a file raised the largest memory of the process
    failures: list[str] = field(default_factory=list)


def small_config(data: Path) -> TrainConfig:
    """Return the settings of a network that takes a few hundred kB."""
    network = NetworkConfig('SongUNet', EDM(), 0.0, float('inf'), 8, 1, 3, 'fp32', {
        'model_channels': 16, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})
    loss = DenoisingLoss(LogNormal(), InverseCOut(EDM()))
    return TrainConfig(DataConfig(str(data)), network, loss, total_nimg=1000, batch_size=4)


def write_data_set(path: Path, as_zip: bool) -> None:
    """Write six images with labels, as a zip or a folder."""
    files = {}
    for i in range(6):
        png = io.BytesIO()
        PIL.Image.fromarray(np.full([8, 8], 40 * i, np.uint8)).save(png, format='PNG')
        files[f'00000/img{i}.png'] = png.getvalue()
    labels = [[name, i % 3] for i, name in enumerate(files)]
    files['dataset.json'] = json.dumps({'labels': labels, 'classes': ['a', 'b', 'c']}).encode()
    if as_zip:
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


class Executed:
    """An object whose pickle writes a file, `mark`, where it is opened with pickle.load."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.mark), 'w')


def originals(folder: Path, mark: Path) -> dict[str, list[Path]]:
    """Write files of every kind, and return them by kind; hostile pickles would write `mark`."""
    folder.mkdir()
    write_data_set(folder / 'set.zip', as_zip=True)
    write_data_set(folder / 'set', as_zip=False)
    config = small_config(folder / 'set.zip')
    state = build(config, torch.device('cpu'))
    state.nimg = 1000
    snapshot = save_snapshot(state, config, folder)
    training_state = save_state(state, config, folder)
    tensors = checkpoint.state_dict_of(state.ema.net)
    about = {'kind': 'network snapshot', 'format': configs.FORMAT, 'nimg': 1000,
             'config': configs.encode(config)}
    save_tensors(tensors, {'limpid': json.dumps(about), 'digest': digest_of_tensors(tensors)},
                 folder / 'a.safetensors')
    moments = Moments.zero(224)
    moments.add(torch.rand([300, 224], generator=torch.Generator().manual_seed(0)))
    write_reference(folder / 'ref.npz', {'demo': Statistics(moments.mean(), moments.cov(), 300)})
    np.savez_compressed(folder / 'batch.npz', arr_0=np.zeros([4, 8, 8, 3], np.uint8),
                        arr_1=np.arange(4))
    np.savez(folder / 'latents.npz', latents=np.zeros([2, 1, 8, 8], np.float32),
             labels=np.zeros([2, 3], np.float32))
    (folder / 'sweep.csv').write_text(f'point,nfe,fid,error\n{1:016x},3,2.5,\n{2:016x},,,no\n')
    (folder / 'stats.jsonl').write_text(
        '{"Progress/kimg": {"num": 1, "mean": 1.0, "std": 0}, "Loss/loss": {"mean": 0.5}}\n' * 5)
    (folder / 'best.json').write_text('{"snapshot": "network-snapshot-000001.pkl", "kimg": 1.0, '
                                      '"metric": "fid", "scores": {}, "evaluation": {}}\n')
    (folder / 'hostile.pkl').write_bytes(pickle.dumps({'ema': Executed(mark)}, 2))
    torch.save({'mu': Executed(mark), 'kind': STATE}, folder / 'hostile.pt')
    return {'snapshot': [snapshot, folder / 'hostile.pkl'],
            'state': [training_state, folder / 'hostile.pt'],
            'safetensors': [folder / 'a.safetensors'],
            'statistics': [folder / 'ref.npz', folder / 'hostile.pkl'],
            'detector': [folder / 'a.safetensors', folder / 'hostile.pt'],
            'batch': [folder / 'batch.npz'], 'latents': [folder / 'latents.npz'],
            'zip': [folder / 'set.zip'], 'dataset.json': [folder / 'set' / 'dataset.json'],
            'image': [folder / 'set' / '00000' / 'img1.png'], 'sweep.csv': [folder / 'sweep.csv'],
            'stats.jsonl': [folder / 'stats.jsonl'], 'best.json': [folder / 'best.json']}


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


READERS: dict[str, Callable[[Path], object]] = {
    'snapshot': read_network, 'state': read_state, 'safetensors': read_network,
    'statistics': read_statistics_file, 'detector': identify, 'batch': read_batch,
    'latents': lambda path: read_npz(path, 'latents', 'labels'), 'zip': read_set,
    'dataset.json': lambda path: read_set(path.parent),
    'image': lambda path: read_set(path.parent.parent), 'sweep.csv': read_table,
    'stats.jsonl': read_statistics, 'best.json': lambda path: read_best(path.parent),
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
        with _placed(kind, files[kind][number % len(contents)], place, data) as path:
            _read(kind, path, number, outcome)
        progress()
    return outcome


@contextlib.contextmanager
def _placed(kind: str, original: Path, place: Path, data: bytes) -> Iterator[Path]:
    """Put an altered file where its reader looks for it, and clear the place afterwards."""
    place.mkdir()
    path = place / original.name
    if kind in ('dataset.json', 'image'):
        depth = 1 if kind == 'dataset.json' else 2
        shutil.copytree(original.parents[depth - 1], place / 'set')
        path = place / 'set' / original.relative_to(original.parents[depth - 1])
    path.write_bytes(data)
    try:
        yield path
    finally:
        shutil.rmtree(place)


def _read(kind: str, path: Path, number: int, outcome: Outcome) -> None:
    before, start = _memory(), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            READERS[kind](path)
        outcome.accepted += 1
    except REFUSALS as refusal:
        outcome.refused += 1
        if len(str(refusal).splitlines()) > 1:
            outcome.failures.append(f'{kind} {number}: several lines: {refusal}')
    except Exception as error:
        outcome.failures.append(f'{kind} {number}: {type(error).__name__}: {error}')
    outcome.seconds = max(outcome.seconds, time.perf_counter() - start)
    outcome.megabytes = max(outcome.megabytes, _memory() - before)


def _memory() -> float:
    """Return the largest memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder with their contents."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


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
        files = originals(base / 'files', mark)
        before = tree(base)
        rows = {}
        with tqdm.tqdm(total=mutants * len(READERS), disable=None) as bar:
            for kind in READERS:
                rows[kind] = attack(kind, files, base / 'place', mutants, seed, bar.update)
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
