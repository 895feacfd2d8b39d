"""The part of administration of a server: the audit's route, and quotas of users at the node."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request

from atoll import errors
from atoll.server.accounts import rows
from atoll.server.accounts.bodies import RemovedUser, UserFacts, user_facts
from atoll.server.accounts.routes import accounts_of, administrator_of
from atoll.server.admin import audit_log, nodes
from atoll.server.machines.blocking import Blocking
from atoll.server.process.background import in_background
from atoll.server.state import ServerState
from atoll.server.typed import typed
from atoll.work_threads import WorkThreads

THREADS = 8
"""Acts at the node at a time, one for each user whom they are about: the removal of a volume may take minutes."""
_log = logging.getLogger("atoll.server")


class Act(msgspec.Struct, frozen=True):
    """An administrative act."""

    id: int
    at: float
    actor: str
    actor_name: str
    act: str
    target: str
    details: dict[str, Any]


class Acts(msgspec.Struct, frozen=True):
    """Administrative acts, the newest first."""

    acts: list[Act]


async def read_audit(request: Request) -> Acts:
    """Return administrative acts; for operators. Parameters of the query: `before`, `limit`, `act`, `actor`."""
    await administrator_of(request)
    query = request.query_params
    try:
        before, limit = int(query.get("before", 0)), int(query.get("limit", 100))
        if not (0 <= before < 1 << 62 and 0 <= limit <= audit_log.MOST):
            raise ValueError
    except ValueError:
        raise errors.CallerError("`before` and `limit` are numbers", hint="`limit=100&before=1000`") from None
    found = await accounts_of(request).database.run(
        lambda connection: audit_log.read(
            connection, before=before, limit=limit, act=query.get("act", ""), actor=query.get("actor", "")
        ),
        writes=False,
    )
    return Acts([Act(**row) for row in found])


def install(state: ServerState) -> None:
    """Add the routes, and tell the node of the quotas when the server starts: it may have missed a change."""

    @contextlib.asynccontextmanager
    async def telling() -> AsyncIterator[None]:
        async with in_background(partial(_tell_all, state)):
            yield

    state.parts["at_node"] = AtNode(state)
    state.lifespan.append(telling)
    state.routes.append(typed("/v1/audit", "GET", read_audit, answer=Acts))


class AtNode:
    """Acts at the node that go with acts on users; see `accounts.routes.AtNode`."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.threads = WorkThreads("administration", THREADS)

    async def removed(self, user: UserFacts, *, keep: bool) -> RemovedUser:
        """End a removed user's calls, and put the volume aside or remove it."""
        kept = await self.threads.run(
            user.id, partial(nodes.remove_user, Blocking(self._state.asks), user.id, keep=keep)
        )
        facts = {name: getattr(user, name) for name in UserFacts.__struct_fields__}
        return RemovedUser(**facts, volume="kept" if kept else "" if keep else "removed")

    async def limited(self, user: UserFacts) -> None:
        """Set a user's quotas of bytes and files at the node."""
        await self.threads.run(user.id, partial(nodes.set_quota, Blocking(self._state.asks), user))


async def _tell_all(state: ServerState) -> None:
    """Tell the node of all quotas; a node that refuses one does not hold up the server."""
    for user in await state.parts["accounts"].database.run(rows.all_users, writes=False):
        if user.volume_bytes or user.volume_files:
            try:
                await state.parts["at_node"].limited(user_facts(user))
            except errors.AtollError as error:
                _log.warning("quota.not_set", extra={"user": user.id, "error": error.message})
