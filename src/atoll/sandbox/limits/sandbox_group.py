"""The control groups of one sandbox: a limited group, with one group below it for the agent and one for each worker.

Version 2 allows no processes beside groups, so the agent, and all that belongs to no worker, is in a group of its own.
The kernel charges memory to the group of the process that touched it first. When a worker's group is removed, the pages
that stay, those of files in `/tmp`, are charged to the sandbox.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from atoll.process import Process, Start
from atoll.sandbox.limits import births, cgroups, group_files
from atoll.sandbox.limits.cgroups import FREEZER, Group, Place
from atoll.sandbox.limits.freezing import Freezer, GroupFreezer, StopSignals

AGENT = "agent"
"""The group of the processes that belong to no worker."""

_LIMITED = frozenset({"memory", "pids"})


class SandboxGroup:
    """The groups of one sandbox, one tree in each place that can limit memory or processes.

    Args:
        places: the daemon's own groups, which exist.
        name: of the sandbox's group in each of them.
        memory_bytes, processes: the limits of the whole sandbox.
        shared: groups of the sandbox's user, of version 1, that its processes are in besides (`user_groups`).
        own: how many groups are between the sandbox's and that of this process.

    Raises:
        OSError: the groups cannot be made.
    """

    def __init__(
        self,
        places: Sequence[Place],
        name: str,
        memory_bytes: int,
        processes: int,
        shared: Sequence[Path] = (),
        own: int = 2,
    ) -> None:
        self._shared, self._own = shared, own
        self._name = name
        self._everywhere = tuple(places)
        self._whole = Group(
            [one.below(name) for one in places if one.controllers & _LIMITED], memory_bytes, 0, processes
        )
        limiting = {place.directory for place in self._whole.places}
        old = self._whole.places[0].version == 1  # in version 2 every group can be paused
        self._freezer = next((one.below(name) for one in places if old and FREEZER in one.controllers), None)
        self._alone = [one.directory for one in (self._freezer,) if one is not None and one.directory not in limiting]
        """The group that only pauses, where its hierarchy has no limit."""
        try:
            for directory in self._alone:
                directory.mkdir()
            for place in self._whole.places:
                for controller in sorted(place.controllers) if place.version == 2 else ():
                    (place.directory / "cgroup.subtree_control").write_text(f"+{controller}")
                (place.directory / AGENT).mkdir()
        except OSError:
            self.remove()
            raise

    @property
    def limit_bytes(self) -> int:
        return self._whole.limit_bytes

    def start(self, start: Start) -> Process:
        """Start a program in the agent's group; see `atoll.process.Group`."""
        places = self._whole.places
        if places[0].version == 2:
            return births.start_in(start, places[0].directory / AGENT)
        # The daemon's own group is above those that it makes: `HOME/DAEMON/SANDBOX`, or `HOME/DAEMON/USER/SANDBOX`.
        groups = [(one.directory / AGENT, one.directory.parents[self._own]) for one in places]
        groups += [(one, one.parents[self._own]) for one in self._alone]
        groups += [(one, one.parents[self._own - 1]) for one in self._shared]
        return births.start_by_thread(start, groups)

    def places_of(self, worker: str) -> list[Place]:
        """Return the places of a worker's groups; a hierarchy that limits nothing of a sandbox has them beside it."""
        limited = {place.directory for place in self._whole.places}
        inside = [place.below(self._name) for place in self._everywhere]
        return [
            (one if one.directory in limited else place).below(worker)
            for one, place in zip(inside, self._everywhere, strict=True)
        ]

    def resize(self, memory_bytes: int, processes: int) -> None:
        """Set the limits of the whole; see `Group.resize`."""
        self._whole.resize(memory_bytes, processes)

    def memory_bytes(self) -> int:
        """Return the memory in use, without the page cache that the kernel would reclaim first."""
        return self._whole.memory_bytes()

    def met(self) -> int:
        """Return the peak of the whole when it has met the limit, else 0."""
        return self._whole.met()

    def exceeded(self) -> tuple[int, int] | None:
        """Return limit and peak when the kernel killed a process outside of the workers' groups for the limit."""
        memory = next((place for place in self._whole.places if "memory" in place.controllers), None)
        if memory is None or not cgroups.oom_kills(memory.below(AGENT)) or not (peak := self._whole.met()):
            return None
        return self.limit_bytes, peak

    def refused(self) -> bool:
        """Return whether the kernel has refused a process that would belong to no worker."""
        # Counted where the limit is, or in version 1 and before Linux 6.11 where the process would have been.
        places = [place.below(AGENT) for place in self._whole.places if "pids" in place.controllers]
        return self._whole.refused() or any(cgroups.refusals(place) for place in places)

    def pids(self) -> list[int]:
        """Return the processes of the agent's group."""
        return group_files.members(self._whole.places[0].directory / AGENT)

    def freezer(self) -> Freezer:
        """Return the pause of every process of the sandbox."""
        if self._freezer is not None:
            return GroupFreezer(self._freezer.directory, 1)
        whole = self._whole.places[0].directory
        if (whole / "cgroup.freeze").exists():
            return GroupFreezer(whole, 2)
        return StopSignals(lambda: [pid for one in self._directories() for pid in group_files.members(one)])

    def kill(self) -> None:
        """Kill every process of the sandbox."""
        for directory in self._directories():
            group_files.kill_all(directory)

    def remove(self) -> bool:
        """End the remaining processes and remove the groups; return False while one of them exists."""
        trees = [*(place.directory for place in self._whole.places), *self._alone]
        return not [busy for directory in trees for busy in group_files.clear(directory)]

    def _directories(self) -> list[Path]:
        found = []
        for place in self._whole.places:
            with contextlib.suppress(OSError):
                found += group_files.below(place.directory)
        return found
