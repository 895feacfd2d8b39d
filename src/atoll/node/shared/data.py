"""The daemon's hold on the file system that carries the volumes: there when the daemon starts, watched while it lives.

Theory of operation. On a machine's own disk there is nothing to do. On a shared one a thread looks at the root every
`LOOK_SECONDS`; the event loop itself touches the file system only to start a sandbox. While no look has succeeded for `SILENT_SECONDS`, or the last one failed, whoever needs a volume is
refused with the reason, before anything of the daemon's touches the file system. When JuiceFS was mounted anew, sandboxes
still have the dead mount at `/data`, and when its process was started anew, programs have lost the locks that they hold:
so all sandboxes are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from atoll import errors, linux, ownership
from atoll.model.findings import Finding
from atoll.model.options.storage import JUICEFS
from atoll.node.shared import client, juicefs, marker
from atoll.node.shared.client import mount_state
from atoll.node.shared.mount_hold import MountHold, unavailable
from atoll.node.shared.presence import Presence
from atoll.settings import Settings
from atoll.storage.volume.removal import nearly_full
from atoll.work_threads import WorkThreads

log = logging.getLogger("atoll.data")

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 8.0
"""Seconds that a machine with its server again waits for its volumes before it is given calls."""
SILENT_SECONDS = 5.0
"""Seconds without an answer after which the file system counts as gone; a slow one answers later than that, too."""


class SharedData:
    """The file system of the volumes, for one daemon.

    Args:
        options: the state directory, and `storage`.

    Raises:
        VolumesUnavailable: it cannot be mounted, or is not the one that this machine has used.
        StateUntrusted: another user can change it.
    """

    def __init__(self, options: Settings) -> None:
        self._options = options
        self._storage = options.storage
        self.root = options.storage.root(options.home)
        self.is_shared = options.storage.is_shared
        self.identity = ""
        self._mount = MountHold(options)
        self._session: tuple[int, int] = (0, 0)
        self._began = 0.0
        self._juicefs: Path | None = None
        self._looked = asyncio.Event()
        self.nearly_full = False
        """Whether free space matters more than pace, at the last look."""
        self._problem: errors.VolumesUnavailable | None = None
        self._answered = time.monotonic()
        self._threads = WorkThreads("shared-data", 1)
        self.presence = Presence(self.root if self.is_shared else None)
        if not self.is_shared:
            return
        try:
            if self._storage.filesystem == JUICEFS:
                self._mount.take()
            ownership.check(self.root)
            self.identity = marker.check(options).id
            self._began, self._juicefs = client.began(options), juicefs.mount_of(self.root)
            self._session = self._look()
        except BaseException:
            self.close()
            raise

    # --- while it lives ---------------------------------------------------------------------------------------------

    @property
    def problem(self) -> errors.VolumesUnavailable | None:
        """The reason for which volumes cannot be used now; None while they can."""
        if self._problem is None and self.is_shared and time.monotonic() - self._answered > SILENT_SECONDS:
            return unavailable(self.root, f"it has not answered for {time.monotonic() - self._answered:.0f} s")
        return self._problem

    def check(self) -> None:
        """Refuse what needs a volume while there are none.

        Raises:
            VolumesUnavailable: the file system is gone, or does not answer.
        """
        problem = self.problem
        if problem is not None:
            raise errors.VolumesUnavailable(problem.message, hint=problem.hint)

    async def watch(self, on_lost: Callable[[errors.VolumesUnavailable], Awaitable[None]]) -> None:
        """Look at the file system until cancelled.

        Args:
            on_lost: ends all sandboxes: the file system that they have is gone for good.
        """
        while self.is_shared:
            await asyncio.sleep(LOOK_SECONDS)
            if self._storage.filesystem == JUICEFS:
                self._mount.keep()
            began = client.began(self._options)  # before the look: that one may be another's already
            try:
                session = await self._threads.run("", self._look)
            except OSError as error:
                text = error.message if isinstance(error, errors.AtollError) else error.strerror or repr(error)
                if self._problem is None:
                    log.error("volumes_lost root=%s error=%s", self.root, text)
                self._problem = unavailable(self.root, text)
                continue
            self._answered = time.monotonic()
            if session != self._session:
                lost = unavailable(self.root, "it was lost with all locks, and has been mounted again")
                log.warning("volumes_mounted_again root=%s session=%s", self.root, session)
                self._session = session
                await on_lost(lost)
            elif self._problem is not None:
                log.info("volumes_back root=%s", self.root)
            self._problem = None
            self._began = began
            self._looked.set()

    async def cut(self, until: float) -> None:
        """End the client of JuiceFS that began before a moment, and wait for a while until another one is mounted.

        Nothing that the first one held is written afterwards. Without another one volumes cannot be used.
        """
        if self._storage.filesystem != JUICEFS:
            return
        if await asyncio.to_thread(client.end_overdue, self._options, until):
            log.warning("mount_ended_with_lease root=%s", self.root)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_SECONDS):
                while self._began < until:  # also where the keeper was first
                    self._looked.clear()
                    await self._looked.wait()

    def _look(self) -> tuple[int, int]:
        """Return the numbers of the mount and of its session, after a look at its marker.

        JuiceFS starts its process anew under the same mount, in another session: the locks of the first one are lost.
        """
        found = marker.read(self.root)
        if found.id != self.identity:
            raise OSError(116, "another file system was mounted in its place")
        session = 0
        if self._juicefs is not None:
            with contextlib.suppress(ValueError, KeyError, FileNotFoundError):  # a part of it, bound to another place
                facts = juicefs.live_facts(self._juicefs)
                session = int(facts["Meta"]["Sid"])
                juicefs.check_facts(facts)  # somebody may change it while it is mounted
        self.nearly_full = nearly_full(os.statvfs(self.root))
        return os.stat(self.root).st_dev, session

    def facts(self) -> dict[str, Any]:
        """Return the state as JSON-compatible data, for `atoll status`."""
        if not self.is_shared:
            return {"filesystem": self._storage.filesystem, "works": True, "detail": ""}
        problem, kind = self.problem, linux_kind(self.root) if self.problem is None else ""
        return {
            "filesystem": self._storage.filesystem,
            "kind": kind,
            "identity": self.identity,
            "works": problem is None,
            "detail": problem.message if problem else "",
        }

    def close(self) -> None:
        """Let the mount go; the keeper unmounts it when no daemon of this state directory has it."""
        self._mount.release()


def linux_kind(root: Path) -> str:
    """Return the type of the file system at a path, from the table of mounts alone: nothing waits for a dead one."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        found = [one for one in linux.mounts(file.read()) if root.is_relative_to(one.point)]
    return max(found, key=lambda one: len(one.point)).kind if found else ""


