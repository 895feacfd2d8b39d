"""Figures for Prometheus at `/metrics`: on a listener of their own, or for operators.

Nothing in them names a user: labels are methods, routes and states.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll import __version__, errors
from atoll.server.endpoints.figures import Sums, by_doublings
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.http import Connections
from atoll.server.line.sessions import Sessions
from atoll.server.queue.queue import Queue
from atoll.server.state import ServerState, principal_of

NODE_SECONDS = 3.0
_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The figures of one server."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "atoll_http_requests",
            "Requests by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "atoll_http_request_seconds",
            "Seconds of requests by route.",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._node: dict[str, Any] | None = None
        self.registry.register(self)
        self._started = time.time()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Take a request."""
        known = method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"
        found = self._children.get((known, route, status))
        if found is None:  # a look in the library's own table costs several times as much
            counter = self._requests.labels(known, route, str(status or 499))
            found = self._children[known, route, status] = counter, self._seconds.labels(route)
        counter, seconds_of_route = found
        counter.inc()
        seconds_of_route.observe(seconds)

    async def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        try:
            asked = self._state.asks.ask(None, "status", {})
            self._node = await asyncio.wait_for(asked, NODE_SECONDS)
        except (errors.AtollError, TimeoutError, OSError):
            self._node = None
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Return the figures that are counted elsewhere; for the registry."""
        version = GaugeMetricFamily("atoll_server_info", "The server's version.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version
        yield _gauge("atoll_server_start_seconds", "When the server started.", self._started)
        yield from self._lines()
        yield from self._endpoints()
        yield from self._of_node()

    def _lines(self) -> Iterator[Metric]:
        sessions = self._state.parts.get("sessions")
        if isinstance(sessions, Sessions):
            current = sessions.all()
            open_lines = GaugeMetricFamily(
                "atoll_lines", "Open lines by kind and connection.", labels=["kind", "connection"]
            )
            counted: dict[tuple[str, str], int] = {}
            for session in current:
                place = session.kind or "new", "open" if session.attached else "lost"
                counted[place] = counted.get(place, 0) + 1
            for place, count in counted.items():
                open_lines.add_metric(list(place), count)
            yield open_lines
            yield _count("atoll_lines_opened", "Lines that were opened.", sessions.opened)
            yield _count("atoll_lines_resumed", "Lines that came back after a loss.", sessions.resumed)
            yield _count("atoll_lines_refused", "Lines beyond a user's bound.", sessions.refused)
            yield _count(
                "atoll_calls", "Calls that were passed on.", sessions.calls + sum(one.ends.calls for one in current)
            )
            moved = CounterMetricFamily("atoll_line_bytes", "Bytes of lines.", labels=["direction"])
            moved.add_metric(["up"], sessions.bytes_up + sum(one.bytes_up for one in current))
            moved.add_metric(["down"], sessions.bytes_down + sum(one.bytes_down for one in current))
            yield moved
            kept = sum(one.line.unacknowledged for one in current)
            yield _gauge("atoll_line_kept_bytes", "Bytes that clients have not acknowledged.", kept)
            yield _gauge("atoll_arguments_kept_bytes", "Large arguments for later calls.", sessions.kept.bytes)
        connections = self._state.parts.get("connections")
        if isinstance(connections, Connections):
            yield _gauge("atoll_connections", "Open connections.", len(connections))
            yield _count("atoll_connections_refused", "Connections beyond a bound.", connections.refused)

    def _endpoints(self) -> Iterator[Metric]:
        """Return the figures of all endpoints together: labels name no user, and so none of their endpoints."""
        runners, queue = self._state.parts.get("runners"), self._state.parts.get("queue")
        if isinstance(runners, Runners):
            pools, sums = tuple(runners.pools.values()), Sums()
            for pool in pools:
                sums.add(pool.figures.sums())
            text = "Requests to endpoints that are over, queued ones included, by status."
            counted = CounterMetricFamily("atoll_endpoint_requests", text, labels=["status"])
            for kind, count in enumerate(sums.kinds):
                if count:
                    counted.add_metric([f"{kind}xx" if kind else "none"], count)
            yield counted
            buckets = [("+Inf" if bound == float("inf") else str(bound), n) for bound, n in by_doublings(sums.times)]
            text = "Seconds of requests to endpoints, to the end of the answer."
            yield HistogramMetricFamily("atoll_endpoint_request_seconds", text, buckets, sums.seconds)
            yield _gauge("atoll_endpoint_workers", "Workers of endpoints.", sum(len(pool.runners) for pool in pools))
            waiting = sum(pool.waiting for pool in pools)
            yield _gauge("atoll_endpoint_waiting", "Requests that wait for a worker, without the queue's.", waiting)
        if isinstance(queue, Queue):
            yield _gauge("atoll_queue_waiting", "Queued requests that wait.", sum(queue.sizes().values()))
            yield _gauge("atoll_queue_open", "Queued requests that are not over.", len(queue.entries))

    def _of_node(self) -> Iterator[Metric]:
        node = self._node
        yield _gauge("atoll_node_up", "1 if the node answers.", 0 if node is None else 1)
        if node is None:
            return
        yield _gauge("atoll_node_start_seconds", "When the node started.", float(node["daemon"]["started_at"]))
        yield _gauge("atoll_leases_waiting", "Requests for a worker that wait.", int(node["daemon"]["waiting"]))
        yield _gauge("atoll_sandboxes", "Live sandboxes.", len(node["sandboxes"]))
        yield _gauge("atoll_workers", "Live workers.", len(node["workers"]))
        yield _gauge("atoll_calls_running", "Calls that run or wait.", len(node["calls"]))
        free = node["capacity"]["free"]
        yield _gauge("atoll_free_cpus", "Cores that no call has reserved.", float(free["cpus"]))
        yield _gauge("atoll_free_memory_bytes", "Memory that no call has reserved.", float(free["memory_bytes"]))
        yield _gauge("atoll_free_gpus", "GPUs that no call has reserved.", float(free["gpus"]))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def install(state: ServerState) -> None:
    """Add the route for operators, or the listener of its own."""
    state.parts["metrics"] = metrics = Metrics(state)
    if state.options.metrics is not None:
        state.lifespan.append(lambda: _listener(state, metrics))
        return

    async def answer(request: Request) -> Response:
        principal = await principal_of(request)
        if not principal.may_administer:
            raise errors.NotAuthorized("`/metrics` is for operators", hint="use a key with the scope ADMIN", status=403)
        return Response(await metrics.text(), media_type=_TYPE)

    state.routes.append(Route("/metrics", answer))


class _Second(uvicorn.Server):
    """A server beside another one, whose signals are the other's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@contextlib.asynccontextmanager
async def _listener(state: ServerState, metrics: Metrics) -> AsyncIterator[None]:
    address = state.options.metrics
    assert address is not None

    async def answer(_request: Request) -> Response:
        return Response(await metrics.text(), media_type=_TYPE)

    app = Starlette(routes=[Route("/metrics", answer)])
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", proxy_headers=False)
    server = _Second(config)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.create_server((address.host, address.port), family=family) as listener:
        state.parts["metrics_port"] = listener.getsockname()[1]
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await task
