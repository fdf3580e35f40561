"""Small files that ask for gigabytes, hours or another program, given to the commands.

    python -m benchmarks.attacks
    python -m benchmarks.attacks --only=npz

Each file is made by the function that describes it, and every command that reads such files is run
on it, in a process of its own that has imported everything already. The command must end by itself,
with at most one line of error and no stack trace, within 2 seconds of the CPU and 500 MB more than
it had at its start, and must leave the files as they are. The exit code is 1 if one does not.
"""

import functools
import importlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import tqdm

from benchmarks.fuzz import MOST_MEGABYTES, MOST_SECONDS, memory, tree
from benchmarks.originals import constant, field, originals, png, write_zip
from torch_utils import checkpoint
from torch_utils.safetensors_file import load_tensors, save_tensors

CPU_PATIENCE, PATIENCE = 20, 300   # seconds of a processor, and of any clock, before a kill

# Commands, by what they read: {} is the folder of the files, {0} the file in it.
NETWORK = ('generate.py --network={0} --outdir={}/out --seeds=0 --steps=2 --device=cpu',
           'checkpoint.py inspect {0}', 'checkpoint.py verify {0}')
IMAGES = ('dataset_tool.py --source={0} --dest={}/out.zip --workers=1',
          'dataset_tool.py check {0} --workers=1',
          'train.py --data={0} --run={}/run --cond=1 --cbase=8 --cres=1 --blocks=1 --attn=8 '
          '--batch=4 --duration=0.000008 --workers=0 --device=cpu',
          'fid.py ref --data={0} --dest={}/ref.npz --detector=demo --workers=0 --device=cpu',
          'generate.py --network=ideal:{0} --outdir={}/out --seeds=0 --steps=2 --device=cpu')
SOURCE, LOOK = IMAGES[:1], IMAGES[:2]
ONE = (f'{SOURCE[0]} --max-images=1',)
PICTURES = (*LOOK, *(f'{SOURCE[0]} --resolution=64x64{more}' for more in (
    '', ' --transform=center-crop', ' --transform=center-crop-dhariwal', ' --color=keep')),
            'dataset_tool.py stats {0} --workers=1',
            'dataset_tool.py preview {0} --dest={}/out.png')
SAMPLES = ('fid.py calc --images={0} --ref={}/files/ref.npz --num=2 --metrics=fid --detector=demo '
           '--workers=0 --device=cpu', *SOURCE)
REFERENCE = ('fid.py dist {0} {}/files/ref.npz', 'fid.py calc --images={}/files/set.zip --ref={0} '
             '--num=6 --detector=demo --workers=0 --device=cpu')
LATENTS = ('flow.py decode --network={}/files/network-snapshot-000001.pkl --latents={0} '
           '--outdir={}/out --device=cpu',)
DETECTOR = ('fid.py detector {0}',)
LABELS = ('dataset_tool.py --source={}/files/set.zip --labels={0} --dest={}/out.zip --workers=1',)
SWEEP = ('fid.py sweep --network={}/files/network-snapshot-000001.pkl --ref={}/files/ref.npz '
         '--dest={0} --num=2 --steps=2 --detector=demo --device=cpu',)
RUN = ('train.py --run={0} --data={}/files/set.zip --cond=1 --cbase=8 --cres=1 --blocks=1 '
       '--attn=8 --batch=4 --duration=0.000008 --workers=0 --device=cpu',)


Change = Callable[[Any], object]   # of a configuration, in place
Content = str | bytes | Callable[[], bytes]   # of a file


