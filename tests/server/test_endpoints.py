"""Endpoints: functions that are registered at a server answer HTTP at their addresses, by runners that come and go."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from atoll import Host, isolated
from atoll.sdk.serving import Endpoint
from atoll.server.accounts.bodies import NewUser

from ..waiting import PATIENCE_SECONDS, until
from .process import Server, running

TEXT = b"x" * 300_000


def raw_server() -> None:
    """Serve HTTP by the standard library alone: the environment needs no packages."""
    import hashlib
    import http.server
    import json
    import os
    import time

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("upgrade") == "websocket":
                key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
                accepted = __import__("base64").b64encode(hashlib.sha1(key.encode()).digest()).decode()
                self.wfile.write(
                    f"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                    f"sec-websocket-accept: {accepted}\r\n\r\n".encode()
                )
                self.wfile.write(self.rfile.readline())
                self.close_connection = True
                return
            if self.path.startswith("/stream"):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for number in range(3):
                    piece = f"data: {number}\n\n".encode()
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
                    while number == 0 and not os.path.exists("/data/go"):
                        time.sleep(0.01)
                self.wfile.write(b"0\r\n\r\n")
                return
            self._answer({"path": self.path, "headers": dict(self.headers), "pid": os.getpid()})

        def do_POST(self) -> None:
            if self.headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
            if self.path == "/exit":
                os._exit(3)
            self._answer({"size": len(body), "digest": hashlib.sha256(body).hexdigest()})

        def _answer(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.send_header("set-cookie", "atoll_session=mine")
            self.send_header("set-cookie", "all=1; Domain=lab.example")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    print("listening", flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--domain", "lab.example") as found:
        yield found


@pytest.fixture
def host(server: Server, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The server as a program's host."""
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    return Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))


_registered: dict[str, Endpoint] = {}


@pytest.fixture
def raw(server: Server, host: Host) -> Endpoint:
    """An endpoint with a server of its own; one revision for all tests that change nothing of it."""
    if server.url not in _registered:
        function = isolated(host=host, exposed_port=8080, keep_alive=600, network="none", max_concurrency=1)(raw_server)
        _registered[server.url] = function.serve("raw")
    return _registered[server.url]


