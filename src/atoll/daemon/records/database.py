"""The records of calls in SQLite: the only module here that knows SQL.

One file below `ATOLL_HOME/records`, bounded by age and size. Two daemons of different versions may have it open at
the same time: write-ahead logging, and a writer waits for the other for a while. A column that a later version adds
gets a default; columns are never taken away.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from atoll.model.records import CallRecord

FILE = "calls.db"
DAMAGED = "calls.db.damaged"
WAIT_SECONDS = 2.0
_LARGEST = (1 << 63) - 1
_COLUMNS = tuple(field.name for field in fields(CallRecord))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    call TEXT NOT NULL, function TEXT NOT NULL, user TEXT NOT NULL, parent TEXT NOT NULL,
    queued_at REAL NOT NULL, started_at REAL NOT NULL, wall_seconds REAL NOT NULL, cpu_seconds REAL NOT NULL,
    peak_bytes INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    outcome TEXT NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL,
    environment TEXT NOT NULL, sandbox TEXT NOT NULL, worker TEXT NOT NULL, gpus INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS calls_by_call ON calls (call);
CREATE INDEX IF NOT EXISTS calls_by_time ON calls (queued_at);
CREATE TABLE IF NOT EXISTS outputs (
    id INTEGER PRIMARY KEY,
    call TEXT NOT NULL, user TEXT NOT NULL, worker TEXT NOT NULL, at REAL NOT NULL,
    printed_bytes INTEGER NOT NULL, tail BLOB NOT NULL,
    UNIQUE (call, user, worker)
);
CREATE INDEX IF NOT EXISTS outputs_by_time ON outputs (at);
CREATE TABLE IF NOT EXISTS generation (name TEXT NOT NULL);
INSERT INTO generation SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT 1 FROM generation);
"""

_ROW_BYTES = 256
"""Bytes of a row beside its texts, with its places in the indexes."""
_SIZES = f"""
SELECT user, sum(size) FROM (
    SELECT user, {_ROW_BYTES} + length(tail) AS size FROM outputs
    UNION ALL SELECT user, {_ROW_BYTES} + length(message) AS size FROM calls
) GROUP BY user
"""  # noqa: S608 - our own number

Output = tuple[str, str, str, int, bytes]
"""The output of a call: call, user, worker, bytes in all, and the last of them."""


