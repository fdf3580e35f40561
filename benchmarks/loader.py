"""Reading a data set for training: images a second and memory, against one PIL call per image.

    python -m benchmarks.loader --dest=out/loader

Each case runs in processes of its own: one rank or two, each with its worker processes. They first
read the whole set once, so that the caches are full; then images are counted. `pil` is what most
programs do: a Dataset that opens each image with Pillow, and a shuffling DataLoader. The others are
data/loader.py with each of the caches.

Memory is the sum of the proportional set sizes (PSS) of all processes, in which memory that several
share counts once, without that of the same number of ranks which only import the same packages.
It includes pages of the file of decoded images, which the system takes back where it needs them.
"""

import json
import multiprocessing
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import PIL.Image
import psutil
import torch
from torch import Tensor

from data.convert import convert
from data.dataset import CACHES, ImageFolderDataset
from data.loader import batches
from data.sources import open_source
from dnnlib.cli import GroupedCommand, IntList, Whole, heading, one_line_errors
from dnnlib.files import atomic_write


class Case(NamedTuple):
    """A way of reading (pil, ram, mmap, off, or none), workers per rank, and ranks."""
    way: str
    workers: int
    ranks: int


class PlainDataset(torch.utils.data.Dataset[Tensor]):
    """The images of a zip, each opened with Pillow when it is asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.archive: zipfile.ZipFile | None = None
        with zipfile.ZipFile(path) as archive:
            self.names = [name for name in archive.namelist() if name.endswith('.png')]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        if self.archive is None:   # in each process anew
            self.archive = zipfile.ZipFile(self.path)
        with self.archive.open(self.names[index]) as file, PIL.Image.open(file) as image:
            return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def plain(path: str, batch: int, workers: int) -> Iterator[Tensor]:
    """Yield batches of shuffled images for ever."""
    loader = torch.utils.data.DataLoader(PlainDataset(path), batch, shuffle=True, drop_last=True,
                                         num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


def ours(path: str, case: Case, batch: int, rank: int) -> Iterator[Tensor]:
    """Yield this rank's part of each batch."""
    dataset = ImageFolderDataset(path, cache=case.way)
    for images, _ in batches(dataset, 0, 0, batch * case.ranks, rank, case.ranks, case.workers):
        yield images


def run_rank(path: str, case: Case, batch: int, count: int, rank: int, barrier: Any,   # noqa: ANN401 (multiprocessing's)
             found: Any) -> None:   # noqa: ANN401
    """Read the set once, then `count` images, and wait until the memory is measured."""
    torch.set_num_threads(1)
    if case.way != 'none':
        stream = (plain(path, batch, case.workers) if case.way == 'pil'
                  else ours(path, case, batch, rank))
        for _ in islice(stream, count // batch):
            pass
        barrier.wait()
        start = time.perf_counter()
        for _ in islice(stream, count // batch):
            pass
        found.put(time.perf_counter() - start)
    barrier.wait()   # memory is measured ...
    barrier.wait()   # ... and was


def measured(path: str, case: Case, batch: int, count: int) -> tuple[float, float]:
    """Return images a second of all ranks, and MB of memory of all processes."""
    context = multiprocessing.get_context('spawn')
    barrier, found = context.Barrier(case.ranks + 1), context.Queue()
    ranks = [context.Process(target=run_rank, args=(path, case, batch, count, rank, barrier, found))
             for rank in range(case.ranks)]
    for process in ranks:
        process.start()
    if case.way != 'none':
        barrier.wait()
    barrier.wait()
    memory = sum(_memory(process.pid) for process in ranks)
    barrier.wait()
    seconds = [found.get() for _ in ranks] if case.way != 'none' else [1.0]
    for process in ranks:
        process.join()
    return case.ranks * (count // batch * batch) / max(seconds), memory


def _memory(pid: int | None) -> float:
    """Return the MB of a process and of all those that it has started."""
    first = psutil.Process(pid)
    total = 0.0
    for process in (first, *first.children(recursive=True)):
        told = process.memory_full_info()
        total += getattr(told, 'pss', told.rss) / 2**20
    return total


def make_set(path: Path, count: int, size: int) -> None:
    """Convert random images, RGB with smooth colours, as dataset_tool.py does."""
    rng = np.random.default_rng(0)
    pixels = np.empty([count, size, size, 3], np.uint8)
    for image in pixels:
        coarse = PIL.Image.fromarray(rng.integers(0, 256, [4, 4, 3], dtype=np.uint8))
        image[:] = np.asarray(coarse.resize((size, size), PIL.Image.Resampling.BICUBIC))
    array = path.with_suffix('.npy')
    np.save(array, pixels)
    convert(open_source(str(array)), str(path))
    array.unlink()


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@heading('Output')('--dest', metavar='DIR', required=True, help='Folder for loader.json.')
@heading('Work')('--count', type=Whole(64), default=20000, show_default=True, metavar='INT',
                 help='Number of images of the set, and of those that are counted.')
@heading('Work')('--size', type=Whole(8, 1024), default=64, show_default=True, metavar='INT',
                 help='Height and width of the images.')
@heading('Work')('--batch', type=Whole(1), default=64, show_default=True, metavar='INT',
                 help='Images at a time, for each rank.')
@heading('Work')('--workers', type=IntList(), default='1,2,4', show_default=True, metavar='LIST',
                 help='Numbers of worker processes per rank.')
@heading('Work')('--ranks', type=IntList(), default='1,2', show_default=True, metavar='LIST',
                 help='Numbers of ranks.')
@one_line_errors
def main(dest: str, count: int, size: int, batch: int, workers: list[int],
         ranks: list[int]) -> None:
    """Measure how fast a data set is read, and the memory that this takes."""
    if count < batch:
        raise ValueError(f'--count={count} is less than one --batch={batch}')
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ['LIMPID_CACHE_DIR'] = temporary
        path = Path(temporary, 'set.zip')
        make_set(path, count, size)
        idle = {n: measured('', Case('none', 0, n), batch, count)[1] for n in ranks}
        click.echo(f'{count} images of {size}x{size}, {count * size * size * 3 / 2**20:.0f} MB')
        click.echo('reading    workers  ranks  images/s  memory MB')
        for case in (Case(way, w, n) for n in ranks for way in ('pil', *CACHES) for w in workers):
            pace, memory = measured(str(path), case, batch, count)
            rows.append({**case._asdict(), 'images_per_second': pace,
                         'memory_mb': memory - idle[case.ranks]})
            click.echo(f'{case.way:10s} {case.workers:7d}  {case.ranks:5d}  {pace:8.0f}  '
                       f'{memory - idle[case.ranks]:9.0f}')
    with atomic_write(Path(dest, 'loader.json')) as file:
        file.write(json.dumps({'images': count, 'size': size, 'batch': batch, 'cases': rows},
                              indent=1).encode())


if __name__ == '__main__':
    main()
