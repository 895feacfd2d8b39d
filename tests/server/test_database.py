"""The server's database, on SQLite and on a real PostgreSQL: schema, transactions, marks, accounts."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select, text

import atoll.server
from atoll import errors
from atoll.server.accounts import names, rows
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.bodies import NewUser
from atoll.server.accounts.direct import Direct
from atoll.server.database import address, schema, tables
from atoll.server.database.database import Database
from atoll.server.database.migrations import m0001_accounts
from atoll.server.principal import ADMIN, Principal

from . import postgresql


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a PostgreSQL server of this module's; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with postgresql.running() as url:
        yield url


@pytest.fixture
def url(server_url: str, tmp_path: Path) -> str:
    """An address of a database without tables: empty for SQLite below `tmp_path`."""
    tmp_path.chmod(0o700)
    postgresql.empty(server_url)
    return server_url


@pytest.fixture
def database(url: str, tmp_path: Path) -> Iterator[Database]:
    """An open database with the schema of this version."""
    found = Database(tmp_path, url)
    yield found
    found.close()


def test_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    """The schema that the migrations make is the one that the tables describe."""
    for module in pkgutil.walk_packages(atoll.server.__path__, "atoll.server."):
        if ".migrations." not in module.name:
            importlib.import_module(module.name)  # some define tables
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_a_backup_has_every_table() -> None:
    """The program that writes a backup knows all tables, also where nothing else has imported them."""
    code = "from atoll.server.admin import table_dump as dump\nprint(*sorted(dump.metadata.tables))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for module in pkgutil.walk_packages(atoll.server.__path__, "atoll.server."):
        if module.name.endswith(".tables"):
            importlib.import_module(module.name)
    assert done.stdout.split() == sorted(tables.metadata.tables)


def test_migrations_are_one_row() -> None:
    """The numbers of the migrations have no gap and no fork, for Atoll and for alembic's own commands."""
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.set_main_option("version_locations", str(Path(schema.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "newline")
    found = ScriptDirectory.from_config(config)
    assert found.get_heads() == [schema.newest()]
    revisions = [step.revision for step in found.walk_revisions()][::-1]
    assert revisions == list(schema.steps()) == [f"{number:04d}" for number in range(1, len(revisions) + 1)]


def test_openers_at_a_time_make_one_schema(url: str, tmp_path: Path) -> None:
    """Several servers that open an empty database at once all find a whole schema."""
    begin = threading.Barrier(4)

    def opened() -> str:
        begin.wait()
        found = Database(tmp_path, url)
        try:
            with found.reading() as connection:
                return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())
        finally:
            found.close()

    with ThreadPoolExecutor(4) as threads:
        assert {one.result() for one in [threads.submit(opened) for _ in range(4)]} == {schema.newest()}


def test_a_database_that_is_asked_is_not_made(url: str, tmp_path: Path) -> None:
    """A command that reads or changes leaves an empty database empty, and opens one that has tables."""
    for _ in range(2):
        with pytest.raises(errors.StateUnusable, match=r"no database|no tables of a server"):
            Database(tmp_path, url, make=False)
    assert not (tmp_path / "server").exists()
    Database(tmp_path, url).close()
    with Database(tmp_path, url, make=False) as found:
        assert found.value("keys") == 0


def test_a_newer_schema_is_refused_by_name(url: str, tmp_path: Path) -> None:
    """An older server changes nothing of a schema that it does not know."""
    first = Database(tmp_path, url)
    with first.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    first.close()
    for _ in range(2):
        with pytest.raises(errors.StateUnusable, match="the schema `9999`, which this version does not know") as caught:
            Database(tmp_path, url)
        assert caught.value.details == {"schema": "9999", "known": schema.newest()}
        assert "upgrade atoll" in caught.value.hint


def test_a_failed_migration_leaves_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails half-way is undone whole, and the next opener begins anew."""

    def half() -> None:
        upgrade()
        raise OSError("the power went")

    upgrade = m0001_accounts.upgrade
    monkeypatch.setattr(m0001_accounts, "upgrade", half)
    with pytest.raises(OSError, match="power"):
        Database(tmp_path, url)
    monkeypatch.undo()
    Database(tmp_path, url).close()


def test_a_database_of_this_version_needs_no_alembic(tmp_path: Path) -> None:
    """Commands and servers that find their schema do not wait for the import of what changes one."""
    tmp_path.chmod(0o700)
    Database(tmp_path).close()
    code = "import sys, pathlib; from atoll.server.accounts.direct import Direct\n"
    code += "Direct(pathlib.Path(sys.argv[1])).list_users(); print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_transaction_is_kept_whole_or_not_at_all(database: Database) -> None:
    """An exception undoes what its block has written; readers do not see it before."""

    def fail() -> None:
        with database.writing() as connection:
            rows.add_user(connection, "ada")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.writing() as connection:
        rows.add_user(connection, "bob")
        with database.reading() as other:
            assert rows.all_users(other) == []
    with database.reading() as connection:
        assert [user.name for user in rows.all_users(connection)] == ["bob"]


def test_writers_wait_for_each_other(database: Database) -> None:
    """Counting in transactions at a time loses none: on SQLite each waits for its turn before it reads."""

    def count() -> None:
        with database.writing() as connection:
            rows.all_users(connection)  # a look before the change must not be one at an old state
            database.raise_mark(connection, "count")

    count()
    with ThreadPoolExecutor(4) as threads:
        for one in [threads.submit(count) for _ in range(40)]:
            one.result()
    assert database.value("count") == 41


def test_marks_are_seen_by_other_openers(database: Database, url: str, tmp_path: Path) -> None:
    """`mark` is another value once another process has raised it; PostgreSQL's is at most a second old."""
    with database.writing() as connection:
        database.raise_mark(connection, "keys")
    before = database.mark("keys")
    if not database.is_postgresql:
        assert database.mark("keys") == before
    other = Database(tmp_path, url)
    with other.writing() as connection:
        other.raise_mark(connection, "keys")
    other.close()
    if not database.is_postgresql:
        assert database.mark("keys") != before
    assert database.value("keys") == 2


def test_accounts_hold_on_both(url: str, tmp_path: Path) -> None:
    """Users, keys, quotas, sessions and the audit are the same on both databases."""
    with Direct(tmp_path, url) as direct:
        added = direct.add_user(NewUser("ada", operator=True, volume_bytes=1 << 40, workers=7))
        assert added.key is not None
        for wrong in ("ada", "Ada", "a b", "root", "ад", "a" * 33, "a..b", ""):
            with pytest.raises(errors.CallerError):
                direct.add_user(NewUser(wrong))
        assert [(user.name, user.volume_bytes, user.workers) for user in direct.list_users().users] == [
            ("ada", 1 << 40, 7)
        ]

    async def scenario() -> None:
        accounts = Accounts(tmp_path, url)
        try:
            assert added.key is not None
            headers = {"authorization": f"Key {added.key.id}:{added.key.secret}"}
            principal = await accounts.authenticate(headers, "127.0.0.1")
            assert principal == Principal(added.user.id, "ada", added.key.id, ADMIN, operator=True, workers=7)
            await accounts.write_used(at_least=0)
            cookie = await accounts.sessions.open(principal)
            assert await accounts.sessions.find(cookie) == principal
            await accounts.audit(principal, "test", "thing", {"n": 1})
            with accounts.database.writing() as connection:
                ((key),) = rows.keys_of(connection, rows.find_user(connection, "ada"))
                assert key.used is not None
                written = connection.execute(select(tables.audit).order_by(tables.audit.c.id)).all()
                assert [(one.act, one.actor_name) for one in written] == [("user.add", "machine"), ("test", "ada")]
                assert json.loads(written[1].details) == {"n": 1}
            await accounts.change(lambda connection: rows.revoke(connection, principal.key))
            assert await accounts.sessions.find(cookie) is None
            with pytest.raises(errors.NotAuthorized):
                await accounts.authenticate(headers, "127.0.0.1")
        finally:
            accounts.close()

    asyncio.run(scenario())


def test_an_id_is_never_given_again(url: str, tmp_path: Path) -> None:
    """A user who is removed and added again has another id, so nobody else's volume."""
    with Direct(tmp_path, url) as direct:
        first = direct.add_user(NewUser("ada")).user.id
        direct.remove_user("ada")
        second = direct.add_user(NewUser("ada")).user.id
    assert first != second
    for one in (first, second):
        assert one.isalnum()
        assert one.isascii()
        assert not re.fullmatch(names.NAME, one)


def test_the_only_operator_stays(url: str, tmp_path: Path) -> None:
    """The last operator cannot be removed, so that somebody is left who can add others."""
    with Direct(tmp_path, url) as direct:
        direct.add_user(NewUser("ada", operator=True))
        with pytest.raises(errors.CallerError, match="the only operator"):
            direct.remove_user("ada")
        direct.add_user(NewUser("bob", operator=True))
        direct.remove_user("ada")


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    """The directory and all files of SQLite and the pepper are closed to others, with any umask."""
    tmp_path.chmod(0o700)
    before = os.umask(0)
    try:
        accounts = Accounts(tmp_path)
        with accounts.database.writing() as connection:
            rows.add_user(connection, "ada")
            address.remember(tmp_path, "postgresql://u:secret@h/d")
            files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "server").iterdir()}
        accounts.close()
    finally:
        os.umask(before)
    assert files.keys() >= {"server.db", "server.db-wal", "server.db-shm", "pepper", "database-url"}
    assert set(files.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "server").stat().st_mode) == 0o700


