"""A visit: one request of the page with its user, and the answers that handlers give."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.server.app import status_of
from atoll.server.pages import guard, sessions
from atoll.server.pages.rendering import render
from atoll.server.principal import Principal
from atoll.server.state import ServerState, state_of

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
    Section("/endpoints", "Endpoints"),
    Section("/requests", "Requests"),
    Section("/schedules", "Schedules"),
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
        return await self.state.asks.ask(principal, name, arguments)

    @property
    def token(self) -> str:
        """The token of the forms of this session; empty for none."""
        secret = sessions.cookie_of(self.request)
        return guard.form_token(secret) if secret else ""

    def page(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page made of a template."""
        path = self.request.url.path
        sections = [one for one in SECTIONS if self.principal and (self.user.may_administer or not one.for_operators)]
        here = [one.path for one in sections if path == one.path or path.startswith(one.path.rstrip("/") + "/")]
        text = render(
            template,
            principal=self.principal,
            sections=sections,
            section=max(here, key=len) if here else "",
            token=self.token,
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
    return errors.CallerError(message, hint=hint, status=404)


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
                visit = Visit(request, state, principal, await read_fields(request))
            return await handler(visit)
        except errors.AtollError as error:
            if isinstance(error, errors.NotAuthorized) and error.status == 401 and not public:
                return _to_login(request)
            return failed(visit, error)
        except HTTPException as error:
            return failed(visit, errors.CallerError(error.detail), error.status_code)
        except OSError as error:
            return failed(visit, _of_file(error))
        except ValueError as error:
            return failed(visit, errors.CallerError(str(error)), 400)
        except ClientDisconnect:
            raise  # nobody reads an answer
        except Exception:
            _log.exception("page_failed path=%s", request.url.path)
            return failed(visit, errors.InternalError("the server failed at this page", hint="see its log"), 500)

    return Route(path, endpoint, methods=[method], name=f"page {method} {path}")


def failed(visit: Visit, error: errors.AtollError, status: int = 0) -> Response:
    """Return the page of an error, with its hint."""
    status = status or status_of(error)
    return visit.page("error.html", status=status, error=error, code=status)


_OF_FILES = {
    errno.ENOENT: (404, "look at the directory above"),
    errno.EACCES: (403, "change the mode of the file or directory"),
    errno.EPERM: (403, "choose a path inside `/data`"),
    errno.EEXIST: (409, "choose another name, or remove the file that is there"),
    errno.ENOTDIR: (404, "look at the directory above"),
    errno.EISDIR: (409, "choose a file"),
    errno.ENOTEMPTY: (409, "remove the directory with all that is in it"),
}
"""Status and next step of the errors of files; another one is 400."""


def _of_file(error: OSError) -> errors.AtollError:
    if isinstance(error, errors.AtollError):
        return error
    status, hint = _OF_FILES.get(error.errno or 0, (400, ""))
    name = error.filename if isinstance(error.filename, str) else ""
    text = (error.strerror or str(error)).lower()
    return errors.CallerError(f"`{name}`: {text}" if name else text, hint=hint, status=status)


async def http_error(request: Request, error: HTTPException) -> Response:
    """Return the page of an address that no route has, or of a method that it does not know."""
    state = state_of(request)
    hint = "the navigation leads to all pages" if error.status_code == 404 else ""
    shown = errors.CallerError(f"`{request.url.path[:200]}`: {error.detail.lower()}", hint=hint)
    return failed(Visit(request, state, await _user(request, public=True)), shown, error.status_code)


async def _user(request: Request, *, public: bool) -> Principal | None:
    """Return the user of a session, whose site `guard.check_site` has let in; keys of programs are no way in here."""
    cookie = sessions.cookie_of(request)
    found = await sessions.sessions_of(state_of(request)).find(cookie) if cookie else None
    if found is None and not public:
        raise errors.NotAuthorized("nobody has logged in", hint="log in")
    return found


def _to_login(request: Request) -> Response:
    """Send a browser to the page for logging in, and back afterwards."""
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"{LOGIN}?next={quote(back)}" if request.method == "GET" and back != "/" else LOGIN
    response = RedirectResponse(target, 303, guard.HEADERS)
    if sessions.cookie_of(request):
        sessions.clear_session(response)
    return response


async def read_fields(request: Request) -> dict[str, str]:
    """Return the fields of a form of short fields, its token checked and left out.

    Raises:
        CallerError: it is too long.
        NotAuthorized: its token is wrong.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_FORM_BYTES:
            raise errors.CallerError(
                f"the form has more than {MOST_FORM_BYTES >> 10} KiB",
                hint="use the command line for long values",
                status=413,
            )
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    form = dict(pairs)
    check_form_token(request, form.pop("token", ""))
    return form


def check_form_token(request: Request, token: str) -> None:
    """Refuse a form that the browser's session has not been given.

    Raises:
        NotAuthorized: the token is not that of the session.
    """
    before = request.url.path == LOGIN or request.url.path.startswith(LOGIN + "/")
    secret = sessions.cookie_of(request, sessions.FORM_COOKIE) if before else sessions.cookie_of(request)
    guard.check_token(secret, token)
