"""The storage peer: serves one client's requests on one volume, as the volume's owner, in a sandbox of its own.

    python -m atoll.storage.peer.main [--quota=SHEET] FD CLIENT [ROOT [FREEZER [CLONER]]]

FD is an inherited socket that carries frames; CLIENT is the kind of client at its other end (`protocol.replies`); ROOT
is the volume (default `/volume`). FREEZER is a socket to the node, which holds the user's sandboxes during a switch
(`sync.pause`), and CLONER one to have it clone trees (`node.storage_peers`) if the volume is on JuiceFS. SHEET is an open file with the
volume's quota (`quota_guard`). The peer ends when the client closes the socket. Several peers may work on one volume: syncs
of the same target, or of one target inside another, take turns.

A request is answered by messages of its own and ends with `done`, or with `error`. A sync is a conversation:

    client: sync(path, generation)     peer: [waiting] standing (the changes since, or everything)
    client: plan | end                 peer: ready (the contents that an interrupted sync left)
    client: batch... piece... copy... whole... commit | abort        peer: done

After an error the remaining messages of a conversation are dropped, up to its `commit` or `abort`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

from atoll.errors import SyncError
from atoll.storage.peer.contents import Contents
from atoll.storage.peer.copies import Copies
from atoll.storage.peer.names import Names
from atoll.storage.peer.parts import Parts
from atoll.storage.peer.quota_guard import CountedChannel, QuotaGuard
from atoll.storage.peer.uploads import Uploads
from atoll.storage.protocol.replies import (
    FUNCTION,
    MOST_MESSAGE_BYTES,
    MOST_SILENT_SECONDS,
    REPORTED,
    Conversation,
    check,
    confine,
    fail,
    translated,
)
from atoll.storage.snapshots.peer import Snapshots
from atoll.storage.sync.cleanup import clean, collect
from atoll.storage.sync.pause import Pause
from atoll.storage.sync.peer import SyncPeer
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.removal import Pace
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError, Message

MAX_REST_SECONDS = 60.0

CHANGING = frozenset({"mkdir", "attributes", "rename", "open", "pwrite", "truncate"})
"""Requests that exclude restores as a whole; long ones (`write`, `close`, `copy`, `remove`) do so for a part."""


class Peer:
    """Serve requests on one volume until the client goes.

    Args:
        volume: the volume's directories.
        channel: the client.
        client: its kind (`protocol.replies`).
        freezer: holds the user's sandboxes; None for none.
        cloner: clones trees for the peer, on JuiceFS.
    """

    def __init__(
        self,
        volume: VolumeRoot,
        channel: Channel,
        client: str = FUNCTION,
        freezer: Channel | None = None,
        cloner: Channel | None = None,
    ) -> None:
        self._client = client
        self._volume = volume
        self._channel = channel
        self._syncs = SyncPeer(volume, channel, MOST_SILENT_SECONDS.get(client), Pause(freezer))
        self._lock = RestoreLock(volume, channel)
        self._contents = Contents(volume, channel, self._lock)
        self._snapshots = Snapshots(volume, channel, cloner)
        self._requests: dict[str, Callable[[dict[str, Any], list[bytearray]], None]] = {
            **Names(volume, channel, self._lock).requests(),
            **self._contents.requests(),
            **Uploads(volume, channel, self._lock).requests(),
            **Parts(volume, channel, self._lock).requests(),
            **Copies(volume, channel, self._lock).requests(),
            **self._snapshots.requests(),
            "collect": self._collect,
            "selftest": self._selftest,
            "sync": self._sync,
            "rest": self._rest,
        }
        self._rest_seconds: float | None = None
        self._guard = channel.guard if isinstance(channel, CountedChannel) else None

    def serve(self) -> None:
        """Answer requests until the channel ends."""
        with contextlib.suppress(ChannelClosed), contextlib.ExitStack() as stack:
            stack.callback(self._contents.end)
            stack.callback(self._snapshots.end)
            while self._comes():
                message = self._channel.receive()
                request = self._requests.get(message.type)
                try:
                    if request is None:
                        raise SyncError(f"unknown request `{message.type}`")
                    check(self._client, message.type)
                    with contextlib.ExitStack() as held:
                        if self._hold(held, message):
                            request(message.header, message.buffers)
                except ChannelClosed:
                    raise
                except REPORTED as error:
                    fail(self._channel, error, message.type)
                finally:
                    if self._guard is not None:
                        self._guard.over()

    def _rest(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """End unless the next request comes in so many seconds; there is no answer."""
        self._rest_seconds = min(max(float(header["seconds"]), 0.0), MAX_REST_SECONDS)

    def _comes(self) -> bool:
        """Wait for the next request, while one may come."""
        seconds, self._rest_seconds = self._rest_seconds, None
        if seconds is None or self._channel.pending:
            return True
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _hold(self, held: contextlib.ExitStack, message: Message) -> bool:
        """Open the volume's data anew after a restore, and exclude restores while a request changes the volume.

        Returns:
            False if that failed and the error has been answered.
        """
        request = message.type
        try:
            if self._guard is not None:
                self._guard.before(message)
            if request in CHANGING:
                held.enter_context(self._lock.shared())
            else:
                self._lock.refresh()
        except REPORTED:
            if request not in ("write", "upload"):
                raise
            with Conversation(self._channel, request):  # the client does not wait before it sends the content
                raise
            return False
        return True

    def _collect(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Remove replaced trees (before a moment, if one is given) and leftovers of dead peers; slowly on request."""
        before, pace = header.get("before_ns"), Pace() if header.get("slowly") else None
        if pace is not None:
            os.nice(10)
        self._snapshots.recover()
        removed = collect(self._volume, int(before) if before is not None else None, pace)
        self._channel.send({"type": "done", "removed": removed})

    def _selftest(self, _: dict[str, Any], __: list[bytearray]) -> None:
        from atoll.storage.selftest.examine import examine

        for finding in examine(self._volume):
            self._channel.send({"type": "finding", "finding": finding.to_data()})
        self._channel.send({"type": "done"})

    def _sync(self, header: dict[str, Any], _: list[bytearray]) -> None:
        with contextlib.suppress(OSError):  # the sync will meet the same error
            clean(self._volume)
        self._syncs.serve(header)


