"""Calls: what the clients call with `Run`, as calls of Atoll's whose messages come one by one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from atoll import errors
from atoll.controller import environments
from atoll.controller.callers import Caller
from atoll.controller.logs import CallLogs
from atoll.host import index_settings
from atoll.host.contract import Ticket
from atoll.model.specs import LeaseSpec
from atoll.sdk.call import Prepared, Request
from atoll.sdk.decorator import isolated
from atoll.sdk.detached.spawning import spool_of
from atoll.terminal_text import printable
from atoll.web import app_files, hosted

SETTINGS = frozenset(
    [
        "UV_INDEX_STRATEGY",
        "UV_NATIVE_TLS",
        "UV_SYSTEM_CERTS",
        "certificates",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ]
)
"""Settings that hold for builds of all users: certificates and proxies, those with passwords left out."""
MOST_FILES = 10_000
"""Files beside one function."""
_HASH = re.compile(r"[0-9a-f]{64}")
MOST_WAITING = 1000
"""Batches of log entries that a slow reader may have before the function waits."""


class Hosted:
    """A function of a client's with the options that it asks for.

    Args:
        asked: a message with `environments`, `machine_requirements`, `function`, `setup_func` and `secrets`.
        variables: of its process.
        secrets: names of the user's secrets that it has as variables.
        served: it serves a port, and its result is of no interest.

    Raises:
        AtollError: it asks for something that there is not here.
    """

    def __init__(
        self, caller: Caller, asked: Any, variables: dict[str, str], secrets: tuple[str, ...], *, served: bool = False
    ) -> None:
        if not asked.HasField("function"):
            raise errors.CallerError("an entrypoint in a container is not served here", hint="send the function")
        method = asked.function.method
        more = {"keep_alive": 0.0} if served else {"results": "data"}
        self.function, spec = isolated_for(
            caller, asked, method, hosted.serve if served else hosted.call, secrets=secrets, **more
        )
        files = listed(asked.files)
        if files:  # calls with other files never share a process, nor a sandbox, with these
            digest = hashlib.sha256(repr(files).encode()).hexdigest()
            spec = replace(spec, own=True, env=tuple(sorted((*spec.env, (app_files.VARIABLE, digest)))))
        self._prepared = Prepared(self.function.__wrapped__, self.function.options, spec, self.function._source)
        setup = asked.setup_func.definition if asked.HasField("setup_func") else b""
        self._served = served
        self._arguments = (method, asked.function.definition, setup, variables, *([files] if files else []))

    def spool(self) -> Iterable[Any]:
        """Return the bytes by which a server makes the call by itself."""
        return spool_of(self.function, self._prepared.request(self._arguments, {}), own=self._served)

    def request(self, call_id: str = "") -> Request:
        """Return the call."""
        found = self._prepared.request(self._arguments, {}, call_id)
        return found._replace(call=replace(found.call, streams="turns"))

    def run(self, ticket: Ticket, output: CallLogs) -> Any:
        """Make the call; return what `hosted.call` returns.

        Raises:
            AtollError: it cannot be made, or was lost.
        """
        request = self.request(ticket.call_id)
        message = self._prepared.host.run(request.spec, request.call, request.bundle, output, ticket)
        return self._prepared.value_of(message, request.call.id)


def listed(files: Any) -> tuple[tuple[str, str], ...]:
    """Return paths and hashes of the files beside a function.

    Raises:
        CallerError: one could not be below `/app`.
    """
    found: dict[str, str] = {}
    for one in files:
        names = one.relative_path.split("/")
        if not _HASH.fullmatch(one.hash) or "\0" in one.relative_path or {"", ".", ".."} & {*names}:
            raise errors.CallerError(
                f"`{printable(one.relative_path[:200])}` can be no file below `/app`",
                hint="name files and directories beside the program in `app_files`",
            )
        if found.setdefault(one.relative_path, one.hash) != one.hash:
            raise errors.CallerError(
                f"`{printable(one.relative_path[:200])}` is there twice", hint="name each of `app_files` once"
            )
    if len(found) > MOST_FILES:
        raise errors.CallerError(
            f"a function has at most {MOST_FILES:,} files", hint="leave some out with `app_files_ignore`"
        )
    return tuple(sorted(found.items()))


def isolated_for(
    caller: Caller, asked: Any, method: str, target: Callable[..., Any], **more: Any
) -> tuple[Any, LeaseSpec]:
    """Return a function of Atoll's for a message's environment and machine, and the spec of its leases.

    Raises:
        CallerError: the message asks for something that there is not here.
    """
    try:
        function = isolated(host=caller.host, **environments.options_of(asked, method) | more)(target)
        spec = function.lease_spec(pickled=False)
    except (TypeError, ValueError) as error:
        raise errors.CallerError(str(error), hint="change the function's options") from error
    return function, replace(spec, environment=replace(spec.environment, index=_operators()))


def _operators() -> tuple[tuple[str, str], ...]:
    """Return the operator's settings of how packages are reached; places of packages are in the server's settings."""
    found = index_settings.collect(("any",))
    return tuple((name, text) for name, text in found if name in SETTINGS and "@" not in text)


class Run:
    """One call under way: entries of its log as they come, and its outcome.

    Args:
        function: to call.
        call_id: of the call.
        threads: one of them waits for it.
    """

    def __init__(self, function: Hosted, call_id: str, threads: Executor) -> None:
        self._function = function
        self._ticket = Ticket(call_id=call_id, made_at=time.time())
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._entries: asyncio.Queue[list[Any] | None] = asyncio.Queue()
        self._room = threading.Semaphore(MOST_WAITING)
        self._left = False
        self._end: asyncio.Future[Any]

    def _tell(self, entries: list[Any] | None) -> None:
        while not self._room.acquire(timeout=1.0):
            if self._left:
                return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._entries.put_nowait, entries)

    def _work(self) -> Any:
        output = CallLogs(self._tell)
        try:
            return self._function.run(self._ticket, output)
        finally:
            output.end()
            self._tell(None)

    async def entries(self) -> AsyncIterator[list[Any]]:
        """Yield log entries until the call has ended; it is cancelled when nobody waits any more."""
        self._end = self._loop.run_in_executor(self._threads, self._work)
        try:
            while (found := await self._entries.get()) is not None:
                self._room.release()
                more = [found]
                while not self._entries.empty() and self._entries._queue[0] is not None:  # type: ignore[attr-defined]
                    more.append(self._entries.get_nowait() or [])
                    self._room.release()
                yield [entry for one in more for entry in one]
        finally:
            self._left = True
            if not self._end.done():
                self._ticket.cancel()
                self._end.add_done_callback(_forget)

    async def outcome(self) -> Any:
        """Return the outcome, after the entries.

        Raises:
            AtollError: see `Hosted.run`.
        """
        return await self._end


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
