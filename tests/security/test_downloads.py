"""Hostile servers of downloads: redirects that lead elsewhere or never end, secrets, and names."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import DownloadError
from atoll.storage.downloads import redirects

from ..unit.test_storage_downloads import CONTENT, Site, get, notes, serving

LARGE = 64 << 20
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of one file."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving(Site()) as made:
        yield made


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory that stands for `/data`."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def metadata(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server at another address of the loopback device, which stands for the machine's own ones."""
    bind = HTTPServer.server_bind

    def elsewhere(self: HTTPServer) -> None:
        self.server_address = ("127.0.0.2", 0)
        bind(self)

    monkeypatch.setattr(HTTPServer, "server_bind", elsewhere)
    monkeypatch.setattr(redirects, "NEAR_NETWORKS", (ipaddress.ip_network("127.0.0.2/32"),))
    with serving(Site(content=b"credentials")) as made:
        made.address = made.address.replace("127.0.0.1", "127.0.0.2")
        yield made


def test_the_body_of_a_redirect_is_not_read(site: Site, volume: Path) -> None:
    """A redirect with a body of any length costs neither memory nor time."""
    sent = 0

    def endless(handler: Any) -> None:
        nonlocal sent
        site.head(handler, 302, {"Location": site.url()}, LARGE)
        while sent < LARGE:
            handler.wfile.write(bytes(1 << 20))
            sent += 1 << 20

    site.scripts = [endless]
    assert get(volume, site).size == len(CONTENT)
    assert sent < LARGE // 2, "the client has taken it"


@pytest.mark.parametrize("user", ["", "me:secret@"])
def test_a_redirect_does_not_lead_to_the_machine_itself(site: Site, metadata: Site, volume: Path, user: str) -> None:
    """From elsewhere no redirect leads to loopback or metadata services; who names them is served."""
    target = metadata.url("/x?token=secret").replace("http://", f"http://{user}")
    site.scripts = [site.status(302, {"Location": "/again"}), site.status(302, {"Location": target})]
    with pytest.raises(DownloadError, match="this machine") as caught:
        get(volume, site)
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    assert metadata.requests == []
    assert not (volume / "place").exists()
    metadata.scripts = [metadata.status(302, {"Location": "/again"})]
    assert get(volume, metadata).size == len(b"credentials")


def test_the_machines_addresses_are_told_from_others() -> None:
    """Loopback, link-local addresses and the metadata services are near, spelled in any way; others are not."""
    near = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "169.254.169.254", "fe80::1%eth0", "::ffff:127.0.0.1"]
    near += ["fd00:ec2::254", "100.100.100.200", "168.63.129.16", "::ffff:a9fe:a9fe", "fd20:ce::254"]
    assert [address for address in near if not redirects.is_near(address)] == []
    far = ["203.0.113.9", "10.0.0.1", "192.168.1.1", "2001:db8::1", "::ffff:203.0.113.9", "fd00::1"]
    assert [address for address in far if redirects.is_near(address)] == []


@pytest.mark.parametrize(
    "target",
    [
        "gopher://elsewhere.example/x?signature=secret",
        "FILE:///etc/passwd?signature=secret",
        "javascript:secret",
        "http://[::1?signature=secret",
        "http://elsewhere.example:x/?signature=secret",
        "http:///no-host?signature=secret",
        "http://\\127.0.0.1/?signature=secret",
        "//[bad/?signature=secret",
    ],
)
def test_a_useless_redirect_is_named_without_its_query(site: Site, volume: Path, target: str) -> None:
    """Whatever a `Location` says, the error is one of downloads, and has nothing of the query."""
    site.scripts = [site.status(302, {"Location": target})] * 10
    with pytest.raises(DownloadError) as caught:
        get(volume, site, url=site.url("/dir/file.bin?signature=secret"))
    assert "secret" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert not (volume / "place").exists()


def test_no_secret_follows_a_redirect(site: Site, volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a redirect's own user nor the proxy's reaches another host; nor the caller's, back from one."""
    with serving(Site()) as proxy, serving(Site()) as other:
        monkeypatch.setenv("http_proxy", f"http://me:secret@{proxy.address}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(redirects, "NEAR_NETWORKS", ())  # the test's servers are at loopback
        proxy.scripts = [site.status(302, {"Location": other.url().replace("http://", "http://you:secret@")})]
        other.scripts = [site.status(302, {"Location": site.url()})]
        get(volume, site, url="http://files.example/x", headers={"X-Token": "secret"})
        ((_, asked),) = proxy.requests
        assert asked["Proxy-Authorization"]
        seen = [headers for _, headers in (*other.requests, *site.requests)]
        assert len(seen) == 2
        assert not [headers for headers in seen if {"Authorization", "Proxy-Authorization", "X-Token"} & set(headers)]


def test_a_server_names_no_file(site: Site, volume: Path) -> None:
    """The headers of an answer decide nothing about the place of the file."""

    def named(handler: Any) -> None:
        disposition = "attachment; filename=\"../../planted\"; filename*=UTF-8''..%2F..%2Fplanted"
        site.head(handler, 200, {"Content-Disposition": disposition, "Content-Location": "/../planted"}, len(CONTENT))
        handler.wfile.write(CONTENT)

    site.scripts = [named]
    kept = get(volume, site)
    assert kept.path == "place/file"
    assert list(volume.parent.rglob("planted*")) == []
    assert sorted(path.name for path in volume.iterdir()) == [".cache", "place"]


@pytest.mark.parametrize("name", ["part", "json"])
def test_a_download_writes_through_no_planted_link(site: Site, volume: Path, tmp_path: Path, name: str) -> None:
    """A link that another function has put in the place of the part or the note leads to no file of this sandbox."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    get(volume, site)
    (note,) = notes(volume)
    planted = note.with_suffix(f".{name}")
    planted.unlink(missing_ok=True)
    planted.symlink_to(victim)
    with pytest.raises(DownloadError):
        get(volume, site, force=True)
    assert victim.read_text() == "kept"
    assert (volume / "place/file").read_bytes() == CONTENT
    planted.unlink()
    assert get(volume, site, force=True).size == len(CONTENT)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
@pytest.mark.parametrize("name", ["part", "json"])
def test_a_download_waits_for_no_planted_special_file(site: Site, volume: Path, name: str, kind: int) -> None:
    """Fifos, sockets and directories in the place of the part or the note are named errors, at once."""
    get(volume, site)
    (note,) = notes(volume)
    planted = note.with_suffix(f".{name}")
    planted.unlink(missing_ok=True)
    planted.mkdir() if kind == stat.S_IFDIR else os.mknod(planted, kind | 0o600)
    with pytest.raises(DownloadError):
        get(volume, site, force=True)
    assert (volume / "place/file").read_bytes() == CONTENT
