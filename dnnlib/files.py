"""Files that are either complete or absent, and their checksums."""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: str | os.PathLike[str], durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only when the block ends without an error.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the file is
    renamed: a reader, a crash or a full disk never sees half of it. `durable=False` leaves out the
    flush to the disk, for many small files that can be made again. What a killed process left of
    the same file is removed before a durable one.

    A link stays one: the file that it leads to is written. Where `path` is no regular file but a
    device or a pipe, it receives the bytes at the end of the block and stays what it is.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with open(path, 'wb') as there:
                shutil.copyfileobj(file, there)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        remove_leftovers(path.parent, re.escape(path.name))
    temporary = path.parent / f'.{path.name}.{secrets.token_hex(4)}.tmp'
    file = _Noting(io.FileIO(os.open(temporary, _NEW, 0o666), 'w+'))
    try:
        with file:
            _lock(file)   # as long as this process lives, nobody takes it for a leftover
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if os.name != 'nt':   # while the lock is held; Windows moves no open file
                os.replace(temporary, path)
        if os.name == 'nt':
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        failure = file.failure or error
        if isinstance(failure, OSError) and _is_about_space(failure):
            failure.filename = str(path)
            raise failure from None
        raise


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Add a line to the end of a file, on a new line even where the last one is unfinished.

    Raises OSError, which names the file, where the disk is full.
    """
    with naming(path), open(path, 'ab+') as file:
        if file.seekable() and file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b'\n':
                file.write(b'\n')
        file.write(f'{line}\n'.encode(errors='surrogateescape'))


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an error of a full disk in a block name the file that is written."""
    try:
        yield
    except OSError as error:
        if _is_about_space(error):
            error.filename = os.fspath(path)
        raise


def _is_about_space(error: OSError) -> bool:
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Noting(io.BufferedRandom):
    """A file that keeps its first error: libraries make tracebacks of their own of a full disk."""
    failure: OSError | None = None

    def write(self, data: bytes, /) -> int:   # type: ignore[override]
        """Write like any file."""
        with self._noting():
            return super().write(data)

    def flush(self) -> None:
        """Flush like any file."""
        with self._noting():
            super().flush()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            raise


# Like tempfile's, but with the rights that any new file gets: to ask for the umask is to set it,
# which threads that write at the same time would see.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0)
LEFTOVER = re.compile(r'\.(.+)\.[a-z0-9_]{8}\.tmp')
SETTLED = 2.0   # seconds after which a temporary file is old enough to be judged by its lock


def remove_leftovers(folder: str | os.PathLike[str], names: str) -> None:
    """Remove the temporary files that killed processes left of files with certain names.

    `names` is a regular expression; temporary files of other names belong to somebody else. A
    living process holds a lock on its own; on a system without such locks nothing is removed.
    """
    try:
        found = [entry for entry in os.scandir(folder) if entry.name.startswith('.')]
    except OSError:
        return
    for entry in found:
        match = LEFTOVER.fullmatch(entry.name)
        if match is None or re.fullmatch(names, match[1]) is None:
            continue
        with contextlib.suppress(OSError):
            if (entry.is_file(follow_symlinks=False)
                    and time.time() - entry.stat().st_mtime > SETTLED):
                with open(entry.path, 'rb') as file:
                    if _lock(file):
                        os.unlink(entry.path)


def _lock(file: IO[bytes]) -> bool:
    """Lock a file for this process without waiting; return whether that was possible."""
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading that is a regular one, or a link to one.

    Raises ValueError for a pipe or a device, which may have no end, and for a folder; OSError for
    one that cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        found = 'folder' if stat.S_ISDIR(kind) else 'device or pipe'
        raise ValueError(f'{os.fspath(path)} is a {found}, not a file')
    return os.fdopen(handle, 'rb')


def read_bounded(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the bytes of a regular file; raise ValueError for one of more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size   # to ask for `most` bytes would take its time
        data = file.read(size + 1) if size <= most else b''
        if len(data) > size:   # it has grown, or does not tell its size
            data += file.read(most + 1 - len(data))
    if max(size, len(data)) > most:
        raise ValueError(f'{os.fspath(path)} has more than {most:,} bytes, the most for such a '
                         f'file')
    return data


MOST_RATIO = 32    # of what a compressed file unfolds to, to its size; real ones have 1 to 15 ...
SMALL_UNFOLDED = 2**24   # ... from so many bytes on: those of a constant are few


class Unfolded(io.RawIOBase):
    """What a gzip file unfolds to; ValueError where that is far more than any real file has.

    `most` is the largest number of bytes, at any ratio.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        size = os.fstat(file.fileno()).st_size
        self.stream = gzip.GzipFile(fileobj=file)
        self.most = self.left = min(most, max(SMALL_UNFOLDED, MOST_RATIO * size))

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:   # type: ignore[override]
        """Read the next bytes."""
        count = self.stream.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise ValueError(f'it unfolds to more than {self.most:,} bytes')
        return count


def unfolded(file: IO[bytes], most: int) -> tuple[IO[bytes], int]:
    """Return a file, or what it unfolds to if it is a gzip, and the most bytes that it may have."""
    compressed = file.read(2) == b'\x1f\x8b'
    file.seek(0)
    if not compressed:
        return file, most
    stream = Unfolded(file, most)
    return io.BufferedReader(stream), stream.most


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the bytes of a file, in hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def expanded(path: str) -> str:
    """Return a path with the home folder in place of `~`, also after a prefix such as `ideal:`.

    Raises ValueError for an empty path, for one that no file can have, and for `~` where there is
    no home folder.
    """
    if not path or '\0' in path:
        raise ValueError(f'{path!r} is not the name of a file or folder')
    match = re.fullmatch(r'(\w{2,}:)?(~.*)', path, flags=re.DOTALL)
    if match is None:
        return path
    found = os.path.expanduser(match[2])
    if found == match[2] and Path(found).parts[0] == '~':
        raise ValueError(f'{path}: there is no home folder, as HOME is not set')
    return (match[1] or '') + found


def home() -> Path:
    """Return the home folder; where there is none, one of this user's in the temporary folder."""
    found = Path(os.path.expanduser('~'))
    if found.is_absolute():
        return found
    user = os.getuid() if hasattr(os, 'getuid') else 'user'
    return Path(tempfile.gettempdir()) / f'limpid-{user}'


@contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the file `path` while the block runs. Raises ValueError if another process holds it.

    The lock ends with the process, however that ends. On a system without such locks every process
    is let in. What has the name of the lock already and is no file, such as a link, is not opened.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f'{os.fspath(path)} is no file, and cannot be the lock of its folder: '
                         f'delete it')
    with open(path, 'ab') as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'{Path(path).parent} is in use by another process') from None
        except (ImportError, OSError):
            pass
        yield
