"""Runners of a revision with their outputs, of all machines.

A runner is a detached call whose batch is its revision, so its output is found as that of any call: the end of it, from
the memory of the worker while that runs, from the records afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from atoll import errors
from atoll.detached.ends import failure_of
from atoll.server.endpoints.rows import Revision
from atoll.server.outputs.bodies import Outputs, RunnerOutput
from atoll.server.principal import Principal
from atoll.server.state import ServerState

MOST_SHOWN = 50
"""Runners of one answer."""
MOST_LISTED = 1000
"""Runners that are looked at: those of a revision that are kept may be many more."""
AT_A_TIME = 8

Row = Mapping[str, Any]


async def calls_of(state: ServerState, principal: Principal, revision: str) -> list[dict[str, Any]]:
    """Return the rows of a revision's runners, the newest first."""
    answer = await state.asks.ask(principal, "detached.list", {"batch": revision, "limit": MOST_LISTED})
    return [row for row in answer["calls"] if row.get("batch") == revision]  # an older node lists all calls


def chosen(rows: Sequence[Row], seen: Mapping[str, int], *, everything: bool) -> list[Row]:
    """Return the runners to be shown, of rows with the newest first.

    Those that are not over, else the one that has ended last; and those of which the caller has seen something.

    Args:
        everything: those that are over, too.
    """
    live = [row for row in rows if row["state"] != "finished"]
    wanted = rows if everything else live or rows[:1]
    names = {row["call"] for row in wanted}
    return [row for row in rows if row["call"] in names or row["call"] in seen]


async def outputs_of(
    state: ServerState, principal: Principal, revision: Revision, seen: Mapping[str, int], *, everything: bool
) -> Outputs:
    """Return runners of a revision with their outputs; see `chosen`.

    Args:
        seen: the bytes of each runner that the caller has.

    Raises:
        HostUnreachable: no machine answers.
    """
    rows = chosen(await calls_of(state, principal, revision.id), seen, everything=everything)
    free = asyncio.Semaphore(AT_A_TIME)

    async def look(row: Row) -> RunnerOutput:
        async with free:
            return await _look(state, principal, row, seen.get(row["call"], 0))

    shown = await asyncio.gather(*(look(row) for row in reversed(rows[:MOST_SHOWN])))
    return Outputs(revision.id, revision.alias, revision.function, list(shown), max(len(rows) - MOST_SHOWN, 0))


async def _look(state: ServerState, principal: Principal, row: Row, seen: int) -> RunnerOutput:
    made = RunnerOutput(
        str(row["call"]),
        str(row["function"]),
        str(row["state"]),
        str(row["outcome"]),
        failure_of(row),
        str(row.get("detail", "")),
        float(row["queued_at"]),
        float(row["started_at"]),
        float(row["ended_at"]),
        printed_bytes=seen,
    )
    try:
        answer = await state.asks.ask(principal, "calls.output", {"call": made.call, "seen": seen})
    except errors.HostUnreachable as error:
        return replace(made, unread=error.message)
    except (errors.CallUnknown, errors.ResourcesUnavailable):  # it ends at this moment, or its record is gone
        return made
    found = [*answer.get("unfinished", ()), *answer.get("calls", ())][-1]
    printed, text = int(found["printed_bytes"]), str(found["output"])
    if answer["calls"]:  # of one that is over, all of the end
        data = text.encode("utf-8", "surrogatepass")
        text = data[len(data) - min(max(printed - seen, 0), len(data)) :].decode("utf-8", "replace")
    return replace(made, worker=str(found.get("worker") or ""), printed_bytes=printed, output=text)
