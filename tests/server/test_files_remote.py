"""`/data` of a server from a client: directories, volumes and addresses over lines, as on the local host."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.errors import SyncError
from atoll.host.remote.remote_host import Host
from atoll.sdk.data.sync import arrange
from atoll.sdk.data.volume import Volume

from .forwarder import Forwarder
from .process import Server


@pytest.fixture(scope="module")
def host(server: Server) -> Iterator[Host]:
    """The server as a host of functions."""
    made = host_at(server, server.port)
    yield made
    made.close()


def host_at(server: Server, port: int) -> Host:
    """Return the server as a host, by a port that leads to it."""
    key_id, secret = server.key
    return Host(f"https://127.0.0.1:{port}", key_id=key_id, key_secret=secret, ca_file=str(server.ca_file))


@pytest.fixture
def name() -> str:
    """The name of a directory that no other test uses."""
    return f"remote-{secrets.token_hex(4)}"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with files of several kinds; a client's state directory of its own."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    made = tmp_path / "source"
    (made / "deep/er").mkdir(parents=True)
    for number in range(200):
        (made / f"deep/file{number}").write_text(f"{number} " * number)
    (made / "deep/er/large").write_bytes(os.urandom(3 << 20))
    (made / "odd \udcff name").write_bytes(b"odd")
    os.symlink("deep/file1", made / "link")
    return made


def found_in(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory with their contents."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_directory_is_mirrored(host: Host, source: Path, tmp_path: Path, name: str) -> None:
    """A sync to a server makes a mirror there; the next one sends what has changed alone."""
    first = arrange(source, name, host=host).run()
    assert first.sent == 202
    assert arrange(source, name, host=host).run().sent == 0
    (source / "deep/file7").write_text("changed")
    (source / "deep/file8").unlink()
    assert arrange(source, name, host=host).run().sent == 1
    with Volume(host) as volume:
        volume.get(f"/data/sync/{name}", tmp_path / "back")
        volume.remove(f"/data/sync/{name}", recursive=True)
    assert found_in(tmp_path / "back") == found_in(source)
    assert os.readlink(tmp_path / "back/link") == "deep/file1"


def test_an_index_belongs_to_a_server_and_a_key(server: Server, host: Host, source: Path) -> None:
    """No client takes the state of one server, or of one user there, for another's."""
    key_id, secret = server.key
    others: list[Any] = [
        Host(server.url.replace("127.0.0.1", "localhost"), key_id=key_id, key_secret=secret),
        Host(server.url, key_id="other", key_secret=secret),
        atoll.local,
    ]
    paths = {str(arrange(source, "x", host=one).options.index) for one in (host, *others)}
    assert len(paths) == 4


def test_a_cut_connection_goes_on(server: Server, source: Path, tmp_path: Path, name: str) -> None:
    """A sync whose connection breaks in the middle ends as if it had not, and sends little twice."""
    (source / "more").write_bytes(os.urandom(8 << 20))
    with Forwarder(server.port) as forwarder:
        host = host_at(server, forwarder.port)
        forwarder.cut_after = 5 << 20
        arrange(source, name, host=host).run()
        assert forwarder.connections == 2
        assert forwarder.up < 17 << 20
        with Volume(host) as volume:
            volume.get(f"/data/sync/{name}", tmp_path / "back")
            volume.remove(f"/data/sync/{name}", recursive=True)
        host.close()
    assert found_in(tmp_path / "back") == found_in(source)


def test_text_travels_compressed(server: Server, tmp_path: Path, source: Path, name: str) -> None:
    """Contents that compress well take a fraction of their bytes on the way."""
    for number in range(20):
        (source / f"text{number}").write_text(f"line {number}\n" * 50_000)
    with Forwarder(server.port) as forwarder:
        host = host_at(server, forwarder.port)
        done = arrange(source, name, host=host).run()
        with Volume(host) as volume:
            volume.remove(f"/data/sync/{name}", recursive=True)
        host.close()
        assert done.sent_bytes > 10_000_000
        assert forwarder.up < 5 << 20


