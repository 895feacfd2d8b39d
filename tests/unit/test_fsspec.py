"""`atoll://`: the suites that fsspec has for its implementations, and what they leave open."""

from __future__ import annotations

import datetime as dt
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.tests import abstract

from atoll import Host, local
from atoll.fsspec import DirectoryFileSystem, VolumeFileSystem

from ..volumes import ThreadHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ThreadHost]:
    """A host with an empty volume."""
    (tmp_path / "volume").mkdir()
    made = ThreadHost(tmp_path / "volume")
    yield made
    VolumeFileSystem(host=made).volume.close()
    made.wait()


@pytest.fixture
def fs(host: ThreadHost) -> Any:
    """Its file system."""
    made = fsspec.filesystem("atoll", host=host)
    assert type(made) is VolumeFileSystem
    return made


class VolumeFixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """`atoll://` as the suites see it."""

    @pytest.fixture
    def fs(self, host: ThreadHost) -> Any:
        return fsspec.filesystem("atoll", host=host)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self) -> str:
        return "/data/there"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True


class TestCopy(VolumeFixtures, abstract.AbstractCopyTests):  # type: ignore[misc]
    """Copies within the volume."""


class TestGet(VolumeFixtures, abstract.AbstractGetTests):  # type: ignore[misc]
    """Copies from the volume."""


class TestPut(VolumeFixtures, abstract.AbstractPutTests):  # type: ignore[misc]
    """Copies to the volume."""


class TestPipe(VolumeFixtures, abstract.AbstractPipeTests):  # type: ignore[misc]
    """Whole contents."""


class TestOpen(VolumeFixtures, abstract.AbstractOpenTests):  # type: ignore[misc]
    """File objects."""


class DirectoryFixtures(VolumeFixtures):
    """The same inside a function, with a directory in the place of `/data`."""

    @pytest.fixture
    def fs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        for name in ("atoll.fsspec.names.absolute", "atoll.storage.protocol.connection.absolute"):
            monkeypatch.setattr(name, lambda path: f"{tmp_path}/{path}" if path else str(tmp_path))
        monkeypatch.setattr("atoll.fsspec.names.volume_path", _relative_to(str(tmp_path)))
        monkeypatch.setattr("atoll.fsspec.names.ROOT", str(tmp_path))
        return DirectoryFileSystem(skip_instance_cache=True)

    @pytest.fixture
    def fs_path(self, tmp_path: Path) -> str:
        return f"{tmp_path}/there"


def _relative_to(root: str) -> Callable[[str], str]:
    return lambda path: path.removeprefix(root).strip("/")


class TestDirectoryCopy(DirectoryFixtures, abstract.AbstractCopyTests):  # type: ignore[misc]
    """Copies within `/data`."""


class TestDirectoryGet(DirectoryFixtures, abstract.AbstractGetTests):  # type: ignore[misc]
    """Copies from `/data`."""


class TestDirectoryPut(DirectoryFixtures, abstract.AbstractPutTests):  # type: ignore[misc]
    """Copies to `/data`."""


class TestDirectoryPipe(DirectoryFixtures, abstract.AbstractPipeTests):  # type: ignore[misc]
    """Whole contents."""


class TestDirectoryOpen(DirectoryFixtures, abstract.AbstractOpenTests):  # type: ignore[misc]
    """File objects."""


# --- what the suites leave open ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "stripped"),
    [
        ("atoll://a/b", "/data/a/b"),
        ("atoll:///data/a/b", "/data/a/b"),
        ("atoll://a/b/", "/data/a/b"),
        ("atoll://data/a", "/data/data/a"),
        ("/data/a", "/data/a"),
        ("a", "/data/a"),
        (Path("/data/a"), "/data/a"),
        ("atoll://", "/data"),
        ("atoll:///", "/data"),
        ("/", "/data"),
        ("", "/data"),
        (["a", "atoll://b"], ["/data/a", "/data/b"]),
        ("atoll://ada@lab.example/a/b", "/data/a/b"),
        ("atoll://ada@lab.example:8443//data", "/data/data"),
        ("atoll://ada@lab.example", "/data"),
        ("atoll:///data/ada@lab.example/b", "/data/ada@lab.example/b"),
        ("ada@lab.example/b", "/data/ada@lab.example/b"),
    ],
)
def test_spellings(path: Any, stripped: Any) -> None:
    """Every spelling of a path is the one that functions use, outside of functions and inside."""
    assert VolumeFileSystem._strip_protocol(path) == stripped
    assert DirectoryFileSystem._strip_protocol(path) == stripped


