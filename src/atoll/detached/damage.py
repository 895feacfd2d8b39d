"""Damaged rows of detached calls: found when a keeper begins, and ended, so that nobody tries them again and again."""

from __future__ import annotations

import json
import time
from dataclasses import fields

from atoll import errors
from atoll.detached.database import Database, changed
from atoll.detached.rows import STATES, Row

_KINDS = {"str": ("text",), "int": ("integer",), "float": ("real", "integer")}


def refuse_damaged(store: Database) -> int:
    """End calls whose rows have an unknown state, or values of other types; return how many."""
    wrong = [_is_wrong(field.name, _KINDS[str(field.type)]) for field in fields(Row)]
    states = ", ".join(f"'{state}'" for state in STATES)
    test = f"state IS NOT 'finished' AND (state NOT IN ({states}) OR {' OR '.join(wrong)})"
    error = errors.StateUnusable("the row of the detached call is damaged", hint="make the call again")
    mended = ", ".join(
        f"{one.name} = CAST({one.name} AS {_CAST[str(one.type)]})" for one in fields(Row) if one.name in _MENDED
    )
    changes = f"state = 'finished', outcome = 'refused', error = ?, ended_at = ?, ended = ?, {mended}"
    with store.transaction() as connection:
        damaged = connection.execute(f"SELECT id FROM calls WHERE {test}").fetchall()  # noqa: S608 - own names
        for (number,) in damaged:
            (last,) = connection.execute("SELECT coalesce(max(ended), 0) FROM calls").fetchone()
            changed(connection, changes, "id = ?", (json.dumps(error.to_data()), time.time(), last + 1, number))
    return len(damaged)


def _is_wrong(name: str, kinds: tuple[str, ...]) -> str:
    return f"typeof({name}) NOT IN ({', '.join(repr(kind) for kind in kinds)})"


_CAST = {"str": "TEXT", "int": "INTEGER", "float": "REAL"}
_MENDED = {one.name for one in fields(Row)} - {"call", "state", "outcome", "error", "ended_at", "ended", "revision"}
