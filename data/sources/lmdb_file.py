"""Databases of LMDB, read without its library, which trusts every number in a file.

A file consists of pages. Page 0 or 1, whichever was written last, leads to the root of a tree of
sorted keys: branch pages lead to other pages, leaf pages hold the values, or lead to the pages that
hold a large one. The format (version 1) is that of OpenLDAP's mdb.c, on a computer of 64 bits whose
lowest byte comes first.
"""

import bisect
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dnnlib.files import open_regular

MAGIC, VERSION = 0xBEEFC0DE, 1
HEADER = 16              # bytes of a page before what it holds
BRANCH, LEAF, OVERFLOW = 1, 2, 4   # kinds of pages
LARGE = 1                # a value on pages of its own
MOST_DEPTH = 32


class Node(NamedTuple):
    """An entry of a page: a key and what belongs to it, a page or a value."""
    key: bytes
    page: int        # of a branch
    flags: int
    size: int        # of the value of a leaf, and where it begins
    start: int


class Database:
    """The keys and values of a file data.mdb.

    All methods raise ValueError for a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = open_regular(path)
        self.length = self.file.seek(0, 2)
        first = self._meta(0)
        self.page_size = first[1]
        if self.page_size not in (2**n for n in range(9, 17)):
            raise ValueError(f'it has pages of {self.page_size} bytes')
        _, _, flags, self.depth, self.root = max(first, self._meta(self.page_size))
        if flags or self.depth > MOST_DEPTH:
            raise ValueError(f'it is of another kind ({flags:#x}), or its tree is {self.depth} '
                             f'deep')

    def __iter__(self) -> Iterator[bytes]:
        """Yield all keys, which ascend."""
        last: bytes | None = None
        for node in self._leaves(self.root, self.depth) if self.depth else ():
            if last is not None and node.key <= last:   # a page that occurs twice, too
                raise ValueError('its keys do not ascend')
            last = node.key
            yield last

    def value(self, key: bytes, most: int) -> bytes | None:
        """Return the value of a key; None where there is no such key, or more bytes than `most`."""
        number, depth = self.root, self.depth
        while depth > 1:
            nodes = self._nodes(number, BRANCH)
            at = bisect.bisect_right([node.key for node in nodes[1:]], key)
            number, depth = nodes[at].page, depth - 1
        nodes = self._nodes(number, LEAF) if depth else []
        node = next((node for node in nodes if node.key == key), None)
        if node is None or node.size > most:
            return None
        start = number * self.page_size + node.start
        if node.flags & LARGE:
            page, = struct.unpack('<Q', self._read(start, 8))
            if self._read(page * self.page_size, HEADER)[10] != OVERFLOW:
                raise ValueError(f'page {page} does not hold a value')
            start = page * self.page_size + HEADER
        elif node.start + node.size > self.page_size:
            raise ValueError(f'a value on page {number} is larger than the page')
        return self._read(start, node.size)

    def _meta(self, start: int) -> tuple[int, int, int, int, int]:
        """Return the number of the last change, and the page size, flags, depth and root."""
        magic, version, page_size, flags, depth, root, change = struct.unpack(
            '<II16xI48xHH32xQ8xQ', self._read(start + HEADER, 136))
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError('it does not begin like one, or is of another version')
        return change, page_size, flags, depth, root

    def _leaves(self, number: int, depth: int) -> Iterator[Node]:
        nodes = self._nodes(number, BRANCH if depth > 1 else LEAF)
        if depth == 1:
            yield from nodes
            return
        for node in nodes:
            yield from self._leaves(node.page, depth - 1)

    def _nodes(self, number: int, kind: int) -> list[Node]:
        """Return the entries of a page, of which there is at least one."""
        page = self._read(number * self.page_size, self.page_size)
        flags, lower = struct.unpack_from('<HH', page, 10)
        if flags != kind or not HEADER < lower <= self.page_size:
            raise ValueError(f'page {number} is not the page that it should be')
        nodes = []
        for start, in struct.iter_unpack('<H', page[HEADER:lower - lower % 2]):
            if start + 8 > self.page_size:
                raise ValueError(f'an entry of page {number} lies outside of it')
            low, high, flags, length = struct.unpack_from('<HHHH', page, start)
            end = start + 8 + length
            if end > self.page_size or (kind == LEAF and flags & ~LARGE):
                raise ValueError(f'an entry of page {number} is damaged, or of another kind')
            size = low | high << 16
            nodes.append(Node(page[start + 8:end], size | flags << 32, flags, size, end))
        return nodes

    def _read(self, start: int, count: int) -> bytes:
        if start + count > self.length:
            raise ValueError(f'it ends before byte {start + count:,}')
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError('it became shorter while it was read')
        return data
