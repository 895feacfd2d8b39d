"""`download` from functions and from a program, with a real server and real workers."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
import fal_serverless
from atoll import errors, isolated

from ..conftest import Home
from ..unit.test_storage_downloads import CONTENT, SHA256, Site, serving, tls
from ..waiting import until

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of one file."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Site()) as made:
        yield made


@isolated(network="host")
def fetch(url: str, **options: Any) -> tuple[str, str, int]:
    path = atoll.download(url, **options)
    with open(path, "rb") as file:
        return path, hashlib.sha256(file.read()).hexdigest(), os.getpid()


@isolated(network="none")
def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def test_twenty_workers_download_once(atoll_home: Home, site: Site) -> None:
    """Twenty workers that ask at the same time share one download, and need no network the next day."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 20\n")
    notes = atoll_home.path / "volumes/local/data/.cache/atoll/downloads/.notes"
    entered, waiting = threading.Event(), threading.Event()

    def slow(handler: Any) -> None:
        entered.set()
        waiting.wait(120.0)
        site.answer(handler)

    site.scripts = [slow]
    futures = [fetch.submit(site.url(), sha256=SHA256) for _ in range(20)]
    entered.wait(120.0)
    (note,) = notes.glob("*.json")
    line = re.compile(rf"-> FLOCK +ADVISORY +WRITE +\d+ \S+:{note.stat().st_ino} ")
    until(lambda: len(line.findall(Path("/proc/locks").read_text())) >= 19)
    waiting.set()
    found = [future.result() for future in futures]
    assert {(path, digest) for path, digest, _ in found} == {(found[0][0], SHA256)}
    assert found[0][0].startswith("/data/.cache/atoll/downloads/127.0.0.1-")
    assert len(site.requests) == 1
    offline = isolated(network="none")(atoll.download)
    assert offline(site.url()) == found[0][0]
    with pytest.raises(errors.DownloadError, match="no network"):
        offline(site.url("/other"))
    assert len(site.requests) == 1


def test_a_killed_worker_leaves_what_arrived(site: Site) -> None:
    """After SIGKILL in the middle, the next call goes on behind it."""
    halfway, over = threading.Event(), threading.Event()

    def stall(handler: Any) -> None:
        site.head(handler, 200, {}, len(CONTENT))
        handler.wfile.write(CONTENT[:500_000])
        halfway.set()
        over.wait(120.0)

    @isolated(network="host")
    def die(url: str) -> None:
        import glob

        def watch() -> None:
            parts = "/data/.cache/atoll/downloads/.notes/*.part"
            while not any(os.path.getsize(path) >= 100_000 for path in glob.glob(parts)):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch).start()
        atoll.download(url, path="killed.bin")

    site.scripts = [stall]
    with pytest.raises(errors.WorkerDied):
        die(site.url())
    over.set()
    assert fetch(site.url(), path="killed.bin")[:2] == ("/data/killed.bin", SHA256)
    assert int(site.requests[1][1]["Range"].removeprefix("bytes=").removesuffix("-")) >= 100_000


def test_a_program_downloads_to_the_volume(site: Site) -> None:
    """In the caller's process the file lands on the volume, by the same path, with the same errors."""
    path = atoll.download(site.url(), path="/data/own/place.bin", network="host", headers={"X-Key": "k"})
    assert path == "/data/own/place.bin"
    assert site.requests[0][1]["X-Key"] == "k"
    assert read(path) == CONTENT
    assert fetch(site.url(), path=path)[0] == path
    assert len(site.requests) == 1
    with pytest.raises(errors.ChecksumMismatch) as caught:
        atoll.download(site.url(), "0" * 64, path=path, network="host")
    assert caught.value.found == SHA256
    site.scripts = [site.status(404)]
    with pytest.raises(errors.DownloadError) as failed:
        atoll.download(site.url("/missing"), network="host")
    assert failed.value.status == 404
    assert read(path) == CONTENT


