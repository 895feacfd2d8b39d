"""The address of a state directory's database, remembered there: commands on the machine ask the one that is used.

The file is the owner's alone, since the address of a PostgreSQL database may hold a password.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from atoll import ownership, settings
from atoll.server.database.database import DIRECTORY

FILE = "database-url"
OWN = "sqlite"
"""The word for the state directory's own file."""


def address_of(home: Path, given: str = "") -> str:
    """Return the address to use: the given one, ATOLL_DATABASE_URL, the remembered one; empty for the own file.

    Raises:
        StateUntrusted: another user can change the file.
    """
    found = given or settings.variable("ATOLL_DATABASE_URL") or _remembered(home)
    return "" if found == OWN else found


def remember(home: Path, address: str) -> None:
    """Remember the address that a server uses.

    Raises:
        StateUntrusted: another user can change the directory.
    """
    if address == _remembered(home):
        return
    with ownership.directory(home / DIRECTORY, make=True) as directory:
        temporary = f".{FILE}-{secrets.token_hex(8)}"
        with open(directory.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(address)
            file.flush()
            os.fsync(file.fileno())
        os.rename(home / DIRECTORY / temporary, home / DIRECTORY / FILE)


def _remembered(home: Path) -> str:
    with (
        contextlib.suppress(FileNotFoundError),
        ownership.directory(home / DIRECTORY) as directory,
        open(directory.open(FILE, os.O_RDONLY), encoding="utf-8") as file,
    ):
        return file.read(4096)
    return ""
