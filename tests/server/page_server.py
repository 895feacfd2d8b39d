"""A server of the page with three fixed keys, for `test_pages` and `test_browser`: `ada` is the machine's own user.

So programs of the state directory make calls that `ada` sees. Arguments: the state directory. Prints its port, and ends
with its standard input.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import uvicorn

from atoll import errors, settings
from atoll.server.app import make_app
from atoll.server.node import Node
from atoll.server.pages import install
from atoll.server.principal import ADMIN, API, Principal
from atoll.server.state import ServerState

USERS = {
    "ada": Principal("local", "ada", "ada", ADMIN, operator=True),
    "bob": Principal("bob", "bob", "bob", API),
    "eve": Principal("eve", "<b>eve</b>\u202e of a long name that goes on and on and on", "eve", API),
}


async def authenticate(headers: dict[str, str], _address: str) -> Principal:
    """Know the keys `NAME:secret`."""
    name, _, secret = headers.get("authorization", "").removeprefix("Key ").partition(":")
    if secret != "secret" or name not in USERS:
        raise errors.NotAuthorized("the key is not valid", hint="ask for another one")
    return USERS[name]


async def main(home: Path, port: int) -> None:
    """Serve until the standard input ends."""
    state = ServerState(Node(settings.load(home)), authenticate)
    install.install(state)
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(make_app(state), log_level="warning", ws="none", timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve([listener]))
    print(listener.getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