def check_mount(root: Path) -> None:
    """Check the mount options of the JuiceFS that a path is on, whoever has mounted it; others tell none.

    Raises:
        VolumesUnavailable: functions or syncs would see too little.
    """
    point = juicefs.mount_of(root)
    if point is not None:
        try:
            facts = juicefs.live_facts(point)
        except (OSError, ValueError):  # a part of it, bound to another place
            return
        juicefs.check_facts(facts)


def findings(options: Settings) -> list[Finding]:
    """Return how the shared file system is, for `atoll doctor`; nothing for a machine's own disk."""
    if not options.storage.is_shared:
        return []
    name, loses = "shared volumes", "no function, sync or snapshot can use `/data`"
    root = options.storage.root(options.home)
    if options.storage.filesystem == JUICEFS and not linux_kind(root).startswith("fuse"):
        state = mount_state(options)
        if state.get("state") != "failed":
            return [Finding(name, True, True, f"JuiceFS is mounted at `{root}` with the daemon's first call")]
        failed = errors.from_data(state.get("error") or {})
        return [Finding(name, True, False, failed.message, loses, failed.hint)]
    try:
        found = marker.check(options)
        check_mount(root)
    except errors.VolumesUnavailable as error:
        return [Finding(name, True, False, error.message, loses, error.hint)]
    return [Finding(name, True, True, f"`{root}`, {linux_kind(root)}, identity {found.id[:12]}")]
