"""The store of detached calls: questions and changes in SQL. Daemon and keeper have it open at once.

Theory of operation. A row is the truth about its call; files come before the row that needs them, and go after it.
Each change of state is one statement with the state before it as its condition, committed to the disk before anybody
acts on it: a call is sent to a worker only when its row says `running`. So a process may be killed between any two
steps: what is `running` when a keeper begins was lost with the one before, and everything else is still true.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from atoll import errors
from atoll.detached import batches
from atoll.detached.batches import CANCELLED_AND_LOST, MOST_AT_ONCE, RELEASED, used_by_all
from atoll.detached.bundles import Bundle, Bundles
from atoll.detached.database import COLUMNS, changed
from atoll.detached.needed_spools import NEEDED, freed, freed_templates
from atoll.detached.rows import Row
from atoll.settings import DetachedSettings

MOST_LISTED = 100_000
_ENDED = "ended = (SELECT coalesce(max(ended), 0) + 1 FROM calls)"
LOST = errors.CallLost(
    "the daemon ended while the call ran; how far it came is not known",
    hint="look at `/data` and at `atoll logs CALL`, then call again; with `retries` such calls are made again",
)


class Store(Bundles):
    """The detached calls below a directory; safe to use from several threads.

    Raises:
        StateUnusable, DiskFull: from each method: the rows cannot be read or written; nothing was changed.
        StateUntrusted: another user can change the directory.
    """

    def __init__(self, directory: Path, options: DetachedSettings) -> None:
        super().__init__(directory)
        self._options = options

    # --- accept -----------------------------------------------------------------------------------------------------

    def accept(
        self,
        rows: Sequence[Row],
        fill: Callable[[BinaryIO], None],
        size_bytes: int,
        bundle: Bundle | None = None,
        check_share: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep calls: afterwards they are on the disk, whatever happens. The same calls again change nothing.

        Args:
            rows: calls of one user in one spool.
            fill: writes the spool's file.
            size_bytes: of the spool.
            bundle: the modules that the rows name.
            check_share: raises where their user may have no more; calls that are kept already need no room.

        Raises:
            DetachedFull: there is no room for them.
            ValueError: a call of this id is another's.
        """
        first = rows[0]
        known = self.rows("WHERE call = ?", (first.call,))
        if known:
            if known[0].user != first.user or known[0].asked != first.asked:
                raise ValueError("a call has the id of another one")
            return
        check_share()
        self.check_room(size_bytes + self.missing_bytes(bundle))
        with self.translated():
            self.files.write("spools", first.spool, fill)
        try:
            marks = ", ".join("?" * len(COLUMNS))
            statement = f"INSERT INTO calls ({', '.join(COLUMNS)}) VALUES ({marks})"  # noqa: S608 - own names
            with self.with_bundle(bundle) as connection:
                test = "SELECT 1 FROM calls WHERE call = ?"
                if any(connection.execute(test, (row.call,)).fetchone() for row in rows):
                    raise ValueError("a call has the id of another one")
                connection.executemany(statement, ([getattr(row, name) for name in COLUMNS] for row in rows))
        except BaseException as error:
            self.files.remove("spools", first.spool)
            if isinstance(error, OverflowError):
                raise ValueError("the spool has a number that is too large") from error
            raise

    def write_result(self, call: str, fill: Callable[[BinaryIO], None]) -> int:
        """Write the answer of a call; return its size."""
        with self.translated():
            return self.files.write("results", call, fill)

    def used_bytes(self) -> int:
        """Return how much all calls take on the disk."""
        return used_by_all(self)

    def check_room(self, size_bytes: int) -> None:
        """Check that so much more may be kept.

        Raises:
            DetachedFull: it may not.
        """
        most = self._options.call_bytes
        if size_bytes > most:
            raise errors.DetachedFull(
                f"it has {size_bytes / 1e6:,.1f} MB, and one detached call may have {most / 1e6:,.1f}",
                hint="put large values below `/data` and pass the path, or raise `detached.call_bytes` in the settings",
            )
        used, most = self.used_bytes(), self._options.max_bytes
        if used + size_bytes > most:
            raise errors.DetachedFull(
                f"detached calls take {used / 1e6:,.1f} of at most {most / 1e6:,.1f} MB, and {size_bytes / 1e6:,.1f} "
                "are to be added",
                hint="take results with `atoll calls result` and remove the calls with `atoll calls forget`, or raise "
                "`detached.max_bytes` in the settings",
            )

    # --- the keeper's changes ---------------------------------------------------------------------------------------

    def next(self, now: float, taken: Sequence[str], full: Sequence[Any], busy: Sequence[str] = ()) -> Row | None:
        """Return the first call that may be made now.

        Args:
            taken: calls that are in the keeper's hands already.
            full: users with functions' identities, of which they may have no further call.
            busy: users who may have none.
        """
        marks = [", ".join("?" * len(names)) for names in (taken, busy)]
        test = f"state = 'waiting' AND due_at <= ? AND call NOT IN ({marks[0]}) AND user NOT IN ({marks[1]})"
        if full:
            test += f" AND (user, identity) NOT IN (VALUES {', '.join(['(?, ?)'] * len(full))})"
        values = (now, *taken, *busy, *(one for both in full for one in both))
        return next(iter(self.rows(f"WHERE {test} ORDER BY id LIMIT 1", values)), None)

    def next_due(self, now: float) -> float | None:
        """Return when the next call that waits for its retry may be made; None where none does."""
        found = self.rows("WHERE state = 'waiting' AND due_at > ? ORDER BY due_at LIMIT 1", (now,))
        return found[0].due_at if found else None

    def pending(self) -> int:
        """Return how many calls have no outcome."""
        with self.lock, self.translated():
            return int(self.connection.execute("SELECT count(*) FROM calls WHERE state != 'finished'").fetchone()[0])

    def left(self) -> dict[str, int]:
        """Return how many calls wait and run."""
        with self.lock, self.translated():
            found = self.connection.execute(
                "SELECT state, count(*) FROM calls WHERE state != 'finished' GROUP BY state"
            )
            return {str(state): int(count) for state, count in found}

    def begin(self, call: str, revision: int | None = None) -> bool:
        """Mark that a call is about to be sent to a worker; False where it waits no longer, or not as in this revision.

        A call of another revision was cancelled and resumed, perhaps with another function.
        """
        changes = "state = 'running', attempts = attempts + 1, started_at = ?"
        test = "call = ? AND state = 'waiting' AND revision = coalesce(?, revision)"
        return self.change(changes, test, (time.time(), call, revision)) == 1

    def again(self, call: str, due_at: float) -> bool:
        """Have a running call made again, at this time or later."""
        return self.change("state = 'waiting', due_at = ?", "call = ? AND state = 'running'", (due_at, call)) == 1

    def end(
        self,
        call: str,
        outcome: str,
        error: dict[str, Any] | None,
        result_bytes: int,
        output_bytes: int,
        *,
        waiting: int | None = None,
    ) -> bool:
        """Set the outcome of a call that runs; return whether this one is it.

        Args:
            waiting: of one that waits, in this revision; see `begin`.
        """
        text = json.dumps(error) if error else ""
        changes = (
            f"state = 'finished', outcome = ?, error = ?, result_bytes = ?, output_bytes = ?, ended_at = ?, {_ENDED}"
        )
        values = (outcome, text, result_bytes, output_bytes, time.time())
        test = "state = 'running'" if waiting is None else f"state = 'waiting' AND revision = {waiting:d}"
        return self._finish(call, test, changes, values, outcome)

    def _finish(self, call: str, test: str, changes: str, values: Sequence[Any], outcome: str) -> bool:
        """Set the outcome of a call that is in this state; return whether it was.

        Its spool counts no more from that instant on, unless somebody needs it; then its files go.
        """
        changes += f", {RELEASED}"
        with self.transaction() as connection:
            before = connection.execute("SELECT spool, bundle FROM calls WHERE call = ?", (call,)).fetchone()
            if before is None or changed(connection, changes, f"call = ? AND {test}", (*values, outcome, call)) != 1:
                return False
            unneeded = freed(connection, before[:1])
        self.files.remove("spools", *unneeded)
        self.release([before[1]])
        return True

    def recover(self) -> list[Row]:
        """Give each call that ran under an earlier keeper its end: made again where `retries` are left, else `lost`.

        Return the calls that were lost. For the keeper alone, which holds the lock.
        """
        return [row for row in self.rows("WHERE state = 'running'") if not self.lose(row, LOST)]

    def lose(self, row: Row, error: errors.AtollError) -> bool:
        """End a running call whose worker was lost with this error, or have it made again; return whether it is."""
        row = next(iter(self.rows("WHERE call = ?", (row.call,))), row)  # with its attempts up to now
        if row.unwanted:
            self.end(row.call, "cancelled", CANCELLED_AND_LOST.to_data(), 0, self.output_bytes(row.call))
            return False
        try:
            rule = row.rule
        except ValueError:
            rule = None
        if rule is not None and row.attempts <= rule.count:
            self.again(row.call, time.time() + rule.wait(row.attempts - 1))
            return True
        self.end(row.call, "lost", error.to_data(), 0, self.output_bytes(row.call))
        return False

    def output_bytes(self, call: str) -> int:
        """Return the size of a call's output on the disk."""
        try:
            return os.stat(self.files.path("outputs", call)).st_size
        except OSError:
            return 0

    # --- clients' questions and changes -----------------------------------------------------------------------------

    def find(self, user: str, start: str) -> Row:
        """Return a user's call by its id, or by a beginning that no other has.

        Raises:
            CallUnknown: there is none, or more than one.
        """
        found = self.rows("WHERE user = ? AND call = ?", (user, start))
        if not found and start:
            values = (user, start, start + "\U0010ffff")
            found = self.rows("WHERE user = ? AND call >= ? AND call < ? ORDER BY id DESC LIMIT 3", values)
        if not found:
            raise errors.CallUnknown(
                f"no detached call has the id `{start}`",
                hint=f"see `atoll calls list`: a detached call is kept for {self._options.keep_days:g} days after its end; "
                "of one that its program waits for `atoll logs -f` shows the output",
            )
        if len(found) > 1:
            shown = ", ".join(f"`{row.call}`" for row in found)
            raise errors.CallUnknown(f"more than one detached call has an id that begins with `{start}`", hint=shown)
        return found[0]

    def listed(
        self, user: str, *, batch: str = "", deployed: str = "", states: Sequence[str] = (), limit: int = MOST_LISTED
    ) -> list[Row]:
        """Return a user's calls, or those of a batch or a deployed function, newest first."""
        tests, values = ["user = ?"], [user]
        for column, value in (("batch", batch), ("deployed", deployed)):
            if value:
                tests.append(f"{column} = ? AND {column} != ''")
                values.append(value)
        if states:
            tests.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        return self.rows(f"WHERE {' AND '.join(tests)} ORDER BY id DESC LIMIT ?", (*values, limit))

    def items(self, user: str, batch: str, kind: str, after: int, limit: int) -> list[Row]:
        """Return a part of a batch.

        Args:
            kind: `all` or `failed` ones in the batch's order, or `ended` ones in the order of their ends.
            after: the number, or for `ended` the end's number, behind which the part begins.
        """
        order = "ended" if kind == "ended" else "number"
        tests = {"failed": "AND state = 'finished' AND outcome != 'ok'"}.get(kind, "")
        return self.rows(
            f"WHERE user = ? AND batch = ? AND {order} > ? {tests} ORDER BY {order} LIMIT ?",
            (user, batch, after, limit),
        )

    def counts(self, user: str, batch: str) -> dict[str, int]:
        """Return how many calls of a batch have each state and, for finished ones, each outcome."""
        with self.lock, self.translated():
            return {
                str(name): int(count)
                for name, count in self.connection.execute(
                    "SELECT CASE state WHEN 'finished' THEN outcome ELSE state END, count(*) FROM calls "
                    "WHERE user = ? AND batch = ? GROUP BY 1",
                    (user, batch),
                )
            }

    def cancel_waiting(self, call: str) -> bool:
        """End a call that has not been sent to a worker; return whether it had not."""
        return bool(self.cancel_all([call]))

    def cancel_all(self, calls: Sequence[str]) -> list[Row]:
        """End those of some calls that were not sent, and mark those that run, at once; return the rows of the former."""
        return batches.cancel_all(self, calls)

    def renew(
        self,
        user: str,
        batch: str,
        like: Row | None = None,
        fill: Callable[[BinaryIO], None] | None = None,
        bundle: Bundle | None = None,
        request: str = "",
    ) -> int:
        """Have the finished items of a batch that failed made again; return how many.

        The same request again, as of a client whose daemon ended before the answer, changes nothing.

        Args:
            like: a row of the function that takes the place of the old one; `fill` writes its spool.
            bundle: its modules.
            request: the id of the client's request; that of the new spool where there is one.

        Raises:
            DetachedFull: there is no room for the function.
        """
        request = like.asked if like is not None else request
        if request and (known := self._renewed(user, batch, request)):
            return known
        test = "user = ? AND batch = ? AND state = 'finished' AND outcome != 'ok'"
        changes = (
            "state = 'waiting', outcome = '', error = '', attempts = 0, due_at = 0, result_bytes = 0, ended = 0, "
            "started_at = 0, ended_at = 0, unwanted = 0, renewal = ?"
        )
        if like is None or fill is None:
            return self.change(changes, test, (request, user, batch))
        if not self.rows(f"WHERE {test} LIMIT 1", (user, batch)):
            return 0
        self.check_room(like.spool_bytes + self.missing_bytes(bundle))
        with self.translated():
            self.files.write("spools", like.spool, fill)
        names = ["function", "identity", "max_concurrency", "results", "stream", "retries", "on_done"]
        names += ["bundle", "bundle_bytes"]
        changes += ", template = ?, template_bytes = ?, " + ", ".join(f"{name} = ?" for name in names)
        values = (request, like.spool, like.spool_bytes, *(getattr(like, name) for name in names), user, batch)
        unneeded = {like.spool}
        try:
            before = self.rows(f"WHERE {test}", (user, batch))
            with self.with_bundle(bundle) as connection:
                count = changed(connection, changes, test, values)
                unneeded = freed_templates(connection, [like.spool, *(row.template for row in before)])
        finally:
            self.files.remove("spools", *unneeded)
        self.release({*(row.bundle for row in before), like.bundle})
        return count or self._renewed(user, batch, request)

    def _renewed(self, user: str, batch: str, request: str) -> int:
        """Return how many items a request has had made again."""
        return len(self.rows("WHERE user = ? AND batch = ? AND renewal = ?", (user, batch, request)))

    def forget(self, rows: Sequence[Row]) -> int:
        """Remove finished calls, all at once, and then their files; return how many."""
        test = "DELETE FROM calls WHERE call = ? AND state = 'finished'"
        with self.transaction() as connection:
            gone = [row for row in rows if connection.execute(test, (row.call,)).rowcount]
        for kind in ("results", "outputs"):
            self.files.remove(kind, *(row.call for row in gone))
        for spool in {row.spool for row in gone}:
            if not self.rows("WHERE spool = ? LIMIT 1", (spool,)):
                self.files.remove("spools", spool)
        for template in {row.template for row in gone if row.template}:
            if not self.rows("WHERE template = ? AND template != '' LIMIT 1", (template,)):
                self.files.remove("spools", template)
        self.release(row.bundle for row in rows)
        return len(gone)

    def expire(self) -> None:
        """Remove finished calls that are older than they are kept, and files without a row."""
        oldest = time.time() - self._options.keep_days * 86400
        test = "WHERE state = 'finished' AND ended_at < ? LIMIT ?"
        while self.forget(self.rows(test, (oldest, MOST_AT_ONCE))) == MOST_AT_ONCE:
            pass
        with self.lock, self.translated():
            calls = [row[0] for row in self.connection.execute("SELECT call FROM calls")]
            found = self.connection.execute(NEEDED)
            spools = [row[0] for row in found]
        self.files.remove_strays("spools", spools)
        self.remove_stray_bundles()
        for kind in ("results", "outputs"):
            self.files.remove_strays(kind, calls)
