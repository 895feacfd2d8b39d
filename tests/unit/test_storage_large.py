"""Large files as a storage peer writes them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from atoll.storage.content.digest import chosen, maker
from atoll.storage.content.direct_write import DIRECT_BYTES, LargeFile, ReadBack

from ..waiting import until


def resident_pages(path: Path) -> int:
    """Return how many pages of a file the page cache holds."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        pages = -(-len(view) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(address, ctypes.c_size_t(len(view)), found) == 0
        return sum(value & 1 for value in found)


def test_what_was_written_past_the_page_cache_is_read_back(tmp_path: Path) -> None:
    """A large file is in the page cache a moment after it has been received, for who uses it next."""
    path = tmp_path / "large"
    content = os.urandom(1 << 20)
    size = DIRECT_BYTES + 12345
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    large, back = LargeFile(descriptor, maker(chosen(["sha256"])), size), ReadBack()
    try:
        while large.position < size:
            large.write(content[: size - large.position])
        large.finish()
        if not large.past_cache:
            pytest.skip("this file system has no writes past the page cache")
        back.add(descriptor, size)
    finally:
        large.close()
    assert resident_pages(path) < size // mmap.PAGESIZE // 2
    back.begin()
    until(lambda: resident_pages(path) >= size // mmap.PAGESIZE)
    assert path.stat().st_size == size
