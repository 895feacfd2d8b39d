"""`CallHandle`: a detached call, by its id, from any program of its user."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from atoll.host import detached
from atoll.sdk.futures import hide_frames

if TYPE_CHECKING:
    from atoll.host.contract import Host

R = TypeVar("R")

WAIT_SECONDS = 600.0
"""Seconds of one question to the daemon about a call that has not ended."""
FOLLOW_SECONDS = 0.2
"""Seconds between looks at the output of a call that runs."""
PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class CallStatus:
    """A detached call at one moment.

    Args:
        state: `waiting`, `building`, `running` or `finished`.
        outcome: of a finished call: `ok`, `error`, `exited`, `killed`, `out_of_memory`, `timeout`, `cancelled`, `lost` or
            `refused`; empty before.
        function: the function's name.
        attempts: how often the call was sent to a worker.
        queued_at, started_at, ended_at: seconds since the epoch; 0 for not yet.
        error: type and text of the failure; empty for none.
        detail: the step of a build, or the reason of a wait.
        position: of a deployed function's call that waits, the calls that are made before it; 0 for the next.
    """

    state: str
    outcome: str
    function: str
    attempts: int
    queued_at: float
    started_at: float
    ended_at: float
    error: str
    detail: str
    position: int = 0

    def __str__(self) -> str:
        return self.outcome or self.state


class CallHandle(Generic[R]):
    """A call that outlives its program: made by `f.spawn(...)`, found again by its id.

    The host keeps the call, its output and its result; handles are small, and can be pickled.

    Args:
        id: the call's id.
        host: where it is kept; by default this machine.
    """

    def __init__(self, id: str, host: Host | None = None) -> None:  # noqa: A002 - the attribute's name
        from atoll.host.default import default_host

        if not isinstance(id, str) or not id:
            raise TypeError(f"a call's id is a text, not {id!r}")
        self._id = id
        self._host: Host = host if host is not None else default_host()

    @classmethod
    def from_id(cls, id: str, host: Host | None = None) -> CallHandle[Any]:  # noqa: A002 - as above
        """Return the handle of a call of an earlier program.

        Args:
            id: the call's id, or a beginning that no other call's id has.

        Raises:
            CallUnknown: there is no such call, or it has expired.
        """
        handle: CallHandle[Any] = cls(id, host)
        handle._id = str(handle._row()["call"])
        return handle

    @property
    def id(self) -> str:
        """The call's id, also in `atoll calls` and `atoll logs`."""
        return self._id

    def __repr__(self) -> str:
        return f"CallHandle({self._id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallHandle) and (other._id, other._host) == (self._id, self._host)

    def __hash__(self) -> int:
        return hash(self._id)

    def __reduce__(self) -> tuple[Any, ...]:
        from atoll.host.default import is_default

        return type(self), (self._id,) if is_default(self._host) else (self._id, self._host)

    def status(self) -> CallStatus:
        """Return the state of the call now.

        Raises:
            CallUnknown: it has expired.
        """
        return status_of(self._row())

    def result(self, timeout: float | None = None) -> R:
        """Wait for the call's result, or raise its exception with the remote frames.

        The result of a generator function is the list of its items. It can be asked for again, also by other programs.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the call has not ended in time; it goes on.
            CallUnknown: it has expired.
            CallLost: the daemon ended while it ran.
        """
        from atoll.sdk.detached import answers

        try:
            self.wait(timeout)
            value: R = answers.result(self._host, self._id)
            return value
        except BaseException as error:
            hide_frames(error)
            raise

    def wait(self, timeout: float | None = None) -> CallStatus:
        """Wait until the call has ended; return its status.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
            CallUnknown: it has expired.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        row = self._row()
        while row["state"] != "finished":
            left = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"call {self._id} has not ended after {timeout:g} s, and goes on")
            row = self._next(row, min(left, WAIT_SECONDS))
        return status_of(row)

    async def aio(self) -> R:
        """Wait for the result from asyncio, as `result` does."""
        return await asyncio.to_thread(self.result)

    def logs(self, follow: bool = False) -> Iterator[str]:
        """Yield the output of the call, from its beginning, in pieces of text.

        Args:
            follow: go on until the call has ended.

        Raises:
            CallUnknown: it has expired.
        """
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for data in self.output(follow=follow):
            if text := decoder.decode(data):
                yield text
        if text := decoder.decode(b"", True):
            yield text

    def output(self, follow: bool = False) -> Iterator[bytes]:
        """Yield the output as the bytes that it is; see `logs`."""
        descriptor, row, grows = self._open()
        position = 0
        try:
            while True:
                if descriptor is None:
                    descriptor, row, grows = self._open()
                if descriptor is not None:
                    if not grows:
                        os.lseek(descriptor, position, os.SEEK_SET)
                    while data := os.read(descriptor, PIECE_BYTES):
                        position += len(data)
                        yield data
                    if not grows:
                        os.close(descriptor)
                        descriptor = None
                if row["state"] == "finished" or not follow:
                    return
                row = self._next(row, FOLLOW_SECONDS if row["state"] == "running" else WAIT_SECONDS)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def cancel(self) -> bool:
        """Cancel the call, running or not; return False where it has ended already.

        One that runs is asked to end, and killed after its `grace`.
        """
        return int(self._ask("detached.cancel").value["calls"]) > 0

    def forget(self) -> None:
        """Remove the call with its output and result, once it has ended, before it would expire."""
        self._ask("detached.forget")

    def _row(self) -> dict[str, Any]:
        row: dict[str, Any] = self._ask("detached.show").value["call"]
        return row

    def _next(self, row: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the row when it has changed, or after some seconds."""
        found: dict[str, Any] = self._ask("detached.wait", revision=row["revision"], seconds=seconds).value["call"]
        return found

    def _open(self) -> tuple[int | None, dict[str, Any], bool]:
        answer = self._ask("detached.output")
        return answer.descriptor, answer.value["call"], answer.grows

    def _ask(self, name: str, **arguments: Any) -> detached.Answer:
        return detached.request(self._host, name, {"call": self._id, **arguments})


def status_of(row: dict[str, Any]) -> CallStatus:
    """Return the status in a row."""
    failure = row.get("error") or {}
    kind = str(failure.get("type") or failure.get("code") or "")
    text = str(failure.get("text") or failure.get("message") or "")
    return CallStatus(
        row["state"],
        row["outcome"],
        row["function"],
        row["attempts"],
        row["queued_at"],
        row["started_at"],
        row["ended_at"],
        f"{kind}: {text}" if kind else "",
        row.get("detail", ""),
        row.get("position", 0),
    )
