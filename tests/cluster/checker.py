"""The judge of a history: what Atoll promises of calls, whichever machines fail.

1. No call is answered twice, and none is lost: each has one outcome, an answer or a named error.
2. An answer is that of an execution of this call, which came to its end and was the last.
3. A call runs once, and with `retries` at most so often again.
4. Executions of one call never overlap: the last write of one is before the first write of the next, on any node.
5. No write follows the outcome: who has heard of an end may use the files. Only an error of `spawn` itself, before there
   is a handle, leaves open whether the call runs, and the other calls of a `map` that has failed have their grace.
6. No write follows a lost lease: a node that hears nothing of its server has ended its calls before these are given up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from atoll.server.cluster.contract import BEAT_SECONDS, LOST_SECONDS

from .history import Execution, History, Made, Outage, called

NAMED = frozenset({"HostUnreachable", "WorkerDied", "CallLost", "CallCancelled", "ResourcesUnavailable"})
"""Errors that a call may end with when machines fail; a sync has `SyncError` and `VolumeBusy` besides."""
OF_SYNCS = NAMED | {"SyncError", "VolumeBusy"}
FENCED_SECONDS = LOST_SECONDS - BEAT_SECONDS
"""Seconds of an outage by which a node's calls have ended: the server may have heard its last word a beat before."""
WRITTEN_SECONDS = 0.005
"""Seconds that a line's time may be behind: it is taken before the write, and the client's after the answer."""


def check(history: History) -> list[str]:
    """Return a line for each broken promise; none where all are kept."""
    found = [line for made in history.calls.values() for line in _of_call(history, made)]
    unknown = [one for one in history.executions if called(one.token) not in history.calls]
    found += [f"{one.token}: ran on {one.node}, and no client called it" for one in unknown]
    found += [line for outage in history.outages for line in _after_lease(history, outage)]
    return found


def _of_call(history: History, made: Made) -> Iterator[str]:
    if not made.outcomes:
        yield f"{made.token} ({made.kind}): is lost, without an answer or an error"
    if len(made.outcomes) > 1:
        yield f"{made.token} ({made.kind}): has {len(made.outcomes)} outcomes: {made.outcomes}"
    executions = history.executions_of.get(made.token, [])
    for outcome in made.outcomes:
        if outcome.told.startswith("wrong"):
            yield f"{made.token} ({made.kind}): {outcome.told}"
        elif outcome.error and outcome.error not in (OF_SYNCS if made.kind == "sync" else NAMED):
            yield f"{made.token} ({made.kind}): ended with {outcome.error}: {outcome.told}"
        elif outcome.execution:
            yield from _of_answer(made, outcome.execution, executions)
    yield from _of_executions(made, executions)
    for token in history.nested_in.get(made.token, ()):
        yield from _of_executions(made, history.executions_of[token])


def _of_answer(made: Made, answered: str, executions: list[Execution]) -> Iterator[str]:
    if answered not in {one.id for one in executions}:
        yield f"{made.token} ({made.kind}): was answered by {answered}, which wrote nothing"
    elif executions[-1].id != answered or not executions[-1].complete:
        yield f"{made.token} ({made.kind}): was answered by {answered}, and ran again or on: {executions}"


def _of_executions(made: Made, executions: list[Execution]) -> Iterator[str]:
    if len(executions) > 1 + made.retries:
        yield f"{made.token} ({made.kind}): ran {len(executions)} times with retries={made.retries}: {executions}"
    for earlier, later in itertools.pairwise(executions):
        if earlier.last >= later.first:
            over = earlier.last - later.first
            yield f"{made.token} ({made.kind}): wrote on {earlier.node} for {over:.3f} s while it ran on {later.node}"
    ends = [one.at for one in made.outcomes if not one.may_run]
    if ends and executions:
        late = max(one.last for one in executions) - min(ends)
        if late > WRITTEN_SECONDS:
            yield f"{made.token} ({made.kind}): wrote {late:.3f} s after its end, {made.outcomes[0]}"


def _after_lease(history: History, outage: Outage) -> Iterator[str]:
    for one in history.executions:
        wrote = min(one.last, outage.ended) - outage.began
        if one.node == outage.node and one.first < outage.ended and wrote > FENCED_SECONDS:
            yield f"{one.token}: wrote on {one.node} until {wrote:.1f} s after its last word"


def longest_after(history: History) -> float:
    """Return the most seconds for which executions wrote after a node's last word, where it lost its lease."""
    writes = [
        min(one.last, outage.ended) - outage.began
        for outage in history.outages
        if outage.ended - outage.began > FENCED_SECONDS
        for one in history.executions
        if one.node == outage.node and one.first < outage.began < one.last
    ]
    return max(writes, default=0.0)
