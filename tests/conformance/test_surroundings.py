"""What a function finds around itself: a plain process of a user who is not root, with nothing of the caller's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Place

pytestmark = pytest.mark.as_user


def test_nobody_is_root(place: Place) -> None:
    """User and group are not 0, and cannot be made so."""

    def who() -> tuple[Any, ...]:
        try:
            os.setuid(0)
            became = True
        except OSError:
            became = False
        return os.getresuid() + os.getresgid(), became

    ids, became = place.isolated(who)()
    assert 0 not in ids
    assert not became


def test_the_user_has_a_name_and_a_home(place: Place) -> None:
    """What asks for the user's name or home finds one."""

    def look() -> tuple[bool, bool, str]:
        import getpass
        import pwd

        entry = pwd.getpwuid(os.getuid())
        return bool(getpass.getuser()), entry.pw_dir == os.path.expanduser("~"), os.environ["HOME"]

    assert place.isolated(look)() == (True, True, "/home/user")


def test_the_working_directory_is_the_home(place: Place) -> None:
    """A function starts in its home directory, wherever the caller is."""
    assert place.isolated(os.getcwd)() == "/home/user"


@pytest.mark.parametrize("directory", ["/home/user", "/tmp", "/data", "/dev/shm"])
def test_a_directory_can_be_written(place: Place, directory: str) -> None:
    """Home, `/tmp`, `/data` and shared memory take files."""

    def write(directory: str) -> str:
        path = f"{directory}/conformance-written"
        with open(path, "w") as file:
            file.write("x")
        os.remove(path)
        return "written"

    assert place.isolated(write)(directory) == "written"


@pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/opt/atoll/lib", "/opt/atoll/env", "/etc/passwd"])
def test_the_rest_cannot_be_written(place: Place, path: str) -> None:
    """System, environment and agent are read-only."""

    def write(path: str) -> str:
        try:
            with open(path if os.path.isfile(path) else f"{path}/x", "a"):
                return "written"
        except OSError:
            return "refused"

    assert place.isolated(write)(path) == "refused"


def test_temporary_files_work(place: Place) -> None:
    """`tempfile` finds a place."""

    def use() -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as directory, tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(b"abc")
            file.seek(0)
            return file.read()

    assert place.isolated(use)() == b"abc"


def test_nothing_of_the_callers_environment_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the caller stay with the caller; the ones of caches point below `/data`."""
    monkeypatch.setenv("CONFORMANCE_SECRET", "x")
    seen = place.isolated(lambda: dict(os.environ))()
    assert "CONFORMANCE_SECRET" not in seen
    assert not any(name.startswith(("PYTEST", "ATOLL_HOME", "SSH_")) for name in seen)
    for name in ("HF_HOME", "TORCH_HOME", "KERAS_HOME", "XDG_CACHE_HOME"):
        assert seen[name].startswith("/data/.cache")


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"PLAIN": "value"}, id="plain"),
        pytest.param({"EMPTY": ""}, id="empty"),
        pytest.param({"SPACES": "a b\nc\td='\"$x"}, id="special characters"),
        pytest.param({"ΩΜΕΓΑ": "日本語 🏝️"}, id="other scripts"),
        pytest.param({"lower.dot-dash": "1"}, id="unusual name"),
        pytest.param({"LARGE": "x" * 100_000}, id="100 kB"),
        pytest.param({f"MANY_{number}": str(number) for number in range(500)}, id="500 of them"),
        pytest.param({"PATH": "/data/bin:/usr/bin"}, id="one that is set anyway"),
    ],
)
def test_env_arrives(place: Place, env: dict[str, str]) -> None:
    """Each variable of `env` has its value in the function and in what it starts."""

    def look(names: list[str]) -> tuple[dict[str, str], str]:
        import subprocess

        first = names[0]
        code = "import os, sys; sys.stdout.buffer.write(os.environb[os.fsencode(sys.argv[1])])"
        child = subprocess.run([sys.executable, "-c", code, first], check=True, capture_output=True)
        return {name: os.environ[name] for name in names}, os.fsdecode(child.stdout)

    found, child = place.isolated(look, env=env)(list(env))
    assert found == env
    assert child == next(iter(env.values()))


def test_a_variable_that_a_function_sets_is_gone_at_the_next_call(place: Place) -> None:
    """The next call in the same worker has the environment that it asked for."""

    def change() -> int:
        os.environ["CONFORMANCE_LEFT"] = "behind"
        os.environ.pop("HOME")
        os.chdir("/")
        sys.argv.append("left")
        return os.getpid()

    def look() -> tuple[int, bool, bool, str, list[str]]:
        return os.getpid(), "CONFORMANCE_LEFT" in os.environ, "HOME" in os.environ, os.getcwd(), sys.argv

    pid = place.isolated(change)()
    assert place.isolated(look)() == (pid, False, True, "/home/user", [""])


def test_text_is_utf8(place: Place) -> None:
    """File names, files and streams are UTF-8, whatever the caller's locale is."""

    def look() -> tuple[str, ...]:
        import locale

        with open("/tmp/ünïcode-日本", "w") as file:
            file.write("é")
        with open("/tmp/ünïcode-日本", "rb") as binary:
            assert binary.read() == "é".encode()
        assert "ünïcode-日本" in os.listdir("/tmp")
        encodings = (sys.getfilesystemencoding(), locale.getpreferredencoding(False), str(sys.stdout.encoding))
        return tuple(encoding.lower() for encoding in encodings)

    assert place.isolated(look)() == ("utf-8",) * 3


