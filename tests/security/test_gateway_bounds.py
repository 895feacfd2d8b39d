"""Clients that take much and give little: heads, bodies, readers, lines and names without an end cost the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from atoll import errors
from atoll.server.webhooks import targets

from ..server.process import memory
from ..server.queue_app import PROGRAM, WEBHOOKS
from ..waiting import PATIENCE_SECONDS, until
from .raw_app import Attacked, Peer, RawApp, attacked, rest, statuses

SHORT = (
    "from atoll.server import http\n"
    "http.HEAD_SECONDS = http.BODY_SECONDS = http.IDLE_SECONDS = http.WRITE_SECONDS = 1.0\n"
    "http.SWEEP_SECONDS, http.LEAST_RATE, http.OF_ADDRESS = 0.1, 1 << 20, 12\n"
)
SETTINGS = f"{WEBHOOKS}\n[queue]\nmax_waiting = 8\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"


@pytest.fixture(scope="module")
def made() -> Iterator[Attacked]:
    """A server whose seconds are short, and which takes twelve connections of one address."""
    with attacked(settings=SETTINGS, program=SHORT + PROGRAM) as found:
        found.serve("ann", "fn", "shared", max_concurrency=1)
        yield found


def head(made: Attacked, first: str, *fields: bytes, user: str = "bob") -> bytes:
    """Return a head with a user's key."""
    lines = [f"{first} HTTP/1.1".encode(), b"Host: a", f"Authorization: Key {made.key(user)}".encode(), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def answered(made: Attacked, path: str = "/ann/fn/x") -> bool:
    """Return whether another request is answered."""
    return statuses(made.said(head(made, f"GET {path}", b"Connection: close"))) == [200]


def test_slow_heads_and_silent_connections_end(made: Attacked) -> None:
    """A head that comes byte by byte is 408; a connection that says nothing, or `PRI`, ends; others are answered meanwhile."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(made.raw(b"GET /ann/fn HTTP/1.1\r\nHost: ")) for _ in range(5)]
        silent = [stack.enter_context(made.raw(begun)) for begun in (b"", b"P", b"PRI")]
        assert answered(made)
        for one in slow:
            with contextlib.suppress(OSError):
                one.sendall(b"a")
            assert statuses(rest(one)) == [408]
        for one in silent:
            rest(one)


def test_a_slow_body_gives_its_runner_back(made: Attacked) -> None:
    """A body that stops, or drips, ends its connection, and the one runner serves the next request."""
    for framing, piece in ((b"Content-Length: 99999", b"x"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n")):
        begun = len(made.app.seen)
        with made.raw(head(made, "POST /ann/fn/body", framing) + piece) as one:
            until(lambda begun=begun: len(made.app.seen) > begun)  # type: ignore[misc]
            with contextlib.suppress(OSError):
                until(lambda one=one, piece=piece: one.send(piece) < 0)  # type: ignore[misc]
        assert answered(made)


def test_a_reader_that_takes_nothing_gives_its_runner_back(made: Attacked) -> None:
    """An answer without an end ends with the time of its reader."""

    def endless(peer: Peer) -> bool:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 40))
        while True:
            peer.send(bytes(1 << 16))

    made.app.scripts["endless"] = endless
    with made.raw(head(made, "GET /ann/fn/endless")):
        until(lambda: any(b"/endless" in one for one in made.app.seen))
        assert answered(made)


def test_websockets_count_as_connections(made: Attacked) -> None:
    """One address has a bounded number of them, whoever asks; those that end make room."""

    def held(peer: Peer) -> bool:
        peer.send(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        return bool(peer.until(b"never"))

    made.app.scripts["held"] = held
    made.serve("ann", "many", "shared", max_multiplexing=100)
    asked = head(made, "GET /ann/many/held").removesuffix(b"\r\n") + UPGRADE + b"\r\n"
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(made.raw(asked)).recv(12) for _ in range(11)]
        assert first == [b"HTTP/1.1 101"] * 11
        kept = stack.enter_context(made.raw(asked))
        until(lambda: kept.recv(12) == b"HTTP/1.1 101")
        with contextlib.closing(made.raw()) as further, contextlib.suppress(OSError):
            further.sendall(asked)
            assert statuses(rest(further)) in ([], [503])
    until(lambda: answered(made))


def test_heads_of_nobody_take_no_memory(made: Attacked) -> None:
    """Thousands of long names of endpoints that there are not are remembered nowhere."""
    before = memory(made.server.pid)
    with made.raw() as one:
        for number in range(400):
            one.sendall(b"GET /%d%b/x HTTP/1.1\r\nHost: a\r\n\r\n" % (number, b"y" * 60_000))
            found = b""
            while b'"hint"' not in found:
                data = one.recv(65536)
                assert data, found
                found += data
            assert statuses(found) == [401]
    assert memory(made.server.pid) - before < 16 << 20


@pytest.mark.parametrize("path", ["/files/dir/check_hash/x", "/files/rename/x", "/files/file/local/x"])
def test_bodies_of_nobody_are_not_read(made: Attacked, path: str) -> None:
    """Addresses of files, whose bodies may be large, keep none in memory: of nobody's, and where a short one is asked."""
    before = memory(made.server.pid)
    for key, wanted in (("Key a:b", (401,)), (f"Key {made.key('bob')}", (400, 413, 422))):
        fields = f"Host: a\r\nAuthorization: {key}\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=XX\r\n"
        with made.raw(f"POST {path} HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n".encode()) as one:
            with contextlib.suppress(OSError):
                for _ in range(64):
                    one.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
                one.sendall(b"0\r\n\r\n")
            assert (statuses(rest(one)) or [wanted[0]])[0] in wanted
    assert memory(made.server.pid) - before < 24 << 20


def test_an_upload_waits_in_no_file_of_the_server(made: Attacked) -> None:
    """What the published clients upload goes to the volume as it comes, archives too; one that is cut off leaves nothing."""
    part = b'--XX\r\nContent-Disposition: form-data; name="file_upload"; filename="f"\r\n\r\n'
    for query in ("", "?unzip=true"):
        fields = (b"Content-Type: multipart/form-data; boundary=XX", b"Transfer-Encoding: chunked")
        with made.raw(
            head(made, f"POST /files/file/local/big{query}", *fields) + b"%x\r\n%b\r\n" % (len(part), part)
        ) as one:
            for _ in range(8):
                one.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            links = [os.readlink(f"/proc/{made.server.pid}/fd/{name}") for name in _descriptors(made.server.pid)]
            assert not [link for link in links if link.startswith("/") and "(deleted)" in link and "memfd" not in link]
    until(lambda: not list(made.server.home.path.glob("volumes/*/data/*big*")))
    assert answered(made)


def _descriptors(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            os.readlink(f"/proc/{pid}/fd/{name}")
            found.append(name)
    return found


def test_encoded_bodies_stay_as_they_are(made: Attacked) -> None:
    """Nothing is unpacked on the way to a function, however small it was packed."""
    packed = gzip.compress(bytes(1 << 20))
    data = head(
        made, "POST /ann/fn/x", b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed), b"Connection: close"
    )
    found = json.loads(made.said(data + packed).partition(b"\r\n\r\n")[2])
    assert found["body"].encode("latin-1") == packed


def test_floods_of_submits_have_a_bound(made: Attacked) -> None:
    """A caller has half of a line, an owner two lines' requests; the owner's own come in between. Heads are bounded, too."""
    made.serve("ann", "line", "shared", max_concurrency=1)
    made.serve("ann", "second", "shared", max_concurrency=1)

    def submit(alias: str, user: str, *fields: bytes) -> int:
        asked = head(
            made, f"POST /queue/ann/{alias}/hold", b"Content-Length: 2", b"Connection: close", *fields, user=user
        )
        return statuses(made.said(asked + b"{}"))[0]

    over = threading.Event()

    def hold(peer: Peer) -> None:
        over.wait(PATIENCE_SECONDS)
        RawApp.tell(peer)

    made.app.scripts["hold"] = hold
    found = [submit("line", "bob") for _ in range(8)]
    assert found.count(200) in (4, 5), found  # one may have a runner
    assert found[-1] == 429
    assert submit("line", "ann") == 200
    found = [submit("line", "ann") for _ in range(8)] + [submit("second", "ann") for _ in range(16)]
    assert 6 <= found.count(200) <= 14, found
    assert found[-1] == 429
    assert submit("line", "carol", b"X-Long: " + b"y" * 20_000) == 431
    key = made.front.user("ann")
    for alias in ("line", "second"):
        assert made.server.ask("DELETE", f"/applications/ann/{alias}/queue", headers=key)[0] == 200
    over.set()
    until(lambda: not made.app.open)


OF_THIS_MACHINE = [
    *("http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://017700000001/"),
    *(
        "http://0/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
    ),
    *(
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST:80/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/",
    ),
    *("http://[fe80::1%25lo]/", "http://10.0.0.1:6379/", "https://192.168.0.1/", "http://[fd00::1]/"),
]


class _Here:
    """Threads that are none: the work is done where it is asked for."""

    async def run(self, _user: str, work: Callable[[], Any]) -> Any:
        """Do it."""
        return work()


def _resolved(*arguments: Any) -> targets.Target:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "_threads", _Here())
        return asyncio.run(targets.resolve(*arguments))


