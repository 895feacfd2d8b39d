"""Pages of a user's keys: listed, made with the secret shown once, revoked."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.accounts import rows
from atoll.server.accounts.accounts import Accounts
from atoll.server.pages.visit import Visit, route
from atoll.server.principal import ADMIN, API

DAYS = {"": 0, "30": 30, "90": 90, "365": 365}


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/keys", listed),
        route("/keys", make, method="POST"),
        route("/keys/{key}/revoke", revoke, method="POST"),
    ]


def accounts_of(visit: Visit) -> Accounts:
    """Return the accounts of a server."""
    found: Accounts = visit.state.parts["accounts"]
    return found


async def listed(visit: Visit, made: tuple[rows.Key, str] | None = None) -> Response:
    """Show the user's keys.

    Args:
        made: a key that was just made, with its secret.
    """
    may = visit.user.scope == ADMIN
    found: list[rows.Key] = []
    if may:
        found = await accounts_of(visit).database.run(
            lambda connection: rows.keys_of(connection, rows.find_user(connection, visit.user.user)), writes=False
        )
    values: dict[str, Any] = {"keys": found, "may": may, "made": made, "own": visit.user.key, "days": DAYS}
    return visit.page("keys.html", address_of_server=str(visit.request.base_url).rstrip("/"), **values)


def _check(visit: Visit) -> None:
    if visit.user.scope != ADMIN:
        raise errors.NotAuthorized(
            "a key of the scope API does not handle keys", hint="log in with one of the scope ADMIN", status=403
        )


async def make(visit: Visit) -> Response:
    """Make a key, and show its secret this once."""
    _check(visit)
    accounts = accounts_of(visit)
    scope = visit.form.get("scope", API)
    days = DAYS.get(visit.form.get("days", ""), 0)
    made = await accounts.database.run(
        lambda connection: rows.add_key(
            connection,
            accounts.pepper,
            rows.find_user(connection, visit.user.user),
            scope=scope,
            alias=visit.form.get("alias", ""),
            seconds=days * 86400,
            maker=visit.user.key,
        )
    )
    return await listed(visit, made)


async def revoke(visit: Visit) -> Response:
    """Revoke a key at once, with the sessions that began with it."""
    _check(visit)
    key = visit.request.path_params["key"][:200]
    await accounts_of(visit).change(lambda connection: rows.revoke(connection, key, visit.user.user))
    return visit.go("/keys", "revoked")