@pytest.mark.parametrize("path", ["atoll:///etc/passwd", "a/../b", "/etc"])
def test_paths_that_lead_out(path: str) -> None:
    """Nothing outside of the volume can be named."""
    with pytest.raises(ValueError, match=r"below|\.\."):
        VolumeFileSystem._strip_protocol(path)


def test_an_address_names_a_server(host: ThreadHost) -> None:
    """User and host come from the address; a password, another server's `host` and a `Volume` have no place there."""
    named = VolumeFileSystem._get_kwargs_from_urls("atoll://ada@lab.example:8443/a")
    assert named == {"user": "ada", "server": "lab.example:8443"}
    assert VolumeFileSystem._get_kwargs_from_urls("atoll://a/b@c") == {}
    fs = fsspec.filesystem("atoll", **named)
    assert fs.host == Host("https://lab.example:8443")
    assert fs.unstrip_protocol("/data/a/b") == "atoll://ada@lab.example:8443/a/b"
    assert DirectoryFileSystem(**named).unstrip_protocol("/data/a") == "atoll://a"
    assert fsspec.filesystem("atoll", host="https://lab.example").host == Host("https://lab.example")
    assert fsspec.filesystem("atoll", host="local").host == local
    with pytest.raises(ValueError, match="no password"):
        fsspec.filesystem("atoll", user="ada:secret", server="lab.example")
    for other in (Host("https://other.example", key_id="id", key_secret="secret"), host):
        with pytest.raises(ValueError, match=r"names `ada@lab.example:8443`, and `host` is"):
            fsspec.filesystem("atoll", host=other, **named)
    with pytest.raises(ValueError, match="names a server, and a volume has its own"):
        VolumeFileSystem(host=host).volume.exists("atoll://ada@lab.example/a")


def test_names_go_back_to_addresses(fs: Any) -> None:
    """What is listed can be opened by address, and parents end at the root."""
    assert fs.unstrip_protocol("/data/a/b") == "atoll://a/b"
    assert fs.unstrip_protocol("atoll://a") == "atoll://a"
    assert [fs._parent(path) for path in ("/data/a/b", "/data/a", "/data", "a")] == ["/data/a", *["/data"] * 3]


def test_looking(fs: Any, host: ThreadHost) -> None:
    """Infos have what programs look for; symlinks are what they lead to, and are walked around."""
    fs.pipe({"d/f": b"12345", "d/e/g": b"1", "h.csv": b"x"})
    (host.data / "d/link").symlink_to("f")
    (host.data / "d/loop").symlink_to("..")
    (host.data / "d/broken").symlink_to("nowhere")
    info = fs.info("d/f")
    real = (host.data / "d/f").stat()
    assert (info["name"], info["size"], info["type"], info["ino"]) == ("/data/d/f", 5, "file", real.st_ino)
    assert info["mtime"] == real.st_mtime
    assert fs.modified("d/f") == dt.datetime.fromtimestamp(real.st_mtime, tz=dt.UTC)
    assert fs.created("d/f") >= fs.modified("d/f") - dt.timedelta(seconds=1)
    assert [fs.info(f"d/{name}")["type"] for name in ("link", "loop", "broken")] == ["file", "directory", "other"]
    assert (fs.info("d/link")["size"], fs.info("d/link")["destination"]) == (5, "f")
    assert fs.ls("d", detail=False) == [f"/data/d/{name}" for name in ("broken", "e", "f", "link", "loop")]
    assert fs.ls("d/f", detail=False) == ["/data/d/f"]
    assert {info["name"]: info["type"] for info in fs.ls("", detail=True)} == {
        "/data/d": "directory",
        "/data/h.csv": "file",
    }
    assert fs.find("d") == [f"/data/d/{name}" for name in ("broken", "e/g", "f", "link")]
    assert fs.find("", maxdepth=1, withdirs=True) == ["/data/d", "/data/h.csv"]
    assert fs.find("missing") == []
    assert fs.glob("atoll://**/*.csv") == ["/data/h.csv"]
    assert fs.glob("*/f") == ["/data/d/f"]
    assert [where for where, _, _ in fs.walk("")] == ["/data", "/data/d", "/data/d/e"]
    assert [where for where, _, _ in fs.walk("", topdown=False)] == ["/data/d/e", "/data/d", "/data"]
    assert [where for where, _, _ in fs.walk("", maxdepth=1)] == ["/data"]
    assert fs.du("d/e") == 1
    with pytest.raises(FileNotFoundError):
        fs.info("missing")
    with pytest.raises(FileNotFoundError):
        fs.ls("missing")
    with pytest.raises(FileNotFoundError):
        list(fs.walk("missing", on_error="raise"))
    assert fs.lexists("d/broken")
    assert not fs.exists("d/broken")


