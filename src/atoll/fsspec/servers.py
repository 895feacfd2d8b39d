"""Servers that addresses of `atoll://` name: `atoll://USER@HOST/a/b` is `/data/a/b` of USER at HOST."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from atoll import credentials, errors
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.host.contract import Host

LOCAL = "local"
_checked: set[tuple[int, str, str]] = set()
"""Process, identity and name of users who are those that they are called."""


def host_for(host: Host | str | None, server: str, user: str) -> Any:
    """Return the host of a file system; None for the default one.

    Args:
        host: the storage option: a host, the address of a server, or `local`.
        server: `HOST` or `HOST:PORT` of an address; empty for none.
        user: of the address.

    Raises:
        ValueError: address and storage option name different servers, or no server.
        NotAuthorized: no key for the server is known.
    """
    from atoll.host.local import local
    from atoll.host.remote.remote_host import Host as Server

    if ":" in user:
        raise ValueError("an address holds no password: the key comes from `atoll auth login`, variables, or `host=`")
    if isinstance(host, str):
        host = local if host == LOCAL else Server(host)
    if not server:
        return host
    if host is None:
        return Server(_url_of(server))
    found = getattr(host, "server", None)
    if found is None or urlsplit(found.url).netloc != _netloc(server):
        raise ValueError(f"the address names `{printable(user)}@{printable(server)}`, and `host` is {host!r}")
    return host


def _netloc(server: str) -> str:
    return urlsplit(credentials.address_of(server)).netloc


def _url_of(server: str) -> str:
    """Return the address of a server that is known by host and port: of `ATOLL_HOST`, of a login, else by HTTPS."""
    named = credentials.named()
    known = [named] if named else []
    url = credentials.address_of(server)
    wanted = {_netloc(server), server}
    for one in (*known, *(login.url for login in credentials.logins())):
        if urlsplit(one).netloc in wanted:
            return one
    return url


def check_user(host: Any, user: str) -> None:
    """Check that this user is called so at a server; asked once by a process.

    Raises:
        NotAuthorized: the user has another name there.
        AtollError: the server cannot be reached, or does not take the key.
    """
    place = os.getpid(), host.identity, user
    if place in _checked:
        return
    found = host.server.ask("GET", "/v1/whoami") or {}
    if user not in (found.get("name"), found.get("user")):
        name = printable(str(found.get("name", "")))
        raise errors.NotAuthorized(
            f"the address names the user `{printable(user)}`, and at {host.server.shown} you are `{name}`",
            hint=f"write `atoll://{name}@…`, or give the other user's key: `host=Host(url, key_id=…, key_secret=…)`",
            status=403,
        )
    _checked.add(place)
