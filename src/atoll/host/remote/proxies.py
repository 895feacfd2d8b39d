"""Proxies that the caller's variables name, which take `CONNECT`."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from atoll import errors, settings

_LOOPBACK = re.compile(r"localhost|127(\.[0-9]+){3}|::1")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    return _LOOPBACK.fullmatch(host) is not None


class Proxy(NamedTuple):
    """A proxy's address, and what it wants to know."""

    host: str
    port: int
    headers: dict[str, str]


def proxy_of(host: str, port: int, *, secure: bool) -> Proxy | None:
    """Return the proxy of the environment's variables for a host; None for a direct way, always for this machine."""
    proxy, excepted = _named(secure=secure)
    if not proxy or is_loopback(host) or any(_fits(host, port, one) for one in excepted):
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise errors.HostUnreachable(
            "the proxy of `HTTPS_PROXY` or `HTTP_PROXY` is none that takes `CONNECT`",
            hint="give `http://HOST:PORT`, or exclude the server by `NO_PROXY`",
        )
    headers = {}
    if parts.username is not None:
        given = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(given).decode()}"
    return Proxy(parts.hostname, parts.port or 80, headers)


def _fits(host: str, port: int, pattern: str) -> bool:
    """Return whether an entry of `NO_PROXY` names a host: itself, a domain that it is in, or a network."""
    if pattern == "*":
        return True
    if "/" in pattern:
        import ipaddress  # for few

        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    name, _, number = pattern.rpartition(":") if pattern.count(":") == 1 else (pattern, "", "")
    name = name.lstrip("*").lstrip(".").lower()
    return bool(name) and number in ("", str(port)) and (host == name or host.endswith(f".{name}"))


def _named(*, secure: bool) -> tuple[str, list[str]]:
    """Return the proxy that the variables name, and the entries of `NO_PROXY`."""

    def first(*names: str) -> str:
        return next((value for name in names if (value := settings.variable(name))), "")

    if secure:
        found = first("https_proxy", "HTTPS_PROXY")
    else:  # `HTTP_PROXY` may be a header of the request that a CGI program answers
        found = first("http_proxy", *(() if settings.variable("REQUEST_METHOD") else ("HTTP_PROXY",)))
    excepted = first("no_proxy", "NO_PROXY").split(",")
    return found or first("all_proxy", "ALL_PROXY"), [one.strip() for one in excepted if one.strip()]
