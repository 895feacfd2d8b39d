"""Requests about calls, those that are not over included: rows, cancellation, output as it comes.

Names and JSON-compatible data in, data out. An administrator sees and cancels the calls of all users, and
lists the own ones unless all are asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from atoll import errors
from atoll.daemon.detached import views
from atoll.daemon.leasing import Caller, check_owner
from atoll.daemon.records import requests as records
from atoll.daemon.running_calls import WaitingCall, running_row
from atoll.daemon.services import Services
from atoll.engine.agent_requests import check_command
from atoll.engine.contract import RunningCall

EARLIER_END_SECONDS = 2.0
"""The same for a call that runs under the daemon before this one, whose keeper looks now and then."""
END_SECONDS = 1.0
"""Seconds to wait for the end of a call that was cancelled, before the answer; it may have a longer grace."""


async def handle(services: Services, caller: Caller, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Perform a request, one of these or of `daemon.records.requests`.

    - `calls.running` (`all`: of all users; the default for administrators): gives `calls`, a row for each call that waits,
      whose environment is built, or that runs.
    - `calls.list` as in `daemon.records.requests`, for administrators with `all`, or with the id of a `user`.
    - `calls.show` and `calls.output` (`call` as below; `seen` bytes) of a call that is not over: its row in `unfinished`,
      with `printed_bytes` and `output`, what it has printed behind those bytes as far as that is kept.
    - `calls.cancel` (`call`, an id or its beginning; also of a batch, whose `state` is `batch`, with `calls`): gives `call`, `function`, `state` that it was in, `seconds` since
      that began, `grace_seconds` that it has to end, and `ended`, whether it has.

    - `calls.stacks` (`call`): gives the row of a call that runs, with `text`: the stacks of its worker, from itself.

    Raises:
        ValueError: an argument has the wrong type.
        ResourcesUnavailable: no call that can be cancelled, or more than one, has an id that begins so.
        StateUnusable: the records cannot be read.
    """
    if name == "calls.running":
        everybody = arguments.get("all", caller.may_administer) is True
        calls = await rows(services, caller)
        return {"calls": calls if everybody else [row for row in calls if row["user"] == caller.user]}
    if name == "calls.cancel":
        return await _cancel(services, caller, arguments.get("call"))
    if name == "calls.stacks":
        call = await find_running(services, caller, arguments.get("call"))
        return {**running_row(call), "text": await services.engine.inside.stacks(call)}
    await services.outputs.look()
    if name in {"calls.show", "calls.output"}:
        found = await find(services, caller, arguments.get("call"))
        if found is not None:
            return await _unfinished(services, found, arguments.get("seen", 0))
        return await _recorded(services, caller, name, arguments)
    whose = _asked_for(caller, arguments) if name == "calls.list" else caller.user
    return await records.handle(services.recorder, whose, name, arguments)


def _asked_for(caller: Caller, arguments: dict[str, Any]) -> str | None:
    """Return the user whose calls a list shall have; None for everybody's.

    Raises:
        ValueError: an argument has the wrong type.
        ResourcesUnavailable: the caller sees the own calls alone.
    """
    everybody, user = arguments.get("all", False), arguments.get("user", "")
    if not isinstance(everybody, bool) or not isinstance(user, str):
        raise ValueError("`all` is a boolean, and `user` the id of a user")
    if everybody or user not in {"", caller.user}:
        check_owner(caller, "see calls of others")
    return user or (None if everybody else caller.user)


async def rows(services: Services, caller: Caller) -> list[dict[str, Any]]:
    """Return a row for each call that is not over and that the caller sees; those that run first."""
    found = await services.running_calls.rows(_seen_by(caller))
    return await views.merged(services.detached, caller.user, found)


