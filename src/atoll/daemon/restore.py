"""What a client may ask of the daemon about its volume, because it concerns the functions that see it.

A restore replaces a directory under everything that has it open. So it is prepared beside it first, by a storage peer
and while functions run; then no new call begins, idle sandboxes are ended, and those that run are waited for, or the
restore is refused; then the peer exchanges the two, which takes no time; then calls begin again, in new sandboxes. Where a sync has begun
that the exchange would have to wait for, calls begin again at once, and it is tried once more after the sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.storage.protocol.connection import error_of
from atoll.storage.protocol.replies import DAEMON
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import Message

if TYPE_CHECKING:
    from atoll.daemon.main import Daemon

DRAIN_SECONDS = 10.0
"""How long idle sandboxes may take to end before a restore that does not wait is refused."""


ANSWERED_SECONDS = 0.5
"""How long a call that its caller has the answer of may still be seen to run."""
ABORT_SECONDS = 10.0
"""How long a peer may take to remove what it has prepared; if it takes longer, the next one does."""


def refused_inside() -> errors.VolumeBusy:
    """Return why a function cannot restore its volume."""
    return errors.VolumeBusy(
        "a function cannot restore the volume that it sees: its own sandbox is running",
        hint="restore from the program itself, or with `atoll data restore`",
    )


async def handle(
    daemon: Daemon, user: str, name: str, arguments: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Do what a request asks.

    - `volume.restore` (`name`; `wait`): puts a snapshot's tree where its directory is; gives `kept`, the name of the
      snapshot of what was there, None where nothing was.
    - `volume.make_room`: removes now what is else removed at leisure; gives `made`, whether there was any.

    Raises:
        SnapshotError: there is no such snapshot, or it is just being removed.
        VolumeBusy: calls run and `wait` is not set; or another restore is under way, or a daemon of another version.
        DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it; nothing has changed.
    """
    if name == "volume.make_room":
        return {"made": await daemon.make_room()}
    snapshot, wait = arguments.get("name"), arguments.get("wait", False)
    if name != "volume.restore":
        raise errors.ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer start")
    if not isinstance(snapshot, str) or not isinstance(wait, bool):
        raise ValueError("`name` must be text, and `wait` true or false")
    return {"kept": await _restore(daemon, user, snapshot, wait, progress)}


async def _restore(daemon: Daemon, user: str, name: str, wait: bool, progress: Callable[[str], None]) -> str | None:
    _refuse_if_shared(daemon)
    if not wait:
        await _refuse_if_busy(daemon, user)
    started, told = time.monotonic(), list[str]()

    async def busy() -> None:
        if not wait:
            await _refuse_if_busy(daemon, user, late=time.monotonic() - started > DRAIN_SECONDS)
        elif not told:
            told.extend(_described(call) for call in await _running(daemon, user))
            for line in told:
                progress(f"waiting for {line}")

    async with daemon.node.open_storage(user, client=DAEMON) as descriptor:
        channel = AsyncChannel(socket.socket(fileno=os.dup(descriptor)))
        committed = False
        try:
            await channel.send({"type": "restore", "name": name})
            while not committed:
                await _answer(channel, name, ("ready",), progress)
                started = time.monotonic()
                async with daemon.pool.quiet(user, busy):
                    while daemon.open_shells:
                        await busy()
                        await asyncio.sleep(0.1)
                    _refuse_if_shared(daemon)
                    # What has begun is finished, also when who asked for it goes away.
                    committed = True
                    exchange = asyncio.ensure_future(_exchange(channel, name, progress))
                    try:
                        committed, kept = await asyncio.shield(exchange)
                    except asyncio.CancelledError:
                        await asyncio.gather(exchange, return_exceptions=True)
                        raise
                if not committed:  # a sync has begun meanwhile: functions do not wait for it
                    await channel.send({"type": "again"})
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
    """Have the peer remove what it has prepared."""
    await channel.send({"type": "abort"})
    while (await channel.receive()).type not in ("done", "error"):
        pass


async def _exchange(channel: AsyncChannel, name: str, progress: Callable[[str], None]) -> tuple[bool, str | None]:
    """Have the peer exchange; return whether it has, and the name of what is kept."""
    await channel.send({"type": "commit"})
    answer = await _answer(channel, name, ("restored", "busy"), progress)
    kept = answer.header.get("kept")
    return answer.type == "restored", kept if isinstance(kept, str) else None


async def _answer(
    channel: AsyncChannel, name: str, wanted: tuple[str, ...], progress: Callable[[str], None]
) -> Message:
    while True:
        try:
            message = await channel.receive()
        except ChannelClosed as error:
            raise errors.InternalError("the storage peer ended before it answered", hint="see `atoll logs`") from error
        if message.type == "waiting":
            progress("waiting for a sync")
        elif message.type == "error":
            refusal = error_of(message)
            if isinstance(refusal, errors.AtollError):
                raise refusal
            text = f"cannot restore `{name}`: {str(refusal).lower()}"
            raise errors.SyncError(text, hint="see what stands at its path now")
        elif message.type in wanted:
            return message
        else:
            raise errors.InternalError(f"the storage peer said `{message.type}`", hint="see `atoll logs`")


async def _running(daemon: Daemon, user: str) -> list[dict[str, str]]:
    shells = [{"call": "", "function": "a shell"} for _ in range(daemon.open_shells)]
    return [*await daemon.pool.running(user), *shells]


def _refuse_if_shared(daemon: Daemon) -> None:
    """Refuse while another daemon has sandboxes: which calls run in them only that one knows."""
    if daemon.node.used_by_others():
        raise errors.VolumeBusy(
            "the daemon of another version of Atoll still runs functions",
            hint="try again when its calls have ended; it leaves then by itself",
        )


async def _refuse_if_busy(daemon: Daemon, user: str, *, late: bool = False) -> None:
    until = time.monotonic() + ANSWERED_SECONDS
    while (calls := await _running(daemon, user)) and time.monotonic() < until:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)
    if calls:
        shown = ", ".join(map(_described, calls[:5])) + (f" and {len(calls) - 5} more" if len(calls) > 5 else "")
        raise errors.VolumeBusy(
            f"the volume cannot be restored while functions use it: {shown}",
            hint="wait for them (`--wait`, `wait=True`), or cancel them; `atoll status` shows what runs",
            calls=calls,
        )
    if late:
        raise errors.VolumeBusy("sandboxes that use the volume do not end", hint="try again, or see `atoll status`")


def _described(call: dict[str, str]) -> str:
    return f"call `{call['call']}` of `{call['function']}`" if call["call"] else call["function"] or "a call"
