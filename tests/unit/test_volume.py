"""`Volume`: files, names and trees of a volume, with peers in threads."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import HostUnreachable, SyncError
from atoll.sdk.data import connections as volume_connections
from atoll.sdk.data.volume import Volume
from atoll.storage.files import directory_cursor
from atoll.storage.snapshots import tree_copy
from atoll.storage.volume import walk

from ..volumes import ThreadHost

pytestmark = pytest.mark.as_user


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ThreadHost]:
    """A host with an empty volume."""
    (tmp_path / "volume").mkdir()
    made = ThreadHost(tmp_path / "volume")
    yield made
    made.wait()


@pytest.fixture
def volume(host: ThreadHost) -> Iterator[Volume]:
    """Its volume."""
    with Volume(host) as made:
        made.listdir()
        yield made


# --- files ------------------------------------------------------------------------------------------------------


def test_files_are_written_and_read(volume: Volume, host: ThreadHost) -> None:
    """Bytes and text come back as they were written, by absolute and relative names."""
    assert volume.write_bytes("/data/a/b", b"bytes") == 5
    assert volume.write_text("a/c", "Zeile\r\nüber\n") == 12
    assert (volume.read_bytes("a/b"), volume.read_text("/data/a/c")) == (b"bytes", "Zeile\r\nüber\n")
    assert volume.write_bytes("a/d", iter([b"x", bytearray(2), memoryview(b"y")])) == 4
    assert (host.data / "a/d").read_bytes() == b"x\0\0y"
    assert (host.data / "a/b").stat().st_mode & 0o777 == 0o644
    volume.write_bytes("a/b", b"more", mode=0o600)
    volume.write_bytes("a/b", b"again")
    assert (host.data / "a/b").stat().st_mode & 0o777 == 0o600
    with pytest.raises(TypeError, match="write_text"):
        volume.write_bytes("a/b", "text")


def test_ranges(volume: Volume) -> None:
    """Ranges from either end, beyond the end, and several at once."""
    content = random.Random(1).randbytes(10_000_000)
    volume.write_bytes("f", content)
    ranges = [(0, 10), (5_000_000, 4_500_000), (-7, None), (-20_000_000, 3), (9_999_999, 50), (20_000_000, None)]
    expected = [content[:10], content[5_000_000:9_500_000], content[-7:], content[:3], content[-1:], b""]
    assert volume.read_ranges("f", ranges) == expected
    assert volume.read_bytes("f", -3, 2) == content[-3:-1]
    assert volume.read_ranges("f", []) == []


def test_ranges_that_are_none(volume: Volume) -> None:
    """Numbers beyond any file are behind its end; what is no range is refused, and the next request works."""
    volume.write_bytes("f", b"0123")
    assert volume.read_ranges("f", [(1 << 70, 1), (-(1 << 70), 1), (1, 1 << 70)]) == [b"", b"0", b"123"]
    for offset, length, kind in ((0, -1, ValueError), ("x", 1, TypeError), (0.5, 1, TypeError)):
        with pytest.raises(kind):
            volume.read_bytes("f", offset, length)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="write_bytes"):
        volume.write_text("f", b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        volume.touch("f", mtime_ns="x")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        volume.touch("f", mtime_ns=1 << 100)
    with volume.open("f", "r+b", buffering=0) as file:
        with pytest.raises(OverflowError):
            file.truncate(1 << 70)
        with pytest.raises(OverflowError):
            file.seek(1 << 70)
    with pytest.raises(SyncError):  # the peer survives a value that its client did not check
        volume._ask("attributes", "f", {"mtime_ns": 1 << 200})
    assert volume.read_bytes("f") == b"0123"


@pytest.mark.parametrize("mode", ["ab", "a+b"])
def test_appending_without_a_buffer_begins_at_the_end(volume: Volume, mode: str) -> None:
    """The position of a file that is opened to append is its end, buffered or not; `read(None)` reads all."""
    volume.write_bytes("f", b"0123")
    with volume.open("f", mode, buffering=0) as file:
        assert file.tell() == 4
        if "+" in mode:
            assert file.read() == b""
            assert (file.seek(1), file.read(None)) == (1, b"123")
        with pytest.raises(OSError, match="Invalid argument") as caught:
            file.seek(-1)
        assert caught.value.errno == errno.EINVAL


def test_special_files_are_not_waited_for(volume: Volume, tmp_path: Path) -> None:
    """`put` of a fifo is refused by its kind; of what a shell has opened it is read."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SyncError, match="is a fifo"):
        volume.put(tmp_path / "fifo", "f")
    reader, writer = os.pipe()
    os.write(writer, b"piped")
    os.close(writer)
    volume.put(f"/dev/fd/{reader}", "f")
    os.close(reader)
    assert volume.read_bytes("f") == b"piped"