def ask(
    server: Server, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Make a request with the operator's key, unless the headers have credentials."""
    connection = server.connection()
    connection.timeout = PATIENCE_SECONDS  # a runner starts
    try:
        found = {"authorization": f"Key {server.key[0]}:{server.key[1]}"} if headers is None else headers
        connection.request(method or ("GET" if body is None else "POST"), path, body, found)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def runners(server: Server, alias: str) -> int:
    """Return the number of an alias's runners."""
    return next(int(one["runners"]) for one in server.ask("GET", "/v1/aliases")[1]["aliases"] if one["alias"] == alias)


def key(server: Server) -> str:
    return f"{server.key[0]}:{server.key[1]}"


def test_a_request_reaches_the_functions_server(server: Server, raw: Endpoint) -> None:
    """Path, query, headers and body arrive, credentials do not; the next request has the same runner."""
    assert raw.url == f"{server.url}/operator/raw"
    status, _, body = ask(server, "/operator/raw/a%2Fb/c?x=1&fal_key_secret=s&y=%20", None)
    seen = json.loads(body)
    assert (status, seen["path"]) == (200, "/a%2Fb/c?x=1&y=+")
    names = {name.lower() for name in seen["headers"]}
    assert not names & {"authorization", "cookie", "x-fal-key-id"}
    assert {"x-forwarded-for", "x-fal-request-id", "x-fal-caller-user-id"} <= names
    assert json.loads(ask(server, "/run/operator/raw")[2])["pid"] == seen["pid"]
    assert json.loads(ask(server, "/operator/raw", TEXT)[2]) == {
        "size": len(TEXT),
        "digest": hashlib.sha256(TEXT).hexdigest(),
    }
    assert ask(server, "/operator/raw", method="HEAD")[2] == b""


def test_a_revision_stays_callable_by_its_id_and_an_alias_goes_back(server: Server, raw: Endpoint, host: Host) -> None:
    """A new revision takes the alias over; `rollback` gives it back; both have their ids."""
    function = isolated(host=host, exposed_port=8080, network="none")(raw_server)
    first, second = function.serve("again"), function.serve("again")
    assert second.revision != first.revision
    listed = server.ask("GET", "/v1/aliases")[1]["aliases"]
    assert [one["revision"] for one in listed if one["alias"] == "again"] == [second.revision]
    assert ask(server, f"/operator/{raw.revision}/")[0] == 200
    assert server.ask("PUT", "/v1/aliases/again", b"{}")[1]["revision"] == first.revision
    asked = json.dumps({"revision": second.revision}).encode()
    assert server.ask("PUT", "/v1/aliases/again", asked)[1]["revision"] == second.revision
    assert server.ask("PUT", "/v1/aliases/again", b'{"revision": "none"}')[0] == 404
    assert server.ask("DELETE", "/v1/aliases/again")[0] == 200
    assert ask(server, "/operator/again")[0] == 404
    assert ask(server, f"/trigger/operator/{raw.revision}")[0] == 200


@pytest.mark.parametrize("form", ["key", "basic", "bearer", "headers", "query", "token"])
def test_credentials_have_six_forms(server: Server, raw: Endpoint, form: str) -> None:
    """Each is accepted, and the same with a wrong secret is not."""
    for secret, wanted in ((server.key[1], 200), ("atoll_" + "x" * 43, 401)):
        pair, path, headers = f"{server.key[0]}:{secret}", "/operator/raw/", {"accept": "*/*"}
        if form in ("key", "basic", "bearer"):
            headers["authorization"] = f"{form.title()} {pair}"
        elif form == "headers":
            headers |= {"X-Fal-Key-Id": server.key[0], "X-Fal-Key-Secret": secret}
        elif form == "query":
            path += f"?fal_key_id={server.key[0]}&fal_key_secret={secret}"
        else:
            asked = b'{"allowed_apps": ["raw"], "token_expiration": 60}'
            token = server.ask("POST", "/v1/tokens", asked)[1]["token"]
            path += f"?fal_jwt_token={token if wanted == 200 else token[:-4] + 'AAAA'}"
        assert ask(server, path, headers=headers)[0] == wanted
    assert ask(server, "/operator/raw", headers={"cookie": "atoll=1"})[0] == 401


def test_a_private_endpoint_does_not_exist_for_others(server: Server, raw: Endpoint, host: Host) -> None:
    """Another user hears what one hears of an address that there is not; `shared` and `public` let them in."""
    added = server.add_user(NewUser(f"bob-{time.time_ns()}"))
    assert added.key is not None
    bob = {"authorization": f"Key {added.key.id}:{added.key.secret}"}
    private, nothing = ask(server, "/operator/raw", headers=bob), ask(server, "/operator/nothing", headers=bob)
    assert (private[0], json.loads(private[2])) == (nothing[0], json.loads(nothing[2])) == (404, json.loads(nothing[2]))
    function = isolated(host=host, exposed_port=8080, network="none", keep_alive=60)(raw_server)
    function.serve("open", auth="shared")
    assert ask(server, "/operator/open", headers=bob)[0] == 200
    assert ask(server, "/operator/open", headers={"accept": "*/*"})[0] == 401
    function.serve("open", auth="public")
    assert ask(server, "/operator/open", headers={"accept": "*/*"})[0] == 200


def test_answers_stream(server: Server, raw: Endpoint, host: Host) -> None:
    """A piece of an answer is there before the next one is made."""
    connection = server.connection()
    connection.request("GET", "/operator/raw/stream", headers={"authorization": f"Key {key(server)}"})
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream"
    assert answer.readline() == b"data: 0\n"
    isolated(host=host, network="none")(make)("go")
    assert answer.read() == b"\ndata: 1\n\ndata: 2\n\n"
    connection.close()


def make(name: str) -> None:
    open(f"/data/{name}", "w").close()


def test_a_websocket_passes(server: Server, raw: Endpoint) -> None:
    """The function's server makes the handshake, and bytes pass both ways."""
    with raw_connection(server) as connection:
        nonce = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET /operator/raw/ws HTTP/1.1\r\nhost: {urlsplit(server.url).netloc}\r\nupgrade: websocket\r\n"
            f"connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {nonce}\r\n"
            f"authorization: Key {key(server)}\r\n\r\n".encode()
        )
        file = connection.makefile("rb")
        assert file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        while file.readline() != b"\r\n":
            pass
        connection.sendall(b"hello there\n")
        assert file.readline() == b"hello there\n"
        assert file.read() == b""
        file.close()


