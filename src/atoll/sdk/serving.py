"""Functions as endpoints of a server: a function is registered as a revision, and an alias points to it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll import errors
from atoll.sdk.call import name_of
from atoll.sdk.detached.spawning import spool_of
from atoll.web.app import serve as serve_app

if TYPE_CHECKING:
    from atoll.sdk.attempts import CallableFunction

PORT = 8080
"""The port of a function that is served by `serve=True`."""
WEB = ("fastapi>=0.110", "uvicorn>=0.30")
"""Requirements of a function that is served so."""
SERVING = (
    *("min_concurrency", "max_concurrency", "max_multiplexing", "keep_alive", "startup_timeout", "request_timeout"),
    *("health_path", "rate_limit", "cors"),
)
AUTHS = ("private", "public", "shared")


class Endpoint(NamedTuple):
    """A registered function.

    Args:
        revision: its id; it stays callable by that.
        alias: the alias that points to it; empty for none.
        url: its address.
    """

    revision: str
    alias: str
    url: str


def serve(function: CallableFunction, alias: str, auth: str, serving: dict[str, Any]) -> Endpoint:
    """Register a function at its server; requests at its address run it from then on.

    Args:
        serving: how it is served, by the names in `SERVING`; `enveloped` besides.

    Raises:
        TypeError: there is no such option.
        ValueError: the function is not to be served, or `auth` is unknown.
        OperatorError, CallerError: the server refuses it.
    """
    enveloped = bool(serving.get("enveloped", False))
    known = {name: value for name, value in serving.items() if name != "enveloped"}
    served, described = describe(function, auth, known, enveloped=enveloped)
    server = getattr(function.host, "server", None)
    if server is None:
        raise errors.ResourcesUnavailable(
            "endpoints are of a server, and this function runs on the own machine",
            hint="log in with `atoll auth login`, or give the function `host=Host(URL)`",
        )
    described |= {"function": name_of(function.__wrapped__), "alias": alias}
    body = b"".join([json.dumps(described).encode(), b"\n", *map(bytes, spool_of(served, own=True))])
    answer = server.put("/v1/revisions", body, len(body), "POST")
    return Endpoint(answer["id"], answer["alias"], server.url.rstrip("/") + answer["path"])


def describe(
    function: CallableFunction, auth: str, serving: dict[str, Any], *, enveloped: bool = False
) -> tuple[CallableFunction, dict[str, Any]]:
    """Return the function that a server runs for requests, and how it serves it.

    Args:
        enveloped: a web app answers as `atoll.web.app.make` says.

    Raises:
        TypeError: there is no such option in `serving`.
        ValueError: the function is not to be served, or `auth` is unknown.
    """
    options = function.options
    if not options.serve and options.exposed_port is None:
        raise ValueError(
            f"`{name_of(function.__wrapped__)}` is not to be served: give `@isolated` the option `serve=True`, or "
            "`exposed_port=8080` for a function that starts a server of its own"
        )
    for name in serving:
        if name not in SERVING:
            raise TypeError(f"unknown option `{name}` of `serve`; they are {', '.join(SERVING)}")
    if auth not in AUTHS:
        raise ValueError(f"`auth` must be one of {', '.join(AUTHS)}, is {auth!r}")
    if options.exposed_port is None:
        served = _wrapped(function, enveloped)
    else:  # the server bounds the runners, of each revision by itself
        served = type(function)(function.__wrapped__, replace(options, max_concurrency=None))
    return served, {"port": options.exposed_port or PORT, "auth": auth, "options": {**_options(options), **serving}}


def _options(options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"keep_alive": options.keep_alive}
    if options.max_concurrency is not None:
        found["max_concurrency"] = options.max_concurrency
    return found


def _wrapped(function: CallableFunction, enveloped: bool) -> CallableFunction:
    """Return the function that serves another one."""
    plain = function.__wrapped__

    def served(*first: Any) -> None:
        serve_app(plain, PORT, *first, enveloped=enveloped)

    served.__name__ = served.__qualname__ = name_of(plain)
    served.__module__ = plain.__module__
    options = function.options
    if options.kind == "conda":
        options = replace(options, pip=(*options.pip, *WEB))
    else:
        options = replace(options, requirements=(*options.requirements, *WEB))
    return type(function)(served, replace(options, max_concurrency=None))
