"""`atoll nodes`: the machines of a server, for its operators."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from atoll import errors
from atoll.cli.confirmation import Yes, confirmed, counted
from atoll.cli.nodes.place import Place, opened
from atoll.cli.nodes.table import print_nodes
from atoll.cli.nodes.values import labels_of
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo
from atoll.terminal_text import printable

app = cyclopts.App(
    name="nodes",
    help="List, drain and remove the machines of a server, and make tokens for new ones: on the server's machine with "
    "the rights of its state directory, elsewhere with the ADMIN key of an operator.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")
LOOK_SECONDS = 1.0
EMPTY_LOOKS = 2
"""Looks in a row that find no call: one that was placed just before may not be in the figures yet."""
LOCAL = "local"
"""The server's own machine."""


@app.command
def token(
    *,
    uses: int = 1,
    hours: float = 1.0,
    label: Annotated[list[str] | None, Flag] = None,
    revoke: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Make a token by which a machine joins, and print the command for that machine. It is shown this once.

    Parameters
    ----------
    uses: int
        Machines that may join by it.
    hours: float
        Hours until it expires.
    label: list[str]
        A label of each node that joins by it, such as zone=lab-2; may be given again.
    revoke: bool
        Make none: all tokens so far are worth nothing.
    json: bool
        Print an object with `token`, `expires`, `uses` and `url`.
    host: str
        Address of the server; default: this machine's state directory, else the server that you are logged in to.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database, as `atoll server --database` has it.
    """
    with opened(host, database, home) as place:
        if revoke:
            echo(f"revoked {counted(place.revoke_tokens(), 'token')}", error=True)
            return 0
        made = place.make_token({"uses": uses, "seconds": hours * 3600, "labels": labels_of(label)})
        url = place.url or "URL"
    if json:
        print_json({**made, "url": place.url})
        return 0
    echo(f"a token for {counted(uses, 'machine')}, valid for {hours:g} h and shown this once; run there:", error=True)
    echo(f"atoll node join {url} --token {made['token']}")
    return 0


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False, host: str = "", home: Path | None = None, database: str = "") -> int:
    """List the machines of a server: state, version, what is free of them, what runs and waits there.

    Parameters
    ----------
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database, home) as place:
        found = place.list_nodes()
    if json:
        print_json(found)
    else:
        print_nodes(found)
    return 0


@app.command
def add(
    *machines: str,
    name: str = "",
    label: Annotated[list[str] | None, Flag] = None,
    url: str = "",
    ca_file: Path | None = None,
    command: str = "",
    home_there: str = "",
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Have machines join over ssh, by your own keys; each needs `atoll` installed, and runs its node in the background.

    Parameters
    ----------
    machines: str
        Names for ssh, such as user@gpu2; default: `cluster.machines` in the server's settings.toml.
    name: str
        What the server calls the machine, if there is one; default: its host name.
    label: list[str]
        A label for placement, such as zone=lab-2; may be given again.
    url: str
        Address of the server as those machines reach it.
    ca_file: Path
        Certificates that they trust in place of their system's; the file is sent along.
    command: str
        The program `atoll` there; default: as their PATH finds it.
    home_there: str
        State directory there; default: as ATOLL_HOME says there.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    from atoll.cli.nodes.ssh import add_all

    if name and len(machines) != 1:
        raise TargetError("`--name` is for one machine")
    given = {"ca_file": "" if ca_file is None else str(ca_file), "command": command, "home": home_there}
    with opened(host, database, home) as place:
        return add_all(place, machines, name=name, labels=labels_of(label), url=url, given=given)


@app.command
def drain(
    name: str,
    /,
    *,
    wait: Annotated[bool, Flag] = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Give a machine no new calls; those that run or wait there go on. `atoll nodes uncordon` gives it calls again.

    Parameters
    ----------
    name: str
        Name of the node.
    wait: bool
        Return when its calls are over, and tell meanwhile how many there are.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database, home) as place:
        node = place.change(name, "drain")["name"]
        echo(f"`{node}` takes no new calls", error=True)
        if wait:
            _wait(place, node)
            echo(f"`{node}` is empty: it can be stopped, upgraded or removed", error=True)
    return 0


@app.command
def cordon(name: str, /, *, host: str = "", home: Path | None = None, database: str = "") -> int:
    """Give a machine no new calls, for as long as you like; what is there goes on.

    Parameters
    ----------
    name: str
        Name of the node.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database, home) as place:
        echo(f"`{place.change(name, 'cordon')['name']}` takes no new calls", error=True)
    return 0


@app.command
def uncordon(name: str, /, *, host: str = "", home: Path | None = None, database: str = "") -> int:
    """Give a machine calls again, after `cordon` or `drain`.

    Parameters
    ----------
    name: str
        Name of the node.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database, home) as place:
        echo(f"`{place.change(name, 'uncordon')['name']}` takes calls", error=True)
    return 0


@app.command
def remove(name: str, /, *, yes: Yes = False, host: str = "", home: Path | None = None, database: str = "") -> int:
    """Remove a machine: its credentials are worth nothing at once, and its calls end.

    Parameters
    ----------
    name: str
        Name of the node.
    yes: bool
        Do not ask.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database, home) as place:
        row = _row(place, name)
        running = row["running"] or 0
        costs = [f"`{row['name']}` joins again by a new token alone"]
        if running:
            costs.append(f"{counted(running, 'call')} that run there end; `atoll nodes drain --wait` lets them finish")
        asks = not yes and row["name"] != LOCAL  # which the server refuses to remove
        if asks and not confirmed([], costs, "remove the node?", replaceable=False):
            return 1
        gone = place.change(row["name"], "remove")
    echo(f"removed the node `{gone['name']}`", error=True)
    return 0


def _row(place: Place, name: str) -> dict[str, Any]:
    return _found(place.list_nodes(), name)


def _found(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = next((node for node in rows if name in (node["name"], node["id"])), None)
    if found is None:
        raise errors.CallerError(f"no node is called `{printable(name)}`", hint="see `atoll nodes list`")
    return found


def _wait(place: Place, name: str) -> None:
    """Wait until the calls of a node are over, and tell of each change.

    Raises:
        CallerError: it takes calls again, or is the only machine.
    """
    told, empty = "", 0
    while True:
        rows = place.list_nodes()
        row = _found(rows, name)
        if row["state"] == "active":
            raise errors.CallerError(
                f"`{name}` takes calls again: another operator has given it some", hint="see `atoll admin audit`"
            )
        if not row["linked"]:
            if name != LOCAL:
                echo(f"`{name}` is not linked, so nothing of this server runs there", error=True)
            return
        if name == LOCAL and not any(one["linked"] and one["name"] != LOCAL for one in rows):
            raise errors.CallerError(
                "no other machine is linked, so the server's own still takes all calls",
                hint="have one join first: `atoll nodes token`",
            )
        running, waiting, detached = row["running"] or 0, row["waiting"] or 0, row["detached"]
        empty = empty + 1 if detached == 0 and not (running or waiting) else 0
        if empty == EMPTY_LOOKS:
            return
        text = f"{running} running, {waiting} waiting"
        text += f", {counted(detached, 'detached call')} left" if detached else ""
        if text != told and (running or waiting or detached):
            echo(f"`{name}`: {text}", error=True)
            told = text
        time.sleep(LOOK_SECONDS)
