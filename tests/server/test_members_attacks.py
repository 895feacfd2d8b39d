"""Attacks on a server with several machines: users without rights, machines that lie or break, connections that are cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll import errors, settings
from atoll.daemon.joined.fence import NodeFence
from atoll.sandbox import fence
from atoll.server.accounts.bodies import NewUser
from atoll.server.cluster import waiting
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import NodeFacts, NodeLoad
from atoll.server.cluster.handing import Handing
from atoll.server.cluster.links import splice
from atoll.server.cluster.links.arrival import Arrival, ArrivalConnection
from atoll.server.cluster.links.messages import write
from atoll.server.cluster.links.preamble import Opening, write_opening
from atoll.server.line import handover
from atoll.server.line.early import Early
from atoll.server.line.sessions import MOST_OF_USER, Sessions
from atoll.server.line.shares import Bytes
from atoll.server.machines.copies import FILE
from atoll.server.member import node_link
from atoll.server.member.node_link import NodeLink
from atoll.server.member.spare_line import SpareLine
from atoll.server.node import Node
from atoll.server.paces import Paces
from atoll.server.principal import Principal
from atoll.wire.line import Line
from atoll.wire.websocket import PING_CODE, head

from ..waiting import until
from .members import joined
from .process import Server, memory, running
from .raw_line import RawLine, Refused, connect, upgrade

ANN = Principal("ann", "ann", "key")
FACTS = {"millicores": 1000, "memory_bytes": 1 << 30}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that runs functions itself, with one real machine."""
    with running(own_data=True) as found, joined(found, "one"):
        yield found


class Machine:
    """A machine of the attacker: it has joined, and says over its link whatever it likes."""

    def __init__(self, server: Server, name: str, facts: dict[str, Any] | None = None) -> None:
        status, token = server.ask("POST", "/v1/nodes/tokens", b"{}")
        assert status == 201
        asked = {"token": token["token"], "name": name, "facts": FACTS if facts is None else facts}
        status, made = server.ask("POST", "/v1/nodes/join", json.dumps(asked).encode(), {})
        assert status == 201, made
        self.server, self.name, self._rest = server, name, b""
        self._headers = {"Authorization": f"Node {made['node']}:{made['secret']}", "Atoll-Node-Protocol": "1-1"}

    def dial(self, path: str = "/v1/nodes/link") -> socket.socket:
        """Return a connection past its upgrade."""
        made = connect(self.server)
        upgrade(made, self._headers, path)
        return made

    def link(self, machine: str = "a", sessions: list[dict[str, Any]] | None = None, **facts: Any) -> socket.socket:
        """Return a link past `welcome`."""
        made = self.dial()
        hello = {"type": "hello", "facts": {**FACTS, **facts}, "sessions": sessions or [], "machine": machine}
        made.sendall(write(hello))
        assert self.receive(made)["type"] == "welcome"
        return made

    def receive(self, connection: socket.socket) -> dict[str, Any]:
        """Return the next message."""
        while b"\n" not in self._rest:
            data = connection.recv(65536)
            assert data
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def row(self) -> dict[str, Any]:
        """Return the server's row about it."""
        _, answer = self.server.ask("GET", "/v1/nodes")
        (found,) = (row for row in answer["nodes"] if row["name"] == self.name)
        return cast("dict[str, Any]", found)

    def remove(self) -> None:
        """Have the server forget it."""
        status, answer = self.server.ask("DELETE", f"/v1/nodes/{self.name}")
        assert status == 200, answer


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def resumed(server: Server, session: str) -> int:
    """Return the status of an attempt to resume a session."""
    with contextlib.closing(connect(server)) as made:
        try:
            upgrade(made, {**server.headers(), "Atoll-Resume": f"{session} 0"})
        except Refused as refused:
            return refused.status
    return 101


def user_of(server: Server) -> str:
    status, answer = server.ask("GET", "/v1/whoami")
    assert status == 200
    return str(answer["user"] if isinstance(answer.get("user"), str) else answer["id"])


# --- users ------------------------------------------------------------------------------------------------------------


def test_many_lines_at_once_all_get_to_their_machine(server: Server) -> None:
    """More lines than a member dials connections at a time wait for each other, not for nothing."""
    with ThreadPoolExecutor(8) as pool:
        lines = list(pool.map(lambda _: RawLine(server, None), range(90)))
    for line in lines:
        line.say({"type": "dial", "worker": "w1@one", "port": 1})
    for line in lines:
        assert line.header("failed")["error"]["code"] == "worker_died"
        line.close()


