"""The steps of a test of a shared file system, which each of two machines performs in one directory.

`Steps` works here. `serve` performs the steps that come as lines of JSON, for the other machine: `{"step": …}` with the
arguments, answered by `{"value": …}` or `{"error": ERRNO, "text": …}`. Names have no slash: nothing outside of the
directory is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from atoll import linux

_NAME = re.compile(r"[a-z0-9-]{1,80}")
_POLL_SECONDS = 0.005
_MOST_LINES = 20_000
LOOK_SECONDS = 20.0
"""Seconds for which a change of the other machine is looked for: longer than caches of attributes last."""


class Steps:
    """The steps on one machine.

    Args:
        directory: on the shared file system; it exists.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[str, int] = {}

    def close(self) -> None:
        """Close everything."""
        for descriptor in (*self._open.values(), self._directory):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._open.clear()

    def perform(self, step: str, arguments: dict[str, Any]) -> Any:
        """Perform a step by its name.

        Raises:
            ValueError: there is no such step, or a name is none.
            OSError: as the file system says.
        """
        if step not in STEPS or not all(_NAME.fullmatch(str(arguments.get(key, "x"))) for key in ("name", "other")):
            raise ValueError(f"no step `{step}`")
        return STEPS[step](self, **arguments)

    # --- changes ----------------------------------------------------------------------------------------------------

    def write(self, name: str, text: str, *, new: bool = False) -> None:
        """Write a whole file and close it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | (os.O_EXCL if new else 0)
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        try:
            linux.write_all(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def patch(self, name: str, text: str) -> None:
        """Write over the beginning of a file, and close it."""
        descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            os.pwrite(descriptor, text.encode(), 0)
        finally:
            os.close(descriptor)

    def append(self, name: str, text: str, seconds: float) -> int:
        """Append lines for a time, each in one write; return how many."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        count, end = 0, time.monotonic() + seconds
        try:
            while time.monotonic() < end and count < _MOST_LINES:
                os.write(descriptor, f"{text}{count:06}\n".encode())
                count += 1
                time.sleep(_POLL_SECONDS / 5)
        finally:
            os.close(descriptor)
        return count

    def rename(self, name: str, other: str) -> None:
        """Rename a file."""
        os.rename(name, other, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def exchange(self, name: str, other: str) -> None:
        """Exchange two names."""
        linux.exchange(self._directory, name, self._directory, other)

    def make(self, name: str, text: str) -> None:
        """Make a directory with a file in it."""
        os.mkdir(name, 0o700, dir_fd=self._directory)
        descriptor = os.open(f"{name}/mark", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            linux.write_all(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def add(self, name: str) -> None:
        """Add a file to a directory."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(f"{name}/added", flags, 0o600, dir_fd=self._directory))

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=self._directory)

    def die(self, name: str, text: str) -> None:
        """Have a process write a file, make it durable, and be killed before it closes it."""
        pid = os.fork()
        if not pid:
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
                linux.write_all(descriptor, text.encode())
                os.fsync(descriptor)
                os.fsync(self._directory)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    # --- looks ------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> str:
        """Open a file, and read all of it."""
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return os.read(descriptor, 1 << 20).decode("utf-8", "replace")
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        """Return the size that a name's attributes tell; -1 where it does not exist."""
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_size
        except FileNotFoundError:
            return -1

    def listed(self, name: str) -> bool:
        """Return whether the directory lists a name."""
        fresh = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return name in os.listdir(fresh)
        finally:
            os.close(fresh)

    def mark(self, name: str) -> str:
        """Return the mark in a directory; empty where it has none."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(f"{name}/mark", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                return os.read(descriptor, 1000).decode("utf-8", "replace")
            finally:
                os.close(descriptor)
        return ""

    def modified(self, name: str) -> float:
        """Return when a file or directory was modified, as the file system tells."""
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mtime

    def until(self, look: str, name: str, value: Any) -> float:
        """Look until a step gives a value; return the seconds that passed, -1 when it never did."""
        began = time.monotonic()
        while time.monotonic() - began < LOOK_SECONDS:
            found: Any = None
            with contextlib.suppress(OSError):
                found = STEPS[look](self, name=name)
            if found == value:
                passed = time.monotonic() - began
                return passed if passed > 4 * _POLL_SECONDS else 0.0
            time.sleep(_POLL_SECONDS)
        return -1.0

    def clock(self) -> float:
        """Return this machine's time."""
        return time.time()

    # --- open files and locks ---------------------------------------------------------------------------------------

    def hold(self, name: str) -> None:
        """Open a file and keep it open."""
        self._open[name] = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory)

    def held(self, name: str) -> str:
        """Read a file that is kept open."""
        return os.pread(self._open[name], 1 << 20, 0).decode("utf-8", "replace")

    def drop(self, name: str) -> None:
        """Close a file that is kept open."""
        os.close(self._open.pop(name))

    def lock(self, name: str, kind: str) -> bool:
        """Lock a file that is kept open, without waiting; return whether it is locked."""
        try:
            _LOCKS[kind](self._open[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def scribble(self, name: str, text: str, kind: str) -> None:
        """Write over the beginning of a file that is kept open, under a lock, and sync nothing."""
        _LOCKS[kind](self._open[name], fcntl.LOCK_EX)
        os.pwrite(self._open[name], text.encode(), 0)
        _LOCKS[kind](self._open[name], fcntl.LOCK_UN)

    def count(self, name: str, kind: str, rounds: int) -> None:
        """Add one to the number in a file, so many times, under a lock each."""
        for _ in range(rounds):
            descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                _LOCKS[kind](descriptor, fcntl.LOCK_EX)
                number = int(os.pread(descriptor, 20, 0) or b"0")
                os.pwrite(descriptor, b"%019d" % (number + 1), 0)
                os.fsync(descriptor)
                _LOCKS[kind](descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)

    def claim(self, name: str, count: int) -> list[int]:
        """Make files that must not exist, at moments that both machines try; return the numbers of those made."""
        made = []
        for number in range(count):
            with contextlib.suppress(FileExistsError):
                self.write(f"{name}-{number}", "claimed", new=True)
                made.append(number)
        return made


_LOCKS: dict[str, Callable[[int, int], None]] = {"flock": fcntl.flock, "fcntl": fcntl.lockf}

STEPS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        *(
            Steps.write,
            Steps.patch,
            Steps.append,
            Steps.rename,
            Steps.exchange,
            Steps.make,
            Steps.add,
            Steps.remove,
            Steps.die,
        ),
        *(Steps.read, Steps.size, Steps.listed, Steps.mark, Steps.modified, Steps.until, Steps.clock),
        *(Steps.hold, Steps.held, Steps.drop, Steps.lock, Steps.scribble, Steps.count, Steps.claim),
    )
}


def serve(root: Path, source: IO[bytes], target: IO[bytes]) -> None:
    """Perform the steps that come, in a directory of `root` that the first line names, until the source ends."""

    def tell(**answer: Any) -> None:
        target.write(json.dumps(answer).encode() + b"\n")
        target.flush()

    steps: Steps | None = None
    try:
        for line in source:
            try:
                message = json.loads(line)
                step = str(message.pop("step"))
                if step == "begin":
                    if not _NAME.fullmatch(str(message["name"])):
                        raise ValueError("the directory's name is none")
                    steps = Steps(root / message["name"])
                    tell(value=True)
                elif steps is None:
                    raise ValueError("no directory has been named")
                else:
                    tell(value=steps.perform(step, message))
            except OSError as error:
                tell(error=error.errno or 0, text=error.strerror or str(error))
            except (ValueError, KeyError, TypeError) as error:
                tell(error=0, text=str(error))
    finally:
        if steps is not None:
            steps.close()
