"""Limits of sandboxes and of their workers: memory, computing time and processes.

The machine decides the enforcement, found once: a cgroup of version 2 or 1 if this user may make one, by systemd if
necessary (`systemd_scope`); else, for memory, a watchdog that the daemon polls. Running out of memory is read from the
kernel's counters or the watchdog's own record, never guessed from a SIGKILL.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
from pathlib import Path
from typing import Protocol

from atoll.sandbox.limits import cgroups, group_files, systemd_scope
from atoll.sandbox.limits.memory_watchdog import SandboxWatchdog, Watchdog, children, session, started_at
from atoll.sandbox.limits.sandbox_group import AGENT, SandboxGroup
from atoll.sandbox.limits.sandbox_limit import SandboxLimit
from atoll.sandbox.limits.user_groups import OWNER, PeersGroup, UserGroups
from atoll.settings import Settings

OVERHEAD_BYTES = 1 << 30
"""Bytes for the agent of a sandbox, packages that it imports ahead, and files in memory that ended workers have left."""

OVERHEAD_PROCESSES, OVERHEAD_PROCESSES_PER_CORE = 32, 4
"""Processes and threads for bubblewrap, the agent, spare workers, and the threads of packages that are imported ahead."""

_RECORD = "cgroups"
_ADD_ROUNDS = 20


class _Enforcer(Protocol):
    def killed(self) -> bool: ...
    def met(self) -> int: ...
    def refused(self) -> bool: ...
    def add(self, host_pid: int) -> None: ...
    def memory_bytes(self) -> int: ...
    def exceeded(self) -> tuple[int, int] | None: ...
    def poll(self) -> None: ...
    def remove(self) -> bool: ...


class Limit:
    """The limit of one worker; made by `Limits.open`."""

    def __init__(self, owner: Limits, enforcer: _Enforcer, sandbox: SandboxLimit | None) -> None:
        self._owner = owner
        self._enforcer = enforcer
        self._sandbox = sandbox

    def add(self, host_pid: int) -> None:
        """Put a process, by its number on the host, under the limit, with all that it has started and will start.

        May block for about 10 ms (see `cgroups.Group.add`) and may be called from another thread.
        """
        done: set[int] = set()
        waiting = {host_pid}
        for _ in range(_ADD_ROUNDS):
            for pid in waiting:
                self._enforcer.add(pid)
            done |= waiting
            waiting = {child for pid in done for child in children(pid)} - done
            if waiting:  # some may have lost their parents meanwhile
                waiting |= session(host_pid) - done
            else:
                break

    def adopt(self, init: int, agent: int) -> bool:
        """Move processes that were started without a limit, and whose parents have ended, under this limit.

        May be called from another thread.

        Args:
            init, agent: the first process of a sandbox, to which such processes fall, and its agent, which is not one.

        Returns:
            whether none is left; a fork bomb may be faster.
        """
        for _ in range(_ADD_ROUNDS):
            strays = self._owner.strays(init, agent)
            for pid in strays:
                self.add(pid)
            if not strays:
                return True
        return False

    def memory_bytes(self) -> int:
        """Return the memory that the processes use together."""
        return self._enforcer.memory_bytes()

    def exceeded(self) -> tuple[int, int] | None:
        """Return limit and peak in bytes when processes were killed for the limit, else None; also after `close`.

        Processes may also be killed for the limit of the whole sandbox, which is given then.
        """
        found = self._enforcer.exceeded()
        return self._sandbox.exceeded(self._enforcer) if found is None and self._sandbox is not None else found

    def refused(self) -> bool:
        """Return whether the processes have reached their number, and were refused another one."""
        return self._enforcer.refused()

    def poll(self) -> None:
        """Measure and enforce, where the kernel does not do it by itself."""
        self._enforcer.poll()

    def close(self) -> None:
        """Give the limit up; its group goes as soon as its last process has (see `Limits.poll`)."""
        self._owner._closed(self)


class Limits:
    """Make limits for this machine's workers.

    Leftovers of a killed daemon of the same `ATOLL_HOME` are ended and removed.

    Args:
        settings: its home names the groups.
        kernel: False leaves cgroups alone and uses the watchdog.
    """

    most_bytes: int
    """Memory for this process and its children: the machine's, or less."""

    def __init__(self, settings: Settings, *, kernel: bool = True) -> None:
        self._numbers = itertools.count(1)
        self._open: list[Limit] = []
        self._sandboxes: list[SandboxLimit] = []
        self._ended: list[SandboxLimit] = []
        self._spare: SandboxGroup | None = None
        self._settling = threading.Lock()
        self._is_closed = False
        self.most_bytes = machine_memory_bytes()
        self._allowance = (
            settings.sandbox.overhead_bytes or min(OVERHEAD_BYTES, self.most_bytes // 4),
            OVERHEAD_PROCESSES + OVERHEAD_PROCESSES_PER_CORE * (os.cpu_count() or 1),
        )
        self._busy: list[Path] = []
        self._closing: list[_Enforcer] = []
        self._places: list[cgroups.Place] = []
        self._cores = os.cpu_count() or 1
        if kernel:
            self._settle(settings)
        told = settings.users
        self.users = UserGroups(
            self._places, told.memory_bytes or self.most_bytes // 20 * 19, told.processes or _most_processes() // 2
        )

    @property
    def kind(self) -> str:
        """The enforcement: `cgroup2`, `cgroup1` or `watchdog`."""
        memory = next((place for place in self._places if "memory" in place.controllers), None)
        return f"cgroup{memory.version}" if memory is not None else "watchdog"

    @property
    def controllers(self) -> frozenset[str]:
        """The kernel's limits, of `memory`, `pids` and `cpu`."""
        return frozenset(name for place in self._places for name in place.controllers)

    def _settle(self, settings: Settings) -> None:
        name = cgroups.name_for(settings.home)
        record = settings.run_directory / _RECORD
        bases = [Path(line) for line in _lines(record)]
        for base in bases:
            if base.name == name:
                self._busy += cgroups.sweep(base, filter(_daemon_lives, _names(base)))
        try:
            for shared in sorted(_placed(name), key=lambda one: "memory" not in one.controllers):
                place = shared.below(f"{os.getpid()}-{started_at(os.getpid())}")
                if shared.directory not in bases:
                    settings.run_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    with open(record, "a", encoding="utf-8") as file:
                        file.write(f"{shared.directory}\n")
                place.directory.mkdir(exist_ok=True)
                for controller in place.controllers if place.version == 2 else ():
                    (place.directory / "cgroup.subtree_control").write_text(f"+{controller}")
                self._places.append(place)
        except (OSError, ValueError):
            self._places.clear()

    def prepare(self) -> None:
        """Make the groups of the next sandbox ahead; may be called from another thread."""
        if self._spare is None and self.kind != "watchdog":
            with contextlib.suppress(OSError):  # an operator took the group away: a watchdog still works
                self._spare = self._sandbox_group()

    def _sandbox_group(self) -> SandboxGroup:
        return SandboxGroup(self._places, f"s{next(self._numbers)}", *self._allowance)

    def _group_of(self, user: str) -> SandboxGroup:
        places, shared = self.users.places_of(user), self.users.shared(user)
        return SandboxGroup(places, f"s{next(self._numbers)}", *self._allowance, shared, own=3)

    def peers(self, user: str) -> PeersGroup | None:
        """Return the group of the storage peers of a user of a server; None where the kernel gives none."""
        with contextlib.suppress(OSError):
            return self.users.peers(user) if self.kind != "watchdog" and user != OWNER else None
        return None

    def sandbox(self, memory_bytes: int = 0, processes: int = 0, user: str = "") -> SandboxLimit:
        """Return the limit of a new sandbox.

        Args:
            memory_bytes, processes: the allowance for all that belongs to no worker; 0 for that of functions' sandboxes.
            user: the user whose it is; all but the machine's owner have groups of their own.
        """
        allowance = memory_bytes or self._allowance[0], processes or self._allowance[1]
        enforcer: SandboxGroup | SandboxWatchdog
        try:
            if self.kind == "watchdog":
                raise FileNotFoundError
            if user not in ("", OWNER):
                enforcer = self._group_of(user)
            else:
                group, self._spare = self._spare, None
                enforcer = group or self._sandbox_group()
            if allowance != self._allowance:
                enforcer.resize(*allowance)
        except OSError:  # as in `prepare`
            enforcer = SandboxWatchdog(*allowance)
        made = SandboxLimit(enforcer, *allowance, max(self.most_bytes, allowance[0]))
        self._sandboxes.append(made)
        return made

    def close_sandbox(self, limit: SandboxLimit) -> None:
        """Give up the limit of a sandbox that has ended; its groups go as soon as they can (see `settle`)."""
        if limit in self._sandboxes:
            self._sandboxes.remove(limit)
            self._ended.append(limit)

    @property
    def unsettled(self) -> bool:
        """Return whether `settle` has something to do."""
        lacks_spare = self._spare is None and self.kind != "watchdog"
        return lacks_spare or bool(self._ended) or any(limit.unsettled for limit in self._sandboxes)

    def settle(self) -> None:
        """Shrink limits of sandboxes whose workers have ended, and remove those of ended ones; may take long, and is
        to be called from another thread."""
        with self._settling:
            if self._is_closed:
                return
            for limit in list(self._sandboxes):
                limit.settle()
            ended, self._ended = self._ended, []  # as in `poll`
            self._ended += [limit for limit in ended if not limit.remove()]
            self.prepare()

    def open(
        self,
        name: str,
        memory_bytes: int,
        *,
        millicores: int = 0,
        processes: int = 0,
        sandbox: SandboxLimit | None = None,
    ) -> Limit:
        """Return a new limit.

        Args:
            sandbox: the limit of the worker's sandbox.
            name: of the worker; shown in the machine's list of groups.
            memory_bytes: limit of its processes together; more than 0.
            millicores: thousandths of a core that they may compute together; 0 for no limit.
            processes: how many there may be, threads included; 0 for no limit.
        """
        if memory_bytes <= 0:
            raise ValueError("a memory limit is more than 0 bytes")
        if millicores >= 1000 * self._cores:
            millicores = 0
        limit = Limit(self, self._enforcer(name, memory_bytes, millicores, processes, sandbox), sandbox)
        self._open.append(limit)
        return limit

    def _enforcer(
        self, name: str, memory_bytes: int, millicores: int, processes: int, sandbox: SandboxLimit | None
    ) -> _Enforcer:
        if self.kind != "watchdog":
            readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
            group = f"{next(self._numbers)}-{readable}"
            places = sandbox.places_of(group) if sandbox is not None else []
            with contextlib.suppress(OSError):  # as in `prepare`
                return cgroups.Group(
                    places or [place.below(group) for place in self._places], memory_bytes, millicores, processes
                )
        return Watchdog(memory_bytes, processes)

    def strays(self, init: int, agent: int) -> list[int]:
        """Return the processes of a sandbox whose parents have ended and that are under no limit of these; only
        those of control groups are known, since every process stays in the group in which it was started."""
        if self.kind == "watchdog" or not init:
            return []
        own = [os.fsencode(f"/{place.directory.name}/") for place in self._places]
        rest = os.fsencode(f"/{AGENT}")
        found = []
        for pid in children(init):
            with contextlib.suppress(OSError):
                groups = Path(f"/proc/{pid}/cgroup").read_bytes().splitlines()
                groups = [line for line in groups if b":freezer:" not in line]  # it holds a sandbox and limits nothing
                limited = [line for line in groups if any(part in line for part in own) and not line.endswith(rest)]
                if pid != agent and not limited and started_at(pid):
                    found.append(pid)
        return found

    def poll(self) -> None:
        """Enforce every open limit and finish the work of `close`; to be called about every 100 ms."""
        for limit in list(self._open):
            limit.poll()
        for sandbox in list(self._sandboxes):
            sandbox.poll()
        closing, self._closing = self._closing, []  # others may come meanwhile
        self._closing += [enforcer for enforcer in closing if not enforcer.remove()]
        self._busy = [path for path in self._busy if not group_files.remove(path)]

    def _closed(self, limit: Limit) -> None:
        if limit in self._open:
            self._open.remove(limit)
            if not limit._enforcer.remove():
                self._closing.append(limit._enforcer)

    def close(self) -> None:
        """Give all limits up, and remove this daemon's own group when nothing is left in it."""
        for limit in list(self._open):
            limit.close()
        with self._settling:
            self._is_closed = True
        for sandbox in list(self._sandboxes):
            self.close_sandbox(sandbox)
        self._ended = [limit for limit in self._ended if not limit.remove()]
        if self._spare is not None:
            self._spare.remove()
        self.poll()
        self.users.close()
        for place in self._places:
            if group_files.remove(place.directory):
                group_files.remove(place.directory.parent)


def machine_memory_bytes() -> int:
    """Return the memory for this process and its children: the machine's, or less if their group has a limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        above = cgroups.limit_above(_hierarchies())
        return min(memory, above) if above else memory
    return memory


def _most_processes() -> int:
    """Return how many processes and threads the kernel allows."""
    paths = (Path("/proc/sys/kernel", name) for name in ("threads-max", "pid_max"))
    return min((found for path in paths if (found := group_files.number(path))), default=0)


def _hierarchies() -> list[cgroups.Hierarchy]:
    return cgroups.hierarchies(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup"))


def _placed(name: str) -> list[cgroups.Place]:
    """Return where groups can be made, asking systemd for a place where there is none with memory."""
    places = cgroups.place(_hierarchies(), name)
    if any("memory" in place.controllers for place in places) or not systemd_scope.enter():
        return places
    return cgroups.place(_hierarchies(), name)


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
