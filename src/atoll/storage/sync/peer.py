"""The storage peer's side of a sync: lock, scan, say what stands, receive, switch.

What stands is said against the index of the last sync (`standing`): where the client names its generation, only what
has changed since travels; else the whole tree does, with the digests that are known. Clients may be functions, which
change the target as they like: so the generation of a sync is drawn here, anew for each, and nothing is remembered of
a content that was not received or hashed here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from typing import Any

from atoll.errors import SyncError
from atoll.storage.content.compression import decompressed, methods
from atoll.storage.content.digest import UNKNOWN, algorithms, chosen
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import Scan, scan_target
from atoll.storage.files.tree import Tree, check_path, pack, printable
from atoll.storage.files.tree_wire import pack_entries, pack_paths, unpack_entries, unpack_paths
from atoll.storage.protocol.replies import Conversation
from atoll.storage.sync import target_state as standing_index
from atoll.storage.sync.build import changed
from atoll.storage.sync.index import Index, index_of
from atoll.storage.sync.plan import Plan, apply
from atoll.storage.sync.scope import scope_of
from atoll.storage.sync.stage import Stage
from atoll.storage.sync.switch_record import recover
from atoll.storage.sync.target_state import Standing, index_after
from atoll.storage.volume.locate import OPEN_PLACE, Place, locate
from atoll.storage.volume.locks import Waiting, holding_target, target_key
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

SNAPSHOTS = ".snapshots"
"""The name in `/data` at which snapshots show: no sync goes there."""


class Mirror:
    """Serve the syncs of one client.

    Args:
        volume: the volume's directories.
        channel: the client.
        silent_seconds: how long it may say nothing in the midst of a sync; None for as long as it likes.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, silent_seconds: float | None = None) -> None:
        self._silent_seconds = silent_seconds
        self._volume = volume
        self._channel = channel

    def serve(self, header: dict[str, Any]) -> None:
        """Answer one `sync` request.

        Raises:
            ChannelClosed: the client has gone; the target is the old tree or the new one.
        """
        with Conversation(self._channel, "sync") as conversation, contextlib.ExitStack() as stack:
            place = self._locked(stack, check_path(header["path"]))
            self._channel.socket.settimeout(self._silent_seconds)
            stack.callback(self._channel.socket.settimeout, None)
            try:
                self._converse(place, header, conversation)
            except TimeoutError as error:
                raise SyncError("a sync within a function went on for too long without a word") from error
            except (FileNotFoundError, NotADirectoryError) as error:
                if isinstance(error, SyncError):
                    raise
                raise _moved(error) from error

    def _locked(self, stack: contextlib.ExitStack, path: str) -> Place:
        """Find the target, and lock it for this sync: alone, and shared with others for all that is above it."""
        try:
            with locate(self._volume.data, path, follow=True) as place:
                real = place.path
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            raise _closed(str(error.filename), "enter") from error
        if not real:
            raise SyncError("the target is `/data` itself", hint="name a directory below it")
        if real.split("/")[0] == SNAPSHOTS:
            raise SyncError(f"`/data/{SNAPSHOTS}` is read-only", hint="sync to another directory")
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
        old, scan, key = -1, Scan(), target_key(place.path)
        generation = secrets.token_hex(16)
        unlocked: list[tuple[str, int]] = []

        def unlock(path: str, mode: int) -> None:
            _chmod_below(old, path, mode | 0o700)
            unlocked.append((path, mode))

        try:
            began_ns = time.time_ns()
            index = standing_index.load(self._volume, key)
            known, theirs = bool(index), header.get("algorithms") or ()
            usable = index.algorithm in algorithms() and index.algorithm in theirs
            algorithm = index.algorithm if usable else chosen(theirs)
            if index.algorithm != algorithm:
                index = Index()
            if place.found is not None:
                if not place.is_directory:
                    raise SyncError(
                        f"`/data/{printable(place.path)}` is a file, not a directory",
                        hint="remove it first, or sync to another path",
                    )
                old = os.open(place.name, OPEN_PLACE, dir_fd=place.parent)
                scan = scan_target(old, unlock)
            reached("scanned")
            standing = Standing(old, scan, index, began_ns)
            said = {"path": place.path, "algorithm": algorithm, "known": known, "next": generation}
            self._say(standing, said, str(header.get("generation", "")))
            message = self._channel.receive()
            if message.type == "plan":
                plan, atomic = _plan(message)
                reached("planned")
                if place.missing or scope_of(plan, scan.tree).path == "":
                    _check_writable(place)
                stage = Stage(
                    self._volume,
                    key,
                    place,
                    old if old >= 0 else None,
                    scan.tree,
                    plan,
                    atomic,
                    standing.changed_at,
                    began_ns,
                )
                if self._build(stage, plan, standing, old, key, generation, algorithm, conversation):
                    unlocked = [item for item in unlocked if not stage.covers(item[0])]
            else:
                conversation.finished()
                if not message.header.get("remember"):
                    # What has moved change times only, as hard links do, is remembered with those that it has now.
                    moved = standing.stale and not standing.changed and not standing.gone
                    generation = standing.index.generation if moved else ""
                if generation and old >= 0:
                    self._remember(key, standing, generation, algorithm)
        finally:
            for path, mode in reversed(unlocked):
                with contextlib.suppress(OSError):
                    _chmod_below(old, path, mode)
            if old >= 0:
                os.close(old)

    def _say(self, standing: Standing, said: dict[str, Any], generation: str) -> None:
        """Tell the client what stands: what has changed since its generation, or everything."""
        index, scan = standing.index, standing.scan
        header = {"type": "standing", **said, "compressions": methods()}
        if index and index.generation == generation:
            header["since"] = generation
            if standing.same:
                self._channel.send(header)
                return
            tree, paths = scan.tree, scan.paths
            changed = {paths[number]: tree[paths[number]] for number in standing.changed}
            self._channel.send(header, [pack_paths(standing.gone), *pack_entries(changed)])
            return
        digests = b"".join([standing.digest(path) for path in scan.paths]) if index else b""
        self._channel.send(header, [digests, *pack_entries(scan.tree)] if scan.paths else [b""])

    def _remember(self, key: str, standing: Standing, generation: str, algorithm: str) -> None:
        """Keep what was found as the state after a sync that had nothing to do."""
        moment = standing.scanned_ns
        blocks = {path: packed for path, packed in standing.index.blocks.items() if standing.blocks(path)}
        standing_index.save(
            self._volume,
            key,
            index_of(
                standing.scan, generation, now_ns=moment, digest=standing.digest, algorithm=algorithm, blocks=blocks
            ),
        )

    def _build(
        self,
        stage: Stage,
        plan: Plan,
        standing: Standing,
        old: int,
        key: str,
        generation: str,
        algorithm: str,
        conversation: Conversation,
    ) -> bool:
        """Receive contents and switch, unless the client gives up; return whether it was done.

        What was received stays when the client gives up or goes, and is removed when we fail.
        """
        reception = stage.reception
        try:
            reception.prepare(algorithm, old, standing.scan)
            ready = list(pack(reception.resume()))
            reached("resumed")
            self._channel.send({"type": "ready"}, ready)
            message = self._receive(stage, standing)
            conversation.finished()
            reached("received", last=message.type)
            if message.type != "commit":
                return False
            reception.settle()
            stamps = stage.commit()
            self._remember_new(stage, plan, standing, key, generation, algorithm, stamps)
            reception.read_back.begin()
            return True
        except ChannelClosed:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            if isinstance(error, SyncError):
                raise
            raise _moved(error) from error  # what was received can be used by the next attempt
        except BaseException as error:
            if not (isinstance(error, SyncError) and error.details.get("retry")):
                with contextlib.suppress(OSError):
                    reception.drop()
            raise
        finally:
            reception.close()

    def _receive(self, stage: Stage, standing: Standing) -> Message:
        """Take contents in; return the message that ends them."""
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
                    blocks = reception.blocks(header["number"], standing.blocks)
                    self._channel.send({"type": "blocks"}, [blocks])
                case "chunks":
                    chunks = reception.chunks(header["number"], header["start"], header["end"])
                    self._channel.send({"type": "chunks"}, [chunks])
                case _:
                    reception.flush()
                    return message

    def _remember_new(
        self,
        stage: Stage,
        plan: Plan,
        standing: Standing,
        key: str,
        generation: str,
        algorithm: str,
        stamps: dict[str, tuple[int, int]],
    ) -> None:
        """Keep what has just been put in place."""
        reception, scan = stage.reception, standing.scan
        tree = {**apply(plan, scan.tree), **reception.arrived}
        blocks = {path: known for path in standing.index.blocks if path in tree and (known := standing.blocks(path))}
        blocks = {path: known for path, known in blocks.items() if path not in plan.put or path in plan.copy}
        blocks.update(reception.blocks_of)

        def digest(path: str) -> bytes:
            if path in reception.digests:
                return reception.digests[path]
            return standing.digest(path) if path not in plan.put or path in plan.copy else UNKNOWN

        def stamp(path: str) -> tuple[int, int]:
            found = stamps.get(path) or reception.stamps.get(path)
            if found is None and path not in plan.put:
                found = (standing.changed_at(path), scan.row(scan.positions[path])[4])
            return found or (-1, -1)

        moment = stage.complete_ns
        index = index_after(tree, stamp, digest, blocks, generation, algorithm, now_ns=moment)
        standing_index.save(self._volume, key, index)
        reached("remembered")


