"""The orphan killer: a process outside of all sandboxes that ends those of a launcher that has ended.

Theory of operation. Bubblewrap's own parent-death signals are not enough. They are armed late, and a function of a
plain user may reach pid 1 of its sandbox, which has the same uid, and disarm its signal there, where the kernel has no
Landlock. So the launcher sends this process two pidfds of each sandbox: bubblewrap's at once, and that of pid 1 before
any code runs in the sandbox. Whatever a sandbox does with its own descriptors, these stay valid: with pid 1 the kernel
ends all processes of the namespace.

It also keeps the fence (`fence`), which the launcher names: when that moment passes, it kills the sandboxes of a
server's users, and those that it hears of later, until another moment is named. So a launcher that is stopped or hangs
lets nothing run on.

Messages: one byte and what it needs. `w` and `f` come with pidfds, of any sandbox and of one behind the fence; `u` with
the moment, as a double; `n` for none.

The launcher's end is the end of a socket whose other end only the launcher has. Nothing in a sandbox holds either, and
a socket cannot be opened through `/proc`. Then all pidfds are killed by, and paused groups thawed. A sandbox that was being made may have a pid 1
that has not been reported yet: every bubblewrap also inherits a pipe, which pid 1 keeps (`--sync-fd`) and the command
never gets, and every process that holds it is killed. The pipe carries nothing, so opening it again is of no use.

It runs as a script of its own, with little of the standard library.
"""

from __future__ import annotations

import _socket  # not `socket`, whose import takes longer than all others
import array
import contextlib
import os
import select
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # `typing` takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterable

QUIET_SECONDS = 0.4
"""Seconds without a holder until there can be none: a scan may miss a process that was just cloned."""

GIVE_UP_SECONDS = 60.0
"""A process that cannot be killed is waited for no longer."""

MESSAGE_DESCRIPTORS = 250
"""Descriptors that one message may carry; the kernel takes 253 (SCM_MAX_FD)."""

_POLL_SECONDS = 0.05

LOOK_MILLISECONDS = 200
"""The longest wait while there is a fence: the kernel's waits do not count the time of a suspended machine."""


def holds(pid: int | str, pipe: str) -> bool:
    """Return whether a process has the pipe that is named as `/proc/PID/fd` names it; False when it is gone."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == pipe:
                return True
        except OSError:
            continue
    return False


def end(pid: int, pipe: str) -> bool:
    """Kill a process if it holds the pipe; return whether it did. Another one that got its number is left alone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not holds(pid, pipe):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def sweep(pipe: str) -> int:
    """Kill every other process that holds the pipe; return how many did."""
    own = os.getpid()
    return sum(end(int(name), pipe) for name in os.listdir("/proc") if name.isdigit() and int(name) != own)


def receive(channel: _socket.socket) -> tuple[bytes, list[int]] | None:
    """Return one message and its descriptors; None after the last one."""
    try:
        space = _socket.CMSG_SPACE(4 * MESSAGE_DESCRIPTORS)
        data, parts, _flags, _address = channel.recvmsg(16, space, _socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    if not data:
        return None
    found = array.array("i")
    for level, kind, content in parts:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found)


def kill(pidfds: Iterable[int]) -> None:
    """Kill processes, paused ones too; those that have ended are left alone."""
    for one in pidfds:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(one, signal.SIGKILL)
        thaw(one)


class Keeping:
    """The fence as the orphan killer keeps it."""

    def __init__(self) -> None:
        self.until: float | None = None
        self.fenced: set[int] = set()

    def take(self, message: bytes, received: list[int]) -> None:
        """Take a message of the launcher."""
        match message[:1]:
            case b"f":
                self.fenced.update(received)
            case b"u":
                self.until = struct.unpack("<d", message[1:9])[0]
            case b"n":
                self.until = None

    def look(self) -> float | None:
        """Kill what is behind a fence that has passed; return the milliseconds until the next look, None for none."""
        if self.until is None:
            return None
        left = self.until - time.clock_gettime(time.CLOCK_BOOTTIME)
        if left <= 0:
            kill(self.fenced)
        return min(max(left, _POLL_SECONDS if left <= 0 else 0.0) * 1000 + 1, LOOK_MILLISECONDS)


def hold(channel: _socket.socket) -> set[int]:
    """Hold the pidfds that the launcher sends, each until its process has ended; return the rest at its end."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    held: set[int] = set()
    keeping = Keeping()
    while True:
        for descriptor, _ in poll.poll(keeping.look()):
            if descriptor != channel.fileno():
                poll.unregister(descriptor)
                held.discard(descriptor)
                keeping.fenced.discard(descriptor)
                os.close(descriptor)
                continue
            received = receive(channel)
            if received is None:
                return held
            for one in received[1]:
                poll.register(one, select.POLLIN)
            held.update(received[1])
            keeping.take(*received)


def thaw(pidfd: int) -> None:
    """Thaw the groups of a process, as far as they are of version 1: there a frozen process ends when it is thawed."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
            pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            paths = [
                line.rstrip("\n").split(":", 2)[2] for line in file if "freezer" in line.split(":", 2)[1].split(",")
            ]
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file if " - cgroup " in line]
        for path in paths:
            for words in mounts:
                if "freezer" not in words[-1].split(","):
                    continue
                group = words[4] + path.removeprefix(words[3].rstrip("/"))
                for directory in (group, os.path.dirname(group)):
                    with (
                        contextlib.suppress(OSError),
                        open(f"{directory}/freezer.state", "w", encoding="ascii") as file,
                    ):
                        file.write("THAWED")


def main(pipe: int, channel: int) -> None:
    """Wait for the launcher's end, then kill what it has launched until nothing is left."""
    name = os.readlink(f"/proc/self/fd/{pipe}")
    kill(hold(_socket.socket(fileno=channel)))
    started = quiet_since = time.monotonic()
    while (now := time.monotonic()) - quiet_since < QUIET_SECONDS and now - started < GIVE_UP_SECONDS:
        if sweep(name):
            quiet_since = time.monotonic()
        time.sleep(_POLL_SECONDS)


def _allow_descriptors() -> None:
    """Take two descriptors for each sandbox, of which there may be more than the usual 1024 allow."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _allow_descriptors()
    main(int(sys.argv[1]), int(sys.argv[2]))