@dataclass(frozen=True)
class Attack:
    """A small file, or folder, in the file `name` of the folder `make` is given; and its readers.
    """
    name: str
    make: Callable[[Path], object]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a command did: exit code or negative signal, time of the CPU, more memory, output."""
    code: int
    seconds: float
    megabytes: float
    output: str

    def fault(self) -> str:
        """Say what is wrong with that, or '' for nothing."""
        lines = self.output.splitlines()
        if self.code < 0:
            return f'was ended by signal {-self.code}'
        if 'Traceback' in self.output or self.code not in (0, 1, 2):
            return f'failed with {self.code}: {lines[-1] if lines else ""}'
        if self.code and not lines[-1].startswith(('Error: ', 'problems: ')):
            return f'said no line of error: {self.output[-200:]}'
        if self.seconds > MOST_SECONDS or self.megabytes > MOST_MEGABYTES:
            return 'took too much'
        return ''


def run(command: str, folder: Path, file: Path) -> Found:
    """Run a command in a copy of this process; `folder` has the files, and `file` is one."""
    words = command.replace('{0}', str(file)).replace('{}', str(folder)).split()
    log, start = folder / 'log', time.monotonic()
    child = os.fork()
    if child == 0:
        _become(words, log)
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
        time.sleep(0.005)
        if time.monotonic() - start > PATIENCE:
            os.kill(child, signal.SIGKILL)
    seconds, code = ended[2].ru_utime + ended[2].ru_stime, os.waitstatus_to_exitcode(ended[1])
    *said, used = log.read_text(errors='replace').rpartition(USED)
    return Found(code, seconds, float(used) if said[1] else 0.0, said[0] or used)


USED = '\nmemory: '


def _become(words: list[str], log: Path) -> None:
    """Run a command with its output in `log`, whose last line is the memory, and end."""
    code = 1
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_PATIENCE, CPU_PATIENCE))
    before = memory()
    try:
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, 'wb', 0), write_through=True)
                                  for n in (1, 2))
        sys.stdin = open(os.devnull)   # noqa: SIM115
        script = importlib.import_module(words[0].removesuffix('.py'))
        script.main.main(words[1:], prog_name=words[0])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    os.write(2, f'{USED}{memory(peak=True) - before:.1f}'.encode())
    os._exit(code)


def attack(one: Attack, folder: Path) -> Iterator[tuple[str, Found, str]]:
    """Yield each command on the file of an attack, what it did, and what was wrong with that.

    `folder`/files has the real files of benchmarks.originals.
    """
    for command in one.commands:
        file = folder / one.name
        file.parent.mkdir(parents=True, exist_ok=True)
        one.make(file)
        before, real = _listed(file), tree(folder / 'files')
        found = run(command, folder, file)
        fault = found.fault()
        if tree(folder / 'files') != real or (folder / 'mark').exists():
            fault = fault or 'touched another file'
        named = {'--dest={0}', '--run={0}'} & {*command.split()}   # for its own results
        if not named and not before <= _listed(file):
            fault = fault or 'changed the file'
        yield command.partition(' -')[0].partition(' {')[0], found, fault
        for path in folder.iterdir():
            if path.name != 'files':
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _listed(path: Path) -> set[tuple[str, int, int]]:
    """Return the files at and below a path, with their sizes and numbers."""
    paths = [path, *path.rglob('*')] if path.is_dir() else [path]
    return {(str(one), one.lstat().st_size, one.lstat().st_ino) for one in paths
            if not one.is_dir() and one.name not in ('.lock', 'log.txt')}


# Images

def bomb(size: int, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of an image of `size` zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', kind) as archive, archive.open('a.png', 'w') as entry:
        for start in range(0, size, 2**20):
            entry.write(bytes(min(2**20, size - start)))
    return file.getvalue()


def claims(size: int, data: bytes) -> bytes:
    """Return a zip of one entry that says of itself that it unfolds to `size` bytes."""
    changed, at = bytearray(data), data.rindex(b'PK\x01\x02')
    changed[at + 24:at + 28] = changed[22:26] = struct.pack('<I', size)
    return bytes(changed)


def large_png(width: int, height: int, color: int, depth: int, padding: int = 0) -> bytes:
    """Return a PNG of zeros in little space, with so many bytes after its end.

    `color` is 0 for grey, 2 for RGB, 3 for a palette, 4 for grey and 6 for RGB with alpha.
    """
    row = bytes(1 + width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] // 8)
    packer = zlib.compressobj(9)
    data = b''.join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack(
            '>I', zlib.crc32(name + content))
    palette = chunk(b'PLTE', bytes(3)) if color == 3 else b''
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth,
                                                             color, 0, 0, 0))
            + palette + chunk(b'IDAT', data) + chunk(b'IEND', b'') + bytes(padding))


def encoded(mode: str, size: tuple[int, int], form: str, **options: Any) -> bytes:   # noqa: ANN401 (Pillow's)
    """Return an image of zeros as Pillow writes it."""
    import PIL.Image
    file = io.BytesIO()
    PIL.Image.new(mode, size).save(file, format=form, **options)
    return file.getvalue()


def large(mode: str, side: int, form: str, **options: Any) -> bytes:   # noqa: ANN401 (Pillow's)
    """Return a square image of zeros with so many bytes that it may have its pixels."""
    data = encoded(mode, (side, side), form, **options)
    return data + bytes(max(side * side // 50 + 1 - len(data), 0))


def scans(side: int, more: int) -> bytes:
    """Return a JPEG that goes over its pixels so many more times than it should."""
    data = encoded('RGB', (side, side), 'JPEG', progressive=True, subsampling=0)
    last = data[data.rindex(b'\xff\xda'):-2]
    return data[:-2] + last * more + data[-2:] + bytes(side * side // 50)


TURNED = b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06' + bytes(7)


def a_set(image: Callable[[], bytes], name: str = 'a.png') -> Callable[[Path], None]:
    """Return a function that writes a folder with an image."""
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(image())
    return make


def labelled(labels: object, count: int = 2) -> Callable[[Path], None]:
    """Return a function that writes a folder of two images with a dataset.json."""
    def make(path: Path) -> None:
        path.mkdir()
        for i in range(count):
            (path / f'{i}.png').write_bytes(png(i))
        found = labels() if callable(labels) else labels
        text = found if isinstance(found, str) else json.dumps({'labels': found})
        (path / 'dataset.json').write_text(text)
    return make


def special(kind: str, inside: str = '') -> Callable[[Path], None]:
    """Return a function that makes a pipe, a link to /dev/zero, or an empty file of 4 GB.

    With `inside`, it has that name in a folder with an image.
    """
    def make(path: Path) -> None:
        if inside:
            a_set(lambda: png(3), '0.png')(path)
            path = path / inside
        if kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'zero':
            path.symlink_to('/dev/zero')
        else:
            path.touch()
            os.truncate(path, 2**32)
    return make


def deep_zip(path: Path) -> None:
    """Write a zip of images thirty thousand folders deep, whose labels are in others."""
    names = ['a/' * 30_000 + f'{i}.png' for i in range(2)]
    labels = {'labels': [['b/' * 30_000 + f'{i}.png', i] for i in range(2)]}
    write_zip(path, [*((name, png(0)) for name in names),
                     ('dataset.json', json.dumps(labels).encode())], zipfile.ZIP_DEFLATED)


def overlapping_zip(path: Path) -> None:
    """Write a zip whose thousand entries are all one image of 16 million pixels."""
    write_zip(path, [('0000.png', large_png(4096, 4096, 0, 8))])
    data = path.read_bytes()
    at, end = data.rindex(b'PK\x01\x02'), data.rindex(b'PK\x05\x06')
    entry = data[at:end]
    entries = b''.join(entry.replace(b'0000.png', b'%04d.png' % i) for i in range(1000))
    path.write_bytes(data[:at] + entries + struct.pack(
        '<IHHHHIIH', 0x06054b50, 0, 0, 1000, 1000, len(entries), at, 0))


def tar_of(size: int, kind: bytes = tarfile.REGTYPE, name: str = 'a.png') -> bytes:
    """Return a tar whose one header claims a size, which may be negative."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, abs(size)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        header[124:136] = b'\xff' * 4 + struct.pack('>q', size)
        header[148:156] = b' ' * 8
        header[148:156] = b'%06o\0 ' % sum(header[:512])
    return bytes(header) + bytes(1024)


