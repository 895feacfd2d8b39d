"""`BatchHandle`: the detached calls of one `spawn_map`, by one id."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from atoll.errors import CallUnknown
from atoll.host import detached
from atoll.sdk.detached.handle import WAIT_SECONDS, CallHandle, CallStatus, status_of
from atoll.sdk.futures import hide_frames

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.sdk.attempts import CallableFunction

R = TypeVar("R")

_LIVE = ("waiting", "running")


@dataclass(frozen=True)
class BatchItem:
    """One call of a batch at one moment: its place in the input, its id, its status."""

    number: int
    id: str
    status: CallStatus


class BatchHandle(Generic[R]):
    """The calls of a batch that outlives its program: made by `f.spawn_map(...)`, found again by its id.

    Args:
        id: the batch's id.
        host: where it is kept; by default this machine.
    """

    def __init__(self, id: str, host: Host | None = None) -> None:  # noqa: A002 - the attribute's name
        from atoll.host.default import default_host

        if not isinstance(id, str) or not id:
            raise TypeError(f"a batch's id is a text, not {id!r}")
        self._id = id
        self._host: Host = host if host is not None else default_host()

    @classmethod
    def from_id(cls, id: str, host: Host | None = None) -> BatchHandle[Any]:  # noqa: A002 - as above
        """Return the handle of a batch of an earlier program.

        Args:
            id: the batch's id, or a beginning that no other batch's id has.

        Raises:
            CallUnknown: there is no such batch, or it has expired.
        """
        handle: BatchHandle[Any] = cls(id, host)
        found = detached.request(handle._host, "detached.batches", {"start": id, "limit": 3}).value["batches"]
        names = [one["batch"] for one in found]
        if id not in names and len(names) > 1:
            raise CallUnknown(f"more than one batch has an id that begins with `{id}`", hint=", ".join(names))
        if id not in names:
            handle._id = names[0] if names else id
        handle.counts()
        return handle

    @property
    def id(self) -> str:
        """The batch's id."""
        return self._id

    def __repr__(self) -> str:
        return f"BatchHandle({self._id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchHandle) and (other._id, other._host) == (self._id, self._host)

    def __hash__(self) -> int:
        return hash(self._id)

    def __len__(self) -> int:
        return sum(self.counts().values())

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        from atoll.host.default import is_default

        return type(self), (self._id,) if is_default(self._host) else (self._id, self._host)

    def counts(self) -> dict[str, int]:
        """Return how many calls wait (`waiting`), run (`running`), and have ended, by their outcomes.

        Raises:
            CallUnknown: the batch has expired.
        """
        found: dict[str, int] = self._ask("detached.counts")["counts"]
        return found

    def items(self) -> Iterator[BatchItem]:
        """Yield all items in the order of the input, as they are now."""
        return map(_item, self._rows("all"))

    def failed(self) -> list[BatchItem]:
        """Return the items that have ended without a result."""
        return [_item(row) for row in self._rows("failed")]

    def wait(self, timeout: float | None = None) -> dict[str, int]:
        """Wait until all calls have ended; return `counts`.

        Raises:
            TimeoutError: they have not ended in time; they go on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        finished = -1
        while True:
            left = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"batch {self._id} has not ended after {timeout:g} s, and goes on")
            found = self._ask("detached.counts", revision=finished, seconds=min(left, WAIT_SECONDS))
            counts: dict[str, int] = found["counts"]
            if not any(counts.get(state) for state in _LIVE):
                return counts
            finished = found["finished"]

    @overload
    def results(
        self, *, ordered: bool = True, return_exceptions: Literal[False] = False, timeout: float | None = None
    ) -> Iterator[R]: ...
    @overload
    def results(
        self, *, ordered: bool = True, return_exceptions: bool, timeout: float | None = None
    ) -> Iterator[R | Exception]: ...
    def results(
        self, *, ordered: bool = True, return_exceptions: bool = False, timeout: float | None = None
    ) -> Iterator[Any]:
        """Yield the results as soon as they are there; they can be asked for again, also by other programs.

        Args:
            ordered: in the order of the input; False for as they come.
            return_exceptions: yield the exception of a call that failed in its place, and go on.
            timeout: seconds until the last result; None for as long as it takes.

        Raises:
            Exception: of the first call that failed, in its place.
            TimeoutError: a call has not ended in time; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for row in self._in_order(deadline) if ordered else self._as_they_end(deadline):
            try:
                yield self._handle(row["call"]).result()
            except Exception as error:
                if not return_exceptions:
                    hide_frames(error)
                    raise
                yield error

    def cancel(self) -> int:
        """Cancel the calls that have not ended; return how many."""
        return int(self._ask("detached.cancel")["calls"])

    def resume(self, function: CallableFunction | None = None) -> int:
        """Have the items that failed, were cancelled or were lost made again; return how many.

        Args:
            function: takes the place of the batch's function, as after a fix; None for that one as it was.
        """
        from atoll.sdk.detached import spawning

        return spawning.renew(function, self._host, self._id)

    def forget(self) -> int:
        """Remove the calls that have ended, with their outputs and results; return how many."""
        return int(self._ask("detached.forget")["calls"])

    def _handle(self, call: str) -> CallHandle[R]:
        return CallHandle(call, self._host)

    def _ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        return detached.request(self._host, name, {"batch": self._id, **arguments}).value

    def _part(self, kind: str, after: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._ask("detached.items", kind=kind, after=after)["calls"]
        return rows

    def _rows(self, kind: str) -> Iterator[dict[str, Any]]:
        after = -1
        while rows := self._part(kind, after):
            yield from rows
            after = rows[-1]["number"]

    def _changed(self, finished: int, deadline: float | None) -> int:
        """Wait until other calls than so many have ended; return how many have."""
        left = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"batch {self._id} has not ended in time, and goes on")
        found = self._ask("detached.counts", revision=finished, seconds=min(left, WAIT_SECONDS))
        return int(found["finished"])

    def _in_order(self, deadline: float | None) -> Iterator[dict[str, Any]]:
        after = finished = -1
        while True:
            finished = self._ask("detached.counts")["finished"]
            rows = self._part("all", after)
            if not rows:
                return
            for row in rows:
                if row["state"] != "finished":
                    break
                yield row
                after = row["number"]
            else:
                continue
            self._changed(finished, deadline)

    def _as_they_end(self, deadline: float | None) -> Iterator[dict[str, Any]]:
        after = 0
        while True:
            found = self._ask("detached.counts")
            rows = self._part("ended", after)
            for row in rows:
                yield row
                after = row["ended"]
            if rows:
                continue
            if not any(found["counts"].get(state) for state in _LIVE):
                return
            self._changed(found["finished"], deadline)


def _item(row: dict[str, Any]) -> BatchItem:
    return BatchItem(row["number"], row["call"], status_of(row))