def test_webhooks_lead_to_no_surroundings() -> None:
    """Addresses of this machine and its networks are refused in each writing that a resolver knows."""
    for url in OF_THIS_MACHINE:
        with pytest.raises((errors.CallerError, OSError)):
            _resolved("ann", url, [])


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means a private address a moment later gains nothing: the connection goes to the one that was checked."""
    asked: list[str] = []

    def look(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    found = _resolved("ann", "https://rebinding.example:444/x?y", [])
    assert (found.address, found.port, found.host, found.named) == (
        "93.184.216.34",
        444,
        "rebinding.example",
        "rebinding.example:444",
    )
    assert asked == ["rebinding.example"]
    with pytest.raises(errors.CallerError):
        _resolved("ann", "https://rebinding.example/", [])


def test_public_addresses_of_this_machine_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that this machine has is refused although it is public, unless the settings name it."""
    assert targets.is_own("127.0.0.1")
    assert not targets.is_own("93.184.216.34")
    monkeypatch.setattr(targets, "is_own", lambda text: text == "93.184.216.34")
    with pytest.raises(errors.CallerError, match="not public"):
        _resolved("ann", "http://93.184.216.34/", [])
    assert _resolved("ann", "http://93.184.216.34/", [ip_network("93.184.216.0/24")]).port == 80


def test_no_request_was_a_fault_of_the_server(made: Attacked) -> None:
    """The log of all that has told of no fault, and has no secrets."""
    text = made.server.log.read_text()
    assert not re.findall(r"Traceback|never retrieved|500,", text)
    for user in ("ann", "bob"):
        assert made.key(user).partition(":")[2] not in text
