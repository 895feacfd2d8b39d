"""`atoll crons`: schedules of a server, their activations and the output of these."""

from __future__ import annotations

from typing import Annotated, Any

import cyclopts

from atoll.cli.functions.moments import moment
from atoll.cli.functions.served_by import path, server_host
from atoll.cli.tables import print_json, print_table
from atoll.cli.terminal import echo, write_output

app = cyclopts.App(
    name="crons",
    help="List, pause and cancel schedules; look at their activations and the output of these.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)
Flag = cyclopts.Parameter(negative="")
MOST_BYTES = 1 << 30
STATES = {"active": "Active", "paused": "Paused", "cancelled": "Not Active"}


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False) -> int:
    """List your schedules, the newest first.

    Parameters
    ----------
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    """
    found = server_host().server.ask("GET", path("schedules"))["schedules"]
    if json:
        print_json(found)
    elif not found:
        echo("no schedules; make one with `atoll function schedule CRON FILE FUNC`")
    else:
        columns = ("cron id", "function", "cron", "time zone", "next run", "state")
        print_table(columns, map(_row, found))
    return 0


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    rule = one["rule"]
    name = f"{one['app']}/{one['function']}" if one["app"] else one["function"]
    following = moment(one["next_run"], rule["timezone"])
    return one["id"], name, rule["cron"], rule["timezone"], following, STATES.get(one["state"], one["state"])


@app.command
def activations(cron: str, /, limit: int = 15, *, json: Annotated[bool, Flag] = False) -> int:
    """List the runs of a schedule, the newest first.

    Parameters
    ----------
    cron: str
        The id of the schedule.
    limit: int
        The most that are listed.
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    """
    found = server_host().server.ask("GET", f"{path('schedules', cron, 'activations')}?limit={limit}")["activations"]
    if json:
        print_json(found)
    elif not found:
        echo("no activations yet")
    else:
        columns = ("activation id", "scheduled", "start date", "finish date", "state", "reason")
        print_table(columns, map(_run, found))
    return 0


def _run(one: dict[str, Any]) -> tuple[str, ...]:
    state = one["outcome"] or one["state"]
    started, ended = one["started"], one["ended"] if one["state"] != "skipped" else 0.0
    return one["id"], moment(one["due"]), moment(started), moment(ended), state, one["reason"]


@app.command
def logs(cron: str, activation: str, /, *, raw: Annotated[bool, Flag] = False) -> int:
    """Print the output of a run.

    Parameters
    ----------
    cron: str
        The id of the schedule.
    activation: str
        The id of the run.
    raw: bool
        Print control characters as they are, on a terminal too.
    """
    data = server_host().server.ask("GET", path("schedules", cron, "activations", activation, "logs"), most=MOST_BYTES)
    write_output(data.decode("utf-8", "replace"), raw=raw)
    return 0


@app.command
def cancel(cron: str, /) -> int:
    """Cancel a schedule for good; a run that has begun goes on, and the history stays.

    Parameters
    ----------
    cron: str
        The id of the schedule.
    """
    server_host().server.ask("DELETE", path("schedules", cron))
    echo(f"cancelled {cron}")
    return 0


@app.command
def pause(cron: str, /) -> int:
    """Let a schedule have no runs until it is resumed.

    Parameters
    ----------
    cron: str
        The id of the schedule.
    """
    server_host().server.ask("POST", path("schedules", cron, "pause"))
    echo(f"paused {cron}")
    return 0


@app.command
def resume(cron: str, /) -> int:
    """Let a paused schedule run again; runs of the time between are not made up.

    Parameters
    ----------
    cron: str
        The id of the schedule.
    """
    found = server_host().server.ask("POST", path("schedules", cron, "resume"))
    echo(f"resumed {cron}; it runs next at {moment(found['next_run'], found['rule']['timezone'])}")
    return 0
