"""Environments with the real builder in the real sandbox; packages are made here, and no network is needed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http.server
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from atoll.environments.asked.credentials import without_credentials
from atoll.environments.built.records import Environment
from atoll.errors import AtollError, DiskFull, EnvironmentBuildError, StateUnusable
from atoll.model.build_progress import BuildLine
from atoll.model.specs import EnvironmentSpec
from tests.environments import BASE, Machine, serve

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="environments are built on Linux"),
]
PLAIN_UID = 54322
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# --- what is built --------------------------------------------------------------------------------------------------


def test_an_environment_has_its_packages_and_scripts(machine: Machine) -> None:
    """Packages with what they depend on import in a sandbox, and their scripts run there."""
    machine.wheel("alpha", requires="beta>=1")
    machine.wheel("beta", "1.5")
    environment = machine.ensure("alpha")
    assert machine.python(environment, "import alpha, beta; print(alpha.VERSION, beta.VERSION)") == "1 1.5"
    assert machine.inside(environment, "/opt/atoll/env/bin/alpha") == "alpha 1\n"
    assert (environment.directory / "requirements.lock").read_text() == "alpha==1\nbeta==1.5\n"


@pytest.mark.once
def test_the_environment_without_packages_needs_no_builder(machine: Machine) -> None:
    """It has its Python and an empty `site-packages`, and prints no progress."""
    environment = machine.ensure("atoll", "fal_serverless>=0.6")
    assert machine.lines == []
    assert machine.python(environment, "import sys; print(sys.prefix)") == "/opt/atoll/env"
    assert asyncio.run(machine.store.ensure(EnvironmentSpec(interpreter=BASE))) == environment


def test_files_are_shared_with_the_cache_and_bytecode_is_there(machine: Machine) -> None:
    """Modules are hard links of the cache's files, and each has its bytecode."""
    machine.wheel("alpha")
    environment = machine.ensure("alpha")
    (module,) = environment.path.glob("lib/*/site-packages/alpha.py")
    cached = {path.stat().st_ino for path in (machine.home / "environments/.cache/uv").rglob("alpha.py")}
    assert module.stat().st_ino in cached
    assert list(module.parent.glob("__pycache__/alpha.*.pyc"))


