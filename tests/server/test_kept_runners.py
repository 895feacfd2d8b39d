"""Runners that are kept although nobody asks: replaced when they end, and started ever more rarely where they fail."""

from __future__ import annotations

from typing import Any

from atoll import Host, isolated

from ..waiting import until
from .process import Server
from .test_endpoints import ask, host, raw_server, runners, server  # noqa: F401 - fixtures


def fails_at_first() -> None:
    """Fail until a file is there, and leave a line for each start."""
    import http.server
    import os

    with open("/data/starts", "a") as file:
        file.write("start\n")
    if not os.path.exists("/data/mended"):
        raise ValueError("no model yet")
    http.server.HTTPServer(("0.0.0.0", 8080), http.server.BaseHTTPRequestHandler).serve_forever()


def revision(server: Server, name: str) -> dict[str, Any]:  # noqa: F811
    """Return a revision as its list shows it."""
    found: list[dict[str, Any]] = server.ask("GET", "/v1/revisions")[1]["revisions"]
    return next(one for one in found if one["id"] == name)


def test_a_kept_runner_that_fails_is_tried_ever_more_rarely(server: Server, host: Host) -> None:  # noqa: F811
    """The state of its revision says why and when; once the function starts there is none, without any request."""
    made = isolated(host=host, exposed_port=8080, network="none", machine_type="XS")(fails_at_first).serve(
        "kept", min_concurrency=1
    )
    until(lambda: (revision(server, made.revision)["failing"] or {}).get("failures", 0) >= 3)
    shown = revision(server, made.revision)
    assert (shown["runners"], shown["failing"]["next_try"] > 0) == (0, True)
    assert "no model yet" in shown["failing"]["error"]
    starts = next(server.volumes.glob("*/data/starts"))
    before = starts.read_text().count("start")
    assert before <= shown["failing"]["failures"] + 1  # and not one each half second
    assert ask(server, "/operator/kept")[0] == 503  # a request tries at once
    until(lambda: starts.read_text().count("start") > before)
    (starts.parent / "mended").touch()
    function = isolated(host=host, exposed_port=8080, network="none", machine_type="XS")(fails_at_first)
    again = function.serve("kept", min_concurrency=1)  # a new revision does not wait
    until(lambda: runners(server, "kept") == 1)
    assert revision(server, again.revision)["failing"] is None
    listed = server.ask("GET", "/v1/aliases")[1]["aliases"]
    assert [one["failing"] for one in listed if one["alias"] == "kept"] == [None]


def test_a_kept_runner_that_ends_is_replaced(server: Server, host: Host) -> None:  # noqa: F811
    """Nobody asks, and there is another one: also after the end of server and node, but not of a retired revision."""
    made = isolated(host=host, exposed_port=8080, network="none", machine_type="XS")(raw_server).serve(
        "replaced", min_concurrency=1
    )

    def call() -> str:
        found = server.ask("GET", f"/v1/revisions/{made.revision}/logs")[1]["runners"]
        is_there = revision(server, made.revision)["runners"] == 1 and found[-1]["state"] == "running"
        return str(found[-1]["call"]) if is_there else ""

    first = until(call)
    remote: Any = host
    remote.request("detached.cancel", {"call": first})
    second = until(lambda: found if (found := call()) != first else "")
    server.end()
    server.home.atoll("stop")
    server.start()
    until(lambda: call() not in ("", second))
    assert server.ask("DELETE", "/v1/aliases/replaced")[0] == 200
    until(lambda: revision(server, made.revision)["runners"] == 0)
