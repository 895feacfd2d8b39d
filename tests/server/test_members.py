"""Calls on machines that have joined a server: placed, resumed, and never made twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atoll import Host, errors, isolated, settings
from atoll.server.node import Node
from atoll.server.principal import Principal

from ..conftest import needs_outbound
from ..waiting import until
from .functions import Leased
from .members import Member, cluster, joined
from .process import Server, running
from .raw_line import RawLine, Refused

pytestmark = needs_outbound


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Server, dict[str, Member]]]:
    """A server that runs nothing itself, and two machines."""
    with cluster("one", "two") as found:
        yield found


@pytest.fixture
def server(machines: tuple[Server, dict[str, Member]]) -> Server:
    """The server of the machines."""
    return machines[0]


@pytest.fixture
def host(server: Server, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The server as a program's host."""
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    return Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))


def _add(a: int, b: int) -> int:
    print("adding")
    return a + b


def _count(count: int) -> Iterator[int]:
    yield from range(count)


def _turned(data: bytes) -> bytes:
    return data[::-1]


def _wait_for_file(name: str) -> int:
    """Wait until there is a file in `/data`; return how often this function has run."""
    with open(f"/data/{name}.runs", "a") as file:
        file.write("x")
    while not os.path.exists(f"/data/{name}"):
        time.sleep(0.01)
    return os.path.getsize(f"/data/{name}.runs")


def _volume(member: Member) -> Path | None:
    """Return the only volume's `/data` of a machine; None where nothing has run."""
    found = list((member.home.path / "volumes").glob("*/data"))
    return found[0] if found else None


def _runs_at(machines: dict[str, Member], name: str) -> tuple[Member, Path]:
    """Wait until a machine runs `_wait_for_file`, and return it with its volume."""

    def found() -> tuple[Member, Path] | None:
        for member in machines.values():
            volume = _volume(member)
            if volume is not None and (volume / f"{name}.runs").exists():
                return member, volume
        return None

    place = until(found)
    assert place is not None
    return place


