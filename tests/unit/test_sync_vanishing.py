"""A source that changes while it is synced: what vanishes counts as removed, and what cannot be read never does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.errors import SyncError
from atoll.storage import crash_points
from atoll.storage.client.volume import VolumeClient
from atoll.storage.sync.client import Synced, SyncOptions
from atoll.wire.channel import Channel

from ..volumes import serving

LARGE = 3 << 20
Meddle = Callable[[Path], object]


class Mirror:
    """A source and its mirror on a fresh volume."""

    def __init__(self, base: Path, client: VolumeClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.target = base / "source", base / "volume/data/t"
        self._index, self._client, self._patch = base / "index", client, monkeypatch

    def sync(self, **options: object) -> Synced:
        return self._client.sync(str(self.source), "t", SyncOptions(index=self._index, **options))  # type: ignore[arg-type]

    def at(self, step: str, meddle: Meddle, *, times: int = 1) -> None:
        """Change the source when a sync reaches a step."""
        left = [step] * times

        def report(reached: str, _: object) -> None:
            if left and reached == step:
                left.pop()
                meddle(self.source)

        self._patch.setattr(crash_points, "_report", report)

    def is_exact(self) -> bool:
        return tree(self.source) == tree(self.target)


def tree(root: Path) -> dict[str, object]:
    """Return all that a mirror must have."""
    found: dict[str, object] = {"": (root.stat().st_mode, root.stat().st_mtime_ns)}
    for path in root.rglob("*"):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = (info.st_mode, info.st_mtime_ns, content)
    return found


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror of a small source."""
    for name in ("a", "d/x", "d/y", "e/f/z"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    (tmp_path / "volume").mkdir()
    with serving(tmp_path / "volume") as sock, VolumeClient(Channel(sock)) as client:
        made = Mirror(tmp_path, client, monkeypatch)
        made.sync()
        yield made


def write(*names: str, size: int = 10) -> Meddle:
    """Return a change that writes files anew."""

    def change(source: Path) -> None:
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(os.urandom(size))

    return change


def remove(*names: str) -> Meddle:
    """Return a change that removes files, or directories with all that is in them."""

    def change(source: Path) -> None:
        for name in names:
            path = source / name
            for below in sorted(path.rglob("*"), reverse=True) if path.is_dir() else ():
                below.rmdir() if below.is_dir() else below.unlink()
            path.rmdir() if path.is_dir() else path.unlink()

    return change


VANISHING: dict[str, tuple[Meddle, Meddle, tuple[str, ...]]] = {
    "a new file among others": (write("new", "b"), remove("new"), ("new",)),
    "the only change": (write("new"), remove("new"), ("new",)),
    "a file that the target has": (write("a", "b"), remove("a"), ("a",)),
    "the only change of a file that the target has": (write("d/x"), remove("d/x"), ("d/x",)),
    "a directory, with files that the target has": (write("d/x", "b"), remove("d"), ("d",)),
    "a new directory": (write("n/m/1", "n/m/2", "n/3", "b"), remove("n/m"), ("n/m",)),
    "a large file": (write("large", "b", size=LARGE), remove("large"), ("large",)),
    "a large file that the target has": (write("a", size=LARGE), remove("a"), ("a",)),
    "a renamed file": (write("new", "b"), lambda source: os.rename(source / "new", source / "other"), ("new",)),
    "a renamed directory": (write("d/x"), lambda source: os.rename(source / "d", source / "other"), ("d",)),
}


@pytest.mark.parametrize(("before", "meanwhile", "vanished"), VANISHING.values(), ids=VANISHING)
def test_what_vanishes_counts_as_removed(
    mirror: Mirror, before: Meddle, meanwhile: Meddle, vanished: tuple[str, ...]
) -> None:
    """The sync goes on without it and says so; the next ones are exact, and find nothing to do in the end."""
    before(mirror.source)
    mirror.at("ready", meanwhile)
    assert mirror.sync().vanished == vanished
    wanted = {path for path in tree(mirror.source) if not path.startswith("other")}
    assert set(tree(mirror.target)) == wanted
    assert not mirror.sync().vanished
    assert mirror.is_exact()
    assert not mirror.sync().plan
    staging = os.listdir(mirror.target.parents[1] / "staging")
    assert not [name for name in staging if not name.startswith(("index-", "locks", "old-"))]


def test_names_that_stay_without_delete_stay_after_they_vanish(mirror: Mirror) -> None:
    """Without `delete` the target keeps its file, and the sync goes on."""
    write("a", "b")(mirror.source)
    mirror.at("ready", remove("a"))
    assert mirror.sync(delete=False).vanished == ("a",)
    assert (mirror.target / "a").read_text() == "a"
    assert (mirror.target / "b").read_bytes() == (mirror.source / "b").read_bytes()
    assert not mirror.sync(delete=False).vanished
    assert (mirror.target / "a").exists()


def becomes(make: Callable[[Path], object], name: str = "a") -> Meddle:
    def change(source: Path) -> None:
        remove(name)(source)
        make(source / name)

    return change


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "in").write_text("in")


