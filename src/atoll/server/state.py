"""The parts of a running server, as its routes find them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from atoll import errors
from atoll.server.node import Node
from atoll.server.options import ServerOptions
from atoll.server.principal import Principal

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.routing import BaseRoute

Authenticate = Callable[[dict[str, str], str], Awaitable[Principal]]
"""Finds the user of a request by its headers (names in lower case) and the client's address.

Raises `errors.NotAuthorized`, which answers 401, 403 or 429.
"""


async def refuse(_headers: dict[str, str], _address: str) -> Principal:
    """Know nobody: the authentication of a server without the part of accounts."""
    raise errors.NotAuthorized("this server knows no keys", hint="see `atoll users --help`")


class Answers(Protocol):
    """Who answers requests that are no calls; see `server.node.Node`."""

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a request in a user's name, or the server's own."""
        ...

    async def ask_counted(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """As `ask`, for a request that is counted."""
        ...


@dataclass
class ServerState:
    """The parts of a running server; one for each process.

    Args:
        node: runs the functions.
        authenticate: see `Authenticate`.
        routes: what each part of the server answers; a part adds its own before the application is made.
        parts: further parts by name, for those who know them: `accounts`, `secrets`, `sessions`.
        lifespan: contexts that are open while the server serves, opened in order and closed in reverse.
        body_bytes: the most that a request's body may have, by the beginning of its path; the longest one counts.
        notices: lines for who started the server, printed when it listens.
        options: of the process.
    """

    node: Node
    authenticate: Authenticate = refuse
    routes: list[BaseRoute] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    lifespan: list[Callable[[], AbstractAsyncContextManager[object]]] = field(default_factory=list)
    body_bytes: dict[str, int] = field(default_factory=lambda: {"/": 1 << 20})
    notices: list[str] = field(default_factory=list)
    options: ServerOptions = field(default_factory=ServerOptions)
    asks: Answers = field(init=False)
    """Answers requests that are no calls: the node, or all machines where there are several."""

    def __post_init__(self) -> None:
        self.asks = self.node


def state_of(connection: HTTPConnection) -> ServerState:
    """Return the state of the server that answers a request."""
    found: ServerState = connection.app.state.server
    return found


async def principal_of(connection: HTTPConnection) -> Principal:
    """Return the user of a request.

    Raises:
        NotAuthorized: it names none.
    """
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in connection.headers.raw:
        name, value = name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value  # two keys are none
    address = connection.client.host if connection.client is not None else ""
    found = await state_of(connection).authenticate(headers, address)
    connection.scope["atoll.user"] = found.user  # for the log
    return found
