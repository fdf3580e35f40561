"""Checksums of files, and files that cannot be written."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dnnlib.files import atomic_write, open_regular, read_bounded, remove_leftovers, sha256_of_file


def test_sha256_of_a_file_of_several_blocks(tmp_path):
    content = bytes(range(256)) * 8193   # two blocks of 1 MiB, and 256 bytes
    (tmp_path / 'file').write_bytes(content)
    assert sha256_of_file(tmp_path / 'file') == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    with (pytest.raises(OSError) as caught, atomic_write(tmp_path / 'a.pkl')):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert str(caught.value) == f"[Errno 28] No space left on device: '{tmp_path}/a.pkl'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('mask, mode', [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_has_the_rights_of_any_new_one(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / 'a'):
            pass
        assert (tmp_path / 'a').stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere' / 'file')
    for text in (b'first', b'second'):
        with atomic_write(tmp_path / 'link') as file:
            file.write(text)
        assert (tmp_path / 'link').is_symlink()
        assert (tmp_path / 'elsewhere' / 'file').read_bytes() == text
    assert os.listdir(tmp_path / 'elsewhere') == ['file']


def test_a_pipe_and_a_device_receive_the_bytes_and_stay(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / 'pipe').read_bytes()))
    reader.start()
    with atomic_write(tmp_path / 'pipe') as file:
        file.write(b'some')
        file.seek(0)
        file.write(b'S')
    reader.join(timeout=120)
    assert received == [b'Some'] and (tmp_path / 'pipe').is_fifo()
    with atomic_write('/dev/null') as file:
        file.write(b'nowhere')
    assert Path('/dev/null').is_char_device()


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    (tmp_path / 'file').write_bytes(b'12345')
    (tmp_path / 'link').symlink_to('file')
    for name, message in (('pipe', 'is a device or pipe, not a file'),
                          ('zero', 'is a device or pipe, not a file'),
                          ('.', 'is a folder, not a file')):
        with pytest.raises(ValueError, match=message):
            open_regular(tmp_path / name)
    assert read_bounded(tmp_path / 'link', 5) == b'12345'
    with pytest.raises(ValueError, match='file has more than 4 bytes, the most for such a file'):
        read_bounded(tmp_path / 'file', 4)


KILLED = """
import os, signal, sys
from dnnlib.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b'half')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, '-c', KILLED, tmp_path / 'a.pkl'], check=False,
                   env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])})
    [left] = os.listdir(tmp_path)
    others = ['.a.pkl.tmp', '.b.pkl.abcdefgh.tmp', 'a.pkl.abcdefgh.tmp', '.a.pkl.ABCDEFGH.tmp']
    for name in others:
        (tmp_path / name).touch()
    for name in (left, *others):
        os.utime(tmp_path / name, (time.time() - 10,) * 2)
    with atomic_write(tmp_path / 'a.pkl') as file:
        os.utime(file.name if isinstance(file.name, str) else file.fileno(),
                 (time.time() - 10,) * 2)
        remove_leftovers(tmp_path, r'[ab]\.pkl')   # of both: another one's that is held stays
        assert len(os.listdir(tmp_path)) == len(others)   # .b.pkl's is gone, this one's is there
    assert sorted(os.listdir(tmp_path)) == sorted(
        ['a.pkl', *(name for name in others if name != '.b.pkl.abcdefgh.tmp')])


@pytest.mark.parametrize('limit', [0, 10_000, 65_536, 70_000, 100_000])
def test_a_full_disk_is_told_whatever_a_library_makes_of_it(tmp_path, limit):
    """torch's writer turns the error of the disk into one of its own, of forty lines."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OSError) as caught, atomic_write(tmp_path / 'a.pt') as file:
            torch.save({str(i): torch.zeros(2000) for i in range(20)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert str(caught.value) == f"[Errno 27] File too large: '{tmp_path}/a.pt'"
    assert list(tmp_path.iterdir()) == []
