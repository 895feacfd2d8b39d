"""The queue of a server: what is asked is on the disk before its answer, and each request ends once.

Theory of operation. Durable are a request and its end; that it runs is known in memory alone, so a server that is killed
runs it again, and the end is one transaction that nobody can make twice. Requests that must not be repeated are marked
before they are sent: the next server ends those with a reason. Runners outlive the server; what they answer to a dead one
is lost with the connection, and the request is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from atoll import errors
from atoll.model.options.queue import QueueSettings
from atoll.server.database.database import Database
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.process.background import in_background
from atoll.server.queue import cancelling, rows
from atoll.server.queue.attempt import Attempted, attempted, failed
from atoll.server.queue.files import ANSWER, BODY, INLINE_BYTES, Files
from atoll.server.queue.heads import Head
from atoll.server.queue.keeping import Keeping
from atoll.server.queue.lines import Line, rest_seconds
from atoll.server.queue.logs import Outputs
from atoll.server.queue.order import OVER, RUNNING, WAITING, Entries, Entry
from atoll.server.queue.rows import Known, Outcome
from atoll.server.queue.writer import Fenced, Writer, raise_fence

CACHED_BYTES = 64 << 20
"""Bytes of small bodies that wait in memory, too."""
MOST_RECENT = 4096
"""Requests that are over and whose facts are remembered."""
LATE_SECONDS = 0.3
"""Seconds in which the rest of an output comes after the answer."""
log = logging.getLogger("atoll.queue")
Place = Callable[[str, str], Any]


class Queue:
    """Requests to endpoints that wait, run and are over.

    Args:
        place: returns the revision of an endpoint and its runners; raises `CallerError` with the status 404 for none.
        told: is called when somebody is to be told of an answer.
    """

    def __init__(
        self, database: Database, directory: Path, options: QueueSettings, place: Place, told: Callable[[], None]
    ) -> None:
        self.database, self.options = database, options
        self._directory, self._place, self._told = directory, place, told
        self.entries = Entries()
        self.files = Files(directory)
        self._lines: dict[tuple[str, str], Line] = {}
        self._numbers = itertools.count()
        self._cached = 0
        self._recent: OrderedDict[str, Known] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_closed = False
        self._outputs = Outputs()
        self.writer: Writer
        self.keeping: Keeping

    # --- beginning and end --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self.writer = Writer(self.database, await self.database.run(raise_fence))
        self.keeping = Keeping(self.database, self.writer, self.files, self.options, self._recent)
        await self._load()
        try:
            async with in_background(self.keeping.look):
                yield
        finally:
            self.is_closed = True
            for entry in self.entries.values():
                entry.stop_timer()
                entry.tell()
            await asyncio.gather(*(line.close() for line in tuple(self._lines.values())))
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.writer.close()
            self.files.close()
            self._outputs.close()

    async def _load(self) -> None:
        found = await self.database.run(rows.open_ones, writes=False)
        for row in found:
            entry = Entry(
                row.id,
                row.owner,
                row.name,
                row.alias,
                row.caller,
                row.priority,
                row.submitted,
                row.deadline,
                row.no_retry,
            )
            self.entries[entry.id] = entry
            entry.order = next(self._numbers)
            if row.cancelled:
                self._spawn(self._finish(entry, cancelling.OUTCOME))
            elif row.state == rows.CLAIMED:
                text = "the server ended while the request ran, and it is not to be repeated"
                self._spawn(self._finish(entry, failed(503, "runner_disconnected", text).outcome))
            else:
                self._await(entry)
        if found:
            log.info("queue_loaded", extra={"fields": {"requests": len(found)}})

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- submit -------------------------------------------------------------------------------------------------------

    async def submit(self, entry: Entry, head: Head, body: bytes | None, more: dict[str, Any]) -> str:
        """Add a request, and return its id: of the one before, where the same caller has used its idempotency key.

        Args:
            body: None for one that is a file already.
            more: `idempotency`, `digest`, `url`.

        Raises:
            CallerError: too many wait, or the key was used for another body.
            QuotaExceeded: there is no room.
        """
        line = self.line(entry)
        await self.keeping.reserve(entry.owner, entry.body_bytes)
        entry.submitted, entry.has_url = time.time(), bool(more["url"])
        values = {
            **{name: getattr(entry, name) for name in _COLUMNS},
            "head": msgspec.json.encode(head).decode(),
            "body": body,
            **more,
        }
        line.expected += 1
        try:
            known, digest = await self.writer.do(partial(rows.add, values=values))
        finally:
            line.expected -= 1
        if known != entry.id:
            if digest != more["digest"]:
                text = "this idempotency key was used for another body"
                raise errors.CallerError(text, hint="use a fresh key for each request", status=422)
            return known
        if body is not None and self._cached + len(body) <= CACHED_BYTES:
            entry.head, entry.body = head, body
            self._cached += len(body)
        entry.order = next(self._numbers)
        self.entries[entry.id] = entry
        self._await(entry)
        return entry.id

    def line(self, entry: Entry) -> Line:
        """Return the line of a request's endpoint."""
        key = entry.owner, entry.alias
        found = self._lines.get(key)
        if found is None:
            found = self._lines[key] = Line(entry.owner, entry.alias, self, self._idle)
        return found

    def _idle(self, line: Line) -> None:
        key = line.owner, line.alias
        if not line.expected and self._lines.get(key) is line:
            del self._lines[key]

    def size(self, owner: str, alias: str) -> int:
        """Return how many wait for an endpoint."""
        line = self._lines.get((owner, alias))
        return 0 if line is None else len(line.order) + line.expected

    def sizes(self) -> dict[tuple[str, str], int]:
        """Return how many wait in each line, by owner and alias."""
        return {name: len(line.order) + line.expected for name, line in self._lines.items()}

    def _await(self, entry: Entry) -> None:
        """Let a request wait for its turn, until its deadline."""
        entry.state = WAITING
        if entry.deadline:
            late = partial(self._late, entry)
            entry.timer = asyncio.get_running_loop().call_later(max(entry.deadline - time.time(), 0), late)
        self.line(entry).add(entry)

    def _late(self, entry: Entry) -> None:
        if entry.state == WAITING and self.line(entry).order.remove(entry):
            entry.state = OVER
            headers = (("x-fal-request-timeout-type", "user"),)
            made = failed(504, "request_timeout", "the request did not start in time", headers=headers)
            self._spawn(self._finish(entry, made.outcome))

    # --- attempts: what lines ask ---------------------------------------------------------------------------------------

    async def place(self, owner: str, alias: str) -> tuple[Revision, Pool]:
        """Return the revision of an endpoint now, and its runners."""
        found: tuple[Revision, Pool] = await self._place(owner, alias)
        return found

    async def attempt(self, entry: Entry, pool: Pool, runner: Runner) -> Attempted | None:
        """Make an attempt for a request; None for one that may not be made."""
        entry.stop_timer()
        entry.deadline = 0.0
        entry.attempt = str(uuid4()) if entry.attempts else entry.id
        entry.state, entry.began, entry.place = RUNNING, time.monotonic(), (pool, runner)
        entry.tell()
        try:
            entry.job = asyncio.ensure_future(self._attempt(entry, pool, runner))
            try:
                return await entry.job
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if entry.cancelled and (task is None or not task.cancelling()):
                    return Attempted(cancelling.OUTCOME)
                entry.job.cancel()
                raise
        finally:
            entry.job, entry.place = None, None

    async def _attempt(self, entry: Entry, pool: Pool, runner: Runner) -> Attempted:
        try:
            if entry.no_retry and not await self.writer.do(
                partial(rows.claim, request=entry.id, attempt=entry.attempt)
            ):
                return failed(503, "runner_scheduling_failure", "the request was sent already")
            if entry.head is None:
                found = await self.database.run(partial(rows.content, request=entry.id), writes=False)
                if found is None:
                    return failed(404, "bad_request", "the request is gone")
                entry.head, body, entry.body_bytes = found
            else:
                body = entry.body
        except errors.AtollError as error:
            return failed(503, "internal_error", error.message, again=not isinstance(error, Fenced))
        asked = entry.head.asked(entry.id, entry.caller)
        entry.printed_before = await self._outputs.size(runner)
        entry.began, entry.moment = time.monotonic(), time.time()
        size, most = entry.body_bytes, self.options.answer_bytes
        made = await attempted(pool, runner, asked, body, size, self.files, most)
        pool.figures.note(made.outcome.seconds, made.outcome.status, time.monotonic())
        if entry.cancelled:
            return Attempted(cancelling.OUTCOME)
        logs = await self._outputs.since(runner, entry.printed_before, entry.moment)
        self._spawn(self._late_logs(entry, runner, len(logs)))
        return replace(made, outcome=replace(made.outcome, logs=logs))

    async def _late_logs(self, entry: Entry, runner: Runner, count: int) -> None:
        """Keep what comes from a runner's pipe after the answer that it belongs to."""
        before, moment, attempt = entry.printed_before, entry.moment, entry.attempt
        await asyncio.sleep(LATE_SECONDS)
        logs = await self._outputs.since(runner, before, moment, again=True)
        if len(logs) > count:
            with contextlib.suppress(errors.AtollError):  # a disk that takes nothing now
                await self.writer.do(partial(rows.set_logs, request=entry.id, attempt=attempt, logs=logs))
            self._recent.pop(entry.id, None)

    async def settle(self, entry: Entry, made: Attempted) -> None:
        """Keep the answer of a request, or let it wait for another attempt."""
        entry.attempts += 1
        if made.again and not entry.no_retry and not entry.cancelled and entry.attempts < self.options.attempts:
            entry.state = WAITING
            entry.tell()
            seconds = rest_seconds(entry.attempts)
            entry.timer = asyncio.get_running_loop().call_later(seconds, lambda: self.line(entry).add(entry))
            return
        await self._finish(entry, cancelling.OUTCOME if entry.cancelled else made.outcome)

    async def refuse(self, entry: Entry, error: errors.AtollError) -> None:
        """Note that no runner can be had for a request; end it after too many attempts."""
        status = error.details.get("status")
        entry.attempts += 1
        last = status == 404 or entry.no_retry or entry.attempts >= self.options.attempts
        if not last or entry.state != WAITING or not self.line(entry).order.remove(entry):
            return
        entry.state = OVER
        if status == 404:
            made = failed(404, "bad_request", "the endpoint does not exist any more")
        elif status == 504:
            made = failed(504, "startup_timeout", error.message)
        else:
            made = failed(503, "runner_scheduling_failure", error.message)
        await self._finish(entry, made.outcome)

    # --- ends -----------------------------------------------------------------------------------------------------------

    async def _finish(self, entry: Entry, outcome: Outcome) -> bool:
        """End a request; return whether it is this end that counts. What the disk refuses is tried until it takes it."""
        act = partial(rows.finish, request=entry.id, attempt=entry.attempt, outcome=outcome)
        for attempt in itertools.count(1):
            try:
                counts = await self.writer.do(act)
                break
            except Fenced:
                return False
            except Exception as error:
                log.exception("queue_cannot_finish", extra={"fields": {"request": entry.id, "error": str(error)[:300]}})
                await asyncio.sleep(rest_seconds(attempt))
        self._forget(entry, outcome if counts else None)
        self.keeping.changed(entry.owner, -entry.body_bytes + (outcome.size if counts else 0))
        if entry.body_bytes > INLINE_BYTES:
            await self.files.remove([entry.id], BODY)
        if not counts:
            await self.files.remove([entry.id], ANSWER)
        return counts

    def _forget(self, entry: Entry, outcome: Outcome | None) -> None:
        if entry.head is not None and entry.body is not None:
            self._cached -= len(entry.body)
        entry.head = entry.body = None
        entry.state = OVER
        entry.stop_timer()
        self.entries.end(entry.id)
        if outcome is not None:
            self._remember(
                rows.known(entry.id, (entry.owner, entry.owner_name, entry.alias, entry.caller), entry.attempt, outcome)
            )
            if entry.has_url:
                self._told()
        entry.tell()

    def _remember(self, known: Known) -> None:
        self._recent[known.id] = known
        while len(self._recent) > MOST_RECENT:
            self._recent.popitem(last=False)

    async def cancel(self, entry: Entry) -> bool:
        """Cancel a request; return whether it was not over."""
        if entry.state == WAITING:
            self.line(entry).order.remove(entry)
            entry.state = OVER
            entry.stop_timer()
            return await self._finish(entry, cancelling.OUTCOME)
        if entry.state == OVER or not await self.writer.do(partial(rows.mark_cancelled, request=entry.id)):
            return False
        if not entry.cancelled:
            entry.cancelled = True
            self._spawn(cancelling.stop(entry))
        return True

    async def flush(self, owner: str, alias: str, caller: str = "") -> int:
        """Cancel all requests that wait for an endpoint, of one caller where that is given; return their number."""
        wanted = [
            one
            for one in tuple(self.entries.values())
            if (one.owner, one.alias) == (owner, alias) and one.state == WAITING and caller in ("", one.caller)
        ]
        return sum(await asyncio.gather(*(self.cancel(one) for one in wanted)))

    # --- what is known --------------------------------------------------------------------------------------------------

    async def find(self, request: str) -> Entry | Known | None:
        """Return a request: an entry while it is not over."""
        found: Entry | Known | None = self.entries.get(request) or self._recent.get(request)
        if found is None:
            found = await self.database.run(partial(rows.find, request=request), writes=False)
            if found is not None and found.state == rows.OVER:
                self._remember(found)
        return found

    def position(self, entry: Entry) -> int:
        """Return how many are before a request that waits."""
        line = self._lines.get((entry.owner, entry.alias))
        return 0 if line is None else line.order.position(entry)

    async def logs(self, entry: Entry) -> list[dict[str, str]]:
        """Return what has been printed since a request runs."""
        return (
            [] if entry.place is None else await self._outputs.since(entry.place[1], entry.printed_before, entry.moment)
        )

    async def answer(self, known: Known) -> bytes | None:
        """Return the body of an answer; None for one that is a file."""
        return await self.database.run(partial(rows.answer, request=known.id), writes=False)


_COLUMNS = ("id", "owner", "alias", "caller", "priority", "submitted", "deadline", "no_retry", "body_bytes")
