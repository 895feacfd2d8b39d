"""The pause of the user's sandboxes during a switch, which the daemon makes: nothing is written between the last look at
a tree and its exchange.

    peer: freeze        daemon: frozen(whole), when it is this user's turn and no process of the sandboxes runs any more
    peer: thaw

The daemon ends a pause by itself after `MOST_SECONDS`, and when the peer ends. A peer without a daemon goes on without
a pause.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError

MOST_SECONDS = 0.5
"""The longest pause."""
_PATIENCE_SECONDS = 30.0
"""The longest wait for a turn, which the pace of pauses may delay; then the switch goes on without one."""


class Pause:
    """Asks for pauses.

    Args:
        channel: to the daemon; None where there is none.
    """

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the sandboxes, where that is possible, while the context is open."""
        channel = self._channel
        if channel is None or not self._asked(channel):
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(ChannelClosed, OSError):
                channel.send({"type": "thaw"})

    def _asked(self, channel: Channel) -> bool:
        channel.socket.settimeout(_PATIENCE_SECONDS)
        try:
            channel.send({"type": "freeze"})
            return channel.receive().type == "frozen"
        except (ChannelClosed, FrameError, OSError):  # a timeout as well: a late answer must not end another wait
            self._channel = None
            channel.close()
            return False
