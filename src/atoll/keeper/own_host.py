"""The local host of the keeper: connections to the one daemon that has started it, over their own channel.

The daemon's socket may lead to a newer daemon meanwhile, and a keeper must not start or replace any.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from atoll import __version__, errors
from atoll.detached.rows import OWNER
from atoll.host.local import LocalHost
from atoll.settings import Settings
from atoll.wire.channel import Channel, ChannelClosed, pair
from atoll.wire.frames import FrameError


class OwnHost(LocalHost):
    """The host behind a channel to the daemon, for the calls of one user.

    Args:
        user: in whose name it asks.
    """

    def __init__(self, options: Settings, daemon: Channel, user: str = OWNER) -> None:
        super().__init__(options.home)
        self._daemon = daemon
        self._user = user

    def _open(
        self, message: dict[str, Any], index: Iterable[tuple[str, str]], descriptors: Sequence[int] = ()
    ) -> Channel:
        """Open a connection with a message, and with the certificates that its index settings name."""
        digest = dict(index).get("certificates")
        message = {**message, "as": {"user": self._user}}
        sealed = -1
        if digest:
            from atoll.host import index_settings  # for few calls
            from atoll.wire import sealed_file  # as above

            sealed = sealed_file.make(index_settings.certificates(digest).encode())
            message, descriptors = {**message, "certificates": digest}, [sealed, *descriptors]
        try:
            return self._greeted(message, descriptors)
        except (ChannelClosed, FrameError, OSError) as error:
            if isinstance(error, errors.AtollError):
                raise
            raise errors.HostUnreachable("the daemon has ended", hint="the call waits for the next one") from error
        finally:
            if sealed >= 0:
                os.close(sealed)

    def _greeted(self, message: dict[str, Any], descriptors: Sequence[int]) -> Channel:
        ours, theirs = pair()
        channel = Channel(ours)
        with contextlib.ExitStack() as undo:
            undo.callback(channel.close)
            try:
                self._daemon.send({"type": "connect"}, descriptors=[theirs.fileno()])
            finally:
                theirs.close()
            channel.send({"type": "hello", "version": __version__, "purpose": "keeper"})
            channel.send(message, descriptors=descriptors)
            reply = channel.receive().header
            if reply.get("type") != "welcome":
                raise errors.from_data(
                    reply.get("error") or {"code": "protocol_mismatch", "message": "another version"}
                )
            undo.pop_all()
        return channel
