"""Starts of programs inside control groups, so that none of their code ever runs outside.

Moving a running process makes the kernel wait until no process of the machine forks or ends: some 10 ms. Neither of
these starts needs that. In version 1 a thread may enter a group alone, its children start there, and it goes back. In
version 2 the kernel makes the process in the group (`CLONE_INTO_CGROUP`), if the C library can ask for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from atoll import linux
from atoll.process import DEVNULL, PIPE, STDOUT, Process, Start

_MOVE = 'echo 0 >"$0" && exec "$@"'
"""Moves a shell to a group and becomes the command: the slow way, for C libraries before glibc 2.39."""


def start_by_thread(start: Start, groups: Sequence[tuple[Path, Path]]) -> Process:
    """Start a program in groups of version 1.

    Args:
        groups: one of each hierarchy, and the group of this process there.

    Raises:
        OSError: this thread may not enter a group, or the program cannot be started.
    """
    with contextlib.ExitStack() as stack:
        for group, own in groups:
            stack.callback(_enter, own)
            _enter(group)
        return start.popen()


def _enter(group: Path) -> None:
    """Move the calling thread; where it is already, nothing changes."""
    descriptor = os.open(group / "tasks", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def start_in(start: Start, group: Path) -> Process:
    """Start a program in a group of version 2.

    Raises:
        OSError: the program cannot be started.
    """
    with contextlib.suppress(OSError):  # the C library or the kernel is too old; else the other way fails as well
        return _Spawned(start, group)
    return start.popen("/bin/sh", "-c", _MOVE, str(group / "cgroup.procs"))


class _Spawned:
    """A program that the kernel has started in a group."""

    def __init__(self, start: Start, group: Path) -> None:
        self.stdout: IO[bytes] | None = None
        self._status: int | None = None
        with contextlib.ExitStack() as stack:
            directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            streams, output = stack.enter_context(_opened(start))
            try:
                self.pid = linux.spawn_in_group(start.argv, start.env, start.descriptors, streams, start.cwd, directory)
            except OSError:
                if output is not None:
                    output.close()
                raise
            self.stdout = output

    def poll(self) -> int | None:
        if self._status is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


@contextlib.contextmanager
def _opened(start: Start) -> Iterator[tuple[list[int], IO[bytes] | None]]:
    """Give the child's ends of its streams, and this process's end of its output where that is a pipe."""
    output: IO[bytes] | None = None
    streams: list[int] = []
    with contextlib.ExitStack() as stack:
        for stream in start.streams:
            if stream == PIPE:
                read, write = os.pipe2(os.O_CLOEXEC)
                stack.callback(os.close, write)
                output = open(read, "rb", buffering=-1)
                streams.append(write)
            elif stream == STDOUT:
                streams.append(streams[1])
            elif stream == DEVNULL:
                streams.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
                stack.callback(os.close, streams[-1])
            else:
                streams.append(stream if isinstance(stream, int) else stream.fileno())
        yield streams, output
