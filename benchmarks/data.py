"""Conversion with dataset_tool.py against a plain loop of Pillow in one process.

    python -m benchmarks.data --dest=out/data

The loop does the same work on the same files (open, crop, resize, encode, add to a zip) and
nothing else: no checks, no labels, no report. Both are run in turns, and the best of --repeat
counts.
"""

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import PIL.Image

from data.convert import convert
from data.parallel import processors
from data.sources import open_source
from data.transforms import center_crop
from dnnlib.cli import GroupedCommand, Whole, heading, one_line_errors
from dnnlib.files import atomic_write


def small_images(folder: Path, count: int) -> None:
    """Write PNG files of 32x32: smooth colours with noise, of which no two are the same."""
    rng = np.random.default_rng(0)
    for i in range(count):
        noise = rng.integers(0, 64, [32, 32, 3], dtype=np.uint8)
        _save(folder, i, noise + np.linspace(0, 190, 32).astype(np.uint8)[:, None, None], 'png')


def photographs(folder: Path, count: int) -> None:
    """Write JPEG files of 640x480: colours that vary smoothly."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, [12, 16, 3], dtype=np.uint8))
        _save(folder, i, np.asarray(coarse.resize((640, 480), PIL.Image.Resampling.BICUBIC)), 'jpg')


def _save(folder: Path, number: int, pixels: np.ndarray, ending: str) -> None:
    path = folder / f'{number // 1000:03d}' / f'{number:06d}.{ending}'
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def plain_loop(folder: Path, dest: Path, size: tuple[int, int] | None) -> None:
    """Convert with nothing but Pillow and zipfile."""
    with zipfile.ZipFile(dest, 'w') as archive:
        for i, path in enumerate(sorted(folder.rglob('*.*'))):
            with PIL.Image.open(path) as file:
                image = center_crop(file, size) if size else file.convert('RGB')
            data = io.BytesIO()
            image.save(data, format='PNG', compress_level=0)
            archive.writestr(f'{i // 1000:05d}/img{i:08d}.png', data.getvalue())


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compared(make: Callable[[Path, int], None], count: int, size: tuple[int, int] | None,
             workers: int, repeat: int) -> dict[str, float]:
    """Return images a second of the loop and of the tool, and their ratio."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, dest = Path(temporary, 'in'), Path(temporary, 'out.zip')
        make(folder, count)
        transform = 'center-crop' if size else None
        loop, tool = [], []
        for _ in range(repeat):
            loop.append(seconds(lambda: plain_loop(folder, dest, size)))
            os.unlink(dest)
            tool.append(seconds(lambda: convert(open_source(str(folder)), str(dest), None,
                                                transform, size, 'rgb', workers=workers)))
            os.unlink(dest)
    return {'images': count, 'workers': workers, 'loop': count / min(loop),
            'tool': count / min(tool), 'ratio': min(loop) / min(tool)}


@click.command(cls=GroupedCommand, context_settings={'max_content_width': 100})
@heading('Output')('--dest', metavar='DIR', required=True, help='Folder for data.json.')
@heading('Work')('--small', type=Whole(1), default=50000, show_default=True, metavar='INT',
                 help='Number of 32x32 PNG files.')
@heading('Work')('--photos', type=Whole(1), default=2000, show_default=True, metavar='INT',
                 help='Number of 640x480 JPEG files, which become 64x64.')
@heading('Work')('--workers', type=Whole(1), metavar='INT',
                 help='Number of processes of the tool.  [default: one for each processor]')
@heading('Work')('--repeat', type=Whole(1), default=3, show_default=True, metavar='INT',
                 help='Number of measurements, the best of which counts.')
@one_line_errors
def main(dest: str, small: int, photos: int, workers: int | None, repeat: int) -> None:
    """Measure the conversion of many small images and of photographs."""
    workers = workers or processors()
    found = {'small': compared(small_images, small, None, workers, repeat),
             'photographs': compared(photographs, photos, (64, 64), workers, repeat)}
    for name, told in found.items():
        click.echo(f'{name}: loop {told["loop"]:.0f}, dataset_tool.py {told["tool"]:.0f} images a '
                   f'second with {workers} processes, ratio {told["ratio"]:.2f}')
    with atomic_write(Path(dest, 'data.json')) as file:
        file.write(json.dumps(found, indent=1).encode())


if __name__ == '__main__':
    main()
