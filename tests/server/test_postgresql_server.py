"""Queue, schedules and apps of a server whose database is PostgreSQL."""

from __future__ import annotations

import json
import signal
from typing import Any

from ..waiting import until
from . import postgresql
from .queue_app import Front, front


def test_a_server_keeps_what_waits_in_postgresql() -> None:
    """Requests are answered also after a kill, once for each key; schedules and apps are made, changed and removed."""
    with postgresql.running() as url, front("--database", url) as made:
        path = made.serve("kept")
        first = made.submit(path + "/echo", b'{"a": 1}')
        assert made.result(path, first) == (200, {"a": 1})
        made.app.hold()
        waiting = made.submit(path + "/wait", b'{"b": 2}')
        until(lambda: made.status(path, waiting)["status"] == "IN_PROGRESS")
        made.server.end(signal.SIGKILL)
        made.server.start()
        made.app.release()
        assert made.result(path, waiting) == (200, {"b": 2})
        again = {made.submit(path + "/echo", b"{}", Idempotency_Key="k") for _ in range(2)}
        assert len(again) == 1
        _schedules_and_apps(made)
        assert not made.server.home.path.joinpath("server", "server.db").exists()


def _schedules_and_apps(made: Front) -> None:
    def ask(method: str, address: str, value: Any = None, rest: bytes = b"") -> Any:
        body = None if value is None else json.dumps(value).encode() + rest
        status, data = made.ask(method, f"/v1/{address}", body)
        assert status in (200, 201), data
        return data

    schedule = ask("POST", "schedules", {"function": "f", "rule": {"cron": "@daily"}}, b"\nnothing that runs")["id"]
    assert ask("POST", f"schedules/{schedule}/pause", {})["next_run"] == 0
    assert ask("POST", f"schedules/{schedule}/resume", {})["next_run"] > 0
    assert ask("GET", f"schedules/{schedule}/activations")["activations"] == []
    functions = [
        {"name": "web", "kind": "served", "size_bytes": 4, "port": 8080, "alias": "web"},
        {"name": "price", "kind": "called", "size_bytes": 4},
        {"name": "tick", "kind": "scheduled", "size_bytes": 4, "rule": {"cron": "@daily"}},
    ]
    for _ in range(2):
        ask("POST", "apps", {"app": "shop", "functions": functions}, b"\none_two_tree")
    ask("POST", "apps/shop/rollback", {})
    assert len(ask("GET", "apps/shop")["deployments"]) == 2
    names = [one["name"] for one in ask("GET", "queues")["queues"]]
    assert names == ["kept", "shop/price", "web"]
    ask("DELETE", "apps/shop")
    ask("DELETE", f"schedules/{schedule}")
    assert ask("GET", "apps")["apps"] == []
