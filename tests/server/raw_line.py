"""A client of lines for tests: one blocking socket, the protocol of `wire.line`, and frames of a worker's stream."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.wire.frames import Decoder, Message, encode
from atoll.wire.line import DATA, STDERR, STDOUT, Line
from atoll.wire.websocket import CLOSE, CONTROL, PIECE

from .process import Server


class Refused(Exception):
    """The server has answered the upgrade with another status than 101.

    Args:
        status: of the answer.
        body: of the answer.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:500]!r}")
        self.status = status
        self.body = body


def connect(server: Server, *, small: bool = False) -> socket.socket:
    """Return a connection to the server, over TLS where it has it; `small` has little room for what comes."""
    plain = socket.socket()
    try:
        if small:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(60)
        plain.connect((server.address, server.port))
        return server.context().wrap_socket(plain, server_hostname=server.address) if server.tls else plain
    except BaseException:
        plain.close()
        raise


def upgrade(connection: socket.socket, headers: dict[str, str], path: str = "/v1/line") -> dict[str, str]:
    """Ask for a WebSocket; return the headers of the answer, and whatever came behind it under `rest`.

    Raises:
        Refused: the answer is no 101.
    """
    standard = {
        "Host": "127.0.0.1",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": "atoll.1",
    }
    fields = {name: value for name, value in {**standard, **headers}.items() if value}
    text = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    connection.sendall(text.encode() + b"\r\n")
    got = b""
    while b"\r\n\r\n" not in got:
        data = connection.recv(65536)
        if not data:
            raise Refused(0, got)
        got += data
    head, rest = got.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("latin-1").split("\r\n")
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(first.split(" ")[1])
    if status != 101:
        while len(rest) < int(found.get("content-length", "0")) and (data := connection.recv(65536)):
            rest += data
        raise Refused(status, rest)
    found["rest"] = rest.decode("latin-1")
    return found


class RawLine:
    """A line's client.

    Args:
        opening: its first header; None sends none.
    """

    def __init__(self, server: Server, opening: dict[str, Any] | None, *, key: str = "", small: bool = False) -> None:
        self.server = server
        self.headers = server.headers() | ({"Authorization": f"Key {key}"} if key else {})
        self.line = Line(client=True)
        self.control: deque[dict[str, Any]] = deque()
        self.printed = {STDOUT: bytearray(), STDERR: bytearray()}
        self.order: list[str] = []
        self.decoder = Decoder(payloads=True)
        self.data_bytes = 0
        self.closed = -1
        self.session = ""
        self.drops = 0
        self.on_drop: Callable[[], object] | None = None
        self._moved = self._drop_at = 0
        self._connect({}, small=small)
        if opening is not None:
            self.say(opening)

    def _connect(self, more: dict[str, str], *, small: bool = False) -> None:
        self.socket = connect(self.server, small=small)
        try:
            found = upgrade(self.socket, self.headers | more)
        except BaseException:
            self.socket.close()
            raise
        self.session = found["atoll-session"]
        self._taken = int(found["atoll-taken"])
        if more:
            for pieces in self.line.resume(self._taken):
                self._write(pieces)
        self.feed(found["rest"].encode("latin-1"))

    def drop(self) -> None:
        """Lose the connection."""
        self.socket.close()

    def drop_after(self, count: int) -> None:
        """Lose the connection when about so many bytes more have been sent and received; then come back."""
        self._drop_at = self._moved + count

    def _move(self, count: int) -> None:
        self._moved += count
        if self._moved >= self._drop_at > 0:
            self._drop_at = 0
            self.drops += 1
            self.drop()
            if self.on_drop is not None:
                self.on_drop()
            self.resume()

    def resume(self, *, key: str = "") -> None:
        """Come back over a new connection."""
        self.closed = -1
        self.socket.close()
        if key:
            self.headers = {**self.headers, "Authorization": f"Key {key}"}
            own = self.server.headers()
            try:
                self._connect({"Atoll-Resume": f"{self.session} {self.line.received}"})
            finally:
                self.headers = own
            return
        self._connect({"Atoll-Resume": f"{self.session} {self.line.received}"})

    def _write(self, pieces: list[Any]) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def say(self, header: dict[str, Any]) -> None:
        """Send a header."""
        self._write(self.line.say(header))

    def send_frames(self, header: dict[str, Any], buffers: list[Any] | None = None) -> None:
        """Send a frame to the worker; takes what comes while the window is full."""
        for whole in encode(header, buffers or []):
            view = memoryview(whole).cast("B")
            for at in range(0, view.nbytes, PIECE):
                while self.line.full:
                    self.pump()
                self.send_raw(bytes(view[at : at + PIECE]))

    def send_raw(self, piece: bytes) -> None:
        """Send a piece of data."""
        self._write(self.line.send(DATA, piece))
        self._move(len(piece))

    def pump(self) -> None:
        """Take the next bytes of the server.

        Raises:
            ConnectionError: there are no more.
        """
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.feed(data)
        self._move(len(data))

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        for kind, value in self.line.feed(data):
            if kind == DATA:
                self.order.append("data")
                self.data_bytes += len(value)
                view = memoryview(value)
                while view:
                    space = self.decoder.space()
                    step = min(space.nbytes, len(view))
                    space[:step] = view[:step]
                    self.decoder.wrote(step)
                    view = view[step:]
            elif kind in self.printed:
                self.order.append("printed")
                self.printed[kind] += value
            elif kind == CONTROL:
                self.control.append(value)
            elif kind == CLOSE:
                self.closed = value
        if text := self.line.acknowledgement(1 << 20):
            self.socket.sendall(text)

    def header(self, *kinds: str) -> dict[str, Any]:
        """Wait for a header of one of these types; others are dropped."""
        while True:
            while self.control:
                found = self.control.popleft()
                if found["type"] in kinds:
                    return found
            self.pump()

    def message(self) -> Message:
        """Wait for the worker's next message."""
        while not self.decoder.messages:
            self.pump()
        return self.decoder.messages.pop(0)

    def close(self) -> None:
        """End the line."""
        with contextlib.suppress(OSError):
            self.socket.sendall(self.line.close())
        self.socket.close()