def _plan(message: Message) -> tuple[Plan, bool]:
    header, buffers = message.header, message.buffers
    put: Tree = {}
    for buffer in buffers[2:]:
        put.update(unpack_entries(buffer))
    drop, copy = (frozenset(unpack_paths(buffer)) for buffer in buffers[:2])
    return Plan(drop, put, copy, bool(header["keeps"])), bool(header["atomic"])


def _closed(path: str, what: str) -> SyncError:
    """Return what says that the owner of a directory, relative to the volume's root, may not do something there."""
    above = f"/data/{printable(path)}" if path else "/data"
    return SyncError(
        f"`{above}` is a directory that its owner may not {what}",
        hint=f"a function may have done that; `Volume().chmod({above!r}, 0o755)` mends it",
    )


def _check_writable(place: Place) -> None:
    """Refuse a place in a directory whose mode keeps its owner from making names there.

    Raises:
        SyncError: it does.
    """
    mode = stat.S_IMODE(os.fstat(place.parent).st_mode)
    if mode & 0o300 != 0o300 and not os.access(".", os.W_OK | os.X_OK, dir_fd=place.parent):
        raise _closed("/".join(place.path.split("/")[: -1 - len(place.missing)]), "write")


def _moved(error: OSError) -> SyncError:
    """Return what has the client start again, where something was not there any more."""
    name = f"`{printable(os.fsdecode(error.filename))}`" if isinstance(error.filename, (str, bytes)) else "something"
    return changed(f"{name} was moved or removed")


def _chmod_below(directory: int, path: str, mode: int) -> None:
    with DirectoryCursor(directory) as cursor:
        os.chmod(f"/proc/self/fd/{cursor.open(path)}", mode)
