"""State directories for tests, each with a daemon of its own that is gone when the test has ended."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import library
from .leaks import Holdings
from .long_modules import PLACES
from .waiting import ended

if TYPE_CHECKING:
    from .cluster.cluster import Cluster
    from .environments import Machine

ROOT = Path(__file__).parents[1]
GONE_SECONDS = 60.0
STOP_SECONDS = 5.0
_numbers = itertools.count(1)
UNCHECKED = {"test_conda.py", "test_daemon.py", "test_examples.py", "test_kinds.py", "test_other_pythons.py"}
"""End-to-end modules that the leak check has not been run on yet; `LEAKS=1` checks them too."""


@dataclass(frozen=True)
class Home:
    """A state directory, and programs that use it.

    Args:
        path: what `ATOLL_HOME` is.
    """

    path: Path

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return this process's environment with `ATOLL_HOME` set."""
        return {**os.environ, "ATOLL_HOME": str(self.path), **(more or {})}

    def python(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float = 120.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program to its end; with `check`, a failed one fails the test with what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.path,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        failed = done.returncode != 0 and not arrow_aborted(done)
        assert not check or not failed, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def atoll(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line program."""
        code = "import sys; from atoll.cli.main import main; sys.exit(main())"
        return self.python("-c", code, *arguments, **options)

    def in_data(self, name: str) -> Path:
        """Return the path of a file of the user's `/data`."""
        return self.path / "volumes" / "local" / "data" / name

    @property
    def volume(self) -> Path:
        """What its functions see as `/data`."""
        return self.path / "volumes" / "local" / "data"

    def daemons(self) -> list[int]:
        """Return the daemons that run its functions, by their process ids here."""
        return [pid] if (pid := self.daemon_pid()) is not None else []

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Be on the network of its programs, in this thread and those that it starts."""
        return contextlib.nullcontext()

    def on_one_machine(self) -> contextlib.AbstractContextManager[None]:
        """Have new calls run on one machine alone, from within `entered`."""
        return contextlib.nullcontext()

    def daemon_pid(self) -> int | None:
        """Return the daemon's process id, or None when none has said that it runs."""
        try:
            return int(json.loads((self.path / "run" / "daemon.json").read_text())["pid"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def processes(self) -> list[int]:
        """Return the processes that were started with this directory, or that see a part of it as a mount of their own.

        What is mounted for this process, too, all see: none of them is known by that.
        """
        found = []
        wanted = os.fsencode(self.path)
        ours = os.stat("/proc/self/ns/mnt").st_ino
        seen = dict[tuple[int, int, int], bool]()  # by mount namespace and root: sandboxes have several processes
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                known = wanted in _read(f"/proc/{name}/cmdline")
                if not known and (space := os.stat(f"/proc/{name}/ns/mnt").st_ino) != ours:
                    root = os.stat(f"/proc/{name}/root")
                    place = space, root.st_dev, root.st_ino
                    if place not in seen:
                        seen[place] = wanted in _read(f"/proc/{name}/mountinfo")
                    known = seen[place]
                if known:
                    found.append(int(name))
        return [pid for pid in found if pid != os.getpid()]

    def wait_processes(self, seconds: float = GONE_SECONDS) -> list[int]:
        """Wait until no process of this directory is left; return those that are still there."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                ended(pid, max(0.0, deadline - time.monotonic()))
        return left

    def stop(self) -> None:
        """Stop the daemon if there is one: by a signal, and by the command one that does not listen to it."""
        pid = self.daemon_pid()
        if pid is None or pid not in self.processes():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not ended(pid, STOP_SECONDS):
            self.atoll("stop", check=False)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


_UNPACKED = ROOT / ".venv" / "tools" / "root" / "usr" / "bin"
_PATH = os.environ.get("PATH", os.defpath).removesuffix(f"{os.pathsep}{_UNPACKED}")
if shutil.which("pasta", path=_PATH) is None and os.access(_UNPACKED / "pasta", os.X_OK):
    os.environ["PATH"] = f"{_PATH}{os.pathsep}{_UNPACKED}"  # from `.ci/tools`: a carrier cannot use the wrapper beside


def arrow_aborted(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether Arrow's threads have aborted a program that had come to its end, as they do now and then.

    They outlive a read of a Python file (apache/arrow 34314, 50482); what the program has printed is there.
    """
    return done.returncode == -signal.SIGABRT and done.stderr.endswith("terminate called without an active exception\n")


def find_tool(name: str) -> str | None:
    """Return the path of a program that is not everywhere: the machine's, or what `.ci/tools` has unpacked."""
    places = [_PATH, "/usr/sbin", "/sbin", str(ROOT / ".venv" / "tools" / "bin")]
    return shutil.which(name, path=os.pathsep.join(places))


needs_outbound = pytest.mark.skipif(
    find_tool("pasta") is None or not os.access("/dev/net/tun", os.R_OK | os.W_OK),
    reason="calls on a server have the network `outbound`, which needs `pasta` and a `/dev/net/tun` that this user can open",
)


@contextlib.contextmanager
def own_home(*, library_there: bool = True, path: Path | None = None) -> Iterator[Home]:
    """Make a state directory, whose daemon has ended with all its processes at the end of the context.

    Args:
        library_there: the daemon finds the files that sandboxes mount, as after an earlier one; else it makes them.
        path: where; nothing is there yet.
    """
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="atoll-", dir="/tmp"))
    else:
        path.mkdir(mode=0o700)
    home = Home(path)
    if library_there:
        library.put(path)
    clean = False
    try:
        yield home
        home.stop()
        left = {pid: _describe(pid) for pid in home.wait_processes()}
        assert not left, f"processes outlived the daemon: {left}"
        log = path / "logs" / "daemon.log"
        clean = True
        assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()[-5000:]
    finally:
        for pid in () if clean else home.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        shutil.rmtree(path, onerror=_make_removable)


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return "gone by now"


def _make_removable(function: Any, path: str, _error: Any) -> None:
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
        function(path)


@pytest.fixture
def atoll_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A fresh state directory; `ATOLL_HOME` names it during the test."""
    with own_home() as home:
        monkeypatch.setenv("ATOLL_HOME", str(home.path))
        yield home


@dataclass(frozen=True)
class AwayHome(Home):
    """A state directory whose programs have a server as their default host.

    Args:
        cluster: the server and its machines.
        variables: of programs that call.
    """

    cluster: Cluster
    variables: Mapping[str, str]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return super().environment({**self.variables, **(more or {})})

    @property
    def volume(self) -> Path:
        key = f"Key {self.variables['ATOLL_KEY_ID']}:{self.variables['ATOLL_KEY_SECRET']}"
        status, answer = self.cluster.head.ask("GET", "/v1/whoami", headers={"Authorization": key})
        assert status == 200, answer
        return self.cluster.shared / "volumes" / str(answer["user"]) / "data"

    def daemons(self) -> list[int]:
        return [pid for node in self.cluster.nodes.values() if (pid := node.daemon()) is not None]

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return self.cluster.client.entered()

    @contextlib.contextmanager
    def on_one_machine(self) -> Iterator[None]:
        first = next(iter(self.cluster.nodes))
        self.cluster.use_only(first)
        try:
            yield
        finally:
            self.cluster.use_only(*self.cluster.nodes)

    def in_data(self, name: str) -> Path:
        (found,) = self.cluster.shared.glob(f"volumes/*/data/{name}")
        return found

    def of_new_user(self, name: str) -> AwayHome:
        """Return a state directory whose programs are another user's, with an empty `/data`."""
        return AwayHome(self.path, self.cluster, {**self.variables, **self.cluster.new_user(name)})


@pytest.fixture(scope="session")
def _session_home() -> Iterator[Home]:
    if os.environ.get("ATOLL_CONFORMANCE") != "cluster":
        with own_home() as home:
            yield home
        return
    from .cluster.cluster import cluster

    with own_home() as home, cluster() as made, made.client.entered():
        yield AwayHome(home.path, made, made.variables)


@pytest.fixture
def fresh_home(request: pytest.FixtureRequest) -> Home:
    """A state directory whose user has made no call, and has an empty `/data`."""
    if os.environ.get("ATOLL_CONFORMANCE") != "cluster":
        home: Home = request.getfixturevalue("atoll_home")
        return home
    away: AwayHome = request.getfixturevalue("_session_home")
    return away.of_new_user(f"user-{next(_numbers)}")


@pytest.fixture
def shared_home(_session_home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """One state directory for all tests that do not mind each other's environments, daemon and volume."""
    for name, value in _session_home.environment().items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    with _session_home.entered():
        yield _session_home


@pytest.fixture
def one_machine(shared_home: Home) -> Iterator[Home]:
    """The shared state directory, for tests of what calls share: all that begin meanwhile run on one machine."""
    with shared_home.on_one_machine():
        yield shared_home


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A state directory with a store of environments, and a home directory without settings; no daemon."""
    from .environments import Machine  # few tests need it

    directory = Path(tempfile.mkdtemp(prefix="atoll-environments-"))
    directory.chmod(0o755)
    (directory / "user").mkdir()
    monkeypatch.setenv("HOME", str(directory / "user"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    old = os.umask(0o077)  # what the daemon has; what is built must be readable all the same
    try:
        os.umask(0o022)
        made = Machine(directory)
        os.umask(0o077)
        yield made
    finally:
        os.umask(old)
        shutil.rmtree(directory, ignore_errors=True)


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test failed: its traceback keeps the objects of its frames alive."""
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def _leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that ends with more descriptors, threads or children than it began with."""
    before = Holdings.now()
    yield
    if request.node.path.name in UNCHECKED and "LEAKS" not in os.environ:
        return
    request.node.funcargs.clear()  # values of fixtures that have ended
    if not request.node.stash.get(_failed, False) and (leaked := before.leaked()):
        pytest.fail(f"the test leaks\n{leaked}", pytrace=False)


def pytest_unconfigure() -> None:
    """Remove the library that state directories of this run have shared."""
    library.remove()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Have the garbage collector leave the tests alone, of which each process has thousands until its end.

    It would go over them again and again, and a process that a test forks would copy them with it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest; the order within each stays."""
    items.sort(key=lambda item: PLACES.get(item.path.stem, len(PLACES)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("needs root")
