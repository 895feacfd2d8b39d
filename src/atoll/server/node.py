"""The server's way to its node: connections to the daemon of its state directory, in the name of a user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from atoll import __version__, errors
from atoll.host import daemon_socket, daemon_start
from atoll.server.principal import Principal
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Channel, ChannelClosed


class Node:
    """The daemon that runs the functions of all users; started when it is not there.

    Its methods block, but for `connect`: call them in a thread.

    Args:
        options: the server's state directory and its options.
    """

    def __init__(self, options: Settings) -> None:
        self.options = options

    def open(self, principal: Principal | None, message: dict[str, Any], descriptors: Sequence[int] = ()) -> Channel:
        """Return a connection past the greeting, with its opening message sent.

        Args:
            principal: the user in whose name it asks; None for the server itself.

        Raises:
            HostUnreachable, StateUnusable, StateUntrusted, DiskFull: there is no node.
        """
        named = message if principal is None else {**message, "as": as_data(principal)}
        return daemon_start.open_connection(self.options, named, descriptors)

    async def connect(
        self, principal: Principal, message: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> AsyncChannel:
        """Return a connection of the event loop's past the greeting, with its opening message sent.

        Raises:
            As `open`.
        """
        named = {**message, "as": as_data(principal)}
        for _ in range(daemon_start.ATTEMPTS):
            try:
                channel = AsyncChannel(daemon_socket.connect(self.options))
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                await asyncio.to_thread(daemon_start.start, self.options)
                continue
            try:
                channel.post({"type": "hello", "version": __version__, "purpose": ""})
                channel.post(named, descriptors)
                reply = await asyncio.wait_for(channel.receive(), daemon_start.GREETING_SECONDS)
            except ChannelClosed:  # it was just leaving
                channel.close()
                continue
            except TimeoutError as error:
                channel.close()
                raise errors.HostUnreachable("the node does not answer", hint="try again in a while") from error
            except BaseException:
                channel.close()
                raise
            if reply.type == "welcome":
                return channel
            channel.close()
            if reply.type == "failed":
                raise errors.from_data(reply.header.get("error") or {})
            await asyncio.to_thread(daemon_start.replace, self.options)
        raise errors.HostUnreachable("the node does not answer", hint="try again in a while")

    def request(
        self,
        principal: Principal | None,
        name: str,
        arguments: dict[str, Any],
        on_progress: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Send a request that is no call, and return its answer.

        Raises:
            AtollError: as the node answers.
        """
        channel = self.open(principal, {"type": "request", "name": name, "arguments": arguments})
        try:
            while True:
                header = channel.receive().header
                match header.get("type"):
                    case "answer":
                        value = header.get("value")
                        return value if isinstance(value, dict) else {}
                    case "progress" | "notice" if on_progress is not None:
                        on_progress(str(header.get("line", "")))
                    case "failed":
                        raise errors.from_data(header.get("error") or {})
        except ChannelClosed as error:
            raise errors.HostUnreachable("the node ended before it answered", hint="try again") from error
        finally:
            channel.close()


def as_data(principal: Principal) -> dict[str, Any]:
    """Return the user as the node's messages name one (`daemon.leasing.on_behalf`)."""
    limits = {"limits": {"workers": principal.workers}} if principal.workers else {}
    admin = {"admin": True} if principal.may_administer else {}
    return {"user": principal.user, **admin, **limits}
