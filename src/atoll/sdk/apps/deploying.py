"""All isolated functions of a program, deployed at a server as one app."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atoll.sdk.apps.scheduling import rule_of
from atoll.sdk.detached.spawning import spool_of
from atoll.sdk.serving import describe

if TYPE_CHECKING:
    from atoll.sdk.attempts import CallableFunction

SERVED, SCHEDULED, CALLED = "served", "scheduled", "called"


def deploy(
    server: Any,
    app: str,
    functions: Mapping[str, CallableFunction],
    *,
    aliases: Mapping[str, str] | None = None,
    auth: str = "private",
    reset_scale: bool = False,
) -> dict[str, Any]:
    """Deploy functions as an app, all or none; return the app as the server describes it.

    Args:
        server: see `host.remote.server.Server`.
        functions: by their names in the file.
        aliases: names in addresses of served functions, in place of their own.
        auth: of served functions.

    Raises:
        ValueError: a function is both served and scheduled, or there is no function.
        TypeError: a scheduled function needs arguments.
        SerializationError: a function cannot be sent.
        CallerError: the server refuses it.
    """
    if not functions:
        raise ValueError("there is no function to deploy: mark one with `@isolated`")
    described, spools = [], []
    for name, function in functions.items():
        sent, found = _described(name, function, (aliases or {}).get(name, ""), auth)
        spool = b"".join(map(bytes, spool_of(sent, own="port" in found)))
        described.append({**found, "name": name, "size_bytes": len(spool)})
        spools.append(spool)
    line = {"app": app, "functions": described, "reset_scale": reset_scale}
    body = b"".join([json.dumps(line).encode(), b"\n", *spools])
    made: dict[str, Any] = server.put("/v1/apps", body, len(body), "POST")
    return made


def _described(name: str, function: CallableFunction, alias: str, auth: str) -> tuple[CallableFunction, dict[str, Any]]:
    options = function.options
    is_served = options.serve or options.exposed_port is not None
    if is_served and options.schedule:
        raise ValueError(f"`{name}` is both served and scheduled: write two functions, or leave one option out")
    if is_served:
        served, found = describe(function, auth, {})
        return served, {**found, "kind": SERVED, "alias": alias or name.lower().replace("_", "-").strip("-")}
    if alias:
        raise ValueError(f"`{name}` is not served, and so has no alias: give it `serve=True`")
    if options.schedule:
        return function, {"kind": SCHEDULED, "rule": rule_of(function)}
    return function, {"kind": CALLED}
