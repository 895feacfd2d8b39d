"""Apps as the database keeps them: questions and changes, each in the caller's transaction.

Theory of operation. A deployment says which functions an app has, each with its revision. To deploy, to go back and to
delete are the same act: aliases and schedules of the app are made as the deployment says, in one transaction.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, Row, select

from atoll import errors
from atoll.server.apps import bodies
from atoll.server.apps.bodies import SCHEDULED, SERVED, Function
from atoll.server.apps.tables import apps, deployments
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.endpoints.bodies import Options
from atoll.server.endpoints.tables import aliases, revisions
from atoll.server.schedules import rows as schedule_rows
from atoll.server.schedules.tables import schedules
from atoll.terminal_text import cell

MOST_DEPLOYMENTS = 20
"""Deployments of one app that are kept."""
_LIST = list[Function]


@dataclass
class Changes:
    """The consequences of a change, for those who serve.

    Args:
        retired: revisions that no alias points to any more.
        pointed: those that one points to now.
        next_runs: of schedules, by id; 0 for none.
        unneeded: revisions that are gone, whose files go.
    """

    retired: set[str] = field(default_factory=set)
    pointed: set[str] = field(default_factory=set)
    next_runs: dict[str, float] = field(default_factory=dict)
    unneeded: set[str] = field(default_factory=set)


def _of(user: str, app: str) -> Any:
    return (apps.c.user == user) & (apps.c.app == app)


def _row(connection: Connection, user: str, app: str) -> Row[Any]:
    row = connection.execute(select(apps).where(_of(user, app))).first()
    if row is None:
        raise errors.CallerError(f"there is no app `{cell(app, 70)}`", hint="see `atoll apps list`", status=404)
    return row


def _functions(connection: Connection, deployment: str) -> list[Function]:
    text = connection.execute(select(deployments.c.functions).where(deployments.c.id == deployment)).scalar()
    return msgspec.json.decode(text, type=_LIST) if text else []


def find(connection: Connection, user: str, app: str) -> bodies.App:
    """Return an app.

    Raises:
        CallerError: this user has none of this name.
    """
    return _shown(connection, _row(connection, user, app))


def all_of(connection: Connection, user: str) -> list[bodies.App]:
    """Return a user's apps by name."""
    query = select(apps).where(apps.c.user == user).order_by(apps.c.app)
    return [_shown(connection, row) for row in connection.execute(query).all()]


def _shown(connection: Connection, row: Row[Any]) -> bodies.App:
    found = []
    for one in _functions(connection, row.deployment):
        if one.kind == SERVED:
            revision = endpoint_rows.find(connection, row.user, one.revision)
            if revision is not None:
                path = f"/{revision.owner}/{one.alias}"
                one = msgspec.structs.replace(one, path=path, options=revision.options, auth=revision.auth)
        elif one.kind == SCHEDULED:
            schedule = _schedules(connection, row.user, row.app).get(one.name)
            if schedule is not None:
                one = msgspec.structs.replace(one, schedule=schedule.id, next_run=schedule.next_run)
        found.append(one)
    return bodies.App(row.app, row.deployment, row.changed, found, _history(connection, row.user, row.app))


def _history(connection: Connection, user: str, app: str) -> list[tuple[str, float]]:
    where = (deployments.c.user == user) & (deployments.c.app == app)
    query = select(deployments.c.id, deployments.c.created).where(where).order_by(deployments.c.created.desc())
    return [(row[0], row[1]) for row in connection.execute(query)]


def _schedules(connection: Connection, user: str, app: str) -> dict[str, Any]:
    """Return the schedules of an app that are not cancelled, by the names of their functions."""
    query = select(*schedules.c, revisions.c.function).join(revisions, revisions.c.id == schedules.c.revision)
    where = (schedules.c.user == user) & (schedules.c.app == app) & (schedules.c.state != schedule_rows.CANCELLED)
    return {row.function: row for row in connection.execute(query.where(where))}


def function(connection: Connection, user: str, app: str, name: str) -> Function:
    """Return a function of an app.

    Raises:
        CallerError: this user has no such app, or it has no such function.
    """
    found = _functions(connection, _row(connection, user, app).deployment)
    for one in found:
        if one.name == name:
            return one
    known = ", ".join(f"`{app}/{one.name}`" for one in found)
    raise errors.CallerError(
        f"the app `{cell(app, 70)}` has no function `{cell(name, 70)}`", hint=f"it has {known}"[:400], status=404
    )


