"""Uploads in parts at a storage peer: bytes at offsets, which become a file in one step or none."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import linux
from atoll.errors import DiskFull, SyncError
from atoll.storage.client.volume import VolumeClient
from atoll.storage.peer import parts
from atoll.storage.sync.cleanup import collect
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel

from ..volumes import serving

pytestmark = pytest.mark.as_user


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume's directory."""
    path = tmp_path / "volume"
    path.mkdir()
    return path


@pytest.fixture
def client(volume: Path) -> Iterator[VolumeClient]:
    """A client whose peer is a thread."""
    with serving(volume) as sock, VolumeClient(Channel(sock)) as made:
        yield made


def ask(client: VolumeClient, kind: str, *content: bytes, upload: str = "u", **arguments: Any) -> dict[str, Any]:
    """Make a request for an upload to `d/f`."""
    return client.connection.ask(kind, "d/f", {"upload": upload, **arguments}, list(content)).header


def staged(volume: Path) -> list[str]:
    """Return the names of unfinished uploads."""
    return [name for name in os.listdir(volume / "staging") if name.startswith("parts-")]


def test_bytes_at_offsets_become_a_file(client: VolumeClient, volume: Path) -> None:
    """What was written beyond the end is cut off; the sum covers content and suffix; nothing is written afterwards."""
    ask(client, "parts_begin")
    with pytest.raises(FileExistsError):
        ask(client, "parts_begin")
    ask(client, "parts_write", b"6789", b"beyond", offset=6)
    ask(client, "parts_write", b"012", b"345", offset=0)
    with pytest.raises(OSError, match="missing"):
        ask(client, "parts_end", size=100)
    assert not (volume / "data" / "d").exists()
    wanted = hashlib.sha256(b"0123456789end").hexdigest()
    answer = ask(client, "parts_end", size=10, sum="sha256", suffix="", wanted=wanted)
    assert "status" not in answer
    assert not (volume / "data" / "d").exists()
    answer = ask(client, "parts_end", size=10, sum="sha256", suffix="end", wanted=wanted, mode=0o640)
    assert (answer["sum"], (volume / "data" / "d" / "f").read_bytes()) == (wanted, b"0123456789")
    assert (volume / "data" / "d" / "f").stat().st_mode & 0o777 == 0o640
    late: dict[str, dict[str, Any]] = {"parts_write": {"offset": 0}, "parts_end": {"size": 0}, "parts_drop": {}}
    for kind, more in late.items():
        with pytest.raises(FileNotFoundError):
            ask(client, kind, **more)
    assert staged(volume) == []


def test_a_sum_that_is_unknown_is_refused(client: VolumeClient) -> None:
    """Names of sums that no client asks for, and numbers that are none, are errors; the upload stays."""
    ask(client, "parts_begin")
    ask(client, "parts_write", b"x", offset=0)
    with pytest.raises(SyncError, match="unknown sum"):
        ask(client, "parts_end", size=1, sum="sha1")
    for bad in (-1, "x", 1 << 70):
        with pytest.raises((OSError, SyncError)):
            ask(client, "parts_write", b"x", offset=bad)
    assert ask(client, "parts_end", size=1, sum="md5")["sum"] == hashlib.md5(b"x").hexdigest()


def test_a_full_disk_is_named_and_the_rest_can_be_sent(client: VolumeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that finds no room is a full disk by name; what came before stays, and it can be sent again."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ask(client, "parts_begin")
    ask(client, "parts_write", b"01", offset=0)
    with monkeypatch.context() as patch:
        patch.setattr(linux, "write_all", full)
        with pytest.raises(DiskFull):
            ask(client, "parts_write", b"23", offset=2)
    ask(client, "parts_write", b"23", offset=2)
    ask(client, "parts_end", size=4)
    assert client.read_bytes("d/f") == b"0123"


def test_unfinished_uploads_are_bounded_and_removed(client: VolumeClient, volume: Path) -> None:
    """There are so many at most; one to which nobody has written for a day is removed, and a younger one stays."""
    for number in range(parts.MOST_UPLOADS):
        ask(client, "parts_begin", upload=f"u{number}")
    with pytest.raises(OSError, match="too many uploads"):
        ask(client, "parts_begin", upload="more")
    ask(client, "parts_drop", upload="u0")
    first, *rest = staged(volume)
    for name in rest:
        os.utime(volume / "staging" / name, (time.time() - 25 * 3600,) * 2)
    with VolumeRoot(str(volume)) as root:
        collect(root)
    assert staged(volume) == [first]
