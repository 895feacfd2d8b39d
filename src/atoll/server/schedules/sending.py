"""Activations as detached calls: sent to the node in their owners' names, and followed to their outcomes.

Theory of operation. The id of an activation is that of its spool and of its call, and the daemon keeps a spool once,
however often it is sent. So an activation whose row says `due` is sent again by the next server, and runs once.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.detached.ends import failure_of
from atoll.server.endpoints.spools import keep, sealed
from atoll.server.principal import Principal
from atoll.server.schedules.rows import Ended, Sent
from atoll.server.state import ServerState
from atoll.work_threads import WorkThreads

WAIT_SECONDS = 30.0

_threads = WorkThreads("schedules", 4)


def owner_of(one: Sent) -> Principal:
    """Return the user in whose name an activation runs."""
    return Principal(one.user, one.owner, workers=one.workers)


async def send(state: ServerState, one: Sent, file: Path, *, again: bool) -> None:
    """Have the call of an activation kept and made; again changes nothing.

    Args:
        file: the spool of its revision.
        again: it may have been sent before.

    Raises:
        FileNotFoundError, ValueError: the spool is gone, or damaged.
        AtollError: it is not kept.
    """
    descriptor = await _threads.run(one.user, partial(sealed, file, one.id))
    try:
        await keep(state, owner_of(one), one.id, descriptor, again=again)
    finally:
        os.close(descriptor)


async def outcome_of(state: ServerState, one: Sent, revision: int) -> tuple[int, Ended | None]:
    """Wait a while for a change of an activation's call; return its revision, and its end if it is over.

    Raises:
        AtollError: the node does not tell.
    """
    arguments = {"call": one.id, "revision": revision, "seconds": WAIT_SECONDS}
    try:
        answer = await state.asks.ask_counted(owner_of(one), "detached.wait", arguments)
    except errors.CallUnknown:
        return revision, Ended(one.id, 0.0, time.time(), "unknown", "the call was removed before its end was seen")
    row: dict[str, Any] = answer["call"]
    if row["state"] != "finished":
        return int(row["revision"]), None
    ended = Ended(one.id, row["started_at"], row["ended_at"], str(row["outcome"]), failure_of(row))
    return int(row["revision"]), ended
