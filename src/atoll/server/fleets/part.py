"""The part of a server that starts the machines of `cluster.machines` in its settings over ssh, when it begins."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from atoll import errors
from atoll.server.accounts.audit import MACHINE
from atoll.server.fleets.ssh import SshFleet, Start, certificates
from atoll.server.nodes import acts, bodies
from atoll.server.nodes.accounts import Nodes
from atoll.server.process import lock
from atoll.server.process.background import in_background
from atoll.server.ray import installing as ray
from atoll.server.state import ServerState

AGAIN_SECONDS = 60.0
LISTENS_SECONDS = 0.2
TOKEN_SECONDS = 600.0
_log = logging.getLogger("atoll.server")


def install(state: ServerState) -> None:
    """Add the part, after that of nodes."""

    async def invite() -> tuple[str, str, str]:
        trusted = await asyncio.to_thread(certificates, state.node.options.cluster)
        return await address(state), await _token(state.parts["nodes"]), trusted.decode()

    ray.install(state, invite)
    if not state.node.options.cluster.machines:
        return

    @contextlib.asynccontextmanager
    async def starting() -> AsyncIterator[None]:
        async with in_background(lambda: start_all(state)):
            yield

    state.lifespan.append(starting)


async def start_all(state: ServerState) -> None:
    """Start all machines, each again after a while until it has begun; those that have joined already run again."""
    options, nodes = state.node.options.cluster, state.parts["nodes"]
    url = await address(state)
    fleet = SshFleet(options, Start(url, lambda: _token(nodes)))
    await asyncio.gather(*(_start(fleet, machine) for machine in options.machines))


async def address(state: ServerState) -> str:
    """Return the server's address for its machines, when it listens."""
    options = state.node.options
    while not (url := options.cluster.url or lock.url_for_machines(options.run_directory)):  # noqa: ASYNC110 - parts begin before
        await asyncio.sleep(LISTENS_SECONDS)
    return url


async def _start(fleet: SshFleet, machine: str) -> None:
    while True:
        try:
            await fleet.start(machine)
        except errors.AtollError as error:
            fields = {"machine": machine, "cause": error.message[:500], "hint": error.hint[:500]}
            _log.warning("machine_not_started", extra={"fields": fields})
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            _log.info("machine_started", extra={"fields": {"machine": machine}})
            return


async def _token(nodes: Nodes) -> str:
    asked = bodies.NewToken(seconds=TOKEN_SECONDS)
    made = await nodes.change(lambda connection: acts.made_token(connection, nodes.pepper, MACHINE, asked))
    return made.token
