"""The output of a detached call as the answer to a request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from atoll import errors
from atoll.server.cluster.links.own_line import OwnLine, open_line
from atoll.server.endpoints.spools import link_for
from atoll.server.principal import Principal
from atoll.server.state import ServerState
from atoll.wire.channel import ChannelClosed

TYPE = "text/plain; charset=utf-8"
_PIECE_BYTES = 256 << 10


async def stream(state: ServerState, principal: Principal, call: str) -> Response:
    """Return the output of a call as it is now; empty where it has printed nothing, or is kept no more.

    Raises:
        HostUnreachable: the node does not answer.
    """
    message = {"type": "request", "name": "detached.output", "arguments": {"call": call}}
    try:
        link = await link_for(state, principal, message)
    except errors.CallUnknown:
        return Response(b"", media_type=TYPE)
    if link is not None:
        line = await open_line(link, principal, message)
        return StreamingResponse(_of_line(line), media_type=TYPE)
    channel = await state.node.connect(principal, message)
    try:
        header = (await channel.receive()).header
        if header.get("type") == "failed":
            error = errors.from_data(header.get("error") or {})
            if not isinstance(error, errors.CallUnknown):
                raise error
            descriptors = []
        else:
            descriptors = channel.take_descriptors(1) if header.get("descriptors") else []
    except ChannelClosed as error:
        raise errors.HostUnreachable("the node ended", hint="try again") from error
    finally:
        channel.close()
    return StreamingResponse(_pieces(descriptors), media_type=TYPE)


async def _pieces(descriptors: list[int]) -> AsyncIterator[bytes]:
    for descriptor in descriptors:
        try:
            size, place = os.fstat(descriptor).st_size, 0
            while place < size:
                piece = await asyncio.to_thread(os.pread, descriptor, min(_PIECE_BYTES, size - place), place)
                if not piece:
                    break
                place += len(piece)
                yield piece
        finally:
            os.close(descriptor)


async def _of_line(line: OwnLine) -> AsyncIterator[bytes]:
    try:
        left = int((await line.answer()).get("bytes") or 0)
        reader = asyncio.StreamReader(_PIECE_BYTES)
        line.carry(asyncio.StreamReaderProtocol(reader))
        while left > 0 and (piece := await reader.read(min(_PIECE_BYTES, left))):
            left -= len(piece)
            yield piece
    finally:
        line.close()