def main(arguments: list[str] | None = None) -> int:
    """Serve the channel on the inherited descriptor that the arguments (default: the process's) name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sheet = -1
    if arguments[0].startswith("--quota="):
        sheet = int(arguments[0].partition("=")[2])
        arguments = arguments[1:]
    descriptors = [int(arguments[0]), *map(int, arguments[3:5])]
    if sys.getfilesystemencoding().lower() != "utf-8":  # names must be bytes that survive, whatever the locale
        for descriptor in (*descriptors, *([sheet] if sheet >= 0 else [])):
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    os.umask(0)
    most = MOST_MESSAGE_BYTES[arguments[1]]
    confine(arguments[1])
    channel = CountedChannel(socket.socket(fileno=descriptors[0]), most)
    rest = [Channel(socket.socket(fileno=descriptor), most) for descriptor in descriptors[1:]]
    with contextlib.suppress(ChannelClosed):
        try:
            volume = VolumeRoot(arguments[2] if len(arguments) > 2 else "/volume")
        except OSError as error:
            channel.receive()
            channel.send({"type": "error", "error": translated(error, "cannot open").to_data()})
            return 1
        if sheet >= 0:
            channel.guard = QuotaGuard(arguments[2] if len(arguments) > 2 else "/volume", sheet)
        try:
            Peer(volume, channel, arguments[1], *rest).serve()
        except (MemoryError, FrameError) as error:
            text = "too much at once for the storage peer"
            hint = "do it outside of functions, or with fewer files or less content at a time"
            reason = SyncError(f"{text}: {error}" if isinstance(error, FrameError) else text, hint=hint)
            channel.send({"type": "error", "error": reason.to_data()})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
