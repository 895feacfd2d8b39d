"""Apps that are served as long as a client listens: `fal run` of an app.

Theory of operation. The function becomes a revision without an alias, so nobody finds it who was not told its address. The
client is told that, and then what the runners print. When the client goes, the runners are ended and the revision is removed.
What a server that was killed has left, the next one removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from typing import Any

from atoll import errors
from atoll.controller import applications
from atoll.controller.callers import Caller
from atoll.controller.logs import Lines, entry
from atoll.controller.messages import PRIVATE, STDOUT, USER

LOOK_SECONDS = 0.5
LOOKS = 4
"""Looks at the output for each one at the state of the runners."""
IDLE_SECONDS = 3600
"""Seconds for which a runner without requests is kept, at least: an app is there as long as somebody looks at it."""


class _Output:
    """The output of an app's runners, as far as it has been told."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._lines: dict[str, Lines] = {}

    @property
    def query(self) -> str:
        """The part of an address that leaves out what was told."""
        return "&".join(f"seen={call}:{count}" for call, count in self._seen.items())

    def take(self, found: dict[str, Any]) -> list[Any]:
        """Return log entries of what is new."""
        entries = []
        for one in found["runners"]:
            lines = self._lines.setdefault(one["call"], Lines())
            new = lines.take(one["output"].encode("utf-8", "replace"))
            if one["state"] == "finished":
                new += lines.rest()
            self._seen[one["call"]] = one["printed_bytes"]
            entries += [entry(line, USER, STDOUT) for line in new]
        return entries


async def served(request: Any, caller: Caller, service: Any) -> AsyncGenerator[dict[str, Any], None]:
    """Serve the function of a message; yield fields of answers until nobody listens.

    Raises:
        CallerError: the app does not start.
    """
    blocking = service.callers.blocking
    auth = request.auth_mode if request.HasField("auth_mode") else PRIVATE
    made = await blocking(_registered, request, caller, service, auth)
    try:
        yield {"service_urls": applications.urls(service, made["path"])}
        output, place = _Output(), f"/v1/revisions/{made['id']}/logs"
        begun = asyncio.ensure_future(blocking(_begin, caller, made["path"]))
        try:
            for look in itertools.count():
                found = await blocking(caller.ask, "GET", f"{place}?{output.query}")
                if entries := output.take(found):
                    yield {"logs": entries}
                if begun.done() and look % LOOKS == 0 and (error := await blocking(_failure, caller, made["id"])):
                    raise errors.CallerError(f"the app does not start: {error}", hint="see its output above")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            begun.cancel()
            with contextlib.suppress(BaseException):
                await begun
    finally:
        await asyncio.shield(blocking(_remove, caller, made["id"]))


def _registered(request: Any, caller: Caller, service: Any, auth: int) -> dict[str, Any]:
    machine = request.machine_requirements
    machine.keep_alive = max(machine.keep_alive, IDLE_SECONDS)
    machine.ClearField("min_concurrency")
    return applications.registered(request, caller, service, auth, ephemeral=True)


def _begin(caller: Caller, path: str) -> None:
    """Have the first runner start; an app need not answer what it is asked."""
    with contextlib.suppress(errors.AtollError):
        caller.ask("GET", f"{path}/health")


def _failure(caller: Caller, revision: str) -> str:
    """Return the reason that runners do not start; empty where they do."""
    found = caller.ask("GET", "/v1/revisions")["revisions"]
    failing = next((one["failing"] for one in found if one["id"] == revision), None)
    return str(failing["error"]) if failing else ""


def _remove(caller: Caller, revision: str) -> None:
    """End the runners of a revision, and remove it."""
    with contextlib.suppress(errors.AtollError):
        caller.ask("DELETE", f"/v1/revisions/{revision}")
    with contextlib.suppress(errors.AtollError):
        for runner in applications.runners_of(caller, {revision}):
            applications.stop(caller, runner["call"])