def test_nothing_is_cached(fs: Any, host: ThreadHost) -> None:
    """What a function changes is seen by the next look, without invalidating anything."""
    fs.pipe_file("f", b"1")
    key = fs.ukey("f")
    assert fs.ls("", detail=False) == ["/data/f"]
    (host.data / "g").write_bytes(b"22")
    (host.data / "f").write_bytes(b"2")
    assert fs.ls("", detail=False) == ["/data/f", "/data/g"]
    assert fs.cat_file("f") == b"2"
    assert fs.ukey("f") != key
    assert fs.checksum("f") == fs.checksum("f")


def test_ranges(fs: Any) -> None:
    """Ranges of several files, from both ends, in one call; errors are where they belong."""
    fs.pipe({"a": bytes(range(100)), "b": b"xyz"})
    assert fs.cat_file("a", 10, 20) == bytes(range(10, 20))
    assert fs.cat_file("a", -5) == bytes(range(95, 100))
    assert fs.cat_file("a", -5, -2) == bytes(range(95, 98))
    assert fs.cat_file("a", 90, -5) == bytes(range(90, 95))
    assert fs.cat_file("a", 5, 3) == b""
    found = fs.cat_ranges(["a", "b", "a", "missing"], [0, 1, -1, 0], [2, None, None, 1])
    assert found[:3] == [b"\0\1", b"yz", b"c"]
    assert isinstance(found[3], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["missing"], 0, 1, on_error="raise")
    assert fs.cat(["a", "b"]) == {"/data/a": bytes(range(100)), "/data/b": b"xyz"}
    assert fs.head("a", 2) == b"\0\1"
    assert fs.tail("a", 2) == b"bc"


def test_transactions(fs: Any, host: ThreadHost, tmp_path: Path) -> None:
    """Files of a transaction take their names together at its end, or never."""
    fs.pipe_file("f", b"old")
    (tmp_path / "local/d").mkdir(parents=True)
    (tmp_path / "local/d/p").write_bytes(b"put")
    with fs.transaction:
        fs.put(str(tmp_path / "local"), "tree", recursive=True)
        assert fs.find("tree") == []
        with fs.open("f", "wb") as file:
            file.write(b"new")
        fs.pipe_file("g", b"new")
        assert fs.cat_file("f") == b"old"
        assert not fs.exists("g")
    assert (fs.cat_file("f"), fs.cat_file("g")) == (b"new", b"new")
    with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
        with fs.transaction:
            with fs.open("f", "wb") as file:
                file.write(b"newer")
            fs.put(str(tmp_path / "local/d/p"), "f")
            fs.put_file(str(tmp_path / "local/d/p"), "p", mode="create")
            raise KeyError
    assert fs.cat_file("f") == b"new"
    assert fs.find("tree") == ["/data/tree/d/p"]
    assert not fs.exists("p")
    file = fs.open("h", "wb", autocommit=False)
    file.write(b"x")
    file.close()
    assert not fs.exists("h")
    file.commit()
    assert fs.cat_file("h") == b"x"
    assert host.staged() == []


