"""The client's side of a sync: scan, plan, send; the peer does the rest.

The local tree and the target are scanned at the same time, and each is compared with its index of the last sync.
When neither has changed since the same generation, the sync ends after one round trip. Otherwise the plan travels, then
the changed contents, in one stream; the peer switches when all of them have arrived. The local directory is only read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from array import array
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.errors import HostUnreachable, SyncError
from atoll.storage.content.compression import Compressor, wanted
from atoll.storage.content.digest import algorithms
from atoll.storage.crash_points import reached
from atoll.storage.files.ignore import IgnoreRules
from atoll.storage.files.scan import ROW, Scan, scan_source
from atoll.storage.files.tree import Tree, unpack
from atoll.storage.files.tree_wire import pack_entries, pack_paths
from atoll.storage.protocol.connection import error_of
from atoll.storage.protocol.progress import ProgressLine
from atoll.storage.sync import index
from atoll.storage.sync.index import Index
from atoll.storage.sync.plan import Plan, apply, plan
from atoll.storage.sync.sender import Sender, Sent, SourceSync
from atoll.storage.sync.source_files import SourceFiles
from atoll.storage.sync.unchanged import TargetReport, UnchangedFiles
from atoll.terminal_text import printable
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

_ATTEMPTS = 5
"""At least as many, and as many more as begin within `_MOVING_SECONDS`."""
_MOVING_SECONDS = 10.0
"""The time in which a source or target that goes on changing may come to rest."""
_PAUSE_SECONDS = 0.02
_PATIENCE_SECONDS = 1.0
"""After this time a wait for another sync of the target is shown."""


@dataclass(frozen=True)
class SyncOptions:
    """Options of a sync.

    Args:
        exclude: patterns as in `.atollignore`; they win over those files.
        ignore_files: whether `.atollignore` files count.
        delete: whether names that the source does not have are removed.
        atomic: whether to refuse where the volume's file system cannot exchange directories in one step.
        dry_run: whether to only make the plan.
        index: where the client's index of this source and target is; None keeps none.
        allow_empty: whether a source with nothing in it may empty a target.
        compress: `auto` compresses contents where it pays, but not between processes of one machine; or `always`,
            `never`.
        leave_out: a path of the source that is never mirrored: Atoll's own state; empty for none.
    """

    exclude: tuple[str, ...] = ()
    ignore_files: bool = True
    delete: bool = True
    atomic: bool = True
    dry_run: bool = False
    index: Path | None = None
    leave_out: str = ""
    allow_empty: bool = False
    compress: str = "auto"


@dataclass(frozen=True)
class Synced:
    """Result of a sync, or of a dry run.

    Args:
        plan: the operations.
        skipped: local paths that were excluded, the topmost of each.
        sent: files whose content travelled.
        sent_bytes: bytes of their contents.
        refused: whether a dry run has found that the sync itself would be refused, since it empties the target.
        vanished: local paths that vanished while the sync ran, the topmost of each; they count as removed.
        unheld: whether a process of a sandbox ran during the switch.
        source: the local tree, with the files that have vanished since.
    """

    plan: Plan
    skipped: tuple[str, ...]
    sent: int = 0
    sent_bytes: int = 0
    refused: bool = False
    vanished: tuple[str, ...] = ()
    unheld: bool = False
    source: Scan = field(default_factory=Scan, repr=False, compare=False)


def sync_tree(
    channel: Channel, source: str, target: str, options: SyncOptions, progress: ProgressLine | None = None
) -> Synced:
    """Make `target`, relative to the volume's root, a mirror of the local directory `source`.

    Raises:
        SyncError: it cannot be done; the target is as it was.
        DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it; the target is as it was.
        HostUnreachable: the peer went away; the target is as it was, or as it should be.
    """
    damaged: set[str] = set()
    began = time.monotonic()
    for attempt in itertools.count(1):
        try:
            line = progress or ProgressLine("uploading")
            return _Conversation(channel, source, target, options, line, damaged).run()
        except SyncError as error:
            if not error.details.get("retry"):
                raise
            if attempt >= _ATTEMPTS and time.monotonic() - began > _MOVING_SECONDS:
                raise
            if attempt >= _ATTEMPTS:
                time.sleep(_PAUSE_SECONDS)
            damaged.add(str(error.details.get("damaged", "")))
    raise AssertionError("unreachable")


class _Conversation:
    def __init__(
        self,
        channel: Channel,
        source: str,
        target: str,
        options: SyncOptions,
        progress: ProgressLine,
        damaged: Container[str],
    ) -> None:
        self._channel = channel
        self._source = source
        self._target = target
        self._options = options
        self._progress = progress
        self._damaged = damaged
        self._open = self._heard = False
        self._files = SourceFiles(source)
        self._began_ns = time.time_ns()

    def run(self) -> Synced:
        options = self._options
        rules = IgnoreRules(
            options.exclude, files=options.ignore_files, paths=[options.leave_out] if options.leave_out else []
        )
        known = index.load(options.index) if options.index is not None else Index()
        try:
            self._send({
                "type": "sync",
                "path": self._target,
                "generation": known.generation,
                "algorithms": algorithms(),
            })  # fmt: skip
            self._open = True
            scan = scan_source(self._source, rules)
            self._files.identity = scan.root
            reached("scanned")
            return self._converse(scan, rules, known)
        except Exception:
            self._abort()
            raise
        except BaseException:
            self._channel.close()  # interrupted, perhaps in the middle of a message: nothing can follow it
            raise
        finally:
            self._files.close()
            self._progress.close()

    def _converse(self, scan: Scan, rules: IgnoreRules, known: Index) -> Synced:
        options, terms = self._options, _terms(self._options)
        found = UnchangedFiles(scan, known, self._files.hash)
        same = known.terms == terms and known.same(scan)
        if not same:  # the peer scans the target meanwhile
            found.compare_with_index()
            _ = scan.tree
        sync = SourceSync(self._files, scan, known, self._receive_report(known), self._damaged)
        if same and sync.target.untouched:
            reached("compared")
            self._finish("end")
            return Synced(Plan(), tuple(scan.skipped), source=scan)
        found.compare_with_target(sync.target)

        def planned(scan: Scan) -> Plan:
            kept = rules.excludes if rules else None
            made = plan(
                scan.tree, sync.target.tree, delete=options.delete, kept=kept, suspect=found.suspect, alike=found.alike
            )
            if not options.dry_run and self._empties(made, scan):
                raise SyncError(
                    f"`{printable(self._source)}` has nothing to mirror, and `/data/{printable(self._target)}` would be"
                    " emptied",
                    hint="pass `allow_empty=True` (`--allow-empty`) if that is meant; else check the path and the names"
                    " that are excluded",
                )
            return made

        operations = planned(scan)
        reached("compared")
        if options.dry_run:
            self._finish("end")
            empties = self._empties(operations, scan)
            return Synced(operations, tuple(scan.skipped), len(operations.send), refused=empties, source=scan)
        sent = Sent()
        if operations:
            sent = self._transfer(sync, operations)
            reached("sent")
            if sent.gone:
                wanted, operations = operations, planned(scan.without({p for p in scan.paths if sent.is_gone(p)}))
                if not operations:
                    self._finish("abort")
                    return Synced(operations, tuple(scan.skipped), vanished=tuple(sorted(sent.gone)), source=scan)
                unput, dropped = wanted.put.keys() - operations.put.keys(), operations.drop - wanted.drop
                self._send({"type": "gone"}, [pack_paths(sorted(unput)), pack_paths(sorted(dropped))])
        self._send_last("commit" if operations else "end", remember=True)
        made = self._new_index(sync, operations, found, sent)  # the peer switches meanwhile
        done = self._expect("done")
        if operations:
            reached("committed")
        if options.index:
            index.save(options.index, made)
            reached("remembered")
        return Synced(
            operations,
            tuple(scan.skipped),
            len(operations.send),
            sent.bytes,
            vanished=tuple(sorted(sent.gone)),
            unheld=bool(done.header.get("unheld")),
            source=scan,
        )

    def _empties(self, operations: Plan, scan: Scan) -> bool:
        """Return whether a sync would empty the target, and that was not asked for."""
        return bool(operations.drop) and len(scan.paths) == 1 and not self._options.allow_empty

    def _receive_report(self, known: Index) -> TargetReport:
        while (message := self._receive()).type == "waiting":
            if not self._channel.wait(_PATIENCE_SECONDS):
                self._progress.say(
                    f"waiting for another sync, a snapshot or a restore of `/data/{printable(self._target)}`"
                )
        if message.type != "standing":
            raise SyncError(f"the storage peer answered `{message.type}` instead of `standing`")
        return TargetReport(message.header, message.buffers, known)

    def _new_index(self, sync: SourceSync, operations: Plan, found: UnchangedFiles, sent: Sent) -> Index:
        """Return the index of the mirrored state."""
        scan, target = sync.scan, sync.target
        for path, row in sent.rows.items():
            number = scan.positions[path] * ROW
            scan.rows[number : number + ROW] = array("q", row)
        digests = found.digests()
        for path, digest in sent.digests.items():
            digests[scan.positions[path]] = digest
        if sent.gone:
            gone = {path for path in scan.paths if sent.is_gone(path)}
            digests = [digest for path, digest in zip(scan.paths, digests, strict=True) if path not in gone]
            scan = scan.without(gone)
        extras: Tree = {}
        if operations.keeps:
            after = apply(operations, target.tree)
            extras = {path: entry for path, entry in after.items() if path not in scan.positions}
        known = sync.index.blocks.items()
        blocks = {path: packed for path, packed in known if found.keeps(path) and path in scan.positions}
        about = Index(
            target.next, _terms(self._options), target.algorithm, extras=extras, blocks={**blocks, **sent.blocks}
        )
        return index.index_of(scan, about, now_ns=self._began_ns, digests=b"".join(digests), sure=sent.digests)

    def _transfer(self, sync: SourceSync, operations: Plan) -> Sent:
        header = {"type": "plan", "keeps": operations.keeps, "atomic": self._options.atomic}
        drop, copy = pack_paths(sorted(operations.drop)), pack_paths(sorted(operations.copy))
        self._send(header, [drop, copy, *pack_entries(operations.put)])
        reached("planned")
        ready = self._expect("ready")
        reached("ready")
        received = {
            number: (length, bytes.fromhex(digest))
            for buffer in ready.buffers
            for number, length, digest in unpack(buffer)
        }
        paths = operations.send
        self._progress.start(len(paths), operations.send_bytes)
        compress = wanted(self._options.compress, self._channel.local, sync.target.compressions)
        sender = Sender(
            sync,
            self._send_content,
            self._ask,
            self._progress.advance,
            received,
            Compressor() if compress else None,
        )
        return sender.run(paths, operations.put)

    # --- messages -----------------------------------------------------------------------------------------------

    def _send(self, header: dict[str, Any], buffers: list[Any] | None = None) -> None:
        try:
            self._channel.send(header, buffers or ())
        except ChannelClosed:
            while True:  # the peer is gone; an earlier message may explain why
                self._receive()

    def _send_content(self, header: dict[str, Any], buffers: list[Any]) -> None:
        """Send contents, unless the peer has reported meanwhile that it cannot take any more."""
        if self._channel.readable():
            self._receive()
        self._send(header, buffers)

    def _receive(self) -> Message:
        try:
            message = self._channel.receive()
        except ChannelClosed as error:
            self._open = False
            raise error.reason or _gone(unanswered=not self._heard) from error
        self._heard = True
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

    def _ask(self, header: dict[str, Any]) -> Any:
        self._send(header)
        return self._expect(str(header["type"])).buffers[0]

    def _send_last(self, word: str, *, remember: bool) -> None:
        self._send({"type": word, "remember": remember})
        self._open = False

    def _finish(self, word: str) -> None:
        self._send_last(word, remember=False)
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


def _terms(options: SyncOptions) -> str:
    """Return the options that change the result of a sync, as a part of its index."""
    return json.dumps([options.exclude, options.ignore_files, options.delete, options.leave_out])


def _gone(*, unanswered: bool) -> HostUnreachable:
    return HostUnreachable(
        "the storage peer ended before it answered", hint="try again; see `atoll logs`", unanswered=unanswered
    )
