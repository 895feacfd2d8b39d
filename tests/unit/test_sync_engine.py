"""The sync engine through a real peer: equality for any two trees, over any stream, and no more sent than is needed."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.errors import SyncError
from atoll.node import mounted_files
from atoll.storage import crash_points
from atoll.storage.client.volume import VolumeClient
from atoll.storage.content import delta, digest
from atoll.storage.content.digest import BLOCK_BYTES, Hasher, digest_of, maker
from atoll.storage.sync import client, index, target_state
from atoll.storage.sync.client import Synced, SyncOptions
from atoll.storage.volume.locks import target_key
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import name_of
from atoll.wire.channel import Channel

from ..volumes import serving

pytestmark = pytest.mark.as_user


def over_unix() -> tuple[socket.socket, socket.socket]:
    """Two ends of a socket pair."""
    return socket.socketpair()


def over_tcp() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


class Counted(Channel):
    """Counts what is sent, and may spoil it."""

    sent_bytes = 0
    content_bytes = 0
    spoil: Callable[[dict[str, Any], list[Any]], list[Any]] | None = None

    def send(self, header: dict[str, Any], buffers: Any = (), descriptors: Any = ()) -> None:
        if header["type"] in ("batch", "piece"):
            self.content_bytes += len(buffers[-1])
        self.sent_bytes += sum(map(len, buffers)) + 100
        if self.spoil is not None:
            buffers = self.spoil(header, list(buffers))
        super().send(header, buffers, descriptors)


class Side:
    """A volume, an index, and clients of one after the other."""

    def __init__(self, base: Path, connect: Callable[[], tuple[socket.socket, socket.socket]] = over_unix) -> None:
        self.base = base
        self.source = base / "source"
        self.index: Path | None = base / "index"
        self._connect = connect
        (base / "volume").mkdir(parents=True)
        self.source.mkdir()

    @property
    def target(self) -> Path:
        return self.base / "volume/data/t"

    @property
    def peers_index(self) -> Path:
        return self.base / "volume/staging" / name_of("index", target_key("t"))

    def sync(self, spoil: Any = None, **options: Any) -> tuple[Synced, Counted]:
        """Sync with a peer of its own; return what was done and the channel."""
        options.setdefault("compress", "never")
        with serving(self.base / "volume", connect=self._connect) as sock:
            channel = Counted(sock)
            channel.spoil = spoil
            with VolumeClient(channel) as client:
                return client.sync(str(self.source), "t", SyncOptions(index=self.index, **options)), channel


@pytest.fixture(params=[over_unix, over_tcp], ids=["unix", "tcp"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    """A source and a volume, over both kinds of streams."""
    return Side(tmp_path, request.param)


@pytest.fixture(params=["blake3", "sha256"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with each digest."""
    if request.param == "sha256":
        monkeypatch.setattr(digest, "_blake3", lambda: None)
    return str(request.param)


def tree_of(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return all that a mirror must reproduce."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        info = path.lstat()
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path), info.st_mtime_ns)
        elif path.is_dir():
            found[name] = ("directory", info.st_mode, info.st_mtime_ns)
        else:
            found[name] = ("file", info.st_mode, info.st_mtime_ns, path.read_bytes())
    return found


names = st.sampled_from(["a", "b", "c", "d\n", "\udcff", "ä", "a.b", "-"])
leaves = st.one_of(
    st.tuples(
        st.just("file"),
        st.binary(max_size=40),
        st.sampled_from([0o644, 0o600, 0o755, 0o444]),
        st.integers(min_value=0, max_value=3),
    ),
    st.tuples(st.just("link"), st.sampled_from(["a", "../x", "/nowhere"])),
)
trees = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda below: st.dictionaries(names, st.one_of(leaves, below), max_size=4),
    max_leaves=12,
)


def make(root: Path, tree: dict[str, Any]) -> None:
    """Make a directory hold exactly a tree."""
    if root.exists():
        shutil.rmtree(root)
    root.mkdir()
    for name, what in tree.items():
        path = root / name
        if isinstance(what, dict):
            make(path, what)
        elif what[0] == "link":
            path.symlink_to(what[1])
        else:
            path.write_bytes(what[1])
            path.chmod(what[2])
            os.utime(path, ns=(what[3], what[3]))
    os.utime(root, ns=(5, 5))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=trees, second=trees, meddled=trees, keep_index=st.booleans())
