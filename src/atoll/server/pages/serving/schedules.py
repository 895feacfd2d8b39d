"""Pages of schedules: a calendar of runs that there were and that come, each schedule with its history, and their pauses."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.database.database import Database
from atoll.server.pages.keys import accounts_of
from atoll.server.pages.rendering import address
from atoll.server.pages.serving import months
from atoll.server.pages.serving.whose import whose_of
from atoll.server.pages.visit import Visit, route
from atoll.server.principal import ADMIN
from atoll.server.schedules import bodies, crons, rows
from atoll.server.schedules.routes import changed
from atoll.work_threads import WorkThreads

MOST_SCHEDULES, MOST_RUNS = 100, 20_000
"""Schedules of a calendar, and runs that it has of the past."""
ROWS, NEXT = 50, 10
UTC = "UTC"
_ACTS = {
    "pause": (rows.PAUSED, "schedule.pause", "paused"),
    "resume": (rows.ACTIVE, "schedule.resume", "resumed"),
    "cancel": (rows.CANCELLED, "schedule.cancel", "cancelled"),
}
_threads = WorkThreads("calendars", 1)


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/schedules", listed),
        route("/schedules/{schedule}", shown),
        route("/schedules/{schedule}/{act}", change, method="POST"),
    ]


def _database(visit: Visit) -> Database:
    return accounts_of(visit).database


async def listed(visit: Visit) -> Response:
    """Show the user's schedules, and some weeks or a month of their runs."""
    whose = await whose_of(visit)
    found = await _database(visit).run(partial(rows.all_of, user=whose.user), writes=False)
    known = [one for one in found if one.state != rows.CANCELLED]
    zones = sorted({one.rule.timezone for one in known} | {UTC})
    zone = visit.query("zone")
    if zone not in zones:
        zone = known[0].rule.timezone if len({one.rule.timezone for one in known}) == 1 else UTC
    place = crons.zone_of(zone)
    now = time.time()
    today = dt.datetime.fromtimestamp(now, place).date()
    month = months.month_of(visit.query("month"))
    days = months.days_around(today) if month is None else months.days_of(month, today)
    complete, coming = await _fill(visit, whose.user, known[:MOST_SCHEDULES], days, zone, now)
    kept = urlencode({**whose.query, **({"zone": zone} if len(zones) > 1 else {})})
    around = month or today.replace(day=1)
    return visit.page(
        "serving/schedules.html",
        schedules=known,
        cancelled=[one for one in found if one.state == rows.CANCELLED][:ROWS],
        weeks=[days[start : start + 7] for start in range(0, len(days), 7)],
        title=f"{month:%B %Y}" if month else f"{_day(days[0].date)} to {_day(days[-1].date)}",
        month=f"{month:%Y-%m}" if month else "",
        before=f"/schedules?month={months.other(around, -1):%Y-%m}&{kept}".rstrip("&"),
        after=f"/schedules?month={months.other(around, 1):%Y-%m}&{kept}".rstrip("&"),
        present=f"/schedules?{kept}".rstrip("?"),
        zone=zone,
        zones=zones,
        clock=lambda at: f"{dt.datetime.fromtimestamp(at, place):%H:%M}",
        coming=coming,
        complete=complete and len(known) <= MOST_SCHEDULES,
        now=now,
        whose=whose,
        may=whose.own and visit.user.scope == ADMIN,
    )


def _day(date: dt.date) -> str:
    return f"{date.day} {date:%B %Y}"


async def _fill(
    visit: Visit, user: str, known: Sequence[bodies.Schedule], days: Sequence[months.Day], zone: str, now: float
) -> tuple[bool, list[tuple[float, bodies.Schedule]]]:
    """Fill days with their runs; return whether all to come are among them, and the next ones."""
    place = crons.zone_of(zone)
    start, end = months.begin_of(days[0].date, place), months.begin_of(days[-1].date + dt.timedelta(1), place)
    past = await _database(visit).run(
        lambda connection: rows.between(connection, user, start, end, MOST_RUNS), writes=False
    )
    active = [one for one in known if one.state == rows.ACTIVE]

    def work() -> tuple[bool, list[tuple[float, bodies.Schedule]]]:
        months.add_past(days, past, place)
        complete = months.add_coming(days, [(one.id, one.function, _after(one)) for one in active], now, place)
        months.put_in_order(days)
        following = [(moment, one) for one in active for moment in islice(months.moments(_after(one), now), NEXT)]
        return complete, sorted(following, key=lambda one: one[0])[:NEXT]

    return await _threads.run(visit.user.user, work)


def _after(one: bodies.Schedule) -> months.After:
    return partial(crons.after, one.rule.cron, one.rule.timezone)


async def shown(visit: Visit) -> Response:
    """Show one schedule with its runs."""
    whose = await whose_of(visit)
    name, user = visit.request.path_params["schedule"].replace("\0", "")[:64], whose.user
    offset = visit.number("offset", rows.MOST_KEPT)
    database = _database(visit)
    one = await database.run(partial(rows.find, user=user, name=name), writes=False)
    runs = await database.run(partial(rows.history, name=one.id, limit=ROWS + 1, offset=offset), writes=False)
    following: list[float] = []
    if one.state == rows.ACTIVE:
        moments = months.moments(_after(one), time.time())
        following = await _threads.run(user, lambda: list(islice(moments, NEXT)))
    base = address("schedules", one.id)
    newer = f"{base}?{urlencode({**whose.query, 'offset': offset - ROWS})}" if offset > ROWS else f"{base}{whose.more}"
    return visit.page(
        "serving/schedule.html",
        one=one,
        runs=runs[:ROWS],
        coming=following,
        first=offset + 1,
        newer=newer if offset else "",
        older=f"{base}?{urlencode({**whose.query, 'offset': offset + ROWS})}" if len(runs) > ROWS else "",
        whose=whose,
        may=whose.own and visit.user.scope == ADMIN,
        now=time.time(),
    )


async def change(visit: Visit) -> Response:
    """Pause, resume or cancel a schedule, and show it again."""
    name, act = (visit.request.path_params[part].replace("\0", "")[:64] for part in ("schedule", "act"))
    if act not in _ACTS:
        raise errors.CallerError("there is no such act", hint="use the buttons of the page", status=404)
    if visit.user.scope != ADMIN:
        raise errors.NotAuthorized(
            "a key of the scope API changes no schedules", hint="log in with one of the scope ADMIN", status=403
        )
    state, of_audit, done = _ACTS[act]
    found: Any = await changed(visit.state, visit.user, name, state, of_audit)
    return visit.go(address("schedules", found.id), done)
