"""Names of users and aliases of keys, and the ids that paths use in place of names.

A user's name has 1 to 32 characters: lower-case ASCII letters, digits, and single `.`, `_` or `-` between them; it
begins with a letter. ASCII alone, so that no name looks like another; lower case alone, so that none is another by
case. An id is random and never given twice: a user who is added again under an old name has a new, empty volume.
"""

from __future__ import annotations

import re
import secrets

from atoll import errors
from atoll.terminal_text import cell

NAME = r"[a-z](?:[._-]?[a-z0-9]){0,31}"
MOST_NAME = 32
RESERVED = frozenset(
    {
        *("admin", "administrator", "anonymous", "atoll", "local", "machine", "nobody", "root", "system"),
        *(
            "api",
            "applications",
            "assets",
            "auth",
            "billing",
            "calls",
            "data",
            "docs",
            "endpoints",
            "environments",
            "files",
            "gateway",
        ),
        *(
            "health",
            "healthz",
            "keys",
            "live",
            "login",
            "logout",
            "logs",
            "metrics",
            "queue",
            "readyz",
            "requests",
            "rest",
            "run",
            "schedules",
            "secrets",
        ),
        *("sessions", "status", "storage", "tokens", "trigger", "usage", "users", "v1", "workflows"),
    }
)
"""Names that people would take for the system's own, and first parts of its addresses: those of endpoints begin with names."""
MOST_ALIAS = 64
_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"


def check_name(name: str) -> str:
    """Return a user's name.

    Raises:
        CallerError: it is none, or is reserved.
    """
    if len(name) > MOST_NAME or not re.fullmatch(NAME, name):
        raise errors.CallerError(
            f"`{cell(name, 60)}` is no name for a user",
            hint="use 1 to 32 lower-case ASCII letters, digits, and single `.`, `_`, `-` between them; a letter first",
        )
    if name in RESERVED:
        raise errors.CallerError(f"the name `{name}` is reserved", hint="choose another name")
    return name


def check_alias(alias: str) -> str:
    """Return a key's alias: at most 64 printable ASCII characters, empty for none.

    Raises:
        CallerError: it is another text.
    """
    if len(alias) > MOST_ALIAS or not alias.isascii() or (alias and not alias.isprintable()):
        raise errors.CallerError(
            f"`{cell(alias, 60)}` is no alias for a key", hint=f"use at most {MOST_ALIAS} printable ASCII characters"
        )
    return alias


def new_id() -> str:
    """Return a fresh id of a user: 100 random bits as letters and digits; no name, since it begins with a digit."""
    return "0" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(20))
