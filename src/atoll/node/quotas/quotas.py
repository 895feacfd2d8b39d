"""Quotas of the users' volumes on this machine.

Theory of operation. Limits are in `quotas.json` of the state directory, or beside the volumes on JuiceFS. Where the volumes' file system has user quotas,
and each user a host uid, or project quotas, the kernel counts and refuses. Elsewhere the daemon walks through a volume
that has a limit, in a thread and for `MEASURE_SECONDS` at most; between two walks at least twenty times as long passes.
Then calls of a user who is over are refused, and storage peers refuse what adds; what removes is always served. JuiceFS
counts and refuses itself, for all machines together; a walk tells the use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from atoll import errors
from atoll.model.mounts import Identity
from atoll.model.options.storage import JUICEFS, StorageSettings
from atoll.model.quota import WARN_PER_CENT, Quota
from atoll.node import volumes
from atoll.node.quotas import kernel
from atoll.node.quotas.kernel import PROJECT, KernelQuota
from atoll.node.shared import juicefs
from atoll.storage.files.usage_walk import measure
from atoll.work_threads import WorkThreads

log = logging.getLogger("atoll.quotas")

FILE = "quotas.json"
MEASURE_SECONDS = 10.0
FIRST_SECONDS = 1.0
"""Seconds that a call waits for the first measurement of a volume."""
FRESH_SECONDS = 10.0
"""The age at which a call has a large volume measured anew, for the next one."""
QUICK_SECONDS = 0.1
"""The duration of a walk that a call waits for each time one is due."""
SHEET_BYTES = 512
REST = 20.0
"""Times the last walk's duration that pass before the next one."""
MOST = 1 << 60
AGAIN_SECONDS = 5.0
"""Seconds between two looks at limits that other machines may set."""
THREADS = 4
"""Volumes that are measured at a time."""


