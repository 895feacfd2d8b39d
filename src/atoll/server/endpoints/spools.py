"""Spools of revisions on their way to a machine, which keeps the call and makes it in its owner's name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.model import spool
from atoll.server.cluster.contract import LOCAL
from atoll.server.cluster.links.link import Link
from atoll.server.cluster.links.own_line import open_line
from atoll.server.principal import Principal
from atoll.server.state import ServerState
from atoll.wire import sealed_file
from atoll.wire.channel import ChannelClosed

PIECE_BYTES = 1 << 20


def sealed(path: Path, call: str, batch: str = "") -> int:
    """Return the descriptor of a sealed file with the spool of a revision for one call; the caller owns it.

    Raises:
        FileNotFoundError, ValueError: the spool is gone, or damaged.
    """
    return sealed_file.make_of(_pieces(path, call, batch))


def _pieces(path: Path, call: str, batch: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from spool.made_anew(file, call, batch)


async def keep(state: ServerState, owner: Principal, call: str, descriptor: int, *, again: bool = False) -> None:
    """Have a call kept and made by a machine; a call that is kept already is not made twice.

    Args:
        descriptor: of a sealed file with its spool.
        again: it may have been sent before: it goes to nobody else while a machine is away that may have it.

    Raises:
        HostUnreachable: no machine takes it now.
        AtollError: it is not kept.
    """
    arguments = {"spool": call, **({"again": True} if again else {})}
    message = {"type": "request", "name": "detached.accept", "arguments": arguments}
    if (link := await link_for(state, owner, message)) is not None:
        size = sealed_file.size_of(descriptor)
        line = await open_line(link, owner, {**message, "bytes": size})
        try:
            at = 0
            while at < size:
                piece = os.pread(descriptor, PIECE_BYTES, at)
                at += len(piece)
                await line.send(piece)
            await line.answer()
        finally:
            line.close()
        return
    channel = await state.node.connect(owner, message, [descriptor])
    try:
        while True:
            header = (await channel.receive()).header
            if header.get("type") == "answer":
                return
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
    except ChannelClosed as error:
        raise errors.HostUnreachable("the node ended", hint="try again") from error
    finally:
        channel.close()


async def link_for(state: ServerState, owner: Principal, message: dict[str, Any]) -> Link | None:
    """Return the link to the machine for a request; None for the server's own.

    Raises:
        HostUnreachable, CallUnknown: there is none, or it is away.
    """
    cluster, handing = state.parts["cluster"], state.parts["handing"]
    if cluster.alone or handing.find is None:
        return None
    return link_to(state, await handing.find(owner, message))


def link_to(state: ServerState, node: str) -> Link | None:
    """Return the link to a machine by its id; None for the server's own.

    Raises:
        HostUnreachable: it is away.
    """
    if node in ("", LOCAL):
        return None
    link: Link | None = state.parts["cluster"].links.get(node)
    if link is None:
        raise errors.HostUnreachable(f"the machine `{node}` does not answer", hint="see `atoll nodes list`")
    return link