def test_file_objects_read_like_builtin_ones(volume: Volume, host: ThreadHost) -> None:
    """Random seeks, reads, lines and ends give what the builtin `open` gives, and only what is near is fetched."""
    rng = random.Random(2)
    content = rng.randbytes(3_000_000)
    volume.write_bytes("f", content)
    with volume.open("f", "rb") as ours, open(host.data / "f", "rb") as theirs:
        assert ours.seekable()
        assert ours.readable()
        assert not ours.writable()
        for _ in range(400):
            match rng.randrange(5):
                case 0:
                    place, whence = rng.choice([(rng.randrange(3_100_000), 0), (-rng.randrange(1, 3_000_000), 2)])
                    assert ours.seek(place, whence) == theirs.seek(place, whence)
                case 1:
                    assert ours.readline(1000) == theirs.readline(1000)
                case 2:
                    size = rng.randrange(500_000)
                    first, second = bytearray(size), bytearray(size)
                    assert ours.readinto(first) == theirs.readinto(second)
                    assert first == second
                case _:
                    size = rng.choice([1, 100, 70_000, 400_000])
                    assert ours.read(size) == theirs.read(size)
            assert ours.tell() == theirs.tell()
        ours.seek(17)
        assert ours.read() == content[17:]
        assert ours.read(1) == b""


