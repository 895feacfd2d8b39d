"""The daemon: started by the first call, listens on a Unix socket only, leaves when it has been idle.

Theory of operation. Who starts a daemon holds `run/daemon.lock`, so that of ten scripts one starts it; the daemon
itself binds its socket under a temporary name and renames it, so that a path which exists can be connected to. It
tells its starter over a pipe that it is ready, or why it cannot be. To leave, it takes the same lock, removes the
socket, and looks once more for clients that came in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atoll import __version__, errors, settings
from atoll.daemon import restore
from atoll.daemon.control import Connection, Peer
from atoll.daemon.records import requests
from atoll.daemon.records.recorder import Recorder
from atoll.daemon.records.tapes import Outputs
from atoll.engine.pool import Pool
from atoll.environments import requests as environments_service
from atoll.node.node import Node
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import short_name

log = logging.getLogger("atoll.daemon")

LOCAL_USER = "local"
"""The one user of the embedded daemon: who started it."""

COLLECT_SECONDS = 30.0
"""How often what syncs have replaced is looked for while there are sandboxes, or clients without any."""

COLLECT_FULL_SECONDS = 2.0
"""The same while the volumes' disk is nearly full: who makes room there looks for it."""

MAKE_ROOM_SECONDS = 60.0
"""How long a client whose disk is full waits for that, and how long it then counts."""

CLOCK_SECONDS = 60.0
"""How much longer than the oldest sandbox something must have been replaced: clocks are set back, too."""


