"""The keeper's process: makes detached calls, several at a time, until none waits and it has been idle for a while.

Theory of operation. A lock makes it the only keeper of its state directory, also while two daemons hand over. With the
lock in hand it gives the calls that ran under an earlier keeper their end (`Store.recover`), then takes waiting ones in
their order. It is an ordinary client of its daemon: leases, limits and ends are those of any program. Over one channel
the daemon says `look` (new calls), `cancel`, and `leave`; the keeper says `changed`. The end of the channel ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll import errors, linux, settings
from atoll.detached.batches import unwanted
from atoll.detached.damage import refuse_damaged
from atoll.detached.rows import OWNER, Row
from atoll.detached.store import LOST, Store
from atoll.host.notifications import NOTIFY, Ended, tell
from atoll.keeper.attempt import PAUSE_SECONDS, Attempt
from atoll.keeper.own_host import OwnHost
from atoll.keeper.spools import Spools
from atoll.settings import NotificationsSettings, Settings
from atoll.terminal_text import printable
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.keeper")

LOCK = "keeper.lock"
IDLE_SECONDS = 10.0
"""Seconds without a call after which the keeper ends; a shorter `pool.daemon_idle_seconds` counts in its place."""
EXPIRE_SECONDS = 600.0
LEAVING_LOOK_SECONDS = 0.5
"""Between two looks for cancelled calls, while another daemon takes this one's place."""
AT_A_TIME = 256
"""Calls at a time: one that sleeps, or waits for memory, takes little more than a thread here."""
LEAST_AT_A_TIME = 16
SHARE = 4
"""The part of all calls at a time that one user of a server may have."""
HELD_BYTES = 256 << 20
"""Arguments in memory beyond which only `LEAST_AT_A_TIME` calls are made at a time."""
DESCRIPTORS = 8
"""Descriptors of one call: its lease and its files."""


