"""Child processes: the only user of `subprocess`.

A child is started from the event loop's own thread, which lives as long as the daemon: the kernel's parent-death
signal, which bubblewrap's `--die-with-parent` relies on, fires when the *thread* that started the child ends. The
end of a child is learned from its pidfd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

KEPT_BYTES = 1 << 20
"""Bytes of a child's output that are kept: its end."""

LINE_BYTES = 4096
"""Characters of one line that are passed on."""

MAX_LINES = 100_000
"""Lines of one child that are passed on, empty ones counted; each costs the event loop about a microsecond or more."""

PAUSE_SECONDS = 0.01
"""Pause between two reads of a child that has printed more lines than that."""


DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
"""Streams of a child, as `subprocess` means them."""


@dataclass(frozen=True)
class Completed:
    """A finished child: its status (negative for a signal) and its output, for `run` the last `KEPT_BYTES`."""

    status: int
    output: str


class Process(Protocol):
    """A started program, as `subprocess.Popen` has it."""

    pid: int
    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the program runs."""


@dataclass(frozen=True)
class Start:
    """A program to start; see `Child`."""

    argv: Sequence[str]
    env: Mapping[str, str]
    descriptors: Sequence[int]
    cwd: str
    streams: tuple[int | IO[Any], int | IO[Any], int | IO[Any]]

    def popen(self, *before: str) -> Process:
        """Start the program, by another one that is named with its own arguments."""
        stdin, stdout, stderr = self.streams
        return subprocess.Popen(
            [*before, *self.argv],
            env=dict(self.env),
            cwd=self.cwd,
            pass_fds=tuple(self.descriptors),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


class Group(Protocol):
    """A control group in which a child begins its life, so that no code of it ever runs outside."""

    def start(self, start: Start) -> Process:
        """Start a program in the group.

        Raises:
            OSError: it cannot be started there.
        """


class Child:
    """A running child process, which is ended and waited for when it is no longer wanted.

    Args:
        argv: the program and its arguments.
        env: its whole environment; nothing is inherited.
        descriptors: descriptors that the child keeps under the same numbers.
        stdin, stdout, stderr: as `subprocess.Popen` takes them; `/dev/null` by default.
        group: where the child begins its life; None for this process's own groups.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        descriptors: Sequence[int] = (),
        cwd: str = "/",
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
        group: Group | None = None,
    ) -> None:
        import asyncio  # a client starts the daemon only, without a loop: asyncio would cost its first call 20 ms

        start = Start(argv, env, descriptors, cwd, (stdin, stdout, stderr))
        self._process = start.popen() if group is None else group.start(start)
        self.pid = self._process.pid
        self.stdout = self._process.stdout
        self._pidfd = os.pidfd_open(self.pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        # The child's group ends with it; until the child is waited for, no other group has its number.
        self.signal(signal.SIGKILL)
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(status)

    @property
    def running(self) -> bool:
        return not self._ended.done()

    async def wait(self) -> int:
        """Wait for the end; return the exit status, negative for a signal."""
        import asyncio  # as above

        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal, SIGKILL to the child's whole group; a child that has ended is left alone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL:  # one step, which no process of the group can fork out of
                    os.killpg(self.pid, number)
                else:
                    signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, grace_seconds: float = 0.5) -> int:
        """Send SIGTERM, wait a grace, send SIGKILL, wait for the end."""
        import asyncio  # as above

        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """Send SIGKILL and wait for the end."""
        self.signal(signal.SIGKILL)
        return await self.wait()