class Daemon:
    """One running daemon.

    Args:
        options: where its state is, and its options.
    """

    def __init__(self, options: Settings) -> None:
        self.settings = options
        self.node = Node(options)
        self.recorder = Recorder(options.records_directory, options.records)
        self.outputs = Outputs(self.recorder)
        self.pool = Pool(self.node, self._connected_from_worker, on_record=self.recorder.add)
        self.started_at = time.time()
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._left = asyncio.Event()
        self._busy_until = time.monotonic()
        self._volume_was_used = True
        self._collect_at = 0.0
        self._collecting: asyncio.Task[int] | None = None
        self._made_room_at = -math.inf
        self._shells: list[float] = []
        self.storage_peers: Counter[str] = Counter()
        """How many storage peers the code in each worker has open."""
        self.senders_of_junk: deque[str] = deque(maxlen=1000)
        """Workers whose code has sent no frames: the log says it once for each."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen until told to stop or idle for long enough; then end everything that was started."""
        self._listen()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.leave)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.ensure_future(self._accept()),
            asyncio.ensure_future(self._watch_idle()),
            asyncio.ensure_future(self.pool.limiting.watch()),
            asyncio.ensure_future(self.outputs.watch()),
        ]
        log.info("daemon_started version=%s pid=%s", __version__, os.getpid())
        ready()
        tasks.append(asyncio.ensure_future(self.node.settle()))
        try:
            await self._left.wait()
        finally:
            self._stop_listening()
            if self._collecting is not None:
                tasks.append(self._collecting)
            for task in tasks:
                task.cancel()
            await self.pool.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*tasks, *self._connections, return_exceptions=True)
            await self.node.close()
            await asyncio.to_thread(self.recorder.close)
            log.info("daemon_left pid=%s", os.getpid())

    def leave(self, *, at_once: bool = True) -> None:
        """End now, or take no new clients and end with the last one."""
        if at_once:
            self._left.set()
        else:
            self._stop_listening()
            self._busy_until = 0.0

    # --- the socket -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        path = self.settings.socket_path
        temporary = path.with_name(f"daemon-{os.getpid()}.sock")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_name(temporary) as name:
            listener.bind(name)
        os.chmod(temporary, 0o600)
        listener.listen(1024)
        listener.setblocking(False)
        os.rename(temporary, path)
        self._socket_id = _file_id(path)
        self._listener = listener
        state = {"pid": os.getpid(), "version": __version__, "started_at": self.started_at}
        (self.settings.run_directory / "daemon.json").write_text(json.dumps(state))

    def _stop_listening(self) -> None:
        """Remove the socket, if it is still this daemon's."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        path = self.settings.socket_path
        with contextlib.suppress(OSError):
            if self._owns_path():
                path.unlink()
                (self.settings.run_directory / "daemon.json").unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            asyncio.get_running_loop().remove_reader(listener.fileno())
        listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while self._listener is not None:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if self._listener is None:
                    return
                log.warning("accept_failed error=%s", error)
                await asyncio.sleep(0.1)
                continue
            channel = AsyncChannel(client)
            if channel.peer_uid() not in (os.getuid(), 0):
                log.warning("client_refused uid=%s", channel.peer_uid())
                channel.close()
                continue
            self._serve(channel, Peer(LOCAL_USER))

    def _serve(self, channel: AsyncChannel, peer: Peer) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(Connection(self, channel, peer).serve())
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        return task

    async def _connected_from_worker(self, connection: socket.socket, user: str, worker: str) -> None:
        channel = AsyncChannel(connection)
        channel.bound_descriptors(0)
        await self._serve(channel, Peer(user, worker))

    # --- leaving when idle ------------------------------------------------------------------------------------------

    async def _watch_idle(self) -> None:
        idle_seconds = self.settings.pool.daemon_idle_seconds
        while True:
            await asyncio.sleep(min(1.0, max(idle_seconds / 4, 0.05)))
            now = time.monotonic()
            self._collect(now)
            if self._listener is not None and not self._owns_path():
                self.leave(at_once=False)
            if self._connections or not self.pool.idle:
                if self._listener is not None:
                    self._busy_until = now
            elif now - self._busy_until >= idle_seconds and self._can_leave():
                self._left.set()
                return

    @property
    def open_shells(self) -> int:
        """How many interactive shells live."""
        return len(self._shells)

    @contextlib.contextmanager
    def shell(self) -> Iterator[None]:
        """Know of an interactive shell while it lives: it may work in a directory that a sync replaces."""
        started = time.time()
        self._shells.append(started)
        try:
            yield
        finally:
            self._shells.remove(started)

    def _collect(self, now: float) -> None:
        """Have what syncs have replaced removed in the background: when the last sandbox has ended, and now and then
        what is older than every one that lives."""
        idle = self.pool.idle and not self._shells
        if not idle:
            self._volume_was_used = True
        due = now >= self._collect_at or (idle and self._volume_was_used)
        if not due and now >= self._collect_at - COLLECT_SECONDS + COLLECT_FULL_SECONDS:
            due = self.node.is_nearly_full()
        if not due or (self._collecting is not None and not self._collecting.done()):
            return
        if idle:
            self._volume_was_used = False
        self._collect_at = now + COLLECT_SECONDS
        self._collecting = asyncio.get_running_loop().create_task(self._collect_now())

    async def make_room(self) -> bool:
        """Have removed at once what is else removed at leisure; return whether there was any, now or a moment ago."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.get_running_loop().create_task(self._collect_now())
        await asyncio.wait([self._collecting], timeout=MAKE_ROOM_SECONDS)
        return time.monotonic() - self._made_room_at < MAKE_ROOM_SECONDS

    async def _collect_now(self) -> int:
        """Remove what syncs have replaced and no sandbox or shell that lives can have open; return how many trees."""
        alive = [*self._shells, self.pool.oldest_sandbox(LOCAL_USER) or time.time()]
        idle = self.pool.idle and not self._shells
        before = min(alive) - (0.0 if idle else CLOCK_SECONDS)
        removed = await self.node.collect(LOCAL_USER, int(before * 1e9))
        if removed:
            self._made_room_at = time.monotonic()
        return removed

    def _owns_path(self) -> bool:
        """Whether clients that come now come here; not so when the state directory was removed, for example."""
        try:
            return _file_id(self.settings.socket_path) == self._socket_id
        except OSError:
            return False

    def _can_leave(self) -> bool:
        """Remove the socket under the starters' lock, unless a client is just connecting."""
        if self._listener is None:
            return True
        with open(self.settings.run_directory / "daemon.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._connections:
                return False
            if self._owns_path():
                self.settings.socket_path.unlink()
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return True
            self._serve(AsyncChannel(client), Peer(LOCAL_USER))
            return False

    # --- requests ---------------------------------------------------------------------------------------------------

    async def answer(self, name: str, arguments: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
        """Answer a request of the owner's.

        Raises:
            ProtocolMismatch: there is no such request.
        """
        if name == "status":
            return await self._status()
        if name in ("stop", "drain"):
            return {}
        if name.startswith("calls."):
            await self.outputs.look()
            return await requests.handle(self.recorder, LOCAL_USER, name, arguments)
        if name.startswith("volume."):
            return await restore.handle(self, LOCAL_USER, name, arguments, progress)
        if name.startswith("environments."):
            answer: dict[str, Any] = await environments_service.handle(
                self.node.environments, name, arguments, progress
            )
            return answer
        raise errors.ProtocolMismatch(f"unknown request `{name}`", hint="upgrade the older side")

    async def _status(self) -> dict[str, Any]:
        sandboxes, workers = await self.pool.status()
        return {
            "daemon": {
                "pid": os.getpid(),
                "version": __version__,
                "started_at": self.started_at,
                "home": str(self.settings.home),
                "waiting": self.pool.waiting,
            },
            "sandboxes": sandboxes,
            "workers": workers,
        }


def _file_id(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def main() -> int:
    """Run a daemon.

    Arguments: the state directory; the descriptor of a pipe that is told when it listens or why it cannot; the
    descriptor of the starters' lock, held until it listens, also when the starter is killed meanwhile.
    """
    home, ready, lock = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # the starter may be gone
            os.write(ready, text.encode())
        os.close(ready)
        os.close(lock)

    async def run() -> None:
        daemon = Daemon(settings.load(home))
        await daemon.run(lambda: say("ready"))

    try:
        os.umask(0o077)
        asyncio.run(run())
    except Exception as error:
        known = error if isinstance(error, errors.AtollError) else None
        if known is None:
            log.exception("daemon_failed")
            known = errors.StateUnusable(
                f"the daemon cannot run: {error!r}", hint=f"see `{home / 'logs' / 'daemon.log'}`"
            )
        say(json.dumps(known.to_data()))
        return 1
    return 0
