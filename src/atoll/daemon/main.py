"""The daemon's process: started by the first call, listens on a Unix socket only, leaves when it has been idle.

Theory of operation. A starter holds `run/daemon.lock`, so that of ten scripts one starts the daemon. The daemon binds
its socket under a temporary name and renames it, so that a path which exists can be connected to. It tells its starter
over a pipe that it is ready, or why it cannot be. To leave, it takes the same lock, removes the socket, and looks once
more for clients that came in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from atoll import __version__, errors, settings
from atoll.daemon import request_arguments
from atoll.daemon.control import Connection
from atoll.daemon.leasing import Caller, owner
from atoll.daemon.services import Services
from atoll.detached.rows import OWNER
from atoll.engine.accounts import Opener
from atoll.sandbox.limits import descriptors
from atoll.settings import Settings
from atoll.terminal_text import printable
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import NESTED
from atoll.wire.channel import short_name

log = logging.getLogger("atoll.daemon")


class Daemon:
    """One running daemon.

    Args:
        options: the state directory and its options.
        caller: user and rights of every client of the socket.
    """

    def __init__(self, options: Settings, caller: Caller) -> None:
        self._settings = options
        self._caller = caller
        self._services = Services(options, self._serve_nested, self._serve_keeper)
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._left = asyncio.Event()
        self._busy_until = time.monotonic()

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen until told to stop or idle for long enough; then end everything that was started."""
        self._listen()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._left.set)
        tasks = [asyncio.ensure_future(self._accept()), asyncio.ensure_future(self._watch_idle())]
        self._services.start()
        log.info("daemon_started version=%s pid=%s", __version__, os.getpid())
        ready()
        self._services.prepare()
        try:
            await self._left.wait()
        finally:
            self._stop_listening()
            for task in tasks:
                task.cancel()
            await self._services.close_engine()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*tasks, *self._connections, return_exceptions=True)
            await self._services.close()
            log.info("daemon_left pid=%s", os.getpid())

    def leave(self, at_once: bool) -> None:
        """End now, or take no new clients and end with the last one."""
        if at_once:
            self._left.set()
        else:
            self._stop_listening()
            self._services.detached.leave(at_once=False)
            self._busy_until = 0.0

    # --- the socket -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        path = self._settings.socket_path
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
        state = {"pid": os.getpid(), "version": __version__, "started_at": self._services.started_at}
        (self._settings.run_directory / "daemon.json").write_text(json.dumps(state))

    def _stop_listening(self) -> None:
        """Remove the socket, if it is still this daemon's."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        path = self._settings.socket_path
        with contextlib.suppress(OSError):
            if self._owns_path():
                path.unlink()
                (self._settings.run_directory / "daemon.json").unlink(missing_ok=True)
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
            self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        """Serve a client of this daemon's own uid or of root: the caller's rights are for no others."""
        channel = AsyncChannel(client)
        if channel.peer_uid() in (os.getuid(), 0):
            self._serve(channel, self._caller)
        else:
            log.warning("client_refused uid=%s", channel.peer_uid())
            channel.close()

    def _serve(self, channel: AsyncChannel, caller: Caller) -> asyncio.Task[None]:
        connection = Connection(self._services, channel, caller, self.leave)
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        return task

    def _serve_keeper(self, connection: socket.socket) -> None:
        self._serve(AsyncChannel(connection), replace(self._caller, keeps=True))

    async def _serve_nested(self, connection: socket.socket, opener: Opener) -> None:
        channel = AsyncChannel(connection, NESTED, opener.pace)
        channel.bound_descriptors(0)
        channel.reserve(lambda size: self._services.request_bytes.take(opener, size))
        await self._serve(channel, Caller(opener.user, opener.worker, sandbox=opener.sandbox))

    # --- leaving when idle ------------------------------------------------------------------------------------------

    async def _watch_idle(self) -> None:
        while True:
            await asyncio.sleep(self._services.look_seconds)
            now = time.monotonic()
            if self._listener is not None and not self._owns_path():
                self.leave(at_once=False)
            if self._connections or self._services.detached.busy or not self._services.engine.idle:
                if self._listener is not None:
                    self._busy_until = now
            elif now - self._busy_until >= self._idle_seconds() and self._can_leave():
                self._left.set()
                return

    def _idle_seconds(self) -> float:
        """Return how long it stays with nothing to do; not at all when changed options wait for a restart."""
        services = self._services
        return 0.0 if services.settings_watch.pending else services.settings.pool.daemon_idle_seconds

    def _owns_path(self) -> bool:
        """Return whether new clients reach this daemon; False after the state directory was removed, for example."""
        try:
            return _file_id(self._settings.socket_path) == self._socket_id
        except OSError:
            return False

    def _can_leave(self) -> bool:
        """Remove the socket under the starters' lock, unless a client is just connecting."""
        if self._listener is None:
            return True
        with open(self._settings.run_directory / "daemon.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._connections or self._services.detached.busy:
                return False
            if self._owns_path():
                self._settings.socket_path.unlink()
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return True
            self._admit(client)
            return False


class _LogFormat(logging.Formatter):
    """One line for each event: names and messages from sandboxes cannot forge another."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def _file_id(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def main() -> int:
    """Run the daemon of the machine's one local user.

    Arguments: the state directory; the descriptor of a pipe that is told when it listens or why it cannot; the
    descriptor of the starters' lock, held until it listens, also when the starter is killed meanwhile.
    """
    home, ready, lock = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(_LogFormat("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[logs])

    def report(text: str) -> None:
        with contextlib.suppress(OSError):  # the starter may be gone
            os.write(ready, text.encode())
        os.close(ready)
        os.close(lock)

    def begin() -> None:
        report("ready")
        gc.freeze()  # the modules stay: no collection looks at them again
        gc.enable()  # the starter has turned it off for the imports

    async def run() -> None:
        options = settings.load(home)
        settings.check_state(options)
        await Daemon(options, owner(OWNER)).run(begin)

    try:
        os.umask(0o077)
        sys.set_int_max_str_digits(request_arguments.MOST_DIGITS)
        descriptors.raise_own()
        asyncio.run(run())
    except Exception as error:
        known = error if isinstance(error, errors.AtollError) else None
        if known is None:
            log.exception("daemon_failed")
            known = errors.StateUnusable(
                f"the daemon cannot run: {error!r}", hint=f"see `{home / 'logs' / 'daemon.log'}`"
            )
        report(json.dumps(known.to_data()))
        return 1
    return 0
