"""Schedules and activations as the database keeps them: questions and changes, each in the caller's transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, Select, bindparam, func, select, update

from atoll import errors
from atoll.model.schedule_rules import MISSED, OVERLAPS
from atoll.server.database.tables import users
from atoll.server.endpoints.tables import revisions
from atoll.server.schedules import bodies, crons
from atoll.server.schedules.planning import admitted, plan
from atoll.server.schedules.tables import activations, schedules
from atoll.terminal_text import cell

ACTIVE, PAUSED, CANCELLED = "active", "paused", "cancelled"
LIVE = ("due", "queued", "sent")
"""States of activations without an end."""
MOST_SCHEDULES = 1000
"""Schedules of one user that are not cancelled."""
MOST_KEPT = 1000
"""Activations of one schedule that are over."""
KEPT_SECONDS = 90 * 86400.0
"""Seconds for which a cancelled schedule, and an activation that is over, are kept."""
_CHUNK = 500


@dataclass(frozen=True)
class Sent:
    """An activation that is to be sent, or is under way.

    Args:
        id: of its call.
        user, owner, workers: the owner's id, name and bound.
        at: its moment.
        made: when it was made.
    """

    id: str
    schedule: str
    revision: str
    user: str
    owner: str
    workers: int
    at: float
    made: float
    state: str


@dataclass(frozen=True)
class Ended:
    """The end of an activation."""

    id: str
    started: float
    ended: float
    outcome: str
    reason: str = ""


def check(rule: bodies.Rule) -> None:
    """Check a rule.

    Raises:
        CallerError: it is none.
    """
    crons.check(rule.cron, rule.timezone)
    for name, value, known in (("overlap", rule.overlap, OVERLAPS), ("missed", rule.missed, MISSED)):
        if value not in known:
            raise errors.CallerError(
                f"`{cell(value, 20)}` is no value of `{name}`", hint=f"give one of {', '.join(known)}"
            )


def add(connection: Connection, user: str, revision: str, rule: bodies.Rule, app: str = "") -> str:
    """Add a schedule of a revision of this user; return its id.

    Raises:
        CallerError: the user has too many.
    """
    mine = (schedules.c.user == user) & (schedules.c.state != CANCELLED)
    if (connection.execute(select(func.count()).where(mine)).scalar() or 0) >= MOST_SCHEDULES:
        raise errors.CallerError(
            f"a user has at most {MOST_SCHEDULES} schedules", hint="cancel some: `atoll crons list`"
        )
    now, name = time.time(), str(uuid4())
    values = {"id": name, "user": user, "revision": revision, "app": app, "state": ACTIVE, "created": now}
    connection.execute(schedules.insert().values(**values, **_columns(rule, now)))
    return name


def _columns(rule: bodies.Rule, now: float) -> dict[str, Any]:
    found = {name: getattr(rule, name) for name in ("cron", "timezone", "overlap", "missed")}
    return {**found, "next_run": crons.after(rule.cron, rule.timezone, now)}


def change(connection: Connection, name: str, revision: str, rule: bodies.Rule) -> None:
    """Give a schedule another revision and rule; its history stays, and one that is paused stays so."""
    before = connection.execute(select(schedules).where(schedules.c.id == name)).one()
    values: dict[str, Any] = {"revision": revision}
    if rule_of(before) != rule:  # else the next run stays, due as it may be
        values |= _columns(rule, time.time())
    if before.state != ACTIVE:
        values["next_run"] = 0.0
    connection.execute(schedules.update().where(schedules.c.id == name).values(**values))


def rule_of(row: Any) -> bodies.Rule:
    """Return the rule of a row."""
    return bodies.Rule(row.cron, row.timezone, row.overlap, row.missed)


def _shown(row: Row[Any]) -> bodies.Schedule:
    return bodies.Schedule(
        row.id, row.function, row.revision, rule_of(row), row.state, row.created, row.next_run, row.app
    )


def _selected() -> Select[Any]:
    return select(*schedules.c, revisions.c.function).join(revisions, revisions.c.id == schedules.c.revision)


def all_of(connection: Connection, user: str) -> list[bodies.Schedule]:
    """Return a user's schedules, the newest first."""
    query = _selected().where(schedules.c.user == user).order_by(schedules.c.created.desc(), schedules.c.id)
    return [_shown(row) for row in connection.execute(query)]


def find(connection: Connection, user: str, name: str) -> bodies.Schedule:
    """Return a user's schedule.

    Raises:
        CallerError: this user has none of this id.
    """
    row = connection.execute(_selected().where(schedules.c.user == user, schedules.c.id == name)).first()
    if row is None:
        raise errors.CallerError(f"there is no schedule `{cell(name, 70)}`", hint="see `atoll crons list`", status=404)
    return _shown(row)


