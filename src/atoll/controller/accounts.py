"""Keys and secrets of the caller, and the environments that there are: one."""

from __future__ import annotations

from typing import Any

from atoll import errors
from atoll.controller.callers import Caller
from atoll.controller.logs import moment
from atoll.controller.messages import SCOPES, messages
from atoll.terminal_text import cell

MAIN = "main"
"""The one environment, as the clients of today mean the word: a stage of applications."""


async def make_key(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `CreateUserKey`; permissions of today are one of the two scopes."""
    scope = SCOPES[request.scope] if request.scope in (0, 1) else "API"
    if request.policy_preset:
        scope = "API" if request.policy_preset in ("API", "READONLY") else "ADMIN"
    made = await service.callers.blocking(caller.ask, "POST", "/v1/keys", {"scope": scope, "alias": request.alias[:64]})
    return messages.CreateUserKeyResponse(key_id=made["id"], key_secret=made["secret"])


async def list_keys(_request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListUserKeys`."""
    found = await service.callers.blocking(caller.ask, "GET", "/v1/keys")
    return messages.ListUserKeysResponse(
        user_keys=[
            messages.UserKey(
                key_id=one["id"],
                created_at=moment(one["created"]),
                scope=SCOPES.index(one["scope"]),
                alias=one["alias"],
            )
            for one in found["keys"]
        ]
    )


async def revoke_key(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `RevokeUserKey`."""
    await service.callers.blocking(caller.ask, "DELETE", f"/v1/keys/{segment(request.key_id)}")
    return messages.Empty()


async def set_secret(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `SetSecret`: one without a value is deleted."""
    check_environment(request)
    if request.HasField("value"):
        name, value = "secrets.set", {"name": request.name, "value": request.value}
    else:
        name, value = "secrets.delete", {"name": request.name}
    await service.callers.blocking(caller.host.request, name, value)
    return messages.Empty()


async def list_secrets(request: Any, caller: Caller, service: Any) -> Any:
    """Answer `ListSecrets`."""
    check_environment(request)
    found = await service.callers.blocking(caller.host.request, "secrets.list", {})
    return messages.ListSecretsResponse(
        secrets=[
            messages.Secret(
                name=one["name"],
                created_time=moment(one["changed_at"]),
                environment_name=MAIN,
                default_exposed=True,
            )
            for one in found["secrets"]
        ]
    )


async def list_environments(_request: Any, _caller: Caller, _service: Any) -> Any:
    """Answer `ListEnvironments`."""
    one = messages.EnvironmentInfo(name=MAIN, is_default=True, description="the one of this server")
    one.created_at.seconds = 0
    return messages.ListEnvironmentsResponse(environments=[one])


async def create_environment(request: Any, _caller: Caller, _service: Any) -> Any:
    """Answer `CreateEnvironment`: there is one, and no other can be made.

    Raises:
        CallerError: always.
    """
    raise errors.CallerError(
        f"no environment `{cell(request.name, 50)}` is made: this server has `{MAIN}` alone",
        hint="deploy under another name (`--app-name`), or as another user of the server",
    )


async def delete_environment(request: Any, _caller: Caller, _service: Any) -> Any:
    """Answer `DeleteEnvironment`: the one that there is stays.

    Raises:
        CallerError: always.
    """
    if request.name == MAIN:
        raise errors.CallerError(f"`{MAIN}` stays: it is the one environment", hint="remove apps: `fal apps delete`")
    check_environment(messages.ListAliasesRequest(environment_name=request.name))
    raise errors.CallerError("an environment without a name is none", hint="see `fal environments list`")


def check_environment(request: Any) -> None:
    """Check that a request is for the one environment.

    Raises:
        CallerError: it is for another one.
    """
    if request.environment_name not in ("", MAIN):
        raise errors.CallerError(
            f"there is no environment `{request.environment_name[:50]}` here", hint="this server has `main` alone"
        )


def segment(text: str) -> str:
    """Return a part of a path."""
    from urllib.parse import quote

    return quote(text, safe="")
