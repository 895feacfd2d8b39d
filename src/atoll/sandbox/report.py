"""Bubblewrap's report of one sandbox, by which pid 1 is found before any code runs there.

Bubblewrap writes the number of pid 1 to a pipe, and at the end the exit status of the command. When all mounts are made
it waits at a gate (`--block-fd`). The gate is opened when this process has a pidfd of pid 1 and has given it to the
orphan killer, and the numbers of its processes are its own (`pid_ranges`): from then on the sandbox ends with this
process, whatever its code does. A gate is one descriptor that
reads and writes a pipe, so its reader never sees an end: a sandbox whose launcher is gone waits until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from atoll.sandbox.limits import descriptors
from atoll.sandbox.orphans import OrphanPipe

REPORT_BYTES = 1 << 16
_AGAIN_SECONDS = 0.005
"""Seconds between two looks at a process that does not show its descriptors."""
_LOOKS = 40
"""Looks until a process is believed that never shows them, as that of a setuid bubblewrap. Bubblewrap still runs then,
which ends when its child does: the number cannot have passed to another process."""


def make_gate() -> int:
    """Return a closed gate; one byte written to it opens it."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{read}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(read)
        os.close(write)


class Report:
    """What bubblewrap has said, and pid 1 of its sandbox; to be used in the event loop's own thread.

    Args:
        descriptor: the read end of the status pipe; owned by the report from now on, as the gate is.
        gate: where bubblewrap waits.
        orphan_pipe: held by pid 1 of the sandbox.
        served: the sandbox is behind the fence.
    """

    def __init__(self, descriptor: int, gate: int, orphan_pipe: OrphanPipe, *, served: bool = False) -> None:
        self._served = served
        self.prepare: Callable[[int], Coroutine[Any, Any, None]] | None = None
        """What is done, with the host's number of pid 1, before the gate is opened; None for nothing."""
        self.at_end: list[Callable[[], None]] = []
        """Called once when the sandbox has ended, or is left to whatever ends it."""
        self._preparing: asyncio.Task[None] | None = None
        self._descriptor = descriptor
        self._gate = gate
        self._orphan_pipe = orphan_pipe
        self._text = b""
        self._first = -1
        self._ending = False
        self._looks = 0
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when every process of the sandbox has ended; bubblewrap itself may live for a moment."""
        self.known: asyncio.Future[None] = self._loop.create_future()
        """Done when the orphan killer knows the sandbox, or the sandbox has ended before."""
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self.read)

    @property
    def started(self) -> bool:
        """Return whether the command of an ended sandbox had been started."""
        return b'"exit-code"' in self._text

    def read(self) -> None:
        """Read what has been written."""
        if self._descriptor < 0:
            return
        try:
            data = os.read(self._descriptor, REPORT_BYTES)
        except BlockingIOError:
            return
        self._text = (self._text + data)[-REPORT_BYTES:]
        if data:
            self._hold_first()
            return
        self._close_pipe()
        if self._first < 0:
            self._set_gone()

    def _hold_first(self) -> None:
        """Hold on to pid 1 of the sandbox: when it is gone, every process of the sandbox is."""
        if self._first >= 0 or self._descriptor < 0 or self.gone.done() or b"\n" not in self._text:
            return
        with contextlib.suppress(OSError, ValueError):
            pid = _first_pid(self._text)
            descriptor = os.pidfd_open(pid)
            self._looks += 1
            if self._looks < _LOOKS and not self._orphan_pipe.holds(pid):  # it shows nothing, or is another process
                os.close(descriptor)
                self._again = self._loop.call_later(_AGAIN_SECONDS, self._hold_first)
                return
            self._first = descriptor
            descriptors.limit(pid)  # before any code runs there
            self._orphan_pipe.watch(descriptor, served=self._served)
            self._loop.add_reader(descriptor, self._first_ended)
            self.known.set_result(None)
            if self.prepare is None:
                self._open_gate()
            else:
                self._preparing = self._loop.create_task(self.prepare(pid))
                self._preparing.add_done_callback(lambda _: self._open_gate())

    def _open_gate(self) -> None:
        if self._served and self._orphan_pipe.fence.passed:
            self.kill()
        if not self._ending and self._descriptor >= 0:
            os.write(self._gate, b"1")

    def _first_ended(self) -> None:
        self._release_first()
        self._set_gone()

    def _release_first(self) -> None:
        if self._first >= 0:
            self._loop.remove_reader(self._first)
            self._orphan_pipe.forget(self._first)
            os.close(self._first)
            self._first = -1

    def _set_gone(self) -> None:
        self._forget()
        for one in (self.known, self.gone):
            if not one.done():
                one.set_result(None)

    def kill(self) -> None:
        """Kill pid 1, which may not have armed its parent-death signal; bubblewrap is being killed or has ended."""
        self._ending = True
        self.read()  # it may have been reported and not read yet
        if self._first >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)

    def close(self) -> None:
        """Close all descriptors; pid 1 is left to whatever ends it."""
        self._close_pipe()
        self._release_first()
        self._forget()
        self.gone.cancel()
        self.known.cancel()

    def _forget(self) -> None:
        while self.at_end:
            self.at_end.pop()()

    def _close_pipe(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._preparing is not None:
            self._preparing.cancel()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            os.close(self._gate)
            self._descriptor = self._gate = -1


def _first_pid(report: bytes) -> int:
    """Return the host's number of pid 1 of the sandbox.

    Raises:
        ValueError: it is not reported.
    """
    try:
        return int(json.loads(report.split(b"\n")[0])["child-pid"])
    except (KeyError, TypeError) as error:
        raise ValueError("no `child-pid` is reported") from error