def set_state(connection: Connection, user: str, name: str, state: str) -> bodies.Schedule:
    """Pause, resume or cancel a schedule; runs of the time that it was paused are not missed.

    Raises:
        CallerError: this user has none of this id, or it is cancelled.
    """
    found = find(connection, user, name)
    if found.state == CANCELLED and state != CANCELLED:
        raise errors.CallerError(
            "a cancelled schedule does not run again", hint="make it anew: `atoll function schedule CRON FILE FUNC`"
        )
    if found.state == state:
        return found
    following = crons.after(found.rule.cron, found.rule.timezone, time.time()) if state == ACTIVE else 0.0
    where = schedules.c.id == name
    connection.execute(schedules.update().where(where).values(state=state, next_run=following))
    if state == CANCELLED:  # what runs goes on; what has not begun does not begin
        waiting = (activations.c.schedule == name) & (activations.c.state == "queued")
        values = {"state": "skipped", "reason": "the schedule was cancelled", "ended": time.time()}
        connection.execute(activations.update().where(waiting).values(**values))
    return find(connection, user, name)


def history(connection: Connection, name: str, limit: int, offset: int = 0) -> list[bodies.Activation]:
    """Return the activations of a schedule, the newest first."""
    query = select(activations).where(activations.c.schedule == name).order_by(activations.c.due.desc())
    return [_activation(row) for row in connection.execute(query.limit(limit).offset(offset))]


def between(
    connection: Connection, user: str, start: float, end: float, limit: int
) -> list[tuple[str, str, float, str]]:
    """Return the newest runs of a user's schedules from a moment to another: schedule, function, moment and state.

    The state of a run that is over is its outcome.
    """
    query = select(activations, revisions.c.function).join(schedules, schedules.c.id == activations.c.schedule)
    query = query.join(revisions, revisions.c.id == schedules.c.revision).where(schedules.c.user == user)
    query = query.where(activations.c.due >= start, activations.c.due < end).order_by(activations.c.due.desc())
    found = [(row, _activation(row)) for row in connection.execute(query.limit(limit))]
    return [(row.schedule, row.function, one.due, one.outcome or one.state) for row, one in found]


def activation(connection: Connection, name: str, wanted: str) -> bodies.Activation:
    """Return an activation of a schedule.

    Raises:
        CallerError: it has none of this id.
    """
    where = (activations.c.schedule == name) & (activations.c.id == wanted)
    row = connection.execute(select(activations).where(where)).first()
    if row is None:
        raise errors.CallerError(
            f"the schedule has no activation `{cell(wanted, 70)}`", hint="see `atoll crons activations ID`", status=404
        )
    return _activation(row)


def _activation(row: Row[Any]) -> bodies.Activation:
    state = {"due": "waiting", "queued": "waiting", "sent": "running"}.get(row.state, row.state)
    return bodies.Activation(row.id, row.due, state, row.started, row.ended, row.outcome, row.reason)


# --- the clock's part -------------------------------------------------------------------------------------------------


def next_runs(connection: Connection) -> list[tuple[float, str]]:
    """Return the next run of each active schedule, with its id."""
    query = select(schedules.c.next_run, schedules.c.id).where(schedules.c.state == ACTIVE, schedules.c.next_run > 0)
    return [(row[0], row[1]) for row in connection.execute(query)]


def fire(connection: Connection, names: Sequence[str], now: float) -> tuple[list[Sent], list[tuple[float, str]]]:
    """Make activations of the schedules that are due, and set their next runs.

    Another server of the same database that fires them at the same time waits, and finds them fired.

    Return the activations that begin now, and the next runs with the schedules' ids.
    """
    found: list[Any] = []
    for chunk in _chunks(sorted(names)):  # in one order, so that no two wait for each other
        test = schedules.c.id.in_(chunk) & (schedules.c.state == ACTIVE) & (schedules.c.next_run > 0)
        query = select(*schedules.c, users.c.name.label("owner"), users.c.workers)
        query = query.join(users, users.c.id == schedules.c.user).where(test).order_by(schedules.c.id)
        found += connection.execute(query.with_for_update(of=schedules))
    due = [row for row in found if row.next_run <= now]
    live, queued = _live(connection, [row.id for row in due if row.overlap != "allow"])
    added: list[dict[str, Any]] = []
    sent, following = [], [(row.next_run, row.id) for row in found if row.next_run > now]
    for row in due:
        planned = plan(partial(crons.after, row.cron, row.timezone), row.next_run, now, row.missed)
        runs = admitted(row.overlap, planned.begin, live[row.id], queued[row.id])
        if planned.dropped and planned.dropped not in planned.begin:
            runs.append((planned.dropped, "skipped", "the server was away; earlier runs may be missed, too"))
        for at, state, reason in runs:
            new = Sent(str(uuid4()), row.id, row.revision, row.user, row.owner, row.workers, at, now, state)
            added.append(_new(new, reason, now))
            if state == "due":
                sent.append(new)
        following.append((planned.next, row.id))
    if added:
        connection.execute(activations.insert(), added)
    if due:
        renewed = update(schedules).where(schedules.c.id == bindparam("name")).values(next_run=bindparam("at"))
        changed = [{"name": name, "at": at} for at, name in following]
        connection.execute(renewed, changed)
    return sent, [one for one in following if one[0]]


