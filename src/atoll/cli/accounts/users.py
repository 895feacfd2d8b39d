"""`atoll users`: the users of a server, for its operators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from atoll import errors
from atoll.cli.accounts.keys import show_key
from atoll.cli.accounts.place import opened
from atoll.cli.confirmation import Yes, confirmed, counted
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import date, print_json, print_table, size
from atoll.cli.terminal import echo
from atoll.terminal_text import cell, printable

app = cyclopts.App(
    name="users",
    help="Add, list and remove users of a server: on its machine with the rights of its state directory, elsewhere "
    "with the ADMIN key of an operator.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")


@app.command
def add(
    name: str,
    /,
    *,
    operator: Annotated[bool, Flag] = False,
    no_key: Annotated[bool, Flag] = False,
    issuer: str = "",
    subject: str = "",
    volume: str = "",
    files: int = 0,
    workers: int = 0,
    json: Annotated[bool, Flag] = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Add a user, and print a first key, which is shown this once.

    Parameters
    ----------
    name: str
        1 to 32 lower-case ASCII letters, digits, and single `.`, `_`, `-` between them.
    operator: bool
        The user administers the server.
    no_key: bool
        Make no key; for those who log in by an issuer of identities.
    issuer: str
        Address of the issuer that knows the user as the subject.
    subject: str
        The issuer's own name for the user (`sub`).
    volume: str
        Most bytes of the volume, such as 10GiB.
    files: int
        Most files of the volume; 0 for no limit.
    workers: int
        Most workers at a time; 0 for no limit.
    json: bool
        Print an object with `user` and `key`.
    host: str
        Address of the server; default: this machine's state directory, else the server that you are logged in to.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database, as `atoll server --database` has it.
    """
    asked = {"name": name, "operator": operator, "key": not no_key, "issuer": issuer, "subject": subject}
    asked |= {"volume_bytes": _bytes(volume), "volume_files": files, "workers": workers}
    with opened(host, database, home, here=True) as place:
        added = place.add_user(asked)
        where = place.name
    if json:
        print_json(added)
        return 0
    echo(f"added the user {added['user']['name']} to {where}", error=True)
    for line in added.get("warnings", ()):  # an older server has none
        echo(f"warning: {cell(str(line), 400)}", error=True)
    if added["key"]:
        show_key(added["key"])
    return 0


@app.command(name="list")
def list_(*, json: Annotated[bool, Flag] = False, host: str = "", home: Path | None = None, database: str = "") -> int:
    """List the users.

    Parameters
    ----------
    json: bool
        Print a list of objects; moments in seconds since the epoch, a quota of 0 is none.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    with opened(host, database, home) as place:
        found = place.list_users()
    if json:
        print_json(found)
    elif not found:
        echo("no users; add the first with `atoll users add NAME --operator`")
    else:
        print_table(
            ("name", "operator", "volume", "files", "workers", "created", "id"),
            [_row(user) for user in found],
            right=("volume", "files", "workers"),
        )
    return 0


def _row(user: dict[str, Any]) -> tuple[str, ...]:
    return (
        user["name"],
        "operator" if user["operator"] else "",
        size(user["volume_bytes"]) if user["volume_bytes"] else "",
        f"{user['volume_files']:,}" if user["volume_files"] else "",
        str(user["workers"] or ""),
        date(user["created"], "%Y-%m-%d"),
        user["id"],
    )


@app.command
def remove(
    name: str,
    /,
    *,
    delete_volume: Annotated[bool, Flag] = False,
    keep_volume: Annotated[bool, Flag] = False,
    yes: Yes = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Remove a user: all keys end at once, and all calls. The volume is put aside, unless it is to be deleted.

    Parameters
    ----------
    name: str
        The user's name or id.
    delete_volume: bool
        Remove the volume, too.
    keep_volume: bool
        Put the volume aside, below `removed` in the state directory; the default.
    yes: bool
        Do not ask.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    if delete_volume and keep_volume:
        raise TargetError("`--keep-volume` and `--delete-volume` do not go together")
    with opened(host, database, home) as place:
        if not any(name in (user["name"], user["id"]) for user in place.list_users()):
            raise errors.CallerError(f"no user is called `{printable(name)}`", hint="see `atoll users list`")
        costs = [f"the user `{name}` goes with all keys; a user of that name has another volume afterwards"]
        costs += ["the volume is removed, with all snapshots"] if delete_volume else []
        if not yes and not confirmed([], costs, "remove the user?", replaceable=False):
            return 1
        gone = place.remove_user(name, keep=not delete_volume)
    volume = f"the volume `{gone['id']}` is {gone['volume']}" if gone["volume"] else "there was no volume"
    echo(f"removed the user {gone['name']}; {volume}", error=True)
    return 0


@app.command
def set_quota(
    name: str,
    /,
    *,
    volume: Annotated[str | None, cyclopts.Parameter(name=("--volume", "--bytes"))] = None,
    files: Annotated[str | None, cyclopts.Parameter(name="--files")] = None,
    workers: int | None = None,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Change a user's quotas; those that are not given stay.

    Parameters
    ----------
    name: str
        The user's name or id.
    volume: str
        Most bytes of the volume, such as 10GiB; 0 for no limit.
    files: str
        Most files of the volume, such as 1M; 0 for no limit.
    workers: int
        Most workers at a time; 0 for no limit.
    host: str
        Address of the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    given = {
        "volume_bytes": None if volume is None else _bytes(volume),
        "volume_files": None if files is None else _count(files),
        "workers": workers,
    }
    with opened(host, database, home) as place:
        user = place.set_quota(name, {quota: value for quota, value in given.items() if value is not None})
    limits = [
        f"volume {size(user['volume_bytes'])}" if user["volume_bytes"] else "",
        counted(user["volume_files"], "file") if user["volume_files"] else "",
        counted(user["workers"], "worker") if user["workers"] else "",
    ]
    echo(f"{user['name']}: {', '.join(filter(None, limits)) or 'no quotas'}", error=sys.stdout is None)
    return 0


def _bytes(text: str) -> int:
    from atoll.model.amounts import read_bytes

    return 0 if text in ("", "0") else read_bytes("volume", int(text) if text.isdecimal() else text)


def _count(text: str) -> int:
    unit = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000}.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdecimal():
        raise TargetError(f"`--files` is a number such as 500000 or 1M, is `{text}`")
    return int(digits) * unit
