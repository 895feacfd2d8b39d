"""Sums of machine time in the database: adding the node's records to them, and reading them.

Theory of operation. Records have numbers that only grow in one file of records, which has a name of its own (its
generation). Sums and the number of the last record in them change in one transaction: a crash at any moment neither
counts a call twice nor leaves one out, as long as the node still has its record.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from atoll.server.database.tables import users
from atoll.server.usage.tables import usage, usage_cursors

MOST_FUNCTIONS = 2000
"""Functions of one user and day; further ones are summed as `OTHER`: names are a caller's choice."""
OTHER = "(other functions)"
MOST_ROWS = 20_000
FIGURES = ("calls", "failed", "wall_seconds", "cpu_seconds", "memory_byte_seconds", "gpu_seconds")


def counted(connection: Connection, generation: str) -> int:
    """Return the number of the last record that the sums have."""
    row = connection.execute(select(usage_cursors.c.counted).where(usage_cursors.c.generation == generation)).first()
    return 0 if row is None else int(row[0])


def add(connection: Connection, generation: str, after: int, records: Sequence[dict[str, Any]]) -> bool:
    """Add records to the sums; return False, and add nothing, where another process has gone on meanwhile.

    Args:
        after: the number after which the records begin.
        records: each with `id` and the figures of a call.
    """
    if counted(connection, generation) != after:
        return False
    sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0] * len(FIGURES))
    for record in records:
        wall = max(float(record["wall_seconds"]), 0.0)
        figures = (
            1,
            record["outcome"] != "ok",
            wall,
            max(float(record["cpu_seconds"]), 0.0),
            wall * max(int(record["peak_bytes"]), 0),
            wall * max(int(record["gpus"]), 0),
        )
        entry = sums[str(record["user"])[:64], _name(record["function"]), _day(record["queued_at"])]
        for position, figure in enumerate(figures):
            entry[position] += figure
    for (user, function, day), values in _bounded(connection, sums).items():
        _add_row(connection, user, function, day, values)
    last = max((int(record["id"]) for record in records), default=after)
    changed = usage_cursors.update().where(usage_cursors.c.generation == generation).values(counted=last)
    if not connection.execute(changed).rowcount:
        connection.execute(usage_cursors.insert().values(generation=generation, counted=last))
    return True


def _name(function: object) -> str:
    return str(function).replace("\0", "")[:256].encode("utf-8", "replace").decode() or "?"


def _day(moment: object) -> str:
    try:
        return dt.datetime.fromtimestamp(float(str(moment)), dt.UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01"


def _bounded(
    connection: Connection, sums: dict[tuple[str, str, str], list[float]]
) -> dict[tuple[str, str, str], list[float]]:
    """Return the sums with those of further functions under one name."""
    result: dict[tuple[str, str, str], list[float]] = {}
    known: dict[tuple[str, str], set[str]] = {}
    for (user, function, day), values in sums.items():
        names = known.get((user, day))
        if names is None:
            found = connection.execute(select(usage.c.function).where(usage.c.user == user, usage.c.day == day))
            names = known[user, day] = {row[0] for row in found}
        if function not in names and len(names) >= MOST_FUNCTIONS:
            function = OTHER
        names.add(function)
        entry = result.setdefault((user, function, day), [0] * len(values))
        for position, value in enumerate(values):
            entry[position] += value
    return result


def _add_row(connection: Connection, user: str, function: str, day: str, values: list[float]) -> None:
    where = (usage.c.user == user) & (usage.c.function == function) & (usage.c.day == day)
    raised = {name: usage.c[name] + value for name, value in zip(FIGURES, values, strict=True)}
    if not connection.execute(usage.update().where(where).values(raised)).rowcount:
        row = dict(zip(FIGURES, values, strict=True))
        connection.execute(usage.insert().values(user=user, function=function, day=day, **row))


def read(
    connection: Connection, *, user: str | None, since: str, until: str, by: Sequence[str]
) -> list[dict[str, Any]]:
    """Return sums, those with the most time first.

    Args:
        user: whose; None for everybody's.
        since, until: the first and last day; empty for no bound.
        by: some of `user`, `function`, `day`: a row for each of their combinations.
    """
    groups = [usage.c[name] for name in by]
    sums = [func.sum(usage.c[name]).label(name) for name in FIGURES]
    query = select(*groups, *sums)
    if user is not None:
        query = query.where(usage.c.user == user)
    if since:
        query = query.where(usage.c.day >= since)
    if until:
        query = query.where(usage.c.day <= until)
    if groups:
        query = query.group_by(*groups)
    query = query.order_by(func.sum(usage.c.wall_seconds).desc()).limit(MOST_ROWS)
    rows = [dict(row._mapping) for row in connection.execute(query)]
    names = {row.id: row.name for row in connection.execute(select(users.c.id, users.c.name))}
    return [
        {
            **{name: row.get(name, "") for name in ("user", "function", "day")},
            "name": names.get(row.get("user", ""), ""),
            **{name: row[name] or 0 for name in FIGURES},
        }
        for row in rows
    ]
