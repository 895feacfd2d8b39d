"""The processes of JuiceFS that serve a mount, and their end with the machine's lease from its server.

Theory of operation. JuiceFS keeps writes that it has not uploaded. A machine that loses its server and its storage
together could upload them when both are back, after a repeated call elsewhere has written. So a client that began before
the moment at which the lease ended is killed. The keeper of the mount and each daemon look by themselves, at the
moment in `run/joined`; so it happens when either is stopped. A client that begins after that moment has nothing of the
server's users: it is mounted at once, for calls of the machine's owner.

The kernel would send what a killed process has written to its connections, for minutes. So they are set to end with a
reset, which drops that (`SO_LINGER` of 0), while all processes are stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll.sandbox import fence
from atoll.settings import Settings

STATE = "mount.json"
"""The keeper's file in `run`: `program`, the process group of the client, `began`, by the fence's clock, and `writer`."""

_PIDFD_GETFD = 438  # <asm-generic/unistd.h>, the same on all architectures
_POLL_SECONDS = 0.01


def mount_state(options: Settings) -> dict[str, Any]:
    """Return the last words of the mount's keeper; empty for none."""
    try:
        found = json.loads((options.run_directory / STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def writer(pid: int) -> dict[str, Any]:
    """Return what tells a process from all others, also from those of this machine before its restart.

    Raises:
        OSError: there is none.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "pid": pid,
        "started": int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]),
        "boot": boot,
    }


def is_current(state: Mapping[str, Any]) -> bool:
    """Return whether the keeper lives that has written a state: the file of one that was killed stays."""
    told = state.get("writer")
    if told is None and "pid" in state:  # a keeper of an earlier version, which tells no more
        return True
    pid = told.get("pid") if isinstance(told, dict) else None
    with contextlib.suppress(OSError):
        return type(pid) is int and writer(pid) == told
    return False


def began(options: Settings) -> float:
    """Return when the client of a state directory's mount began, by the fence's clock; 0 where nobody tells."""
    found = mount_state(options).get("began")
    return found if isinstance(found, float) else 0.0


def end_overdue(options: Settings, over: float | None = None, state: Mapping[str, Any] | None = None) -> bool:
    """Kill the client of a state directory's mount if it began before a lease that is over; return whether it did.

    Returns when it is gone: nothing that it held is written any more.

    Args:
        over: the end of the lease; the moment in the state directory by default.
        state: of the mount, as `mount_state`, which gives it by default.
    """
    over = fence.told(options.run_directory / fence.FILE) if over is None else over
    if over is None or fence.now() < over:
        return False
    state = mount_state(options) if state is None else state
    program, first = state.get("program"), state.get("began")
    if type(program) is not int or program <= 1 or (isinstance(first, float) and first >= over):
        return False
    point = options.storage.root(options.home)
    return end(program, point)


def end(group: int, point: Path) -> bool:
    """Kill the processes of a group that serve a mount point, and wait until they are gone; return whether there were any.

    JuiceFS starts the process anew that serves: so it is looked for until there is none.
    """
    found = False
    while members := _members(group, point):
        found = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)
            for pid in members:
                _reset_connections(pid)
            os.killpg(group, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return found


def _members(group: int, point: Path) -> list[int]:
    """Return the live processes of a group whose command lines have the mount point: its number may be another's now."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            state, _parent, of = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[:3]
            line = Path("/proc", name, "cmdline").read_bytes() if int(of) == group else b""
            if state not in b"ZX" and b" %b " % os.fsencode(point) in line.replace(
                b"\0", b" "
            ):  # JuiceFS joins its words
                found.append(int(name))
    return found


def _reset_connections(pid: int) -> None:
    """Have a process's connections end with a reset, which drops bytes that are not sent; where the kernel lets us."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                        _reset(process, int(name))
        finally:
            os.close(process)


def _reset(process: int, descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
    if number < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(fileno=number) as copy:
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
