"""Output of a worker: descriptors 1 and 2, so that subprocesses and C code are captured as well."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

_kept: list[int] = []
"""Copies of descriptors 0 to 2, out of a function's reach, from which they are restored."""


def open_streams() -> None:
    """Make `sys.stdin`, `sys.stdout` and `sys.stderr` anew over descriptors 0 to 2, unbuffered."""
    encoding, _, handler = os.environ.get("PYTHONIOENCODING", "").partition(":")
    stdin = io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding or "utf-8", handler or "strict"
    )
    for name, stream in (
        ("stdin", stdin),
        ("stdout", _writer(1, encoding, handler or "strict")),
        ("stderr", _writer(2, encoding, "backslashreplace")),
    ):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class _Pipe(io.FileIO):
    """A pipe to the caller, without an error once that is gone: the call ends anyway, and may save its work before."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def _writer(descriptor: int, encoding: str, errors: str) -> io.TextIOWrapper:
    raw: Any = _Pipe(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding or "utf-8", errors, write_through=True)


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
    for descriptor in _kept:
        with contextlib.suppress(OSError):  # the function may have closed it
            os.close(descriptor)
    _kept[:] = descriptors
    point_again()


def point_again() -> None:
    """Restore descriptors 0 to 2 after a function has closed or redirected them.

    Done when a call ends: the next lease's descriptors must not arrive as one of these.
    """
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