async def _recorded(services: Services, caller: Caller, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer about a call that is over, or a detached one that waits; no worker has reported some of these."""
    row = await views.find(services.detached, caller.user, arguments["call"])
    if row is not None and row.state != "finished":
        return await views.unfinished(services.detached, row)
    try:
        return await records.handle(services.recorder, caller.user, name, arguments)
    except errors.ResourcesUnavailable:
        if row is not None:
            return await views.over(services.detached, row)
        if not caller.may_administer:
            raise
        return await records.handle(services.recorder, None, name, arguments)


def _seen_by(caller: Caller) -> str | None:
    return None if caller.may_administer else caller.user


async def find(
    services: Services, caller: Caller, start: Any, *, own: bool = False
) -> RunningCall | WaitingCall | None:
    """Return the call that is not over and whose id is `start` or begins so; None where there is none.

    Args:
        own: of the caller alone, administrators too.

    Raises:
        ValueError: it cannot be an id.
        ResourcesUnavailable: more than one has such an id, or it is empty.
    """
    if start == "":  # a variable of a shell that is not set, and no older client
        raise errors.ResourcesUnavailable(
            "an empty id names no call", hint="give 4 characters or more of an id; see `atoll calls list --running`"
        )
    records.check_start(start)
    user = caller.user if own else _seen_by(caller)
    running = await services.running_calls.running(user)
    calls: list[RunningCall | WaitingCall] = [*running, *services.running_calls.waiting(user, running)]
    found = [one for one in calls if one.call == start]
    if not found and len(start) >= records.LEAST_CHARACTERS:
        found = [one for one in calls if one.call.startswith(start)]
    if found:
        records.check_one(start, {one.call: one.function for one in found})
    return found[0] if found else None


async def find_running(services: Services, caller: Caller, start: Any, *, own: bool = False) -> RunningCall:
    """Return the call that runs and whose id is `start` or begins so.

    Args:
        own: see `find`.

    Raises:
        ValueError: it cannot be an id.
        ResourcesUnavailable: none that runs has such an id, or more than one.
    """
    found = await find(services, caller, start, own=own)
    if isinstance(found, RunningCall):
        return found
    if found is not None:
        raise errors.ResourcesUnavailable(f"call `{found.call}` has no worker yet", hint="try again when it runs")
    raise errors.ResourcesUnavailable(
        f"no call that runs has an id that begins with `{start}`", hint="see `atoll calls list --running`"
    )


async def execute(
    services: Services,
    caller: Caller,
    message: dict[str, Any],
    descriptors: Sequence[int],
    on_start: Callable[[], None],
) -> int:
    """Run a command in the sandbox of a running call; return its exit status.

    An operator of a server sees the calls of others, and never what is in their sandboxes.

    Args:
        message: the client's, with `call`, the words of `command`, and `terminal`.

    Raises:
        ValueError, ResourcesUnavailable: as `find_running` and `contract.Inside.execute`.
    """
    command = check_command(message.get("command"))
    call = await find_running(services, caller, message.get("call"), own=caller.remote)
    terminal = message.get("terminal") is True
    return await services.engine.inside.execute(call, command, descriptors, terminal=terminal, on_start=on_start)


async def _unfinished(services: Services, call: RunningCall | WaitingCall, seen: Any) -> dict[str, Any]:
    if type(seen) is not int or seen < 0:
        raise ValueError("`seen` must be a number of bytes")
    row = call.row() if isinstance(call, WaitingCall) else running_row(call)
    printed, new = 0, b""
    if isinstance(call, RunningCall):
        user, worker = call.user, call.worker
        printed, tail = await records.output_of(services.recorder, user, call.call, worker)
        new = tail[len(tail) - min(max(printed - seen, 0), len(tail)) :]
        incomplete = _incomplete(new)
        new, printed = new[: len(new) - incomplete], printed - incomplete
    answer = {**row, "printed_bytes": printed, "output": new.decode("utf-8", "replace")}
    return {"calls": [], "children": [], "unfinished": [answer]}


def _incomplete(text: bytes) -> int:
    """Return how many bytes at the end of a text are the beginning of a character whose rest is still to come."""
    for count in range(1, min(len(text), 3) + 1):
        first = text[-count]
        if first & 0xC0 != 0x80:
            return count if first >= 0xC0 and count < (2 if first < 0xE0 else 3 if first < 0xF0 else 4) else 0
    return 0


async def _cancel(services: Services, caller: Caller, start: Any) -> dict[str, Any]:
    found = await find(services, caller, start)
    row = await views.find(services.detached, caller.user, found.call if found is not None else start)
    if row is not None and await views.cancelled(services.detached, row) and found is None:
        since = row.started_at if row.state == "running" else row.queued_at
        answer = {"call": row.call, "function": row.function, "state": row.state, "grace_seconds": 0.0}
        ended = row.state != "running" or await views.ends(services.detached, row, EARLIER_END_SECONDS)
        earlier = services.detached.blocked and not ended
        return {**answer, "seconds": max(time.time() - since, 0.0), "ended": ended, "earlier": earlier}
    if found is None and row is None:
        batch = await views.cancel_batch(services.detached, caller.user, start)
        if batch is not None:
            return batch
    if found is None:
        over = (await records.find(services.recorder, caller.user, start))[-1]
        raise errors.ResourcesUnavailable(
            f"call `{over.call}` of `{over.function}` is over: {over.outcome}", hint="there is nothing to cancel"
        )
    answer = {
        "call": found.call,
        "function": found.function,
        "seconds": max(time.time() - found.since, 0.0),
        "grace_seconds": 0.0,
        "ended": True,
    }
    if isinstance(found, WaitingCall):
        found.cancel()
        return {**answer, "state": "building" if found.building else "waiting"}
    services.engine.cancel_call(found)
    await asyncio.wait([found.lease.ended], timeout=END_SECONDS)
    return {
        **answer,
        "state": "running",
        "grace_seconds": found.lease.spec.grace_seconds,
        "ended": found.lease.ended.done(),
    }
