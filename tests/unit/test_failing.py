"""Rests after failures of an endpoint's runners."""

from __future__ import annotations

from atoll.cli.functions.states import state_of
from atoll.server.endpoints.runners.failing import LEAST_SECONDS, MOST_SECONDS, Failing


def test_rests_grow_to_a_bound_and_an_end_of_failures_forgets_them() -> None:
    """Each rest is twice the one before, up to the longest; failures within a rest do not lengthen it."""
    failing, now, rests = Failing(), 100.0, []
    assert failing.rest_seconds(now) == 0
    for number in range(12):
        failing.failed(f"error {number}", now)
        rests.append(failing.rest_seconds(now))
        failing.failed("another at the same time", now + rests[-1] / 2)
        assert failing.rest_seconds(now) == rests[-1]
        now += rests[-1]
    assert rests == [min(LEAST_SECONDS * 2**number, MOST_SECONDS) for number in range(12)]
    assert (failing.failures, failing.error) == (12, "another at the same time")
    failing.started()
    assert (failing.failures, failing.error) == (12, "")
    failing.failed("soon after", now)
    assert failing.rest_seconds(now) == MOST_SECONDS
    failing.over()
    assert failing.rest_seconds(now) == 0
    failing.failed("anew", now)
    assert failing.rest_seconds(now) == LEAST_SECONDS


def test_states_are_texts() -> None:
    """Workers are counted; a failure names its reason and the next attempt."""
    assert state_of({"runners": 0, "failing": None}) == "idle"
    assert state_of({"runners": 1, "failing": None}) == "1 worker"
    failing = {"error": "ValueError: no model", "failures": 3, "next_try": 0.0}
    assert state_of({"runners": 0, "failing": failing}) == "failing: ValueError: no model, next try by a request"
    shown = state_of({"runners": 0, "failing": {**failing, "next_try": 1.0}})
    assert shown == "failing: ValueError: no model, next try in 0 s"
