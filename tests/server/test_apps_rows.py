"""Apps as a database of each kind keeps them: deployed, scaled, rolled back and deleted, in one transaction each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from atoll import errors
from atoll.server.accounts import rows as accounts
from atoll.server.apps import bodies, rows
from atoll.server.apps.bodies import CALLED, SCHEDULED, SERVED
from atoll.server.database.database import Database
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.endpoints.bodies import Options
from atoll.server.schedules import rows as schedule_rows
from atoll.server.schedules.bodies import Rule

from . import postgresql


@pytest.fixture
def database(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """A database of each kind with a user `ann`."""
    tmp_path.chmod(0o700)
    postgresql.empty(database_url)
    with Database(tmp_path, database_url) as found:
        with found.writing() as connection:
            accounts.add_user(connection, "ann")
        yield found


def user_of(database: Database) -> str:
    with database.reading() as connection:
        return accounts.find_user(connection, "ann").id


def deployed(database: Database, *names: str, app: str = "shop") -> bodies.App:
    """Deploy functions whose names begin with their kinds."""
    functions = []
    for name in names:
        kind = {"web": SERVED, "tick": SCHEDULED}.get(name.partition("_")[0], CALLED)
        rule = Rule("@daily") if kind == SCHEDULED else None
        alias = name.replace("_", "-") if kind == SERVED else ""
        functions.append(bodies.NewFunction(name, kind, 10, 8080, alias, "private", Options(), rule))
    revised = {name: (str(uuid4()), 10) for name in names}
    user = user_of(database)
    with database.writing() as connection:
        return rows.deploy(connection, user, bodies.NewDeployment(app, functions), revised)[0]


def test_an_app_comes_changes_and_goes(database: Database) -> None:
    """Aliases and schedules are as the deployment says; scaled options stay; to go back brings back what was there."""
    user = user_of(database)
    first = deployed(database, "web_page", "tick", "price")
    with database.writing() as connection:
        rows.scale(connection, user, "shop", bodies.Scale({"max_concurrency": 7}))
        with pytest.raises(errors.CallerError, match="no option"):
            rows.scale(connection, user, "shop", bodies.Scale({"speed": 7}))
    second = deployed(database, "web_page", "other")
    kinds = {one.name: one for one in second.functions}
    assert kinds["web_page"].options is not None
    assert kinds["web_page"].options.max_concurrency == 7
    with database.writing() as connection:
        (schedule,) = schedule_rows.all_of(connection, user)
        assert schedule.state == schedule_rows.CANCELLED
        back, changes = rows.roll_back(connection, user, "shop", "")
        assert back.deployment == first.deployment
        assert changes.retired == {kinds["web_page"].revision}
        assert [one.state for one in schedule_rows.all_of(connection, user)].count(schedule_rows.ACTIVE) == 1
        found = endpoint_rows.find(connection, "ann", "web-page")
        assert found is not None
        assert found.id == next(one.revision for one in first.functions if one.name == "web_page")
        _, changes = rows.delete(connection, user, "shop")
        assert endpoint_rows.find(connection, "ann", "web-page") is None
        assert rows.all_of(connection, user) == []
        assert endpoint_rows.known(connection, sorted(changes.unneeded)) == set()


def test_an_alias_is_one_apps(database: Database) -> None:
    """Another app cannot take it, and a refused deployment leaves nothing."""
    deployed(database, "web_page")
    with pytest.raises(errors.CallerError, match="alias `web-page` is one of the app `shop`"):
        deployed(database, "web_page", app="other")
    with database.reading() as connection:
        assert [one.app for one in rows.all_of(connection, user_of(database))] == ["shop"]
        assert len(endpoint_rows.all_of(connection, user_of(database))) == 1


def test_deployments_at_the_same_time_are_one_after_the_other(database: Database) -> None:
    """Each is whole: the app is as one of them says, and no alias is left of another."""
    deployed(database, "web_first")
    start = threading.Barrier(4)

    def deploy(number: int) -> Any:
        start.wait()
        try:
            return deployed(database, f"web_{number}", f"price_{number}")
        except errors.AtollError as error:  # another one was faster
            return error

    with ThreadPoolExecutor(4) as threads:
        made = [one.result() for one in [threads.submit(deploy, number) for number in range(4)]]
    assert any(isinstance(one, bodies.App) for one in made)
    user = user_of(database)
    with database.reading() as connection:
        app = rows.find(connection, user, "shop")
        served = {one.alias for one in app.functions if one.kind == SERVED}
        assert {alias for alias, _, _ in endpoint_rows.aliases_of(connection, user)} == served
