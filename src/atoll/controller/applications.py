"""Applications: functions are registered as revisions of endpoints, and aliases pointed to them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from atoll import errors
from atoll.controller.accounts import check_environment, segment
from atoll.controller.callers import Caller
from atoll.controller.calls import Hosted
from atoll.controller.logs import moment
from atoll.controller.messages import AUTHS, messages
from atoll.controller.workers import surroundings

PORT = 8080
"""What the clients' own code for web apps listens on."""


async def register(request: Any, caller: Caller, service: Any) -> AsyncIterator[Any]:
    """Answer `RegisterApplication`."""
    yield messages.RegisterApplicationResult()
    made = await service.callers.blocking(registered, request, caller, service, request.auth_mode)
    yield messages.RegisterApplicationResult(
        result=messages.Registered(application_id=made["id"]), service_urls=urls(service, made["path"])
    )


def registered(request: Any, caller: Caller, service: Any, auth: int, *, ephemeral: bool = False) -> dict[str, Any]:
    """Register the function of a message as a revision; return it as the server does.

    Args:
        auth: the number of one of `AUTHS`.
        ephemeral: it has no alias.

    Raises:
        AtollError: the server refuses it, or it asks for what there is not here.
    """
    check_environment(request)
    if not 0 <= auth < len(AUTHS):
        raise errors.CallerError("the way in which callers are known is unknown", hint="give public, private or shared")
    variables, secrets = surroundings(caller, service, request)
    function = Hosted(caller, request, variables, secrets, served=True)
    machine = request.machine_requirements
    alias = "" if ephemeral else request.application_name
    options = {**options_of(machine), **({"ephemeral": True} if ephemeral else {})}
    if not ephemeral and request.HasField("max_concurrency") and request.max_concurrency > 0:
        options["max_concurrency"] = request.max_concurrency
    if alias and request.HasField("scale") and not request.scale:
        options = _options_before(caller, alias) or options
    described = {
        "function": request.application_name or "function",
        "port": machine.exposed_port or PORT,
        "alias": alias,
        "auth": AUTHS[auth],
        "options": options,
    }
    body = b"".join([json.dumps(described).encode(), b"\n", *map(bytes, function.spool())])
    made: dict[str, Any] = caller.host.server.put("/v1/revisions", body, len(body), "POST")
    return made


def options_of(machine: Any) -> dict[str, Any]:
    """Return the options of an endpoint that a message gives."""
    found: dict[str, Any] = {}
    for name in (
        "keep_alive",
        "min_concurrency",
        "max_concurrency",
        "max_multiplexing",
        "request_timeout",
        "startup_timeout",
    ):
        if machine.HasField(name) and getattr(machine, name) >= 0:
            found[name] = getattr(machine, name)
    for name in ("max_concurrency", "max_multiplexing", "startup_timeout"):
        if found.get(name) == 0:
            del found[name]
    if "min_concurrency" in found:
        found["max_concurrency"] = max(found.get("max_concurrency", 2), found["min_concurrency"])
    return found


def _options_before(caller: Caller, alias: str) -> dict[str, Any]:
    found = [one for one in caller.ask("GET", "/v1/aliases")["aliases"] if one["alias"] == alias]
    return dict(found[0]["options"]) if found else {}


def urls(service: Any, path: str) -> Any:
    """Return the addresses of an endpoint."""
    base = service.url
    web_socket = "ws" + base.removeprefix("http")
    return messages.ServiceURLs(
        playground=f"{base}{path}",
        run=f"{base}{path}",
        queue=f"{base}/queue{path}",
        ws=f"{web_socket}{path}",
        log=f"{base}/calls",
    )


def info(one: dict[str, Any]) -> Any:
    """Return an alias as the clients read it."""
    options = one["options"]
    return messages.AliasInfo(
        alias=one["alias"],
        revision=one["revision"],
        auth_mode=AUTHS.index(one["auth"]),
        max_concurrency=options["max_concurrency"],
        max_multiplexing=options["max_multiplexing"],
        keep_alive=int(options["keep_alive"]),
        active_runners=one["runners"],
        min_concurrency=options["min_concurrency"],
        request_timeout=int(options["request_timeout"]),
        startup_timeout=int(options["startup_timeout"]),
        environment_name="main",
    )


