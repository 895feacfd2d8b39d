"""Process ids of sandboxes that share files: each sandbox counts from a number of its own.

Theory of operation. Every pid namespace counts from 1, so that programs of two sandboxes would have the same numbers.
Programs that tell processes apart by number (LMDB locks a byte at its own, many lock files name it) would take each
other for themselves. The kernel's `ns_last_pid` moves the counter of the namespace in which its writer lives. So a
process enters the namespace while bubblewrap waits at its gate, and writes the number that comes before the range.

The writer needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN over the namespace: root has it, and a plain user as the owner
of the user namespace that owns the pid namespace, once inside. `nsenter` does both, and nothing of the sandbox runs yet.
A program that is started there keeps these rights only as uid 0, to which bubblewrap maps the user for its mounts.
While bubblewrap makes its mounts this takes no time of the sandbox's start.

The largest number differs (32768 by default on small machines), and since Linux 6.14 each namespace has its own, so a
range is named by its place between the first number and the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

from atoll.errors import SandboxUnavailable
from atoll.process import Child
from atoll.sandbox import programs

log = logging.getLogger("atoll.sandbox")

PLACES = 1 << 22
"""How many places there are: as many as the largest number that any kernel counts to."""

WRITE_SECONDS = 5.0
"""A sandbox whose counter could not be moved in this time counts from 2."""

LOOK_SECONDS = 0.001
"""Seconds between two looks at a user namespace that has just been made."""

FIRST = 300
"""The number with which the kernel goes on after the largest one (RESERVED_PIDS)."""

_WRITE = "{ echo $0 > F; } 2> /dev/null || echo $1 > F".replace("F", "/proc/sys/kernel/ns_last_pid")
_NS_GET_USERNS = 0xB701  # <linux/nsfs.h>: _IO(0xb7, 0x1)


class PidRanges:
    """The ranges of live sandboxes, far from each other.

    Args:
        draw: returns a number from 0 to below its argument.
    """

    def __init__(self, draw: Callable[[int], int] = random.randrange) -> None:
        self._draw = draw
        self._taken: list[int] = []
        self._failed = False

    def take(self) -> int:
        """Return the place of a new range: within the middle half of the largest gap between the others.

        A place is drawn, so that a file that an ended sandbox left behind seldom names a process of the next one.
        """
        if not self._taken:
            place = self._draw(PLACES)
        else:
            starts = sorted(self._taken)
            gaps = [
                (after - start, start) for start, after in zip(starts, [*starts[1:], starts[0] + PLACES], strict=True)
            ]
            gap, start = max(gaps)
            place = (start + gap // 4 + self._draw(gap // 2 + 1)) % PLACES
        self._taken.append(place)
        return place

    def give_back(self, place: int) -> None:
        """Forget a range whose sandbox has ended."""
        self._taken.remove(place)

    async def begin(self, pid: int, place: int) -> None:
        """Let a sandbox count from a place; where that cannot be, it counts from 2 and the log says so, once.

        Args:
            pid: the host's number of the first process of the sandbox, which waits.
        """
        reason = ""
        try:
            await asyncio.wait_for(_mapped(pid), WRITE_SECONDS)
            with contextlib.ExitStack() as stack:
                child = _write(pid, place, stack)
                try:
                    status = await asyncio.wait_for(child.wait(), WRITE_SECONDS)
                finally:
                    await child.kill()
            reason = f"status {status}" if status else ""
        except (OSError, TimeoutError, SandboxUnavailable) as error:
            reason = str(error) or type(error).__name__
        if reason and not self._failed:
            self._failed = True
            log.warning("pid_range_failed reason=%s", reason)


async def _mapped(pid: int) -> None:
    """Wait until a process's user namespace knows its user, about a millisecond after its first process."""
    while not Path(f"/proc/{pid}/uid_map").read_bytes():  # noqa: ASYNC110 - the kernel tells nobody of it
        await asyncio.sleep(LOOK_SECONDS)


def _write(pid: int, place: int, stack: contextlib.ExitStack) -> Child:
    """Start the process that enters the pid namespace of `pid` and moves its counter."""
    numbers = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, numbers)
    owner = fcntl.ioctl(numbers, _NS_GET_USERNS)
    stack.callback(os.close, owner)
    line = [programs.find_nsenter(), f"--pid=/proc/self/fd/{numbers}"]
    if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:
        line += [f"--user=/proc/self/fd/{owner}", "--preserve-credentials"]
    with open("/proc/sys/kernel/pid_max", "rb") as file:
        largest = int(file.read())
    # A namespace of Linux 6.14 may count on beyond the largest number of the machine.
    last = [str(FIRST + (most - FIRST) * place // PLACES) for most in (PLACES, largest)]
    return Child([*line, "--", "/bin/sh", "-c", _WRITE, *last], env={}, descriptors=[numbers, owner])
