"""Sessions that pass from a server process to the next one, by way of the node (`daemon.handover`).

A session travels as descriptors: a sealed file with its state, and its ends of the node's sockets and pipes. The state
is a line of JSON, then the bytes that it names: pieces that the client has not acknowledged, and those that the worker
has not taken. So nothing is lost or sent twice, whoever was in the middle of what.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections import deque
from typing import Any

from atoll import errors
from atoll.host import daemon_start
from atoll.server.line.outputs import TERMINAL
from atoll.server.line.session import Session
from atoll.server.line.terms import LATER_BYTES
from atoll.server.principal import Principal
from atoll.settings import Settings
from atoll.wire import sealed_file
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError
from atoll.wire.line import STDERR, STDOUT

log = logging.getLogger("atoll.lines")

VERSION = 1
MOST_BYTES = 64 << 20
"""The most of one session's state: two windows, and what one control message may have."""
SETTLE_SECONDS = 2.0
"""Seconds that sessions have to finish a step that cannot be handed over."""
NODE_SECONDS = 10.0
BATCH = 64
"""Sessions whose descriptors are duplicated at a time: the process may have few to spare."""
_PIPES = {STDOUT: "stdout", STDERR: "stderr", TERMINAL: "terminal"}


def movable(session: Session) -> bool:
    """Return whether nothing is half done: another process can go on with it."""
    control = session.control
    settled = control is None or session.over or session.control_over or control.settled
    return (
        settled and session.keeping.settled and not (session.busy or session.ended or session.early.spool is not None)
    )


def freeze(session: Session) -> None:
    """Have a session read and write no more here."""
    session.busy = True
    session.stop_timers()
    if session.task is not None:
        session.task.cancel()
    session.ends.freeze()
    if session.ends.outputs is not None:
        session.ends.outputs.hold(hold=True)


def pack(session: Session) -> dict[str, int]:
    """Return a session's descriptors by name, all of them the caller's to close.

    They are duplicates: a session that ends before they are sent frees numbers that other sockets may get.

    Raises:
        OSError: there are no more descriptors.
    """
    counts, kept = session.line.state()
    ends = session.ends
    data, outputs = ends.data, ends.outputs
    unsent = list(data.unsent) if data is not None else list(session.early.pieces)
    found: dict[str, int] = {}
    if session.control is not None and not session.over and not session.control_over:
        found["control"] = session.control.fileno()
    if data is not None and not data.closed:
        found["data"] = data.fileno()
    if outputs is not None and not session.over:
        found |= {_PIPES[channel]: descriptor for channel, descriptor in outputs.pipes.items()}
        if outputs.tape_descriptor >= 0:
            found["tape"] = outputs.tape_descriptor
    principal = session.principal
    state = {
        "version": VERSION,
        "id": session.id,
        "principal": [principal.user, principal.name, principal.key, principal.scope, principal.operator],
        "workers": principal.workers,
        "kind": session.kind,
        "expired": session.expired,
        "ends": list(found),
        "line": counts,
        "kept": [(channel, len(piece)) for channel, piece in kept],
        "unsent": [len(piece) for piece in unsent],
        "up": ends.up.state(),
        "down": ends.down.state(),
        "input_over": session.input_over,
        "over": session.over,
        "control_over": session.control_over,
        "had_data": data is not None,
        "calls": list(outputs.calls) if outputs is not None else [],
        "tape": outputs.tape_state() if outputs is not None else [],
        "counted": [ends.calls, session.bytes_up, session.bytes_down],
    }
    text = json.dumps(state).encode() + b"\n"
    with contextlib.ExitStack() as undone:
        made = {"state": sealed_file.make(text, *(piece for _, piece in kept), *unsent)}
        undone.callback(os.close, made["state"])
        for name, descriptor in found.items():
            made[name] = os.dup(descriptor)
            undone.callback(os.close, made[name])
        undone.pop_all()
    return made


def unpack(descriptors: list[int], make: Any) -> Session:
    """Return the session of another process, going on here; its descriptors are owned from here on.

    Args:
        make: returns a session of an id and a principal.

    Raises:
        ValueError, KeyError, TypeError: it is no session of this version; the descriptors are closed.
    """
    left = deque(descriptors)
    try:
        bytes_of = sealed_file.read(left[0], MOST_BYTES)
        os.close(left.popleft())
        text, _, rest = bytes_of.partition(b"\n")
        state = json.loads(text)
        if state["version"] != VERSION:
            raise ValueError(f"a session of version {state['version']}")
        if len(state["ends"]) != len(left):
            raise ValueError("a session without its ends")
        user, name, key, scope, operator = state["principal"]
        session: Session = make(state["id"], Principal(user, name, key, scope, operator, state.get("workers", 0)))
        try:
            _fill(session, state, memoryview(rest), left)
        except BaseException:
            session.end()
            raise
        return session
    finally:
        for descriptor in left:
            os.close(descriptor)


