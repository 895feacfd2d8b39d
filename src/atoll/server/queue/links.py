"""Addresses of the queue: what a request's names, and those that its client is given, with the host and prefix it has used.

Today's clients ask below `/queue/OWNER/ALIAS`, or at the host `queue.DOMAIN`. Those of 2023 ask in the endpoint's own paths,
below `fal/queue`. A path's bytes are read as they came, so that no two readers see two paths in them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.requests import HTTPConnection
from starlette.types import Scope

from atoll import errors
from atoll.server.endpoints.gateway import Gateway

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,300}")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
QUEUE = "/queue"
_OLD = b"fal/queue"
SUBMIT, STATUS, STREAM, RESULT, CANCEL, GET, NONE = "submit", "status", "stream", "result", "cancel", "get", ""
_NATIVE_VERBS = {
    ("GET",): RESULT,
    ("GET", "response"): RESULT,
    ("GET", "status"): STATUS,
    ("GET", "status", "stream"): STREAM,
    ("PUT", "cancel"): CANCEL,
}
_OLD_VERBS = {
    ("GET", "requests", "response"): RESULT,
    ("GET", "requests", "status"): STATUS,
    ("GET", "requests", "status", "stream"): STREAM,
    ("PUT", "requests", "cancel"): CANCEL,
    ("GET", "get"): GET,
    ("PUT", "cancel"): CANCEL,
}


class Address(NamedTuple):
    """What a request's address names.

    Args:
        owner: name or id of the user.
        alias: the alias, or the revision's id.
        base: the path of the endpoint, or of its queue.
        native: below `/queue`, as today's clients ask.
        verb: what is asked; empty for nothing that there is.
        id: of the queued request.
        rest: the path for the function, without the first slash.
    """

    owner: str
    alias: str
    base: str
    native: bool
    verb: str
    id: str = ""
    rest: str = ""


def read(scope: Scope, gateway: Gateway, domain: str) -> Address | None:
    """Return what the address of a request names; None for another one than the queue's."""
    raw, method = scope["raw_path"], scope["method"]
    if not gateway.is_named(scope):
        if _is_queues(scope, domain):
            return _native(raw, method, 1)
        if raw.startswith(QUEUE.encode() + b"/"):
            return _native(raw, method, 2)
    place = gateway.place(scope)
    if place is None or not (place.rest + b"/").startswith(_OLD + b"/"):
        return None
    parts = place.rest[len(_OLD) + 1 :].decode("latin-1").split("/")
    verb, request, rest = NONE, "", ""
    if parts[0] == SUBMIT and method == "POST":
        verb, rest = SUBMIT, "/".join(parts[1:])
    else:
        parts = _without_slash(parts)
        at = 1 if parts[:1] == ["requests"] else 0
        request = parts[at] if len(parts) > at else ""
        verb = _OLD_VERBS.get((method, *parts[:at], *parts[at + 1 :]), NONE)
    return Address(place.owner, place.alias, place.prefix.decode("latin-1"), False, verb, request, rest)


def is_named(scope: Scope, gateway: Gateway, domain: str) -> bool:
    """Return whether the host of a request names an endpoint, or the queue."""
    return gateway.is_named(scope) or _is_queues(scope, domain)


def is_of_queue(scope: Scope, gateway: Gateway, domain: str) -> bool:
    """Return whether the queue answers a request: a cheap look first, since each request to an endpoint comes here."""
    return (b"/" + _OLD in scope["raw_path"] or _is_queues(scope, domain)) and read(scope, gateway, domain) is not None


def _is_queues(scope: Scope, domain: str) -> bool:
    return bool(domain) and _host(scope).partition(":")[0].lower() == f"queue.{domain}"


def _native(raw: bytes, method: str, before: int) -> Address | None:
    """Read a path that has owner and alias behind so many parts."""
    parts = raw.decode("latin-1").split("/")
    if len(parts) < before + 2 or not (parts[before] and parts[before + 1]):
        return None
    owner, alias, rest = parts[before], parts[before + 1], parts[before + 2 :]
    base = "/".join(parts[: before + 2])
    if method == "POST":
        return Address(owner, alias, base, True, SUBMIT, "", "/".join(rest))
    rest = _without_slash(rest)
    is_known = len(rest) > 1 and rest[0] == "requests"
    verb = _NATIVE_VERBS.get((method, *rest[2:]), NONE) if is_known else NONE
    return Address(owner, alias, base, True, verb, rest[1] if is_known else "", "")


def _without_slash(parts: list[str]) -> list[str]:
    return parts[:-1] if parts and not parts[-1] else parts


def _host(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")


class Links(NamedTuple):
    """The addresses of a client's requests to an endpoint.

    Args:
        base: scheme, host and path, as the client has named them.
        native: as in `Address`.
    """

    base: str
    native: bool

    def response(self, request: str) -> str:
        """Return the address of the answer."""
        return f"{self._one(request)}/response" if not self.native else self._one(request)

    def status(self, request: str) -> str:
        """Return the address of the status."""
        return f"{self._one(request)}/status"

    def cancel(self, request: str) -> str:
        """Return the address that cancels."""
        return f"{self._one(request)}/cancel" if self.native else f"{self.base}/fal/queue/{request}/cancel"

    def _one(self, request: str) -> str:
        return f"{self.base}/requests/{request}" if self.native else f"{self.base}/fal/queue/requests/{request}"


def links_of(connection: HTTPConnection, address: Address) -> Links:
    """Return the addresses for the client of a request.

    Raises:
        CallerError: its host is none.
    """
    host = _host(connection.scope)
    if not _HOST.fullmatch(host):
        raise errors.CallerError("the host is none", hint="name the server's host", status=400)
    return Links(f"{connection.scope['scheme']}://{host}{address.base}", address.native)


def check_id(text: str) -> str:
    """Return the id of a request.

    Raises:
        CallerError: it is none, status 404.
    """
    if not _ID.fullmatch(text):
        raise unknown()
    return text


def unknown() -> errors.CallerError:
    """Return the error for a request that there is not, or that is another's."""
    return errors.CallerError("there is no such request", hint="answers are kept for some days", status=404)
