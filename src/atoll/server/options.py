"""The options of one server process, as the command line gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from atoll import errors

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\[\]:/]*)):(?P<port>[0-9]{1,5})")


MACHINES, RAY = "machines", "ray"
"""Engines of a server."""


@dataclass(frozen=True)
class Address:
    """A host and a port to listen on; port 0 for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str) -> Address:
    """Return the address that `HOST:PORT` or `[HOST]:PORT` names.

    Raises:
        StateUnusable: it is neither.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) >= 1 << 16:
        raise errors.StateUnusable(
            f"`{text}` is no address to listen on", hint="give HOST:PORT, such as `127.0.0.1:8080` or `[::]:8443`"
        )
    return Address(found["six"] or found["host"] or "0.0.0.0", int(found["port"]))  # noqa: S104 - `:PORT` asks for it


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server process.

    Args:
        home: the state directory of the server and its node; None for the default one.
        listen: the address that clients reach.
        certificate, key: files of TLS in PEM, read again when they change; None for plain HTTP.
        trusted_proxies: addresses and networks whose `X-Forwarded-For` counts.
        metrics: an address of its own for `/metrics`; None serves it to operators alone.
        database: the address of the accounts' database; empty for the state directory's own.
        share_uid: the consent that several users of a plain user's server share its host uid.
        engine: who says which machines there are and how much of each may be used: `machines`, all that have joined, or
            `ray`, those of a Ray cluster.
        ray_address: of the Ray cluster's head, `HOST:PORT`; empty for the cluster of this machine's Ray node.
        local_node: calls are placed on the server's own machine, too.
        domain: of the server's names: endpoints have names of their own below `gateway.DOMAIN`; empty for none.
    """

    home: Path | None = None
    listen: Address = Address("127.0.0.1", 8080)
    certificate: Path | None = None
    key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    metrics: Address | None = None
    database: str = ""
    share_uid: bool = False
    engine: str = MACHINES
    ray_address: str = ""
    local_node: bool = True
    domain: str = ""