def test_everyone_may_read_an_environment_below_a_private_home(machine: Machine) -> None:
    """Whatever the umask, directories are 0755 and files readable, and the record is not writable for others."""
    machine.wheel("alpha")
    environment = machine.ensure("alpha")
    for path in (environment.directory, *environment.directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            assert stat.S_IMODE(mode) == 0o755, path
        elif not stat.S_ISLNK(mode) and environment.path in path.parents:
            assert mode & 0o444 == 0o444, path
            assert not mode & 0o022, path


@pytest.mark.once
def test_asking_again_builds_nothing(machine: Machine) -> None:
    """The second request of equal requirements, by another store too, finds the first one's environment."""
    machine.wheel("alpha")
    first = machine.ensure("alpha")
    machine.lines.clear()
    shutil.rmtree(machine.wheels)
    assert machine.ensure("Alpha ") == first
    machine.store = machine.new_store()
    assert machine.ensure("alpha") == first
    assert machine.lines == []


@pytest.mark.once
def test_a_source_tree_is_built_again_when_it_is_edited(machine: Machine) -> None:
    """A local path is installed as it is now; the tree itself is not written to."""
    tree = machine.tree("gamma", "    open('left-behind', 'w').close()")
    before = sorted(os.listdir(tree))
    first = machine.ensure(str(tree))
    (tree / "gamma.py").write_text("VERSION = 2\n")
    second = machine.ensure(str(tree))
    assert first.key != second.key
    assert machine.python(first, "import gamma; print(gamma.VERSION)") == "1"
    assert machine.python(second, "import gamma; print(gamma.VERSION)") == "2"
    assert sorted(os.listdir(tree)) == before


# --- whose code runs where --------------------------------------------------------------------------------------------


def test_no_code_of_a_package_runs_while_wheels_are_installed(machine: Machine) -> None:
    """A `.pth` file, which each start of the environment's Python executes, runs in the function's sandbox only."""
    trap = "import os; os.path.exists('/opt/atoll-workshop') and open('/opt/atoll-workshop/ran', 'w')"
    note = "import os; os.path.isdir('/opt/atoll/env') and print('pth ran')"
    machine.wheel("alpha", files={"alpha-trap.pth": f"{trap}\n{note}\n"})
    (machine.directory / "user/.config/uv").mkdir(parents=True)
    (machine.directory / "user/.config/uv/uv.toml").write_text("[pip]\ncompile-bytecode = true\n")
    environment = machine.ensure("alpha")
    assert not (machine.home / "environments/.cache/ran").exists()
    assert "pth ran" not in "\n".join(machine.lines)
    assert set(machine.python(environment, "print('here')").splitlines()) == {"pth ran", "here"}


SPY = """
    seen = sorted(os.listdir("/opt"))
    for place in ("{cache}", "/opt/atoll-workshop", "{home}", "/data", "/root/.ssh"):
        if os.path.exists(place):
            seen.append(place)
    note = ",".join(seen) + " uid0" * (os.getuid() == 0)
"""


def test_a_build_sees_its_own_environment_only(machine: Machine) -> None:
    """The build of a source distribution sees no cache of others, no other environment, no home and no `/data`."""
    machine.wheel("alpha")
    machine.ensure("alpha")
    spy = SPY.format(cache=machine.home / "environments/.cache", home=machine.directory / "user")
    machine.sdist("delta", spy)
    environment = machine.ensure("delta")
    note = machine.python(environment, "import delta; print(delta.NOTE)")
    assert set(note.split(",")) - {"atoll-configuration"} == {"atoll", "atoll-uv"}
    assert not list((machine.home / "environments/.cache/uv").rglob("delta*"))
    assert machine.work() == []


def test_a_build_that_bends_its_environment_is_refused(machine: Machine) -> None:
    """An environment that has become a link to elsewhere is an error and is gone."""
    machine.sdist("delta", "    import glob\n    os.rename('/opt/atoll/env/bin/python', '/opt/atoll/env/bin/p')")
    with pytest.raises(EnvironmentBuildError):
        machine.ensure("delta")
    machine.sdist(
        "epsilon",
        "    import shutil\n    shutil.move('/opt/atoll/env', '/opt/atoll/x'); os.symlink('x', '/opt/atoll/env')",
    )
    with pytest.raises(EnvironmentBuildError, match="shape"):
        machine.ensure("epsilon")
    assert machine.store.list() == []
    assert machine.work() == []


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_build_leaves_its_log_and_nothing_else(machine: Machine) -> None:
    """The error has the builder's words, no directory stays, and the next request tries again."""
    with pytest.raises(EnvironmentBuildError, match="alpha") as caught:
        machine.ensure("alpha")
    assert "alpha" in caught.value.log
    assert machine.store.list() == []
    assert machine.work() == []
    (log,) = (machine.home / "logs").iterdir()
    assert "failed:" in log.read_text()
    machine.wheel("alpha")
    assert machine.python(machine.ensure("alpha"), "import alpha; print(alpha.VERSION)") == "1"


@pytest.mark.once
def test_conflicts_and_failed_builds_are_told_apart(machine: Machine) -> None:
    """Versions that cannot go together and a backend that raises give different messages."""
    machine.wheel("alpha", requires="beta<2")
    machine.wheel("beta", "1")
    machine.wheel("beta", "2")
    with pytest.raises(EnvironmentBuildError, match="conflict"):
        machine.ensure("alpha", "beta==2")
    machine.sdist("delta", "    raise SystemExit('no compiler')")
    with pytest.raises(EnvironmentBuildError, match="`delta==1` failed to build") as caught:
        machine.ensure("delta")
    assert "no compiler" in caught.value.log


@as_root
def test_a_full_disk_is_said(machine: Machine) -> None:
    """A build without space fails with `DiskFull`, leaves nothing, and works once there is space."""
    machine.wheel("alpha", files={"large.py": "x = '" + "a" * (6 << 20) + "'\n"})
    place = machine.home / "environments"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)], check=False).returncode != 0:
        pytest.skip("cannot mount")
    try:
        with pytest.raises(DiskFull):
            machine.ensure("alpha")
        assert machine.store.list() == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        assert machine.python(machine.ensure("alpha"), "import large; print(len(large.x) >> 20)") == "6"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_state_that_cannot_be_written_is_said(machine: Machine) -> None:
    """A read-only state directory is `StateUnusable`."""
    machine.home.chmod(0o500)
    with pytest.raises(StateUnusable):
        machine.ensure()


