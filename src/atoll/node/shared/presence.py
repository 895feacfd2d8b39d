"""The use of volumes by the sandboxes of every machine that shares them.

Theory of operation. While a daemon has sandboxes of a user it holds the `flock` of a file `use/USER/DAEMON-N`, which says
since when; whoever gets that lock knows that the daemon is gone, and removes the file. To begin, a daemon holds
`use/USER/gate` shared for an instant. Who needs the volume without functions, to restore a snapshot, holds the gate
exclusively and looks for files of others: so no sandbox begins anywhere meanwhile. Trees that a sync has replaced are
kept while a sandbox of any machine may have them open (`daemon.housekeeping`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from atoll import errors
from atoll.work_threads import WorkThreads

GATE = "gate"
GATE_SECONDS = 5.0
"""Seconds for which a restore waits for others to pass the gate, and for this machine's sandboxes to be gone."""
_POLL_SECONDS = 0.05
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Use(NamedTuple):
    """Another machine's use of a volume: its host name, and when its oldest sandbox began, in seconds."""

    host: str
    since: float


class Presence:
    """The use of volumes, as one daemon tells it to others and asks for it.

    Args:
        root: of the shared file system; None for a machine's own disk, which no other uses.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._name = secrets.token_hex(8)
        self._held: dict[str, tuple[Path, int]] = {}
        self._count = 0
        self._leaving: set[asyncio.Future[None]] = set()
        self._since: dict[str, float] = {}
        self._threads = WorkThreads("presence", 2)

    def enter(self, user: str) -> None:
        """Tell, before a sandbox of a user is started, that this machine has some.

        Raises:
            VolumeBusy: another machine restores a snapshot just now.
            VolumesUnavailable: the shared file system does not take it.
        """
        if self._root is None or user in self._held:
            return
        directory = self._directory(user)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            gate = os.open(directory / GATE, _OPEN, 0o600)
            try:
                fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._count += 1
                path = directory / f"{self._name}-{self._count}"
                held = os.open(path, _OPEN, 0o600)
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held[user] = path, held
                self._tell(user, time.time())
            finally:
                _close(gate)
        except BlockingIOError:
            raise errors.VolumeBusy(
                "another machine restores a snapshot of this volume just now", hint="try again in a moment"
            ) from None
        except OSError as error:
            raise _unavailable(self._root, error) from error

    def leave(self, user: str) -> None:
        """Tell that the last sandbox of a user has ended here; soon, since the file system may not answer."""
        self._since.pop(user, None)
        if user in self._held:
            leaving = asyncio.ensure_future(self._threads.run(user, partial(_leave, *self._held.pop(user))))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    def _tell(self, user: str, since: float) -> None:
        text = json.dumps({"host": socket.gethostname(), "since": since}).encode()
        os.pwrite(self._held[user][1], text.ljust(256), 0)
        self._since[user] = since

    async def since(self, user: str, oldest: float) -> float | None:
        """Tell since when the oldest sandbox here lives; return that of the oldest one elsewhere, None for none.

        Raises:
            VolumesUnavailable: the shared file system does not tell.
        """
        if self._root is None:
            return None
        if user in self._held and oldest > self._since[user]:
            with contextlib.suppress(OSError):
                await self._threads.run(user, lambda: self._tell(user, oldest) if user in self._held else None)
        return min((one.since for one in await self.elsewhere(user)), default=None)

    async def elsewhere(self, user: str) -> list[Use]:
        """Return the other machines that have sandboxes of a user.

        Raises:
            VolumesUnavailable: the shared file system does not tell.
        """
        if self._root is None:
            return []
        return await self._threads.run(user, lambda: list(self._others(user)))

    def _others(self, user: str) -> Iterator[Use]:
        assert self._root is not None
        directory = self._directory(user)
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unavailable(self._root, error) from error
        for name in names:
            if name == GATE or name.startswith(self._name):
                continue
            with contextlib.suppress(FileNotFoundError, PermissionError):  # it has just been removed
                found = _read(directory / name)
                if found is not None:
                    yield found

    @contextlib.asynccontextmanager
    async def alone(self, user: str) -> AsyncIterator[None]:
        """Hold up every machine's sandboxes of a user that would begin, while there are none.

        Raises:
            VolumeBusy: another machine has some, or restores too; `details["hosts"]` names it.
            VolumesUnavailable: the shared file system does not tell.
        """
        if self._root is None:
            yield
            return
        gate = await self._threads.run(user, lambda: self._gate(user))
        try:
            until = time.monotonic() + GATE_SECONDS
            while not await self._threads.run("", lambda: _try(gate, fcntl.LOCK_EX)) or user in self._held:
                if time.monotonic() > until:
                    raise errors.VolumeBusy("another machine restores a snapshot of this volume", hint="try again")
                await asyncio.sleep(_POLL_SECONDS)
            hosts = sorted({one.host for one in await self.elsewhere(user)})
            if hosts:
                raise errors.VolumeBusy(
                    f"functions or idle sandboxes on {', '.join(f'`{host}`' for host in hosts)} use the volume",
                    hint="wait for the calls there; idle sandboxes end by their `keep_alive`",
                    hosts=hosts,
                )
            yield
        finally:
            _close(gate)

    def _gate(self, user: str) -> int:
        assert self._root is not None
        try:
            self._directory(user).mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._directory(user) / GATE, _OPEN, 0o600)
        except OSError as error:
            raise _unavailable(self._root, error) from error

    @contextlib.asynccontextmanager
    async def held_elsewhere(self, user: str) -> AsyncIterator[bool]:
        """Give whether nothing of a user's runs on another machine: nothing can be held there (`node.freezing`)."""
        try:
            alone = not await self.elsewhere(user)
        except errors.VolumesUnavailable:
            alone = False
        yield alone

    async def close(self) -> None:
        """Tell that nothing runs here any more; all sandboxes have ended."""
        for user in list(self._held):
            self.leave(user)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=GATE_SECONDS)

    def _directory(self, user: str) -> Path:
        assert self._root is not None
        return self._root / "use" / quote(user, safe="")


def _leave(path: Path, held: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    _close(held)


def _read(path: Path) -> Use | None:
    """Return what the file of another daemon tells; None for one that is gone, whose file is removed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _try(descriptor, fcntl.LOCK_EX):
            path.unlink()
            return None
        data: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # it is just being written
            data = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        return Use(str(data.get("host", "another machine")), float(data.get("since", 0.0)))
    finally:
        _close(descriptor)


def _close(descriptor: int) -> None:
    """Close a file, which a file system that is gone answers with an error."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unavailable(root: Path, error: OSError) -> errors.VolumesUnavailable:
    return errors.VolumesUnavailable(
        f"`{root}` does not tell which machines use a volume: {error.strerror or error}",
        hint="`atoll data filesystem status` looks at the shared file system",
    )
