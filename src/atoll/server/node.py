"""The server's way to its node: connections to the daemon of its state directory, in the name of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from atoll import errors
from atoll.host import daemon_start
from atoll.server.principal import Principal
from atoll.settings import Settings
from atoll.wire.channel import Channel, ChannelClosed


class Node:
    """The daemon that runs the functions of all users; started when it is not there.

    Its methods block: call them in a thread.

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
    return {"user": principal.user}
