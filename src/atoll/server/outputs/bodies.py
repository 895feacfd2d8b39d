"""Answers of the route of outputs."""

from __future__ import annotations

import msgspec


class RunnerOutput(msgspec.Struct, frozen=True):
    """A runner, and the end of its output.

    Args:
        call: the id of its detached call.
        function: its name.
        state: `waiting`, `building`, `running` or `finished`.
        outcome: of one that is over: as of any detached call.
        error: the reason that it failed; empty for none.
        detail: the reason of a wait, or the step of a build.
        queued_at, started_at, ended_at: seconds since the epoch; 0 for not yet.
        worker: that prints; another one, after a loss, prints from its beginning.
        printed_bytes: all that it has printed.
        output: the end of that, behind the bytes that the caller has seen.
        unread: the reason that the output cannot be had now; empty for none.
    """

    call: str
    function: str
    state: str
    outcome: str = ""
    error: str = ""
    detail: str = ""
    queued_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    worker: str = ""
    printed_bytes: int = 0
    output: str = ""
    unread: str = ""


class Outputs(msgspec.Struct, frozen=True):
    """Runners of a revision, the oldest first.

    Args:
        alias: that points to it; empty for none.
        left_out: runners that are not shown, since there are too many.
    """

    revision: str
    alias: str
    function: str
    runners: list[RunnerOutput]
    left_out: int = 0
