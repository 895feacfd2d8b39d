"""The person behind a request, as authentication has found them."""

from __future__ import annotations

from dataclasses import dataclass

ADMIN, API = "ADMIN", "API"
"""Scopes of a key: administration of the server as well, or functions and data of its user alone."""


@dataclass(frozen=True)
class Principal:
    """An authenticated user.

    Args:
        user: the opaque id, also the name of the volume's directory: ASCII letters, digits, `_` and `-`.
        name: the name that people know the user by; shown, and never part of a path.
        key: the id of the key that the request came with; empty for a session of the page.
        scope: `ADMIN` or `API`.
        operator: the user is one of those who run the server.
        workers: the most that run for the user at a time; 0 for no bound.
    """

    user: str
    name: str
    key: str = ""
    scope: str = API
    operator: bool = False
    workers: int = 0

    @property
    def may_administer(self) -> bool:
        """True for an operator whose key has the scope for it."""
        return self.operator and self.scope == ADMIN
