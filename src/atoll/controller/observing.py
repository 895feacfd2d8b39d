"""Logs of endpoints, and workers that have served the caller."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from atoll.controller.callers import Caller
from atoll.controller.logs import entry, moment
from atoll.controller.messages import STDOUT, USER, messages
from atoll.sdk.apps import output

LINES = 100
MOST_LINES = 10_000


async def logs(request: Any, caller: Caller, service: Any) -> AsyncIterator[Any]:
    """Answer `GetLogs`: the last lines of all endpoints, or of the one that a host name or a path ends with."""
    lines = min(request.filter.lines if request.filter.HasField("lines") else LINES, MOST_LINES)
    for began, line in await service.callers.blocking(output.lines, caller.host, request.filter.url, lines):
        yield messages.GetLogsResult(log_entry=entry(line, USER, STDOUT, began))


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
