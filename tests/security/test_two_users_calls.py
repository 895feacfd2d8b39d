"""One user's attacks on the calls of another, through the requests that a server passes on: all must fail."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import errors
from atoll.host import daemon_start
from tests.conftest import own_home
from tests.waiting import until

from .two_users import Users, on, two_users


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    with own_home() as home, two_users(home) as made:
        yield made


def write(text: str) -> tuple[int, list[str]]:
    with open("/data/note.txt", "w") as file:
        file.write(text)
    return os.getuid(), sorted(name for name in os.listdir("/data") if not name.startswith("."))


def wait(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.02)
    return "done"


def test_each_user_has_a_volume_and_an_identity(users: Users) -> None:
    """Files of one are in no `/data` of another, and belong to another host uid where the node is root's."""
    ann, files = on(users.ann, write)("ann")
    bob, others = on(users.bob, write)("bob")
    assert files == others == ["note.txt"]
    assert (users.settings.volumes_directory / "u-ann" / "data" / "note.txt").read_text() == "ann"
    assert (users.settings.volumes_directory / "u-bob" / "data" / "note.txt").read_text() == "bob"
    if os.geteuid() == 0:
        assert len({0, ann, bob}) == 3
        assert {(users.settings.volumes_directory / one).stat().st_mode & 0o777 for one in ("u-ann", "u-bob")} == {
            0o700
        }


def test_a_running_call_is_seen_and_reached_by_its_user_alone(users: Users) -> None:
    """Another user's id answers as an unknown one, in every request that names a call."""
    running = on(users.ann, wait, keep_alive=30).submit("/data/go")
    row = until(lambda: users.ann.request("calls.running", {})["calls"])[0]
    assert len(users.ann.request("status", {})["workers"]) >= 1
    assert users.bob.request("calls.running", {})["calls"] == []
    found = users.bob.request("status", {})
    assert {one["user"] for one in found["sandboxes"]} <= {"u-bob"}
    assert "wait" not in {one["function"].rpartition(".")[2] for one in found["workers"]}
    assert (found["calls"], found["daemon"]["home"]) == ([], "")
    for name in ("calls.show", "calls.output", "calls.cancel", "calls.stacks"):
        with pytest.raises(errors.AtollError) as seen:
            users.bob.request(name, {"call": row["call"]})
        with pytest.raises(errors.AtollError) as unknown:
            users.bob.request(name, {"call": "c" * len(row["call"])})
        assert type(seen.value) is type(unknown.value)
        assert seen.value.message.replace(row["call"], "") == unknown.value.message.replace("c" * len(row["call"]), "")
    (users.settings.volumes_directory / "u-ann" / "data" / "go").touch()
    assert running.result() == "done"


def test_only_the_operator_ends_the_node(users: Users) -> None:
    """A user's request to stop or drain is refused."""
    for name in ("stop", "drain"):
        with pytest.raises(errors.ResourcesUnavailable, match="for administrators"):
            users.bob.request(name, {})


def test_no_user_asks_for_another(users: Users, tmp_path: Path) -> None:
    """A message names one user, never the node's owner, and nothing that the node does not know."""
    for wrong in ({"user": "local"}, {"user": "../x"}, {"user": "a", "root": True}, {"user": "a", "limits": {"x": 1}}):
        channel = daemon_start.open_connection(
            users.settings, {"type": "request", "name": "status", "arguments": {}, "as": wrong}
        )
        assert channel.receive().header["error"]["code"] == "protocol_mismatch"
        channel.close()


def double(number: int) -> int:
    return number * 2


def test_detached_calls_are_made_in_their_users_name(users: Users) -> None:
    """They see that user's `/data`, and no other user finds them by id, list or batch."""
    job = on(users.ann, write).spawn("detached")
    uid, _ = job.result()
    assert (users.settings.volumes_directory / "u-ann" / "data" / "note.txt").read_text() == "detached"
    assert os.geteuid() != 0 or uid == (users.settings.volumes_directory / "u-ann").stat().st_uid
    assert users.bob.request("detached.list", {})["calls"] == []
    assert len(users.ann.request("detached.list", {})["calls"]) == 1
    for verb in ("show", "cancel", "result", "output", "forget", "wait"):
        with pytest.raises(errors.CallUnknown):
            users.bob.request(f"detached.{verb}", {"call": job.id})
