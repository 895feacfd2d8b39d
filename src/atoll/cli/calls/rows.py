"""Rows of calls for people, those that are over and those that are not; pure, with the time as an argument."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from atoll.cli.columns import Column
from atoll.cli.tables import date, size
from atoll.model.sizes import duration_text

SHORT_ID = 8
"""Characters of an id that tables show; each command takes them."""

COLUMNS = (
    Column("id"),
    Column("function", least=12),
    Column("state", least=9),
    Column("time", right=True),
    Column("memory", right=True, rank=1),
    Column("made", rank=2),
    Column("detail", least=24, rank=3),
    Column("cpu", right=True, rank=4),
    Column("type", rank=5),
    Column("worker", rank=6),
    Column("waited", right=True, rank=7),
)
USER = Column("user", least=8)
duration = duration_text

_OF_UNFINISHED = {"detail": 2, "made": 3}
UNFINISHED = tuple(replace(one, rank=_OF_UNFINISHED.get(one.name, one.rank)) for one in COLUMNS)
"""The columns where all calls run or wait: the reason of a wait says more than the time of the call."""


def of_users(
    columns: Sequence[Column], calls: Sequence[dict[str, Any]], now: float
) -> tuple[list[Column], list[tuple[str, ...]]]:
    """Return columns and cells of calls of several users, whose names are in `user_name`."""
    texts = [(*row[:1], call["user_name"], *row[1:]) for row, call in zip(cells(calls, now), calls, strict=True)]
    return [*columns[:1], USER, *columns[1:]], texts


def moment(at: float, now: float) -> str:
    """Return a time of today without its date."""
    today = date(now, "%Y-%m-%d")
    text = date(at)
    return text.removeprefix(f"{today} ")


def cells(calls: Sequence[dict[str, Any]], now: float) -> list[tuple[str, ...]]:
    """Return a text for each of `COLUMNS`, for calls that are not over and records of those that are."""
    return [_unfinished(call, now) if call.get("state", "ended") != "ended" else _ended(call, now) for call in calls]


def _unfinished(call: dict[str, Any], now: float) -> tuple[str, ...]:
    runs = call["state"] == "running"
    place = call["position"]
    state = f"waiting {place + 1}" if call["state"] == "waiting" and place >= 0 else call["state"]
    return (
        call["call"][:SHORT_ID] or "-",
        call["function"],
        state,
        duration(max(now - call["since"], 0.0)),
        size(call["memory_bytes"]) if call["memory_bytes"] else "",
        moment(call["queued_at"], now),
        call["detail"],
        duration(call["cpu_seconds"]) if runs else "",
        of_machine(call),
        call["worker"],
        duration(max(call["since"] - call["queued_at"], 0.0)) if runs else "",
    )


def of_machine(call: dict[str, Any]) -> str:
    """Return the machine type of a call that is not over, and its resources in plain numbers."""
    return " ".join(one for one in (call["machine_type"], call.get("resources", "")) if one)


def _ended(call: dict[str, Any], now: float) -> tuple[str, ...]:
    started = bool(call["started_at"])
    return (
        call["call"][:SHORT_ID],
        call["function"],
        call["error"] if call["outcome"] == "error" else call["outcome"],
        duration(call["wall_seconds"]) if started else "",
        size(call["peak_bytes"]) if started else "",
        moment(call["queued_at"], now),
        call["message"].partition("\n")[0],
        duration(call["cpu_seconds"]) if started else "",
        "",
        call["worker"],
        duration(call["queue_seconds"]) if started else "",
    )


def ended_as_row(call: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the state that tells it from a call that is not over."""
    return {**call, "state": "ended"}


def as_record(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a call that is not over, with the fields of a record."""
    runs = row["state"] == "running"
    return {
        **row,
        "started_at": row["since"] if runs else 0.0,
        "wall_seconds": max(time.time() - row["since"], 0.0) if runs else 0.0,
        "queue_seconds": max(row["since"] - row["queued_at"], 0.0),
        "bytes_in": 0,
        "bytes_out": 0,
        "outcome": "",
        "error": "",
        "message": "",
    }
