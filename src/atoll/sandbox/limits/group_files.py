"""Files and directories of control groups, read and written as the kernel wants it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def write(path: Path, value: str) -> None:
    """Write one value to a file of a group.

    Raises:
        OSError: the kernel refuses it.
    """
    # Unbuffered, so that the kernel's answer to the one write is this call's.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def text(path: Path) -> str:
    """Return the content of a file of a group; empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def number(path: Path) -> int:
    """Return the number in a file of a group; 0 for none, or `max`."""
    found = text(path).strip()
    return int(found) if found.isdigit() else 0


def field(path: Path, name: str) -> int:
    """Return a number by its name in a file of a group; 0 for none."""
    for line in text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def members(directory: Path) -> list[int]:
    """Return the processes that are in one group now."""
    return [int(pid) for pid in text(directory / "cgroup.procs").split()]


def kill_all(directory: Path) -> None:
    """Kill the processes that are in one group now; in version 1 one that is frozen would not end."""
    with contextlib.suppress(OSError):
        write(directory / "freezer.state", "THAWED")
    for pid in members(directory):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def below(directory: Path) -> list[Path]:
    """Return the groups right below a group."""
    with os.scandir(directory) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def remove(directory: Path) -> bool:
    """Remove one empty group; return whether it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def clear(directory: Path) -> list[Path]:
    """End the processes of a group and of the groups below, and remove these; return the busy ones, lowest first."""
    busy: list[Path] = []
    with contextlib.suppress(OSError):
        for group in below(directory):
            busy += clear(group)
        if busy or not remove(directory):
            kill_all(directory)
            busy.append(directory)
    return busy
