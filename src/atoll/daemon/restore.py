"""Requests about a volume that concern running functions: restore a snapshot, make room.

A restore replaces a directory under everything that has it open. So a storage peer prepares the new tree beside it
while functions run. Then no new call begins, idle sandboxes are ended, and running calls are waited for, or the restore
is refused. The peer exchanges the two trees, which takes an instant, and calls begin again, in new sandboxes. If the
exchange would have to wait for a sync, calls begin again at once, and the exchange is tried again after the sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from atoll import errors
from atoll.daemon.services import Services
from atoll.storage.protocol.connection import error_of
from atoll.storage.protocol.replies import DAEMON
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import PEER
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError, Message

DRAIN_SECONDS = 10.0
"""Seconds for idle sandboxes to end before a restore that does not wait is refused."""

ANSWERED_SECONDS = 0.5
"""Seconds for which a call may still seem to run after its caller has the answer."""

ABORT_SECONDS = 10.0
"""Seconds for a peer to remove the prepared tree; otherwise the next peer removes it."""


def refused_inside() -> errors.VolumeBusy:
    """Return why a function cannot restore its volume."""
    return errors.VolumeBusy(
        "a function cannot restore the volume that it sees: its own sandbox is running",
        hint="restore from the program itself, or with `atoll data restore`",
    )


async def handle(
    services: Services, user: str, name: str, arguments: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Answer a request.

    - `volume.restore` (`name`; `wait`): puts a snapshot's tree in its directory's place; gives `kept`, the name of the
      snapshot of the tree before, None where nothing was.
    - `volume.make_room`: removes now the trees that syncs have replaced; gives `made`, whether there were any.

    Raises:
        SnapshotError: there is no such snapshot, or it is just being removed.
        VolumeBusy: calls run and `wait` is not set; or another restore is under way, a daemon of another version, or
            another machine that shares the volume has sandboxes.
        DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it; nothing has changed.
    """
    if name == "volume.make_room":
        return {"made": await services.housekeeping.make_room(user)}
    snapshot, wait = arguments.get("name"), arguments.get("wait", False)
    if name != "volume.restore":
        raise errors.ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer start")
    if not isinstance(snapshot, str) or not isinstance(wait, bool):
        raise ValueError("`name` must be text, and `wait` true or false")
    return {"kept": await _restore(services, user, snapshot, wait, progress)}


async def _restore(services: Services, user: str, name: str, wait: bool, progress: Callable[[str], None]) -> str | None:
    _refuse_if_shared(services)
    if not wait:
        await _refuse_if_busy(services, user)
    started, told = time.monotonic(), list[str]()

    async def busy() -> None:
        if not wait:
            await _refuse_if_busy(services, user, late=time.monotonic() - started > DRAIN_SECONDS)
        elif not told:
            told.extend(_described(call) for call in await _running(services, user))
            for line in told:
                progress(f"waiting for {line}")

    async with services.node.storage_peers.open(user, client=DAEMON) as descriptor:
        channel = AsyncChannel(socket.socket(fileno=os.dup(descriptor)), PEER)
        committed = False
        try:
            await _send(channel, {"type": "restore", "name": name})
            while not committed:
                await _answer(channel, name, ("ready",), progress)
                started = time.monotonic()
                async with services.engine.quiet(user, busy), contextlib.AsyncExitStack() as held:
                    while services.housekeeping.open_shells(user):
                        await busy()
                        await asyncio.sleep(0.1)
                    _refuse_if_shared(services)
                    await services.joined.holds.clear_elsewhere(user)
                    await held.enter_async_context(services.node.data.presence.alone(user))
                    # An exchange that has begun is finished, also when the client goes away.
                    committed = True
                    exchange = asyncio.ensure_future(_exchange(channel, name, progress))
                    try:
                        committed, kept = await asyncio.shield(exchange)
                    except asyncio.CancelledError:
                        await asyncio.gather(exchange, return_exceptions=True)
                        raise
                if not committed:  # a sync has begun meanwhile: functions do not wait for it
                    await _send(channel, {"type": "again"})
            await _answer(channel, name, ("done",), progress)
        except BaseException:
            if not committed:
                with contextlib.suppress(errors.AtollError, ChannelClosed, TimeoutError, OSError):
                    await asyncio.wait_for(_abort(channel), ABORT_SECONDS)
            raise
        finally:
            channel.close()
    return kept


async def _abort(channel: AsyncChannel) -> None:
    """Have the peer remove the prepared tree."""
    await channel.send({"type": "abort"})
    while (await channel.receive()).type not in ("done", "error"):
        pass


async def _exchange(channel: AsyncChannel, name: str, progress: Callable[[str], None]) -> tuple[bool, str | None]:
    """Have the peer exchange the trees; return whether it has, and the name of the snapshot that keeps the old one."""
    await _send(channel, {"type": "commit"})
    answer = await _answer(channel, name, ("restored", "busy"), progress)
    kept = answer.header.get("kept")
    return answer.type == "restored", kept if isinstance(kept, str) else None


async def _send(channel: AsyncChannel, message: dict[str, Any]) -> None:
    try:
        await channel.send(message)
    except ChannelClosed as error:  # the peer's: for the client's channel this would be the end of the client
        raise _lost() from error


def _lost() -> errors.InternalError:
    return errors.InternalError("the storage peer ended before it answered", hint="see `atoll logs`")


async def _answer(
    channel: AsyncChannel, name: str, wanted: tuple[str, ...], progress: Callable[[str], None]
) -> Message:
    while True:
        try:
            message = await channel.receive()
        except (ChannelClosed, FrameError) as error:
            raise _lost() from error
        if message.type == "waiting":
            progress("waiting for a sync")
        elif message.type == "error":
            refusal = error_of(message)
            if isinstance(refusal, errors.AtollError):
                raise refusal
            text = f"cannot restore `{name}`: {str(refusal).lower()}"
            raise errors.SyncError(text, hint="look at the files at its path")
        elif message.type in wanted:
            return message
        else:
            raise errors.InternalError(f"the storage peer sent `{message.type}`", hint="see `atoll logs`")


async def _running(services: Services, user: str) -> list[dict[str, str]]:
    shells = [{"call": "", "function": "a shell"} for _ in range(services.housekeeping.open_shells(user))]
    calls = await services.engine.running(user)
    return [*({"call": one.call, "function": one.function} for one in calls), *shells]


def _refuse_if_shared(services: Services) -> None:
    """Refuse while a daemon of another version has sandboxes: only that daemon knows their calls."""
    if services.node.storage_peers.used_by_others():
        raise errors.VolumeBusy(
            "the daemon of another version of Atoll still runs functions",
            hint="try again when its calls have ended; it leaves then by itself",
        )


async def _refuse_if_busy(services: Services, user: str, *, late: bool = False) -> None:
    until = time.monotonic() + ANSWERED_SECONDS
    while (calls := await _running(services, user)) and time.monotonic() < until:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)
    if calls:
        shown = ", ".join(map(_described, calls[:5])) + (f" and {len(calls) - 5} more" if len(calls) > 5 else "")
        raise errors.VolumeBusy(
            f"the volume cannot be restored while functions use it: {shown}",
            hint="wait for them (`--wait`, `wait=True`), or cancel them; `atoll status` shows them",
            calls=calls,
        )
    if late:
        raise errors.VolumeBusy("sandboxes that use the volume do not end", hint="try again, or see `atoll status`")


def _described(call: dict[str, str]) -> str:
    return f"call `{call['call']}` of `{call['function']}`" if call["call"] else call["function"] or "a call"
