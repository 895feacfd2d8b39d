"""The follower of frames: headers in a stream that comes in pieces of any size."""

from __future__ import annotations

import pytest

from atoll.server.line.frames import Follower, answers, call_of
from atoll.wire.frames import MAGIC, MAX_BUFFERS, PREFIX, encode

FRAMES = [
    ({"type": "sources"}, [b"x" * 5000]),
    ({"type": "call", "name": 'a"call":"b"', "call": "c1"}, [b"f", b"", b"y" * 300]),
    ({"type": "call", "name": "n" * 9000, "call": "too-far"}, []),
    ({"type": "stop", "call": "c1"}, []),
    ({"type": "call", "call": "c2"}, []),
]
STREAM = b"".join(bytes(piece) for header, buffers in FRAMES for piece in encode(header, buffers))


@pytest.mark.parametrize("size", [1, 7, 12, 13, 4096, len(STREAM)])
def test_headers_are_found_in_pieces_of_any_size(size: int) -> None:
    """Each header is found once, also where another process goes on in the middle."""
    found: list[bytes] = []
    follower = Follower()
    for number, at in enumerate(range(0, len(STREAM), size)):
        if number % 5 == 4:
            state, follower = follower.state(), Follower()
            follower.restore(state)
        found += follower.feed(STREAM[at : at + size])
    assert len(found) == len(FRAMES)
    assert [call for header in found if (call := call_of(header))] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("header", "call"),
    [
        (b'{"type":"call","name":"f","call":"c1-2","at":1.5e+9}', "c1-2"),
        (b'{"type":"call","call":"c1","terminal":{"x":1,"call":"c2","at":1}}', "c1"),
        (b'{"type":"call","call":"c\\u0031","at":1.5}', "c1"),
        (b'{"type":"call","name":"f","at":1.5}', ""),
        (b'{"type":"call","name":"f","call":"c1","at":1', ""),
        (b'{"type":"result","x":0,"call":"c1","at":1}', ""),
    ],
)
def test_the_call_of_a_header_is_its_own(header: bytes, call: str) -> None:
    """Keys further inside, and headers in another order, change nothing."""
    assert call_of(header) == call


def test_other_bytes_are_followed_no_further() -> None:
    """A stream that is none of frames is passed over without an error."""
    follower = Follower()
    assert follower.feed(b"nonsense" * 1000) == []
    assert follower.feed(STREAM) == []


@pytest.mark.parametrize(("kind", "expected"), [("result", True), ("error", True), ("exiting", True), ("yield", False)])
def test_answers_end_a_call(kind: str, expected: bool) -> None:
    """A worker's `result`, `error` and `exiting` end a call; an item does not."""
    (header,) = Follower().feed(bytes(encode({"type": kind, "call": "c"})[0]))
    assert answers(header) is expected


def test_a_long_table_is_gathered_in_place() -> None:
    """Each byte behind the beginning of a table of lengths is added to it: nothing that has come is copied again."""
    table = PREFIX.pack(MAGIC, 1, 0, 10, MAX_BUFFERS) + bytes(8 * MAX_BUFFERS - 50_000)
    follower = Follower()
    follower.feed(table)
    kept = follower._head
    for _ in range(1000):
        follower.feed(b"\0")
    assert follower._head is kept
    assert follower.feed(bytes(49_000) + b'{"type":"x"}'[:10]) == [b'{"type":"x']
    assert not follower._head
