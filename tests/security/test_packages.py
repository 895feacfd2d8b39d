"""Hostile packages: archives whose names lead out, start-up code, and trees that cannot be removed in the usual way."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import signal
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from atoll import isolated
from atoll.errors import AtollError, EnvironmentBuildError

from ..conftest import Home
from ..environments import Machine
from ..waiting import soak, until

pytestmark = [pytest.mark.as_user]

LINK = (stat.S_IFLNK | 0o777) << 16
WORKSHOP = "/opt/atoll-workshop"
MARK = "planted-by-a-package"


def hostile_wheel(machine: Machine, entries: Mapping[str, str | tuple[int, str]], entry_points: str = "") -> None:
    """Make the wheel `hostile` with extra entries, each a text, or the attributes of a zip entry and a text."""
    info = "hostile-1.dist-info"
    content: dict[str, str | tuple[int, str]] = {
        "hostile.py": "def main(): pass\n",
        **entries,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: hostile\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if entry_points:
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{entry_points} = hostile:main\n"
    content.setdefault(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"]))
    path = machine.wheels / "hostile-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in content.items():
            attributes, text = one if isinstance(one, tuple) else (0o100644 << 16, one)
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, attributes
            archive.writestr(entry, text)
    path.chmod(0o644)


WHEELS: dict[str, tuple[dict[str, str | tuple[int, str]], str]] = {
    "up": ({f"../{MARK}": "x", f"../../../{MARK}": "x", f"hostile/../../../{MARK}": "x"}, ""),
    "absolute": ({f"{WORKSHOP}/{MARK}": "x", f"//{WORKSHOP}/uv/{MARK}": "x"}, ""),
    "symlink": ({"way": (LINK, WORKSHOP), f"way/{MARK}": "x"}, ""),
    "symlink in data": ({"hostile-1.data/data/way": (LINK, WORKSHOP), f"hostile-1.data/data/way/{MARK}": "x"}, ""),
    "data leads out": ({f"hostile-1.data/data/../../{MARK}": "x", f"hostile-1.data/../../../{MARK}": "x"}, ""),
    "scripts lead out": ({f"hostile-1.data/scripts/../../../{MARK}": "#!python\n"}, ""),
    "entry point up": ({}, f"../../../{MARK}"),
    "entry point absolute": ({}, f"{WORKSHOP}/{MARK}"),
    "record lies": ({"hostile-1.dist-info/RECORD": f"../../../../../../{MARK},,\n/{WORKSHOP}/uv,,\n"}, ""),
}


def contents(directory: Path) -> dict[str, str]:
    """Return the digests of the files below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_wheel_writes_into_its_own_environment_only(machine: Machine) -> None:
    """Names that lead out, symlinks, data, scripts and a wrong RECORD change neither caches nor other environments."""
    machine.wheel("alpha")
    other = machine.ensure("alpha")
    before = contents(other.path)
    for name in soak(["up", "symlink", "symlink in data", "scripts lead out", "record lies"], list(WHEELS)):
        hostile_wheel(machine, *WHEELS[name])
        own: Path | None = None
        with contextlib.suppress(EnvironmentBuildError):
            own = machine.ensure("hostile").path
        archives = machine.home / "environments/.cache/uv"  # the wheel itself, unpacked
        planted = [path for path in machine.home.rglob(MARK) if own is None or own not in path.parents]
        assert [path for path in planted if archives not in path.parents or path.parent.parent == archives] == [], name
        assert not [path for path in machine.home.rglob("way") if path.is_symlink() and path.exists()], name
        asyncio.run(machine.store.prune())
    assert machine.work() == []
    again = machine.ensure("alpha")
    assert contents(again.path) == before
    assert machine.python(again, "import alpha; print(alpha.VERSION)") == "1"


PYTHONS: list[tuple[dict[str, str | tuple[int, str]], str]] = [
    ({"hostile-1.data/data/bin/python": "#!/bin/sh\n"}, ""),
    ({}, "python"),
    ({"hostile-1.data/data/lib": (LINK, "/tmp")}, ""),
    ({"hostile-1.data/scripts/python": "#!/bin/sh\n"}, ""),
    ({"hostile-1.data/data/bin": (LINK, "/tmp")}, ""),
    ({"hostile-1.data/data/pyvenv.cfg": "home = /tmp\n"}, ""),
]


