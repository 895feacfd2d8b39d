"""Two users of one set of services: each has volume, records, leases and housekeeping of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll import LocalHost, Volume, errors, isolated, sync_dir
from tests.conftest import Home
from tests.waiting import until


@dataclass(frozen=True)
class Users:
    """Hosts of the two users, whose volumes are below `volumes`."""

    ann: LocalHost
    bob: LocalHost
    volumes: Path


@pytest.fixture
def users(atoll_home: Home) -> Iterator[Users]:
    server, ann, bob = (atoll_home.path / name for name in ("server", "ann", "bob"))
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("users_server.py")), str(server), str(ann), str(bob)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=atoll_home.environment(),
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        made = Users(LocalHost(ann), LocalHost(bob), server / "volumes")
        yield made
        made.ann.forget()  # closes leases and storage connections
        made.bob.forget()
        run.communicate(timeout=60)
    assert run.returncode == 0


def write(text: str) -> list[str]:
    with open("/data/note.txt", "a") as file:
        file.write(text)
    return [name for name in os.listdir("/data") if name != ".snapshots"]


def wait(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def calls_of(host: LocalHost) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.request("calls.list", {"limit": 10})["calls"]
    return found


def on(host: LocalHost, function: Callable[..., Any], **options: Any) -> Any:
    return isolated(host=host, network="none", **options)(function)


def test_each_user_has_a_volume_and_records_of_their_own(users: Users) -> None:
    """Functions of one user neither see the other's files nor share their processes' identity or calls."""
    assert on(users.ann, write)("from ann") == ["note.txt"]
    on(users.ann, write)(" twice")
    assert on(users.bob, write)("from bob") == ["note.txt"]
    texts = {name: (users.volumes / name / "data" / "note.txt").read_text() for name in ("ann", "bob")}
    assert texts == {"ann": "from ann twice", "bob": "from bob"}
    if os.geteuid() == 0:
        assert len({(users.volumes / name).stat().st_uid for name in ("ann", "bob")}) == 2
    until(lambda: len(calls_of(users.ann)) == 2)
    until(lambda: calls_of(users.bob))
    ann, bob = calls_of(users.ann), calls_of(users.bob)
    assert [(call["user"], call["function"].rpartition(".")[2]) for call in ann] == [("ann", "write")] * 2
    assert [call["user"] for call in bob] == ["bob"]
    for name in ("calls.show", "calls.output"):
        with pytest.raises(errors.ResourcesUnavailable, match="no call has an id"):
            users.bob.request(name, {"call": ann[0]["call"]})


def test_a_user_sees_and_reaches_own_workers_only(users: Users) -> None:
    """Status lists them; a dial to another user's worker finds none."""
    on(users.ann, write, keep_alive=60)("x")
    on(users.bob, write, keep_alive=60)("x")
    rows = {host: host.request("status", {}) for host in (users.ann, users.bob)}
    for host, name in ((users.ann, "ann"), (users.bob, "bob")):
        assert [sandbox["user"] for sandbox in rows[host]["sandboxes"]] == [name]
        assert len(rows[host]["workers"]) == 1
    worker = rows[users.ann]["workers"][0]["id"]
    with pytest.raises(errors.WorkerDied, match="has ended"):
        users.bob.dial(worker, 80)
    with pytest.raises(errors.PortUnreachable):
        users.ann.dial(worker, 80)


def test_a_user_without_rights_names_nothing_of_the_machine(users: Users) -> None:
    """Mounts, files as requirements, the machine's network and requests of administrators are refused."""
    with pytest.raises(errors.ResourcesUnavailable, match="`mounts` are not for this user"):
        on(users.ann, write, mounts={"/etc": "/datasets"})("x")
    with pytest.raises(errors.EnvironmentBuildError):
        on(users.ann, write, requirements=["/etc"])("x")
    with pytest.raises(errors.ResourcesUnavailable):
        isolated(host=users.ann, network="host")(write)("x")
    for name in ("stop", "drain", "environments.list", "environments.prune"):
        with pytest.raises(errors.ResourcesUnavailable, match="for administrators"):
            users.ann.request(name, {})


def test_one_users_restore_and_collection_pass_by_the_others_calls(users: Users, tmp_path: Path) -> None:
    """A restore waits for the user's own calls only, and so does the removal of replaced trees."""
    (tmp_path / "a").write_text("1")
    waiting = on(users.bob, wait)
    running = waiting.submit(30)
    sync_dir(tmp_path, "/data/tree", host=users.ann)
    with Volume(users.ann) as volume:
        kept = volume.snapshot("first", "tree")
        assert kept.name == "first"
        (tmp_path / "a").write_text("22")
        sync_dir(tmp_path, "/data/tree", host=users.ann)
        users.ann.request("volume.make_room", {})
        staging = users.volumes / "ann" / "staging"
        until(lambda: not [name for name in os.listdir(staging) if name.startswith("old-")])
        assert users.bob.request("volume.make_room", {}) == {"made": False}
        volume.restore("first")
        with volume.open("tree/a", "r") as file:
            assert file.read() == "1"
    waiting.cancel(running)
