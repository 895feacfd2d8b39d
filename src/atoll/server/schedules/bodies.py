"""Bodies and answers of the routes of schedules."""

from __future__ import annotations

import msgspec


class Rule(msgspec.Struct, frozen=True):
    """When a function is called.

    Args:
        cron: the expression; see `crons`.
        timezone: in which it is meant.
        overlap: of a run whose predecessor has not ended: `skip`, `queue` or `allow`.
        missed: of runs while the server was away: `skip`, `once` or `all`; see `planning`.
    """

    cron: str
    timezone: str = "UTC"
    overlap: str = "skip"
    missed: str = "skip"


class NewSchedule(msgspec.Struct, frozen=True):
    """A function to be called by the clock; its spool follows in the body."""

    function: str
    rule: Rule


class Schedule(msgspec.Struct, frozen=True):
    """A schedule; `state` is `active`, `paused` or `cancelled`, `next_run` 0 where there is none."""

    id: str
    function: str
    revision: str
    rule: Rule
    state: str
    created: float
    next_run: float
    app: str = ""


class Schedules(msgspec.Struct, frozen=True):
    """The caller's schedules, the newest first."""

    schedules: list[Schedule]


class Activation(msgspec.Struct, frozen=True):
    """One run of a schedule.

    Args:
        id: of its detached call, too.
        due: the moment of the schedule.
        state: `waiting`, `running`, `finished` or `skipped`.
        started, ended: 0 for not yet.
        outcome: of the call; empty for none.
        reason: of a run that was skipped or failed.
    """

    id: str
    due: float
    state: str
    started: float
    ended: float
    outcome: str
    reason: str


class Activations(msgspec.Struct, frozen=True):
    """Runs of a schedule, the newest first."""

    activations: list[Activation]
