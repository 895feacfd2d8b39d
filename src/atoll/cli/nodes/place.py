"""The nodes that a command is about: those of a server that is asked with a key, or of this machine's state directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from atoll import credentials, errors, settings
from atoll.cli.accounts import client
from atoll.cli.accounts.client import ask
from atoll.cli.accounts.place import check_accounts, check_one_place, has_accounts, home_of
from atoll.credentials import Credentials
from atoll.host.local import LocalHost
from atoll.model.options.cluster import ClusterSettings
from atoll.terminal_text import printable

ACTS = {"drain": "draining", "cordon": "cordoned", "uncordon": "active", "remove": "removed"}
"""Acts on a node, and the states that they lead to."""


class Place(Protocol):
    """Nodes of a server, wherever they are kept; values are as the routes of a server have them."""

    name: str
    """A server's address, or the state directory."""
    url: str
    """The address at which machines join; empty where no server runs."""
    ca_file: str
    """Certificates that they trust in place of their system's; empty for those."""
    options: ClusterSettings
    """How machines are reached over ssh."""

    def list_nodes(self) -> list[dict[str, Any]]: ...

    def make_token(self, asked: dict[str, Any]) -> dict[str, Any]: ...

    def revoke_tokens(self) -> int: ...

    def change(self, name: str, act: str) -> dict[str, Any]: ...


class Remote:
    """The nodes of a server, asked with an operator's key."""

    def __init__(self, server: Credentials) -> None:
        self._server = server
        self.name = self.url = server.url
        self.ca_file = server.ca_file
        self.options = ClusterSettings()

    def list_nodes(self) -> list[dict[str, Any]]:
        return list(ask(self._server, "GET", "/v1/nodes")["nodes"])

    def make_token(self, asked: dict[str, Any]) -> dict[str, Any]:
        return ask(self._server, "POST", "/v1/nodes/tokens", asked)

    def revoke_tokens(self) -> int:
        return int(ask(self._server, "DELETE", "/v1/nodes/tokens")["revoked"])

    def change(self, name: str, act: str) -> dict[str, Any]:
        path = f"/v1/nodes/{client.part(name)}"
        if act == "remove":
            return ask(self._server, "DELETE", path)
        return ask(self._server, "POST", f"{path}/{act}")


class Here:
    """The nodes of this machine's state directory, with the rights of its owner.

    Args:
        direct: the open accounts of nodes; `atoll.server` is imported only where it is needed.
        home: the state directory.
        url: of its server as other machines may know it; empty where none runs.
    """

    def __init__(self, direct: Any, home: Path, url: str) -> None:
        self._direct = direct
        self._home = home
        self.name = f"`{printable(str(home))}`"
        self.options = settings.load(home).cluster
        self.url = self.options.url or url
        self.ca_file = self.options.ca_file

    def list_nodes(self) -> list[dict[str, Any]]:
        status = LocalHost(self._home).request_running("status", {})
        return list(_data(self._direct.list_nodes(status))["nodes"])

    def make_token(self, asked: dict[str, Any]) -> dict[str, Any]:
        from atoll.server.nodes.bodies import NewToken

        return _data(self._direct.make_token(NewToken(**asked)))

    def revoke_tokens(self) -> int:
        return int(self._direct.revoke_tokens().revoked)

    def change(self, name: str, act: str) -> dict[str, Any]:
        return _data(self._direct.change(name, ACTS[act], f"node.{act}"))


def _data(value: Any) -> dict[str, Any]:
    from atoll.server.typed import plain

    return plain(value)


@contextlib.contextmanager
def opened(host: str, database: str = "", home: Path | None = None) -> Iterator[Place]:
    """Open the nodes to use: at the address, else this machine's, else of the server that one is logged in to.

    Args:
        host: an address; empty for none.
        database: of this machine's accounts; see `atoll server --database`.
        home: of this machine's accounts; None for the default, unless `host` is given.

    Raises:
        NotAuthorized: there is no key for the server.
        HostUnreachable: nothing names one.
        StateUnusable: no server has run in the state directory.
        TargetError: an address and a state directory are given.
    """
    check_one_place(host, home)
    place = home_of(home)
    if home is not None or (not host and (database or has_accounts(place))):
        check_accounts(place)
        with _here(place, database) as found:
            yield found
        return
    login = credentials.find(host)
    if login is None:
        raise errors.HostUnreachable(
            f"no server is named, and none has run in `{printable(str(settings.default_home()))}`",
            hint="run `atoll auth login --host URL`, or give `--host URL`; on the server's machine give `--home`",
        )
    yield Remote(login)


@contextlib.contextmanager
def _here(home: Path, database: str) -> Iterator[Place]:
    try:
        from atoll.server.database.address import address_of
        from atoll.server.nodes.direct import DirectNodes
        from atoll.server.process.lock import url_for_machines
    except ImportError as error:
        raise errors.StateUnusable(
            f"a server's accounts need packages that are not installed: {error}", hint="pip install 'atoll[server]'"
        ) from error
    with DirectNodes(home, address_of(home, database)) as direct:
        yield Here(direct, home, url_for_machines(home / "run"))
