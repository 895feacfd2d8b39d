"""Descriptors that come with messages of a channel."""

from __future__ import annotations

import asyncio
import os
import socket

from atoll.wire.channel import Channel
from atoll.wire.stream import AsyncChannel


def test_descriptors_of_a_later_message_are_not_dropped_with_an_earlier_one() -> None:
    """Who drops what a message has brought leaves what belongs to messages that were read together with it."""

    async def receive(sock: socket.socket) -> list[str]:
        channel = AsyncChannel(sock)
        found = []
        for _ in range(3):
            message = await channel.receive()
            taken = channel.take_descriptors(1) if message.type == "with" else []
            found += [os.read(descriptor, 10).decode() for descriptor in taken]
            for descriptor in taken:
                os.close(descriptor)
            channel.drop_descriptors()
        channel.close()
        return found

    ours, theirs = socket.socketpair()
    sender = Channel(theirs)
    read, write = os.pipe()
    os.write(write, b"mine")
    sender.send({"type": "without"})
    sender.send({"type": "with"}, descriptors=[read])
    sender.send({"type": "without"}, descriptors=[read])
    try:
        assert asyncio.run(receive(ours)) == ["mine"]
    finally:
        sender.close()
        os.close(read)
        os.close(write)
