"""Logging in at the issuer of identities that a server has: a code that the person confirms there, then a session.

The server brokers the login (`server.login.device`), so this browser needs no address of the issuer but the one that the
person follows. The token of the login is in a cookie; the key that it ends with is the session's, and goes with it.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.login.device import DeviceLogins
from atoll.server.login.options import is_safe
from atoll.server.pages import guard, sessions
from atoll.server.pages.login import next_page
from atoll.server.pages.visit import Visit, not_found, route

COOKIE = "atoll_login"
COOKIE_SECONDS = 1800
ALIAS = "page"
"""The name of keys that sessions of this kind begin with."""


def routes() -> list[BaseRoute]:
    """Return the routes of these pages."""
    return [
        route("/login/oidc", begin, method="POST", public=True),
        route("/login/oidc/check", check, method="POST", public=True),
    ]


def _logins(visit: Visit) -> DeviceLogins:
    found = visit.state.parts.get("logins")
    if found is None:
        raise not_found("this server has no issuer of identities", "log in with a key")
    logins: DeviceLogins = found
    return logins


def _address(visit: Visit) -> str:
    return visit.request.client.host if visit.request.client is not None else ""


async def begin(visit: Visit) -> Response:
    """Begin a login, and show its code."""
    token, begun = await _logins(visit).begin(_address(visit), ALIAS)
    response = _shown(visit, begun.user_code, begun.complete or begun.address, begun.interval)
    sessions.set_cookie(visit.request, response, COOKIE, token, COOKIE_SECONDS)
    return response


async def check(visit: Visit) -> Response:
    """Ask whether the person has confirmed, and begin a session then."""
    token = sessions.cookie_of(visit.request, COOKIE)[:100]
    found = await _logins(visit).poll(token, _address(visit))
    if isinstance(found, float):
        address = visit.form.get("address", "")
        return _shown(visit, visit.form.get("code", "")[:64], address if is_safe(address) else "", found)
    key, secret = found
    principal = await visit.state.authenticate({"authorization": f"Key {key.id}:{secret}"}, _address(visit))
    response = visit.go(next_page(visit.form.get("next", "")))
    sessions.set_session(visit.request, response, await sessions.sessions_of(visit.state).open(principal))
    sessions.set_cookie(visit.request, response, COOKIE, "", 0)
    sessions.set_cookie(visit.request, response, sessions.FORM_COOKIE, "", 0)
    return response


def _shown(visit: Visit, code: str, address: str, seconds: float) -> Response:
    secret = sessions.cookie_of(visit.request, sessions.FORM_COOKIE)
    if not secret:
        raise errors.NotAuthorized("the login is not known", hint="begin again", status=403)
    return visit.page(
        "issuer.html",
        code=code,
        address=address,
        seconds=max(int(seconds + 0.999), 1),
        back=visit.form.get("next", ""),
        form_token=guard.form_token(secret),
    )