class _Lines:
    """Makes lines of pieces of output, each cut at `LINE_BYTES`; empty ones and those after `MAX_LINES` are left out."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._pending = b""
        self._left = MAX_LINES

    @property
    def full(self) -> bool:
        """Return whether further lines are left out."""
        return self._left <= 0

    def feed(self, data: bytes) -> None:
        if self.full:
            return
        first, *rest = data.replace(b"\r", b"\n").split(b"\n", self._left)
        self._left -= len(rest)
        self._pending += first[: LINE_BYTES - len(self._pending)]
        for piece in rest:
            if self._pending.strip():
                self._on_line(self._pending.decode("utf-8", "replace"))
            self._pending = piece[:LINE_BYTES]


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    descriptors: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
    timeout_seconds: float | None = None,
    group: Group | None = None,
) -> Completed:
    """Run a child to its end with stdout and stderr together; a cancelled caller kills it.

    Args:
        group: as for `Child`.
        on_line: called with each line (or `\\r` piece) of output as it comes, without its end, cut at `LINE_BYTES`;
            after `MAX_LINES` no more.

    Raises:
        OSError: the program cannot be started.
        asyncio.TimeoutError: it took longer than `timeout_seconds`; it has been killed.
    """
    import asyncio  # as in `Child`

    loop = asyncio.get_running_loop()
    child = Child(argv, env=env, descriptors=descriptors, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, group=group)
    assert child.stdout is not None
    reader = asyncio.StreamReader(limit=1 << 22)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
    kept = bytearray()

    async def drain() -> int:
        lines = None if on_line is None else _Lines(on_line)
        while data := await reader.read(1 << 16):
            kept.extend(data)
            if len(kept) > 2 * KEPT_BYTES:
                del kept[:-KEPT_BYTES]
            if lines is not None:
                lines.feed(data)
                if lines.full:  # and it may print without end, faster than this process reads
                    await asyncio.sleep(PAUSE_SECONDS)
        if lines is not None:
            lines.feed(b"\n")
        return await child.wait()

    try:
        status = await asyncio.wait_for(drain(), timeout_seconds)
    finally:
        if child.running:
            await child.kill()
        transport.close()
    return Completed(status, bytes(kept[-KEPT_BYTES:]).decode("utf-8", "replace"))


def check(
    argv: Sequence[str], *, env: Mapping[str, str], timeout_seconds: float = 30.0, stderr: int = STDOUT
) -> Completed:
    """Run a short child to its end, blocking; for probes outside of an event loop.

    Args:
        stderr: where its errors go; into the output by default.

    Raises:
        OSError: the program cannot be started.
        subprocess.TimeoutExpired: it took too long; it has been killed.
    """
    done = subprocess.run(
        list(argv),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=timeout_seconds,
        check=False,
    )
    return Completed(done.returncode, done.stdout.decode("utf-8", "replace"))


def feed(argv: Sequence[str], data: bytes, *, env: Mapping[str, str], timeout_seconds: float) -> Completed:
    """Run a program of the owner's that reads bytes; its status, and that which it printed on standard error.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took longer, and was killed with its children.
    """
    with subprocess.Popen(
        argv, stdin=PIPE, stdout=DEVNULL, stderr=PIPE, env=dict(env), start_new_session=True
    ) as child:
        try:
            _, printed = child.communicate(data, timeout=timeout_seconds)
        except BaseException:
            with contextlib.suppress(OSError):  # children may hold its pipes
                if os.name == "posix":
                    os.killpg(child.pid, signal.SIGKILL)
                else:
                    child.kill()
            raise
    return Completed(child.returncode, printed[-KEPT_BYTES:].decode("utf-8", "replace"))


def start_detached(argv: Sequence[str], *, env: Mapping[str, str], descriptors: Sequence[int], log: int) -> int:
    """Start a program that outlives this one, with stdout and stderr to the descriptor `log`; return its pid.

    The caller must reap the pid if the program ends first.
    """
    process = subprocess.Popen(
        list(argv),
        env=dict(env),
        cwd="/",
        pass_fds=tuple(descriptors),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    process.returncode = 0  # not ours to wait for: the interpreter must not warn about it
    return process.pid


def start_session(argv: Sequence[str], *, log: int) -> subprocess.Popen[bytes]:
    """Start a program of the caller's environment in a session of its own, whose output goes to a file."""
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", close_fds=True
    )


def run_beside(argv: Sequence[str], *, env: Mapping[str, str], cwd: str) -> int:
    """Run a program of the caller's to its end, on the caller's own streams; return its status."""
    return subprocess.call(list(argv), env=dict(env), cwd=cwd)


def converse(argv: Sequence[str], *, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program of the caller's whose standard input and output are pipes; its errors go to the caller's.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(list(argv), env=dict(env), stdin=PIPE, stdout=PIPE, start_new_session=True)


def end_conversation(program: subprocess.Popen[bytes], seconds: float) -> None:
    """Close a program's input, wait for its end, and kill it after so many seconds."""
    for stream in (program.stdin, program.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        program.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def is_stopped(pid: int) -> bool:
    """Return whether a signal has stopped a process; False when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def run_here(argv: Sequence[str], *, timeout_seconds: float, environment: Mapping[str, str] | None = None) -> Completed:
    """Run a tool of the caller's own to its end; for clients, on every platform.

    Args:
        environment: by default the caller's.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it was ended, since it took too long.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"`{argv[0]}` took longer than {timeout_seconds:.0f} s") from error
    return Completed(done.returncode, done.stdout[-KEPT_BYTES:].decode("utf-8", "replace"))
