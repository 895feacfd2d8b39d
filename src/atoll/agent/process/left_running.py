"""Threads and child processes that a call has left running.

They would work on, print and hold locks during the next call, which may be another program's. Python offers no way to
end a thread, so a worker with one serves no other call: at its end threads are joined and children ended. Those are
left alone that were there before a call, that an import, `setup_function` or a `@cached` function has started, that are
daemons, or that wait in a pool for more work (see `pool_helpers`).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from atoll.agent.process import pool_helpers

FINISH_SECONDS = 0.01
"""Seconds that a thread or child may take which ends just when its call does."""

_threads: set[int] = set()
_children: set[int] = set()


def keep() -> None:
    """Leave alone all that runs now."""
    keep_threads()
    _children.update(_running_children())


def keep_threads() -> None:
    """Leave the threads alone that run now."""
    if _thread._count():  # it does not count the main thread
        _threads.update(one.ident or 0 for one in threading.enumerate())


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Leave alone whatever starts while the context is open."""
    threads = {one.ident or 0 for one in threading.enumerate()}
    children = set(_running_children())
    try:
        yield
    finally:
        _threads.update({one.ident or 0 for one in threading.enumerate()} - threads)
        _children.update(set(_running_children()) - children)


def found() -> str:
    """Return the name of a thread, or a child's number, that a call has left; empty for none."""
    if _thread._count():
        for one in threading.enumerate():
            if not one.daemon and one is not threading.main_thread() and one.ident not in _threads and not rests(one):
                one.join(FINISH_SECONDS)
                if one.is_alive():
                    return f"thread {one.name}"
    for pid in _running_children():
        helpers = pool_helpers.running() | {pool_helpers.server()}
        if pid not in _children and pid not in helpers and not _ends(pid):
            return f"child {pid}"
    server = pool_helpers.server()
    if server is not None:
        pool_helpers.end_server(kept=any(_runs(pid) for pid in _children_of(server)))
    return ""


def end_pools() -> None:
    """End the pools that outlive a call, but for those of `setup_function` and `@cached` functions."""
    pool_helpers.end_pools(_children)


def rests(thread: threading.Thread) -> bool:
    """Return whether a thread of a pool waits for work."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "_worker" and "concurrent" in frame.f_code.co_filename


def _running_children() -> list[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the answer of almost every look
        return []
    found = _children_of("self")
    server = pool_helpers.server()
    if server in found:  # it starts children in place of this process
        found += _children_of(server)
    return [pid for pid in found if _runs(pid)]


def _children_of(process: int | str) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{process}/task/{task}/children") as file:
                found += [int(pid) for pid in file.read().split()]
    return found


def _ends(pid: int) -> bool:
    """Return whether a child ends just when its call does, as one that has only started another process."""
    deadline = time.monotonic() + FINISH_SECONDS
    while _runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(FINISH_SECONDS / 10)
    return True


def _runs(pid: int) -> bool:
    """Return whether a child has not ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b") ", 1)[1][:1] not in b"ZX"
    except (OSError, IndexError):
        return False
