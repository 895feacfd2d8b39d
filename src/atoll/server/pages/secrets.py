"""Pages of a user's secrets: names alone, set and deleted; no page ever has a value."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.pages.visit import Visit, route


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/secrets", listed),
        route("/secrets", put, method="POST"),
        route("/secrets/delete", delete, method="POST"),
    ]


async def listed(visit: Visit, error: errors.AtollError | None = None) -> Response:
    """Show the names of the user's secrets."""
    found = await visit.ask("secrets.list", {})
    status = 200 if error is None else 400
    name = visit.form.get("name", "")
    return visit.page("secrets.html", status=status, secrets=found["secrets"], error=error, name=name)


async def put(visit: Visit) -> Response:
    """Set a secret; a browser's line ends become those of Unix."""
    value = visit.form.get("value", "").replace("\r\n", "\n")
    try:
        await visit.ask("secrets.set", {"name": visit.form.get("name", "").strip(), "value": value})
    except errors.ResourcesUnavailable as error:
        return await listed(visit, error)
    return visit.go("/secrets", "set")


async def delete(visit: Visit) -> Response:
    """Delete a secret."""
    await visit.ask("secrets.delete", {"name": visit.form.get("name", "")})
    return visit.go("/secrets", "deleted")
