"""A group of its own for a daemon of a plain user, from systemd.

In a login session the groups around a process belong to root. The user's own systemd manager has a part of the tree
that is delegated to the user; asked over D-Bus, it starts a scope there with the daemon in it (the system's manager
moves the process on its behalf). What `systemd-run --user --scope -p Delegate=yes` does for a new process is done here
for the running one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from atoll.process import check
from atoll.settings import search_path

MOVE_SECONDS = 2.0
_POLL_SECONDS = 0.01


def enter() -> bool:
    """Move this process into a scope that is delegated to its user; return whether it was moved.

    Does nothing for root, and where systemd does not manage the user's processes.
    """
    if os.geteuid() == 0 or not Path("/run/systemd/system").is_dir():
        return False
    runtime = Path(f"/run/user/{os.getuid()}")
    program = shutil.which("busctl", path=search_path())
    if program is None or not (runtime / "bus").exists():
        return False
    before = _own_group()
    try:
        done = check([program, *call(os.getpid())], env={"XDG_RUNTIME_DIR": str(runtime)})
    except (OSError, subprocess.TimeoutExpired):
        return False
    deadline = time.monotonic() + MOVE_SECONDS
    while done.status == 0 and time.monotonic() < deadline:
        if _own_group() != before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def call(pid: int) -> list[str]:
    """Return the arguments of `busctl` that start a delegated scope around a process."""
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    properties = ["3", "PIDs", "au", "1", str(pid), "Delegate", "b", "true", "Description", "s", "Atoll's functions"]
    return [
        *("--user", "--quiet", "call", *manager),
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", f"atoll-{pid}.scope", "fail", *properties, "0"),
    ]


def _own_group() -> str:
    try:
        return Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
