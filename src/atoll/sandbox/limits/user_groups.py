"""Control groups of a server's users, above those of their sandboxes: computing time, processes and memory.

The kernel shares computing time evenly between groups beside one another, however many processes each has. Where its
hierarchies are separate (version 1), a user's sandboxes have no groups of their own for it: all their processes are in
the user's. The memory of a user is bounded as a backstop only, far above what their functions reserve: the kernel takes
any of the user's processes when it is met. Storage peers, which belong to no sandbox, are in a group of theirs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from atoll.model import mounts
from atoll.process import Process, Start
from atoll.sandbox.limits import births, cgroups, group_files
from atoll.sandbox.limits.cgroups import Place

OWNER = mounts.OWNER
"""The machine's owner, whose sandboxes are in no group of a user."""

PEERS = "peers"
"""The group of a user's processes that belong to no sandbox."""

SHARES = 1024
"""The weight of one group of version 1, and of a process beside groups."""


class UserGroups:
    """The groups of all users of one daemon; made when they are first needed.

    Args:
        places: the daemon's own groups, which exist.
        memory_bytes, processes: the limits of each user.
    """

    def __init__(self, places: Sequence[Place], memory_bytes: int, processes: int) -> None:
        self._places = places
        self._limits = memory_bytes, processes
        self._made: dict[str, list[Place]] = {}

    def places_of(self, user: str) -> list[Place]:
        """Return the places of a user's sandboxes.

        Raises:
            OSError: the groups cannot be made.
        """
        if user not in self._made:
            if not self._made:
                self._weigh()
            self._made[user] = [self._make(place.below(f"user-{user}")) for place in self._places]
        return self._made[user]

    def _weigh(self) -> None:
        """Give all users together the weight of this machine's cores beside the processes that are in no group."""
        for place in self._places:
            if place.version == 1 and "cpu" in place.controllers:
                for directory in (place.directory, place.directory.parent):
                    with contextlib.suppress(OSError):
                        group_files.write(directory / "cpu.shares", str(SHARES * 4 * (os.cpu_count() or 1)))

    def _make(self, place: Place) -> Place:
        memory_bytes, processes = self._limits
        place.directory.mkdir(exist_ok=True)
        if "memory" in place.controllers and memory_bytes:
            cgroups.limit_memory(place, memory_bytes)
        if "pids" in place.controllers and processes:
            group_files.write(place.directory / "pids.max", str(processes))
        for controller in sorted(place.controllers) if place.version == 2 else ():
            (place.directory / "cgroup.subtree_control").write_text(f"+{controller}")
        (place.directory / PEERS).mkdir(exist_ok=True)
        return place

    def shared(self, user: str) -> list[Path]:
        """Return the user's groups that all processes of a sandbox are in directly: of computing time, in version 1."""
        return [
            place.directory for place in self.places_of(user) if place.controllers == {"cpu"} and place.version == 1
        ]

    def peers(self, user: str) -> PeersGroup:
        """Return the group of a user's storage peers; a `process.Group`.

        Raises:
            OSError: it cannot be made.
        """
        return PeersGroup(self.places_of(user))

    def close(self) -> None:
        """Remove the groups; what is left in them is ended."""
        for places in self._made.values():
            for place in places:
                group_files.clear(place.directory)


class PeersGroup:
    """The group of processes of a user that belong to no sandbox."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def start(self, start: Start) -> Process:
        """Start a program in the group; see `atoll.process.Group`."""
        if self._places[0].version == 2:
            return births.start_in(start, self._places[0].directory / PEERS)
        groups = [(one.directory / PEERS, one.directory.parents[2]) for one in self._places if one.version == 1]
        return births.start_by_thread(start, groups)
