"""The output of served functions: the last lines of the runners that a server keeps."""

from __future__ import annotations

import os
from typing import Any

from atoll import errors
from atoll.host import detached

MOST_BYTES = 4 << 20
"""Of the end of one runner's output."""
MOST_RUNNERS = 20
"""Runners whose output is looked at, the newest."""


def lines(host: Any, url: str, most: int) -> list[tuple[float, str]]:
    """Return the last lines of all endpoints, or of one; each with the start of its runner, in seconds since the epoch.

    Args:
        host: a server, as its owner has it.
        url: the address, host name, alias or revision of an endpoint; empty for all.
        most: the number of lines.

    Raises:
        CallerError: there is no such endpoint.
    """
    wanted = endpoint_of(url)
    known = {
        one["id"]
        for one in host.server.ask("GET", "/v1/revisions")["revisions"]
        if not wanted or wanted in (one["alias"], one["id"])
    }
    if wanted and not known:
        raise errors.CallerError(f"there is no endpoint `{wanted}`", hint="see `atoll function list`", status=404)
    calls = [one for one in host.request("detached.list", {})["calls"] if one.get("batch") in known]
    calls.sort(key=lambda one: one.get("queued_at") or 0.0)
    found: list[tuple[float, str]] = []
    for one in calls[-MOST_RUNNERS:]:
        began = one.get("started_at") or one.get("queued_at") or 0.0
        text = _end_of(host, one["call"]).decode("utf-8", "replace")
        found += [(began, line) for line in text.splitlines()]
    return found[-most:] if most > 0 else []


def endpoint_of(url: str) -> str:
    """Return the alias or revision that an address names: `USER-ALIAS.gateway.D`, the end of a path, or a name alone."""
    bare = url.partition("://")[2] or url
    host, _, path = bare.partition("/")
    if path.strip("/"):
        return path.strip("/").rpartition("/")[2]
    if ".gateway." in host:
        return host.partition(".")[0].partition("-")[2]
    return "" if "." in host or "://" in url else host  # a server's own address names all of its endpoints


def _end_of(host: Any, call: str) -> bytes:
    """Return the end of a runner's output."""
    try:
        answer = detached.request(host, "detached.output", {"call": call})
    except errors.CallUnknown:
        return b""
    if answer.descriptor is None:
        return b""
    with open(answer.descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - MOST_BYTES, 0))
        return file.read(MOST_BYTES)
