"""The pause of every process of one sandbox: by the kernel's freezer of its group, else by SIGSTOP.

The freezer leaves no trace: a process that a signal has stopped stays so, and no parent is told. In version 2 a frozen
process can be killed; in version 1 it ends when it is thawed, so whoever ends the sandboxes of a dead daemon thaws them
first (`orphan_killer`, `group_files.kill_all`). SIGSTOP is for users without groups. Parents are stopped before their
children and go on after them, so that a shell with job control does not notice. A process in `vfork` takes the signal
only when its child has started a program or ended; until then the kernel keeps it inside that call, where it changes no
file, and the pending signal stops it before it runs again. So it counts as still while its child does.

All methods are to be called in the event loop's own thread: in version 1 it enters the group of a sandbox to start it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from atoll.sandbox.limits import group_files


class Freezer(Protocol):
    """One pause of one sandbox."""

    def freeze(self) -> None:
        """Begin the pause; processes stop a moment later."""

    def is_frozen(self) -> bool:
        """Return whether no process of the sandbox runs."""

    def thaw(self) -> None:
        """End the pause; nothing happens where it is over, or the sandbox has ended."""

    def stops(self, pid: int) -> bool:
        """Return whether the pause shows as a stopped process, and this is one."""


class GroupFreezer:
    """The kernel's freezer.

    Args:
        directory: of the group, whose processes and those of the groups below are paused.
        version: 1 or 2.
    """

    def __init__(self, directory: Path, version: int) -> None:
        self._old = version == 1
        self._state = directory / ("freezer.state" if self._old else "cgroup.freeze")
        self._events = directory / "cgroup.events"

    def freeze(self) -> None:
        self._write("FROZEN" if self._old else "1")

    def is_frozen(self) -> bool:
        if self._old:
            state = group_files.text(self._state).strip()
            if state == "FREEZING":
                self.freeze()  # one that forked or woke just then may have missed the first
            return state in ("FROZEN", "")
        return group_files.field(self._events, "frozen") == 1 or not self._events.exists()

    def thaw(self) -> None:
        self._write("THAWED" if self._old else "0")

    def stops(self, pid: int) -> bool:  # noqa: ARG002  (a frozen process does not look like a stopped one)
        return False

    def _write(self, value: str) -> None:
        with contextlib.suppress(OSError):  # the sandbox has ended
            group_files.write(self._state, value)


class StopSignals:
    """SIGSTOP for every process of a sandbox that runs, and SIGCONT for the same ones.

    Args:
        pids: returns the processes of the sandbox, by their numbers on the host.
    """

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._stopped: dict[int, int] = {}
        self._found: set[int] = set()

    def freeze(self) -> None:
        opened: dict[int, int] = {}
        for pid in sorted(set(self._pids()) - self._found):  # a parent has the smaller number, but for an overflow
            self._found.add(pid)
            with contextlib.suppress(OSError):
                opened[pid] = os.pidfd_open(pid)
        there = set(self._pids()) if opened else set()  # so the numbers were their own when they were opened
        for pid, descriptor in opened.items():
            if pid not in there or _is_still(pid, vfork=False):  # a process in `vfork` gets the signal all the same
                os.close(descriptor)
                continue
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
            self._stopped[pid] = descriptor

    def is_frozen(self) -> bool:
        self.freeze()  # those that were started meanwhile
        # A process that is seen in `vfork` has its child already, which the last list shows.
        return all(_is_still(pid) for pid in self._found) and not set(self._pids()) - self._found

    def thaw(self) -> None:
        for pid in sorted(self._stopped, reverse=True):
            descriptor = self._stopped.pop(pid)
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)

    def stops(self, pid: int) -> bool:
        return pid in self._stopped


_IN_VFORK = (b"kernel_clone", b"wait_for_vfork_done", b"_do_fork", b"do_fork")
"""Functions of the kernel, by version, whose own wait is that of `vfork` for its child."""


def _is_still(pid: int, *, vfork: bool = True) -> bool:
    """Return whether no thread of a process runs: stopped, traced, or ended; with `vfork` also waiting in that call."""
    with contextlib.suppress(OSError, IndexError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            state = _state(f"/proc/{pid}/task/{thread}/stat")
            if state not in (b"T", b"t", b"Z", b"X") and not (vfork and state == b"D" and _in_vfork(pid, thread)):
                return False
    return True


def _in_vfork(pid: int, thread: str) -> bool:
    with open(f"/proc/{pid}/task/{thread}/wchan", "rb") as file:  # "0" where it runs, or that may not be known
        return file.read() in _IN_VFORK


def _state(stat: str) -> bytes:
    """Return the state of a thread."""
    with open(stat, "rb") as file:
        return file.read().rpartition(b")")[2].split()[0]
