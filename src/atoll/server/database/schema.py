"""The schema of a database, brought up to date when a server or a command opens it.

Theory of operation. The numbered modules of `migrations` are alembic's revisions. All that a database lacks are applied
in one transaction, under a lock that other openers wait for, so a crash leaves the schema as it was: both SQLite and
PostgreSQL change schemas in transactions. A revision that this version does not know was made by a newer one.
"""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from sqlalchemy import Connection, text

from atoll import errors
from atoll.server.database.tables import metadata

_LOCK = 0x61746F6C6C  # "atoll": the number of PostgreSQL's lock is the application's choice


def scripts() -> ScriptDirectory:
    """Return the migrations of this version."""
    config = Config()
    place = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(place).replace("%", "%%"))
    config.set_main_option("version_locations", str(place).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return ScriptDirectory.from_config(config)


def newest() -> str:
    """Return the revision that this version's code needs."""
    return scripts().get_current_head() or ""


def bring_up(connection: Connection) -> None:
    """Apply the migrations that a database lacks, in the connection's transaction, which holds the lock for writing.

    Raises:
        StateUnusable: a newer version has made the schema.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    context = MigrationContext.configure(
        connection, opts={"target_metadata": metadata, "transactional_ddl": True, "as_sql": False}
    )
    present = context.get_current_revision()
    found = scripts()
    head = found.get_current_head()
    if present == head:
        return
    try:
        steps = list(found.iterate_revisions(head, present))
    except ResolutionError as error:
        raise errors.StateUnusable(
            f"the database has the schema `{present}`, which this version does not know (it knows `{head}`)",
            hint="a newer version has used it: upgrade atoll, or restore a backup of the time before",
            schema=str(present),
            known=str(head),
        ) from error
    with Operations.context(context):
        for step in reversed(steps):
            step.module.upgrade()
            context._ensure_version_table()
            connection.execute(text("DELETE FROM alembic_version"))
            connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:new)"), {"new": step.revision})
