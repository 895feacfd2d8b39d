"""What calls did over a run, as values: outcomes that clients heard of, and writes that executions made.

Two logs, one clock. Clients write a line before a call and a line for each outcome. An execution is one run of a
function's body: it has a file below `/data/writes`, gets a line every 10 ms while it runs, and is synced to the disk after
each. Both have the time of `CLOCK_MONOTONIC`, which all machines of the tests share.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

DONE = "done"
"""The last line of an execution that returned."""


@dataclass(frozen=True)
class Execution:
    """One run of a function's body.

    Args:
        token: of its call, which the client drew.
        id: of its own.
        node: name of the machine it ran on.
        first, last: seconds of its first and its last line.
        complete: it came to its end.
    """

    token: str
    id: str
    node: str
    first: float
    last: float
    complete: bool = True


@dataclass(frozen=True)
class Outcome:
    """An end of a call, as its client heard of it.

    Args:
        at: seconds.
        execution: the one whose answer it is; empty for an error.
        error: name of the error's type, empty for an answer.
        told: the error's text, or `wrong` with what is wrong in the answer.
        may_run: the error says nothing about an end: a call that was to outlive its program may have been taken, one of a
            `map` that failed elsewhere is being cancelled.
    """

    at: float
    execution: str = ""
    error: str = ""
    told: str = ""
    may_run: bool = False

    @property
    def is_answer(self) -> bool:
        """Return whether it is an answer; that of a sync has no execution."""
        return not self.error and not self.told


@dataclass(frozen=True)
class Made:
    """A call that a client made.

    Args:
        token: unique.
        kind: such as `plain`.
        at: seconds.
        retries: how often it may run again.
        outcomes: in the order in which they came.
    """

    token: str
    kind: str
    at: float
    retries: int = 0
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class Outage:
    """A time in which a node could hear nothing of its server.

    Args:
        node: its machine's name.
        began, ended: seconds.
    """

    node: str
    began: float
    ended: float


@dataclass(frozen=True)
class History:
    """All of a run."""

    calls: Mapping[str, Made] = field(default_factory=dict)
    executions: Sequence[Execution] = ()
    outages: Sequence[Outage] = ()

    @functools.cached_property
    def executions_of(self) -> dict[str, list[Execution]]:
        """The executions of each call in the order in which they began."""
        found: dict[str, list[Execution]] = {}
        for one in sorted(self.executions, key=lambda one: one.first):
            found.setdefault(one.token, []).append(one)
        return found

    @functools.cached_property
    def nested_in(self) -> dict[str, list[str]]:
        """The nested calls of each client's call."""
        found: dict[str, list[str]] = {}
        for token in self.executions_of:
            if called(token) != token:
                found.setdefault(called(token), []).append(token)
        return found


def called(token: str) -> str:
    """Return the token of the call that a client made: a nested call's has a part of its own behind it."""
    return token.partition(".")[0]


def read_calls(logs: Iterable[Path]) -> dict[str, Made]:
    """Read the clients' logs; a client that was killed may have left half a line."""
    calls: dict[str, Made] = {}
    for log in logs:
        for line in log.read_text().splitlines(keepends=True) if log.exists() else ():
            if not line.endswith("\n"):
                continue
            row = json.loads(line)
            if row["what"] == "begin":
                assert row["token"] not in calls, f"a token was drawn twice: {row}"
                calls[row["token"]] = Made(row["token"], row["kind"], row["at"], row.get("retries", 0))
            else:
                made = calls[row["token"]]
                told = Outcome(**{name: value for name, value in row.items() if name not in {"what", "token"}})
                calls[made.token] = replace(made, outcomes=(*made.outcomes, told))
    return calls


def read_executions(directory: Path) -> list[Execution]:
    """Read the files of `/data/writes`: `TOKEN+ID+NODE`, a line with nanoseconds for each write."""
    found = []
    for path in sorted(directory.iterdir()) if directory.exists() else ():
        token, id_, node = path.name.split("+")
        lines = [line.strip() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        times = [int(line) / 1e9 for line in lines if line != DONE]
        if times:  # one that was killed before its first line has written nothing
            found.append(Execution(token, id_, node, times[0], max(times), DONE in lines))
    return found
