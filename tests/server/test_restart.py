"""Restarts of the server: calls go on across an orderly one, and end with an error across a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import until
from .functions import Leased
from .process import Server, running
from .raw_line import RawLine, Refused


@pytest.fixture(scope="module")
def restarted() -> Iterator[Server]:
    """A server that the tests of this module end and start again."""
    with running() as found:
        yield found


def _wait_for_file(name: str) -> int:
    """Print, wait until there is a file in `/data`, print again, and return how often this function has run."""
    print("began")
    with open(f"/data/{name}.runs", "a") as file:
        file.write("x")
    while not os.path.exists(f"/data/{name}"):
        time.sleep(0.01)
    print("went on")
    return os.path.getsize(f"/data/{name}.runs")


def _data(server: Server) -> Path:
    """Return the only volume's `/data`."""
    (found,) = (server.home.path / "volumes").glob("*/data")
    return found


def test_calls_go_on_across_a_restart(restarted: Server) -> None:
    """A running call survives the server's process: same worker, its output once and in order, one run."""
    leased = Leased(restarted, _wait_for_file, "first")
    line = leased.line
    with contextlib.closing(line):
        leased.start()
        while line.printed[1] != b"began\n":
            line.pump()
        node = restarted.home.daemon_pid()
        restarted.end()
        with contextlib.suppress(ConnectionError):
            line.header("never")
        assert line.closed == 1012
        restarted.start()
        line.resume()
        assert restarted.home.daemon_pid() == node
        (_data(restarted) / "first").write_text("")
        assert leased.answer() == 1
        assert line.printed[1] == b"began\nwent on\n"
        shown = restarted.ask("POST", "/v1/requests/calls.list", b"{}")
        assert shown[0] in (200, 400, 426)
        leased.request = leased.request._replace(
            call=leased.request.call.again("second-call", leased.request.call.arguments, (), 0.0)
        )
        assert leased.call() == 2  # the lease serves further calls


def _length(data: bytes) -> int:
    return len(data)


def test_bytes_on_their_way_survive_a_restart(restarted: Server) -> None:
    """Arguments that are half sent when the server restarts arrive whole."""
    leased = Leased(restarted, _length, os.urandom(24 << 20))
    line = leased.line
    with contextlib.closing(line):
        sent = line.send_raw
        restarts = 0

        def send(piece: bytes) -> None:
            nonlocal restarts
            sent(piece)
            if line.line.sent > 9 << 20 and not restarts:
                restarts += 1
                restarted.end()
                restarted.start()
                line.resume()

        line.send_raw = send  # type: ignore[method-assign]
        leased.start()
        assert leased.answer() == 24 << 20
        assert restarts == 1


def test_unread_output_survives_a_restart(restarted: Server) -> None:
    """An answer that came while nobody was connected is kept for the client across the restart."""
    leased = Leased(restarted, _wait_for_file, "third")
    line = leased.line
    with contextlib.closing(line):
        leased.start()
        while line.printed[1] != b"began\n":
            line.pump()
        line.drop()
        (_data(restarted) / "third").write_text("")
        until(lambda: not restarted.ask("POST", "/v1/requests/status", b"{}")[1]["calls"])
        restarted.end()
        restarted.start()
        line.resume()
        assert leased.answer() == 1
        assert line.printed[1] == b"began\nwent on\n"


def test_idle_lines_survive_a_restart(restarted: Server) -> None:
    """Storage channels and leases without a call are there after a restart, and go by their owner's word."""
    storage = RawLine(restarted, {"type": "storage"})
    lease = Leased(restarted, _length, b"abc")
    with contextlib.closing(storage), contextlib.closing(lease.line):
        storage.header("granted")
        restarted.end()
        restarted.start()
        storage.resume()
        lease.line.resume()
        storage.send_frames({"type": "hello"})
        assert storage.message().type
        assert lease.call() == 3


def test_a_killed_server_ends_its_calls(restarted: Server) -> None:
    """After SIGKILL a line is gone by 410, its call has ended, and it is not run again."""
    leased = Leased(restarted, _wait_for_file, "killed")
    line = leased.line
    leased.start()
    while line.printed[1] != b"began\n":
        line.pump()
    restarted.end(signal.SIGKILL)
    with pytest.raises(ConnectionError):
        line.header("never")
    restarted.start()
    with pytest.raises(Refused) as caught:
        line.resume()
    assert caught.value.status == 410
    assert b"host_unreachable" in caught.value.body
    until(lambda: not restarted.ask("POST", "/v1/requests/status", b"{}")[1]["calls"])
    assert (_data(restarted) / "killed.runs").read_text() == "x"


def test_lines_that_nobody_takes_end(restarted: Server) -> None:
    """A client that does not come back loses its lease, after a restart too."""
    line = RawLine(restarted, {"type": "storage"})
    line.header("granted")
    restarted.end()
    restarted.start()
    line.close()
    line.resume()
    line.close()
    with pytest.raises(Refused):
        line.resume()
