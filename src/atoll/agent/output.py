"""Output of a worker: descriptors 1 and 2, so that subprocesses and C code are captured as well."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from atoll.agent import terminal

_kept: list[int] = []
"""Copies of descriptors 0 to 2, out of a function's reach, from which they are restored."""


_streams: list[Callable[[], io.TextIOWrapper]] = []
"""Stdin, stdout and stderr of this process: each call of one makes the stream as it was at first, and returns it."""


def open_streams() -> None:
    """Make `sys.stdin`, `sys.stdout` and `sys.stderr` over descriptors 0 to 2, unbuffered."""
    encoding, _, handler = os.environ.get("PYTHONIOENCODING", "").partition(":")
    _streams[:] = (
        _reader(encoding or "utf-8", handler or "strict"),
        _writer(1, encoding or "utf-8", handler or "strict"),
        _writer(2, encoding or "utf-8", "backslashreplace"),
    )
    for name, make in zip(("stdin", "stdout", "stderr"), _streams, strict=True):
        stream = make()
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def renew_streams() -> None:
    """Undo settings, attributes, `close` and `detach` of the streams, which stay the same objects."""
    for name, make in zip(("stdin", "stdout", "stderr"), _streams, strict=True):
        setattr(sys, f"__{name}__", make())


class _Pipe(io.FileIO):
    """A pipe or terminal of the caller's, without an error once that is gone: the call ends, and may save its work."""

    def seekable(self) -> bool:
        return False  # descriptor 1 is no pipe yet when the first stream is made over this

    def write(self, data: Any, /) -> int:
        if _turns.other:
            _turns.take(self.fileno())
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE and not (error.errno == errno.EIO and self._is_terminal()):
                raise
            return memoryview(data).nbytes

    def _is_terminal(self) -> bool:
        return stat.S_ISCHR(os.fstat(self.fileno()).st_mode)


class _Turns:
    """Turns of stdout and stderr: what one has printed is read before the other prints.

    A caller that does not read for `TURN_SECONDS` is not waited for again in the same call.
    """

    def __init__(self) -> None:
        self.other = 0
        """The descriptor whose text must have been read before the next write to another; 0 for none."""

    def begin(self) -> None:
        self.other = 1

    def end(self) -> None:
        self.other = 0

    def take(self, descriptor: int) -> None:
        if descriptor == self.other:
            return
        deadline = time.monotonic() + TURN_SECONDS
        while _unread(self.other):
            if time.monotonic() > deadline:
                self.end()
                return
            time.sleep(TURN_STEP_SECONDS)
        self.other = descriptor


TURN_SECONDS = 0.05
TURN_STEP_SECONDS = 0.00005
_turns = _Turns()


def _unread(descriptor: int) -> bool:
    import fcntl
    import termios

    size = bytearray(4)
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, size)
    except OSError:  # no pipe any more
        return False
    return any(size)


def arrange(header: dict[str, Any]) -> None:
    """Keep the order between the streams of a call as its caller asks; see `model.specs.Call.streams`."""
    _turns.end()
    streams = header.get("streams")
    if streams == "one" or (streams == "terminal" and not terminal.enter(header.get("terminal") or {})):
        os.dup2(1, 2)
    elif streams == "turns":
        _turns.begin()


def _writer(descriptor: int, encoding: str, errors: str) -> Callable[[], io.TextIOWrapper]:
    stream = io.TextIOWrapper.__new__(io.TextIOWrapper)

    def make() -> io.TextIOWrapper:
        raw: Any = _Pipe(descriptor, "w", closefd=False)
        return _begin(stream, raw, encoding, errors, write_through=True)

    return make


def _reader(encoding: str, errors: str) -> Callable[[], io.TextIOWrapper]:
    stream = io.TextIOWrapper.__new__(io.TextIOWrapper)
    return lambda: _begin(stream, io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding, errors)


def _begin(stream: io.TextIOWrapper, file: Any, *arguments: Any, **options: Any) -> io.TextIOWrapper:
    """Make a stream as it is at first, over a file that no other stream has: theirs may be closed by them."""
    vars(stream).clear()
    io.TextIOWrapper.__init__(stream, file, *arguments, **options)
    return stream


def unbuffer_c() -> None:
    """Let C code in this process, and in those that it forks, print without the C library's buffer."""
    with contextlib.suppress(Exception):
        import ctypes

        libc = ctypes.CDLL(None)
        for name in ("stdout", "stderr"):
            libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, 2, 0)


def point(stdout: int, stderr: int) -> None:
    """Read nothing, and send output to these descriptors, which are this module's from here on."""
    _keep(os.open(os.devnull, os.O_RDWR), stdout, stderr)


def point_nowhere() -> None:
    """Send output to `/dev/null`, so that the pipes' reader sees their end."""
    _keep(*(os.open(os.devnull, os.O_RDWR) for _ in range(3)))


def _keep(*descriptors: int) -> None:
    terminal.close()
    for descriptor in _kept:
        with contextlib.suppress(OSError):  # the function may have closed it
            os.close(descriptor)
    _kept[:] = descriptors
    point_again()


def point_again() -> None:
    """Restore descriptors 0 to 2 after a function has closed or redirected them.

    Done when a call ends: the next lease's descriptors must not arrive as one of these.
    """
    if terminal.replaced:
        terminal.leave()
    for number, descriptor in enumerate(_kept):
        os.dup2(descriptor, number)


def flush() -> None:
    """Flush the standard streams, or the objects that the function put in their place."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # the first one may be broken, and the second not
        with contextlib.suppress(Exception):
            sys.stderr.flush()
