"""The judge of histories: forged ones are found, each for what is wrong with it, and honest ones pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from .checker import FENCED_SECONDS, check, longest_after
from .history import Execution, History, Made, Outage, Outcome, read_calls, read_executions

RAN = Execution("c", "e1", "one", 1.0, 2.0)
AGAIN = Execution("c", "e2", "two", 3.0, 4.0)
KILLED = replace(RAN, complete=False)
MADE = Made("c", "plain", 0.9, 0, (Outcome(2.1, "e1"),))
RETRIED = Made("c", "plain", 0.9, 2, (Outcome(4.1, "e2"),))


def history(*executions: Execution, made: Made = MADE, outages: tuple[Outage, ...] = ()) -> History:
    return History({made.token: made}, executions, outages)


def failed(error: str, at: float = 2.1) -> Made:
    return replace(MADE, outcomes=(Outcome(at, error=error),))


HONEST = {
    "one answer": history(RAN),
    "an error, nothing ran": history(made=failed("HostUnreachable")),
    "an error, it ran in part": history(KILLED, made=failed("WorkerDied")),
    "an answer that was lost": history(RAN, made=failed("HostUnreachable")),
    "ran again after a kill": history(KILLED, AGAIN, made=RETRIED),
    "a sync's own error": history(made=replace(failed("SyncError"), kind="sync")),
    "may have been submitted": history(
        RAN, made=replace(MADE, outcomes=(Outcome(1.1, error="HostUnreachable", may_run=True),))
    ),
    "nested": history(RAN, Execution("c.1", "e3", "one", 1.2, 1.8)),
    "ended by the lease": history(
        replace(KILLED, last=1.5 + FENCED_SECONDS - 0.1),
        made=failed("CallLost", 30.0),
        outages=(Outage("one", 1.5, 20.0),),
    ),
    "a short outage": history(
        replace(RAN, last=40.0), made=replace(MADE, outcomes=(Outcome(40.1, "e1"),)), outages=(Outage("one", 2.0, 5.0),)
    ),
    "on another node": history(
        replace(RAN, last=40.0),
        made=replace(MADE, outcomes=(Outcome(40.1, "e1"),)),
        outages=(Outage("two", 2.0, 30.0),),
    ),
}
FORGED = {
    "is lost": history(RAN, made=replace(MADE, outcomes=())),
    "has 2 outcomes": history(RAN, made=replace(MADE, outcomes=(Outcome(2.1, "e1"), Outcome(2.2, "e1")))),
    "wrong item 3": history(RAN, made=replace(MADE, outcomes=(Outcome(2.1, told="wrong item 3"),))),
    "ended with InternalError": history(made=failed("InternalError")),
    "ended with SyncError": history(made=failed("SyncError")),
    "which wrote nothing": history(RAN, made=replace(MADE, outcomes=(Outcome(2.1, "e9"),))),
    "and ran again or on": history(RAN, AGAIN, made=replace(RETRIED, outcomes=(Outcome(4.1, "e1"),))),
    "ran again or on": history(KILLED),
    "ran 2 times with retries=0": history(KILLED, AGAIN, made=replace(RETRIED, retries=0)),
    "wrote on one for 0.500 s while it ran on two": history(replace(KILLED, last=3.5), AGAIN, made=RETRIED),
    "wrote 0.900 s after its end": history(replace(RAN, last=3.0)),
    "wrote 1.900 s after its end": history(replace(KILLED, last=4.0), made=failed("HostUnreachable")),
    "no client called it": history(RAN, replace(RAN, token="x")),
    "ran 2 times": history(RAN, Execution("c.1", "e3", "one", 1.1, 1.2), Execution("c.1", "e4", "two", 1.3, 1.4)),
    "after its last word": history(
        replace(KILLED, last=1.5 + FENCED_SECONDS + 0.1),
        made=failed("CallLost", 30.0),
        outages=(Outage("one", 1.5, 20.0),),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_history_passes(name: str) -> None:
    """What may happen when machines fail is no broken promise."""
    assert check(HONEST[name]) == []


@pytest.mark.parametrize("told", FORGED)
def test_a_broken_promise_is_named(told: str) -> None:
    """Each forged history has a line that says what is wrong."""
    assert any(told in line for line in check(FORGED[told])), check(FORGED[told])


def test_the_time_until_the_kill_is_told() -> None:
    """The most that a node wrote after its last word is a figure of the run."""
    made = history(replace(KILLED, last=11.0), made=failed("CallLost", 30.0), outages=(Outage("one", 1.5, 20.0),))
    assert longest_after(made) == 9.5
    assert longest_after(history(RAN)) == 0.0


def test_logs_are_read_up_to_half_a_line(tmp_path: Path) -> None:
    """A client or an execution that was killed in the middle of a line has what it wrote before."""
    log = tmp_path / "log"
    log.write_text(
        '{"what": "begin", "token": "c", "kind": "plain", "at": 1.0, "retries": 2}\n'
        '{"what": "end", "token": "c", "at": 2.0, "execution": "e"}\n{"what": "beg'
    )
    assert read_calls([log, tmp_path / "none"]) == {"c": Made("c", "plain", 1.0, 2, (Outcome(2.0, "e"),))}
    (tmp_path / "writes").mkdir()
    (tmp_path / "writes" / "c+e+one").write_text("1000000000\n2500000000\ndone\n")
    (tmp_path / "writes" / "c+f+two").write_text("1000000000\n20")
    (tmp_path / "writes" / "c+g+two").write_text("10")
    assert read_executions(tmp_path / "writes") == [
        Execution("c", "e", "one", 1.0, 2.5),
        Execution("c", "f", "two", 1.0, 1.0, complete=False),
    ]
