"""Errors as the published clients show them: `detail` is a text."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from atoll import errors
from atoll.server.app import status_of
from atoll.server.files import failures
from atoll.server.files.paths import BadPath

Handler = Callable[[Request], Awaitable[Any]]


class Failed(Exception):
    """A request that is answered with a status and a text."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class ForPrograms(Route):
    """A route of requests with a key in their head: the page has some of the same addresses, and cookies."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether a request is for it."""
        if scope["type"] != "http" or not any(name == b"authorization" for name, _ in scope["headers"]):
            return Match.NONE, {}
        return super().matches(scope)


def route(path: str, method: str, handler: Handler, *, conflict: int = 409) -> Route:
    """Return the route of a handler, whose result is JSON unless it is an answer.

    Args:
        conflict: the status of errors that are 409 elsewhere.
    """

    @functools.wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            found = await handler(request)
        except Failed as error:
            return JSONResponse({"detail": error.detail}, error.status)
        except BadPath as error:
            return JSONResponse({"detail": f"{error}; {error.hint}"}, 422)
        except errors.AtollError as error:
            detail = f"{error.message}; {error.hint}" if error.hint else error.message
            return JSONResponse({"detail": detail}, _unless_conflict(status_of(error), conflict))
        except OSError as error:
            failed = failures.failure(error, "")
            return JSONResponse(
                {"detail": error.strerror or str(error)}, _unless_conflict(failed.status_code, conflict)
            )
        return found if isinstance(found, Response) else JSONResponse(found)

    return ForPrograms(path, handle, methods=[method])


def _unless_conflict(status: int, conflict: int) -> int:
    return conflict if status == 409 else status
