"""Holds over all machines of a server: one node's need, asked of the others (`daemon.joined.holds` has the theory)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from atoll import errors
from atoll.server.machines.asks import Asks, asked_of_all
from atoll.server.principal import Principal
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.machines")

HOLD_SECONDS = 3.0
"""The longest hold: more than a switch takes with its wait for the others."""
ANSWER_SECONDS = 0.9
"""Seconds for a machine to hold, less than the switch waits."""
CLEAR_SECONDS = 9.0
MOST_HELD = 1024
"""Holds at a time."""
AGAIN_SECONDS = 1.0


class Holds:
    """Asks the other machines for a node that needs it.

    Args:
        nodes: returns the machines that are there.
        doubtful: returns the names of those that have just been lost: something may still run there.
    """

    def __init__(self, nodes: Callable[[], Mapping[str, Asks]], doubtful: Callable[[], Sequence[str]]) -> None:
        self._nodes, self._doubtful = nodes, doubtful
        self._held: dict[str, tuple[str, Mapping[str, Asks]]] = {}

    async def need(self, node: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Answer what a node needs: `hold` or `clear` (`user`), which give `whole`, the first with an `id`; `release` (`id`).

        Raises:
            ProtocolMismatch: it is something else.
        """
        user = str(arguments.get("user", ""))
        if name == "hold" and len(self._held) < MOST_HELD:
            return await self.hold(user, node)
        if name == "clear":
            return {"whole": await self._all(self._others(node), "clear", {"user": user}, CLEAR_SECONDS)}
        if name == "release":
            await self.release(str(arguments.get("id")), node)
            return {}
        raise errors.ProtocolMismatch(f"no request `{name[:40]}`", hint="upgrade the server")

    async def hold(self, user: str, except_node: str) -> dict[str, Any]:
        """Hold a user's sandboxes on all machines but one; gives `id`, and whether nothing of theirs runs there."""
        key, others = secrets.token_hex(8), self._others(except_node)
        self._held[key] = except_node, others
        asyncio.get_running_loop().call_later(HOLD_SECONDS, self._held.pop, key, None)
        arguments = {"id": key, "user": user, "seconds": HOLD_SECONDS}
        return {"id": key, "whole": await self._all(others, "hold", arguments, ANSWER_SECONDS)}

    async def release(self, key: str, node: str) -> None:
        """End a hold that a node has asked for."""
        if key in self._held and self._held[key][0] == node:
            await asked_of_all(self._held.pop(key)[1], None, "release", {"id": key})

    def _others(self, node: str) -> dict[str, Asks]:
        return {name: one for name, one in self._nodes().items() if name != node}

    async def _all(self, nodes: Mapping[str, Asks], name: str, arguments: dict[str, Any], seconds: float) -> bool:
        doubtful = list(self._doubtful())
        answers, failures = await asked_of_all(nodes, None, name, arguments, seconds)
        whole = not doubtful and not failures and all(answer.get("whole") is True for answer in answers.values())
        if not whole:
            log.info("not_held", extra={"fields": {"nodes": [*doubtful, *failures]}})
        return whole


class Connects(Protocol):
    """A daemon: `server.node.Node`."""

    async def connect(self, principal: Principal | None, message: dict[str, Any]) -> AsyncChannel:
        """Open a connection with a message."""
        ...


class Needs(Protocol):
    """The way to `Holds.need`, in this process or over a node's link."""

    async def __call__(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Ask for something."""
        ...


async def relay(node: Connects, need: Needs) -> None:
    """Pass on what a daemon needs of other machines, until cancelled."""
    while True:
        try:
            channel = await node.connect(None, {"type": "watch_holds"})
            try:
                await _relay(channel, need)
            finally:
                channel.close()
        except (errors.AtollError, ChannelClosed, FrameError, OSError) as error:
            log.info("no_holds", extra={"fields": {"error": str(error)[:200]}})
        await asyncio.sleep(AGAIN_SECONDS)


async def _relay(channel: AsyncChannel, need: Needs) -> None:
    keys: dict[int, asyncio.Task[str]] = {}
    tasks: set[asyncio.Task[str]] = set()

    async def ask(message: dict[str, Any]) -> str:
        answer: dict[str, Any] = {}
        with contextlib.suppress(errors.AtollError):
            answer = await need(message["type"], {"user": message["user"]})
        with contextlib.suppress(ChannelClosed):
            channel.post({"type": "held", "id": message["id"], "whole": answer.get("whole") is True})
        return str(answer.get("id", ""))

    async def release(asked: asyncio.Task[str]) -> str:
        key = await asked
        with contextlib.suppress(errors.AtollError):
            await need("release", {"id": key})
        return key

    try:
        while True:
            message = (await channel.receive()).header
            if message["type"] == "release":
                asked = keys.pop(message["id"], None)
                if asked is None:
                    continue
                task = asyncio.ensure_future(release(asked))
            else:
                task = asyncio.ensure_future(ask(message))
                if message["type"] == "hold":
                    keys[message["id"]] = task
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
