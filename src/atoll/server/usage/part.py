"""The part of accounting of a server: gathers records in the background, and answers `/v1/usage`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

import msgspec
from starlette.requests import Request

from atoll import errors
from atoll.server.accounts.routes import insufficient
from atoll.server.cluster.contract import LOCAL
from atoll.server.database.database import Database
from atoll.server.machines.asks import Asks
from atoll.server.machines.blocking import Blocking
from atoll.server.process.background import in_background
from atoll.server.state import ServerState, principal_of, state_of
from atoll.server.typed import typed
from atoll.server.usage import gathering, sums
from atoll.work_threads import WorkThreads

_log = logging.getLogger("atoll.server")

GATHER_SECONDS = 30.0
_DAY = re.compile(r"\d{4}-\d\d-\d\d|")
_GROUPS = ("user", "function", "day")


class UsageRow(msgspec.Struct, frozen=True):
    """Sums of calls; `user` is an id and `name` empty for a user who is gone. Fields that are not grouped by are empty."""

    user: str
    name: str
    function: str
    day: str
    calls: int
    failed: int
    wall_seconds: float
    cpu_seconds: float
    memory_byte_seconds: float
    gpu_seconds: float


class UsageAnswer(msgspec.Struct, frozen=True):
    """Machine time, the largest first."""

    usage: list[UsageRow]


class Usage:
    """The accounting of a server.

    Args:
        database: has the sums.
        nodes: returns those that have records, by name.
    """

    def __init__(self, database: Database, nodes: Callable[[], Mapping[str, Asks]]) -> None:
        self._database = database
        self._nodes = nodes
        self._threads = WorkThreads("usage", 1)

    async def gather(self) -> None:
        """Add all that the nodes have recorded since the last time.

        Raises:
            AtollError: a node or the database does not answer; the others' records are added.
        """
        failed: errors.AtollError | None = None
        for node in self._nodes().values():
            try:
                await self._threads.run("", partial(gathering.gather, self._database, Blocking(node)))
            except errors.AtollError as error:
                failed = error
        if failed is not None:
            raise failed

    @contextlib.asynccontextmanager
    async def gathering(self) -> AsyncIterator[None]:
        """Gather in the background while the context is open."""
        async with in_background(self._run):
            yield

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(GATHER_SECONDS)
            try:
                await self.gather()
            except errors.AtollError as error:
                _log.warning("usage.not_gathered", extra={"error": error.message})


async def read(request: Request) -> UsageAnswer:
    """Return machine time: the caller's, or with `all=1` everybody's, for operators.

    Parameters of the query: `since`, `until` (days), `by` (some of user, function, day, by commas; all by default).
    """
    principal, query = await principal_of(request), request.query_params
    everybody = query.get("all", "") in ("1", "true")
    if everybody and not principal.may_administer:
        raise insufficient("the usage of others is for operators, with a key of the scope ADMIN")
    since, until = query.get("since", ""), query.get("until", "")
    by = tuple(part for part in query.get("by", ",".join(_GROUPS)).split(",") if part)
    if not (_DAY.fullmatch(since) and _DAY.fullmatch(until)) or not set(by) <= set(_GROUPS):
        raise errors.CallerError("the query is not as this route needs it", hint="`since=2026-11-01&by=function,day`")
    part: Usage = state_of(request).parts["usage"]
    with contextlib.suppress(errors.OperatorError):  # then the sums of a moment ago
        await part.gather()
    database: Database = state_of(request).parts["accounts"].database
    user = None if everybody else principal.user
    found = await database.run(
        lambda connection: sums.read(connection, user=user, since=since, until=until, by=by), writes=False
    )
    return UsageAnswer([UsageRow(**row) for row in found])


def install(state: ServerState) -> None:
    """Add the part: `state.parts["usage"]`, and the route."""

    def nodes() -> Mapping[str, Asks]:
        machines = state.parts.get("machines")
        return {LOCAL: state.node} if machines is None else machines.nodes()

    part = Usage(state.parts["accounts"].database, nodes)
    state.parts["usage"] = part
    state.lifespan.append(part.gathering)
    state.routes.append(typed("/v1/usage", "GET", read, answer=UsageAnswer))
