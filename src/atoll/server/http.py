"""HTTP connections with bounds: of heads, slow bodies, idle and slow readers, and connections of one address.

uvicorn's protocol with httptools has none of these: it takes heads of any size, and waits for the rest of one for ever.
A sweep once a second looks at deadlines, which costs a request less than timers of its own would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from atoll.server import addresses
from atoll.server.addresses import source

HEAD_BYTES = 64 << 10
HEAD_FIELDS = 200
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
"""Seconds without any byte of a body that the server waits for."""
DISCARDED_BYTES = 16 << 20
"""Bytes of refused bodies that a connection reads without a use."""
IDLE_SECONDS = 75.0
"""Seconds that a connection may wait for its first request; longer than the idle time of common proxies."""
WRITE_SECONDS = 120.0
"""Seconds without room for an answer that its reader does not take."""
PIPELINED = 16
"""Requests that may wait behind the one that is being answered."""
OF_ADDRESS = 4096
"""Connections of one source, as `source` groups addresses; proxies that are trusted may have any number."""
SHARE_OF_ADDRESS = 4
"""One source has at most one of so many of all connections."""
LEAST_RATE = 1024
"""Bytes of a body a second, after `BODY_SECONDS`: below it the body has no end worth waiting for."""
SWEEP_SECONDS = 1.0
PREFACE = b"PRI "
"""The beginning of a connection that speaks HTTP/2: gRPC."""

Grpc = Callable[[asyncio.Transport, bytes, Callable[[], None], set[Any]], None]
"""Takes a connection that speaks gRPC: the transport, its first bytes, what counts it no longer, uvicorn's connections."""

Lean = Callable[[RequestResponseCycle, FlowControl, ASGIApp], ASGIApp]
"""Returns what answers a request: the application, or a shorter way."""


class Bounded(Protocol):
    """A connection with a deadline: seconds of the loop's clock, 0 for none."""

    deadline: float

    def expire(self) -> None:
        """End the connection: its deadline has passed."""


