"""Locks between storage peers: files below `staging/locks` that exist only while somebody holds them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
from collections.abc import Callable, Iterator

_POLL_MS = 50


@contextlib.contextmanager
def holding(directory: int, name: str, *, exclusive: bool, wait: Callable[[], bool] | None) -> Iterator[bool]:
    """Hold the lock file `name`, which exists only while somebody does.

    Args:
        wait: is asked again and again while another holds the lock, and says whether to go on; None does not wait.

    Returns:
        whether the lock is held.
    """
    descriptor = -1
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    try:
        while True:
            if descriptor < 0:
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                if wait is None or not wait():
                    yield False
                    return
                continue
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)  # the last holder has removed the file: its name means another one now
            descriptor = -1
        try:
            yield True
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextlib.contextmanager
def alone(directory: int, target: str, key: str) -> Iterator[bool]:
    """Lock a target as a sync does, with what is above it, unless somebody is at work there; give whether it is."""
    parts = target.split("/") if target else []
    with contextlib.ExitStack() as stack:
        held = True
        for depth in range(len(parts)):
            name = target_key("/".join(parts[:depth]))
            held = held and stack.enter_context(holding(directory, name, exclusive=False, wait=None))
        yield held and stack.enter_context(holding(directory, key, exclusive=True, wait=None))


def target_key(path: str) -> str:
    """Return what names a target in staging, by its path with all symlinks resolved."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def readable(descriptor: int) -> bool:
    """Whether the other end of a socket has said something, or has gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def still_connected(descriptor: int) -> bool:
    """Wait a moment for the other end of a socket to go away; return whether it is still there."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return not poll.poll(_POLL_MS)
