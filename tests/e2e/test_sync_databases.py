"""Databases and logs that a function writes at full speed in a directory that a sync leaves alone: nothing is lost.

`SOAK=1` syncs each kind 1,000 times, LMDB among them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Home
from ..waiting import ended, soak, until

pytestmark = pytest.mark.as_user

SYNCS = soak(12, 1000)

PROGRAM = """
import os, pathlib, sqlite3, sys, time
from pathlib import Path
from atoll import Volume, isolated, sync_dir

STOP = "/data/stop"

def write_sqlite(mode: str) -> int:
    "Commit numbers until told to stop, by connections of which each sees all that came before."
    number, stopped = 0, False
    while not stopped:
        connection = sqlite3.connect("/data/sync/m/out/db", isolation_level=None, timeout=60)
        connection.execute(f"pragma journal_mode={mode}")
        connection.execute("pragma synchronous=off")
        connection.execute("create table if not exists numbers(n integer primary key)")
        found = connection.execute("select count(*), coalesce(max(n), -1) from numbers").fetchone()
        assert found == (number, number - 1), (found, number)
        for _ in range(50):
            connection.execute("begin immediate")
            connection.execute("insert into numbers values(?)", (number,))
            connection.execute("commit")
            number += 1
        Path("/data/wrote").touch()
        stopped = os.path.exists(STOP)
        connection.close()
    return number


def read_sqlite() -> list[int]:
    connection = sqlite3.connect("/data/sync/m/out/db")
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    return [number for (number,) in connection.execute("select n from numbers order by n")]


def write_log() -> int:
    "Append numbers to a file that is opened for each, beside one that is replaced each time."
    number = 0
    while number % 50 or not os.path.exists(STOP):
        with open("/data/sync/m/out/log", "a", encoding="ascii") as file:
            file.write(f"{number}\\n")
        with open("/data/sync/m/out/.next", "w", encoding="ascii") as file:
            file.write(f"{number}")
        os.replace("/data/sync/m/out/.next", "/data/sync/m/out/last")
        number += 1
        Path("/data/wrote").touch()
    return number


def read_log() -> list[int]:
    numbers = [int(line) for line in Path("/data/sync/m/out/log").read_text("ascii").split()]
    assert Path("/data/sync/m/out/last").read_text("ascii") == str(numbers[-1])
    assert sorted(os.listdir("/data/sync/m/out")) == ["last", "log"]
    return numbers


def write_lmdb() -> int:
    "Commit numbers in environments of which each sees all that came before."
    import lmdb

    number, stopped = 0, False
    while not stopped:
        with lmdb.open("/data/sync/m/out/lmdb", map_size=1 << 28, sync=False) as environment:
            with environment.begin() as transaction:
                assert transaction.stat()["entries"] == number
            for _ in range(100):
                with environment.begin(write=True) as transaction:
                    transaction.put(b"%012d" % number, b"")
                number += 1
            Path("/data/wrote").touch()
            stopped = os.path.exists(STOP)
    return number


def read_lmdb() -> list[int]:
    import lmdb

    with lmdb.open("/data/sync/m/out/lmdb", map_size=1 << 28) as environment, environment.begin() as transaction:
        return [int(key) for key, _ in transaction.cursor()]



KINDS = {"sqlite": (write_sqlite, read_sqlite), "log": (write_log, read_log), "lmdb": (write_lmdb, read_lmdb)}

if __name__ == "__main__":
    kind, syncs, *arguments = sys.argv[1:]
    write, read = (isolated(f, requirements=["lmdb"] * (kind == "lmdb"), keep_alive=1) for f in KINDS[kind])
    volume, source = Volume(), Path("source")
    for path in ("/data/sync/m", STOP, "/data/wrote"):
        if volume.exists(path):
            volume.remove(path, recursive=True)
    (source / "src").mkdir(parents=True)

    def sync(generation):
        for name in ("a", f"src/{generation % 30}"):
            (source / name).write_text(str(generation))
        sync_dir(source, "m", exclude=["out/"])

    sync(0)
    volume.mkdir("/data/sync/m/out")
    writer = write.submit(*arguments)
    while not writer.done() and not volume.exists("/data/wrote"):
        time.sleep(0.01)
    try:
        for generation in range(1, int(syncs) + 1):
            sync(generation)
            assert not writer.done(), writer.result()
    finally:
        volume.write_bytes(STOP, b"")
    count = writer.result()
    assert count > 100, count
    assert read() == list(range(count))
    print("whole", count)
"""

KINDS = {
    "SQLite with a rollback journal": ("sqlite", ["delete"]),
    "SQLite with a write-ahead log": ("sqlite", ["wal"]),
    "an append-only log, and a file that is replaced": ("log", []),
    **soak({}, {"LMDB": ("lmdb", [])}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_committed_beside_syncs_is_there(shared_home: Home, tmp_path: Path, kind: str) -> None:
    """Each commit is seen by the writer's next connection and by every later reader."""
    name, arguments = KINDS[kind]
    (tmp_path / "program.py").write_text(PROGRAM)
    limit = soak(120.0, 3600.0)
    done = shared_home.python("program.py", name, str(SYNCS), *arguments, cwd=tmp_path, timeout_seconds=limit)
    assert done.stdout.startswith("whole")


def paused_groups(pid: int) -> list[Path]:
    """Return files that pause the sandbox of a process; writing to one does."""
    lines = Path(f"/proc/{pid}/cgroup").read_text("ascii").splitlines()
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
    if "/atoll-" in paths.get("freezer", ""):
        return [Path(f"/sys/fs/cgroup/freezer{paths['freezer']}/freezer.state")]
    return [Path(f"/sys/fs/cgroup{paths['']}/../cgroup.freeze")] if "/atoll-" in paths.get("", "") else []


def test_what_is_paused_when_the_daemon_dies_ends_with_it(atoll_home: Home) -> None:
    """The processes of a frozen sandbox are gone a moment after the daemon, killed."""
    code = "import time; from atoll import isolated; isolated(keep_alive=1)(time.sleep)(1000)"
    environment = atoll_home.environment()
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=atoll_home.path, env=environment, stderr=subprocess.DEVNULL
    ) as caller:
        workers = until(lambda: sandboxed(atoll_home))
        daemon = atoll_home.daemon_pid()
        assert daemon is not None
        groups = paused_groups(workers[0])
        for group in groups:
            group.write_text("FROZEN" if group.name == "freezer.state" else "1")
        if not groups:
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
        os.kill(daemon, signal.SIGKILL)
        assert all(ended(pid) for pid in workers)
        caller.kill()


def sandboxed(home: Home) -> list[int]:
    """Return the agents of the daemon's sandboxes, and their workers."""
    found = []
    for pid in home.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"bwrap" not in words[0] and any(b"_atoll_agent.py" in word for word in words[:2]):
                found.append(pid)
    return found
