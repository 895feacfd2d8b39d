"""A function's server as the queue's tests need it, which also receives webhooks; and a server in front of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..waiting import PATIENCE_SECONDS, until
from .process import Server, running

PROGRAM = "import runpy; runpy.run_module('tests.server.queue_program', run_name='__main__')"
WEBHOOKS = '[webhooks]\nallowed_networks = ["127.0.0.1/32"]'


class App:
    """What the queue's requests come to.

    `/echo` answers with the body; `/wait` does so when `release` is called; `/failing?code=503&times=2` answers with that
    status so often; `/drop?times=1` closes the connection; `/large?bytes=N` answers with many; `/hook` receives.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.headers: dict[str, dict[str, str]] = {}
        self.order: list[bytes] = []
        self.told: dict[str, list[tuple[Mapping[str, str], bytes]]] = defaultdict(list)
        self.refuse_webhooks = 0
        self.connections = set[object]()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.server_address[1])

    def release(self) -> None:
        """Answer all requests that wait."""
        self._released.set()

    def hold(self) -> None:
        """Let requests to `/wait` wait again."""
        self._released.clear()

    def close(self) -> None:
        """End, with its connections."""
        self.release()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def count(self, request: str, path: str = "") -> int:
        """Return how often a request has come, to a path."""
        return sum(path in ("", one) for _, one in self.seen[request])

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, str] | None:
        """Answer a request; None closes its connection."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/hook":
            with self._lock:
                self.told[headers["x-fal-webhook-request-id"]].append((headers, body))
                self.refuse_webhooks -= 1
                return (500 if self.refuse_webhooks >= 0 else 200), b"", ""
        if parts.path == "/redirect":
            return 302, b"", "/hook"
        request = headers.get("x-fal-request-id", "")
        with self._lock:
            self.seen[request].append((method, parts.path))
            self.headers[request] = dict(headers)
            self.order.append(body)
            times = len(self.seen[request])
        if parts.path.endswith("/cancel"):
            self.release()
            return 200, b"{}", ""
        if parts.path in ("/wait", "/held"):
            self._released.wait(PATIENCE_SECONDS)
        if parts.path in ("/sleep", "/held"):
            time.sleep(0.02)  # a function that takes a while, so that a kill meets it
        if parts.path == "/drop" and times <= int(query.get("times", "1")):
            return None
        if parts.path == "/failing" and times <= int(query.get("times", "1")):
            return int(query["code"]), b'{"detail": "no"}', ""
        if parts.path == "/large":
            return 200, b"x" * int(query["bytes"]), ""
        if parts.path == "/count":
            return 200, json.dumps({"times": times, "body": body.decode()}).encode(), ""
        return 200, body or json.dumps({"path": target}).encode(), ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        app = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = (
                1 << 16
            )  # head and body are one write: the second of two waits 40 ms for the delayed acknowledgement
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                app.connections.add(self)

            def finish(self) -> None:
                app.connections.discard(self)
                super().finish()

            def _answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:  # a server that was killed meanwhile has told nothing
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                found = app.answer(self.command, self.path, headers, body)
                if found is None:
                    self.close_connection = True
                    return
                status, data, location = found
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("x-own", "kept")
                    self.send_header("set-cookie", "atoll=stolen")
                    self.send_header("content-length", str(len(data)))
                    if location:
                        self.send_header("location", location)
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


class Front:
    """A server whose endpoints are all the test's app.

    Args:
        server: its process.
    """

    def __init__(self, server: Server, app: App) -> None:
        self.server, self.app = server, app
        self._known: dict[str, dict[str, str]] = {}

    def user(self, name: str) -> dict[str, str]:
        """Return the headers of a user's, who is added where there is none."""
        from atoll.server.accounts.bodies import NewUser

        if name == "operator":
            return self.server.headers()
        if name not in self._known:
            key = self.server.add_user(NewUser(name)).key
            assert key is not None
            self._known[name] = {"Authorization": f"Key {key.id}:{key.secret}"}
        return self._known[name]

    def serve(self, alias: str, *, auth: str = "private", **options: Any) -> str:
        """Register an endpoint of the operator's, and return its path below `/queue`."""
        options.setdefault("keep_alive", 0.2)  # its connections are the test's threads
        facts = {"function": "app", "port": 8080, "alias": alias, "auth": auth, "options": options}
        body = json.dumps(facts).encode() + b"\nnothing that runs"
        status, data = self.server.ask("POST", "/v1/revisions", body, self.user("operator"))
        assert status == 201, data
        return f"/queue/operator/{alias}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, user: str | None = "operator", **headers: str
    ) -> tuple[int, Any]:
        """Return status and body of a request; `x_name` is the header `x-name`."""
        own = self.user(user) if user else {}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.server.ask(method, path, body, {**own, **more})

    def submit(self, path: str, body: bytes = b"{}", *, user: str | None = "operator", **headers: str) -> str:
        """Queue a request, and return its id."""
        status, data = self.ask("POST", path, body, user=user, **headers)
        assert (status, data.get("status")) == (200, "IN_QUEUE"), data
        return str(data["request_id"])

    def status(self, path: str, request: str, *, user: str | None = "operator") -> dict[str, Any]:
        """Return the state of a request."""
        status, data = self.ask("GET", f"{path}/requests/{request}/status?logs=1", user=user)
        assert status == (200 if data.get("status") == "COMPLETED" else 202), data
        found: dict[str, Any] = data
        return found

    def over(self, path: str, request: str, *, user: str | None = "operator") -> dict[str, Any]:
        """Wait for the end of a request, and return its state."""

        def over() -> dict[str, Any]:
            found = self.status(path, request, user=user)
            return found if found["status"] == "COMPLETED" else {}

        return until(over)

    def result(self, path: str, request: str, *, user: str | None = "operator") -> tuple[int, Any]:
        """Wait for the end of a request, and return its answer."""
        self.over(path, request, user=user)
        return self.ask("GET", f"{path}/requests/{request}", user=user)


@contextlib.contextmanager
def front(*options: str, settings: str = WEBHOOKS) -> Iterator[Front]:
    """Run a server in front of an app; both have ended at the end of the context."""
    app = App()
    try:
        with running(*options, tls=False, program=PROGRAM, settings=settings, ATOLL_TEST_APP=str(app.port)) as server:
            yield Front(server, app)
    finally:
        app.close()
