"""`atoll version`: versions of Atoll and of the programs that it runs, for reports of problems."""

from __future__ import annotations

import platform
import sys
from typing import Any

from atoll import __version__
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo
from atoll.errors import AtollError

GREETING_SECONDS = 2.0


def version(*, json: bool = False) -> int:
    """Show the versions of Atoll, Python, the platform, uv, bubblewrap, and of the daemon if one runs.

    Parameters
    ----------
    json: bool
        Print an object with `atoll`, `python`, `platform`, `uv`, `bwrap` and `daemon`: an object with `version` and
        `pid`, or null.
    """
    found: dict[str, Any] = {
        "atoll": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "uv": _uv(),
        "bwrap": _bwrap(),
        "daemon": _daemon(),
    }
    if json:
        print_json(found)
        return 0
    daemon = found["daemon"]
    process = f", process {daemon['pid']}" if daemon and daemon["pid"] else ""
    found["daemon"] = f"{daemon['version']}{process}" if daemon else "none runs"
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