def test_any_tree_becomes_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    side: Side,
    algorithm: str,
    first: dict[str, Any],
    second: dict[str, Any],
    meddled: dict[str, Any],
    keep_index: bool,
) -> None:
    """For random trees A and B a sync of A and then of B leaves B, whatever functions did between and with any index."""
    base = tmp_path_factory.mktemp("trees")
    one = Side(base, side._connect)
    for tree in (first, second, second):
        make(one.source, tree)
        one.sync(allow_empty=True)
        assert tree_of(one.target) == tree_of(one.source)
    make(one.target, meddled)
    if not keep_index and one.index is not None:
        one.index.unlink()
    one.sync(allow_empty=True)
    assert tree_of(one.target) == tree_of(one.source)
    shutil.rmtree(base)


def put_back(path: Path, content: bytes) -> None:
    """Change a file's content, with size and modification time as they were."""
    before = path.stat()
    assert before.st_size == len(content)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_change_with_size_and_time_put_back_is_found_on_both_sides(side: Side, algorithm: str) -> None:
    """Change times betray what sizes and modification times hide, here and at the target."""
    for name in "abc":
        (side.source / name).write_bytes(name.encode() * 5000)
    side.sync()
    put_back(side.source / "a", b"A" * 5000)
    put_back(side.target / "b", b"B" * 5000)
    synced, channel = side.sync()
    assert synced.sent == 2
    assert channel.content_bytes == 10_000
    assert tree_of(side.target) == tree_of(side.source)
    synced, channel = side.sync()
    assert not synced.plan


def test_nothing_changed_is_one_small_round_trip(side: Side) -> None:
    """When neither side has changed, no tree travels, in any direction."""
    for number in range(300):
        (side.source / f"a-name-that-would-be-seen-{number}").write_bytes(b"x")
    side.sync()
    side.sync()  # what was too young to be trusted has been hashed
    received = 0
    real = Channel.receive

    def receive(channel: Channel) -> Any:
        nonlocal received
        message = real(channel)
        if isinstance(channel, Counted):
            received += sum(map(len, message.buffers)) + len(str(message.header))
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "receive", receive)
        synced, channel = side.sync()
    assert not synced.plan
    assert channel.sent_bytes < 1000
    assert 0 < received < 1000


def test_what_was_only_touched_does_not_travel(side: Side) -> None:
    """A file with another time and the same content is copied at the target."""
    (side.source / "f").write_bytes(b"x" * 100_000)
    side.sync()
    os.utime(side.source / "f", ns=(7, 7))
    synced, channel = side.sync()
    assert synced.plan.copy == {"f"}
    assert channel.content_bytes == 0
    assert tree_of(side.target) == tree_of(side.source)


@pytest.mark.parametrize("lost", ["client", "both", "damaged"])
def test_without_an_index_nothing_travels_that_is_there(side: Side, lost: str) -> None:
    """A lost or damaged index costs comparing, not sending, and the next sync has one again."""
    for number in range(20):
        (side.source / str(number)).write_bytes(os.urandom(1000))
    side.sync()
    assert side.index is not None
    if lost in ("client", "both"):
        side.index.unlink()
    if lost in ("peer", "both"):
        side.peers_index.unlink()
    if lost == "damaged":
        for path in (side.index, side.peers_index):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    synced, channel = side.sync()
    assert not synced.plan
    assert channel.content_bytes == 0
    put_back(side.target / "3", b"y" * 1000)
    # Without digests at the peer, files whose stamps were too young to be trusted are sent once.
    assert 1 <= side.sync()[0].sent <= (1 if lost == "client" else 20)
    assert tree_of(side.target) == tree_of(side.source)


