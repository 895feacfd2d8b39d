"""What comes out of a volume stays where its owner wanted it, whatever a function made of the volume."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import SyncError
from atoll.storage.client import local_target
from atoll.storage.client.get import Download
from atoll.storage.client.local_target import Destination, holds_name
from atoll.storage.client.volume import VolumeClient
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Entry, Tree
from atoll.wire.channel import Channel
from atoll.wire.frames import Message

from ..volumes import serving

pytestmark = pytest.mark.as_user

CONTENT = b"planted"
A_FILE = Entry(FILE, 0o640, len(CONTENT), 1_000_000_000)
A_DIRECTORY = Entry(DIRECTORY, 0o750, 0, 2_000_000_000)


@pytest.fixture(params=["by descriptor", "by path"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of reaching a local file; the second is what a platform without `openat` has."""
    if request.param == "by path":
        monkeypatch.setattr(local_target, "_BY_DESCRIPTOR", False)
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What functions see as `/data`."""
    path = tmp_path / "volume/data"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def client(data: Path) -> Iterator[VolumeClient]:
    """A client whose peer is a thread."""
    with serving(data.parent) as sock, VolumeClient(Channel(sock)) as made:
        yield made


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory that nothing may be written to, with a file whose content must stay; neither may change."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "kept").write_text("mine")
    (path / "kept").chmod(0o600)
    path.chmod(0o711)
    os.utime(path / "kept", ns=(5, 5))
    os.utime(path, ns=(5, 5))
    return path


def untouched(victim: Path) -> bool:
    """Whether names, content, modes and times are as `victim` made them."""
    found = [(stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns) for path in (victim, victim / "kept")]
    return found == [(0o711, 5), (0o600, 5)] and os.listdir(victim) == ["kept"] and _text(victim / "kept") == "mine"


def _text(path: Path) -> str:
    return path.read_text()


def run(root: Path | str, tree: Tree, files: dict[int, Any] | None = None) -> Download:
    """Download a tree; each of its files has the same content."""
    paths = [path for path, entry in tree.items() if entry.kind == FILE]
    download = Download(str(root), tree)
    try:
        download.make_directories()
        for number, path in enumerate(paths):
            entry = tree[path]
            item = [number, entry.mode, entry.mtime_ns]
            download.receive(paths, Message({"type": "files", "items": [item]}, [bytearray(CONTENT)]))
        download.finish()
    finally:
        download.close()
    return download


@pytest.mark.usefixtures("way")
def test_a_planted_symlink_does_not_lead_the_next_copy_elsewhere(
    client: VolumeClient, data: Path, victim: Path, tmp_path: Path
) -> None:
    """A link that one copy brought is replaced when the volume has a directory or a file of that name later."""
    (data / "res/deep").mkdir(parents=True)
    links = {"logs": victim, "deep/logs": victim, "file": victim / "kept", "gone": Path("/nowhere/x")}
    for link, target in links.items():
        (data / "res" / link).symlink_to(target)
    out = tmp_path / "out"
    client.get("res", str(out))
    assert os.readlink(out / "logs") == str(victim)

    shutil.rmtree(data / "res")
    for directory in ("logs/below", "deep/logs", "gone"):
        (data / "res" / directory).mkdir(parents=True)
        (data / "res" / directory / "authorized_keys").write_bytes(CONTENT)
    (data / "res/file").write_bytes(CONTENT)
    (data / "res/logs").chmod(0o755)
    client.get("res", str(out))

    assert untouched(victim)
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    for name in ("logs/below/authorized_keys", "deep/logs/authorized_keys", "gone/authorized_keys", "file"):
        assert (out / name).read_bytes() == CONTENT
    assert stat.S_IMODE((out / "logs").stat().st_mode) == 0o755
    assert (out / "logs").stat().st_mtime_ns == (data / "res/logs").stat().st_mtime_ns


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", [DIRECTORY, FILE])
def test_a_symlink_at_the_place_itself_is_replaced(
    client: VolumeClient, data: Path, victim: Path, tmp_path: Path, kind: str
) -> None:
    """The place that is named may have come from an earlier copy as well, so a link there is not followed."""
    if kind == DIRECTORY:
        (data / "logs").mkdir()
        (data / "logs/authorized_keys").write_bytes(CONTENT)
    else:
        (data / "logs").write_bytes(CONTENT)
    (tmp_path / "logs").symlink_to(victim if kind == DIRECTORY else victim / "kept")
    client.get("logs", str(tmp_path / "logs"))
    assert untouched(victim)
    assert not (tmp_path / "logs").is_symlink()


@pytest.mark.usefixtures("way")
def test_symlinks_in_the_owners_own_words_are_followed(
    client: VolumeClient, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link in the path that leads to the place counts, and so does one at its end with a separator behind it."""
    (data / "tree").mkdir()
    (data / "tree/file").write_bytes(CONTENT)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    client.get("tree", str(tmp_path / "link/tree"))
    client.get("tree", f"{tmp_path}/link/")
    client.get("tree/file", str(tmp_path / "link/alone"))
    client.get("tree", f"{tmp_path}/new/")
    assert sorted(os.listdir(tmp_path / "real")) == ["alone", "file", "tree"]
    assert os.listdir(tmp_path / "new") == ["file"]
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "new")
    client.get("tree", "here")
    client.get("tree/file", "one")
    client.get("tree", os.curdir)
    assert sorted(os.listdir(os.curdir)) == ["file", "here", "one"]


