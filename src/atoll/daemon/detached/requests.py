"""Clients' requests about detached calls: names and JSON-compatible data in, data and at most one descriptor out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO

from atoll import errors
from atoll.daemon.detached.calls import Detached
from atoll.detached.rows import STATES, Row
from atoll.detached.store import MOST_LISTED, Store
from atoll.model.spool import Spool, is_id
from atoll.wire import sealed_file

MOST_WAIT_SECONDS = 3600.0
SETTLE_SECONDS = 0.05
"""Seconds between two answers about a batch whose items end one after the other."""

LOOK_SECONDS = 5.0
"""Between two looks at the store: the keeper of a daemon that is being replaced wakes nobody here."""

Answer = tuple[dict[str, Any], int | None]


async def handle(
    detached: Detached, user: str, name: str, arguments: dict[str, Any], take: Callable[[int], list[int]]
) -> Answer:
    """Perform a request.

    - `detached.accept`: with a sealed file, a spool (`model.spool`), named `spool`; gives `calls`, their ids.
    - `detached.show` (`call`): gives `call`, the row.
    - `detached.list` (`states`, `batch`, `limit` if given): gives `calls`, the rows.
    - `detached.wait` (`call`, `revision`, `seconds`): as `show`, when the row has another revision or time is up.
    - `detached.counts` (`batch`; `revision`, `seconds` if given): gives `counts` by state or outcome, when so many more
      than `revision` calls are finished, or time is up.
    - `detached.result`, `detached.output` (`call`): as `show`, with a descriptor to read from where there is a file.
    - `detached.cancel` (`call` or `batch`): gives `calls`, how many had no outcome.
    - `detached.renew` (`batch`): has items that failed made again; gives `calls`, how many.
    - `detached.forget` (`call` or `batch`): removes finished calls; gives `calls`, how many.

    `call` may be the beginning of an id.

    Args:
        take: takes descriptors that came with the request.

    Raises:
        ValueError: an argument has the wrong type.
        CallUnknown: this user has no such call.
        DetachedFull, DiskFull, StateUnusable: as the store.
    """
    verb = name.partition(".")[2]
    if verb == "accept":
        return await _accept(detached, user, _id(arguments, "spool"), take(1)[0]), None
    if verb == "list":
        states = arguments.get("states", [])
        if not isinstance(states, list) or not set(states) <= set(STATES):
            raise ValueError(f"`states` must be some of {', '.join(STATES)}")
        limit = arguments.get("limit", MOST_LISTED)
        if type(limit) is not int or not 0 <= limit <= MOST_LISTED:
            raise ValueError(f"`limit` must be a number from 0 to {MOST_LISTED}")
        batch = _id(arguments, "batch") if arguments.get("batch") else ""
        rows = await detached.ask(lambda store: store.list(user, batch=batch, states=states, limit=limit))
        return {"calls": [_shown(detached, row) for row in rows]}, None
    if verb == "counts":
        return await _counts(detached, user, arguments), None
    if verb == "renew":
        batch = _id(arguments, "batch")
        renewed = await detached.ask(lambda store: store.renew(user, batch))
        if renewed:
            detached.look()
            detached.wake_all()
        return {"calls": renewed}, None
    if verb in ("cancel", "forget"):
        rows = await _named(detached, user, arguments)
        count = await (_cancel(detached, rows) if verb == "cancel" else detached.ask(lambda store: store.forget(rows)))
        return {"calls": count}, None
    if verb == "wait":
        return {"call": _shown(detached, await _wait(detached, user, arguments))}, None
    if verb in ("show", "result", "output"):
        row = await _find(detached, user, arguments)
        kind = {"result": "results", "output": "outputs"}.get(verb)
        descriptor = None
        if kind is not None:
            descriptor = await detached.ask(lambda store: store.files.open(kind, row.call))
        return {"call": _shown(detached, row)}, descriptor
    raise errors.ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer start")


def _id(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not is_id(value):
        raise ValueError(f"`{name}` must be an id, or the beginning of one")
    return str(value)


async def _find(detached: Detached, user: str, arguments: dict[str, Any]) -> Row:
    start = arguments.get("call")
    if not isinstance(start, str) or not start or len(start) > 200:
        raise ValueError("`call` must be an id or its beginning")
    return await detached.ask(lambda store: store.find(user, start))


async def _named(detached: Detached, user: str, arguments: dict[str, Any]) -> list[Row]:
    if not arguments.get("batch"):
        return [await _find(detached, user, arguments)]
    batch = _id(arguments, "batch")
    rows = await detached.ask(lambda store: store.list(user, batch=batch))
    if not rows:
        raise _no_batch(batch)
    return rows


def _no_batch(batch: str) -> errors.CallUnknown:
    return errors.CallUnknown(f"no batch has the id `{batch}`", hint="see `atoll calls list`; old ones expire")


def _shown(detached: Detached, row: Row) -> dict[str, Any]:
    state, line = detached.waits.get(row.call, ("", ""))
    shown = row.to_data()
    if row.state == "waiting" and state == "building":
        shown["state"] = state
    return {**shown, "detail": line, "detached": True}


async def running_rows(detached: Detached, user: str) -> list[dict[str, Any]]:
    """Return a user's calls without an outcome, as clients see them; none where nobody has made a detached call."""
    if not detached.busy:
        return []
    rows = await detached.ask(lambda store: store.list(user, states=("waiting", "running")))
    return [_shown(detached, row) for row in rows]


