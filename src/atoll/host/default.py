"""The host of functions that name none: the server that the user is logged in to, else this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from atoll import settings
from atoll.host.local import local
from atoll.wire import nested

if TYPE_CHECKING:
    from atoll.host.contract import Host


LOCAL = "local"
"""This machine, where a host is named by text: `--host` and `ATOLL_HOST`."""
_chosen: list[Host] = []
"""The host that this program was told to use, for the command line's `--host`."""


def choose(url: str) -> None:
    """Make a server, or this machine for `local`, the host of all that names none, in this process.

    Raises:
        ValueError: the address is none.
    """
    from atoll.host.remote.remote_host import Host as Server

    _chosen[:] = [local if url == LOCAL else Server(url)]


def default_host() -> Host:
    """Return the host; inside a sandbox always the machine that it is on.

    Raises:
        NotAuthorized: a server is named, and no key for it is known.
        StateUntrusted, StateUnusable: see `credentials.find`.
    """
    if _chosen:
        return _chosen[0]
    if nested.inside() or settings.variable("ATOLL_HOST") == LOCAL or not _may_be_logged_in():
        return local
    from atoll import credentials  # for those who have a server

    if credentials.find() is None:
        return local
    from atoll.host.remote.remote_host import cloud

    return cloud


def is_default(host: Any) -> bool:
    """Return whether a host is the one of those that name none."""
    return host is local or (type(host).__module__ == "atoll.host.remote.remote_host" and host is default_host())


def _may_be_logged_in() -> bool:
    if any(settings.known_variables((b"ATOLL_HOST", b"FAL_HOST"))):
        return True
    if sys.platform in ("darwin", "win32"):
        from atoll import credentials  # knows the platform's directory

        return credentials.path().exists()
    return os.path.exists(f"{settings.user_config_directory()}/atoll/servers.json")
