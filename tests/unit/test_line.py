"""The resumable line over WebSocket: messages in any pieces, bounds, and connections that break at any byte."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.wire import line as lines
from atoll.wire import websocket
from atoll.wire.line import DATA, STDERR, STDOUT, Line
from atoll.wire.websocket import CLOSE, CONTROL, PIECE, PING, LineError


def written(pieces: list[Any]) -> bytes:
    """Return the bytes that a connection would carry."""
    return b"".join(bytes(piece) for piece in pieces)


def joined(events: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Return events with adjoining pieces of one channel as one."""
    found: list[tuple[int, Any]] = []
    for kind, value in events:
        value = bytes(value) if kind >= 0 else value
        if kind >= 0 and found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + value)
        else:
            found.append((kind, value))
    return found


def fed(line: Line, data: bytes, cuts: list[int]) -> list[tuple[int, Any]]:
    """Feed bytes cut at these places; return all events."""
    found: list[tuple[int, Any]] = []
    at = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found += [(kind, bytes(value) if kind >= 0 else value) for kind, value in line.feed(data[at:cut])]
        at = cut
    return found


def feed_all(line: Line, parts: list[bytes]) -> None:
    for part in parts:
        line.feed(part)


ENDS = [(True, False), (True, True), (False, False)]
"""Of the sender: client or server, with a real mask or without."""


def ends(client: bool, hidden: bool) -> tuple[Line, Line]:
    return Line(client=client, hidden=hidden), Line(client=not client)


messages = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=300)),
        st.tuples(st.integers(0, 2), st.integers(60_000, 70_000).map(lambda size: random.Random(size).randbytes(size))),
        st.tuples(st.just(CONTROL), st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3)),
        st.tuples(st.just(PING), st.just(b"")),
    ),
    max_size=8,
)


@pytest.mark.parametrize(("client", "hidden"), ENDS)
@settings(max_examples=60, deadline=None)
@given(said=messages, cuts=st.lists(st.integers(0, 1 << 20), max_size=12))
def test_any_split_of_the_bytes_says_the_same(client: bool, hidden: bool, said: Any, cuts: list[int]) -> None:
    """Messages, with pings between them, come in order and whole, wherever the stream is cut."""
    sender, receiver = ends(client, hidden)
    data = b""
    expected: list[tuple[int, Any]] = []
    for kind, value in said:
        if kind == PING:
            data += sender.ping()
            expected.append((PING, b""))
        elif kind == CONTROL:
            value = {**value, "type": "x"}
            data += written(sender.say(value))
            expected.append((CONTROL, value))
        else:
            data += written(sender.send(kind, value))
            expected.append((kind, value))
    assert joined(fed(receiver, data, cuts)) == joined(expected)
    assert receiver.received == sender.sent
    acknowledgement = receiver.acknowledgement()
    assert bool(acknowledgement) == (sender.sent > 0)
    sender.feed(acknowledgement)
    assert sender.unacknowledged == 0
    assert not sender._kept


def frame(code: int, text: bytes, *, last: bool = True, masked: bool = False, length: bytes | None = None) -> bytes:
    """Return a frame as another implementation would write it."""
    size = len(text)
    head = (
        bytes((size,))
        if size < 126
        else b"\x7e" + size.to_bytes(2, "big")
        if size < 65536
        else b"\x7f" + size.to_bytes(8, "big")
    )
    head = length if length is not None else head
    if masked:
        head = bytes((head[0] | 0x80,)) + head[1:] + b"\1\2\3\4"
        text = bytes(byte ^ (1, 2, 3, 4)[at % 4] for at, byte in enumerate(text))
    return bytes(((0x80 if last else 0) | code,)) + head + text


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8), masked=st.booleans())
def test_messages_in_several_frames_with_pings_between_them(cuts: list[int], masked: bool) -> None:
    """A proxy may cut messages into frames, and send pings of its own between these."""
    data = b"".join(
        [
            frame(2, b"", last=False, masked=masked),
            frame(9, b"are you there", masked=masked),
            frame(0, b"\1abc", last=False, masked=masked),
            frame(10, b"no acknowledgement", masked=masked),
            frame(0, b"def", masked=masked),
            frame(1, b'{"type":', last=False, masked=masked),
            frame(9, b"", masked=masked),
            frame(0, b'"kill"}', masked=masked),
            frame(8, (1012).to_bytes(2, "big") + b"drains", masked=masked),
        ]
    )
    receiver = Line(client=not masked)
    assert joined(fed(receiver, data, cuts)) == joined(
        [(PING, b"are you there"), (STDOUT, b"abcdef"), (PING, b""), (CONTROL, {"type": "kill"}), (CLOSE, 1012)]
    )
    assert receiver.received == 6 + len('{"type":"kill"}')