@pytest.mark.usefixtures("way")
def test_a_directory_that_becomes_a_symlink_meanwhile_is_not_entered(victim: Path, tmp_path: Path) -> None:
    """Neither contents, nor symlinks, nor modes and times go through a link that appears during a copy."""
    tree = {
        "": A_DIRECTORY,
        "d": A_DIRECTORY,
        "d/e": A_DIRECTORY,
        "d/f": A_FILE,
        "d/kept": Entry(SYMLINK, 0, 0, 1, "x"),
        "z": A_DIRECTORY,
        "z/last": A_DIRECTORY,
    }
    out = tmp_path / "out"
    message = Message({"type": "files", "items": [[0, 0o644, 1]]}, [bytearray(CONTENT)])
    download = Download(str(out), tree)
    download.make_directories()
    (out / "d").rename(out / "was")
    (out / "d").symlink_to(victim)
    with pytest.raises(NotADirectoryError, match="out/d/f"):
        download.receive(["d/f"], message)
    with pytest.raises(NotADirectoryError):
        download.finish()
    del tree["d/kept"]
    with pytest.raises(NotADirectoryError):
        download.finish()
    (out / "d/").unlink()
    (out / "was").rename(out / "d")
    (out / "d/e").rmdir()
    (out / "d/e").symlink_to(victim)
    with pytest.raises(NotADirectoryError):
        download.finish()
    download.close()
    assert untouched(victim)


@pytest.mark.usefixtures("way")
def test_what_the_owner_has_is_not_replaced_by_another_kind(tmp_path: Path) -> None:
    """A file where a directory comes, and a directory where a file or symlink comes, stay, and the path is named."""
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "f").write_text("mine")
    for name, entry in (("f", A_DIRECTORY), ("d", A_FILE), ("d", Entry(SYMLINK, 0, 0, 1, "x"))):
        with pytest.raises(OSError, match=f"out/{name}'"):
            run(out, {"": A_DIRECTORY, name: entry})
    assert (out / "f").read_text() == "mine"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == ["d", "f"]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [7, 3 << 20])
