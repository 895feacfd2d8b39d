"""The audit as it is read: who, when, which act, on what; append-only, since no route and no command changes it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, select

from atoll.server.database.tables import audit

MOST = 1000


def read(
    connection: Connection, *, before: int = 0, limit: int = 100, act: str = "", actor: str = ""
) -> list[dict[str, Any]]:
    """Return acts, the newest first.

    Args:
        before: a number: only older acts; 0 for the newest.
        act, actor: only those of this act, or of this user's name or id; empty for all.
    """
    query = select(audit).order_by(audit.c.id.desc()).limit(min(max(limit, 1), MOST))
    if before:
        query = query.where(audit.c.id < before)
    if act:
        query = query.where(audit.c.act == act)
    if actor:
        query = query.where((audit.c.actor == actor) | (audit.c.actor_name == actor))
    return [{**row._mapping, "details": json.loads(row.details)} for row in connection.execute(query)]
