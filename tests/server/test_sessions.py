"""Lines: WebSockets that are relayed to the node, with a real node, sandbox and worker behind them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

import pytest

from atoll.model.terminal import Terminal
from atoll.server.accounts.bodies import NewUser

from ..conftest import needs_outbound
from ..waiting import until
from .functions import Leased
from .process import Server, memory
from .raw_line import RawLine, Refused


def _add(a: int, b: int) -> int:
    print("adding", a, b)
    return a + b


@needs_outbound
def test_a_line_relays_a_lease(server: Server) -> None:
    """A call over a line gives its value, and its output comes before it."""
    leased = Leased(server, _add, 1, 2)
    with contextlib.closing(leased.line):
        assert leased.call() == 3
        assert leased.line.printed[1] == b"adding 1 2\n"
        assert leased.line.order.index("printed") < len(leased.line.order) - 1


def test_a_line_relays_a_request(server: Server) -> None:
    """A request over a line is answered, and then nothing more comes."""
    line = RawLine(server, {"type": "request", "name": "status", "arguments": {}})
    with contextlib.closing(line):
        assert line.header("answer")["value"]["workers"] is not None
        line.header("over")


def test_storage_goes_over_a_line(server: Server) -> None:
    """A storage peer's socket is channel 0 of a line."""
    line = RawLine(server, {"type": "storage"})
    with contextlib.closing(line):
        line.header("granted")
        line.send_frames({"type": "hello"})
        assert line.message().type


def test_bytes_beside_a_request_reach_the_node(server: Server) -> None:
    """A request that announces bytes has them as a descriptor; too many of them end the line."""
    line = RawLine(server, {"type": "request", "name": "nothing", "arguments": {}, "bytes": 5})
    with contextlib.closing(line):
        line.send_raw(b"12345")
        assert line.header("failed")["error"]["code"] == "protocol_mismatch"
    line = RawLine(server, {"type": "request", "name": "nothing", "arguments": {}, "bytes": 5})
    with contextlib.closing(line):
        line.send_raw(b"123456")
        with pytest.raises(ConnectionError):
            line.header("failed")


