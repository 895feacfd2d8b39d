"""The tables of a server's database as lines of JSON: all rows of one state, and back into empty tables."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sqlalchemy import Integer, LargeBinary, Table, func, select, text

from atoll import errors
from atoll.server.accounts.audit import MACHINE, audit
from atoll.server.apps import tables as _apps  # noqa: F401 - as the next one
from atoll.server.database.database import Database
from atoll.server.database.tables import metadata
from atoll.server.endpoints import tables as _endpoints  # noqa: F401 - their tables are a part of the metadata
from atoll.server.nodes import tables as _nodes  # noqa: F401 - as above
from atoll.server.queue import tables as _queue  # noqa: F401 - as above
from atoll.server.schedules import tables as _schedules  # noqa: F401 - as above
from atoll.server.usage import tables as _usage  # noqa: F401 - as above
from atoll.server.webhooks import tables as _webhooks  # noqa: F401 - as above

_BINARY = "base64"


def dump(database: Database, path: Path) -> str:
    """Write all rows of all tables as lines of JSON, from one state of the database; return the digest."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file, database.reading() as connection:
        if database.is_postgresql:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)):
                line = json.dumps({"table": table.name, "row": _encoded(dict(row._mapping))}).encode() + b"\n"
                file.write(line)
                digest.update(line)
        file.flush()
        os.fsync(descriptor)
    return digest.hexdigest()


def _encoded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {_BINARY: base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _decoded(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: base64.b64decode(value[_BINARY])
        if isinstance(table.c[name].type, LargeBinary) and value is not None
        else value
        for name, value in row.items()
    }


def load(database: Database, path: Path) -> int:
    """Insert the rows of a dump into empty tables, all or none; return their number."""
    count = 0
    with database.writing() as connection, open(path, "rb") as file:
        for table in metadata.sorted_tables:
            if connection.execute(select(func.count()).select_from(table)).scalar():
                raise errors.StateUnusable(
                    f"the database has rows already, in `{table.name}`", hint="restore into a fresh one"
                )
        for line in file:
            data = json.loads(line)
            table = metadata.tables[data["table"]]
            connection.execute(table.insert().values(**_decoded(table, data["row"])))
            count += 1
        if database.is_postgresql:  # their numbers were given, and the next one follows them
            for table in metadata.sorted_tables:
                for column in table.primary_key.columns:
                    if column.autoincrement is True and isinstance(column.type, Integer):
                        last = connection.execute(select(func.max(column))).scalar()
                        if last is not None:
                            name = func.pg_get_serial_sequence(table.name, column.name)
                            connection.execute(select(func.setval(name, last)))
        audit(connection, MACHINE, "backup.restore", str(path.parent)[-256:], {"rows": count})
    return count
