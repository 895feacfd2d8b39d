"""Visits to the sandbox of a running call: the stacks of its worker, and commands beside it.

This module is loaded when the first such message comes.

*Stacks.* Each worker has a handler of `faulthandler` for `STACKS`, which runs in C, also while the function sleeps or is
in a long call of a library, and writes to a file in memory. The agent looks first whether worker and file are as they
were made: without the handler the signal would end the process.

*Commands* run as processes of the worker, with its mark, its variables and its limits, in a Landlock domain of their own:
they see other processes of the sandbox and can reach the memory of none. A command starts when the daemon has put it
under the worker's limit (`begin`). It ends with its client, or with the worker.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

from atoll.agent.endings import Child
from atoll.agent.leftovers import kill_left_behind
from atoll.agent.process.start import STACKS, STACKS_FILE
from atoll.wire.channel import Channel

STACK_SECONDS = 0.5
"""The most that this process, which has one thread, waits for the stacks of a worker."""

STILL_SECONDS = 0.02
"""Stacks are whole when no more has been written for so long: nothing marks their end."""

MOST_BYTES = 100_000
"""Of stacks: as JSON six times as much at worst, and less than the daemon takes of an agent at once."""

LIBRARY = "/opt/atoll/lib"


class Host(Protocol):
    """The agent, as it calls back."""

    def watch(self, descriptor: int, on_ready: Callable[[], None], events: int | None = None) -> None: ...

    def unwatch(self, descriptor: int) -> None: ...

    def fork(self, serve: Callable[[], int]) -> int: ...


class Visit(NamedTuple):
    """A command in the sandbox; `gate` lets it begin."""

    pid: int
    pidfd: int
    gate: int


class Visits:
    """The commands of one agent, and stacks of its workers.

    Args:
        channel: to the daemon, or to the agent above.
        bound: sets this process's bound on processes.
    """

    def __init__(
        self, agent: Host, channel: Channel, workers: dict[str, Child], bound: Callable[[object], None]
    ) -> None:
        self._agent = agent
        self._channel = channel
        self._workers = workers
        self._bound = bound
        self._visits: dict[int, Visit] = {}

    def handle(self, kind: str, name: str, message: dict[str, Any]) -> None:
        """Serve one message."""
        number = int(str(message["number"]))
        if kind == "stacks":
            self._stacks(number, name)
        elif kind == "exec":
            self._start(number, name, message)
        elif number in self._visits:
            self._begin(number) if kind == "begin" else self._end(number)

    def _answer(self, number: int, **answer: Any) -> None:
        self._channel.send({"type": "answered", "number": number, **answer})

    # --- stacks ---------------------------------------------------------------------------------------------------

    def _stacks(self, number: int, name: str) -> None:
        child = self._workers.get(name)
        try:
            text = stacks(child.pid, child.pidfd) if child is not None else ""
        except (OSError, ValueError, KeyError) as error:
            self._answer(number, error=str(error)[:200])
        else:
            self._answer(number, text=text)

    # --- commands -------------------------------------------------------------------------------------------------

    def _start(self, number: int, name: str, message: dict[str, Any]) -> None:
        descriptors = self._channel.take_descriptors(3)
        read, gate = os.pipe()
        try:
            pid = self._agent.fork(lambda: self._serve(read, gate, name, message, descriptors))
            visit = Visit(pid, os.pidfd_open(pid), gate)
        except OSError as error:
            os.close(gate)
            self._answer(number, error=str(error)[:200])
            return
        finally:
            os.close(read)
            for descriptor in descriptors:
                os.close(descriptor)
        self._visits[number] = visit
        self._agent.watch(visit.pidfd, lambda: self._reap(number))
        self._answer(number, pid=pid)

    def _serve(self, read: int, gate: int, name: str, message: dict[str, Any], descriptors: list[int]) -> NoReturn:
        """Become the command, in the forked process."""
        os.close(gate)
        os.setsid()
        if os.read(read, 1) != b"!":
            os._exit(1)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        try:
            _execute(name, message, self._bound)
        except (OSError, ValueError) as error:
            os.write(2, f"atoll: {error}\n".encode("utf-8", "replace"))
        os._exit(127)

    def _begin(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(self._visits[number].gate, b"!")

    def _end(self, number: int) -> None:
        visit = self._visits[number]
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(visit.pidfd, signal.SIGKILL)

    def _reap(self, number: int) -> None:
        visit = self._visits.pop(number)
        self._agent.unwatch(visit.pidfd)
        _, status = os.waitpid(visit.pid, 0)
        self._close(visit)
        kill_left_behind("", visit.pid)
        code = os.waitstatus_to_exitcode(status)
        self._answer(number, status=code if code >= 0 else 128 - code)

    @staticmethod
    def _close(visit: Visit) -> None:
        os.close(visit.pidfd)
        os.close(visit.gate)

    def close(self) -> None:
        """Close what belongs to the commands, in a process that was forked."""
        for visit in self._visits.values():
            self._close(visit)


def _execute(name: str, message: dict[str, Any], bound: Callable[[object], None]) -> None:
    command = [str(word) for word in message["command"]]
    environment = {**os.environ, **{str(key): str(value) for key, value in message["env"].items()}}
    environment["ATOLL_WORKER_ID"] = name
    environment.setdefault("TERM", "xterm-256color")
    environment.setdefault("PYTHONPATH", LIBRARY)
    if message.get("terminal"):
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if not command:
        environment["PS1"] = r"(atoll) \w \$ "
        command = ["/bin/bash", "--norc", "--noprofile"] if os.path.exists("/bin/bash") else ["/bin/sh"]
    os.umask(int(message["umask"]))
    bound(message.get("processes"))
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores some of them, and a daemon in the background others
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execvpe(command[0], command, environment)


def stacks(pid: int, pidfd: int) -> str:
    """Return the stacks of all threads of a worker, as `faulthandler` writes them.

    Raises:
        OSError: it has just ended, or has closed the file.
        ValueError: it has no handler, or does not answer: the text says so.
    """
    with open(f"/proc/{pid}/status", "rb") as status:
        fields = dict(line.split(b":", 1) for line in status if line.startswith((b"Sig", b"State")))
    if not int(fields[b"SigCgt"], 16) >> (STACKS - 1) & 1:
        raise ValueError("its process has no handler any more that could write its stacks")
    if int(fields[b"SigBlk"], 16) >> (STACKS - 1) & 1:
        raise ValueError("its main thread has blocked all signals")
    descriptor = _open_file(pid)
    try:
        os.truncate(descriptor, 0)
        signal.pidfd_send_signal(pidfd, STACKS)
        return _written(descriptor, fields[b"State"].decode().strip())
    finally:
        os.close(descriptor)


def _open_file(pid: int) -> int:
    for entry in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        path = f"/proc/{pid}/fd/{entry}"
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(path).startswith(f"/memfd:{STACKS_FILE}"):
                return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    raise ValueError("its process has closed the file for its stacks")


def _written(descriptor: int, state: str) -> str:
    """Wait until a file grows no more; return its text."""
    deadline = time.monotonic() + STACK_SECONDS
    size, since = 0, time.monotonic()
    while time.monotonic() < deadline:
        now = os.fstat(descriptor).st_size
        if now != size:
            size, since = now, time.monotonic()
        elif size and time.monotonic() - since >= STILL_SECONDS:
            break
        time.sleep(0.001)
    if not size:
        raise ValueError(f"its process does not answer: its state is `{state}`")
    return os.pread(descriptor, MOST_BYTES, 0).decode("utf-8", "replace")
