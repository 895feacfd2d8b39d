"""Attacks on `/files/file/url/…`: addresses that a server fetches, and that must be none of its own surroundings."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ..server.process import Server, running
from .test_gateway_bounds import OF_THIS_MACHINE

CONTENT = b"content of the network" * 100_000
ALLOWED = '[webhooks]\nallowed_networks = ["127.0.0.1/32"]'


class Site:
    """A site on this machine's loopback that notes what it is asked for."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer((address, port), self._handler())
        self.server.daemon_threads = False
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """End."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                kind, _, rest = self.path[1:].partition("/")
                if kind == "to":
                    self.send_response(302)
                    self.send_header("Location", bytes.fromhex(rest).decode())
                    self.end_headers()
                    return
                self.send_response(404 if kind == "missing" else 200)
                length = {"cut": len(CONTENT) * 2, "huge": 1 << 62}.get(kind, len(CONTENT))
                if kind != "unmeasured":
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(CONTENT)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site that no server may ask, unless its settings say so."""
    made = Site()
    yield made
    made.close()


@pytest.fixture(scope="module")
def allowing() -> Iterator[Server]:
    """A server that may ask 127.0.0.1 and nothing else of this machine."""
    with running(tls=False, settings=ALLOWED) as found:
        yield found


def fetched(server: Server, url: str, path: str = "/data/f/it") -> tuple[int, str]:
    """Have an address fetched; return the status and the reason."""
    status, answer = server.ask("POST", f"/files/file/url/{path}", json.dumps({"url": url}).encode())
    return status, "" if answer is True else answer["detail"]


def test_a_file_of_the_network(allowing: Server, site: Site) -> None:
    """An address is fetched into a file, also by way of others; one that fails leaves the file, and nothing beside it."""
    for kind in ("plain", "unmeasured"):
        assert fetched(allowing, f"{site.url}/{kind}") == (200, "")
        assert allowing.ask("GET", "/files/file/f/it") == (200, CONTENT)
        allowing.ask("DELETE", "/files/file/f/it")
    assert fetched(allowing, f"{site.url}/to/{b'/plain'.hex()}") == (200, "")
    failing = {
        "missing": "answers 404",
        "cut": "before the file was whole",
        "huge": "more than",
        f"to/{f'{site.url}/missing'.encode().hex()}": "answers 404",
        f"to/{b'http://[::1'.hex()}": "no address",
    }
    for kind, reason in failing.items():
        status, text = fetched(allowing, f"{site.url}/{kind}")
        assert (status // 100, reason in text) == (4, True), (kind, text)
    assert fetched(allowing, f"{site.url}/plain", "/data/f")[0] == 422
    assert fetched(allowing, f"{site.url}/plain", "/data")[0] == 422
    assert allowing.ask("GET", "/files/file/f/it") == (200, CONTENT)
    assert [one["name"] for one in allowing.ask("GET", "/files/list/f")[1]] == ["it"]
    assert list(allowing.volumes.glob("*/staging/parts-*")) == []


def test_surroundings_are_not_fetched(site: Site) -> None:
    """Addresses of the server's machine and its networks are refused in each writing, before anything is asked."""
    before = list(site.asked)
    port = site.url.rpartition(":")[2]
    with running(tls=False) as server:
        own = [f"http://{host}:{port}/plain" for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0", "127.1")]
        own += [f"{server.url}/v1/whoami", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://"]
        own += [
            "http://user:secret@127.0.0.1/",
            "http://127.0.0.1\r\nX: y/",
            "http://a\\@127.0.0.1/",
            "http://[::1",
            "",
        ]
        for url in (*OF_THIS_MACHINE, *own):
            status, _ = fetched(server, url)
            assert status // 100 == 4, url
        assert server.ask("GET", "/files/list/f") == (200, [])
        assert server.ask("POST", "/files/file/url/x", b'{"url": 7}')[0] == 422
        unknown = {"Authorization": "Key nobody:nothing"}
        assert server.ask("POST", "/files/file/url/x", b'{"url": "http://127.0.0.1/"}', unknown)[0] == 401
    assert site.asked == before


def test_answers_lead_to_no_surroundings(allowing: Server, site: Site) -> None:
    """An answer that leads to the server's surroundings, or on and on, or elsewhere than to the web, is not followed."""
    port = site.url.rpartition(":")[2]
    targets = [f"http://127.0.0.2:{port}/plain", f"http://[::1]:{port}/plain", "http://169.254.169.254/latest/"]
    targets += ["file:///etc/passwd", "//10.0.0.1/x", f"http://localhost.:{port}@10.0.0.1/"]
    with contextlib.closing(Site("127.0.0.2", int(port))) as hidden:
        answers = {one: fetched(allowing, f"{site.url}/to/{one.encode().hex()}", "/data/led") for one in targets}
        assert not hidden.asked
    assert {one for one, (status, text) in answers.items() if status // 100 != 4 or "address" not in text} == set()
    on = "/plain"
    for _ in range(7):
        on = f"/to/{on.encode().hex()}"
    status, text = fetched(allowing, site.url + on, "/data/led")
    assert (status, "leads to more than 5" in text) == (422, True)
    assert allowing.ask("POST", "/files/file/exists/led")[0] == 404
