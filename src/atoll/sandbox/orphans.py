"""The pipe that every sandbox of a launcher holds, and the orphan killer at its end (see `orphan_killer`)."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref

from atoll.process import start_detached
from atoll.sandbox import orphan_killer


class Lifeline:
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
        self._warden = self._start()

    def _start(self) -> int:
        log = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = [sys.executable, "-I", "-S", orphan_killer.__file__, str(self.descriptor)]
            return start_detached(argv, env={}, descriptors=[self.descriptor], log=log)
        finally:
            os.close(log)

    def attend(self) -> None:
        """Start another warden when the last one was killed."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._warden, os.WNOHANG)[0] == 0:
                return
        self._warden = self._start()

    def end(self, pid: int) -> bool:
        """Kill a process if it is of this lifeline's sandboxes; return whether it was."""
        return orphan_killer.end(pid, self.name)

    def holds(self, pid: int) -> bool:
        """Return whether a process is of this lifeline's sandboxes, and not a sandboxed command."""
        return orphan_killer.holds(pid, self.name)


def _close(read: int, write: int) -> None:
    os.close(read)
    os.close(write)
