"""Requests of a server with several machines: two real nodes in two state directories, without members between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated, settings
from atoll.server.cluster.contract import LOCAL, NodeFacts, NodeLoad
from atoll.server.machines.asks import Asks
from atoll.server.machines.copies import Copies
from atoll.server.machines.finding import Finding
from atoll.server.machines.machines import Machines
from atoll.server.node import Node
from atoll.server.principal import ADMIN, Principal

from ..conftest import Home, own_home
from ..leaks import release_idle
from ..waiting import until

ANN, BOB = (Principal(name, name, scope=ADMIN) for name in ("ann", "bob"))
PROGRAM = """
import sys
from atoll import isolated
@isolated(requirements=[])
def one(number):
    print("said", number)
    return number
print(one(int(sys.argv[1])), one.spawn(2).result())
"""


class Linked:
    """A node behind a link that may be cut."""

    def __init__(self, node: Node) -> None:
        self.node, self.load, self.cut = node, NodeLoad(), False
        self.asked: list[str] = []
        self.accepted = ""

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(name)
        if self.cut:
            raise errors.HostUnreachable("the machine does not answer", hint="try again")
        if name == "detached.accepted" and arguments["spool"] == self.accepted:
            return {"calls": ["one"]}
        return await self.node.ask(principal, name, arguments)


class Two:
    """A server with its own node and another one, as links and placement show them."""

    def __init__(self, own: Node, other: Node, file: Path) -> None:
        self.closed, self.volumes, self.arrivals = "", "", dict[str, Any]()
        self.local, self.alone, self.linked = True, False, Linked(other)
        self.own = own
        self.facts = {name: NodeFacts(name, millicores=2000, volumes="disk" * (name == LOCAL)) for name in (LOCAL, "b")}
        self.copies = Copies(own, file, self._quotas)
        self.machines = Machines(own, self, self.copies)

    async def _quotas(self) -> list[dict[str, Any]]:
        return []

    def volumes_for(self, spec: Any) -> str:
        return self.volumes

    @property
    def links(self) -> dict[str, Linked]:
        return {} if self.linked.cut else {"b": self.linked}

    def away_names(self) -> Sequence[str]:
        return ["b"] if self.linked.cut else []

    missing_names = away_names

    def accepts(self, name: str) -> bool:
        return name != self.closed

    def node_of_data(self, user: str) -> str:
        return LOCAL

    async def ask(self, name: str, arguments: dict[str, Any] | None = None, who: Principal | None = ANN) -> Any:
        return await self.machines.ask(who, name, arguments or {})


def _has_records(node: Node, count: int) -> bool:
    return len(node.request(None, "calls.list", {})["calls"]) == count


@pytest.fixture(scope="module")
def homes() -> Iterator[tuple[Home, Home]]:
    """Two state directories with daemons; each owner has made a call and a detached one."""
    with own_home() as own, own_home() as other:
        for number, home in enumerate((own, other)):
            (home.path / "settings.toml").write_text("[users]\nshare_uid = true\n[pool]\nslots = 2\n")
            program = home.path / "program.py"
            program.write_text(PROGRAM)
            assert home.python(str(program), str(number)).stdout == f"said {number}\n{number} 2\n"
            node = Node(settings.load(home.path))
            until(partial(_has_records, node, 2))
        yield own, other


@pytest.fixture
def two(homes: tuple[Home, Home], tmp_path: Path) -> Two:
    own, other = (Node(settings.load(home.path)) for home in homes)
    return Two(own, other, tmp_path / "missed.json")


def test_lists_and_sums_are_of_all_machines(two: Two) -> None:
    """Rows name their machines, pages are those of the whole list, sums are sums; one that is away is named."""

    async def scenario() -> None:
        status = await two.ask("status", who=None)
        assert status["capacity"]["machine"]["cpus"] == 4
        assert await two.ask("capacity", who=None) | {"types": 0} == status["capacity"] | {"types": 0}
        for two.closed, two.volumes in (("b", ""), ("", "disk")):  # a machine that gets no calls has no room for any
            assert (await two.ask("capacity", who=None))["machine"]["cpus"] == 2
        two.volumes = ""
        calls = (await two.ask("calls.list", {}, None))["calls"]
        assert [row["queued_at"] for row in calls] == sorted((row["queued_at"] for row in calls), reverse=True)
        assert [row["node"] for row in calls] == ["b", "b", LOCAL, LOCAL]
        assert calls[0]["sandbox"].endswith("@b")
        assert not calls[-1]["sandbox"].endswith("@b")
        for offset in range(4):
            page = await two.ask("calls.list", {"limit": 1, "offset": offset}, None)
            assert page["calls"] == [calls[offset]]
        usage = (await two.ask("calls.usage", {"since": 0.0}, None))["usage"]
        assert sum(row["calls"] for row in usage) == 4
        assert len({(row["function"], row["day"], row["environment"], row["outcome"]) for row in usage}) == len(usage)
        found = (await two.ask("detached.list", {}, None))["calls"]
        assert [row["node"] for row in found] == ["b", LOCAL]
        environments = (await two.ask("environments.list", {}, None))["environments"]
        assert sorted(environments[0]["nodes"]) == ["b", LOCAL]
        assert (await two.ask("detached.batches", {}, None))["batches"] == []
        assert (await two.ask("calls.running", {"all": True}, None))["calls"] == []
        two.linked.cut = True
        answer = await two.ask("calls.list", {}, None)
        assert (answer["away"], [row["node"] for row in answer["calls"]]) == (["b"], [LOCAL, LOCAL])

    asyncio.run(scenario())


def test_calls_are_found_wherever_they_are(two: Two) -> None:
    """By id and its beginning, the machine is remembered; an unknown id has the usual error, an away machine its own."""

    async def scenario() -> None:
        machines, finder = two.machines, two.machines.find
        calls = (await two.ask("calls.list", {}, None))["calls"]
        for row in calls:
            shown = await two.ask("calls.show", {"call": row["call"]}, None)
            assert {one["node"] for one in shown["calls"]} == {row["node"]}
        (detached,) = [row for row in (await two.ask("detached.list", {}, None))["calls"] if row["node"] == "b"]
        header = {"type": "request", "name": "detached.wait", "arguments": {"call": detached["call"][:12]}}
        owner: Any = None
        assert await machines.answer(owner, header) is None
        assert await finder(owner, header) == "b"
        two.linked.asked.clear()
        assert await finder(owner, {**header, "arguments": {"call": detached["call"]}}) == "b"
        assert not two.linked.asked, "it is remembered"
        with pytest.raises(errors.ResourcesUnavailable, match="no call has an id that begins with `nothing`"):
            await two.ask("calls.show", {"call": "nothing"}, None)
        with pytest.raises(errors.CallUnknown):
            await finder(owner, {**header, "arguments": {"call": "nothing"}})
        key = (await two.ask("environments.list", {}, None))["environments"][0]["key"]
        assert (await two.ask("environments.show", {"key": key}, None))["environment"]["key"] == key
        with pytest.raises(errors.EnvironmentBuildError, match="`nothing` names no environment"):
            await two.ask("environments.show", {"key": "nothing"}, None)
        output = await two.ask("calls.output", {"call": calls[0]["call"]}, None)
        assert output["calls"][0]["output"].startswith("said")
        two.linked.cut = True
        for name in (detached["call"], "nothing"):
            with pytest.raises(errors.HostUnreachable, match="`b` is away, and may have"):
                await finder(owner, {**header, "arguments": {"call": name}})
        with pytest.raises(errors.ResourcesUnavailable) as caught:
            await two.ask("calls.show", {"call": "nothing"}, None)
        assert caught.value.hint == "b may know it, and is away: try again later"

    asyncio.run(scenario())


def test_a_spool_goes_to_the_machine_with_the_least_to_do_and_stays_there(two: Two, homes: tuple[Home, Home]) -> None:
    """The other one, where the own is full; the same spool again goes to the machine that has it."""

    async def scenario() -> None:
        header = {"type": "request", "name": "detached.accept", "bytes": 1, "arguments": {"spool": "0" * 32}}
        owner: Any = None
        assert await two.machines.find(owner, header) == LOCAL
        two.facts["b"] = NodeFacts("b", millicores=2000, memory_bytes=1 << 40, gpus=("nvidia0",))
        needs = {"machine_type": "GPU", "numbers": {"gpus": -1}}
        assert await two.machines.find(owner, {**header, "arguments": {"spool": "1" * 32, "needs": needs}}) == "b"
        with contextlib.ExitStack() as stack:
            lease = {"type": "lease", "spec": _spec(homes[0])}
            channel = await two.own.connect(None, lease)
            stack.callback(channel.close)
            while (await channel.receive()).type != "granted":
                pass
            channel.drop_descriptors()
            assert await two.machines.find(owner, header) == "b"
        two.facts.clear()  # of no machine that fits
        found = Linked(two.own)
        found.accepted = "0" * 32
        two.linked = found
        assert await two.machines.find(owner, header) == "b"

    asyncio.run(scenario())


def test_a_spool_that_is_sent_again_is_placed_anew_only_where_no_machine_may_have_it(two: Two) -> None:
    """While one is away that may have it, the caller hears so: on another one the call would run twice."""

    async def scenario() -> None:
        again = {"spool": "0" * 32, "again": True}
        header = {"type": "request", "name": "detached.accept", "bytes": 1, "arguments": again}
        owner: Any = None
        while (await two.own.ask(None, "load", {}))["running"]:  # noqa: ASYNC110 - of the tests before
            await asyncio.sleep(0.05)
        two.linked.cut = True
        with pytest.raises(errors.HostUnreachable, match="may have taken"):
            await two.machines.find(owner, header)
        assert await two.machines.find(owner, {**header, "arguments": {"spool": "0" * 32}}) == LOCAL
        two.linked.cut = False
        assert await two.machines.find(owner, header) == LOCAL

    asyncio.run(scenario())


def _spec(home: Home) -> dict[str, Any]:
    from atoll.model.specs import EnvironmentSpec, LeaseSpec

    assert home
    return LeaseSpec(EnvironmentSpec(), network="none").to_data()


def test_secrets_are_copied_and_made_up_for(two: Two) -> None:
    """A change reaches every machine at once, or when it comes back; lists are the own node's; others' are left alone."""

    async def names(node: Node, who: Principal) -> list[str]:
        return [row["name"] for row in (await node.ask(who, "secrets.list", {}))["secrets"]]

    async def copied(node: Node) -> dict[str, dict[str, str]]:
        users = (await node.ask(None, "secrets.copy", {}))["digests"]
        return {user: (await node.ask(None, "secrets.copy", {"user": user}))["values"] for user in users}

    async def scenario() -> None:
        await two.ask("secrets.set", {"name": "TOKEN", "value": "hidden"})
        await two.ask("secrets.set", {"name": "OTHER", "value": "x"}, BOB)
        assert await names(two.linked.node, ANN) == ["TOKEN"]
        assert await copied(two.linked.node) == {"ann": {"TOKEN": "hidden"}, "bob": {"OTHER": "x"}}
        two.linked.cut = True
        answer = await two.ask("secrets.set", {"name": "TOKEN", "value": "newer"})
        assert answer == {"away": ["b"]}
        await two.ask("secrets.delete", {"name": "OTHER"}, BOB)
        assert await names(two.linked.node, BOB) == ["OTHER"]
        two.linked.cut = False
        await two.copies.join("b", two.linked)
        assert await copied(two.linked.node) == {"ann": {"TOKEN": "newer"}}
        two.linked.asked.clear()
        await two.copies.join("b", two.linked)
        assert two.linked.asked == ["secrets.take"], "the digests alone"
        assert (await two.ask("secrets.list"))["secrets"][0]["name"] == "TOKEN"
        with pytest.raises(errors.ResourcesUnavailable):
            await two.linked.node.ask(ANN, "secrets.copy", {})
        for wrong in (
            {"user": "local", "values": {}},
            {"user": "ann", "values": 1},
            {"user": "ann", "values": {"1": "x"}},
        ):
            with pytest.raises(errors.ProtocolMismatch):
                await two.linked.node.ask(None, "secrets.take", wrong)

    asyncio.run(scenario())


def test_a_removal_waits_for_a_machine_that_is_away(two: Two) -> None:
    """It is made up for when the machine links, once, also after a restart of the server."""

    async def scenario() -> None:
        await two.ask("secrets.set", {"name": "TOKEN", "value": "hidden"})
        two.linked.cut = True
        assert await two.ask("users.remove", {"user": "ann", "keep": False}, None) == {"kept": "", "away": ["b"]}
        missed = json.loads((two.copies._file).read_text())
        assert missed == {"b": [["users.remove", {"user": "ann", "keep": False}]]}
        two.linked.cut = False
        again = Copies(two.own, two.copies._file, two._quotas)
        await again.join("b", two.linked)
        assert two.linked.asked[-2:] == ["users.remove", "secrets.take"]
        assert (await two.linked.node.ask(ANN, "secrets.list", {}))["secrets"] == []
        two.linked.asked.clear()
        await again.join("b", two.linked)
        assert two.linked.asked == ["secrets.take"]

    asyncio.run(scenario())


def test_a_removal_that_fails_is_repeated_until_it_is_done(two: Two) -> None:
    """The error says so; a machine that is there does it later, once, and another one is not asked again."""

    async def scenario() -> None:
        ask, failing = two.linked.ask, True

        async def may_fail(principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            if failing and name == "users.remove":
                raise errors.StateUnusable("the volume cannot be moved", hint="look at it")
            return await ask(principal, name, arguments)

        two.linked.ask = may_fail  # type: ignore[method-assign]
        with pytest.raises(errors.StateUnusable, match="cannot be moved") as refused:
            await two.ask("users.remove", {"user": "bob", "keep": False}, None)
        assert refused.value.hint == "look at it; it is tried again on `b` every few seconds, until it is done"
        entry = ["users.remove", {"user": "bob", "keep": False}]
        assert json.loads(two.copies._file.read_text()) == {"b": [entry]}
        with pytest.raises(errors.StateUnusable):
            await two.copies.make_up("b", two.linked)
        failing = False
        two.linked.asked.clear()
        assert two.copies.missing() == ["b"]
        await two.copies.make_up("b", two.linked)
        assert two.linked.asked == ["users.remove"]
        assert two.copies.missing() == []
        assert not two.copies._file.exists()

    asyncio.run(scenario())


def test_a_removal_is_kept_before_the_first_machine_is_asked(two: Two) -> None:
    """So a server that is killed meanwhile does it later; and it is not asked for twice at the same time."""

    async def scenario() -> None:
        ask, seen = two.linked.ask, list[Any]()

        async def look(principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            seen.append(json.loads(two.copies._file.read_text()))
            await two.copies.make_up("b", two.linked)
            return await ask(principal, name, arguments)

        two.linked.ask = look  # type: ignore[method-assign]
        arguments = {"user": "bob", "keep": True}
        assert await two.ask("users.remove", arguments, None) == {"kept": ""}
        entries = [["users.remove", arguments]]
        assert seen == [{LOCAL: entries, "b": entries}]
        assert not two.copies._file.exists()

    asyncio.run(scenario())


class _Answers:
    def __init__(self, answer: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._answer = answer

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert principal is None
        return await self._answer(name, arguments)


def test_the_beginning_of_two_ids_on_two_machines_is_neither(two: Two) -> None:
    """It is refused with both; a whole id is found although another one begins with it."""

    def having(call: str) -> Asks:
        async def answer(_: str, asked: dict[str, Any]) -> dict[str, Any]:
            if not call.startswith(asked["call"]):
                raise errors.ResourcesUnavailable("no call", hint="")
            return {"calls": [{"call": call}], "children": []}

        return _Answers(answer)

    async def scenario() -> None:
        finding = Finding(lambda: {"a": having("abcd-1"), "b": having("abcd-12")}, list)
        with pytest.raises(errors.ResourcesUnavailable, match="more than one call"):
            await finding.call(None, "abcd")
        assert await finding.call(None, "abcd-1") == "a"
        assert await finding.call(None, "abcd-12") == "b"

    asyncio.run(scenario())


def test_long_lists_are_merged_by_pages() -> None:
    """A part far behind is taken from pages of every machine, which give at most so many rows at a time."""
    asked: list[tuple[int, int]] = []

    def having(first: int) -> Asks:
        async def answer(_: str, wanted: dict[str, Any]) -> dict[str, Any]:
            asked.append((wanted["offset"], wanted["limit"]))
            assert wanted["limit"] <= 1000
            rows = [{"call": f"{number}", "queued_at": -float(number)} for number in range(first, 4000, 2)]
            return {"calls": rows[wanted["offset"] : wanted["offset"] + wanted["limit"]]}

        return _Answers(answer)

    class Fake(Two):
        def __init__(self) -> None:
            self.local, self.alone = True, False
            self.facts, self.arrivals = {}, {}
            own: Any = having(0)
            own.ask_counted = own.ask
            self.machines = Machines(own, self, None)  # type: ignore[arg-type]
            self.other: Any = having(1)

        @property
        def links(self) -> dict[str, Any]:
            return {"b": self.other}

        def away_names(self) -> Sequence[str]:
            return []

        missing_names = away_names

    async def scenario() -> None:
        found = await Fake().machines.ask(None, "calls.list", {"offset": 1500, "limit": 3})
        assert [row["call"] for row in found["calls"]] == ["1500", "1501", "1502"]
        assert sorted(asked) == [(0, 1000), (0, 1000), (1000, 503), (1000, 503)]

    asyncio.run(scenario())


def _adds(name: str) -> None:
    import os
    import time

    while not os.path.exists(f"/data/{name}.stop"):
        with open(f"/data/{name}", "a") as file:
            file.write("x")
        time.sleep(0.005)


def test_a_node_holds_a_user_for_another_machine(homes: tuple[Home, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's runs until the last of several holds is released, or is over by itself; idle ones are ended."""
    monkeypatch.setenv("ATOLL_HOME", str(homes[0].path))
    node, path = Node(settings.load(homes[0].path)), homes[0].path / "volumes" / "local" / "data" / "held"

    def ask(name: str, **arguments: Any) -> dict[str, Any]:
        return node.request(None, name, {"user": "local", **arguments})

    def grows() -> bool:
        size = path.stat().st_size
        return bool(until(lambda: path.stat().st_size > size))

    call = isolated(keep_alive=600)(_adds).submit("held")
    until(path.exists)
    assert ask("clear") == {"whole": False}
    assert ask("hold", id="a", seconds=5.0) == ask("hold", id="b", seconds=5.0) == {"whole": True}
    size = path.stat().st_size
    ask("release", id="a")
    ask("release", id="nothing")
    time.sleep(0.1)
    assert path.stat().st_size == size
    ask("release", id="b")
    assert grows()
    assert ask("hold", id="c", seconds=0.05) == {"whole": True}
    assert grows()
    for wrong in ({"id": "d", "seconds": 60.0}, {"id": "", "seconds": 1.0}, {"id": "d", "seconds": "x"}):
        with pytest.raises(errors.ProtocolMismatch):
            ask("hold", **wrong)
    path.with_name("held.stop").touch()
    call.result(60)
    release_idle()
    assert ask("clear") == {"whole": True}
    assert node.request(None, "status", {})["sandboxes"] == []