async def list_aliases(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListAliases`."""
    check_environment(request)
    found = await service.callers.blocking(caller.ask, "GET", "/v1/aliases")
    return messages.ListAliasesResult(aliases=[info(one) for one in found["aliases"]])


async def set_alias(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `SetAlias`."""
    check_environment(request)
    path, body = f"/v1/aliases/{segment(request.alias)}", {"revision": request.revision}
    return messages.AliasResult(alias_info=info(await service.callers.blocking(caller.ask, "PUT", path, body)))


async def delete_alias(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `DeleteAlias`."""
    check_environment(request)
    path = f"/v1/aliases/{segment(request.alias)}"
    found = await service.callers.blocking(caller.ask, "DELETE", path)
    return messages.DeleteAliasResult(revision=found["revision"])


async def update(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `UpdateApplication`: other options for an alias, whose revision stays."""
    check_environment(request)
    path = f"/v1/aliases/{segment(request.application_name)}/options"
    found = await service.callers.blocking(caller.ask, "PATCH", path, options_of(request))
    return messages.AliasResult(alias_info=info(found))


async def list_applications(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListApplications`: the revisions of one name, or all."""
    check_environment(request)
    found = await service.callers.blocking(caller.ask, "GET", "/v1/revisions")
    wanted = request.application_name
    shown = []
    for one in found["revisions"]:
        if wanted and wanted not in (one["function"], one["alias"]):
            continue
        options = one["options"]
        shown.append(
            messages.ApplicationInfo(
                application_id=one["id"],
                max_concurrency=options["max_concurrency"],
                max_multiplexing=options["max_multiplexing"],
                keep_alive=int(options["keep_alive"]),
                min_concurrency=options["min_concurrency"],
                request_timeout=int(options["request_timeout"]),
                startup_timeout=int(options["startup_timeout"]),
                created_at=moment(one["created"]),
                environment_name="main",
            )
        )
    return messages.ListApplicationsResult(applications=shown)


async def delete_application(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `DeleteApplication`: remove a revision that no alias, schedule or app needs."""
    await service.callers.blocking(caller.ask, "DELETE", f"/v1/revisions/{segment(request.application_id)}")
    return messages.Empty()


async def roll_out(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `RolloutApplication`: its runners are replaced by new ones as requests come."""
    check_environment(request)
    found = await service.callers.blocking(caller.ask, "GET", "/v1/aliases")
    name = request.application_name
    one = next((one for one in found["aliases"] if one["alias"] == name), None)
    if one is None:
        raise errors.CallerError(f"there is no application `{name[:70]}`", hint="see `fal apps list`", status=404)
    for runner in await service.callers.blocking(runners_of, caller, {one["revision"]}):
        await service.callers.blocking(stop, caller, runner["call"])
    return messages.Empty()


def runners_of(caller: Caller, revisions: set[str]) -> list[dict[str, Any]]:
    """Return the runners of revisions: detached calls in their batches."""
    found = caller.host.request("detached.list", {"states": ["waiting", "running"]})["calls"]
    return [one for one in found if one.get("batch") in revisions]


def stop(caller: Caller, runner: str) -> None:
    """End a runner."""
    caller.host.request("detached.cancel", {"call": runner})


async def stop_runner(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `StopRunner` and `KillRunner`."""
    await service.callers.blocking(stop, caller, request.runner_id)
    return messages.Empty()


async def list_runners(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListRunners` and `ListAliasRunners`."""
    wanted = getattr(request, "alias", "")
    found = await service.callers.blocking(caller.ask, "GET", "/v1/revisions")
    known = {one["id"]: one for one in found["revisions"] if not wanted or one["alias"] == wanted}
    shown = []
    for one in await service.callers.blocking(runners_of, caller, set(known)):
        began = one.get("started_at") or one.get("queued_at") or 0.0
        shown.append(
            messages.RunnerInfo(
                runner_id=one["call"],
                uptime=max(time.time() - began, 0.0) if began else 0.0,
                revision=one["batch"],
                alias=known[one["batch"]]["alias"],
                state=0 if one.get("state") == "running" else 1,
                replacement=0,
                machine_type=str(one.get("machine_type") or ""),
            )
        )
    return messages.ListRunnersResponse(runners=shown)
