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
        files.update((spool, *freed_templates(connection, [row[0] for row in found])))
    return files


def freed_templates(connection: sqlite3.Connection, templates: Iterable[str]) -> set[str]:
    """Count those of some templates that no call can need any more as nothing; return the files that may go."""
    files = set[str]()
    for template in {one for one in templates if one}:
        named = "template = ? AND template != ''"  # as the index says
        if any(
            connection.execute(f"SELECT 1 FROM calls WHERE {named} AND {test} LIMIT 1", (template,)).fetchone()  # noqa: S608 - own words
            for test in _TESTS
        ):
            continue
        changed(connection, "template_bytes = 0", f"{named} AND template_bytes > 0", (template,))
        files.add(template)
    return files