# --- at the same time -------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_many_tasks_share_one_build(machine: Machine) -> None:
    """Tasks that ask at once get one environment, and each hears of the build."""
    machine.wheel("alpha")
    heard: list[list[str]] = [[] for _ in range(8)]

    async def all_at_once() -> list[Environment]:
        spec = machine.spec("alpha")
        return list(await asyncio.gather(*(machine.store.ensure(spec, lines.append) for lines in heard)))

    assert len(set(asyncio.run(all_at_once()))) == 1
    assert all(sum(line.startswith("Built") for line in lines) == 1 for lines in heard)


CHILD = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.environments import Machine
machine = Machine.__new__(Machine)
machine.directory = Path(sys.argv[1])
machine.home, machine.wheels = machine.directory / "home", machine.directory / "wheels"
from tests.environments import Settings, Launcher, Identities
machine.settings = Settings(machine.home)
machine.launcher, machine.identities = Launcher(machine.settings), Identities(machine.settings)
def say(line):
    print(line, flush=True)
try:
    found = asyncio.run(machine.new_store().ensure(machine.spec(*sys.argv[2:]), say))
    print("key", found.key, flush=True)
except Exception as error:
    print("error", type(error).__name__, error, flush=True)
"""


def _start(machine: Machine, *requirements: str, **options: Any) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parents[2]))
    return subprocess.Popen(
        [*options.pop("prefix", [sys.executable]), "-c", code, str(machine.directory), *requirements],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", None),
        text=True,
        **options,
    )


def _wait_line(child: subprocess.Popen[str], part: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if part in line:
            return
    raise AssertionError(f"ended without `{part}`")


@pytest.mark.once
def test_many_processes_share_one_build(machine: Machine) -> None:
    """Of processes that ask at once one builds, and all get the same environment."""
    machine.sdist("delta", "    import time; time.sleep(1)")
    children = [_start(machine, "delta") for _ in range(4)]
    said = [child.communicate(timeout=120)[0].splitlines() for child in children]
    assert len({lines[-1] for lines in said}) == 1
    assert said[0][-1].startswith("key ")
    builders = [lines for lines in said if lines[0].startswith("Building environment")]
    waiters = [lines for lines in said if lines[0].startswith("Waiting")]
    assert len(builders) == 1
    assert all(any("Building delta" in line for line in lines) for lines in waiters)


@pytest.mark.once
def test_who_joins_a_build_is_told_its_step(machine: Machine) -> None:
    """A request that comes in the middle of a build gets the state of the build at once, and its end."""
    machine.sdist("delta", "    import time; time.sleep(1)")
    told: list[str] = []

    async def build_for_two() -> None:
        store, spec = machine.new_store(), machine.spec("delta")
        joined: list[asyncio.Task[Any]] = []

        def join(line: str) -> None:
            if "Building delta" in line and not joined:
                joined.append(asyncio.ensure_future(store.ensure(spec, told.append)))

        await store.ensure(spec, join)
        await joined[0]

    asyncio.run(build_for_two())
    steps = [(line == "", line.progress.step) for line in told if isinstance(line, BuildLine)]
    assert steps[0] == (True, "building")
    assert steps[-1] == (False, "built")


@pytest.mark.once
def test_who_waits_for_a_build_gets_its_error(machine: Machine) -> None:
    """A build that fails fails for all who waited for it, without a second try."""
    machine.sdist("delta", "    import time; time.sleep(1)\n    raise SystemExit('broken')")
    children = [_start(machine, "delta") for _ in range(3)]
    said = [child.communicate(timeout=120)[0].splitlines() for child in children]
    assert all(any(line.startswith("error EnvironmentBuildError") for line in lines) for lines in said), said
    assert all(sum(line.startswith("Building environment") for line in lines) <= 1 for lines in said), said


def test_a_killed_build_is_cleaned_up(machine: Machine) -> None:
    """After SIGKILL of the builder its sandbox is gone, and the next start finds no half environment."""
    machine.sdist("delta", "    import time; time.sleep(300)")
    child = _start(machine, "delta")
    _wait_line(child, "Building delta")
    inside = _processes_that_see(machine.directory)
    assert inside
    child.kill()
    child.communicate()
    for pid in inside:
        _wait_gone(pid)
    machine.wheel("alpha")
    machine.ensure("alpha")
    assert machine.work() == []
    assert [record.requirements[0] for record in machine.store.list()] == ["alpha"]


@pytest.mark.once
@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"key": 1}', "\udcff"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_record_counts_as_none(machine: Machine, damage: str, restarted: bool) -> None:
    """An environment whose record cannot be read is built again, at once and after a restart."""
    machine.wheel("alpha")
    environment = machine.ensure("alpha")
    record = environment.directory / "record.json"
    whole = record.read_bytes()
    record.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert machine.store.list() == []
    if restarted:
        machine.store = machine.new_store()
        machine.store.prepare()
        assert not environment.directory.exists()
    assert machine.ensure("alpha") == environment
    assert json.loads(record.read_bytes())["requirements"] == json.loads(whole)["requirements"]
    assert [found.key for found in machine.store.list()] == [environment.key]


def test_a_cancelled_build_stops_and_the_next_one_works(machine: Machine) -> None:
    """When the last who asked goes away the build ends; who asks then gets a build of its own."""
    machine.sdist("delta", "    import time; time.sleep(300)")

    async def give_up() -> None:
        started = asyncio.Event()
        spec = machine.spec("delta")

        def listen(line: str) -> None:
            if "Building delta" in line:
                started.set()

        tasks = [asyncio.create_task(machine.store.ensure(spec, listen)) for _ in range(2)]
        await started.wait()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        assert not tasks[1].done()
        machine.sdist("delta")
        tasks[1].cancel()
        again = asyncio.create_task(machine.store.ensure(spec))
        await asyncio.wait([tasks[1]])
        await again

    asyncio.run(give_up())
    assert len(machine.store.list()) == 1


def _processes_that_see(directory: Path) -> list[int]:
    """Return the processes in sandboxes that are shown a part of the directory."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if str(directory) in Path("/proc", name, "mountinfo").read_text():
                found.append(int(name))
    return found