# --- changes ----------------------------------------------------------------------------------------------------------


def deploy(
    connection: Connection, user: str, new: bodies.NewDeployment, revised: dict[str, tuple[str, int]]
) -> tuple[bodies.App, Changes]:
    """Make a deployment and let its app be so.

    Args:
        revised: the new revision and its size of each function, by name.

    Raises:
        CallerError: an alias is another app's, or the user has too many schedules.
    """
    endpoint_rows.lock(connection, user)
    functions = []
    for one in new.functions:
        revision, size = revised[one.name]
        found = endpoint_rows.plain(revision, one.name, size)
        if one.kind == SERVED:
            options = msgspec.json.encode(one.options).decode()
            found |= {"port": one.port, "options": options, "auth": one.auth}
        endpoint_rows.add(connection, user, found, "")
        functions.append(Function(one.name, one.kind, revision, one.alias, one.auth, one.rule))
    name, now = str(uuid4()), time.time()
    text = msgspec.json.encode(functions).decode()
    connection.execute(deployments.insert().values(id=name, user=user, app=new.app, functions=text, created=now))
    row = connection.execute(select(apps).where(_of(user, new.app))).first()
    if row is None:
        values = {"user": user, "app": new.app, "deployment": "", "scaled": "{}", "changed": now}
        connection.execute(apps.insert().values(**values))
    elif new.reset_scale:
        connection.execute(apps.update().where(_of(user, new.app)).values(scaled="{}"))
    changes = _become(connection, user, new.app, name)
    _forget_old(connection, user, new.app, changes)
    return find(connection, user, new.app), changes


def roll_back(connection: Connection, user: str, app: str, wanted: str) -> tuple[bodies.App, Changes]:
    """Let an app be as in an earlier deployment; by default as in the one before the present one.

    Raises:
        CallerError: there is none.
    """
    endpoint_rows.lock(connection, user)
    row, known = _row(connection, user, app), [name for name, _ in _history(connection, user, app)]
    if not wanted:
        place = known.index(row.deployment) + 1
        wanted = known[place] if place < len(known) else ""
    if wanted not in known:
        raise errors.CallerError(
            f"the app `{cell(app, 70)}` has no {'such' if wanted else 'earlier'} deployment",
            hint="see `atoll apps show NAME`",
            status=404,
        )
    changes = _become(connection, user, app, wanted)
    return find(connection, user, app), changes


def scale(connection: Connection, user: str, app: str, asked: bodies.Scale) -> tuple[bodies.App, Changes]:
    """Give served functions of an app other options, which outlive deployments.

    Raises:
        CallerError: an option is unknown or wrong, or there is no such served function.
    """
    endpoint_rows.lock(connection, user)
    row = _row(connection, user, app)
    served = [one.name for one in _functions(connection, row.deployment) if one.kind == SERVED]
    chosen = [one for one in served if asked.function in ("", one)]
    if not chosen:
        raise errors.CallerError(
            f"the app `{cell(app, 70)}` serves no function {f'`{cell(asked.function, 70)}`' if asked.function else ''}",
            hint=f"it serves {', '.join(served)}" if served else "scheduled and called functions have no runners",
        )
    _options({}, asked.options)
    scaled = json.loads(row.scaled)
    for name in chosen:
        scaled[name] = {**scaled.get(name, {}), **asked.options}
    connection.execute(apps.update().where(_of(user, app)).values(scaled=json.dumps(scaled)))
    changes = _become(connection, user, app, row.deployment)
    return find(connection, user, app), changes


def delete(connection: Connection, user: str, app: str) -> tuple[bodies.App, Changes]:
    """Delete an app with its deployments: its aliases go, and its schedules are cancelled.

    Raises:
        CallerError: there is none.
    """
    endpoint_rows.lock(connection, user)
    found = find(connection, user, app)
    changes = _become(connection, user, app, "")
    connection.execute(apps.delete().where(_of(user, app)))
    _forget(connection, user, [name for name, _ in _history(connection, user, app)], changes)
    return found, changes


