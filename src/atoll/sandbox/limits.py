"""The memory that one worker may use, and whether it was ended for using more.

What enforces it depends on the machine, found once: a cgroup of version 2 or 1 where this user may make one, else
a watchdog that the daemon polls. That a worker ran out of memory is read from the kernel's counters or the
watchdog's own record, never guessed from a SIGKILL.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path
from typing import Protocol

from atoll.sandbox import cgroups
from atoll.sandbox.watchdog import Watchdog, children, started_at
from atoll.settings import Settings

_RECORD = "cgroups"


class _Enforcer(Protocol):
    def add(self, host_pid: int) -> None: ...
    def memory_bytes(self) -> int: ...
    def exceeded(self) -> tuple[int, int] | None: ...
    def poll(self) -> None: ...
    def remove(self) -> bool: ...


class Limit:
    """The limit of one worker; made by `Limits.open`."""

    def __init__(self, owner: Limits, enforcer: _Enforcer) -> None:
        self._owner = owner
        self._enforcer = enforcer

    def add(self, host_pid: int) -> None:
        """Put a process, by its number on the host, under the limit, with all that it has started and will start.

        May block for about 10 ms (see `cgroups.Group.add`) and may be called from another thread.
        """
        done: set[int] = set()
        waiting = {host_pid}
        while waiting:
            for pid in waiting:
                self._enforcer.add(pid)
            done |= waiting
            waiting = {child for pid in done for child in children(pid)} - done

    def memory_bytes(self) -> int:
        """Return what the processes use together now."""
        return self._enforcer.memory_bytes()

    def exceeded(self) -> tuple[int, int] | None:
        """Return limit and peak in bytes when processes were killed for the limit, else None; also after `close`."""
        return self._enforcer.exceeded()

    def poll(self) -> None:
        """Measure and enforce, where the kernel does not do it by itself."""
        self._enforcer.poll()

    def close(self) -> None:
        """Give the limit up; its group goes as soon as its last process has (see `Limits.poll`)."""
        self._owner._closed(self)


class Limits:
    """Make limits for this machine's workers.

    What a daemon of the same `ATOLL_HOME` left when it was killed is ended and removed.

    Args:
        settings: its home names the groups.
        kernel: False leaves cgroups alone and uses the watchdog.
    """

    def __init__(self, settings: Settings, *, kernel: bool = True) -> None:
        self._numbers = itertools.count(1)
        self._open: list[Limit] = []
        self._busy: list[Path] = []
        self._closing: list[_Enforcer] = []
        self._version = 0
        self._directory: Path | None = None
        if kernel:
            self._settle(settings)

    @property
    def kind(self) -> str:
        """What enforces: `cgroup2`, `cgroup1` or `watchdog`."""
        return f"cgroup{self._version}" if self._directory is not None else "watchdog"

    def _settle(self, settings: Settings) -> None:
        name = cgroups.name_for(settings.home)
        record = settings.run_directory / _RECORD
        bases = [Path(line) for line in _lines(record)]
        for base in bases:
            if base.name == name:
                self._busy += cgroups.sweep(base, filter(_daemon_lives, _names(base)))
        try:
            found = cgroups.hierarchies(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup"))
            placed = cgroups.place(found, name)
            if placed is None:
                return
            version, base = placed
            directory = base / f"{os.getpid()}-{started_at(os.getpid())}"
            if base not in bases:
                settings.run_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                with open(record, "a", encoding="utf-8") as file:
                    file.write(f"{base}\n")
            directory.mkdir(exist_ok=True)
            if version == 2:
                (directory / "cgroup.subtree_control").write_text("+memory")
        except (OSError, ValueError):
            return
        self._version, self._directory = version, directory

    def open(self, name: str, memory_bytes: int) -> Limit:
        """Return a new limit.

        Args:
            name: of the worker; for who reads the machine's list of groups.
            memory_bytes: what its processes may use together; more than 0.
        """
        if memory_bytes <= 0:
            raise ValueError("a memory limit is more than 0 bytes")
        limit = Limit(self, self._enforcer(name, memory_bytes))
        self._open.append(limit)
        return limit

    def _enforcer(self, name: str, memory_bytes: int) -> _Enforcer:
        if self._directory is not None:
            readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
            with contextlib.suppress(OSError):  # an operator took the group away: the watchdog still works
                return cgroups.Group(self._version, self._directory / f"{next(self._numbers)}-{readable}", memory_bytes)
        return Watchdog(memory_bytes)

    def poll(self) -> None:
        """Enforce every open limit and finish what `close` began; to be called about every 100 ms."""
        for limit in self._open:
            limit.poll()
        self._closing = [enforcer for enforcer in self._closing if not enforcer.remove()]
        self._busy = [path for path in self._busy if not cgroups.remove(path)]

    def _closed(self, limit: Limit) -> None:
        if limit in self._open:
            self._open.remove(limit)
            if not limit._enforcer.remove():
                self._closing.append(limit._enforcer)

    def close(self) -> None:
        """Give all limits up, and remove this daemon's own group when nothing is left in it."""
        for limit in list(self._open):
            limit.close()
        self.poll()
        if self._directory is not None and cgroups.remove(self._directory):
            cgroups.remove(self._directory.parent)


def _daemon_lives(name: str) -> bool:
    pid, _, started = name.partition("-")
    return pid.isdigit() and started.isdigit() and started_at(int(pid)) == int(started)


def _names(base: Path) -> list[str]:
    try:
        return os.listdir(base)
    except OSError:
        return []


def _lines(path: Path) -> list[str]:
    try:
        return list(dict.fromkeys(path.read_text("utf-8").splitlines()))
    except (OSError, UnicodeDecodeError):
        return []


def _read(path: str) -> str:
    return Path(path).read_text("utf-8", "surrogateescape")