def _wait_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 120)[0], f"{pid} is still there"
        finally:
            os.close(pidfd)


# --- using, upgrading, removing ---------------------------------------------------------------------------------------


@pytest.mark.once
def test_what_is_held_is_not_removed(machine: Machine) -> None:
    """Pruning and removing leave an environment that a sandbox holds, of any process, and take it afterwards."""
    machine.wheel("alpha")
    environment = machine.ensure("alpha")
    other = machine.new_store()
    with other.hold(environment), other.hold(environment):
        assert not machine.store.remove(environment.key)
        pruned = asyncio.run(machine.store.prune())
        assert [record.key for record in pruned.in_use] == [environment.key]
        assert machine.store.list()[0].in_use
        assert environment.path.is_dir()
    dry = asyncio.run(machine.store.prune(dry_run=True))
    assert [record.key for record in dry.removed] == [environment.key]
    assert asyncio.run(machine.store.prune(unused_seconds=3600)).removed == ()
    assert asyncio.run(machine.store.prune()).removed == dry.removed
    assert not environment.directory.exists()
    with pytest.raises(StateUnusable, match="removed"):
        machine.store.hold(environment)


@pytest.mark.once
def test_an_environment_stays_until_it_is_upgraded(machine: Machine) -> None:
    """Newer versions are taken by `upgrade` only; who runs keeps the old; pruning does not change versions."""
    machine.wheel("alpha", "1")
    spec = machine.spec("alpha")
    old = machine.ensure("alpha")
    assert asyncio.run(machine.store.upgrade(spec)) == (old, False)
    machine.wheel("alpha", "2")
    assert machine.ensure("alpha") == old
    hold = machine.store.hold(old)
    new, changed = asyncio.run(machine.store.upgrade(spec))
    assert changed
    assert new.key != old.key
    assert machine.ensure("alpha") == new
    assert machine.python(new, "import alpha; print(alpha.VERSION)") == "2"
    assert machine.python(old, "import alpha; print(alpha.VERSION)") == "1"
    assert {record.key: record.superseded for record in machine.store.list()} == {old.key: True, new.key: False}
    hold.release()
    assert [record.key for record in asyncio.run(machine.store.prune(unused_seconds=3600)).removed] == [old.key]
    machine.wheel("alpha", "3")
    asyncio.run(machine.store.prune())
    assert machine.python(machine.ensure("alpha"), "import alpha; print(alpha.VERSION)") == "2"


