"""Pages of endpoints: a list, and one with a form that calls it, charts, workers and revisions."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.endpoints import rows
from atoll.server.endpoints.figures import Depths, Series
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.passing import passed
from atoll.server.endpoints.routes import deleted, pointed
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.pages import live
from atoll.server.pages.keys import accounts_of
from atoll.server.pages.rendering import address, render
from atoll.server.pages.serving import calling, drawings, forms, kept
from atoll.server.pages.serving.whose import whose_of
from atoll.server.pages.visit import Visit, not_found, route
from atoll.server.principal import ADMIN, Principal
from atoll.server.requests import while_connected
from atoll.work_threads import WorkThreads

MOST_DOCUMENT, MOST_DOCUMENTS = 512 << 10, 64
"""Bytes of a description, and descriptions that are remembered."""
RECENT_SLOTS = 2
MOST_REVISIONS, MOST_WORKERS = 30, 12
LOOK_SECONDS = 2.0
_threads = WorkThreads("descriptions", 1)


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    one = "/endpoints/{name}"
    return [
        route("/endpoints", listed),
        route(one, shown),
        route(f"{one}/call", call, method="POST"),
        route(f"{one}/describe", describe, method="POST"),
        route(f"{one}/point", point, method="POST"),
        route(f"{one}/delete", delete, method="POST"),
        route(f"{one}/answers/{{answer}}", answer_file),
        route("/live/endpoints/{name}", changes),
    ]


class Descriptions:
    """The operations of revisions that have been asked for them; a revision never changes."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, list[forms.Operation]] = OrderedDict()

    def get(self, revision: str) -> list[forms.Operation] | None:
        """Return the operations of a revision; None where it has not been asked."""
        return self._known.get(revision)

    def put(self, revision: str, found: list[forms.Operation]) -> None:
        """Remember them."""
        self._known[revision] = found
        while len(self._known) > MOST_DOCUMENTS:
            self._known.popitem(last=False)


@dataclass(frozen=True)
class Row:
    """An endpoint as the list shows it; `figures` are requests a second, median and 95th percentile."""

    revision: Revision
    path: str
    workers: int
    waiting: int
    figures: tuple[float, float | None, float | None]


def _parts(visit: Visit) -> tuple[Gateway, Runners, Depths]:
    parts = visit.state.parts
    return parts["gateway"], parts["runners"], parts["depths"]


async def listed(visit: Visit) -> Response:
    """Show the user's endpoints."""
    whose = await whose_of(visit)
    found = await accounts_of(visit).database.run(partial(rows.all_of, user=whose.user), writes=False)
    served = [one for one in found if one.port]
    shown_rows = sorted((_row(visit, one) for one in served if one.alias), key=lambda one: one.revision.alias)
    return visit.page(
        "serving/endpoints.html",
        endpoints=shown_rows,
        others=[one for one in served if not one.alias][:MOST_REVISIONS],
        count=sum(not one.alias for one in served),
        base=str(visit.request.base_url).rstrip("/"),
        whose=whose,
        rate=drawings.rate_text,
        seconds=drawings.seconds_text,
    )


def _row(visit: Visit, revision: Revision) -> Row:
    _, runners, _ = _parts(visit)
    pool = runners.pools.get(revision.id)
    queue = visit.state.parts["queue"]
    waiting = queue.size(revision.user, revision.alias or revision.id)
    path = address(revision.owner, revision.alias or revision.id)
    if pool is None:
        return Row(revision, path, 0, waiting, (0.0, None, None))
    return Row(revision, path, len(pool.runners), waiting + pool.waiting, pool.figures.recent(RECENT_SLOTS))


async def found_of(visit: Visit, user: str = "") -> Revision:
    """Return the endpoint that an address of the page names.

    Args:
        user: its owner's id; empty for the visitor.

    Raises:
        CallerError: the user has none of this name.
    """
    name, user = visit.request.path_params["name"][:200], user or visit.user.user
    with contextlib.suppress(errors.CallerError):
        found = await _parts(visit)[0].find(user, name)
        if found.user == user and found.port:
            return found
    raise not_found("you have no such endpoint", "see the list of endpoints")


async def shown(
    visit: Visit, answer: calling.Shown | None = None, given: dict[str, str] | None = None, wrong: str = ""
) -> Response:
    """Show one endpoint.

    Args:
        answer: of a call by the form, for browsers without the script.
        given: the form's fields as they were sent.
        wrong: a reason for which nothing was sent.
    """
    whose = await whose_of(visit)
    revision = await found_of(visit, whose.user)
    name = revision.alias or revision.id
    operations = await _operations(visit, revision, starts=False) if whose.own else None
    plain = not operations or visit.query("form") == "json" or (given or {}).get("operation") == "json"
    wanted = (given or {}).get("operation", "") or visit.query("operation")
    operation = forms.PLAIN
    if operations and not plain:
        operation = next((one for one in operations if one.key == wanted), operations[0])
    found = await accounts_of(visit).database.run(partial(rows.all_of, user=whose.user), writes=False)
    aliases = await accounts_of(visit).database.run(partial(rows.aliases_of, user=whose.user), writes=False)
    revisions = [one for one in found if one.function == revision.function and one.port]
    return visit.page(
        "serving/endpoint.html",
        status=400 if wrong else 200,
        one=revision,
        name=name,
        path=address(revision.owner, name),
        base=str(visit.request.base_url).rstrip("/"),
        operations=operations or [],
        operation=operation,
        plain=plain,
        known=operations is not None,
        methods=forms.METHODS,
        given=given or {},
        answer=answer,
        wrong=wrong,
        revisions=list({one.id: one for one in revisions}.values())[:MOST_REVISIONS],
        aliases=[alias for alias, _, _ in aliases],
        previous=next((before for alias, before, _ in aliases if alias == revision.alias), ""),
        may=whose.own and visit.user.scope == ADMIN,
        whose=whose,
        text=drawings.seconds_text,
        **await _state(visit, revision),
    )


