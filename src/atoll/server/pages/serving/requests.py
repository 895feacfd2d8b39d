"""Pages of queued requests to a user's endpoints: how many wait, the newest ones, one with its output, and their end."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.endpoints.figures import Depths
from atoll.server.pages import live
from atoll.server.pages.calls import MOST_OFFSET, ROWS
from atoll.server.pages.keys import accounts_of
from atoll.server.pages.rendering import address, render
from atoll.server.pages.serving import calling, drawings
from atoll.server.pages.serving.whose import Whose, whose_of
from atoll.server.pages.visit import Visit, not_found, route
from atoll.server.principal import ADMIN
from atoll.server.queue import cancelling, rows
from atoll.server.queue.order import Entry
from atoll.server.queue.queue import Queue
from atoll.terminal_text import lines

STATES = ("open", "over", "failed")
MOST_CHARTS = 6
LOOK_SECONDS = 2.0


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/requests", listed),
        route("/requests/flush", flush, method="POST"),
        route("/requests/{request}", shown),
        route("/requests/{request}/cancel", cancel, method="POST"),
        route("/live/requests", changes),
    ]


def _queue(visit: Visit) -> Queue:
    found: Queue = visit.state.parts["queue"]
    return found


async def listed(visit: Visit) -> Response:
    """Show how many requests wait, and the newest ones."""
    offset = visit.number("offset", MOST_OFFSET)
    filters = {name: visit.query(name).replace("\0", "") for name in ("alias", "state")}
    whose = await whose_of(visit)
    values = await _state(visit, whose, filters, offset)
    kept = whose.query | {name: value for name, value in filters.items() if value}
    found = values["requests"]
    return visit.page(
        "serving/requests.html",
        **values,
        filters=filters,
        states=STATES,
        first=offset + 1,
        live="/live/requests" + (f"?{urlencode(kept)}" if kept else "") if not offset else "",
        newer=_address(kept, max(offset - ROWS, 0)) if offset else "",
        older=_address(kept, offset + ROWS) if len(found) == ROWS and offset < MOST_OFFSET else "",
    )


def _address(filters: dict[str, str], offset: int) -> str:
    query = urlencode({**filters, **({"offset": offset} if offset else {})})
    return f"/requests?{query}" if query else "/requests"


async def _state(visit: Visit, whose: Whose, filters: dict[str, str], offset: int) -> dict[str, Any]:
    """Return the values of `_requests.html`: what changes by itself."""
    queue, user = _queue(visit), whose.user
    state = filters["state"] if filters["state"] in STATES else ""
    wanted = partial(rows.newest, owner=user, limit=ROWS, offset=offset, alias=filters["alias"], state=state)
    found = await accounts_of(visit).database.run(wanted, writes=False)
    depths: Depths = visit.state.parts["depths"]
    sizes = {alias: count for (owner, alias), count in queue.sizes().items() if owner == user and count}
    known = [one for one in depths.all_of(user) if filters["alias"] in ("", one[0])]
    known.sort(key=lambda one: -sizes.get(one[0], 0))
    return {
        "requests": [(one, _state_of(queue, one)) for one in found],
        "waiting": sum(sizes.values()),
        "queues": sorted(sizes.items()),
        "charts": [drawings.of_waiting(alias, series) for alias, series in known[:MOST_CHARTS]],
        "more_charts": max(len(known) - MOST_CHARTS, 0),
        "user": visit.user.user,
        "whose": whose,
        "may": whose.own and visit.user.scope == ADMIN,
        "seconds": drawings.seconds_text,
    }


def _state_of(queue: Queue, one: rows.Listed) -> str:
    """Return the state of a request as people know it."""
    if one.state == rows.OVER:
        return "ok" if not one.error else "cancelled" if one.error_type == cancelling.OUTCOME.error_type else "error"
    entry = queue.entries.get(one.id)
    return entry.state if entry is not None else "running"


async def changes(visit: Visit) -> Response:
    """Stream the charts and the newest requests, whenever they change."""
    filters = {name: visit.query(name).replace("\0", "") for name in ("alias", "state")}

    whose = await whose_of(visit)

    async def make() -> str:
        return render("serving/_requests.html", token=visit.token, **await _state(visit, whose, filters, 0))

    return live.stream(visit, live.rendered(make, LOOK_SECONDS))


async def _found(visit: Visit, user: str = "") -> rows.Listed:
    """Return the request that an address names, to an endpoint of a user or else of the visitor."""
    name = visit.request.path_params["request"].replace("\0", "")[:64]
    wanted = partial(rows.of_owner, owner=user or visit.user.user, request=name)
    found = await accounts_of(visit).database.run(wanted, writes=False)
    if found is None:
        raise not_found("there is no such request to an endpoint of yours", "answers are kept for some days")
    return found


async def shown(visit: Visit) -> Response:
    """Show one request; its answer to who has asked for it."""
    whose = await whose_of(visit)
    one, queue = await _found(visit, whose.user), _queue(visit)
    found = await queue.find(one.id)
    entries: list[dict[str, str]] = []
    answer, kind = "", ""
    if isinstance(found, Entry):
        entries = await queue.logs(found)
    elif found is not None:
        entries = json.loads(found.logs) if found.logs else []
        headers = dict(json.loads(found.headers) if found.headers else [])
        kind = str(headers.get("content-type", ""))
        if one.caller == visit.user.user and calling.is_text(kind):
            answer = lines(((await queue.answer(found)) or b"").decode("utf-8", "replace").replace("\r\n", "\n"))
    return visit.page(
        "serving/request.html",
        one=one,
        state=_state_of(queue, one),
        position=queue.position(found) if isinstance(found, Entry) and found.state == "waiting" else 0,
        output="\n".join(str(entry.get("message", "")) for entry in entries),
        answer=answer,
        kind=kind,
        size=found.answer_bytes if isinstance(found, rows.Known) else 0,
        own=one.caller == visit.user.user,
        whose=whose,
        seconds=drawings.seconds_text,
        now=time.time(),
    )


async def cancel(visit: Visit) -> Response:
    """Cancel a request to an endpoint of the user's."""
    one, queue = await _found(visit), _queue(visit)
    if one.caller != visit.user.user:
        _check(visit)
    found = await queue.find(one.id)
    done = isinstance(found, Entry) and await queue.cancel(found)
    return visit.go(address("requests", one.id), "cancelled" if done else "over")


async def flush(visit: Visit) -> Response:
    """Cancel all requests that wait for an endpoint."""
    _check(visit)
    queue, alias = _queue(visit), visit.form.get("alias", "")[:64]
    count = await queue.flush(visit.user.user, alias)
    details = {"requests": count, "caller": ""}
    target = f"{visit.user.name}/{alias}"
    await queue.writer.do(lambda connection: audit(connection, visit.user, "queue.flush", target, details))
    return visit.go("/requests", "flushed")


def _check(visit: Visit) -> None:
    if visit.user.scope != ADMIN:
        raise errors.NotAuthorized(
            "a key of the scope API ends no requests of others", hint="log in with one of the scope ADMIN", status=403
        )
