"""Processes of a sandbox, held by descriptor: a number may pass to another process, a pidfd never does.

The kernel names the sender of a worker's greeting. With Linux 6.5 it gives a pidfd of that process (SCM_PIDFD); before,
a number (SCM_CREDENTIALS), which may have passed to another process until it is opened here. So a process counts as a
worker only while its line of parents leads to the outer process of its own sandbox, which this daemon has not reaped.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from atoll import linux
from atoll.sandbox.limits.memory_watchdog import first_processes, parent


class HeldProcess:
    """A process of this machine.

    Args:
        pid: its number on the host, its own while `lives` returns True.
        descriptor: its pidfd, owned from here on.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def lives(self) -> bool:
        """Return whether the process has not ended."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """Send SIGKILL, to this process and no other."""
        if self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Member(HeldProcess):
    """A process inside a sandbox.

    Args:
        init, agent: numbers of the first process of the sandbox, and of the agent below it.
    """

    def __init__(self, pid: int, descriptor: int, init: int, agent: int) -> None:
        super().__init__(pid, descriptor)
        self.init = init
        self.agent = agent

    def copy(self) -> Member:
        """Hold the same process once more."""
        return Member(self.pid, os.dup(self._descriptor), self.init, self.agent)


def prove(pid: int, pidfd: int, outer: int) -> Member | None:
    """Return the process that the kernel names, if it lives inside the sandbox of `outer`.

    Args:
        pid: from the kernel; 0 for none.
        pidfd: from the kernel, owned from here on; negative where it gives none.
        outer: the first process of the sandbox outside of its namespaces.
    """
    try:
        if pid <= 0:
            return None
        if pidfd < 0:
            pidfd = os.pidfd_open(pid)
        elif linux.pid_of(pidfd) != pid:
            return None
        init, agent = first_processes(pid, outer)
        member = Member(pid, os.dup(pidfd), init, agent)
        if init and member.lives():  # and so the number was its own while its parents were read
            return member
        member.close()
    except OSError:  # it has ended
        pass
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return None


def hold(pid: int, above: int) -> HeldProcess | None:
    """Hold a process that is a child of `above`; None for one that has ended."""
    try:
        held = HeldProcess(pid, os.pidfd_open(pid))
    except OSError:
        return None
    if parent(pid) == above and held.lives():
        return held
    held.close()
    return None