def test_a_volume_is_used_as_a_local_one(host: Host, name: str) -> None:
    """Every request on a volume gives what it gives on this machine, errors included."""
    with Volume(host) as volume:
        where = f"/data/{name}"
        volume.write_text(f"{where}/a/b.txt", "héllo")
        assert volume.read_text(f"{where}/a/b.txt") == "héllo"
        with volume.open(f"{where}/a/b.txt", "a") as file:
            file.write(" more")
        assert volume.read_bytes(f"{where}/a/b.txt", 1, 2) == "é".encode()
        assert volume.listdir(f"{where}/a") == ["b.txt"]
        volume.rename(f"{where}/a", f"{where}/c")
        volume.copy(f"{where}/c", f"{where}/d")
        assert [one for one, _ in volume.find(where)] == ["c", "d", "c/b.txt", "d/b.txt"]
        assert volume.usage(where).files == 2
        with pytest.raises(FileNotFoundError, match=f"{where}/none"):
            volume.read_bytes(f"{where}/none")
        with pytest.raises(IsADirectoryError):
            volume.write_bytes(f"{where}/c", b"")
        with pytest.raises(SyncError, match="not for this client"):
            volume._ask("collect", "", {})
        snapshot = volume.snapshot(path=where)
        volume.remove(where, recursive=True)
        assert volume.read_text(f"/data/.snapshots/{snapshot.name}/c/b.txt") == "héllo more"
        volume.remove_snapshot(snapshot.name)


def test_peers_are_used_again(host: Host, name: str) -> None:
    """The next volume of a program begins with the peer of the last one."""
    with Volume(host) as volume:
        volume.mkdir(name)
    channel = host.open_storage()
    host.keep_storage(channel)
    assert host.open_storage() is channel
    host.keep_storage(channel)
    with Volume(host) as volume:
        volume.remove(name)


_OTHER_PLATFORM = """
import os, select, socket, sys, _socket
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix_ipc"):
    sys.modules[name] = None
for module, names in {
    select: ("poll", "epoll"),
    socket: ("AF_UNIX", "SCM_RIGHTS", "CMSG_SPACE", "CMSG_LEN"),
    _socket: ("AF_UNIX", "SCM_RIGHTS", "CMSG_SPACE", "CMSG_LEN", "MSG_CMSG_CLOEXEC"),
    os: ("fork", "getuid", "geteuid", "getgid", "getegid", "pidfd_open", "memfd_create", "register_at_fork", "O_PATH",
         "sched_getaffinity", "posix_fadvise", "copy_file_range", "sendfile", "splice", "eventfd"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
import atoll, atoll.ownership
from atoll.host.remote.remote_host import Host
atoll.ownership.CHECKED = False  # as it is on those platforms
url, key_id, secret, ca_file, source, name, back = sys.argv[1:]
host = Host(url, key_id=key_id, key_secret=secret, ca_file=ca_file)
atoll.sync_dir(source, name, host=host)
atoll.sync_dir(source, name, host=host)
with atoll.Volume(host) as volume:
    volume.get(f"/data/sync/{name}", back)
    volume.put(source + "/deep/er/large", f"/data/sync/{name}/again")
    volume.remove(f"/data/sync/{name}", recursive=True)
host.close()
"""


def test_a_client_needs_nothing_of_linux(server: Server, source: Path, tmp_path: Path, name: str) -> None:
    """A program on a platform without Unix sockets, uids, `poll` and file locks syncs and copies."""
    arguments = [server.url, *server.key, str(server.ca_file), str(source), name, str(tmp_path / "back")]
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PLATFORM, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert found_in(tmp_path / "back") == found_in(source)


def test_the_command_line_works_on_a_server(server: Server, host: Host, source: Path, name: str) -> None:
    """`atoll data` works on the volume of the server that `--host` names, or that the environment does."""
    key_id, secret = server.key
    env = {
        "ATOLL_KEY_ID": key_id,
        "ATOLL_KEY_SECRET": secret,
        "ATOLL_CA_FILE": str(server.ca_file),
        "ATOLL_HOME": os.environ["ATOLL_HOME"],
    }
    server.home.atoll("data", "sync", "--host", server.url, str(source), name, env=env)
    shown = server.home.atoll("data", "cat", f"--host={server.url}", f"/data/sync/{name}/deep/file3", env=env)
    assert shown.stdout == "3 3 3 "
    named = {**env, "ATOLL_HOST": server.url}
    server.home.atoll("data", "rm", "-r", "--yes", f"/data/sync/{name}/deep", env=named)
    with Volume(host) as volume:
        assert volume.listdir(f"/data/sync/{name}") == ["link", "odd \udcff name"]
        volume.remove(f"/data/sync/{name}", recursive=True)
    wrong = server.home.atoll("data", "ls", "--host", "not an address", env=env, check=False)
    assert wrong.returncode in (1, 2)
    assert "Traceback" not in wrong.stderr