class Connections:
    """The connections of this process, by address and deadline.

    Args:
        most: of all together.
        trusted: proxies whose connections are not counted by address.
    """

    def __init__(self, most: int, trusted: tuple[str, ...] = ()) -> None:
        self.most = most
        self.most_of_address = min(OF_ADDRESS, max(most // SHARE_OF_ADDRESS, 1))
        self.refused = 0
        self._trusted = trusted
        self._count = 0
        self._of_address: Counter[str] = Counter()
        self.watched: set[Bounded] = set()

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str) -> Callable[[], None] | None:
        """Count a connection; return the function that counts it no longer, None for one too many."""
        counted = not addresses.is_trusted(address, self._trusted)
        address = source(address)
        if self._count >= self.most or (counted and self._of_address[address] >= self.most_of_address):
            self.refused += 1
            return None
        self._count += 1
        if counted:
            self._of_address[address] += 1
        inside = True

        def leave() -> None:
            nonlocal inside
            if not inside:
                return
            inside = False
            self._count -= 1
            if counted:
                self._of_address[address] -= 1
                if not self._of_address[address]:
                    del self._of_address[address]

        return leave

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """End connections past their deadlines while the context is open."""
        task = asyncio.ensure_future(self._sweep())
        try:
            yield
        finally:
            task.cancel()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            for connection in [one for one in self.watched if 0 < one.deadline < now]:
                connection.expire()


class Http(HttpToolsProtocol):
    """An HTTP/1.1 connection within bounds; `bound` makes the class for a server."""

    bounds: Connections
    entered: Callable[[], None] | None = None
    """Counts the connection no longer, where it has been counted already."""
    grpc: Grpc | None = None
    lean: Lean | None = None
    _first: bytes | None = None
    """First bytes that may be those of HTTP/2; None where that is out of the question."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._head_bytes = 0
        self._in_head = self._in_body = False
        self._too_large = False
        self._discarded = 0
        self._had_body = False
        self._quiet_bytes = 0
        self._body_bytes, self._body_began = 0, 0.0
        if self.entered is None:
            self.entered = self.bounds.enter(self.client[0] if self.client is not None else "")
        self.deadline = self.loop.time() + IDLE_SECONDS
        if self.entered is None:
            self.connections.discard(self)
            self.transport.abort()
            return
        self.bounds.watched.add(self)
        if self.grpc is not None and self.transport.get_extra_info("ssl_object") is None:
            self._first = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.leave()
        super().connection_lost(exc)
        self.cycle = self.scope = self.headers = None  # type: ignore[assignment]

    def leave(self) -> None:
        """Count the connection no longer."""
        self.bounds.watched.discard(self)
        if self.entered is not None:
            self.entered()
            self.entered = None

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to another protocol."""
        self.leave()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, within the bounds of a head."""
        if self.transport.is_closing():
            return
        if self._first is not None:
            data = self._first + data
            if data.startswith(PREFACE):
                self.become_grpc(data)
                return
            self._first = data if PREFACE.startswith(data) else None
            if self._first is not None:
                return
        began_in_head = self._in_head
        self._had_body = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and began_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._too_large = True
                self.send_400_response("")
                return
        if self._in_body:
            self._quiet_bytes = 0 if self._had_body else self._quiet_bytes + len(data)
            if self._quiet_bytes > HEAD_BYTES:  # the parser keeps a trailer until it is whole
                self._too_large = True
                self.send_400_response("")
                return
            self._bound_body(len(data))
        if len(self.pipeline) > PIPELINED:
            self.transport.abort()

    def become_grpc(self, data: bytes) -> None:
        """Give the connection away, as one that speaks gRPC."""
        assert self.grpc is not None
        leave, self.entered = self.entered, None
        self.bounds.watched.discard(self)
        self.connections.discard(self)
        self.grpc(self.transport, data, leave or (lambda: None), self.connections)

    def _bound_body(self, size: int) -> None:
        """Set the deadline of a body: each byte comes soon after the one before, and all at a least rate."""
        now = self.loop.time()
        if self.deadline == 0.0:  # the server itself has not read for a while
            self._body_bytes, self._body_began = 0, now
        self._body_bytes += size
        slowest = self._body_began + BODY_SECONDS + self._body_bytes / LEAST_RATE
        self.deadline = 0.0 if self.flow.read_paused else min(now + BODY_SECONDS, slowest)

    # --- the parser's callbacks -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = True
        self.deadline = self.loop.time() + HEAD_SECONDS

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is dropped: it comes behind what the programs on the way have looked at."""
        self._count(len(name) + len(value))
        if not self._in_head:
            return
        if len(self.headers) >= HEAD_FIELDS:
            self._count(HEAD_BYTES)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            self._too_large = True
            raise ValueError("the head is too large")

    def on_headers_complete(self) -> None:
        """Begin the answer, and the body.

        Programs on the way may read a head otherwise that names no host or two, another one in its target, a body framed in
        a rare way, or an upgrade with a body.
        """
        names, version = [name for name, _ in self.headers], self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version != "1.0") or version not in ("1.0", "1.1"):
            raise ValueError("a request of HTTP/1.1 names one host")
        if not self.url.startswith(b"/") and self.url != b"*":
            authority = httptools.parse_url(self.url)
            if not hosts or _authority(authority) != hosts[0].lower():
                raise ValueError("the target names another host than the head")
        if b"#" in self.url:
            raise ValueError("a target has no fragment")
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (version == "1.0" or [one.lower() for one in codings] != [b"chunked"]):
            raise ValueError("a body is whole, or in chunks")
        if self.parser.should_upgrade() and self._should_upgrade():
            has_body = b"transfer-encoding" in names or dict(self.headers).get(b"content-length", b"0") != b"0"
            if has_body or self.parser.get_method() != b"GET":
                raise ValueError("an upgrade is a GET without a body")
            if self.cycle is not None and not self.cycle.response_complete:
                raise ValueError("an upgrade waits for the answers before it")
        self._in_head, self._in_body = False, True
        self._quiet_bytes = 0
        self._body_bytes, self._body_began = 0, self.loop.time()
        self.deadline = self._body_began + BODY_SECONDS
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; of one that was refused some is read, so that its sender sees the answer."""
        self._had_body = True
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > DISCARDED_BYTES:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._in_body = False
        self.deadline = 0.0
        super().on_message_complete()

    # --- ends -------------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text says less
        """Refuse a head that is malformed, or too large, and close the connection."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.abort()  # it would be read as a part of the answer that is under way
            return
        status = 431 if self._too_large else 400
        text = "the head of the request is too large" if self._too_large else "the request is no HTTP/1.1"
        self._refuse(status, text)

    def _refuse(self, status: int, text: str) -> None:
        error = {"code": "http", "message": text, "hint": "", "details": {}}
        body = json.dumps({"error": error}).encode()
        self.transport.write(
            STATUS_LINE[status]
            + f"content-type: application/json\r\ncontent-length: {len(body)}\r\n".encode()
            + b"connection: close\r\n\r\n"
            + body
        )
        self.deadline = 0.0
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)  # TLS waits for the peer's own end

    def expire(self) -> None:
        """End a connection that has kept the server waiting for too long."""
        if self._in_head:
            self._refuse(408, "the head of the request takes too long")
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Bound the time of a reader that takes nothing."""
        super().pause_writing()
        self.deadline = self.loop.time() + WRITE_SECONDS

    def resume_writing(self) -> None:
        """Go on: the reader takes more."""
        super().resume_writing()
        self.deadline = 0.0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        found: Any = app if self.lean is None else self.lean(cycle, self.flow, app)
        super()._start_asgi_task(cycle, found)

    def on_response_complete(self) -> None:
        """Let go of an answered request: an idle connection is to be cheap."""
        super().on_response_complete()
        if not self._in_head and not self._in_body and self.cycle is not None and self.cycle.response_complete:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]


def _authority(url: Any) -> bytes:
    """Return host and port of a target with both, as the header `Host` has them; with a name of a user it is none."""
    host: bytes = (url.host or b"").lower()
    host = b"[%b]" % host if b":" in host else host
    host = host if url.port is None else b"%b:%d" % (host, url.port)
    return b"" if url.userinfo else host


def bound(connections: Connections, grpc: Grpc | None = None, lean: Lean | None = None) -> type[Http]:
    """Return the protocol's class for one server."""
    given = {"grpc": grpc, "lean": lean}
    own = {name: staticmethod(value) if value is not None else None for name, value in given.items()}
    return type("BoundHttp", (Http,), {"bounds": connections, **own})
