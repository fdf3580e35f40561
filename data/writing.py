"""A zip or a folder that appears when it is complete, and that is continued after a kill.

It grows in a folder `.NAME.partial` beside the destination: the data, and a journal with a line for
each chunk of images that is written. The same command finds it there and goes on.
"""

import contextlib
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from data.prepare import Outcome
from dnnlib.files import held

KEY, JOURNAL, LOCK = 'key', 'journal', 'lock'


def check_apart(source: str, dest: str) -> None:
    """Raise ValueError where the result would replace the source or be read with it later."""
    theirs, ours = (Path(os.path.realpath(path)) for path in (source, dest))
    if ours == theirs or (ours.exists() and os.path.samefile(ours, theirs)):
        raise ValueError(f'--dest={dest} is the source itself: give a new name')
    if theirs in ours.parents:
        raise ValueError(f'--dest={dest} lies inside the source, and would be read with it the '
                         f'next time: give a name outside of --source={source}')
    if ours in theirs.parents:
        raise ValueError(f'--source={source} lies inside --dest={dest}, which would replace it: '
                         'give a new name')


def check_dest(path: str, overwrite: bool) -> None:
    """Raise ValueError unless a data set may be written there.

    A zip must be new and a folder new or empty; with `overwrite` they may be a file and a data set
    of this tool, which are replaced.
    """
    dest = Path(os.path.abspath(path))
    if is_zip(dest):
        if dest.is_dir():
            raise ValueError(f'--dest={dest} is a folder: give the name of a zip file, '
                             'or a folder without .zip')
        if dest.exists() and not overwrite:
            raise ValueError(f'--dest={dest} exists: give a new name, or --overwrite to replace it')
        return
    if dest.exists() and not dest.is_dir():
        raise ValueError(f'--dest={dest} is a file: give a new name, an empty folder '
                         'or a name that ends in .zip')
    if dest.exists() and any(dest.iterdir()):
        if not is_data_set(dest):
            raise ValueError(f'--dest={dest} is not empty: give a new name or an empty folder')
        if not overwrite:
            raise ValueError(f'--dest={dest} is a data set: give a new name, or --overwrite to '
                             'replace it')


def is_zip(dest: Path) -> bool:
    """Return whether a destination of this name is a zip."""
    return dest.suffix.lower() == '.zip'


def is_data_set(folder: Path) -> bool:
    """Return whether a folder holds what this tool writes, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return 'dataset.json' in names and all(re.fullmatch(r'\d{5}|dataset\.json', name)
                                           for name in names)


@contextlib.contextmanager
def written(path: str, key: str) -> Iterator['Partial']:
    """Give a Partial for the data set `path`, which appears where the block calls `finish`.

    Where the block ends with an error, nothing remains; where the process is interrupted or
    killed, the partial data set does, for the next call with the same `key`.
    """
    dest = Path(os.path.abspath(path))
    if is_zip(dest):
        dest = Path(os.path.realpath(dest))   # a link stays one
    folder = dest.parent / f'.{dest.name}.partial'
    made = [parent for parent in dest.parents if not parent.exists()]
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(exist_ok=True)
        with held(folder / LOCK):
            partial = (_Zip if is_zip(dest) else _Folder)(dest, folder, key)
            try:
                yield partial
            except Exception as error:
                partial.remove()
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = path
                raise
            finally:
                partial.close()
    except Exception:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


class Partial:
    """A data set that is being written; `before()` has what an earlier call wrote of it."""

    def __init__(self, dest: Path, folder: Path, key: str) -> None:
        self.dest, self.folder = dest, folder
        if not ((folder / KEY).is_file() and (folder / KEY).read_text() == key):
            self._empty()
            (folder / KEY).write_text(key)
        self.lines = self._restore()
        self._journal = open(folder / JOURNAL,   # noqa: SIM115 (closed by close)
                             'r+b' if self.lines else 'w+b')
        for _ in range(self.lines):
            self._journal.readline()
        self._journal.truncate(self._journal.tell())

    def before(self) -> Iterator[list[Outcome]]:
        """Yield the outcomes that are written already."""
        with open(self.folder / JOURNAL, 'rb') as file:
            for _ in range(self.lines):
                yield [Outcome.of(record) for record in json.loads(file.readline())]

    def add(self, chunk: list[Outcome]) -> None:
        """Write the files of a chunk of images, and then that they are written."""
        for told in chunk:
            if told.ending:
                self.save(told.file, told.data)
        self.flush()
        records = json.dumps([told.record() for told in chunk])
        self._journal.write(records.encode() + b'\n')
        self._journal.flush()

    def _restore(self) -> int:
        """Return how many lines of the journal are borne out by the data, and cut off the rest."""
        lines = 0
        with contextlib.suppress(OSError, ValueError, TypeError), \
                open(self.folder / JOURNAL, 'rb') as file:
            for line in file:
                chunk = [Outcome.of(record) for record in json.loads(line)]
                if not line.endswith(b'\n') or not self.has(
                        [told for told in chunk if told.ending]):
                    break
                lines += 1
        self.cut()
        return lines

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name in (KEY, JOURNAL, 'data.zip'):
                path.unlink()
            elif path.name == 'data':
                shutil.rmtree(path)

    def remove(self) -> None:
        """Delete everything."""
        self.close()
        self._empty()
        (self.folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Close the files."""
        self._journal.close()

    def save(self, name: str, data: bytes) -> None:
        """Write one file of the data set."""
        raise NotImplementedError

    def flush(self) -> None:
        """Hand all files over to the operating system."""

    def has(self, chunk: list[Outcome]) -> bool:
        """Return whether the data of the next images are there, whole."""
        raise NotImplementedError

    def cut(self) -> None:
        """Forget what lies behind the images that `has` found."""

    def finish(self, dataset_json: bytes) -> None:
        """Write dataset.json, and let the data set appear."""
        raise NotImplementedError