def plain(text: bytes, *, last: bool = True) -> bytes:
    """Return a client's binary frame below 64 KiB whose mask is zeros."""
    size = len(text)
    length = bytes((size | 0x80,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x82 if last else 2,)) + length + bytes(4) + text


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("size", [1, 123, 124, 125, 126, 16_000, 16_384, 65_534, 70_000])
def test_a_message_that_comes_alone_says_the_same_as_byte_by_byte(size: int, client: bool) -> None:
    """One read has one whole message, in each form of its length."""
    sender, whole, slow = Line(client=client), Line(client=not client), Line(client=not client)
    piece = bytes(range(256)) * (size // 256 + 1)
    for channel in (DATA, STDERR):
        data = b"".join(bytes(part) for part in sender.send(channel, piece[:size]))
        assert joined(whole.feed(data)) == joined(fed(slow, data, list(range(len(data))))) == [(channel, piece[:size])]
    assert whole.received == slow.received == 2 * size
    assert whole.untold == slow.untold


def test_a_message_that_comes_alone_cannot_be_within_another() -> None:
    """The beginning of another one came with the read before."""
    receiver = Line(client=False)
    receiver.feed(plain(b"\0a", last=False))
    with pytest.raises(LineError):
        receiver.feed(plain(b"\0b"))


HUGE = (1 << 62).to_bytes(8, "big")
MALFORMED = {
    "unmasked": frame(2, b"\0a"),
    "extension": b"\xc2\x82\0\0\0\0\0a",
    "unknown code": frame(3, b"", masked=True),
    "unknown short code": frame(11, b"", masked=True),
    "long ping": frame(9, b"x" * 126, masked=True),
    "ping in parts": frame(9, b"", last=False, masked=True),
    "goes on without a beginning": frame(0, b"a", masked=True),
    "within another": frame(2, b"\0", last=False, masked=True) + frame(2, b"\0", masked=True),
    "no channel": frame(2, b"", masked=True),
    "unknown channel": frame(2, b"\3a", masked=True),
    "unknown channel, not hidden": plain(b"\3a"),
    "within another, not hidden": plain(b"\0", last=False) + plain(b"\0a"),
    "no channel, not hidden": plain(b""),
    "long length, not hidden": b"\x82\xfe\0\2" + bytes(4) + b"\0a",
    "long length": frame(2, b"\0a", masked=True, length=b"\x7e\0\2"),
    "longer length": frame(2, b"\0a", masked=True, length=b"\x7f" + bytes(7) + b"\2"),
    "huge": frame(2, b"", masked=True, length=b"\x7f" + HUGE),
    "huge text": frame(1, b"", masked=True, length=b"\x7f" + HUGE),
    "no JSON": frame(1, b"{", masked=True),
    "deep": frame(1, b"[" * 100_000, masked=True),
    "no object": frame(1, b"[]", masked=True),
    "no type": frame(1, b"{}", masked=True),
    "not UTF-8": frame(1, b"\xff", masked=True),
    "acknowledges too much": frame(10, (1).to_bytes(8, "big"), masked=True),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_an_error(data: bytes) -> None:
    """Whole or byte by byte, and before anything of a claimed size is held."""
    with pytest.raises(LineError):
        Line(client=False).feed(data)
    slow = Line(client=False)
    with pytest.raises(LineError):
        feed_all(slow, [data[at : at + 1] for at in range(len(data))])


def test_a_message_in_many_parts_is_bounded_as_a_whole() -> None:
    """Parts that are small each add up."""
    for code, most in ((2, PIECE + 1), (1, 1000)):
        receiver = Line(client=False, control_bytes=1000)
        part = bytes(100)
        receiver.feed(frame(code, part, last=False, masked=True))
        with pytest.raises(LineError):
            feed_all(receiver, [frame(0, part, last=False, masked=True)] * (most // 100 + 1))


def test_who_sends_without_acknowledgements_is_an_error() -> None:
    """So a receiver that passes nothing on holds a bounded amount."""
    sender, receiver = ends(True, False)
    piece = bytes(PIECE)
    for _ in range(lines.WINDOW // PIECE):
        assert not sender.full
        receiver.feed(written(sender.send(DATA, piece)))
    assert sender.full
    with pytest.raises(LineError):
        feed_all(receiver, [written(sender.send(DATA, piece)) for _ in range(40)])


def test_tiny_messages_fill_the_window_and_are_acknowledged_in_time() -> None:
    """A message costs memory beside its bytes at both ends, and counts so at both."""
    sender, receiver = ends(False, False)
    count = 0
    while not sender.full:
        receiver.feed(written(sender.send(STDOUT, b"x")))
        count += 1
    assert count <= lines.WINDOW // lines.MESSAGE_COST
    acknowledgement = receiver.acknowledgement(lines.WINDOW // 4)
    assert acknowledgement
    sender.feed(acknowledgement)
    assert not sender.full
    assert not receiver.acknowledgement()


@pytest.mark.parametrize("hidden", [False, True])
def test_bytes_that_are_due_can_be_read_into_their_place(hidden: bool) -> None:
    """A large piece need not pass through `feed`; what follows it does."""
    server, client = Line(client=False), Line(client=True, hidden=hidden)
    data = written(server.send(DATA, bytes(100_000))) + written(server.say({"type": "closed"}))
    head = data[:5000]
    (event,) = client.feed(head)
    due = client.due(DATA)
    assert due == 100_000 - len(event[1])
    assert client.due(STDOUT) == 0
    client.took(due)
    assert client.due(DATA) == 0
    assert client.feed(data[5000 + due :]) == [(CONTROL, {"type": "closed"})]
    assert client.received == server.sent


class Wire:
    """Two ends and a connection between them that breaks at random bytes."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.client, self.server = Line(client=True, hidden=chance.random() < 0.5), Line(client=False)
        self.up = self.down = b""
        self.got: tuple[list[Any], list[Any]] = [], []
        self.breaks = 0

    def step(self) -> None:
        """Deliver some of the bytes in either direction, or lose all that are on their way."""
        if self.chance.random() < 0.1:
            self.breaks += 1
            sender, receiver = self.client.received, self.server.received
            self.up = b"".join(written(pieces) for pieces in self.client.resume(receiver))
            self.down = b"".join(written(pieces) for pieces in self.server.resume(sender))
        count = self.chance.choice([1, 7, 1000, 100_000])
        data, self.up = self.up[:count], self.up[count:]
        self.got[1].extend((k, bytes(v) if k >= 0 else v) for k, v in self.server.feed(data))
        data, self.down = self.down[:count], self.down[count:]
        self.got[0].extend((k, bytes(v) if k >= 0 else v) for k, v in self.client.feed(data))
        if self.chance.random() < 0.3:
            self.up += self.client.acknowledgement(self.chance.choice([0, 100_000]))
        if self.chance.random() < 0.3:
            self.down += self.server.acknowledgement(self.chance.choice([0, 100_000]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_connections_that_break_at_any_byte_lose_and_repeat_nothing(seed: int) -> None:
    """Both ends get what the other sent, once and in order, over many connections."""
    chance = random.Random(seed)
    wire = Wire(chance)
    sent: tuple[list[Any], list[Any]] = [], []
    for number in range(60):
        for end, line in enumerate((wire.client, wire.server)):
            if chance.random() < 0.5 or line.full:
                continue
            if chance.random() < 0.3:
                header = {"type": "n", "number": number}
                data = written(line.say(header))
                sent[end].append((CONTROL, header))
            else:
                channel, piece = chance.randrange(3), chance.randbytes(chance.choice([1, 50, 40_000]))
                data = written(line.send(channel, piece))
                sent[end].append((channel, piece))
            if end == 0:
                wire.up += data
            else:
                wire.down += data
        wire.step()
    wire.chance = random.Random(0.5)
    while wire.up or wire.down:
        wire.step()
    # The last connection may have lost the end: one more brings it.
    for lost, line, got in (
        (wire.client.resume(wire.server.received), wire.server, wire.got[1]),
        (wire.server.resume(wire.client.received), wire.client, wire.got[0]),
    ):
        for pieces in lost:
            got.extend((k, bytes(v) if k >= 0 else v) for k, v in line.feed(written(pieces)))
    assert joined(wire.got[1]) == joined(sent[0])
    assert joined(wire.got[0]) == joined(sent[1])


def test_a_resumed_window_does_not_grow() -> None:
    """Bytes that came and were not passed on still fill the window after a new connection."""
    sender, receiver = ends(True, False)
    while not sender.full:
        receiver.feed(written(sender.send(DATA, bytes(PIECE))))
    assert len(list(sender.resume(receiver.received))) == 0
    assert sender.unacknowledged == sender.sent
    receiver.acknowledgement()  # lost with the connection
    again = b"".join(written(pieces) for pieces in receiver.resume(sender.received))
    sender.feed(again)
    assert not sender.full


def test_counts_that_cannot_be_are_refused() -> None:
    """A count beyond what was sent, or before what is kept."""
    sender, receiver = ends(True, False)
    receiver.feed(written(sender.send(DATA, b"abc")))
    with pytest.raises(LineError):
        sender.resume(4)
    sender.feed(receiver.acknowledgement())
    with pytest.raises(LineError):
        sender.resume(0)
    for value in ("", "short 1", "s" * 20, "s" * 20 + " -1", "s" * 20 + " ²", "s" * 200 + " 1", "s" * 20 + " 9" * 20):
        with pytest.raises(LineError):
            lines.read_resume(value)
    assert lines.read_resume(lines.resume_text("s" * 20, 7)) == ("s" * 20, 7)


def test_a_header_that_is_too_large_is_not_sent() -> None:
    """And surrogates of file names survive the way."""
    sender, receiver = ends(True, False)
    with pytest.raises(ValueError, match="over the limit"):
        sender.say({"type": "x", "text": "y" * lines.CONTROL_BYTES})
    assert receiver.feed(written(sender.say({"type": "x", "path": "\udcff"}))) == [
        (CONTROL, {"type": "x", "path": "\udcff"})
    ]
    assert json.loads(lines.text_of({"type": "x"})) == {"type": "x"}


def test_the_answer_to_an_upgrade_is_the_standards() -> None:
    """The example of RFC 6455."""
    assert websocket.accepted("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
