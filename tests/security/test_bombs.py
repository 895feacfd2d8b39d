"""Little that becomes much: compressed contents that are larger than they say, to whoever unpacks them."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard

from atoll.errors import SyncError
from atoll.storage.content.compression import MAX_CONTENT_BYTES, decompressed

SIZE = 32 << 20
BOMB = zstandard.ZstdCompressor().compress(bytes(SIZE))
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(SIZE))
HUGE = b"\x28\xb5\x2f\xfd\xe0" + (1 << 45).to_bytes(8, "little")
"""The head of a frame that claims more than any memory."""


def test_the_content_of_a_sync_comes_back_as_it_was() -> None:
    """The bound is no hindrance to a content that says its size."""
    assert decompressed(BOMB, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (BOMB, 10),
        (BOMB, SIZE - 1),
        (BOMB, MAX_CONTENT_BYTES + 1),
        (BOMB, 1 << 60),
        (HUGE, 1 << 45),
        (BOMB, -1),
        (BOMB, "10"),
        (BOMB, True),
        (UNSIZED, SIZE),
        (UNSIZED, 10),
        (b"\x28\xb5\x2f\xfd", 10),
        (b"", 10),
    ],
)
def test_a_content_that_is_larger_than_it_says_is_not_unpacked(data: bytes, size: object) -> None:
    """The refusal takes no memory of the content's size."""
    tracemalloc.start()
    try:
        with pytest.raises(SyncError):
            decompressed(data, size)
        assert tracemalloc.get_traced_memory()[1] < SIZE // 8
    finally:
        tracemalloc.stop()
