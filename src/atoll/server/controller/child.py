"""The process that speaks gRPC: started for the first connection that asks for it, and again when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from atoll import errors, process, settings

START_SECONDS = 60.0
STOP_SECONDS = 5.0
_log = logging.getLogger("atoll.server")


def is_possible() -> bool:
    """Return whether the packages of `atoll[fal]` are installed."""
    return importlib.util.find_spec("grpc") is not None and importlib.util.find_spec("google.protobuf") is not None


class Controller:
    """The child process.

    Args:
        server: path of the server's Unix socket, which the child asks.
        listen: path of the child's own one.
        log: file that takes what the child prints.
        domain: name that the server is reached by, and `api.` before it; empty for the address that it listens at.
    """

    def __init__(self, server: Path, listen: Path, log: Path, domain: str = "") -> None:
        self._options = {"server": str(server), "listen": str(listen)}
        self._described = server.parent / "server.json"
        self._domain = domain
        self._log_path = log
        self._child: process.Child | None = None
        self._orders = -1
        self._starting: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The child's process; 0 for none."""
        return self._child.pid if self._child is not None and self._child.running else 0

    async def path(self) -> str:
        """Return the socket of the child, which runs.

        Raises:
            HostUnreachable: it does not start.
        """
        if not self.pid or self._starting is not None:
            if self._starting is None:
                self._starting = asyncio.ensure_future(self._start())
                self._starting.add_done_callback(self._started)
            await asyncio.shield(self._starting)
        return self._options["listen"]

    def _addresses(self) -> dict[str, str]:
        """Return the addresses by which others reach the server, which listens by now."""
        url = str(json.loads(self._described.read_text())["url"])
        scheme, _, rest = url.partition("://")
        port = rest.rpartition(":")[2]
        if not self._domain:
            return {"url": url, "api": ""}
        shown = "" if port == ("443" if scheme == "https" else "80") else f":{port}"
        return {"url": f"{scheme}://{self._domain}{shown}", "api": f"api.{self._domain}:{port}"}

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("controller.not_started", extra={"fields": {"error": str(error)[:500]}})

    async def _start(self) -> None:
        self._close()
        loop = asyncio.get_running_loop()
        orders, self._orders = os.pipe()
        try:
            self._log_path.parent.mkdir(mode=0o700, exist_ok=True)
            with open(self._log_path, "ab", buffering=0, opener=_private) as log:  # noqa: ASYNC230 - the disk is ours
                self._child = process.Child(
                    [sys.executable, "-m", "atoll.controller", json.dumps(self._options | self._addresses())],
                    env=settings.environment_with({"PYTHONUNBUFFERED": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}),
                    stdin=orders,
                    stdout=process.PIPE,
                    stderr=log,
                )
        finally:
            os.close(orders)
        assert self._child.stdout is not None
        said = asyncio.StreamReader()
        reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), self._child.stdout)
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await said.readline()
        except TimeoutError:
            line = b""
        finally:
            reading.close()
        if not line:
            await self._child.kill()
            raise errors.HostUnreachable("the process for gRPC does not start", hint=f"see {self._log_path}")

    def _close(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """End the child with the context."""
        try:
            yield
        finally:
            if self._starting is not None:
                self._starting.cancel()
                with contextlib.suppress(asyncio.CancelledError, errors.AtollError):
                    await self._starting
            self._close()
            if self._child is not None:
                with contextlib.suppress(TimeoutError):  # the end of its input ends it
                    await asyncio.wait_for(self._child.wait(), STOP_SECONDS)
                await self._child.stop()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
