"""Requests to endpoints that two programs read differently: what the function's server gets is one request, and the next
client's stays its own.
"""

from __future__ import annotations

import json
import select
from collections.abc import Iterator

import pytest

from ..waiting import until
from .raw_app import Attacked, Peer, RawApp, attacked, rest, statuses

EVIL = b"GET /ann/priv/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def made() -> Iterator[Attacked]:
    """A server with a private and a public endpoint of Ann's, and one of Bob's."""
    with attacked("--domain", "lab.example") as found:
        found.serve("ann", "priv")
        found.serve("ann", "open", "public")
        found.serve("bob", "priv")
        yield found


def head(made: Attacked, first: str, *fields: bytes) -> bytes:
    """Return a head with Ann's key."""
    lines = [first.encode("latin-1") + b" HTTP/1.1", f"Authorization: Key {made.key('ann')}".encode(), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


TWO_ENDS: list[tuple[list[bytes], bytes]] = [
    ([b"Content-Length: 6", b"Transfer-Encoding: chunked"], b"0\r\n\r\nG"),
    ([b"Transfer-Encoding: chunked", b"Content-Length: 6"], b"0\r\n\r\nG"),
    ([b"Content-Length: 0", b"Content-Length: %d" % len(EVIL)], EVIL),
    ([b"Content-Length: 2", b"Content-Length: 2"], b"hi"),
    ([b"Content-Length: 2, 2"], b"hi"),
    ([b"Content-Length: +2"], b"hi"),
    ([b"Content-Length: -1"], b"hi"),
    ([b"Content-Length: 0x2"], b"hi"),
    ([b"Content-Length: 99999999999999999999"], b"hi"),
    ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding: xchunked"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding: chunked, gzip"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding : chunked"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n" + EVIL),
    ([b"Transfer-Encoding: chunked"], b"2;a\nb\r\nhi\r\n0\r\n\r\n"),
    ([b"Transfer-Encoding: chunked"], b"2\nhi\n0\n\n"),
    ([b"Transfer-Encoding: chunked"], b"-2\r\nhi\r\n0\r\n\r\n"),
    ([b"Transfer-Encoding: chunked"], b"0x2\r\nhi\r\n0\r\n\r\n"),
    ([b"Transfer-Encoding: chunked"], b"fffffffffffffffff\r\nhi\r\n0\r\n\r\n"),
    ([b"X: a\r\n b: c", b"Content-Length: 2"], b"hi"),
    ([b"X: a\r\n Transfer-Encoding: chunked", b"Content-Length: 2"], b"hi"),
    ([b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 2"], b"hi"),
    ([b"X: a\rTransfer-Encoding: chunked", b"Content-Length: 2"], b"hi"),
    ([b"X: a\0b", b"Content-Length: 2"], b"hi"),
    ([b"X", b"Content-Length: 2"], b"hi"),
    ([b"A B: c", b"Content-Length: 2"], b"hi"),
]


def test_bodies_with_two_ends_are_refused(made: Attacked) -> None:
    """A head that a program on the way may read otherwise is 400, ends its connection, and reaches no function."""
    before = len(made.app.seen)
    for fields, body in TWO_ENDS:
        answer = made.said(head(made, "POST /ann/priv/x", b"Host: a", *fields) + body)
        assert statuses(answer) == [400], (fields, answer)
        assert len(made.app.seen) == before, fields


TWO_READINGS = [
    b"GET http://other/ann/priv HTTP/1.1",
    b"GET http://bob@a/ann/priv HTTP/1.1",
    b"GET http://a:81/ann/priv HTTP/1.1",
    b"GET http://a HTTP/1.1",
    b"GET /ann/priv#x HTTP/1.1",
    b"GET /ann/priv?x#y HTTP/1.1",
    b"GET /ann/priv HTTP/2.0",
    b"GET /ann/priv HTTP/1.2",
    b"GET /ann/priv",
    b"GET /ann/priv/a b HTTP/1.1",
    b"GET /ann/priv/\x7f HTTP/1.1",
    b"GET /ann/priv/\xff HTTP/1.1",
    b"CONNECT a:80 HTTP/1.1",
]


def test_targets_with_two_readings_are_refused(made: Attacked) -> None:
    """A target that names another host than the head, or is none, is 400."""
    before = len(made.app.seen)
    key = f"Authorization: Key {made.key('ann')}\r\n".encode()
    for line in TWO_READINGS:
        assert statuses(made.said(line + b"\r\nHost: a\r\n" + key + b"\r\n")) == [400], line
        assert len(made.app.seen) == before, line


def test_http_1_0_has_no_chunks(made: Attacked) -> None:
    """A body in chunks of a program that knows none is refused: another would read on behind the head."""
    data = head(made, "POST /ann/priv", b"Host: a", b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert statuses(made.said(data + b"0\r\n\r\n" + EVIL)) == [400]


def test_a_target_without_a_path_is_nothing(made: Attacked) -> None:
    """`*` is answered, by 404."""
    for method in (b"OPTIONS", b"GET"):
        assert statuses(made.said(method + b" * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == [404]


def test_a_body_is_framed_anew(made: Attacked) -> None:
    """Extensions of chunks, trailers and the client's own framing stop at the server."""
    chunks = b"2;x=y\r\nhi\r\n0\r\nx-fal-caller-user-id: bob\r\n\r\n"
    data = head(made, "POST /ann/priv", b"Host: a", b"Transfer-Encoding: chunked", b"Connection: close") + chunks
    found = json.loads(made.said(data).partition(b"\r\n\r\n")[2])
    assert found["body"] == "hi"
    assert "bob" not in found["head"]
    assert found["head"].lower().count("content-length") + found["head"].lower().count("transfer-encoding") == 1


def test_requests_behind_a_refused_body_are_not_in_it(made: Attacked) -> None:
    """The body of a request that is refused is no request; the one behind it is."""
    before = len(made.app.seen)
    first = head(made, "POST /ann/none", b"Host: a", b"Content-Length: %d" % len(EVIL)) + EVIL
    second = head(made, "GET /ann/priv/after", b"Host: a", b"Connection: close")
    assert statuses(made.said(first + second)) == [404, 200]
    assert [one.split()[1] for one in made.app.seen[before:]] == [b"/after"]


def test_a_client_that_breaks_off_frees_its_place(made: Attacked) -> None:
    """A body that ends early, or in nonsense, gives the runner back: the next request is answered."""
    path = made.serve("ann", "single", max_concurrency=1)
    for broken in (b"2\r\nhixx0\r\n\r\n", b"5\r\nhi"):
        begun = head(made, f"POST {path}", b"Host: a", b"Transfer-Encoding: chunked")
        with made.raw(begun) as one:
            one.sendall(broken[:4])
            until(lambda: any(b"/single" in seen for seen in made.app.seen))
            one.sendall(broken[4:])
        made.app.seen.clear()
        assert statuses(made.said(head(made, f"GET {path}", b"Host: a", b"Connection: close"))) == [200]


OURS = [
    "X-Fal-Caller-User-Id",
    "x_fal_caller_user_id",
    "X-Fal_Caller-User_Id",
    "X-Fal-Request-Id",
    "X_Forwarded_For",
    "X-Forwarded-Host",
    "X_Forwarded-Proto",
    "Forwarded",
    "X-Real-IP",
    "X-Atoll-Anything",
    "Transfer_Encoding",
    "Content_Length",
]


def test_no_client_tells_what_the_server_tells(made: Attacked) -> None:
    """Names that the server gives a meaning are its own, also where servers of functions read `_` as `-`."""
    for name in (*OURS, "Host_", "My_Own"):
        data = head(made, "GET /ann/priv", b"Host: a", f"{name}: forged".encode(), b"Connection: close")
        found = json.loads(made.said(data).partition(b"\r\n\r\n")[2])["head"]
        assert ("forged" in found) is (name not in OURS), name


def test_no_client_takes_what_the_server_tells(made: Attacked) -> None:
    """A name in `Connection` drops the client's own field alone."""
    named = b"Connection: close, host, x-fal-caller-user-id, x-forwarded-for, x-mine"
    found = json.loads(
        made.said(head(made, "GET /ann/priv", b"Host: a", named, b"X-Mine: 1")).partition(b"\r\n\r\n")[2]
    )
    lines = found["head"].lower().split("\r\n")
    names = [one.partition(":")[0] for one in lines[1:]]
    assert {"host", "x-fal-caller-user-id", "x-forwarded-for"} <= set(names)
    assert "x-mine" not in names
    assert len(names) == len(set(names))


WRITINGS = [
    *("/%61nn/priv", "/ann/%70riv", "/ann%2fpriv/x", "/ann;x/priv", "/ann/priv;x", "//ann/priv", "/ann//priv"),
    *("/%72un/ann/priv", "/run//ann/priv", "/run/run/ann/priv", "/v1/../ann/priv", "/queue/../ann/priv"),
    *("/ANN/priv", "/ann/PRIV", "/ann/priv\\x", "/.", "/ann/.", "/ann/..", "/ann/priv%00", "/ann/priv%20"),
    *("/" + "a" * 60_000 + "/x", "/ann/" + "x" * 60_000, "/run/trigger/ann", "/trigger/run/ann"),
]


def test_an_endpoint_has_one_writing(made: Attacked) -> None:
    """Owner and alias are read as they came: no other writing names an endpoint, and nothing is answered by a fault."""
    before = len(made.app.seen)
    for path in WRITINGS:
        found = statuses(made.said(head(made, f"GET {path}", b"Host: a", b"Connection: close")))
        assert found == [404], path[:40]
        assert len(made.app.seen) == before, path[:40]


BELOW = ["/../../bob/priv", "/..%2f..%2fbob/priv", "/run/bob/priv", "//bob/priv", "/%2e%2e/bob", "/;/../bob/priv"]


def test_a_path_below_an_endpoint_leads_to_no_other(made: Attacked) -> None:
    """What is behind an endpoint's address goes to its function, byte by byte."""
    for path in BELOW:
        before = len(made.app.seen)
        assert statuses(made.said(head(made, f"GET /ann/priv{path}", b"Host: a", b"Connection: close"))) == [200], path
        (seen,) = made.app.seen[before:]
        assert seen.split(b" ")[1].decode() == path
        assert b"x-forwarded-prefix: /ann/priv\r\n" in seen


def late(peer: Peer) -> None:
    """Answer when the client has sent all that it will, and the server has read it."""
    select.select([], [], [], 0.2)
    RawApp.tell(peer)


def test_pipelined_answers_keep_their_order(made: Attacked) -> None:
    """Requests of one connection are answered one after the other, also behind a slow one; an upgrade among them is none."""
    made.app.scripts["late"] = late
    both = head(made, "GET /ann/priv/late", b"Host: a") + head(
        made, "GET /ann/priv/b", b"Host: a", b"Connection: close"
    )
    bodies = [json.loads(b"{" + part.partition(b"{")[2]) for part in made.said(both).split(b"HTTP/1.1 200")[1:]]
    assert [one["head"].split(" ")[1] for one in bodies] == ["/late", "/b"]
    upgrade = head(made, "GET /ann/priv/ws", b"Host: a", b"Connection: upgrade", b"Upgrade: websocket")
    with made.raw(head(made, "GET /ann/priv/late", b"Host: a") + upgrade) as one:
        assert 101 not in statuses(rest(one))
