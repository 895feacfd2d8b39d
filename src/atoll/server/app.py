"""The application: routes of all parts, and errors as JSON."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from atoll import errors
from atoll.server.state import ServerState

log = logging.getLogger("atoll.server")

_STATUSES: dict[type[errors.AtollError], int] = {
    errors.CallUnknown: 404,
    errors.QuotaExceeded: 507,
    errors.DiskFull: 507,
    errors.ProtocolMismatch: 426,
    errors.CallerError: 400,
    errors.OperatorError: 503,
}
"""The status of an error's answer; the first fitting one counts."""


def status_of(error: errors.AtollError) -> int:
    """Return the HTTP status of an error's answer."""
    if isinstance(error, errors.NotAuthorized):
        return error.status
    given = error.details.get("status")
    if type(error) is errors.CallerError and isinstance(given, int) and 400 <= given < 500:
        return given
    return next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 500)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.AtollError)
    status = status_of(error)
    if isinstance(error, errors.SandboxUnavailable):  # the operator's to mend, whom nobody else may tell
        fields = {"user": request.scope.get("atoll.user", ""), "cause": error.message[:500], "hint": error.hint[:500]}
        log.warning("machine_not_ready", extra={"fields": fields})
    headers = {"WWW-Authenticate": "Key"} if status == 401 else {}
    if status == 429 and "retry_after" in error.details:
        headers["Retry-After"] = str(error.details["retry_after"])
    return JSONResponse({"error": error.to_data()}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    page = request.app.state.server.parts.get("error_page")
    if (
        page is not None
        and "text/html" in request.headers.get("accept", "")
        and not request.url.path.startswith("/v1/")
    ):
        answer: Response = await page(request, error)
        return answer
    data = {"code": "http", "message": error.detail, "hint": "", "details": {}}
    return JSONResponse({"error": data}, error.status_code, error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    """Answer nobody: the client has gone; the log has this status."""
    return Response(status_code=499)


async def _crashed(_request: Request, _error: Exception) -> Response:
    """Answer for a handler that failed; the server logs its traceback."""
    known = errors.InternalError("the server failed", hint="please report it with the server's log")
    return JSONResponse({"error": known.to_data()}, 500)


def make_app(state: ServerState) -> Starlette:
    """Return the application with the routes that the parts have added to the state."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for opened in state.lifespan:
                await stack.enter_async_context(opened())
            yield

    app = Starlette(
        routes=state.routes,
        exception_handlers={
            errors.AtollError: _failed,
            HTTPException: _refused,
            ClientDisconnect: _gone,
            Exception: _crashed,
        },
        lifespan=lifespan,
    )
    app.state.server = state
    return app
