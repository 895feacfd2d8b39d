"""Live figures of nodes, beside their accounts: of each link as the cluster's part has it, and of the server's own node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from atoll import __version__, errors, ownership, settings
from atoll.server.cluster.contract import LOCAL, LiveNode, NodeFacts
from atoll.server.nodes.bodies import Free, NodeRow, plain_row
from atoll.server.nodes.rows import NodeAccount
from atoll.server.nodes.vacating import VACATED
from atoll.server.process.background import in_background
from atoll.server.state import ServerState
from atoll.terminal_text import printable

_log = logging.getLogger("atoll.server")

ASK_SECONDS = 5.0
SHARE_SECONDS = 2.0
SHARED_FILE = "nodes.json"
"""In `run/`, the owner's alone: what the command line on this machine shows, which has no key to ask the server with."""
MOST_SHARED_BYTES = 16 << 20


class Cluster(Protocol):
    """The part `cluster` of a server, as this one asks it."""

    volumes: str
    """Identity of the file system that carries `/data`; empty where it may be any."""
    facts: Mapping[str, NodeFacts]
    catching_up: Mapping[str, str]

    def rows(self) -> Sequence[LiveNode]:
        """Return all nodes that have a link, the server's own left out."""
        ...


async def rows_of(state: ServerState, accounts: Sequence[NodeAccount]) -> list[NodeRow]:
    """Return rows of nodes with what is known of them now; without the server's own if it runs no functions."""
    accounts = [node for node in accounts if state.options.local_node or node.name != LOCAL]
    cluster: Cluster | None = state.parts.get("cluster")
    linked = {one.name: one for one in cluster.rows()} if cluster is not None else {}
    found = [await _own(state, node) if node.name == LOCAL else _row(node, linked.get(node.name)) for node in accounts]
    if cluster is None:
        return found
    own = cluster.facts.get(LOCAL)
    if own is not None:
        found = [_with(row, {"volumes": own.volumes}) if row.name == LOCAL else row for row in found]
    left = state.parts.get(VACATED, {})
    found = [_with(row, {"detached": left.get(row.name)}) for row in found]
    return [
        _with(
            row,
            {
                "apart": row.linked and bool(row.volumes) and cluster.volumes not in ("", row.volumes),
                "catching_up": printable(cluster.catching_up.get(row.name, "")),
            },
        )
        for row in found
    ]


def _row(node: NodeAccount, live: LiveNode | None) -> NodeRow:
    if live is None:
        return plain_row(node)
    facts, load = live.facts, live.load
    given: dict[str, Any] = {
        "linked": live.linked,
        "version": facts.version,
        "seen": time.time() - live.silent_seconds,
        "has": Free(facts.millicores, facts.memory_bytes, len(facts.gpus)),
        "gpus": list(facts.gpus),
        "volumes": facts.volumes,
        "lines": live.lines,
    }
    if load is not None:
        given |= {"free": Free(load.millicores, load.memory_bytes, load.gpus)}
        given |= {"running": load.running, "waiting": load.waiting}
    return _with(plain_row(node), given)


async def _own(state: ServerState, node: NodeAccount) -> NodeRow:
    """Return the row of the server's own node, as its daemon answers."""
    try:
        found = await asyncio.wait_for(state.node.ask(None, "status", {}), ASK_SECONDS)
    except (errors.AtollError, TimeoutError, OSError):
        return _with(plain_row(node), {"version": __version__})
    return own_row(plain_row(node), found)


def own_row(row: NodeRow, status: Mapping[str, Any]) -> NodeRow:
    """Return the row of the server's own node with the figures of its daemon's `status`."""
    capacity, calls = status["capacity"], [one.get("state") for one in status["calls"]]
    has, free = capacity["machine"], capacity["free"]
    return _with(
        row,
        {
            "linked": True,
            "version": str(status["daemon"]["version"]),
            "seen": time.time(),
            "has": Free(round(1000 * has["cpus"]), has["memory_bytes"], len(has["gpus"])),
            "free": Free(round(1000 * free["cpus"]), free["memory_bytes"], free["gpus"]),
            "gpus": [str(one["name"]) for one in has["gpus"]],
            "running": calls.count("running"),
            "waiting": len(calls) - calls.count("running"),
        },
    )


def _with(row: NodeRow, given: Mapping[str, Any]) -> NodeRow:
    return msgspec.structs.replace(row, **given)


def _note(state: ServerState, accounts: Sequence[NodeAccount]) -> None:
    """Note the last words of linked nodes, and facts that have changed, for the database."""
    cluster: Cluster | None = state.parts.get("cluster")
    live = {one.name: one for one in cluster.rows() if one.linked} if cluster is not None else {}
    for node in accounts:
        if (found := live.get(node.name)) is not None:
            said = msgspec.to_builtins(found.facts)
            state.parts["nodes"].heard(node.id, said if {**node.facts, **said} != node.facts else None)


@contextlib.asynccontextmanager
async def sharing(state: ServerState) -> AsyncIterator[None]:
    """Share rows of the nodes with the command line on this machine while the context is open, if others have joined."""
    file = state.node.options.run_directory / SHARED_FILE

    async def share() -> None:
        while True:
            known = state.parts["nodes"].known()
            _note(state, known)
            if len(known) > 1:
                rows = await rows_of(state, known)
                _share(file, msgspec.json.encode(rows))
            await asyncio.sleep(SHARE_SECONDS)

    try:
        async with in_background(share):
            yield
    finally:
        with contextlib.suppress(OSError):  # the disk cannot be written any more; old rows are not shown
            file.unlink(missing_ok=True)


def _share(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}")
    try:
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError as error:  # the command line asks the database instead
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _log.warning("nodes.not_shared", extra={"fields": {"error": error.strerror}})


def shared(home: Path) -> list[NodeRow]:
    """Return rows of nodes that a running server has shared just now; none if it has not."""
    file = settings.load(home).run_directory / SHARED_FILE
    try:
        if time.time() - file.stat().st_mtime > 5 * SHARE_SECONDS + ASK_SECONDS:
            return []
        return msgspec.json.decode(ownership.read(file, MOST_SHARED_BYTES), type=list[NodeRow])
    except (OSError, msgspec.MsgspecError):
        return []
