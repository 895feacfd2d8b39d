"""Bodies and answers of the routes of apps."""

from __future__ import annotations

from typing import Any

import msgspec

from atoll.server.endpoints.bodies import Failing, Options
from atoll.server.schedules.bodies import Rule

SERVED, SCHEDULED, CALLED = "served", "scheduled", "called"
"""Functions that answer requests, that the clock calls, and that programs call."""


class NewFunction(msgspec.Struct, frozen=True):
    """A function of a file.

    Args:
        name: in the file.
        kind: `SERVED`, `SCHEDULED` or `CALLED`.
        size_bytes: of its spool; the spools follow in the body in this order.
        port: of a served one.
        alias: of a served one: its name in addresses.
        auth: of a served one.
        options: of a served one.
        rule: of a scheduled one.
    """

    name: str
    kind: str
    size_bytes: int
    port: int = 0
    alias: str = ""
    auth: str = "private"
    options: Options = Options()
    rule: Rule | None = None


class NewDeployment(msgspec.Struct, frozen=True):
    """All functions of an app; `reset_scale` forgets the options that `scale` has set."""

    app: str
    functions: list[NewFunction]
    reset_scale: bool = False


class Function(msgspec.Struct, frozen=True):
    """A deployed function; see `NewFunction`. `schedule` is the id of a scheduled one's schedule, `failing` of a served one."""

    name: str
    kind: str
    revision: str
    alias: str = ""
    auth: str = "private"
    rule: Rule | None = None
    schedule: str = ""
    path: str = ""
    options: Options | None = None
    next_run: float = 0.0
    runners: int = 0
    failing: Failing | None = None


class App(msgspec.Struct, frozen=True):
    """An app.

    Args:
        deployment: the present one.
        deployments: ids and moments of all that it can go back to, the newest first.
    """

    app: str
    deployment: str
    changed: float
    functions: list[Function]
    deployments: list[tuple[str, float]]


class Apps(msgspec.Struct, frozen=True):
    """The caller's apps, by name."""

    apps: list[App]


class Scale(msgspec.Struct, frozen=True):
    """Options of an app's served functions that hold from now on, also for later deployments.

    Args:
        function: the only one that is meant; empty for all.
        options: of `endpoints.bodies.Options`, by name.
    """

    options: dict[str, Any]
    function: str = ""


class Rollback(msgspec.Struct, frozen=True):
    """The deployment to go back to; empty for the one before the present one."""

    deployment: str = ""
