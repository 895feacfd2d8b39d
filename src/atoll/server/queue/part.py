"""The part of the queue of a server: its routes, and those who serve what waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial

from atoll.server.database.database import DIRECTORY
from atoll.server.endpoints.figures import Depths
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.process.background import in_background
from atoll.server.queue.administration import routes as administration
from atoll.server.queue.links import QUEUE, is_of_queue
from atoll.server.queue.payloads import payload
from atoll.server.queue.queue import Queue
from atoll.server.queue.routes import Addresses
from atoll.server.state import ServerState

MOST_ASKED = 1 << 20
"""Bytes of a body where none is needed."""
LOOK_SECONDS = 1.0
"""Between two looks at how many wait."""


def install(state: ServerState) -> None:
    """Add the part: after endpoints and webhooks, since its work needs both, whose addresses are among the gateway's."""
    parts, options = state.parts, state.node.options
    gateway, runners, deliveries = parts["gateway"], parts["runners"], parts["webhooks"]

    async def place(owner: str, alias: str) -> tuple[Revision, Pool]:
        revision = await gateway.find(owner, alias)
        return revision, runners.pool(revision)

    queue = Queue(parts["accounts"].database, options.home / DIRECTORY / "queue", options.queue, place, deliveries.wake)
    deliveries.payload = partial(payload, queue)
    parts["queue"], parts["depths"] = queue, Depths()
    state.body_bytes["/applications"] = MOST_ASKED
    state.body_bytes[QUEUE + "/"] = options.queue.request_bytes
    domain = state.options.domain
    state.routes.insert(0, Addresses(queue, gateway, domain, by_host=True))
    state.routes += [*administration(), Addresses(queue, gateway, domain, by_host=False)]
    gateway.reserved |= {b"queue", b"applications"}
    gateway.others.append(lambda scope: is_of_queue(scope, gateway, domain))
    state.lifespan.append(queue.serving)
    state.lifespan.append(lambda: _looking(queue, parts["depths"]))


@contextlib.asynccontextmanager
async def _looking(queue: Queue, depths: Depths) -> AsyncIterator[None]:
    """Note how many wait, again and again, while the context is open."""

    async def look() -> None:
        while True:
            depths.note(queue.sizes(), time.monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    async with in_background(look):
        yield
