"""One user's attacks on calls, files and processes of another, by requests and from inside functions: all must fail."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atoll import Volume, errors
from atoll.host import daemon_start
from tests.conftest import own_home
from tests.waiting import until

from .two_users import UserHost, Users, on, two_users

pytestmark = pytest.mark.as_user  # an identity of its own is root's to give


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    with own_home() as home, two_users(home, shells="1") as made:
        yield made


def write(text: str) -> tuple[int, list[str]]:
    with open("/data/note.txt", "w") as file:
        file.write(text)
    return os.getuid(), sorted(name for name in os.listdir("/data") if not name.startswith("."))


def wait(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.02)
    return "done"


def test_each_user_has_a_volume_and_an_identity(users: Users) -> None:
    """Files of one are in no `/data` of another, and belong to another host uid where the node is root's."""
    ann, files = on(users.ann, write)("ann")
    bob, others = on(users.bob, write)("bob")
    assert files == others == ["note.txt"]
    assert (users.settings.volumes_directory / "u-ann" / "data" / "note.txt").read_text() == "ann"
    assert (users.settings.volumes_directory / "u-bob" / "data" / "note.txt").read_text() == "bob"
    if os.geteuid() == 0:
        assert len({0, ann, bob}) == 3
        assert {(users.settings.volumes_directory / one).stat().st_mode & 0o777 for one in ("u-ann", "u-bob")} == {
            0o700
        }


def test_a_running_call_is_seen_and_reached_by_its_user_alone(users: Users) -> None:
    """Another user's id answers as an unknown one, in every request that names a call."""
    running = on(users.ann, wait, keep_alive=30).submit("/data/go")
    row = until(lambda: users.ann.request("calls.running", {})["calls"])[0]
    assert len(users.ann.request("status", {})["workers"]) >= 1
    assert users.bob.request("calls.running", {})["calls"] == []
    found = users.bob.request("status", {})
    assert {one["user"] for one in found["sandboxes"]} <= {"u-bob"}
    assert "wait" not in {one["function"].rpartition(".")[2] for one in found["workers"]}
    assert (found["calls"], found["daemon"]["home"]) == ([], "")
    for name in ("calls.show", "calls.output", "calls.cancel", "calls.stacks"):
        with pytest.raises(errors.AtollError) as seen:
            users.bob.request(name, {"call": row["call"]})
        with pytest.raises(errors.AtollError) as unknown:
            users.bob.request(name, {"call": "c" * len(row["call"])})
        assert type(seen.value) is type(unknown.value)
        assert seen.value.message.replace(row["call"], "") == unknown.value.message.replace("c" * len(row["call"]), "")
    (worker,) = (one["id"] for one in users.ann.request("status", {})["workers"] if one["state"] == "busy")
    operator = UserHost(users.home.path, "u-operator", admin=True)
    assert operator.request("calls.stacks", {"call": row["call"]})["call"] == row["call"]
    for host in (users.bob, operator):
        with pytest.raises(errors.ResourcesUnavailable, match="no call that runs"):
            host.run_command(row["call"], ["true"], (0, 1, 2), terminal=False, on_start=pytest.fail)
        with pytest.raises(errors.WorkerDied):
            host.dial(worker, 80)
    assert (
        users.ann.run_command(row["call"], ["sh", "-c", "exit 4"], (0, 1, 2), terminal=False, on_start=lambda: None)
        == 4
    )
    with pytest.raises(errors.PortUnreachable):
        users.ann.dial(worker, 80)
    (users.settings.volumes_directory / "u-ann" / "data" / "go").touch()
    assert running.result() == "done"


def test_shells_of_a_user_are_bounded(users: Users) -> None:
    """One more is refused, and says so; another user's has its own place."""
    spec = on(users.ann, write).lease_spec(pickled=False)

    def shell(host: UserHost, stdin: int, on_start: Callable[[], object]) -> int:
        return host.run_shell(spec, (stdin, 1, 2), terminal=False, on_progress=print, on_start=on_start)  # type: ignore[arg-type]

    read, typed = os.pipe()
    begun = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(shell, users.ann, read, begun.set)
        try:
            assert begun.wait(60)
            with open("/dev/null") as nothing:
                with pytest.raises(errors.ResourcesUnavailable, match="1 open shells"):
                    shell(users.ann, nothing.fileno(), int)
                assert shell(users.bob, nothing.fileno(), int) == 0
        finally:
            os.write(typed, b"exit 6\n")
            assert first.result(60) == 6
            os.close(read)
            os.close(typed)