def test_the_time_zone_can_be_chosen(place: Place) -> None:
    """`env={"TZ": …}` gives the function another local time."""

    def offset() -> int:
        import time

        return time.localtime(1_700_000_000).tm_gmtoff

    def change() -> int:
        import time

        os.environ["TZ"] = "THERE+7"
        time.tzset()
        return offset()

    there = {"TZ": "HERE-5"}
    assert place.isolated(offset, env=there)() == 5 * 3600
    assert place.isolated(change, env=there)() == -7 * 3600
    assert place.isolated(offset, env=there)() == 5 * 3600
    assert place.isolated(offset, env={"TZ": "UTC"})() == 0


def test_files_are_made_for_their_owner_and_readable(place: Place) -> None:
    """The umask is an ordinary one."""

    def mode() -> int:
        with open("/tmp/conformance-mode", "w"):
            return os.stat("/tmp/conformance-mode").st_mode & 0o777

    assert place.isolated(mode)() & 0o700 == 0o600


def test_signals_are_as_in_a_new_program(place: Place) -> None:
    """None is blocked; broken pipes and interrupts do what they do in Python."""

    def look() -> tuple[int, bool, bool, bool]:
        return (
            len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
            signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler),
        )

    assert place.isolated(look)() == (0, True, True, True)


def test_signal_handlers_and_alarms_work(place: Place) -> None:
    """A function runs in its process's main thread, where Python allows handlers."""

    def alarm() -> str:
        import threading

        assert threading.current_thread() is threading.main_thread()
        caught = []
        signal.signal(signal.SIGALRM, lambda number, frame: caught.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        signal.pause()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return signal.Signals(caught[0]).name

    assert place.isolated(alarm)() == "SIGALRM"


def test_main_is_a_module_of_its_own(place: Place) -> None:
    """`__main__` in a function is not the agent."""

    def look() -> tuple[str, list[str]]:
        import __main__

        return __main__.__name__, [name for name in vars(__main__) if name.startswith(("Worker", "agent"))]

    assert place.isolated(look)() == ("__main__", [])


# --- processes and threads ---------------------------------------------------------------------------------------------


def double(value: int) -> int:
    return 2 * value


def test_threads_work(place: Place) -> None:
    """A pool of threads runs in a function."""

    def use() -> list[int]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(double, range(100)))

    assert place.isolated(use)() == [2 * number for number in range(100)]


def test_a_thread_that_is_left_behind_does_not_hold_the_answer(place: Place) -> None:
    """A call ends when the function returns, whatever it has started."""

    def leave() -> str:
        import threading
        import time

        threading.Thread(target=time.sleep, args=(1000,)).start()
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        return "returned"

    assert place.isolated(leave, keep_alive=0)() == "returned"


