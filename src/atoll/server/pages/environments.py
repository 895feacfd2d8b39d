"""Pages of environments: a list with sizes, and one with requirements, lock and the log of its build."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.pages.visit import Visit, not_found, route

MOST_ROWS = 500


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [route("/environments", listed), route("/environments/{key}", shown)]


async def listed(visit: Visit) -> Response:
    """Show environments, those that were used last first."""
    found = (await visit.ask("environments.list", {}))["environments"]
    found.sort(key=lambda one: (-one["last_used"], one["key"]))
    total = sum(one["size_bytes"] for one in found)
    return visit.page("environments.html", environments=found[:MOST_ROWS], count=len(found), total=total)


async def shown(visit: Visit) -> Response:
    """Show one environment."""
    key = visit.request.path_params["key"][:200]
    try:
        found = await visit.ask("environments.show", {"key": key})
    except (errors.ResourcesUnavailable, errors.EnvironmentBuildError) as error:
        raise not_found(error.message, "see the list of environments; unused ones are removed in time") from error
    return visit.page("environment.html", environment=found["environment"], log=found["log"], lock=found["lock"])