def test_only_what_is_read_travels(volume: Volume, host: ThreadHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of a large sparse file are read at once; who reads in order is read ahead for in few requests."""
    volume.write_bytes("large", b"")
    os.truncate(host.data / "large", 1 << 40)
    with volume.open("large", "rb") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == bytes(10)
        lengths = list[Any]()
        fetch = type(file.raw)._fetch  # type: ignore[attr-defined]

        def counted(raw: Any, at: int, length: int | None) -> bytes:
            lengths.append(length)
            return bytes(fetch(raw, at, length))

        monkeypatch.setattr(type(file.raw), "_fetch", counted)
        file.seek(1 << 39)
        for _ in range(400):
            assert len(file.read(100_000)) == 100_000
        assert len(lengths) < 12
        assert max(lengths) <= 8 << 20


def test_an_open_file_is_one_state_of_it(volume: Volume) -> None:
    """Who reads a file goes on with it when it is replaced or removed."""
    volume.write_bytes("f", b"old" * 1_000_000)
    raw: Any
    with volume.open("f", "rb", buffering=0) as raw:
        assert raw.read(3) == b"old"
        volume.write_bytes("f", b"new" * 1_000_000)
        raw.seek(2_000_001)
        assert raw.read(3) == b"old"
        volume.remove("f")
        raw.seek(-3, os.SEEK_END)
        assert raw.read(9) == b"old"
        assert raw.stat().st_size == 3_000_000


def test_a_new_file_takes_its_name_when_it_is_closed(volume: Volume, host: ThreadHost) -> None:
    """Until then what was there stays, and nobody sees what has been written."""
    volume.write_text("d/f", "old")
    file = volume.open("d/f", "w")
    file.write("new" * 1_000_000)
    file.flush()
    assert os.listdir(host.data / "d") == ["f"]
    assert volume.read_text("d/f") == "old"
    file.close()
    assert volume.read_text("d/f") == "new" * 1_000_000
    assert file.closed
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write("x")


@pytest.mark.parametrize("mode", ["w", "wb", "w+b", "x", "xb"])
def test_a_block_that_fails_leaves_what_was_there(volume: Volume, host: ThreadHost, mode: str) -> None:
    """An exception drops the new file: the name keeps its old content, or none."""
    if "w" in mode:
        volume.write_text("f", "old")
    with pytest.raises(KeyError), volume.open("f", mode) as file:  # noqa: PT012 - the block is what is tested
        file.write(b"new" * 900_000 if "b" in mode else "new" * 900_000)
        raise KeyError
    assert file.closed
    assert volume.exists("f") == ("w" in mode)
    assert "x" in mode or volume.read_text("f") == "old"
    volume.close()
    host.wait()
    assert host.staged() == []


def test_a_write_that_fails_leaves_what_was_there(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full while a file is written, closing it does not make a torn one."""
    volume.write_text("f", "old")
    file = volume.open("f", "wb")
    file.write(b"x" * 10)

    def full(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("atoll.linux.write_all", full)
        with pytest.raises(OSError, match="error"):
            file.close()
    assert volume.read_text("f") == "old"


def test_exclusive_creation(volume: Volume) -> None:
    """`x` is refused where something is, at once and when it has come since."""
    with volume.open("f", "x") as file:
        file.write("first")
    with pytest.raises(FileExistsError, match="/data/f"):
        volume.open("f", "x")
    late = volume.open("g", "xb")
    volume.write_text("g", "theirs")
    with pytest.raises(FileExistsError):
        late.close()
    assert volume.read_text("g") == "theirs"


def test_appending(volume: Volume, host: ThreadHost) -> None:
    """`a` goes to the end, whoever appends meanwhile, and an exception leaves what was written."""
    with volume.open("log", "a") as file:
        file.write("one\n")
    with pytest.raises(KeyError), volume.open("log", "ab") as binary:  # noqa: PT012 - the same
        assert binary.tell() == 4
        with open(host.data / "log", "a") as other:
            other.write("two\n")
        binary.write(b"three\n")
        raise KeyError
    assert volume.read_text("log") == "one\ntwo\nthree\n"
    inode = (host.data / "log").stat().st_ino
    with volume.open("log", "a+") as both:
        both.seek(0)
        assert both.readline() == "one\n"
        both.write("four\n")
    assert volume.read_text("log") == "one\ntwo\nthree\nfour\n"
    assert (host.data / "log").stat().st_ino == inode


def test_updates_in_place(volume: Volume, host: ThreadHost) -> None:
    """`r+` changes the file itself, as a function does."""
    volume.write_bytes("f", b"0123456789")
    inode = (host.data / "f").stat().st_ino
    with volume.open("f", "r+b") as file:
        assert file.read(2) == b"01"
        file.seek(4)
        file.write(b"xy")
        file.seek(0)
        assert file.read() == b"0123xy6789"
        file.truncate(7)
    assert (host.data / "f").read_bytes() == b"0123xy6"
    assert (host.data / "f").stat().st_ino == inode
    with pytest.raises(FileNotFoundError):
        volume.open("missing", "r+")


def test_text_modes(volume: Volume) -> None:
    """Encodings and line ends are those of the builtin `open`, and UTF-8 by default."""
    with volume.open("t", "w", newline="\r\n") as file:
        file.writelines(["ä\n", "b\n"])
    assert volume.read_bytes("t") == "ä\r\nb\r\n".encode()
    with volume.open("t") as file:
        assert list(file) == ["ä\n", "b\n"]
        assert file.name == "/data/t"
        assert file.mode == "r"
    with volume.open("t", newline="") as file:
        assert file.read() == "ä\r\nb\r\n"
    with volume.open("t", "wt", encoding="utf-16") as file:
        file.write("x")
    assert volume.read_bytes("t").decode("utf-16") == "x"
    with pytest.raises(UnicodeDecodeError), volume.open("t") as file:
        file.read()


@pytest.mark.parametrize("mode", ["", "z", "rw", "br+w", "rbt", "bb", "+"])
def test_wrong_modes(volume: Volume, mode: str) -> None:
    """A mode that is none is a ValueError, before anything is opened."""
    with pytest.raises(ValueError, match="mode"):
        volume.open("f", mode)
    with pytest.raises(ValueError, match="encoding"):
        volume.open("f", "wb", encoding="utf-8")


def test_programs_that_seek_while_they_write(volume: Volume) -> None:
    """A zip file is written and read through file objects."""
    with volume.open("z.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}", bytes(100_000))
    with volume.open("z.zip", "rb") as written, zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None
        assert archive.read("7") == bytes(100_000)


def test_a_file_that_is_garbage_is_closed(volume: Volume) -> None:
    """`json.dump(x, volume.open(...))` writes the file, as with the builtin `open`."""
    json.dump([1], volume.open("f", "w"))
    assert json.load(volume.open("f")) == [1]
    assert volume.connections._all == []


def test_many_files_at_once(volume: Volume, host: ThreadHost) -> None:
    """Open files share connections."""
    opened = [volume.open(f"many/{number}", "w") for number in range(100)]
    for number, file in enumerate(opened):
        file.write(str(number))
    for file in opened:
        file.close()
    assert sorted(volume.listdir("many"), key=int) == [str(number) for number in range(100)]
    assert volume.read_text("many/73") == "73"
    assert host.opened == 1


def test_threads(volume: Volume, host: ThreadHost) -> None:
    """Any number of threads work on one volume, through a few connections."""
    failed = list[Exception]()

    def work(number: int) -> None:
        try:
            for turn in range(10):
                content = bytes([number]) * 100_000
                volume.write_bytes(f"t/{number}", content)
                with volume.open(f"t/{number}", "rb") as file:
                    assert file.read() == content
                assert f"{number}" in volume.listdir("t"), turn
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert host.opened <= 2 * volume_connections.MOST  # some may be on their way back to the host


def test_a_connection_that_has_gone_is_replaced(volume: Volume, host: ThreadHost) -> None:
    """When a peer ends, what is open on it fails with a named error, and the next request has a new one."""
    volume.write_text("f", "x")
    file = volume.open("f", "rb")
    volume.connections._all[0].connection.channel.socket.shutdown(2)
    with pytest.raises(HostUnreachable):
        file.read()
    with pytest.raises(HostUnreachable):
        file.close()
    assert volume.read_text("f") == "x"
    assert host.opened == 2


def test_files_of_a_closed_volume_are_closed(volume: Volume, host: ThreadHost) -> None:
    """What was open when its volume was closed is a closed file: to use it is a `ValueError`, and so is to close one
    whose content is lost; the volume itself goes on."""
    volume.write_bytes("f", b"x")
    opened: list[Any] = [volume.open("f", mode) for mode in ("rb", "wb", "w+b", "wb")]
    read, empty, written, dropped = opened
    raw: Any = volume.open("f", "rb", buffering=0)
    written.write(b"y")
    dropped.discard()
    volume.close()
    for attempt in (read.read, raw.readall, raw.stat, written.flush, empty.close):
        with pytest.raises(ValueError, match="closed"):
            attempt()
    for file in (read, raw, dropped):
        file.close()
    assert volume.read_bytes("f") == b"x"
    assert volume.listdir() == ["f"]
    volume.close()
    host.wait()
    assert host.staged() == []


# --- names ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(volume: Volume, host: ThreadHost) -> Path:
    """A few names of all kinds; returns where they are."""
    base = host.data
    (base / "a/b/c").mkdir(parents=True)
    (base / "empty").mkdir()
    for name in ("f.csv", "a/g.csv", "a/b/h.csv", "a/b/c/i.txt", ".hidden", "a/.hidden.csv"):
        (base / name).write_text(name)
    (base / "to-a").symlink_to("a")
    (base / "to-f").symlink_to("/data/f.csv")
    (base / "broken").symlink_to("nowhere")
    (base / "out").symlink_to("/etc/passwd")
    (base / "a/up").symlink_to("..")
    os.mkfifo(base / "fifo")
    os.link(base / "f.csv", base / "f2.csv")
    (base / ".snapshots/s").mkdir(parents=True)
    return base


def test_status(volume: Volume, tree: Path) -> None:
    """`stat` is what `os.stat` says of the volume's file, followed and not."""
    for name in ("f.csv", "a", "fifo"):
        found, real = volume.stat(name), (tree / name).stat()
        for field in ("st_mode", "st_ino", "st_nlink", "st_mtime_ns", "st_ctime_ns", "st_uid", "st_gid", "st_blocks"):
            assert getattr(found, field) == getattr(real, field), (name, field)
    for time_ns in (1795387725144272509, 1795387725999999999, 1, 10**18 + 7):
        os.utime(tree / "f.csv", ns=(time_ns, time_ns))
        assert volume.stat("f.csv").st_mtime == (tree / "f.csv").stat().st_mtime
    assert volume.stat("f.csv").st_size == 5
    assert volume.stat("to-f").st_ino == volume.stat("f2.csv").st_ino
    assert volume.stat("to-f", follow=False).st_mode == (tree / "to-f").lstat().st_mode
    assert volume.stat("to-f", follow=False).st_size == len("/data/f.csv")
    names = ["f.csv", "a", "to-f", "to-a", "broken", "out", "missing", "f.csv/x", "fifo"]
    assert [name for name in names if volume.exists(name)] == ["f.csv", "a", "to-f", "to-a", "fifo"]
    assert [name for name in names if volume.isdir(name)] == ["a", "to-a"]
    assert [name for name in names if volume.isfile(name)] == ["f.csv", "to-f"]
    with pytest.raises(PermissionError, match="leads out"):
        volume.read_bytes("out")


def test_walking(volume: Volume, tree: Path) -> None:
    """`walk` gives what `os.walk` gives; directories can be taken out; snapshots are left out."""
    ours = [(where, sorted(below), sorted(names)) for where, below, names in volume.walk()]
    theirs = []
    for where, below, names in os.walk(tree):
        if where == str(tree):
            below.remove(".snapshots")
        theirs.append((where.replace(str(tree), "/data"), sorted(below), sorted(names)))
    # Here an absolute symlink leads somewhere else than in a function.
    assert sorted(ours) == sorted(theirs)
    for where, below, _ in volume.walk("/data"):
        if where == "/data":
            below[:] = ["empty"]
        else:
            assert where == "/data/empty"
    with pytest.raises(FileNotFoundError):
        list(volume.walk("missing"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_what_may_not_be_read_is_left_out_of_walks(volume: Volume, tree: Path, tmp_path: Path) -> None:
    """One closed directory hides itself only; to copy it is the builtin error with its path."""
    (tree / "closed").mkdir(mode=0)
    try:
        walked = [where for where, _, _ in volume.walk()]
        assert "/data/a/b" in walked
        assert "/data/closed" not in walked
        assert volume.glob("**/h.csv") == ["/data/a/b/h.csv"]
        assert volume.glob("closed/**") == []
        with pytest.raises(PermissionError) as caught:
            volume.get("/data", tmp_path / "got")
        assert caught.value.filename == "/data/closed"
    finally:
        (tree / "closed").chmod(0o700)


def test_circles_are_not_there(volume: Volume, tree: Path) -> None:
    """A symlink to itself exists as little as for `os.path`."""
    (tree / "circle").symlink_to("circle")
    assert [volume.exists("circle"), volume.isfile("circle"), volume.isdir("circle")] == [False] * 3
    assert volume.glob("c*") == ["/data/circle"]


def test_entries(volume: Volume, tree: Path) -> None:
    """`scandir` gives entries with kind and status, without another request for each."""
    entries = {entry.name: entry for entry in volume.scandir()}
    assert {name for name, entry in entries.items() if entry.is_dir()} == {"a", "empty", "to-a"}
    assert {name for name, entry in entries.items() if entry.is_symlink()} == {"to-a", "to-f", "broken", "out"}
    assert entries["to-f"].is_file()
    assert not entries["to-f"].is_file(follow_symlinks=False)
    assert entries["f.csv"].stat().st_size == 5
    assert entries["to-a"].target() == "a"
    assert os.fspath(entries["a"]) == "/data/a"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.csv", ["f.csv", "f2.csv"]),
        ("/data/*/*.csv", ["a/g.csv", "to-a/g.csv"]),
        ("**/*.csv", ["a/b/h.csv", "a/g.csv", "f.csv", "f2.csv"]),
        ("a/**", ["a/b", "a/b/c", "a/b/c/i.txt", "a/b/h.csv", "a/g.csv", "a/up"]),
        ("f?.csv", ["f2.csv"]),
        ("[ae]*/b", ["a/b"]),
        ("to-[!a]", ["to-f"]),
        (".h*", [".hidden"]),
        ("f.csv", ["f.csv"]),
        ("missing*", []),
        ("missing", []),
        ("f.csv/*", []),
        ("a/**/", ["a", "a/b", "a/b/c"]),
        ("*/", ["a", "empty", "to-a"]),
        ("f.csv/", []),
        ("missing/**", []),
        ("", [""]),
    ],
)
def test_patterns(volume: Volume, tree: Path, pattern: str, found: list[str]) -> None:
    """Patterns match as in a shell."""
    assert volume.glob(pattern) == [f"/data/{name}".rstrip("/") for name in found]


def test_usage(volume: Volume, tree: Path) -> None:
    """Usage adds up allocated bytes as `du` does, and counts an inode with two names once."""
    volume.write_bytes("a/b/large", bytes(1 << 20))
    used = volume.usage()
    assert used.files == 13
    assert used.directories == 4
    inodes = {}
    for path in [tree, *tree.rglob("*")]:
        if ".snapshots" not in path.parts:
            inodes[path.lstat().st_ino] = path.lstat()
    assert used.allocated_bytes == sum(info.st_blocks * 512 for info in inodes.values())
    assert volume.usage("a/b").apparent_bytes == (1 << 20) + len("a/b/h.csv") + len("a/b/c/i.txt")
    assert volume.usage("f.csv").apparent_bytes == 5
    assert 0 < used.disk_free_bytes < used.disk_bytes


def test_directories(volume: Volume, tree: Path) -> None:
    """Directories are made and removed as with `os`."""
    volume.mkdir("new")
    volume.makedirs("x/y/z")
    volume.makedirs("x/y/z", exist_ok=True)
    assert volume.isdir("x/y/z")
    with pytest.raises(FileExistsError):
        volume.mkdir("new")
    with pytest.raises(FileExistsError):
        volume.mkdir("f.csv", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        volume.mkdir("p/q")
    with pytest.raises(OSError, match="not empty"):
        volume.remove("x")
    volume.remove("x", recursive=True)
    volume.remove("new")
    volume.remove("to-a")
    assert not volume.exists("x")
    assert volume.exists("a")
    for path in ("/data", "/", "", "."):
        with pytest.raises(ValueError, match="/data"):
            volume.remove(path, recursive=True)


def test_times_and_modes(volume: Volume, tree: Path) -> None:
    """`touch` makes files and sets times, `chmod` modes; neither follows a symlink out."""
    volume.touch("n/ew")
    assert volume.read_bytes("n/ew") == b""
    volume.touch("f.csv", mtime_ns=123_456_789)
    assert volume.stat("f.csv").st_mtime_ns == 123_456_789
    assert volume.read_bytes("f.csv") == b"f.csv"
    volume.touch("f.csv")
    assert volume.stat("f.csv").st_mtime_ns > 10**18
    volume.chmod("f.csv", 0o100600)
    assert volume.stat("to-f").st_mode == 0o100600
    with pytest.raises(PermissionError):
        volume.touch("out")
    with pytest.raises(FileNotFoundError):
        volume.chmod("missing", 0o600)


def test_renaming(volume: Volume, tree: Path) -> None:
    """`rename` is `os.replace`: files replace files, directories empty ones, and links are renamed themselves."""
    volume.rename("f2.csv", "deep/er/f2.csv")
    assert volume.read_bytes("deep/er/f2.csv") == b"f.csv"
    volume.rename("a/g.csv", "f.csv")
    assert volume.read_bytes("f.csv") == b"a/g.csv"
    volume.rename("a/b", "empty")
    assert volume.read_bytes("empty/h.csv") == b"a/b/h.csv"
    volume.rename("to-a", "link")
    assert (tree / "link").is_symlink()
    with pytest.raises(OSError, match="not empty"):
        volume.rename("deep", "empty")
    with pytest.raises(OSError, match="Invalid"):
        volume.rename("deep", "deep/er/below")
    with pytest.raises(IsADirectoryError):
        volume.rename("f.csv", "a")
    with pytest.raises(NotADirectoryError):
        volume.rename("a", "f.csv")
    with pytest.raises(FileNotFoundError, match="/data/missing"):
        volume.rename("missing", "x")
    with pytest.raises(PermissionError):
        volume.rename("/data", "x")


def _snapshot(root: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in [root, *root.rglob("*")]
    }


def test_copying(volume: Volume, tree: Path, host: ThreadHost) -> None:
    """Copies keep contents, modes, times and links; a directory appears whole; nothing is left in staging."""
    (tree / "a/b/h.csv").chmod(0o640)
    os.utime(tree / "a/b", ns=(1, 5_000_000_000))
    volume.copy("a", "new/copy")
    assert _snapshot(tree / "new/copy") == _snapshot(tree / "a")
    volume.copy("f.csv", "a/g.csv")
    assert volume.read_bytes("a/g.csv") == b"f.csv"
    assert volume.stat("a/g.csv").st_nlink == 1
    volume.copy("to-f", "real")
    assert (tree / "real").read_bytes() == b"f.csv"
    volume.copy("a", "empty")
    assert volume.isfile("empty/b/h.csv")
    for source, target, error in [
        ("a", "new", OSError),
        ("a", "a/b/inside", OSError),
        ("a", "a", OSError),
        ("f.csv", "f.csv", OSError),
        ("f.csv", "a", IsADirectoryError),
        ("a", "f.csv", NotADirectoryError),
        ("/data", "x", OSError),
        ("fifo", "x", OSError),
        ("out", "x", PermissionError),
        ("missing", "x", FileNotFoundError),
    ]:
        with pytest.raises(error):
            volume.copy(source, target)
    (tree / "a/fifo").symlink_to("x")
    os.mkfifo(tree / "a/pipe")
    with pytest.raises(OSError, match="ordinary"):
        volume.copy("a", "x")
    assert not volume.exists("x")
    assert host.staged() == []


def test_copies_from_snapshots(volume: Volume, host: ThreadHost) -> None:
    """What a snapshot holds can be copied out of it, and not into it."""
    volume.write_text("d/f", "old")
    volume.snapshot("first")
    volume.write_text("d/f", "new")
    volume.copy("/data/.snapshots/first/d", "back")
    assert (volume.read_text("back/f"), volume.read_text("d/f")) == ("old", "new")
    with pytest.raises(OSError):  # noqa: PT011 - how it is refused is another test's
        volume.copy("d", "/data/.snapshots/first/e")


def test_holes_stay_holes(volume: Volume, host: ThreadHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a sparse file is as sparse, with clones, ranges and without either."""
    with open(host.data / "sparse", "wb") as file:
        file.seek(1 << 33)
        file.write(b"end")
        file.truncate((1 << 33) + 1_000_000)
    volume.copy("sparse", "first")
    monkeypatch.setattr("atoll.storage.content.copy.clone", lambda *_: False)
    volume.copy("sparse", "second")

    def unable(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", unable)
    volume.copy("sparse", "third")
    for name in ("first", "second", "third"):
        assert volume.stat(name).st_size == (1 << 33) + 1_000_000
        assert volume.stat(name).st_blocks < 1000
        assert volume.read_bytes(name, 1 << 33, 5) == b"end\0\0"


def test_deep_trees(volume: Volume, host: ThreadHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree deeper than the peer keeps open is walked; one that is deeper than paths go is refused by name."""
    monkeypatch.setattr(directory_cursor, "_KEPT", 5)
    deep = host.data
    for _ in range(20):
        deep /= "d"
        (deep / "e").mkdir(parents=True)
        (deep / "f").write_text("x")
    assert volume.usage().files == 20
    assert volume.usage().directories == 40
    monkeypatch.setattr(walk, "MAX_PATH", 20)
    with pytest.raises(OSError, match="too deep"):
        volume.usage()
    monkeypatch.setattr(tree_copy, "MAX_DEPTH", 10)
    with pytest.raises(OSError, match="more than 10 directories deep"):
        volume.copy("d", "x")
    assert host.staged() == []


def test_a_swapped_directory_leads_nowhere(volume: Volume, host: ThreadHost, tmp_path: Path) -> None:
    """A directory that becomes a symlink in the middle of a walk is not walked."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("x")
    (host.data / "d/sub").mkdir(parents=True)
    original = walk.Walk.steps

    def swap(self: walk.Walk) -> Iterator[walk.Step]:
        for step in original(self):
            yield step
            if step.path == "d":
                os.rename(host.data / "d/sub", host.data / "moved")
                (host.data / "d/sub").symlink_to(tmp_path / "secret")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk.Walk, "steps", swap)
        assert [path for path, _ in volume.find()] == ["d", "d/sub"]


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda volume, path: volume.stat(path),
        lambda volume, path: volume.listdir(path),
        lambda volume, path: volume.read_bytes(path),
        lambda volume, path: volume.open(path),
        lambda volume, path: volume.remove(path),
        lambda volume, path: volume.get(path, "x"),
        lambda volume, path: volume.usage(path),
    ],
)
def test_what_is_missing_has_a_name(volume: Volume, call: Callable[[Volume, str], Any]) -> None:
    """The error for something that is not there is the builtin one, with the path as functions know it."""
    with pytest.raises(FileNotFoundError) as caught:
        call(volume, "no/thing")
    assert caught.value.filename == "/data/no/thing"
    for path in ("../x", "/etc/passwd", "a\0b"):
        with pytest.raises(ValueError, match=r"\.\.|below|NUL"):
            call(volume, path)


def test_directories_are_no_files(volume: Volume) -> None:
    """Reading, writing and opening a directory is an IsADirectoryError, and below a file is a NotADirectoryError."""
    volume.mkdir("d")
    volume.write_text("f", "x")
    for call in (
        lambda: volume.read_bytes("d"),
        lambda: volume.write_bytes("d", b""),
        lambda: volume.open("d"),
        lambda: volume.open("d", "w"),
        lambda: volume.open("d", "a"),
    ):
        with pytest.raises(IsADirectoryError):
            call()
    for call in (lambda: volume.read_bytes("f/x"), lambda: volume.write_bytes("f/x", b"")):
        with pytest.raises(NotADirectoryError):
            call()
    with pytest.raises(NotADirectoryError):
        volume.listdir("f")


def test_a_generator_that_fails_leaves_what_was_there(volume: Volume) -> None:
    """When the content cannot be had, the file is as it was, and the connection can be used."""
    volume.write_text("f", "old")

    def pieces() -> Iterator[bytes]:
        yield bytes(100)
        raise KeyError

    with pytest.raises(KeyError):
        volume.write_bytes("f", pieces())
    assert volume.read_text("f") == "old"


def test_a_volume_travels(volume: Volume) -> None:
    """A pickle of a volume is one of its host only."""
    kind, arguments = volume.__reduce__()[:2]
    assert (kind, arguments) == (Volume, (volume.host,))
    assert isinstance(volume.open.__doc__, str)
    assert not isinstance(volume, io.IOBase)


def test_a_forked_process_has_connections_of_its_own(volume: Volume, host: ThreadHost) -> None:
    """A child uses none of its parent's connections, and a file that its parent opened says so."""
    volume.write_text("f", "x")
    file = volume.open("f", "rb")
    first = volume.connections._all[0].connection
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = b"?"
        try:
            try:
                file.read(1)
            except HostUnreachable:
                status = b"refused"
            if volume.read_text("f") != "x" or first.usable:
                status = b"shared"
        finally:
            os.write(theirs, status)
            os._exit(0)
    os.close(theirs)
    try:
        assert os.read(ours, 100) == b"refused"
    finally:
        os.close(ours)
        os.waitpid(child, 0)
    assert file.read() == b"x"
    file.close()
