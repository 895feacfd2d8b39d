"""The daemon: started once, shared, left behind by nobody."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import LocalHost, errors, isolated
from atoll.host import daemon_start
from atoll.node import mounted_files
from atoll.sandbox.limits import limits
from atoll.wire.channel import connect
from tests.conftest import Home

from ..waiting import PATIENCE_SECONDS, ended, soak, until

PROGRAM = """
import os, pathlib, sys, time
from atoll import isolated

@isolated(keep_alive=float(os.environ.get("KEEP_ALIVE", "10")))
def f(wait=0.0):
    if wait:
        pathlib.Path("/data/running").write_text(str(os.getpid()))
        time.sleep(wait)
    return os.getpid()

print(f(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@contextlib.contextmanager
def running(home: Home, program: Path) -> Iterator[subprocess.Popen[str]]:
    """A client whose call is running in its worker."""
    mark = home.path / "volumes" / "local" / "data" / "running"
    with contextlib.suppress(FileNotFoundError):
        mark.unlink()
    with subprocess.Popen(
        [sys.executable, str(program), "1000"],
        env=home.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        try:
            until(lambda: mark.exists() and mark.read_text())
            yield client
        finally:
            client.kill()


def status(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.atoll("status", "--json").stdout)
    return found


def test_ten_programs_that_start_together_get_one_daemon(atoll_home: Home, program: Path) -> None:
    """Whoever races, there is one daemon, and everybody is served."""
    clients = [
        subprocess.Popen([sys.executable, str(program)], env=atoll_home.environment(), stdout=subprocess.PIPE)
        for _ in range(10)
    ]
    assert [client.wait(120) for client in clients] == [0] * 10
    for client in clients:
        assert client.stdout is not None
        client.stdout.close()
    log = (atoll_home.path / "logs" / "daemon.log").read_text()
    assert log.count("daemon_started") == 1


def test_a_starter_that_is_killed_leaves_one_daemon_or_none(atoll_home: Home, program: Path) -> None:
    """A client killed while its daemon starts does not make room for a second daemon."""
    chance = random.Random(3)
    for _ in range(soak(3, 12)):
        client = subprocess.Popen([sys.executable, str(program)], env=atoll_home.environment(), stdout=-3, stderr=-3)
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(0.05 + chance.random() * 0.2)  # the moment of its death
        client.kill()
        client.wait()
        atoll_home.python(str(program))
        daemons = [pid for pid in atoll_home.processes() if b"atoll.daemon.main" in _command_line(pid)]
        assert daemons == [atoll_home.daemon_pid()]
        atoll_home.stop()


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_a_worker_stays_warm_from_one_run_of_a_program_to_the_next(atoll_home: Home, program: Path) -> None:
    """A second run meets the worker of the first one."""
    first = atoll_home.python(str(program)).stdout
    assert atoll_home.python(str(program)).stdout == first
    (worker,) = status(atoll_home)["workers"]
    assert worker["calls"] == 2
    assert worker["state"] == "idle"
    assert worker["memory_bytes"] > 0


def test_worker_and_sandbox_go_when_keep_alive_has_passed(atoll_home: Home, program: Path) -> None:
    """Nothing idles longer than it was asked to."""
    atoll_home.python(str(program), env={"KEEP_ALIVE": "0.3"})
    until(lambda: not status(atoll_home)["sandboxes"])


def test_keep_alive_of_zero_keeps_nothing(atoll_home: Home, program: Path) -> None:
    """With `keep_alive=0` each call has a worker of its own."""
    host = LocalHost(atoll_home.path)
    function = isolated(host=host, keep_alive=0)(os.urandom)
    assert len({function(8), function(8)}) == 2
    until(lambda: not status(atoll_home)["sandboxes"])


def test_the_daemon_leaves_when_it_is_idle(atoll_home: Home, program: Path) -> None:
    """With nothing alive and nobody connected the daemon ends, and removes its socket."""
    (atoll_home.path / "settings.toml").write_text("[pool]\ndaemon_idle_seconds = 0.5\n")
    atoll_home.python(str(program), env={"KEEP_ALIVE": "0"})
    pid = atoll_home.daemon_pid()
    assert pid is None or ended(pid), "the daemon stays"
    assert not (atoll_home.path / "run" / "daemon.sock").exists()
    atoll_home.python(str(program))


def test_stop_ends_the_daemon_and_all_that_it_started(atoll_home: Home, program: Path) -> None:
    """`atoll stop` leaves no process, also with a call running; its caller gets a named error."""
    with running(atoll_home, program) as client:
        atoll_home.atoll("stop")
        assert atoll_home.wait_processes() == []
        _, err = client.communicate(timeout=120)
        assert client.returncode == 1
        assert "HostUnreachable" in err or "WorkerDied" in err
    assert "no daemon" in atoll_home.atoll("stop").stdout


def worker_pid(home: Home) -> int:
    return int(until(lambda: [one["pid"] for one in status(home)["workers"] if one["pid"]])[0])


def agent_pid(home: Home) -> int:
    """Return the agent's process: the parent of the worker's, on the host."""
    text = Path(f"/proc/{worker_pid(home)}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


VICTIMS: dict[str, Callable[[Home, subprocess.Popen[str]], int]] = {
    "daemon": lambda home, _client: home.daemon_pid() or 0,
    "worker": lambda home, _client: worker_pid(home),
    "agent": lambda home, _client: agent_pid(home),
    "client": lambda _home, client: client.pid,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_after_a_kill_nothing_stays_behind_and_the_next_call_works(
    victim: str, atoll_home: Home, program: Path
) -> None:
    """Whoever is killed during a call, its processes end, and the next call works."""
    with running(atoll_home, program) as client:
        worker = worker_pid(atoll_home)
        pid = VICTIMS[victim](atoll_home, client)
        pidfd = os.pidfd_open(worker)
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0], f"the worker outlived the {victim}"
        os.close(pidfd)
        if victim == "daemon":
            client.wait(120)
            assert atoll_home.wait_processes() == []
        if victim != "client":
            _, err = client.communicate(timeout=120)
            assert client.returncode == 1
            assert ("HostUnreachable" if victim == "daemon" else "WorkerDied") in err
    atoll_home.python(str(program))


def test_ctrl_c_stops_the_call_and_returns_at_once(atoll_home: Home, program: Path) -> None:
    """An interrupted caller ends with `KeyboardInterrupt`, and its function does not run on."""
    with running(atoll_home, program) as client:
        pidfd = os.pidfd_open(worker_pid(atoll_home))
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=PATIENCE_SECONDS)
        assert "KeyboardInterrupt" in err
        assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0], "the call goes on without its caller"
        os.close(pidfd)
    atoll_home.python(str(program))


def test_a_stopped_agent_does_not_keep_what_its_client_has_left(atoll_home: Home, program: Path) -> None:
    """Code in a sandbox that stops its agent cannot outlive its client for long."""
    with running(atoll_home, program) as client:
        pidfd = os.pidfd_open(worker_pid(atoll_home))
        os.kill(agent_pid(atoll_home), signal.SIGSTOP)
        client.kill()
        assert select.select([pidfd], [], [], 120)[0], "the worker stays"
        os.close(pidfd)
    atoll_home.python(str(program))


def test_a_stopped_daemon_is_ended_all_the_same(atoll_home: Home, program: Path) -> None:
    """`atoll stop` ends a daemon that does not answer by a signal, and says so."""
    atoll_home.python(str(program))
    pid = atoll_home.daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    done = atoll_home.atoll("stop", timeout_seconds=120)
    assert "sending SIGKILL" in done.stdout
    assert done.stdout.splitlines()[-1] == f"stopped daemon {pid}"


def test_a_daemon_of_another_version_is_replaced_while_its_calls_go_on(atoll_home: Home, program: Path) -> None:
    """After an upgrade the next program gets a daemon of its own version; running calls are not disturbed."""
    newer = "import atoll; atoll.__version__ = '9.9.9'\n" + PROGRAM
    other = program.with_name("newer.py")
    other.write_text(newer)
    with running(atoll_home, program) as client:
        old = atoll_home.daemon_pid()
        copy = program.parent / "copy"
        source = Path(daemon_start.__file__).parents[2]
        for package in ("atoll", "fal_serverless"):
            shutil.copytree(source / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        init = copy / "atoll" / "__init__.py"
        init.write_text(init.read_text().replace('__version__ = "0.1.0"', '__version__ = "9.9.9"'))
        done = atoll_home.python(str(other), env={"PYTHONPATH": str(copy)})
        assert done.stdout.strip().isdigit()
        new = atoll_home.daemon_pid()
        assert new not in (None, old)
        assert client.poll() is None
        client.kill()
    assert old is not None
    assert ended(old), "the old daemon stays after its last call"


def test_garbage_on_the_socket_does_not_disturb_the_daemon(atoll_home: Home, program: Path) -> None:
    """Bytes that are no frames end their own connection only."""
    atoll_home.python(str(program))
    chance = random.Random(1)
    for size in (0, 1, 11, 12, 100, 5000):
        client = connect(atoll_home.path / "run" / "daemon.sock")
        with contextlib.suppress(OSError):
            client.sendall(b"AT\x01\x00" * (size % 2) + chance.randbytes(size))
            client.shutdown(socket.SHUT_WR)
            client.settimeout(120)
            while client.recv(4096):
                pass
        client.close()
    for header in ({}, {"type": "hello"}, {"type": "hello", "version": 3}):
        with contextlib.suppress(errors.AtollError):
            _send(atoll_home, header)
    pid = atoll_home.daemon_pid()
    atoll_home.python(str(program))
    assert atoll_home.daemon_pid() == pid


def _send(home: Home, header: dict[str, Any]) -> None:
    from atoll.wire.channel import Channel, ChannelClosed

    channel = Channel(connect(home.path / "run" / "daemon.sock"))
    channel.socket.settimeout(120)
    with contextlib.suppress(ChannelClosed):
        channel.send(header)
        channel.receive()
        channel.send({"type": "lease", "spec": {"environment": {"requirements": "no list"}}})
        channel.receive()
    channel.close()


def test_the_daemon_works_with_pickle_blocked(atoll_home: Home, program: Path) -> None:
    """No bytes of a user are ever unpickled by the daemon: it runs where pickle cannot be imported."""
    options = LocalHost(atoll_home.path).settings
    daemon_start.prepare_home(options)
    package = str(Path(daemon_start.__file__).parents[2])
    code = (
        "import sys\n"
        "for name in ('pickle', '_pickle', 'cloudpickle', '_atoll_cloudpickle', 'marshal_pickle', 'dill'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {package!r})\n"
        "from atoll.daemon.main import main\n"
        "sys.exit(main())\n"
    )
    read, write = os.pipe()
    lock = os.open(atoll_home.path / "run" / "daemon.lock", os.O_CREAT | os.O_RDWR)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(atoll_home.path), str(write), str(lock)],
        pass_fds=[write, lock],
        cwd="/",
    ) as daemon:
        os.close(write)
        os.close(lock)
        assert os.read(read, 100) == b"ready"
        os.close(read)
        assert atoll_home.daemon_pid() == daemon.pid
        atoll_home.python(str(program))
        assert atoll_home.daemon_pid() == daemon.pid
        atoll_home.stop()
        daemon.wait(120)


def test_two_programs_take_turns_on_one_slot(atoll_home: Home, program: Path) -> None:
    """An idle lease is taken back when another program waits, and calls that crossed it are not lost."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\n")
    loop = program.with_name("loop.py")
    loop.write_text(
        "import sys\nfrom atoll import isolated\n"
        "@isolated(env={'WHO': sys.argv[1]})\ndef f(x):\n    return x\n"
        "assert [f(x) for x in range(300)] == list(range(300))\n"
    )
    clients = [
        subprocess.Popen([sys.executable, str(loop), who], env=atoll_home.environment()) for who in ("a", "b", "c")
    ]
    assert [client.wait(120) for client in clients] == [0, 0, 0]


def test_a_home_longer_than_a_sockets_name_works(atoll_home: Home, program: Path) -> None:
    """The length of `ATOLL_HOME` does not matter."""
    home = Home(atoll_home.path / ("long-" * 12) / ("name-" * 12))
    home.path.mkdir(parents=True)
    home.python(str(program))
    home.stop()


@pytest.mark.as_user
@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere; the read-only mount below covers it")
def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, program: Path) -> None:
    """A read-only home gives `StateUnusable` with the way out."""
    tmp_path.joinpath("home").mkdir(mode=0o500)
    done = Home(tmp_path / "home").python(str(program), cwd=tmp_path, check=False)
    assert "StateUnusable" in done.stderr
    assert "set ATOLL_HOME" in done.stderr


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.root
def test_a_home_on_a_read_only_or_full_disk_is_named(tmp_path: Path, program: Path) -> None:
    """A state directory that cannot be written gives a named error with the way out, and leaves no daemon."""
    with mounted(tmp_path / "ro", "ro,size=1m") as directory:
        done = Home(directory).python(str(program), cwd=tmp_path, check=False)
        assert "StateUnusable" in done.stderr
        assert "set ATOLL_HOME" in done.stderr
    with mounted(tmp_path / "full", "size=64k") as directory:
        with contextlib.suppress(OSError):
            (directory / "filler").write_bytes(bytes(1 << 20))
        done = Home(directory).python(str(program), cwd=tmp_path, check=False)
        assert "DiskFull" in done.stderr


@pytest.mark.root
def test_a_disk_that_fills_up_in_a_call_is_an_error_of_the_call(tmp_path: Path, atoll_home: Home) -> None:
    """A full `/data` is the function's own `OSError`; what was written is there, and the next call works."""
    data = atoll_home.path / "volumes"
    data.mkdir(mode=0o711)
    with mounted(data, "size=4m,mode=711"):
        host = LocalHost(atoll_home.path)

        @isolated(host=host)
        def fill(name: str, size: int) -> int:
            with open(f"/data/{name}", "wb", buffering=0) as file:
                file.writelines(bytes(1 << 20) for _ in range(size))
            return os.path.getsize(f"/data/{name}")

        assert fill("small", 1) == 1 << 20
        with pytest.raises(OSError, match="No space left") as caught:
            fill("large", 10)
        assert caught.value.errno == 28
        assert isolated(host=host)(os.path.getsize)("/data/small") == 1 << 20
        atoll_home.stop()


def test_no_bubblewrap_is_named(atoll_home: Home, program: Path) -> None:
    """A machine without bubblewrap gives `SandboxUnavailable` with the way out."""
    (atoll_home.path / "settings.toml").write_text('[sandbox]\nbwrap = "/no/such/bwrap"\n')
    done = atoll_home.python(str(program), check=False)
    assert "SandboxUnavailable" in done.stderr
    assert "hint:" in done.stderr


def test_a_worker_that_uses_too_much_memory_is_named(atoll_home: Home) -> None:
    """The limit is enforced on the worker and its processes, and the error has limit and peak."""
    (atoll_home.path / "settings.toml").write_text(f"[pool]\nworker_memory_bytes = {200 << 20}\n")
    host = LocalHost(atoll_home.path)

    @isolated(host=host)
    def hog(size: int) -> int:
        kept = []
        for _ in range(size >> 20):
            kept.append(bytearray(os.urandom(1 << 10) * (1 << 10)))
            time.sleep(0.001)
        return len(kept)

    assert hog(10 << 20) == 10
    with pytest.raises(errors.OutOfMemory) as caught:
        hog(2000 << 20)
    assert caught.value.limit_bytes == 200 << 20
    assert (caught.value.peak_bytes or 0) >= 190 << 20
    assert hog(10 << 20) == 10


def test_children_that_were_forked_at_once_are_under_the_limit(atoll_home: Home) -> None:
    """A process that the function starts on its first line cannot use more than its worker may."""
    (atoll_home.path / "settings.toml").write_text(f"[pool]\nworker_memory_bytes = {200 << 20}\n")

    @isolated(host=LocalHost(atoll_home.path))
    def fork() -> bytes:
        read, write = os.pipe()
        if os.fork() == 0:
            time.sleep(2.0)  # until the worker has come under its limit
            kept = os.urandom(1 << 20) * 600
            os.write(write, b"%d" % len(kept))
            os._exit(0)
        os.close(write)
        return os.read(read, 100)

    with contextlib.suppress(errors.OutOfMemory):  # where all of the worker is ended with it
        assert fork() == b""


HIDDEN = """
import os, time
time.sleep(2.0)  # until the worker has come under its limit
open("/data/hidden", "w").write(str(os.getpid()))
kept = os.urandom(1 << 20) * 600
open("/data/kept", "w").write(str(len(kept)))
time.sleep(1000)
"""


def hide(code: str) -> None:
    """Start a program that has nothing of its worker: neither parent nor session nor environment."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execve("/opt/atoll/env/bin/python", ["python", "-c", code], {})
        os._exit(0)
    os.wait()


def test_a_process_that_hides_from_its_worker_is_under_its_limit(atoll_home: Home) -> None:
    """What leaves its worker's parentage, session and environment at once cannot use more than the worker may."""
    (atoll_home.path / "settings.toml").write_text(f"[pool]\nworker_memory_bytes = {200 << 20}\n")
    if not any("memory" in place.controllers for place in limits._placed("atoll-test")):
        pytest.skip("no control groups can be made here")

    @isolated(host=LocalHost(atoll_home.path), keep_alive=60)
    def spawn() -> None:
        hide(HIDDEN)

    spawn()
    data = atoll_home.path / "volumes/local/data"
    until((data / "hidden").exists)
    hidden = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if b"/data/kept" in _command_line(pid)]
    until(lambda: not any(b"/data/kept" in _command_line(pid) for pid in hidden))
    assert not (data / "kept").exists()


