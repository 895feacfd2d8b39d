"""The storage peer's side of a sync: lock, scan, report the target's state, receive, switch.

The state is reported against the index of the last sync (`target_state`): a client that names its generation gets only
the changes since; any other gets the whole tree, with the known digests. Clients may be functions, which change the
target as they like. So the peer draws the generation of each sync, and remembers only the digests of contents that it
received or hashed itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from typing import Any

from atoll.errors import SyncError
from atoll.storage.content.compression import decompressed, methods
from atoll.storage.content.digest import algorithms, chosen
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import Scan, scan_target
from atoll.storage.files.tree import Tree, check_path, pack
from atoll.storage.files.tree_wire import pack_entries, pack_paths, unpack_entries, unpack_paths
from atoll.storage.protocol.replies import Conversation
from atoll.storage.sync import target_state
from atoll.storage.sync.build import Stamps, changed
from atoll.storage.sync.index import Index
from atoll.storage.sync.pause import Pause
from atoll.storage.sync.plan import Plan, apply
from atoll.storage.sync.scope import scope_of
from atoll.storage.sync.stage import Stage
from atoll.storage.sync.switch_record import recover
from atoll.storage.sync.target_state import Arrived, TargetState, TargetSync, index_after
from atoll.storage.volume.locate import OPEN_PLACE, VISIBLE, Place, locate
from atoll.storage.volume.locks import Waiting, holding_target, target_key
from atoll.storage.volume.root import VolumeRoot
from atoll.terminal_text import printable
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message


class SyncPeer:
    """Serve the syncs of one client.

    Args:
        volume: the volume's directories.
        channel: the client.
        silent_seconds: how long it may send nothing in the midst of a sync; None for as long as it likes.
        pause: holds the user's sandboxes during a switch.
    """

    def __init__(
        self, volume: VolumeRoot, channel: Channel, silent_seconds: float | None = None, pause: Pause | None = None
    ) -> None:
        self._pause = pause
        self._silent_seconds = silent_seconds
        self._volume = volume
        self._channel = channel

    def serve(self, header: dict[str, Any]) -> None:
        """Answer one `sync` request.

        Raises:
            ChannelClosed: the client has gone; the target is the old tree or the new one.
        """
        with Conversation(self._channel, "sync") as conversation, contextlib.ExitStack() as stack:
            place = self._lock(stack, check_path(header["path"]))
            self._channel.socket.settimeout(self._silent_seconds)
            stack.callback(self._channel.socket.settimeout, None)
            try:
                self._converse(place, header, conversation)
            except TimeoutError as error:
                raise SyncError("a sync within a function sent nothing for too long") from error
            except (FileNotFoundError, NotADirectoryError) as error:
                if isinstance(error, SyncError):
                    raise
                raise _moved(error) from error

    def _lock(self, stack: contextlib.ExitStack, path: str) -> Place:
        """Find the target, lock it for this sync, and finish or undo a switch that a crash has interrupted."""
        try:
            with locate(self._volume.data, path, follow=True) as place:
                real = place.path
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            raise _closed(str(error.filename), "enter") from error
        if not real:
            raise SyncError("the target is `/data` itself", hint="name a directory below it")
        if real.split("/")[0] == VISIBLE:
            raise SyncError(f"`/data/{VISIBLE}` is read-only", hint="sync to another directory")
        stack.enter_context(holding_target(self._volume.locks, real, wait=Waiting(self._channel)))
        self._volume.refresh()
        recover(self._volume, target_key(real))
        # Another sync may have replaced it, or a directory above it, until the locks were held.
        place = stack.enter_context(locate(self._volume.data, path, follow=True))
        if place.path != real:
            raise SyncError("the target moved before it could be locked", hint="sync again", retry=True)
        reached("locked")
        return place

    def _converse(self, place: Place, header: dict[str, Any], conversation: Conversation) -> None:
        with self._opened(place) as (directory, unlocked):
            target = self._scan(place, directory, header, unlocked)
            self._report(target, header)
            message = self._channel.receive()
            if message.type != "plan":
                conversation.finished()
                self._keep(target, remember=bool(message.header.get("remember")))
                return
            plan, atomic = _plan(message)
            reached("planned")
            scope = scope_of(plan, target.tree)
            if place.missing or scope.path == "":
                _check_writable(place)
            stage = Stage(target, plan, scope, atomic=atomic, pause=self._pause)
            if self._transfer(stage, target, conversation):
                unlocked[:] = [item for item in unlocked if not stage.covers(item[0])]

    @contextlib.contextmanager
    def _opened(self, place: Place) -> Iterator[tuple[int, list[tuple[str, int]]]]:
        """Open the target; -1 where it does not exist. Directories that its scan had to make readable (the list that is
        given too: paths and modes) get their modes back."""
        directory, unlocked = -1, list[tuple[str, int]]()
        if place.found is not None:
            if not place.is_directory:
                raise SyncError(
                    f"`/data/{printable(place.path)}` is a file, not a directory",
                    hint="remove it first, or sync to another path",
                )
            directory = os.open(place.name, OPEN_PLACE, dir_fd=place.parent)
        try:
            yield directory, unlocked
        finally:
            for path, mode in reversed(unlocked):
                with contextlib.suppress(OSError):
                    _chmod_below(directory, path, mode)
            if directory >= 0:
                os.close(directory)

    def _scan(
        self, place: Place, directory: int, header: dict[str, Any], unlocked: list[tuple[str, int]]
    ) -> TargetSync:
        """Scan the target, and compare it with its index."""

        def unlock(path: str, mode: int) -> None:
            _chmod_below(directory, path, mode | 0o700)
            unlocked.append((path, mode))

        began_ns, key = time.time_ns(), target_key(place.path)
        index = target_state.load(self._volume, key)
        remembered, theirs = bool(index), header.get("algorithms") or ()
        usable = index.algorithm in algorithms() and index.algorithm in theirs
        algorithm = index.algorithm if usable else chosen(theirs)
        scan = scan_target(directory, unlock) if directory >= 0 else Scan()
        reached("scanned")
        state = TargetState(directory, scan, index if index.algorithm == algorithm else Index(), began_ns)
        return TargetSync(
            self._volume, key, place, directory, state, remembered, algorithm, secrets.token_hex(16), began_ns
        )

    def _report(self, target: TargetSync, asked: dict[str, Any]) -> None:
        """Send the target's state: the changes since the client's generation, or everything."""
        state, scan = target.state, target.scan
        index = state.index
        header = {
            "type": "standing",
            "path": target.place.path,
            "algorithm": target.algorithm,
            "known": target.remembered,
            "next": target.generation,
            "compressions": methods(),
        }
        if index and index.generation == str(asked.get("generation", "")):
            header["since"] = index.generation
            if state.same:
                self._channel.send(header)
                return
            changes = {scan.paths[number]: scan.tree[scan.paths[number]] for number in state.changed}
            self._channel.send(header, [pack_paths(state.gone), *pack_entries(changes)])
            return
        digests = state.digests() if index else b""
        self._channel.send(header, [bytes(digests), *pack_entries(scan.tree)] if scan.paths else [b""])

    def _keep(self, target: TargetSync, *, remember: bool) -> None:
        """Save the index after a sync that had nothing to do, where it is worth it."""
        state, generation = target.state, target.generation
        if not remember:
            # A change time that has moved alone, as hard links move it, is remembered.
            moved = state.stale and not state.changed and not state.gone
            generation = state.index.generation if moved else ""
        if generation and target.directory >= 0:
            target.remember(generation)

    def _transfer(self, stage: Stage, target: TargetSync, conversation: Conversation) -> bool:
        """Receive contents and switch, unless the client gives up; return whether it was done.

        Received contents stay when the client gives up or goes, and are removed when the peer fails.
        """
        reception = stage.reception
        try:
            ready = list(pack(reception.resume()))
            reached("resumed")
            self._channel.send({"type": "ready"}, ready)
            message = self._receive(stage)
            conversation.finished()
            reached("received", last=message.type)
            if message.type != "commit":
                return False
            reception.settle()
            self._remember_new(stage, target, stage.commit())
            if self._pause is not None and not self._pause.whole:
                conversation.facts["unheld"] = True
            reception.read_back.begin()
            return True
        except ChannelClosed:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            if isinstance(error, SyncError):
                raise
            raise _moved(error) from error  # the next attempt uses the received contents
        except BaseException as error:
            if not (isinstance(error, SyncError) and error.details.get("retry")):
                with contextlib.suppress(OSError):
                    reception.drop()
            raise
        finally:
            reception.close()

    def _receive(self, stage: Stage) -> Message:
        """Receive contents; return the message that ends them."""
        reception = stage.reception
        while True:
            message = self._channel.receive()
            header, buffers = message.header, message.buffers
            if "zstd" in header:
                buffers[-1] = decompressed(buffers[-1], header["zstd"])
            match message.type:
                case "batch":
                    reception.batch(header["items"], buffers[0], buffers[1])
                case "piece":
                    reception.piece(header["number"], header["offset"], buffers[0])
                case "copy":
                    reception.copy(header["number"], header["offset"], header["from"], header["length"])
                case "whole":
                    reception.whole(header["number"], header["size"], header["mode"], header["mtime_ns"], *buffers)
                case "blocks":
                    self._channel.send({"type": "blocks"}, [reception.blocks(header["number"])])
                case "chunks":
                    chunks = reception.chunks(header["number"], header["start"], header["end"])
                    self._channel.send({"type": "chunks"}, [chunks])
                case "gone":
                    stage.leave_out(unpack_paths(buffers[0]), unpack_paths(buffers[1]))
                case _:
                    reception.flush()
                    return message

    def _remember_new(self, stage: Stage, target: TargetSync, stamps: Stamps) -> None:
        """Save the index of the tree that was just switched to."""
        reception, state, plan = stage.reception, target.state, stage.plan
        tree = {**apply(plan, target.tree), **reception.arrived}
        stays = [path for path in state.index.blocks if path in tree and (path not in plan.put or path in plan.copy)]
        blocks = {path: known for path in stays if (known := state.blocks(path))}
        blocks.update(reception.blocks_of)
        arrived = Arrived(tree, plan.put, {**reception.stamps, **stamps}, reception.digests, blocks, stage.complete_ns)
        target_state.save(self._volume, target.key, index_after(target, arrived))
        reached("remembered")


def _plan(message: Message) -> tuple[Plan, bool]:
    header, buffers = message.header, message.buffers
    put: Tree = {}
    for buffer in buffers[2:]:
        put.update(unpack_entries(buffer))
    drop, copy = (frozenset(unpack_paths(buffer)) for buffer in buffers[:2])
    return Plan(drop, put, copy, bool(header["keeps"])), bool(header["atomic"])


def _closed(path: str, action: str) -> SyncError:
    """Return the error for a directory, relative to the volume's root, whose owner may not do something there."""
    above = f"/data/{printable(path)}" if path else "/data"
    return SyncError(
        f"`{above}` is a directory that its owner may not {action}",
        hint=f"a function may have done that; `Volume().chmod({above!r}, 0o755)` mends it",
    )


def _check_writable(place: Place) -> None:
    """Refuse a place in a directory that its owner may not write.

    Raises:
        SyncError: its owner may not.
    """
    mode = stat.S_IMODE(os.fstat(place.parent).st_mode)
    if mode & 0o300 != 0o300 and not os.access(".", os.W_OK | os.X_OK, dir_fd=place.parent):
        raise _closed("/".join(place.path.split("/")[: -1 - len(place.missing)]), "write")


def _moved(error: OSError) -> SyncError:
    """Return the error that has the client start again, for a name that does not exist any more."""
    name = f"`{printable(os.fsdecode(error.filename))}`" if isinstance(error.filename, (str, bytes)) else "something"
    return changed(f"{name} was moved or removed")


def _chmod_below(directory: int, path: str, mode: int) -> None:
    with DirectoryCursor(directory) as cursor:
        os.chmod(f"/proc/self/fd/{cursor.open(path)}", mode)