# --- accept -----------------------------------------------------------------------------------------------------------


async def _accept(detached: Detached, user: str, spool: str, descriptor: int) -> dict[str, Any]:
    try:
        calls = await detached.ask(lambda store: _keep(store, user, spool, descriptor))
    finally:
        os.close(descriptor)
    detached.look()
    return {"calls": calls}


def _keep(store: Store, user: str, name: str, descriptor: int) -> list[str]:
    """Keep the calls of a spool; return their ids."""
    size = sealed_file.size_of(descriptor)
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        spool = Spool.from_file(file)
        if spool.size_bytes != size or (spool.batch and not is_id(spool.batch)):
            raise ValueError("the spool has another size than it says")
        spec = spool.template(file).spec
    now = time.time()
    rule = spool.retries
    retries = Row.rule_text(rule) if rule.count else ""
    rows = [
        Row(
            one.call,
            user,
            spool.function,
            spool.batch,
            place,
            name,
            place,
            spec.identity,
            spec.max_concurrency,
            spool.results,
            int(spool.stream),
            retries,
            queued_at=min(one.at, now) if one.at > 0 else now,
            spool_bytes=0 if place else size,
        )
        for place, one in enumerate(spool.calls)
    ]

    def fill(file: BinaryIO) -> None:
        sealed_file.copy(descriptor, file.fileno())

    store.accept(rows, fill, size)
    return [row.call for row in rows]


# --- waits ------------------------------------------------------------------------------------------------------------


def _bound(arguments: dict[str, Any]) -> tuple[int, float]:
    revision, seconds = arguments.get("revision", -1), arguments.get("seconds", 0.0)
    if type(revision) is not int or isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError("`revision` and `seconds` must be numbers")
    return revision, min(max(float(seconds), 0.0), MOST_WAIT_SECONDS)


async def _wait(detached: Detached, user: str, arguments: dict[str, Any]) -> Row:
    revision, seconds = _bound(arguments)
    deadline = time.monotonic() + seconds
    row = await _find(detached, user, arguments)
    while True:
        waiter = detached.waiter(row.call)
        try:
            row = await _find(detached, user, {"call": row.call})
            left = deadline - time.monotonic()
            if row.revision != revision or left <= 0:
                return row
            await asyncio.wait({waiter}, timeout=min(left, LOOK_SECONDS))
        finally:
            waiter.cancel()


async def _counts(detached: Detached, user: str, arguments: dict[str, Any]) -> dict[str, Any]:
    batch = _id(arguments, "batch")
    revision, seconds = _bound(arguments)
    deadline = time.monotonic() + seconds
    while True:
        waiter = detached.waiter(batch)
        try:
            counts = await detached.ask(lambda store: store.counts(user, batch))
            if not counts:
                raise _no_batch(batch)
            finished = sum(counts.values()) - sum(counts.get(state, 0) for state in ("waiting", "running"))
            left = deadline - time.monotonic()
            if finished != revision or left <= 0:
                return {"counts": counts, "finished": finished}
            await asyncio.wait({waiter}, timeout=min(left, LOOK_SECONDS))
        finally:
            waiter.cancel()
        await asyncio.sleep(min(SETTLE_SECONDS, max(deadline - time.monotonic(), 0.0)))


async def _cancel(detached: Detached, rows: Sequence[Row]) -> int:
    """Cancel calls, waiting and running ones; return how many had no outcome."""
    count = 0
    for row in rows:
        if row.state == "finished":
            continue
        count += 1
        await detached.ask(partial(Store.cancel_waiting, call=row.call))
        detached.cancel(row.call)
        detached.wake(row.call, row.batch)
    return count
