"""A function that fills sockets with descriptors, which the kernel counts for the user, leaves the daemon usable."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from atoll import errors, isolated
from atoll.sandbox.limits import descriptors
from atoll.wire import nested
from atoll.wire.channel import Channel
from tests.conftest import Home

pytestmark = pytest.mark.as_user

PROGRAM = """
from atoll import isolated
print(isolated(network="none", keep_alive=0)(abs)(-3))
"""


@isolated(network="none", keep_alive=0, results="data")
def crowd() -> Iterator[tuple[int, str, tuple[int, int]]]:
    """Send descriptors that nobody receives until the kernel refuses more, and keep them."""
    import array
    import errno
    import resource
    import socket

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 253))]
    held = []
    count, refused = 0, ""
    while not refused:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            held.append((ours, theirs))
            ours.setblocking(False)
            while True:
                ours.sendmsg([b"x"], rights)
                count += 253
        except BlockingIOError:
            pass
        except OSError as error:
            refused = errno.errorcode[error.errno or 0]
    while True:  # waits, and keeps all, when the caller's socket is full
        yield count, refused, (soft, hard)


def test_a_function_full_of_descriptors_leaves_the_daemon_usable(shared_home: Home) -> None:
    """Calls of running and of new programs work, and so does the command line."""
    running = isolated(network="none")(os.getpid)
    running()
    calls = crowd()
    count, refused, (soft, hard) = next(calls)
    try:
        assert refused == "ETOOMANYREFS"
        assert count < hard + 2 * 253
        assert isolated(network="none")(os.getpid)() > 0
        assert running() > 0
        assert shared_home.python("-c", PROGRAM).stdout == "3\n"
        assert shared_home.atoll("status").returncode == 0
    finally:
        calls.close()  # type: ignore[attr-defined]
    assert soft <= hard <= descriptors.MOST


class _Crowded(socket.socket):
    """A socket whose user has too many descriptors in flight for a soft limit, or for any."""

    limits: ClassVar[list[int]] = []
    refusals = 1

    def sendmsg(self, *arguments: Any) -> int:
        self.limits.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if len(self.limits) <= self.refusals:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return super().sendmsg(*arguments)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[_Crowded], Channel]]:
    """A worker's control channel over such a socket, and a soft limit below the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, before[0]), before[1]))
    near, far = socket.socketpair()
    monkeypatch.setattr(_Crowded, "limits", [])
    channel = Channel(_Crowded(fileno=near.detach()))
    monkeypatch.setattr(nested, "_control", (os.getpid(), channel))
    try:
        yield _Crowded, channel
    finally:
        channel.close()
        far.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_refused_send_is_made_again_under_the_hard_limit(crowded: tuple[type[_Crowded], Channel]) -> None:
    """A program that may open more than it asks for sends; its own limit is as before."""
    kind, channel = crowded
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    channel.send({"type": "files"}, descriptors=[0])
    assert kind.limits == [soft, hard]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.mark.usefixtures("crowded")
def test_a_nested_connection_waits_and_then_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that may send no descriptor tries again for a while."""
    monkeypatch.setattr(nested, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_Crowded, "refusals", 4)
    nested.connect().close()
    assert len(_Crowded.limits) == 5
    monkeypatch.setattr(_Crowded, "refusals", 1 << 30)
    monkeypatch.setattr(nested, "CROWDED_SECONDS", 0.01)
    with pytest.raises(errors.HostUnreachable, match="descriptors"):
        nested.connect()


def test_limits_in_sandboxes_are_below_the_daemons() -> None:
    """A quarter of this process's own hard limit, at most 4,096, at least what is usual; soft ones stay."""
    assert descriptors.for_sandboxes((1024, 1 << 20)) == (1024, 4096)
    assert descriptors.for_sandboxes((20000, 20000)) == (4096, 4096)
    assert descriptors.for_sandboxes((1024, 8192)) == (1024, 2048)
    assert descriptors.for_sandboxes((1024, 4096)) == (1024, 1024)
    assert descriptors.for_sandboxes((256, 512)) == (256, 512)
    assert descriptors.for_sandboxes((1024, resource.RLIM_INFINITY)) == (1024, 4096)


def test_no_process_of_a_sandbox_may_open_more(shared_home: Home) -> None:
    """Pid 1 and the agent have a worker's limit; the daemon's own soft limit is its hard one."""

    @isolated(network="none")
    def limits() -> tuple[tuple[int, int], list[list[str]]]:
        own = resource.getrlimit(resource.RLIMIT_NOFILE)
        texts = [Path(f"/proc/{pid}/limits").read_text().splitlines() for pid in (1, os.getppid())]
        return own, [line.split()[3:5] for text in texts for line in text if line.startswith("Max open files")]

    own, others = limits()
    assert own[1] <= descriptors.MOST
    assert others == [list(map(str, own))] * 2
    daemons = shared_home.daemons()
    assert daemons
    for pid in daemons:
        text = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (line,) = [line.split()[3:5] for line in text if line.startswith("Max open files")]
        assert line[0] == line[1]