def test_the_callers_proxy_and_certificates_count(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program trusts and goes through holds for its downloads, though a function makes them."""
    certificate, key = tls(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(Site(), context) as secure:
        url = secure.url().replace("http:", "https:")
        with pytest.raises(errors.DownloadError, match="not trusted"):
            atoll.download(url, network="host")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert read(atoll.download(url, network="host")) == CONTENT
    monkeypatch.setenv("http_proxy", f"http://{site.address}")
    assert read(atoll.download("http://files.example/proxied.bin", network="host")) == CONTENT
    assert site.requests[0][0] == "http://files.example/proxied.bin"


def test_files_of_the_caller_are_uploaded(tmp_path: Path) -> None:
    """A `file:` address in a program is one of its own machine; it travels once."""
    source = tmp_path / "weights.bin"
    source.write_bytes(CONTENT)
    path = atoll.download(source.as_uri(), SHA256, path="from-home.bin")
    before = isolated(os.stat)(path)
    assert atoll.download(source.as_uri(), path="from-home.bin") == path
    assert isolated(os.stat)(path).st_ino == before.st_ino
    assert read(path) == CONTENT
    source.write_bytes(b"new")
    assert read(atoll.download(source.as_uri(), path="from-home.bin")) == b"new"
    with pytest.raises(errors.ChecksumMismatch):
        atoll.download(source.as_uri(), "0" * 64, path="from-home.bin")
    with pytest.raises(errors.DownloadError, match="no file"):
        atoll.download((tmp_path / "none").as_uri())


def test_programs_for_fal_serverless_find_their_names(site: Site) -> None:
    """`download_file` and `download_weights` give a path that is also what that package gave."""

    @isolated(network="host")
    def load(url: str) -> tuple[Any, Any, Any]:
        placed = fal_serverless.download_file(
            url, "/data/models/own.bin", checksum_md5=hashlib.md5(CONTENT).hexdigest()
        )
        below = fal_serverless.download_file(url, target_dir="models/deep")
        return placed, below, fal_serverless.download_weights(url, SHA256)

    placed, below, weights = load(site.url("/d/file.bin"))
    assert (str(placed), str(below)) == ("/data/models/own.bin", "/data/models/deep/file.bin")
    assert str(weights) == "/data/.fal/downloads/" + hashlib.sha256(site.url("/d/file.bin").encode()).hexdigest()
    for file in (placed, below, weights):
        assert (file.path, file.size, file.checksum_sha256) == (file, len(CONTENT), SHA256)
    assert placed.checksum_md5 == hashlib.md5(CONTENT).hexdigest()
    assert str(below.parent / "x") == "/data/models/deep/x"
    assert read(str(weights)) == CONTENT


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/etc/passwd"},
        {"path": "../x"},
        {"path": "directory/"},
        {"sha256": "abc"},
        {"headers": {"A": "b\r\nC: d"}},
        {"headers": {"Range": "bytes=0-"}},
        {"timeout": 0},
        {"max_bytes": -1},
    ],
)
def test_wrong_arguments_are_refused_before_a_call(options: dict[str, Any]) -> None:
    """What is out of range is a `ValueError` where it was given."""
    with pytest.raises(ValueError, match=r"`|digits|headers"):
        atoll.download("http://127.0.0.1:9/x", **options)


PROGRAM = """
import atoll, sys
print(atoll.download(sys.argv[1], network="host"))
"""


def test_a_terminal_shows_how_far_it_is(shared_home: Home, site: Site) -> None:
    """On the caller's terminal one line shows bytes and rate, and goes when the file is there."""
    import subprocess

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, site.url("/shown.bin")]
    environment = shared_home.environment({"TERM": "xterm"})
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # EIO: the last one has closed the terminal
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    assert b"\rdownloading shown.bin: " in shown
    assert b"/shown.bin\r\n" in shown.rpartition(b"\x1b[K")[2]
