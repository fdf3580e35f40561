"""Files that are either complete or absent, and their checksums."""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: str | os.PathLike[str], durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only when the block ends without an error.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the file is
    renamed: a reader, a crash or a full disk never sees half of it. `durable=False` leaves out the
    flush to the disk, for many small files that can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, 'w+b') as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())   # mkstemp makes files that only the owner reads
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT,
                                                              errno.EFBIG)
        if full and error.filename is None:   # type: ignore[attr-defined]
            error.filename = str(path)   # type: ignore[attr-defined]
        raise


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the bytes of a file, in hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open(path, 'rb') as file:
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
    is let in.
    """
    with open(path, 'ab') as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'{Path(path).parent} is in use by another process') from None
        except (ImportError, OSError):
            pass
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