def test_only_the_operator_ends_the_node(users: Users) -> None:
    """A user's request to stop or drain is refused."""
    for name in ("stop", "drain"):
        with pytest.raises(errors.ResourcesUnavailable, match="for administrators"):
            users.bob.request(name, {})


def test_no_user_asks_for_another(users: Users, tmp_path: Path) -> None:
    """A message names one user, never the node's owner, and nothing that the node does not know."""
    for wrong in ({"user": "local"}, {"user": "../x"}, {"user": "a", "root": True}, {"user": "a", "limits": {"x": 1}}):
        channel = daemon_start.open_connection(
            users.settings, {"type": "request", "name": "status", "arguments": {}, "as": wrong}
        )
        assert channel.receive().header["error"]["code"] == "protocol_mismatch"
        channel.close()


def double(number: int) -> int:
    return number * 2


def test_detached_calls_are_made_in_their_users_name(users: Users) -> None:
    """They see that user's `/data`, and no other user finds them by id, list or batch."""
    job = on(users.ann, write).spawn("detached")
    uid, _ = job.result()
    assert (users.settings.volumes_directory / "u-ann" / "data" / "note.txt").read_text() == "detached"
    assert os.geteuid() != 0 or uid == (users.settings.volumes_directory / "u-ann").stat().st_uid
    assert users.bob.request("detached.list", {})["calls"] == []
    assert len(users.ann.request("detached.list", {})["calls"]) == 1
    for verb in ("show", "cancel", "result", "output", "forget", "wait"):
        with pytest.raises(errors.CallUnknown):
            users.bob.request(f"detached.{verb}", {"call": job.id})


# --- from inside a function ---------------------------------------------------------------------------------------------


def leave_secret() -> tuple[int, int]:
    with open("/data/secret", "w") as file:
        file.write("of ann")
    return os.getuid(), os.getpid()


def hold(path: str) -> str:
    open("/data/holding", "w").close()
    while not os.path.exists(path):
        time.sleep(0.02)
    return "done"


def attack_files(volume: str, home: str) -> dict[str, str]:
    """Try every way to a path of another user, by the names that it has on the machine."""
    found = {}

    def attempt(name: str, work: Any) -> None:
        try:
            found[name] = f"done: {work()!r}"[:80]
        except OSError as error:
            found[name] = type(error).__name__

    secret = f"{volume}/data/secret"
    attempt("read", lambda: open(secret).read())
    attempt("list", lambda: os.listdir(f"{volume}/data"))
    attempt("list volumes", lambda: os.listdir(os.path.dirname(volume)))
    attempt("state", lambda: os.listdir(home))
    attempt("link", lambda: os.link(secret, "/data/linked"))
    os.symlink(secret, "/data/pointer")
    attempt("symlink", lambda: open("/data/pointer").read())
    attempt("dots", lambda: open("/data/../../u-ann/data/secret").read())
    attempt("snapshots", lambda: open("/data/.snapshots/../../../u-ann/data/secret").read())
    attempt("root of init", lambda: open(f"/proc/1/root{secret}").read())
    attempt("socket", lambda: __import__("socket").socket(1).connect(f"{home}/run/daemon.sock"))
    return found


