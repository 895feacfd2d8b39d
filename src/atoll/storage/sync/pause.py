"""The pause of the user's sandboxes during a switch, which the daemon makes: nothing is written between the last look at
a tree and its exchange.

    peer: freeze        daemon: frozen(whole), when it is this user's turn and no process of the sandboxes runs any more;
                                `whole` is false where one could not be stopped in time
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
        self.whole = True
        """Whether the last pause that was asked for held all of the user's sandboxes."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the sandboxes, where that is possible, while the context is open."""
        channel = self._channel
        self.whole = True
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
            answer = channel.receive()
            self.whole = answer.type == "frozen" and bool(answer.header.get("whole", True))
            return answer.type == "frozen"
        except (ChannelClosed, FrameError, OSError):  # a timeout as well: a late answer must not end another wait
            self._channel, self.whole = None, False
            channel.close()
            return False
