"""Checksums of files, and files that cannot be written."""

import errno
import hashlib

import pytest

from dnnlib.files import atomic_write, sha256_of_file


def test_sha256_of_a_file_of_several_blocks(tmp_path):
    content = bytes(range(256)) * 8193   # two blocks of 1 MiB, and 256 bytes
    (tmp_path / 'file').write_bytes(content)
    assert sha256_of_file(tmp_path / 'file') == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    with (pytest.raises(OSError) as caught, atomic_write(tmp_path / 'a.pkl')):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert str(caught.value) == f"[Errno 28] No space left on device: '{tmp_path}/a.pkl'"
    assert list(tmp_path.iterdir()) == []
