"""The storage peer's side of a sync: lock, scan, receive, switch."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from atoll.errors import SyncError
from atoll.storage.apply import Stage
from atoll.storage.conversation import Conversation
from atoll.storage.filesystem import OPEN_PLACE, Place, VolumeRoot, locate
from atoll.storage.locks import holding, still_connected, target_key
from atoll.storage.plan import Plan
from atoll.storage.recovery import recover
from atoll.storage.scan import scan_target
from atoll.storage.steps import reached
from atoll.storage.tree import Tree, check_path, pack, pack_tree, printable, unpack, unpack_tree
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message


class Mirror:
    """Serve the syncs of one client.

    Args:
        volume: the volume's directories.
        channel: the client.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel) -> None:
        self._volume = volume
        self._channel = channel

    def serve(self, header: dict[str, Any]) -> None:
        """Answer one `sync` request.

        Raises:
            ChannelClosed: the client has gone; the target is the old tree or the new one.
        """
        with Conversation(self._channel, "sync") as conversation, contextlib.ExitStack() as stack:
            self._converse(self._locked(stack, check_path(header["path"])), conversation)

    def _locked(self, stack: contextlib.ExitStack, path: str) -> Place:
        """Find the target, and lock it for this sync: alone, and shared with others for all that is above it."""
        with locate(self._volume.data, path, follow=True) as place:
            real = place.path
        if not real:
            raise SyncError("the target is `/data` itself", hint="name a directory below it")
        said = False

        def wait() -> bool:
            nonlocal said
            if not said:
                self._channel.send({"type": "waiting"})
                said = True
            if not still_connected(self._channel.fileno()):
                raise ChannelClosed("the client has gone")
            return True

        parts = real.split("/")
        for depth in range(len(parts) + 1):  # from the volume's root on, which is locked for snapshots and restores
            name, last = target_key("/".join(parts[:depth])), depth == len(parts)
            stack.enter_context(holding(self._volume.locks, name, exclusive=last, wait=wait))
        self._volume.refresh()
        recover(self._volume, target_key(real))
        # Another sync may have replaced it, or a directory above it, until the locks were held.
        place = stack.enter_context(locate(self._volume.data, path, follow=True))
        if place.path != real:
            raise SyncError("the target moved before it could be locked", hint="sync again", retry=True)
        reached("locked")
        return place

    def _converse(self, place: Place, conversation: Conversation) -> None:
        old, standing = -1, Tree()
        unlocked: list[tuple[str, int]] = []

        def unlock(path: str, mode: int) -> None:
            _chmod_below(old, path, mode | 0o700)
            unlocked.append((path, mode))

        try:
            if place.found is not None:
                if not place.is_directory:
                    raise SyncError(
                        f"`/data/{printable(place.path)}` is a file, not a directory",
                        hint="remove it first, or sync to another path",
                    )
                old = os.open(place.name, OPEN_PLACE, dir_fd=place.parent)
                standing = scan_target(old, unlock).tree
            reached("scanned")
            for buffer in pack_tree(standing):
                self._channel.send({"type": "tree"}, [buffer])
            self._channel.send({"type": "scanned", "path": place.path})
            message = self._channel.receive()
            if message.type == "plan":
                plan, atomic = _plan(message)
                key = target_key(place.path)
                stage = Stage(self._volume, key, place, old if old >= 0 else None, standing, plan, atomic)
                if self._build(stage, conversation):
                    unlocked = [item for item in unlocked if not stage.covers(item[0])]
            else:
                conversation.finished()
        finally:
            for path, mode in reversed(unlocked):
                with contextlib.suppress(OSError):
                    _chmod_below(old, path, mode)
            if old >= 0:
                os.close(old)

    def _build(self, stage: Stage, conversation: Conversation) -> bool:
        """Receive contents and switch, unless the client gives up; return whether it was done.

        What was received stays when the client gives up or goes, and is removed when we fail.
        """
        reception = stage.reception
        try:
            reached("planned")
            self._channel.send({"type": "ready"}, list(pack(reception.resume())))
            reached("resumed")
            while (message := self._channel.receive()).type in ("files", "chunk"):
                header = message.header
                if message.type == "files":
                    reception.files(header["items"], message.buffers)
                else:
                    reception.chunk(header["number"], header["offset"], message.buffers[0], header["last"])
            conversation.finished()
            reached("received", last=message.type)
            if message.type != "commit":
                return False
            stage.commit()
            return True
        except ChannelClosed:
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                reception.drop()
            raise
        finally:
            reception.close()


def _plan(message: Message) -> tuple[Plan, bool]:
    header, buffers = message.header, message.buffers
    drops = int(header["drop"])
    puts = drops + int(header["put"])
    put = {path: entry for buffer in buffers[drops:puts] for path, entry in unpack_tree(buffer).items()}
    drop = frozenset(check_path(path) for buffer in buffers[:drops] for path in unpack(buffer))
    copy = frozenset(check_path(path) for buffer in buffers[puts:] for path in unpack(buffer))
    return Plan(drop, put, copy, bool(header["keeps"])), bool(header["atomic"])


def _chmod_below(directory: int, path: str, mode: int) -> None:
    descriptor = os.open(path or ".", OPEN_PLACE, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)
