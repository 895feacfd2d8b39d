"""`atoll secrets`: variables of your calls whose values nobody is shown.

A value comes from a prompt, standard input or a file, and never from the command line, which every user of the machine
can read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import cyclopts

from atoll.cli import hosts
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import age, print_json, print_table
from atoll.cli.terminal import echo
from atoll.host.contract import Host
from atoll.host.default import LOCAL
from atoll.model.secret_values import MOST_VALUE_BYTES, check_name, check_value

app = cyclopts.App(
    name="secrets",
    help="Set, list and delete secrets. Each is an environment variable of your calls; values are encrypted, and not shown.",
    help_format="plaintext",
)

LATER = "it hears of this when it comes back"
"""The consequence for a machine of a server that is away."""


def _chosen(host: str) -> Host:
    """Return the host of an address; by default that of the other commands."""
    if not host:
        return hosts.chosen()
    from atoll.host.local import local
    from atoll.host.remote.remote_host import Host as RemoteHost

    return local if host == LOCAL else RemoteHost(host)


@app.command(name="set")
def set_(
    name: str, /, *, from_file: Annotated[Path | None, cyclopts.Parameter(name="--from-file")] = None, host: str = ""
) -> int:
    """Set a secret: the value is asked for, or read from standard input without its last newline.

    Calls that run keep the old value; later ones have the new.

    Parameters
    ----------
    name: str
        The variable's name, such as `HF_TOKEN`.
    from_file: Path
        A file with the value, byte for byte.
    host: str
        Address of a server, or `local`; default: the server that you are logged in to, else `local`.
    """
    try:
        check_name(name)
        value = check_value(_value(name, from_file))
    except UnicodeDecodeError:
        raise TargetError("the value is not UTF-8", hint="encode it, for example with `base64`") from None
    except ValueError as error:
        raise TargetError(str(error), hint="see `atoll secrets set --help`") from None
    hosts.tell_away(_chosen(host).request("secrets.set", {"name": name, "value": value}), LATER)
    echo(f"set {name}")
    return 0


def _value(name: str, path: Path | None) -> str:
    if path is not None:
        with path.open("rb") as file:
            return file.read(MOST_VALUE_BYTES + 1).decode()
    if sys.stdin is None:
        raise ValueError("there is no standard input to read the value from")
    if sys.stdin.isatty():
        from getpass import getpass  # for a terminal alone

        return getpass(f"value of {name}: ")
    text = sys.stdin.buffer.read(MOST_VALUE_BYTES + 2).decode()
    if not text:  # as of a command that failed
        raise ValueError("there is no value on standard input; a line without text is an empty one")
    return text.removesuffix("\n").removesuffix("\r")


@app.command(name="list")
def list_(*, json: bool = False, host: str = "") -> int:
    """List the names of your secrets, with the time of their last change.

    Parameters
    ----------
    json: bool
        Print a list of objects; times in seconds since the epoch.
    host: str
        Address of a server, or `local`; default: the server that you are logged in to, else `local`.
    """
    found = _chosen(host).request("secrets.list", {})["secrets"]
    if json:
        print_json(found)
    elif not found:
        echo("no secrets; `atoll secrets set NAME` sets one")
    else:
        print_table(["name", "changed"], [(one["name"], f"{age(one['changed_at'])} ago") for one in found])
    return 0


@app.command
def delete(name: str, /, *more: str, host: str = "") -> int:
    """Delete secrets; calls that run keep them to their end.

    Parameters
    ----------
    name: str
        The variable's name.
    more: str
        Further ones.
    host: str
        Address of a server, or `local`; default: the server that you are logged in to, else `local`.
    """
    chosen = _chosen(host)
    for one in (name, *more):
        hosts.tell_away(chosen.request("secrets.delete", {"name": one}), LATER)
        echo(f"deleted {one}")
    return 0
