"""`atoll alias`: names in addresses of endpoints, each of which points to a revision."""

from __future__ import annotations

from typing import Annotated, Any

import cyclopts

from atoll.cli.functions.served_by import path, server_host
from atoll.cli.tables import print_json, print_table
from atoll.cli.terminal import echo

app = cyclopts.App(
    name="alias",
    help="List and point the names of endpoints.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False) -> int:
    """List your aliases.

    Parameters
    ----------
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    """
    found = server_host().server.ask("GET", "/v1/aliases")["aliases"]
    if json:
        print_json(found)
    elif not found:
        echo("there are no aliases", error=True)
    else:
        rows = [
            (one["alias"], one["revision"], one["auth"], str(one["options"]["max_concurrency"]), str(one["runners"]))
            for one in found
        ]
        print_table(("Alias", "Revision", "Auth", "Max Concurrency", "Runners"), rows)
    return 0


@app.command(name="set")
def set_(alias: str, revision: str, /) -> int:
    """Point an alias to a revision.

    Parameters
    ----------
    alias: str
        The name; a new one is made.
    revision: str
        The revision's id, see `atoll function list`.
    """
    _say(_put(alias, {"revision": revision}))
    return 0


@app.command
def rollback(alias: str, /) -> int:
    """Point an alias to the revision that it has pointed to before.

    Parameters
    ----------
    alias: str
        The name.
    """
    _say(_put(alias, {}))
    return 0


@app.command
def delete(alias: str, /) -> int:
    """Delete an alias; its revision stays callable by its id.

    Parameters
    ----------
    alias: str
        The name.
    """
    found = server_host().server.ask("DELETE", path("aliases", alias))
    echo(f"`{found['alias']}` points to nothing any more; its revision is `{found['revision']}`")
    return 0


def _put(alias: str, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = server_host().server.ask("PUT", path("aliases", alias), body)
    return found


def _say(found: dict[str, Any]) -> None:
    echo(f"`{found['alias']}` points to the revision `{found['revision']}`")