def test_a_process_that_hides_from_its_worker_ends_with_it(atoll_home: Home) -> None:
    """What leaves its worker's parentage, session and environment at once does not outlive the worker."""

    @isolated(host=LocalHost(atoll_home.path))
    def spawn() -> None:
        hide("import time; time.sleep(1000.5)")
        os._exit(3)

    @isolated(host=LocalHost(atoll_home.path))
    def look() -> str:
        return "".join(path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline"))

    with pytest.raises(errors.WorkerDied):
        spawn()
    assert "sleep(1000.5)" not in look()


def test_a_call_whose_worker_says_that_it_is_idle_can_be_cancelled(atoll_home: Home) -> None:
    """A function that gives its lease up and runs on is killed by a cancel."""

    @isolated(host=LocalHost(atoll_home.path), keep_alive=600)
    def lie() -> None:
        import gc

        worker = next(one for one in gc.get_objects() if type(one).__name__ == "Worker" and hasattr(one, "_control"))
        worker._control.send({"type": "idle", "epoch": worker._epoch})
        time.sleep(1000.25)

    future = lie.submit()
    until(lambda: [one["state"] for one in status(atoll_home)["workers"]] == ["idle"])
    assert lie.cancel(future)
    with pytest.raises(errors.CallCancelled):
        future.result(timeout=120)
    until(lambda: not status(atoll_home)["workers"])


def test_settings_that_are_wrong_are_named(atoll_home: Home, program: Path) -> None:
    """A mistake in settings.toml is told with the option's name, and with what would be right."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslot = 1\n")
    done = atoll_home.python(str(program), check=False)
    assert "StateUnusable" in done.stderr
    assert "pool.slot" in done.stderr


def test_a_mistake_in_the_settings_keeps_nobody_from_the_daemon(atoll_home: Home, program: Path) -> None:
    """Commands, calls and detached calls go on with the last good settings; each command names the mistake once."""
    file = atoll_home.path / "settings.toml"
    file.write_text("[detached]\nat_a_time = 1\n")
    atoll_home.python(str(program))
    pid = atoll_home.daemon_pid()
    file.write_text("\n[pool]\nslots = 'two'\n")
    assert isolated(host=LocalHost(atoll_home.path))(os.getpid).spawn().result(60)  # the keeper starts now
    until(lambda: "settings_refused" in (atoll_home.path / "logs" / "daemon.log").read_text())
    (call,) = json.loads(atoll_home.atoll("calls", "list", "-n", "1", "--json").stdout)
    for command in (
        ["status"],
        ["logs"],
        ["logs", call["call"]],
        ["calls", "list"],
        ["cancel", "feed0000"],
        ["version"],
    ):
        done = atoll_home.atoll(*command, check=False)
        assert done.returncode == (command[0] == "cancel"), (command, done)
        named = (done.stdout + done.stderr).count("line 3: `pool.slots` must be a whole number")
        assert named == (2 if command == ["logs"] else 1), (command, done)  # the log has it too
        if command == ["version"]:
            assert f"process {pid}" in done.stdout
            assert "not found" not in done.stdout
    assert atoll_home.atoll("stop").stdout == f"stopped daemon {pid}\n"
    done = atoll_home.atoll("status")
    assert done.stdout == "no daemon is running; the first call starts one\n"
    assert done.stderr.startswith("settings: the file is not read: ")
    done = atoll_home.python(str(program), check=False)
    assert "StateUnusable" in done.stderr


def test_changed_settings_count_without_a_stop(atoll_home: Home, program: Path) -> None:
    """A running daemon tells of a mistake, then of options that wait; it leaves for them when nothing runs."""
    file = atoll_home.path / "settings.toml"
    file.write_text("[pool]\ndaemon_idle_seconds = 2\n")  # it looks twice a second
    with running(atoll_home, program):
        pid = atoll_home.daemon_pid()
        file.write_text("[pool]\nslots = 'two'\n")

        def told() -> dict[str, Any]:
            found = LocalHost(atoll_home.path).request_running("status", {})
            assert found is not None
            settings: dict[str, Any] = found["daemon"]["settings"]
            return settings

        log = atoll_home.path / "logs" / "daemon.log"
        until(lambda: "settings_refused" in log.read_text())
        assert "line 2: `pool.slots` must be" in told()["error"]
        file.write_text("[pool]\nslots = 2\ndaemon_idle_seconds = 1000\n")
        assert until(lambda: told()["pending"] and told()) == {"error": "", "pending": ["pool.slots"]}
        shown = atoll_home.atoll("status").stdout
        assert "settings: `pool.slots` will count when nothing runs, or after `atoll stop`" in shown
    assert pid is not None
    assert ended(pid), "the daemon stays with the earlier settings"
    atoll_home.python(str(program))
    assert told() == {"error": "", "pending": []}


def test_agent_files_are_made_once_for_each_version(tmp_path: Path) -> None:
    """What sandboxes mount is named by its contents, and holds no file of another version."""
    first = mounted_files.prepare(tmp_path)
    assert mounted_files.prepare(tmp_path) == first
    assert (first / "_atoll_cloudpickle.py").is_file()
    assert not list(tmp_path.glob(".stage-*"))


def test_a_sweep_of_kills_loses_no_call_and_leaves_nothing(atoll_home: Home, program: Path) -> None:
    """Daemon, agent, worker or client killed at random moments, over and over: no leftovers, and the next call works."""
    chance = random.Random(7)
    for _ in range(soak(12, 200)):
        client = subprocess.Popen(
            [sys.executable, str(program), "0.05"],
            env=atoll_home.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(chance.random() * 0.35)  # the moment of the victim's death
        victims = [client.pid, atoll_home.daemon_pid(), *_inside(atoll_home)]
        victim = chance.choice([pid for pid in victims if pid])
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        client.wait(120)
        if victim == atoll_home.daemon_pid():
            until(lambda: not _inside(atoll_home))
    assert atoll_home.python(str(program)).stdout.strip().isdigit()
    for record in (atoll_home.path / "environments").glob("*/"):
        if not record.name.startswith("."):
            assert (record / "record.json").exists()


def _inside(home: Home) -> list[int]:
    """Return the processes that see a part of the home as a mount: those in sandboxes."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if str(home.path) in Path("/proc", name, "mountinfo").read_text():
                found.append(int(name))
    return found