class _Zip(Partial):
    """An uncompressed zip without times and systems, so that equal images give equal bytes."""

    def __init__(self, dest: Path, folder: Path, key: str) -> None:
        self.entries: list[zipfile.ZipInfo] = []
        self.end = 0
        self.file = open(folder / 'data.zip', 'a+b')   # noqa: SIM115 (closed by close)
        self.file.close()
        super().__init__(dest, folder, key)
        self.archive = zipfile.ZipFile(self.file, 'w', zipfile.ZIP_STORED)
        for entry in self.entries:
            self.archive.filelist.append(entry)
            self.archive.NameToInfo[entry.filename] = entry

    def _restore(self) -> int:
        self.file = open(self.folder / 'data.zip',   # noqa: SIM115
                         'r+b' if (self.folder / 'data.zip').exists() else 'w+b')
        return super()._restore()

    def save(self, name: str, data: bytes) -> None:
        self.archive.writestr(self._entry(name), data)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        entry.create_system = 3
        entry.external_attr = 0o100644 << 16
        return entry

    def flush(self) -> None:
        self.file.flush()

    def has(self, chunk: list[Outcome]) -> bool:
        end, entries = self.end, []
        for told in chunk:
            self.file.seek(end)
            head, name = self.file.read(30), self.file.read(len(told.file))
            data = self.file.read(told.length)
            if (len(head) < 30 or name != told.file.encode()
                    or struct.unpack('<3I', head[14:26]) != (told.crc, told.length, told.length)
                    or len(data) < told.length or zlib.crc32(data) != told.crc):
                return False
            entry = self._entry(told.file)
            entry.header_offset, entry.CRC = end, told.crc
            entry.file_size = entry.compress_size = told.length
            entries.append(entry)
            end = self.file.tell()
        self.end = end
        self.entries += entries
        return True

    def cut(self) -> None:
        self.file.seek(self.end)
        self.file.truncate()

    def close(self) -> None:
        super().close()
        self.archive.fp = None   # else it would be finished when it is forgotten
        self.file.close()   # without an end of the zip, which only `finish` writes

    def finish(self, dataset_json: bytes) -> None:
        self.save('dataset.json', dataset_json)
        self.archive.close()
        self.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.folder / 'data.zip', self.dest)
        self.remove()


class _Folder(Partial):
    """A folder of files."""

    def save(self, name: str, data: bytes) -> None:
        file = self.folder / 'data' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def has(self, chunk: list[Outcome]) -> bool:
        for told in chunk:
            file = self.folder / 'data' / told.file
            if not file.is_file() or file.stat().st_size != told.length or (
                    zlib.crc32(file.read_bytes()) != told.crc):
                return False
        return True

    def finish(self, dataset_json: bytes) -> None:
        self.save('dataset.json', dataset_json)
        old = self.folder / 'old'
        if self.dest.exists():
            os.replace(self.dest, old)
        try:
            os.replace(self.folder / 'data', self.dest)
        except BaseException:
            if old.exists():
                os.replace(old, self.dest)
            raise
        shutil.rmtree(old, ignore_errors=True)
        self.remove()
