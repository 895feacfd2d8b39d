"""Charts of an endpoint: requests a second, times, and how many wait, over the last hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll.model.sizes import duration_text
from atoll.server.endpoints.figures import SLOT_SECONDS, SLOTS, Point, Series
from atoll.server.pages import charts

ENDS = (f"{SLOTS * SLOT_SECONDS / 60:.0f} min ago", "now")


def seconds_text(value: float | None) -> str:
    """Return a time of a request; short ones in milliseconds."""
    if value is None:
        return "\N{EN DASH}"
    if value < 0.0995:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 60 else duration_text(value)


def rate_text(value: float) -> str:
    """Return requests a second."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def of_requests(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return title, legend and drawing of the charts of a revision's requests."""
    rates: list[float | None] = [one.requests / one.seconds for one in points]
    failed: list[float | None] = [one.failed / one.seconds for one in points]
    requests = charts.curves(
        [("ok", "requests a second", rates), ("bad", "failed", failed)],
        rate_text,
        ENDS,
        title="Requests a second over the last hour",
        filled=True,
        least=0.1,
    )
    times = charts.curves(
        [("ok", "median", [one.median for one in points]), ("more", "95 %", [one.p95 for one in points])],
        seconds_text,
        ENDS,
        title="Time to the end of the answer over the last hour: median, and 95 % of requests",
    )
    return [
        {"title": "Requests a second", "legend": [("ok", "all"), ("bad", "failed")], "svg": requests},
        {"title": "Time of a request", "legend": [("ok", "median"), ("more", "95 %")], "svg": times},
    ]


def of_waiting(title: str, queued: Series, direct: Series | None = None) -> dict[str, Any]:
    """Return title, legend and drawing of the chart of those that wait.

    Args:
        queued: of the queue.
        direct: of requests that wait for a worker, where there are such.
    """
    depths: list[float | None] = [float(one.waiting) for one in queued.points()]
    series = [("ok", "in the queue", depths)]
    legend = []
    if direct is not None:
        series.append(("more", "direct", [float(one.waiting) for one in direct.points()]))
        legend = [(kind, name) for kind, name, _ in series]
    drawing = charts.curves(
        series, lambda n: f"{n:,.3g}", ENDS, title=f"{title} over the last hour", filled=True, least=2.0
    )
    return {"title": title, "legend": legend, "svg": drawing}
