"""`atoll key`: the user's own keys at a server; those of any user on its machine, and for operators."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts

from atoll.cli.accounts.place import Place, opened
from atoll.cli.older_name import is_older_name
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import age, date, print_json, print_table
from atoll.cli.terminal import echo

app = cyclopts.App(
    name="key",
    help="Make, list and revoke keys of a server.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")


def _opened(host: str, database: str, home: Path | None, user: str) -> contextlib.AbstractContextManager[Place]:
    """Open the accounts with a user's keys; without a user those of the server with one's own."""
    if home is not None and not user:
        raise TargetError("a state directory has keys of all users: give `--user NAME`, too")
    return opened(host, database if user else "", home, server=not user)


@app.command
def generate(
    *,
    scope: Literal["ADMIN", "API"] = "API",
    alias: str = "",
    days: float = 0,
    user: str = "",
    json: Annotated[bool, Flag] = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Make a key and print it: it is shown this once.

    Parameters
    ----------
    scope: str
        API: functions and data; ADMIN: also keys, and for operators the server.
    alias: str
        A note for yourself, at most 64 ASCII characters.
    days: float
        Days until the key expires; 0 for never.
    user: str
        Whose key, on the server's machine; default: your own.
    json: bool
        Print an object with `id`, `secret`, `scope`, `alias` and `expires`.
    host: str
        Address of the server; default: the one that you are logged in to.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database, as `atoll server --database` has it.
    """
    asked = {"scope": scope, "alias": alias, "expires_seconds": days * 86400}
    with _opened(host, database, home, user) as place:
        key = place.make_key(user, asked)
    if json:
        print_json(key)
    else:
        show_key(key)
    return 0


@app.command(name="list")
def list_(
    *, user: str = "", json: Annotated[bool, Flag] = False, host: str = "", home: Path | None = None, database: str = ""
) -> int:
    """List keys, without their secrets.

    Parameters
    ----------
    user: str
        Whose keys, for operators and on the server's machine; default: your own.
    json: bool
        Print a list of objects; moments in seconds since the epoch.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with _opened(host, database, home, user) as place:
        found = place.list_keys(user)
    if json:
        print_json(found)
    elif not found:
        echo("no keys; make one with `atoll key generate`")
    else:
        print_table(
            ("key id", "created", "scope", "alias", "used", "expires"),
            [
                (
                    key["id"],
                    date(key["created"], "%Y-%m-%d"),
                    key["scope"],
                    key["alias"],
                    f"{age(key['used'])} ago" if key["used"] else "never",
                    date(key["expires"], "%Y-%m-%d") if key["expires"] else "",
                )
                for key in found
            ],
        )
    return 0


@app.command
def revoke(
    key: str, /, *, here: Annotated[bool, Flag] = False, host: str = "", home: Path | None = None, database: str = ""
) -> int:
    """Revoke a key at once; what runs with it ends.

    Parameters
    ----------
    key: str
        The id of a key of your own, its first half; for operators of any user's.
    here: bool
        Any user's key, on the server's machine, with no key of your own.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database if here else "", home, server=not here) as place:
        gone = place.revoke_key(key)
    echo(f"revoked the key {gone['id']}", error=True)
    return 0


def show_key(key: dict[str, Any]) -> None:
    """Print a new key as variables of the environment, under the name of the program that was asked."""
    prefix = "FAL" if is_older_name() else "ATOLL"
    echo(f"a key of the scope {key['scope']}, which is shown this once:", error=True, flush=True)
    echo(f"export {prefix}_KEY_ID='{key['id']}'")
    echo(f"export {prefix}_KEY_SECRET='{key['secret']}'", flush=True)
    echo("paste both lines where `atoll auth login` asks for the key, or set them", error=True)
