"""Callers: the key in a call's metadata, and the server as that key's owner has it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from atoll import errors
from atoll.controller.own_server import OwnHost

THREADS = 512
"""Calls that are served at a time: each has a thread while it runs."""
OF_USER = THREADS // 4
"""Calls of one user at a time."""
ASKS = 16
"""Threads of requests."""
MOST_HOSTS = 1000
"""Keys whose connections are kept for their next call."""
_ID = re.compile(r"[A-Za-z0-9_.|-]{1,128}")
_SECRET = re.compile(r"[\x21-\x7e]{1,512}")

_STATUSES: tuple[tuple[type[errors.AtollError], grpc.StatusCode], ...] = (
    (errors.NotAuthorized, grpc.StatusCode.UNAUTHENTICATED),
    (errors.CallUnknown, grpc.StatusCode.NOT_FOUND),
    (errors.OutOfMemory, grpc.StatusCode.ABORTED),
    (errors.WorkerDied, grpc.StatusCode.ABORTED),
    (errors.CallCancelled, grpc.StatusCode.CANCELLED),
    (errors.QuotaExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.CallerError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.OperatorError, grpc.StatusCode.FAILED_PRECONDITION),
)
"""The status of an error; UNAVAILABLE is none of them: the clients would call again."""


@dataclass(frozen=True)
class Caller:
    """A user who calls.

    Args:
        host: the server with the user's key.
        user: the user's id; `name` is the one that addresses have.
        scope: of the key.
    """

    host: OwnHost
    user: str
    name: str
    scope: str

    def ask(self, method: str, path: str, value: Any = None) -> Any:
        """Make a request to the server; see `Server.ask`."""
        return self.host.server.ask(method, path, value)


class Callers:
    """Finds callers.

    Args:
        path: of the server's Unix socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._hosts: dict[tuple[str, str], OwnHost] = {}
        self.calls = ThreadPoolExecutor(THREADS, "calls")
        self._running: Counter[str] = Counter()
        self._asks = ThreadPoolExecutor(ASKS, "asks")  # never behind calls, whose functions may ask

    async def blocking(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do short work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._asks, work, *arguments)

    @contextlib.contextmanager
    def turn(self, caller: Caller) -> Iterator[None]:
        """Count a call of a user's while the context is open.

        Raises:
            QuotaExceeded: the user has as many as one may.
        """
        if self._running[caller.user] >= OF_USER:
            raise errors.QuotaExceeded(f"{OF_USER} calls of one user run", hint="wait for the end of some")
        self._running[caller.user] += 1
        try:
            yield
        finally:
            self._running[caller.user] -= 1
            if not self._running[caller.user]:
                del self._running[caller.user]

    async def caller(self, context: Any) -> Caller:
        """Return who calls, with a key that administers.

        Raises:
            NotAuthorized: nobody known, or a key that only calls endpoints.
        """
        sent = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        key_id, secret = sent.get("auth-key-id", ""), sent.get("auth-key", "")
        if not _ID.fullmatch(key_id) or not _SECRET.fullmatch(secret):
            raise errors.NotAuthorized(
                "no key: this server knows keys alone, and no logins elsewhere",
                hint="set FAL_KEY_ID and FAL_KEY_SECRET, or FAL_KEY",
            )
        host = self._hosts.get((key_id, secret)) or OwnHost(self._path, key_id, secret)
        found = await self.blocking(host.server.ask, "GET", "/v1/whoami")
        if len(self._hosts) >= MOST_HOSTS:
            self._hosts.clear()
        self._hosts[key_id, secret] = host  # known keys alone
        if found["scope"] != "ADMIN":
            raise errors.NotAuthorized(
                "Insufficient permissions: a key of the scope API calls endpoints alone",
                hint="use a key of the scope ADMIN",
                status=403,
            )
        return Caller(host, found["user"], found["name"], found["scope"])


def status_of(error: errors.AtollError) -> grpc.StatusCode:
    """Return the status of an error's answer."""
    status = error.details.get("status")
    if status == 403:
        return grpc.StatusCode.PERMISSION_DENIED
    if status == 404:
        return grpc.StatusCode.NOT_FOUND
    return next((code for kind, code in _STATUSES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def text_of(error: errors.AtollError) -> str:
    """Return the text of an error, with its next step; one of a killed worker ends as the clients of 2023 read it."""
    text = error.message + (f"\nhint: {error.hint}" if error.hint else "")
    if isinstance(error, errors.WorkerDied):
        number = 9 if isinstance(error, errors.OutOfMemory) else error.signal
        if number in {one.value for one in signal.Signals}:
            text += f"\nThe function's process `died with <Signals.{signal.Signals(number).name}: {number}>.`."
    return text
