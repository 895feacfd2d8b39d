"""Requests that are no calls, whatever the transport: status, records of calls, volumes, environments.

Names and JSON-compatible data in, data out. Each caller sees only their own; an administrator sees everybody's status.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

from atoll import __version__, errors
from atoll.daemon import administration, call_requests, leasing, restore
from atoll.daemon.joined import part as joined
from atoll.daemon.leasing import Caller
from atoll.daemon.secrets import requests as secrets
from atoll.daemon.services import Services
from atoll.environments import requests as environments
from atoll.environments.asked import uploaded
from atoll.model.specs import EnvironmentSpec

T = TypeVar("T")

ENDINGS = ("stop", "drain")
"""Requests that end the daemon: at once, or with its last client. The transport obeys after the answer."""

_ENVIRONMENTS_OF_ALL = ("environments.build", "environments.lock")
"""Requests for environments that show and change nothing of other users."""


async def answer(
    services: Services, caller: Caller, name: str, arguments: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Answer a request.

    Raises:
        ProtocolMismatch: there is no such request.
        ResourcesUnavailable: it is not for this caller.
        VolumeBusy: a function asks for a restore.
        AtollError, ValueError: as the services raise.
    """
    if caller.nested:
        if name == "volume.restore":
            raise restore.refused_inside()
        raise errors.ResourcesUnavailable("a function cannot control the daemon", hint="use the command line")
    if name == "status":
        return await _status(services, caller)
    if name == "capacity":
        return services.engine.capacity()
    if name in ENDINGS:
        _check_administers(caller, name)
        left = await services.detached.left() if name == "stop" else {}
        return {"grace_seconds": services.engine.longest_grace_seconds(), "detached": left}
    if name in administration.REQUESTS:
        return await administration.handle(services, caller, name, arguments)
    if name in joined.REQUESTS:
        leasing.check_owner(caller, f"ask for `{name}`")
        if caller.remote:
            raise errors.ResourcesUnavailable(f"`{name}` is for the server itself", hint="see `atoll nodes`")
        found = await services.joined.answer(name, arguments)
        if name == "vacate":
            found["detached"] = sum((await services.detached.left()).values())
        return found
    if name.startswith("calls."):
        return await call_requests.handle(services, caller, name, arguments)
    if name.startswith("secrets."):
        return await secrets.handle(services.secrets, services.engine, caller, name, arguments)
    if name in ("volume.quota", "quotas.set"):
        return await _quota(services, caller, name, arguments)
    if name.startswith("volume."):
        return await restore.handle(services, caller.user, name, arguments, progress)
    if name.startswith("environments."):
        return await _environments(services, caller, name, arguments, progress)
    raise errors.ProtocolMismatch(f"unknown request `{name}`", hint="upgrade the older side")


async def _quota(services: Services, caller: Caller, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer `volume.quota`, the caller's own (an administrator may name a `user`), or set one for a server."""
    user = caller.user
    if "user" in arguments or name == "quotas.set":
        _check_administers(caller, name)
        user = str(arguments.get("user"))
    if name == "volume.quota":
        return (await services.node.quotas.usage(Caller(user).user)).to_data()
    set_ = services.node.quotas.set
    return (await set_(Caller(user).user, arguments.get("bytes", 0), arguments.get("files", 0))).to_data()


async def _environments(
    services: Services, caller: Caller, name: str, arguments: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Answer about the environments that the caller sees: a user of a server sees their own, and those that all share."""
    if not caller.remote and not caller.may_administer and name not in _ENVIRONMENTS_OF_ALL:
        _check_administers(caller, name)
    if (caller.remote or not caller.may_administer) and "environment" in arguments:
        asked = EnvironmentSpec.from_data(arguments["environment"])
        check = functools.partial(leasing.checked_environment, services, caller, asked)
        spec = await leasing.in_turn(services, caller, asked, check)
        arguments = {**arguments, "environment": spec.to_data()}
    leasing.confine_builds(services, caller)
    store = leasing.environments_of(services, caller)
    found: dict[str, Any] = await environments.handle(store, name, arguments, progress)
    return shown(services, caller, found)


def shown(services: Services, caller: Caller, value: T) -> T:
    """Return an answer, error or line as its caller may see it: for a user of a server without files of the machine."""
    if not caller.remote:
        return value
    found: T = _without_paths(value, lambda text: uploaded.shown(text, services.settings, caller.user))
    return found


def shown_failure(services: Services, caller: Caller, error: dict[str, Any]) -> dict[str, Any]:
    """Return an error as its caller may see it; a user of a server is told to tell its operator what the machine lacks."""
    found = shown(services, caller, error)
    if not caller.remote or found.get("code") != errors.SandboxUnavailable.code:
        return found
    hint = f"tell the server's operator: {found['hint']}" if found.get("hint") else "tell the server's operator"
    return {**found, "message": f"the server's machine is not ready: {found.get('message', '')}", "hint": hint}


def _without_paths(value: Any, shown: Callable[[str], str]) -> Any:
    """Return a part of an answer that names no files of the machine."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list | tuple):
        return [_without_paths(one, shown) for one in value]
    if isinstance(value, dict):
        return {key: "" if key == "interpreter" else _without_paths(one, shown) for key, one in value.items()}
    return value


def _check_administers(caller: Caller, name: str) -> None:
    if not caller.may_administer:
        raise errors.ResourcesUnavailable(f"`{name}` is for administrators", hint="ask the machine's owner")


async def _status(services: Services, caller: Caller) -> dict[str, Any]:
    user = None if caller.may_administer else caller.user
    sandboxes, workers = await services.engine.status(user)
    if caller.remote:
        sandboxes = [{**row, "pid": 0} for row in sandboxes]  # the machine's own numbers
        workers = [{**row, "pid": None} for row in workers]
    return {
        "daemon": {
            "pid": 0 if caller.remote else os.getpid(),
            "home": "" if caller.remote else str(services.settings.home),
            "version": __version__,
            "started_at": services.started_at,
            "waiting": services.engine.waiting(user),
            "settings": {} if caller.remote else services.settings_watch.facts(),  # it names files of the machine
            "volumes": {} if caller.remote else services.node.data.facts(),
        },
        "sandboxes": sandboxes,
        "workers": workers,
        "calls": await call_requests.rows(services, caller),
        "capacity": services.engine.capacity(),
        **({"limits": {"workers": services.users.share(caller.user).workers}} if caller.remote else {}),
    }
