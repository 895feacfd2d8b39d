"""One lock file per environment: exclusive while it is built or removed, shared while a sandbox uses it.

A `flock` belongs to the open file, so it ends with its holder. The file also carries the last failed build's error,
for waiters in other processes. Lock files are never removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll import errors


class Lock:
    """A held lock; `release` is idempotent, and ends with the process at the latest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def note_failure(self, error: errors.AtollError | None) -> None:
        """Write the error for waiting processes, or clear an earlier one."""
        os.ftruncate(self._descriptor, 0)
        if error is not None:
            os.pwrite(self._descriptor, json.dumps({"at": time.time(), "error": error.to_data()}).encode(), 0)

    def failure_since(self, since: float) -> errors.AtollError | None:
        """Return the error of a build that failed since then."""
        try:
            note = json.loads(os.pread(self._descriptor, 1 << 20, 0))
            return errors.from_data(note["error"]) if note["at"] >= since else None
        except (ValueError, TypeError, KeyError):
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def try_lock(path: Path, *, exclusive: bool) -> Lock | None:
    """Take the lock at once, or return None."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor)


async def wait_exclusive(path: Path, while_waiting: Callable[[], None]) -> Lock:
    """Wait for the exclusive lock; `while_waiting` is called at each poll.

    The lock is polled, since a thread that blocks in `flock` could not be cancelled.
    """
    return await _wait(path, while_waiting, exclusive=True)


async def wait_shared(path: Path) -> Lock:
    """Wait for the shared lock."""
    return await _wait(path, lambda: None, exclusive=False)


async def _wait(path: Path, while_waiting: Callable[[], None], *, exclusive: bool) -> Lock:
    pause = 0.01
    while (lock := try_lock(path, exclusive=exclusive)) is None:
        while_waiting()
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    return lock


class Tail:
    """Reads the lines that another process appends to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._inode = 0

    def lines(self) -> list[str]:
        """Return the complete lines that are new since the last time."""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._position = inode, 0
            file.seek(self._position)
            data = file.read()
            end = data.rfind(b"\n") + 1
            self._position += end
            return data[:end].decode("utf-8", "replace").splitlines()
        return []
