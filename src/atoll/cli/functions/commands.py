"""`atoll function`: register functions at a server, and look at what is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts

from atoll.cli.functions.moments import moment
from atoll.cli.functions.served_by import path, server_host
from atoll.cli.functions.states import state_of
from atoll.cli.older_name import is_older_name
from atoll.cli.tables import age, print_json, print_table, wrong_usage
from atoll.cli.terminal import echo, write_output

app = cyclopts.App(
    name="function",
    help="Serve functions over HTTP from a server, have it call them by the clock, and look at them.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")


@app.command
def serve(
    file: Path,
    function: str,
    /,
    *,
    alias: str = "",
    auth: Literal["private", "public", "shared"] = "private",
    min_concurrency: int | None = None,
    max_concurrency: int | None = None,
    max_multiplexing: int | None = None,
    keep_alive: float | None = None,
    startup_timeout: float | None = None,
    request_timeout: float | None = None,
    health_path: str | None = None,
    rate_limit: int | None = None,
    cors: Annotated[list[str] | None, cyclopts.Parameter(negative="")] = None,
) -> int:
    """Register a function as a new revision, and print its address.

    The function has the option `serve=True`, or `exposed_port=8080` and starts a server of its own. Of one that
    `fal-serverless` registers, an answer of `serve=True` is `{"result": VALUE}`, as clients of that program read it.

    Parameters
    ----------
    file: Path
        Python file.
    function: str
        Name of the function in it.
    alias: str
        Name in the address, which points to this revision from now on; default: the revision's id is there.
    auth: str
        Who may call: `private` (your keys), `shared` (all users of the server), `public` (anybody).
    min_concurrency: int
        Runners that are kept although nobody asks; default: 0.
    max_concurrency: int
        The most runners; default: 2.
    max_multiplexing: int
        Requests that a runner has at a time; default: 1.
    keep_alive: float
        Seconds that an idle runner is kept; default: the function's.
    startup_timeout: float
        Seconds until a runner's port must answer; default: 600.
    request_timeout: float
        Seconds until an answer must begin, 0 for no bound; default: 3600.
    health_path: str
        Path that must answer 200 before a runner gets requests; default: the port alone counts.
    rate_limit: int
        Requests a minute of each caller; default: no bound.
    cors: list[str]
        Origin of pages that may call it, `*` for all; may be given again.
    """
    serving = {
        "min_concurrency": min_concurrency,
        "max_concurrency": max_concurrency,
        "max_multiplexing": max_multiplexing,
        "keep_alive": keep_alive,
        "startup_timeout": startup_timeout,
        "request_timeout": request_timeout,
        "health_path": health_path,
        "rate_limit": rate_limit,
        "cors": cors,
    }
    given: dict[str, Any] = {name: value for name, value in serving.items() if value is not None}
    if is_older_name():
        given["enveloped"] = True
    from atoll.cli.programs.target import find

    found = find(f"{file}::{function}").function
    there = found if getattr(found.host, "server", None) else found.on(server_host())
    endpoint = there.serve(alias, auth=auth, **given)
    if alias:
        echo(f"Registered a new revision for function '{alias}' (revision='{endpoint.revision}').")
    else:
        echo(f"Registered anonymous function '{endpoint.revision}'.")
    echo(f"URL: {endpoint.url}")
    return 0


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False) -> int:
    """List your revisions, the newest first, with their workers, or the reason that these do not start.

    Parameters
    ----------
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    """
    found = server_host().server.ask("GET", "/v1/revisions")["revisions"]
    if json:
        print_json(found)
    elif not found:
        echo("nothing is served", error=True)
    else:
        rows = [
            (
                one["id"],
                one["alias"],
                one["function"],
                one["auth"],
                age(one["created"]),
                state_of(one) if one["port"] else "",
            )
            for one in found
        ]
        print_table(("revision", "alias", "function", "auth", "age", "state"), rows)
    return 0


@app.command
def delete(revision: str = "", /, *, unused: Annotated[bool, Flag] = False) -> int:
    """Delete a revision that no alias, schedule or app needs; it is callable by its id no more.

    Parameters
    ----------
    revision: str
        The id, as `atoll function list` has it.
    unused: bool
        Delete all that nothing needs, but for those that `atoll alias rollback` would go back to.
    """
    if bool(revision) == unused:
        return wrong_usage("give a revision, or --unused")
    address = path("revisions", revision) if revision else path("revisions") + "?unused=1"
    for one in (found := server_host().server.ask("DELETE", address)["revisions"]):
        echo(f"deleted {one}")
    if not found:
        echo("nothing is unused", error=True)
    return 0


@app.command
def logs(
    name: str = "",
    /,
    *,
    lines: Annotated[int | None, cyclopts.Parameter(alias="-n")] = None,
    all_: Annotated[bool, cyclopts.Parameter(name="--all", negative="")] = False,
    follow: Annotated[bool, cyclopts.Parameter(alias="-f", negative="")] = False,
    raw: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
    url: str = "",
) -> int:
    """Print the end of the output of an endpoint's runners, and their state: of those that run, else of the last one.

    On a terminal control characters are shown as escapes, apart from colours and progress bars.

    Parameters
    ----------
    name: str
        The alias or revision; without one, the last lines of all of yours.
    lines: int
        The last lines of each runner, of at most 64 KiB (default: 50); without a name, of all together (default: 100).
    all_: bool
        Runners that are over, too.
    follow: bool
        Print what comes, also of runners that start later, until interrupted.
    raw: bool
        Print the function's own bytes to a terminal too, whatever they do there.
    json: bool
        Print an object with `runners`; moments in seconds since the epoch.
    url: str
        The endpoint's address, in place of its name.
    """
    if name and url:
        return wrong_usage("give a name or --url")
    if not name and not (follow or json or all_):
        from atoll.sdk.apps import output  # as slow to import as the client

        found = output.lines(server_host(), url, 100 if lines is None else lines)
        if not found:
            echo("served functions have printed nothing that is kept", error=True)
        write_output("".join(f"{line}\n" for _, line in found), raw=raw)
        return 0
    from atoll.cli.functions.logs import logs as show
    from atoll.sdk.apps.output import endpoint_of

    if not (given := name or endpoint_of(url)):
        return wrong_usage("an alias or revision is missing")
    return show(given, lines=50 if lines is None else lines, everything=all_, follow=follow, raw=raw, json=json)


@app.command
def schedule(
    cron: str,
    file: str,
    function: str = "",
    /,
    *,
    timezone: str = "",
    overlap: str = "",
    missed: str = "",
    json: Annotated[bool, Flag] = False,
) -> int:
    """Have the server call a function by the clock, and print the id of the schedule.

    Parameters
    ----------
    cron: str
        Minute, hour, day of the month, month and day of the week, such as `0 7 * * *`; with six fields seconds are first.
    file: str
        The program; `FILE.py::FUNC` names the function, too.
    function: str
        The function; it has no required arguments.
    timezone: str
        In which the expression is meant, such as `Europe/Berlin`; default: UTC, or as the function says.
    overlap: str
        A run whose predecessor has not ended: skip, queue or allow; default: skip, or as the function says.
    missed: str
        Runs that the server missed by more than a minute: skip, once or all; default: skip, or as the function says.
    json: bool
        Print the schedule as an object.
    """
    from atoll.cli.programs.target import find  # slow to import
    from atoll.sdk.apps.scheduling import schedule as scheduled

    found = find(f"{file}::{function}" if function else file).function
    found = found if getattr(found.host, "server", None) else found.on(server_host())
    given = {"timezone": timezone, "overlap": overlap, "missed": missed}
    changes: Any = {name: value for name, value in given.items() if value}
    made = scheduled(found.on(**changes) if changes else found, cron)
    if json:
        print_json(made)
        return 0
    echo(made["id"])
    rule = made["rule"]
    echo(f"`{made['function']}` runs next at {moment(made['next_run'], rule['timezone'])}", error=True)
    return 0
