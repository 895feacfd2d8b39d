"""The end of a worker's process, and of the children that a function forks: as Python ends a program.

Theory of operation. Python joins the threads that are no daemons, runs the `atexit` functions (`multiprocessing` ends
its children there), and flushes open files while it takes the modules apart. A worker ends far inside the agent's
frames, so it does these steps itself. Taking the modules apart costs some 10 ms, which most workers can do without: it is
left to Python only where an object has a finalizer of its own, or a compiled module of the environment may have one. Those
of NumPy, pandas and their like have none (`_MEMORY_ONLY`).

A worker has `GRACE_SECONDS` for all of it, and half of them for threads: one that never ends, such as a `@cached` value's,
costs the exit functions nothing. A signal ends it then, and the daemon kills one whose code holds the signal
up. A child of a function ends when it has finished, as it would below any other program.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from atoll.agent.process import exit_functions

GRACE_SECONDS = 2.0
"""Seconds for the end of a worker in good order."""

_FLUSHED = ("_io", "atoll.agent.output")
"""Modules of the kinds of files for which a flush is enough."""


def finish(status: int, seconds: float = 0.0, last: Callable[[], None] = lambda: None) -> NoReturn:
    """End this process in good order.

    Args:
        status: the exit status.
        seconds: after which the process ends as it is; 0 for never.
        last: called before the process is taken apart, in any case.
    """

    def end(*_: object) -> NoReturn:
        with contextlib.suppress(BaseException):
            last()
        os._exit(status)

    with contextlib.suppress(BaseException):
        if seconds:
            _arm(seconds, end)
        joined = not seconds or _join_threads(seconds / 2)
        _run_exit_functions(joined)
        has_finalizers = _flush_files()
        needs_finalizers = joined and (has_finalizers or _has_compiled_packages())
        last()
        if needs_finalizers:
            import ctypes

            ctypes.pythonapi.Py_Exit(status)
    end()


def end_child(error: BaseException | None) -> NoReturn:
    """End a child that a function has forked and that has come back from it, with its exception if it has one."""
    status = 0
    with contextlib.suppress(BaseException):
        exit_functions.forget_earlier()
        if isinstance(error, SystemExit):
            status = exit_status(error.code)
        elif error is not None:
            status = 1
            error.__traceback__ = frames = _below_atoll(error.__traceback__)
            sys.excepthook(type(error), error, frames)
    if isinstance(error, KeyboardInterrupt):
        finish(status, last=_die_of_interrupt)
    finish(status)


def _die_of_interrupt() -> None:
    """End this process by SIGINT, as Python does after a `KeyboardInterrupt`."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.kill(os.getpid(), signal.SIGINT)


def exit_status(code: object) -> int:
    """Return the exit status of `sys.exit(code)`; print a code that is a text, as Python does."""
    if code is None or isinstance(code, int):
        code = code or 0
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF  # what no C number holds counts as -1
    with contextlib.suppress(Exception):
        print(code, file=sys.stderr)
    return 1


def _below_atoll(frames: Any) -> Any:
    """Return the frames without those of Atoll that lead to the function."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(here):
        frames = frames.tb_next
    return frames


def _arm(seconds: float, end: Callable[..., None]) -> None:
    import signal

    signal.signal(signal.SIGALRM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _join_threads(seconds: float) -> bool:
    """Wait for the threads that are no daemons; return whether they have ended, but for those of pools that rest."""
    import threading
    import time

    from atoll.agent.process import left_running

    deadline = time.monotonic() + seconds
    own = threading.current_thread()
    working = [
        one for one in threading.enumerate() if one is not own and not one.daemon and not left_running.rests(one)
    ]
    for one in working:
        one.join(max(deadline - time.monotonic(), 0.0))
    return not any(one.is_alive() for one in working)


def _run_exit_functions(joined: bool) -> None:
    import atexit
    import threading

    if joined:  # else it would wait for ever
        threading._shutdown()  # type: ignore[attr-defined] # as `multiprocessing` ends its own children
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _flush_files() -> bool:
    """Flush the open files; return whether an object of another kind has a finalizer."""
    import _io
    import gc

    files: list[Any] = []
    buffers: list[Any] = []
    kinds: dict[type, list[Any] | None] = {}
    has_finalizers = False
    for one in gc.get_objects():  # without those that were there before the fork
        kind = type(one)
        if kind not in kinds:
            found = None
            if issubclass(kind, _io._IOBase):
                found = buffers if issubclass(kind, _io._BufferedIOBase) and kind.__module__ == "_io" else files
            elif hasattr(kind, "__del__"):
                has_finalizers = True
            kinds[kind] = found
        if (place := kinds[kind]) is not None:
            place.append(one)
    own = {id(sys.stdin), id(sys.stdout), id(sys.stderr), id(sys.__stdin__), id(sys.__stdout__), id(sys.__stderr__)}
    for one in (*files, *buffers):  # a text's bytes pass through the buffer below it
        with contextlib.suppress(Exception):
            if id(one) not in own and not one.closed:
                one.flush() if type(one).__module__ in _FLUSHED else one.close()  # a `GzipFile` has an end to write
    return has_finalizers


_MEMORY_ONLY = frozenset(
    {
        "PIL",
        "_cffi_backend",
        "contourpy",
        "frozenlist",
        "kiwisolver",
        "markupsafe",
        "matplotlib",
        "multidict",
        "numpy",
        "orjson",
        "pandas",
        "propcache",
        "pydantic_core",
        "regex",
        "scipy",
        "sklearn",
        "xxhash",
        "yaml",
        "yarl",
    }
)
"""Packages whose compiled modules hold memory alone. To take NumPy and pandas apart costs 30 ms of computing time."""

_before: tuple[str, bool] = "", False
"""The newest module that was imported before the fork, and whether compiled packages were among them all."""


def prepare() -> None:
    """Look, once and before any fork, at the modules that each worker begins with: a child would copy all their pages."""
    global _before
    _before = next(reversed(sys.modules)), any(map(_is_compiled, list(sys.modules.values())))


def _has_compiled_packages() -> bool:
    """Return whether compiled modules of the environment are loaded, which may have functions for the exit."""
    newest, found = _before
    new = []
    for name in reversed(sys.modules):
        if name == newest:
            break
        new.append(name)
    return found or any(_is_compiled(sys.modules.get(name)) for name in new)


def _is_compiled(module: object) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".so"):
        return False
    _, found, path = file.partition("site-packages/")
    return bool(found) and path.partition("/")[0].partition(".")[0] not in _MEMORY_ONLY