def attack_processes(uid: int) -> dict[str, Any]:
    """Signal, trace and look at everything that this process can name."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    found: dict[str, Any] = {"pids": len(pids), "others": 0, "signalled": 0, "traced": 0}
    for pid in range(1, 5000):
        try:
            owner = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            owner = -1
        found["others"] += owner == uid
        if pid not in pids:
            try:
                os.kill(pid, 0)
                found["signalled"] += 1
            except OSError:
                pass
            found["traced"] += libc.ptrace(16, pid, 0, 0) == 0
    for change in ("setuid", "setgid", "setreuid"):
        try:
            getattr(os, change)(*([0] * (2 if "re" in change else 1)))
            found[change] = "changed"
        except OSError as error:
            found[change] = type(error).__name__
    found["uid"] = os.getuid()
    return found


def test_no_path_leads_to_another_users_files(users: Users) -> None:
    """Names of the machine, links, dots, other processes' roots and the node's socket lead nowhere."""
    on(users.ann, leave_secret)()
    volume = users.settings.volumes_directory / "u-ann"
    found = on(users.bob, attack_files)(str(volume), str(users.home.path))
    assert {name: text for name, text in found.items() if text.startswith("done")} == {}
    assert (volume / "data" / "secret").stat().st_nlink == 1


def test_no_process_of_another_user_is_reached(users: Users) -> None:
    """None is seen, signalled or traced, and nobody becomes uid 0."""
    uid, _ = on(users.ann, leave_secret)()
    holding = on(users.ann, hold)
    running = holding.submit("/data/end-of-hold")
    data = users.settings.volumes_directory / "u-ann" / "data"
    until((data / "holding").exists)
    found = on(users.bob, attack_processes)(uid if os.geteuid() == 0 else -2)
    assert (found["others"], found["signalled"], found["traced"]) == (0, 0, 0)
    assert {found[change] for change in ("setuid", "setgid", "setreuid")} == {"PermissionError"} or found["uid"] != 0
    (data / "end-of-hold").touch()
    assert running.result() == "done"


def test_a_storage_client_sees_its_users_volume_alone(users: Users) -> None:
    """Through the protocol of `/data`, too: reads, links of the volume and restores stay in it."""
    on(users.ann, leave_secret)()
    on(users.bob, os.symlink)(str(users.settings.volumes_directory / "u-ann" / "data" / "secret"), "/data/to-ann")
    with Volume(users.bob) as volume:
        for path in ("secret", "to-ann", "../../u-ann/data/secret", "/etc/passwd", "..", "a/../../b"):
            with pytest.raises((errors.AtollError, OSError, ValueError)):
                volume.open(path, "r").read()
    assert "secret" not in on(users.bob, os.listdir)("/data")


def test_a_nested_channel_is_one_users_and_ends_with_its_sandbox(users: Users) -> None:
    """A function's own connection asks as its user alone, whatever it says, and nobody can use it afterwards."""
    seen = on(users.bob, ask_inside)(users.ann.user)
    assert seen == ["resources_unavailable", "resources_unavailable", "u-bob"]


def ask_inside(other: str) -> list[str]:
    """Ask in another's name over the channel of this function; then make a nested call, which writes where it is."""
    from atoll import isolated
    from atoll.errors import AtollError
    from atoll.host import daemon_start
    from atoll.settings import Settings

    answers = []
    for message in ({"type": "request", "name": "status", "arguments": {}}, {"type": "storage"}):
        try:
            channel = daemon_start.open_connection(Settings(Path("/nonexistent")), {**message, "as": {"user": other}})
            header = channel.receive().header
            answers.append(str((header.get("error") or {"code": header.get("type")})["code"]))
            channel.close()
        except AtollError as error:
            answers.append(error.code)

    def write() -> str:
        with open("/data/nested", "w") as file:
            file.write("x")
        return "secret" if os.path.exists("/data/secret") else "u-bob"

    answers.append(isolated(write)())
    return answers


def test_signals_by_number_stop_nobody(users: Users) -> None:
    """`kill(-1)` ends the function's own sandbox at most."""
    holding = on(users.ann, hold)
    running = holding.submit("/data/end-of-second")
    data = users.settings.volumes_directory / "u-ann" / "data"
    until((data / "holding").exists)
    on(users.bob, kill_all)()
    (data / "end-of-second").touch()
    assert running.result() == "done"


def kill_all() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.kill(-1, signal.SIGTERM)
    except OSError as error:
        return type(error).__name__
    return "sent"


def test_detached_calls_of_a_user_are_bounded_and_run_no_command_of_the_owners(users: Users, tmp_path: Path) -> None:
    """A quarter of the disk for detached calls is one user's, and the command that tells of ends is the owner's."""
    from atoll.daemon.detached import requests
    from atoll.detached.rows import Row
    from atoll.detached.store import Store
    from atoll.settings import DetachedSettings

    with contextlib.closing(Store(tmp_path, DetachedSettings())) as store:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(requests, "MOST_WAITING", 1)
            with pytest.raises(errors.DetachedFull, match="no room for 2 more"):
                requests._check_share(store, Row("", "u-bob", spool_bytes=10), 2, 1 << 20)
        with pytest.raises(errors.DetachedFull):
            requests._check_share(store, Row("", "u-bob", spool_bytes=2 << 20), 1, 1 << 20)
    job = on(users.bob, double, on_done="notify").spawn(4)
    assert job.result() == 8
    (row,) = [one for one in users.bob.request("detached.list", {})["calls"] if one["call"] == job.id]
    assert not row.get("on_done")
