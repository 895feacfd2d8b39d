"""`atoll queue`: requests and calls that wait at a server for one's own functions."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import cyclopts

from atoll.cli.functions.served_by import path, server_host
from atoll.cli.tables import age, date, print_json, print_table
from atoll.cli.terminal import echo

app = cyclopts.App(
    name="queue",
    help="See what waits at a server for your functions, and cancel it.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)
Flag = cyclopts.Parameter(negative="")


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False) -> int:
    """List your queues: requests to endpoints, and spawned calls of deployed functions, that are not over.

    Parameters
    ----------
    json: bool
        Print a list of objects.
    """
    found = server_host().server.ask("GET", path("queues"))["queues"]
    if json:
        print_json(found)
    elif not found:
        echo("nothing is served or deployed", error=True)
    else:
        rows = [(one["name"], str(one["waiting"]), str(one["running"])) for one in found]
        print_table(("queue", "waiting", "running"), rows, right=("waiting", "running"))
    return 0


@app.command
def show(name: str, /, *, json: Annotated[bool, Flag] = False) -> int:
    """Show a queue: what runs, and what waits with its position; 0 is the next.

    Parameters
    ----------
    name: str
        The alias of an endpoint, or `APP/FUNCTION`.
    json: bool
        Print an object; moments in seconds since the epoch.
    """
    found = server_host().server.ask("GET", _address(name))
    if json:
        print_json(found)
        return 0
    if found["entries"]:
        columns = ("id", "state", "position", "queued", "attempts", "detail")
        print_table(columns, map(_row, found["entries"]), right=("position", "attempts"))
    left_out = found["waiting"] + found["running"] - len(found["entries"])
    more = f", {left_out} of them not shown" if left_out > 0 else ""
    echo(f"{found['name']}: {found['waiting']} wait, {found['running']} run{more}", error=True)
    return 0


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    position = str(one["position"]) if one["state"] == "waiting" else ""
    queued = f"{date(one['queued_at'])} ({age(one['queued_at'])})"
    return one["id"], one["state"], position, queued, str(one["attempts"]), one["detail"]


@app.command
def flush(name: str, /) -> int:
    """Cancel all that waits in a queue; what runs goes on.

    Parameters
    ----------
    name: str
        The alias of an endpoint, or `APP/FUNCTION`.
    """
    found = server_host().server.ask("DELETE", _address(name))
    echo(f"cancelled {found['cancelled']} of {found['name']}")
    return 0


def _address(name: str) -> str:
    return f"{path('queues')}/{quote(name, safe='/')}"
