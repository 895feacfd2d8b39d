"""The client's side of a sync: scan, plan, send; the peer does the rest.

The local tree and the target are scanned at the same time. When they are equal, that was all. Otherwise the plan
travels, then the contents of what changed, in one stream without round trips; the peer switches when all is there.
The local directory is only ever read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.errors import AtollError, HostUnreachable, SyncError, from_data
from atoll.storage import index
from atoll.storage.ignore import IgnoreRules
from atoll.storage.plan import Plan, plan
from atoll.storage.progress import ProgressLine
from atoll.storage.scan import Scan, scan_source, to_native
from atoll.storage.steps import reached
from atoll.storage.transfer import FileReader, Stamp, Wanted, send_files, settled
from atoll.storage.tree import FILE, Tree, pack, pack_tree, printable, unpack, unpack_tree
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

_ATTEMPTS = 5
_UNKNOWN = Stamp(-1, -1, -1, -1)


@dataclass(frozen=True)
class SyncOptions:
    """What a sync is to do.

    Args:
        exclude: patterns as in `.atollignore`; they win over those files.
        ignore_files: whether `.atollignore` files count.
        delete: whether names go that the source does not have.
        atomic: whether to refuse where the volume's file system cannot exchange directories in one step.
        dry_run: only find out what would be done.
        index: where the client's index of this source and target is; None keeps none.
        leave_out: a path of the source that is never mirrored: where Atoll keeps its own state; empty for none.
    """

    exclude: tuple[str, ...] = ()
    ignore_files: bool = True
    delete: bool = True
    atomic: bool = True
    dry_run: bool = False
    index: Path | None = None
    leave_out: str = ""


@dataclass(frozen=True)
class Synced:
    """What a sync did, or would do.

    Args:
        plan: the operations.
        skipped: local paths that were excluded, the topmost of each.
        sent: files whose content travelled.
    """

    plan: Plan
    skipped: tuple[str, ...]
    sent: int = 0


def sync_tree(
    channel: Channel, source: str, target: str, options: SyncOptions, progress: ProgressLine | None = None
) -> Synced:
    """Make `target`, relative to the volume's root, a mirror of the local directory `source`.

    Raises:
        SyncError: it cannot be done; the target is as it was.
        DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it; the target is as it was.
        HostUnreachable: the peer went away; the target is as it was, or as it should be.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _Conversation(channel, source, target, options, progress or ProgressLine("uploading")).run()
        except SyncError as error:
            if not error.details.get("retry") or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


