"""The page of usage: calls, time, memory and GPUs by day and function, as charts and a table."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll.model import figures
from atoll.model.figures import Figures, duration
from atoll.model.sizes import size_text
from atoll.server.files.peers import Peers
from atoll.server.pages import charts
from atoll.server.pages.visit import Visit, route
from atoll.storage.client.names import Usage

SPANS = {"7d": 7, "30d": 30, "90d": 90}
MOST_FUNCTIONS = 100
VOLUME_SECONDS = 3.0
"""The longest wait for the size of a volume; one with more files is not added up for a page."""


def routes() -> list[BaseRoute]:
    """Return the routes of this page."""
    return [route("/usage", shown)]


async def shown(visit: Visit) -> Response:
    """Show the figures of some days."""
    span = visit.query("since", "30d")
    span = span if span in SPANS else "30d"
    since = time.time() - SPANS[span] * 86400
    rows, volume = await asyncio.gather(visit.ask("calls.usage", {"since": since}), _volume(visit))
    usage = rows["usage"]
    days = figures.daily(usage, dt.date.today().isoformat())  # noqa: DTZ011 - the server's days, as records count them
    functions = figures.grouped(usage, "function")
    most = max((one.wall_seconds for one in functions), default=0.0) or 1.0
    return visit.page(
        "usage.html",
        span=span,
        spans=tuple(SPANS),
        total=figures.total(usage),
        charts=_charts(days),
        functions=[(one, charts.meter(one.wall_seconds / most)) for one in functions[:MOST_FUNCTIONS]],
        count=len(functions),
        volume=volume,
        text=duration,
    )


def _charts(days: list[Figures]) -> list[dict[str, Any]]:
    """Return title, legend and drawing of each chart; none without calls."""
    if not days:
        return []
    last = f"from {days[0].key} to {days[-1].key}"
    ok = ("ok", "ok", lambda one: float(one.calls - one.failed))
    failed = ("bad", "failed", lambda one: float(one.failed))
    found: list[dict[str, Any]] = [
        {
            "title": "Calls by day",
            "legend": [("ok", "ok"), ("bad", "failed")],
            "svg": charts.bars(days, [ok, failed], lambda n: f"{n:,.0f}", title=f"Calls by day {last}", whole=True),
        }
    ]
    for title, kind, value, words in (
        ("Time in workers by day", "ok", lambda one: one.wall_seconds, duration),
        ("Computing by day", "more", lambda one: one.cpu_seconds, duration),
        ("Peak memory by day", "more", lambda one: float(one.peak_bytes), size_text),
        ("GPU time by day", "ok", lambda one: one.gpu_seconds, duration),
    ):
        if title.startswith("GPU") and not any(value(one) for one in days):
            continue
        drawing = charts.bars(days, [(kind, "", value)], words, title=f"{title} {last}")
        found.append({"title": title, "legend": [], "svg": drawing})
    return found


async def _volume(visit: Visit) -> Usage | None:
    """Return the size of the user's volume; None where adding it up takes too long."""
    peers: Peers = visit.state.parts["files"]
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(VOLUME_SECONDS), peers.lent(visit.user) as lent:
            return await lent.call(lent.volume.usage)
    return None
