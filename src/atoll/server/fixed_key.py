"""The one key of a server without accounts: a file in the state directory that its owner alone can read."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from atoll import errors, ownership
from atoll.server.principal import ADMIN, Principal
from atoll.server.state import Authenticate

NAME = "server-key"
USER = "operator"


def authenticate(home: Path) -> Authenticate:
    """Return an authentication that knows the key in `server-key` alone; makes the file when it is absent."""
    expected = read(home)
    key_id = expected.partition(":")[0]

    async def find(headers: dict[str, str], _address: str) -> Principal:
        given = headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Key {expected}".encode("latin-1")):
            raise errors.NotAuthorized("the request has no valid key", hint="see `atoll auth login --help`")
        return Principal(USER, USER, key_id, ADMIN, operator=True)

    return find


def read(home: Path) -> str:
    """Return the key as `ID:SECRET`."""
    with ownership.directory(home, make=True) as directory:
        try:
            descriptor = directory.open(NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            descriptor = directory.open(NAME, os.O_RDONLY)
            with open(descriptor, encoding="ascii") as file:
                return file.read().strip()
        key = f"{secrets.token_hex(8)}:{secrets.token_urlsafe(32)}"
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)
            file.write(key + "\n")
        return key
