"""A function's server that answers with any bytes, in front of which a server runs; and bytes below HTTP to that server."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..server.process import Server, running
from ..server.queue_app import PROGRAM, WEBHOOKS, Front
from ..waiting import PATIENCE_SECONDS


@dataclass
class Peer:
    """A connection of the server's to the function's server, with a request.

    Args:
        connection: its socket.
        head: of the request, as it came.
        rest: bytes behind it.
    """

    connection: socket.socket
    head: bytes = b""
    rest: bytes = b""

    @property
    def target(self) -> str:
        """The target of the request."""
        return self.head.split(b" ")[1].decode("latin-1")

    @property
    def names(self) -> list[str]:
        """The names of its fields, in lower case."""
        return [line.partition(b":")[0].decode("latin-1").lower() for line in self.head.split(b"\r\n")[1:]]

    def value(self, name: str) -> str:
        """Return a field's value; empty for none."""
        pairs = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return next((v.strip().decode("latin-1") for n, _, v in pairs if n.decode("latin-1").lower() == name), "")

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.connection.sendall(data)

    def until(self, end: bytes) -> bytes:
        """Return the bytes before an end, which is taken, too.

        Raises:
            ConnectionError: it does not come.
        """
        while end not in self.rest:
            self._more()
        found, _, self.rest = self.rest.partition(end)
        return found

    def exactly(self, size: int) -> bytes:
        """Return so many bytes.

        Raises:
            ConnectionError: they do not come.
        """
        while len(self.rest) < size:
            self._more()
        found, self.rest = self.rest[:size], self.rest[size:]
        return found

    def _more(self) -> None:
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError
        self.rest += data

    def body(self) -> bytes:
        """Return the body of the request, framed as its head says."""
        if self.value("transfer-encoding") == "chunked":
            found = b""
            while size := int(self.until(b"\r\n"), 16):
                found += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            assert self.until(b"\r\n") == b""
            return found
        return self.exactly(int(self.value("content-length") or 0))


Script = Callable[[Peer], bool | None]
"""Answers a request; False ends the connection."""


@dataclass
class RawApp:
    """Answers by the script of a request's first part of its path; `/…` without one tells what has come.

    Args:
        seen: requests that have come: head, and body where the default answered.
    """

    scripts: dict[str, Script] = field(default_factory=dict)
    seen: list[bytes] = field(default_factory=list)
    peers: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self.peers += 1
                    self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        peer = Peer(connection)
        with contextlib.suppress(OSError, ConnectionError):
            while True:
                peer.head = peer.until(b"\r\n\r\n")
                self.seen.append(peer.head)
                script = self.scripts.get(peer.target.partition("?")[0].split("/")[1], self.tell)
                if script(peer) is False:
                    break
        with self._lock:
            self._open.discard(connection)
        connection.close()

    @staticmethod
    def tell(peer: Peer) -> None:
        """Answer with what has come."""
        data = json.dumps({"head": peer.head.decode("latin-1"), "body": peer.body().decode("latin-1")}).encode()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data)

    def close(self) -> None:
        """End, with its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(PATIENCE_SECONDS)
        with self._lock:
            left = tuple(self._open)
        for one in left:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)


@dataclass
class Attacked:
    """A server with the endpoints of two users, whose functions are one app of the test's.

    Args:
        front: the server; its endpoints are the operator's.
        app: what their requests come to.
    """

    front: Front
    app: RawApp

    @property
    def server(self) -> Server:
        """Its process."""
        return self.front.server

    def key(self, user: str) -> str:
        """Return `ID:SECRET` of a user's."""
        return self.front.user(user)["Authorization"].removeprefix("Key ")

    def serve(self, user: str, alias: str, auth: str = "private", **options: object) -> str:
        """Register an endpoint of a user's; return its path."""
        options.setdefault("keep_alive", 0.2)  # its connections are the threads of a test
        facts = {"function": "app", "port": 8080, "alias": alias, "auth": auth, "options": options}
        status, data = self.server.ask(
            "POST", "/v1/revisions", json.dumps(facts).encode() + b"\nnothing that runs", self.front.user(user)
        )
        assert status == 201, data
        return str(data["path"])

    def raw(self, data: bytes = b"") -> socket.socket:
        """Return a connection below HTTP, which has sent bytes."""
        made = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_SECONDS)
        made.sendall(data)
        return made

    def said(self, data: bytes) -> bytes:
        """Return all that the server answers to bytes, until it closes; the last request must ask for that."""
        with self.raw(data) as made:
            return rest(made)


def rest(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            pieces.append(data)
    return b"".join(pieces)


def statuses(answers: bytes) -> list[int]:
    """Return the statuses of answers."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@contextlib.contextmanager
def attacked(*options: str, settings: str = WEBHOOKS, program: str = PROGRAM) -> Iterator[Attacked]:
    """Run a server in front of an app; both have ended at the end of the context."""
    app = RawApp()
    try:
        with running(*options, tls=False, program=program, settings=settings, ATOLL_TEST_APP=str(app.port)) as server:
            yield Attacked(Front(server, app), app)  # type: ignore[arg-type]
    finally:
        app.close()