@pytest.mark.parametrize("worker", ["@", "@one", "x@", "x@@", "x@local", "a@b@one", 5, ["x@one"], {"@": 1}, None])
def test_no_name_of_a_worker_leads_elsewhere(server: Server, worker: Any) -> None:
    """Odd names of workers are refused with a named error."""
    line = RawLine(server, {"type": "dial", "worker": worker, "port": 1, "input_over": [1], "as": {"user": "root"}})
    assert line.header("failed")["error"]["code"] in {"worker_died", "host_unreachable", "protocol_mismatch"}
    line.close()


def test_a_lease_with_bytes_ends_its_line(server: Server) -> None:
    """A header that only a session can refuse ends the session: wherever it is, and without a fault in the log."""
    for _ in range(3):
        line = RawLine(server, {"type": "lease", "spec": {}, "bytes": 5})
        with contextlib.suppress(ConnectionError):
            while line.closed < 0:
                line.pump()
        line.drop()


def test_a_key_of_a_user_opens_no_link(server: Server) -> None:
    """Routes of machines know no keys."""
    for path in ("/v1/nodes/link", "/v1/nodes/line"):
        with contextlib.closing(connect(server)) as made:
            with pytest.raises(Refused) as refused:
                upgrade(made, {**server.headers(), "Atoll-Node-Protocol": "1-1"}, path)
            assert refused.value.status == 401


_made: list[tuple[socket.socket, asyncio.Transport]] = []


def _run(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test, and close the connections of `_wrapped`."""

    async def whole() -> None:
        try:
            await check()
        finally:
            while _made:
                far, transport = _made.pop()
                transport.abort()
                far.close()
            for _ in range(3):  # the transports close their sockets in the loop's next turns
                await asyncio.sleep(0)

    asyncio.run(whole())


async def _never(_arrival: Arrival) -> None:
    await asyncio.Event().wait()


def test_nothing_behind_the_end_of_a_line_fills_its_users_share() -> None:
    """Data behind `withdrawn`, or behind a line's hand-over, belongs to nobody."""

    async def check() -> None:
        shares, client = Bytes(1 << 30), Line(client=True)
        arrival = Arrival("a" * 20, ANN, Early(shares, "ann"), _never, lambda _: None)
        headers: list[dict[str, Any]] = [{"type": "lease"}, {"type": "withdrawn"}]
        pieces = [piece for header in headers for piece in client.say(header)]
        arrival.feed(b"".join([*pieces, *client.send(0, b"x" * 1000)]))
        arrival.feed(b"".join(client.send(0, b"x" * 1000)))
        assert shares.held == 0

    _run(check)


def test_a_line_that_has_failed_looks_for_no_place() -> None:
    """A line whose user's share is full is told so, and gets no machine afterwards."""

    async def check() -> None:
        ended = asyncio.Event()

        async def place(_arrival: Arrival) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        client = Line(client=True)
        arrival = Arrival("a" * 20, ANN, Early(Bytes(4000), "ann"), place, lambda _: None)
        arrival.feed(b"".join(client.say({"type": "lease"})))
        await asyncio.sleep(0)
        arrival.feed(b"".join(client.send(0, b"x" * 2000)))
        await asyncio.wait_for(ended.wait(), 10)
        arrival.end()

    _run(check)


async def _wrapped(make: Callable[[asyncio.Transport], asyncio.Protocol]) -> tuple[socket.socket, asyncio.Transport]:
    """Return the far end of a connection, and its near end's transport, which has a protocol."""
    near, far = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, near)
    transport.set_protocol(make(transport))
    far.setblocking(False)
    _made.append((far, transport))
    return far, transport


def test_a_client_that_takes_no_answers_is_not_read() -> None:
    """Pings whose answers nobody reads fill no memory, while the line has no place."""

    async def check() -> None:
        arrival = Arrival("a" * 20, ANN, Early(Bytes(), "ann"), _never, lambda _: None)
        paces = Paces(lambda: 1e6 * time.monotonic())  # it is in no debt
        far, transport = await _wrapped(lambda made: ArrivalConnection(arrival, made, set(), paces))
        arrival.attach(cast("Any", transport.get_protocol()), 0)
        text = os.urandom(125)
        ping = b"".join(head(PING_CODE, len(text), text, client=True, hidden=False) for _ in range(16))
        blocked = 0
        while blocked < 20:
            try:
                far.send(ping)
                blocked = 0
            except BlockingIOError:
                blocked += 1
            assert transport.get_write_buffer_size() < 1 << 20
            await asyncio.sleep(0.005 if blocked else 0)
        arrival.end()
        far.close()

    _run(check)


