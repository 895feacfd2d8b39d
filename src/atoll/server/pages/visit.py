"""A visit: one request of the page with its user, and the answers that handlers give."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.server.app import status_of
from atoll.server.pages import guard, sessions
from atoll.server.pages.rendering import render
from atoll.server.principal import Principal
from atoll.server.state import ServerState, principal_of, state_of

MOST_FORM_BYTES = 512 << 10
MOST_FIELDS = 64
LOGIN = "/login"
_log = logging.getLogger("atoll.server.pages")


@dataclass(frozen=True)
class Section:
    """An entry of the page's navigation."""

    path: str
    title: str
    for_operators: bool = False


SECTIONS = (
    Section("/", "Overview"),
    Section("/calls", "Calls"),
    Section("/files", "Files"),
    Section("/environments", "Environments"),
    Section("/usage", "Usage"),
    Section("/keys", "Keys"),
    Section("/secrets", "Secrets"),
    Section("/admin", "Server", for_operators=True),
)


@dataclass(frozen=True)
class Visit:
    """A request of the page.

    Args:
        principal: the user; None on the page for logging in.
        form: the fields of its form, the token checked.
    """

    request: Request
    state: ServerState
    principal: Principal | None
    form: dict[str, str] = field(default_factory=dict)

    @property
    def user(self) -> Principal:
        """The user of a page that needs one."""
        assert self.principal is not None
        return self.principal

    def query(self, name: str, default: str = "") -> str:
        """Return a parameter of the address; bounded."""
        return self.request.query_params.get(name, default)[:500]

    def number(self, name: str, most: int) -> int:
        """Return a parameter of the address that is a number from 0 to `most`; 0 for anything else."""
        text = self.query(name)
        return min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 10 else 0

    async def ask(self, name: str, arguments: dict[str, Any], *, own: bool = True) -> dict[str, Any]:
        """Ask the node in the user's name.

        Args:
            own: False for the server's own question, which shows everybody's; for operators only.

        Raises:
            AtollError: as the node answers.
        """
        principal = self.user if own else None
        if not own and not self.user.may_administer:
            raise forbidden()
        return await asyncio.to_thread(self.state.node.request, principal, name, arguments)

    def page(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page made of a template."""
        path = self.request.url.path
        secret = sessions.cookie_of(self.request)
        sections = [one for one in SECTIONS if self.principal and (self.user.may_administer or not one.for_operators)]
        here = [one.path for one in sections if path == one.path or path.startswith(one.path.rstrip("/") + "/")]
        text = render(
            template,
            principal=self.principal,
            sections=sections,
            here=max(here, key=len) if here else "",
            token=guard.form_token(secret) if secret else "",
            done=self.query("done"),
            **values,
        )
        return HTMLResponse(text, status, guard.HEADERS)

    def go(self, path: str, done: str = "") -> RedirectResponse:
        """Return the answer to a form that has done its work: the browser loads another page.

        Args:
            done: a word for which that page has a line of confirmation.
        """
        more = f"{'&' if '?' in path else '?'}done={quote(done)}" if done else ""
        return RedirectResponse(path + more, 303, guard.HEADERS)


Handler = Callable[[Visit], Awaitable[Response]]


def forbidden() -> errors.NotAuthorized:
    """Return the error of somebody who does not run the server."""
    return errors.NotAuthorized("this page is for those who run the server", hint="ask one of them", status=403)


def not_found(message: str, hint: str = "") -> errors.AtollError:
    """Return the error of an address that has nothing for this user."""
    return errors.CallUnknown(message, hint=hint)


def route(path: str, handler: Handler, *, method: str = "GET", public: bool = False, raw: bool = False) -> Route:
    """Return the route of a page.

    Args:
        public: also for those who have not logged in.
        raw: the handler reads the body itself, and checks the token.
    """

    async def endpoint(request: Request) -> Response:
        state = state_of(request)
        visit = Visit(request, state, None)
        try:
            guard.check_site(request)
            principal = await _user(request, public=public)
            visit = Visit(request, state, principal)
            if method == "POST" and not raw:
                visit = Visit(request, state, principal, await _form(request))
            return await handler(visit)
        except errors.AtollError as error:
            if isinstance(error, errors.NotAuthorized) and error.status == 401 and not public:
                return _to_login(request)
            return failed(visit, error)
        except HTTPException as error:
            return failed(visit, errors.CallerError(error.detail), error.status_code)
        except ValueError as error:
            return failed(visit, errors.CallerError(str(error)), 400)
        except Exception:
            _log.exception("page_failed path=%s", request.url.path)
            return failed(visit, errors.InternalError("the server failed at this page", hint="see its log"), 500)

    return Route(path, endpoint, methods=[method], name=f"page {method} {path}")


def failed(visit: Visit, error: errors.AtollError, status: int = 0) -> Response:
    """Return the page of an error, with its hint."""
    status = status or (404 if unknown(error) else status_of(error))
    return visit.page("error.html", status=status, error=error, code=status)


def unknown(error: errors.AtollError) -> bool:
    """Return whether an error says that the user has no such thing."""
    return isinstance(error, errors.ResourcesUnavailable) and error.message.startswith(("no call", "no environment"))


async def http_error(request: Request, error: HTTPException) -> Response:
    """Return the page of an address that no route has, or of a method that it does not know."""
    state = state_of(request)
    hint = "the navigation leads to all pages" if error.status_code == 404 else ""
    shown = errors.CallerError(f"`{request.url.path[:200]}`: {error.detail.lower()}", hint=hint)
    return failed(Visit(request, state, await _user(request, public=True)), shown, error.status_code)


async def _user(request: Request, *, public: bool) -> Principal | None:
    try:
        return await principal_of(request)
    except errors.NotAuthorized:
        if public:
            return None
        raise


def _to_login(request: Request) -> Response:
    """Send a browser to the page for logging in, and back afterwards."""
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"{LOGIN}?next={quote(back)}" if request.method == "GET" and back != "/" else LOGIN
    response = RedirectResponse(target, 303, guard.HEADERS)
    if sessions.cookie_of(request):
        sessions.clear_cookie(response, sessions.COOKIE)
    return response


async def _form(request: Request) -> dict[str, str]:
    """Read a form of short fields, and check its token."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_FORM_BYTES:
            raise errors.CallerError(
                f"the form has more than {MOST_FORM_BYTES >> 10} KiB", hint="use the command line for long values"
            )
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    form = dict(pairs)
    secret = sessions.cookie_of(request) or request.cookies.get(sessions.FORM_COOKIE, "")
    if request.url.path == LOGIN:
        secret = request.cookies.get(sessions.FORM_COOKIE, "")
    guard.check_token(secret, form.pop("token", ""))
    return form
