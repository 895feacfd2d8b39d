"""`atoll apps`: apps that were deployed at a server."""

from __future__ import annotations

from typing import Annotated, Any

import cyclopts

from atoll.cli.functions.deploy import show as show_app
from atoll.cli.functions.served_by import path, server_host
from atoll.cli.functions.states import state_of
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import age, date, print_json, print_table
from atoll.cli.terminal import echo

app = cyclopts.App(
    name="apps",
    help="List, scale, roll back and delete apps that `atoll deploy` has made.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)
Flag = cyclopts.Parameter(negative="")


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False) -> int:
    """List your apps.

    Parameters
    ----------
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    """
    found = server_host().server.ask("GET", path("apps"))["apps"]
    if json:
        print_json(found)
    elif not found:
        echo("no apps; make one with `atoll deploy FILE`", error=True)
    else:
        rows = [(one["app"], ", ".join(f["name"] for f in one["functions"]), age(one["changed"])) for one in found]
        print_table(("app", "functions", "changed"), rows)
    return 0


@app.command
def show(name: str, /, *, json: Annotated[bool, Flag] = False) -> int:
    """Show an app: where its functions are, and the deployments that it can go back to.

    Parameters
    ----------
    name: str
        The app.
    json: bool
        Print an object; moments in seconds since the epoch.
    """
    server = server_host().server
    found = server.ask("GET", path("apps", name))
    if json:
        print_json(found)
        return 0
    show_app(found, server.url)
    for one in found["functions"]:
        if one["options"] is not None:
            options = "  ".join(
                f"{key}={value}" for key, value in one["options"].items() if value not in ((), [], 0, 0.0)
            )
            echo(f"{one['name']}: {state_of(one)}  auth={one['auth']}  {options}")
    print_table(
        ("deployment", "created", ""),
        [(one, date(at), "present" if one == found["deployment"] else "") for one, at in found["deployments"]],
    )
    return 0


@app.command
def scale(
    name: str,
    /,
    *,
    function: str = "",
    min_concurrency: int | None = None,
    max_concurrency: int | None = None,
    max_multiplexing: int | None = None,
    keep_alive: float | None = None,
    startup_timeout: float | None = None,
    request_timeout: float | None = None,
    rate_limit: int | None = None,
) -> int:
    """Change how the served functions of an app are served, from now on and in later deployments.

    Parameters
    ----------
    name: str
        The app.
    function: str
        The only function that is meant; default: all that are served.
    min_concurrency: int
        Runners that are kept although nobody asks.
    max_concurrency: int
        The most runners.
    max_multiplexing: int
        Requests that a runner has at a time.
    keep_alive: float
        Seconds for which an idle runner is kept.
    startup_timeout: float
        Seconds until a runner answers.
    request_timeout: float
        Seconds until an answer must begin; 0 for no bound.
    rate_limit: int
        Requests a minute of each key; 0 for no bound.
    """
    given: dict[str, Any] = {
        "min_concurrency": min_concurrency,
        "max_concurrency": max_concurrency,
        "max_multiplexing": max_multiplexing,
        "keep_alive": keep_alive,
        "startup_timeout": startup_timeout,
        "request_timeout": request_timeout,
        "rate_limit": rate_limit,
    }
    options = {key: value for key, value in given.items() if value is not None}
    if not options:
        raise TargetError("nothing is to be changed", hint="give an option, such as `--max-concurrency 4`")
    server_host().server.ask("POST", path("apps", name, "scale"), {"options": options, "function": function})
    echo(f"scaled {name}: {', '.join(f'{key}={value}' for key, value in options.items())}")
    return 0


@app.command
def rollback(name: str, /, *, to: str = "") -> int:
    """Let an app be as in the deployment before the present one.

    Parameters
    ----------
    name: str
        The app.
    to: str
        Another deployment, as `atoll apps show NAME` lists them.
    """
    server = server_host().server
    found = server.ask("POST", path("apps", name, "rollback"), {"deployment": to})
    show_app(found, server.url)
    return 0


@app.command
def logs(
    name: str,
    function: str,
    /,
    *,
    lines: Annotated[int, cyclopts.Parameter(alias="-n")] = 50,
    all_: Annotated[bool, cyclopts.Parameter(name="--all", negative="")] = False,
    follow: Annotated[bool, cyclopts.Parameter(alias="-f", negative="")] = False,
    raw: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Print the end of the output of a function: of its runners, as `atoll function logs`, or of its last run by the clock.

    Parameters
    ----------
    name: str
        The app.
    function: str
        The function; those that programs call print there.
    lines: int
        The last lines of each runner.
    all_: bool
        Runners that are over, too.
    follow: bool
        Print what comes: of runners until interrupted, of a run until its end.
    raw: bool
        Print control characters as they are, on a terminal too.
    json: bool
        Print an object; moments in seconds since the epoch.
    """
    from atoll.cli.calls.output import output  # for one function alone, as the next one
    from atoll.cli.functions.logs import logs as show

    server = server_host().server
    found = next((one for one in server.ask("GET", path("apps", name))["functions"] if one["name"] == function), None)
    if found is not None and found["kind"] == "served":
        return show(found["revision"], lines=lines, everything=all_, follow=follow, raw=raw, json=json)
    if found is None or found["kind"] != "scheduled":
        server.ask("GET", path("apps", name, "functions", function, "logs"), most=1 << 20)  # says why there is none
        return 1
    runs = server.ask("GET", f"{path('schedules', found['schedule'], 'activations')}?limit=1000")["activations"]
    call = next((one["id"] for one in runs if one["state"] in ("running", "finished")), "")
    if not call:
        echo(f"`{function}` has not run yet", error=True)
        return 0
    return output(call, raw=raw, json=json, follow=follow)


@app.command
def delete(name: str, /) -> int:
    """Delete an app: its addresses go, and its schedules are cancelled; calls that run go on.

    Parameters
    ----------
    name: str
        The app.
    """
    server_host().server.ask("DELETE", path("apps", name))
    echo(f"deleted {name}")
    return 0