def test_a_client_that_does_not_read_holds_nothing_once_its_line_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bytes of a splice have a moment to go out."""
    monkeypatch.setattr(splice, "LAST_SECONDS", 0.05)

    async def check() -> None:
        client, clients = await _wrapped(lambda _: asyncio.Protocol())
        node, nodes = await _wrapped(lambda _: asyncio.Protocol())
        open_ones: set[Any] = set()
        spliced = splice.splice(clients, nodes, open_ones, open_ones)
        with contextlib.suppress(BlockingIOError):
            while True:
                node.send(bytes(1 << 20))
                await asyncio.sleep(0.01)
        node.close()  # nobody notices: the client's side takes no more
        spliced.end_soon()  # as the machine says `over`
        async with asyncio.timeout(20):
            while open_ones:  # noqa: ASYNC110 - the transport has no event for it
                await asyncio.sleep(0.01)
        client.close()

    _run(check)


def test_lines_of_the_servers_own_machine_count(tmp_path: Path) -> None:
    """A user has no more lines than without other machines."""

    async def check() -> None:
        node = Node(settings.load(tmp_path))
        sessions = Sessions(node)
        handing = Handing(Cluster(cast("Any", SimpleNamespace(node=node))), sessions)
        kept = [sessions.take(f"{number:020}", ANN) for number in range(MOST_OF_USER - 1)]
        handing.arrive(ANN).end()
        kept.append(sessions.take("last" * 5, ANN))
        with pytest.raises(errors.NotAuthorized, match="open lines"):
            handing.arrive(ANN)
        for session in kept:
            session.end()

    _run(check)


# --- machines ---------------------------------------------------------------------------------------------------------


def test_a_machine_that_takes_anothers_place_does_not_end_its_lease(server: Server) -> None:
    """Sessions of a machine whose name or credentials another one uses are kept as long as its lease may last."""
    machine = Machine(server, "twice")
    user, key = user_of(server), server.key[0]
    row = {"id": "session-of-twice-0001", "user": user, "key": key}
    first = machine.link("a", [row])
    second = machine.link("b")
    assert resumed(server, row["id"]) == 503  # not 410: its call may run still
    third = machine.link("a", [row])
    assert machine.row()["lines"] == 1
    fourth = machine.link("a")  # the same machine, which has ended it
    assert resumed(server, row["id"]) == 410
    for one in (first, second, third, fourth):
        one.close()
    machine.remove()


def test_a_line_that_never_arrived_at_its_machine_is_forgotten(server: Server) -> None:
    """The machine says that it has no such session: nothing of it is left at the server."""
    machine = Machine(server, "loses")
    user, key = user_of(server), server.key[0]
    link = machine.link("a", [{"id": "session-of-loses-0001", "user": user, "key": key}])
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(resumed, server, "session-of-loses-0001")
        while machine.receive(link)["type"] != "dial":
            pass
        spare = machine.dial("/v1/nodes/line")
        assert machine.receive(spare)["type"] == "resume"
        spare.sendall(write({"type": "gone"}))
        assert status.result(60) == 410
    assert machine.row()["lines"] == 0
    for one in (spare, link):
        one.close()
    machine.remove()


def test_a_line_that_was_called_gone_does_not_begin(tmp_path: Path) -> None:
    """A client that was told so may have called again: an opening that comes late begins nothing."""

    async def check() -> None:
        sessions = Sessions(Node(settings.load(tmp_path)))
        begun: list[str] = []

        def make(transport: asyncio.Transport) -> SpareLine:
            return SpareLine(transport, sessions, set(), lambda one, _: begun.append(one.id), lambda _: None)

        far, _ = await _wrapped(make)
        other, _ = await _wrapped(make)
        loop = asyncio.get_running_loop()
        far.send(write({"type": "resume", "session": "late" * 5, "count": 0}))
        assert b"gone" in await asyncio.wait_for(loop.sock_recv(far, 100), 10)
        opening = Opening("late" * 5, ANN, [0, 0, 0, 0], [], {"type": "lease"}, [])
        other.send(b"".join(write_opening(opening)))
        assert await asyncio.wait_for(loop.sock_recv(other, 100), 10) == b""
        assert not begun
        assert not len(sessions)
        far.close()
        other.close()

    _run(check)


def test_junk_on_a_link_ends_it_alone(server: Server) -> None:
    """Whatever a machine says, its own link ends at most; nothing of it is left."""
    machine = Machine(server, "junk")
    load = {"type": "load", "number": 1, "load": {}}
    for said in (
        b"\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"type": 5}\n',
        b"[" * 100_000 + b"\n",
        write({"type": "nothing"}),
        write({"type": "over", "session": {}}),
        write({"type": "load"}),
        write({"type": "need"}) + b"\n",
        write({"type": "need", "id": 1, "name": "hold", "arguments": 5}) + b"\n",
        *(write({**load, "load": {"millicores": value}}) for value in (float("nan"), float("inf"), "1", -1.5, None)),
        b'{"type": "load", "number": 1, "load": {"millicores": 1e400}}\n',
    ):
        with contextlib.closing(machine.link()) as link:
            link.sendall(write({"type": "answer", "id": 77, "value": {}}) + said)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while link.recv(65536):
                    pass
    hellos: list[dict[str, Any]] = [{"facts": []}, {"facts": {"millicores": -1}}, {"facts": {}, "sessions": [1]}, {}]
    for hello in hellos:
        with contextlib.closing(machine.dial()) as link:
            link.sendall(write({"type": "hello", "sessions": [], **hello}))
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while link.recv(65536):
                    pass
    assert server.ask("GET", "/v1/machines")[0] == 200
    machine.remove()


def test_links_that_flap_leave_nothing(server: Server) -> None:
    """A machine that links again and again costs a link at a time."""
    machine = Machine(server, "flaps")
    machine.link().close()
    before = descriptors(server)
    for _ in range(30):
        machine.link().close()
        machine._rest = b""
    until(lambda: descriptors(server) <= before + 2)
    machine.remove()


def test_a_machine_that_does_not_read_is_not_heard(server: Server) -> None:
    """Answers to its words fill no memory of the server."""
    machine = Machine(server, "deaf")
    with contextlib.closing(machine.link()) as link:
        link.settimeout(3)
        before = memory(server.pid)
        word = write({"type": "load", "number": "x" * (1 << 20), "load": {}})
        with pytest.raises((TimeoutError, ConnectionError, ssl.SSLError)):
            link.sendall(word * 300)
        assert memory(server.pid) < before + (64 << 20)
    machine.remove()


def test_facts_of_a_machine_that_has_joined_are_checked(server: Server) -> None:
    """A machine that claims nonsense when it joins hinders nobody's calls."""
    machine = Machine(server, "claims", {"millicores": "many", "memory_bytes": None, "gpus": [1], "volumes": 7})
    spec = {"numbers": {"millicores": 1 << 40, "memory_bytes": 1 << 40, "gpus": 60_000}}
    line = RawLine(server, {"type": "lease", "spec": spec})
    assert line.header("failed")["error"]["code"] == "resources_unavailable"
    line.close()
    machine.remove()


