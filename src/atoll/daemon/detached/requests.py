"""Clients' requests about detached calls: names and JSON-compatible data in, data and at most one descriptor out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from atoll import errors
from atoll.daemon.detached import queues
from atoll.daemon.detached.calls import Detached
from atoll.daemon.detached.shown import placed, shown
from atoll.detached.batches import batches as batches_of
from atoll.detached.batches import cancel_some, finished, held_by
from atoll.detached.bundles import Bundle
from atoll.detached.files import new_name
from atoll.detached.rows import OWNER, STATES, Row
from atoll.detached.store import MOST_LISTED, Store
from atoll.model.spool import MOST_CALLS, Spool, is_id, modules_digest
from atoll.wire import sealed_file
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed

MOST_WAIT_SECONDS = 3600.0
MOST_ITEMS = 500
MOST_BATCHES = 10_000
MOST_WAITING, SHARE = 100_000, 4
"""Calls without an outcome of one user of a server, and the part of the disk for detached calls that one may take."""
PIECE_BYTES = 1 << 20
SETTLE_SECONDS = 0.05
"""Seconds between two answers about a batch whose items end one after the other."""

LOOK_SECONDS = 5.0
"""Between two looks at the store: the keeper of a daemon that is being replaced wakes nobody here."""

Answer = tuple[dict[str, Any], int | None]


async def send(channel: AsyncChannel, answer: Answer) -> None:
    """Send an answer, and close its file."""
    value, descriptor = answer
    descriptors = [] if descriptor is None else [descriptor]
    try:
        await channel.send({"type": "answer", "value": value, "descriptors": len(descriptors)}, descriptors)
    finally:
        for one in descriptors:
            os.close(one)


async def handle(detached: Detached, user: str, name: str, arguments: dict[str, Any], channel: AsyncChannel) -> Answer:
    """Perform a request.

    - `detached.accept`: with a sealed file, a spool (`model.spool`), named `spool`; gives `calls`, the ids of the first
      `MOST_ITEMS`.
    - `detached.accepted` (`spool`): gives `calls`, an id if this spool was accepted.
    - `detached.show` (`call`): gives `call`, the row, with its `position` where it waits.
    - `detached.list` (`batch`, `deployed`, `states`, `limit` if given): gives `calls`, the rows, newest first.
    - `detached.batches` (`start`, `limit` if given): gives `batches` whose ids begin so, newest first, with their counts.
    - `detached.items` (`batch`, `kind`, `after`): gives `calls`, some rows of a batch; see `Store.items`.
    - `detached.wait` (`call`, `revision`, `seconds`): as `show`, when the row has another revision or time is up.
    - `detached.counts` (`batch`; `revision`, `seconds` if given): gives `counts` by state or outcome, when so many more
      than `revision` calls are finished, or time is up.
    - `detached.result`, `detached.output` (`call`): as `show`, with a descriptor to read from where there is a file.
    - `detached.cancel` (`call` or `batch`): gives `calls`, how many had no outcome.
    - `detached.renew` (`batch`; `spool`, if there is a sealed file with a new function, else `request`, an id): has items
      that failed made again; gives `calls`, how many, and the same for the same spool or request.
    - `detached.queues`, `detached.flush`: see `queues`.
    - `detached.forget` (`call` or `batch`): removes finished calls; gives `calls`, how many.

    `call` may be the beginning of an id.

    Args:
        channel: has the descriptors that came with the request.

    Raises:
        ValueError: an argument has the wrong type.
        CallUnknown: this user has no such call.
        DetachedFull, DiskFull, StateUnusable: as the store.
    """
    take, verb = channel.take_descriptors, name.partition(".")[2]
    if detached.leaving and verb in ("accept", "renew"):
        raise ChannelClosed("another daemon takes this one's place")  # the client asks that one
    if verb == "accepted":
        whose = user, _id(arguments, "spool")
        rows = await detached.ask(lambda store: store.rows("WHERE user = ? AND request = ? LIMIT 1", whose), user)
        return {"calls": [row.call for row in rows]}, None
    if verb == "accept":
        return await _accept(detached, user, _id(arguments, "spool"), take(1)[0]), None
    if verb == "list":
        states, of = arguments.get("states", []), {name: arguments.get(name, "") for name in ("batch", "deployed")}
        if not isinstance(states, list) or not set(states) <= set(STATES) or not all(map(_is_text, of.values())):
            raise ValueError(f"`states` must be some of {', '.join(STATES)}, and `batch` and `deployed` texts")
        limit = arguments.get("limit", MOST_LISTED)
        if type(limit) is not int or not 0 <= limit <= MOST_LISTED:
            raise ValueError(f"`limit` must be a number from 0 to {MOST_LISTED}")
        rows = await detached.ask(lambda store: store.listed(user, **of, states=states, limit=limit), user)
        return {"calls": [shown(detached, row) for row in rows]}, None
    if verb == "batches":
        start, most = arguments.get("start", ""), arguments.get("limit", MOST_BATCHES)
        if not isinstance(start, str) or type(most) is not int or not 0 <= most <= MOST_BATCHES:
            raise ValueError(f"`batches` has a text `start` and a `limit` from 0 to {MOST_BATCHES}")
        batches = await detached.ask(lambda store: batches_of(store, user, start, most), user)
        return {"batches": [one.to_data() for one in batches]}, None
    if verb == "items":
        kind, after = str(arguments.get("kind")), arguments.get("after")
        if kind not in ("all", "failed", "ended") or type(after) is not int:
            raise ValueError("`items` has a `kind` and a number `after`")
        batch = _id(arguments, "batch")
        rows = await detached.ask(lambda store: store.items(user, batch, kind, after, MOST_ITEMS), user)
        return {"calls": [shown(detached, row) for row in rows]}, None
    if verb in ("queues", "flush"):
        return await queues.handle(detached, user, verb, arguments), None
    if verb == "counts":
        return await _counts(detached, user, arguments), None
    if verb == "renew":
        return {"calls": await _renew(detached, user, arguments, take)}, None
    if verb in ("cancel", "forget"):
        return {"calls": await _cancel_or_forget(detached, user, verb, arguments)}, None
    if verb == "wait":
        return {"call": await placed(detached, await _wait(detached, user, arguments))}, None
    if verb in ("show", "result", "output"):
        row = await _find(detached, user, arguments)
        folder = {"result": "results", "output": "outputs"}.get(verb)
        descriptor = None
        if folder is not None:
            descriptor = await detached.ask(lambda store: store.files.open(folder, row.call), user)
        return {"call": await placed(detached, row)}, descriptor
    raise errors.ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer start")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _id(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not is_id(value):
        raise ValueError(f"`{name}` must be an id, or the beginning of one")
    return str(value)


async def _find(detached: Detached, user: str, arguments: dict[str, Any]) -> Row:
    start = arguments.get("call")
    if not isinstance(start, str) or not start or len(start) > 200:
        raise ValueError("`call` must be an id or its beginning")
    return await detached.ask(lambda store: store.find(user, start), user)


async def _cancel_or_forget(detached: Detached, user: str, verb: str, arguments: dict[str, Any]) -> int:
    if not arguments.get("batch"):
        row = await _find(detached, user, arguments)
        if verb == "cancel":
            return await cancel(detached, row)
        return await detached.ask(lambda store: store.forget([row]), user)
    batch = _id(arguments, "batch")
    if not await detached.ask(lambda store: store.counts(user, batch), user):
        raise _no_batch(batch)
    return await detached.whole((_cancel_batch if verb == "cancel" else _forget_batch)(detached, user, batch))


def _no_batch(batch: str) -> errors.CallUnknown:
    return errors.CallUnknown(f"no batch has the id `{batch}`", hint="see `atoll calls list`; old ones expire")


# --- accept -----------------------------------------------------------------------------------------------------------


async def _accept(detached: Detached, user: str, spool: str, descriptor: int) -> dict[str, Any]:
    try:
        calls = await detached.ask(
            lambda store: _keep(store, user, spool, descriptor, detached.options.detached.max_bytes), user
        )
    finally:
        os.close(descriptor)
    detached.look()
    return {"calls": calls[:MOST_ITEMS]}


def _keep(store: Store, user: str, name: str, descriptor: int, most_bytes: int) -> list[str]:
    """Keep the calls of a spool; return their ids."""
    spool, like, bundle = _read(user, name, descriptor)
    if not spool.calls:
        raise ValueError("the spool has no calls")
    share = partial(_check_share, store, like, len(spool.calls), most_bytes // SHARE)
    now = time.time()
    rows = [
        replace(
            like,
            call=one.call,
            batch=spool.batch,
            number=place,
            place=place,
            queued_at=min(one.at, now) if one.at > 0 else now,
            spool_bytes=0 if place else like.spool_bytes,
        )
        for place, one in enumerate(spool.calls)
    ]
    store.accept(rows, partial(_copy, descriptor, 0, like.spool_bytes), like.spool_bytes, bundle, share)
    return [row.call for row in rows]


def _check_share(store: Store, like: Row, calls: int, most_bytes: int) -> None:
    """Refuse a user of a server more than their share of detached calls.

    Raises:
        DetachedFull: they have as many, or as large ones, as they may.
    """
    if like.user == OWNER:
        return
    size_bytes = like.spool_bytes + like.bundle_bytes
    waiting, held = held_by(store, like.user)
    if waiting + calls > MOST_WAITING or held + size_bytes > most_bytes:
        raise errors.DetachedFull(
            f"this user's {waiting} detached calls without an outcome, and all files of theirs with {held >> 20} MiB, leave "
            f"no room for {calls} more with {size_bytes >> 20} MiB: a user has {MOST_WAITING} calls and {most_bytes >> 20} MiB",
            hint="wait for earlier calls, or remove results with `atoll calls forget`",
        )


def _read(user: str, name: str, descriptor: int) -> tuple[Spool, Row, Bundle | None]:
    """Return a spool that a client has sent, a row of its function, and its modules."""
    size = sealed_file.size_of(descriptor)
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        spool = Spool.from_file(file)
        if spool.size_bytes + spool.modules_bytes != size or (spool.batch and not is_id(spool.batch)):
            raise ValueError("the spool has another size than it says")
        spec = spool.template(file).spec
        bundle = _bundle(spool, file, descriptor) if spool.modules_digest else None
    rule = spool.retries
    like = Row(
        "",
        user,
        spool.function,
        spool=new_name(),
        request=name,
        identity=spec.identity,
        max_concurrency=spec.max_concurrency,
        results=spool.results,
        stream=int(spool.stream),
        retries=Row.rule_text(rule) if rule.count else "",
        on_done=spool.on_done if user == OWNER else "",  # the command that tells is the owner's
        spool_bytes=spool.size_bytes,
        bundle=spool.modules_digest,
        bundle_bytes=spool.modules_bytes,
        deployed=spool.deployed,
    )
    return spool, like, bundle


def _bundle(spool: Spool, file: BinaryIO, descriptor: int) -> Bundle:
    """Return the modules of a spool; their name is their digest, so that no file has others than it says."""
    start, size = spool.size_bytes, spool.modules_bytes
    file.seek(start)
    if modules_digest(iter(partial(file.read, PIECE_BYTES), b"")) != spool.modules_digest:
        raise ValueError("the spool has other modules than it says")
    return Bundle(spool.modules_digest, size, partial(_copy, descriptor, start, start + size))


def _copy(descriptor: int, start: int, end: int, file: BinaryIO) -> None:
    sealed_file.copy(descriptor, file.fileno(), start, end)


async def _renew(detached: Detached, user: str, arguments: dict[str, Any], take: Callable[[int], list[int]]) -> int:
    """Have items of a batch that failed made again, by another function where the client has sent one."""
    batch = _id(arguments, "batch")
    if arguments.get("spool"):
        name, (descriptor,) = _id(arguments, "spool"), take(1)
        most_bytes = detached.options.detached.max_bytes
        try:
            _, like, bundle = await detached.ask(lambda _: _read(user, name, descriptor), user)
            fill = partial(_copy, descriptor, 0, like.spool_bytes)
            renewed = await detached.ask(lambda store: _renew_by(store, batch, like, fill, bundle, most_bytes), user)
        finally:
            os.close(descriptor)
    else:
        request = _id(arguments, "request") if "request" in arguments else ""
        renewed = await detached.ask(lambda store: store.renew(user, batch, request=request), user)
    if renewed:
        detached.look()
        detached.wake_all()
    return renewed


def _renew_by(
    store: Store, batch: str, like: Row, fill: Callable[[BinaryIO], None], bundle: Bundle | None, most_bytes: int
) -> int:
    _check_share(store, like, 0, most_bytes // SHARE)
    return store.renew(like.user, batch, like, fill, bundle)


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
            counts = await detached.ask(lambda store: store.counts(user, batch), user)
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


# --- ends -------------------------------------------------------------------------------------------------------------


async def cancel(detached: Detached, row: Row) -> int:
    """Cancel a call, waiting or running, also where the client ends; return 1, or 0 for one that had its outcome."""
    if row.state == "finished":
        return 0

    def end(store: Store) -> tuple[list[Row], list[Row]]:
        ended = store.cancel_all([row.call])
        return ended, [] if ended else store.rows("WHERE call = ?", (row.call,))  # it has begun since it was read

    async def work() -> int:
        _told(detached, row.batch, *await detached.ask(end, row.user))
        return 1

    return await detached.whole(work())


async def cancel_batch(detached: Detached, user: str, batch: str) -> int:
    """Cancel a batch, also where the client ends; return how many calls had no outcome."""
    return await detached.whole(_cancel_batch(detached, user, batch))


async def _cancel_batch(detached: Detached, user: str, batch: str) -> int:
    below, count = MOST_CALLS + 1, 0
    while below:
        began = time.monotonic()
        some = partial(cancel_some, user=user, batch=batch, below=below)
        ended, running, below = await detached.ask(some, user)
        _told(detached, batch, ended, running)
        count += len(ended) + len(running)
        await asyncio.sleep(time.monotonic() - began)  # half of the store's time is others'
    return count


def _told(detached: Detached, batch: str, ended: Sequence[Row], running: Sequence[Row]) -> None:
    """Tell the keeper, and those who wait, of calls that were cancelled."""
    for row in ended:
        detached.record(row)
    detached.cancel([*ended, *running])
    detached.wake(batch, *(row.call for row in (*ended, *running)))


async def _forget_batch(detached: Detached, user: str, batch: str) -> int:
    after, count = -1, 0
    while True:
        began = time.monotonic()
        rows = await detached.ask(partial(finished, user=user, batch=batch, after=after), user)
        if not rows:
            return count
        after = rows[-1].number
        count += await detached.ask(partial(Store.forget, rows=rows), user)
        await asyncio.sleep(time.monotonic() - began)