def test_writes_are_in_one_step(fs: Any) -> None:
    """A block that fails leaves what was there, text modes and compression work."""
    with fs.open("f", "w", encoding="utf-16") as file:
        file.write("ä")
    with pytest.raises(KeyError), fs.open("f", "w") as file:  # noqa: PT012 - the block is what is tested
        file.write("torn")
        raise KeyError
    with fs.open("f", encoding="utf-16", mode="r") as file:
        assert file.read() == "ä"
    with fsspec.open("atoll://c.gz", "wt", compression="infer", host=fs.host) as file:
        file.write("text")
    assert fs.cat_file("c.gz")[:2] == b"\x1f\x8b"
    with fsspec.open("atoll://c.gz", "rt", compression="infer", host=fs.host) as file:
        assert file.read() == "text"
    with fs.open("f", "ab") as file:
        file.write(b"more")
    assert fs.cat_file("f").endswith(b"more")


def test_moves_and_removals(fs: Any, host: ThreadHost) -> None:
    """Moves are renames, into directories too; directories are removed when that is asked for."""
    fs.pipe({"d/f": b"1", "d/e/g": b"2"})
    inode = fs.info("d/f")["ino"]
    fs.mv("d/f", "moved")
    assert fs.info("moved")["ino"] == inode
    fs.mv("moved", "d/")
    fs.mv("atoll://d", "other", recursive=True)
    assert fs.find("") == ["/data/other/e/g", "/data/other/moved"]
    fs.mv("other/m*", "flat/")
    assert fs.find("flat") == ["/data/flat/moved"]
    with pytest.raises(IsADirectoryError):
        fs.rm("other")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("other")
    fs.rm("other", recursive=True)
    assert not fs.exists("other")
    fs.touch("t")
    fs.pipe_file("t", b"x")
    fs.touch("t", truncate=False)
    assert fs.cat_file("t") == b"x"
    fs.touch("t")
    assert fs.cat_file("t") == b""
    fs.makedirs("x/y")
    with pytest.raises(FileExistsError):
        fs.makedirs("x/y")
    with pytest.raises(FileExistsError):
        fs.mkdir("x")
    fs.rmdir("x/y")
    with pytest.raises(FileNotFoundError):
        fs.mkdir("p/q", create_parents=False)


def test_threads_and_pickles(fs: Any, host: ThreadHost) -> None:
    """Threads share connections, and a pickle of a file system of the local host is one of it."""

    def work(number: int) -> bytes:
        one = fsspec.filesystem("atoll", host=host)
        one.pipe_file(f"t/{number}", b"%d" % number)
        return bytes(one.cat_file(f"t/{number}"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(50))) == [b"%d" % number for number in range(50)]
    assert host.opened <= 8
    local = fsspec.filesystem("atoll")
    assert pickle.loads(pickle.dumps(local)) == local


def test_new_files_in_a_directory(tmp_path: Path) -> None:
    """Inside functions writes are in one step too."""
    from atoll.fsspec.directory import _NewFile

    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), _NewFile(str(path), exclusive=False, held=False) as file:  # noqa: PT012 - as above
        file.write(b"torn")
        raise KeyError
    assert path.read_bytes() == b"old"
    with _NewFile(str(path), exclusive=False, held=False) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    held = _NewFile(str(path), exclusive=False, held=True)
    held.write(b"held")
    held.close()
    assert path.read_bytes() == b"new"
    held.commit()
    assert path.read_bytes() == b"held"
    late = _NewFile(str(tmp_path / "g"), exclusive=True, held=False)
    (tmp_path / "g").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        late.close()
    assert (tmp_path / "g").read_bytes() == b"theirs"
    with pytest.raises(FileExistsError):
        _NewFile(str(tmp_path / "g"), exclusive=True, held=False)
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]
