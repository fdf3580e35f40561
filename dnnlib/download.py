"""Files from the web: downloaded once, by one process, and checked.

    path = fetch('https://example.org/net.pkl', sha256='…')

A download goes on after a broken connection. Files are kept in $LIMPID_CACHE_DIR, else in
~/.cache/limpid/downloads, under a name that begins with a hash of the address. A process that finds
another one at work waits for it; processes of one training or sampling run need no other agreement,
and no collective call waits for the network.
"""

import email.message
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dnnlib.console import shown
from dnnlib.files import home, sha256_of_file

ATTEMPTS = 5      # to continue after a broken connection
TIMEOUT = 60.0    # seconds without a byte
CHUNK = 1 << 20


def is_url(name: str) -> bool:
    """Return whether `name` is the address of a file on the web."""
    return name.startswith(('http://', 'https://'))


def cache_dir() -> Path:
    """Return $LIMPID_CACHE_DIR, else ~/.cache/limpid/downloads."""
    chosen = os.environ.get('LIMPID_CACHE_DIR')
    return Path(chosen).expanduser() if chosen else home() / '.cache' / 'limpid' / 'downloads'


def cached_path(url: str) -> Path:
    """Return the path under which the file of this address is kept, once it is there."""
    name = re.sub(r'[^\w.-]', '_', Path(urllib.parse.urlsplit(url).path).name)[-100:] or 'file'
    return cache_dir() / f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}'


def dnnlib_copies(url: str) -> list[Path]:
    """Return where NVlabs/edm and its relatives have kept the file of this address, if they have.

    Their cache is $DNNLIB_CACHE_DIR, else ~/.cache/dnnlib/downloads; names begin with the MD5 of
    the address.
    """
    chosen = os.environ.get('DNNLIB_CACHE_DIR')
    theirs = Path(chosen) if chosen else home() / '.cache' / 'dnnlib'
    key = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    return [path for folder in (theirs / 'downloads', theirs)
            for path in sorted(folder.glob(f'{key}_*'))]


@contextmanager
def as_fetched(source: str, path: Path) -> Iterator[None]:
    """Add to a ValueError about a file that came from the web how it is fetched anew."""
    try:
        yield
    except ValueError as error:
        if not is_url(source):
            raise
        raise ValueError(f'{error} (it is from {shown(source, 200)}: delete {path}, and it is '
                         f'fetched again)') from error


# The most bytes of a file, by its kind: far more than any that is published.
NETWORK, STATISTICS, SAMPLES, DETECTOR = 2**33, 2**31, 2**37, 2**32


def fetch(url: str, sha256: str | None = None, pause: float = 1.0, most: int = NETWORK) -> Path:
    """Return the path of the file at an http(s) address, from the cache or the web.

    The file must have the SHA-256 `sha256`, in hexadecimal digits, even if it is in the cache
    already. A copy in the cache of NVlabs/edm (`dnnlib_copies`) is taken where it is. After a
    broken connection the rest is requested again, up to ATTEMPTS times, after waiting `pause`
    seconds and then twice as long each time. A file of more than `most` bytes is not fetched, nor
    one whose length the server does not tell. Raises ValueError, in one line that names the address
    and says where the file can be put by hand.
    """
    if not is_url(url):
        raise ValueError(f'{url} is no http or https address')
    path = cached_path(url)
    if not path.exists():
        for copy in dnnlib_copies(url):
            if sha256 is None or sha256_of_file(copy) == sha256.lower():
                return copy
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(path.with_name(f'{path.name}.lock')):
            if not path.exists():
                _download(url, path, sha256, pause, most)
            elif sha256 is not None and sha256_of_file(path) != sha256.lower():
                raise ValueError(f'{path} does not have the checksum {sha256}: '
                                 f'delete it, and it is fetched from {url} again')
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, path, error) from error
    return path


def _unreachable(url: str, path: Path, error: Exception) -> ValueError:
    reason = shown(str(error.reason if type(error) is urllib.error.URLError else error), 200)
    return ValueError(f'{url} cannot be fetched ({reason}): download it elsewhere and save it as '
                      f'{path}')


def _download(url: str, path: Path, sha256: str | None, pause: float, most: int) -> None:
    """Fetch the file under another name, check it, and give it the name `path`."""
    part, validator = path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.validator')
    _receive_all(url, part, validator, pause, most)
    found = sha256_of_file(part)
    if sha256 is not None and found != sha256.lower():
        part.unlink()
        raise ValueError(f'{url} has the checksum {found} instead of {sha256}: '
                         'it is another file, or was altered on its way')
    os.replace(part, path)
    validator.unlink(missing_ok=True)