def test_what_the_peer_alone_has_forgotten_is_sent_again(side: Side) -> None:
    """Where the client remembers a sync and the peer does not, something else may have been put at the target's place:
    size and time, which a function can give to any content, are not believed."""
    (side.source / "f").write_bytes(b"a" * 1000)
    (side.source / "d").mkdir()
    side.sync()
    os.rename(side.target, side.target.with_name("moved"))
    shutil.copytree(side.target.with_name("moved"), side.target.with_name("other"))
    put_back(side.target.with_name("other") / "f", b"b" * 1000)
    side.target.symlink_to("other")
    assert side.sync()[0].sent == 1
    assert tree_of(side.target.resolve()) == tree_of(side.source)


@pytest.mark.parametrize("algorithms", [["sha256"], digest.algorithms()])
@pytest.mark.parametrize("last", ["remember", "generation"])
def test_no_client_can_have_the_peer_believe_in_a_content(side: Side, algorithms: list[str], last: str) -> None:
    """A function that changes the target and has the peer remember that, by whichever digest and under whichever
    generation, has it repaired by the next sync of the source."""
    (side.source / "f").write_bytes(b"a" * 1000)
    side.sync()
    time.sleep(0.05)
    assert not side.sync()[0].plan
    with VolumeRoot(str(side.base / "volume")) as root:
        known = target_state.load(root, target_key("t"))
    put_back(side.target / "f", b"b" * 1000)
    time.sleep(0.05)
    with serving(side.base / "volume") as sock:
        channel = Channel(sock)
        channel.send({"type": "sync", "path": "t", "generation": known.generation, "algorithms": algorithms})
        assert channel.receive().type == "standing"
        channel.send({"type": "end", "remember": last == "remember", "generation": known.generation})
        assert channel.receive().type == "done"
    assert side.sync()[0].sent == 1
    assert tree_of(side.target) == tree_of(side.source)


