"""The audit: administrative acts, by whom and on what, in the transaction of the act itself."""

from __future__ import annotations

import json
import time
from typing import Any

from sqlalchemy import Connection

from atoll.server.database import tables
from atoll.server.principal import Principal

MACHINE = Principal("machine", "machine", operator=True)
"""Who has the rights of the state directory, and so needs no key."""
MOST_DETAILS = 8192


def audit(connection: Connection, actor: Principal, act: str, target: str, details: dict[str, Any]) -> None:
    """Note an act.

    Args:
        connection: of the transaction that does it: either both are kept, or neither.
        actor: who does it; `MACHINE` for the command line on the server's machine.
        act: a noun and a verb, such as `user.add`.
        target: the id of the user, key or thing.
        details: of JSON's types, without secrets.
    """
    text = json.dumps(details, ensure_ascii=True)
    connection.execute(
        tables.audit.insert().values(
            at=time.time(),
            actor=actor.user,
            actor_name=actor.name,
            act=act,
            target=target[:256],
            details=text if len(text) <= MOST_DETAILS else json.dumps({"left_out": len(text)}),
        )
    )