class Quotas:
    """The limits of users, and their use.

    Args:
        home: the state directory.
        volumes: the directory of all volumes.
        volume: returns a user's volume, made if it is not there, and its owner.
        storage: the options of the volumes' file system.
    """

    def __init__(
        self,
        home: Path,
        volumes: Path,
        volume: Callable[[str], tuple[Path, Identity]],
        storage: StorageSettings | None = None,
    ) -> None:
        self._juicefs = storage if storage is not None and storage.filesystem == JUICEFS else None
        self._path = (home if self._juicefs is None else volumes.parent) / FILE
        self._stamp: tuple[int, int] | None = None
        self._read_again_at = 0.0
        self._volumes = volumes
        self._volume = volume
        self._limits = self._read()
        self._kernel: KernelQuota | None = None
        self._looked = False
        self._found: dict[str, Quota] = {}
        self._due: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._walks: dict[str, asyncio.Task[Quota]] = {}
        self._threads = WorkThreads("quotas", THREADS)
        self._warned: dict[str, int] = {}
        self._sheets: dict[str, tuple[int, int]] = {}

    # --- limits -----------------------------------------------------------------------------------------------------

    def limits(self, user: str) -> tuple[int, int]:
        """Return the most bytes and files of a user; 0 for no bound."""
        return self._limits.get(user, (0, 0))

    async def set(self, user: str, bytes_: int, files: int) -> Quota:
        """Set a user's limits, 0 for none, and return the quota with its use.

        Raises:
            ValueError: a number is out of its bounds.
            StateUnusable: they cannot be kept, or the kernel refuses them.
        """
        if not (type(bytes_) is int and type(files) is int and 0 <= bytes_ < MOST and 0 <= files < MOST):
            raise ValueError("quotas are numbers of bytes and files, 0 for none")
        await self._refresh(seconds=0.0)
        if self.limits(user) != (bytes_, files):
            limits = {**self._limits, user: (bytes_, files)}
            if not (bytes_ or files):
                del limits[user]
            self._write(limits)
            self._limits = limits
            self._warned.pop(user, None)
            self._tell(user)
        if bytes_ or files or self.mechanism is not None or self._juicefs is not None:
            await self._threads.run(user, partial(self._enforce, user, bytes_, files))
        self._due.pop(user, None)
        return await self.usage(user)

    def forget(self, user: str) -> None:
        """Drop a user's limits: the user is gone."""
        if user in self._limits:
            limits = {name: pair for name, pair in self._limits.items() if name != user}
            self._write(limits)
            self._limits = limits
            self._tell(user)
        for known in (self._found, self._due, self._took, self._warned):
            known.pop(user, None)

    @property
    def mechanism(self) -> KernelQuota | None:
        """The quotas of the volumes' file system; None where they are measured."""
        if not self._looked:
            self._looked = True
            if os.geteuid() == 0:
                with contextlib.suppress(OSError):
                    self._volumes.mkdir(mode=0o711, exist_ok=True)
                    self._kernel = kernel.find(self._volumes)
        return self._kernel

    def _enforce(self, user: str, bytes_: int, files: int) -> None:
        if self._juicefs is not None:
            self._tell_juicefs(self._juicefs, user, bytes_, files)
        mechanism = self.mechanism
        if mechanism is None:
            return
        directory, identity = self._volume(user)
        try:
            mechanism.limit(identity.uid, bytes_, files)
            if mechanism.kind == PROJECT and kernel.project_of(directory) != (identity.uid, True):
                kernel.put_into_project(directory, identity.uid)
        except OSError as error:
            raise errors.StateUnusable(
                f"the quota of `{user}` cannot be set on `{mechanism.device}`: {error.strerror}",
                hint="see `docs/server/quotas.md`; without quotas of the file system they are measured",
            ) from error

    def _tell_juicefs(self, storage: StorageSettings, user: str, bytes_: int, files: int) -> None:
        directory, identity = self._volume(user)
        try:
            volumes.make_lock(directory, identity)
            juicefs.set_quota(storage, f"/{directory.parent.name}/{directory.name}", bytes_, files)
        except (OSError, subprocess.TimeoutExpired) as error:
            if isinstance(error, errors.AtollError):
                raise
            raise errors.StateUnusable(
                f"the quota of `{user}` cannot be set on JuiceFS: {getattr(error, 'strerror', '') or error}",
                hint="see `docs/server/shared-data.md`; `juicefs quota list METADATA` shows them",
            ) from error

    # --- use --------------------------------------------------------------------------------------------------------

    async def usage(self, user: str) -> Quota:
        """Return a user's quota with its use as it is now: by the kernel, else by a walk if the last one is old."""
        await self._refresh()
        if not await self._threads.run(user, (self._volumes / user).is_dir):
            bytes_, files = self.limits(user)
            return Quota(bytes_, files, kind=self._kind(user), measured_at=time.time())
        if self.mechanism is not None:
            return await self._threads.run(user, partial(self._asked, user, self.mechanism))
        if time.monotonic() < self._due.get(user, 0.0) and user in self._found:
            return self._with_limits(user, self._found[user])
        return await asyncio.shield(self._walk(user))

    def _kind(self, user: str) -> str:
        if self.mechanism is not None:
            return kernel.NAMES[self.mechanism.kind]
        if self._juicefs is not None and user in self._limits:
            return JUICEFS
        return "measured" if user in self._limits else "none"

    def _asked(self, user: str, mechanism: KernelQuota) -> Quota:
        _, identity = self._volume(user)
        try:
            found = mechanism.used(identity.uid)
        except OSError as error:
            raise errors.StateUnusable(
                f"the use of `{user}` cannot be asked of `{mechanism.device}`: {error.strerror}", hint="see `quota(1)`"
            ) from error
        bytes_, files = self.limits(user)
        return Quota(bytes_, files, found.bytes, found.files, self._kind(user), measured_at=time.time())

    def _walk(self, user: str) -> asyncio.Task[Quota]:
        task = self._walks.get(user)
        if task is None or task.done():
            task = self._walks[user] = asyncio.get_running_loop().create_task(self._measured(user))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # read, for its warning
        return task

    async def _measured(self, user: str) -> Quota:
        try:
            found = await self._threads.run(user, partial(measure, self._volumes / user, MEASURE_SECONDS))
        except OSError as error:
            raise errors.StateUnusable(
                f"the volume of `{user}` cannot be measured: {error.strerror}", hint="check its directory"
            ) from error
        quota = Quota(used_bytes=found.bytes, used_files=found.files, complete=found.complete, measured_at=time.time())
        self._found[user] = quota
        self._took[user] = found.seconds
        self._due[user] = time.monotonic() + REST * found.seconds
        return self._with_limits(user, quota)

    def _with_limits(self, user: str, found: Quota) -> Quota:
        bytes_, files = self.limits(user)
        return Quota(
            bytes_, files, found.used_bytes, found.used_files, self._kind(user), found.complete, found.measured_at
        )

    async def before_call(self, user: str, notice: Callable[[str], None]) -> None:
        """Refuse a call of a user who is over a measured quota; tell the user, once for each, of 80 and 95 per cent.

        Raises:
            QuotaExceeded: nothing more fits, and nothing but this check would say so.
        """
        await self._refresh()
        if user not in self._limits:
            return
        quota: Quota | None = None
        with contextlib.suppress(errors.StateUnusable, TimeoutError):
            if self.mechanism is None and user in self._found and self._took[user] > QUICK_SECONDS:
                if time.time() - self._found[user].measured_at > FRESH_SECONDS:
                    self._walk(user)  # the next call has its figures
                quota = self._with_limits(user, self._found[user])
                if quota.exceeded:  # perhaps no longer
                    quota = await asyncio.wait_for(self.usage(user), FIRST_SECONDS)
            else:
                quota = await asyncio.wait_for(self.usage(user), FIRST_SECONDS)
        if quota is None:
            return
        if quota.exceeded and quota.kind == "measured":
            raise quota.error()
        reached = next((share for share in WARN_PER_CENT if quota.per_cent >= share), 0)
        if reached > self._warned.get(user, 0):
            notice(f"the volume is {quota.per_cent}% full: {quota.text()}")
        self._warned[user] = reached

    def sheet(self, user: str) -> int:
        """Return the descriptor of the file with a user's quota, which the user's storage peers have open to read."""
        if user not in self._sheets:
            writable = os.memfd_create("atoll-quota", os.MFD_CLOEXEC)
            os.fchmod(writable, 0o600)  # else a peer's uid could open it again to write
            readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
            self._sheets[user] = writable, readable
            self._tell(user)
        return self._sheets[user][1]

    def _tell(self, user: str) -> None:
        """Write a user's quota for the storage peers that there are."""
        if user in self._sheets:
            bytes_, files = self.limits(user)
            text = json.dumps(Quota(bytes_, files, kind=self._kind(user)).to_data())
            os.pwrite(self._sheets[user][0], text.encode().ljust(SHEET_BYTES), 0)

    async def close(self) -> None:
        """Wait for walks that are under way, and close the files of storage peers."""
        await asyncio.gather(*self._walks.values(), return_exceptions=True)
        for descriptors in self._sheets.values():
            for descriptor in descriptors:
                os.close(descriptor)

    async def _refresh(self, seconds: float = AGAIN_SECONDS) -> None:
        """Read limits again that another machine has set, if the last look is so old; a slow look is not waited for."""
        if self._juicefs is None or time.monotonic() < self._read_again_at - AGAIN_SECONDS + seconds:
            return
        self._read_again_at = time.monotonic() + AGAIN_SECONDS

        def look() -> dict[str, tuple[int, int]] | None:
            found = os.stat(self._path)
            if (found.st_mtime_ns, found.st_ino) == self._stamp:
                return None
            self._stamp = found.st_mtime_ns, found.st_ino
            return self._read()

        with contextlib.suppress(OSError, TimeoutError):
            limits = await asyncio.wait_for(self._threads.run("", look), FIRST_SECONDS)
            if limits is not None:
                self._limits = limits
                for user in self._sheets:
                    self._tell(user)

    # --- the file ---------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, tuple[int, int]]:
        try:
            data = json.loads(self._path.read_bytes())
            return {str(user): (int(pair["bytes"]), int(pair["files"])) for user, pair in data.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.StateUnusable(
                f"the quotas in `{self._path}` cannot be read: {error}", hint="mend or remove the file"
            ) from error

    def _write(self, limits: dict[str, tuple[int, int]]) -> None:
        text = json.dumps({user: {"bytes": pair[0], "files": pair[1]} for user, pair in limits.items()})
        temporary = self._path.with_name(f".{FILE}-{os.urandom(4).hex()}")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise errors.StateUnusable(
                f"the quotas in `{self._path}` cannot be written: {error.strerror}", hint="make room on its disk"
            ) from error
