"""The part of the queue of a server: its routes, and those who serve what waits."""

from __future__ import annotations

from functools import partial

from starlette.routing import Route

from atoll.server.database.database import DIRECTORY
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners import Pool
from atoll.server.queue.administration import routes as administration
from atoll.server.queue.links import QUEUE
from atoll.server.queue.payloads import payload
from atoll.server.queue.queue import Queue
from atoll.server.queue.routes import routes
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part: after endpoints and webhooks, since its work needs both, and with its routes before the gateway's."""
    parts, options = state.parts, state.node.options
    gateway, runners, deliveries = parts["gateway"], parts["runners"], parts["webhooks"]

    async def place(owner: str, alias: str) -> tuple[Revision, Pool]:
        revision = await gateway.find(owner, alias)
        return revision, runners.pool(revision)

    queue = Queue(parts["accounts"].database, options.home / DIRECTORY / "queue", options.queue, place, deliveries.wake)
    deliveries.payload = partial(payload, queue)
    parts["queue"] = queue
    state.body_bytes[QUEUE + "/"] = options.queue.request_bytes
    at = next(
        (number for number, one in enumerate(state.routes) if isinstance(one, Route) and one.endpoint is gateway),
        len(state.routes),
    )
    state.routes[at:at] = [*administration(), *routes()]
    state.lifespan.append(queue.serving)