@pytest.mark.parametrize("how", ["linked", "copied"])
def test_what_a_function_changes_while_contents_arrive_is_repaired(
    side: Side, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A file of the target that is changed during a sync, with size and time put back, is not believed afterwards."""
    for name in "abcd":
        (side.source / name).write_bytes(b"a" * 1000)
    side.sync()
    time.sleep(0.05)
    side.sync()
    for name in "bc":
        (side.source / name).write_bytes(b"b" * 1000)
    if how == "copied":
        (side.source / "a").chmod(0o600)

    def report(step: str, _: object) -> None:
        if step == "resumed":
            put_back(side.target / "a", b"x" * 1000)
        if step == "linked":  # then the links' change times are old enough to be believed
            time.sleep(0.05)

    with monkeypatch.context() as patch:
        patch.setattr(crash_points, "_report", report)
        side.sync()
    time.sleep(0.05)
    side.sync()
    assert tree_of(side.target) == tree_of(side.source)


def test_another_clients_sync_is_noticed(side: Side) -> None:
    """After somebody else has synced other content of the same size and time there, digests tell."""
    (side.source / "f").write_bytes(b"a" * 3000)
    os.utime(side.source / "f", ns=(9, 9))
    side.sync()
    mine, side.index = side.index, side.base / "another"
    put_back(side.source / "f", b"b" * 3000)
    assert side.sync()[0].sent == 1
    put_back(side.source / "f", b"a" * 3000)
    side.index = mine
    assert side.sync()[0].sent == 1
    assert tree_of(side.target) == tree_of(side.source)


@pytest.mark.parametrize("size", [2000, 3 << 20])
def test_content_that_arrives_damaged_does_not_count(
    side: Side, algorithm: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit on the way is found by the digest and the file is sent again; if it never arrives, nothing changes."""
    monkeypatch.setattr(client, "_MOVING_SECONDS", 0.3)  # the time in which a file is sent again
    (side.source / "f").write_bytes(os.urandom(size))
    spoiled = 0

    def spoil(header: dict[str, Any], buffers: list[Any]) -> list[Any]:
        nonlocal spoiled
        if header["type"] in ("batch", "piece") and len(buffers[-1]) and spoiled < most:
            spoiled += 1
            last = buffers[-1]
            content = bytearray(b"".join(map(bytes, getattr(last, "parts", [last]))))
            content[len(content) // 2] ^= 1
            buffers[-1] = content
        return buffers

    most = 1
    side.sync(spoil)
    assert spoiled == 1
    assert tree_of(side.target) == tree_of(side.source)
    before = tree_of(side.target)
    (side.source / "f").write_bytes(os.urandom(size))
    most = 1000
    with pytest.raises(SyncError, match="arrived damaged"):
        side.sync(spoil)
    assert tree_of(side.target) == before


LARGE = random.Random(3).randbytes(12 << 20)
MIB = 1 << 20
EDITS: list[tuple[str, Callable[[], bytes], int]] = [  # made by each test: each process of a run would hold them all
    ("a part is inserted", lambda: LARGE[: 6 * MIB] + b"new" * 100_000 + LARGE[6 * MIB :], 300_000 + 2 * BLOCK_BYTES),
    ("a part is removed", lambda: LARGE[: 5 * MIB] + LARGE[7 * MIB + 5 :], 2 * BLOCK_BYTES),
    ("something is put in front", lambda: b"front" + LARGE, BLOCK_BYTES),
    ("something is appended", lambda: LARGE + b"end" * 1000, BLOCK_BYTES),
    ("it is cut off", lambda: LARGE[: 7 * MIB + 11], 2 * BLOCK_BYTES),
    (
        "it is changed in two places",
        lambda: LARGE[:MIB] + b"x" + LARGE[MIB + 1 : 9 * MIB] + b"y" + LARGE[9 * MIB + 1 :],
        2 * BLOCK_BYTES,
    ),
    (
        "three parts are inserted",
        lambda: b"".join(
            (LARGE[:MIB], b"1", LARGE[MIB : 6 * MIB], b"22", LARGE[6 * MIB : 11 * MIB], b"333", LARGE[11 * MIB :])
        ),
        4 * delta.MAX_CHUNK_BYTES + 2 * BLOCK_BYTES,
    ),
    ("nothing of it stays", lambda: bytes(reversed(LARGE)), len(LARGE)),
]


@pytest.mark.once
@pytest.mark.parametrize(("what", "edit", "most"), EDITS, ids=[edit[0] for edit in EDITS])
@pytest.mark.parametrize("known", ["index", "no index"])
def test_of_a_large_file_only_what_changed_travels(
    tmp_path: Path, what: str, edit: Callable[[], bytes], most: int, known: str
) -> None:
    """A change of a large file costs what has changed, with the client's index and without."""
    side = Side(tmp_path)
    after = edit()
    (side.source / "f").write_bytes(LARGE)
    side.sync()
    if known == "no index" and side.index is not None:
        side.index.unlink()
    if "three" in what and delta.cutter() is None:
        most = len(after)
    (side.source / "f").write_bytes(after)
    synced, channel = side.sync()
    assert synced.sent == 1
    assert channel.content_bytes <= most
    assert (side.target / "f").read_bytes() == after
    assert not side.sync()[0].plan


def test_a_large_file_that_a_function_changed_is_repaired(tmp_path: Path) -> None:
    """What stands at the target is looked at when it is not what the last sync left there."""
    side = Side(tmp_path)
    (side.source / "f").write_bytes(LARGE)
    side.sync()
    with (side.target / "f").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"written by a function")
    synced, channel = side.sync()
    assert synced.sent == 1
    assert channel.content_bytes <= 2 * BLOCK_BYTES
    assert (side.target / "f").read_bytes() == LARGE


@pytest.mark.once
def test_peers_can_cut_contents_into_chunks(tmp_path: Path) -> None:
    """The chunker works with what peers have: the standard library, and what is copied for them."""
    if delta.cutter() is None:
        pytest.skip("pyfastcdc is not installed for this Python")
    native, held = mounted_files.hold(tmp_path, mounted_files.prepare_native)
    code = "import sys; sys.path[:0] = sys.argv[1:]; from atoll.storage.content import delta; print(delta.cutter() is not None)"
    command = [sys._base_executable, "-I", "-S", "-c", code]  # type: ignore[attr-defined]
    library = str(Path(delta.__file__).parents[3])
    done = subprocess.run([*command, library, str(native)], capture_output=True, text=True, check=False)
    os.close(held)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.once
@pytest.mark.parametrize("size", [1, 5 << 20, (8 << 20) - 1000])
def test_chunks_of_a_file_that_ends_early_end_with_it(tmp_path: Path, size: int) -> None:
    """A file that is cut while it is looked at, or a part that reaches beyond it, keeps nobody busy."""
    (tmp_path / "f").write_bytes(LARGE[:size])
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    found = delta.chunks_of(descriptor, 0, 8 << 20, maker("sha256"))
    os.close(descriptor)
    if delta.cutter() is not None:
        assert sum(int.from_bytes(found[at : at + 4], "little") for at in range(0, len(found), 20)) == size
    read = delta.Comparison(
        lambda offset, length: LARGE[offset : min(offset + length, size)],
        8 << 20,
        bytes(32 * -(-len(LARGE[: 5 << 20]) // BLOCK_BYTES)),
        5 << 20,
        lambda _start, _end: found or b"x" * 20,
        maker("sha256"),
    )
    assert sum(part.length for part, _ in read.parts()) == size


def test_a_file_that_was_made_huge_is_replaced(tmp_path: Path) -> None:
    """What a function has grown, which takes no space and no time, is not read by the next sync."""
    side = Side(tmp_path)
    (side.source / "f").write_bytes(LARGE[: 2 << 20])
    side.sync()
    os.truncate(side.target / "f", 1 << 42)
    assert side.sync()[0].sent == 1
    assert tree_of(side.target) == tree_of(side.source)


@pytest.mark.once
def test_without_fastcdc_changes_are_found_from_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the chunker is not installed, an insertion still costs about what was inserted."""
    monkeypatch.setattr(delta, "cutter", lambda: None)
    side = Side(tmp_path)
    (side.source / "f").write_bytes(LARGE)
    side.sync()
    (side.source / "f").write_bytes(LARGE[: 4 * MIB] + b"in" + LARGE[4 * MIB :])
    _, channel = side.sync()
    assert channel.content_bytes <= 2 * BLOCK_BYTES
    assert (side.target / "f").read_bytes() == (side.source / "f").read_bytes()


@pytest.mark.parametrize("compress", ["auto", "always", "never"])
def test_contents_are_compressed_where_it_pays(side: Side, compress: str) -> None:
    """Over TCP what can be compressed is; between processes of one machine it is not, unless that is asked for."""
    (side.source / "text").write_bytes(b"a line of text\n" * 20_000)
    (side.source / "large").write_bytes(b"some more of it\n" * 200_000)
    (side.source / "noise").write_bytes(os.urandom(100_000))
    _, channel = side.sync(compress=compress)
    assert tree_of(side.target) == tree_of(side.source)
    small = compress == "always" or (compress == "auto" and side._connect is over_tcp)
    assert (channel.content_bytes < 500_000) is small
    assert channel.content_bytes >= 100_000


@given(pieces=st.lists(st.integers(min_value=0, max_value=BLOCK_BYTES + 7), max_size=6), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
@pytest.mark.once
def test_a_digest_does_not_depend_on_the_pieces(pieces: list[int], seed: int) -> None:
    """However a content comes, its digest and its blocks are the same."""
    content = random.Random(seed).randbytes(sum(pieces))
    hasher, start = Hasher(maker("sha256")), 0
    for size in pieces:
        hasher.update(content[start : start + size])
        start += size
    assert hasher.digest() == digest_of(maker("sha256"), content)
    whole = Hasher(maker("sha256"))
    whole.update(content)
    assert whole.blocks == hasher.blocks


@pytest.mark.once
@pytest.mark.parametrize("damage", [b"", b"ATOLLIX3", b"x" * 100])
def test_a_damaged_index_is_empty(tmp_path: Path, damage: bytes) -> None:
    """What is no index counts as none."""
    path = tmp_path / "index"
    path.write_bytes(damage)
    assert not index.load(path)


@pytest.fixture(autouse=True)
def _wait_for_writers() -> Iterator[None]:
    """No writer's thread is left behind."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
