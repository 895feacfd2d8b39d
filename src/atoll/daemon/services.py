"""Services of one machine: node, engine, records and housekeeping, whatever the transport of requests.

The daemon's control socket builds on them today, a server later. Each request names its user (`leasing.Caller`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from atoll.daemon.detached.calls import Detached
from atoll.daemon.handover import Handover
from atoll.daemon.housekeeping import Housekeeping
from atoll.daemon.joined.part import STREAMS, Joined
from atoll.daemon.records.recorder import Recorder
from atoll.daemon.records.tapes import Outputs
from atoll.daemon.running_calls import RunningCalls
from atoll.daemon.secrets.store import SecretStore
from atoll.daemon.settings_watch import SettingsWatch
from atoll.daemon.users import Users
from atoll.engine.accounts import Account
from atoll.engine.call_claims import Claimed
from atoll.engine.contract import Connect, Engine
from atoll.engine.pool import Pool
from atoll.node.node import Node
from atoll.sandbox import fence
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel


class Services:
    """Everything that serves calls and requests on this machine.

    Args:
        options: the state directory and its options.
        on_connect: serves the connections that code inside workers opens.
        serve: serves a connection of the owner's, which the keeper opens.

    Raises:
        StateUnusable, DiskFull: the state cannot be prepared.
    """

    def __init__(self, options: Settings, on_connect: Connect, serve: Callable[[socket.socket], object]) -> None:
        self.settings = options
        self.started_at = time.time()
        self.node = Node(options)
        self.users = Users(options, self.node.users, separates=os.geteuid() == 0)
        self.recorder = Recorder(options.records_directory, options.records)
        self.outputs = Outputs(self.recorder)
        self.detached = Detached(options, serve, self.recorder.add)
        self.engine: Engine = Pool(self.node, on_connect, on_record=self.detached.report)
        self.joined = Joined(self.engine, self.node, options.run_directory / fence.FILE)
        self.running_calls = RunningCalls(self.engine)
        self.housekeeping = Housekeeping(self.node, self.engine)
        self.claimed = Claimed()
        self.handover = Handover()
        self.secrets = SecretStore(lambda: self.settings)
        self.storage_places = Account(4, 8, 16, 32)
        """Open storage peers of functions."""
        self.request_bytes = Account(4 << 20, 8 << 20, 16 << 20, 32 << 20)
        """Memory of functions' requests: those that are being received, and those whose leases live."""
        self.settings_watch = SettingsWatch(options, self._apply)
        self._tasks: list[asyncio.Task[Any]] = []

    def _apply(self, options: Settings) -> None:
        """Take over options that need no restart."""
        self.settings = options
        self.recorder.options = options.records
        self.node.apply(options)
        self.detached.options = options

    @property
    def look_seconds(self) -> float:
        """Seconds between looks for housekeeping, and at the daemon's idle time."""
        return min(1.0, max(self.settings.pool.daemon_idle_seconds / 4, 0.05))

    def start(self) -> None:
        """Begin the work in the background."""
        for work in (self.engine.watch(), self.outputs.watch(), self.housekeeping.watch(self.look_seconds)):
            self._tasks.append(asyncio.ensure_future(work))
        self._tasks.append(asyncio.ensure_future(self.settings_watch.watch(lambda: self.look_seconds)))
        self._tasks.append(asyncio.ensure_future(self.node.data.watch(self.node.lose_volumes)))

    def prepare(self) -> None:
        """Begin the work that the first call need not wait for."""
        self._tasks.append(asyncio.ensure_future(self.node.settle()))
        self.detached.start()

    def stream(self, kind: str, channel: AsyncChannel) -> Coroutine[Any, Any, None]:
        """Return the work of a stream of the owner's server or member, by its opening message."""
        if kind in STREAMS:
            return self.joined.serve(kind, channel)
        return self.handover.take(channel) if kind == "handover" else self.handover.give(channel)

    async def close_engine(self) -> None:
        """End the work in the background and every sandbox; connections that hold leases then end."""
        for task in self._tasks:
            task.cancel()
        self.handover.close()
        self.joined.close()
        self.detached.leave(at_once=True)
        await self.engine.close()
        await self.detached.close()

    async def close(self) -> None:
        """Close the rest, after `close_engine`, when no connection is left."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.node.close()
        await asyncio.to_thread(self.recorder.close)
