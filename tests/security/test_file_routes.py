"""Attacks on `/v1/files/`: addresses that leave the volume, links that lead out of it, content that acts in a browser."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import json
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import QuotaExceeded
from atoll.host.remote.remote_host import Host
from atoll.sdk.data.volume import Volume
from atoll.server.accounts.bodies import NewUser

from ..server.process import Server, on_cluster, running
from ..waiting import soak, until

SECRET = b"nobody may read this"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with files of its own, some of them hostile."""
    with running() as found:
        assert ask(found, "PUT", "/v1/files/inside", b"inside")[0] == 201
        data_of(found)
        yield found


def data_of(server: Server) -> Path:
    """Return the directory that the user's functions see as `/data`."""
    if server.port not in _data:
        (_data[server.port],) = server.volumes.glob("*/data")
    return _data[server.port]


_data: dict[int, Path] = {}
"""The first user's, by the server's port."""


def names_in(data: Path) -> list[str]:
    """Return the names in a volume, without the place of its snapshots."""
    return sorted(set(os.listdir(data)) - {".snapshots"})


def ask(
    server: Server, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send a request with its target as it is, and return status, headers and body."""
    connection = server.connection()
    try:
        connection._encode_request = lambda request: request.encode("latin-1")  # type: ignore[attr-defined]
        connection._validate_path = lambda _: None  # type: ignore[attr-defined]
        connection.request(method, target, body, headers if headers is not None else server.headers())
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that is no part of the volume, with a file that everybody could read."""
    (tmp_path / "secret").write_bytes(SECRET)
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    return tmp_path


ESCAPES = [
    "/v1/files/../../../../../../etc/passwd",
    "/v1/files/./inside",
    "/v1/files//etc/passwd",
    "/v1/files/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/v1/files/.%2e/.%2E/etc/passwd",
    "/v1/files/%2e/inside",
    "/v1/files/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/v1/files/%2fetc%2fpasswd",
    "/v1/files/%2Fetc/passwd",
    "/v1/files/inside%00.png",
    "/v1/files/%00",
    "/v1/files/a/../inside",
    "/v1/files/a/%2e%2e/inside",
    "/v1/files/%",
    "/v1/files/%zz",
    "/v1/files/%2",
    "/v1/files/" + "a" * 256,
    "/v1/files/" + "/".join(["a" * 200] * 30),
    "/v1/%66iles/inside",
    "/v1/files%2finside",
]
NAMES = [
    "/v1/files/..%5c..%5cetc%5cpasswd",
    "/v1/files/%252e%252e/%252e%252e/etc/passwd",
    "/v1/files/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "/v1/files/C:/inside",
    "/v1/files/...",
    "/v1/files/~root",
    "/v1/files/proc/self/environ",
    "/v1/files/etc/passwd",
    "/v1/files/%ef%bc%8e%ef%bc%8e/inside",
]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
def test_addresses_that_leave_the_volume_are_refused(server: Server, method: str) -> None:
    """No spelling of an address names anything but one path below `/data`."""
    for target in ESCAPES:
        status, _, body = ask(server, method, target + ("?mkdir" if method == "POST" else ""), b"x")
        assert status in (400, 404, 405), target
        assert b"root:" not in body
    assert names_in(data_of(server)) == ["inside"]


def test_names_that_look_like_escapes_are_names(server: Server) -> None:
    """A backslash, a second layer of escapes and odd Unicode are parts of a name."""
    for target in NAMES:
        status, _, body = ask(server, "GET", target)
        assert (status, json.loads(body)["error"]["code"]) == (404, "file_not_found"), target
        assert ask(server, "PUT", target, b"mine")[0] == 201, target
        assert ask(server, "GET", target)[::2] == (200, b"mine"), target
    top = {target.split("/")[3] for target in NAMES}
    for name in top:
        assert ask(server, "DELETE", f"/v1/files/{name}?recursive")[0] == 204
    assert names_in(data_of(server)) == ["inside"]


def test_names_that_are_not_utf8_round_trip(server: Server) -> None:
    """A listing's address of such a name leads to the file, and its text is plain Unicode."""
    for name in (b"\xff\xfe", b"a\x80b", b"\xed\xb3\xbf", b"line\nbreak\r", b'q"uote', b"\x1b[31m"):
        target = "/v1/files/odd/" + "".join(f"%{byte:02x}" for byte in name)
        assert ask(server, "PUT", target, name)[0] == 201
        assert (data_of(server) / "odd" / os.fsdecode(name)).read_bytes() == name
    listed = json.loads(ask(server, "GET", "/v1/files/odd/")[2])
    assert len(listed["entries"]) == 6
    for entry in listed["entries"]:
        entry["name"].encode("utf-8")
        status, headers, content = ask(server, "GET", entry["href"])
        assert status == 200
        assert set(map(chr, range(32))).isdisjoint(headers["content-disposition"])
        assert content in (b"\xff\xfe", b"a\x80b", b"\xed\xb3\xbf", b"line\nbreak\r", b'q"uote', b"\x1b[31m")
    pages, page = [], json.loads(ask(server, "GET", "/v1/files/odd/?limit=1")[2])
    while page["entries"]:
        pages += page["entries"]
        page = json.loads(ask(server, "GET", page["next"])[2]) if "next" in page else {"entries": []}
    assert [one["href"] for one in pages] == [one["href"] for one in listed["entries"]]
    assert ask(server, "DELETE", "/v1/files/odd?recursive")[0] == 204


def test_links_that_lead_out_are_not_followed(server: Server, outside: Path) -> None:
    """No symlink in the volume opens, lists, writes, moves or removes a path outside of it."""
    data, top = data_of(server), secrets.token_hex(4)
    (data / top).mkdir()
    if os.geteuid() == 0:
        os.chown(data / top, *(os.stat(data)[4:6]))
    targets = {
        "absolute": str(outside),
        "relative": os.path.relpath(outside, data / top),
        "root": "/",
        "proc": f"/proc/self/root{outside}",
        "cwd": f"/proc/{os.getpid()}/cwd",
        "up": "../..",
        "staging": "../../staging",
        "back": "/data/../../../..",
        "file": str(outside / "secret"),
    }
    for name, target in targets.items():
        os.symlink(target, data / top / name)
    for name in targets:
        base = f"/v1/files/{top}/{name}"
        for method, tail in [
            ("GET", ""),
            ("GET", "/"),
            ("GET", "/secret"),
            ("GET", "?list"),
            ("PUT", ""),
            ("PUT", "/new"),
            ("POST", "/new?mkdir"),
            ("POST", "/secret?copy=stolen"),
            ("POST", "?copy=stolen"),
            ("POST", "/secret?move=stolen"),
            ("DELETE", "/secret"),
        ]:
            status, _, body = ask(server, method, base + tail, b"x" if method == "PUT" else None)
            assert 400 <= status < 500, (method, base + tail, status)
            assert SECRET not in body
        assert ask(server, "POST", f"/v1/files/inside?copy={top}/{name}/new")[0] in (400, 403, 404, 409)
    listed = json.loads(ask(server, "GET", f"/v1/files/{top}/")[2])
    assert {one["kind"] for one in listed["entries"]} == {"symlink"}
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == SECRET
    assert ask(server, "DELETE", f"/v1/files/{top}?recursive")[0] == 204
    assert names_in(data) == ["inside"]


@pytest.mark.parametrize("query", ["move=../../x", "copy=../x", "move=/data/../x", "copy=a%00b", "copy=a//b", "move="])
def test_targets_of_moves_stay_in_the_volume(server: Server, query: str) -> None:
    """The second path of a request has the rules of the first."""
    status, _, body = ask(server, "POST", f"/v1/files/inside?{query}")
    assert status in (400, 403), body
    assert ask(server, "GET", "/v1/files/inside")[2] == b"inside"


def test_a_link_that_is_swapped_in_is_not_followed(server: Server, outside: Path) -> None:
    """A directory that turns into a link at any moment of a request leads nowhere outside."""
    data = data_of(server)
    here = data / "swap"
    (here / "way").mkdir(parents=True)
    (here / "way" / "secret").write_bytes(b"mine")
    os.symlink(outside, here / "link")
    if os.geteuid() == 0:
        for path in (here, here / "way", here / "way" / "secret"):
            os.chown(path, *(os.stat(data)[4:6]))
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    done = threading.Event()
    swaps = [0]

    def swap() -> None:
        way, link = os.fsencode(here / "way"), os.fsencode(here / "link")
        while not done.is_set():
            assert exchange(-100, way, -100, link, 2) == 0
            swaps[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    statuses: set[int] = set()
    try:
        connection = server.connection()
        for number in range(soak(60, 3000)):
            for method, tail, body in (("GET", "secret", None), ("PUT", f"new{number}", b"x"), ("GET", "", None)):
                connection.request(method, f"/v1/files/swap/way/{tail}", body, server.headers())
                answer = connection.getresponse()
                content = answer.read()
                statuses.add(answer.status)
                assert SECRET not in content
                assert tail or answer.status != 200 or b"swap" in content
        connection.close()
    finally:
        done.set()
        thread.join()
    assert os.listdir(outside) == ["secret"]
    assert swaps[0] > 100
    assert statuses & {200, 201}
    assert 403 in statuses
    assert ask(server, "DELETE", "/v1/files/swap?recursive")[0] == 204


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.xhtml", "x.js", "x.xml", "x.HTM", "x", "x.pdf", "x.png"])
@pytest.mark.parametrize("query", ["", "?inline"])
def test_content_never_acts_on_the_pages_origin(server: Server, name: str, query: str) -> None:
    """No file is active in a browser: neither its type nor its origin lets it run."""
    ask(server, "PUT", f"/v1/files/web/{name}", b"<script>alert(1)</script>")
    _, headers, _ = ask(server, "GET", f"/v1/files/web/{name}{query}")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert headers["content-disposition"].startswith("inline" if query else "attachment")
    assert headers["content-type"].partition(";")[0] in (
        "text/plain",
        "application/octet-stream",
        "application/pdf",
        "image/png",
    )
    assert "private" in headers["cache-control"]
    ask(server, "DELETE", "/v1/files/web?recursive")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST", "HEAD"])
def test_nobody_without_a_key(server: Server, method: str) -> None:
    """A request without a valid key sees and changes nothing."""
    for headers in ({}, {"Authorization": "Key x:y"}, {"Cookie": "session=x"}):
        assert ask(server, method, "/v1/files/inside", None, headers)[0] == 401
    assert ask(server, "GET", "/v1/files/inside")[2] == b"inside"


def test_encoded_bodies_are_refused(server: Server) -> None:
    """A body that would have to be unpacked, such as a bomb, is neither unpacked nor kept."""
    bomb = gzip.compress(bytes(1 << 20))
    for name in ("gzip", "deflate", "br", "identity, gzip"):
        status, _, body = ask(server, "PUT", "/v1/files/bomb", bomb, {**server.headers(), "Content-Encoding": name})
        assert (status, json.loads(body)["error"]["code"]) == (415, "content_encoding")
    assert ask(server, "GET", "/v1/files/bomb")[0] == 404


def test_special_files_are_not_opened(server: Server) -> None:
    """A fifo holds nobody up, and is neither read nor written."""
    data = data_of(server)
    os.mkfifo(data / "fifo")
    status, _, body = ask(server, "GET", "/v1/files/fifo")
    assert status == 400, body
    listed: dict[str, Any] = json.loads(ask(server, "GET", "/v1/files/")[2])
    assert {one["name"]: one["kind"] for one in listed["entries"]} == {"fifo": "special", "inside": "file"}
    assert ask(server, "DELETE", "/v1/files/fifo")[0] == 204


def test_another_users_files_do_not_exist(server: Server) -> None:
    """A user's key opens that user's volume alone, by every method, address and line."""
    if os.geteuid() != 0:
        pytest.skip("several users need a server that runs as root")
    added = server.add_user(NewUser(name=f"eve-{secrets.token_hex(3)}"))
    assert added.key is not None
    headers = {**server.headers(), "Authorization": f"Key {added.key.id}:{added.key.secret}"}
    mine = data_of(server)
    for target in (
        "/v1/files/inside",
        f"/v1/files/..%2f{mine.parent.name}/data/inside",
        f"/v1/files/../../{mine.parent.name}/data/inside",
        f"/v1/files{mine}/inside",
    ):
        for method in ("GET", "HEAD", "DELETE", "POST"):
            tail = "?move=stolen" if method == "POST" else ""
            assert ask(server, method, target + tail, None, headers)[0] in (400, 404), (method, target)
    assert ask(server, "PUT", "/v1/files/inside", b"hers", headers)[0] == 201
    assert ask(server, "GET", "/v1/files/inside")[2] == b"inside"
    theirs = server.volumes / added.user.id / "data"
    os.symlink(mine, theirs / "link")
    for tail in ("", "/", "/inside", "/inside?stat"):
        assert ask(server, "GET", f"/v1/files/link{tail}", None, headers)[0] in (403, 404), tail
    wheel = f"/v1/packages/{hashlib.sha256(b'x').hexdigest()}/x-1-py3-none-any.whl"
    assert ask(server, "PUT", wheel, b"x")[0] == 201
    assert json.loads(ask(server, "GET", wheel, None, headers)[2]) == {"present": False}
    assert json.loads(ask(server, "GET", wheel)[2]) == {"present": True}


def test_a_used_up_quota_is_named_over_http_and_lines(server: Server) -> None:
    """A file over the user's quota is a `quota_exceeded` with its path, and nothing of it is left."""
    if os.geteuid() != 0:
        pytest.skip("several users need a server that runs as root")
    name = f"full-{secrets.token_hex(3)}"
    added = server.add_user(NewUser(name=name))
    assert added.key is not None
    server.home.atoll("users", "set-quota", name, "--bytes", "32MB")
    headers = {**server.headers(), "Authorization": f"Key {added.key.id}:{added.key.secret}"}
    status, _, body = ask(server, "PUT", "/v1/files/a/large", b"x" * (48 << 20), headers)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["details"]["path"]) == (507, "quota_exceeded", "/data/a/large")
    assert ask(server, "GET", "/v1/files/a/large", None, headers)[0] == 404
    host = Host(server.url, key_id=added.key.id, key_secret=added.key.secret, ca_file=str(server.ca_file))
    with Volume(host) as volume:

        def refused() -> bool:
            with contextlib.suppress(QuotaExceeded):
                volume.write_bytes("b", b"x" * (48 << 20))
                return False
            return True

        if on_cluster():  # JuiceFS tells other machines of a new quota in about ten seconds
            until(refused)
        assert refused()
    host.close()
