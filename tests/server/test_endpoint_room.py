"""Idle runners make room: nobody waits for the `keep_alive` of another endpoint."""

from __future__ import annotations

import os
from concurrent import futures
from typing import Any

import pytest

from atoll import Host, isolated
from atoll.server.endpoints.runners.room import IDLE_SECONDS

from ..waiting import until
from .process import Server, on_cluster
from .test_endpoints import ask, host, raw_server, runners, server  # noqa: F401 - fixtures

CORES = os.cpu_count() or 1
pytestmark = pytest.mark.skipif(on_cluster(), reason="each of the machines has room for one of them")


def served(host: Host, name: str, **options: Any) -> None:  # noqa: F811
    """Serve an endpoint whose runner needs the whole machine, and is kept for an hour."""
    function = isolated(host=host, exposed_port=8080, network="none", cpu=CORES, keep_alive=3600, max_concurrency=1)
    function(raw_server).serve(name, **options)


def test_an_idle_runner_makes_room_for_what_waits(server: Server, host: Host) -> None:  # noqa: F811
    """Another endpoint is answered, and a plain call; the runner that has ended is started again by its next request."""
    served(host, "first")
    served(host, "second")
    for name, other in (("first", "second"), ("second", "first"), ("first", "second")):
        assert ask(server, f"/operator/{name}/")[0] == 200
        assert runners(server, other) == 0
    plain = isolated(host=host, network="none", cpu=CORES)(os.getpid)
    assert plain() > 0
    until(lambda: runners(server, "first") == 0)


def test_a_runner_with_a_request_or_one_that_is_kept_makes_no_room(server: Server, host: Host) -> None:  # noqa: F811
    """Others wait for the end of its request; and for the end of an endpoint that is to have a runner always."""
    served(host, "streams")
    served(host, "other")
    remote: Any = host

    def waits() -> bool:
        rows = remote.request("calls.running", {})["calls"]
        return any(row["state"] == "waiting" for row in rows)

    with futures.ThreadPoolExecutor(2) as threads:
        stream = threads.submit(ask, server, "/operator/streams/stream")
        until(lambda: runners(server, "streams") == 1)
        waiting = threads.submit(ask, server, "/operator/other/")
        until(waits)
        with pytest.raises(futures.TimeoutError):
            waiting.result(3 * IDLE_SECONDS)
        (next(server.volumes.glob("*/data")) / "go").touch()
        assert (stream.result()[0], waiting.result()[0]) == (200, 200)
        served(host, "kept", min_concurrency=1)
        until(lambda: runners(server, "kept") == 1)
        waiting = threads.submit(ask, server, "/operator/other/")
        until(waits)
        with pytest.raises(futures.TimeoutError):
            waiting.result(3 * IDLE_SECONDS)
        assert runners(server, "kept") == 1
        assert server.ask("DELETE", "/v1/aliases/kept")[0] == 200
        assert waiting.result()[0] == 200


def test_a_new_revision_runs_beside_the_requests_of_the_one_before(server: Server, host: Host) -> None:  # noqa: F811
    """The bound of runners is that of each revision: a function's own `max_concurrency` lets no new one wait."""
    function = isolated(host=host, exposed_port=8080, network="none", machine_type="XS", max_concurrency=1)(raw_server)
    (next(server.volumes.glob("*/data")) / "go").unlink()
    function.serve("again")
    with futures.ThreadPoolExecutor(1) as threads:
        stream = threads.submit(ask, server, "/operator/again/stream")
        until(lambda: runners(server, "again") == 1)
        function.serve("again")
        assert ask(server, "/operator/again/")[0] == 200
        assert not stream.done()
        (next(server.volumes.glob("*/data")) / "go").touch()
        assert stream.result()[0] == 200
