"""Rows of nodes as people read them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from atoll.cli.calls.rows import duration
from atoll.cli.columns import Column, print_fitted
from atoll.cli.tables import size
from atoll.cli.terminal import echo

NODES = (
    Column("node"),
    Column("state"),
    Column("cores", right=True),
    Column("memory", right=True),
    Column("GPUs", right=True),
    Column("running", right=True),
    Column("waiting", right=True),
    Column("last word", right=True, rank=1),
    Column("/data", rank=2),
    Column("version", rank=3),
    Column("labels", rank=4),
)
RECENT_SECONDS = 3.0
"""Seconds in which a word of a node is of now."""


def print_nodes(found: Sequence[dict[str, Any]]) -> None:
    """Print a table of nodes: free of total; and why some have no calls."""
    print_fitted(NODES, cells(found, time.time()))
    apart = [f"`{one['name']}`" for one in found if one.get("apart")]
    if apart:
        echo(
            f"no calls are placed on {', '.join(apart)}: not the same /data as the others; see `[storage]`, or "
            "`own_data` below `[cluster]`, in settings.toml",
            error=True,
        )
    for one in found:
        if one.get("catching_up"):
            echo(
                f"no calls are placed on `{one['name']}` yet: it is catching up ({one['catching_up']})",
                error=True,
            )


def cells(found: Sequence[dict[str, Any]], now: float) -> list[tuple[str, ...]]:
    """Return a row of the table for each node."""
    shared = {one["volumes"] for one in found} - {""}
    shared -= {volumes for volumes in shared if volumes.startswith("own:")}
    return [
        (
            one["name"],
            state(one),
            _share(one, "millicores", lambda value: f"{value / 1000:g}"),
            _share(one, "memory_bytes", size),
            _share(one, "gpus", str) if one["has"] and one["has"]["gpus"] else "",
            "" if one["running"] is None else str(one["running"]),
            "" if one["waiting"] is None else str(one["waiting"]),
            _heard(one["seen"], now),
            _volumes(one, shared),
            one["version"],
            ",".join(f"{key}={value}" for key, value in one["labels"].items()),
        )
        for one in found
    ]


def state(one: dict[str, Any]) -> str:
    """Return the state of a node, in a word or two."""
    if one["linked"]:
        if one["state"] != "active":
            return str(one["state"])
        return "apart" if one.get("apart") else "catching up" if one.get("catching_up") else "active"
    if one["name"] == "local":
        return "no daemon runs" if one["state"] == "active" else str(one["state"])
    lost = "never linked" if one.get("seen", 0.0) is None else "not linked"
    return lost if one["state"] == "active" else f"{one['state']}, {lost}"


def free_line(one: dict[str, Any]) -> str:
    """Return what is free of a node, in one line."""
    has, free = one["has"], one["free"]
    if not one["linked"] or has is None or free is None:
        return state(one)
    parts = [
        f"{free['millicores'] / 1000:g} of {has['millicores'] / 1000:g} cores free",
        f"{size(free['memory_bytes'])} of {size(has['memory_bytes'])} free",
    ]
    if has["gpus"]:
        parts.append(f"{free['gpus']} of {has['gpus']} GPUs free")
    if one["state"] != "active":
        parts.insert(0, str(one["state"]))
    elif one.get("apart"):
        parts.insert(0, "gets no calls: does not share /data")
    elif one.get("catching_up"):
        parts.insert(0, "gets no calls yet: is catching up")
    return " \u00b7 ".join(parts)


def _share(one: dict[str, Any], name: str, shown: Any) -> str:
    has, free = one["has"], one["free"]
    if has is None:
        return ""
    return f"{shown(free[name])} of {shown(has[name])}" if free is not None else shown(has[name])


def _heard(seen: float | None, now: float) -> str:
    if seen is None:
        return "never"
    return "now" if now - seen < RECENT_SECONDS else f"{duration(now - seen)} ago"


def _volumes(one: dict[str, Any], shared: set[str]) -> str:
    if not one["volumes"] or one["volumes"].startswith("own:"):
        return "own disk" if one["volumes"] else ""
    return "shared" if len(shared) == 1 else f"shared ({one['volumes'][:12]})"
