"""The first words between a client and the daemon."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from atoll.host import daemon_start
from atoll.wire.channel import Channel, pair


class SlowSender(Channel):
    """Sends nothing after its first message before `gone` is set."""

    gone = threading.Event()
    first = True

    def send(self, header: dict[str, Any], buffers: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        if not self.first:
            assert self.gone.wait(120)
        self.first = False
        super().send(header, buffers, descriptors)


def test_an_answer_counts_also_when_the_daemon_has_gone_before_all_was_sent() -> None:
    """A daemon of another version answers the greeting and closes; a client that is still sending hears it."""
    here, there = pair()
    client, daemon = SlowSender(here), Channel(there)

    def refuse() -> None:
        daemon.receive()
        daemon.send({"type": "mismatch"})
        daemon.close()
        client.gone.set()

    thread = threading.Thread(target=refuse)
    thread.start()
    assert daemon_start._greet(client, {"type": "lease"}) == {"type": "mismatch"}
    thread.join()
