"""Pages of calls: an overview, lists, one call with its output, and its cancellation.

A user sees the own calls. Operators can ask for those of one user, or of everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.model import figures
from atoll.model.records import OUTCOMES
from atoll.server.accounts import rows
from atoll.server.pages.keys import accounts_of
from atoll.server.pages.visit import Visit, not_found, route

ROWS = 50
MOST_OFFSET = 100_000 - ROWS - 1
RECENT = 10
EVERYBODY = "*"
LOOKS, LOOK_SECONDS = 4, 0.15
DAY_SECONDS = 86400.0
SPANS = {"1h": 3600.0, "24h": DAY_SECONDS, "7d": 7 * DAY_SECONDS, "30d": 30 * DAY_SECONDS}


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/", overview),
        route("/calls", listed),
        route("/calls/{call}", shown),
        route("/calls/{call}/cancel", cancel, method="POST"),
    ]


async def overview(visit: Visit) -> Response:
    """Show the calls that run, the last that ended, and the day's figures."""
    running = await visit.ask("calls.running", {"all": False})
    recent = await visit.ask("calls.list", {"limit": RECENT})
    usage = await visit.ask("calls.usage", {"since": time.time() - DAY_SECONDS})
    return visit.page(
        "overview.html",
        running=running["calls"],
        calls=recent["calls"],
        names={},
        day=figures.total(usage["usage"]),
        now=time.time(),
    )


async def listed(visit: Visit) -> Response:
    """Show calls that are over, newest first, some at a time."""
    function, outcome, span = visit.query("function"), visit.query("outcome"), visit.query("since")
    offset = visit.number("offset", MOST_OFFSET)
    filters: dict[str, Any] = {"limit": ROWS + 1, "offset": offset}
    if function:
        filters["function"] = function.replace("\0", "")
    if outcome in OUTCOMES:
        filters["outcome"] = outcome
    if span in SPANS:
        filters["since"] = time.time() - SPANS[span]
    whose = await whose_calls(visit)
    found = (await visit.ask("calls.list", {**filters, **whose.filters}))["calls"]
    running = await running_calls(visit, whose) if not offset else []
    shown_filters = {"function": function, "outcome": outcome, "since": span, "user": whose.asked}
    kept = {name: value for name, value in shown_filters.items() if value}
    return visit.page(
        "calls.html",
        running=running,
        calls=found[:ROWS],
        filters=shown_filters,
        users=whose.users,
        names=whose.names,
        everybody=EVERYBODY,
        live=f"/live/calls?{urlencode({'user': whose.asked})}" if whose.asked else "/live/calls",
        outcomes=OUTCOMES,
        spans=tuple(SPANS),
        first=offset + 1,
        newer=_address(kept, max(offset - ROWS, 0)) if offset else "",
        older=_address(kept, offset + ROWS) if len(found) > ROWS and offset < MOST_OFFSET else "",
        now=time.time(),
    )


@dataclass(frozen=True)
class Whose:
    """The users whose calls a page has.

    Args:
        asked: an id, `EVERYBODY`, or empty for the visitor.
        users: names of all users by id, for operators.
        filters: arguments of `calls.list`.
        names: by id, of those whose calls are not the visitor's own.
    """

    asked: str = ""
    users: dict[str, str] = field(default_factory=dict)
    filters: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


async def whose_calls(visit: Visit) -> Whose:
    """Return the users whose calls the address asks for; of others than operators always their own.

    Raises:
        CallerError: there is no such user.
    """
    if not visit.user.may_administer:
        return Whose()
    found = await accounts_of(visit).database.run(rows.all_users, writes=False)
    names = {user.id: user.name for user in found}
    asked = visit.query("user")
    if not asked:
        return Whose(users=names)
    if asked == EVERYBODY:
        return Whose(asked, names, {"all": True}, names)
    user = next((one.id for one in found if asked in (one.name, one.id)), "")
    if not user:
        raise not_found("there is no such user")
    return Whose(user, names, {"user": user}, names)


async def running_calls(visit: Visit, whose: Whose) -> list[dict[str, Any]]:
    """Return the rows of these users' calls that are not over."""
    found = (await visit.ask("calls.running", {"all": bool(whose.asked)}))["calls"]
    return [row for row in found if row["user"] == whose.filters.get("user", row["user"])]


def _address(filters: dict[str, str], offset: int) -> str:
    query = urlencode({**filters, **({"offset": offset} if offset else {})})
    return f"/calls?{query}" if query else "/calls"


async def shown(visit: Visit) -> Response:
    """Show one call."""
    found = await _found(visit, visit.request.path_params["call"])
    running = (found.get("unfinished") or [None])[0]
    attempts = found.get("calls", [])
    call = running or attempts[-1]
    children: list[dict[str, Any]] = []
    if running is None:
        children = (await visit.ask("calls.show", {"call": call["call"]})).get("children", [])
    owner = ""
    if visit.user.may_administer and call["user"] != visit.user.user:
        users = await accounts_of(visit).database.run(rows.all_users, writes=False)
        owner = next((user.name for user in users if user.id == call["user"]), call["user"])
    return visit.page(
        "call.html",
        call=call,
        owner=owner,
        running=running is not None,
        attempts=attempts,
        children=children,
        seen=call["printed_bytes"],
        now=time.time(),
    )


async def _found(visit: Visit, call: str) -> dict[str, Any]:
    """Return the answer about a call, which is unknown for an instant between its wait, its run and its record."""
    for _ in range(LOOKS):
        with contextlib.suppress(errors.CallerError):
            return await read_call(visit, call)
        await asyncio.sleep(LOOK_SECONDS)
    return await read_call(visit, call)


async def read_call(visit: Visit, call: str, seen: int = 0) -> dict[str, Any]:
    """Return the answer about a call's output.

    Raises:
        CallerError: this user has no such call.
    """
    try:
        return await visit.ask("calls.output", {"call": call[:200], "seen": seen})
    except errors.ResourcesUnavailable as error:
        raise not_found(error.message, "see the list of calls; records are kept for some time") from error


async def cancel(visit: Visit) -> Response:
    """Cancel a call, and show it again."""
    call = visit.request.path_params["call"][:200]
    try:
        await visit.ask("calls.cancel", {"call": call})
    except errors.ResourcesUnavailable as error:
        if "is over" not in error.message:
            raise not_found(error.message) from error
        return visit.go(f"/calls/{quote(call, safe='')}", "over")
    return visit.go(f"/calls/{quote(call, safe='')}", "cancelled")
