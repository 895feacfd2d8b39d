"""The server's database: connections, transactions, and threads for the event loop.

Theory of operation. SQLite is opened in WAL mode: readers do not wait for the one writer. A transaction that may write
begins with `BEGIN IMMEDIATE`, so it waits for its turn at once and never has to give up what it has read. `FULL`
synchronisation: a key that was revoked stays so after a loss of power. The file and its directory are the owner's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, select

from atoll import errors, ownership
from atoll.server.database import schema
from atoll.server.database.tables import marks

T = TypeVar("T")

DIRECTORY, FILE = "server", "server.db"
"""Where SQLite's file is, below the state directory."""
THREADS = 4
BUSY_SECONDS = 30.0
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgresql+psycopg": "postgresql+psycopg"}


class Database:
    """A database with the schema of this version; safe to use from several threads.

    Its methods raise `StateUnusable` where the database cannot be read or written, and `DiskFull`.

    Args:
        home: the state directory.
        url: of PostgreSQL, or of another file of SQLite; empty for the state directory's own file.
        make: whether a database that is missing or empty gets its tables; False for commands that read or change.

    Raises:
        StateUnusable: it cannot be opened, its schema is a newer version's, or it is missing and not to be made.
        StateUntrusted: another user can change the file.
    """

    def __init__(self, home: Path, url: str = "", *, make: bool = True) -> None:
        self._file = home / DIRECTORY / FILE
        if not make:
            _check_file(url, self._file)
        self._threads: ThreadPoolExecutor | None = None
        self._marks: sqlite3.Connection | None = None
        self._engine = self._sqlite() if not url else _engine_of(url)
        self._writes = self._engine.execution_options(atoll_writes=True)
        try:
            if not make:
                with self.reading() as connection:
                    schema.check_present(connection)
            with self.writing() as connection:
                schema.bring_up(connection)
        except BaseException:
            self.close()
            raise

    @property
    def is_postgresql(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and threads; what runs is waited for."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        if self._marks is not None:
            self._marks.close()
            self._marks = None
        self._engine.dispose()

    # --- transactions -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads: it sees one state of the database."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes: it is on the disk when the block has ended, or undone by an exception."""
        with _translated(), self._writes.begin() as connection:
            yield connection

    async def run(self, function: Callable[[Connection], T], *, writes: bool = True) -> T:
        """Call a function with a transaction, in a thread, and return its result.

        A caller that is cancelled does not stop it.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "database")

        def call() -> T:
            with self.writing() if writes else self.reading() as connection:
                return function(connection)

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    # --- marks ------------------------------------------------------------------------------------------------------

    def mark(self, name: str) -> object:
        """Return a value that is another one after `raise_mark`, also of another process. Cheap: it is asked in the
        event loop.

        On PostgreSQL it is another one each second, too, since asking would take a round trip.
        """
        if self.is_postgresql:
            return int(time.monotonic())
        try:
            if self._marks is None:
                self._marks = sqlite3.connect(self._file, timeout=0, isolation_level=None, check_same_thread=False)
            return self._marks.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error:
            return object()  # not known: as if it had changed

    @staticmethod
    def raise_mark(connection: Connection, name: str) -> None:
        """Let `mark` give another value once the transaction is committed."""
        if not connection.execute(marks.update().where(marks.c.name == name).values(value=marks.c.value + 1)).rowcount:
            connection.execute(marks.insert().values(name=name, value=1))

    def value(self, name: str) -> int:
        """Return a mark's number by a transaction of its own."""
        with self.reading() as connection:
            return connection.execute(select(marks.c.value).where(marks.c.name == name)).scalar() or 0

    def _sqlite(self) -> Engine:
        try:
            with ownership.directory(self._file.parent, make=True) as directory:
                os.chmod(f"/proc/self/fd/{directory.descriptor}", 0o700)
                with contextlib.suppress(FileExistsError):
                    os.close(directory.open(FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL))
                os.close(directory.open(FILE, os.O_RDWR))  # of this user, and no symlink
        except OSError as error:
            if isinstance(error, errors.AtollError):
                raise
            raise errors.StateUnusable(
                f"the server's database `{self._file}` cannot be written: {error.strerror}",
                hint="make room on the disk, or mount it to be written",
            ) from error
        return _engine_of(f"sqlite:///{self._file}")


def _check_file(url: str, own: Path) -> None:
    """Check that the file of a database of SQLite is a server's: the engine would make it, or change its journal.

    Raises:
        StateUnusable: it is not.
    """
    address = _address(url) if url else None
    if address is not None and _DRIVERS.get(address.drivername) != "sqlite":
        return
    file = own if address is None else Path(address.database or "")
    if not file.is_file():
        raise errors.StateUnusable(f"there is no database `{file}`", hint=schema.NONE_HINT)
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    except sqlite3.Error as error:
        raise errors.StateUnusable(f"`{file}` cannot be read: {error}", hint="look at it, and try again") from error
    if found is None:
        raise errors.StateUnusable(f"`{file}` has no tables of a server", hint=schema.NONE_HINT)


def _address(url: str) -> URL:
    try:
        return make_url(url)
    except exc.ArgumentError as error:
        raise errors.StateUnusable(
            "the address of the database is none", hint="give one such as `postgresql+psycopg://user@host/name`"
        ) from error


def _engine_of(url: str) -> Engine:
    address = _address(url)
    driver = _DRIVERS.get(address.drivername)
    if driver is None:
        raise errors.StateUnusable(
            f"a database of the kind `{address.drivername}` cannot be used",
            hint="give an address of PostgreSQL, such as `postgresql+psycopg://user@host/name`",
        )
    if driver == "sqlite":
        engine = create_engine(address, pool_size=THREADS, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            address.set(drivername=driver), pool_size=THREADS, max_overflow=THREADS, pool_pre_ping=True
        )
    except ImportError as error:
        raise errors.StateUnusable(
            "the driver of PostgreSQL is not installed", hint="run `pip install 'atoll[server,postgresql]'`"
        ) from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("atoll_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translate exceptions of the driver; values of a statement are in no message."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.DBAPIError as error:
        original = error.orig
        if isinstance(original, sqlite3.Error) and "full" in str(original):
            raise errors.DiskFull("the disk of the server's database is full", hint="free space on it") from original
        first = str(original).strip().partition("\n")[0]
        raise errors.StateUnusable(
            f"the server's database cannot be used: {first}", hint="look at it, and try again"
        ) from original
    except exc.TimeoutError as error:
        raise errors.StateUnusable("the server's database is too busy", hint="try again") from error
