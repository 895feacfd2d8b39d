"""Restarts of the server: calls go on across an orderly one, and end with an error across a crash."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll import Host, credentials, errors, isolated

from ..conftest import needs_outbound
from ..waiting import ended, until
from .functions import Leased
from .process import Server, running
from .raw_line import RawLine, Refused

pytestmark = needs_outbound


@pytest.fixture(scope="module")
def restarted() -> Iterator[Server]:
    """A server that the tests of this module end and start again."""
    with running() as found:
        (found.home.path / "settings.toml").write_text("[pool]\nslots = 8\n")  # read by the node, which starts later
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


def _length(data: bytes) -> int:
    return len(data)


@dataclass
class Across:
    """Lines in several states that were open when their server was ended in order and started again."""

    running: Leased
    answered: Leased
    half_sent: Leased
    idle: Leased
    storage: RawLine
    abandoned: RawLine
    stream: socket.socket
    command: subprocess.Popen[bytes]
    stdin_over: subprocess.Popen[bytes]
    node: tuple[int | None, int | None]


def _begin(leased: Leased) -> None:
    leased.start()
    while leased.line.printed[1] != b"began\n":
        leased.line.pump()


_ECHO = """
import os, socket
with socket.create_server(("127.0.0.1", 8137)) as listener:
    print("listens", flush=True)
    stream, _ = listener.accept()
while data := stream.recv(1 << 16):
    stream.sendall(data)
stream.close()
os.write(1, b"stream over " + os.read(0, 100))
"""


def _command(server: Server, *words: str) -> subprocess.Popen[bytes]:
    """Start `atoll exec`."""
    key_id, key_secret = server.key
    named = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": key_secret}
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())", "exec", *words],
        env={**os.environ, **named, "ATOLL_CA_FILE": str(server.ca_file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def across(restarted: Server) -> Iterator[Across]:
    """See `Across`; one restart for all."""
    with contextlib.ExitStack() as stack:

        def lease(function: Callable[..., Any], argument: Any) -> Leased:
            made = Leased(restarted, function, argument)
            stack.callback(made.line.close)
            return made

        running, answered = lease(_wait_for_file, "running"), lease(_wait_for_file, "answered")
        half_sent, idle = lease(_length, os.urandom(12 << 20)), lease(_length, b"abc")
        storage, abandoned = RawLine(restarted, {"type": "storage"}), RawLine(restarted, {"type": "storage"})
        for line in (storage, abandoned):
            stack.callback(line.close)
            line.header("granted")
        for one in (running, answered):
            _begin(one)
        command = stack.enter_context(_command(restarted, running.request.call.id, "python", "-c", _ECHO))
        script = "cat; printf ' and all'; until test -e /data/running; do sleep 0.05; done; exit 9"
        stdin_over = stack.enter_context(_command(restarted, running.request.call.id, "sh", "-c", script))
        for program in (command, stdin_over):
            stack.callback(program.kill)
        assert command.stdout is not None
        assert command.stdout.readline() == b"listens\n"
        assert stdin_over.stdin is not None
        assert stdin_over.stdout is not None
        stdin_over.stdin.write(b"input")
        stdin_over.stdin.close()
        assert stdin_over.stdout.read(13) == b"input and all"
        key_id, key_secret = restarted.key
        host = Host(restarted.url, key_id=key_id, key_secret=key_secret, ca_file=str(restarted.ca_file))
        stream = stack.enter_context(host.dial(running.worker, 8137))
        stream.settimeout(60)
        stream.sendall(b"before")
        assert stream.recv(6, socket.MSG_WAITALL) == b"before"
        answered.line.drop()
        (_data(restarted) / "answered").write_text("")
        name = answered.request.call.id
        until(lambda: name not in json.dumps(restarted.ask("POST", "/v1/requests/calls.running", b"{}")[1]))
        half_sent.line.drop_after(9 << 20)
        node = restarted.home.daemon_pid()

        def restart() -> None:
            restarted.end()
            restarted.start()

        half_sent.line.on_drop = restart
        half_sent.start()
        nodes = (node, restarted.home.daemon_pid())
        yield Across(running, answered, half_sent, idle, storage, abandoned, stream, command, stdin_over, nodes)


def test_streams_and_commands_go_on_across_a_restart(across: Across) -> None:
    """A dialled port, a command with its input, and one whose input was over, are there after a restart."""
    across.stream.sendall(b"after")
    assert across.stream.recv(5, socket.MSG_WAITALL) == b"after"
    across.stream.shutdown(socket.SHUT_WR)
    assert across.stream.recv(5) == b""
    assert across.command.communicate(b"typed", timeout=60)[0] == b"stream over typed"
    assert across.command.returncode == 0
    assert across.stdin_over.poll() is None


def test_calls_go_on_across_a_restart(restarted: Server, across: Across) -> None:
    """A running call survives the server's process: same node, its output once and in order, one run."""
    leased = across.running
    with contextlib.suppress(ConnectionError):
        leased.line.header("never")
    assert leased.line.closed == 1012
    leased.line.resume()
    assert across.node[0] == across.node[1]
    (_data(restarted) / "running").write_text("")
    assert across.stdin_over.wait(60) == 9
    assert leased.answer() == 1
    assert leased.line.printed[1] == b"began\nwent on\n"
    call = leased.request.call
    leased.request = leased.request._replace(call=call.again("second-call", call.arguments, (), 0.0))
    assert leased.call() == 2  # the lease serves further calls
    shown = restarted.ask("POST", "/v1/requests/calls.output", json.dumps({"call": call.id}).encode())[1]
    assert "went on" in json.dumps(shown)
    leased.line.close()


