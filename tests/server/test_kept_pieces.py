"""Large arguments go to a node once: bytes on the wire, changed values, two nodes, restarts, other users, liars."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from atoll import Host, isolated
from atoll.server.accounts.bodies import NewUser
from atoll.wire import repeats
from atoll.wire.frames import encode
from atoll.wire.repeats import Sent
from atoll.wire.websocket import PIECE

from .forwarder import Forwarder
from .functions import Leased
from .members import Member, cluster
from .process import Server

SIZE = 5_000_000
OPTIONS: dict[str, Any] = {"keep_alive": 60, "network": "none", "local_modules": []}


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Server, Member]]:
    """A server whose own machine runs functions, and another machine, which gets none until a test says so."""
    with cluster("solo", options=()) as (server, members):
        assert server.ask("POST", "/v1/nodes/solo/cordon")[0] == 200
        yield server, members["solo"]


@pytest.fixture
def server(two: tuple[Server, Member], monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in two[0].client_variables.items():
        monkeypatch.setenv(name, value)
    return two[0]


@pytest.fixture
def wire(server: Server) -> Iterator[Forwarder]:
    with Forwarder(server.port) as found:
        yield found


def host_of(server: Server, wire: Forwarder, key: tuple[str, str] = ("", "")) -> Host:
    """Return the server as a host whose bytes the forwarder counts."""
    key_id, key_secret = key if key[0] else server.key
    url = f"https://127.0.0.1:{wire.port}"
    return Host(url, key_id=key_id, key_secret=key_secret, ca_file=str(server.ca_file))


def sha(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha(data: Any, number: int = 0) -> tuple[str, int]:
    import hashlib

    with open("/data/calls", "a") as file:
        file.write("x")
    return hashlib.sha256(data).hexdigest(), number


def _calls() -> int:
    return os.path.getsize("/data/calls")


def _changes(data: Any) -> str:
    import hashlib

    found = hashlib.sha256(data).hexdigest()
    memoryview(data)[0] = 1
    return found


def test_calls_share_an_argument_that_travels_once(server: Server, wire: Forwarder) -> None:
    """Twenty calls with the same bytes, one after the other, send them once."""
    work, data = isolated(host=host_of(server, wire), **OPTIONS)(_sha), os.urandom(4 * SIZE)
    expected = sha(data)
    for number in range(20):
        assert work(data, number) == (expected, number)
    assert 4 * SIZE < wire.up < 5 * SIZE
    _, text = server.ask("GET", "/metrics")
    (line,) = (line for line in text.decode().splitlines() if line.startswith("atoll_arguments_kept_bytes "))
    assert float(line.split()[1]) >= 4 * SIZE


def test_calls_at_a_time_share_an_argument(server: Server, wire: Forwarder) -> None:
    """A map over several workers sends an argument, and what its function has captured, once or, by chance, twice."""
    host = host_of(server, wire)
    data, captured = os.urandom(SIZE), os.urandom(SIZE)

    def work(data: bytes, number: int) -> tuple[int, int]:
        return data[number] + captured[number], number

    found = list(isolated(host=host, **OPTIONS)(work).map([data] * 20, range(20)))
    assert found == [(data[number] + captured[number], number) for number in range(20)]
    assert 2 * SIZE < wire.up < 4.5 * SIZE


def test_a_changed_value_is_sent_anew(server: Server, wire: Forwarder) -> None:
    """The bytes at the time of a call count; what a function does with them is seen by no other call."""
    memory = bytearray(os.urandom(SIZE))
    data: Any = pickle.PickleBuffer(memory)  # as an array's memory: beside its pickle
    work = isolated(host=host_of(server, wire), **OPTIONS)(_changes)
    for place in (0, SIZE // 2 + 7, SIZE - 1):
        before = wire.up
        memory[place] ^= 0xFF
        expected = sha(memory)
        assert [work(data) for _ in range(3)] == [expected] * 3
        assert SIZE < wire.up - before < 1.2 * SIZE


def test_each_of_two_nodes_gets_an_argument_once(server: Server, wire: Forwarder) -> None:
    """Calls on another machine send an argument there, once, too."""
    work, data = isolated(host=host_of(server, wire), **OPTIONS)(_sha), os.urandom(SIZE)
    expected = sha(data)
    for ours, theirs in (("local", "solo"), ("solo", "local"), ("local", "solo")):
        assert server.ask("POST", f"/v1/nodes/{theirs}/cordon")[0] == 200
        assert server.ask("POST", f"/v1/nodes/{ours}/uncordon")[0] == 200
        for number in range(3):
            assert work(data, number) == (expected, number)
    assert 2 * SIZE < wire.up < 2.4 * SIZE


def test_a_node_that_has_forgotten_gets_an_argument_again(server: Server, wire: Forwarder) -> None:
    """After a restart of the server the next call sends the bytes again, and runs once."""
    host = host_of(server, wire)
    work, calls, data = isolated(host=host, **OPTIONS)(_sha), isolated(host=host, **OPTIONS)(_calls), os.urandom(SIZE)
    expected = sha(data)
    before = work(data) and calls()
    server.end()
    server.start()
    up = wire.up
    assert [work(data, number) for number in range(3)] == [(expected, number) for number in range(3)]
    assert calls() == before + 3
    assert SIZE < wire.up - up < 1.2 * SIZE


def test_users_and_keys_never_share(server: Server, wire: Forwarder) -> None:
    """Another user, who has the very bytes, sends them all."""
    data = os.urandom(SIZE)
    expected = sha(data)
    for name in ("ada", "bob"):
        added = server.add_user(NewUser(name))
        assert added.key is not None
        before = wire.up
        work = isolated(host=host_of(server, wire, (added.key.id, added.key.secret)), **OPTIONS)(_sha)
        assert [work(data, number) for number in range(3)] == [(expected, number) for number in range(3)]
        assert SIZE < wire.up - before < 1.2 * SIZE


def _ask(leased: Leased, data: bytes, hint: str = "") -> list[str]:
    """Ask whether the node has a piece."""
    named = [repeats.digest_of((data,)), len(data), hint or repeats.hint_of(data)]
    leased.line.say({"type": "have", "pieces": [named]})
    found: list[str] = leased.line.header("has")["kept"]
    return found


def _keep(leased: Leased, header: dict[str, Any], data: bytes) -> None:
    leased.line.say(header)
    _send(leased, data)


def _send(leased: Leased, data: Any) -> None:
    for at in range(0, len(data), PIECE):
        while leased.line.line.full:
            leased.line.pump()
        leased.line.send_raw(bytes(data[at : at + PIECE]))


def test_what_a_client_claims_is_not_believed(server: Server) -> None:
    """Bytes that came with the hint of others are not those others, and a piece that nobody was promised ends the line."""
    wanted, others = os.urandom(2 << 20), os.urandom(2 << 20)
    hint = repeats.hint_of(wanted)
    liar = Leased(server, _calls, network="none")
    with contextlib.closing(liar.line):
        assert _ask(liar, wanted) == []
        _keep(liar, {"type": "keep", "size": len(others), "hint": hint}, others)
        assert _ask(liar, wanted) == []
        assert _ask(liar, others, hint) == [repeats.digest_of((others,))]
        liar.line.say({"type": "kept", "digest": repeats.digest_of((wanted,))})
        with pytest.raises(ConnectionError):
            liar.line.header("nothing")


@pytest.mark.parametrize(
    "headers",
    [
        [{"type": "keep", "size": 0, "hint": "00"}],
        [{"type": "keep", "size": 1 << 70, "hint": "no hint"}],
        [{"type": "keep", "size": 1 << 20, "hint": "00"}, {"type": "keep", "size": 1 << 20, "hint": "00"}],
        [{"type": "have", "pieces": []}],
        [{"type": "have", "pieces": [["00", 1, "00"]]}],
        [{"type": "have", "pieces": [["0" * 64, 1, "00"]] * 17}],
        [{"type": "kept", "digest": "0" * 64}],
        [{"type": "kept", "digest": {}}],
    ],
)
def test_headers_without_sense_end_the_line(server: Server, headers: list[dict[str, Any]]) -> None:
    """A client that does not keep to the protocol of pieces loses its line, and nobody else anything."""
    leased = Leased(server, _calls, network="none")
    with contextlib.closing(leased.line):
        for header in headers:
            leased.line.say(header)
        with pytest.raises(ConnectionError):
            leased.line.header("nothing")


def test_a_connection_that_is_lost_goes_on_within_a_piece(server: Server) -> None:
    """A call whose argument is kept under way, and one whose argument is named, are whole after lost connections."""
    data = os.urandom(3 << 20)
    leased = Leased(server, _sha, data, **OPTIONS)
    line = leased.line
    with contextlib.closing(line):
        for named in (False, True):
            kept = set(_ask(leased, data)) if named else set()
            ((header, buffers),) = leased.protocol.start(leased.request.call, 60.0, None, "")[-1:]
            pieces = [memoryview(one).cast("B") for one in encode(header, buffers)]
            found = repeats.find(pieces, SIZE, Sent())
            found = [one._replace(digest=repeats.digest_of((pieces[one.place],))) for one in found]
            assert len(found) == 1
            line.drop_after(1 << 20 if not named else 100)
            for piece in repeats.marked(pieces, found, kept):
                if type(piece) is dict:
                    line.say(piece)
                else:
                    _send(leased, piece)
            assert leased.answer() == (sha(data), 0)
        assert line.drops == 2
