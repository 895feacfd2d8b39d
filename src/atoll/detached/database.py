"""The SQLite file of detached calls: schema, transactions, errors in our own words."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.detached.files import Files
from atoll.detached.rows import Row

FILE = "calls.db"
WAIT_SECONDS = 30.0
_KINDS = {"str": "TEXT NOT NULL DEFAULT ''", "int": "INTEGER NOT NULL DEFAULT 0", "float": "REAL NOT NULL DEFAULT 0"}
COLUMNS = {field.name: f"{field.name} {_KINDS[str(field.type)]}" for field in fields(Row)}
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    {", ".join(COLUMNS.values())},
    UNIQUE (call)
);
"""
_INDEXES = """
CREATE INDEX IF NOT EXISTS calls_by_state ON calls (state, id);
CREATE INDEX IF NOT EXISTS calls_by_batch ON calls (batch, number);
CREATE INDEX IF NOT EXISTS calls_by_request ON calls (request) WHERE request != '';
CREATE INDEX IF NOT EXISTS calls_by_deployed ON calls (user, deployed, state) WHERE deployed != '';
CREATE INDEX IF NOT EXISTS calls_by_end ON calls (ended);
CREATE INDEX IF NOT EXISTS calls_by_spool ON calls (spool, state);
CREATE INDEX IF NOT EXISTS calls_by_bundle ON calls (bundle, bundle_bytes) WHERE bundle != '';
CREATE INDEX IF NOT EXISTS calls_by_template ON calls (template, template_bytes) WHERE template != '';
"""
SELECT = f"SELECT {', '.join(COLUMNS)} FROM calls"  # noqa: S608 - names of our own fields


class Database:
    """The rows below a directory; safe to use from several threads.

    A column that a later version adds gets a default; columns are never taken away.

    Raises:
        StateUnusable, DiskFull: from each method: the rows cannot be read or written; nothing was changed.
        StateUntrusted: another user can change the directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self.lock = threading.Lock()
        with self.translated():
            self.files = Files(directory)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.connection = sqlite3.connect(
                self._path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                for name, value in (
                    ("journal_mode", "WAL"),
                    ("synchronous", "FULL"),
                    ("journal_size_limit", 4 << 20),
                    ("cache_size", -1000),
                ):
                    self.connection.execute(f"PRAGMA {name} = {value}").fetchall()
                self.connection.executescript(_SCHEMA)
                there = {column[1] for column in self.connection.execute("PRAGMA table_info(calls)")}
                for name, column in COLUMNS.items():
                    if name not in there:  # the file is an earlier version's
                        self.connection.execute(f"ALTER TABLE calls ADD COLUMN {column}")
                self.connection.executescript(_INDEXES)
            except BaseException:
                self.connection.close()
                raise

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.DiskFull(
                    f"no space left for detached calls below `{self._path.parent}`", hint="free some space"
                ) from error
            if isinstance(error, errors.AtollError):
                raise
            raise errors.StateUnusable(
                f"detached calls cannot be kept below `{self._path.parent}`: {error}", hint="see `atoll doctor`"
            ) from error
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL"):
                raise errors.DiskFull(
                    f"no space left for detached calls below `{self._path.parent}`", hint="free some space"
                ) from error
            raise errors.StateUnusable(
                f"the detached calls in `{self._path}` cannot be read or written: {error}",
                hint="if the file is damaged, move it away: results and outputs are files beside it",
            ) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self.lock, self.translated():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def rows(self, rest: str, values: Sequence[Any] = ()) -> list[Row]:
        with self.lock, self.translated():
            return [Row(*row) for row in self.connection.execute(f"{SELECT} {rest}", values)]

    def change(self, changes: str, test: str, values: Sequence[Any]) -> int:
        """Change rows; return how many."""
        with self.transaction() as connection:
            return changed(connection, changes, test, values)


def changed(connection: sqlite3.Connection, changes: str, test: str, values: Sequence[Any]) -> int:
    """Change rows in a transaction; return how many."""
    statement = f"UPDATE calls SET {changes}, revision = revision + 1 WHERE {test}"  # noqa: S608 - own words
    return connection.execute(statement, values).rowcount