def _new(one: Sent, reason: str, now: float) -> dict[str, Any]:
    return {
        "id": one.id,
        "schedule": one.schedule,
        "revision": one.revision,
        "due": one.at,
        "made": now,
        "state": one.state,
        "started": 0.0,
        "ended": now if one.state == "skipped" else 0.0,
        "outcome": "",
        "reason": reason,
    }


def _live(connection: Connection, names: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Return how many activations of each schedule are under way, and how many wait for these."""
    live: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    for chunk in _chunks(names):
        test = activations.c.schedule.in_(chunk) & activations.c.state.in_(LIVE)
        query = select(activations.c.schedule, activations.c.state, func.count()).where(test)
        for name, state, count in connection.execute(query.group_by(activations.c.schedule, activations.c.state)):
            live[name] += count
            if state == "queued":
                queued[name] += count
    return live, queued


def under_way(connection: Connection) -> list[Sent]:
    """Return the activations that are to be sent, or have been, and have no end; the oldest first."""
    return _sent(connection, activations.c.state.in_(("due", "sent")))


def _sent(connection: Connection, test: Any) -> list[Sent]:
    columns = (
        *(activations.c.id, activations.c.schedule, activations.c.revision, schedules.c.user),
        *(
            users.c.name.label("owner"),
            users.c.workers,
            activations.c.due.label("at"),
            activations.c.made,
            activations.c.state,
        ),
    )
    query = select(*columns).join(schedules, schedules.c.id == activations.c.schedule)
    query = query.join(users, users.c.id == schedules.c.user).where(test).order_by(activations.c.due)
    return [Sent(**row._mapping) for row in connection.execute(query)]


def note(connection: Connection, begun: Sequence[str], ended: Sequence[Ended]) -> list[Sent]:
    """Note that activations were sent, and that others are over; return those that waited for these and begin now."""
    mine = activations.c.id == bindparam("name")
    if begun:
        sending = update(activations).where(mine, activations.c.state == "due").values(state="sent")
        connection.execute(sending, [{"name": name} for name in begun])
    if not ended:
        return []
    begins = (activations.c.state == "due") | (activations.c.state == "sent")  # `IN` goes with one row at a time only
    over = update(activations).where(mine, begins)
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in ("started", "ended", "outcome", "reason")}
    connection.execute(
        over.values(state="finished", **values),
        [{"name": one.id, **{f"new_{name}": getattr(one, name) for name in values}} for one in ended],
    )
    return _released(connection, [one.id for one in ended])


def _released(connection: Connection, over: Sequence[str]) -> list[Sent]:
    """Let the first one begin that waits for an activation that is over, where no other is under way."""
    begun: list[str] = []
    for chunk in _chunks(over):
        of = select(activations.c.schedule).where(activations.c.id.in_(chunk))
        waiting = select(activations.c.schedule, func.min(activations.c.due))
        waiting = waiting.where(activations.c.schedule.in_(of), activations.c.state == "queued")
        busy = select(activations.c.schedule).where(activations.c.state.in_(("due", "sent")))
        waiting = waiting.where(activations.c.schedule.not_in(busy)).group_by(activations.c.schedule)
        for name, at in connection.execute(waiting).all():
            test = (activations.c.schedule == name) & (activations.c.due == at)
            begun.append(connection.execute(select(activations.c.id).where(test)).scalar_one())
            connection.execute(activations.update().where(test).values(state="due"))
    return _sent(connection, activations.c.id.in_(begun)) if begun else []


def expire(connection: Connection, now: float) -> None:
    """Remove activations that are over and old, or more than a schedule keeps, and schedules cancelled long ago."""
    over = activations.c.state.in_(("finished", "skipped"))
    oldest = now - KEPT_SECONDS
    connection.execute(activations.delete().where(over, activations.c.due < oldest))
    many = select(activations.c.schedule).group_by(activations.c.schedule).having(func.count() > MOST_KEPT)
    for (name,) in connection.execute(many).all():
        of = activations.c.schedule == name
        newest = select(activations.c.due).where(of).order_by(activations.c.due.desc()).offset(MOST_KEPT).limit(1)
        bound = connection.execute(newest).scalar_one()
        connection.execute(activations.delete().where(of, over, activations.c.due <= bound))
    having = select(activations.c.schedule)
    gone = (schedules.c.state == CANCELLED) & (schedules.c.created < oldest) & schedules.c.id.not_in(having)
    connection.execute(schedules.delete().where(gone))


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(names), _CHUNK):
        yield names[start : start + _CHUNK]
