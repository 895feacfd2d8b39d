"""`atoll admin`: backups, keys of secrets, the audit and everybody's usage.

On the server's machine with the rights of its state directory; `audit` and `usage` elsewhere with an operator's key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from atoll import credentials, errors, settings
from atoll.cli.accounts.client import ask
from atoll.cli.accounts.place import check_accounts, check_one_place, has_accounts, home_of
from atoll.cli.confirmation import counted
from atoll.cli.tables import date, print_json, print_table
from atoll.cli.terminal import echo
from atoll.host.local import LocalHost
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.server.database.database import Database

app = cyclopts.App(
    name="admin",
    help="Administer a server: backups, the key of secrets, the audit, machine time of all users.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)

Flag = cyclopts.Parameter(negative="")


@app.command
def backup(target: Path, /, *, home: Path | None = None, database: str = "") -> int:
    """Back up the server of this machine's state directory while it runs: database, keys, secrets, records, volumes.

    Parameters
    ----------
    target: Path
        A new directory, or a new file that ends in .tar. Whoever reads it can act as the server.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database; default: the one that the server uses.
    """
    from atoll.server.admin.backup import back_up
    from atoll.server.node import Node

    place = home_of(home)
    check_accounts(place)  # else a job with another ATOLL_HOME backs up nothing, for ever
    with _open(place, database) as opened:
        found = back_up(Node(settings.load(place)), opened, target.absolute(), lambda line: echo(line, error=True))
    echo(f"backed up {counted(len(found['volumes']), 'volume')} to {target}")
    return 0


@app.command
def restore(source: Path, /, *, home: Path | None = None, database: str = "") -> int:
    """Restore a backup into this machine's state directory, which must be fresh.

    Parameters
    ----------
    source: Path
        The directory or .tar that `atoll admin backup` has made.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database to fill; default: the state directory's own.
    """
    from atoll.server.admin import backup as backups

    place = home_of(home)
    found = backups.restore(
        source.absolute(), place, lambda: _open(place, database, make=True), lambda line: echo(line, error=True)
    )
    from atoll.server.database.address import address_of, remember

    if address := address_of(place, database):
        remember(place, address)  # else the server would begin with a database of its own
    echo(f"restored {len(found['volumes'])} volumes of {date(found['made_at'])} into {place}")
    return 0


@app.command
def rotate_key(*, home: Path | None = None) -> int:
    """Encrypt all secrets of this machine's state directory with a new key, and forget the old one.

    Parameters
    ----------
    home: Path
        State directory, of a server or one's own; default: as ATOLL_HOME says.
    """
    place = home_of(home)
    count = LocalHost(place).request("secrets.rotate", {})["values"]
    if has_accounts(place):
        from atoll.server.accounts.audit import MACHINE
        from atoll.server.accounts.audit import audit as note

        with _open(place, "") as opened, opened.writing() as connection:
            note(connection, MACHINE, "secrets.rotate_key", "", {"values": count})
    echo(f"encrypted {count} values anew")
    return 0


@app.command
def audit(
    *,
    act: str = "",
    user: str = "",
    lines: Annotated[int, cyclopts.Parameter(alias="-n")] = 100,
    json: Annotated[bool, Flag] = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Show administrative acts, the newest last: who, when, what, on whom. Nothing changes or removes them.

    Parameters
    ----------
    act: str
        Only this act, such as user.remove.
    user: str
        Only acts by this user.
    lines: int
        The most that are shown.
    json: bool
        Print a list of objects; times in seconds since the epoch.
    host: str
        Address of the server; default: this machine's state directory, else the server that you are logged in to.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    if (place := _on_machine(host, home, database)) is not None:
        from atoll.server.admin import audit_log

        with _open(place, database) as opened, opened.reading() as connection:
            found = audit_log.read(connection, limit=lines, act=act, actor=user)
    else:
        found = list(_server(host, f"/v1/audit?limit={lines}&act={act}&actor={user}")["acts"])
    if json:
        print_json(found)
    elif not found:
        echo("no acts yet")
    else:
        rows = [
            (date(one["at"]), one["actor_name"], one["act"], one["target"], _details(one["details"]))
            for one in reversed(found)
        ]
        print_table(["when", "who", "act", "target", "details"], rows, fold=["details"])
    return 0


def _details(details: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in details.items())


@app.command
def usage(
    *,
    by_user: Annotated[bool, Flag] = False,
    by_day: Annotated[bool, Flag] = False,
    since: str = "",
    until: str = "",
    json: Annotated[bool, Flag] = False,
    host: str = "",
    home: Path | None = None,
    database: str = "",
) -> int:
    """Show machine time of all users: calls, time, CPU, memory and GPUs; by user and function by default.

    Parameters
    ----------
    by_user: bool
        One row for each user.
    by_day: bool
        One row for each user and day.
    since: str
        The first day, such as 2026-11-01 (UTC).
    until: str
        The last day.
    json: bool
        Print a list of objects; memory in byte seconds.
    host: str
        Address of the server; default: this machine's state directory, else the server that you are logged in to.
    home: Path
        State directory of the server on this machine; default: as ATOLL_HOME says.
    database: str
        Address of the database.
    """
    by = ("user", "day") if by_day else ("user",) if by_user else ("user", "function")
    if (place := _on_machine(host, home, database)) is not None:
        from atoll.server.node import Node
        from atoll.server.usage import gathering, sums

        with _open(place, database) as opened:
            gathering.gather(opened, Node(settings.load(place)))
            with opened.reading() as connection:
                found = sums.read(connection, user=None, since=since, until=until, by=by)
    else:
        query = f"all=1&by={','.join(by)}&since={since}&until={until}"
        found = list(_server(host, f"/v1/usage?{query}")["usage"])
    if json:
        print_json(found)
    elif not found:
        echo("no calls yet")
    else:
        columns = [*by, "calls", "failed", "time", "cpu", "GiB h", "gpu h"]
        print_table(columns, [_row(one, by) for one in found], right=columns[len(by) :])
    return 0


def _row(one: dict[str, Any], by: tuple[str, ...]) -> list[str]:
    names = [one["name"] or one["user"] if part == "user" else one[part] for part in by]
    figures = [f"{one['calls']:,}", f"{one['failed']:,}", _hours(one["wall_seconds"]), _hours(one["cpu_seconds"])]
    memory = one["memory_byte_seconds"] / (1 << 30) / 3600
    return [*names, *figures, f"{memory:,.1f}", f"{one['gpu_seconds'] / 3600:,.1f}"]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:,.1f} s"


def _on_machine(host: str, home: Path | None, database: str) -> Path | None:
    """Return the state directory to ask; None for the server that is named, or that one is logged in to."""
    check_one_place(host, home)
    place = home_of(home)
    if home is not None and not database:
        check_accounts(place)
    return place if home is not None or (not host and (database or has_accounts(place))) else None


def _server(host: str, path: str) -> dict[str, Any]:
    found = credentials.find(host)
    if found is None:
        raise errors.HostUnreachable(
            f"no server is named, and none has run in `{printable(str(settings.default_home()))}`",
            hint="run `atoll auth login --host URL`, or give `--host URL`; on the server's machine give `--home`",
        )
    return ask(found, "GET", path)


def _open(home: Path, database: str, *, make: bool = False) -> Database:
    try:
        from atoll.server.database.address import address_of
        from atoll.server.database.database import Database
    except ImportError as error:
        raise errors.StateUnusable(
            f"a server's database needs packages that are not installed: {error}", hint="pip install 'atoll[server]'"
        ) from error
    return Database(home, address_of(home, database), make=make)