def _fill(session: Session, state: dict[str, Any], rest: memoryview, left: deque[int]) -> None:
    ends = {}
    for name in state["ends"]:
        ends[name] = left.popleft()
    at = 0
    kept: list[tuple[int, Any]] = []
    for channel, size in state["kept"]:
        kept.append((channel, bytes(rest[at : at + size])))
        at += size
    unsent = []
    for size in state["unsent"]:
        unsent.append(bytes(rest[at : at + size]))
        at += size
    session.line.restore(state["line"], kept)
    session.kind = state["kind"]
    if session.kind:
        session.line.control_bytes = LATER_BYTES
    session.over, session.control_over = state["over"], state["control_over"]
    session.input_over, session.expired = state["input_over"], state.get("expired", False)
    session.ends.up.restore(state["up"])
    session.ends.down.restore(state["down"])
    session.ends.calls, session.bytes_up, session.bytes_down = state["counted"]
    if "control" in ends:
        session.control = AsyncChannel(socket.socket(fileno=ends["control"]))
    if not state["had_data"]:
        for piece in unsent:
            session.early.keep(piece)
    elif not session.over:
        pipes = {channel: ends[name] for channel, name in _PIPES.items() if name in ends}
        session.relay(lambda: session.ends.restore(ends.get("data", -1), pipes, unsent))
        outputs = session.ends.outputs
        if outputs is not None:
            outputs.calls.extend(state["calls"])
            if "tape" in ends:
                outputs.restore_tape(ends["tape"], state["tape"])
    session.go_on()


async def give(options: Settings, sessions: list[Session]) -> int:
    """Hand sessions to the node, and end them here without a word; return how many it keeps.

    Those that cannot be handed over stay; the caller ends them.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while not all(one.ended or movable(one) for one in sessions) and time.monotonic() < deadline:  # noqa: ASYNC110 - their steps have no event
        await asyncio.sleep(0.02)
    chosen = [session for session in sessions if movable(session)]
    if not chosen:
        return 0
    for session in chosen:
        freeze(session)
    try:
        count = await _give(options, chosen)
    except (errors.AtollError, ChannelClosed, FrameError, OSError) as error:
        log.warning("lines_not_handed_over", extra={"fields": {"error": str(error)}})
        return 0
    log.info("lines_handed_over", extra={"fields": {"count": count}})
    return count


async def _give(options: Settings, sessions: list[Session]) -> int:
    channel = await asyncio.to_thread(daemon_start.control_connection, options, {"type": "handover"})
    if channel is None:
        return 0
    try:
        channel.socket.settimeout(NODE_SECONDS)
        for start in range(0, len(sessions), BATCH):
            packed = _pack_all(sessions[start : start + BATCH])
            try:
                await asyncio.to_thread(_send, channel, packed)
            finally:
                for descriptors in packed:
                    for descriptor in descriptors:
                        os.close(descriptor)
        return await asyncio.to_thread(_finish, channel)
    finally:
        channel.close()


def _pack_all(sessions: list[Session]) -> list[list[int]]:
    """Return the descriptors of those sessions that have not ended and can be packed: one that cannot costs no other."""
    packed = []
    for session in sessions:
        if session.ended:
            continue
        try:
            packed.append(list(pack(session).values()))
        except OSError as error:
            log.warning("line_not_handed_over", extra={"fields": {"error": str(error)}})
    return packed


def _send(channel: Channel, lines: list[list[int]]) -> None:
    for descriptors in lines:
        channel.send({"type": "line", "descriptors": len(descriptors)}, descriptors=descriptors)


def _finish(channel: Channel) -> int:
    channel.send({"type": "done"})
    return int(_answer(channel)["kept"])


def _answer(channel: Channel) -> dict[str, Any]:
    header = channel.receive().header
    if header.get("type") != "answer":
        raise errors.from_data(header.get("error") or {})
    value: dict[str, Any] = header["value"]
    return value


async def adopt(options: Settings, make: Any) -> int:
    """Take the sessions that the node keeps; return how many go on here."""
    try:
        lines = await asyncio.to_thread(_receive, options)
    except (errors.AtollError, ChannelClosed, FrameError, OSError) as error:
        log.warning("lines_not_adopted", extra={"fields": {"error": str(error)}})
        return 0
    count = 0
    for descriptors in lines:
        try:
            unpack(descriptors, make)
            count += 1
        except Exception:
            log.exception("line_not_adopted")
    if count:
        log.info("lines_adopted", extra={"fields": {"count": count}})
    return count


def _receive(options: Settings) -> list[list[int]]:
    channel = daemon_start.control_connection(options, {"type": "adopt"})
    if channel is None:
        return []
    found: list[list[int]] = []
    try:
        channel.socket.settimeout(NODE_SECONDS)
        while True:
            header = channel.receive().header
            if header.get("type") != "line":
                if header.get("type") != "answer":
                    raise errors.from_data(header.get("error") or {})
                return found
            found.append(channel.take_descriptors(int(header["descriptors"])))
    except BaseException:
        for descriptors in found:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        raise
    finally:
        channel.close()
