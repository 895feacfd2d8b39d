"""The rule of which spools are kept: as long as a call may be made from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from atoll.detached.database import changed

_TESTS = ("state IN ('waiting', 'running')", "state = 'finished' AND batch != '' AND outcome != 'ok'")
"""Rows that need their spool: to be made, or to be made again. One query each: an index serves the first."""
NEEDED = " UNION ".join(f"SELECT {name} FROM calls WHERE {test}" for name in ("spool", "template") for test in _TESTS)  # noqa: S608 - own words


def freed(connection: sqlite3.Connection, spools: Iterable[str]) -> set[str]:
    """Count those of some spools that no call can need any more as nothing; return the files that may go.

    Args:
        connection: in a transaction, in which calls have ended: whoever sees their outcome sees the room as well.
    """
    files = set[str]()
    for spool in spools:
        if any(
            connection.execute(f"SELECT 1 FROM calls WHERE spool = ? AND {test} LIMIT 1", (spool,)).fetchone()  # noqa: S608 - own words
            for test in _TESTS
        ):
            continue
        changed(connection, "spool_bytes = 0", "spool = ? AND spool_bytes > 0", (spool,))
        found = connection.execute("SELECT DISTINCT template FROM calls WHERE spool = ? AND template != ''", (spool,))
        files.update((spool, *(row[0] for row in found)))
    return files
