"""The client of JuiceFS that a daemon has mounted ends with the machine's lease: nothing that it holds is written later."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from atoll import isolated, settings
from atoll.host.local import LocalHost
from atoll.node.shared import client
from atoll.sandbox import fence
from atoll.server.node import Node

from ..leaks import release_idle
from ..waiting import ended, until
from .shared_disk import Machine

_SENDER = """
import os, socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line:
    line.setblocking(False)
    try:
        while True:
            line.send(bytes(1 << 16))
    except BlockingIOError:
        print("full", flush=True)
    time.sleep(600)
"""


def write(text: str) -> str:
    """Write a file and read it."""
    with open("/data/note", "w") as file:
        file.write(text)
    with open("/data/note") as file:
        return file.read()


@contextlib.contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """Stop a process while the context is open."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("stands_still", ["daemon", "keeper"])
def test_the_client_ends_with_the_lease_and_is_mounted_anew(
    machines: tuple[Machine, Machine], stands_still: str
) -> None:
    """The daemon kills it, and the keeper where that is stopped; calls work when the machine has its server again."""
    home = machines[0].path
    options, host = settings.load(home), LocalHost(home)
    node = Node(options)
    run = isolated(host=host)(write)
    assert run("before") == "before"
    try:
        node.request(None, "fence", {"seconds": 600})
        state = client.mount_state(options)
        kept = state["pid"] if stands_still == "keeper" else machines[0].daemon_pid()
        moment = fence.now() + 0.5
        node.request(None, "fence", {"until": moment})
        with stopped(kept):
            assert ended(state["program"])
            assert fence.now() >= moment
        assert node.request(None, "fence", {"seconds": 600})["until"] > moment
        assert client.began(options) > moment
        assert run("after") == "after"
    finally:
        node.request(None, "fence", {})
        release_idle()


def test_a_client_is_left_alone_while_the_lease_lasts(machines: tuple[Machine, Machine]) -> None:
    """Renewals, and a member that leaves, end nothing; a client that began after the end has nothing of the users'."""
    home = machines[0].path
    options, node = settings.load(home), Node(settings.load(home))
    assert isolated(host=LocalHost(home))(write)("here") == "here"
    node.request(None, "fence", {"seconds": 600})
    began = client.began(options)
    assert not client.end_overdue(options)
    assert not client.end_overdue(options, began - 1)
    node.request(None, "fence", {"seconds": 600})
    node.request(None, "fence", {})
    assert client.began(options) == began
    assert fence.told(options.run_directory / fence.FILE) is None
    release_idle()


def test_bytes_that_were_not_sent_are_dropped(tmp_path: Path) -> None:
    """The other end of a killed client's connection gets a reset, not the rest that the kernel has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = [sys.executable, "-c", _SENDER, str(listener.getsockname()[1]), str(tmp_path)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True) as sender:
            reaper = threading.Thread(target=sender.wait)
            with listener.accept()[0] as peer:
                assert sender.stdout is not None
                assert sender.stdout.readline() == b"full\n"
                assert not client.end(sender.pid, tmp_path / "another")
                reaper.start()
                assert client.end(sender.pid, tmp_path)
                with pytest.raises(ConnectionResetError):
                    list(iter(partial(peer.recv, 1 << 20), b""))
            reaper.join()
            assert sender.returncode == -signal.SIGKILL
    until(lambda: not client.end(sender.pid, tmp_path))