@pytest.mark.once
def test_a_lock_has_versions_and_hashes(machine: Machine) -> None:
    """`lock` gives what is installed, with the hash of each wheel, and no addresses."""
    wheel = machine.wheel("alpha", requires="beta")
    machine.wheel("beta", "1.5")
    machine.ensure("alpha")
    machine.wheel("beta", "2")
    text = asyncio.run(machine.store.lock(machine.spec("alpha")))
    import hashlib

    assert re.findall(r"^(\S+==\S+)", text, re.MULTILINE) == ["alpha==1", "beta==1.5"]
    assert f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" in text
    assert "://" not in text
    locked = text.replace("\\\n", " ").splitlines()
    assert machine.python(machine.ensure(*locked), "import beta; print(beta.VERSION)") == "1.5"


@pytest.mark.once
def test_records_say_size_and_use(machine: Machine) -> None:
    """A record has requirements, version, sizes and times."""
    machine.wheel("alpha")
    environment = machine.ensure("alpha")
    (record,) = machine.store.list()
    assert record.key == environment.key
    assert record.requirements[0] == "alpha"
    assert record.python_version == environment.interpreter.version
    assert 500 < record.size_bytes < 100_000
    os.utime(environment.directory / "record.json", (1, 1))
    machine.ensure("alpha")
    assert machine.store.list()[0].last_used > record.created - 60


# --- indexes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["variable", "option", "netrc", "configuration"])
def test_credentials_let_in_and_are_kept_nowhere(machine: Machine, way: str) -> None:
    """A private index works with credentials from each place, and no file of the state or message has them."""
    machine.wheel("alpha")
    entries, index = ["alpha"], {}
    user = machine.directory / "user"
    with serve(machine.wheels) as port:
        open_address, address = f"http://127.0.0.1:{port}/simple", f"http://me:hunter27x@127.0.0.1:{port}/simple"
        if way == "variable":
            index = {"PIP_INDEX_URL": address}
        elif way == "option":
            entries.append(f"--index-url {address}")
        elif way == "netrc":
            index = {"UV_DEFAULT_INDEX": open_address}
            (user / ".netrc").write_text("machine 127.0.0.1 login me password hunter27x\n")
        else:
            (user / ".config/uv").mkdir(parents=True)
            (user / ".config/uv/uv.toml").write_text(f'[[index]]\nurl = "{address}"\ndefault = true\n')
        machine.ensure(*entries, index=index)
        with pytest.raises(AtollError) as caught:
            machine.ensure(*entries, "missing", index=index)
    assert "hunter27x" not in str(caught.value) + json.dumps(caught.value.to_data()) + "\n".join(machine.lines)
    kept = [path for path, text in machine.texts() if "hunter27x" in text]
    assert kept == []


