"""The mount keeper: a process that mounts JuiceFS for the daemons of one state directory, and unmounts it after them.

Theory of operation. Each daemon holds `run/mount.lock` shared while it lives; the kernel releases it, however a daemon
ends. The keeper asks for the lock exclusively: once it gets it no daemon is left, and it unmounts and ends. A daemon that
starts meanwhile waits for that. `run/mount-keeper.lock` makes the keeper the only one. JuiceFS itself restarts its
process that serves the mount; if all of it dies, the keeper mounts again. A mount that does not answer for
`HUNG_SECONDS` is aborted, whereupon all that waits for it fails, and mounted again. One that the machine's lease has
ended is killed (`client`), and mounted again. `run/mount.json` has the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from atoll import errors, linux, process, settings
from atoll.node.shared import client, juicefs
from atoll.node.shared.client import STATE
from atoll.sandbox import fence
from atoll.settings import Settings
from atoll.work_threads import WorkThreads

log = logging.getLogger("atoll.mount")

LOCK, KEEPER_LOCK, LOG = "mount.lock", "mount-keeper.lock", "storage-mount.log"
LOOK_SECONDS = 0.2
MOUNT_SECONDS = 25.0
"""Seconds that a mount may take; a daemon's starter waits for 30."""
HUNG_SECONDS = 60.0
"""Seconds without an answer after which a mount is aborted: longer than a restart of its metadata takes."""
ASK_SECONDS = 2.0
AGAIN_SECONDS = 3.0
END_SECONDS = 20.0
"""Seconds for JuiceFS to write what it holds when it is unmounted."""


