"""Downloads to a directory from a real server that misbehaves as told."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import ChecksumMismatch, DiskFull, DownloadError
from atoll.storage.downloads import download
from atoll.storage.downloads.addresses import file_name
from atoll.storage.downloads.download import Downloads, Kept, Request
from atoll.storage.downloads.http import Origin
from atoll.storage.downloads.note import SHELF

from ..waiting import until

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A web server with one file, and what it is to do wrong.

    Args:
        content: the file.
        etag, modified: its validators; empty for none.
        ranges: whether it knows parts.
        scripts: what to do with the next requests instead, the first first; `None` answers as usual.
    """

    content: bytes = CONTENT
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    scripts: list[Callable[[Any], None] | None] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str = "/dir/file.bin") -> str:
        return f"http://{self.address}{path}"

    def answer(self, handler: Any) -> None:
        """Answer with the file, or the part that is asked for if it is still the same."""
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        proof = handler.headers.get("If-Range")
        start, total = 0, len(self.content)
        if found and self.ranges and (proof is None or proof in (self.etag, self.modified)):
            start = int(found[1])
            if start >= total:
                self.head(handler, 416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
                return
            self.head(handler, 206, {"Content-Range": f"bytes {start}-{total - 1}/{total}"}, total - start)
        else:
            self.head(handler, 200, {}, total)
        handler.wfile.write(self.content[start:])

    def head(self, handler: Any, status: int, headers: dict[str, str], length: int | None = None) -> None:
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        for name, value in {"ETag": self.etag, "Last-Modified": self.modified, **headers}.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()

    def cut(self, at: int) -> Callable[[Any], None]:
        """Return what sends that much of the file and closes the connection."""

        def script(handler: Any) -> None:
            self.head(handler, 200, {}, len(self.content))
            handler.wfile.write(self.content[:at])
            handler.close_connection = True

        return script

    def status(self, status: int, headers: dict[str, str] | None = None) -> Callable[[Any], None]:
        return lambda handler: self.head(handler, status, {"Content-Length": "0", **(headers or {})})


@contextlib.contextmanager
def serving(site: Site, context: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve a site on the loopback device, over TLS where there is a context."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            site.requests.append((self.path, dict(self.headers.items())))
            script = site.scripts.pop(0) if site.scripts else None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                (script or site.answer)(self)

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            return

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        site.address = f"127.0.0.1:{server.server_address[1]}"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of one file."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Site()) as made:
        yield made


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What stands for `/data`."""
    path = tmp_path / "data"
    path.mkdir()
    return path


def get(volume: Path, site: Site, sha256: str = "", *, path: str = "place/file", **options: Any) -> Kept:
    """Download the site's file."""
    wanted = Request(path, {"sha256": sha256} if sha256 else {}, options.pop("force", False), options.pop("most", None))
    made = Origin(options.pop("url", site.url()), verified=bool(sha256), timeout_seconds=10.0, **options)
    return Downloads(str(volume), pause=lambda _: None).get(made, wanted)


def notes(volume: Path) -> list[Path]:
    return sorted((volume / SHELF / ".notes").iterdir())


def test_a_file_is_downloaded_once(site: Site, volume: Path) -> None:
    """The first call downloads, later ones return what is there; nothing else stays but the note."""
    for _ in range(3):
        kept = get(volume, site)
        assert (kept.path, kept.size, kept.digests) == ("place/file", len(CONTENT), {"sha256": SHA256})
    assert (volume / "place/file").read_bytes() == CONTENT
    assert (volume / "place/file").stat().st_mode & 0o777 == 0o644
    assert len(site.requests) == 1
    assert [path.suffix for path in notes(volume)] == [".json"]


def test_force_downloads_anew(site: Site, volume: Path) -> None:
    """With `force` the file is replaced by what the origin has now; who has the old one open keeps it."""
    get(volume, site)
    with (volume / "place/file").open("rb") as old:
        site.content, site.etag = b"new", '"two"'
        assert get(volume, site).size == len(CONTENT)
        assert get(volume, site, force=True).size == 3
        assert old.read() == CONTENT
    assert (volume / "place/file").read_bytes() == b"new"


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_a_file_that_changed_on_the_volume_is_mended(site: Site, volume: Path, sha256: str) -> None:
    """A file whose content was changed is downloaded again, one that was only copied or touched is not."""
    get(volume, site, sha256)
    file = volume / "place/file"
    os.utime(file, (1, 1))
    get(volume, site, sha256)
    assert len(site.requests) == 1
    changed = bytearray(CONTENT)
    changed[5] ^= 1
    file.write_bytes(changed)
    os.utime(file, (1, 1))
    get(volume, site, sha256)
    assert (file.read_bytes(), len(site.requests)) == (CONTENT, 2)


def test_what_stands_at_the_place_is_taken_or_verified(site: Site, volume: Path) -> None:
    """A file without a note is taken as it is, and with a digest only if it has that one; else it is replaced."""
    (volume / "place").mkdir()
    (volume / "place/file").write_bytes(b"mine")
    assert get(volume, site).size == 4
    mine = hashlib.sha256(b"mine").hexdigest()
    assert get(volume, site, mine).digests == {"sha256": mine}
    assert not site.requests
    assert get(volume, site, SHA256).size == len(CONTENT)
    assert len(site.requests) == 1
    assert get(volume, site, SHA256, url=site.url("/other?signature=2")).size == len(CONTENT)
    assert len(site.requests) == 1
    get(volume, site, url=site.url("/other"))
    assert len(site.requests) == 2


def test_a_wrong_digest_is_refused(site: Site, volume: Path) -> None:
    """What has another digest is thrown away, both are named, and what stood there stays."""
    get(volume, site)
    with pytest.raises(ChecksumMismatch) as caught:
        get(volume, site, "0" * 64)
    assert (caught.value.expected, caught.value.found) == ("0" * 64, SHA256)
    assert (volume / "place/file").read_bytes() == CONTENT
    assert not any(path.stat().st_size for path in notes(volume) if path.suffix == ".part")
    with pytest.raises(ChecksumMismatch):
        Downloads(str(volume)).get(Origin(site.url(), verified=True), Request("place/file", {"md5": "0" * 32}))


def test_a_broken_connection_is_continued(site: Site, volume: Path) -> None:
    """After each cut the rest is asked for, with what proves that it is of the same file."""
    site.scripts = [site.cut(300_000), None]
    assert get(volume, site).digests == {"sha256": SHA256}
    assert [headers.get("Range") for _, headers in site.requests] == [None, "bytes=300000-"]
    assert site.requests[1][1]["If-Range"] == site.etag


@pytest.mark.parametrize(
    ("etag", "age_seconds", "sha256", "ranges"),
    [
        ("", 3600, "", True),
        ("", 3, "", False),
        ('W/"weak"', None, "", False),
        ("", None, "", False),
        ("", None, SHA256, True),
    ],
    ids=["old time", "recent time", "weak tag", "nothing", "digest known"],
)
def test_only_what_can_be_proven_is_continued(
    site: Site, volume: Path, etag: str, age_seconds: int | None, sha256: str, ranges: bool
) -> None:
    """Without a strong validator, or a digest to verify by, a broken download starts anew."""
    modified = "" if age_seconds is None else email.utils.formatdate(time.time() - age_seconds, usegmt=True)
    site.etag, site.modified = etag, modified
    site.scripts = [site.cut(300_000), None]
    assert get(volume, site, sha256).digests["sha256"] == SHA256
    assert ("Range" in site.requests[1][1]) is ranges


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_at_its_origin_starts_anew(site: Site, volume: Path, ranges: bool) -> None:
    """What has arrived of the old state is never joined with the new one."""
    new = b"another content" * 50_000

    def change(handler: Any) -> None:
        site.content, site.etag, site.ranges = new, '"two"', ranges
        site.answer(handler)

    site.scripts = [site.cut(300_000), change]
    assert get(volume, site).digests == {"sha256": hashlib.sha256(new).hexdigest()}


def test_servers_that_answer_with_something_else_are_not_believed(site: Site, volume: Path) -> None:
    """A part that was not asked for, of another state or of another size, starts the download anew."""

    def part(content_range: str, etag: str = '"one"') -> Callable[[Any], None]:
        def script(handler: Any) -> None:
            site.head(handler, 206, {"Content-Range": content_range, "ETag": etag}, 10)
            handler.wfile.write(b"x" * 10)

        return script

    total = len(CONTENT)
    for answer in (
        part(f"bytes 299990-299999/{total}"),
        part(f"bytes 300000-300009/{total}"),
        part(f"bytes 300000-{total - 1}/{total}", '"two"'),
        part(f"bytes 300000-{total + 8}/{total + 9}"),
        part("nonsense"),
        site.status(416, {"Content-Range": "bytes */7"}),
    ):
        site.scripts, site.requests = [site.cut(300_000), answer, None], []
        assert get(volume, site, force=True).digests == {"sha256": SHA256}
        assert [headers.get("Range") for _, headers in site.requests] == [None, "bytes=300000-", None]


def test_a_wrong_beginning_is_found_out(site: Site, volume: Path) -> None:
    """A part of an earlier time that does not fit the digest is thrown away once, and all of it is downloaded."""
    site.content, site.etag = b"z" * len(CONTENT), ""
    site.scripts = [site.cut(300_000), *[site.status(503)] * 9]
    with pytest.raises(DownloadError):
        get(volume, site, SHA256)
    site.content, site.scripts = CONTENT, []
    assert get(volume, site, SHA256).digests == {"sha256": SHA256}
    assert [headers.get("Range") for _, headers in site.requests[-2:]] == ["bytes=300000-", None]


def test_after_a_restart_of_the_machine_only_what_was_durable_counts(
    site: Site, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is behind the last `fdatasync` of an earlier boot may be zeros, and is received again."""
    monkeypatch.setattr(download, "_CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(download, "PIECE_BYTES", 1 << 17)
    monkeypatch.setattr(download, "boot", lambda: "monday")
    site.scripts = [site.cut(300_000), *[site.status(503)] * 9]
    with pytest.raises(DownloadError):
        get(volume, site)
    (part,) = [path for path in notes(volume) if path.suffix == ".part"]
    assert part.stat().st_size == 300_000
    note = json.loads(part.with_suffix(".json").read_text())
    note["partial"]["durable"] = 200_000
    part.with_suffix(".json").write_text(json.dumps(note))
    part.write_bytes(CONTENT[:200_000] + bytes(100_000))
    monkeypatch.setattr(download, "boot", lambda: "tuesday")
    site.scripts = []
    assert get(volume, site).digests == {"sha256": SHA256}
    assert site.requests[-1][1]["Range"] == "bytes=200000-"


def test_passing_troubles_are_tried_again(site: Site, volume: Path) -> None:
    """Statuses that pass, resets and closed connections are tried again; pauses grow, and heed `Retry-After`."""
    pauses: list[float] = []

    def reset(handler: Any) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        handler.connection.close()
        handler.close_connection = True

    def leave(handler: Any) -> None:
        handler.close_connection = True

    def nonsense(handler: Any) -> None:
        handler.wfile.write(b"what?\r\n\r\n")
        handler.close_connection = True

    site.scripts = [site.status(503, {"Retry-After": "7"}), reset, leave, nonsense, site.status(429)]
    Downloads(str(volume), pause=pauses.append).get(Origin(site.url()), Request("file"))
    assert pauses[0] == 7.0
    assert [round(pause, 1) <= 0.25 * 2 ** (n + 2) for n, pause in enumerate(pauses[1:])] == [True] * 4
    assert (volume / "file").read_bytes() == CONTENT


def test_a_server_that_never_gives_more_is_given_up(site: Site, volume: Path) -> None:
    """After six tries without a byte gained it is an error that has the status; every byte gained counts as hope."""
    site.scripts = [site.cut(100_000), *[site.status(500)] * 50]
    with pytest.raises(DownloadError, match=r"HTTP status 500 .*, 6 times") as caught:
        get(volume, site)
    assert (caught.value.status, caught.value.details["received"], len(site.requests)) == (500, 100_000, 7)
    site.scripts, site.requests = [], []
    get(volume, site)
    assert site.requests[0][1]["Range"] == "bytes=100000-"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusals_are_final(site: Site, volume: Path, status: int) -> None:
    """A status that will not pass is an error at once, with a next step and without the query of the address."""
    site.scripts = [site.status(status)]
    with pytest.raises(DownloadError) as caught:
        get(volume, site, url=site.url("/f?signature=hidden"))
    assert (caught.value.status, len(site.requests)) == (status, 1)
    assert caught.value.hint
    assert "hidden" not in str(caught.value)
    assert not (volume / "place").exists()


def test_a_silent_server_is_left(site: Site, volume: Path) -> None:
    """A server that says nothing for longer than the timeout is tried again."""
    stop = threading.Event()

    def silent(_handler: Any) -> None:
        stop.wait(120.0)

    site.scripts = [silent, None]
    Downloads(str(volume), pause=lambda _: None).get(Origin(site.url(), timeout_seconds=1.0), Request("file"))
    stop.set()
    assert len(site.requests) == 2


def test_secrets_go_to_their_host_only(site: Site, volume: Path) -> None:
    """A redirect to another host carries neither password nor headers; one within the host carries them."""
    with serving(Site()) as other:
        site.scripts = [
            site.status(302, {"Location": "/moved"}),
            site.status(308, {"Location": other.url("/there?signature=s")}),
        ]
        url = site.url().replace("http://", "http://me:p%40ss@")
        kept = get(volume, site, url=url, headers={"X-Token": "t", "User-Agent": "mine"})
        assert kept.size == len(CONTENT)
        basic = "Basic " + base64.b64encode(b"me:p@ss").decode()
        assert [(headers.get("Authorization"), headers.get("X-Token")) for _, headers in site.requests] == [
            (basic, "t")
        ] * 2
        ((path, headers),) = other.requests
        assert path == "/there?signature=s"
        assert headers["User-Agent"] == "mine"
        assert not {"Authorization", "X-Token"} & headers.keys()
    everything = b"".join(path.read_bytes() for path in notes(volume))
    assert b"p%40ss" not in everything
    assert b"signature" not in everything


@pytest.mark.parametrize(
    ("target", "asked"), [("file:///etc/passwd", 1), ("ftp://127.0.0.1/x", 1), ("http://h:x/", 1), ("/loop", 11)]
)
def test_redirects_that_lead_nowhere_are_refused(site: Site, volume: Path, target: str, asked: int) -> None:
    """A redirect to another kind of address, to none, or round in a circle is an error at once."""
    site.scripts = [site.status(302, {"Location": target}) for _ in range(50)]
    with pytest.raises(DownloadError):
        get(volume, site)
    assert len(site.requests) <= asked
    assert not (volume / "place").exists()


def test_encodings_that_were_not_asked_for_are_refused(site: Site, volume: Path) -> None:
    """Compressed on the way is refused, unless the name says that the file is compressed, or its digest is known."""

    def packed(handler: Any) -> None:
        site.head(handler, 200, {"Content-Encoding": "gzip"}, len(CONTENT))
        handler.wfile.write(CONTENT)

    site.scripts = [packed] * 3
    with pytest.raises(DownloadError, match="encoding `gzip`"):
        get(volume, site)
    assert get(volume, site, SHA256).size == len(CONTENT)
    assert get(volume, site, path="x.tar.gz", url=site.url("/x.tar.gz")).size == len(CONTENT)
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in site.requests)


def test_sizes_are_bounded(site: Site, volume: Path) -> None:
    """More than is allowed is refused, announced or not, and more than the disk has free before a byte is written."""

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    site.scripts = [None, endless, lambda handler: site.head(handler, 200, {}, 1 << 60)]
    with pytest.raises(DownloadError, match="are allowed"):
        get(volume, site, most=len(CONTENT) - 1)
    with pytest.raises(DownloadError, match="are allowed"):
        get(volume, site, path="other", most=3 << 20)
    with pytest.raises(DiskFull, match="free"):
        get(volume, site, path="third")


def test_an_answer_without_a_length_is_whole_at_its_end(site: Site, volume: Path) -> None:
    """A chunked answer that breaks off is tried again."""

    def chunked(end: bytes) -> Callable[[Any], None]:
        def script(handler: Any) -> None:
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"5\r\nhello\r\n" + end)
            handler.close_connection = True

        return script

    site.scripts = [chunked(b"5\r\nhel"), chunked(b"0\r\n\r\n")]
    assert get(volume, site).size == 5


def test_files_are_origins_too(volume: Path, tmp_path: Path) -> None:
    """A `file:` address is copied; one that is missing or no file is an error."""
    source = tmp_path / "a b.bin"
    source.write_bytes(CONTENT)
    shelf = Downloads(str(volume))
    assert shelf.get(Origin(source.as_uri()), Request("x")).digests == {"sha256": SHA256}
    os.mkfifo(tmp_path / "fifo")
    for wrong in ("missing", "fifo", ""):
        with pytest.raises(DownloadError):
            shelf.get(Origin((tmp_path / wrong).as_uri()), Request("y"))


def test_a_place_that_cannot_be_is_named(site: Site, volume: Path) -> None:
    """A directory at the place, or a file above it, is an error that names it."""
    (volume / "place/file").mkdir(parents=True)
    with pytest.raises(DownloadError, match="`/data/place/file` is not an ordinary file"):
        get(volume, site)
    (volume / "plain").write_text("x")
    with pytest.raises(DownloadError, match="`/data/plain/below`"):
        get(volume, site, path="plain/below")


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"kept": 1}', b'{"kept": {"source": 1}}', b"\xff" * 100])
def test_a_damaged_note_is_no_note(site: Site, volume: Path, note: bytes) -> None:
    """Whatever a note holds, the file arrives."""
    site.scripts = [site.cut(1000), *[site.status(503)] * 9]
    with pytest.raises(DownloadError):
        get(volume, site)
    site.scripts = []
    for path in notes(volume):
        path.write_bytes(note)
    assert get(volume, site, SHA256).size == len(CONTENT)


def test_many_at_once_download_once(site: Site, volume: Path) -> None:
    """Twenty threads that ask at the same time share one download."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(get(volume, site).size)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [len(CONTENT)] * 20
    assert len(site.requests) == 1


def test_who_waited_for_a_failure_fails_as_well(site: Site, volume: Path) -> None:
    """Those who waited for a download that the server refused get its error, and do not ask each for themselves."""
    entered, leave = threading.Event(), threading.Event()

    def slow(handler: Any) -> None:
        entered.set()
        leave.wait(120.0)
        site.status(404)(handler)

    site.scripts = [slow]
    errors: list[str] = []

    def ask() -> None:
        try:
            get(volume, site)
        except DownloadError as error:
            errors.append(f"{error.status}")

    threads = [threading.Thread(target=ask) for _ in range(5)]
    threads[0].start()
    entered.wait(120.0)
    for thread in threads[1:]:
        thread.start()
    waiting = f"{os.getpid()}".encode()
    until(lambda: Path("/proc/locks").read_bytes().count(b"-> FLOCK  ADVISORY  WRITE " + waiting) == 4)
    leave.set()
    for thread in threads:
        thread.join()
    assert errors == ["404"] * 5
    assert len(site.requests) == 1


HOLDER = """
import sys
from atoll.storage.downloads.download import Downloads, Request
from atoll.storage.downloads.http import Origin
print(Downloads(sys.argv[1]).get(Origin(sys.argv[2]), Request("file")).size)
"""


def test_who_waits_takes_over_from_a_killed_holder(site: Site, volume: Path) -> None:
    """When the process that downloads is killed, one that waits goes on behind what has arrived."""
    halfway, over = threading.Event(), threading.Event()

    def stall(handler: Any) -> None:
        site.head(handler, 200, {}, len(CONTENT))
        handler.wfile.write(CONTENT[:500_000])
        halfway.set()
        over.wait(120.0)

    site.scripts = [stall]
    command = [sys.executable, "-c", HOLDER, str(volume), site.url()]
    first = subprocess.Popen(command, stdout=subprocess.PIPE)
    halfway.wait(120.0)
    second = subprocess.Popen(command, stdout=subprocess.PIPE)
    until(lambda: f"-> FLOCK  ADVISORY  WRITE {second.pid} ".encode() in Path("/proc/locks").read_bytes())
    assert len(site.requests) == 1
    part = next(path for path in notes(volume) if path.suffix == ".part")
    until(lambda: part.stat().st_size)  # the content was sent, and may not be written yet
    arrived = part.stat().st_size
    first.kill()
    first.communicate()
    over.set()
    assert second.communicate(timeout=120)[0] == b"%d\n" % len(CONTENT)
    assert int(site.requests[1][1]["Range"].removeprefix("bytes=").removesuffix("-")) >= arrived
    assert (volume / "file").read_bytes() == CONTENT


def test_a_part_that_somebody_changes_is_received_again(site: Site, volume: Path) -> None:
    """Where locks do not hold and another one cuts the part, what arrived is not taken for whole."""

    def cutting(handler: Any) -> None:
        site.head(handler, 200, {}, len(CONTENT))
        handler.wfile.write(CONTENT[:-10])
        (part,) = [path for path in notes(volume) if path.suffix == ".part"]
        until(lambda: part.stat().st_size >= len(CONTENT) - 10)
        os.truncate(part, 5)
        handler.wfile.write(CONTENT[-10:])

    site.scripts = [cutting]
    assert get(volume, site).digests == {"sha256": SHA256}
    assert (volume / "place/file").read_bytes() == CONTENT
    assert len(site.requests) == 2


def tls(tmp_path: Path) -> tuple[Path, Path]:
    """Make a certificate of 127.0.0.1 that nobody trusts; return it and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    if shutil.which("openssl") is None:
        pytest.skip("needs `openssl`")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_certificates_are_checked(volume: Path, tmp_path: Path) -> None:
    """A server whose certificate nobody has vouched for is refused at once; one of the given bundle is believed."""
    certificate, key = tls(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(Site(), context) as site:
        url = site.url().replace("http:", "https:")
        with pytest.raises(DownloadError, match="not trusted") as caught:
            get(volume, site, url=url)
        assert "SSL_CERT_FILE" in caught.value.hint
        assert not site.requests
        assert get(volume, site, url=url, certificates=certificate.read_text()).size == len(CONTENT)
        with serving(Site()) as plain:
            site.scripts = [site.status(302, {"Location": plain.url()})] * 2
            with pytest.raises(DownloadError, match="anybody on the way"):
                get(volume, site, url=url, certificates=certificate.read_text(), force=True)
            assert not plain.requests
            digest = hashlib.sha256(b"other").hexdigest()
            plain.content = b"other"
            assert get(volume, site, digest, url=url, certificates=certificate.read_text()).size == 5


def test_proxies_are_those_of_the_environment(site: Site, volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request goes to the proxy that the environment names, unless `no_proxy` leaves its host out."""
    monkeypatch.setenv("http_proxy", f"http://{site.address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert get(volume, site, url="http://files.example/x").size == len(CONTENT)
    assert site.requests[0][0] == "http://files.example/x"
    assert site.requests[0][1]["Host"] == "files.example"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(volume, site, path="direct").size == len(CONTENT)
    assert site.requests[1][0] == "/dir/file.bin"


@pytest.mark.root
def test_a_full_disk_is_named_and_not_left_full(site: Site, tmp_path: Path) -> None:
    """When the disk fills up while a file comes whose size was not told, it is `DiskFull`, and the part goes."""

    def unannounced(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(bytes(4 << 20))
        handler.close_connection = True

    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)], check=True)
    try:
        site.scripts = [unannounced]
        with pytest.raises(DiskFull, match="the volume's disk is full"):
            get(mount, site)
        assert os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize > 1 << 20
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b.bin", "b.bin"),
        ("http://h/a/b%20c.bin?x=/y", "b c.bin"),
        ("http://h/..%2f..%2fetc", ".._.._etc"),
        ("http://h/%00%0a", "__"),
        ("http://h/..", "download"),
        ("http://h/", "download"),
        ("http://h", "download"),
        ("http://h/" + "é" * 300 + ".pt", "é" * 98 + ".pt"),
    ],
)
def test_names_are_names(url: str, name: str) -> None:
    """The last part of an address becomes a name that is one, of at most 200 bytes, with its suffix."""
    assert file_name(url) == name


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://h/x", "http:///x", "http://h:x/", "http://h/a b", "http://h/\n", "file://other/x", "data:,x"],
)
def test_malformed_addresses_are_value_errors(url: str) -> None:
    """What is no address of a known kind is refused before anything is done."""
    with pytest.raises(ValueError, match="`"):
        Origin(url)


def test_without_a_network_the_error_says_so(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sandbox with no network but its own loopback the reason and the way out are named."""
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match="no network") as caught:
            Downloads(str(volume)).get(Origin(url), Request("x"))
    assert 'network="outbound"' in caught.value.hint