def test_a_symlink_to_a_file_gives_the_file(client: VolumeClient, data: Path, tmp_path: Path, size: int) -> None:
    """The last symlink of the path is followed, also through others and absolute ones; what comes is a plain file."""
    content = os.urandom(size)
    (data / "d/real").mkdir(parents=True)
    (data / "d/real/f").write_bytes(content)
    (data / "d/real/f").chmod(0o640)
    (data / "d/link").symlink_to("real/f")
    (data / "d/far").symlink_to("/data/d/link")
    (data / "top").symlink_to("d/../d/far")
    for number, name in enumerate(("d/link", "d/far", "top")):
        out = tmp_path / f"out{number}"
        client.get(name, str(out))
        assert stat.S_ISREG(out.lstat().st_mode)
        assert out.read_bytes() == content
        assert stat.S_IMODE(out.stat().st_mode) == 0o640
    (data / "out").symlink_to("/etc/hostname")
    (data / "gone").symlink_to("d/nothing")
    for name, error in (("out", PermissionError), ("gone", FileNotFoundError)):
        with pytest.raises(error, match=f"/data/{name}"):
            client.get(name, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def _special(path: Path, kind: str) -> None:
    """Make a fifo, a socket, or a character device that is as `/dev/null`."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("entry", [A_FILE, Entry(SYMLINK, 0, 0, 1, "x"), A_DIRECTORY])
@pytest.mark.parametrize("kind", ["fifo", "socket", "character device"])
def test_special_files_are_never_replaced(tmp_path: Path, kind: str, entry: Entry) -> None:
    """A fifo, socket or device that stands where something of a directory comes stays, and is named."""
    out = tmp_path / "out"
    out.mkdir()
    _special(out / "s", kind)
    before = (out / "s").lstat()
    with pytest.raises(FileExistsError, match="out/s'") as caught:
        run(out, {"": A_DIRECTORY, "s": entry})
    assert (out / "s").lstat() == before
    assert os.listdir(out) == ["s"]
    if entry is not A_DIRECTORY:
        assert kind in str(caught.value)


@pytest.mark.usefixtures("way")
def test_a_special_file_that_comes_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """What was made at a file's place while it was fetched stays, and nothing is left beside it."""
    download = Download(str(tmp_path / "f"), {"": A_FILE})
    chunk = {"type": "chunk", "number": 0, "offset": 0, "last": None}
    download.receive([""], Message(chunk, [bytearray(CONTENT)]))
    os.mkfifo(tmp_path / "f")
    with pytest.raises(FileExistsError, match="fifo"):
        download.receive([""], Message({**chunk, "offset": len(CONTENT), "last": [0o644, 1]}, [bytearray()]))
    download.close()
    assert os.listdir(tmp_path) == ["f"]
    assert stat.S_ISFIFO((tmp_path / "f").lstat().st_mode)


@pytest.mark.parametrize("kind", ["fifo", "socket", "character device"])
def test_special_files_are_no_targets(client: VolumeClient, data: Path, tmp_path: Path, kind: str) -> None:
    """A fifo, socket or device is refused by its kind, for files and for directories, and stays as it was."""
    (data / "f").write_bytes(CONTENT)
    (data / "d").mkdir()
    place = tmp_path / "place"
    _special(place, kind)
    before = place.lstat()
    for source in ("f", "d"):
        with pytest.raises(SyncError, match=f"place` is a {kind}, which is not replaced") as caught:
            client.get(source, str(place))
        assert "atoll data get FILE -" in caught.value.hint
    after = place.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert sorted(os.listdir(tmp_path)) == ["place", "volume"]


def test_open_descriptors_are_no_targets(client: VolumeClient, data: Path) -> None:
    """`/dev/stdout` and `/dev/fd/N` are refused however they are spelled, and nothing is written or replaced."""
    (data / "f").write_bytes(CONTENT)
    reader, writer = os.pipe()
    spelled = ["/dev/stdout", f"/dev/fd/{writer}", f"/proc/self/fd/{writer}", f"/dev/../dev/fd/{writer}"]
    for place in [*spelled, f"/proc/{os.getpid()}/fd/{writer}"]:
        before = os.readlink(place)
        with pytest.raises(SyncError, match="is not replaced"):
            client.get("f", place)
        assert os.readlink(place) == before
    with pytest.raises(OSError, match="/dev/fd/123456789"):
        client.get("f", "/dev/fd/123456789")
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_symlink_that_may_be_planted_leads_to_no_device(client: VolumeClient, data: Path, tmp_path: Path) -> None:
    """A link to a device or fifo is replaced like any other, unless only the system can have made it."""
    (data / "f").write_bytes(CONTENT)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    client.get("f", str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == CONTENT
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)


@pytest.mark.usefixtures("way")
def test_a_full_disk_is_named_and_nothing_is_left(
    client: VolumeClient, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written says where it was to go, as the caller spelled it, and no part of a file stays."""
    (data / "f").write_bytes(bytes(3 << 20))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # as a disk that is full
    try:
        with pytest.raises(OSError, match="'out/f'") as caught:
            client.get("f", "out/f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("path", ["/abs", "..", "../x", "d/../../x", "d//x", "d/", ".", "nul\0"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    """A path that is absolute, or has `..` or an empty component, is refused before anything is written for it."""
    place = Destination(str(tmp_path / "out"))
    place.make_directory("")
    place.make_directory("d")
    for call in (place.make_directory, place.create):
        with pytest.raises(ValueError, match=r"path"):
            call(path)
    with pytest.raises(ValueError, match=r"path"):
        place.make_symlink(path, "x", 1)
    with pytest.raises((ValueError, SyncError)):
        run(tmp_path / "out", {"": A_DIRECTORY, "d": A_DIRECTORY, path: A_FILE})
    place.close()
    assert sorted(str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")) == ["out", "out/d"]


@pytest.mark.parametrize(
    "tree",
    [
        {"": A_DIRECTORY, "l": Entry(SYMLINK, 0, 0, 1, "/"), "l/f": A_FILE},
        {"": A_DIRECTORY, "f": A_FILE, "f/d": A_DIRECTORY},
        {"": A_DIRECTORY, "missing/f": A_FILE},
        {"": A_FILE, "f": A_FILE},
        {"": Entry(SYMLINK, 0, 0, 1, "/")},
        {"f": A_FILE},
        {},
    ],
    ids=["behind a symlink", "below a file", "nowhere", "below the one file", "a symlink", "no root", "nothing"],
)
def test_what_is_not_a_tree_is_refused(tmp_path: Path, tree: Tree) -> None:
    """Entries that are not in a directory of their own tree are refused before anything is written."""
    with pytest.raises(SyncError):
        Download(str(tmp_path / "out"), tree)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "header",
    [
        {"type": "files", "items": [[1, 0o644, 1]]},
        {"type": "files", "items": [[-1, 0o644, 1]]},
        {"type": "files", "items": [[True, 0o644, 1]]},
        {"type": "files", "items": [[0, 0o644]]},
        {"type": "files", "items": [[0, "0644", 1]]},
        {"type": "chunk", "number": 1, "offset": 0, "last": None},
        {"type": "chunk", "number": 0, "offset": 1, "last": None},
        {"type": "chunk", "number": 0, "offset": -1, "last": None},
        {"type": "chunk", "number": 0, "offset": 0, "last": [1]},
    ],
)
def test_contents_that_were_not_asked_for_are_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    """A peer that answers with another file, or with a hole, is refused, and nothing of it stays."""
    download = Download(str(tmp_path / "out"), {"": A_DIRECTORY, "f": A_FILE})
    download.make_directories()
    with pytest.raises(SyncError):
        download.receive(["f"], Message(header, [bytearray(CONTENT)]))
    download.close()
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.usefixtures("way")
def test_pieces_make_a_file_with_its_mode_and_time(tmp_path: Path) -> None:
    """Pieces follow each other, one that comes again replaces what followed, and until then only its owner reads it."""
    download = Download(str(tmp_path / "f"), {"": A_FILE})
    seen = set[int]()
    for offset, content, last in ((0, b"abcd", None), (4, b"efgh", None), (2, b"xy", None), (4, b"z", [0o4751, 7])):
        header = {"type": "chunk", "number": 0, "offset": offset, "last": last}
        download.receive([""], Message(header, [bytearray(content)]))
        seen.update(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(".atoll-*"))
    download.finish()
    download.close()
    assert (tmp_path / "f").read_bytes() == b"abxyz"
    assert seen <= {0o600}
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o751
    assert (tmp_path / "f").stat().st_mtime_ns == 7
    assert os.listdir(tmp_path) == ["f"]


def test_a_program_that_is_killed_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    """A file has no name before it is complete, where the file system can do that; then it has its own, replaced too."""
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system has no files without names")
    for content in (b"first", b"second"):
        before = os.listdir(tmp_path)
        download = Download(str(tmp_path / "f"), {"": A_FILE})
        for offset, piece, last in ((0, content[:3], None), (3, content[3:], [0o644, 7])):
            assert os.listdir(tmp_path) == before
            download.receive(
                [""], Message({"type": "chunk", "number": 0, "offset": offset, "last": last}, [bytearray(piece)])
            )
        download.finish()
        download.close()
        assert (tmp_path / "f").read_bytes() == content
        assert os.listdir(tmp_path) == ["f"]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """A copy closes what it has opened, also when it fails in the middle."""
    tree = {"": A_DIRECTORY, **{"/".join("abc"[:depth]): A_DIRECTORY for depth in (1, 2, 3)}, "a/b/f": A_FILE}
    before = os.listdir("/proc/self/fd")
    run(tmp_path / "out", tree)
    (tmp_path / "out/a/b/f").unlink()
    (tmp_path / "out/a/b/f").mkdir()
    with pytest.raises(IsADirectoryError):
        run(tmp_path / "out", tree)
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "nowhere/out", tree)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("name", "held"),
    [("plain.txt", True), (".hidden", True), ("a b", True), ("..\\x", False), ("C:x", False), ("x:stream", False),
     (".. ", False), ("...", False), ("x.", False), ("x ", False), ("a\tb", False), ("what?", False)],
)  # fmt: skip
def test_names_that_windows_would_read_as_something_else(name: str, held: bool) -> None:
    """Separators, drives, streams and what Windows drops from a name's end are refused there, and nowhere else."""
    assert holds_name(name, windows=True) is held
    assert holds_name(name, windows=False)
