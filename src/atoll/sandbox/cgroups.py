"""Memory groups of the kernel, version 1 or 2: where Atoll may make its own, and what one of them does.

Atoll makes one directory, named after its `ATOLL_HOME`, inside the group that it runs in (so that a limit of the
operator holds for functions too) or, where version 2 forbids that, inside the nearest group above that is
delegated to this user. Below it each daemon has a directory, named after its process, with one group for each
worker. Nothing outside of that directory is ever written, except that a daemon alone in a delegated group moves
itself one level down: version 2 allows no processes beside groups.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy with a memory controller.

    Args:
        version: 1 or 2.
        mount: where it is mounted.
        own: the group of this process, as a directory below `mount`.
    """

    version: int
    mount: Path
    own: Path


def hierarchies(mountinfo: str, cgroup: str) -> list[Hierarchy]:
    """Return what `/proc/self/mountinfo` and `/proc/self/cgroup` say; pure."""
    groups: dict[str, str] = {}
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            groups["2"] = path
        elif "memory" in controllers.split(","):
            groups["1"] = path
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _source, options = after.split(maxsplit=2)
        version = {"cgroup2": "2", "cgroup": "1"}.get(kind, "")
        if version == "1" and "memory" not in options.split(","):
            continue
        if version not in groups or "/.." in groups[version]:
            continue
        path = groups[version]
        if root != "/" and (path == root or path.startswith(root + "/")):
            path = path[len(root) :]
        own = Path(mount) / path.removesuffix(" (deleted)").strip("/")
        found.append(Hierarchy(int(version), Path(mount), own))
    return sorted(found, key=lambda one: one.version)


def name_for(home: Path) -> str:
    """Return the name of the directory that belongs to one `ATOLL_HOME`."""
    return "atoll-" + hashlib.blake2b(os.fsencode(os.path.realpath(home)), digest_size=8).hexdigest()


def place(found: Iterable[Hierarchy], name: str) -> tuple[int, Path] | None:
    """Make the directory `name` where memory can be limited; return the version and its path, or None."""
    for hierarchy in found:
        for parent in _candidates(hierarchy):
            directory = parent / name
            try:
                if hierarchy.version == 2 and not _enable(parent):
                    continue
                directory.mkdir(exist_ok=True)
                if hierarchy.version == 1 or _enable(directory):
                    return hierarchy.version, directory
                directory.rmdir()
            except OSError:
                continue
    return None


def _candidates(hierarchy: Hierarchy) -> list[Path]:
    if hierarchy.version == 1:
        return [hierarchy.own] if os.access(hierarchy.own / "memory.limit_in_bytes", os.W_OK) else []
    # A process moves only where its mover may write to the nearest group above both places.
    above = [hierarchy.own, *hierarchy.own.parents]
    return [
        path
        for path in above[: above.index(hierarchy.mount) + 1 if hierarchy.mount in above else 1]
        if os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK)
    ]


def _enable(group: Path) -> bool:
    """Let the groups below `group` limit memory; return whether they can."""
    if "memory" in _text(group / "cgroup.subtree_control").split():
        return True
    if "memory" not in _text(group / "cgroup.controllers").split():
        return False
    if _text(group / "cgroup.procs").split() == [str(os.getpid())]:
        own = group / "atoll-daemon"
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text(str(os.getpid()))
    try:
        (group / "cgroup.subtree_control").write_text("+memory")
    except OSError:
        return False
    return True


class Group:
    """One group with a memory limit.

    Args:
        version: of the hierarchy.
        directory: is made.
        limit_bytes: what its processes may use together, memory files included and swap excluded.

    Raises:
        OSError: the group cannot be made.
    """

    def __init__(self, version: int, directory: Path, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._version = version
        self._directory = directory
        self._record: tuple[int, int] | None = None
        directory.mkdir()
        try:
            if version == 1:
                self._write("memory.limit_in_bytes", str(limit_bytes))
                with contextlib.suppress(OSError):  # swap is not always counted
                    self._write("memory.memsw.limit_in_bytes", str(limit_bytes))
            else:
                self._write("memory.max", str(limit_bytes))
                for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                    with contextlib.suppress(OSError):
                        self._write(name, value)
        except OSError:
            directory.rmdir()
            raise

    def add(self, host_pid: int) -> None:
        """Move a process, and with it those that it will start; one that has ended is ignored.

        The kernel may take 10 ms for the first move after a pause, without using the processor.
        """
        with contextlib.suppress(ProcessLookupError):
            self._write("cgroup.procs", str(host_pid))

    def memory_bytes(self) -> int:
        """Return what the processes use now, without the page cache that the kernel would give back first."""
        inactive = "total_inactive_file" if self._version == 1 else "inactive_file"
        used = self._number("memory.usage_in_bytes" if self._version == 1 else "memory.current")
        return max(0, used - _field(self._directory / "memory.stat", inactive))

    def exceeded(self) -> tuple[int, int] | None:
        """Return the limit and the peak when the kernel killed a process for this group's limit."""
        if self._record is None:
            if self._version == 1:
                killed = _field(self._directory / "memory.oom_control", "oom_kill")
                hits = self._number("memory.failcnt") + self._number("memory.memsw.failcnt")
                peak = self._number("memory.max_usage_in_bytes")
            else:
                killed = _field(self._directory / "memory.events", "oom_kill")
                hits = _field(self._directory / "memory.events", "max")
                peak = self._number("memory.peak") or self.limit_bytes
            # The kernel also kills when a group above, or the whole machine, is out of memory: then this limit was
            # not met. Newer kernels of version 1 leave `failcnt` at 0, but not the peak.
            if killed and (hits or peak >= self.limit_bytes - self.limit_bytes // 16):
                self._record = (self.limit_bytes, peak)
        return self._record

    def poll(self) -> None:
        """End the rest of the group when the kernel has killed a part of it; version 2 does so by itself."""
        if self._version == 1 and self._record is None and self.exceeded():
            _kill(self._directory)

    def remove(self) -> bool:
        """Remove the group; return False while processes are in it. What `exceeded` says stays."""
        self.exceeded()
        return remove(self._directory)

    def _write(self, name: str, value: str) -> None:
        # Unbuffered, so that the kernel's answer to the one write is this call's.
        descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)

    def _number(self, name: str) -> int:
        text = _text(self._directory / name).strip()
        return int(text) if text.isdigit() else 0


def remove(directory: Path) -> bool:
    """Remove one empty group; return whether it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _kill(directory: Path) -> None:
    for pid in _text(directory / "cgroup.procs").split():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(pid), signal.SIGKILL)


def sweep(base: Path, alive: Iterable[str]) -> list[Path]:
    """End and remove what daemons that are gone have left below `base`; return what is still busy.

    Args:
        alive: names of the directories of daemons that run.
    """
    keep = set(alive)
    busy = []
    with contextlib.suppress(OSError):
        for daemon in [path for path in base.iterdir() if path.is_dir() and path.name not in keep]:
            for group in [path for path in daemon.iterdir() if path.is_dir()]:
                _kill(group)
                if not remove(group):
                    busy.append(group)
            if not remove(daemon):
                busy.append(daemon)
    return busy


def _field(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