def raw_connection(server: Server) -> socket.socket:
    """Return a connection below HTTP."""
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
    return server.context().wrap_socket(plain, server_hostname="127.0.0.1") if server.url.startswith("https") else plain


def test_a_functions_page_is_not_the_servers(server: Server, raw: Endpoint) -> None:
    """At the server's host a page is sandboxed and sets no cookie; at its own host it has cookies, and none for others."""
    _, headers, _ = ask(server, "/operator/raw")
    assert headers["content-security-policy"].startswith("sandbox ")
    assert "allow-same-origin" not in headers["content-security-policy"]
    assert "set-cookie" not in headers
    owner = server.ask("GET", "/v1/whoami")[1]["user"]
    named = {"host": f"{owner}-raw.gateway.lab.example", "authorization": f"Key {key(server)}", "cookie": "mine=1"}
    _, headers, body = ask(server, "/", headers=named)
    assert headers["set-cookie"] == "atoll_session=mine"
    assert {name.lower(): value for name, value in json.loads(body)["headers"].items()}["cookie"] == "mine=1"


def test_each_endpoint_has_a_name(server: Server, raw: Endpoint) -> None:
    """With a domain the first label of the host names owner and alias, whatever the path."""
    owner = server.ask("GET", "/v1/whoami")[1]["user"]
    headers = {"host": f"{owner}-raw.gateway.lab.example", "authorization": f"Key {key(server)}"}
    status, _, body = ask(server, "/v1/whoami?x=1", headers=headers)
    assert (status, json.loads(body)["path"]) == (200, "/v1/whoami?x=1")
    headers["host"] = f"{owner}-none.gateway.lab.example"
    assert ask(server, "/v1/whoami", headers=headers)[0] == 404


def test_a_server_that_ends_is_started_again(server: Server, raw: Endpoint) -> None:
    """A runner that ends answers 502, once; the next request has another one."""
    first = json.loads(ask(server, "/operator/raw")[2])["pid"]
    status, headers, body = ask(server, "/operator/raw/exit", b"{}")
    assert (status, headers["x-fal-error-type"]) == (502, "runner_disconnected")
    assert "ended" in json.loads(body)["detail"]
    status, _, body = ask(server, "/operator/raw")
    assert status == 200
    assert first


def test_runners_outlive_the_server(server: Server, raw: Endpoint) -> None:
    """The next process of the server finds the runner of the last one, and uses it on."""
    before = json.loads(ask(server, "/operator/raw")[2])
    server.end()
    server.start()
    until(lambda: runners(server, "raw"))
    assert json.loads(ask(server, "/operator/raw")[2])["pid"] == before["pid"]
    assert runners(server, "raw") == 1


def test_idle_runners_end(server: Server, host: Host) -> None:
    """After `keep_alive` seconds without a request there is none left."""
    isolated(host=host, exposed_port=8080, network="none", keep_alive=0.2)(raw_server).serve("brief")
    assert ask(server, "/operator/brief")[0] == 200
    until(lambda: runners(server, "brief") == 0)


