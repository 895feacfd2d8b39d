"""Records of calls from the claims of workers and agents.

A worker's code is not trusted. Its claims about its own calls are checked for type and size, and may be lies. User,
sandbox, worker, environment and the reason of an end are the daemon's own knowledge. A worker has no say about
another's calls.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from atoll import errors
from atoll.agent import usage
from atoll.model.records import CallRecord
from atoll.model.specs import SandboxKey
from atoll.wire.bounds import Pace

log = logging.getLogger("atoll.records")

K = TypeVar("K")
V = TypeVar("V")

MOST_PER_SECOND = 20_000
"""Records of one worker; further ones are dropped. A warm worker answers some 10,000 calls a second at best."""

USER_RECORDS = 50_000.0
"""Records a second of all workers of a user together; further ones are dropped."""

MOST_MAKERS = 1000
MOST_CLAIMED = 20_000

_TEXTS = {0: 100, 1: 200, 2: 100, 10: 20, 11: 200, 12: 8200}
_NUMBERS = (3, 4, 5, 6)
_COUNTS = (7, 8, 9)
_SAID = ("ok", "error", "exited")
_LATEST = 1 << 53
_OUTCOME_BY_CODE = {
    "out_of_memory": "out_of_memory",
    "call_timeout": "timeout",
    "call_cancelled": "cancelled",
}


class Place:
    """The place of a worker's calls, and the number of records that it may still send; makes its records.

    Args:
        key: the sandbox's.
        sandbox, worker: their ids.
        users: the records of all workers of the user, at `USER_RECORDS` a second.
    """

    def __init__(
        self,
        key: SandboxKey,
        sandbox: str,
        worker: str,
        clock: Callable[[], float] = time.monotonic,
        users: Pace | None = None,
    ) -> None:
        self._key = key
        self._users = users if users is not None else Pace(USER_RECORDS, USER_RECORDS)
        self._sandbox = sandbox
        self._worker = worker
        self._clock = clock
        self._left = float(MOST_PER_SECOND)
        self._at = clock()
        self._told = False

    def reported(self, message: dict[str, Any], *, nested: bool) -> Iterator[CallRecord]:
        """Make records of the worker's report; `nested` is true if its calls come from another worker.

        Raises:
            ValueError: it is no message of `agent.usage`.
        """
        slots, last = message.get("slots"), message.get("last")
        if not isinstance(slots, str) or not isinstance(last, list):
            raise ValueError("`records` must have `slots` and `last`")
        self._refill()
        if self._left < 1:  # not even read
            self._tell_left_out()
            return iter(())
        return self.records(usage.read_slots(slots, last), nested=nested)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._left + (now - self._at) * MOST_PER_SECOND, MOST_PER_SECOND)
        self._at = now
        if self._users.seconds() > 0:
            self._left = 0.0

    def _tell_left_out(self) -> None:
        if not self._told:
            self._told = True
            log.warning("records_left_out worker=%s more_than=%s/s", self._worker, MOST_PER_SECOND)

    def records(self, claims: Any, *, nested: bool) -> Iterator[CallRecord]:
        """Make records of claims, which are lists in the order of `agent.usage.FIELDS`.

        Raises:
            ValueError: they are not.
        """
        if not isinstance(claims, list):
            raise ValueError("`records` must be a list")
        self._refill()
        self._users.take(len(claims))
        for claim in claims:
            self._left -= 1
            if self._left < 0:
                self._tell_left_out()
                self._left = 0.0
                return
            checked = _checked(claim)
            if checked[10] not in _SAID:
                raise ValueError(f"a worker cannot report `{checked[10]}`")
            yield self._record(checked, nested)

    def last_records(
        self, claims: dict[str, Any], *, nested: bool, error: errors.AtollError | None, left: bool
    ) -> list[CallRecord]:
        """Make the records that the worker had not reported when it ended, and that of the call it was running.

        Args:
            claims: the agent's: `records`, and `call` for the running one.
            error: why the worker has ended.
            left: the caller has cancelled the call, or is gone.
        """
        try:
            found = list(self.records(claims.get("records", []), nested=nested))
            if claims.get("call") is not None:
                checked = _checked(claims["call"])
                checked[10], checked[11], checked[12] = _why(error, left)
                if isinstance(error, errors.OutOfMemory) and error.peak_bytes is not None:
                    checked[7] = error.peak_bytes
                found.append(self._record(checked, nested))
        except ValueError as malformed:
            log.warning("malformed_record worker=%s error=%s", self._worker, malformed)
            return []
        return found

    def _record(self, checked: list[Any], nested: bool) -> CallRecord:
        call, function, parent, queued, started, wall, cpu, peak, bytes_in, bytes_out, outcome, error, message = checked
        now = time.time()
        return CallRecord(
            call=call,
            function=function,
            user=self._key.user,
            parent=parent if nested else "",
            queued_at=min(queued, started, now),
            started_at=min(started, now),
            wall_seconds=wall,
            cpu_seconds=cpu,
            peak_bytes=peak,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            outcome=outcome,
            error=error,
            message=message,
            environment=self._key.environment,
            sandbox=self._sandbox,
            worker=self._worker,
            gpus=len(self._key.gpus),
        )


class Makers:
    """The makers of the calls that a worker has run: processes, as the ids of their calls name them."""

    def __init__(self) -> None:
        self._known: dict[str | None, None] = {}
        self._told = False

    def add(self, maker: str | None) -> None:
        """Add a maker; None stands for all of them. Of many the latest count."""
        if maker != "":
            _remember(self._known, maker, None, MOST_MAKERS)

    def made(self, records: Iterable[CallRecord], worker: str) -> Iterator[CallRecord]:
        """Leave out records of calls that others have made, and log the first one."""
        for record in records:
            if None in self._known or maker_of(record.call) in self._known:
                yield record
            elif not self._told:
                self._told = True
                log.warning("records_of_others_left_out worker=%s", worker)


def maker_of(call: str) -> str:
    """Return the maker in the id of a call (`sdk.futures.new_id`); empty where there is none."""
    return call.partition("-")[2]


class Claimed:
    """The makers of calls, by the user and the worker that were first to claim them.

    A function knows the ids of the calls that have led to it. Its own calls have another maker.
    """

    def __init__(self) -> None:
        self._programs: dict[tuple[str, str], None] = {}
        self._functions: dict[tuple[str, str], str] = {}

    def maker(self, call: str, user: str, parent: str | None) -> str | None:
        """Return the maker of a call of a user's program, or of the code in the worker `parent`.

        Empty if the maker is another's; None for a program that names no call.
        """
        maker = maker_of(call)
        known = user, maker
        if parent is None:
            if maker:
                _remember(self._programs, known, None, MOST_CLAIMED)
            return maker or None
        if not maker or known in self._programs or self._functions.get(known, parent) != parent:
            return ""
        _remember(self._functions, known, parent, MOST_CLAIMED)
        return maker


def _remember(known: dict[K, V], key: K, value: V, most: int) -> None:
    """Put an entry at the end, and remove the first one where there are more than `most`."""
    known.pop(key, None)
    known[key] = value
    if len(known) > most:
        del known[next(iter(known))]


def never_started(claim: Any, function: str, user: str, nested: bool, error: BaseException) -> CallRecord | None:
    """Make the record of a call that got no worker, because of this error or because its caller has left.

    Args:
        claim: the client's description of the call for the lease; None if it is malformed.
    """
    if not isinstance(claim, dict):
        return None
    call, at, parent = claim.get("call"), claim.get("at"), claim.get("parent")
    known = isinstance(error, errors.AtollError) and not isinstance(error, errors.CallCancelled)
    outcome, name, message = (
        ("refused", type(error).__name__, str(error)[:8000])
        if known
        else ("cancelled", "CallCancelled", _cancelled(error))
    )
    now = time.time()
    try:
        queued = at if isinstance(at, float) and 0 < at <= now else now
        checked = _checked([call, function, parent, queued, 0.0, now - queued, 0.0, 0, 0, 0, outcome, name, message])
    except ValueError:
        return None
    return CallRecord(
        call=checked[0],
        function=checked[1],
        user=user,
        parent=checked[2] if nested else "",
        queued_at=checked[3],
        wall_seconds=0.0,
        outcome=outcome,
        error=name,
        message=checked[12],
    )


def _cancelled(error: BaseException) -> str:
    return error.message if isinstance(error, errors.CallCancelled) else "the caller cancelled the call, or has ended"


def _why(error: errors.AtollError | None, left: bool) -> tuple[str, str, str]:
    """Return outcome, error and message of a call whose worker has ended."""
    known = _OUTCOME_BY_CODE.get(error.code) if error is not None else None
    if known is not None and error is not None:
        return known, type(error).__name__, error.message[:2000]
    if left:
        return "cancelled", "CallCancelled", "the caller cancelled the call, or has ended"
    if isinstance(error, errors.WorkerDied):
        outcome = "killed" if error.signal is not None else "exited"
        return outcome, type(error).__name__, error.message[:2000]
    return "lost", type(error).__name__ if error is not None else "", error.message[:2000] if error is not None else ""


def _checked(claim: Any) -> list[Any]:
    if not isinstance(claim, list) or len(claim) != 13:
        raise ValueError("a record must be a list of 13 values")
    checked = list(claim)
    for number, most in _TEXTS.items():
        text = claim[number]
        if not isinstance(text, str):
            raise ValueError(f"value {number} of a record must be text")
        if len(text) > most or not text.isascii() or "\0" in text:
            checked[number] = text[:most].encode("utf-8", "replace").decode().replace("\0", "")
    for number in _NUMBERS:
        value = claim[number]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"value {number} of a record must be a number of at least 0")
        checked[number] = float(min(value, 1e12))
    for number in _COUNTS:
        value = claim[number]
        if type(value) is not int or not 0 <= value < _LATEST:
            raise ValueError(f"value {number} of a record must be a count")
    if not checked[0]:
        raise ValueError("a record must name its call")
    return checked
