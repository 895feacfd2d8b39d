"""`atoll shell` where the environment's packages are hostile: its descriptors, its terminal, its end."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Home

from ..waiting import PATIENCE_SECONDS, ended, until

pytestmark = pytest.mark.as_user

SHELL = [sys.executable, "-c", "from atoll.cli.main import main; main()", "shell"]

LOOK = r"""
import json, os
found = {}
for name in os.listdir("/proc/self/fd"):
    try:
        found[name] = os.readlink("/proc/self/fd/" + name)
        os.write(os.open("/proc/self/fd/" + name, os.O_RDWR | os.O_NONBLOCK), b"")
        anew = os.open("/proc/self/fd/" + name, os.O_WRONLY | os.O_NONBLOCK)
        os.write(anew, b"changed by the shell\n") if found[name].startswith("/") else None
    except OSError:
        pass
print("found", json.dumps(found))
"""

TERMINAL = r"""
import errno, fcntl, json, os, signal, struct, termios
found = {"descriptors": sorted({os.readlink("/proc/self/fd/%d" % n) for n in range(64) if os.path.exists("/proc/self/fd/%d" % n)})}
def attempt(name, action):
    try:
        action()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
attempt("TIOCSTI", lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"))
attempt("TIOCLINUX", lambda: fcntl.ioctl(0, 0x541C, b"\x03"))
attempt("TIOCCONS", lambda: fcntl.ioctl(0, termios.TIOCCONS))
attempt("TIOCVHANGUP", lambda: fcntl.ioctl(0, 0x5437))
attempt("kill", lambda: os.kill(CLIENT, signal.SIGKILL))
fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 7, 7, 0, 0))
mode = termios.tcgetattr(0)
mode[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, mode)
found["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
print("found", json.dumps(found), flush=True)
os.kill(0, signal.SIGTERM)
"""

STAY = r"""
import fcntl, os, signal
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    file = open("/data/shell-alive", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    print("alive", flush=True)
    for descriptor in (0, 1, 2):
        os.close(descriptor)
while True:
    signal.pause()
"""


def as_line(code: str) -> bytes:
    """Return a line of the shell that runs Python code."""
    text = base64.b64encode(code.encode()).decode()
    return f"exec /opt/atoll/env/bin/python -c \"import base64; exec(base64.b64decode('{text}'))\"\n".encode()


def found_in(output: bytes) -> Any:
    (line,) = (line for line in output.splitlines() if line.startswith(b"found "))
    return json.loads(line.removeprefix(b"found "))


def read_until(descriptor: int, end: bytes) -> bytes:
    """Return the output of a terminal up to `end`."""
    seen = b""
    while not seen.endswith(end):
        assert select.select([descriptor], [], [], PATIENCE_SECONDS)[0], seen
        seen += os.read(descriptor, 1)
    return seen


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: the end of its emulator, and the one of programs."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for descriptor in (ours, theirs):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.mark.parametrize("which", ["stdin", "stdout", "stderr"])
def test_no_descriptor_of_the_client_is_in_the_shell(
    shared_home: Home, tmp_path: Path, terminal: tuple[int, int], which: str
) -> None:
    """Terminals and files that stdin, stdout or stderr of `atoll shell` are cannot be opened in it, nor others."""
    script, inherited = tmp_path / "script", tmp_path / "inherited"
    script.write_bytes(as_line(LOOK))
    script.chmod(0o666)
    inherited.touch()
    _, theirs = terminal
    with open(script, "rb") as code, open(inherited, "w") as other, open(tmp_path / "output", "w+b") as output:
        streams: dict[str, Any] = {"stdin": code, "stdout": output, "stderr": subprocess.PIPE}
        if which == "stderr":
            streams["stderr"] = theirs
        if which == "stdin":
            streams["stdout"] = subprocess.PIPE
        done = subprocess.run(
            SHELL, **streams, env=shared_home.environment(), pass_fds=[other.fileno()], timeout=120, check=False
        )
        output.seek(0)
        found = found_in(done.stdout if which == "stdin" else output.read())
    assert done.returncode == 0
    assert sorted(found.values()) == sorted(value for value in found.values() if value.startswith("pipe:")), found
    assert script.read_bytes() == as_line(LOOK)
    assert b"changed" not in (tmp_path / "output").read_bytes()


def test_the_shell_does_nothing_to_its_clients_terminal(shared_home: Home, terminal: tuple[int, int]) -> None:
    """Input cannot be pushed, and size, modes and processes of the caller's terminal are out of reach."""
    ours, theirs = terminal
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        SHELL, stdin=theirs, stdout=theirs, stderr=theirs, env=shared_home.environment(), start_new_session=True
    ) as client:
        read_until(ours, b"(atoll)")
        os.write(ours, as_line(TERMINAL.replace("CLIENT", str(client.pid))))
        seen = read_until(ours, b"found {")
        seen += read_until(ours, b"\n")
        assert client.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
    found = found_in(seen)
    assert found["TIOCSTI"] == found["TIOCLINUX"] == "EPERM"
    assert found["TIOCCONS"] != "done"
    assert found["TIOCVHANGUP"] != "done"
    assert found["kill"] == "ESRCH"
    assert len(found["processes"]) <= 3
    assert os.ttyname(theirs) not in found["descriptors"]
    assert len(found["descriptors"]) == 1, found
    assert struct.unpack("4H", fcntl.ioctl(theirs, termios.TIOCGWINSZ, bytes(8)))[:2] == (33, 99)
    assert termios.tcgetattr(theirs) == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGHUP])
def test_a_shell_ends_with_its_client(shared_home: Home, end: signal.Signals) -> None:
    """Whatever its processes ignore and wherever they hide, none is left when `atoll shell` has ended."""
    with subprocess.Popen(
        SHELL, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=shared_home.environment()
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(as_line(STAY))
        client.stdin.flush()
        assert client.stdout.readline() == b"alive\n"
        client.send_signal(end)
        assert ended(client.pid)
    with open(shared_home.volume / "shell-alive", "r+") as file:

        def free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        until(free)
