"""Accounts of nodes: tokens to join, credentials, states, and what each of them opens."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.bodies import NewUser
from atoll.server.accounts.tokens import Pepper, read_pepper
from atoll.server.database.database import Database
from atoll.server.nodes import rows
from atoll.server.nodes.accounts import Nodes
from atoll.server.nodes.rows import NodeAccount

from . import postgresql
from .process import Server

NOBODY = {"Atoll-Protocol": "1"}


@pytest.fixture(scope="module", autouse=True)
def _nodes_go(server: Server) -> Iterator[None]:
    """Leave the server without the nodes of this module."""
    yield
    for one in server.ask("GET", "/v1/nodes")[1]["nodes"]:
        server.ask("DELETE", f"/v1/nodes/{one['name']}")


def post(server: Server, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    return server.ask("POST", path, json.dumps(body).encode(), headers)


def token(server: Server, **asked: Any) -> str:
    """Make a token as the operator."""
    status, made = post(server, "/v1/nodes/tokens", asked)
    assert status == 201
    return str(made["token"])


def joined(server: Server, name: str, **more: Any) -> dict[str, str]:
    """Join, and return the headers of the node."""
    status, found = post(server, "/v1/nodes/join", {"token": token(server), "name": name, **more}, NOBODY)
    assert status == 201, found
    return {"Authorization": f"Node {found['node']}:{found['secret']}", "Atoll-Protocol": "1"}


def acts(server: Server, act: str) -> list[dict[str, Any]]:
    return list(server.ask("GET", f"/v1/audit?act={act}")[1]["acts"])


def test_a_machine_joins_by_a_token_once(server: Server) -> None:
    """A token gives one machine credentials of a node, which it uses then; a second machine is refused, and both are noted."""
    once = token(server, labels={"zone": "lab"})
    asked = {"token": once, "name": "gpu-1", "labels": {"zone": "mine", "rack": "2"}, "facts": {"version": "9"}}
    status, found = post(server, "/v1/nodes/join", asked, NOBODY)
    assert (status, found["name"], found["labels"]) == (201, "gpu-1", {"rack": "2", "zone": "lab"})
    own = {"Authorization": f"Node {found['node']}:{found['secret']}", "Atoll-Protocol": "1"}
    status, row = server.ask("GET", "/v1/nodes/self", headers=own)
    assert (status, row["name"], row["state"], row["linked"], row["version"]) == (200, "gpu-1", "active", False, "9")
    status, answer = post(server, "/v1/nodes/join", {**asked, "name": "gpu-2"}, NOBODY)
    assert (status, answer["error"]["message"]) == (401, "the token to join has been used")
    listed = server.ask("GET", "/v1/nodes")[1]
    assert [one["name"] for one in listed["nodes"]][:2] == ["local", "gpu-1"]
    assert listed["nodes"][0]["linked"]
    assert listed["nodes"][0]["has"]["millicores"] > 0
    assert found["secret"] not in json.dumps(listed)
    assert once not in json.dumps(listed)
    (noted,) = [act for act in acts(server, "node.join") if act["target"] == found["node"]]
    assert (noted["actor_name"], noted["details"]["name"]) == ("node gpu-1", "gpu-1")
    assert acts(server, "node.token")[0]["actor_name"] == "operator"


def test_wrong_tokens_are_refused(server: Server) -> None:
    """A token that nobody made, one that has expired and a revoked one join no machine, and say so."""
    refused = {
        "atoll-join-" + "x" * 43: "is not valid",
        "": "is not valid",
        "\u2028" * 50: "is not valid",
        token(server, seconds=0.001): "has expired",
    }
    revoked = token(server, uses=7)
    assert server.ask("DELETE", "/v1/nodes/tokens")[1]["revoked"] >= 1
    refused[revoked] = "was revoked"
    for given, reason in refused.items():
        status, answer = post(server, "/v1/nodes/join", {"token": given, "name": "nobody"}, NOBODY)
        assert (status, answer["error"]["message"]) == (401, f"the token to join {reason}")
        assert "atoll nodes token" in answer["error"]["hint"]
    for asked in ({"uses": 0}, {"uses": 10**9}, {"seconds": 0}, {"seconds": 1e300}, {"labels": {"a b": ""}}):
        assert post(server, "/v1/nodes/tokens", asked)[0] == 400


def test_a_name_is_one_machines(server: Server) -> None:
    """A second machine of a name is refused, and uses up no token; with `replace` it takes the place of the first."""
    first, again = joined(server, "twin"), token(server)
    for name, status in (("twin", 409), ("local", 400), ("tokens", 400), ("Twin", 400), ("a--b", 400), ("", 400)):
        assert post(server, "/v1/nodes/join", {"token": again, "name": name}, NOBODY)[0] == status
    status, second = post(server, "/v1/nodes/join", {"token": again, "name": "twin", "replace": True}, NOBODY)
    assert status == 201
    status, answer = server.ask("GET", "/v1/nodes/self", headers=first)
    assert (status, answer["error"]["message"]) == (401, "the credentials of the node are not valid")
    own = {"Authorization": f"Node {second['node']}:{second['secret']}", "Atoll-Protocol": "1"}
    assert server.ask("GET", "/v1/nodes/self", headers=own)[0] == 200


def test_a_removed_node_is_refused_until_it_joins_again(server: Server) -> None:
    """The secret of a node that was removed, or has left, opens nothing; its name may join again without `replace`."""
    own = joined(server, "gone")
    assert server.ask("DELETE", "/v1/nodes/gone")[0] == 200
    status, answer = server.ask("GET", "/v1/nodes/self", headers=own)
    assert (status, "was removed" in answer["error"]["message"]) == (403, True)
    assert server.ask("DELETE", "/v1/nodes/gone")[0] == 404
    own = joined(server, "gone")
    assert server.ask("DELETE", "/v1/nodes/self", headers=own)[0] == 200
    assert server.ask("GET", "/v1/nodes/self", headers=own)[0] == 403
    assert {act["act"] for act in acts(server, "")} >= {"node.remove", "node.leave"}
    assert "gone" not in [one["name"] for one in server.ask("GET", "/v1/nodes")[1]["nodes"]]
    status, answer = server.ask("DELETE", "/v1/nodes/local")
    assert (status, "always there" in answer["error"]["message"]) == (400, True)


def test_states_are_the_operators(server: Server) -> None:
    """Cordon, drain and uncordon change a node's state, each with its line of the audit."""
    own = joined(server, "worker-1")
    for act, state in (("cordon", "cordoned"), ("drain", "draining"), ("uncordon", "active")):
        assert post(server, f"/v1/nodes/worker-1/{act}", None)[1]["state"] == state
        assert server.ask("GET", "/v1/nodes/self", headers=own)[1]["state"] == state
        assert acts(server, f"node.{act}")[0]["details"] == {"name": "worker-1"}
    assert post(server, "/v1/nodes/nobody/drain", None)[0] == 404