def _receive_all(url: str, part: Path, validator: Path, pause: float, most: int) -> None:
    """Receive into `part`, in several attempts if the connection breaks, until it is complete."""
    for attempt in range(ATTEMPTS + 1):
        try:
            if _receive(url, part, validator, most):
                return
            failure: Exception = ConnectionError('the connection broke before the end')
        except urllib.error.HTTPError as error:
            # 416: our part is not the beginning of the file that is there now
            if error.code != 416 and error.code < 500:
                raise
            if error.code == 416:
                part.unlink(missing_ok=True)
            failure = error
        except (OSError, http.client.HTTPException) as error:
            if not part.exists():
                raise   # nothing has come yet: the address is wrong, or there is no network
            failure = error
        if attempt == ATTEMPTS:
            raise failure
        time.sleep(pause * 2**attempt)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects as browsers follow them: from https to https only, and never to other kinds."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
                         headers: http.client.HTTPMessage,
                         newurl: str) -> urllib.request.Request | None:
        """Return the request to the new address; raise ValueError where it is not safe."""
        wanted = ('https://',) if req.full_url.startswith('https://') else ('https://', 'http://')
        if not newurl.startswith(wanted):
            raise ValueError(f'{req.full_url} leads to {shown(newurl, 200)}, which is not '
                             f'{" or ".join(name[:-3] for name in wanted)}')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


OPENER = urllib.request.OpenerDirector()
for _handler in (urllib.request.ProxyHandler, urllib.request.UnknownHandler,
                 urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _Redirects,
                 urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor):
    OPENER.add_handler(_handler())


def _receive(url: str, part: Path, validator: Path, most: int) -> bool:
    """Append the missing rest to `part`, and return whether it is complete now.

    Only the rest is asked for if the server can tell whether the file is still the same.
    """
    known = validator.read_text() if validator.exists() else ''
    have = part.stat().st_size if part.exists() and known else 0
    headers = {'User-Agent': 'limpid', 'Accept-Encoding': 'identity'}
    if have:
        headers |= {'Range': f'bytes={have}-', 'If-Range': known}
    request = urllib.request.Request(url, headers=headers)
    with OPENER.open(request, timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == 'text/html':
            raise ValueError(f'{url} answers with a web page, not with a file')
        if response.status not in (200, 206) or (response.status == 206 and not have):
            raise ValueError(f'{url} answers with status {response.status}, not with a file')
        if response.status != 206 or not _continues(response.headers, have):
            have = 0
            part.unlink(missing_ok=True)
            if response.status == 206:
                return False   # a different part came: the next attempt requests everything
        total = response.headers.get('Content-Length')
        if total is not None and not re.fullmatch('[0-9]{1,18}', total):
            raise ValueError(f'{url} gives the file a length of {shown(total)} bytes')
        end = None if total is None else have + int(total)
        # The end of a chunked answer is told, too; a broken one raises IncompleteRead.
        if end is None and response.headers.get('Transfer-Encoding', '').lower() != 'chunked':
            part.unlink(missing_ok=True)
            raise ValueError(f'{url} does not say how long the file is, so that a broken one would '
                             f'not be noticed')
        if end is not None and end > most:
            raise ValueError(f'{url} is a file of {end / 1e6:,.0f} MB, where {most / 1e6:,.0f} MB '
                             f'are the most')
        tag = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
        validator.write_text('' if tag.startswith('W/') else tag)
        with open(part, 'ab') as file:
            have += _copy(response, file, f'Downloading {shown(url, 200)}', have, end, most)
            file.flush()
            os.fsync(file.fileno())
    return end is None or have == end


def _continues(headers: email.message.Message, have: int) -> bool:
    return str(headers.get('Content-Range', '')).replace(' ', '').startswith(f'bytes{have}-')


def _copy(response: http.client.HTTPResponse, file: IO[bytes], title: str, have: int,
          end: int | None, most: int) -> int:
    """Copy a response to a file and return the number of bytes; on a terminal, show progress."""
    count, shown = 0, 0.0
    total = '' if end is None else f' of {end / 1e6:.1f}'
    try:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            count += len(chunk)
            if have + count > most:
                raise ValueError(f'{title}: more than {most / 1e6:,.0f} MB come')
            if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                print(f'\r{title}: {(have + count) / 1e6:.1f}{total} MB', end='', file=sys.stderr,
                      flush=True)
    finally:
        if shown:
            print(file=sys.stderr)
    return count


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Wait until no other process is within this block for the same path.

    The lock ends with the process, however that ends. On a system without such locks no process
    waits: the work is done twice, and the file of the last process stays.
    """
    with open(path, 'a+b') as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield
