"""Logs of endpoints, and workers that have served the caller."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from typing import Any

from atoll import errors
from atoll.controller.callers import Caller
from atoll.controller.logs import entry, moment
from atoll.controller.messages import STDOUT, USER, messages
from atoll.host import detached

LINES = 100
MOST_LINES = 10_000
MOST_BYTES = 4 << 20
"""Of the end of one runner's output."""
MOST_RUNNERS = 20
"""Runners of an endpoint whose output is looked at, the newest first."""


async def logs(request: Any, caller: Caller, service: Any) -> AsyncIterator[Any]:
    """Answer `GetLogs`: the last lines of all endpoints, or of the one that a host name or a path ends with."""
    lines = min(request.filter.lines if request.filter.HasField("lines") else LINES, MOST_LINES)
    for one in await service.callers.blocking(_lines, caller, request.filter.url, lines):
        yield messages.GetLogsResult(log_entry=one)


def _lines(caller: Caller, url: str, most: int) -> list[Any]:
    wanted = _named(url)
    known = {
        one["id"]
        for one in caller.ask("GET", "/v1/revisions")["revisions"]
        if not wanted or wanted in (one["alias"], one["id"])
    }
    calls = [one for one in caller.host.request("detached.list", {})["calls"] if one.get("batch") in known]
    calls.sort(key=lambda one: one.get("queued_at") or 0.0)
    found: list[Any] = []
    for one in calls[-MOST_RUNNERS:]:
        began = one.get("started_at") or one.get("queued_at") or 0.0
        text = output_of(caller, one["call"]).decode("utf-8", "replace")
        found += [entry(line, USER, STDOUT, began) for line in text.splitlines()]
    return found[-most:] if most > 0 else []


def _named(url: str) -> str:
    """Return the alias or revision that an address names: `USER-ALIAS.gateway.D`, or the end of a path."""
    bare = url.partition("://")[2] or url
    host, _, path = bare.partition("/")
    if path:
        return path.strip("/").rpartition("/")[2]
    return host.partition(".")[0].partition("-")[2] if host else ""


def output_of(caller: Caller, call: str) -> bytes:
    """Return the end of a detached call's output."""
    try:
        answer = detached.request(caller.host, "detached.output", {"call": call})
    except errors.CallUnknown:
        return b""
    if answer.descriptor is None:
        return b""
    with open(answer.descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - MOST_BYTES, 0))
        return file.read(MOST_BYTES)


async def workers(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `WorkerStatusList`: workers of the calls that are kept in the caller's records."""
    found = await service.callers.blocking(caller.host.request, "calls.list", {})
    shown: dict[str, Any] = {}
    for one in found["calls"]:
        name = str(one.get("worker") or "")
        began, ended = float(one.get("started_at") or 0.0), float(one.get("ended_at") or 0.0)
        if not name or not began:
            continue
        began, ended = min(began, ended or began), ended or time.time()
        before = shown.get(name)
        if before is not None:
            began, ended = min(began, before[0]), max(ended, before[1])
        shown[name] = began, ended, str(one.get("machine_type") or "")
    return messages.WorkerStatusListResponse(
        worker_status=[
            messages.WorkerStatus(
                worker_id=name,
                user_id=f"atoll|{caller.user}",
                start_time=moment(began),
                end_time=moment(ended),
                duration=_duration(ended - began),
                machine_type=kind,
            )
            for name, (began, ended, kind) in shown.items()
            if not request.machine_type or request.machine_type == kind
        ]
    )


def _duration(seconds: float) -> Any:
    from google.protobuf.duration_pb2 import Duration

    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