class Keeper:
    """Keeps the file system of one state directory mounted.

    Args:
        options: the state directory, and `storage`.
        lock: the open file of the daemons' lock.
    """

    def __init__(self, options: Settings, lock: int) -> None:
        self._options = options
        self._lock = lock
        self._point = options.storage.root(options.home)
        self._state: dict[str, Any] = {
            "pid": os.getpid(),
            "writer": client.writer(os.getpid()),
            "mounts": 0,
            "program": 0,
        }
        self._threads = WorkThreads("mount", 1)

    async def run(self) -> None:
        """Mount, again and again if need be, until no daemon lives."""
        client.end_overdue(self._options)  # of a keeper that was killed
        wanted = True
        while wanted:
            child: process.Child | None = None
            try:
                child = await self._mount()
                await self._watch(child)
            except errors.AtollError as error:
                log.warning("mount_failed error=%s", error.message)
                self._tell("failed", error=error.to_data())
                wanted = await self._is_wanted_for(AGAIN_SECONDS)
            else:
                wanted = await self._is_wanted_for(0.0)
                if wanted:
                    self._tell("lost")
            finally:
                await self._unmount(child)
        self._tell("ended")

    async def _mount(self) -> process.Child:
        """Mount the file system and return its process.

        Raises:
            VolumesUnavailable: it cannot be mounted, or is not safe to use.
        """
        self._tell("mounting")
        storage, home = self._options.storage, self._options.home
        clear(self._point)  # of a keeper that was killed
        try:
            self._point.mkdir(mode=0o700, exist_ok=True)
            line = juicefs.mount_command(storage, self._point, home / "shared-cache")
            environment = juicefs.environment(storage)
            began = fence.now()
            child = process.Child(line, env=environment, stdout=2, stderr=2)
        except OSError as error:
            if isinstance(error, errors.AtollError):
                raise
            raise errors.VolumesUnavailable(f"JuiceFS cannot be mounted: {error}", hint=self._hint()) from error
        self._tell("mounting", program=child.pid, began=began)
        until = time.monotonic() + MOUNT_SECONDS
        while not self._is_mounted():
            if not child.running or time.monotonic() > until:
                await child.kill()
                raise errors.VolumesUnavailable(
                    f"JuiceFS cannot be mounted at `{self._point}`: {self._last_words()}", hint=self._hint()
                )
            await asyncio.sleep(LOOK_SECONDS / 4)
        try:
            facts = await self._threads.run("", lambda: juicefs.live_facts(self._point))
            juicefs.check_facts(facts)
        except (OSError, ValueError) as error:
            await self._unmount(child)
            if isinstance(error, errors.AtollError):
                raise
            raise errors.VolumesUnavailable(f"JuiceFS does not answer: {error}", hint=self._hint()) from error
        self._state["mounts"] += 1
        self._tell("mounted", uuid=facts["Format"]["UUID"])
        log.info("mounted point=%s uuid=%s", self._point, facts["Format"]["UUID"])
        return child

    async def _watch(self, child: process.Child) -> None:
        """Wait until the mount's process ends, the mount does not answer, or no daemon lives."""
        answered = asked = time.monotonic()
        asking = asyncio.ensure_future(self._threads.run("", self._ask))
        while child.running and not self._is_unwanted():
            await asyncio.sleep(LOOK_SECONDS)
            if client.end_overdue(
                self._options, state=self._state
            ):  # the file may be of before: a disk is full at times
                log.warning("mount_ended_with_lease point=%s", self._point)
                await child.wait()
                break
            if asking.done():
                if asking.exception() is None:
                    answered = time.monotonic()
                if time.monotonic() - asked > ASK_SECONDS:
                    asked = time.monotonic()
                    asking = asyncio.ensure_future(self._threads.run("", self._ask))
            if time.monotonic() - answered > HUNG_SECONDS:
                log.error("mount_hangs point=%s", self._point)
                break
        log.info("mount_over running=%s", child.running)
        asking.cancel()

    def _ask(self) -> None:
        os.stat(self._point)

    def _is_mounted(self) -> bool:
        return any(one.point == str(self._point) for one in _mounts())

    async def _unmount(self, child: process.Child | None) -> None:
        """Unmount, and let JuiceFS write what it holds and end.

        By force at once: other namespaces have copies of the mount, for which JuiceFS would wait in vain.
        """
        clear(self._point)
        if child is not None and child.running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), END_SECONDS)
            await child.stop(END_SECONDS)

    def _is_unwanted(self) -> bool:
        """Return whether no daemon lives; then none begins to use the mount before this process has ended."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def _is_wanted_for(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._is_unwanted():
            if time.monotonic() >= until:
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False

    def _tell(self, state: str, **facts: Any) -> None:
        self._state = {**self._state, "error": None, **facts, "state": state, "since": time.time()}
        path = self._options.run_directory / STATE
        temporary = path.with_name(f".{STATE}-{os.getpid()}")
        try:
            temporary.write_text(json.dumps(self._state))
            os.replace(temporary, path)
        except OSError as error:  # a mount that works is worth more than its description
            log.error("state_not_written state=%s error=%s", state, error.strerror)
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), open(self._options.logs_directory / LOG, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
            return juicefs.words(file.read().decode("utf-8", "replace"))
        return "it said nothing"

    def _hint(self) -> str:
        return f"see `{self._options.logs_directory / LOG}`; check `storage` in `settings.toml`"


def clear(point: Path) -> None:
    """Unmount everything from a mount point, whatever still uses it: waiting requests fail."""
    for one in _mounts():
        if one.point == str(point):
            with contextlib.suppress(OSError):
                linux.unmount(str(point), lazily=False)
            try:
                linux.unmount(str(point), lazily=True)
            except OSError:  # a plain user's
                with contextlib.suppress(OSError):
                    process.check(["fusermount3", "-uz", str(point)], env={"PATH": os.defpath})


def _mounts() -> list[linux.Mount]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return list(linux.mounts(file.read()))


def main() -> int:
    """Keep the mount of the state directory that the argument names; another keeper's is left to it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.umask(0o077)
    options = settings.load(Path(sys.argv[1]))
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    only = os.open(options.run_directory / KEEPER_LOCK, flags, 0o600)
    try:
        fcntl.flock(only, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    asyncio.run(Keeper(options, os.open(options.run_directory / LOCK, flags, 0o600)).run())
    return 0
