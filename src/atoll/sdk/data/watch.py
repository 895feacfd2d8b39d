"""Keeping a mirror current: a sync, and another one after each change, until somebody stops it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.errors import AtollError
from atoll.sdk.data.sync import Arranged, arrange, check_source

if TYPE_CHECKING:
    from atoll.storage.sync.plan import Plan

_GONE_POLL_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Synced:
    """The mirror has the state that the directory had a moment ago.

    Args:
        first: whether it is the sync at the beginning.
        plan: the operations.
        sent: files whose content travelled.
        sent_bytes: how much of it did.
        seconds: how long it took.
        notes: lines about what the mirror has otherwise than the directory had.
    """

    first: bool
    plan: Plan
    sent: int
    sent_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """A sync failed; the mirror is as it was, and the next try comes with the next change or after a while."""

    error: Exception


@dataclass(frozen=True)
class Waiting:
    """The directory is gone (`back` is False), or is there again; the mirror stays as it was meanwhile."""

    back: bool


@dataclass(frozen=True)
class Notice:
    """Something about the watching itself, or the last sync.

    Args:
        text: the message.
        hint: the next step; may be empty.
    """

    text: str
    hint: str


Happening = Synced | Failed | Waiting | Notice


def watch_dir(path: str | os.PathLike[str], remote_dir: str | os.PathLike[str], **options: Any) -> Iterator[Happening]:
    """Sync, yield the result, and repeat after each change; ends only by being closed or interrupted.

    Args:
        path, remote_dir, options: as `sync_dir` takes them, without `dry_run`.

    Raises:
        as `sync_dir`, for the first sync; later ones yield `Failed`.
        SyncError: the directory cannot be watched.
    """
    arranged = arrange(path, remote_dir, **options)
    check_source(arranged.source)
    done = _sync(arranged, first=True)
    yield done
    yield from (Notice(text, "") for text in done.notes)
    yield from _WatchedSync(arranged).run()


def _sync(arranged: Arranged, *, first: bool) -> Synced:
    from atoll.storage.client.sync_summary import notes

    began = time.monotonic()
    done = arranged.run()
    return Synced(first, done.plan, done.sent, done.sent_bytes, time.monotonic() - began, tuple(notes(done)))


class _WatchedSync:
    def __init__(self, arranged: Arranged) -> None:
        self._arranged = arranged
        self._pending: list[Notice] = []
        self._stale = True
        self._failures = 0
        self._again_at = 0.0
        self._last_error = ""

    def run(self) -> Iterator[Happening]:
        from atoll.storage.sync.watch import Watcher, exists

        source, options = self._arranged.source, self._arranged.options
        watcher = Watcher(source, options.exclude, options.leave_out, self._notice)
        while True:
            self._stale = True  # there may be changes from before the watch
            for paths in watcher.changes():
                yield from self._notices()
                yield from self._sync_if_needed(changed=bool(paths))
            yield from self._notices()
            if not exists(source):
                yield Waiting(back=False)
                while not exists(source):
                    time.sleep(_GONE_POLL_SECONDS)
                yield Waiting(back=True)

    def _sync_if_needed(self, *, changed: bool) -> Iterator[Happening]:
        """Sync after changes, and again after a failure."""
        retry = self._failures > 0 and time.monotonic() >= self._again_at
        if not (changed or retry or (self._stale and not self._failures)):
            return
        try:
            done = _sync(self._arranged, first=False)
        except (AtollError, OSError, ValueError) as error:
            self._failures += 1
            self._again_at = time.monotonic() + min(2.0 ** (self._failures - 1), _LONGEST_PAUSE_SECONDS)
            if changed or str(error) != self._last_error:
                self._last_error = str(error)
                yield Failed(error)
            return
        recovered, self._failures, self._last_error = self._failures > 0, 0, ""
        self._stale = changed
        if done.plan or recovered:
            yield done
            yield from (Notice(text, "") for text in done.notes)

    def _notice(self, text: str, hint: str) -> None:
        self._pending.append(Notice(text, hint))

    def _notices(self) -> Iterator[Notice]:
        while self._pending:
            yield self._pending.pop(0)
