"""Deliveries to webhooks: each is made until it is taken, ten times within two hours, whatever happens to the server.

Theory of operation. A delivery is a row that the transaction of what it tells has added. An attempt's failure is noted with
the moment of the next one; a server that is killed before it has noted makes the attempt again. So a receiver may be told
twice, and never not at all. Few deliveries of one user are under way at a time: a slow receiver holds up its own alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from atoll import errors
from atoll.model.options.queue import WebhooksSettings
from atoll.server.database.database import Database
from atoll.server.endpoints.exchange import Exchange
from atoll.server.process.background import in_background
from atoll.server.webhooks import rows
from atoll.server.webhooks.rows import Webhook
from atoll.server.webhooks.signing import Signer
from atoll.server.webhooks.targets import Target, networks, resolve

RESTS = (5.0, 15.0, 45.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 2400.0)
"""Seconds after each attempt that has failed; ten attempts in less than two hours."""
AT_A_TIME, OF_USER = 64, 8
"""Deliveries that are under way: all, and of one user."""
ANSWER_BYTES = 64 << 10
"""The most of a receiver's answer that is read, before its connection is closed."""
LOOK_SECONDS = 60.0
log = logging.getLogger("atoll.webhooks")


class Deliveries:
    """The deliveries of a server."""

    def __init__(self, database: Database, signer: Signer, options: WebhooksSettings) -> None:
        self._database, self._signer, self._options = database, signer, options
        self._allowed = networks(options.allowed_networks)
        self._context = ssl.create_default_context()
        self._changed = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._users: Counter[str] = Counter()
        self.payload: Callable[[str], Awaitable[bytes | None]]
        """Returns the body for an id; None where there is nothing to tell any more."""

    def wake(self) -> None:
        """Look at once: a delivery has been added."""
        self._changed.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Deliver while the context is open."""
        try:
            async with in_background(self._look):
                yield
        finally:
            for task in tuple(self._tasks.values()):
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self._changed.clear()
            seconds = await self._start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    async def _start(self) -> float:
        """Start deliveries that are due; return the seconds until the next one is."""
        busy = [user for user, count in self._users.items() if count >= OF_USER]
        free = AT_A_TIME - len(self._tasks)
        if free <= 0:
            return LOOK_SECONDS  # the end of one wakes
        ask = partial(rows.due, without=list(self._tasks), users=busy, most=free)
        for one in await self._database.run(ask, writes=False):
            seconds = one.next - time.time()
            if seconds > 0:
                return min(seconds, LOOK_SECONDS)
            if self._users[one.user] < OF_USER:
                self._users[one.user] += 1
                task = self._tasks[one.id] = asyncio.ensure_future(self._deliver(one))
                task.add_done_callback(partial(self._over, one))
        return LOOK_SECONDS

    def _over(self, webhook: Webhook, task: asyncio.Task[None]) -> None:
        del self._tasks[webhook.id]
        self._users[webhook.user] -= 1
        if not self._users[webhook.user]:
            del self._users[webhook.user]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook_crashed", exc_info=error)
        self._changed.set()

    async def _deliver(self, webhook: Webhook) -> None:
        """Make an attempt, and note what has come of it."""
        error = ""
        try:
            body = await self.payload(webhook.id)
            if body is None:
                await self._database.run(partial(rows.remove, names=[webhook.id]))
                return
            async with asyncio.timeout(self._options.seconds):
                target = await resolve(webhook.user, webhook.url, self._allowed)
                status = await self._send(target, webhook, body)
            if status // 100 != 2:
                error = f"the receiver has answered {status}"
        except TimeoutError:
            error = f"the receiver did not answer within {self._options.seconds:g} s"
        except errors.AtollError as failure:
            error = failure.message
        except (OSError, UnicodeError) as failure:
            error = f"the receiver cannot be reached: {type(failure).__name__}"
        attempts = webhook.attempts + 1
        again = time.time() + RESTS[attempts - 1] if error and attempts <= len(RESTS) else None
        await self._database.run(partial(rows.note, name=webhook.id, attempts=attempts, error=error, again=again))
        if error:
            fields = {"request": webhook.id, "attempts": attempts, "error": error[:300], "again": again is not None}
            log.warning("webhook_failed", extra={"fields": fields})

    async def _send(self, target: Target, webhook: Webhook, body: bytes) -> int:
        """Send a delivery to an address that has been checked, and return the status of the answer."""
        headers = [
            ("host", target.named),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("user-agent", "atoll-webhooks"),
            ("connection", "close"),
            *self._signer.headers(webhook.id, webhook.user, int(time.time()), body),
        ]
        lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        loop, secure = asyncio.get_running_loop(), target.secure
        context, name = (self._context, target.host) if secure else (None, None)
        _, exchange = await loop.create_connection(
            Exchange, target.address, target.port, ssl=context, server_hostname=name
        )
        try:
            status: int = (await exchange.ask(head, _pieces(body)))[0]
            taken = 0
            async for piece in exchange.pieces():
                taken += len(piece)
                if taken > ANSWER_BYTES:
                    break
            return status
        finally:
            exchange.close()


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for first in range(0, len(body), 64 << 10):
        yield body[first : first + (64 << 10)]
