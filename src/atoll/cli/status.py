"""`atoll status`: the daemon, the machine's free share, the calls that are not over, the sandboxes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from atoll import errors
from atoll.cli import hosts
from atoll.cli.calls import rows
from atoll.cli.columns import Column, print_fitted
from atoll.cli.confirmation import counted
from atoll.cli.nodes.table import free_line
from atoll.cli.settings_state import settings_lines
from atoll.cli.tables import print_json, size
from atoll.cli.terminal import echo
from atoll.host.contract import Host
from atoll.model.quota import Quota

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

    Of a server it shows who you are there, your limits and quota, and your own calls and sandboxes.

    Parameters
    ----------
    json: bool
        Print an object with `daemon`, `capacity`, `calls`, `sandboxes` and `workers`; of a server also with `server`, its
        address and your user there, `limits`, `quota`, and `nodes`, its machines if it has several.
    """
    host = hosts.chosen()
    found = hosts.ask_running("status", {}, host)
    if found is not None and hosts.server_of(host) is not None:
        found = _own(found, host)
    hosts.tell_away(found or {}, "what it has is not shown")
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
    if "server" in found:
        yield from _server_lines(found, now)
        return
    since = rows.duration(max(now - daemon["started_at"], 0.0))
    yield f"daemon   {daemon['pid']}, version {daemon['version']}, since {since}, state in {daemon['home']}"
    yield f"machine  {machine(found['capacity'])}"
    shared = daemon.get("volumes") or {}
    if shared.get("filesystem", "own") != "own":
        works = "in order" if shared["works"] else shared["detail"]
        yield f"volumes  shared, {shared.get('kind') or shared['filesystem']}: {works}"
    yield from settings_lines(daemon)


def _own(found: dict[str, Any], host: Host) -> dict[str, Any]:
    """Return a server's status with who asks, and without what is of others, which operators are told of."""
    me = hosts.whoami(host)
    user = me.get("user", "")
    sandboxes = [one for one in found["sandboxes"] if one["user"] == user]
    names = {one["id"] for one in sandboxes}
    return {
        **found,
        "server": {"url": host.server.url, **me},  # type: ignore[attr-defined]
        "quota": host.request("volume.quota", {}),
        "nodes": _machines(host),
        "calls": [one for one in found["calls"] if one["user"] == user],
        "sandboxes": sandboxes,
        "workers": [one for one in found["workers"] if one["sandbox"] in names],
    }


def _machines(host: Host) -> list[dict[str, Any]]:
    """Return the machines of a server, if it has several; none of an older server."""
    try:
        found = list(host.server.ask("GET", "/v1/machines")["machines"])  # type: ignore[attr-defined]
    except (errors.AtollError, KeyError, TypeError):
        return []
    return found if len(found) > 1 else []


def _server_lines(found: dict[str, Any], now: float) -> Iterator[str]:
    server, daemon = found["server"], found["daemon"]
    version = server.get("version") or daemon["version"]
    older = f", its node {daemon['version']}" if daemon["version"] != version else ""
    rights = ", operator" if server.get("operator") else ""
    yield f"server   {server['url']}, version {version}{older}, since {rows.duration(max(now - daemon['started_at'], 0.0))}"
    yield f"user     {server.get('name')} (key {server.get('key')}, scope {server.get('scope')}{rights})"
    if found["nodes"]:
        width = max(len(one["name"]) for one in found["nodes"])
        for one in found["nodes"]:
            yield f"machine  {one['name'].ljust(width)}  {free_line(one)}"
    else:
        yield f"machine  {machine(found['capacity'])}"
    most = (found.get("limits") or {}).get("workers")
    calls = f"{counted(most, 'call')} at a time" if most else "no limit of calls"
    quota = Quota.from_data(found["quota"])
    yield f"limits   {calls} \u00b7 /data: {'' if quota.complete else 'at least '}{quota.text()}"
    yield f"workers  {len(found['workers'])}"


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