def test_keys_and_credentials_of_nodes_open_nothing_of_each_other(server: Server) -> None:
    """Users without the scope administer no nodes; a node's credentials open no route of users', and no key a node's."""
    added = server.add_user(NewUser("eve"))
    assert added.key is not None
    plain = {"Authorization": f"Key {added.key.id}:{added.key.secret}", "Atoll-Protocol": "1"}
    _, weak = post(server, "/v1/keys", {"scope": "API"})
    scoped = {"Authorization": f"Key {weak['id']}:{weak['secret']}", "Atoll-Protocol": "1"}
    own = joined(server, "honest")
    pair = own["Authorization"].partition(" ")[2]
    machines = server.ask("GET", "/v1/machines", headers=plain)[1]["machines"]
    assert machines[0]["name"] == "local"
    assert server.ask("GET", "/v1/machines", headers=own)[0] == 401
    for headers, status in ((plain, 403), (scoped, 403), (own, 401), (NOBODY, 401)):
        assert server.ask("GET", "/v1/nodes", headers=headers)[0] == status
        assert server.ask("DELETE", "/v1/nodes/honest", headers=headers)[0] == status
        assert post(server, "/v1/nodes/tokens", {}, headers)[0] == status
        assert post(server, "/v1/nodes/honest/drain", None, headers)[0] == status
    for headers in (own, {**own, "Authorization": f"Key {pair}"}):
        for path in ("/v1/whoami", "/v1/keys", "/v1/users", "/v1/audit"):
            assert server.ask("GET", path, headers=headers)[0] == 401
    key = server.headers()["Authorization"].partition(" ")[2]
    for given in (f"Key {key}", f"Node {key}", f"Node {pair}x", f"Node {pair}, Node {pair}", "Node :", "Node \xff"):
        headers = {"Authorization": given, "Atoll-Protocol": "1"}
        assert server.ask("GET", "/v1/nodes/self", headers=headers)[0] == 401
        assert server.ask("DELETE", "/v1/nodes/self", headers=headers)[0] == 401
    assert server.ask("GET", "/v1/nodes/self", headers=own)[1]["state"] == "active"
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x" * 24,
    }
    for path, headers in (
        ("/v1/nodes/link", server.headers()),
        ("/v1/nodes/line", server.headers()),
        ("/v1/nodes/link", {**own, "Authorization": f"Node {pair}x"}),
        ("/v1/line", own),
        ("/v1/line", {**own, "Authorization": f"Key {pair}"}),
    ):
        status, answer = server.ask("GET", path, headers={**headers, **upgrade})
        assert (status, answer["error"]["code"]) == (401, "not_authorized"), path


