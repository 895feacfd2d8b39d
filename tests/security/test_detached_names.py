"""Names, texts and numbers that one user chooses: they reach no detached call and no record of another user."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from atoll import errors
from atoll.host import detached
from atoll.model import spool
from atoll.model.stored_call import StoredCall
from atoll.sdk.detached.handle import CallHandle
from tests.conftest import own_home
from tests.waiting import until

from .two_users import UserHost, Users, on, two_users


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    with own_home() as home, two_users(home) as made:
        yield made


def answer(go: str) -> str:
    import time

    while go and not os.path.exists(go):
        time.sleep(0.02)
    return "of ann"


def evil(go: str) -> str:
    return f"bob's code as uid {os.getuid()}"


def evil_spool(host: UserHost, call: str, batch: str = "") -> Callable[[], Iterable[Any]]:
    """Return what makes a spool of a user's own function for a call of this id, without the client's care."""
    request = on(host, evil)._prepare().request(("",), {})
    return lambda: spool.pieces(StoredCall(*request), [replace(request.call, id=call)], batch=batch)


def row(users: Users, call: str) -> dict[str, Any]:
    connection = sqlite3.connect(users.settings.detached_directory / "calls.db")
    connection.row_factory = sqlite3.Row
    with contextlib.closing(connection):
        return dict(connection.execute("SELECT * FROM calls WHERE call = ?", (call,)).fetchone())


@pytest.fixture
def waiting(users: Users) -> Iterator[CallHandle[str]]:
    """A detached call of Ann's that waits behind another one of the same function."""
    go = users.settings.volumes_directory / "u-ann" / "data" / "go"
    function = on(users.ann, answer, max_concurrency=1)
    first = function.spawn("/data/go")
    until(lambda: row(users, first.id)["state"] == "running")
    yield function.spawn("")
    go.touch()
    assert first.result() == "of ann"
    go.unlink()


def let(users: Users) -> None:
    (users.settings.volumes_directory / "u-ann" / "data" / "go").touch()


@pytest.mark.parametrize("known", ["spool", "request"])
@pytest.mark.parametrize("verb", ["renew", "accept", "renew a batch of his"])
def test_no_spool_of_one_user_takes_the_place_of_another(
    users: Users, waiting: CallHandle[str], verb: str, known: str
) -> None:
    """Bob knows all ids of Ann's waiting call, the name of its file included, and sends a spool under each of them."""
    victim = row(users, waiting.id)
    name = victim.get(known) or victim["spool"]
    path = users.settings.detached_directory / "spools" / victim["spool"]
    before = path.read_bytes()
    if verb == "accept":
        with contextlib.suppress(errors.AtollError):
            detached.accept(users.bob, name, evil_spool(users.bob, f"{waiting.id[:-1]}x"))
    elif verb == "renew":
        with contextlib.suppress(errors.AtollError):
            assert detached.renew(users.bob, name, "nobatch-1", evil_spool(users.bob, waiting.id)) == 0
    else:
        batch = on(users.bob, fail).spawn_map([1])
        until(lambda: users.bob.request("detached.counts", {"batch": batch.id})["counts"] == {"error": 1})
        assert detached.renew(users.bob, name, batch.id, evil_spool(users.bob, waiting.id)) == 1
    assert path.read_bytes() == before
    let(users)
    assert waiting.result(timeout=60) == "of ann"


def fail(number: int) -> None:
    raise ValueError(number)


def test_no_call_has_the_id_of_anothers(users: Users, waiting: CallHandle[str]) -> None:
    """A spool with Ann's id, alone or behind one of Bob's own, is refused whole, and changes nothing of hers."""
    with pytest.raises(errors.ProtocolMismatch, match="the id of another one"):
        detached.accept(users.bob, "bobs-spool-1", evil_spool(users.bob, waiting.id))
    request = on(users.bob, evil)._prepare().request(("",), {})
    calls = [replace(request.call, id=one) for one in ("bobs-own-1", waiting.id)]
    with pytest.raises(errors.ProtocolMismatch, match="the id of another one"):
        detached.accept(users.bob, "bobs-spool-2", lambda: spool.pieces(StoredCall(*request), calls))
    left = users.settings.detached_directory / "spools"
    assert row(users, waiting.id)["spool"] in os.listdir(left)
    assert not {one["call"] for one in users.bob.request("detached.list", {})["calls"]} & {"bobs-own-1", waiting.id}
    let(users)
    assert waiting.result(timeout=60) == "of ann"


def test_an_id_tells_no_other_one(users: Users) -> None:
    """Ids of one program's detached calls have nothing in common from which the next could be told."""
    function = on(users.bob, evil)
    calls = [function.spawn("").id, *(item.id for item in function.spawn_map([""] * 3).items())]
    assert len({one.partition("-")[2] for one in calls}) == len(calls)


# --- texts and numbers ------------------------------------------------------------------------------------------------

HALF = "\ud800"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("calls.list", {"function": HALF}),
        ("calls.list", {"parent": "x\0"}),
        ("calls.list", {"since": 10**400}),
        ("calls.list", {"since": float("nan")}),
        ("calls.list", {"since": float("inf")}),
        ("calls.show", {"call": HALF * 5}),
        ("calls.cancel", {"call": HALF * 5}),
        ("calls.usage", {"since": -(10**30)}),
        ("detached.show", {"call": HALF * 5}),
        ("detached.items", {"batch": "x", "kind": "all", "after": 10**22}),
        ("detached.wait", {"call": "x", "revision": 1 << 63}),
        ("detached.counts", {"batch": "x", "seconds": float("nan")}),
        ("detached.batches", {"start": HALF}),
        ("environments.show", {"key": HALF}),
        ("volume.restore", {"name": HALF}),
        ("secrets.set", {"name": HALF, "value": "A"}),
        ("capacity", {"deep": {HALF: [1]}}),
        (HALF, {}),
    ],
)
def test_values_that_nothing_takes_are_refused_at_the_entrance(users: Users, name: str, arguments: Any) -> None:
    """Each is the asker's mistake, not a failure of the node."""
    with pytest.raises(errors.ProtocolMismatch, match="the arguments have"):
        users.bob.request(name, arguments)


def double(number: int) -> int:
    return number * 2


@pytest.mark.parametrize("claim", [{"call": HALF, "at": 1.0, "parent": ""}, {"call": "c", "at": 1e999, "parent": HALF}])
def test_nobodys_records_go_by_anothers_values(users: Users, claim: dict[str, Any]) -> None:
    """Bob asks and calls with texts that SQLite does not take, while Ann calls: each of her calls has its record."""
    hers = on(users.ann, double)
    before = len(users.ann.request("calls.list", {"limit": 1000})["calls"])
    spec = {**on(users.bob, double)._prepare().request((1,), {}).spec.to_data(), "env": {"A": "\0"}}
    for number in range(5):
        for function in (HALF, "f"):
            with contextlib.suppress(errors.AtollError, ValueError):
                users.bob.request("calls.list", {"function": HALF})
            channel = users.bob.connect({"type": "lease", "spec": {**spec, "function": function}, "for": claim})
            assert channel.receive().header["type"] == "failed"
            channel.close()
        assert hers(number) == number * 2
    until(lambda: len(users.ann.request("calls.list", {"limit": 1000})["calls"]) == before + 5)
