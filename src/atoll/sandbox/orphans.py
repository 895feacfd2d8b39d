"""The end of sandboxes with the process that launched them: a mark on each, and the orphan killer outside."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import time
import weakref
from collections.abc import Callable, Mapping

from atoll.process import start_detached
from atoll.sandbox import orphan_killer
from atoll.sandbox.fence import Fence

AGAIN_SECONDS = 0.2
"""Seconds between two starts of an orphan killer that ends at once."""


class OrphanPipe:
    """A pipe that marks this process's sandboxes, and the orphan killer that ends them with this process.

    The orphan killer is started here and outlives this process for a moment. It also ends the sandboxes when this object
    is collected. One that is killed itself is started again, and gets the pidfds of all live sandboxes (`watch`).
    `watch` and `forget` are to be called in an event loop's own thread.

    Raises:
        OSError: the orphan killer cannot be started.
    """

    def __init__(self) -> None:
        self.descriptor, write = os.pipe2(os.O_CLOEXEC)
        os.close(write)
        self.name = os.readlink(f"/proc/self/fd/{self.descriptor}")
        self.fence = Fence()
        self._watched: dict[int, bool] = {}
        self._gone = asyncio.Event()
        self._fenced = 0  # ended since the fence has passed
        self._killer = _Killer(self.descriptor)
        self._finalizer = weakref.finalize(self, _close, self.descriptor, self._killer)

    def ensure_killer(self) -> None:
        """Start another orphan killer if the last one was killed, now and for as long as the running loop runs."""
        if self._killer.ended():
            self._killer.start(self._watched, self.fence)
        weak = weakref.WeakMethod(self._killer_ended)
        self._killer.listen(lambda: (found := weak()) and found())

    def _killer_ended(self) -> None:
        self._killer.deafen()
        wait = self._killer.started + AGAIN_SECONDS - time.monotonic()
        if wait <= 0:
            self.ensure_killer()
            return
        weak = weakref.WeakMethod(self.ensure_killer)
        asyncio.get_running_loop().call_later(wait, lambda: (found := weak()) and found())

    def watch(self, pidfd: int, *, served: bool = False) -> None:
        """Have a process killed when this one has ended, until `forget`; the caller keeps the descriptor open.

        Args:
            served: it is behind the fence.
        """
        self._watched[pidfd] = served
        if not self._killer.send([pidfd], served=served):
            self._replace_killer()

    def forget(self, pidfd: int) -> None:
        """Forget a process that has ended; the caller closes the descriptor. The orphan killer sees the end itself."""
        if self._watched.pop(pidfd, False):
            self._gone.set()
            self._fenced += self.fence.passed

    def move_fence(self, until: float | None) -> None:
        """Name another moment for the fence, here and to the orphan killer; None for none."""
        self.fence.until = until
        if not self._killer.tell(self.fence):
            self._replace_killer()

    async def end_served(self) -> int:
        """Kill what is behind the fence and wait until all of it is gone; return how many sandboxes the fence has ended.

        Whatever starts meanwhile is killed as well while the fence has passed.
        """
        while served := {one for one, is_served in self._watched.items() if is_served}:
            self._gone.clear()
            orphan_killer.kill(served)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), AGAIN_SECONDS)
        ended, self._fenced = self._fenced, 0
        return ended

    def _replace_killer(self) -> None:
        """Start another orphan killer in place of one that does not read, or has ended: it gets all."""
        self._killer.kill()
        self._killer.start(self._watched, self.fence)
        self.ensure_killer()

    def close(self) -> None:
        """Have the orphan killer end all sandboxes, as if this process had ended."""
        self._finalizer()

    def holds(self, pid: int) -> bool:
        """Return whether a process is bubblewrap's in one of this pipe's sandboxes, and not a sandboxed command."""
        return orphan_killer.holds(pid, self.name)

    @property
    def killer_pid(self) -> int:
        """The orphan killer's process id."""
        return self._killer.pid


class _Killer:
    """The orphan killer as a child process, with the socket whose end is its signal."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._loop: asyncio.AbstractEventLoop | None = None
        self.start({}, Fence())

    def start(self, watched: Mapping[int, bool], fence: Fence) -> None:
        """Start it; what it needs to know waits in its socket before it runs."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = [sys.executable, "-I", "-S", orphan_killer.__file__, str(self._pipe), str(theirs.fileno())]
            self.pid = start_detached(argv, env={}, descriptors=[self._pipe, theirs.fileno()], log=log)
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(log)
            theirs.close()
        self._channel = ours
        self._pidfd = os.pidfd_open(self.pid)
        self.started = time.monotonic()
        if fence.until is not None:
            self.tell(fence)
        for served in (True, False):
            numbers = sorted(pidfd for pidfd, is_served in watched.items() if is_served is served)
            for first in range(0, len(numbers), orphan_killer.MESSAGE_DESCRIPTORS):
                self.send(numbers[first : first + orphan_killer.MESSAGE_DESCRIPTORS], served=served)

    def send(self, descriptors: list[int], *, served: bool) -> bool:
        """Send copies of descriptors; return whether they were taken."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        return self._send(b"f" if served else b"w", rights)

    def tell(self, fence: Fence) -> bool:
        """Send the moment of the fence; return whether it was taken."""
        return self._send(b"n" if fence.until is None else b"u" + struct.pack("<d", fence.until), [])

    def _send(self, message: bytes, rights: list[tuple[int, int, array.array[int]]]) -> bool:
        try:
            self._channel.sendmsg([message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def ended(self) -> bool:
        """Reap it if it has ended; return whether it has."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                return False
        self._drop()
        return True

    def kill(self) -> None:
        """End it, and wait for that."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._drop()

    def listen(self, on_end: Callable[[], object]) -> None:
        """Call `on_end` in the running loop when it ends."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self.deafen()
            self._loop = loop
            loop.add_reader(self._pidfd, on_end)

    def deafen(self) -> None:
        """Listen no longer."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._pidfd)

    def _drop(self) -> None:
        self.deafen()
        self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def close(self) -> None:
        """Let it end the sandboxes, and end itself."""
        self._drop()


def _close(descriptor: int, killer: _Killer) -> None:
    os.close(descriptor)  # first: the orphan killer ends every process that holds it
    killer.close()