async def _state(visit: Visit, revision: Revision) -> dict[str, Any]:
    """Return the values of `_endpoint.html`: what changes by itself."""
    _, runners, depths = _parts(visit)
    pool = runners.pools.get(revision.id)
    series = pool.figures if pool is not None else Series()
    name = revision.alias or revision.id
    queue = visit.state.parts["queue"]
    return {
        "row": _row(visit, revision),
        "charts": [
            *drawings.of_requests(series.points()),
            drawings.of_waiting("Requests that wait", depths.of(revision.user, name), series),
        ],
        "running": {one.call: one.busy for one in pool.runners} if pool is not None else {},
        "starting": pool.starting if pool is not None else 0,
        "queued": queue.size(revision.user, name),
        "workers": await _workers(visit, revision),
        "rate": drawings.rate_text,
        "seconds": drawings.seconds_text,
        "now": time.time(),
        "revision": revision,
    }


async def _workers(visit: Visit, revision: Revision) -> list[dict[str, Any]]:
    """Return the newest calls that have been workers of a revision."""
    asked = {"batch": revision.id, "kind": "all", "after": -1}
    try:
        owner = Principal(revision.user, revision.owner)
        calls: list[dict[str, Any]] = (await visit.state.asks.ask(owner, "detached.items", asked)).get("calls", [])
    except errors.CallUnknown:  # nobody has asked it anything yet
        return []
    return sorted(calls, key=lambda row: -float(row["queued_at"]))[:MOST_WORKERS]


async def changes(visit: Visit) -> Response:
    """Stream the charts and workers of an endpoint, whenever they change."""
    revision = await found_of(visit, (await whose_of(visit)).user)
    return live.stream(visit, live.rendered(partial(_rendered, visit, revision), LOOK_SECONDS))


async def _rendered(visit: Visit, revision: Revision) -> str:
    return render("serving/_endpoint.html", **await _state(visit, revision))


# --- calls ------------------------------------------------------------------------------------------------------------


async def _operations(visit: Visit, revision: Revision, *, starts: bool) -> list[forms.Operation] | None:
    """Return the operations of a revision; None where a worker would have to start, and may not, to tell them.

    Raises:
        HostUnreachable: no worker starts.
    """
    known: Descriptions = visit.state.parts["descriptions"]
    found = known.get(revision.id)
    if found is not None:
        return found
    pool = _parts(visit)[1].pool(revision)
    if not starts and not pool.has_place:
        return None
    runner = await pool.take()
    try:
        asked = calling.asked(visit, revision, forms.Call("GET", "/openapi.json"))
        document = bytearray()
        async with passed(pool, runner, asked, b"") as answer:
            async for piece in answer.exchange.pieces():
                document += piece
                if len(document) > MOST_DOCUMENT:
                    answer.exchange.reusable = False
                    document.clear()
                    break
            status = answer.status
    finally:
        pool.give_back(runner)
    if status != 200:
        document.clear()
    found = await _threads.run(visit.user.user, partial(forms.operations, bytes(document)))
    known.put(revision.id, found)
    return found


async def describe(visit: Visit) -> Response:
    """Start a worker where there is none, and read the app's description."""
    revision = await found_of(visit)
    await while_connected(visit.request, _operations(visit, revision, starts=True))
    return visit.go(address("endpoints", revision.alias or revision.id))


async def call(visit: Visit) -> Response:
    """Call an endpoint with the fields of its form."""
    revision = await found_of(visit)
    wanted = visit.form.get("operation", "json")
    known = await _operations(visit, revision, starts=False) or []
    operation = next((one for one in known if one.key == wanted), None)
    scripted = calling.TYPE in visit.request.headers.get("accept", "")
    try:
        asked = forms.plain(visit.form) if operation is None else forms.request(operation, visit.form)
    except errors.CallerError as error:
        if scripted:
            return calling.refused(visit, error)
        return await shown(visit, given=visit.form, wrong=f"{error.message}; {error.hint}")
    if per_minute := revision.options.rate_limit:
        _parts(visit)[0].rates.take(revision.id, visit.user.key or visit.user.user, per_minute)
    if scripted:
        return calling.streamed(visit, revision, asked)
    answer = await while_connected(visit.request, calling.whole(visit, revision, asked))
    return await shown(visit, answer, visit.form)


async def answer_file(visit: Visit) -> Response:
    """Return an answer that is no text, to who has called: the browser shows or saves it."""
    known: kept.Answers = visit.state.parts["page_answers"]
    found = known.get(visit.user.user, visit.request.path_params["answer"][:64])
    if found is None:
        raise not_found("the answer is kept no more", "call the endpoint again")
    return Response(found.content, 200, found.headers)


# --- aliases ----------------------------------------------------------------------------------------------------------


def _check(visit: Visit) -> None:
    if visit.user.scope != ADMIN:
        raise errors.NotAuthorized(
            "a key of the scope API changes no endpoints", hint="log in with one of the scope ADMIN", status=403
        )


async def point(visit: Visit) -> Response:
    """Point an alias to another revision; without one to the revision before."""
    _check(visit)
    alias = visit.request.path_params["name"][:200]
    await pointed(visit.state, visit.user, alias, visit.form.get("revision", "")[:64])
    return visit.go(address("endpoints", alias), "pointed")


async def delete(visit: Visit) -> Response:
    """Delete an alias; its revision stays callable by its id."""
    _check(visit)
    await deleted(visit.state, visit.user, visit.request.path_params["name"][:200])
    return visit.go("/endpoints", "deleted")
