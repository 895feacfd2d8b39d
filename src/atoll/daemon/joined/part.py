"""The requests and streams of the owner's member process, which has joined this machine to a server.

Requests: `fence` (see `fence.NodeFence.move`), `load` (see `load`), `vacate`: idle workers end, and busy ones when their
calls are over, so that clients ask for leases anew, and `detached` tells how many detached calls are left; and `allowance`: how much of the machine may be used,
as `millicores`, `memory_bytes` and `gpus`, a list of names or numbers of its GPUs; a member that is absent or None is
not bounded. An allowance lasts until the next one, or the daemon's end;
the answer says whether no more is in use (`within`). Streams, by their opening messages:
`watch_load`, and `watch_holds` (see `holds`, which also has the requests `hold`, `release` and `clear`).
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from atoll.daemon.joined import load
from atoll.daemon.joined.fence import NodeFence
from atoll.daemon.joined.holds import Holds
from atoll.engine.contract import Engine
from atoll.model.resources import Allowance
from atoll.node.node import Node
from atoll.wire.async_channel import AsyncChannel

HOLDS = ("hold", "release", "clear")
REQUESTS = ("facts", "fence", "allowance", "load", "vacate", "others_wait", "wanted", *HOLDS)
STREAMS = ("watch_load", "watch_holds")


class Joined:
    """The daemon's side of a membership.

    Args:
        file: is there while the machine belongs to a server.
    """

    def __init__(self, engine: Engine, node: Node, file: Path) -> None:
        self._engine = engine
        self._node = node
        self.fence = NodeFence(engine, node.launcher, node.data.cut, file)
        self.holds = Holds(engine, node.pauses)

    async def answer(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the owner's.

        Raises:
            ValueError: an argument is malformed.
        """
        if name in HOLDS:
            return await self.holds.answer(name, arguments)
        match name:
            case "facts":
                return {**self._engine.capacity(), "volumes": self._node.data.identity}
            case "fence":
                return await self.fence.move(arguments)
            case "allowance":
                within = self._engine.allow(self._allowance(arguments))
                return {**self._engine.load(), "within": within}
            case "vacate":
                self._engine.renew_workers(None)
            case "wanted":
                return {"workers": self._engine.wanted()}
            case "others_wait":
                self._engine.others_wait()
        return self._engine.load()

    def serve(self, kind: str, channel: AsyncChannel) -> Coroutine[Any, Any, None]:
        """Return the work of a stream of the owner's."""
        if kind == "watch_holds":
            return self.holds.watch(channel)
        return load.watch(self._engine, channel)

    def close(self) -> None:
        """Keep the fence no more, and hold nobody."""
        self.fence.close()
        self.holds.close()

    def _allowance(self, arguments: dict[str, Any]) -> Allowance:
        names, asked = self._node.machine.gpus.names, arguments.get("gpus")
        numbers = [arguments.get(name) for name in ("millicores", "memory_bytes")]
        if any(one is not None and (type(one) is not int or one < 0) for one in numbers):
            raise ValueError("`millicores` and `memory_bytes` are numbers")
        if asked is not None and not (isinstance(asked, list) and all(type(one) in (int, str) for one in asked)):
            raise ValueError("`gpus` is a list of names or numbers")
        gpus = names if asked is None else [n for i, n in enumerate(names) if n in asked or i in asked]
        millicores, memory_bytes = (sys.maxsize if one is None else one for one in numbers)
        return Allowance(millicores, memory_bytes, tuple(gpus))
