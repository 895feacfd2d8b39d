"""The orphan killer: a process that ends the sandboxes of a killed launcher.

Bubblewrap arms its parent-death signals late: the outer process after its `clone`, pid 1 of the sandbox when the
mounts are made. A sandbox whose parent is killed earlier stays for good, or runs its command without an owner. The
kernel offers no parent-death signal that could be set from outside.

So every bubblewrap inherits the read end of a pipe whose write end only the launching process has.
Pid 1 keeps it for its whole life (`--sync-fd`) and the command never gets it. The orphan killer waits for the end of the
last writer, and then kills every process that still holds the pipe. It runs as a script of its own, outside of any
sandbox, with little of the standard library.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

QUIET_SECONDS = 0.4
"""Seconds without a holder until there can be none: a scan may miss a process that was just cloned."""

GIVE_UP_SECONDS = 60.0
"""A process that cannot be killed is waited for no longer."""

_POLL_SECONDS = 0.05


def holds(pid: int | str, pipe: str) -> bool:
    """Return whether a process has the pipe that is named as `/proc/PID/fd` names it; False when it is gone."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == pipe:
                return True
        except OSError:
            continue
    return False


def end(pid: int, pipe: str) -> bool:
    """Kill a process if it holds the pipe; return whether it did. Another one that got its number is left alone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not holds(pid, pipe):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def sweep(pipe: str) -> int:
    """Kill every other process that holds the pipe; return how many did."""
    own = os.getpid()
    return sum(end(int(name), pipe) for name in os.listdir("/proc") if name.isdigit() and int(name) != own)


def main(descriptor: int) -> None:
    """Wait for the launcher's end, then sweep until nothing is left."""
    pipe = os.readlink(f"/proc/self/fd/{descriptor}")
    poll = select.poll()
    poll.register(descriptor, 0)  # poll always reports a hang-up; written bytes do not matter
    poll.poll()
    started = quiet_since = time.monotonic()
    while (now := time.monotonic()) - quiet_since < QUIET_SECONDS and now - started < GIVE_UP_SECONDS:
        if sweep(pipe):
            quiet_since = time.monotonic()
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main(int(sys.argv[1]))
