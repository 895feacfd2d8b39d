"""`atoll status`: the daemon, the machine's free share, the calls that are not over, the sandboxes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from atoll.cli.calls import rows
from atoll.cli.columns import Column, print_fitted
from atoll.cli.settings_state import settings_lines
from atoll.cli.tables import print_json, size
from atoll.cli.terminal import echo
from atoll.host.local import local

NOTHING: dict[str, Any] = {"daemon": None, "sandboxes": [], "workers": [], "calls": [], "capacity": None}

TYPES = (
    Column("machine type"),
    Column("cores", right=True),
    Column("memory", right=True),
    Column("GPUs", right=True),
    Column("fit now", right=True),
)
SANDBOXES = (
    Column("sandbox"),
    Column("environment"),
    Column("workers", right=True),
    Column("since", right=True),
    Column("network", rank=1),
    Column("results", rank=2),
    Column("pid", right=True, rank=3),
    Column("user", rank=4),
)


def status(*, json: bool = False) -> int:
    """Show the daemon, the free share of the machine, the calls that run or wait, and the sandboxes. Starts nothing.

    Parameters
    ----------
    json: bool
        Print an object with `daemon`, `capacity`, `calls`, `sandboxes` and `workers`.
    """
    found = local.request_running("status", {})
    if json:
        print_json(found or NOTHING)
        return 0
    if found is None:
        echo("no daemon is running; the first call starts one")
        return 0
    now = time.time()
    for line in heading(found, now):
        echo(line)
    for title, columns, cells in tables(found, now):
        echo()
        if cells:
            print_fitted(columns, cells)
        else:
            echo(f"no {title}")
    return 0


def heading(found: dict[str, Any], now: float) -> Iterator[str]:
    """Give the lines above the tables."""
    daemon = found["daemon"]
    since = rows.duration(max(now - daemon["started_at"], 0.0))
    yield f"daemon   {daemon['pid']}, version {daemon['version']}, since {since}, state in {daemon['home']}"
    yield f"machine  {machine(found['capacity'])}"
    yield from settings_lines(daemon)


def machine(capacity: dict[str, Any]) -> str:
    """Return what is free of the machine, in one line."""
    has, free = capacity["machine"], capacity["free"]
    parts = [
        f"{free['cpus']:g} of {has['cpus']:g} cores free",
        f"{size(free['memory_bytes'])} of {size(has['memory_bytes'])} free",
    ]
    if has["gpus"]:
        parts.append(
            f"{free['gpus']} of {len(has['gpus'])} GPUs free ({', '.join(one['name'] for one in has['gpus'])})"
        )
    return " \u00b7 ".join(parts)


def tables(found: dict[str, Any], now: float) -> Iterator[tuple[str, Sequence[Column], list[tuple[str, ...]]]]:
    """Give name, columns and rows of each table."""
    yield "machine types", TYPES, types(found["capacity"])
    yield "calls run or wait", rows.UNFINISHED, rows.cells(found["calls"], now)
    yield "sandboxes", SANDBOXES, [_sandbox(one, now) for one in found["sandboxes"]]


def types(capacity: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each machine type that this machine can serve, in full or as well as it can."""
    return [
        (
            one["name"],
            f"{one['cpus']:g}",
            size(one["memory_bytes"]),
            str(one["gpus"] or ""),
            str(one["fits_now"]),
        )
        for one in capacity["types"]
        if one["full"] or one["largest"]
    ]


def _sandbox(one: dict[str, Any], now: float) -> tuple[str, ...]:
    return (
        one["id"],
        one["environment"][: rows.SHORT_ID],
        str(one["workers"]),
        rows.duration(max(now - one["started_at"], 0.0)),
        one["network"],
        one["results"],
        str(one["pid"] or ""),
        one["user"],
    )