def test_a_build_that_prints_credentials_does_not_spread_them(machine: Machine) -> None:
    """What the code of a build prints of the credentials that it can see is in no log, message or error."""
    (machine.directory / "user" / ".netrc").write_text(
        "machine h.example login me password hunter28y\nmachine other.example password hunter29z\n"
    )
    prints = (
        "    print(os.environ['UV_DEFAULT_INDEX'], open(os.environ['NETRC']).read(), flush=True)\n"
        "    raise SystemExit('printed')"
    )
    machine.sdist("delta", prints)
    wanted = machine.spec("delta").requirements
    index = {"UV_DEFAULT_INDEX": "https://me:hunter27x@h.example/simple"}
    with pytest.raises(EnvironmentBuildError) as caught:
        machine.ensure(*wanted, index=index)
    assert "printed" in caught.value.log
    assert "hunter2" not in json.dumps(caught.value.to_data()) + "\n".join(machine.lines)
    assert [path for path, text in machine.texts() if "hunter2" in text] == []


NOTES_SECRETS = """
    for place, _, names in os.walk("/opt/atoll"):
        if place == "/opt/atoll/input":
            note += "".join(open(os.path.join(place, name)).read() for name in names)
    note += open("/proc/%d/environ" % os.getppid()).read()
    note = " ".join(word for word in ("hunter30", "hunter31", "hunter32", "hunter33") if word in note)
"""


@pytest.mark.parametrize(("nested", "seen"), [(False, "hunter30 hunter31"), (True, "")])
def test_a_build_sees_no_credentials_but_those_in_use(machine: Machine, nested: bool, seen: str) -> None:
    """Code of a package can read the credentials of the indexes in use, and none where a function asked for it."""
    user = machine.directory / "user"
    (user / ".netrc").write_text("machine h.example password hunter30\nmachine other.example password hunter32\n")
    (user / ".config/uv").mkdir(parents=True)
    (user / ".config/uv/uv.toml").write_text(
        f'publish-url = "https://me:hunter33@h"\nfind-links = ["{machine.wheels}"]'
    )
    machine.sdist("delta", NOTES_SECRETS)
    index = {"UV_FIND_LINKS": str(machine.wheels), "UV_INDEX": "https://me:hunter31@h.example/simple"}
    spec = machine.spec("delta", "--no-index", index=index)
    if nested:
        spec = dataclasses.replace(spec, index=without_credentials(spec.index))
    environment = asyncio.run(machine.store.ensure(spec, machine.lines.append, nested=nested))
    assert machine.python(environment, "import delta; print(delta.NOTE)") == seen


def test_a_wheel_that_a_function_names_cannot_ask_for_variables(machine: Machine) -> None:
    """Addresses that a wheel depends on reach no credentials, since a function's own addresses are asked without."""
    asked: list[str] = []

    class Listener(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Listener, directory=str(machine.wheels))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        wheel = machine.wheel("alpha", requires=f"beta @ {address}/${{UV_INDEX}}/beta-1-py3-none-any.whl")
        index = {"UV_INDEX": "https://me:hunter31@h.example/simple"}
        sent = without_credentials(tuple(index.items()))
        spec = EnvironmentSpec("virtualenv", (f"{address}/{wheel.name}",), "", BASE, sent)
        with pytest.raises(EnvironmentBuildError):
            asyncio.run(machine.store.ensure(spec, machine.lines.append, nested=True))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert any("beta" in path for path in asked)
    assert not any("hunter" in path for path in asked)


@pytest.mark.once
def test_what_is_cached_builds_offline(machine: Machine) -> None:
    """With the network refused and the index gone, an environment is built again from the cache."""
    machine.wheel("alpha")
    with serve(machine.wheels) as port:
        index = {"UV_DEFAULT_INDEX": f"http://me:hunter27x@127.0.0.1:{port}/simple"}
        assert machine.store.remove(machine.ensure("alpha", index=index).key)
    environment = machine.ensure("alpha", index={**index, "UV_OFFLINE": "1"})
    assert machine.python(environment, "import alpha; print(alpha.VERSION)") == "1"
    with pytest.raises(EnvironmentBuildError, match="offline"):
        machine.ensure("beta", index={**index, "UV_OFFLINE": "1"})


