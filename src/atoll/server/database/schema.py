"""The schema of a database, brought up to date when a server or a command opens it.

Theory of operation. The numbered modules of `migrations` are alembic's revisions, one row. All that a database lacks are
applied in one transaction, under a lock that other openers wait for, so a crash leaves the schema as it was: both SQLite
and PostgreSQL change schemas in transactions. A revision that this version does not know was made by a newer one.
alembic takes 0.3 s to import, so it is, only where there is something to apply.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from atoll import errors
from atoll.server.database import migrations
from atoll.server.database.tables import metadata

_LOCK = 0x61746F6C6C  # "atoll": the number of PostgreSQL's lock is the application's choice
_MODULE = re.compile(r"m([0-9]{4})_\w+\.py")


NONE_HINT = "name the server's state directory by `--home`; a server makes it, or `atoll users add` the first user"


def steps() -> dict[str, str]:
    """Return the names of this version's migrations by their revisions, the oldest first."""
    names = sorted(path.name for path in Path(migrations.__path__[0]).iterdir())
    found = (_MODULE.fullmatch(name) for name in names)
    return {match[1]: match[0].removesuffix(".py") for match in found if match is not None}


def newest() -> str:
    """Return the revision that this version's code needs."""
    return list(steps())[-1]


def bring_up(connection: Connection) -> None:
    """Apply the migrations that a database lacks, in the connection's transaction, which holds the lock for writing.

    Raises:
        StateUnusable: a newer version has made the schema.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    present, known = _present(connection), steps()
    if present and present not in known:
        raise errors.StateUnusable(
            f"the database has the schema `{present}`, which this version does not know (it knows `{newest()}`)",
            hint="a newer version has used it: upgrade atoll, or restore a backup of the time before",
            schema=present,
            known=newest(),
        )
    missing = [name for revision, name in known.items() if revision > present]
    if missing:
        _apply(connection, missing)


def check_present(connection: Connection) -> None:
    """Check that a database has the tables of a server.

    Raises:
        StateUnusable: it has none.
    """
    if not _present(connection):
        raise errors.StateUnusable("the database has no tables of a server", hint=NONE_HINT)


def _present(connection: Connection) -> str:
    """Return a database's revision; empty for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _apply(connection: Connection, names: list[str]) -> None:
    from alembic.migration import MigrationContext  # slow to import
    from alembic.operations import Operations  # as above

    with Operations.context(MigrationContext.configure(connection, opts={"target_metadata": metadata})):
        for name in names:
            importlib.import_module(f"{migrations.__name__}.{name}").upgrade()
    if not inspect(connection).has_table("alembic_version"):  # the table that alembic's own commands know
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("DELETE FROM alembic_version"))
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:new)"), {"new": names[-1][1:5]})