class Database:
    """The records below a directory, which is made if it is not there; used by one thread.

    Raises:
        sqlite3.Error, OSError: from each method; see `set_aside` for a file that is damaged.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / FILE
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            for statement in (
                "PRAGMA auto_vacuum = INCREMENTAL",
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = NORMAL",
                "PRAGMA journal_size_limit = 4194304",
                "PRAGMA cache_size = -1000",
            ):
                self._connection.execute(statement).fetchall()
            self._connection.executescript(_SCHEMA)
            self._add_columns()
        except BaseException:
            self._connection.close()
            raise

    def _add_columns(self) -> None:
        """Give the file of an earlier version the columns that it lacks."""
        found = {row[1] for row in self._connection.execute("PRAGMA table_info(calls)")}
        for name in {"gpus"} - found:
            with contextlib.suppress(sqlite3.OperationalError):  # another daemon has just done so
                self._connection.execute(f"ALTER TABLE calls ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")

    def write(self, records: Iterable[CallRecord], outputs: Iterable[Output] = ()) -> None:
        """Add records and outputs of calls; a later output of the same call and worker replaces an earlier one."""
        now = time.time()
        marks = ", ".join("?" * len(_COLUMNS))
        with self._transaction():
            self._connection.executemany(
                f"INSERT INTO calls ({', '.join(_COLUMNS)}) VALUES ({marks})",  # noqa: S608 - names of our own fields
                ([_storable(getattr(record, name)) for name in _COLUMNS] for record in records),
            )
            self._connection.executemany(
                "INSERT INTO outputs (call, user, worker, printed_bytes, tail, at) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (call, user, worker) DO UPDATE SET printed_bytes = excluded.printed_bytes, "
                "tail = excluded.tail, at = excluded.at",
                ((*map(_storable, output), now) for output in outputs),
            )

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def prune(self, oldest: float, most_bytes: int) -> None:
        """Remove records older than `oldest` (seconds since the epoch), then the oldest until the rest fits.

        These are the oldest of the users with the most bytes, so nobody's records make room for another's many. The last
        record stays: numbers are never given again.
        """
        last = "SELECT max(id) FROM calls"
        with self._transaction():
            self._connection.execute(f"DELETE FROM calls WHERE queued_at < ? AND id < ({last})", (oldest,))  # noqa: S608
            self._connection.execute("DELETE FROM outputs WHERE at < ?", (oldest,))
        for _ in range(50):
            if self.used_bytes() <= most_bytes:
                break
            with self._transaction():
                self._remove_oldest()
        self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page

    def _remove_oldest(self) -> None:
        """Remove about a fifth of all bytes: what each user has beyond the level that leaves four fifths."""
        sizes = dict(self._connection.execute(_SIZES).fetchall())
        level = _level(list(sizes.values()), 0.8 * sum(sizes.values()))
        self._connection.execute("CREATE TEMP TABLE IF NOT EXISTS shares (user TEXT PRIMARY KEY, share REAL NOT NULL)")
        self._connection.execute("DELETE FROM shares")
        self._connection.executemany(
            "INSERT INTO shares VALUES (?, ?)", [(user, level / size) for user, size in sizes.items() if size > level]
        )
        for table in ("outputs", "calls"):
            self._connection.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT id FROM ("  # noqa: S608 - our own words
                "SELECT id, share, row_number() OVER (PARTITION BY user ORDER BY id DESC) AS place, "
                f"count(*) OVER (PARTITION BY user) AS rows FROM {table} JOIN shares USING (user)"
                f") WHERE place > rows * share) AND id < (SELECT max(id) FROM {table})"
            )

    def used_bytes(self) -> int:
        """Return how much of the file is in use."""
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def list(self, user: str | None, filters: Mapping[str, Any], limit: int, offset: int = 0) -> list[CallRecord]:
        """Return a user's records, newest first.

        Args:
            user: whose; None for those of all users.
            filters: any of `function`, `outcome`, `parent`, `call` (equal), `since` (seconds since the epoch), `start`
                (the beginning of an id).
            offset: how many of the newest are left out.
        """
        tests: list[str] = ["1"] if user is None else ["user = ?"]
        values: list[Any] = [] if user is None else [user]
        for name in ("function", "outcome", "parent", "call"):
            if name in filters:
                tests.append(f"{name} = ?")
                values.append(filters[name])
        if "since" in filters:
            tests.append("queued_at >= ?")
            values.append(filters["since"])
        if "start" in filters:
            tests.append("call >= ? AND call < ?")
            values += [filters["start"], filters["start"] + "\U0010ffff"]
        found = self._connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM calls WHERE {' AND '.join(tests)} "  # noqa: S608 - our own words
            "ORDER BY queued_at DESC, id DESC LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return [CallRecord(*row) for row in found]

    def usage(self, user: str, since: float, limit: int) -> Sequence[dict[str, Any]]:
        """Return sums over a user's calls since a moment, by function, day (local time), environment and outcome.

        The groups with the most time come first, at most `limit` of them.
        """
        cursor = self._connection.execute(
            "SELECT function, coalesce(date(queued_at, 'unixepoch', 'localtime'), '') AS day, environment, outcome, "
            "count(*) AS calls, sum(wall_seconds) AS wall_seconds, sum(cpu_seconds) AS cpu_seconds, "
            "sum(CASE WHEN started_at > queued_at THEN started_at - queued_at ELSE 0 END) AS queue_seconds, "
            "max(peak_bytes) AS peak_bytes, total(bytes_in) + total(bytes_out) AS moved_bytes, "
            "sum(wall_seconds * gpus) AS gpu_seconds "
            "FROM calls WHERE user = ? AND queued_at >= ? GROUP BY 1, 2, 3, 4 ORDER BY wall_seconds DESC LIMIT ?",
            (user, since, limit),
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def export(self, after: int, limit: int) -> tuple[str, Sequence[dict[str, Any]]]:
        """Return the name of this file of records, and the figures of all users' calls past a number, in order."""
        cursor = self._connection.execute(
            "SELECT id, user, function, queued_at, wall_seconds, cpu_seconds, peak_bytes, gpus, outcome FROM calls "
            "WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        names = [column[0] for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor]
        return str(self._connection.execute("SELECT name FROM generation").fetchone()[0]), found

    def forget(self, user: str) -> None:
        """Remove the outputs of a user's calls, and names and messages from the records, which keep their figures."""
        with self._transaction():
            self._connection.execute("DELETE FROM outputs WHERE user = ?", (user,))
            self._connection.execute("UPDATE calls SET message = '', error = '' WHERE user = ?", (user,))

    def output(self, user: str, call: str, worker: str) -> tuple[int, bytes]:
        """Return how many bytes a call printed on a worker, and the last of them."""
        row = self._connection.execute(
            "SELECT printed_bytes, tail FROM outputs WHERE user = ? AND call = ? AND worker = ?", (user, call, worker)
        ).fetchone()
        return (int(row[0]), bytes(row[1])) if row is not None else (0, b"")

    def close(self) -> None:
        self._connection.close()


def _level(sizes: Sequence[int], most: float) -> float:
    """Return the level to which the largest sizes are cut, so that all are `most` together."""
    left = most
    for place, size in enumerate(sorted(sizes)):
        level = left / (len(sizes) - place)
        if size > level:
            return level
        left -= size
    return math.inf


def set_aside(directory: Path) -> None:
    """Rename a damaged file, so that a new one can be made; an older one that was set aside goes."""
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(OSError):
            (directory / f"{FILE}{suffix}").unlink()
    with contextlib.suppress(FileNotFoundError):
        os.replace(directory / FILE, directory / DAMAGED)


def _storable(value: Any) -> Any:
    """Return a value that SQLite takes: workers and clients claim texts and numbers of any kind."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(min(value, _LARGEST), -_LARGEST)
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return value


_NOT_THE_FILE = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
)


def is_of_the_file(error: BaseException) -> bool:
    """Return whether an error comes from the file or its disk, and not from a value or a question."""
    return isinstance(error, (sqlite3.Error, OSError)) and not isinstance(error, _NOT_THE_FILE)


def is_damaged(error: BaseException) -> bool:
    """Return whether an error is a fault of the file itself, and not a busy file or a full disk."""
    if not is_of_the_file(error):
        return False
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"))
    return isinstance(error, sqlite3.DatabaseError)