def test_a_node_of_another_protocol_is_told_which_side_to_upgrade(server: Server) -> None:
    """A machine whose versions the server does not speak is refused by name, before its token is used."""
    once = token(server)
    for given, side in (("2-3", "on the server"), ("0", "here")):
        headers = {**NOBODY, "Atoll-Node-Protocol": given}
        status, answer = post(server, "/v1/nodes/join", {"token": once, "name": "other"}, headers)
        assert (status, answer["error"]["code"]) == (426, "protocol_mismatch")
        assert side in answer["error"]["hint"]
    assert post(server, "/v1/nodes/join", {"token": once, "name": "other"}, NOBODY)[0] == 201


# --- without a server ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An open database of each kind."""
    tmp_path.chmod(0o700)
    if request.param == "sqlite":
        with Database(tmp_path) as found:
            yield found
        return
    with postgresql.running() as url, Database(tmp_path, url) as found:
        yield found


def test_one_of_two_machines_joins_by_the_last_use(database: Database) -> None:
    """Of machines that use a token of one use at the same time exactly one joins; of two of one name, one has it."""
    pepper = Pepper(b"p" * 32)

    def attempt(given: str, name: str, start: threading.Barrier) -> str:
        start.wait()
        try:
            with database.writing() as connection:
                return rows.join(connection, pepper, given, name, facts={}, labels={}).node.name
        except errors.AtollError as error:
            return error.message

    def race(uses: int, names: list[str]) -> list[str]:
        with database.writing() as connection:
            given, _ = rows.add_token(connection, pepper, uses=uses, seconds=60, labels={}, maker="x")
        start = threading.Barrier(len(names))
        with ThreadPoolExecutor(len(names)) as threads:
            return sorted(threads.map(lambda name: attempt(given, name, start), names))

    for number in range(3):
        names = [f"node-{number}-{letter}" for letter in "abcd"]
        won, *lost = sorted(race(1, names), key=lambda told: told not in names)
        assert (won in names, lost) == (True, ["the token to join has been used"] * 3)
        told = race(4, [f"same-{number}"] * 4)
        assert (told.count(f"same-{number}"), len(told)) == (1, 4)
        assert all("already" in one for one in told if one != f"same-{number}")


