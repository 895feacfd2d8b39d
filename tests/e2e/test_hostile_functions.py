"""What code in a worker can send to the daemon harms the worker's own call at most."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from atoll import __version__, errors, isolated
from atoll.engine.pool_messages import Messages
from atoll.engine.pool_state import PoolState
from atoll.host import daemon_start
from atoll.model.specs import SandboxKey
from tests.conftest import Home

from ..waiting import until

pytestmark = pytest.mark.as_user


@isolated(network="none", timeout=60)
def stop_the_daemon() -> None:
    import os
    import socket

    from atoll.wire import nested

    assert nested._control is not None
    ours, theirs = socket.socketpair()
    nested._control[1].send({"type": "connect"}, descriptors=[theirs.fileno()])
    time.sleep(0.3)
    os.set_blocking(theirs.fileno(), True)
    ours.send(b"A")
    open("/data/blocked", "w").close()
    time.sleep(60)


@isolated(network="none", timeout=60)
def send_no_connection(kind: str) -> None:
    import os
    import socket

    from atoll.wire import nested

    assert nested._control is not None
    read, _write = os.pipe()
    other = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    descriptors = {"nothing": [], "pipe": [read], "other": [other.fileno()]}[kind]
    nested._control[1].send({"type": "connect"}, descriptors=descriptors)
    time.sleep(60)


@isolated(network="none", timeout=60)
def send_junk(count: int) -> None:
    import socket

    from atoll.wire import nested

    for _ in range(count):
        connection = nested.connect()
        with socket.socket(fileno=connection.detach()) as one:
            one.sendall(b"x" * 16)
            one.settimeout(120)
            while one.recv(4096):
                pass


@isolated(network="none", timeout=60)
def open_storage_peers(version: str, count: int) -> list[str]:
    from atoll.wire import nested
    from atoll.wire.channel import Channel

    channels = [Channel(nested.connect()) for _ in range(count)]
    answers = []
    for channel in channels:
        channel.send_many([({"type": "hello", "version": version}, ()), ({"type": "storage"}, ())])
        channel.receive()
        answers.append(channel.receive().type)
    return answers


@isolated(keep_alive=0)
def add(x: int) -> int:
    return x + 1


def test_a_function_does_not_stop_the_daemon(atoll_home: Home) -> None:
    """A connection that its function has made block, with half a message in it, keeps no other call waiting."""
    blocked = atoll_home.path / "volumes" / "local" / "data" / "blocked"
    hostile = stop_the_daemon.submit()
    until(blocked.exists)
    try:
        assert add(1) == 2
    finally:
        stop_the_daemon.cancel(hostile)


@pytest.mark.parametrize("kind", ["nothing", "pipe", "other"])
def test_a_worker_that_sends_no_connection_is_killed(atoll_home: Home, kind: str) -> None:
    """Its call ends, nothing of what it sent stays open, and the daemon goes on."""
    add(1)
    pid = atoll_home.daemon_pid()
    with pytest.raises(errors.WorkerDied):
        send_no_connection(kind)
    assert add(1) == 2
    assert atoll_home.daemon_pid() == pid


def test_what_is_no_frames_is_in_the_log_once_for_each_worker(atoll_home: Home) -> None:
    """A function cannot fill the disk with what the daemon says of it."""
    send_junk(20)
    assert (atoll_home.path / "logs" / "daemon.log").read_text().count("sent_no_frames") == 1


def test_a_worker_has_a_few_storage_peers_at_most(atoll_home: Home) -> None:
    """Those beyond are refused, and their places are free when the others are closed."""
    assert open_storage_peers(__version__, 6) == ["granted"] * 4 + ["failed"] * 2
    assert open_storage_peers(__version__, 1) == ["granted"]


def test_an_agent_ends_workers_of_its_own_sandbox_only() -> None:
    """What a sandbox says of another one's workers is not heard, neither their end nor what they have used."""
    state, messages = PoolState(), Messages.__new__(Messages)
    messages._state = state
    worker: Any = SimpleNamespace(sandbox="s1")
    state.workers["w1"] = worker
    messages._worker_exited("s2", "w1", 99, {"records": [], "call": None})
    assert list(state.workers) == ["w1"]
    assert state.worker_of("s2", "w1") is None
    assert state.worker_of("s1", "w1") is worker


def test_a_long_log_is_put_aside_when_a_daemon_starts(atoll_home: Home) -> None:
    """One old log is kept beside the new one."""
    log = atoll_home.path / "logs" / "daemon.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("old\n")
    with open(log, "r+") as file:
        file.truncate(daemon_start.LOG_BYTES + 1)
    add(1)
    assert "daemon_started" in log.read_text()
    assert log.with_name("daemon.log.1").stat().st_size == daemon_start.LOG_BYTES + 1


def test_what_is_just_starting_has_no_pid_yet() -> None:
    """The rows of `atoll status --json` say `null` for it."""
    key = SandboxKey("local", "e", "none")
    sandbox: Any = SimpleNamespace(id="s1", key=key, node=SimpleNamespace(pid=0), started_at=0.0)
    state = PoolState()
    state.sandboxes["s1"] = sandbox
    assert json.dumps(state.sandbox_rows(None)[0]["pid"]) == "null"
