"""The server's way to its node: connections to the daemon of its state directory, in the name of a user."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from atoll import __version__, errors
from atoll.host import daemon_socket, daemon_start
from atoll.server.paces import Paces
from atoll.server.principal import ADMIN, Principal
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import CLIENT, Bounds
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import MAX_HEADER_BYTES, FrameError
from atoll.work_threads import WorkThreads

_log = logging.getLogger("atoll.server")

MOST_OF_USER = 128
"""Requests of one user that wait for the node at a time, but for those of lines."""
_ANSWERS = CLIENT._replace(header_bytes=MAX_HEADER_BYTES)

FOR_ADMIN_KEYS = ("secrets.set", "secrets.delete")
"""Requests of a user that a key for functions and data alone cannot make: a leaked one must not change what they get."""


class Node:
    """The daemon that runs the functions of all users; started when it is not there.

    `open` and `request` block, and a user decides for how long: call them in no thread that others wait for.

    Args:
        options: the server's state directory and its options.
    """

    def __init__(self, options: Settings) -> None:
        self.options = options
        self._waiting: Counter[str] = Counter()
        self._other = ""
        self.paces = Paces()
        """Of all that a user sends to be passed on: requests and lines."""
        self._threads = WorkThreads("node", 1)

    def open(self, principal: Principal | None, message: dict[str, Any], descriptors: Sequence[int] = ()) -> Channel:
        """Return a connection past the greeting, with its opening message sent.

        Args:
            principal: the user in whose name it asks; None for the server itself.

        Raises:
            HostUnreachable, StateUnusable, StateUntrusted, DiskFull: there is no node.
        """
        named = message if principal is None else _in_name(principal, message)
        if self._other:
            raise _other_version(self._other)
        try:
            return daemon_start.open_connection(self.options, named, descriptors)
        except errors.ProtocolMismatch as error:
            if "version" not in error.details:
                raise
            self._note_version(error.details["version"])
            raise _other_version(self._other) from error

    async def connect(
        self,
        principal: Principal | None,
        message: dict[str, Any],
        descriptors: Sequence[int] = (),
        bounds: Bounds = CLIENT,
    ) -> AsyncChannel:
        """Return a connection of the event loop's past the greeting, with its opening message sent.

        Args:
            bounds: of the node's messages.

        Raises:
            As `open`.
        """
        named = message if principal is None else _in_name(principal, message)
        other = ""
        for _ in range(daemon_start.ATTEMPTS):
            try:
                channel = AsyncChannel(daemon_socket.connect(self.options), bounds)
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                await self._threads.run("", partial(daemon_start.start, self.options))
                continue
            try:
                with contextlib.suppress(
                    ChannelClosed
                ):  # it may have answered the greeting, and gone before the rest is sent
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
                self._other = ""
                return channel
            channel.close()
            if reply.type == "failed":
                raise errors.from_data(reply.header.get("error") or {})
            other = str(reply.header.get("version", ""))
            if other == self._other:
                break
            await self._threads.run("", partial(daemon_start.replace, self.options))
        if other:
            self._note_version(other)
            raise _other_version(other)
        raise errors.HostUnreachable("the node does not answer", hint="try again in a while")

    def _note_version(self, version: str) -> None:
        """Note the version of the installed package: no node of this server's own can be started any more."""
        if version != self._other:
            self._other = version
            _log.error("node_of_another_version", extra={"fields": {"node": version, "server": __version__}})

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Send a request that is no call, and return its answer; a cancelled one ends at the node as well.

        Raises:
            NotAuthorized: the user has as many requests under way as may be, status 429.
            AtollError: as the node answers.
        """
        with self.counted(principal):
            return await self.ask_counted(principal, name, arguments)

    async def ask_counted(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """As `ask`, for a request that is `counted`."""
        message = {"type": "request", "name": name, "arguments": arguments}
        channel = await self.connect(principal, message, bounds=_ANSWERS)
        try:
            while True:
                header = (await channel.receive()).header
                match header.get("type"):
                    case "answer":
                        value = header.get("value")
                        return value if isinstance(value, dict) else {}
                    case "failed":
                        raise errors.from_data(header.get("error") or {})
        except (ChannelClosed, FrameError) as error:
            raise errors.HostUnreachable("the node ended before it answered", hint="try again") from error
        finally:
            channel.close()

    @contextlib.contextmanager
    def counted(self, principal: Principal | None) -> Iterator[None]:
        """Count a user's request while the context is open.

        Raises:
            NotAuthorized: the user has as many as may be, status 429.
        """
        user = principal.user if principal is not None else ""
        if user and self._waiting[user] >= MOST_OF_USER:
            raise errors.NotAuthorized(
                f"{MOST_OF_USER} requests of this user are under way, the most at a time",
                hint="wait for answers before you ask more",
                status=429,
            )
        self._waiting[user] += 1
        try:
            yield
        finally:
            self._waiting[user] -= 1
            if not self._waiting[user]:
                del self._waiting[user]

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


def _other_version(version: str) -> errors.HostUnreachable:
    return errors.HostUnreachable(
        f"the node is atoll {version[:40]}, and this server is still {__version__}",
        hint="have the operator restart the server: its package was upgraded while it ran",
        node_version=version[:40],
    )


def _in_name(principal: Principal, message: dict[str, Any]) -> dict[str, Any]:
    """Return an opening message in the name of a user, if the user's key has the scope for it."""
    name = message.get("name")
    if message.get("type") == "request" and name in FOR_ADMIN_KEYS and principal.scope != ADMIN:
        raise errors.NotAuthorized(
            f"a key of the scope API cannot ask for `{name}`", hint="use a key of the scope ADMIN", status=403
        )
    return {**message, "as": as_data(principal)}


def as_data(principal: Principal) -> dict[str, Any]:
    """Return the user as the node's messages name one (`daemon.leasing.on_behalf`)."""
    limits = {"limits": {"workers": principal.workers}} if principal.workers else {}
    admin = {"admin": True} if principal.may_administer else {}
    return {"user": principal.user, **admin, **limits}
