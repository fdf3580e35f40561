"""Checksums of files."""

import hashlib

from dnnlib.files import sha256_of_file


def test_sha256_of_a_file_of_several_blocks(tmp_path):
    content = bytes(range(256)) * 8193   # two blocks of 1 MiB, and 256 bytes
    (tmp_path / 'file').write_bytes(content)
    assert sha256_of_file(tmp_path / 'file') == hashlib.sha256(content).hexdigest()
