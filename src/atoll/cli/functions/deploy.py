"""`atoll deploy FILE`: all isolated functions of a file, at a server as one app."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts

from atoll.cli.functions.moments import moment
from atoll.cli.functions.served_by import server_host
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import print_json, print_table
from atoll.cli.terminal import echo

Flag = cyclopts.Parameter(negative="")


def deploy(
    file: Path,
    /,
    *,
    name: str = "",
    alias: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = (),
    auth: Literal["private", "public", "shared"] = "private",
    reset_scale: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Deploy all isolated functions of a file at a server, all or none.

    Functions with `serve=True` or an `exposed_port` get addresses, those with a `schedule` are called by the clock, and
    all others can be called from any program: `Function.lookup("NAME/FUNC").remote(…)`. Functions of the app that the
    file has no more are taken away.

    Parameters
    ----------
    file: Path
        Python file.
    name: str
        Name of the app; default: that of the file.
    alias: tuple[str, ...]
        `FUNC=NAME`: the name in the address of a served function; default: its own name.
    auth: str
        Who may call served functions: `private` (your keys), `shared` (all users of the server), `public` (anybody).
    reset_scale: bool
        Forget the options that `atoll apps scale` has set.
    json: bool
        Print the app as an object.
    """
    from atoll.cli.programs.program import load
    from atoll.cli.programs.target import isolated_functions  # slow to import, as the next one
    from atoll.sdk.apps.deploying import deploy as deployed

    aliases = dict(_pair(one) for one in alias)
    module, _ = load(str(file))
    found = {
        one: function
        for one, function in isolated_functions(module).items()
        if getattr(function.__wrapped__, "__module__", "") == module.__name__  # others are of files that it imports
    }
    if not found:
        raise TargetError(f"`{file}` defines no isolated function", hint="mark one with `@isolated`")
    if unknown := aliases.keys() - found:
        raise TargetError(f"`{file}` has no function `{min(unknown)}`", hint=f"it has {', '.join(sorted(found))}")
    app = name or re.sub("[^a-z0-9]+", "-", file.resolve().stem.lower()).strip("-")
    host = server_host()
    made = deployed(host.server, app, _at(found, host), aliases=aliases, auth=auth, reset_scale=reset_scale)
    if json:
        print_json(made)
        return 0
    show(made, host.server.url)
    return 0


def _pair(text: str) -> tuple[str, str]:
    function, _, alias = text.partition("=")
    if not function or not alias:
        raise TargetError(f"`--alias {text}` names no function and alias", hint="write `--alias FUNC=NAME`")
    return function, alias


def _at(functions: dict[str, Any], host: Any) -> dict[str, Any]:
    """Return the functions as ones of the server: specs depend on it."""
    return {
        name: function if getattr(function.host, "server", None) else function.on(host)
        for name, function in functions.items()
    }


def show(app: dict[str, Any], url: str) -> None:
    """Print an app, with the place of each function."""
    echo(f"{app['app']}  deployment {app['deployment']}")
    rows = [(one["name"], one["kind"], _place(app["app"], one, url)) for one in app["functions"]]
    print_table(("function", "kind", "where"), rows)


def _place(app: str, one: dict[str, Any], url: str) -> str:
    if one["kind"] == "served":
        return f"{url.rstrip('/')}{one['path']}"
    if one["kind"] == "scheduled":
        rule = one["rule"]
        following = moment(one["next_run"], rule["timezone"])
        return f"{rule['cron']} {rule['timezone']}, " + (f"next {following}" if following else "paused")
    return f'Function.lookup("{app}/{one["name"]}")'
