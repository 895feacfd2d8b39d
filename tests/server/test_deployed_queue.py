"""Spawned calls of deployed functions: in the queue of their app, bounded, and found by any program with the same key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import CallHandle, Function, errors, isolated
from atoll.sdk.apps.deploying import deploy

from ..waiting import until
from .process import Server
from .test_schedules import command, host, host_of, server  # noqa: F401 - fixtures

FOLLOWER = """
import sys
from atoll import CallHandle

handle = CallHandle.from_id(sys.argv[1])
print(handle.result(timeout=120), handle.status().outcome)
"""


def waits(number: int) -> int:
    """Run until a file says that it may end, and leave a line."""
    import os
    import time

    with open("/data/began", "a") as file:
        file.write(f"{number}\n")
    while not os.path.exists("/data/go"):
        time.sleep(0.02)
    return 2 * number


def test_spawned_calls_wait_in_the_queue_of_their_app(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """Size, positions, bound, cancellation, the end of all that wait, and a restart of the server in the middle."""

    def queue() -> dict[str, Any]:
        found: dict[str, Any] = host.server.ask("GET", "/v1/queues/shop/waits")
        return found

    def run(*arguments: str) -> str:
        done = command(server, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    deploy(
        host.server, "shop", {"waits": isolated(host=host, network="none", max_concurrency=1, machine_type="XS")(waits)}
    )
    looked_up = Function.lookup("shop/waits", host)
    calls = [looked_up.spawn(number) for number in range(5)]
    until(lambda: (queue()["running"], queue()["waiting"]) == (1, 4))
    assert [one["id"] for one in queue()["entries"]] == [one.id for one in calls]
    assert [one["position"] for one in queue()["entries"]] == [0, 0, 1, 2, 3]
    assert [CallHandle.from_id(one.id, host).status().position for one in calls] == [0, 0, 1, 2, 3]
    assert "shop/waits" in run("queue", "list")
    assert calls[3].id in run("queue", "show", "shop/waits")
    (listed,) = [one for one in json.loads(run("queue", "list", "--json")) if one["name"] == "shop/waits"]
    assert (listed["kind"], listed["waiting"], listed["running"]) == ("called", 4, 1)

    assert CallHandle.from_id(calls[1].id, host).cancel()
    until(lambda: queue()["waiting"] == 3)
    assert [one["position"] for one in queue()["entries"]] == [0, 0, 1, 2]
    other = host_of(server, "mona")
    with pytest.raises(errors.CallerError, match="no queue"):
        other.server.ask("GET", "/v1/queues/shop/waits")
    with pytest.raises(errors.CallUnknown):
        CallHandle.from_id(calls[0].id, other)

    server.end()
    server.start()
    assert (queue()["running"], queue()["waiting"]) == (1, 3)
    program = tmp_path / "follower.py"
    program.write_text(FOLLOWER)
    (key_id, secret), ca_file = server.key, str(server.ca_file)
    env = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret, "ATOLL_CA_FILE": ca_file}
    env |= {"PATH": "/usr/bin:/bin", "ATOLL_HOME": str(tmp_path)}
    given = [sys.executable, str(program), calls[2].id]
    with subprocess.Popen(given, env=env, stdout=subprocess.PIPE, text=True) as follower:
        assert run("queue", "show", "shop/waits")
        (data,) = server.volumes.glob("*/data/began")
        assert data.read_text() == "0\n"  # one at a time
        (data.parent / "go").touch()
        assert follower.communicate(timeout=120)[0] == "4 ok\n"
    assert [calls[number].result(timeout=120) for number in (0, 3, 4)] == [0, 6, 8]
    assert calls[1].status().outcome == "cancelled"
    until(lambda: (queue()["running"], queue()["waiting"]) == (0, 0))

    host.server.ask("DELETE", "/v1/apps/shop")
    with pytest.raises(errors.CallerError, match="no queue"):
        queue()


def test_all_that_waits_is_cancelled(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """`atoll queue flush` ends the calls of a batch that wait; the one that runs goes on, though its app is gone."""
    deploy(
        host.server,
        "store",
        {"waits": isolated(host=host, network="none", max_concurrency=1, machine_type="XS")(waits)},
    )
    for file in server.volumes.glob("*/data/go"):
        file.unlink()

    def queue() -> tuple[int, int]:
        found = host.server.ask("GET", "/v1/queues/store/waits")
        return found["running"], found["waiting"]

    more = Function.lookup("store/waits", host).spawn_map(range(10, 14))
    until(lambda: queue() == (1, 3))
    host.server.ask("DELETE", "/v1/apps/store")
    assert queue() == (1, 3)
    done = command(server, tmp_path, "queue", "flush", "store/waits")
    assert done.stdout == "cancelled 3 of store/waits\n", done.stderr
    assert queue() == (1, 0)
    next(server.volumes.glob("*/data/began")).with_name("go").touch()
    assert more.wait(timeout=120) == {"ok": 1, "cancelled": 3}


def test_other_calls_are_in_no_queue(server: Server, host: Any) -> None:  # noqa: F811
    """A call of a function with its source has no place in the queue of an app; requests to endpoints have their own."""
    deploy(host.server, "plain", {"price": isolated(host=host, network="none")(_price)})
    handle = isolated(host=host, network="none")(_price).spawn()
    assert handle.result(timeout=120) == 3
    assert Function.lookup("plain/price", host).spawn().result(timeout=120) == 3
    body = json.dumps({"function": "app", "port": 8080, "alias": "asked"}).encode() + b"\nnothing that runs"
    assert server.ask("POST", "/v1/revisions", body)[0] == 201
    for _ in range(2):
        assert server.ask("POST", "/queue/operator/asked", b"{}")[0] == 200
    shown = host.server.ask("GET", "/v1/queues/asked")
    assert (shown["kind"], shown["waiting"]) == ("served", 2)
    assert [one["position"] for one in shown["entries"]] == [0, 1]
    key = host.server.ask("POST", "/v1/keys", {"scope": "API"})
    calls_only = type(host)(server.url, key_id=key["id"], key_secret=key["secret"], ca_file=str(server.ca_file))
    with pytest.raises(errors.NotAuthorized):
        calls_only.server.ask("DELETE", "/v1/queues/asked")
    assert host.server.ask("DELETE", "/v1/queues/asked")["cancelled"] == 2
    assert {one["name"] for one in host.server.ask("GET", "/v1/queues")["queues"]} >= {"asked", "plain/price"}
    host.server.ask("DELETE", "/v1/apps/plain")
    host.server.ask("DELETE", "/v1/aliases/asked")


def _price() -> int:
    return 3
