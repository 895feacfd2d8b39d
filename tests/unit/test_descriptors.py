"""Descriptors that come with messages of a channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading

import pytest

from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError


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


def test_a_channel_of_the_loop_never_waits_in_the_kernel() -> None:
    """Not when a peer that has the socket too has made it block: a part of a frame stops nobody else."""

    async def serve(sock: socket.socket, shared: socket.socket, peer: socket.socket) -> None:
        channel = AsyncChannel(sock)
        os.set_blocking(shared.fileno(), True)
        peer.send(b"A")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(channel.receive(), 0.05)
        for _ in range(100):  # more than the peer takes, which does not read
            channel.post({"type": "x" * 10_000})
        channel.close()

    sock, peer = socket.socketpair()
    with peer, sock.dup() as shared:
        thread = threading.Thread(target=lambda: asyncio.run(serve(sock, shared, peer)), daemon=True)
        thread.start()
        thread.join(120)
        assert not thread.is_alive()


def test_descriptors_that_nothing_asks_for_end_a_bounded_channel() -> None:
    """A peer that may send none yet is cut off with the first, and it is closed."""

    async def receive(sock: socket.socket) -> None:
        channel = AsyncChannel(sock)
        channel.bound_descriptors(0)
        try:
            await channel.receive()
        finally:
            channel.close()

    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    sender = Channel(theirs)
    sender.send({"type": "with"}, descriptors=[write])
    os.close(write)
    try:
        with pytest.raises(FrameError):
            asyncio.run(receive(ours))
        assert os.read(read, 1) == b""
    finally:
        sender.close()
        os.close(read)


def test_a_socket_that_is_not_connected_is_a_closed_channel() -> None:
    """Whatever socket a function sends as its connection, it is no failure of the daemon's."""

    async def receive() -> None:
        channel = AsyncChannel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            await channel.receive()
        finally:
            channel.close()

    with pytest.raises(ChannelClosed):
        asyncio.run(receive())