def _options(before: dict[str, Any], changed: dict[str, Any]) -> Options:
    """Return options with some changed.

    Raises:
        CallerError: one is unknown or wrong.
    """
    known = Options.__struct_fields__
    for name in changed:
        if name not in known:
            raise errors.CallerError(f"there is no option `{cell(name, 40)}`", hint=f"there are {', '.join(known)}")
    try:
        found = msgspec.convert({**before, **changed}, type=Options)
    except msgspec.ValidationError as error:
        raise errors.CallerError(f"an option is wrong: {cell(str(error), 200)}", hint="give a number") from error
    if found.max_concurrency < 1 or found.max_multiplexing < 1 or min(found.min_concurrency, found.keep_alive) < 0:
        raise errors.CallerError(
            "an option is too small", hint="`max_concurrency` and `max_multiplexing` are at least 1"
        )
    return found


def _become(connection: Connection, user: str, app: str, deployment: str) -> Changes:
    """Make the aliases and schedules of an app as a deployment says; as without any where it is empty."""
    row, changes = _row(connection, user, app), Changes()
    before, wanted = _functions(connection, row.deployment), _functions(connection, deployment)
    connection.execute(apps.update().where(_of(user, app)).values(deployment=deployment, changed=time.time()))
    scaled = json.loads(row.scaled)
    mine = {one.alias: one.revision for one in before if one.kind == SERVED}
    others = _aliases_of_others(connection, user, app)
    for one in wanted:
        if one.kind != SERVED:
            continue
        if one.alias in others:
            raise errors.CallerError(
                f"the alias `{one.alias}` is one of the app `{others[one.alias]}`",
                hint=f"give it another one: `atoll deploy FILE --alias {one.name}=NAME`",
                status=409,
            )
        if one.name in scaled:
            _rescale(connection, one.revision, scaled[one.name])
        endpoint_rows.point(connection, user, one.alias, one.revision)
        changes.pointed.add(one.revision)
    present = set(connection.execute(select(aliases.c.alias).where(aliases.c.user == user)).scalars())
    for alias in mine.keys() - {one.alias for one in wanted if one.kind == SERVED}:
        if alias in present:
            endpoint_rows.delete_alias(connection, user, alias)
    changes.retired = set(mine.values()) - changes.pointed
    _schedule(connection, user, app, wanted, changes)
    return changes


def _aliases_of_others(connection: Connection, user: str, app: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, deployment in connection.execute(select(apps.c.app, apps.c.deployment).where(apps.c.user == user)).all():
        if name != app:
            found |= {one.alias: name for one in _functions(connection, deployment) if one.kind == SERVED}
    return found


def _rescale(connection: Connection, revision: str, options: dict[str, Any]) -> None:
    where = revisions.c.id == revision
    before = json.loads(connection.execute(select(revisions.c.options).where(where)).scalar_one())
    text = msgspec.json.encode(_options(before, options)).decode()
    connection.execute(revisions.update().where(where).values(options=text))


def _schedule(connection: Connection, user: str, app: str, wanted: list[Function], changes: Changes) -> None:
    present = _schedules(connection, user, app)
    names = set()
    for one in wanted:
        if one.kind != SCHEDULED or one.rule is None:
            continue
        names.add(one.name)
        if (row := present.get(one.name)) is not None:
            schedule_rows.change(connection, row.id, one.revision, one.rule)
            name = row.id
        else:
            name = schedule_rows.add(connection, user, one.revision, one.rule, app)
        changes.next_runs[name] = schedule_rows.find(connection, user, name).next_run
    for function_name in present.keys() - names:
        row = present[function_name]
        changes.next_runs[row.id] = schedule_rows.set_state(connection, user, row.id, schedule_rows.CANCELLED).next_run


def _forget_old(connection: Connection, user: str, app: str, changes: Changes) -> None:
    present = _row(connection, user, app).deployment
    old = [name for name, _ in _history(connection, user, app)][MOST_DEPLOYMENTS:]
    _forget(connection, user, [name for name in old if name != present], changes)


def _forget(connection: Connection, user: str, names: list[str], changes: Changes) -> None:
    """Remove deployments, and their revisions that nothing needs."""
    for name in names:
        mine = {one.revision for one in _functions(connection, name)}
        connection.execute(deployments.delete().where(deployments.c.id == name, deployments.c.user == user))
        for table in (aliases, schedules):  # a cancelled schedule has its history
            mine -= set(connection.execute(select(table.c.revision).where(table.c.revision.in_(mine))).scalars())
        endpoint_rows.forget(connection, sorted(mine))
        changes.unneeded |= mine