def save_as_editors_do(source: Path) -> None:
    (source / ".a.swp").write_text("new")
    os.rename(source / ".a.swp", source / "a")


REPLACED: dict[str, Meddle] = {
    "a file by a directory": becomes(make_directory),
    "a file by a symlink": becomes(lambda path: path.symlink_to("d/x")),
    "a directory by a file": becomes(lambda path: path.write_text("file"), "d"),
    "a directory by a symlink": becomes(lambda path: path.symlink_to("e"), "d"),
    "a file by another, as editors do": save_as_editors_do,
    "a longer file": lambda source: os.truncate(source / "a", LARGE + 1),
    "a shorter file": lambda source: os.truncate(source / "a", 3),
    "an empty file": lambda source: os.truncate(source / "a", 0),
}


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("meanwhile", REPLACED.values(), ids=REPLACED)
def test_what_becomes_something_else_is_mirrored_as_that(mirror: Mirror, meanwhile: Meddle, size: int) -> None:
    """A name that exists never counts as removed: the sync takes what is there now, or begins again."""
    write("a", "d/x", size=size)(mirror.source)
    mirror.at("ready", meanwhile)
    synced = mirror.sync()
    assert not synced.vanished
    for name in ("a", "d"):
        assert (mirror.target / name).is_dir() == (mirror.source / name).is_dir()
        assert (mirror.target / name).is_symlink() == (mirror.source / name).is_symlink()
    mirror.sync()
    assert mirror.is_exact()