def test_bytes_on_their_way_survive_a_restart(across: Across) -> None:
    """Arguments that are half sent when the server restarts arrive whole."""
    assert across.half_sent.answer() == 12 << 20
    assert across.half_sent.line.drops == 1


def test_unread_answers_survive_a_restart(across: Across) -> None:
    """An answer that came while nobody was connected is kept for the client across the restart."""
    across.answered.line.resume()
    assert across.answered.answer() == 1
    assert across.answered.line.printed[1] == b"began\nwent on\n"
    across.answered.line.close()


def test_idle_lines_survive_a_restart(across: Across) -> None:
    """Storage channels and leases without a call are there after a restart."""
    across.storage.resume()
    across.idle.line.resume()
    across.storage.send_frames({"type": "hello"})
    assert across.storage.message().type
    assert across.idle.call() == 3
    across.idle.line.close()
    across.storage.close()


def test_adopted_lines_end_with_their_client(across: Across) -> None:
    """A line that was adopted is over when its client closes it."""
    across.abandoned.resume()
    across.abandoned.close()
    with pytest.raises(Refused):
        across.abandoned.resume()


_WAITS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from atoll import Volume, cloud, isolated

sys.stdin.readline()
with ThreadPoolExecutor() as pool:
    call = pool.submit(isolated(host=cloud)(len), "abc")
    files = pool.submit(Volume(cloud).listdir)
    status = pool.submit(cloud.request, "status", {})
    print(call.result(), "running" in files.result(), "workers" in status.result())
"""


def test_clients_wait_while_a_server_restarts(
    restarted: Server, across: Across, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program at an address of a login waits with its call, files and request, and says so in one line."""
    assert across
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key_id, key_secret = restarted.key
    credentials.store(credentials.Credentials(restarted.url, key_id, key_secret, str(restarted.ca_file)))
    program = [sys.executable, "-c", _WAITS]
    restarted.end()
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stderr is not None
        run.stdin.write("\n")
        run.stdin.flush()
        line = run.stderr.readline()
        restarted.start()
        out, more = run.communicate(timeout=120)
    assert line.startswith(f"atoll: `{restarted.url}` does not answer, as while it restarts: trying for up to 2"), line
    assert (run.returncode, out, more) == (0, "3 True True\n", "")


def test_a_first_contact_does_not_wait(
    restarted: Server, across: Across, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that there is a server at an address of variables alone; with `ATOLL_RETRY_SECONDS` they do."""
    assert across
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = {"ATOLL_KEY_ID": "id", "ATOLL_KEY_SECRET": "secret"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())", "status"]

    def said(**more: str) -> str:
        named = {"ATOLL_HOST": url, **key, **more}
        done = subprocess.run(
            command, env={**os.environ, **named}, check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1
        return done.stderr

    assert said().startswith(f"error: nothing listens at `{url}`\n")
    first, second, _ = said(ATOLL_RETRY_SECONDS="3").splitlines()
    assert re.fullmatch(rf"atoll: `{url}` does not answer, as while it restarts: trying for up to [012] s", first)
    assert second == f"error: nothing listens at `{url}`"
    assert said(ATOLL_HOST="https://no.such.host.invalid", ATOLL_RETRY_SECONDS="60").startswith("error: no machine")


def test_a_killed_server_ends_its_calls(restarted: Server) -> None:
    """After SIGKILL a line is gone by 410, its call has ended, and it is not run again."""
    leased = Leased(restarted, _wait_for_file, "killed")
    line = leased.line
    _begin(leased)
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


def _writes_on() -> None:
    """Write the time again and again, also for 2 seconds after the call was cancelled."""
    until, asked = time.monotonic() + 3600, False
    with open("/data/times", "a") as file:
        while time.monotonic() < until:
            try:
                file.write(f"{time.monotonic()}\n")
                file.flush()
                time.sleep(0.01)
            except KeyboardInterrupt:
                if not asked:
                    until, asked = time.monotonic() + 2.0, True


def test_nobody_hears_of_an_end_while_the_call_goes_on(restarted: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and node are ended at a time, as with their machine: the client waits, and hears when the call is over."""
    for name, value in restarted.client_variables.items():
        monkeypatch.setenv(name, value)
    key_id, secret = restarted.key
    host = Host(restarted.url, key_id=key_id, key_secret=secret, ca_file=str(restarted.ca_file))
    heard = list[float]()

    def call() -> None:
        with pytest.raises(errors.HostUnreachable):
            isolated(host=host, network="none", grace=30, machine_type="XS")(_writes_on)()
        heard.append(time.monotonic())

    thread = threading.Thread(target=call)
    thread.start()
    times: Path = until(lambda: next(restarted.home.path.glob("volumes/*/data/times"), None))  # type: ignore[assignment]
    daemon = int(json.loads((restarted.home.path / "run" / "daemon.json").read_text())["pid"])
    until(lambda: times.stat().st_size)
    os.kill(daemon, signal.SIGTERM)
    restarted.end()
    assert ended(daemon)
    assert not heard
    restarted.start()
    thread.join()
    assert heard[0] > float(times.read_text().split()[-1])
