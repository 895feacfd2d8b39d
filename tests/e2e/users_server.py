"""A server of several users for `test_users`: one set of services, and a socket for each user in a directory of theirs.

Arguments: the state directory; then a directory for each user, named like the user. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from atoll import settings
from atoll.daemon.control import Connection
from atoll.daemon.leasing import Caller
from atoll.daemon.services import Services
from atoll.engine.accounts import Opener
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import short_name


async def main(home: Path, users: list[Path]) -> None:
    """Serve until the standard input ends."""
    connections: set[asyncio.Task[None]] = set()

    def serve(client: socket.socket, caller: Caller) -> asyncio.Task[None]:
        connection = Connection(services, AsyncChannel(client), caller, lambda _: None)
        task = asyncio.ensure_future(connection.serve())
        connections.add(task)
        task.add_done_callback(connections.discard)
        return task

    async def serve_nested(client: socket.socket, opener: Opener) -> None:
        await serve(client, Caller(opener.user, opener.worker, sandbox=opener.sandbox))

    async def accept(listener: socket.socket, user: str) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            serve(client, Caller(user))

    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.toml").write_text("[users]\nshare_uid = true\n")  # for a plain user's node
    services = Services(settings.load(home), serve_nested, socket.socket.close)
    services.start()
    accepting = []
    for directory in users:
        path = settings.load(directory).socket_path
        path.parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_name(path) as name:
            listener.bind(name)
        listener.listen(100)
        listener.setblocking(False)
        accepting.append(asyncio.ensure_future(accept(listener, directory.name)))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in accepting:
        task.cancel()
    await services.close_engine()
    for task in connections:
        task.cancel()
    await asyncio.gather(*accepting, *connections, return_exceptions=True)
    await services.close()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(main(Path(sys.argv[1]), [Path(user) for user in sys.argv[2:]]))