def gzipped(data: bytes, zeros: int) -> bytes:
    """Return a gzip of some bytes and so many zeros."""
    packer = zlib.compressobj(9, wbits=31)
    out = [packer.compress(data), *(packer.compress(bytes(2**20)) for _ in range(zeros >> 20))]
    return b''.join([*out, packer.flush()])


SIZES = {   # of a PNG: width, height, colour, depth, padding
    '13000-grey': (13000, 13000, 0, 1), '10124-rgb': (10124, 10124, 2, 8),
    **{f'10124-{kind}-padded': (10124, 10124, *colors, 2_300_000) for kind, colors in {
        'rgba16': (6, 16), 'grey16': (0, 16), 'rgb': (2, 8), 'palette': (3, 8),
        'grey-alpha': (4, 8)}.items()},
    '4096-rgba16': (4096, 4096, 6, 16), '4096-rgb': (4096, 4096, 2, 8),
    'wide': (2**20, 2**4, 2, 8), 'wide-padded': (2**16, 1560, 6, 8, 2_300_000),
    'high-padded': (1560, 2**16, 6, 8, 2_300_000)}
NAMES = {   # of the same image in other formats
    'tiff-float.tif': lambda: large('F', 10124, 'TIFF', compression='tiff_deflate'),
    'tiff-turned.tif': lambda: large('RGB', 7150, 'TIFF', compression='tiff_deflate', exif=TURNED),
    'tiff-jpeg.tif': lambda: large('RGB', 5800, 'TIFF', compression='jpeg'),
    'jpeg-cmyk.jpg': lambda: large('CMYK', 10124, 'JPEG'),
    'jpeg-turned.jpg': lambda: large('RGB', 10124, 'JPEG', exif=TURNED),
    'png-turned.png': lambda: large('RGB', 10124, 'PNG', exif=TURNED),
    'jpeg-progressive-7600.jpg': lambda: large('RGB', 7600, 'JPEG', progressive=True),
    'jpeg-progressive-6400.jpg': lambda: large('RGB', 6400, 'JPEG', progressive=True,
                                               subsampling=0),
    'jpeg-scans.jpg': lambda: scans(6400, 20), 'jpeg-more-scans.jpg': lambda: scans(4096, 1000),
    'gif.gif': lambda: large('P', 10124, 'GIF'),
    'webp.webp': lambda: large('RGBA', 5060, 'WEBP', lossless=True),
    'webp-8192.webp': lambda: large('RGBA', 8192, 'WEBP', lossless=True),
    'tiff-1bit.tif': lambda: encoded('1', (30000, 30000), 'TIFF', compression='group4'),
    'ppm.ppm': lambda: b'P6 30000 30000 255\n',
    'bmp.bmp': lambda: encoded('L', (8, 8), 'BMP').replace(
        struct.pack('<ii', 8, 8), struct.pack('<ii', 60000, 60000)),
}