@needs_outbound
@pytest.mark.parametrize("size", [100, 3 << 20, 64 << 20])
def test_payloads_survive_lost_connections(server: Server, size: int) -> None:
    """A call whose connection is lost on the way there and back has its own answer, from the very byte."""
    leased = Leased(server, _twice, os.urandom(size))
    line = leased.line
    with contextlib.closing(line):
        line.drop_after(size // 3)
        leased.start()
        line.drop_after(size // 2)
        assert leased.answer() == hashlib.sha256(leased.sent[0] * 2).hexdigest()[:8].encode() + leased.sent[0] * 2
        assert line.drops


def _twice(data: bytes) -> bytes:
    return hashlib.sha256(data * 2).hexdigest()[:8].encode() + data * 2


@pytest.mark.parametrize("kind", ["shell", "exec", "dial", "lease", "storage"])
def test_bytes_beside_other_openings_are_refused(server: Server, kind: str) -> None:
    """They would stand among the descriptors that the node expects."""
    line = RawLine(server, {"type": kind, "bytes": 5})
    with contextlib.closing(line):
        with pytest.raises(ConnectionError):
            line.header("never")
        assert line.closed == 1002


def test_only_the_opener_resumes(server: Server) -> None:
    """A session's id is of no use with another key."""
    line = RawLine(server, {"type": "storage"})
    with contextlib.closing(line):
        line.header("granted")
        key = server.add_user(NewUser(f"other-{os.getpid()}")).key
        assert key is not None
        line.drop()
        with pytest.raises(Refused) as caught:
            line.resume(key=f"{key.id}:{key.secret}")
        assert caught.value.status == 410
        line.resume()


def test_close_releases_at_once(server: Server) -> None:
    """A line that is closed has no grace: its session is gone."""
    line = RawLine(server, {"type": "storage"})
    line.header("granted")
    line.close()
    with pytest.raises(Refused) as caught:
        line.resume()
    assert caught.value.status == 410


@pytest.mark.parametrize(
    "message",
    [
        b"\x82\x05\0hello",
        b"\xc2\x80\0\0\0\0",
        b"\x82\x81\0\0\0\0\x09",
        b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        b"\x81\xff\0\0\0\0\x40\0\0\0\0\0\0\0",
        b"\x81\x82\0\0\0\0[]",
        b"\x81\x85\0\0\0\0" + b"[[[[[",
        b"\x80\x81\0\0\0\0x",
        b"\x89\xfe\0\x80\0\0\0\0" + b"x" * 128,
        b"\x8a\x88\0\0\0\0" + b"\xff" * 8,
        b"\x82\x82\0\0\0\0\x01x",
    ],
    ids=[
        "unmasked",
        "reserved bits",
        "unknown channel",
        "endless length",
        "large text",
        "no object",
        "no JSON",
        "continuation of nothing",
        "long ping",
        "count of bytes never sent",
        "output of a client",
    ],
)
def test_hostile_messages_end_the_line(server: Server, message: bytes) -> None:
    """A client that does not speak the protocol is told 1002, and its session is over."""
    line = RawLine(server, {"type": "storage"})
    with contextlib.closing(line):
        line.header("granted")
        line.socket.sendall(message)
        with pytest.raises(ConnectionError):
            line.header("never")
        assert line.closed == 1002
        with pytest.raises(Refused):
            line.resume()


@pytest.mark.parametrize("opening", [{"type": "hello"}, {"type": "handover"}, {"type": "adopt"}, {"type": "x" * 1000}])
def test_other_openings_are_refused(server: Server, opening: dict[str, Any]) -> None:
    """A line carries what users may ask for alone: the owner's own messages to the node cannot be sent."""
    line = RawLine(server, opening)
    with contextlib.closing(line):
        assert line.header("failed")["error"]["code"] == "protocol_mismatch"
        line.header("over")


def test_a_client_names_no_user(server: Server) -> None:
    """An opening message cannot ask in another user's name."""
    line = RawLine(server, {"type": "request", "name": "status", "arguments": {}, "as": {"user": "somebody"}})
    with contextlib.closing(line):
        assert line.header("answer", "failed")["type"] == "answer"
    made = server.add_user(NewUser("namesnoone")).key
    assert made is not None
    opening: dict[str, Any] = {"type": "request", "name": "stop", "arguments": {}, "as": None}
    line = RawLine(server, opening, key=f"{made.id}:{made.secret}")
    with contextlib.closing(line):
        assert line.header("answer", "failed")["type"] == "failed"


def _print_much(size: int) -> int:
    import sys

    for _ in range(size // 1000):
        sys.stdout.write("x" * 999 + "\n")
    return size


@needs_outbound
def test_a_client_that_reads_nothing_stops_the_function(server: Server) -> None:
    """Output that nobody takes waits in the pipe: the server keeps a window, and the rest comes when it is read."""
    size = 24 << 20
    leased = Leased(server, _print_much, size)
    with contextlib.closing(leased.line):
        before = memory(server.pid)
        leased.start()
        until(lambda: _kept(server) > 3 << 20)
        assert memory(server.pid) - before < 24 << 20
        assert leased.answer() == size
        assert len(leased.line.printed[1]) == size // 1000 * 1000


def _kept(server: Server) -> float:
    text = server.ask("GET", "/metrics")[1].decode()
    return float(next(line for line in text.splitlines() if line.startswith("atoll_line_kept_bytes ")).split()[1])


def _size_of_terminal() -> tuple[bool, tuple[int, int]]:
    import sys

    print("on a terminal")
    return sys.stdout.isatty(), tuple(os.get_terminal_size(1))  # type: ignore[return-value]


@needs_outbound
def test_a_call_has_a_terminal(server: Server) -> None:
    """A client that asks for a terminal gets one at the server, in its own size, and its text in channel 1."""
    leased = Leased(server, _size_of_terminal)
    line = leased.line
    with contextlib.closing(line):
        call = leased.request.call
        terminal = Terminal(-1, ())
        leased.request = leased.request._replace(call=call.again("on-terminal", call.arguments, (), 0.0, terminal))
        line.say({"type": "terminal", "size": [33, 111]})
        assert leased.call() == (True, (111, 33))
        assert b"on a terminal" in line.printed[1]
        line.say({"type": "terminal", "size": [44, 99]})
        assert leased.call()[1] == (99, 44)
        line.say({"type": "terminal", "size": ["a", -1]})
        assert leased.call()[1] == (99, 44)
