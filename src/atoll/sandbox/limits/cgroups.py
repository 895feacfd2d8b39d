"""Control groups of the kernel, version 1 or 2: places for Atoll's own groups, and one limited group.

Atoll makes one directory, named after its `ATOLL_HOME`, inside the group that it runs in (so that a limit of the
operator holds for functions too) or, where version 2 forbids that, inside the nearest group above that is
delegated to this user. Below it each daemon has a directory, named after its process, with one group for each
sandbox (see `sandbox_group`). Version 1 has such a tree for each controller. Nothing outside of these directories is ever written, except
that a daemon alone in a delegated group moves itself one level down: version 2 allows no processes beside groups.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atoll import linux
from atoll.blake2 import blake2b
from atoll.sandbox.limits import group_files

CONTROLLERS = ("memory", "pids", "cpu")
"""Controllers in use, as far as the machine has them."""

FREEZER = "freezer"
"""The controller that pauses sandboxes in version 1; every group of version 2 can be paused."""

PERIOD_MICROSECONDS = 100_000


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy.

    Args:
        version: 1 or 2.
        mount: where it is mounted.
        own: the group of this process, as a directory below `mount`.
        controllers: those of `CONTROLLERS` and `FREEZER` that it has; in version 2 each group lists its own.
    """

    version: int
    mount: Path
    own: Path
    controllers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """A directory for new groups, and the controllers that these have."""

    version: int
    directory: Path
    controllers: frozenset[str]

    def below(self, name: str) -> Place:
        return replace(self, directory=self.directory / name)


def hierarchies(mountinfo: str, cgroup: str) -> list[Hierarchy]:
    """Return the hierarchies in `/proc/self/mountinfo` and `/proc/self/cgroup`, version 1 first; pure."""
    groups: dict[str, str] = {}
    wanted = {*CONTROLLERS, FREEZER}
    for line in cgroup.splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            groups[""] = path
        for name in set(names.split(",")) & wanted:
            groups[name] = path
    found = []
    for _number, root, mount, kind, options in linux.mounts(mountinfo):
        if kind not in ("cgroup", "cgroup2"):
            continue
        has = frozenset(options.split(",")) & wanted & set(groups) if kind == "cgroup" else frozenset()
        group = groups.get(min(has, default="-") if kind == "cgroup" else "")
        if group is None or "/.." in group:
            continue
        if root != "/" and (group == root or group.startswith(root + "/")):
            group = group[len(root) :]
        own = Path(mount) / group.removesuffix(" (deleted)").strip("/")
        found.append(Hierarchy(1 if kind == "cgroup" else 2, Path(mount), own, has))
    return sorted(found, key=lambda one: one.version)


def name_for(home: Path) -> str:
    """Return the name of the directory that belongs to one `ATOLL_HOME`."""
    return "atoll-" + blake2b(os.fsencode(os.path.realpath(home)), digest_size=8).hexdigest()


def place(found: Iterable[Hierarchy], name: str) -> list[Place]:
    """Make the directory `name` in each hierarchy that can limit something; the first with memory wins for all that
    it has. The freezer of version 1 is of use only beside its memory."""
    places: list[Place] = []
    missing = {*CONTROLLERS, FREEZER}
    for hierarchy in found:
        for parent in _candidates(hierarchy):
            if hierarchy.version == 1 and not hierarchy.controllers & missing:
                break
            directory = parent / name
            try:
                made = _make(hierarchy, parent, directory)
            except OSError:
                continue
            if made & missing:
                places.append(Place(hierarchy.version, directory, frozenset(made & missing)))
                missing -= made
                break
    if not any(place.version == 1 and "memory" in place.controllers for place in places):
        for place in [one for one in places if one.controllers == {FREEZER}]:
            group_files.remove(place.directory)
            places.remove(place)
    return places


def _make(hierarchy: Hierarchy, parent: Path, directory: Path) -> frozenset[str]:
    """Make one directory for groups; return their controllers. Version 2 is useful only with memory."""
    if hierarchy.version == 1:
        directory.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # older kernels: limits hold for the groups below as well
            group_files.write(directory / "memory.use_hierarchy", "1")
        return hierarchy.controllers
    if not _enable(parent, "memory"):
        return frozenset()
    others = [one for one in CONTROLLERS if one != "memory" and _enable(parent, one)]
    directory.mkdir(exist_ok=True)
    if not _enable(directory, "memory"):
        directory.rmdir()
        return frozenset()
    return frozenset({"memory", *(one for one in others if _enable(directory, one))})