def test_a_subprocess_that_is_left_behind_does_not_hold_the_answer(place: Place) -> None:
    """A child that has the function's streams and goes on does not keep the caller waiting."""

    def leave() -> str:
        import subprocess

        subprocess.Popen(["sleep", "1000"])
        return "returned"

    with contextlib.suppress(ResourceWarning):
        assert place.isolated(leave, keep_alive=0)() == "returned"


def test_subprocesses_work(place: Place) -> None:
    """Python and the shell are found, and pipes work."""

    def use() -> tuple[str, str]:
        import subprocess

        shell = subprocess.run("echo a | tr a b", shell=True, check=True, capture_output=True, text=True)
        python = subprocess.run(["python", "-c", "print(1 + 1)"], check=True, capture_output=True, text=True)
        return shell.stdout, python.stdout

    assert place.isolated(use)() == ("b\n", "2\n")


def test_a_fork_that_returns_does_not_answer_twice(place: Place) -> None:
    """Only the worker itself answers; a child that comes back from the function ends quietly."""

    def fork() -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    function = place.isolated(fork)
    assert [function() for _ in range(5)] == ["parent"] * 5


def test_a_fork_that_raises_does_not_answer_twice(place: Place) -> None:
    """An exception in a forked child is the child's own."""

    def fork() -> str:
        pid = os.fork()
        if pid == 0:
            raise ValueError("in the child")
        os.waitpid(pid, 0)
        return "parent"

    function = place.isolated(fork)
    assert [function() for _ in range(5)] == ["parent"] * 5


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works(place: Place, method: str) -> None:
    """A pool of processes runs in a function, by each start method."""

    def use(method: str) -> list[int]:
        import multiprocessing
        import operator

        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(operator.neg, range(10))

    assert place.isolated(use)(method) == [-number for number in range(10)]


def test_a_process_pool_runs_the_functions_own_helpers(place: Place) -> None:
    """Processes that are forked in a function know what the function knows."""

    def use() -> list[int]:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        queue: Any = context.Queue()

        def work(number: int) -> None:
            queue.put(double(number))

        children = [context.Process(target=work, args=(number,)) for number in range(4)]
        for child in children:
            child.start()
        found = sorted(queue.get(timeout=120) for _ in children)
        for child in children:
            child.join()
        return found

    assert place.isolated(use)() == [0, 2, 4, 6]


def test_asyncio_works(place: Place) -> None:
    """A function may run an event loop, again at the next call."""

    def use() -> list[int]:
        import asyncio

        async def one(number: int) -> int:
            process = await asyncio.create_subprocess_exec("true")
            return number + await process.wait()

        async def several() -> list[int]:
            return await asyncio.gather(*(one(number) for number in range(5)))

        return asyncio.run(several())

    function = place.isolated(use)
    assert [function(), function()] == [[0, 1, 2, 3, 4]] * 2