def test_a_source_whose_names_change_kind_again_and_again_comes_to_rest(mirror: Mirror) -> None:
    """As while a build or an editor renames: many beginnings, then the state that stays."""
    write("a")(mirror.source)

    def flip(source: Path) -> None:
        becomes((lambda path: path.write_text("file")) if (source / "d").is_dir() else make_directory, "d")(source)
        write("a")(source)

    mirror.at("ready", flip, times=9)
    mirror.sync()
    mirror.sync()
    assert mirror.is_exact()
    assert (mirror.source / "d").is_file()


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_file_that_always_grows_has_the_content_of_one_moment(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A log that is appended to at each look arrives as it was at one of them."""
    log = mirror.source / "log"
    log.write_bytes(bytes(range(250)) * (size // 250))
    whole, real = log.read_bytes(), {name: getattr(os, name) for name in ("read", "preadv")}

    def grow(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            with log.open("ab") as file:
                file.write(b"more")
            return real[name](*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, grow(name))
        mirror.sync()
    found = (mirror.target / "log").read_bytes()
    assert found[: len(whole)] == whole
    assert log.read_bytes().startswith(found)
    mirror.sync()
    assert mirror.is_exact()


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_file_that_is_rewritten_at_each_look_is_told(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The looks are bounded; the error names the file, with the option that leaves it out, and the mirror stays."""
    before = tree(mirror.target)
    write("busy", "b", size=size)(mirror.source)
    real = {name: getattr(os, name) for name in ("read", "preadv")}

    def rewrite(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if os.readlink(f"/proc/self/fd/{arguments[0]}").endswith("/busy"):
                with (mirror.source / "busy").open("r+b") as file:
                    file.write(os.urandom(8))
            return real[name](*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, rewrite(name))
        with pytest.raises(SyncError, match="busy`: changes all the time") as caught:
            mirror.sync()
    assert "`--exclude /busy`" in caught.value.hint
    assert tree(mirror.target) == before


def test_many_files_that_vanish_cost_little(mirror: Mirror) -> None:
    """Thousands that go one by one, beside others that stay, count as removed."""
    write(*(f"many/{number}" for number in range(3000)))(mirror.source)
    mirror.at("ready", remove(*(f"many/{number}" for number in range(2990))))
    assert len(mirror.sync().vanished) == 2990
    assert len(os.listdir(mirror.target / "many")) == 10


def test_a_source_that_vanishes_empties_nothing(mirror: Mirror) -> None:
    """A source that was moved, removed or unmounted meanwhile is an error, and the mirror stays."""
    before = tree(mirror.target)
    write("a")(mirror.source)
    mirror.at("ready", lambda source: os.rename(source, source.with_name("moved")))
    with pytest.raises(SyncError, match="was moved or removed while"):
        mirror.sync()
    os.rename(mirror.source.with_name("moved"), mirror.source)

    def unmount(source: Path) -> None:
        os.rename(source, source.with_name("moved"))
        source.mkdir()

    mirror.at("ready", unmount)
    with pytest.raises(SyncError, match="was moved or removed while"):
        mirror.sync()
    mirror.at("ready", remove(*tree(mirror.source)))
    assert tree(mirror.target) == before


def test_a_source_whose_files_all_vanish_empties_nothing(mirror: Mirror) -> None:
    """That needs `allow_empty`, as when nothing was there from the start."""
    before = tree(mirror.target)
    write("a", "d/x", "d/y", "e/f/z")(mirror.source)
    mirror.at("ready", remove("a", "d", "e"))
    with pytest.raises(SyncError, match="would be emptied"):
        mirror.sync()
    assert tree(mirror.target) == before
    write("a", "d/x", "d/y", "e/f/z")(mirror.source)
    mirror.at("ready", remove("a", "d", "e"))
    assert set(mirror.sync(allow_empty=True).vanished) == {"a", "d", "e"}
    assert not os.listdir(mirror.target)


def special(source: Path) -> None:
    os.mkfifo(source / "e/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "sock"))


def test_all_names_that_cannot_be_uploaded_are_told_and_can_be_left_out(mirror: Mirror) -> None:
    """The error lists them with the option that leaves them out."""
    before = tree(mirror.target)
    write("b")(mirror.source)
    special(mirror.source)
    with pytest.raises(SyncError, match="cannot read 2 names") as caught:
        mirror.sync()
    assert "`sock` (is a socket" in caught.value.message
    assert "`e/pipe` (is a fifo" in caught.value.message
    assert "`exclude=['/sock', '/e/pipe']`" in caught.value.hint
    assert tree(mirror.target) == before
    assert mirror.sync(exclude=("/sock", "/e/pipe")).plan


def test_a_file_that_becomes_a_fifo_is_told(mirror: Mirror) -> None:
    """It is a name that exists: the sync ends, and the old tree stays."""
    before = tree(mirror.target)
    write("a", "b")(mirror.source)
    mirror.at("ready", becomes(os.mkfifo))
    with pytest.raises(SyncError, match="a` is a fifo"):
        mirror.sync()
    assert tree(mirror.target) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
class TestPermissions:
    """Names whose mode forbids to read them."""

    pytestmark = pytest.mark.as_user

    def test_all_of_them_are_told_with_the_command_that_mends_them(self, mirror: Mirror) -> None:
        """Files and directories; the mirror stays, and the command mends it."""
        before = tree(mirror.target)
        write("b", "d/x", "it's", size=5)(mirror.source)
        for name in ("b", "d/x", "it's"):
            (mirror.source / name).chmod(0o200)
        with pytest.raises(SyncError, match="cannot read 3 names") as caught:
            mirror.sync()
        assert "`b`, `d/x`, `it's` (permission denied)" in caught.value.message
        command = caught.value.hint.split("`")[1]
        assert command.startswith("chmod u+r ")
        assert tree(mirror.target) == before
        (mirror.source / "e").chmod(0o300)
        with pytest.raises(SyncError, match="cannot read 4 names") as caught:
            mirror.sync()
        assert "`e`, `b`, `it's`, `d/x` (permission denied)" in caught.value.message
        assert f"`chmod u+rx {mirror.source}/e`" in caught.value.hint
        (mirror.source / "e").chmod(0o755)
        assert os.system(command) == 0
        mirror.sync()
        assert mirror.is_exact()

    def test_a_long_list_is_bounded(self, mirror: Mirror) -> None:
        """The error names some, counts the rest, and has one command for all."""
        write(*(f"many/{number}" for number in range(40)))(mirror.source)
        for path in (mirror.source / "many").iterdir():
            path.chmod(0)
        with pytest.raises(SyncError, match=r"cannot read 40 names.*; and 30 more") as caught:
            mirror.sync()
        assert f"`chmod -R u+rX {mirror.source}`" in caught.value.hint

    def test_what_cannot_be_read_and_the_target_has_is_not_removed(self, mirror: Mirror) -> None:
        """An unchanged file that lost its permission is known and stays; nothing has to be read."""
        (mirror.source / "d").chmod(0)
        with pytest.raises(SyncError, match="d`: permission denied"):
            mirror.sync()
        (mirror.source / "d").chmod(0o755)
        assert (mirror.target / "d/x").read_text() == "d/x"


def test_a_file_with_an_error_of_the_disk_is_told(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that exists and cannot be read for another reason than its mode never counts as removed."""
    before = tree(mirror.target)
    write("a", "d/x")(mirror.source)
    real = os.read

    def read(descriptor: int, count: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(mirror.source)):
            raise OSError(5, "Input/output error")
        return real(descriptor, count)

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        with pytest.raises(SyncError, match=r"`a`, `d/x` \(input/output error\)"):
            mirror.sync()
    assert tree(mirror.target) == before
