"""Functions that a server calls by the clock."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.sdk.call import name_of
from atoll.sdk.detached.spawning import spool_of

if TYPE_CHECKING:
    from atoll.sdk.attempts import CallableFunction


def schedule(function: CallableFunction, cron: str = "") -> dict[str, Any]:
    """Have a function's server call it by the clock; return the schedule, as the server describes it.

    Args:
        cron: in place of the function's option `schedule`; its other options about schedules hold.

    Raises:
        TypeError: the function needs arguments.
        ValueError: it has no schedule.
        CallerError: the server finds it wrong.
    """
    rule = rule_of(function, cron)
    server = server_of(function, "schedules are")
    described = {"function": name_of(function.__wrapped__), "rule": rule}
    body = b"".join([json.dumps(described).encode(), b"\n", *map(bytes, spool_of(function))])
    made: dict[str, Any] = server.put("/v1/schedules", body, len(body), "POST")
    return made


def rule_of(function: CallableFunction, cron: str = "") -> dict[str, str]:
    """Return when a function is called, as the server's routes take it; see `schedule`."""
    options = function.options
    expression = cron or options.schedule
    name = name_of(function.__wrapped__)
    if not expression:
        raise ValueError(f'`{name}` has no schedule: give `@isolated` the option `schedule="0 7 * * *"`')
    needed = required(function)
    if needed:
        raise TypeError(
            f"`{name}` cannot be scheduled: it needs {', '.join(f'`{one}`' for one in needed)}, and the clock gives no "
            "arguments; give each a default"
        )
    return {"cron": expression, **{one: getattr(options, one) for one in ("timezone", "overlap", "missed")}}


def required(function: CallableFunction) -> list[str]:
    """Return the names of the arguments without which a function cannot be called."""
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]  # it can be called
    except (TypeError, ValueError):  # of a builtin
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in variable]


def server_of(function: CallableFunction, what: str) -> Any:
    """Return the server of a function's host.

    Args:
        what: begins the error's text: "schedules are".

    Raises:
        ResourcesUnavailable: it is this machine.
    """
    server = getattr(function.host, "server", None)
    if server is None:
        raise errors.ResourcesUnavailable(
            f"{what} of a server, and this function runs on the own machine",
            hint="log in with `atoll auth login`, or give the function `host=Host(URL)`",
        )
    return server
