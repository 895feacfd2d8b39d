"""The orphan pipe, held by every sandbox of a launcher, and the process at its end (see `orphan_killer`)."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref

from atoll.process import start_detached
from atoll.sandbox import orphan_killer


class OrphanPipe:
    """A pipe that marks this process's sandboxes, so that they end with this process.

    The orphan killer is started here and outlives this process for a moment. It also ends the sandboxes when this object
    is collected.

    Raises:
        OSError: the orphan killer cannot be started.
    """

    def __init__(self) -> None:
        self.descriptor, write = os.pipe2(os.O_CLOEXEC)
        self.name = os.readlink(f"/proc/self/fd/{self.descriptor}")
        weakref.finalize(self, _close, self.descriptor, write)
        self._killer = self._start()

    def _start(self) -> int:
        log = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = [sys.executable, "-I", "-S", orphan_killer.__file__, str(self.descriptor)]
            return start_detached(argv, env={}, descriptors=[self.descriptor], log=log)
        finally:
            os.close(log)

    def ensure_killer(self) -> None:
        """Start another orphan killer if the last one was killed."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._killer, os.WNOHANG)[0] == 0:
                return
        self._killer = self._start()

    def end(self, pid: int) -> bool:
        """Kill a process if one of this pipe's sandboxes contains it; return whether one did."""
        return orphan_killer.end(pid, self.name)

    def holds(self, pid: int) -> bool:
        """Return whether a process is bubblewrap's in one of this pipe's sandboxes, and not a sandboxed command."""
        return orphan_killer.holds(pid, self.name)


def _close(read: int, write: int) -> None:
    os.close(read)
    os.close(write)