def test_a_wheel_does_not_replace_its_environments_python(machine: Machine) -> None:
    """An environment whose interpreter or directories a wheel would replace is refused, or has its own all the same."""
    for entries, entry_point in soak(PYTHONS[:3], PYTHONS):
        hostile_wheel(machine, entries, entry_point)
        try:
            environment = machine.ensure("hostile")
        except EnvironmentBuildError:
            assert machine.store.list() == []
        else:
            assert os.readlink(environment.path / "bin/python") == environment.interpreter.executable
            assert not (environment.path / "lib").is_symlink()
            asyncio.run(machine.store.prune())
        assert machine.work() == []


def hostile_sdist(machine: Machine, entries: list[tarfile.TarInfo]) -> None:
    """Make the source distribution `hostile`, whose metadata can be read without a build, with extra entries."""
    with tarfile.open(machine.wheels / "hostile-1.tar.gz", "w:gz") as archive:
        metadata = b"Metadata-Version: 2.2\nName: hostile\nVersion: 1\n"
        for name, text in (("hostile-1/PKG-INFO", metadata), ("hostile-1/pyproject.toml", b"")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    (machine.wheels / "hostile-1.tar.gz").chmod(0o644)


def tar_file(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = 1
    return entry


def tar_link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


SDISTS: dict[str, Callable[[], list[tarfile.TarInfo]]] = {
    "up": lambda: [tar_file(f"../{MARK}"), tar_file(f"hostile-1/../../../{MARK}")],
    "absolute": lambda: [tar_file(f"{WORKSHOP}/{MARK}")],
    "symlink": lambda: [tar_link("hostile-1/way", WORKSHOP), tar_file(f"hostile-1/way/{MARK}")],
    "symlink up": lambda: [tar_link("hostile-1/way", "../../../.."), tar_file(f"hostile-1/way/{MARK}")],
    "hard link": lambda: [
        tar_link("hostile-1/way", f"{WORKSHOP}/uv/CACHEDIR.TAG", tarfile.LNKTYPE),
        tar_file("hostile-1/way"),
    ],
}


def test_a_source_distribution_is_unpacked_where_it_belongs(machine: Machine) -> None:
    """Before any build, uv reads the metadata of source distributions beside the shared cache: names lead nowhere."""
    machine.wheel("alpha")
    other = machine.ensure("alpha")
    before = contents(other.path)
    tag = machine.home / "environments/.cache/uv/CACHEDIR.TAG"
    said = tag.read_bytes()
    for name in soak(["up", "symlink"], list(SDISTS)):
        hostile_sdist(machine, SDISTS[name]())
        with pytest.raises(EnvironmentBuildError, match="hostile"):
            machine.ensure("hostile")
        assert list(machine.home.rglob(MARK)) == [], name
    assert tag.read_bytes() == said
    assert contents(other.path) == before
    assert machine.work() == []


START = f"""
import os
print("start-up code ran", flush=True)
try:
    open("{WORKSHOP}/ran", "w").close()
except OSError:
    pass
"""


def test_start_up_code_of_a_package_runs_in_functions_only(machine: Machine) -> None:
    """`.pth`, `sitecustomize` and `usercustomize` run in no step of building, locking or upgrading an environment."""
    line = f"exec({START!r})\n"
    files = {"hostile.pth": f"import sys; {line}", "sitecustomize.py": START, "usercustomize.py": START}
    machine.wheel("alpha", files=files)
    environment = machine.ensure("alpha")
    assert "start-up code ran" in machine.python(environment, "")
    asyncio.run(machine.store.lock(machine.spec("alpha"), machine.lines.append))
    machine.wheel("alpha", "2", files=files)
    asyncio.run(machine.store.upgrade(machine.spec("alpha"), machine.lines.append))
    assert "start-up code" not in "\n".join(machine.lines)
    assert not [text for path, text in machine.texts() if path.name.endswith(".log") and "start-up code" in text]
    assert not (machine.home / "environments/.cache/ran").exists()


DEEP = """
    here = os.open("/opt/atoll/{place}", os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
"""
SHUT = """
    os.makedirs("/opt/atoll/{place}/a/b")
    os.chmod("/opt/atoll/{place}/a/b", 0)
    os.chmod("/opt/atoll/{place}/a", 0)
"""
FAIL = "    raise SystemExit('on purpose')\n"


@pytest.mark.parametrize(
    ("attack", "place", "end"),
    soak(
        [(DEEP, "env", ""), (SHUT, "cache", FAIL)],
        list(itertools.product([DEEP, SHUT], ["env", "cache", ""], ["", FAIL])),
    ),
)
def test_a_build_leaves_nothing_that_stops_the_next(machine: Machine, attack: str, place: str, end: str) -> None:
    """Directories without end or without permissions, left by a build, are removed with it, or with its environment."""
    machine.sdist("delta", attack.format(place=place) + end)
    if end:
        with pytest.raises(AtollError, match="delta"):
            machine.ensure("delta")
    else:
        environment = machine.ensure("delta")
        assert machine.python(environment, "import delta; print(delta.VERSION)") == "1"
    assert machine.work() == []
    machine.store = machine.new_store()
    machine.wheel("alpha")
    machine.ensure("alpha")
    asyncio.run(machine.store.prune())
    assert machine.store.list() == []
    left = [path.name for path in (machine.home / "environments").iterdir() if not path.name.startswith(".")]
    assert left == []


def test_a_package_writes_no_lines_of_a_lock(machine: Machine) -> None:
    """Line breaks in the metadata of a wheel, or in names that a build makes, add neither options nor requirements."""
    origin = {"url": f"https://{MARK}.example/x\n--extra-index-url=https://{MARK}.example", "archive_info": {}}
    hostile_wheel(machine, {"hostile-1.dist-info/direct_url.json": json.dumps(origin)})
    origin = {"url": "https://h.example/x", "vcs_info": {"vcs": "git", "commit_id": f"1\n{MARK}==1"}}
    machine.sdist(
        "delta",
        "    import glob\n"
        "    (packages,) = glob.glob('/opt/atoll/env/lib/*/site-packages')\n"
        f"    for name in ('other-1', 'x-1\\n{MARK.replace('-', '_')}==1\\n', '-r-1', 'y-1'):\n"
        "        os.mkdir(packages + '/' + name + '.dist-info')\n"
        "    with open(packages + '/other-1.dist-info/direct_url.json', 'w') as file:\n"
        f"        file.write({json.dumps(origin)!r})\n",
    )
    for name in ("hostile", "delta"):
        lock = asyncio.run(machine.store.lock(machine.spec(name), machine.lines.append))
        assert MARK not in lock.replace("_", "-"), lock
        assert not [line for line in lock.splitlines() if line.startswith("-")], lock


def test_special_files_of_a_build_keep_nobody_waiting(machine: Machine) -> None:
    """Named pipes in the place of files that are read after a build are not waited for."""
    machine.sdist(
        "delta",
        "    import glob\n"
        "    (packages,) = glob.glob('/opt/atoll/env/lib/*/site-packages')\n"
        "    os.mkdir(packages + '/other-1.dist-info')\n"
        "    for name in ('other-1.dist-info/direct_url.json', 'other-1.dist-info/RECORD', 'waits.py', 'waits.pth'):\n"
        "        os.mkfifo(packages + '/' + name)\n"
        "    os.mkfifo('/opt/atoll/env/pyvenv.cfg.new')\n",
    )
    environment = machine.ensure("delta")
    assert (environment.directory / "requirements.lock").read_text().count("==") == 2
    assert asyncio.run(machine.store.prune()).removed


IN_THE_AGENT = """
import fcntl
if any(word.endswith("_atoll_agent.py") for word in sys.orig_argv):
    letter = attack()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            file = open("/data/agent", "w")
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(letter)
            file.flush()
            signal.pause()
        os._exit(0)
"""


def test_start_up_code_in_the_agent_does_not_outlive_the_daemon(machine: Machine, atoll_home: Home) -> None:
    """A package's `.pth` runs in the agent, outside of all Landlock domains, and can disarm pid 1: it ends all the same."""
    attack = Path(__file__).with_name("disarm.py").read_text().partition("if __name__")[0]
    hostile_wheel(machine, {"hostile.pth": "import hostile_start\n", "hostile_start.py": attack + IN_THE_AGENT})
    requirement = str(machine.wheels / "hostile-1-py3-none-any.whl")
    assert isolated(requirements=[requirement], network="none")(abs)(-1) == 1
    daemon = atoll_home.daemon_pid()
    assert daemon is not None
    held = atoll_home.path / "volumes/local/data/agent"
    until(lambda: held.exists() and held.read_text() in ("d", "-"))
    os.kill(daemon, signal.SIGKILL)
    with open(held, "r+") as file:

        def free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        until(free)