def _candidates(hierarchy: Hierarchy) -> list[Path]:
    if hierarchy.version == 1:
        return [hierarchy.own] if os.access(hierarchy.own / "cgroup.procs", os.W_OK) else []
    # A process moves only where its mover may write to the nearest group above both places.
    above = [hierarchy.own, *hierarchy.own.parents]
    return [
        path
        for path in above[: above.index(hierarchy.mount) + 1 if hierarchy.mount in above else 1]
        if os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK)
    ]


def _enable(group: Path, controller: str) -> bool:
    """Let the groups below `group` limit something; return whether they can."""
    if controller in group_files.text(group / "cgroup.subtree_control").split():
        return True
    if controller not in group_files.text(group / "cgroup.controllers").split():
        return False
    if group_files.text(group / "cgroup.procs").split() == [str(os.getpid())]:
        own = group / "atoll-daemon"
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text(str(os.getpid()))
    try:
        (group / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return False
    return True


class Group:
    """Groups with the same processes and limits, one in each place.

    Args:
        places: are made.
        memory_bytes: limit of its processes together, memory files included and swap excluded.
        millicores: thousandths of a core that they may compute together; 0 for no limit.
        processes: how many there may be, threads included; 0 for no limit.

    Raises:
        OSError: a group cannot be made.
    """

    def __init__(self, places: Sequence[Place], memory_bytes: int, millicores: int = 0, processes: int = 0) -> None:
        self.limit_bytes = self._processes = 0
        wanted = {"memory"} | ({"cpu"} if millicores else set()) | ({"pids"} if processes else set())
        self._places = [place for place in places if place.controllers & wanted]
        self._memory = self._place("memory")
        self._pids = self._place("pids")
        self._record: tuple[int, int] | None = None
        made: list[Path] = []
        try:
            for place in self._places:
                place.directory.mkdir()
                made.append(place.directory)
            self.resize(memory_bytes, processes)
            if self._memory is not None and self._memory.version == 2:
                for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                    with contextlib.suppress(OSError):
                        group_files.write(self._memory.directory / name, value)
            cpu = self._place("cpu")
            if cpu is not None and millicores:
                with contextlib.suppress(OSError):  # a tighter limit above holds
                    _limit_cpu(cpu, millicores)
        except OSError:
            for directory in made:
                directory.rmdir()
            raise

    def _place(self, controller: str) -> Place | None:
        return next((place for place in self._places if controller in place.controllers), None)

    @property
    def places(self) -> Sequence[Place]:
        return self._places

    def resize(self, memory_bytes: int, processes: int) -> None:
        """Set other limits; a smaller one has no effect on version 1 while more memory than that is in use."""
        if self._memory is not None and memory_bytes != self.limit_bytes:
            limit_memory(self._memory, memory_bytes)
        self.limit_bytes = memory_bytes
        if self._pids is not None and processes != self._processes:
            group_files.write(self._pids.directory / "pids.max", str(processes))
        self._processes = processes

    def add(self, host_pid: int) -> None:
        """Move a process, and with it those that it will start; one that has ended is ignored.

        The kernel may take 10 ms for the first move after a pause, without using the processor.
        """
        with contextlib.suppress(ProcessLookupError):
            for place in self._places:
                group_files.write(place.directory / "cgroup.procs", str(host_pid))

    def memory_bytes(self) -> int:
        """Return the processes' memory use, without the page cache that the kernel would reclaim first."""
        if self._memory is None:
            return 0
        directory, old = self._memory.directory, self._memory.version == 1
        used = group_files.number(directory / ("memory.usage_in_bytes" if old else "memory.current"))
        return max(
            0, used - group_files.field(directory / "memory.stat", "total_inactive_file" if old else "inactive_file")
        )

    def exceeded(self) -> tuple[int, int] | None:
        """Return the limit and the peak when the kernel killed a process for this group's limit."""
        # The kernel also kills when a group above, or the whole machine, is out of memory: then this limit was not met.
        if self._record is None and self.killed() and (peak := self.met()):
            self._record = (self.limit_bytes, peak)
        return self._record

    def killed(self) -> bool:
        """Return whether the kernel has killed a process of these for want of memory."""
        return self._memory is not None and oom_kills(self._memory) > 0

    def met(self) -> int:
        """Return the peak when the memory in use has met the limit; else 0."""
        if self._memory is None:
            return 0
        directory = self._memory.directory
        if self._memory.version == 1:
            hits = group_files.number(directory / "memory.failcnt") + group_files.number(
                directory / "memory.memsw.failcnt"
            )
            peak = group_files.number(directory / "memory.max_usage_in_bytes")
        else:
            hits = group_files.field(directory / "memory.events", "max")
            peak = group_files.number(directory / "memory.peak") or self.limit_bytes
        # Newer kernels of version 1 leave `failcnt` at 0, but not the peak.
        return peak if hits or peak >= self.limit_bytes - self.limit_bytes // 16 else 0

    def refused(self) -> bool:
        """Return whether the kernel has refused these processes another one."""
        return self._pids is not None and refusals(self._pids) > 0

    def poll(self) -> None:
        """End the rest of the group when the kernel has killed a part of it; version 2 does so by itself."""
        memory = self._memory
        if memory is not None and memory.version == 1 and self._record is None and self.exceeded():
            self._kill()

    def remove(self) -> bool:
        """End the remaining processes and remove the group; return False while it exists. `exceeded` keeps its answer."""
        self.exceeded()
        if all(group_files.remove(place.directory) for place in self._places):
            return True
        self._kill()
        return False

    def _kill(self) -> None:
        """Kill every process of the group; where it can be told so, none is started meanwhile."""
        for place in self._places:
            with contextlib.suppress(OSError):
                if place.version == 2:
                    group_files.write(place.directory / "cgroup.kill", "1")
                elif place is self._pids:
                    group_files.write(place.directory / "pids.max", "0")
        for place in self._places:
            group_files.kill_all(place.directory)


def oom_kills(place: Place) -> int:
    """Return how many processes of a group the kernel has killed for want of memory."""
    return group_files.field(
        place.directory / ("memory.oom_control" if place.version == 1 else "memory.events"), "oom_kill"
    )


def refusals(place: Place) -> int:
    """Return how many processes the kernel has refused a group."""
    return group_files.field(place.directory / "pids.events", "max")


def limit_memory(place: Place, memory_bytes: int) -> None:
    """Set the limit of a group's memory, with what a kernel counts apart from it."""
    if place.version == 2:
        group_files.write(place.directory / "memory.max", str(memory_bytes))
        return
    # The limit with swap, which is not always counted, is never below the one without: it grows first, and shrinks last.
    limit, with_swap = (place.directory / f"memory.{name}limit_in_bytes" for name in ("", "memsw."))
    with contextlib.suppress(OSError):  # buffers of sockets, counted apart and only from this write on
        group_files.write(place.directory / "memory.kmem.tcp.limit_in_bytes", str(memory_bytes))
    try:
        group_files.write(with_swap, str(memory_bytes))
    except OSError:
        group_files.write(limit, str(memory_bytes))
        with contextlib.suppress(OSError):
            group_files.write(with_swap, str(memory_bytes))
        return
    group_files.write(limit, str(memory_bytes))


def _limit_cpu(place: Place, millicores: int) -> None:
    quota = max(1000, millicores * PERIOD_MICROSECONDS // 1000)
    if place.version == 2:
        group_files.write(place.directory / "cpu.max", f"{quota} {PERIOD_MICROSECONDS}")
        return
    group_files.write(place.directory / "cpu.cfs_period_us", str(PERIOD_MICROSECONDS))
    group_files.write(place.directory / "cpu.cfs_quota_us", str(quota))


def limit_above(found: Iterable[Hierarchy]) -> int:
    """Return the smallest memory limit that holds for this process, in bytes; 0 for none."""
    limits = []
    for hierarchy in found:
        if hierarchy.version == 1 and "memory" not in hierarchy.controllers:
            continue
        name = "memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes"
        above = [hierarchy.own, *hierarchy.own.parents]
        upwards = above[: above.index(hierarchy.mount) + 1 if hierarchy.mount in above else 1]
        limits += [group_files.number(path / name) for path in upwards]
    return min((limit for limit in limits if limit > 0), default=0)


def sweep(base: Path, alive: Iterable[str]) -> list[Path]:
    """End and remove groups of dead daemons below `base`; return the busy ones.

    Args:
        alive: names of the directories of daemons that run.
    """
    keep = set(alive)
    busy: list[Path] = []
    with contextlib.suppress(OSError):
        for daemon in [path for path in group_files.below(base) if path.name not in keep]:
            busy += group_files.clear(daemon)
    return busy
