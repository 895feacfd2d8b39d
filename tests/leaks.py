"""The check that a test ends with the descriptors, threads and child processes it began with.

A snapshot is taken before the test's own fixtures and compared after their teardown, so that fixtures of a module or
of the session may hold what they need. Idle leases and storage channels of local hosts are given back first: a host
keeps them on purpose.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import threading
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

from atoll.host import pooled

WAIT_SECONDS = float(os.environ.get("LEAK_SECONDS", "60"))
"""How long threads, children and descriptors may take to end; only a test that leaks waits so long."""
STEP_SECONDS = 0.1
_KEPT_THREADS = re.compile(r"atoll-\d+")
"""The threads of `atoll.sdk.futures`, which the process keeps for the next `submit`."""


@dataclass(frozen=True)
class Holdings:
    """The descriptors (number and target), threads and children (process ids) of this process at one moment."""

    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]
    children: frozenset[int]

    @classmethod
    def now(cls) -> Holdings:
        """Read them; daemon threads count."""
        threads = {thread for thread in threading.enumerate() if not _KEPT_THREADS.fullmatch(thread.name)}
        return cls(frozenset(_descriptors()), frozenset(threads), frozenset(_children()))

    def leaked(self) -> str:
        """Return a description of the holdings that this process has beyond these, empty where there are none."""
        self._collect()
        deadline = time.monotonic() + WAIT_SECONDS
        while self._wait_end() and time.monotonic() < deadline:
            pass
        return Holdings.now().beyond(self)

    def _collect(self) -> None:
        """Close everything that is idle or that only a traceback or a cycle keeps."""
        release_idle()
        if Holdings.now().beyond(self):
            gc.collect()

    def _wait_end(self) -> bool:
        """Wait a moment for a thread, child or descriptor to end; return whether there was one.

        Descriptors close with the others, and some by a thread of a library's that is none of Python's.
        """
        now = Holdings.now()
        for thread in now.threads - self.threads:
            with contextlib.suppress(RuntimeError):  # it is just being started
                thread.join(STEP_SECONDS)
            return True
        for child in now.children - self.children:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(child)
                try:
                    select.select([pidfd], [], [], STEP_SECONDS)
                finally:
                    os.close(pidfd)
            return True
        self._collect()  # the threads of a `map` leave idle leases as they end
        if Holdings.now().descriptors - self.descriptors:
            time.sleep(STEP_SECONDS)
            return True
        return False

    def beyond(self, before: Holdings) -> str:
        """Return a description of the holdings that `before` lacks."""
        lines = [f"descriptor {number}: {target}" for number, target in sorted(self.descriptors - before.descriptors)]
        lines += [f"thread {thread.name}" for thread in self.threads - before.threads]
        lines += [f"child process {pid}: {_command(pid)}" for pid in sorted(self.children - before.children)]
        return "\n".join(lines)


def release_idle() -> None:
    """Give the idle leases and storage channels of all hosts back."""
    for host in list(pooled._hosts.values()):
        host.close()


def _descriptors() -> set[tuple[int, str]]:
    found = set[tuple[int, str]]()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    tracker = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
    return {(number, target) for number, target in found if number != tracker}


def _children() -> set[int]:
    """Return the processes whose parent is this one.

    Not counted are multiprocessing's tracker and daemons: the fixture of their state directory ends them.
    """
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    found = set[int]()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return {pid for pid in found - {tracker} if "atoll.daemon.main" not in _command(pid) and not _reaped(pid)}


def _reaped(pid: int) -> bool:
    """Wait for a child that has ended: detached programs are nobody's to wait for. Others raise a ResourceWarning."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        return line.strip()
    return "(gone)"