def test_those_who_hold_links_are_told(tmp_path: Path) -> None:
    """A change here, or by another process on the machine, is told once, with the node's state; a new secret ends the old."""
    tmp_path.chmod(0o700)
    told: list[tuple[str, str]] = []

    async def main() -> None:
        accounts = Accounts(tmp_path)
        nodes = Nodes(accounts)

        def hook(node: NodeAccount) -> None:
            told.append((node.name, node.state))
            if len(told) == 1:
                raise ValueError("one hook fails")

        nodes.on_change += [hook]
        first = await nodes.change(lambda connection: rows.admit(connection, nodes.pepper, "one", facts={}, labels={}))
        headers = {"authorization": f"Node {first.node.id}:{first.secret}"}
        assert (await nodes.authenticate(headers, "127.0.0.1")).name == "one"
        async with nodes.watching():
            with Database(tmp_path) as other, other.writing() as connection:  # as the command line does
                rows.set_state(connection, rows.find_node(connection, "one"), rows.DRAINING)
            assert (await nodes.authenticate(headers, "127.0.0.1")).state == rows.DRAINING  # at once
            for _ in range(600):
                if len(told) == 2:
                    break
                await asyncio.sleep(0.05)
            assert not nodes.has_run(first.node)
            nodes.heard(first.node.id, {"version": "2"})
            assert nodes.has_run(first.node)
            await nodes.change(
                lambda connection: rows.admit(connection, nodes.pepper, "one", facts={}, labels={}, replace=True)
            )
            with pytest.raises(errors.NotAuthorized):
                await nodes.authenticate(headers, "127.0.0.1")
            assert nodes.has_run(nodes.known()[-1])  # its calls of before may come back with it
        assert [node.name for node in nodes.known()] == ["one"]
        accounts.close()

    asyncio.run(main())
    assert told == [("one", "active"), ("one", "draining"), ("one", "removed"), ("one", "active")]


def test_attempts_with_wrong_tokens_are_limited(tmp_path: Path) -> None:
    """An address that tries many tokens hears 429; a right one joins all the same."""
    tmp_path.chmod(0o700)

    async def main() -> None:
        accounts = Accounts(tmp_path)
        nodes = Nodes(accounts)
        statuses = set()
        for number in range(70):
            with pytest.raises(errors.NotAuthorized) as caught:
                await nodes.join(f"atoll-join-{number:043}", "x", facts={}, labels={}, address="192.0.2.1")
            statuses.add(caught.value.status)
        assert statuses == {401, 429}
        made, _ = await nodes.change(
            lambda connection: rows.add_token(connection, nodes.pepper, uses=1, seconds=60, labels={}, maker="")
        )
        await nodes.join(made, "x", facts={}, labels={}, address="192.0.2.1")
        accounts.close()

    asyncio.run(main())


def test_last_words_and_facts_are_written_down(tmp_path: Path) -> None:
    """The moment of a node's last word and its facts are in the database after a while, and at the end at the latest."""
    tmp_path.chmod(0o700)
    began = time.time()

    async def main() -> None:
        accounts = Accounts(tmp_path)
        nodes = Nodes(accounts)
        first = await nodes.change(lambda connection: rows.admit(connection, nodes.pepper, "one", facts={}, labels={}))
        async with nodes.watching():
            nodes.heard(first.node.id, {"version": "7"})
        accounts.close()

    asyncio.run(main())
    with Database(tmp_path) as database, database.reading() as connection:
        node = rows.find_node(connection, "one")
    assert (node.seen is not None and node.seen >= began, node.facts) == (True, {"version": "7"})
    with Database(tmp_path) as database, database.writing() as connection:
        replaced = rows.admit(connection, read_pepper(tmp_path), "one", facts={}, labels={}, replace=True)
        assert replaced.node.seen == node.seen
        assert rows.find_node(connection, "one").seen == node.seen
