"""One user's attacks on the machine's resources, and through the network: other users' calls are answered meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from tests.conftest import needs_outbound, own_home
from tests.waiting import soak, until

from .two_users import UserHost, Users, on, two_users


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    limits = {"processes": "300", "memory_bytes": str(1 << 30)}
    with own_home() as home, two_users(home, **limits) as made:
        yield made


def double(number: int) -> int:
    return number * 2


def groups_of_self() -> list[str]:
    with open("/proc/self/cgroup") as file:
        return file.read().splitlines()


def fork_bomb(path: str) -> int:
    """Start processes until none can be started any more, and keep them until a file comes."""
    count = 0
    with contextlib.suppress(OSError):
        while count < 3000:
            if os.fork() == 0:
                while not os.path.exists(path):
                    time.sleep(0.1)
                os._exit(0)
            count += 1
    with open(path + "-count", "w") as file:
        file.write(str(count))
    while not os.path.exists(path):
        time.sleep(0.05)
    return count


def memory_bomb() -> int:
    return len([bytearray(os.urandom(1) * (1 << 20)) for _ in range(4096)])


def many_files(count: int) -> int:
    os.makedirs("/data/many", exist_ok=True)
    for number in range(count):
        os.close(os.open(f"/data/many/{number}", os.O_CREAT | os.O_WRONLY))
    return len(os.listdir("/data/many"))


def keep_descriptors() -> int:
    kept: list[int] = []
    with contextlib.suppress(OSError):
        while len(kept) < 200_000:
            kept.append(os.dup(0))
    return len(kept)


def test_another_users_calls_are_answered_beside_bombs(users: Users) -> None:
    """A fork bomb, a memory bomb, very many files and descriptors of one user end in bounds; the other's calls run."""
    data = users.settings.volumes_directory / "u-ann" / "data"
    assert on(users.bob, double)(3) == 6  # the node runs
    if os.geteuid() != 0 and not (users.owner.settings.run_directory / "cgroups").exists():
        pytest.skip("without control groups, processes of one host uid are not told apart")
    bomb = on(users.ann, fork_bomb, grace=0).submit("/data/go")
    until((data / "go-count").exists)
    assert int((data / "go-count").read_text()) < 3000
    assert on(users.bob, double)(4) == 8
    with pytest.raises(errors.AtollError):
        on(users.ann, memory_bomb)()
    assert on(users.bob, double)(5) == 10
    (data / "go").touch()
    with contextlib.suppress(errors.AtollError):
        bomb.result()
    count = soak(20_000, 1_000_000)
    assert on(users.ann, many_files)(count) == count
    assert on(users.ann, keep_descriptors)() > 0
    assert on(users.bob, double)(6) == 12


def test_a_users_processes_are_in_groups_of_that_user(users: Users) -> None:
    """Computing time is shared by user: every process of a sandbox is below its user's group."""
    assert on(users.ann, double)(1) == 2  # the node runs
    places = users.owner.settings.run_directory / "cgroups"
    if not places.exists():
        pytest.skip("no control groups can be made here")
    sleeping = on(users.ann, time.sleep)
    running = sleeping.submit(30)
    row = until(lambda: [one for one in users.owner.request("status", {})["workers"] if one["state"] == "busy"])[0]
    text = until(lambda: Path(f"/proc/{row['pid']}/cgroup").read_text())
    wanted = {"memory", "pids", "cpu"} & {name for line in text.splitlines() for name in line.split(":")[1].split(",")}
    for line in text.splitlines():
        number, names, path = line.split(":", 2)
        if wanted & set(names.split(",")) or (number == "0" and not wanted):
            assert "/user-u-ann" in path, line
    sleeping.cancel(running)
    with pytest.raises(errors.CallCancelled):
        running.result()


def test_connections_and_storage_clients_of_a_user_are_bounded(users: Users) -> None:
    """The one over a bound is refused with an error that says so; the other user has all of their own."""
    few = UserHost(users.home.path, "u-few", limits={"connections": 3, "storage_clients": 2})
    first, second = few.open_storage(), few.open_storage()
    with pytest.raises(errors.ResourcesUnavailable, match="2 clients"):
        few.open_storage()
    waiting = few.connect({"type": "storage"})
    with pytest.raises(errors.ResourcesUnavailable, match="3 connections"):
        few.request("status", {})
    assert users.bob.request("calls.running", {}) == {"calls": []}
    for channel in (first, second, waiting):
        channel.close()
    until(lambda: _answers(few))
    few.close()


def reach(addresses: list[tuple[str, int]]) -> list[str]:
    found = []
    for address in addresses:
        try:
            with socket.create_connection(address, 3):
                found.append("reached")
        except OSError as error:
            found.append(type(error).__name__)
    return found


@needs_outbound
def test_the_machine_and_private_networks_are_closed(users: Users) -> None:
    """Without a policy a user's function is `outbound`: no loopback, metadata service or private network answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        private = [("10.0.0.1", 80), ("172.16.0.1", 80), ("192.168.1.1", 80), ("100.64.0.1", 80)]
        found = on(users.ann, reach, network=None)(
            [("127.0.0.1", port), ("169.254.169.254", 80), ("169.254.169.254", 53), *private]
        )
    assert "reached" not in found
    with pytest.raises(errors.ResourcesUnavailable):
        on(users.ann, double, network="host")(1)


def serve_until(path: str) -> int:
    server = socket.create_server(("127.0.0.1", 41234))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0of-ann")
    abstract.listen()
    open(path, "w").close()
    while not os.path.exists(path + "-end"):
        time.sleep(0.05)
    server.close()
    return 1


def knock() -> list[str]:
    found = reach([("127.0.0.1", 41234)])
    try:
        socket.socket(socket.AF_UNIX).connect("\0of-ann")
        found.append("reached")
    except OSError as error:
        found.append(type(error).__name__)
    return found


@needs_outbound
def test_no_user_reaches_anothers_sockets(users: Users) -> None:
    """Servers on loopback and abstract sockets of one user's outbound functions are none to another's."""
    data = users.settings.volumes_directory / "u-ann" / "data"
    running = on(users.ann, serve_until, network="outbound").submit("/data/serving")
    until((data / "serving").exists)
    assert on(users.ann, knock, network="outbound")() == ["reached", "reached"]
    assert "reached" not in on(users.bob, knock, network="outbound")()
    (data / "serving-end").touch()
    assert running.result() == 1


@pytest.mark.as_user
def test_a_plain_users_node_serves_one_user(tmp_path: Path) -> None:
    """A second user is refused by name, unless the owner has said otherwise in words."""
    if os.geteuid() == 0:
        pytest.skip("root gives each user a host uid")
    with own_home() as home, two_users(home, share_uid="false") as users:
        assert on(users.ann, double)(1) == 2
        with pytest.raises(errors.SandboxUnavailable, match="share a host uid"):
            users.bob.request("status", {})
        assert on(users.ann, double)(2) == 4


def _answers(host: UserHost) -> Any:
    try:
        return host.request("status", {})
    except errors.ResourcesUnavailable:
        return None
