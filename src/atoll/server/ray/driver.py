"""The driver: a child process of the server that speaks with Ray: `python -m atoll.server.ray.driver OPTIONS`.

Theory of operation. Ray ends a driver whose control service is unreachable for a minute, so this is no part of the
server. All actors are detached and have names in one namespace: a new driver finds them again and goes on. The server
says which holders there shall be (`messages`), and this process makes it so; the same word twice changes nothing. Ray's
calls block, some of them until the control service is back, so they have a thread of their own; the event loop always
reads from the server, and the end of that ends the process.

Nothing of a user ever comes here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from atoll import errors, process, settings
from atoll.server.ray import messages
from atoll.server.ray.actors import Actors
from atoll.server.ray.cluster import Cluster

LOOK_SECONDS = 1.0
PROBE_SECONDS = 30.0
PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).get_cluster_status(timeout_s=5)"
"""Succeeds where the control service answers a client without a token."""

_Found = TypeVar("_Found")
_log = logging.getLogger("atoll.ray")


class Driver:
    """One connection to a Ray cluster.

    Args:
        options: `address`, `node_address`, `namespace`, `open` (consent to a cluster without tokens), `orphan_seconds`.
        tell: sends a message to the server.
    """

    def __init__(self, options: Mapping[str, Any], tell: Callable[..., None]) -> None:
        self._options = options
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, "ray")
        self._actors = Actors(options, tell, self._call)
        self._facts: dict[str, Any] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks = set[asyncio.Task[None]]()

    async def run(self, orders: asyncio.StreamReader) -> None:
        """Connect, and serve the server until it says no more.

        Raises:
            AtollError: the cluster cannot be used.
        """
        await self._call(self._connect)
        checking = asyncio.ensure_future(asyncio.to_thread(self._check_open))
        cluster = await self._call(Cluster)
        found = await self._actors.find()
        facts = await self._call(cluster.look, self._actors.waiting())
        self._facts = facts
        local = await self._call(lambda: ray.get_runtime_context().get_node_id())
        await checking
        self._tell(event="ready", local=local, **found)
        self._tell(event="cluster", **facts)
        looking = asyncio.ensure_future(self._keep_looking(cluster))
        async for data in orders:
            self._obey(messages.parse(data))
        looking.cancel()

    async def _call(self, function: Callable[..., _Found], *arguments: Any) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _connect(self) -> None:
        named = self._options.get("node_address")
        try:
            ray.init(
                address=self._options["address"],
                namespace=self._options["namespace"],
                log_to_driver=False,
                configure_logging=False,
                **({"_node_ip_address": named} if named else {}),
            )
        except Exception as error:
            raise errors.HostUnreachable(
                f"there is no Ray cluster at `{self._options['address']}`: {_first_line(error)}",
                hint="start this machine's Ray node with `ray start`, and see that `RAY_AUTH_TOKEN` is the cluster's",
            ) from error

    def _check_open(self) -> None:
        if not self._options.get("open") and not _asks_for_token() and not _is_own():
            raise errors.StateUntrusted(
                f"the Ray cluster at `{self._options['address']}` takes commands from anyone who reaches it",
                hint="start its nodes with RAY_AUTH_MODE=token, or consent with `open = true`",
                path=str(self._options["address"]),
            )

    def _obey(self, message: dict[str, Any]) -> None:
        if message.get("do") == "hold":
            self._actors.hold(message["holders"])
        else:
            task = asyncio.ensure_future(self._change_machine(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _change_machine(self, message: dict[str, Any]) -> None:
        """Start or stop a machine's process, one after the other for one machine: an end takes its time."""
        node, what = message["node"], message["do"]
        error = None
        try:
            async with self._locks.setdefault(node, asyncio.Lock()):
                await (self._actors.start(message) if what == "start" else self._actors.stop(node))
        except Exception as failure:
            _log.warning("machine.%s_failed node=%s", what, node, exc_info=True)
            error = errors.HostUnreachable(
                f"Ray did not {what} the process of machine `{node[:12]}`: {_first_line(failure)}",
                hint="see `ray status`, and the driver's log",
            ).to_data()
        self._tell(event="answer", ask=message["ask"], error=error)

    async def _keep_looking(self, cluster: Cluster) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                facts = await self._call(cluster.look, self._actors.waiting())
            except Exception as error:
                _log.warning("cluster.no_answer error=%s", _first_line(error))
                continue
            if facts != self._facts:
                self._facts = facts
                self._tell(event="cluster", **facts)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _asks_for_token() -> bool:
    """Return whether the control service refuses who has no token."""
    if settings.variable("RAY_AUTH_MODE").lower() not in ("token", "k8s"):
        return False
    env = settings.environment_with({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""})
    address = ray.get_runtime_context().gcs_address
    try:
        return process.check([sys.executable, "-c", PROBE, address], env=env, timeout_seconds=PROBE_SECONDS).status != 0
    except Exception:  # it took too long: no answer is no refusal
        return False


def _is_own() -> bool:
    """Return whether all of the cluster is behind this machine's loopback."""
    return all(node["NodeManagerAddress"] in ("127.0.0.1", "::1", "localhost") for node in ray.nodes() if node["Alive"])


async def _main(options: dict[str, Any]) -> int:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=messages.MOST_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), os.fdopen(0, "rb"))
    out = os.dup(1)
    os.dup2(2, 1)  # Ray prints

    def tell(**message: Any) -> None:
        data = messages.line(message)
        while data:
            try:
                data = data[os.write(out, data) :]
            except BrokenPipeError:  # the server is gone
                os._exit(1)

    try:
        await Driver(options, tell).run(orders)
    except errors.AtollError as error:
        tell(event="failed", error=error.to_data())
        return 1
    return 0


def main() -> None:
    """Run until the server's end of the pipe closes."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    status = 1
    with contextlib.suppress(KeyboardInterrupt):
        status = asyncio.run(_main(json.loads(sys.argv[1])))
    os._exit(status)  # Ray's own goodbye waits for a control service that may be gone; the actors stay in any case


if __name__ == "__main__":
    main()
