"""A function's server as the pages of endpoints need it: with a description, streams, and answers that no page may run."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..waiting import PATIENCE_SECONDS
from .page_client import EVIL, PageServer, add_users
from .process import running
from .queue_app import PROGRAM

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/": {
            "post": {
                "summary": "hello",
                "description": f"Greets. {EVIL}",
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Asked"}}}},
            }
        },
        "/items/{item}": {
            "get": {
                "summary": "item",
                "parameters": [
                    {"name": "item", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 50}},
                    {"name": "most", "in": "query", "schema": {"type": "integer", "default": 3}},
                ],
            }
        },
        "/stream": {"post": {"summary": "stream"}},
    },
    "components": {
        "schemas": {
            "Asked": {
                "type": "object",
                "required": ["name", "options"],
                "properties": {
                    "name": {"type": "string", "title": "Name", "description": f"who {EVIL}"},
                    "times": {"type": "integer", "default": 2},
                    "loud": {"type": "boolean", "default": False},
                    "tone": {"anyOf": [{"enum": ["warm", EVIL], "type": "string"}, {"type": "null"}]},
                    "options": {"type": "object", "default": {"a": [1]}},
                },
            }
        }
    },
}


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cf500f0003860180"
    "5a347d6b0000000049454e44ae426082"
)

ANSWERS = {
    "/openapi.json": (200, "application/json", json.dumps(DESCRIPTION).encode()),
    "/page": (200, "text/html", f"<h1>mine</h1>{EVIL}\u202e".encode()),
    "/image": (200, "image/png", PNG),
    "/file": (200, "application/x-evil", EVIL.encode()),
    "/huge": (200, "application/octet-stream", b"x" * (17 << 20)),
    "/fail": (500, "application/json", b'{"detail": "it failed"}'),
    "/large": (200, "text/plain", b"x" * (3 << 20)),
}


class App:
    """The server. `go` lets `/stream` and `/wait` go on; `seen` has what was asked."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.seen: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """End, with its connections."""
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        app = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self._body()
                app.seen.append((self.command, self.path, body))
                app.headers.append({name.lower(): value for name, value in self.headers.items()})
                path = self.path.partition("?")[0]
                if path == "/stream":
                    with contextlib.suppress(OSError):
                        self._stream()
                elif path == "/wait":
                    app.begun.set()
                    app.go.wait(PATIENCE_SECONDS)
                    self._send(200, "application/json", b"{}")
                elif path in ANSWERS:
                    self._send(*ANSWERS[path])
                else:
                    self._send(200, "application/json", json.dumps({"path": self.path, "body": body.decode()}).encode())

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _send(self, status: int, kind: str, data: bytes) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-type", kind)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for number in range(3):
                    piece = f"data: piece {number} {EVIL}\n\n".encode()
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
                    if number == 0:
                        app.begun.set()
                        app.go.wait()  # at the latest until the end: who leaves must not have to wait
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


class Served:
    """A server of the page whose endpoints are all the test's app."""

    def __init__(self, page: PageServer, app: App) -> None:
        self.page, self.app = page, app
        self.first = ""

    def serve(
        self, alias: str, *, user: str = "ada", function: str = "hello", auth: str = "private", **options: Any
    ) -> str:
        """Register an endpoint, and return its revision."""
        options.setdefault("keep_alive", 0.2)  # its connections are the test's threads
        facts = {"function": function, "port": 8080, "alias": alias, "auth": auth, "options": options}
        headers = {"Authorization": f"Key {self.page.keys[user]}"}
        status, data = self.page.server.ask("POST", "/v1/revisions", json.dumps(facts).encode() + b"\nnothing", headers)
        assert status == 201, data
        return str(data["id"])

    def ask(self, method: str, path: str, body: bytes | None = None, user: str = "ada") -> tuple[int, Any]:
        """Return status and body of a request with a user's key."""
        return self.page.server.ask(method, path, body, {"Authorization": f"Key {self.page.keys[user]}"})


@contextlib.contextmanager
def served() -> Iterator[Served]:
    """Run a server of the page in front of an app; both have ended at the end of the context."""
    app = App()
    try:
        port = str(app.server.server_address[1])
        with running(tls=False, program=PROGRAM, ATOLL_TEST_APP=port) as server:
            yield Served(PageServer(server, add_users(server.home.path)), app)
    finally:
        app.close()