class Called(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__()
        self._function, self._args = function, args
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self._function(*self._args)
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        """Wait for its end; return its value, or raise its error."""
        self.join(120)
        if self.error is not None:
            raise self.error
        return self.value


def test_calls_generators_and_large_values_pass_through(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """The server passes bytes of a machine's calls on: values, output, items, megabytes."""
    assert isolated(host=host)(_add)(2, 3) == 5
    assert "adding" in capfd.readouterr().out
    assert list(isolated(host=host)(_count)(5)) == list(range(5))
    data = os.urandom(9 << 20)
    assert isolated(host=host)(_turned)(data) == data[::-1]
    assert list(isolated(host=host)(abs).map(range(-20, 0))) == list(range(20, 0, -1))


def test_an_error_keeps_its_type(host: Host) -> None:
    """A function's exception comes back from another machine as from one's own."""
    with pytest.raises(ZeroDivisionError):
        isolated(host=host)(_divide)(1)


def _divide(number: int) -> float:
    return number / 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told to end", "killed"])
def test_a_call_outlives_the_server(
    machines: tuple[Server, dict[str, Member]], host: Host, number: signal.Signals
) -> None:
    """A call goes on at its machine while the server is away, and its answer comes when it is back: once."""
    server, members = machines
    name = f"server-{number}"
    call = Called(isolated(host=host)(_wait_for_file), name)
    _, volume = _runs_at(members, name)
    server.end(number)
    server.start()
    (volume / name).touch()
    assert call.result() == 1


def test_a_call_outlives_an_orderly_end_of_its_member(machines: tuple[Server, dict[str, Member]], host: Host) -> None:
    """A member that ends in order hands its lines to its daemon, and the next one goes on with them."""
    _, members = machines
    call = Called(isolated(host=host)(_wait_for_file), "member")
    member, volume = _runs_at(members, "member")
    assert member.end() == 0
    member.start()
    (volume / "member").touch()
    assert call.result() == 1


def test_a_call_of_a_killed_member_has_ended_before_its_client_hears_of_it(
    machines: tuple[Server, dict[str, Member]], host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next member ends what the killed one has left, before the server tells a client that its call is lost."""
    _, members = machines
    call = Called(isolated(host=host)(_beats), "killed")
    member, volume = _runs_at(members, "killed")
    member.end(signal.SIGKILL)
    silent = f"the machine `{member.name}` does not answer"
    until(lambda: f"says that {silent}: trying for up to" in capfd.readouterr().err)
    member.start()
    with pytest.raises(errors.HostUnreachable, match=f"cannot be resumed, since {silent}: call .* may have run"):
        call.result()
    beats = volume / "killed.runs"
    size = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == size
    assert isolated(host=host)(_add)(1, 1) == 2


def _beats(name: str) -> None:
    with open(f"/data/{name}.runs", "ab", buffering=0) as file:
        while True:
            file.write(b"x")
            time.sleep(0.01)


def _beats_through_interruptions(name: str) -> None:
    """Write on for a second after the interruption, as a function with a grace may."""
    until = None
    with open(f"/data/{name}.runs", "ab", buffering=0) as file:
        while until is None or time.monotonic() < until:
            try:
                file.write(b"x")
                time.sleep(0.01)
            except KeyboardInterrupt:
                until = time.monotonic() + 1.5


def test_a_client_that_was_away_for_too_long_hears_of_it_when_its_call_is_over(
    machines: tuple[Server, dict[str, Member]],
) -> None:
    """A call whose client is lost is ended in order first: the client could make it again elsewhere."""
    server, members = machines
    leased = Leased(server, _beats_through_interruptions, "away", grace=10)
    leased.start()
    _, volume = _runs_at(members, "away")
    leased.line.drop()
    beats = volume / "away.runs"
    statuses: list[int] = []
    time.sleep(10.2)
    while not statuses or statuses[-1] != 410:
        try:
            leased.line.resume()
        except Refused as refused:
            statuses.append(refused.status)
            time.sleep(0.1)
        else:  # the grace of the line has not passed yet
            leased.line.drop()
            time.sleep(10.2)
    size = beats.stat().st_size
    assert statuses[0] == 503
    time.sleep(0.2)
    assert beats.stat().st_size == size


def test_a_port_in_a_sandbox_is_dialled_at_its_machine(server: Server) -> None:
    """The name of a worker says on which machine it is."""
    leased = Leased(server, _add, 1, 2)
    try:
        assert leased.worker.rpartition("@")[2] in {"one", "two"}
        leased.start()
        assert leased.answer() == 3
    finally:
        leased.line.close()


def test_a_revoked_key_ends_lines_at_their_machines(machines: tuple[Server, dict[str, Member]]) -> None:
    """A line at a machine ends with its key, as one at the server does."""
    server, _ = machines
    status, made = server.ask("POST", "/v1/keys", b'{"alias": "short"}')
    assert status == 201, made
    line = RawLine(server, {"type": "storage"}, key=f"{made['id']}:{made['secret']}")
    line.header("granted")
    status, _ = server.ask("DELETE", f"/v1/keys/{made['id']}")
    assert status == 200
    while line.closed < 0:
        line.pump()
    assert line.closed == 4401
    line.drop()


def test_a_machine_with_a_disk_of_its_own_is_placed_on_by_consent_only() -> None:
    """A user's `/data` is the same wherever a call runs: a machine that does not share it gets none, and says why."""
    with running() as server, joined(server, "apart") as members:
        until(lambda: "no calls are placed on `apart`" in members["apart"].log.read_text())
        for _ in range(3):
            leased = Leased(server, _add, 1, 2, env={"NUMBER": os.urandom(4).hex()})
            assert "@" not in leased.worker
            leased.line.close()


def _token() -> str:
    return os.environ["MEMBERS_TOKEN"]


def _fails_at(number: int) -> int:
    return 10 // number


def test_requests_are_answered_for_all_machines(
    server: Server, machines: tuple[Server, dict[str, Member]], host: Host
) -> None:
    """Secrets are everywhere, detached calls and batches are found again, lists and sums have each machine's part."""
    host.request("secrets.set", {"name": "MEMBERS_TOKEN", "value": "hidden"})
    assert isolated(host=host, keep_alive=0)(_token)() == "hidden"
    handles = [isolated(host=host)(_add).spawn(number, 1) for number in range(4)]
    assert [handle.result(60) for handle in handles] == [1, 2, 3, 4]
    batch = isolated(host=host)(_fails_at).spawn_map([1, 2, 0])
    until(lambda: batch.counts().get("error") == 1 and batch.counts().get("ok") == 2)
    nodes = [Node(settings.load(member.home.path)) for member in machines[1].values()]
    (user,) = {row["user"] for row in host.request("calls.list", {})["calls"]}
    kept = [node.request(Principal(user, "x"), "detached.accepted", {"spool": batch.id})["calls"] for node in nodes]
    assert sorted(map(len, kept)) == [0, 1]
    assert [row["batch"] for row in host.request("detached.batches", {})["batches"]] == [batch.id]
    rows = host.request("calls.list", {"limit": 100})["calls"]
    assert {handle.id for handle in handles} <= {row["call"] for row in rows}
    assert {row["node"] for row in rows} == {"one", "two"}
    shown = host.request("calls.show", {"call": handles[0].id[:14]})
    assert shown["calls"][0]["call"] == handles[0].id
    status = host.request("status", {})
    assert status["capacity"]["machine"]["cpus"] == 2 * (os.cpu_count() or 1)
    assert "away" not in status
    machines[1]["two"].end()
    try:
        assert host.request("calls.list", {})["away"] == ["two"]
        key = {"ATOLL_KEY_ID": server.key[0], "ATOLL_KEY_SECRET": server.key[1], "ATOLL_CA_FILE": str(server.ca_file)}
        done = server.home.atoll("calls", "list", env={"ATOLL_HOST": server.url, **key})
        assert "note: the machine `two` is away: what it has is not shown\n" in done.stderr
        host.request("secrets.delete", {"name": "MEMBERS_TOKEN"})
    finally:
        machines[1]["two"].start()
    for _ in range(4):
        with pytest.raises(KeyError):
            isolated(host=host, keep_alive=0)(_token)()


def test_calls_that_wait_for_a_machine_are_listed_and_cancelled(
    machines: tuple[Server, dict[str, Member]], host: Host
) -> None:
    """A call that no machine takes for now is among those that wait, with the reason, and ends by `atoll cancel`."""
    server, _ = machines
    for name in ("one", "two"):
        assert server.ask("POST", f"/v1/nodes/{name}/cordon")[0] == 200
    try:
        function = isolated(host=host, env={"WAITS": "1"})(_add)
        with ThreadPoolExecutor(1) as threads:
            future = threads.submit(function, 1, 2)
            (row,) = until(lambda: [one for one in host.request("calls.running", {})["calls"] if one["detail"]])
            assert (row["function"], row["state"], row["worker"]) == ("_add", "waiting", "")
            status = host.request("status", {})
            assert (status["calls"], status["daemon"]["waiting"]) == ([row], 1)
            assert host.request("calls.cancel", {"call": row["call"][:8]})["call"] == row["call"]
            with pytest.raises(errors.CallCancelled):
                future.result()
    finally:
        for name in ("one", "two"):
            server.ask("POST", f"/v1/nodes/{name}/uncordon")
    assert isolated(host=host, env={"WAITS": "1"})(_add)(1, 2) == 3
