"""Schedules: a registered function that the clock calls."""

from __future__ import annotations

from typing import Any

from atoll.controller.accounts import segment
from atoll.controller.callers import Caller
from atoll.controller.logs import entry, moment
from atoll.controller.messages import STDOUT, USER, messages

MOST_SHOWN = 100


async def register(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `RegisterCron`: five fields, in UTC."""
    path = f"/v1/revisions/{segment(request.application_id)}/schedules"
    made = await service.callers.blocking(caller.ask, "POST", path, {"cron": request.cron})
    return messages.RegisterCronResult(result=messages.RegisteredCron(cron_id=made["id"]))


async def list_all(_request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListCrons`."""
    found = await service.callers.blocking(caller.ask, "GET", "/v1/schedules")
    return messages.ListCronsResult(
        crons=[
            messages.Cron(
                cron_string=one["rule"]["cron"],
                cron_id=one["id"],
                next_run=moment(one["next_run"]),
                is_active=one["state"] == "active",
            )
            for one in found["schedules"]
        ]
    )


async def cancel(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `CancelCron`."""
    await service.callers.blocking(caller.ask, "DELETE", f"/v1/schedules/{segment(request.cron_id)}")
    return messages.Empty()


async def activations(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListActivations`, the newest first."""
    path = f"/v1/schedules/{segment(request.cron_id)}/activations?limit={MOST_SHOWN}"
    found = await service.callers.blocking(caller.ask, "GET", path)
    return messages.ListActivationsResult(
        activations=[
            messages.Activation(
                activation_id=one["id"],
                started_at=moment(one["started"] or one["due"]),
                finished_at=moment(one["ended"] or one["started"] or one["due"]),
            )
            for one in found["activations"]
        ]
    )


async def logs(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `GetActivationLogs`."""
    path = f"/v1/schedules/{segment(request.cron_id)}/activations/{segment(request.activation_id)}/logs"
    text = await service.callers.blocking(caller.host.text, path)
    return messages.GetActivationLogsResult(logs=[entry(line, USER, STDOUT) for line in text.splitlines()])