def test_the_address_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on the machine ask the database that the server uses; a word goes back to the own file."""
    tmp_path.chmod(0o700)
    monkeypatch.delenv("ATOLL_DATABASE_URL", raising=False)
    assert address.address_of(tmp_path) == ""
    address.remember(tmp_path, "postgresql://h/d")
    assert address.address_of(tmp_path) == "postgresql://h/d"
    monkeypatch.setenv("ATOLL_DATABASE_URL", "postgresql://other/d")
    assert address.address_of(tmp_path) == "postgresql://other/d"
    assert address.address_of(tmp_path, "sqlite") == ""
    assert list((tmp_path / "server").iterdir()) == [tmp_path / "server" / "database-url"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mysql://h/d", "a database of the kind `mysql` cannot be used"),
        ("nonsense", "the address of the database is none"),
        ("postgresql://user:geheim@127.0.0.1:1/d", "the server's database cannot be used"),
    ],
)
def test_databases_that_cannot_be_used_are_named(given: str, message: str, tmp_path: Path) -> None:
    """A wrong address or a server that is not there is a named error without the password."""
    tmp_path.chmod(0o700)
    with pytest.raises(errors.StateUnusable, match=message) as caught:
        Database(tmp_path, given)
    assert "geheim" not in str(caught.value)


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    """A file that is no database is refused, and left as it is."""
    tmp_path.chmod(0o700)
    file = tmp_path / "server" / "server.db"
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(errors.StateUnusable, match="cannot be used"):
        Database(tmp_path)
    assert file.read_bytes() == b"no database" * 1000