class Keeper:
    """Makes the detached calls of one state directory.

    Args:
        daemon: the channel to the daemon.
    """

    def __init__(self, options: Settings, daemon: Channel) -> None:
        self._options = options
        self._daemon = daemon
        self._store = Store(options.detached_directory, options.detached)
        self._spools = Spools(self._store.files)
        self._hosts: dict[str, OwnHost] = {}
        self._changed = threading.Condition()
        self._attempts: dict[str, Attempt] = {}
        self._told = set[tuple[str, str]]()
        """Batches of whose end the owner was told."""
        self._looked = True
        self._leaving = False
        self._paused_until = 0.0
        self._most = options.detached.at_a_time or _most_at_a_time()
        self._full = ""
        self._idle_seconds = min(IDLE_SECONDS, options.pool.daemon_idle_seconds)

    def run(self) -> None:
        """Make calls until there is nothing to do."""
        refuse_damaged(self._store)
        for row in self._store.recover():
            self._over(row, unrecorded=True)
        self._store.expire()
        expired = busy_at = time.monotonic()
        while True:
            self._take()
            self._end_unwanted()
            now = time.monotonic()
            with self._changed:
                if self._attempts:
                    busy_at = now
                elif self._leaving:
                    return
            due = self._store.next_due(time.time())
            if due is None and now - busy_at >= self._idle_seconds and not self._store.pending():
                return
            if now - expired > EXPIRE_SECONDS:
                expired = now
                self._store.expire()
            seconds = self._idle_seconds if due is None else min(max(due - time.time(), 0.01), 60.0)
            if self._leaving:
                seconds = LEAVING_LOOK_SECONDS
            if self._paused_until > now:
                seconds = min(seconds, self._paused_until - now)
            with self._changed:
                if not self._looked:
                    self._changed.wait(seconds)
                self._looked = False

    def _end_unwanted(self) -> None:
        """While this keeper leaves, end those of its calls that somebody has cancelled through the next daemon."""
        with self._changed:
            if not self._leaving or not self._attempts:
                return
        cancelled = set(unwanted(self._store))
        with self._changed:
            stopped = [one for call, one in self._attempts.items() if call in cancelled and not one.ticket.cancelled]
        for attempt in stopped:
            threading.Thread(target=attempt.ticket.cancel, daemon=True).start()

    def _take(self) -> None:
        """Begin as many waiting calls as may be made at a time."""
        while time.monotonic() >= self._paused_until:
            with self._changed:
                if self._leaving:
                    return
                rows = [one.row for one in self._attempts.values()]
                of_user_bytes = Counter[str]()
                for one in self._attempts.values():
                    of_user_bytes[one.row.user] += one.held_bytes
                held = of_user_bytes.total()
            if len(rows) >= self._most:
                made = "calls are" if len(rows) > 1 else "call is"
                self._tell_full(f"{len(rows)} detached {made} made at a time (`detached.at_a_time`)")
                return
            counts = Counter((row.user, row.identity) for row in rows if row.max_concurrency)
            full = {
                (row.user, row.identity) for row in rows if 0 < row.max_concurrency <= counts[row.user, row.identity]
            }
            of_user = Counter(row.user for row in rows)
            busy = [user for user, count in of_user.items() if count >= self._most_of(user)]
            text = ""
            while (row := self._store.next(time.time(), [one.call for one in rows], list(full), busy)) is not None:
                size = self._spools.size(row)
                if not self._is_too_large(size + of_user_bytes[row.user], of_user[row.user], row.user) and not (
                    len(rows) >= LEAST_AT_A_TIME and held + size > HELD_BYTES
                ):
                    break
                text = f"the arguments of {len(rows)} detached calls that are made have {held / 1e6:,.0f} MB"
                busy.append(row.user)  # calls of others may have less
            if row is None:
                self._tell_full(text)
                return
            attempt = Attempt(row, self._store, self._spools, self._host(row.user), self._options.detached, self._tell)
            attempt.held_bytes = size
            with self._changed:
                if self._leaving:  # since the row was taken
                    return
                self._attempts[row.call] = attempt
                self._told.discard((row.user, row.batch))
            self._tell(row, "taken", "")
            threading.Thread(target=self._make, args=(attempt,), name=f"call {row.call}", daemon=True).start()

    def _host(self, user: str) -> OwnHost:
        """Return the host that makes a user's calls in that user's name."""
        if user not in self._hosts:
            self._hosts[user] = OwnHost(self._options, self._daemon, user)
        return self._hosts[user]

    def _most_of(self, user: str) -> int:
        """Return how many calls of a user are made at a time: a user of a server leaves places for others."""
        return self._most if user == OWNER else max(self._most // SHARE, 1)

    @staticmethod
    def _is_too_large(size: int, count: int, user: str) -> bool:
        """Return whether a user of a server has all arguments in memory that one may have, beside `count` calls."""
        return user != OWNER and count >= LEAST_AT_A_TIME // SHARE and size > HELD_BYTES // SHARE

    def _make(self, attempt: Attempt) -> None:
        row, over = attempt.row, False
        try:
            over = attempt.run()
        except Exception:
            log.exception("keeper_attempt_failed call=%s", row.call)
            over = attempt.began and not self._store.lose(row, LOST)
        finally:
            with self._changed:
                del self._attempts[row.call]
                if not over and not attempt.began:
                    self._paused_until = time.monotonic() + PAUSE_SECONDS
                self._looked = True
                self._changed.notify_all()
        if over:
            self._over(row, unrecorded=attempt.outcome == "lost")
        else:
            self._tell(row, "waiting", "")

    def _over(self, row: Row, *, unrecorded: bool = False) -> None:
        """Take note that a call has its outcome, which is on the disk: waiters wake, and its maker may be notified.

        Args:
            unrecorded: its worker's daemon has ended, perhaps before the call had its record.
        """
        self._tell(row, "finished", "", unrecorded=unrecorded)
        if row.on_done == NOTIFY:
            threading.Thread(target=self._notify, args=(row,), name=f"notification {row.call}").start()

    def _notify(self, row: Row) -> None:
        """Tell the owner of a call's end, or of the end of the last call of its batch."""
        try:
            done = self._store.find(row.user, row.call)
            counts = self._store.counts(row.user, row.batch) if row.batch else {}
            if {"waiting", "running"} & set(counts) or not self._is_first_told(row):
                return
            outcome, message = done.outcome, str(done.failure.get("text") or done.failure.get("message") or "")
            if row.batch:
                failed = sum(count for name, count in counts.items() if name != "ok")
                outcome, message = ("error", f"{failed} of {sum(counts.values())} failed") if failed else ("ok", "")
            seconds = max(time.time() - done.queued_at, 0.0)
            ended = Ended(row.call, row.function, outcome, message, seconds, detached=True, batch=row.batch)
            problem = tell(self._notifications(), ended)
        except errors.AtollError as error:
            problem = error.message
        except Exception as error:
            problem = repr(error)
        if problem:
            log.warning("notification_failed call=%s error=%s", row.call, problem)

    def _notifications(self) -> NotificationsSettings:
        """Return the present options of notifications; while the file has a mistake, the last good ones."""
        wanted = settings.usable(self._options.home)
        if not wanted.mistake:
            self._options = replace(self._options, notifications=wanted.notifications)
        return self._options.notifications

    def _is_first_told(self, row: Row) -> bool:
        """Return whether nobody was told yet that a batch is over; its last calls may end together."""
        with self._changed:
            is_first = not row.batch or (row.user, row.batch) not in self._told
            self._told.add((row.user, row.batch))
        return is_first

    def _tell_full(self, reason: str) -> None:
        """Tell the daemon the reason that further calls are not made now; empty for none."""
        if reason != self._full:
            self._full = reason
            with contextlib.suppress(ChannelClosed, OSError):  # `listen` ends the process
                self._daemon.send({"type": "full", "reason": reason})

    def _tell(self, row: Row, state: str, line: str, *, unrecorded: bool = False) -> None:
        message: dict[str, Any] = {
            "type": "changed",
            "call": row.call,
            "batch": row.batch,
            "state": state,
            "line": line[:1000],
        }
        if unrecorded:
            message["unrecorded"] = True
        with contextlib.suppress(ChannelClosed, OSError):  # `listen` ends the process
            self._daemon.send(message)

    # --- the daemon's words -----------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Obey the daemon; its end is this process's end. The disk is whole at each moment."""
        try:
            while True:
                self._obey(self._daemon.receive().header)
        except (ChannelClosed, FrameError, OSError):
            os._exit(0)

    def _obey(self, message: dict[str, Any]) -> None:
        stopped: list[Attempt] = []
        with self._changed:
            match message.get("type"):
                case "look":
                    self._looked = True
                case "cancel":
                    revisions = message["calls"]
                    stopped = [one for one in self._attempts.values() if _is_meant(one.row, revisions)]
                case "leave":
                    self._leaving = self._looked = True
                    for attempt in self._attempts.values() if message.get("at_once") else ():
                        attempt.given_up.set()
                    stopped = [one for one in self._attempts.values() if one.withdraw()]
            self._changed.notify_all()
        for attempt in stopped:  # not here: it sends to the daemon, which may be about to send more
            threading.Thread(target=attempt.ticket.cancel, daemon=True).start()


def _most_at_a_time() -> int:
    """Return how many calls this process has descriptors for, after raising its limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the kernel's bound may be lower
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = AT_A_TIME if soft == resource.RLIM_INFINITY else soft // DESCRIPTORS - LEAST_AT_A_TIME
    return min(max(most, LEAST_AT_A_TIME), AT_A_TIME)


def _is_meant(row: Row, revisions: dict[str, int]) -> bool:
    """Return whether a cancellation is of this row: an item that was resumed since then is another call to its user.

    Args:
        revisions: of the cancelled calls.
    """
    revision = revisions.get(row.call)
    return revision is not None and (row.attempts > 0 or row.revision <= revision)


def _take_turn(lock: int, daemon: Channel) -> None:
    """Wait until no other keeper is left; the daemon is told of a wait, since only the other one can end its calls."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    daemon.send({"type": "blocked"})
    fcntl.flock(lock, fcntl.LOCK_EX)
    daemon.send({"type": "ready"})


class _LogFormat(logging.Formatter):
    """One line for each event."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def main() -> int:
    """Run the keeper. Arguments: the state directory, and the descriptor of the channel to the daemon.

    The daemon's settings, its first message, count: the file may have got a mistake meanwhile.
    """
    linux.die_with_parent()
    os.umask(0o077)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogFormat("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    daemon = Channel(socket.socket(fileno=int(sys.argv[2])))
    try:
        options = settings.from_data(Path(sys.argv[1]), daemon.receive().header["groups"])
        keeper = Keeper(options, daemon)
        threading.Thread(target=keeper.listen, name="daemon", daemon=True).start()
        with open(options.detached_directory / LOCK, "a") as lock:
            _take_turn(lock.fileno(), daemon)
            log.info("keeper_started pid=%s", os.getpid())
            keeper.run()
    except errors.AtollError as error:
        log.error("keeper_failed error=%s", error.message)
        return 1
    except ChannelClosed:
        return 0  # the daemon has ended at once
    log.info("keeper_left pid=%s", os.getpid())
    return 0