@pytest.mark.parametrize("value", [{}, {"calls": 5}, {"calls": [{"state": 1}], "daemon": None}], ids=str)
def test_odd_answers_of_a_machine_are_left_out(server: Server, value: Any) -> None:
    """What all machines answer together is there without one that answers as none does."""
    machine = Machine(server, "odd")
    link = machine.link()
    line = RawLine(server, {"type": "request", "name": "status", "arguments": {}})
    while (asked := machine.receive(link))["type"] != "ask" or asked["name"] != "status":
        pass
    link.sendall(write({"type": "answer", "id": asked["id"], "value": value}))
    answer = line.header("answer", "failed")
    assert answer["type"] == "answer", answer
    assert "odd" in answer["value"]["away"]
    line.close()
    link.close()
    machine.remove()


def test_a_line_whose_call_is_being_ended_stays_so_over_a_restart(tmp_path: Path) -> None:
    """The next process tells a client that comes back no more than the one before: its call is not over yet."""

    async def check() -> None:
        sessions, later = (Sessions(Node(settings.load(tmp_path))) for _ in range(2))
        asker = Principal("ann", "ann", "key", workers=3)
        session = sessions.take("away" * 5, asker)
        session.kind, session.expired = "lease", True
        adopted = handover.unpack(list(handover.pack(session).values()), later.take)
        assert adopted.principal == asker
        with pytest.raises(errors.HostUnreachable, match="the call ends"):
            later.find(session.id, asker)
        for one in (session, adopted):
            one.end()

    _run(check)


