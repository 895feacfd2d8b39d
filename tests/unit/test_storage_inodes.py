"""What a switch remembers of the tree it replaces, as text."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.storage.sync.late_writes import pack_inodes, unpack_inodes

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1) | st.just("x\udc80")


@given(st.dictionaries(NAMES, st.integers(0, (1 << 64) - 1)))
def test_what_is_packed_comes_back(inodes: dict[str, int]) -> None:
    """Any names, those that are not UTF-8 too, and inodes of 64 bits."""
    assert unpack_inodes(pack_inodes(inodes)) == inodes


def test_nothing_is_known_without_a_text() -> None:
    """A record of a switch that rebuilt nothing has an empty one."""
    assert unpack_inodes("") == {}


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        "AAAA",
        *(base64.b64encode(zlib.compress(data)).decode() for data in (b"", b"\x02\0\0\0", b"\1" * 9)),
    ],
)
def test_what_is_malformed_is_refused(text: str) -> None:
    """A torn or foreign text is a `ValueError`."""
    with pytest.raises(ValueError, match=r".+"):
        unpack_inodes(text)
