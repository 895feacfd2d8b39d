"""Locks between storage peers, below `staging/locks`: targets of syncs, and the lock between requests and restores.

A lock is a file that exists only while a peer holds or awaits it. A sync, a snapshot or a restore of a directory holds
that target's lock exclusively and the locks of all directories above it shared: so two of them exclude each other where
one's target is, or is above, the other's.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import select
import time
from collections.abc import Callable, Iterator

from atoll import linux
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import GONE, has_name
from atoll.wire.channel import Channel, ChannelClosed

_POLL_MS = 50
EXCHANGE = "restore"
"""The lock between requests and restores. On a shared file system its file stays, so that a volume without any room can be
emptied."""
_TRIES, _TRY_SECONDS = 200, 0.005


@contextlib.contextmanager
def holding(directory: int, name: str, *, exclusive: bool, wait: Callable[[], bool] | None) -> Iterator[bool]:
    """Hold the lock file `name`, which exists only while a peer does.

    Args:
        wait: is called again and again while another holds the lock, and returns whether to go on; None does not wait.

    Returns:
        whether the lock is held.
    """
    descriptor = -1
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    try:
        while True:
            if descriptor < 0:
                descriptor = _opened(directory, name)
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                if wait is None or not wait():
                    yield False
                    return
                continue
            if has_name(directory, name, descriptor):
                break
            os.close(descriptor)  # the last holder has removed the file: its name means another one now
            descriptor = -1
        try:
            yield True
        finally:
            if name != EXCHANGE or not _is_shared(directory):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=directory)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _opened(directory: int, name: str) -> int:
    """Open a lock's file, made if it is missing, also while another machine removes it.

    Raises:
        OSError: it cannot be opened.
    """
    for _ in range(_TRIES):
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in GONE:
                raise
            failed = error
            time.sleep(_TRY_SECONDS)
    raise failed


@functools.cache
def _shares(_device: int, directory: int) -> bool:
    return linux.is_network(linux.kind_of(directory))


def _is_shared(directory: int) -> bool:
    """Return whether other machines may have the file system; each removed file would stay in JuiceFS's trash."""
    return _shares(os.fstat(directory).st_dev, directory)


@contextlib.contextmanager
def holding_target(
    directory: int, path: str, *, key: str = "", wait: Callable[[], bool] | None = None
) -> Iterator[bool]:
    """Hold a target's lock exclusively, and those of the directories above it shared.

    Args:
        path: the target, with all symlinks resolved, relative to the volume's root.
        key: names the target's lock, where the path is not known; by default that of the path.
        wait: as for `holding`.

    Returns:
        whether all locks are held.
    """
    parts = path.split("/") if path else []
    with contextlib.ExitStack() as stack:
        # From the volume's root on: snapshots and restores of all data lock that one.
        held = all(
            stack.enter_context(holding(directory, target_key("/".join(parts[:depth])), exclusive=False, wait=wait))
            for depth in range(len(parts))
        )
        key = key or target_key(path)
        yield held and stack.enter_context(holding(directory, key, exclusive=True, wait=wait))


def target_key(path: str) -> str:
    """Return the key of a target in staging, by its path with all symlinks resolved."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Waiting:
    """The `wait` of a request: notifies the client once, and ends when the client is gone.

    Args:
        channel: the client.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told = False

    def __call__(self) -> bool:
        if not self._told:
            self._channel.send({"type": "waiting"})
            self._told = True
        return self.connected()

    def connected(self) -> bool:
        """Wait a moment for the client to go.

        Raises:
            ChannelClosed: the client is gone.
        """
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLRDHUP)
        if poll.poll(_POLL_MS):
            raise ChannelClosed("the client has gone")
        return True


class RestoreLock:
    """Readers-writer lock: requests hold it shared for an instant, a restore alone while it swaps `/data`.

    A request holds it while it changes names or contents, and never while it waits for its client or copies much.
    So a restore, during which no function may begin, gets it at once.

    Args:
        volume: the volume's directories.
        channel: the client.

    Attributes:
        on_restored: called after a restore of anything in the volume, before the next request is answered.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel) -> None:
        self._volume = volume
        self._wait = Waiting(channel).connected
        self.on_restored: list[Callable[[], None]] = []

    def refresh(self) -> None:
        """Open the volume's data anew, if a restore has replaced it."""
        if self._volume.refresh():
            for call in self.on_restored:
                call()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock for a brief change of the volume.

        Raises:
            ChannelClosed: the client went while it waited.
        """
        with holding(self._volume.locks, EXCHANGE, exclusive=False, wait=self._wait):
            self.refresh()
            yield

    @staticmethod
    @contextlib.contextmanager
    def alone(volume: VolumeRoot, path: str, wait: Callable[[], bool]) -> Iterator[bool]:
        """Hold a target's locks and this one exclusively; gives whether they are held."""
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(holding_target(volume.locks, path, wait=wait))
            yield held and stack.enter_context(holding(volume.locks, EXCHANGE, exclusive=True, wait=wait))