class _Conversation:
    def __init__(
        self, channel: Channel, source: str, target: str, options: SyncOptions, progress: ProgressLine
    ) -> None:
        self._channel = channel
        self._source = source
        self._target = target
        self._options = options
        self._progress = progress
        self._open = False

    def run(self) -> Synced:
        options = self._options
        rules = IgnoreRules(
            options.exclude, files=options.ignore_files, paths=[options.leave_out] if options.leave_out else []
        )
        try:
            self._send({"type": "sync", "path": self._target})
            self._open = True
            return self._converse(scan_source(self._source, rules), rules)
        except Exception:
            self._abort()
            raise
        except BaseException:
            self._channel.close()  # interrupted, perhaps in the middle of a message: nothing can follow it
            raise
        finally:
            self._progress.close()

    def _converse(self, scan: Scan, rules: IgnoreRules) -> Synced:
        reached("scanned")
        standing = self._receive_tree()
        reached("compared")
        known = index.load(self._options.index) if self._options.index else {}
        stamps = {path: _stamp(scan, path) for path in scan.stamps}
        suspect = {path for path, stamp in stamps.items() if path in known and known[path] != stamp}
        operations = plan(scan.tree, standing, delete=self._options.delete, kept=rules.excludes, suspect=suspect)
        if self._options.dry_run or not operations:
            self._finish("end")
            stamps = lasting(stamps, time.time_ns())
        else:
            stamps = lasting(stamps, time.time_ns())
            stamps.update(lasting(self._transfer(operations), time.time_ns()))
            reached("sent")
            self._finish("commit")
            reached("committed")
        if self._options.index and not self._options.dry_run and stamps != known:
            index.save(self._options.index, stamps)
        return Synced(operations, tuple(scan.skipped), len(operations.send))

    def _transfer(self, operations: Plan) -> dict[str, Stamp]:
        drop, put = list(pack(sorted(operations.drop))), list(pack_tree(operations.put))
        header = {
            "type": "plan",
            "drop": len(drop),
            "put": len(put),
            "keeps": operations.keeps,
            "atomic": self._options.atomic,
        }
        self._send(header, [*drop, *put, *pack(sorted(operations.copy))])
        reached("planned")
        ready = self._expect("ready")
        reached("ready")
        received = {number: (length, digest) for buffer in ready.buffers for number, length, digest in unpack(buffer)}
        reader = FileReader(self._open_file, self._local)
        paths = operations.send
        self._progress.start(len(paths), operations.send_bytes)

        def wanted() -> Iterable[Wanted]:
            for number, path in enumerate(paths):
                size = operations.put[path].size
                if number in received:
                    length, digest = received[number]
                    ours, stamp = reader.digest(path, length)
                    if ours == digest:
                        self._progress.advance(0, length)
                        yield Wanted(number, path, size, length, stamp)
                        continue
                yield Wanted(number, path, size)

        return send_files(wanted(), reader, self._send_content, self._progress.advance)

    def _local(self, path: str) -> str:
        return printable(os.path.join(self._source, to_native(path)))

    def _open_file(self, path: str, flags: int) -> int:
        return os.open(os.path.join(self._source, to_native(path)), flags)

    # --- messages -----------------------------------------------------------------------------------------------

    def _send(self, header: dict[str, Any], buffers: list[Any] | None = None) -> None:
        try:
            self._channel.send(header, buffers or ())
        except ChannelClosed:
            while True:  # the peer is gone; what it said before may explain why
                self._receive()

    def _send_content(self, header: dict[str, Any], buffers: list[Any]) -> None:
        """Send contents, unless the peer has said meanwhile that it cannot take any more."""
        if self._channel.readable():
            self._receive()
        self._send(header, buffers)

    def _receive(self) -> Message:
        try:
            message = self._channel.receive()
        except ChannelClosed as error:
            self._open = False
            raise _gone() from error
        if message.type == "error":
            if self._open:
                self._open = False
                with contextlib.suppress(ChannelClosed):
                    self._channel.send({"type": "abort"})
            raise error_of(message)
        return message

    def _expect(self, kind: str) -> Message:
        message = self._receive()
        if message.type != kind:
            raise SyncError(f"the storage peer answered `{message.type}` instead of `{kind}`")
        return message

    def _receive_tree(self) -> Tree:
        tree: Tree = {}
        while (message := self._receive()).type in ("tree", "waiting"):
            for buffer in message.buffers:
                tree.update(unpack_tree(buffer))
        return tree

    def _finish(self, word: str) -> None:
        self._send({"type": word})
        self._open = False
        self._expect("done")

    def _abort(self) -> None:
        """End the conversation, so that the channel can be used for another."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(ChannelClosed):
            self._channel.send({"type": "abort"})
            while self._channel.receive().type not in ("done", "error"):
                pass


def _stamp(scan: Scan, path: str) -> Stamp:
    entry = scan.tree[path]
    return Stamp(entry.size if entry.kind == FILE else 0, entry.mtime_ns, *scan.stamps[path])


def lasting(stamps: dict[str, Stamp], now_ns: int) -> dict[str, Stamp]:
    """Replace stamps that a change from now on could repeat by one that no file has."""
    return {path: stamp if settled(stamp.ctime_ns, now_ns) else _UNKNOWN for path, stamp in stamps.items()}


def _gone() -> HostUnreachable:
    return HostUnreachable("the storage peer ended before it answered", hint="try again; see `atoll logs`")


def error_of(message: Message) -> Exception:
    """Return the exception that an `error` message carries."""
    data = message.header.get("error")
    if isinstance(data, dict):
        error: AtollError = from_data(data)
        return error
    return OSError(int(message.header.get("errno", 0)), str(message.header.get("text", "")))