def test_a_link_whose_server_is_silent_is_dialled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member does not wait for TCP to notice a cut."""

    async def check() -> None:
        owner = SimpleNamespace(lost=lambda _: None)
        node = Node(settings.load(tmp_path))
        links: list[NodeLink] = []

        def make(transport: asyncio.Transport) -> NodeLink:
            links.append(NodeLink(transport, node, Sessions(node), NodeFacts("a"), cast("Any", owner)))
            return links[0]

        far, transport = await _wrapped(make)
        links[0].tell_load(NodeLoad())
        assert not transport.is_closing()
        monkeypatch.setattr(node_link, "LOST_SECONDS", -1.0)
        links[0].tell_load(NodeLoad())
        await asyncio.wait_for(links[0].lost, 10)
        far.close()

    _run(check)


def test_a_fence_whose_end_has_failed_is_moved_all_the_same(tmp_path: Path) -> None:
    """What could not be ended once is ended by the next attempt; before that no other moment counts."""

    class Ends:
        """An orphan killer that has died once."""

        def __init__(self) -> None:
            self.fence, self.attempts = fence.Fence(), 0

        def move_fence(self, until: float | None) -> None:
            self.fence.until = until

        async def end_served(self) -> int:
            self.attempts += 1
            if self.attempts == 1:
                raise OSError("it has gone")
            return 2

    async def check() -> None:
        launcher, engine = Ends(), SimpleNamespace(give_up=lambda *_: None)

        async def cut(_until: float) -> None:
            """Have no file system to cut off."""

        found = NodeFence(cast("Any", engine), cast("Any", launcher), cut, tmp_path / "joined")
        with pytest.raises(OSError, match="gone"):
            await found.move({"seconds": -1.0})
        assert (await found.move({"seconds": 5.0}))["ended"] == 2
        assert not launcher.fence.passed
        found.close()

    _run(check)


def test_the_row_of_a_call_that_waits_can_be_written_whatever_its_client_says() -> None:
    """Texts that are none in UTF-8 would break the operator's page."""

    async def check() -> None:
        arrival = Arrival("a" * 20, ANN, Early(Bytes(), "ann"), _never, lambda _: None)
        said = {"call": "0123456789abcdef", "at": float("inf"), "parent": ""}
        for spec in ({"function": "\ud800", "machine_type": "\udfff"}, {"function": [], "machine_type": {"a": 1}}):
            arrival.header = {"type": "lease", "for": said, "spec": spec}
            (row,) = waiting.rows([arrival], None)
            assert json.dumps(row, ensure_ascii=False).encode()
            assert row["function"] == row["machine_type"] == ""
        arrival.end()

    _run(check)


def test_machines_of_the_process_before_are_in_doubt(tmp_path: Path) -> None:
    """A server that has just begun does not answer for machines that have not linked again: they may run something."""

    async def check() -> None:
        cluster = Cluster(cast("Any", SimpleNamespace(node=Node(settings.load(tmp_path)))))
        account: dict[str, Any] = {"id": "1", "name": "before", "facts": {}, "labels": {}}
        cluster.account_changed(cast("Any", SimpleNamespace(**account, state="active")))
        assert list(cluster.doubtful_names()) == ["before"]

    _run(check)


def test_no_user_has_the_server_remove_a_user(server: Server) -> None:
    """Neither at once nor later: a machine that is away would make it up in the server's own name."""
    machine = Machine(server, "away")
    machine.link().close()
    key = server.add_user(NewUser("eve")).key
    assert key is not None
    asked = {"type": "request", "name": "users.remove", "arguments": {"user": user_of(server)}}
    for line in (RawLine(server, asked), RawLine(server, asked, key=f"{key.id}:{key.secret}")):
        assert line.header("failed", "answer")["error"]["code"] == "resources_unavailable"
        line.close()
    assert not (server.home.path / FILE).exists()
    machine.remove()


def test_an_offset_behind_all_calls_costs_nothing(server: Server) -> None:
    """The server asks machines for no more calls than they have."""
    line = RawLine(server, {"type": "request", "name": "calls.list", "arguments": {"offset": 10**15, "limit": 5}})
    assert line.header("answer", "failed")["type"] in {"answer", "failed"}
    line.close()
    assert server.ask("GET", "/v1/machines")[0] == 200
