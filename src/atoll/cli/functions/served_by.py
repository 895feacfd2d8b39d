"""The server that serves functions, for commands about them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from atoll import errors
from atoll.cli.hosts import chosen


def server_host() -> Any:
    """Return the host of the command, which is a server.

    Raises:
        ResourcesUnavailable: it is this machine.
        NotAuthorized: no key for it is known.
    """
    host = chosen()
    if getattr(host, "server", None) is None:
        raise errors.ResourcesUnavailable(
            "functions are served by a server, and this is the own machine",
            hint="log in with `atoll auth login --host URL`, or give `--host URL`",
        )
    return host


def path(*names: str) -> str:
    """Return an address of the server's interface: `path("apps", "shop")` is `/v1/apps/shop`."""
    return "/".join(("/v1", *(quote(name, safe="") for name in names)))