# Arrays, tables and labels

def npy(shape: str, dtype: object = '|u1', data: bytes = b'') -> bytes:
    """Return the bytes of a .npy file that claims a shape."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + data


def npz(**arrays: Content) -> Callable[[Path], None]:
    """Return a function that writes a compressed npz of the bytes of .npy files."""
    return lambda path: write_zip(path, ((f'{name}.npy', made(data))
                                         for name, data in arrays.items()), zipfile.ZIP_DEFLATED)


def zeros(shape: tuple[int, ...], dtype: str = '<f4') -> Content:
    """Return what makes a .npy file of zeros."""
    return lambda: npy(str(shape), dtype, bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize))


def text(content: Content) -> Callable[[Path], object]:
    """Return a function that writes a file."""
    return lambda path: path.write_bytes(made(content))


def made(content: Content) -> bytes:
    """Return the bytes of a file, which are made now if they are large."""
    data = content() if callable(content) else content
    return data.encode() if isinstance(data, str) else data


def in_folder(name: str, content: Content) -> Callable[[Path], None]:
    """Return a function that writes a file in a folder."""
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(made(content))
    return make


def unfolding(levels: int, width: int) -> bytes:
    """Return a pickle of a list of lists, each of which has `width` times the one before it."""
    data = b'\x80\x02](]q\x00'
    for level in range(levels):
        data += b']q' + bytes([level + 1]) + b'(' + b'h' + bytes([level])
        data += (b'h' + bytes([level])) * (width - 1) + b'e'
    return data + b'e.'


def opcodes(code: bytes, count: int) -> bytes:
    """Return a pickle of a list of so many values, each of which takes an opcode."""
    return b'\x80\x02](' + code * count + b'e.'


def altered_snapshot(folder: Path, change: Change) -> Callable[[Path], None]:
    """Return a function that writes a snapshot with another configuration and a right checksum."""
    def make(path: Path) -> None:
        contents = checkpoint.load(folder / 'files' / 'network-snapshot-000001.pkl',
                                   'network snapshot')
        change(contents['config'])
        checkpoint.save(contents, path)
    return make


def altered_safetensors(folder: Path, change: Change) -> Callable[[Path], None]:
    """Return a function that writes safetensors with another configuration in their metadata."""
    def make(path: Path) -> None:
        tensors, metadata = load_tensors(folder / 'files' / 'a.safetensors')
        about = json.loads(metadata['limpid'])
        change(about['config'])
        save_tensors(tensors, {**metadata, 'limpid': json.dumps(about)}, path)
    return make


def safetensors(header: bytes, data: bytes = b'') -> Callable[[Path], object]:
    """Return a function that writes safetensors with a header."""
    return text(lambda: len(header).to_bytes(8, 'little') + header + data)


def diffusers_with(folder: Path, file: str, **changes: object) -> Callable[[Path], None]:
    """Return a function that writes a folder of diffusers with other settings."""
    def make(path: Path) -> None:
        shutil.copytree(folder / 'files' / 'pipeline', path)
        config = json.loads((path / file).read_bytes())
        (path / file).write_text(json.dumps({**config, **changes}))
    return make


def set_(value: object, *keys: str) -> Change:
    """Return a function that sets a value of a configuration, deep in it."""
    def change(config: Any) -> None:   # noqa: ANN401 (nested dictionaries)
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value
    return change


def discrete(kind: str, **numbers: object) -> Change:
    """Return a function that gives a network the noise levels of a discrete schedule."""
    return set_({'type': 'precond/v', 'schedule': {'type': kind, **numbers}}, 'network',
                'precond')


def attacks(folder: Path) -> list[Attack]:
    """Return all attacks; those on networks alter the files in `folder`/files."""
    return [*image_attacks(), *label_attacks(), *array_attacks(), *pickle_attacks(),
            *network_attacks(folder), *table_attacks(), *special_attacks()]


def image_attacks() -> list[Attack]:
    """Return attacks with images, zips and tars."""
    found = [Attack(f'png-{name}/set', a_set(functools.partial(large_png, *size)), PICTURES)
             for name, size in SIZES.items()]
    found += [Attack(f'{name}/set', a_set(data, name), PICTURES) for name, data in NAMES.items()]
    image = ('a.png', png(7))
    return [
        *found,
        Attack('zip-255mb-of-zeros.zip', text(lambda: bomb(2**28 - 2**20)), IMAGES),
        Attack('zip-4gb-of-zeros.zip', text(lambda: claims(2**32 - 2, bomb(2**28))), IMAGES),
        Attack('zip-that-says-8-bytes.zip', text(lambda: claims(8, bomb(2**28))), IMAGES),
        Attack('zip-lzma.zip', text(lambda: bomb(2**28 - 2**20, zipfile.ZIP_LZMA)), IMAGES),
        Attack('zip-case-equal.zip', lambda path: write_zip(path, [image, ('A.PNG', png(9))]),
               SOURCE),
        Attack('zip-twice.zip', lambda path: write_zip(path, [image, image]), IMAGES),
        Attack('zip-outside.zip', lambda path: write_zip(path, [('../../a.png', png(1)),
                                                                ('/tmp/b.png', png(2))]), IMAGES),
        Attack('zip-60000-entries.zip', lambda path: write_zip(
            path, ((f'{i}.txt', b'') for i in range(60_000))), IMAGES),
        Attack('zip-overlapping.zip', overlapping_zip, IMAGES),
        Attack('zip-deep.zip', deep_zip, IMAGES),
        Attack('tar-negative.tar', text(tar_of(-512)), SOURCE),
        Attack('tar-negative-pax.tar', text(tar_of(-512, tarfile.XHDTYPE)), SOURCE),
        Attack('tar-8gb-pax.tar', text(tar_of(2**33 - 1, tarfile.XHDTYPE)), SOURCE),
        Attack('tar-8gb-name.tar', text(tar_of(2**33 - 1, tarfile.GNUTYPE_LONGNAME)), SOURCE),
        Attack('tar-8gb-image.tar', text(tar_of(2**33 - 1)), SOURCE),
        Attack('tar-8gb-label.tar', text(tar_of(2**33 - 1, name='a.json')), SOURCE),
        Attack('a/cifar-10-python.tar.gz', text(lambda: gzipped(
            tar_of(2**33 - 1, name='other')[:512], 2**30)), SOURCE),
        Attack('b/cifar-10-python.tar.gz', text(lambda: gzipped(
            tar_of(2**27, name='data_batch_1')[:512], 2**27)), SOURCE),
        Attack('c/cifar-10-python.tar', text(tar_of(-512, name='data_batch_1')), SOURCE),
        Attack('idx-4gb-idx3-ubyte.gz', text(lambda: gzipped(
            bytes([0, 0, 8, 3]) + struct.pack('>III', 2**12, 2**10, 2**10), 2**32)), SOURCE),
        Attack('idx-5mb-idx3-ubyte.gz', text(lambda: gzipped(
            bytes([0, 0, 8, 3]) + struct.pack('>III', 532, 512, 512) + os.urandom(5 * 2**20),
            2**27)), ONE),
        Attack('idx-claims-idx3-ubyte', text(
            bytes([0, 0, 8, 3]) + struct.pack('>III', 2**12, 2**10, 2**10)), SOURCE),
        Attack('idx-none-idx3-ubyte', text(
            bytes([0, 0, 8, 3]) + struct.pack('>III', 2**31, 0, 2**31)), SOURCE),
    ]


def label_attacks() -> list[Attack]:
    """Return attacks with dataset.json, and files of labels."""
    def pair(label: object) -> list[list[object]]:
        return [['0.png', label], ['1.png', 0]]

    def many(count: int) -> list[list[object]]:
        return [['0.png', 0], ['1.png', 1], *([f'{i}', i] for i in range(count))]
    return [
        *(Attack(f'class-{name}/set', labelled(pair(value)), IMAGES) for name, value in {
            '2^31-1': 2**31 - 1, '2^16': 2**16, '65535': 65535, 'negative': -1, '1e300': 1e300,
            'vector': [0.0] * 10_000_000, 'nan': float('nan'), 'text': 'a' * 10_000_000,
            'true': True, 'digits': 10**4000}.items()),
        Attack('vectors/set', labelled(
            lambda: [[f'{i}.png', [0.5] * 1_000_000] for i in range(2)]),
               IMAGES),
        *(Attack(f'{count}-names/set', labelled(functools.partial(many, count)), IMAGES)
          for count in (130_000, 1_000_000)),
        Attack('keys/set', labelled(lambda: json.dumps({f'{i}': i for i in range(1_000_000)})),
               IMAGES),
        Attack('deep/set', labelled('[' * 8_000_000), IMAGES),
        Attack('deep-labels/set', labelled('{"labels": ' + '[' * 100_000), IMAGES),
        Attack('pairs/set', labelled('{"labels": [' + '[],' * 8_000_000 + '[]]}'), IMAGES),
        Attack('numbers/set', labelled('[' + '0,' * 30_000_000 + '0]'), IMAGES),
        Attack('names/set', labelled(json.dumps(
            {'labels': pair(0), 'classes': ['\x1b[2J\u202e' * 100] * 10_000})), IMAGES),
        Attack('names.json', text(lambda: json.dumps(
            {f'{i}': i for i in range(1_000_000)}).encode()), LABELS),
        *(Attack(name, text(content), LABELS) for name, content in {
            'deep.json': '[' * 1_000_000, 'pairs.json': '[' + '[],' * 8_000_000 + '[]]',
            'numbers.json': '[' + '0,' * 30_000_000 + '0]', 'one-line.csv': 'a,' * 10_000_000,
            'quote.csv': '"' + 'a' * 10_000_000, 'lines.csv': 'a,b\n' * 5_000_000,
            'empty-lines.csv': '\n' * 30_000_000, 'nul.csv': '\0' * 1000,
            'digits.csv': '00000/img0.png,' + '1' * 1_000_000 + '\n'}.items()),
    ]


def array_attacks() -> list[Attack]:
    """Return attacks with arrays: samples, statistics, latents and sources."""
    shapes = {
        'images-2^29': npy('(536870912, 8, 8, 3)'), 'images-2^60': npy('(1152921504606846976, 8)'),
        'no-bytes': npy('(9223372036854775807, 0, 8, 3)'), 'negative': npy('(-1, 8, 8, 3)'),
        'half': npy('(4, 8, 8, 3)', data=bytes(100)), 'objects': npy('(4,)', '|O', bytes(32)),
        'structured': npy('(4,)', [('a', '<f8', (2**20, 2**20))], b''),
        'nothing': npy('(2147483647, 2147483647, 1)', '|V0'),
        'deep': npy('(' * 5000), 'minus': npy('-' * 9000 + '1'), 'text': npy('(4,)', '<U9', b'')}
    found = [Attack(f'array-{name}.npz', npz(arr_0=data, latents=data, mu=data, sigma=data),
                    (*SAMPLES, *LATENTS, *REFERENCE)) for name, data in shapes.items()]
    found += [Attack(f'array-{name}.npy', text(data), SOURCE) for name, data in shapes.items()]
    return [
        *found,
        Attack('samples-300mb.npz', npz(arr_0=zeros((10_000, 100, 100, 3), '|u1')), SAMPLES),
        Attack('samples-16mb.npz', npz(arr_0=zeros((80, 256, 256, 3), '|u1')), SAMPLES),
        Attack('samples-5mb.npz', npz(arr_0=lambda: npy(
            '(712, 256, 256, 3)', data=os.urandom(5 * 2**20) + bytes(712 * 3 * 2**16 - 5 * 2**20))),
               (*SAMPLES[:1], *ONE)),
        Attack('latents-1gb.npz', npz(latents=zeros((250_000, 1, 32, 32))), LATENTS),
        Attack('latents-16mb.npz', npz(latents=zeros((60_000, 1, 8, 8))), LATENTS),
        *(Attack(f'latents-{kind[1:]}.npz', npz(latents=zeros((2, 1, 8, 8), kind),
                                                labels=zeros((2, 3), kind)), LATENTS)
          for kind in ('<i8', '|b1', '<c16', '<U4', '<M8', '|S4', '|u1', '<f2')),
        Attack('mu-1gb.npz', npz(mu=zeros((16_000,), '<f8'), sigma=zeros((16_000, 16_000))),
               REFERENCE),
        *(Attack(f'mu-{kind[1:]}.npz', npz(mu=zeros((64,), kind), sigma=zeros((64, 64), kind)),
                 REFERENCE) for kind in ('<i8', '|b1', '<c16', '<U4')),
    ]


def pickle_attacks() -> list[Attack]:
    """Return attacks with pickles, as snapshots, as statistics and as detectors."""
    found = {
        'unfolds-8-million': unfolding(8, 8), 'unfolds-2^60': unfolding(200, 2),
        'ten-times-six': unfolding(6, 10), 'deep': b'\x80\x02' + b']' * 100_000 + b'.',
        'loop': b'\x80\x02]q\x00h\x00a.', 'sets': opcodes(b'\x8f', 400_000),
        'dicts': opcodes(b'}', 400_000), 'lists': opcodes(b']', 340_000),
        'marks': b'\x80\x02' + b'(' * 340_000 + b'.', 'memo': b'\x80\x02]' + b''.join(
            b'r' + struct.pack('<I', i) for i in range(400_000)) + b'.',
        'text': b'\x80\x02X\xff\xff\xff\x7fa.', 'frame': b'\x80\x04\x95' + b'\xff' * 8 + b'.',
        'integer': b'\x80\x02\x8b' + struct.pack('<i', 2**24) + bytes(2**24) + b'.',
        'hostile': pickle.dumps(_Calls(), 2)}
    return [Attack(f'pickle-{name}.pkl', text(data), (*NETWORK, *REFERENCE, *DETECTOR))
            for name, data in found.items()]


class _Calls:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ('touch /tmp/limpid-was-here',)


def network_attacks(folder: Path) -> list[Attack]:
    """Return attacks with configurations, safetensors, archives of torch and detectors."""
    settings: dict[str, Change] = {
        **{f'{kind}-{T:.0e}': discrete(f'discrete/{kind}', T=T) for T in (10**9, 3 * 10**7, 10**5)
           for kind in ('ddpm-linear', 'cosine')},
        'iddpm-1e9': set_({'type': 'precond/iddpm', 'levels': {'type': 'levels/iddpm',
                                                               'M': 10**9}}, 'network', 'precond'),
        'blocks-1e6': set_(10**6, 'network', 'model', 'num_blocks'),
        'blocks-1e6-levels': set_([1] * 10**6, 'network', 'model', 'channel_mult'),
        'channels-1e9': set_(10**9, 'network', 'model', 'model_channels'),
        'channels-1e6': set_(10**6, 'network', 'model', 'model_channels'),
        'resolution-1e9': set_(10**9, 'network', 'img_resolution'),
        'resolution-1e6': set_(10**6, 'network', 'img_resolution'),
        'attention': set_(list(range(10**6)), 'network', 'model', 'attn_resolutions'),
        'filter': set_([1] * 10**5, 'network', 'model', 'resample_filter'),
        'labels-1e9': set_(10**9, 'network', 'label_dim'),
        'image-channels': set_(10**6, 'network', 'img_channels'),
        'sigma': set_(1e308, 'network', 'sigma_min'), 'dropout': set_(9, 'network', 'model',
                                                                       'dropout')}
    shard = {f'a{i}': {'dtype': 'U8', 'shape': [], 'data_offsets': [i, i + 1]}
             for i in range(200_000)}
    headers = {
        '90mb': b'{' + b' ' * 90_000_000 + b'}', '16mb': b'{' + b' ' * (2**24 - 2) + b'}',
        'deep': b'{"a":' + b'[' * 10_000_000, 'objects': b'{"a":[' + b'{},' * 5_000_000 + b'{}]}',
        'numbers': b'{"a":[' + b'0,' * 8_000_000 + b'0]}',
        'claims': json.dumps({'a': {'dtype': 'F32', 'shape': [2**40],
                                    'data_offsets': [0, 2**42]}}).encode(),
        'nothing': json.dumps({'a': {'dtype': 'F32', 'shape': [2**40, 0],
                                     'data_offsets': [0, 0]}}).encode()}
    unet: dict[str, dict[str, Any]] = {
        'layers-1e6': {'layers_per_block': 10**6}, 'layers-100': {'layers_per_block': 100},
        'blocks-100': {'block_out_channels': [4] * 100, 'layers_per_block': 100,
                       'down_block_types': ['DownBlock2D'] * 100,
                       'up_block_types': ['UpBlock2D'] * 100},
        'attention-100': {'_class_name': 'UNet2DConditionModel', 'layers_per_block': 10,
                          'down_block_types': ['CrossAttnDownBlock2D'],
                          'up_block_types': ['CrossAttnUpBlock2D'],
                          'cross_attention_dim': 8, 'transformer_layers_per_block': 100},
        'classes-1e9': {'num_class_embeds': 10**9}, 'channels-1e9': {'block_out_channels': [10**9]},
        'size-1e9': {'sample_size': 10**9}}
    return [
        *(Attack(f'snapshot-{name}.pkl', altered_snapshot(folder, change), NETWORK)
          for name, change in settings.items()),
        *(Attack(f'config-{name}.safetensors', altered_safetensors(folder, change), NETWORK)
          for name, change in settings.items()),
        *(Attack(f'header-{name}.safetensors', safetensors(header), (*NETWORK[:2], *DETECTOR))
          for name, header in headers.items()),
        Attack('many.safetensors', safetensors(json.dumps(shard).encode(), bytes(200_000)),
               (*NETWORK, *DETECTOR)),
        *(Attack(f'unet-{name}', diffusers_with(folder, 'config.json', **changes), NETWORK[:1])
          for name, changes in unet.items()),
        Attack('unet-timesteps', diffusers_with(folder, 'scheduler_config.json',
                                                num_train_timesteps=10**9), NETWORK[:1]),
        Attack('unet-timesteps-2^20', diffusers_with(
            folder, 'scheduler_config.json', num_train_timesteps=2**20,
            beta_schedule='squaredcos_cap_v2'), NETWORK[:1]),
        *(Attack(f'torch-{name}.pt', make, (*NETWORK, *DETECTOR)) for name, make in {
            'case': lambda path: _torch_zip(path, 'a/data.pkl', 'a/DATA.PKL'),
            'twice': lambda path: _torch_zip(path, 'a/data.pkl', 'a/data.pkl'),
            'two-folders': lambda path: _torch_zip(path, 'a/data.pkl', 'b/data.pkl'),
            'bomb': lambda path: write_zip(path, [('a/data.pkl', bytes(2**28))],
                                           zipfile.ZIP_DEFLATED),
            'script': lambda path: write_zip(path, [
                ('a/data.pkl', opcodes(b']', 340_000)), ('a/constants.pkl', b'\x80\x02).')]),
        }.items()),
        *(Attack(f'graph-{name}.pb', text(data), DETECTOR) for name, data in {
            '1e7-nodes': field(1, b'') * 10_000_000, '90000-nodes': field(1, b'x') * 90_000,
            'fields': field(1, field(1, b'') * 1_000_000), 'varint': b'\n' + b'\xff' * 100,
            'dimensions': constant('conv/weights', np.ones((1,) * 60, np.float32))}.items()),
        Attack('graph-bomb.tgz', text(lambda: gzipped(
            tar_of(2**28, name='classify_image_graph_def.pb')[:512], 2**28)), DETECTOR),
    ]


def _torch_zip(path: Path, *names: str) -> None:
    write_zip(path, ((name, opcodes(b']', 10 ** i)) for i, name in enumerate(names)))


def table_attacks() -> list[Attack]:
    """Return attacks with the tables and notes of a sweep and of a run."""
    key = f'{1:016x}'
    sweeps = {
        'outside': 'point,nfe,fid,error\n../../files,3,2.5,\n/tmp,3,2.5,\n',
        'field': 'point,nfe\n' + 'a' * 10_000_000, 'lines': 'point,nfe\n' + f'{key},3\n' * 500_000,
        'columns': 'point' + ',a' * 1_000_000 + '\n', 'nul': '\0' * 1000}
    runs: dict[str, Content] = {
        'brackets/stats.jsonl': b'[' * 10_000_000, 'numbers/stats.jsonl': b'1' * 10_000_000,
        'bytes/stats.jsonl': b'\xff\xfe\n' * 1_000_000, 'lines/stats.jsonl': b'{}\n' * 5_000_000,
        'infinity/stats.jsonl': b'{"Progress/kimg": {"mean": Infinity}}\n',
        'brackets/best.json': b'[' * 10_000_000, 'path/best.json': json.dumps(
            {'snapshot': '../files/network-snapshot-000001.pkl', 'kimg': 1, 'metric': 'fid',
             'scores': {}, 'evaluation': {}}).encode(),
        'zeros/training-state-000001.pt': bytes(10_000_000),
        'zip/training-state-000001.pt': lambda: bomb(2**28)}
    return [
        *(Attack(f'sweep-{name}', in_folder('sweep.csv', content.encode()), SWEEP)
          for name, content in sweeps.items()),
        *(Attack(f'run-{name.replace("/", "-")}', in_folder(name.split('/')[1], content), RUN)
          for name, content in runs.items())]


def special_attacks() -> list[Attack]:
    """Return attacks with pipes, links to devices and empty files of 4 GB, for every command."""
    readers = {'network.pkl': NETWORK, 'network.safetensors': NETWORK, 'samples.npz': SAMPLES,
               'set.zip': IMAGES, 'latents.npz': LATENTS, 'reference.npz': REFERENCE,
               'reference.pkl': REFERENCE, 'detector.pt': DETECTOR, 'labels.csv': LABELS,
               'labels.json': LABELS, 'x-idx3-ubyte': SOURCE, 'x.tar': SOURCE, 'x.npy': SOURCE,
               'x.parquet': SOURCE, 'c/cifar-10-python.tar.gz': SOURCE}
    inside = {'a.png': IMAGES, 'dataset.json': IMAGES, 'sweep.csv': SWEEP, 'stats.jsonl': RUN,
              'best.json': RUN, 'training-state-000001.pt': RUN, 'log.txt': RUN,
              'config.json': NETWORK[:1], 'data.mdb': SOURCE}
    kinds = ('pipe', 'zero', 'sparse')
    return [*(Attack(f'{kind}-{name}'.replace(f'{kind}-c/', f'{kind}/'), special(kind), commands)
              for kind in kinds for name, commands in readers.items()),
            *(Attack(f'{kind}-{name}-inside', special(kind, name), commands)
              for kind in kinds for name, commands in inside.items())]


@click.command()
@click.option('--only', help='A regular expression in the names of the attacks', default='',
              metavar='TEXT')
@click.option('--all', 'everything', is_flag=True, help='Print each command, not only faults')
def main(only: str, everything: bool) -> None:
    """Run every attack, and print what was wrong, and the most that a command took."""
    torch.set_num_threads(1)
    os.environ.update(LIMPID_OFFLINE='1', PYTHONWARNINGS='ignore')
    rows, faults = [], 0
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / 'base'
        folder.mkdir()
        originals(folder / 'files', folder / 'mark')
        for script in ('generate', 'train', 'fid', 'flow', 'checkpoint', 'dataset_tool'):
            importlib.import_module(script)
        chosen = [one for one in attacks(folder) if re.search(only, one.name)]
        for one in tqdm.tqdm(chosen, disable=None):
            for command, found, fault in attack(one, folder):
                rows.append((found.seconds, found.megabytes))
                faults += bool(fault)
                if fault or everything:
                    last = (found.output.strip().splitlines() or [''])[-1]
                    print(f'{one.name} | {command} | {found.code} | {found.seconds:.2f} s | '
                          f'{found.megabytes:.0f} MB | {fault} | {last[:150]}', flush=True)
    print(f'{len(rows)} commands, {faults} faults; the longest took {max(rows)[0]:.2f} s, the most '
          f'memory was {max(used for _, used in rows):.0f} MB')
    sys.exit(1 if faults else 0)


if __name__ == '__main__':
    main()
