"""Memory limits where the kernel gives none to this user: measure, and end what is over.

A process belongs to a worker when it descends from it. One that was seen below the worker stays counted when its
parent ends before it. Between two polls a worker can pass its limit, so this protects a machine less well than a
cgroup does; and files in `/tmp` and `/dev/shm` are not counted, which have limits of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence

from atoll.sandbox.limits.freezing import Freezer, StopSignals

_STOP_ROUNDS = 20
_DEEPEST = 8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Watchdog:
    """Measure the processes of one worker at each `poll`, and kill them all when they are over the limit.

    Args:
        limit_bytes: of memory that is theirs; pages shared with other processes count in proportion.
        processes: how many of them are too many; 0 for no limit. What keeps them below is the worker's own resource
            limit, which threads count for too.
    """

    def __init__(self, limit_bytes: int, processes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._processes = processes
        self._most = 0
        self._members: dict[int, int] = {}
        self._leader = 0
        self._peak_bytes = 0
        self._record: tuple[int, int] | None = None
        self._lock = threading.RLock()  # a thread polls, while others add processes, ask, and remove

    def add(self, host_pid: int) -> None:
        """Count a process and those that it will start; one that has ended is ignored."""
        started = started_at(host_pid)
        if started:
            with self._lock:
                self._leader = self._leader or host_pid
                self._members[host_pid] = started

    def memory_bytes(self) -> int:
        """Return what the processes use now, shared pages in proportion."""
        with self._lock:
            self._follow()
            members = list(self._members)
        return sum(map(_proportional_bytes, members))

    def exceeded(self) -> tuple[int, int] | None:
        """Return the limit and the peak when this watchdog has killed the processes."""
        return self._record

    def killed(self) -> bool:
        """Whether this watchdog has killed the processes."""
        return self._record is not None

    def met(self) -> int:
        """Return the peak when this watchdog has killed the processes, else 0."""
        return self._record[1] if self._record is not None else 0

    def refused(self) -> bool:
        """Whether there were nearly as many processes as there may be."""
        return bool(self._processes) and self._most > self._processes * 3 // 4

    def poll(self) -> None:
        """Measure once; kill every process of the worker when they use more than the limit together."""
        with self._lock:
            self._follow()
            used = sum(_resident_bytes(pid) for pid in self._members)
            if used > self.limit_bytes:  # an upper bound, cheap to read; the exact sum is not
                used = sum(_proportional_bytes(pid) for pid in self._members)
            self._peak_bytes = max(self._peak_bytes, used)
            if used > self.limit_bytes:
                self._record = (self.limit_bytes, self._peak_bytes)
                self._kill()

    def remove(self) -> bool:
        """End what is left of the processes; return whether nothing is."""
        with self._lock:
            self._follow()
            if self._members:
                self._kill()
            return not self._members

    def _follow(self) -> None:
        """Drop members that have ended, and take in the children of the others."""
        self._members = {pid: started for pid, started in self._members.items() if started_at(pid) == started}
        waiting = list(self._members)
        while waiting:
            for child in children(waiting.pop()):
                if child not in self._members and (started := started_at(child)):
                    self._members[child] = started
                    waiting.append(child)
        self._find_orphans()
        self._most = max(self._most, len(self._members))

    def _find_orphans(self) -> None:
        """Take in processes whose parents have ended: by their session, which is the worker's own."""
        if any(pid != self._leader for pid in self._members) or children(self._leader):
            for pid in session(self._leader) - self._members.keys():
                if started := started_at(pid):
                    self._members[pid] = started

    def _kill(self) -> None:
        for _ in range(_STOP_ROUNDS):  # what is stopped starts nothing more
            known = len(self._members)
            self._signal(signal.SIGSTOP)
            self._follow()
            if len(self._members) <= known:
                break
        self._signal(signal.SIGKILL)

    def _signal(self, number: int, pids: Sequence[int] = ()) -> None:
        for pid, started in self._members.items():
            if pids and pid not in pids:
                continue
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
                try:
                    if started_at(pid) == started:
                        signal.pidfd_send_signal(descriptor, number)
                finally:
                    os.close(descriptor)


class SandboxWatchdog(Watchdog):
    """Measure every process of one sandbox at each `poll`, and kill them all when they are over a limit.

    The first process is bubblewrap's, and all others descend from it: an orphan falls to pid 1 of the sandbox.
    """

    def resize(self, memory_bytes: int, processes: int) -> None:
        """Set other limits."""
        with self._lock:
            self.limit_bytes, self._processes = memory_bytes, processes

    def pids(self) -> list[int]:
        """Return the processes that there were at the last look."""
        return list(self._members)

    def freezer(self) -> Freezer:
        """Return the pause of every process of the sandbox."""
        return StopSignals(self._living)

    def _living(self) -> list[int]:
        with self._lock:
            self._follow()
            return list(self._members)

    def refused(self) -> bool:
        """Whether there were more processes than there may be; they were killed for it."""
        return bool(self._processes) and self._most > self._processes

    def poll(self) -> None:
        super().poll()
        with self._lock:
            if self._processes and len(self._members) > self._processes:
                self._kill()

    def _find_orphans(self) -> None:
        return None

    def _kill(self) -> None:
        # With pid 1 the kernel ends every other at once, also those that were started since the look.
        first = children(self._leader)
        self._signal(signal.SIGKILL, [pid for pid in self._members if pid in first])
        super()._kill()


def started_at(pid: int) -> int:
    """Return when a process started, in the kernel's ticks; 0 when it has ended. Tells a reused number apart."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def parent(pid: int) -> int:
    """Return the parent of a process; 0 when it has ended, or has none that can be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def first_processes(pid: int, outer: int) -> tuple[int, int]:
    """Return the first process of the sandbox that a worker is in, and its agent; zeros for those that have ended.

    Args:
        pid: the worker's, which the agent or one of its children has forked.
        outer: bubblewrap's, whose child is the first process.
    """
    line = [pid]
    while (above := parent(line[-1])) not in (0, 1, outer) and len(line) < _DEEPEST:
        line.append(above)
    return (line[-1], line[-2]) if above == outer and len(line) > 2 else (0, 0)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that are still its own; none when it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += [int(word) for word in file.read().split()]
    return found


def session(leader: int) -> set[int]:
    """Return the processes of a session, by the process that began it."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[3]) == leader:
                found.add(int(name))
    return found


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return _resident_bytes(pid)