def test_a_client_that_goes_frees_its_runner(server: Server, host: Host) -> None:
    """An answer without an end is read no more when its client has gone: the only runner serves the next one."""
    isolated(host=host, exposed_port=8080, network="none", keep_alive=60)(endless).serve("endless", max_concurrency=1)
    with raw_connection(server) as connection:
        connection.sendall(
            f"GET /operator/endless HTTP/1.1\r\nhost: h\r\nauthorization: Key {key(server)}\r\n\r\n".encode()
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    with raw_connection(server) as connection:
        connection.sendall(
            f"GET /operator/endless HTTP/1.1\r\nhost: h\r\nauthorization: Key {key(server)}\r\n\r\n".encode()
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def endless() -> None:
    """Serve answers that have no end."""
    import http.server
    import time

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x")
                time.sleep(0.01)

        def log_message(self, *_: object) -> None:
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


def test_a_runner_gets_requests_when_it_is_healthy(server: Server, host: Host) -> None:
    """A port that listens and is not ready gets none; pages that are named may ask, and callers have a rate."""
    function = isolated(host=host, exposed_port=8080, network="none", keep_alive=60)(warming)
    function.serve("warming", health_path="/health", cors=["https://app.example"], rate_limit=2)
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    status, headers, _ = ask(server, "/operator/warming", headers=asked, method="OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (204, "https://app.example")
    given = {"authorization": f"Key {key(server)}", "origin": "https://app.example"}
    status, headers, body = ask(server, "/operator/warming", headers=given)
    assert (status, body, headers["access-control-allow-origin"]) == (200, b"ready", "https://app.example")
    other = {**given, "origin": "https://other.example"}
    answers = [ask(server, "/operator/warming", headers=other) for _ in range(4)]  # one is refilled in half a minute
    status, headers, _ = next(one for one in answers if one[0] != 200)
    assert status == 429
    assert int(headers["retry-after"]) > 0
    assert "access-control-allow-origin" not in headers


def warming() -> None:
    """Serve HTTP that says for a while that it is not ready."""
    import http.server
    import time

    began = time.monotonic()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = time.monotonic() - began > 1
            self.send_response(200 if ready else 503)
            self.end_headers()
            self.wfile.write(b"ready" if ready else b"not yet")

        def log_message(self, *_: object) -> None:
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


def fails() -> None:
    raise ValueError("no model")


def test_a_function_that_fails_at_its_start_says_why(server: Server, host: Host) -> None:
    """A request for it is 503, with the error of the function."""
    isolated(host=host, exposed_port=8080, network="none")(fails).serve("fails")
    status, headers, body = ask(server, "/operator/fails")
    assert (status, headers["x-fal-error-type"]) == (503, "runner_scheduling_failure")
    assert "no model" in json.loads(body)["detail"]


def hello(name: str, times: int = 1) -> str:
    return f"hello {name} " * times


def test_functions_become_web_apps(server: Server, host: Host) -> None:
    """`serve=True`: keyword arguments by JSON or query, a result as JSON, a description; wrong arguments are 422."""
    isolated(host=host, serve=True, keep_alive=60)(hello).serve("hello")
    assert json.loads(ask(server, "/operator/hello", b'{"name": "ann"}')[2]) == "hello ann "
    assert json.loads(ask(server, "/operator/hello?name=bob&times=2")[2]) == "hello bob hello bob "
    status, _, body = ask(server, "/operator/hello", b"{}")
    assert (status, json.loads(body)["detail"][0]["loc"]) == (422, ["name"])
    described: dict[str, Any] = json.loads(ask(server, "/operator/hello/openapi.json")[2])
    schema = described["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"name", "times"}


def test_what_is_refused_says_why(server: Server, host: Host) -> None:
    """A function that is not to be served, an alias that cannot be, and a machine without a server."""
    with pytest.raises(ValueError, match="serve=True"):
        isolated(host=host)(hello).serve("hello")
    with pytest.raises(Exception, match="cannot be an alias"):
        isolated(host=host, serve=True)(hello).serve("Not/An_alias")