def test_a_process_that_daemonizes_is_gone_with_its_worker(place: Place) -> None:
    """What a call has left behind does not outlive its worker."""

    def leave() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    def look() -> bool:
        from pathlib import Path

        return any(b"sleep\x001000" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    options = {"env": {"CONFORMANCE": "daemonized"}}
    assert place.isolated(leave, **options)() > 0
    with pytest.raises(Exception, match="SIGKILL"):
        place.isolated(die, **options)()
    assert not place.isolated(look)()


def test_only_the_sandboxs_own_processes_are_seen(place: Place) -> None:
    """`/proc` shows no process of the machine."""

    def count() -> tuple[int, bool]:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return len(pids), os.getpid() in pids

    number, own = place.isolated(count)()
    assert own
    assert number < 100


def test_the_callers_files_are_not_there(place: Place, tmp_path: Any) -> None:
    """The caller's directories do not exist in a function."""
    (tmp_path / "file").write_text("private")
    tmp_path.chmod(0o755)

    def look(path: str) -> bool:
        return os.path.exists(path)

    assert not place.isolated(look)(str(tmp_path / "file"))


# --- /data -------------------------------------------------------------------------------------------------------------


def test_data_is_shared_by_functions_at_once(place: Place) -> None:
    """A running function sees what another one writes, without waiting for its end."""

    def answer() -> str:
        import time

        deadline = time.monotonic() + 120
        while not os.path.exists("/data/conformance-question") and time.monotonic() < deadline:
            time.sleep(0.005)
        with open("/data/conformance-question") as file:
            return file.read() + "!"

    def ask() -> None:
        with open("/data/conformance-question.new", "w") as file:
            file.write("hello")
        os.rename("/data/conformance-question.new", "/data/conformance-question")

    future = place.isolated(answer).submit()
    place.isolated(ask, env={"CONFORMANCE": "ask"})()
    assert future.result(60) == "hello!"
    place.isolated(os.remove)("/data/conformance-question")


def test_data_is_a_posix_file_system(place: Place) -> None:
    """Appends, locks, memory maps, renames, links and SQLite work as on a disk."""

    def use() -> list[str]:
        import fcntl
        import mmap
        import shutil
        import sqlite3

        done = []
        root = "/data/conformance-posix"
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        os.chdir(root)
        with open("file", "ab") as file:
            file.write(b"abc")
        os.link("file", "hard")
        os.symlink("file", "soft")
        assert os.stat("hard").st_nlink == 2
        assert os.path.realpath("soft") == f"{root}/file"
        done.append("links")
        with open("file", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.lockf(file, fcntl.LOCK_EX)
            done.append("locks")
            with mmap.mmap(file.fileno(), 0) as view:
                view[0:1] = b"X"
        with open("hard", "rb") as file:
            assert file.read() == b"Xbc"
        done.append("mmap")
        os.replace("hard", "renamed")
        os.chmod("renamed", 0o640)
        os.utime("renamed", (1, 2))
        assert int(os.stat("renamed").st_mtime) == 2
        done.append("rename")
        connection = sqlite3.connect("base.db")
        connection.execute("pragma journal_mode=wal")
        with connection:
            connection.execute("create table t (a)")
            connection.execute("insert into t values (1)")
        assert connection.execute("select a from t").fetchall() == [(1,)]
        connection.close()
        done.append("sqlite")
        os.mkfifo("fifo")
        os.truncate("file", 1 << 30)
        done.append("special")
        os.chdir("/")
        shutil.rmtree(root)
        return done

    assert place.isolated(use)() == ["links", "locks", "mmap", "rename", "sqlite", "special"]


def test_appends_of_many_calls_are_whole(place: Place) -> None:
    """Lines that calls of a machine append at the same time are all there, each whole."""

    def append(number: int) -> None:
        mount = os.stat("/data").st_dev  # on JuiceFS one of each machine: appends of two to one file lose lines
        with open(f"/data/conformance-appended-{mount}", "a") as file:
            file.write(f"{number:06d}\n")

    def read() -> list[str]:
        lines = list[str]()
        for path in Path("/data").glob("conformance-appended-*"):
            lines += path.read_text().splitlines()
            path.unlink()
        return lines

    list(place.isolated(append).map(range(200)))
    assert sorted(place.isolated(read)()) == [f"{number:06d}" for number in range(200)]


def test_home_is_not_on_data(place: Place) -> None:
    """What is written to the home directory is not kept in the volume."""
    assert place.isolated(lambda: os.stat("/home/user").st_dev != os.stat("/data").st_dev)()


def test_the_hosts_name_can_be_asked(place: Place) -> None:
    """`gethostname` gives a name."""
    assert place.isolated(socket.gethostname)()


def test_atoll_and_the_old_name_can_be_imported(place: Place) -> None:
    """Both import names are in every sandbox, and give the same objects."""

    def look() -> bool:
        import atoll
        import fal_serverless

        return fal_serverless.isolated is atoll.isolated

    assert place.isolated(look, requirements=["fal-serverless"])()


def test_a_requirement_is_there_for_its_function_only(place: Place) -> None:
    """Two functions with different requirements have different packages."""

    def has() -> bool:
        import importlib.util

        return importlib.util.find_spec("pyjokes") is not None

    assert place.isolated(has, requirements=["pyjokes==0.8.3"])()
    assert not place.isolated(has)()
