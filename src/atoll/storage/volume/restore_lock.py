"""Between the requests that change a volume and a restore, which exchanges the directory that they change.

Every request passes this gate for the moment in which it changes names or contents, and never while it waits for its
client or copies much: so a restore, for which nobody may call a function meanwhile, has the gate for itself at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from atoll.storage.volume.locate import VolumeRoot
from atoll.storage.volume.locks import holding, still_connected
from atoll.wire.channel import Channel, ChannelClosed

EXCHANGE_LOCK = "restore"
"""Held shared by requests while they change the volume, alone by a restore while it exchanges."""


class Gate:
    """One client's way to the volume as it is since the last restore.

    Args:
        volume: the volume's directories.
        channel: the client.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel) -> None:
        self._volume = volume
        self._channel = channel
        self.on_restored: list[Callable[[], None]] = []
        """What to call after a restore of something in the volume, before the next request is answered."""

    def refresh(self) -> None:
        """Look at the volume as it is since the last restore."""
        if self._volume.refresh():
            for call in self.on_restored:
                call()

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Change the volume as it is now; a restore waits for it, so it must be brief.

        Raises:
            ChannelClosed: the client has gone before it was its turn.
        """
        wait = partial(still_connected, self._channel.fileno())
        with holding(self._volume.locks, EXCHANGE_LOCK, exclusive=False, wait=wait) as held:
            if not held:
                raise ChannelClosed("the client has gone")
            self.refresh()
            yield
