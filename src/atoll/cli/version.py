"""`atoll version`: versions of Atoll and of the programs that it runs, for reports of problems."""

from __future__ import annotations

import platform
import sys
import threading
from typing import Any

from atoll import __version__, settings
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo
from atoll.errors import AtollError

GREETING_SECONDS = 2.0
SERVER_SECONDS = 2.0
"""Seconds for the answer of the server, the look-up of its name included."""


def version(*, json: bool = False) -> int:
    """Show the versions of Atoll, Python, the platform, uv, bubblewrap, of the daemon if one runs, and of the server.

    The server is the one that you are logged in to, and may take two seconds to answer.

    Parameters
    ----------
    json: bool
        Print an object with `atoll`, `python`, `platform`, `uv`, `bwrap`, `daemon`: an object with `version` and
        `pid`, or null, and `server`: an object with `url`, `version` and `error`, or null.
    """
    found: dict[str, Any] = {
        "atoll": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "uv": _uv(),
        "bwrap": _bwrap(),
        "daemon": _daemon(),
        "server": _server(),
    }
    if json:
        print_json(found)
        return 0
    daemon = found["daemon"]
    process = f", process {daemon['pid']}" if daemon and daemon["pid"] else ""
    found["daemon"] = f"{daemon['version']}{process}" if daemon else "none runs"
    server = found.pop("server")
    if server:
        found["server"] = f"{server['version']} at {server['url']}" if server["version"] else server["error"]
    for name, text in found.items():
        echo(f"{name:<9} {text or 'not found'}")
    return 0


def _uv() -> str | None:
    from atoll.cli.doctor import uv_finding

    finding = uv_finding()
    return finding.detail.partition(",")[0].removeprefix("uv ") if finding.works else None


def _bwrap() -> str | None:
    if sys.platform != "linux":
        return None
    from atoll.host.local import local
    from atoll.sandbox import programs

    try:
        path = programs.find_bwrap(local.settings.sandbox.bwrap)
    except AtollError:
        return None
    return ".".join(map(str, programs.bwrap_version(path) or ())) or None


def _daemon() -> dict[str, Any] | None:
    from atoll.host.local import local

    try:
        found = local.request_running("status", {}, greeting_seconds=GREETING_SECONDS)
    except AtollError as error:
        return {"version": error.message, "pid": 0}
    return {"version": found["daemon"]["version"], "pid": found["daemon"]["pid"]} if found is not None else None


def _server() -> dict[str, Any] | None:
    """Return the version of the server that one is logged in to, or the reason that it is not known; never raise it."""
    from atoll.cli import hosts

    try:
        host = hosts.chosen()
        server = hosts.server_of(host)
    except (AtollError, ValueError) as error:
        return {"url": settings.variable("ATOLL_HOST"), "version": "", "error": getattr(error, "message", str(error))}
    if server is None:
        return None
    found = {"url": server.url, "version": "", "error": f"{server.shown} does not answer"}

    def ask() -> None:
        try:
            found["version"] = str(hosts.whoami(host, SERVER_SECONDS).get("version") or "unknown version")
            found["error"] = ""
        except AtollError as error:
            found["error"] = error.message

    asking = threading.Thread(target=ask, daemon=True)  # the look-up of a name has no limit of its own
    asking.start()
    asking.join(SERVER_SECONDS)
    return dict(found)