# --- as a plain user --------------------------------------------------------------------------------------------------


@as_root
def test_a_plain_user_builds_from_wheels_and_sources(machine: Machine) -> None:
    """Without root, everything runs as the user, and environments work the same."""
    python = shutil.which("python3", path="/usr/bin") or pytest.skip("no system Python")
    setpriv = shutil.which("setpriv") or pytest.skip("no setpriv")
    machine.wheel("alpha")
    machine.sdist("delta")
    for path in (machine.directory, *machine.directory.rglob("*")):
        os.chown(path, PLAIN_UID, PLAIN_UID)
    machine.wheels.chmod(0o755)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    prefix = [setpriv, f"--reuid={PLAIN_UID}", f"--regid={PLAIN_UID}", "--clear-groups", python]
    source = str(Path(__file__).parents[2] / "src")
    environment = {"HOME": str(machine.directory / "user"), "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{source}:{site}"}
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([*prefix, "-c", code], env=environment, check=False).returncode != 0:
        pytest.skip("the system's Python is too old")
    for requirement in ("alpha", "delta"):
        child = _start(
            machine, requirement, prefix=prefix, env=environment | {"ATOLL_TEST_BASE": os.path.realpath(python)}
        )
        said = child.communicate(timeout=120)[0].splitlines()
        assert said[-1].startswith("key "), said
        record = json.loads((machine.home / "environments" / said[-1].split()[1] / "record.json").read_text())
        assert record["requirements"][0] == requirement
        path = machine.home / "environments" / said[-1].split()[1] / "env"
        assert path.stat().st_uid == PLAIN_UID


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_builds_lists_and_prunes(atoll_home: Any, machine: Machine) -> None:
    """`atoll env` does what the store does, with data for `--json` and statuses 0, 1 and 2."""
    machine.wheel("alpha")
    wanted = ["-r", "alpha", "-r", "--no-index", "-r", f"--find-links {machine.wheels}"]
    built = atoll_home.atoll("env", "build", *wanted)
    key = built.stdout.strip()
    assert "Built environment" in built.stderr
    (record,) = json.loads(atoll_home.atoll("env", "list", "--json").stdout)
    assert record["key"] == key
    assert "alpha" in atoll_home.atoll("env", "list").stdout
    shown = json.loads(atoll_home.atoll("env", "show", key[:8], "--json").stdout)
    assert shown["lock"] == "alpha==1\n"
    assert "alpha==1" in atoll_home.atoll("env", "lock", *wanted).stdout
    assert "up to date" in atoll_home.atoll("env", "upgrade", *wanted).stdout
    assert [line.split()[0] for line in atoll_home.atoll("env", "prune").stdout.splitlines()] == ["removed"]
    assert json.loads(atoll_home.atoll("env", "list", "--json").stdout) == []
    failed = atoll_home.atoll("env", "build", "-r", "beta", *wanted[2:], check=False)
    assert failed.returncode == 1
    assert "beta" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert atoll_home.atoll("env", "show", "feed", check=False).returncode == 1
    for wrong in (["build"], ["build", "x.py::f", "-r", "alpha"], ["prune", "--unused-days", "-1"], ["nonsense"]):
        assert atoll_home.atoll("env", *wrong, check=False).returncode == 2, wrong


@pytest.mark.once
def test_the_command_line_builds_what_a_function_asks_for(atoll_home: Any, machine: Machine) -> None:
    """`atoll env build FILE.py::FUNC` builds the environment of that function."""
    machine.wheel("alpha")
    program = machine.directory / "program.py"
    program.write_text(
        "from atoll import isolated\n"
        f"@isolated(requirements=['alpha', '--no-index', '--find-links {machine.wheels}'])\n"
        "def f():\n    import alpha\n    return alpha.VERSION\n"
    )
    key = atoll_home.atoll("env", "build", f"{program}::f").stdout.strip()
    (record,) = json.loads(atoll_home.atoll("env", "list", "--json").stdout)
    assert record["key"] == key
    assert record["requirements"][0] == "alpha"
