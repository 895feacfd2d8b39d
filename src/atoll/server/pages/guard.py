"""The page's walls: headers of its answers, and the refusal of requests that another site has made.

A browser sends a user's cookie with requests that another site's page causes. So a request that comes from elsewhere
is refused whatever its method, but for a navigation by link, and one that changes something also needs the token of
its form, which another site cannot read.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request

from atoll import errors
from atoll.server.accounts.authentication import is_own

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; media-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer of the page."""

SAFE_METHODS = ("GET", "HEAD")


def check_site(request: Request) -> None:
    """Refuse a request that another site has made.

    A browser says so in `Sec-Fetch-Site`, and older ones in `Origin`, which they send with every method that changes
    something. One that says neither is no browser with this user's cookie, and may only read.

    Raises:
        NotAuthorized: it comes from elsewhere, or may.
    """
    site, origin = request.headers.get("sec-fetch-site", ""), request.headers.get("origin", "")
    reads = request.method in SAFE_METHODS
    if origin and not is_own(origin, request.headers.get("host", "")):
        raise _foreign()
    if site == "same-origin" or (site == "none" and reads):
        return
    if not site:
        if not reads and not origin:
            raise _foreign()
        return
    if not reads or request.headers.get("sec-fetch-mode") != "navigate":
        raise _foreign()
    if request.headers.get("sec-fetch-dest", "document") != "document":
        raise _foreign()


def _foreign() -> errors.NotAuthorized:
    return errors.NotAuthorized(
        "the request comes from another site", hint="open this server's page and do it there", status=403
    )


def form_token(secret: str) -> str:
    """Return the token of the forms of a session.

    Args:
        secret: the value of the session's cookie, which only its browser has.
    """
    return hashlib.blake2b(secret.encode(), digest_size=24, person=b"atoll form").hexdigest()


def check_token(secret: str, token: str) -> None:
    """Refuse a form that this session has not been given.

    Raises:
        NotAuthorized: the token is not that of the session.
    """
    if not secret or not hmac.compare_digest(form_token(secret).encode(), token.encode("utf-8", "replace")):
        raise errors.NotAuthorized(
            "the form is out of date", hint="load the page again and repeat the last step", status=403
        )
